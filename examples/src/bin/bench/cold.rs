//! How near does a cold read of everything, with one handle, come to the best download? And a scan
//! that decodes every event?

use std::sync::Arc;

use examples::{
    faults::Faulting,
    measure::{self, Cost, cpu, ms, ratio, wall},
    report::{Aim, Goal, Section},
    server::{Distance, Server},
};
use futures::{StreamExt, TryStreamExt, stream};
use pager::{Hint, Pager, Region};
use sources::{BlockSource, Options};
use traildb::{Reader, Storage, storage::Memory};

use crate::Setup;

/// A link that a handful of connections fill.
const DISTANCE: Distance = Distance { first_byte_ms: 30, rate: 90_000_000, link_rate: 400_000_000 };
const BUDGET_BYTES: u64 = 256 << 20;
/// Ways to download: connections, and MiB of a part.
const WAYS: [(usize, u64); 8] =
    [(5, 8), (5, 32), (8, 8), (8, 16), (12, 8), (16, 4), (16, 8), (32, 8)];

pub(crate) fn run(setup: &Setup) -> Result<Section, String> {
    let path = setup.large()?;
    let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let len = bytes.len() as u64;
    let expected = sum(&bytes);
    let memory = Arc::new(bytes);
    let server = Server::start(&path, "edits.tdb", DISTANCE)?;

    let mut best = (WAYS[0], f64::INFINITY);
    let mut tried = String::new();
    for way in WAYS {
        let cost = download(&server, way)?;
        eprintln!("  {} connections, parts of {} MiB: {}", way.0, way.1, ms(cost.wall));
        tried += &format!("| {} | {} MiB | {} |\n", way.0, way.1, ms(cost.wall));
        if cost.seconds() < best.1 {
            best = (way, cost.seconds());
        }
    }
    let best = best.0;

    let [mut fetched, mut hinted, mut plain, mut decoded, mut scanned] = [const { Vec::new() }; 5];
    for round in 0..setup.rounds {
        fetched.push(download(&server, best)?);
        for (list, hint) in [(&mut hinted, Hint::Sequential), (&mut plain, Hint::Normal)] {
            let (found, cost) = measure::cost(|| {
                let (_pager, region) = open(&server)?;
                region.advise(hint).map_err(|e| e.to_string())?;
                Ok(sum(&region.map().map_err(|e| e.to_string())?))
            })?;
            if found != expected {
                return Err("a scan read wrong bytes".to_owned());
            }
            list.push(cost);
        }
        let (events, cost) = measure::cost(|| {
            let (_pager, region) = open(&server)?;
            decode(Faulting::new(region).map_err(|e| e.to_string())?)
        })?;
        decoded.push(cost);
        let storage = Memory::new(Shared(memory.clone()), "memory");
        let (same, cost) = measure::cost(|| decode(storage))?;
        if events != same {
            return Err(format!("{events} events through faults, {same} from memory"));
        }
        scanned.push(cost);
        let times =
            [&fetched, &hinted, &plain, &decoded, &scanned].map(|list| ms(list[round].wall));
        eprintln!("  download, hinted, plain, decoded, from memory: {}", times.join(", "));
    }

    let longer: Vec<Cost> = fetched
        .iter()
        .zip(&scanned)
        .map(|(fetch, scan)| if fetch.wall > scan.wall { *fetch } else { *scan })
        .collect();
    let row = |name: &str, costs: &[Cost]| {
        let rate = len as f64 / 1e6 / wall(costs).as_secs_f64();
        format!("| {name} | {} | {rate:.0} | {} |\n", ms(wall(costs)), ms(cpu(costs)))
    };
    let goals = vec![
        Goal::new(
            "bytes touched, hint sequential / best download",
            ratio(&hinted, &fetched),
            Aim::AtMost(1.10),
        ),
        Goal::new(
            "bytes touched, no hint / best download",
            ratio(&plain, &fetched),
            Aim::AtMost(1.10),
        ),
        Goal::new(
            "decoded scan / max(best download, the same scan from memory)",
            ratio(&decoded, &longer),
            Aim::AtMost(1.10),
        ),
    ];
    let body = format!(
        "{:.0} MB, one handle, a budget of {} MiB; 30 ms to the first byte, 90 MB/s per connection, \
         400 MB/s for all together. Each run has a new pager and new connections. The sum of all \
         bytes is checked, and so is the number of events. The decoded scan needs the trails and where \
         they lie, less than half of the bytes, and no values. Medians of {} rounds in turn, processor \
         time (without the S3's) as means.\n\n\
         | | wall | MB/s | CPU |\n| --- | --- | --- | --- |\n{}{}{}{}{}\n\
         The download keeps nothing of what it fetches. Its {} connections and parts of {} MiB were \
         the best of these, of one run each:\n\n\
         | connections | parts | wall |\n| --- | --- | --- |\n{tried}\n\
         The first such system needed some 20 handles to fill its link.",
        len as f64 / 1e6,
        BUDGET_BYTES >> 20,
        setup.rounds,
        row("best parallel ranged download", &fetched),
        row("every byte touched through `map()`, hint sequential", &hinted),
        row("every byte touched through `map()`, no hint", &plain),
        row("every event decoded through page faults", &decoded),
        row("every event decoded from memory", &scanned),
        best.0,
        best.1,
    );
    Ok(Section {
        name: "cold",
        title: "3. Cold full read",
        question: "How near does a cold read of everything with one handle come to the best \
                   parallel download, on a link of 400 MB/s? And a scan that decodes every event?",
        body,
        goals,
    })
}

/// A new pager's region over what `server` has.
pub(crate) fn open(server: &Server) -> Result<(Pager, Region), String> {
    let pager = Pager::builder().budget_bytes(BUDGET_BYTES).build().map_err(|e| e.to_string())?;
    let source = Options::default().open(server.url()).map_err(|e| e.to_string())?;
    let region = pager.open(source).map_err(|e| e.to_string())?;
    Ok((pager, region))
}

/// All bytes, as words, added up.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    let rest = rest.iter().map(|byte| u64::from(*byte));
    words.chain(rest).fold(0, u64::wrapping_add)
}

/// Number of events, each decoded.
pub(crate) fn decode<S: Storage>(storage: S) -> Result<u64, String> {
    let scan = || {
        let reader = Reader::new(storage)?;
        let mut cursor = reader.cursor()?;
        let mut events = 0;
        for trail in 0..reader.trails() {
            cursor.seek(trail)?;
            while cursor.next_event()?.is_some() {
                events += 1;
            }
        }
        Ok(events)
    };
    scan().map_err(|e: traildb::Error| e.to_string())
}

/// The best that a program without the pager could do: parts in parallel, dropped as they come.
pub(crate) fn download(server: &Server, way: (usize, u64)) -> Result<Cost, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
    let (_, cost) = measure::cost(|| {
        let source = Options::default().open(server.url()).map_err(|e| e.to_string())?;
        runtime.block_on(parts(&*source, way)).map_err(|e| e.to_string())
    })?;
    Ok(cost)
}

async fn parts(
    source: &dyn BlockSource,
    (connections, part_mib): (usize, u64),
) -> Result<(), sources::SourceError> {
    let stat = &source.stat().await?;
    let part = part_mib << 20;
    stream::iter((0..stat.len).step_by(part as usize))
        .map(|start| async move {
            let mut body = source.read(&stat.version, start..stat.len.min(start + part)).await?;
            while body.try_next().await?.is_some() {}
            Ok(())
        })
        .buffer_unordered(connections)
        .try_collect()
        .await
}

/// Bytes that several storages share.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
