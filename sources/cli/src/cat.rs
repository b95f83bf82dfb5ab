//! `extmem cat`: an object's bytes, read ahead in bounded memory.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use pager::{Hint, Pager, Region};

use crate::{Failure, range::ByteRange};

/// Write an object's bytes to standard output, in bounded memory.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    extmem cat s3://bucket/key > key\n  \
    extmem cat --range 0-99 https://host/file      the first hundred bytes\n  \
    extmem cat --range -1000 file.bin              the last thousand\n  \
    extmem cat --range 4096..8192 s3://bucket/key")]
pub(crate) struct Args {
    /// Address of the object: s3://, http(s)://, file:// or a path
    url: String,
    /// Bytes to write: FIRST-LAST (inclusive), FIRST-, -COUNT, or START..END (exclusive)
    #[arg(long, allow_hyphen_values = true)]
    range: Option<ByteRange>,
    /// Memory to read ahead in, in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    budget: u64,
}

/// From so many bytes on, a progress bar is worth showing.
const PROGRESS_FROM: u64 = 8 << 20;

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let source = sources::open(&args.url)?;
    let pager = Pager::builder().budget_bytes(args.budget << 20).build()?;
    let region = pager.open(source)?;
    let range = args
        .range
        .unwrap_or(ByteRange::From(0))
        .of(region.len())
        .map_err(|why| Failure::Told(format!("{}: {why}", region.name())))?;
    let bar = bar(range.end - range.start);
    let written = copy(&region, range, &bar);
    bar.finish_and_clear();
    written
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
