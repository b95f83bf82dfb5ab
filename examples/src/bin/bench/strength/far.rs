//! One handle over an S3 far away, beside a program that has eight connections to it.

use std::path::Path;

use examples::{
    measure::{self, Cost, cpu, ms, ratio, wall},
    report::{Aim, Goal},
    server::{Distance, Server},
};
use pager::Hint;

use super::sum;
use crate::cold;

/// As far as the slow S3 of the tests, whose connections share no link.
const DISTANCE: Distance = Distance { first_byte_ms: 30, rate: 90_000_000, link_rate: 0 };
const CONNECTIONS: usize = 8;
/// MiB of a part of the download. With the last of them the file is one part for each connection.
const PARTS: [u64; 4] = [8, 16, 32, 64];

pub(super) fn run(path: &Path, rounds: usize, goals: &mut Vec<Goal>) -> Result<String, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let (len, expected) = (bytes.len(), sum(&bytes));
    drop(bytes);
    let server = Server::start(path, "object", DISTANCE)?;
    let mut tried: Vec<(u64, Cost)> = Vec::new();
    for part in PARTS {
        tried.push((part, cold::download(&server, (CONNECTIONS, part))?));
    }
    let part = tried.iter().min_by_key(|(_, cost)| cost.wall).map_or(PARTS[0], |best| best.0);

    let [mut fetched, mut hinted, mut plain] = [const { Vec::new() }; 3];
    for round in 0..rounds {
        for turn in 0..3 {
            match (round + turn) % 3 {
                0 => fetched.push(cold::download(&server, (CONNECTIONS, part))?),
                1 => hinted.push(scan(&server, Hint::Sequential, expected)?),
                _ => plain.push(scan(&server, Hint::Normal, expected)?),
            }
        }
    }
    for (what, ours) in [("hint sequential", &hinted), ("no hint", &plain)] {
        let over = ratio(ours, &fetched);
        let what = format!("S3 far away, one handle, {what} / {CONNECTIONS} connections");
        goals.push(Goal::new(what, over, Aim::AtMost(1.0)));
    }
    let mut rows = String::new();
    for (what, costs) in [
        (&format!("a download over {CONNECTIONS} connections, parts of {part} MiB")[..], &fetched),
        ("one handle, hint sequential, summed", &hinted),
        ("one handle, no hint, summed", &plain),
    ] {
        let rate = len as f64 / 1e6 / wall(costs).as_secs_f64();
        rows += &format!("| {what} | {} | {rate:.0} | {} |\n", ms(wall(costs)), ms(cpu(costs)));
    }
    let tried = tried.iter().map(|(part, cost)| format!("{part} MiB: {}", ms(cost.wall)));
    Ok(format!(
        "### From an S3 far away, {rounds} rounds in turn\n\nThe same file behind {} ms to the first byte of an \
         answer and {} MB/s per connection, with no link that they share: what {CONNECTIONS} connections \
         give is {} MB/s. A handle has as many as it finds worth their while. The download keeps nothing of \
         what it fetches, and its parts were the best of these, of one run each: {}. Each run has a new \
         pager and new connections, and the processor time is not the S3's, which runs on the same \
         cores.\n\n| | wall | MB/s | CPU |\n| --- | --- | --- | --- |\n{rows}",
        DISTANCE.first_byte_ms,
        DISTANCE.rate / 1_000_000,
        DISTANCE.rate / 1_000_000 * CONNECTIONS as u64,
        tried.collect::<Vec<_>>().join(", "),
    ))
}

/// What it takes to sum all bytes through a region.
fn scan(server: &Server, hint: Hint<'_>, expected: u64) -> Result<Cost, String> {
    let (found, cost) = measure::cost(|| {
        let (_pager, region) = cold::open(server)?;
        region.advise(hint).map_err(|e| e.to_string())?;
        Ok(sum(&region.map().map_err(|e| e.to_string())?))
    })?;
    match found == expected {
        true => Ok(cost),
        false => Err("a scan read wrong bytes".to_owned()),
    }
}
