//! `extmem warm`: fetches an object, or parts of it, into the disk cache.

use std::{
    fs,
    io::{self, IsTerminal, Read, Write},
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use sources::{BlockSource, Cache, CachePolicy, Options, SourceError, Strength, Version, size};

use crate::{Failure, range::ByteRange};

/// Fetch an object, or parts of it, into the disk cache.
#[derive(clap::Args)]
#[command(after_help = "A plan has one range a line, as in --range; `#` begins a comment.\n\
    EXTMEM_CACHE_BYTES sets how much the directory may take, for a server that uses it, too; without \
    it that stays as it was.\n\n\
    Examples:\n  \
    extmem warm --cache /var/cache/extmem s3://bucket/key\n  \
    extmem warm --range 0-1048575 --range -65536 https://host/file\n  \
    extmem warm --plan ranges.txt s3://bucket/key     with EXTMEM_CACHE set")]
pub(crate) struct Args {
    /// Address of the object: s3:// or http(s)://
    url: String,
    /// Directory of the cache
    #[arg(long, env = "EXTMEM_CACHE", value_name = "DIR")]
    cache: PathBuf,
    /// Bytes to fetch, FIRST-LAST, FIRST-, -COUNT or START..END; may be given more than once.
    /// Without any: all
    #[arg(long, allow_hyphen_values = true)]
    range: Vec<ByteRange>,
    /// File of ranges, or `-` for standard input
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Keep it although its version cannot show every change
    #[arg(long)]
    weak: bool,
    /// Requests at once
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    requests: u16,
    /// Print one JSON object instead of a line
    #[arg(long)]
    json: bool,
}

/// Bytes of one request.
const PART_BYTES: u64 = 8 << 20;
/// A plan is text for people and small programs.
const PLAN_BYTES_MAX: u64 = 64 << 20;

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let mut ranges = args.range.clone();
    if let Some(path) = &args.plan {
        ranges.extend(read_plan(path)?);
    } else if ranges.is_empty() {
        ranges.push(ByteRange::From(0));
    }
    let told = |error: io::Error| Failure::Told(error.to_string());
    let policy = CachePolicy::from_environment().map_err(told)?;
    let policy = CachePolicy { weak: args.weak, ..policy };
    let cache = Cache::open(&args.cache, policy).map_err(told)?;
    let source = Options::default().cache(Some(cache.clone())).open(&args.url)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Told(format!("threads: {error}")))?;
    let done = runtime.block_on(warm(args, &ranges, &source, &cache));
    // A disk or a name server that hangs must not keep us.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn warm(
    args: &Args,
    ranges: &[ByteRange],
    source: &Arc<dyn BlockSource>,
    cache: &Cache,
) -> Result<(), Failure> {
    let stat = source.stat().await?;
    if stat.version.strength() == Strength::Weak && !args.weak {
        return Err(Failure::Told(format!(
            "{}: its version is weak ({}), so changes may go unseen; --weak keeps it all the same",
            source.name(),
            stat.version.token()
        )));
    }
    let refuse = |why| Failure::Told(format!("{}: {why}", source.name()));
    let ranges: Result<Vec<_>, _> = ranges.iter().map(|range| range.of(stat.len)).collect();
    let parts: Vec<Range<u64>> = ranges.map_err(refuse)?.into_iter().flat_map(parts).collect();
    let all: u64 = parts.iter().map(|part| part.end - part.start).sum();
    let bar = bar(all);
    let reads = parts.into_iter().map(|part| fetch(source, &stat.version, part, &bar));
    let done = stream::iter(reads).buffer_unordered(args.requests.into()).try_collect::<()>().await;
    bar.finish_and_clear();
    done?;
    cache.flush().await.map_err(|error| Failure::Told(error.to_string()))?;
    let count = cache.count();
    if args.json {
        let value = json!({
            "name": source.name(),
            "bytes": all,
            "hit_blocks": count.hit_blocks,
            "missed_blocks": count.missed_blocks,
            "stored_bytes": count.stored_bytes,
            "skipped_blocks": count.skipped_blocks,
            "evicted_bytes": count.evicted_bytes,
        });
        print(&format!("{value}\n"))?;
    } else {
        let (asked, stored) = (size::show(all), size::show(count.stored_bytes));
        print(&format!("{}: {asked} asked for, {stored} fetched and kept\n", source.name()))?;
    }
    if count.stored_bytes == 0 && count.hit_blocks == 0 && count.missed_blocks == 0 && all > 0 {
        let text = "files of this machine are not kept in a cache";
        return Err(Failure::Told(format!("{}: {text}", source.name())));
    }
    if count.skipped_blocks > 0 || count.evicted_bytes > 0 {
        return Err(Failure::Told(format!(
            "{}: {} block(s) found no room and {} made way; EXTMEM_CACHE_BYTES and \
             EXTMEM_CACHE_FREE are the bounds",
            args.cache.display(),
            count.skipped_blocks,
            size::show(count.evicted_bytes)
        )));
    }
    Ok(())
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::output)
}

async fn fetch(
    source: &Arc<dyn BlockSource>,
    version: &Version,
    part: Range<u64>,
    bar: &ProgressBar,
) -> Result<(), SourceError> {
    let mut body = source.read(version, part).await?;
    while let Some(chunk) = body.next().await {
        bar.inc(chunk?.len() as u64);
    }
    Ok(())
}

/// Cuts a range at multiples of the part, so that no block is asked for twice.
fn parts(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = (at - at % PART_BYTES).saturating_add(PART_BYTES).min(range.end);
        let part = at..end;
        at = end;
        (!part.is_empty()).then_some(part)
    })
}

fn read_plan(path: &std::path::Path) -> Result<Vec<ByteRange>, Failure> {
    let named = |why: String| Failure::Told(format!("plan {}: {why}", path.display()));
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => io::stdin().take(PLAN_BYTES_MAX + 1).read_to_string(&mut text),
        _ => fs::File::open(path)
            .and_then(|file| file.take(PLAN_BYTES_MAX + 1).read_to_string(&mut text)),
    };
    if read.map_err(|error| named(error.to_string()))? as u64 > PLAN_BYTES_MAX {
        return Err(named("it is longer than 64 MiB".to_owned()));
    }
    let mut ranges = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        if !line.is_empty() {
            let range = line.parse().map_err(|why| named(format!("line {}: {why}", number + 1)))?;
            ranges.push(range);
        }
    }
    Ok(ranges)
}

fn bar(len: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).expect("the template is well formed");
    ProgressBar::new(len).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_meet_at_multiples() {
        let part = PART_BYTES;
        let got: Vec<_> = parts(5..2 * part + 1).collect();
        assert_eq!(got, [5..part, part..2 * part, 2 * part..2 * part + 1]);
        assert_eq!(parts(7..7).count(), 0);
    }
}
