//! How long from open to all events, values decoded, of ten named users, 30 ms away?

use std::time::Duration;

use examples::{
    data, download,
    faults::Faulting,
    measure::{self, Cost, cpu, median, ms, wall},
    needed, query,
    report::{Aim, Goal, Section},
    server::{Distance, Server},
    timeline::Timeline,
};
use pager::Pager;
use sources::{Options, Traffic};
use traildb::{Reader, Uuid};

use crate::Setup;

const USERS: usize = 10;
const UNIT_BYTES: u64 = 64 << 10;
const DISTANCE: Distance = Distance { first_byte_ms: 30, rate: 90_000_000, link_rate: 0 };
/// Round trips that the answer may take: four to the first event, two more to the values.
const ROUND_TRIPS: u64 = 6;
/// A download takes twelve seconds and varies little: one in so many rounds.
const ROUNDS_PER_DOWNLOAD: usize = 4;

pub(crate) fn run(setup: &Setup) -> Result<Section, String> {
    let path = setup.large()?;
    let len = path.metadata().map_err(|e| e.to_string())?.len();
    let server = Server::start(&path, "edits.tdb", DISTANCE)?;
    let reader = Reader::open(&path).map_err(|e| e.to_string())?;
    let (mut asked, mut one, mut many) = (vec![], vec![], vec![]);
    for round in 0..setup.rounds {
        let users = data::users(&reader, USERS, round as u64).map_err(|e| e.to_string())?;
        let needed = needed::bytes(&path, &users, UNIT_BYTES)?;
        let answer = ask(&server, &users, needed)?;
        eprintln!(
            "  {} events, {needed} bytes needed: {}, {:.2} of the bound",
            answer.events,
            ms(answer.cost.wall),
            answer.bound()
        );
        asked.push(answer);
        if round % ROUNDS_PER_DOWNLOAD == 0 {
            one.push(fetch(&server, false)?);
            many.push(fetch(&server, true)?);
            eprintln!(
                "  downloads: {}, {}",
                ms(one[one.len() - 1].wall),
                ms(many[many.len() - 1].wall)
            );
        }
    }

    let costs: Vec<Cost> = asked.iter().map(|answer| answer.cost).collect();
    let times = |other: &[Cost]| wall(other).as_secs_f64() / wall(&costs).as_secs_f64();
    let of = |what: fn(&Answer) -> u64| median(&asked.iter().map(what).collect::<Vec<_>>());
    let bound = median(&asked.iter().map(Answer::bound).collect::<Vec<_>>());
    let worst = asked.iter().map(Answer::bound).fold(0.0, f64::max);
    let middle = asked.iter().min_by(|a, b| {
        let off = |answer: &Answer| (answer.bound() - bound).abs();
        off(a).total_cmp(&off(b))
    });
    let connections = download::CONNECTIONS;
    let goals = vec![
        Goal::new(
            format!(
                "wall / ({ROUND_TRIPS} x {} ms + needed / rate), median",
                DISTANCE.first_byte_ms
            ),
            bound,
            Aim::AtMost(1.3),
        ),
        Goal::new("the same, worst round", worst, Aim::None),
        Goal::new("download over one connection / wall", times(&one), Aim::AtLeast(40.0)),
        Goal::new(
            format!("download over {connections} connections / wall"),
            times(&many),
            Aim::None,
        ),
    ];
    let body = format!(
        "{:.0} MB, {} trails, {} events; 30 ms to the first byte, 90 MB/s per connection. Each round \
         opens a new pager with new connections and asks for {USERS} other users, in one batch for \
         each stage; every value of every event becomes text. Needed are header, fields, codebook, \
         and the units of {} KiB that hold each user's UUID, toc, trail and values. Medians of {} \
         rounds, processor time as means; {} downloads among them, into a file.\n\n\
         | | wall | CPU | GETs | bytes |\n| --- | --- | --- | --- | --- |\n\
         | page faults | {} | {} | {} | {} |\n\
         | needed | | | | {} |\n\
         | download, one connection | {} | {} | 1 | {len} |\n\
         | download, {connections} connections | {} | {} | {} | {len} |\n\n\
         The first such system answered 16 times as fast as a download of 100 MB.\n\n\
         Requests of a round in the middle, in round trips that follow each other ({} to open, {} \
         to find the users, {} to decode the events, {} to the values):\n\n{}",
        len as f64 / 1e6,
        reader.trails(),
        reader.events(),
        UNIT_BYTES >> 10,
        asked.len(),
        one.len(),
        ms(wall(&costs)),
        ms(cpu(&costs)),
        of(|answer| answer.gets),
        of(|answer| answer.bytes),
        of(|answer| answer.needed),
        ms(wall(&one)),
        ms(cpu(&one)),
        ms(wall(&many)),
        ms(cpu(&many)),
        len.div_ceil(download::PART_BYTES),
        ms(middle.map_or(Duration::ZERO, |answer| answer.stages.opened)),
        ms(middle.map_or(Duration::ZERO, |answer| answer.stages.found)),
        ms(middle.map_or(Duration::ZERO, |answer| answer.stages.decoded)),
        ms(middle.map_or(Duration::ZERO, |answer| answer.stages.answered)),
        middle.map_or(String::new(), |answer| answer.timeline.markdown()),
    );
    Ok(Section {
        name: "needle",
        title: "2. Needle",
        question: "How long from open to all events, values decoded, of ten named users, in a \
                   database of about 1 GB in an S3 that is 30 ms away?",
        body,
        goals,
    })
}

struct Answer {
    cost: Cost,
    stages: query::Stages,
    events: usize,
    gets: u64,
    bytes: u64,
    needed: u64,
    timeline: Timeline,
}

impl Answer {
    /// The wall time, of what round trips and needed bytes must take over one connection.
    fn bound(&self) -> f64 {
        let trips = (ROUND_TRIPS * DISTANCE.first_byte_ms) as f64 / 1e3;
        self.cost.seconds() / (trips + self.needed as f64 / DISTANCE.rate as f64)
    }
}

fn ask(server: &Server, users: &[Uuid], needed: u64) -> Result<Answer, String> {
    let traffic = Traffic::default();
    let timeline = Timeline::default();
    let (answer, cost) = measure::cost(|| {
        let pager = Pager::builder().budget_bytes(256 << 20).unit_bytes(UNIT_BYTES).build();
        let pager = pager.map_err(|e| e.to_string())?;
        let source = Options::default().traffic(traffic.clone()).open(server.url());
        let source = timeline.watch(source.map_err(|e| e.to_string())?);
        let region = pager.open(source).map_err(|e| e.to_string())?;
        let storage = Faulting::new(region).map_err(|e| e.to_string())?;
        query::events_of(|| Reader::new(storage), users).map_err(|e| e.to_string())
    })?;
    let count = traffic.count();
    Ok(Answer {
        cost,
        stages: answer.stages,
        events: answer.events(),
        gets: count.gets,
        bytes: count.bytes,
        needed,
        timeline,
    })
}

/// Downloads the object into a file that has no name.
fn fetch(server: &Server, parallel: bool) -> Result<Cost, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|e| e.to_string())?;
    let mut file = tempfile::tempfile().map_err(|e| e.to_string())?;
    let source = Options::default().open(server.url()).map_err(|e| e.to_string())?;
    let (_, cost) = measure::cost(|| {
        runtime.block_on(async {
            match parallel {
                false => download::one_connection(&*source, &mut file, |_| {}).await,
                true => download::parallel(source.clone(), &file, |_| {}).await,
            }
        })
    })?;
    Ok(cost)
}
