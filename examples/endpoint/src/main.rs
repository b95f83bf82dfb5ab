//! `s3-endpoint`: a small S3 on a loopback port, with connections as slow as you say.
//!
//! ```text
//! s3-endpoint --port 9000 --file data/big.tdb=bench/big.tdb --first-byte-ms 30 --rate 90000000
//! ```

#![forbid(unsafe_code)]

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use endpoint::{Door, Endpoint, Settings, line::Shape, tls};

/// Serves buckets from memory, and files as objects, as S3 on 127.0.0.1.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Port; 0 takes a free one. The address is printed on the first line of output.
    #[arg(long, default_value_t = 0)]
    port: u16,

    /// Access key.
    #[arg(long, env = "AWS_ACCESS_KEY_ID", default_value = "test")]
    access_key: String,

    /// Secret key.
    #[arg(long, env = "AWS_SECRET_ACCESS_KEY", default_value = "testtest", hide_env_values = true)]
    secret_key: String,

    /// Milliseconds from a request to the first byte of its answer.
    #[arg(long, default_value_t = 30)]
    first_byte_ms: u64,

    /// Bytes per second of one connection; 0 is no bound.
    #[arg(long, default_value_t = 90_000_000)]
    rate: u64,

    /// Bytes per second of all connections together; 0 is no bound.
    #[arg(long, default_value_t = 0)]
    link_rate: u64,

    /// Buckets to create.
    #[arg(long = "bucket", value_name = "NAME")]
    buckets: Vec<String>,

    /// Files to serve, mapped: PATH=BUCKET/KEY.
    #[arg(long = "file", value_name = "PATH=BUCKET/KEY", value_parser = parse_file)]
    files: Vec<ServedFile>,

    /// Let unsigned requests read, so that plain HTTP clients can.
    #[arg(long)]
    anonymous_reads: bool,

    /// Offer /__fault, which makes answers go wrong.
    #[arg(long)]
    fault_switch: bool,

    /// Serve what the project's tests want as well, on the ports after --port: S3 that is far away
    /// (as far as --first-byte-ms and --rate say; the first port is then not), S3 with /__fault, the
    /// files of this folder over HTTP, near and far away, and S3 and files over TLS. Prints the
    /// environment for the tests; the certificate goes into FOLDER.pem.
    #[arg(long, value_name = "FOLDER")]
    tests: Option<PathBuf>,

    /// Threads that serve.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(Clone)]
struct ServedFile {
    path: PathBuf,
    bucket: String,
    key: String,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("s3-endpoint: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), String> {
    let some = |rate: u64| (rate > 0).then_some(rate);
    let shape =
        Shape { first_byte: Duration::from_millis(args.first_byte_ms), rate: some(args.rate) };
    let credentials = (args.access_key.clone(), args.secret_key.clone());
    let endpoint = Endpoint::start(Settings {
        port: args.port,
        credentials: (args.access_key, args.secret_key),
        shape: if args.tests.is_some() { Shape::UNSHAPED } else { shape },
        link_rate: some(args.link_rate),
        anonymous_reads: args.anonymous_reads,
        fault_switch: args.fault_switch,
        threads: args.threads,
        ..Settings::default()
    })
    .map_err(|e| format!("port {}: {e}", args.port))?;
    for bucket in &args.buckets {
        endpoint.store().create_bucket(bucket).map_err(|e| format!("bucket {bucket}: {e}"))?;
    }
    for file in &args.files {
        let served = endpoint.store().put_file(&file.bucket, &file.key, &file.path);
        served.map_err(|e| format!("{}: {e}", file.path.display()))?;
    }
    match &args.tests {
        None => println!("{}", endpoint.url()),
        Some(root) => {
            print!("{}", open_for_tests(&endpoint, args.port, shape, root, &credentials)?)
        }
    }
    std::io::stdout().flush().map_err(|e| format!("standard output: {e}"))?;
    // Everything happens on the endpoint's threads; a signal ends the process.
    loop {
        std::thread::park();
    }
}

/// Opens the doors that the tests go through, and says where they are in a shell's words.
fn open_for_tests(
    endpoint: &Endpoint,
    port: u16,
    shape: Shape,
    root: &Path,
    (key, secret): &(String, String),
) -> Result<String, String> {
    let near = Door { shape: Shape::UNSHAPED, seed: 1, ..Door::default() };
    let far = Door { shape, ..near.clone() };
    let files = Some(root.to_owned());
    let doors = [
        ("TEST_S3_TLS_ENDPOINT", Door { tls: true, ..near.clone() }),
        ("TEST_HTTPS_BASE", Door { tls: true, files: files.clone(), ..near.clone() }),
        ("TEST_S3_SLOW_ENDPOINT", far.clone()),
        ("TEST_S3_FAULT_ENDPOINT", Door { fault_switch: true, ..near.clone() }),
        ("TEST_HTTP_BASE", Door { files: files.clone(), ..near }),
        ("TEST_HTTP_SLOW_BASE", Door { files, ..far }),
    ];
    let ca = root.with_extension("pem");
    fs::write(&ca, tls::CERTIFICATE).map_err(|e| format!("{}: {e}", ca.display()))?;
    let mut text = format!(
        "export AWS_ACCESS_KEY_ID={key} AWS_SECRET_ACCESS_KEY={secret} AWS_REGION=us-east-1\n\
         export TEST_S3_ENDPOINT={} TEST_HTTP_ROOT='{}' TEST_CA='{}'\n",
        endpoint.url(),
        root.display(),
        ca.display(),
    );
    for (after, (name, door)) in (1..).zip(doors) {
        let port = if port == 0 { 0 } else { port + after };
        let url = endpoint.open(Door { port, ..door }).map_err(|e| format!("port {port}: {e}"))?;
        text += &format!("export {name}={url}\n");
    }
    Ok(text)
}

fn parse_file(text: &str) -> Result<ServedFile, String> {
    let parse = || {
        let (path, address) = text.rsplit_once('=')?;
        let (bucket, key) = address.split_once('/')?;
        let whole = !path.is_empty() && !bucket.is_empty() && !key.is_empty();
        whole.then(|| ServedFile { path: path.into(), bucket: bucket.into(), key: key.into() })
    };
    parse().ok_or_else(|| "use PATH=BUCKET/KEY".to_owned())
}
