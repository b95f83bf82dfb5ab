//! Which objects are read through the block server that the environment names, and which are not.

use std::process::Command;

use sources::{Cache, CachePolicy, Options, RetryPolicy};

use crate::fake::{Fake, answer};

const BODY: &[u8] = b"the object that was meant";

/// What was set for an object is not lost on the way to a server that does not know of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_cannot_know_goes_without_it() {
    let fake = Fake::start(|head| {
        let length = format!("Content-Length: {}", BODY.len());
        let tag = "ETag: \"1\"";
        let asked = head.lines().find_map(|line| line.strip_prefix("range: bytes="));
        let asked = asked.and_then(|range| range.split_once('-'));
        let Some((first, last)) = asked else { return answer("200 OK", &[tag, &length], b"") };
        let (first, last) = (first.parse().expect("a number"), last.parse().expect("a number"));
        let body: &[u8] = &BODY[first..=last];
        let range = format!("Content-Range: bytes {first}-{last}/{}", BODY.len());
        answer("206 Partial Content", &[tag, &range], body)
    });
    let fake = fake.await;
    let base = fake.base.clone();
    let run = move || {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["behind::child", "--exact", "--ignored", "--nocapture"]);
        command.env("BEHIND_ENDPOINT", base).env("EXTMEM_SERVER", "unix:///nobody/listens/here");
        command.env_remove("EXTMEM_CACHE").output().expect("a process")
    };
    let output = tokio::task::spawn_blocking(run).await.expect("no panic");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other process of the test above"]
async fn child() {
    let Ok(endpoint) = std::env::var("BEHIND_ENDPOINT") else { return };
    let once = RetryPolicy { attempts_max: 1, ..RetryPolicy::default() };
    let plain = || Options::default().retry(once.clone());
    let read = async |options: Options, url: &str| {
        let source = options.open(url)?;
        let version = source.stat().await?.version;
        let frame = source.read(&version, 0..BODY.len() as u64).await?;
        futures::TryStreamExt::try_collect::<Vec<_>>(frame).await.map(|chunks| chunks.concat())
    };
    let http = format!("{endpoint}/object");
    let error = read(plain(), &http).await.expect_err("nobody is there");
    assert!(error.to_string().contains("block server"), "{error}");

    let of_s3 = plain().endpoint(endpoint.clone()).anonymous(true).region("r".to_owned());
    assert_eq!(read(of_s3, "s3://bucket/key").await.expect("the object"), BODY);
    let signed = sources::http::Credentials::default().bearer("secret").expect("a token");
    assert_eq!(read(plain().credentials(signed), &http).await.expect("the object"), BODY);
    let folder = tempfile::tempdir().expect("a folder");
    let policy = CachePolicy { free_bytes_min: 0, ..CachePolicy::default() };
    let cache = Cache::open(folder.path().join("cache"), policy).expect("a cache");
    let cached = plain().cache(Some(cache.clone()));
    assert_eq!(read(cached, &http).await.expect("the object"), BODY);
    assert_eq!(cache.count().missed_blocks, 1, "into the cache that was named");
}

/// A server that is named itself is asked, or it is said why not.
#[test]
fn what_a_named_server_cannot_know_is_refused() {
    let url = "server+unix:///run/extmem.sock?url=s3://bucket/key";
    let cases = [
        ("endpoint", Options::default().endpoint("http://127.0.0.1:1".to_owned())),
        ("profile", Options::default().profile("other".to_owned())),
        ("anonymous", Options::default().anonymous(true)),
    ];
    for (what, options) in cases {
        let error = options.open(url).map(drop).expect_err(what);
        assert!(error.to_string().contains(what), "{error}");
    }
    Options::default().region("eu-west-1".to_owned()).open(url).map(drop).expect_err("region");
    Options::default().open(url).expect("nothing is set");
}
