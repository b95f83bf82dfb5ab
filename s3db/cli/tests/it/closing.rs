//! What a command committed is committed, whatever goes wrong afterwards.

use std::{
    env,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process, thread,
};

use sources::aws::{Aws, AwsOptions};

use crate::{run, s3db, scan};

/// A line to `upstream` on which nothing under `page/` can be stored: 403.
fn deny_pages(upstream: &str) -> String {
    let upstream = upstream.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    // Ends with the process.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let upstream = upstream.clone();
            thread::spawn(move || carry(client, &upstream));
        }
    });
    base
}

fn carry(mut client: TcpStream, upstream: &str) {
    let mut server = TcpStream::connect(upstream).unwrap();
    let (mut from_server, mut to_client) =
        (server.try_clone().unwrap(), client.try_clone().unwrap());
    let back = thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = client.read(&mut buffer) {
        // The head of a request comes in one piece.
        let head = String::from_utf8_lossy(&buffer[..len.min(200)]).into_owned();
        let line = head.lines().next().unwrap_or("");
        if line.starts_with("PUT ") && line.contains("/page/") {
            let answer = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = client.write_all(answer.as_bytes());
            break;
        }
        if server.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
    let _ = back.join();
}

/// The commit was durable, the page could not be put, and the command said that it had failed.
#[test]
fn a_commit_that_is_on_no_page_yet_is_no_failure() {
    let Some(s3) = env::var("TEST_S3_ENDPOINT").ok().filter(|value| !value.is_empty()) else {
        assert!(env::var("CI").as_deref() != Ok("true"), "CI needs TEST_S3_ENDPOINT");
        println!("left out: TEST_S3_ENDPOINT is not set; start the test servers first");
        return;
    };
    let bucket = format!("s3db-closing-{}", process::id());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = AwsOptions { endpoint: Some(s3.clone()), ..AwsOptions::default() };
        let aws = Aws::new(options);
        let client = aws.s3().await.unwrap();
        client.create_bucket().bucket(&bucket).send().await.unwrap();
    });
    let url = |endpoint: &str| format!("s3://{bucket}/db?endpoint={endpoint}");
    let (direct, denied) = (url(&s3), url(&deny_pages(&s3)));
    run(&["init", &direct, "t"]);
    for args in [&["put", &denied, "t", "k", "v"][..], &["del", &denied, "t", "other"]] {
        let done = s3db().args(args).assert().success();
        let error = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
        assert!(error.contains("not on its pages yet") && error.contains("403"), "{error}");
    }
    let script = "put t m w\ncommit\n";
    s3db().args(["txn", &denied]).write_stdin(script).assert().success();
    run(&["sweep", &direct]);
    assert_eq!(scan(&direct, "t").keys().collect::<Vec<_>>(), ["k", "m"]);
}
