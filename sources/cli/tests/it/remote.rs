//! Objects behind a server that this file plays: S3 and what hands out credentials for it.

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::Output,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use assert_cmd::Command;

use crate::extmem;

/// Answers each request with what `answer` makes of its head, and keeps the heads. Its thread ends
/// with the process: it waits for a connection that nobody makes.
fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            let (mut head, mut byte) = (Vec::new(), [0u8; 1]);
            while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let bytes = answer(&head);
            seen.lock().unwrap().push(head);
            let _ = socket.write_all(&bytes);
        }
    });
    (base, heads)
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}");
    let length = match headers.contains("Content-Length") {
        true => String::new(),
        false => format!("Content-Length: {}\r\n", body.len()),
    };
    [head.as_bytes(), length.as_bytes(), b"\r\n", body].concat()
}

/// An object of `OBJECT` as S3 serves it.
fn object(head: &str) -> Vec<u8> {
    let tag = "ETag: \"v\"\r\nAccept-Ranges: bytes\r\n";
    if head.starts_with("HEAD") {
        return answer("200 OK", &format!("{tag}Content-Length: {}\r\n", OBJECT.len()), b"");
    }
    let head = head.to_lowercase();
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")).unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let place = format!("{tag}Content-Range: bytes {first}-{last}/{}\r\n", OBJECT.len());
    answer("206 Partial Content", &place, &OBJECT[first..=last])
}

const OBJECT: &[u8] = b"an object of some forty bytes, more or less";

/// The command without anything that this machine's settings would add.
fn alone() -> Command {
    let mut command = extmem();
    command.env_clear().env("HOME", "/nonexistent").env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Seconds since 1970 as AWS writes times.
fn aws_time(after: Duration) -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + after;
    let days = time.as_secs() / 86_400;
    // The days of this century, counted from its first: the calendar's exception is in 2100.
    let (mut day, mut year) = (days - 10_957, 2000);
    let days_of = |year: u64| if year.is_multiple_of(4) { 366 } else { 365 };
    while day >= days_of(year) {
        day -= days_of(year);
        year += 1;
    }
    let february = if days_of(year) == 366 { 29 } else { 28 };
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let second = time.as_secs() % 86_400;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
}

/// Credentials that expire at once are fetched anew for every request, by the pager's own runtime.
#[test]
fn credentials_are_refreshed_before_they_expire() {
    let turn = Mutex::new(0);
    let (vendor, asked) = serve(move |_| {
        let mut turn = turn.lock().unwrap();
        *turn += 1;
        let expires = aws_time(Duration::from_secs(5));
        let json = format!(
            "{{\"AccessKeyId\":\"AKID{turn}\",\"SecretAccessKey\":\"s3cr3t\",\
             \"Token\":\"t0k3n\",\"Expiration\":\"{expires}\"}}"
        );
        answer("200 OK", "Content-Type: application/json\r\n", json.as_bytes())
    });
    let (endpoint, heads) = serve(object);
    let url = format!("s3://bucket/key?endpoint={endpoint}&region=r");
    let output = alone()
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{vendor}/role"))
        .args(["cat", &url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(output.stdout, OBJECT);
    let heads = heads.lock().unwrap();
    let keys: Vec<_> = heads
        .iter()
        .map(|head| head.split("Credential=").nth(1).unwrap().split('/').next().unwrap())
        .collect();
    assert!(keys.len() >= 2, "{keys:?}");
    let mut fresh = keys.clone();
    fresh.dedup();
    assert_eq!(fresh, keys, "each request has credentials of its own");
    assert!(asked.lock().unwrap().len() >= 2);
}

#[test]
fn credentials_that_cannot_be_had_are_said_and_never_shown() {
    let broken = "{\"AccessKeyId\":\"AKID\",\"SecretAccessKey\":\"s3cr3t\",\"Token\":\"t0k3n\"";
    let (vendor, _) = serve(move |_| answer("200 OK", "", broken.as_bytes()));
    let (endpoint, heads) = serve(object);
    let url = format!("s3://bucket/key?endpoint={endpoint}&region=r&retries=1");
    let place = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{vendor}/role"));
    let cases = [(Some(place), "no credentials"), (None, "anonymous=true")];
    for (place, says) in cases {
        let output = alone().envs(place).args(["stat", &url]).output().unwrap();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(says), "{text}");
        assert!(!text.contains("s3cr3t") && !text.contains("t0k3n"), "{text}");
    }
    // An instance whose service gives none: one line says so, and not one per attempt and warning.
    let (metadata, asked) = serve(|_| answer("403 Forbidden", "", b"denied"));
    let output = alone()
        .env_remove("AWS_EC2_METADATA_DISABLED")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata)
        .args(["stat", &url])
        .output()
        .unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!asked.lock().unwrap().is_empty(), "{text}");
    assert!(text.contains("no credentials") && text.contains("anonymous=true"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(heads.lock().unwrap().is_empty(), "nothing was asked without credentials");
}

/// With an endpoint of one's own, nobody waits for a metadata service to tell a region.
#[test]
fn an_endpoint_of_the_environment_needs_no_region_of_an_instance() {
    let (metadata, asked) = serve(|_| answer("404 Not Found", "", b""));
    let (endpoint, _) = serve(object);
    for variable in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"] {
        let output = alone()
            .env_remove("AWS_EC2_METADATA_DISABLED")
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata)
            .env(variable, &endpoint)
            .args(["stat", "s3://bucket/key?anonymous"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{variable}: {}", text(&output));
        assert!(asked.lock().unwrap().is_empty(), "{variable}: {:?}", asked.lock().unwrap());
    }
}

/// Endpoint and region of a profile, of its section `services` as well, as the AWS tools read them.
#[test]
fn profiles_name_endpoints() {
    let (endpoint, heads) = serve(object);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    let text_of = format!(
        "[profile plain]\nregion = re-gi-1\nendpoint_url = {endpoint}\n\
         [profile special]\nregion = re-gi-1\nservices = mine\n\
         [services mine]\ns3 =\n  endpoint_url = {endpoint}\n"
    );
    std::fs::write(&config, text_of).unwrap();
    for profile in ["plain", "special"] {
        let output = alone()
            .env("AWS_CONFIG_FILE", &config)
            .env("AWS_ACCESS_KEY_ID", "AKID")
            .env("AWS_SECRET_ACCESS_KEY", "s3cr3t")
            .args(["stat", &format!("s3://bucket/key?profile={profile}")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{profile}: {}", text(&output));
    }
    for head in heads.lock().unwrap().iter() {
        assert!(head.starts_with("HEAD /bucket/key "), "in the path: {head}");
        assert!(head.contains("/re-gi-1/s3/"), "{head}");
    }
    assert_eq!(heads.lock().unwrap().len(), 2);
}

/// A length is a claim: no machine has that much address space, and no sum of it may overflow.
#[test]
fn lengths_beyond_all_measure_are_refused() {
    for len in [u64::MAX, u64::MAX - 4095, 1 << 63, (1 << 63) - 1, 1 << 60] {
        let (base, _) = serve(move |head| match head.starts_with("HEAD") {
            true => {
                let headers = "ETag: \"v\"\r\nAccept-Ranges: bytes\r\n";
                answer("200 OK", &format!("{headers}Content-Length: {len}\r\n"), b"")
            }
            false => answer("503 Busy", "", b""),
        });
        let urls = [
            format!("{base}/x#extmem:retries=0"),
            format!("s3://b/x?endpoint={base}&region=r&anonymous&retries=0"),
        ];
        for url in &urls {
            for args in [&["stat", url][..], &["cat", "--range", "-10", url]] {
                let output = alone().args(args).output().unwrap();
                let text = text(&output);
                assert_eq!(output.status.code(), Some(1), "{len}, {args:?}: {text}");
                assert!(text.starts_with("extmem: "), "{len}, {args:?}: {text}");
                assert!(!text.contains("panicked"), "{len}, {args:?}: {text}");
            }
        }
    }
}

#[test]
fn what_s3_charges_is_said_in_dollars() {
    let (endpoint, heads) = serve(object);
    let of = |key: &str| format!("s3://b/{key}?endpoint={endpoint}&region=r&anonymous");
    let output = alone().args(["cat", "--stats", &of("one")]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(output.stdout == OBJECT);
    let said = text(&output);
    assert!(said.contains("requests  1 GET, 1 HEAD"), "{said}");
    assert!(said.contains("cost      $0.0000008 at S3's list price"), "{said}");
    heads.lock().unwrap().clear();
    let output = alone().args(["cat", "--stats=json", &of("one"), &of("two")]).output().unwrap();
    assert!(output.stdout == [OBJECT, OBJECT].concat(), "{}", text(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((json["gets"].as_u64(), json["heads"].as_u64()), (Some(2), Some(2)), "{json}");
    assert!((json["cost_usd"].as_f64().unwrap() - 4.0 * 0.0004 / 1000.0).abs() < 1e-12, "{json}");
    assert_eq!(heads.lock().unwrap().len(), 4);
}
