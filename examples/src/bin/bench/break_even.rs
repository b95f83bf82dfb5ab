//! How many random trails may be asked for, as one batch, until a download over one connection
//! wins?

use examples::{
    data, download,
    faults::Faulting,
    measure::{self, Cost, cpu, ms, ratio, wall},
    query,
    report::{Aim, Goal, Section},
    server::{Distance, Server},
};
use pager::{Hint, Pager};
use sources::Options;
use traildb::{Reader, Uuid};

use crate::Setup;

const DISTANCE: Distance = Distance { first_byte_ms: 30, rate: 90_000_000, link_rate: 0 };
/// What the first system of this kind reached on a database of 100 MB, at its best.
const ORIGINAL: usize = 30;
/// Ten times as many are the aim.
const AIM: usize = 10 * ORIGINAL;
/// Runs at each number of trails on the way to the crossing.
const RUNS: u64 = 3;

pub(crate) fn run(setup: &Setup) -> Result<Section, String> {
    let path = setup.small()?;
    let len = path.metadata().map_err(|e| e.to_string())?.len();
    let server = Server::start(&path, "edits.tdb", DISTANCE)?;
    let reader = Reader::open(&path).map_err(|e| e.to_string())?;
    let users = |count, seed| data::users(&reader, count, seed).map_err(|e| e.to_string());

    let (mut batches, mut downloads): (Vec<Cost>, Vec<Cost>) = (vec![], vec![]);
    for round in 0..setup.rounds {
        let users = users(AIM, round as u64)?;
        let (answer, cost) = measure::cost(|| ask(&server, &users))?;
        batches.push(cost);
        let (same, cost) = measure::cost(|| download_and_ask(&server, &users))?;
        downloads.push(cost);
        if answer != same {
            return Err("page faults and the downloaded file answer differently".to_owned());
        }
    }
    let download = wall(&downloads);
    let at_aim = ratio(&batches, &downloads);
    eprintln!("  {AIM} trails: {}, a download: {}", ms(wall(&batches)), ms(download));

    // Twice as many until the download wins, then between the last two.
    let mut rows = Vec::new();
    let mut beats = |count: usize| -> Result<bool, String> {
        let mut costs = Vec::new();
        for seed in 0..RUNS {
            let users = users(count, seed)?;
            costs.push(measure::cost(|| ask(&server, &users))?.1);
        }
        eprintln!("  {count} trails: {}", ms(wall(&costs)));
        rows.push((count, wall(&costs), cpu(&costs)));
        Ok(wall(&costs) < download)
    };
    let most = reader.trails() as usize;
    let (mut wins, mut loses) = (0, 1);
    while beats(loses)? && loses < most {
        (wins, loses) = (loses, (loses * 2).min(most));
    }
    for _ in 0..4 {
        let middle = (wins + loses) / 2;
        if middle == wins {
            break;
        }
        match beats(middle)? {
            true => wins = middle,
            false => loses = middle,
        }
    }
    rows.sort_unstable();
    let row = |(count, wall, cpu): &(usize, _, _)| {
        format!("| {count} | {} | {} |\n", ms(*wall), ms(*cpu))
    };
    let rows: String = rows.iter().map(row).collect();
    let body = format!(
        "{:.0} MB, {} trails; 30 ms to the first byte, 90 MB/s per connection. The trails are \
         chosen at random, other ones in each run, and asked for by UUID as one batch; events and \
         values are decoded. The download goes over one connection into a file, which is asked the \
         same: {} ({} CPU), against {} ({} CPU) for {AIM} trails through page faults, medians of {} \
         pairs in turn. The rest are medians of {RUNS}:\n\n\
         | trails | wall | CPU |\n| --- | --- | --- |\n{rows}\n\
         The first such system broke even at 20 to {ORIGINAL} trails of 100 MB.",
        len as f64 / 1e6,
        reader.trails(),
        ms(download),
        ms(cpu(&downloads)),
        ms(wall(&batches)),
        ms(cpu(&batches)),
        setup.rounds,
    );
    let goals = vec![
        Goal::new(
            "most random trails that beat the download",
            wins as f64,
            Aim::AtLeast(AIM as f64),
        ),
        Goal::new(format!("{AIM} random trails / download"), at_aim, Aim::AtMost(1.0)),
    ];
    Ok(Section {
        name: "break_even",
        title: "4. Break-even",
        question: "How many random trails of a database of 100 MB may be asked for, as one batch, \
                   until a download over one connection wins?",
        body,
        goals,
    })
}

fn ask(server: &Server, users: &[Uuid]) -> Result<Vec<query::User>, String> {
    let pager = Pager::builder().budget_bytes(512 << 20).build().map_err(|e| e.to_string())?;
    let source = Options::default().open(server.url()).map_err(|e| e.to_string())?;
    let region = pager.open(source).map_err(|e| e.to_string())?;
    region.advise(Hint::Random).map_err(|e| e.to_string())?;
    let storage = Faulting::new(region).map_err(|e| e.to_string())?;
    let answer = query::events_of(|| Reader::new(storage), users);
    Ok(answer.map_err(|e| e.to_string())?.users)
}

fn download_and_ask(server: &Server, users: &[Uuid]) -> Result<Vec<query::User>, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
    let mut file = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    let source = Options::default().open(server.url()).map_err(|e| e.to_string())?;
    runtime.block_on(download::one_connection(&*source, file.as_file_mut(), |_| {}))?;
    let answer = query::events_of(|| Reader::open(file.path()), users);
    Ok(answer.map_err(|e| e.to_string())?.users)
}
