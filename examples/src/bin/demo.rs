//! The demo: a database in a bucket answers "all events of these 10 users" through page faults.
//!
//! ```text
//! demo                        an S3 endpoint in this process, as far away as a real one
//! demo --url s3://bucket/key  a bucket of yours; the database is put there if the key is free
//! ```
//!
//! Exits with 1 when the answers differ, or when 5 % of the file or more were fetched.

#![forbid(unsafe_code)]

use std::{
    env, fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use endpoint::{Endpoint, Settings, line::Shape};
use examples::{
    bucket::{self, Address},
    credentials, data, download,
    faults::Faulting,
    query::{self, Answer},
    table::{self, Table},
};
use indicatif::{ProgressBar, ProgressStyle};
use pager::{Pager, Region};
use serde_json::json;
use sources::{
    Options, Traffic,
    price::{S3_STANDARD, S3_STANDARD_INTERNET},
    traffic::TrafficCount,
};
use tokio::runtime::Runtime;
use traildb::{Reader, Uuid};

/// The share of the file that the answer may cost.
const SHARE_MAX: f64 = 0.05;
/// The bucket and key of the embedded endpoint.
const EMBEDDED: &str = "s3://demo-bucket/edits.tdb";

/// Queries a TrailDB in S3 through page faults, and compares with downloading it first.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// An object in a bucket of yours, with options as `extmem` takes them. It must be a TrailDB, or
    /// be missing: then the demo's database is put there. Without it, the demo runs its own S3.
    #[arg(long)]
    url: Option<String>,

    /// A TrailDB of yours to use instead of one that the demo makes: a file in the package form.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Users to ask for: UUIDs in hexadecimal, joined by commas. Default: chosen at random.
    #[arg(long, value_delimiter = ',')]
    users: Vec<Uuid>,

    /// How many users to choose.
    #[arg(long, default_value_t = 10, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    count: usize,

    /// Least size of the database, in megabytes. Of a small one ten users are more than the 5 % that
    /// the demo holds itself to: below 100 it fails.
    #[arg(long, default_value_t = 256)]
    megabytes: u64,

    /// Seed of the database and of the choice of users.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Milliseconds from a request to its first byte, for the embedded S3.
    #[arg(long, default_value_t = 30)]
    first_byte_ms: u64,

    /// Bytes per second of one connection, for the embedded S3; 0 is no bound.
    #[arg(long, default_value_t = 90_000_000)]
    rate: u64,

    /// Memory that the pager may use, in megabytes.
    #[arg(long, default_value_t = 64)]
    budget_megabytes: u64,

    /// The unit in which bytes come and stay, in KiB: 4 to 2048, a power of two.
    #[arg(long, default_value_t = 16)]
    unit_kib: u64,

    /// Do not measure what downloading first would have taken.
    #[arg(long)]
    no_download: bool,

    /// Print one JSON object instead of the table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.url.is_none()
        && let Err(code) = credentials::ensure()
    {
        return code;
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("demo: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool, String> {
    let runtime = Runtime::new().map_err(|e| format!("threads: {e}"))?;
    let mut steps = Steps { done: 0, all: if args.no_download { 3 } else { 5 } };
    let place = match &args.url {
        Some(url) => yours(args, url, &runtime, &mut steps)?,
        None => embedded(args, &runtime, &mut steps)?,
    };
    let users = match args.users.is_empty() {
        false => args.users.clone(),
        true => choose_users(args, &place)?,
    };
    if users.is_empty() {
        return Err("the database has no trails".to_owned());
    }

    let events = format!("Asking for all events of {} users through page faults", users.len());
    steps.say(&events);
    let faults = through_faults(args, &place, &users)?;
    let share = faults.count.bytes as f64 / faults.len as f64;
    eprintln!(
        "      {} events in {}: opened at {}, users found at {}, events decoded at {}",
        faults.answer.events(),
        table::time(faults.time),
        table::time(faults.answer.stages.opened),
        table::time(faults.answer.stages.found),
        table::time(faults.answer.stages.decoded),
    );

    let mut ways = vec![Way {
        name: format!("page faults ({})", faults.mode),
        time: faults.time,
        count: faults.count,
    }];
    let mut equal = true;
    if !args.no_download {
        for parallel in [false, true] {
            let (way, answer) =
                by_download(&place, &users, &runtime, parallel, faults.len, &mut steps)?;
            equal &= answer.users == faults.answer.users;
            ways.push(way);
        }
    }

    if args.json {
        println!("{}", report_json(&ways, &faults, &users, share, equal));
    } else {
        print_report(&ways, &faults, &place, share);
    }
    if !equal {
        eprintln!("demo: the answers differ; this is a defect, please report it");
    }
    if share >= SHARE_MAX {
        eprintln!(
            "demo: {:.1} % of the file were fetched, where under 5 % were due",
            share * 100.0
        );
    }
    Ok(equal && share < SHARE_MAX)
}

/// The object that is asked, and what keeps it there.
struct Place {
    url: String,
    /// The same database on this machine, if the demo made it.
    local: Option<PathBuf>,
    endpoint: Option<Endpoint>,
}

/// Makes the database if need be, starts an S3 and puts it there.
fn embedded(args: &Args, runtime: &Runtime, steps: &mut Steps) -> Result<Place, String> {
    let local = database(args, steps)?;
    let endpoint = Endpoint::start(Settings {
        credentials: (credentials::ACCESS_KEY.to_owned(), credentials::SECRET_KEY.to_owned()),
        shape: Shape {
            first_byte: Duration::from_millis(args.first_byte_ms),
            rate: (args.rate > 0).then_some(args.rate),
        },
        ..Settings::default()
    })
    .map_err(|e| format!("the embedded S3: {e}"))?;
    let rate = match args.rate {
        0 => "any rate".to_owned(),
        rate => format!("{} MB/s per connection", rate / 1_000_000),
    };
    let first = args.first_byte_ms;
    steps.say(&format!("Putting it into an S3 at {} ({first} ms, {rate})", endpoint.url()));
    let url = format!("{EMBEDDED}?endpoint={}&region=us-east-1", endpoint.url());
    runtime.block_on(async {
        let (client, at) = bucket::open(&url).await?;
        let created = endpoint.store().create_bucket(&at.bucket);
        created.map_err(|e| format!("the embedded S3: {e}"))?;
        put(&client, &at, &local).await
    })?;
    Ok(Place { url, local: Some(local), endpoint: Some(endpoint) })
}

/// Looks for the object at `url`, and puts the database there if there is none.
fn yours(args: &Args, url: &str, runtime: &Runtime, steps: &mut Steps) -> Result<Place, String> {
    let place = |local| Place { url: url.to_owned(), local, endpoint: None };
    let (client, at, there) = runtime.block_on(async {
        let (client, at) = bucket::open(url).await?;
        let there = bucket::object_len(&client, &at).await;
        there.map(|there| (client, at, there))
    })?;
    if let Some(len) = there {
        steps.say("Nothing to make: the object is there");
        steps.say(&format!("{} has {}", shown(url), table::megabytes(len)));
        return Ok(place(None));
    }
    let local = database(args, steps)?;
    steps.say(&format!("Putting it at {}", shown(url)));
    runtime.block_on(put(&client, &at, &local))?;
    Ok(place(Some(local)))
}

fn database(args: &Args, steps: &mut Steps) -> Result<PathBuf, String> {
    let path = match &args.file {
        Some(path) => {
            steps.say(&format!("Using the database at {}", path.display()));
            path.clone()
        }
        None => made(args, steps)?,
    };
    let stat = fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let reader = Reader::open(&path).map_err(|e| e.to_string())?;
    eprintln!(
        "      {}, {} users, {} events",
        table::megabytes(stat.len()),
        reader.trails(),
        reader.events()
    );
    Ok(path)
}

/// The database of the demo, from the cache or from its seed.
fn made(args: &Args, steps: &mut Steps) -> Result<PathBuf, String> {
    let bytes = args.megabytes.saturating_mul(1_000_000);
    let (path, there) = data::path(&data::folder()?, bytes, args.seed);
    if there {
        steps.say(&format!("Using the database at {}", path.display()));
        return Ok(path);
    }
    let size = args.megabytes;
    steps.say(&format!("Making a database of {size} MB at {}, once", path.display()));
    let bar = bar(ProgressBar::new(0), "      {bar:40} {human_pos}/{human_len} events {elapsed}");
    let done = data::make(&path, bytes, args.seed, |events, all| {
        bar.set_length(all);
        bar.set_position(events);
    });
    bar.finish_and_clear();
    done?;
    Ok(path)
}

async fn put(client: &aws_sdk_s3::Client, at: &Address, path: &Path) -> Result<(), String> {
    let len = fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?.len();
    let bar = bytes_bar(len);
    let done = bucket::upload(client, at, path, |bytes| bar.inc(bytes)).await;
    bar.finish_and_clear();
    done
}

/// Chooses users, on the local copy if there is one, so that nothing of it is warm.
fn choose_users(args: &Args, place: &Place) -> Result<Vec<Uuid>, String> {
    let text = |e: traildb::Error| e.to_string();
    match &place.local {
        Some(path) => {
            let reader = Reader::open(path).map_err(text)?;
            data::users(&reader, args.count, args.seed).map_err(text)
        }
        None => {
            let (_pager, region) = open(args, place, &Traffic::default())?;
            let reader = Reader::new(region).map_err(text)?;
            data::users(&reader, args.count, args.seed).map_err(text)
        }
    }
}

fn open(args: &Args, place: &Place, traffic: &Traffic) -> Result<(Pager, Region), String> {
    let budget = args.budget_megabytes.saturating_mul(1_000_000);
    let unit = args.unit_kib.saturating_mul(1 << 10);
    let pager = Pager::builder().budget_bytes(budget).unit_bytes(unit).build();
    let pager = pager.map_err(|e| e.to_string())?;
    // From the bucket, whatever the environment says: that is what the table compares.
    let options = Options::default().cache(None).traffic(traffic.clone());
    let source = options.open(&place.url).map_err(|e| e.to_string())?;
    let region = pager.open(source).map_err(|e| e.to_string())?;
    Ok((pager, region))
}

struct Faults {
    answer: Answer,
    time: Duration,
    count: TrafficCount,
    len: u64,
    mode: String,
}

fn through_faults(args: &Args, place: &Place, users: &[Uuid]) -> Result<Faults, String> {
    let traffic = Traffic::default();
    let began = std::time::Instant::now();
    let (pager, region) = open(args, place, &traffic)?;
    let (answer, mode) = match Faulting::new(region.clone()) {
        Ok(storage) => (query::events_of(|| Reader::new(storage), users), pager.mode().to_string()),
        Err(error) => {
            eprintln!("      {error}");
            let storage = region.clone();
            (query::events_of(|| Reader::new(storage), users), "loads, no faults here".to_owned())
        }
    };
    let answer = answer.map_err(|e| e.to_string())?;
    let time = began.elapsed();
    let (count, len) = (traffic.count(), region.len());
    Ok(Faults { answer, time, count, len, mode })
}

struct Way {
    name: String,
    time: Duration,
    count: TrafficCount,
}

/// Downloads the object into a file, asks the file the same question, and removes it.
fn by_download(
    place: &Place,
    users: &[Uuid],
    runtime: &Runtime,
    parallel: bool,
    len: u64,
    steps: &mut Steps,
) -> Result<(Way, Answer), String> {
    let name = match parallel {
        false => "download first, one connection".to_owned(),
        true => format!("download first, {} connections", download::CONNECTIONS),
    };
    steps.say(&format!("For comparison: {name}, then ask the file"));
    let traffic = Traffic::default();
    let began = std::time::Instant::now();
    let source = Options::default().cache(None).traffic(traffic.clone()).open(&place.url);
    let source = source.map_err(|e| e.to_string())?;
    let mut file = tempfile::Builder::new().suffix(".tdb").tempfile().map_err(temporary)?;
    let bar = bytes_bar(len);
    runtime.block_on(async {
        match parallel {
            false => {
                let file = file.as_file_mut();
                download::one_connection(&*source, file, |bytes| bar.inc(bytes)).await
            }
            true => {
                let file = file.as_file();
                download::parallel(source.clone(), file, |bytes| bar.inc(bytes)).await
            }
        }
    })?;
    bar.finish_and_clear();
    let answer = query::events_of(|| Reader::open(file.path()), users);
    let answer = answer.map_err(|e| e.to_string())?;
    Ok((Way { name, time: began.elapsed(), count: traffic.count() }, answer))
}

fn temporary(error: io::Error) -> String {
    format!("a temporary file in {}: {error}", env::temp_dir().display())
}

fn print_report(ways: &[Way], faults: &Faults, place: &Place, share: f64) {
    let whose = match place.endpoint {
        Some(_) => "the embedded S3".to_owned(),
        None => shown(&place.url).to_owned(),
    };
    println!();
    println!(
        "All {} events of {} users, values decoded, from {} in {whose}",
        faults.answer.events(),
        faults.answer.users.len(),
        table::megabytes(faults.len),
    );
    println!();
    let heads = ["", "time", "GETs", "bytes", "% of file", "$ in region", "$ over internet"];
    let mut rows = Table::new(heads);
    for way in ways {
        rows.row([
            way.name.clone(),
            table::time(way.time),
            way.count.gets.to_string(),
            table::megabytes(way.count.bytes),
            format!("{:.2}", way.count.bytes as f64 / faults.len as f64 * 100.0),
            table::dollars(way.count.cost_usd(&S3_STANDARD)),
            table::dollars(way.count.cost_usd(&S3_STANDARD_INTERNET)),
        ]);
    }
    print!("{rows}");
    println!();
    println!("Dollars are S3's list prices in us-east-1: $0.0004 per 1,000 requests; bytes cost");
    println!("nothing within the region and $0.09 per GB over the internet.");
    if let [_, download, ..] = ways {
        let times = download.time.as_secs_f64() / faults.time.as_secs_f64();
        println!(
            "Fetching {:.2} % of the file answered {times:.0} times as fast as a download.",
            share * 100.0
        );
    }
}

fn report_json(
    ways: &[Way],
    faults: &Faults,
    users: &[Uuid],
    share: f64,
    equal: bool,
) -> serde_json::Value {
    let ways: Vec<_> = ways
        .iter()
        .map(|way| {
            json!({
                "way": way.name,
                "seconds": way.time.as_secs_f64(),
                "gets": way.count.gets,
                "requests": way.count.requests(),
                "bytes": way.count.bytes,
                "share": way.count.bytes as f64 / faults.len as f64,
                "usd_in_region": way.count.cost_usd(&S3_STANDARD),
                "usd_over_internet": way.count.cost_usd(&S3_STANDARD_INTERNET),
            })
        })
        .collect();
    json!({
        "object_bytes": faults.len,
        "users": users.iter().map(Uuid::to_string).collect::<Vec<_>>(),
        "events": faults.answer.events(),
        "share": share,
        "share_max": SHARE_MAX,
        "answers_equal": equal,
        "ways": ways,
    })
}

/// An address without its options, which may be long.
fn shown(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

/// What is being done, counted.
struct Steps {
    done: u32,
    all: u32,
}

impl Steps {
    fn say(&mut self, what: &str) {
        self.done += 1;
        eprintln!("[{}/{}] {what}", self.done, self.all);
    }
}

fn bytes_bar(len: u64) -> ProgressBar {
    let style = "      {bar:40} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}";
    bar(ProgressBar::new(len), style)
}

fn bar(bar: ProgressBar, style: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    bar.set_style(ProgressStyle::with_template(style).expect("the template is well-formed"));
    bar
}
