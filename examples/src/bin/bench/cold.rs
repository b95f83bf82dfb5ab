//! How near does a cold read of everything, with one handle, come to the best download? And a scan
//! that decodes every event?

use std::{path::Path, sync::Arc};

use examples::{
    download,
    faults::Faulting,
    server::{Distance, Server},
};
use futures::{StreamExt, TryStreamExt, stream};
use pager::{Hint, Pager, Region};
use sources::{BlockSource, Options};
use traildb::{Reader, Storage, storage::Memory};

use crate::measure::{self, Cost, median_cpu, median_ratio, median_wall, ms};

/// A link that a handful of connections fill.
const DISTANCE: Distance = Distance { first_byte_ms: 30, rate: 90_000_000, link_rate: 400_000_000 };
const BUDGET_BYTES: u64 = 256 << 20;

pub(crate) fn run(path: &Path, rounds: usize) -> Result<String, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let len = bytes.len() as u64;
    let expected: u64 = sum(&bytes);
    let memory = Arc::new(bytes);
    let server = Server::start(path, "edits.tdb", DISTANCE)?;
    let (mut touched, mut decoded, mut fetched, mut scanned) = (vec![], vec![], vec![], vec![]);
    for round in 0..rounds {
        let (found, cost) = measure::cost(|| {
            let (_pager, region) = open(&server)?;
            region.advise(Hint::Sequential).map_err(|e| e.to_string())?;
            Ok(sum(&region.map().map_err(|e| e.to_string())?))
        })?;
        if found != expected {
            return Err("a scan read wrong bytes".to_owned());
        }
        touched.push(cost);
        fetched.push(fetch_all(&server)?);
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
        let times = [&touched, &fetched, &decoded, &scanned].map(|list| ms(list[round].wall));
        eprintln!("  touched, fetched, decoded, decoded from memory: {}", times.join(", "));
    }
    let floor: Vec<Cost> = fetched
        .iter()
        .zip(&scanned)
        .map(|(fetch, scan)| if fetch.wall > scan.wall { *fetch } else { *scan })
        .collect();
    let row = |name: &str, costs: &[Cost]| {
        format!("| {name} | {} | {} |\n", ms(median_wall(costs)), ms(median_cpu(costs)))
    };
    Ok(format!(
        "{:.0} MB, cold, one handle, a budget of {} MiB; a link of 400 MB/s; medians of {rounds} rounds.\n\n\
         | | wall | cpu |\n| --- | --- | --- |\n{}{}{}{}\n\
         | figure | measured | aim |\n| --- | --- | --- |\n\
         | bytes touched / best download | {:.3} | at most 1.10 |\n\
         | decoded scan / max(download, scan from memory) | {:.3} | at most 1.10 |\n",
        len as f64 / 1e6,
        BUDGET_BYTES >> 20,
        row("every byte touched through page faults", &touched),
        row("best parallel ranged download, into nothing", &fetched),
        row("every event decoded through page faults", &decoded),
        row("every event decoded from memory", &scanned),
        median_ratio(&touched, &fetched),
        median_ratio(&decoded, &floor),
    ))
}

fn open(server: &Server) -> Result<(Pager, Region), String> {
    let pager = Pager::builder().budget_bytes(BUDGET_BYTES).build().map_err(|e| e.to_string())?;
    let source = Options::default().open(server.url()).map_err(|e| e.to_string())?;
    let region = pager.open(source).map_err(|e| e.to_string())?;
    Ok((pager, region))
}

fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    let rest = rest.iter().map(|byte| u64::from(*byte));
    words.chain(rest).fold(0, u64::wrapping_add)
}

/// Number of events, each decoded.
fn decode<S: Storage>(storage: S) -> Result<u64, String> {
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
fn fetch_all(server: &Server) -> Result<Cost, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
    let source = Options::default().open(server.url()).map_err(|e| e.to_string())?;
    let ((), cost) = measure::cost(|| runtime.block_on(parts(&*source)))?;
    Ok(cost)
}

async fn parts(source: &dyn BlockSource) -> Result<(), String> {
    let stat = &source.stat().await.map_err(|e| e.to_string())?;
    stream::iter((0..stat.len).step_by(download::PART_BYTES as usize))
        .map(|start| async move {
            let end = stat.len.min(start + download::PART_BYTES);
            let mut body = source.read(&stat.version, start..end).await?;
            while body.try_next().await?.is_some() {}
            Ok::<_, sources::SourceError>(())
        })
        .buffer_unordered(download::CONNECTIONS)
        .try_collect::<()>()
        .await
        .map_err(|e| e.to_string())
}

/// Bytes that several storages share.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
