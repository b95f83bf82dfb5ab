//! What does one cache for all programs cost each of them, and what does it save?
//!
//! ```text
//!   mmap, decode                     the file itself, as if it had been copied here
//!   map() of extmem serve, decode    the server's sealed memory, which all clients share
//!   region over extmem serve         a pager in each client, with its own budget
//! ```

use std::{
    env,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use examples::{
    faults::Faulting,
    measure::{self, Cost, cpu, ms, ratio, wall},
    report::{Aim, Goal, Section},
    server::{BlockServer, Distance, Server},
};
use pager::{Hint, Pager};
use sources::{
    BlockSource, Options,
    server::{Link, Place, Served, ServedMap},
};
use traildb::storage::Memory;

use crate::{Setup, cold};

/// Block size, what our own client may cost over `mmap`, and what the original pair cost: percent.
const BLOCKS: [(&str, Aim, u32); 4] = [
    ("16MiB", Aim::AtMost(1.05), 46),
    ("1MiB", Aim::AtMost(1.05), 51),
    ("16KiB", Aim::AtMost(1.15), 142),
    ("4KiB", Aim::None, 274),
];
/// Programs that read one object side by side.
const PROGRAMS: usize = 8;
const BUDGET_BYTES: u64 = 256 << 20;
/// A link that a handful of connections fill.
const DISTANCE: Distance = Distance { first_byte_ms: 30, rate: 90_000_000, link_rate: 400_000_000 };
/// As near as can be: what is there is asked for its version, and no more.
const NEAR: Distance = Distance { first_byte_ms: 0, rate: 0, link_rate: 0 };
/// What the server calls the database.
const OBJECT: &str = "s3://bench/edits.tdb";
/// How long requests are counted.
const ASK_FOR: Duration = Duration::from_secs(2);

pub(crate) fn run(setup: &Setup) -> Result<Section, String> {
    let path = setup.small()?;
    let s3 = Server::start(&path, "edits.tdb", NEAR)?;
    let len = path.metadata().map_err(|e| e.to_string())?.len();
    let runtime = runtime()?;
    let mut goals = Vec::new();
    let mut scans = String::new();
    let mut requests = String::new();
    for (blocks, aim, theirs) in BLOCKS {
        let serving = Serving::start(blocks, &s3)?;
        // Everything is there before anything is measured.
        let expected = cold::decode(Memory::new(mmap(&path)?, "mmap"))?;
        drop(serving.map(&runtime, OBJECT)?);
        let [mut plain, mut mapped, mut region] = [const { Vec::new() }; 3];
        for _ in 0..setup.rounds {
            let (_, cost) = check(expected, || cold::decode(Memory::new(mmap(&path)?, "mmap")))?;
            plain.push(cost);
            let scan = || cold::decode(Memory::new(serving.map(&runtime, OBJECT)?, "served"));
            mapped.push(check(expected, scan)?.1);
            region.push(check(expected, || serving.region(OBJECT))?.1);
        }
        let [by_map, by_region] = [&mapped, &region].map(|costs| ratio(costs, &plain));
        eprintln!("  {blocks}: mmap {}, map {by_map:.2}, region {by_region:.2}", ms(wall(&plain)));
        scans += &format!(
            "| {blocks} | {} | {} | {by_map:.2} | {} | {by_region:.2} | {:.2} |\n",
            ms(wall(&plain)),
            ms(wall(&mapped)),
            ms(wall(&region)),
            1.0 + f64::from(theirs) / 100.0,
        );
        goals.push(Goal::new(format!("scan by `map()` / mmap, blocks of {blocks}"), by_map, aim));
        let name = format!("scan by a region / mmap, blocks of {blocks}");
        goals.push(Goal::new(name, by_region, Aim::None));
        if blocks == "1MiB" {
            for clients in [1, 20, 200] {
                let each = ask(serving.0.v000(), OBJECT, len, clients)?;
                requests += &format!("| {clients} | {each:.0} |\n");
                goals.push(Goal::new(format!("requests/s, {clients} clients"), each, Aim::None));
            }
        }
    }
    drop(s3);
    let s3 = Server::start(&path, "edits.tdb", DISTANCE)?;
    let programs = side_by_side(&s3, len, &mut goals)?;
    let Fill { direct, through, server } = cold_fill(&s3, setup.rounds)?;
    let fill = ratio(&through, &direct);
    goals.push(Goal::new("cold fill through the server / direct", fill, Aim::AtMost(1.05)));
    let body = format!(
        "Every event of {:.0} MB is decoded and their number checked; medians of {} rounds in turn, \
         with a new connection and a new map each time. The file is in the page cache, the object in \
         the cache of the server; `map()` is given its memory. The S3 is on this machine and asked for \
         the version alone.\n\n\
         The goals are for `map()`, our zero-copy client: the whole object as one slice, in sealed memory \
         of the server's that all clients share. It is there in pieces of at least 1 MiB, whatever the \
         blocks are; so the size of a block tells how much the server fetches at once, and next to \
         nothing of such a scan. A region, which is what a program has that opens an address (`tdb` with \
         `EXTMEM_SERVER` is one), is another client: each has a budget of its own, into which every byte \
         is copied from the files of the cache, and holds no more than that of the object. It has no goal \
         here; the table says what it costs.\n\n\
         | blocks | mmap | `map()` | / mmap | region | / mmap | the original pair |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n{scans}\n\
         The original pair's figures are what its clients cost over `mmap`, with a full cache.\n\n\
         {programs}\n\
         A cold fill of the same database, by a region with the hint sequential, from an S3 that is \
         30 ms away, 400 MB/s for all connections: {} directly, {} through a server that keeps it. \
         Processor time (without the S3's): {} directly, {} through and {} of the server.\n\n\
         | clients of V000 | requests/s |\n| --- | --- |\n{requests}",
        len as f64 / 1e6,
        setup.rounds,
        ms(wall(&direct)),
        ms(wall(&through)),
        ms(cpu(&direct)),
        ms(cpu(&through)),
        ms(cpu(&server)),
    );
    Ok(Section {
        name: "serve",
        title: "8. One cache for all",
        question: "What does a scan through `extmem serve` cost over `mmap` of the file, what do N \
                   programs take that read one object, and what does the server add to a cold fill?",
        body,
        goals,
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Runtime::new().map_err(|e| e.to_string())
}

/// As a program would that has the file.
fn mmap(path: &Path) -> Result<memmap2::Mmap, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    // SAFETY: the benchmarks' database is written once and then left alone, by them at least.
    #[expect(unsafe_code, reason = "what is compared is a file that nobody changes meanwhile")]
    let map = unsafe { memmap2::Mmap::map(&file) };
    map.map_err(|e| e.to_string())
}

fn check(expected: u64, scan: impl FnOnce() -> Result<u64, String>) -> Result<(u64, Cost), String> {
    let (events, cost) = measure::cost(scan)?;
    match events == expected {
        true => Ok((events, cost)),
        false => Err(format!("{events} events instead of {expected}")),
    }
}

/// A block server in a process of its own, with an empty cache. Dropping it ends both.
struct Serving(BlockServer);

impl Serving {
    /// For what `s3` has.
    fn start(blocks: &str, s3: &Server) -> Result<Serving, String> {
        BlockServer::start(blocks, s3).map(Serving)
    }

    fn map(&self, runtime: &tokio::runtime::Runtime, url: &str) -> Result<ServedMap, String> {
        map(runtime, &self.0.socket(), url)
    }

    fn source(&self, url: &str) -> Result<Arc<dyn BlockSource>, String> {
        let through = format!("server+unix://{}?url={url}", self.0.socket().display());
        Options::default().open(&through).map_err(|e| e.to_string())
    }

    /// Decodes all through a pager of this process.
    fn region(&self, url: &str) -> Result<u64, String> {
        let pager = Pager::builder().budget_bytes(BUDGET_BYTES).build();
        let pager = pager.map_err(|e| e.to_string())?;
        let region = pager.open(self.source(url)?).map_err(|e| e.to_string())?;
        cold::decode(Faulting::new(region).map_err(|e| e.to_string())?)
    }

    /// A value of `/metrics`.
    fn metric(&self, name: &str) -> Result<f64, String> {
        let ask = || -> io::Result<String> {
            let mut stream = TcpStream::connect(self.0.http())?;
            let host = self.0.http();
            write!(stream, "GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = ask().map_err(|e| format!("/metrics: {e}"))?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.ok_or(format!("there is no {name} in /metrics"))
    }
}

fn map(runtime: &tokio::runtime::Runtime, socket: &Path, url: &str) -> Result<ServedMap, String> {
    let link = Link::new(Place::Unix(socket.to_owned()), String::new());
    let mapped = runtime.block_on(async {
        let served = Served::new(url, url, link)?;
        let version = served.stat().await?.version;
        served.map(&version).await
    });
    mapped.map_err(|e: sources::SourceError| e.to_string())
}

/// A program of several: maps the object, decodes all of it, says so, and waits for its end.
pub(crate) fn child(socket: &Path, url: &str) -> Result<(), String> {
    let runtime = runtime()?;
    let kept = Kept(Arc::new(map(&runtime, socket, url)?));
    let events = cold::decode(Memory::new(Kept(kept.0.clone()), "served"))?;
    println!("{events}");
    let _ = io::stdin().read(&mut [0]);
    Ok(())
}

/// A map that stays when its reader has gone.
struct Kept(Arc<ServedMap>);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// What programs take that read one object: requests to its source, and memory.
fn side_by_side(s3: &Server, len: u64, goals: &mut Vec<Goal>) -> Result<String, String> {
    let serving = Serving::start("1MiB", s3)?;
    let here = env::current_exe().map_err(|e| e.to_string())?;
    let mut children = Vec::new();
    let mut figures = Vec::new();
    for count in [1, PROGRAMS] {
        while children.len() < count {
            let mut command = Command::new(&here);
            command.arg("--serve-child").arg(serving.0.socket()).arg(OBJECT);
            let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            children.push(Program(spawned.map_err(|e| e.to_string())?));
        }
        // Those of the first round have said so already.
        let new = figures.len();
        for program in &mut children[new..] {
            let output = program.0.stdout.take().ok_or("a program without output")?;
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map_err(|e| e.to_string())?;
            line.trim().parse::<u64>().map_err(|_| "a program did not decode it".to_owned())?;
        }
        let kib: u64 = children.iter().map(|program| mapped_kib(program.0.id())).sum();
        let gets = serving.metric("extmem_source_requests_total{op=\"read\"}")?;
        let held = serving.metric("extmem_memory_bytes")?;
        figures.push((count, gets, kib as f64 * 1024.0, held));
    }
    let [(_, gets_of_one, mapped_by_one, _), (_, gets, mapped, held)] = figures[..] else {
        return Err("two figures".to_owned());
    };
    let name = |what: &str| format!("{PROGRAMS} programs, one object: {what}");
    goals.push(Goal::new(name("GETs / those of one"), gets / gets_of_one, Aim::AtMost(1.0)));
    let of_one = mapped / mapped_by_one;
    goals.push(Goal::new(name("memory mapped / that of one"), of_one, Aim::AtMost(1.05)));
    let of_object = held / len as f64;
    goals.push(Goal::new(name("the server's memory / the object"), of_object, Aim::AtMost(1.05)));
    let mut table = String::from(
        "Programs that map the object and decode all of it, blocks of 1 MiB, from an S3 that is 30 ms \
         away, with nothing in the cache at first. What they have mapped is the sum of their shares of \
         the pages that they touched (Pss); the server has the whole object in memory files.\n\n\
         | programs | GETs of the server | touched by all | the server's memory files |\n\
         | --- | --- | --- | --- |\n",
    );
    for (count, gets, mapped, held) in figures {
        let (mapped, held) = (mapped / 1e6, held / 1e6);
        table += &format!("| {count} | {gets:.0} | {mapped:.0} MB | {held:.0} MB |\n");
    }
    Ok(table)
}

/// Ends with its input.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A process's share of the server's memory that it has mapped: pages that n processes map count
/// 1/n in each.
fn mapped_kib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut is_ours = false;
    let mut kib = 0;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Pss:") if is_ours => {
                kib += words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            }
            // A line of a mapping begins with its addresses.
            Some(first) if !first.ends_with(':') => is_ours = line.contains("memfd:extmem"),
            _ => {}
        }
    }
    kib
}

/// What cold fills took.
#[derive(Default)]
struct Fill {
    direct: Vec<Cost>,
    through: Vec<Cost>,
    /// The server's part in these.
    server: Vec<Cost>,
}

/// Reads everything once from an S3, without and with a server in between.
fn cold_fill(s3: &Server, rounds: usize) -> Result<Fill, String> {
    let mut fill = Fill::default();
    let scan = |source: Arc<dyn BlockSource>| {
        measure::cost(|| {
            let pager = Pager::builder().budget_bytes(BUDGET_BYTES).build();
            let pager = pager.map_err(|e| e.to_string())?;
            let region = pager.open(source).map_err(|e| e.to_string())?;
            region.advise(Hint::Sequential).map_err(|e| e.to_string())?;
            let whole = region.map().map_err(|e| e.to_string())?;
            Ok(cold::sum(&whole))
        })
    };
    for _ in 0..rounds {
        let serving = Serving::start("1MiB", s3)?;
        let direct = Options::default().open(s3.url()).map_err(|e| e.to_string())?;
        fill.direct.push(scan(direct)?.1);
        let before = measure::cpu_time_of(serving.0.pid());
        let cost = scan(serving.source(OBJECT)?)?.1;
        let cpu = measure::cpu_time_of(serving.0.pid()).saturating_sub(before);
        fill.through.push(cost);
        fill.server.push(Cost { cpu, ..cost });
    }
    let [direct, through] = [&fill.direct, &fill.through].map(|costs| ms(wall(costs)));
    eprintln!("  cold fill: {direct} directly, {through} through");
    Ok(fill)
}

/// Requests a second of so many clients of V000, each of which waits for its answers.
fn ask(address: &str, url: &str, len: u64, clients: u64) -> Result<f64, String> {
    let end = Instant::now() + ASK_FOR;
    let workers: Vec<_> = (0..clients)
        .map(|seed| {
            let (address, url) = (address.to_owned(), url.to_owned());
            thread::spawn(move || client(&address, &url, len, seed, end))
        })
        .collect();
    let mut count = 0;
    for worker in workers {
        let done = worker.join().map_err(|_| "a client panicked".to_owned())?;
        count += done.map_err(|e| format!("a client of V000: {e}"))?;
    }
    let rate = count as f64 / ASK_FOR.as_secs_f64();
    eprintln!("  {clients} client(s): {rate:.0} requests a second");
    Ok(rate)
}

fn client(address: &str, url: &str, len: u64, seed: u64, end: Instant) -> io::Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut say = |kind: &[u8; 4], offset: u64, size: u64| -> io::Result<()> {
        let mut frame = kind.to_vec();
        frame.extend(offset.to_le_bytes());
        frame.extend(size.to_le_bytes());
        frame.extend((url.len() as u32).to_le_bytes());
        frame.extend(url.as_bytes());
        stream.write_all(&frame)?;
        let mut head = [0; 24];
        stream.read_exact(&mut head)?;
        let mut path =
            vec![0; u32::from_le_bytes([head[20], head[21], head[22], head[23]]) as usize];
        stream.read_exact(&mut path)?;
        match &head[..4] {
            b"OKOK" => Ok(()),
            other => Err(io::Error::other(String::from_utf8_lossy(other).into_owned())),
        }
    };
    say(b"V000", 0, 0)?;
    let (mut state, mut count) = (seed, 0);
    while Instant::now() < end {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        say(b"READ", (state >> 20) % (len - 4096), 4096)?;
        count += 1;
    }
    Ok(count)
}
