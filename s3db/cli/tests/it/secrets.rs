//! Errors say what is wrong, in one line, and repeat no secret.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use assert_cmd::Command;
use s3db::{
    Backend, Keyring, Settings, Store,
    cloud::{
        Get,
        embedded::{self, Memory},
    },
};

use crate::s3db;

/// A server that has one object, if any, of a name that ends so, and none else. Ends with the process.
fn server(object: Option<(&'static str, Vec<u8>)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let mut lines = BufReader::new(&client).lines();
            let asked = lines.next().and_then(Result::ok).unwrap_or_default();
            let path = asked.split(['?', ' ']).nth(1).unwrap_or_default().to_owned();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let nothing = b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>";
            let (status, body) = match &object {
                Some((name, bytes)) if path.ends_with(name) => ("200 OK", &bytes[..]),
                _ => ("404 Not Found", &nothing[..]),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: \"1\"\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let mut client = &client;
            let _ = client.write_all(&[head.as_bytes(), body].concat());
        }
    });
    base
}

/// The object that makes a database one, as bytes.
fn database(keys: Option<&Keyring>) -> Vec<u8> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let (cloud, settings) = (embedded::memory(Arc::new(Memory::new())), Settings::default());
        match keys {
            Some(_) => Store::create_encrypted(&cloud, &settings, Backend::S3Log, 1).await.unwrap(),
            None => Store::create(&cloud, &settings, Backend::S3Log, 1).await.unwrap(),
        };
        match cloud.objects.get("database", None).await {
            Ok(Get::Found { bytes, .. }) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    })
}

/// The command, with nothing of this machine's AWS configuration.
fn bare(home: &std::path::Path) -> Command {
    let mut command = s3db();
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command.env("AWS_EC2_METADATA_DISABLED", "true").env("HOME", home);
    command
}

fn said(command: &mut Command) -> String {
    let failed = command.assert().code(1);
    String::from_utf8_lossy(&failed.get_output().stderr).into_owned()
}

#[test]
fn addresses_are_told_without_passwords() {
    let home = tempfile::tempdir().unwrap();
    let keys = Keyring::parse(&format!("1 {}", "01".repeat(32))).unwrap();
    for (object, why) in [
        (None, "there is no database at s3://"),
        (Some(("/database", database(None))), "there is no collection users"),
        (Some(("/database", database(Some(&keys)))), "is encrypted"),
    ] {
        let base = server(object);
        let url =
            format!("s3://bucket/db?endpoint=http://u:SECRETX@{base}&sqs=http://u:SECRETX@{base}");
        for args in [
            &["get", &url, "users", "a"][..],
            &["scan", &url, "users"],
            &["put", &url, "users", "a", "1"],
            &["index", "list", &url, "users"],
            &["pending", "list", &url, "users"],
        ] {
            let keyed = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "SECRETX")];
            let error = said(bare(home.path()).args(args).envs(keyed));
            assert!(error.contains(why) && !error.contains("SECRETX"), "{args:?}: {error}");
        }
    }
}

/// What the SDK met is told as it tells it to people, not as it is: no dump of requests and answers.
#[test]
fn missing_credentials_are_one_line() {
    let home = tempfile::tempdir().unwrap();
    let base = server(None);
    let get = ["get", &format!("s3://bucket/db?endpoint=http://{base}"), "users", "a"];
    let broken = server(Some(("/role", b"{\"AccessKeyId\": SECRETY".to_vec())));
    let broken = format!("http://{broken}/role");
    for more in [&[][..], &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &broken[..])]] {
        let began = Instant::now();
        let error = said(bare(home.path()).args(get).envs(more.iter().copied()));
        assert!(error.contains("credentials"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(!error.contains("SdkBody") && !error.contains("SECRETY"), "{error}");
        assert!(error.len() < 1000, "{error}");
        if more.is_empty() {
            assert!(error.contains("AWS_ACCESS_KEY_ID"), "what to do: {error}");
            let took = began.elapsed();
            assert!(took < Duration::from_secs(5), "nothing is tried again: {took:?}");
        }
    }
}
