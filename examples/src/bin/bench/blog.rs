//! The four charts of the article of 2016 that the project started from ("Fast queries on TrailDBs
//! in S3"), measured again, beside its own figures as far as its text gives them.
//!
//! *Small* and *large* are what that article had: blocks of one size, fetched when they are touched
//! and for no other reason. *Adaptive* is what the pager does by default: small units, read-ahead
//! that grows with a stream, and what the reader announces.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use examples::{
    data, download,
    faults::Faulting,
    server::{Distance, Server},
};
use pager::{Pager, Region, RegionOptions, policy::NoPrefetch};
use sources::{BlockSource, Options};
use traildb::{Reader, Storage, Uuid, storage};

use crate::{
    measure::{median, ms},
    svg::{Axis, Chart, Series},
};

const FAR: Distance = Distance { first_byte_ms: 30, rate: 90_000_000, link_rate: 0 };
/// The article's machine had some 4 Gbit/s to S3.
const CAPPED: Distance = Distance { first_byte_ms: 30, rate: 90_000_000, link_rate: 400_000_000 };
const TRAILS: [u64; 11] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000];
const HANDLES: [u64; 6] = [1, 2, 4, 8, 16, 32];
const BUDGET_BYTES: u64 = 512 << 20;
const RUNS: usize = 3;

/// Draws the charts into `folder` and says in Markdown what they show.
pub(crate) fn run(path: &Path, folder: &Path) -> Result<String, String> {
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut text = String::new();
    let charts = [
        ("first-trails", first_trails as fn(&Path) -> Result<(Chart, String), String>),
        ("random-trails", random_trails),
        ("cached-scan", cached_scan),
        ("handles", handles),
    ];
    for (name, draw) in charts {
        eprintln!("  {name}");
        let (chart, says) = draw(path)?;
        let file = folder.join(format!("{name}.svg"));
        fs::write(&file, chart.svg()).map_err(|e| format!("{}: {e}", file.display()))?;
        text += &format!("![{}]({})\n\n{says}\n\n", chart.title, file.display());
    }
    Ok(text)
}

/// How bytes come.
#[derive(Clone, Copy)]
enum Way {
    /// Units of this many bytes, on touch only.
    Touch(u64),
    Adaptive,
}

impl Way {
    const ALL: [(&str, Way); 3] = [
        ("16 KiB on touch", Way::Touch(16 << 10)),
        ("2 MiB on touch", Way::Touch(2 << 20)),
        ("adaptive", Way::Adaptive),
    ];

    fn open(self, pager: &Pager, source: Arc<dyn BlockSource>) -> Result<Faulting, String> {
        let options = match self {
            Way::Touch(unit) => {
                let options = RegionOptions::default().unit_bytes(unit);
                options.prefetch(|| Box::new(NoPrefetch))
            }
            Way::Adaptive => RegionOptions::default(),
        };
        let region = pager.open_with(source, options).map_err(|e| e.to_string())?;
        let storage = match self {
            Way::Touch(_) => Faulting::bare(region),
            Way::Adaptive => Faulting::new(region),
        };
        storage.map_err(|e| e.to_string())
    }
}

fn pager() -> Result<Pager, String> {
    Pager::builder().budget_bytes(BUDGET_BYTES).build().map_err(|e| e.to_string())
}

fn source(server: &Server) -> Result<Arc<dyn BlockSource>, String> {
    Options::default().open(server.url()).map_err(|e| e.to_string())
}

/// Median time of `work`, after as many runs as the first one's length allows.
fn timed(mut work: impl FnMut() -> Result<(), String>) -> Result<Duration, String> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let began = Instant::now();
        work()?;
        times.push(began.elapsed());
        if times[0] > Duration::from_secs(5) {
            break;
        }
    }
    Ok(median(&times))
}

fn download(server: &Server) -> Result<Duration, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
    timed(|| {
        let source = source(server)?;
        let mut file = tempfile::tempfile().map_err(|e| e.to_string())?;
        runtime.block_on(download::one_connection(&*source, &mut file, |_| {})).map(drop)
    })
}

/// Decodes the events of these trails, one after the other.
fn decode<S: Storage>(
    reader: &Reader<S>,
    trails: impl Iterator<Item = u64>,
) -> Result<u64, String> {
    let scan = || {
        let mut cursor = reader.cursor()?;
        let mut events = 0;
        for trail in trails {
            cursor.seek(trail)?;
            while cursor.next_event()?.is_some() {
                events += 1;
            }
        }
        Ok(events)
    };
    scan().map_err(|e: traildb::Error| e.to_string())
}

fn first_trails(path: &Path) -> Result<(Chart, String), String> {
    let server = Server::start(path, "edits.tdb", FAR)?;
    let baseline = download(&server)?;
    let mut series = Vec::new();
    for (name, way) in Way::ALL {
        let mut points = Vec::new();
        for count in TRAILS {
            let time = timed(|| {
                let pager = pager()?;
                let storage = way.open(&pager, source(&server)?)?;
                let reader = Reader::new(storage).map_err(|e| e.to_string())?;
                decode(&reader, 0..count.min(reader.trails())).map(drop)
            })?;
            points.push((count as f64, time.as_secs_f64()));
            if time > 3 * baseline {
                break;
            }
        }
        series.push(Series { name: name.to_owned(), dashed: false, points });
    }
    let says = format!(
        "The first N trails. Download first takes {}. In 2016: 1.6 s for 100 MB; blocks of 16 KB \
         gave the first 10 trails in 100 ms and lost to the download from 200 trails on; blocks of \
         16 MB took 500 ms.",
        ms(baseline)
    );
    series.push(flat("download first", baseline));
    series.push(dashed("2016: download first", &[(1.0, 1.6), (2_000.0, 1.6)]));
    series.push(dashed("2016: 16 KB", &[(10.0, 0.1), (200.0, 1.6)]));
    series.push(dashed("2016: 16 MB", &[(1.0, 0.5), (2_000.0, 0.5)]));
    Ok((times("First N trails", series), says))
}

fn random_trails(path: &Path) -> Result<(Chart, String), String> {
    let server = Server::start(path, "edits.tdb", FAR)?;
    let local = Reader::open(path).map_err(|e| e.to_string())?;
    let baseline = download(&server)?;
    let mut series = Vec::new();
    let mut crossing = None;
    for (name, way) in Way::ALL {
        let mut points = Vec::new();
        for count in TRAILS {
            let users = data::users(&local, count as usize, count).map_err(|e| e.to_string())?;
            let time = timed(|| ask(way, &server, &users))?;
            points.push((count as f64, time.as_secs_f64()));
            if matches!(way, Way::Adaptive) && time < baseline {
                crossing = Some(count);
            }
            if time > 3 * baseline {
                break;
            }
        }
        series.push(Series { name: name.to_owned(), dashed: false, points });
    }
    let says = format!(
        "N random users, asked for as one batch where the way has a plan. Download first takes {}; \
         adaptive is still faster with {} of them. In 2016 the download won from 20 to 30 on.",
        ms(baseline),
        crossing.map_or("none".to_owned(), |count| count.to_string())
    );
    series.push(flat("download first", baseline));
    series.push(dashed("2016: break-even", &[(25.0, 0.0), (25.0, 1.6)]));
    Ok((times("N random trails", series), says))
}

fn ask(way: Way, server: &Server, users: &[Uuid]) -> Result<(), String> {
    let pager = pager()?;
    let storage = way.open(&pager, source(server)?)?;
    let ask = || {
        let reader = Reader::new(storage)?;
        let trails: Vec<u64> = reader.trail_ids(users)?.into_iter().flatten().collect();
        reader.prefetch_trails(&trails)?;
        Ok::<_, traildb::Error>((reader, trails))
    };
    let (reader, trails) = ask().map_err(|e| e.to_string())?;
    decode(&reader, trails.into_iter()).map(drop)
}

fn cached_scan(path: &Path) -> Result<(Chart, String), String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    let memory = sources::Memory::new("cached", bytes.clone());
    let memory: Arc<dyn BlockSource> = Arc::new(memory);
    let whole = Reader::new(storage::Memory::new(bytes, "memory")).map_err(|e| e.to_string())?;
    let baseline = timed(|| decode(&whole, 0..whole.trails()).map(drop))?;
    let mut points = Vec::new();
    for shift in [12, 14, 16, 18, 20, 21] {
        let unit = 1u64 << shift;
        let time = timed(|| {
            let pager = pager()?;
            let storage = Way::Touch(unit).open(&pager, memory.clone())?;
            let reader = Reader::new(storage).map_err(|e| e.to_string())?;
            decode(&reader, 0..reader.trails()).map(drop)
        })?;
        let overhead = (time.as_secs_f64() / baseline.as_secs_f64() - 1.0) * 100.0;
        points.push(((unit >> 10) as f64, overhead.max(0.0)));
    }
    let least = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let says = format!(
        "A scan that decodes everything, through page faults, from bytes that are on the machine \
         already, over the same scan of memory ({}). At best {least:.0} % more. In 2016: 10 to 15 % \
         with large blocks, and more with 4 to 16 KB.",
        ms(baseline)
    );
    let measured = Series { name: "page faults".to_owned(), dashed: false, points };
    let old = dashed("2016: large blocks", &[(4.0, 12.5), (2_048.0, 12.5)]);
    let chart = Chart {
        title: "Overhead of a fully cached scan".to_owned(),
        x: Axis { label: "unit, KiB", log: true },
        y: Axis { label: "% more time", log: false },
        series: vec![measured, old],
    };
    Ok((chart, says))
}

fn handles(path: &Path) -> Result<(Chart, String), String> {
    let server = Server::start(path, "edits.tdb", CAPPED)?;
    let len = path.metadata().map_err(|e| e.to_string())?.len();
    let mut points = Vec::new();
    for count in HANDLES {
        let time = timed(|| {
            let pager = pager()?;
            let open = || pager.open(source(&server)?).map_err(|e| e.to_string());
            let regions: Vec<Region> = (0..count).map(|_| open()).collect::<Result<_, _>>()?;
            read_shares(&regions, len)
        })?;
        points.push((count as f64, len as f64 / 1e6 / time.as_secs_f64()));
    }
    let says = format!(
        "MB/s with N handles, each reading its share, on a link of 400 MB/s at 90 MB/s per \
         connection: one handle reaches {:.0}. In 2016 a handle was a connection, and some 20 \
         filled 3.5 Gbit/s.",
        points[0].1
    );
    let measured = Series { name: "page faults".to_owned(), dashed: false, points };
    let old = dashed("2016: peak", &[(20.0, 437.5), (32.0, 437.5)]);
    let chart = Chart {
        title: "Bandwidth by number of handles".to_owned(),
        x: Axis { label: "handles", log: true },
        y: Axis { label: "MB/s", log: false },
        series: vec![measured, old],
    };
    Ok((chart, says))
}

/// Touches every page of the object, each handle its share, in parallel.
fn read_shares(regions: &[Region], len: u64) -> Result<(), String> {
    let share = len.div_ceil(regions.len() as u64);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(regions)
            .map(|(n, region): (u64, _)| {
                scope.spawn(move || {
                    let mapped = region.map().map_err(|e| e.to_string())?;
                    let (start, end) = (len.min(n * share), len.min((n + 1) * share));
                    let bytes = &mapped[start as usize..end as usize];
                    let sum = bytes.iter().step_by(4_096).map(|byte| u64::from(*byte)).sum::<u64>();
                    Ok::<u64, String>(std::hint::black_box(sum))
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a reader panicked".to_owned())??;
        }
        Ok(())
    })
}

fn times(title: &str, series: Vec<Series>) -> Chart {
    Chart {
        title: title.to_owned(),
        x: Axis { label: "trails", log: true },
        y: Axis { label: "seconds", log: false },
        series,
    }
}

fn flat(name: &str, time: Duration) -> Series {
    let seconds = time.as_secs_f64();
    let points = vec![(1.0, seconds), (2_000.0, seconds)];
    Series { name: name.to_owned(), dashed: false, points }
}

fn dashed(name: &str, points: &[(f64, f64)]) -> Series {
    Series { name: name.to_owned(), dashed: true, points: points.to_vec() }
}
