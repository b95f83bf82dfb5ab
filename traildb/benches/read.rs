//! How fast are events decoded, filtered and found?
//!
//! `cargo bench -p extmem-traildb --bench read -- [DATABASE]`: the package given, or a generated one
//! of a million events, in memory. The best of three passes counts; nothing is compared with what
//! another run has said.

use std::{
    error::Error,
    fs,
    hint::black_box,
    time::{Duration, Instant},
};

use traildb::{
    Builder, Chunk, Index, Item, Reader,
    filter::Expr,
    index::Build,
    synth::{self, Spec},
};

type Database = Reader<Vec<u8>>;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let given = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let path = match given {
        Some(path) => path.into(),
        None => {
            let path = dir.path().join("events.tdb");
            let mut builder = Builder::new(&synth::FIELDS)?;
            synth::fill(&Spec::of_events(1_000_000, 1), &mut builder, |_| {})?;
            builder.finish(&path)?;
            path
        }
    };
    let bytes = fs::read(&path)?;
    println!("{}: {} bytes", path.display(), bytes.len());
    let mut reader = Reader::new(bytes)?;
    let events = reader.events();
    println!("{events} events in {} trails", reader.trails());

    for threads in [1, 2] {
        let time = best(|| scan(reader.view().scan().threads(threads)))?;
        rate(&format!("raw scan, threads: {threads}"), events, time);
    }
    let time = best(|| values(&reader))?;
    rate("scan with values", events, time);

    // A value from the middle of the field with the most values.
    let fields = reader.fields()?.len() as u16;
    let counts: Vec<(u64, u16)> =
        (1..=fields).map(|f| Ok((reader.values(f)?, f))).collect::<Result<_, traildb::Error>>()?;
    let Some(&(count, field)) = counts.iter().max().filter(|(count, _)| *count > 0) else {
        return Ok(());
    };
    let rare = reader.value(Item::new(field, count.div_ceil(2)))?.to_vec();
    let name = reader.fields()?.name(field).unwrap_or_default().to_owned();
    let wanted = Expr::is(&name, &rare).bind(&reader)?;
    let time = best(|| scan(reader.view().with_filter(wanted.clone()).scan()))?;
    rate("filtered scan", events, time);
    each("find an item, without an index", best(|| Ok(reader.item(field, &rare)?.is_some()))?);

    let index = dir.path().join("index");
    for threads in [1, 2] {
        let start = Instant::now();
        let built = Build::new(&reader).threads(threads).write(&index)?;
        println!(
            "make the index, threads: {threads}   {:8.2} s, {} bytes",
            start.elapsed().as_secs_f64(),
            built.bytes
        );
    }
    let start = Instant::now();
    let opened = Index::open(fs::read(&index)?, &reader)?;
    reader.attach(opened)?;
    each("open the index", start.elapsed());
    each("find an item, with the index", best(|| Ok(reader.item(field, &rare)?.is_some()))?);
    let time = best(|| scan(reader.view().with_filter(wanted.clone()).scan_matching()?))?;
    each("filtered query, with the index", time);
    Ok(())
}

fn scan(scan: traildb::Scan<'_, Vec<u8>>) -> Result<u64, Box<dyn Error>> {
    let mut total = 0;
    scan.run(
        |chunk: &mut Chunk<'_, '_, Vec<u8>>| {
            let mut sum = 0u64;
            while let Some(trail) = chunk.next_trail()? {
                while let Some(event) = trail.next_event()? {
                    sum = sum.wrapping_add(event.time ^ event.items.len() as u64);
                }
            }
            Ok::<u64, traildb::Error>(sum)
        },
        |sum| {
            total ^= sum;
            Ok(())
        },
    )?;
    Ok(total)
}

fn values(reader: &Database) -> Result<u64, Box<dyn Error>> {
    let mut sum = 0;
    let mut cursor = reader.cursor()?;
    for trail in 0..reader.trails() {
        cursor.seek(trail)?;
        while let Some(event) = cursor.next_event()? {
            for &item in event.items {
                sum += reader.value(item)?.len() as u64;
            }
        }
    }
    Ok(sum)
}

fn best<T>(mut run: impl FnMut() -> Result<T, Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        black_box(run()?);
        best = best.min(start.elapsed());
    }
    Ok(best)
}

fn rate(what: &str, events: u64, time: Duration) {
    println!("{what:32} {:8.2} M events/s", events as f64 / time.as_secs_f64() / 1e6);
}

fn each(what: &str, time: Duration) {
    println!("{what:32} {:8.1} us", time.as_secs_f64() * 1e6);
}
