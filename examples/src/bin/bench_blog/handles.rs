//! The fourth chart: bandwidth by number of handles.

use std::path::Path;

use examples::{
    report::{Aim, Goal},
    server::{Distance, Server},
};
use pager::Region;
use sources::Options;

use crate::{
    Drawn,
    svg::{Axis, Chart, Series},
    way::{Way, pager, timed},
};

/// The article's machine had some 4 Gbit/s to S3; this is a little less.
const CAPPED: Distance = Distance { first_byte_ms: 30, rate: 90_000_000, link_rate: 400_000_000 };
const HANDLES: [u64; 8] = [1, 2, 4, 8, 12, 16, 24, 32];
/// 3.5 Gbit/s in MB/s.
const THEIR_PEAK: f64 = 437.5;

/// MB/s by number of handles that each read their share.
pub(crate) fn bandwidth(path: &Path, runs: usize) -> Result<Drawn, String> {
    let server = Server::start(path, "edits.tdb", CAPPED)?;
    let len = path.metadata().map_err(|e| e.to_string())?.len();
    let mut series = Vec::new();
    for (name, way) in [("adaptive", Way::Adaptive), ("blocks of 1 MiB", Way::Blocks(1 << 20))] {
        let mut points = Vec::new();
        for count in HANDLES {
            let time = timed(runs, |_| {
                let (pager, options) = (pager()?, Options::default());
                read_shares(count, len, |_| {
                    let source = options.open(server.url()).map_err(|e| e.to_string())?;
                    way.region(&pager, source)
                })
            })?;
            points.push((count as f64, len as f64 / 1e6 / time.as_secs_f64()));
        }
        series.push(Series::ours(name, points));
    }
    let goals = vec![Goal::new(
        "MB/s of one handle, adaptive, on a link of 400 (article: some 20 handles for 437)",
        series[0].points[0].1,
        Aim::None,
    )];
    series.push(Series::flat("the link", 1.0, 32.0, CAPPED.link_rate as f64 / 1e6));
    let line = [(1.0, THEIR_PEAK / 20.0), (20.0, THEIR_PEAK), (32.0, THEIR_PEAK)];
    series.push(Series::theirs("2016: about, from its text", &line));
    let says = "MB/s of N handles that each touch every byte of their share, on a link of 400 MB/s at \
                90 MB/s per connection. In 2016 a handle was one connection that waited for each \
                block, and about 20 of them filled 3.5 Gbit/s; blocks of one size behave so here. \
                One adaptive handle keeps several requests on the way. Times include \
                opening, two round trips, and the first windows, which are short: of 100 MB, whose \
                bytes alone take 0.25 s here, that is half. Section 3 has one handle over ten times \
                as much.";
    let chart = Chart {
        title: "Bandwidth by number of handles".to_owned(),
        x: Axis { label: "handles", log: true },
        y: Axis { label: "MB/s", log: false },
        series,
    };
    Ok(Drawn { name: "handles", chart, says: says.into(), goals })
}

/// Touches every page of the object in parallel: each of `count` threads opens a handle and reads
/// its share through it.
fn read_shares(
    count: u64,
    len: u64,
    open: impl Fn(u64) -> Result<Region, String> + Sync,
) -> Result<(), String> {
    let share = len.div_ceil(count);
    let open = &open;
    std::thread::scope(|scope| {
        let read = |n: u64| {
            let mapped = open(n)?.map().map_err(|e| e.to_string())?;
            let (start, end) = (len.min(n * share), len.min((n + 1) * share));
            let bytes = &mapped[start as usize..end as usize];
            let sum = bytes.iter().step_by(4_096).map(|byte| u64::from(*byte)).sum::<u64>();
            Ok::<u64, String>(std::hint::black_box(sum))
        };
        let threads: Vec<_> = (0..count).map(|n| scope.spawn(move || read(n))).collect();
        for thread in threads {
            thread.join().map_err(|_| "a reader panicked".to_owned())??;
        }
        Ok(())
    })
}
