//! Somebody else's format, mapped: an `fst` index, asked over HTTP and over S3.
//!
//! The `fst` crate wants bytes (`AsRef<[u8]>`) and was written with a file map in mind. A mapped
//! region is such bytes, so an index in a bucket answers without being downloaded, and neither the
//! crate nor its format knows.

#![forbid(unsafe_code)]

use std::{error::Error, time::Instant};

use endpoint::{Endpoint, Settings};
use fst::{Map, MapBuilder};
use pager::{Hint, Pager, RegionOptions};
use sources::{Options, Traffic};

/// Entries of the index.
const ENTRIES: u64 = 500_000;
/// Entries looked up.
const LOOKUPS: u64 = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let index = index()?;
    // Unsigned reads, so that the same object can be had by plain HTTP.
    let endpoint = Endpoint::start(Settings { anonymous_reads: true, ..Settings::default() })?;
    endpoint.store().create_bucket("indexes")?;
    let len = index.len();
    endpoint.store().put(
        "indexes",
        "keys.fst",
        index.into(),
        Default::default(),
        &Default::default(),
    )?;
    println!("An fst of {ENTRIES} keys, {len} bytes, 30 ms away at 90 MB/s");

    let addresses = [
        format!("{}/indexes/keys.fst", endpoint.url()),
        format!("s3://indexes/keys.fst?anonymous&region=us-east-1&endpoint={}", endpoint.url()),
    ];
    for address in addresses {
        let traffic = Traffic::default();
        let began = Instant::now();
        let pager = Pager::builder().budget_bytes(16 << 20).build()?;
        let source = Options::default().traffic(traffic.clone()).open(&address)?;
        // A lookup touches a handful of places far apart: small units, and nothing ahead.
        let region = pager.open_with(source, RegionOptions::default().unit_bytes(16 << 10))?;
        region.advise(Hint::Random)?;
        let map = Map::new(region.map()?)?;
        for n in (0..LOOKUPS).map(|n| n * (ENTRIES / LOOKUPS)) {
            assert_eq!(map.get(key(n)), Some(n), "key {n}");
        }
        assert_eq!(map.get("no such key"), None);
        let (count, took) = (traffic.count(), began.elapsed());
        let share = count.bytes as f64 / len as f64 * 100.0;
        println!("{}", address.split('?').next().unwrap_or(&address));
        println!(
            "  {LOOKUPS} lookups: {} GETs, {} bytes, {share:.1} % of the index, {took:.0?}",
            count.gets, count.bytes
        );
    }
    Ok(())
}

/// The index: key `n` leads to `n`. An fst is written in the order of its keys.
fn index() -> Result<Vec<u8>, fst::Error> {
    let mut entries: Vec<(String, u64)> = (0..ENTRIES).map(|n| (key(n), n)).collect();
    entries.sort_unstable();
    let mut builder = MapBuilder::memory();
    builder.extend_iter(entries)?;
    builder.into_inner()
}

/// A key without order, so that the index does not compress to nothing.
fn key(n: u64) -> String {
    // Odd multipliers permute the 64-bit numbers: no two keys are equal.
    let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{:016x}", (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9))
}
