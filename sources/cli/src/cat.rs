//! `extmem cat`: an object's bytes, read ahead in bounded memory.

use std::{
    collections::HashMap,
    io::{self, IsTerminal, Write},
    sync::Arc,
};

use indicatif::{ProgressBar, ProgressStyle};
use pager::{BlockSource, Hint, Pager, Preset, Region};
use sources::{Concat, Options, Part, disk_cache::flush_all, monitor::Monitor};

use crate::{
    Failure,
    cost::{self, Meter},
    range::ByteRange,
    recording::Recording,
};

/// Write an object's bytes to standard output, in bounded memory.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    extmem cat s3://bucket/key > key\n  \
    extmem cat --range 0-99 https://host/file      the first hundred bytes\n  \
    extmem cat --range -1000 file.bin              the last thousand\n  \
    extmem cat --range 4096..8192 s3://bucket/key\n  \
    extmem cat s3://bucket/part-1 s3://bucket/part-2    one behind the other\n  \
    extmem cat --preset frugal --stats s3://bucket/key > key")]
pub(crate) struct Args {
    /// Addresses of the objects: s3://, http(s)://, file:// or a path. Several are read as one
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
    /// Bytes to write: FIRST-LAST (inclusive), FIRST-, -COUNT, or START..END (exclusive)
    #[arg(long, allow_hyphen_values = true)]
    range: Option<ByteRange>,
    /// Memory to read ahead in, in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    budget: u64,
    /// What to care about most: latency, throughput or frugal (the fewest requests)
    #[arg(long)]
    preset: Option<Preset>,
    #[command(flatten)]
    cost: cost::Args,
}

/// From so many bytes on, a progress bar is worth showing.
const PROGRESS_FROM: u64 = 8 << 20;

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let meter = Meter::start(args.urls.iter().map(String::as_str));
    let written = write(args, &meter);
    // What a failure cost is of interest, too.
    meter.print(&args.cost);
    written
}

fn write(args: &Args, meter: &Meter) -> Result<(), Failure> {
    let source = open(&args.urls, &Options::default().traffic(meter.traffic()))?;
    let builder = Pager::builder().budget_bytes(args.budget << 20);
    let mut builder = match args.preset {
        Some(preset) => builder.preset(preset),
        None => builder,
    };
    let recording = Recording::start();
    if let Some(recorder) = recording.recorder() {
        builder = builder.record(recorder);
    }
    let pager = builder.build()?;
    let _seen = Monitor::of_environment(&pager);
    let region = pager.open(source)?;
    let range = args
        .range
        .unwrap_or(ByteRange::From(0))
        .of(region.len())
        .map_err(|why| Failure::Told(format!("{}: {why}", region.name())))?;
    let bar = bar(range.end - range.start);
    let written = copy(&region, range, &bar);
    bar.finish_and_clear();
    // As long as the region is there: what was read is on the disk when the program has ended.
    flush_all();
    written
}

/// The object, or the objects one behind the other.
fn open(urls: &[String], options: &Options) -> Result<Arc<dyn BlockSource>, Failure> {
    if let [url] = urls {
        return Ok(options.open(url)?);
    }
    // What is named twice is one object, at one version.
    let mut opened = HashMap::new();
    let mut parts = Vec::with_capacity(urls.len());
    for url in urls {
        let source = match opened.get(url) {
            Some(source) => Arc::clone(source),
            None => opened.entry(url).insert_entry(options.open(url)?).get().clone(),
        };
        parts.push(Part::whole(source));
    }
    let name = format!("the {} objects together", urls.len());
    Ok(Arc::new(Concat::new(name, parts)?))
}

fn copy(region: &Region, range: std::ops::Range<u64>, bar: &ProgressBar) -> Result<(), Failure> {
    region.advise(Hint::Sequential)?;
    let mut out = io::stdout().lock();
    let piece = (region.pager().budget().pin_limit() / 8).max(region.unit_bytes());
    let mut at = range.start;
    while at < range.end {
        // Up to the next edge, so that no piece pins a unit more than it has to.
        let end = (at - at % piece + piece).min(range.end);
        let bytes = region.load(at..end)?;
        out.write_all(&bytes).map_err(Failure::output)?;
        drop(bytes);
        region.advise(Hint::DontNeed(at..end))?;
        bar.inc(end - at);
        at = end;
    }
    out.flush().map_err(Failure::output)
}

fn bar(len: u64) -> ProgressBar {
    // Never into the bytes of a person who looks at them.
    if len < PROGRESS_FROM || !io::stderr().is_terminal() || io::stdout().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).expect("the template is well formed");
    ProgressBar::new(len).with_style(style)
}
