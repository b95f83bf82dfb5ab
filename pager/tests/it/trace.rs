//! What a recorder sees of real readers, and what a replay makes of it.

use std::{fs::File, io::BufReader, path::Path};

use pager::{
    Hint,
    policy::NoPrefetch,
    trace::{Kind, Overview, Reader, Record, Recorder, Replayer},
};

use crate::support::{Known, builder, byte_at, can_fault};

const UNIT: u64 = 64 << 10;

fn records(path: &Path) -> Vec<Record> {
    let mut reader = Reader::new(BufReader::new(File::open(path).unwrap())).unwrap();
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        records.push(record);
    }
    assert!(reader.is_complete());
    records
}

fn accesses(records: &[Record], wanted: Kind) -> Vec<(u32, std::ops::Range<u64>)> {
    let of = |record: &Record| match record {
        Record::Access { region, units, kind, .. } if *kind == wanted => {
            Some((*region, units.clone()))
        }
        _ => None,
    };
    records.iter().filter_map(of).collect()
}

#[test]
fn loads_faults_and_requests_are_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let recorder = Recorder::create(&path).unwrap();
    assert!(Recorder::create(&path).is_err(), "a trace that is there is not written over");
    let builder = builder().budget_bytes(64 << 20).prefetch(|| Box::new(NoPrefetch));
    let pager = builder.record(&recorder).build().unwrap();
    let region = pager.open(Known::new(16 << 20)).unwrap();
    let other = pager.open(Known::new(100_000)).unwrap();
    drop(region.load(0..3 * UNIT).unwrap());
    drop(region.load(UNIT..UNIT + 1).unwrap());
    drop(other.load(99_999..100_000).unwrap());
    drop(region.load(5..5).unwrap());
    if can_fault() {
        let mapped = region.map().unwrap();
        for unit in [9, 9, 2] {
            let at = unit * UNIT;
            assert_eq!(mapped[at as usize], byte_at(at));
        }
    }
    region.advise(Hint::WillNeed(std::slice::from_ref(&(20 * UNIT..21 * UNIT)))).unwrap();
    drop((region, other));
    // The engine hears of a close in its own time; everything before it is in the trace.
    drop(pager);
    let summary = recorder.finish().unwrap();
    assert_eq!((summary.regions, summary.lost), (2, 0));
    let records = records(&path);
    assert_eq!(accesses(&records, Kind::Wait), [(0, 0..3), (1, 1..2)]);
    assert_eq!(accesses(&records, Kind::Hit), [(0, 1..2)]);
    let faults = accesses(&records, Kind::Fault);
    // The kernel delivers a fault again where its reader was interrupted.
    assert!(faults.iter().all(|fault| *fault == (0, 9..10)), "{faults:?}");
    assert_eq!(!faults.is_empty(), can_fault(), "{faults:?}");
    let mut fetched = vec![(0, 0..3), (1, 1..2)];
    fetched.extend(can_fault().then_some((0, 9..10)));
    assert_eq!(accesses(&records, Kind::Fetch), fetched);
    match &records[0] {
        Record::Opened { region: 0, info } => {
            assert_eq!((&info.name[..], &info.version[..]), ("test://known", "v1"));
            assert_eq!((info.len, info.unit_bytes), (16 << 20, UNIT));
        }
        other => panic!("{other:?}"),
    }
}

/// A replay at the budget of the pager that was recorded finds what that pager found.
#[test]
fn a_replay_agrees_with_the_pager_that_was_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    let recorder = Recorder::create(&path).unwrap();
    let budget = 16 << 20;
    let builder = builder().budget_bytes(budget).prefetch(|| Box::new(NoPrefetch));
    let pager = builder.record(&recorder).build().unwrap();
    let source = Known::new(64 << 20);
    let region = pager.open(source.clone()).unwrap();
    let mut state = 7u64;
    for _ in 0..4000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // A third of the reads in a small part, the others anywhere.
        let units = if state >> 62 == 0 { 100 } else { 1024 };
        let at = (state >> 33) % units * UNIT;
        assert_eq!(region.load(at..at + 10).unwrap()[3], byte_at(at + 3));
    }
    let stats = region.stats();
    let pool = budget - 2 * UNIT;
    drop((region, pager));
    recorder.finish().unwrap();
    let records = records(&path);
    let (mut overview, mut replayer) = (Overview::new(), Replayer::new(&[pool, 1 << 30]));
    for record in &records {
        overview.record(record).unwrap();
        replayer.record(record).unwrap();
    }
    assert_eq!(overview.accesses(), 4000);
    assert_eq!((overview.hits, overview.waits), (stats.load_hits, 4000 - stats.load_hits));
    assert_eq!(overview.fetches + overview.guesses, stats.gets);
    assert_eq!(overview.bytes_fetched, stats.bytes_fetched);
    let outcomes = replayer.outcomes();
    println!("{stats:?}\n{outcomes:?}");
    let here = &outcomes[0];
    assert_eq!((here.policy, here.budget), ("S3-FIFO", pool));
    let off = here.hits.abs_diff(stats.load_hits);
    assert!(off < 80, "2 % of the accesses: {off} between {here:?} and {stats:?}");
    let everything = &outcomes[1];
    assert_eq!(everything.gets, overview.units_touched, "each unit once where all have room");
}
