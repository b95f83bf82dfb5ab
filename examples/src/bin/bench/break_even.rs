//! How many random trails may be asked for, as one batch, until a download over one connection
//! wins?

use std::{path::Path, time::Duration};

use examples::{
    data, download,
    faults::Faulting,
    query,
    server::{Distance, Server},
};
use pager::{Hint, Pager};
use sources::Options;
use traildb::{Reader, Uuid};

use crate::measure::{self, median_wall, ms};

const DISTANCE: Distance = Distance { first_byte_ms: 30, rate: 90_000_000, link_rate: 0 };
/// What the first system of this kind reached on a database of 100 MB, at its best.
const ORIGINAL: usize = 30;

pub(crate) fn run(path: &Path, rounds: usize) -> Result<String, String> {
    let len = path.metadata().map_err(|e| e.to_string())?.len();
    let server = Server::start(path, "edits.tdb", DISTANCE)?;
    let reader = Reader::open(path).map_err(|e| e.to_string())?;
    let mut downloads = Vec::new();
    for _ in 0..rounds {
        downloads.push(measure::cost(|| download_and_ask(&server, &[]))?.1);
    }
    let download = median_wall(&downloads);
    eprintln!("  a download takes {}", ms(download));

    // Twice as many until the download wins, then between the last two.
    let time = |count: usize| -> Result<Duration, String> {
        let mut costs = Vec::new();
        for round in 0..3 {
            let users = data::users(&reader, count, round).map_err(|e| e.to_string())?;
            costs.push(measure::cost(|| ask(&server, &users))?.1);
        }
        let time = median_wall(&costs);
        eprintln!("  {count} trails take {}", ms(time));
        Ok(time)
    };
    let most = reader.trails() as usize;
    let (mut wins, mut loses, mut rows) = (0, 1, String::new());
    loop {
        let took = time(loses)?;
        rows += &format!("| {loses} | {} |\n", ms(took));
        if took >= download || loses >= most {
            break;
        }
        (wins, loses) = (loses, (loses * 2).min(most));
    }
    for _ in 0..4 {
        let middle = (wins + loses) / 2;
        if middle == wins {
            break;
        }
        match time(middle)? < download {
            true => wins = middle,
            false => loses = middle,
        }
    }
    Ok(format!(
        "{:.0} MB; a download over one connection takes {} (median of {rounds}). Random trails, asked \
         for as one batch, events and values decoded (medians of 3):\n\n\
         | trails | wall |\n| --- | --- |\n{rows}\n\
         | figure | measured | aim |\n| --- | --- | --- |\n\
         | most trails that beat the download | {wins} | at least {} |\n",
        len as f64 / 1e6,
        ms(download),
        10 * ORIGINAL,
    ))
}

fn ask(server: &Server, users: &[Uuid]) -> Result<(), String> {
    let pager = Pager::builder().budget_bytes(512 << 20).build().map_err(|e| e.to_string())?;
    let source = Options::default().open(server.url()).map_err(|e| e.to_string())?;
    let region = pager.open(source).map_err(|e| e.to_string())?;
    region.advise(Hint::Random).map_err(|e| e.to_string())?;
    let storage = Faulting::new(region).map_err(|e| e.to_string())?;
    query::events_of(|| Reader::new(storage), users).map(drop).map_err(|e| e.to_string())
}

fn download_and_ask(server: &Server, users: &[Uuid]) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
    let mut file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    let source = Options::default().open(server.url()).map_err(|e| e.to_string())?;
    runtime.block_on(download::one_connection(&*source, file.as_file_mut(), |_| {}))?;
    query::events_of(|| Reader::open(file.path()), users).map(drop).map_err(|e| e.to_string())
}
