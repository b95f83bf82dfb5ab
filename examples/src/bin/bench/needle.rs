//! How long from open to all events, values decoded, of ten named users, 30 ms away?

use std::path::Path;

use examples::{
    data, download,
    faults::Faulting,
    needed, query,
    server::{Distance, Server},
};
use pager::Pager;
use sources::{Options, Traffic};
use traildb::Reader;

use crate::measure::{self, Cost, median_cpu, median_wall, ms};

const USERS: usize = 10;
const UNIT_BYTES: u64 = 64 << 10;
const DISTANCE: Distance = Distance { first_byte_ms: 30, rate: 90_000_000, link_rate: 0 };
/// Round trips that the answer may take: four to the first event, two more to the values.
const ROUND_TRIPS: u64 = 6;
/// Downloads take ten seconds each and vary little.
const DOWNLOADS: usize = 3;

pub(crate) fn run(path: &Path, rounds: usize) -> Result<String, String> {
    let len = path.metadata().map_err(|e| e.to_string())?.len();
    let server = Server::start(path, "edits.tdb", DISTANCE)?;
    let (mut costs, mut gets, mut bytes, mut neededs, mut bounds) =
        (vec![], vec![], vec![], vec![], vec![]);
    for round in 0..rounds {
        let reader = Reader::open(path).map_err(|e| e.to_string())?;
        let users = data::users(&reader, USERS, round as u64).map_err(|e| e.to_string())?;
        let needed = needed::bytes(path, &users, UNIT_BYTES)?;
        let traffic = Traffic::default();
        let (events, cost) = measure::cost(|| {
            let pager = Pager::builder().budget_bytes(256 << 20).unit_bytes(UNIT_BYTES).build();
            let pager = pager.map_err(|e| e.to_string())?;
            let source = Options::default().traffic(traffic.clone()).open(server.url());
            let region = pager.open(source.map_err(|e| e.to_string())?);
            let storage = Faulting::new(region.map_err(|e| e.to_string())?);
            let storage = storage.map_err(|e| e.to_string())?;
            let answer = query::events_of(|| Reader::new(storage), &users);
            Ok(answer.map_err(|e| e.to_string())?.events())
        })?;
        let ideal = (ROUND_TRIPS * DISTANCE.first_byte_ms) as f64 / 1e3
            + needed as f64 / DISTANCE.rate as f64;
        let bound = cost.wall.as_secs_f64() / ideal;
        eprintln!("  {events} events, {needed} bytes needed, {}: {bound:.2}", ms(cost.wall));
        let count = traffic.count();
        costs.push(cost);
        gets.push(count.gets);
        bytes.push(count.bytes);
        neededs.push(needed);
        bounds.push(bound);
    }

    let (mut one, mut many) = (vec![], vec![]);
    for _ in 0..DOWNLOADS.min(rounds) {
        one.push(fetch(&server, false)?);
        many.push(fetch(&server, true)?);
    }
    let wall = median_wall(&costs);
    let times = |costs: &[Cost]| median_wall(costs).as_secs_f64() / wall.as_secs_f64();
    Ok(format!(
        "All events of {USERS} users, values decoded, of {:.0} MB; median of {rounds} choices of users.\n\n\
         | | wall | cpu | GETs | bytes |\n| --- | --- | --- | --- | --- |\n\
         | page faults | {} | {} | {} | {} |\n\
         | download, one connection | {} | {} | 1 | {len} |\n\
         | download, {} connections | {} | {} | {} | {len} |\n\n\
         | figure | measured | aim |\n| --- | --- | --- |\n\
         | wall / ({ROUND_TRIPS} x {} ms + needed / rate), needed {} bytes | {:.2} | at most 1.30 |\n\
         | download over one connection / wall | {:.0} | at least 40 |\n\
         | download over {} connections / wall | {:.1} | |\n",
        len as f64 / 1e6,
        ms(wall),
        ms(median_cpu(&costs)),
        measure::median(&gets),
        measure::median(&bytes),
        ms(median_wall(&one)),
        ms(median_cpu(&one)),
        download::CONNECTIONS,
        ms(median_wall(&many)),
        ms(median_cpu(&many)),
        len.div_ceil(download::PART_BYTES),
        DISTANCE.first_byte_ms,
        measure::median(&neededs),
        measure::median(&bounds),
        times(&one),
        download::CONNECTIONS,
        times(&many),
    ))
}

/// Downloads the object into a file that has no name.
fn fetch(server: &Server, parallel: bool) -> Result<Cost, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
    let mut file = tempfile::tempfile().map_err(|e| e.to_string())?;
    let source = Options::default().open(server.url()).map_err(|e| e.to_string())?;
    let ((), cost) = measure::cost(|| {
        runtime.block_on(async {
            match parallel {
                false => download::one_connection(&*source, &mut file, |_| {}).await,
                true => download::parallel(source.clone(), &file, |_| {}).await,
            }
        })?;
        Ok(())
    })?;
    Ok(cost)
}
