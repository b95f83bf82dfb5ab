//! What `examples/` and the README say of `extmem serve`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{origin::Origin, serve::Server};

/// Another command of the workspace, which was built beside this one or was not.
fn beside(name: &str) -> Option<PathBuf> {
    let path = assert_cmd::cargo::cargo_bin!("extmem").with_file_name(name);
    if path.is_file() {
        return Some(path);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI builds all commands: {path:?}");
    println!("left out: {name}: it was not built");
    None
}

/// `EXTMEM_SERVER=unix:///run/extmem.sock tdb dump -i URL`: every byte comes from the source once, for
/// whoever asks.
#[test]
fn tdb_reads_through_the_server_that_the_environment_names() {
    let Some(tdb) = beside("tdb") else { return };
    let (origin, folder) = (Origin::start(), tempfile::tempdir().expect("a folder"));
    let (input, database) = (folder.path().join("events.csv"), folder.path().join("events.tdb"));
    let events = (0..60_000u32).map(|n| {
        let user = u128::from(n % 500) << 64 | 7;
        format!("{user:032x},{},page-{}\n", 1_700_000_000 + n, n * 7919 % 1000)
    });
    fs::write(&input, events.collect::<String>()).expect("write");
    let run = |arguments: &[&str], server: Option<&str>| {
        let mut command = Command::new(&tdb);
        command.args(arguments).env_remove("EXTMEM_SERVER").env_remove("EXTMEM_CACHE");
        for key in ["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"]
        {
            command.env_remove(key);
        }
        let output = command.envs(server.map(|server| ("EXTMEM_SERVER", server))).output();
        let output = output.expect("tdb");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
        (output.stdout, text)
    };
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    run(
        &["make", "-i", &text(&input), "-o", &text(&database), "-d", ",", "-f", "uuid,time,page"],
        None,
    );
    let bytes = fs::read(&database).expect("the database");
    origin.put("/events.tdb", &bytes, "1");
    let url = origin.url("/events.tdb");
    let dump = ["dump", "-i", &url, "--json-trails"];
    let (expected, _) = run(&["dump", "-i", &text(&database), "--json-trails"], None);
    assert!(expected.len() > 100_000, "{} bytes", expected.len());
    let socket = folder.path().join("extmem.sock");
    let name = format!("unix://{}", socket.display());
    let args = ["--allow", origin.base(), "--max-bytes", "64MiB", "--unix"];
    let args = [&args[..], &[socket.to_str().expect("text")]].concat();
    let server = Server::start(&folder.path().join("cache"), &args);
    assert!(run(&dump, Some(&name)).0 == expected);
    let once = origin.count();
    assert!(once.1 > 0 && once.1 <= bytes.len() as u64, "no byte twice: {once:?}");
    for _ in 0..2 {
        assert!(run(&dump, Some(&name)).0 == expected);
    }
    assert_eq!(origin.count(), once, "and never again");
    // In a bucket, too, of which the server alone has the keys.
    for key in ["/bucket/events.tdb", "/bucket/events.tdb?x-id=GetObject"] {
        origin.put(key, &bytes, "1");
    }
    let of_bucket = folder.path().join("bucket.sock");
    let args = ["--allow", "s3://bucket", "--max-bytes", "64MiB", "--unix"];
    let args = [&args[..], &[of_bucket.to_str().expect("text")]].concat();
    let keys = [
        ("AWS_ENDPOINT_URL", origin.base()),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "key"),
        ("AWS_REGION", "us-east-1"),
    ];
    let bucket = Server::start_in(&folder.path().join("cache-of-bucket"), &args, &keys);
    let (before, named) = (origin.count(), format!("unix://{}", of_bucket.display()));
    for _ in 0..2 {
        let dump = ["dump", "-i", "s3://bucket/events.tdb", "--json-trails"];
        assert!(run(&dump, Some(&named)).0 == expected);
    }
    let read = origin.count().1 - before.1;
    assert!(read > 0 && read <= bytes.len() as u64, "{read} of {} bytes", bytes.len());
    drop(bucket);
    let once = origin.count();
    // Somebody else's words for the same, in the address.
    let through = format!("server+{name}?url={url}");
    assert!(run(&["dump", "-i", &through, "--json-trails"], None).0 == expected);
    assert_eq!(origin.count(), once);
    // Nobody is there: an error, or the object itself where that was allowed.
    server.kill();
    assert!(run(&dump, Some(&format!("{name}?fallback=direct"))).0 == expected);
    let mut alone = Command::new(&tdb);
    let output = alone.args(dump).env("EXTMEM_SERVER", &name).output().expect("tdb");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("block server"), "{said}");
}

/// The unit starts a server that is ready, and that ends as systemd ends it.
#[test]
fn the_unit_of_systemd_starts_a_server() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/serve/extmem.service");
    let unit = fs::read_to_string(unit).expect("the unit");
    let folder = tempfile::tempdir().expect("a folder");
    let joined = unit.replace("\\\n", " ");
    let line = joined.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("a command");
    let here = folder.path().display().to_string();
    let line = line.replace("/var/cache", &here).replace("/run", &here);
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some("/usr/local/bin/extmem"));
    assert_eq!(words.next(), Some("serve"));
    fs::create_dir(folder.path().join("extmem")).expect("the folder of the socket");
    // What the machine says counts, also of what the unit says.
    let more = ["--free-bytes", "0", "--allow", "s3://bucket/", "--http", "127.0.0.1:0"];
    let more = [&more[..], &["--max-bytes", "32MiB", "--listen", "127.0.0.1:0"]].concat();
    let words = words.flat_map(|word| match word {
        "$EXTMEM_SERVE_ARGS" => more.clone(),
        word => vec![word],
    });
    let server = Server::run(&words.collect::<Vec<_>>());
    assert!(folder.path().join("extmem/extmem.sock").exists() && server.http.is_some());
    assert_eq!(server.stop(), Some(0), "SIGTERM is the end that is meant");
    // What systemd itself says of it.
    let copy = folder.path().join("extmem.service");
    let program = assert_cmd::cargo::cargo_bin!("extmem").display().to_string();
    fs::write(&copy, unit.replace("/usr/local/bin/extmem", &program)).expect("write");
    match Command::new("systemd-analyze").arg("verify").arg(&copy).output() {
        Err(error) => {
            let is_ci = std::env::var("CI").as_deref() == Ok("true");
            assert!(!is_ci, "CI needs systemd-analyze: {error}");
            println!("left out: systemd-analyze: {error}");
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let ours: Vec<_> =
                said.lines().filter(|line| line.contains("extmem.service")).collect();
            assert!(ours.is_empty(), "{ours:#?}");
        }
    }
}
