//! Who may do what, and how long it takes.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use aws_sdk_s3::primitives::ByteStream;
use endpoint::{Door, Endpoint, Settings, line::Shape, tls};

use crate::{client, client_as, fast, noise, refused, run};

#[test]
fn signatures_are_checked() {
    run(async {
        let endpoint = fast();
        let put = client_as(&endpoint, "wrong").put_object().bucket("box").key("k");
        let put = put.body(ByteStream::from_static(b"x")).send().await.unwrap_err();
        assert_eq!(refused(put), (403, "SignatureDoesNotMatch".into()));
        let unsigned = reqwest::get(format!("{}/box/k", endpoint.url())).await.unwrap();
        assert_eq!(unsigned.status().as_u16(), 403);
    });
}

#[test]
fn anonymous_reads_read_and_do_nothing_else() {
    run(async {
        let settings = Settings { anonymous_reads: true, ..Settings::default() };
        let endpoint = Endpoint::start(settings).unwrap();
        endpoint.store().create_bucket("box").unwrap();
        let put = client(&endpoint).put_object().bucket("box").key("k");
        put.body(ByteStream::from_static(b"body")).send().await.unwrap();
        let url = format!("{}/box/k", endpoint.url());
        assert_eq!(reqwest::get(&url).await.unwrap().text().await.unwrap(), "body");
        let web = reqwest::Client::new();
        assert_eq!(web.put(&url).body("x").send().await.unwrap().status().as_u16(), 403);
        assert_eq!(web.delete(&url).send().await.unwrap().status().as_u16(), 403);
    });
}

#[test]
fn answers_take_as_long_as_they_should() {
    run(async {
        let shape = Shape { first_byte: Duration::from_millis(50), rate: Some(20_000_000) };
        let endpoint = Endpoint::start(Settings { shape, ..Settings::default() }).unwrap();
        endpoint.store().create_bucket("box").unwrap();
        let body = noise(2_000_000).into();
        endpoint.store().put("box", "k", body, Default::default(), &Default::default()).unwrap();
        let client = client(&endpoint);
        // Each request on the kept connection waits 50 ms; 2 MB take 100 ms more, at 20 MB/s.
        for (range, least) in [("bytes=0-0", 50), ("bytes=0-0", 50), ("bytes=0-1999999", 148)] {
            let began = Instant::now();
            let got = client.get_object().bucket("box").key("k").range(range).send().await.unwrap();
            got.body.collect().await.unwrap();
            let took = began.elapsed();
            assert!(took >= Duration::from_millis(least), "{range} took {took:?}");
            assert!(took < Duration::from_millis(least + 2_000), "{range} took {took:?}");
        }
        assert_eq!(endpoint.counters().gets, 3);
        assert_eq!(endpoint.counters().bytes_out, 2_000_002);
        assert_eq!(endpoint.counters().connections, 1);
    });
}

#[test]
fn it_runs_as_a_process_and_serves_files() {
    let path = std::env::temp_dir().join(format!("s3-endpoint-{}.bin", std::process::id()));
    let body = noise(300_000);
    std::fs::File::create(&path).unwrap().write_all(&body).unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_s3-endpoint"))
        .args(["--first-byte-ms", "0", "--rate", "0", "--anonymous-reads", "--file"])
        .arg(format!("{}=files/a/b.bin", path.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let got = run(async {
        let url = format!("{}/files/a/b.bin", url.trim_end());
        reqwest::get(url).await.unwrap().bytes().await.unwrap()
    });
    server.kill().unwrap();
    server.wait().unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(got == body, "other bytes");
}

#[test]
fn it_refuses_what_it_cannot_hold() {
    run(async {
        let settings = Settings { store_bytes_max: 1_000, ..Settings::default() };
        let endpoint = Endpoint::start(Settings { shape: Shape::UNSHAPED, ..settings }).unwrap();
        endpoint.store().create_bucket("box").unwrap();
        let client = client(&endpoint);
        let put = |key: &str, len| {
            client.put_object().bucket("box").key(key).body(ByteStream::from(noise(len))).send()
        };
        put("a", 800).await.unwrap();
        assert_eq!(refused(put("c", 300).await.unwrap_err()).0, 400);
        // In place of the old bytes there is room.
        put("a", 900).await.unwrap();
        client.delete_object().bucket("box").key("a").send().await.unwrap();
        put("c", 1_000).await.unwrap();
    });
}

#[test]
fn a_dropped_endpoint_is_gone() {
    run(async {
        let endpoint = fast();
        let client = client(&endpoint);
        client.head_bucket().bucket("box").send().await.unwrap();
        drop(endpoint);
        assert!(client.head_bucket().bucket("box").send().await.is_err());
    });
}

/// Encrypted for those who trust the certificate, and closed to others.
#[test]
fn a_door_may_be_encrypted() {
    run(async {
        let endpoint = Endpoint::start(Settings { anonymous_reads: true, ..Settings::default() });
        let endpoint = endpoint.unwrap();
        endpoint.store().create_bucket("box").unwrap();
        let put = client(&endpoint).put_object().bucket("box").key("k");
        put.body(ByteStream::from_static(b"body")).send().await.unwrap();
        let url = endpoint.open(Door { tls: true, ..Door::default() }).unwrap();
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        let url = format!("{url}/box/k");
        let certificate = reqwest::Certificate::from_pem(tls::CERTIFICATE.as_bytes()).unwrap();
        let web = reqwest::Client::builder().tls_certs_only([certificate]).build().unwrap();
        assert_eq!(web.get(&url).send().await.unwrap().text().await.unwrap(), "body");
        assert!(reqwest::get(&url).await.is_err(), "nobody vouches for it");
        let plain = url.replace("https", "http");
        assert!(reqwest::get(plain).await.is_err(), "what is not encrypted is no answer");
    });
}
