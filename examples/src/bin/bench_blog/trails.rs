//! The first and the second chart: time to the first N trails, and to N random ones.

use std::{path::Path, time::Duration};

use examples::{
    data, download,
    report::{Aim, Goal},
    server::Server,
};
use traildb::{Reader, Uuid};

use crate::{
    Drawn,
    svg::{Axis, Chart, Series},
    way::{FAR, Way, decode, is_off, pager, source, timed},
};

const TRAILS: [u64; 11] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000];
/// What the article says of its baseline.
const THEIR_DOWNLOAD: f64 = 1.6;

/// Time to the first N trails.
pub(crate) fn first(path: &Path, runs: usize) -> Result<Drawn, String> {
    let server = Server::start(path, "edits.tdb", FAR)?;
    let baseline = download(&server, runs)?;
    let mut series = Vec::new();
    for (name, way) in Way::ALL {
        let points = points(baseline, |count| {
            timed(runs, |_| {
                let pager = pager()?;
                let storage = way.storage(&pager, source(&server)?)?;
                let reader = Reader::new(storage).map_err(|e| e.to_string())?;
                decode(&reader, 0..count.min(reader.trails())).map(drop)
            })
        })?;
        series.push(Series::ours(name, points));
    }
    let adaptive = |count: f64| at(&series, "adaptive", count);
    let goals = vec![
        Goal::new(
            "download / first 10 trails, adaptive (article: 16)",
            baseline.as_secs_f64() / adaptive(10.0),
            Aim::None,
        ),
        Goal::new(
            "download / first 2,000 trails, adaptive (article: 1 with small blocks, 3.2 with large)",
            baseline.as_secs_f64() / adaptive(2_000.0),
            Aim::None,
        ),
    ];
    series.push(Series::flat("download first", 1.0, 2_000.0, baseline.as_secs_f64()));
    let both = [(1.0, THEIR_DOWNLOAD), (2_000.0, THEIR_DOWNLOAD)];
    series.push(Series::theirs("2016: download first", &both));
    series.push(Series::theirs("2016: 16 KB", &[(1.0, 0.1), (10.0, 0.1), (200.0, 1.6)]));
    series.push(Series::theirs("2016: 16 MB", &[(1.0, 0.5), (2_000.0, 0.5)]));
    let says = "Open the database and decode the first N trails. In 2016, blocks of 16 KB gave the \
                first 10 trails in 100 ms and lost to the download from 200 on; one block of 16 MB \
                took 500 ms. Ours with blocks of 16 KiB wait for some 80 of them in a row before \
                the first trail: our reader reads and checks the whole codebook, 1.3 MB, which the \
                other trusted, and touched where it needed it.";
    Ok(Drawn {
        name: "first-trails",
        chart: chart("First N trails", series),
        says: says.into(),
        goals,
    })
}

/// Time to N random trails.
pub(crate) fn random(path: &Path, runs: usize) -> Result<Drawn, String> {
    let server = Server::start(path, "edits.tdb", FAR)?;
    let local = Reader::open(path).map_err(|e| e.to_string())?;
    let baseline = download(&server, runs)?;
    let mut series = Vec::new();
    let mut goals = Vec::new();
    for (name, way) in Way::ALL {
        let points = points(baseline, |count| {
            // Others in each run, and chosen before the clock starts: looking for them takes time.
            let users = |run| data::users(&local, count as usize, count << 8 | run as u64);
            let users = (0..runs).map(users).collect::<Result<Vec<_>, _>>();
            let users = users.map_err(|e| e.to_string())?;
            timed(runs, |run| ask(way, &server, &users[run]))
        })?;
        let faster = points.iter().filter(|point| point.1 < baseline.as_secs_f64());
        let most = faster.map(|point| point.0).fold(0.0, f64::max);
        let what =
            format!("most random trails drawn that beat the download, {name} (article: 20-30)");
        goals.push(Goal::new(what, most, Aim::None));
        series.push(Series::ours(name, points));
    }
    series.push(Series::flat("download first", 1.0, 2_000.0, baseline.as_secs_f64()));
    let both = [(1.0, THEIR_DOWNLOAD), (2_000.0, THEIR_DOWNLOAD)];
    series.push(Series::theirs("2016: download first", &both));
    let even = [(25.0, 0.0), (25.0, THEIR_DOWNLOAD)];
    series.push(Series::theirs("2016: break-even", &even));
    let says = "Open the database and decode the trails of N users, named by UUID and chosen at \
                random. Blocks of one size come when they are touched; adaptive asks for all users \
                as one batch. In 2016 the download won from 20 to 30 trails on.";
    Ok(Drawn {
        name: "random-trails",
        chart: chart("N random trails", series),
        says: says.into(),
        goals,
    })
}

fn ask(way: Way, server: &Server, users: &[Uuid]) -> Result<(), String> {
    let pager = pager()?;
    let storage = way.storage(&pager, source(server)?)?;
    let ask = || {
        let reader = Reader::new(storage)?;
        let trails: Vec<u64> = reader.trail_ids(users)?.into_iter().flatten().collect();
        reader.prefetch_trails(&trails)?;
        Ok::<_, traildb::Error>((reader, trails))
    };
    let (reader, trails) = ask().map_err(|e| e.to_string())?;
    decode(&reader, trails).map(drop)
}

fn download(server: &Server, runs: usize) -> Result<Duration, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
    timed(runs, |_| {
        let source = source(server)?;
        let mut file = tempfile::tempfile().map_err(|e| e.to_string())?;
        runtime.block_on(download::one_connection(&*source, &mut file, |_| {})).map(drop)
    })
}

/// Time in seconds by number of trails, until it leaves the chart.
fn points(
    baseline: Duration,
    mut time: impl FnMut(u64) -> Result<Duration, String>,
) -> Result<Vec<(f64, f64)>, String> {
    let mut points = Vec::new();
    for count in TRAILS {
        let time = time(count)?;
        points.push((count as f64, time.as_secs_f64()));
        if is_off(time, baseline) {
            break;
        }
    }
    Ok(points)
}

fn at(series: &[Series], name: &str, x: f64) -> f64 {
    let line = series.iter().find(|line| line.name == name);
    let point = line.and_then(|line| line.points.iter().find(|point| point.0 >= x));
    point.map_or(f64::NAN, |point| point.1)
}

fn chart(title: &str, series: Vec<Series>) -> Chart {
    Chart {
        title: title.to_owned(),
        x: Axis { label: "trails", log: true },
        y: Axis { label: "seconds", log: true },
        series,
    }
}
