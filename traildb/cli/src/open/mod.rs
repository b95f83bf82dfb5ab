//! A path or a URL to an open database.
//!
//! ```text
//!   path ------> file map                        (a directory: one map per member)
//!   URL -------> source --> pager --> region     (ending in `/`: one region per member)
//! ```

pub(crate) mod expand; // one name for many databases
pub(crate) mod side; // the index beside a database
mod recording; // what is read, for extmem replay
mod store; // a mapped file, or fetched as needed

use std::{
    ffi::OsStr, io, panic::resume_unwind, path::Path, sync::OnceLock, thread, time::Instant,
};

use pager::{Builder, ConfigError, Pager, Preset, Region, RegionStats, SourceError};
use sources::{
    Traffic,
    expand::{is_url, without_options, without_secrets},
    monitor::Monitor,
    traffic::TrafficCount,
};
use traildb::{Reader, Storage};

use self::recording::Recording;
pub(crate) use self::store::Store;
use crate::{bytes, failure::Failure};

/// The URL that an input is, unless it is a path.
pub(crate) fn url_of(input: &OsStr) -> Option<&str> {
    input.to_str().filter(|input| is_url(input))
}

/// A path or a URL as people may see it.
pub(crate) fn shown(input: &OsStr) -> String {
    without_secrets(&input.to_string_lossy())
}

/// How databases are read.
#[derive(clap::Args)]
pub(crate) struct Reading {
    /// For URLs: the most memory that fetched bytes may take, over all inputs; at least 36 units and
    /// what keeps account of them, 2432KiB of 64KiB each. What also has a `--memory` takes no more than
    /// a quarter of that.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = bytes::parse)]
    budget: u64,

    /// For URLs: what is fetched and dropped as one, a power of two from 4KiB to 2MiB. Default: what
    /// the preset says, else 64KiB.
    #[arg(long, value_name = "SIZE", value_parser = bytes::parse)]
    unit: Option<u64>,

    /// For URLs: what to care about most, `latency`, `throughput` or `frugal` (the fewest requests).
    #[arg(long)]
    preset: Option<Preset>,

    /// For URLs: reads through page faults instead of pinned loads. A source that fails then ends
    /// the process with SIGBUS.
    #[arg(long)]
    map: bool,
}

impl Reading {
    /// A pager's options, but for the budget.
    fn builder(&self, budget: u64) -> Builder {
        let mut builder = Pager::builder().budget_bytes(budget);
        if let Some(preset) = self.preset {
            builder = builder.preset(preset);
        }
        match self.unit {
            Some(unit) => builder.unit_bytes(unit),
            None => builder,
        }
    }
}

/// What is fetched as one, in bytes.
fn unit_of(builder: &Builder) -> u64 {
    builder.plan().map_or(64 << 10, |plan| plan.unit_bytes())
}

/// Opens databases, all under one memory budget.
pub(crate) struct Opener<'r> {
    reading: &'r Reading,
    /// Which indexes are used, if the command uses any.
    index: Option<&'r side::Args>,
    /// The most memory for bytes that are fetched, whatever the budget.
    fetched_max: u64,
    /// Made for the first URL.
    pager: OnceLock<Pager>,
    /// Made with it.
    recording: OnceLock<Recording>,
    /// The same: for `extmem top`.
    seen: OnceLock<Option<Monitor>>,
    sources: sources::Options,
    traffic: Traffic,
    began: Instant,
}

/// The storage of a database in the package form, or what opens the members of a directory.
pub(crate) enum Parts {
    Package(Store),
    Directory { name: String, open: OpenMember },
}

type OpenMember = Box<dyn FnMut(&str) -> io::Result<Option<Store>>>;

impl<'r> Opener<'r> {
    pub(crate) fn new(
        reading: &'r Reading,
        index: Option<&'r side::Args>,
        fetched_max: u64,
        cost: &Cost,
    ) -> Opener<'r> {
        let Cost { traffic, began } = cost.clone();
        let sources = sources::Options::default().traffic(traffic.clone());
        let (pager, recording) = (OnceLock::new(), OnceLock::new());
        let seen = OnceLock::new();
        Opener { reading, index, fetched_max, pager, recording, seen, sources, traffic, began }
    }

    /// Requests so far, over all databases.
    pub(crate) fn traffic(&self) -> TrafficCount {
        self.traffic.count()
    }

    /// When opening began.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Opens the database at a path or URL, with its index if that is used.
    pub(crate) fn open(&self, input: &OsStr) -> Result<Reader<Store>, Failure> {
        let open = || match self.parts(input)? {
            Parts::Package(store) => Ok(Reader::new(store)?),
            Parts::Directory { name, mut open } => {
                let mut is_empty = true;
                let reader = Reader::open_directory(|member| {
                    let store = open(member)?;
                    is_empty &= store.is_none();
                    Ok(store)
                });
                reader.map_err(|error| in_directory(&name, is_empty, error))
            }
        };
        if self.index.is_none() {
            return open();
        }
        // Far away, the index is asked for at the same time.
        let (found, reader) = thread::scope(|scope| {
            let is_far = url_of(input).is_some();
            let found = is_far.then(|| scope.spawn(|| self.find_index(input)));
            let reader = open();
            let found = match found {
                None => self.find_index(input),
                Some(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            };
            (found, reader)
        });
        let mut reader = reader?;
        Opener::attach(found?, &mut reader)?;
        Ok(reader)
    }

    /// What this command knows of an open database.
    pub(crate) fn database<'d>(&self, name: &'d str, reader: &'d Reader<Store>) -> Database<'d> {
        let unit = unit_of(&self.builder());
        let plan_units = (self.budget() / 8 / unit).clamp(4, 1 << 16);
        Database { name, reader, plan_units, unit }
    }

    /// The storage of the database at a path or URL.
    pub(crate) fn parts(&self, input: &OsStr) -> Result<Parts, Failure> {
        match url_of(input) {
            _ if input == "-" => {
                let text = "a database is read out of order, so it cannot come from stdin";
                Err(Failure::Usage(text.to_owned()))
            }
            Some(url) => self.of_url(url),
            None => of_path(Path::new(input)),
        }
    }

    /// The region of the object at a URL.
    fn region(&self, url: &str) -> Result<Store, pager::Error> {
        open_region(&self.pager()?, &self.sources, self.reading.map, url)
    }

    fn builder(&self) -> Builder {
        self.reading.builder(self.budget())
    }

    /// The most memory that fetched bytes may take, over all inputs.
    pub(crate) fn budget(&self) -> u64 {
        let budget = self.reading.budget;
        if budget <= self.fetched_max {
            return budget;
        }
        match self.reading.builder(self.fetched_max).plan() {
            // With less a pager does not start.
            Err(ConfigError::Budget { needed, .. }) => budget.min(needed),
            _ => self.fetched_max,
        }
    }

    /// The pager that all regions share.
    fn pager(&self) -> Result<Pager, pager::Error> {
        if let Some(pager) = self.pager.get() {
            return Ok(pager.clone());
        }
        let recording = self.recording.get_or_init(Recording::start);
        let pager = recording.apply(self.builder()).build()?;
        let pager = self.pager.get_or_init(|| pager);
        self.seen.get_or_init(|| Monitor::of_environment(pager));
        Ok(pager.clone())
    }

    fn of_url(&self, url: &str) -> Result<Parts, Failure> {
        let Some(urls) = MemberUrls::of(url) else {
            return Ok(Parts::Package(self.region(url)?));
        };
        let pager = self.pager()?;
        let (sources, map) = (self.sources.clone(), self.reading.map);
        let open = move |name: &str| match open_region(&pager, &sources, map, &urls.of_member(name))
        {
            Ok(store) => Ok(Some(store)),
            Err(pager::Error::Source(SourceError::NotFound { .. })) => Ok(None),
            Err(error) => Err(error.into()),
        };
        let name = without_secrets(url);
        Ok(Parts::Directory { name, open: Box::new(open) })
    }
}

fn open_region(
    pager: &Pager,
    sources: &sources::Options,
    map: bool,
    url: &str,
) -> Result<Store, pager::Error> {
    let region = pager.open(sources.open(url)?)?;
    Ok(match map {
        true => Store::Mapped(region.map()?, region),
        false => Store::Region(region),
    })
}

fn of_path(path: &Path) -> Result<Parts, Failure> {
    let path = traildb::existing(path);
    let failed = |error| Failure::file(&path, error);
    if !path.metadata().map_err(failed)?.is_dir() {
        return Ok(Parts::Package(Store::map(&path).map_err(failed)?));
    }
    let name = path.display().to_string();
    let open = move |member: &str| match Store::map(&path.join(member)) {
        Ok(store) => Ok(Some(store)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    Ok(Parts::Directory { name, open: Box::new(open) })
}

/// The URLs of the members of a database in the directory form.
struct MemberUrls {
    directory: String,
    /// The query, the options: everything behind the path.
    rest: String,
}

impl MemberUrls {
    /// `None` if `url` names one object: its path does not end in `/`.
    fn of(url: &str) -> Option<MemberUrls> {
        let (directory, rest) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
        let (directory, rest) = (directory.to_owned(), rest.to_owned());
        directory.ends_with('/').then_some(MemberUrls { directory, rest })
    }

    fn of_member(&self, name: &str) -> String {
        // Names consist of letters, digits, `_`, `-`, `.` and `%`; only the last means something.
        format!("{}{}{}", self.directory, name.replace('%', "%25"), self.rest)
    }
}

/// The error of a directory: a member that is not there cannot say where it is not. Of one that `is_empty`
/// no member was found at all.
fn in_directory(directory: &str, is_empty: bool, error: traildb::Error) -> Failure {
    if is_empty && matches!(error, traildb::Error::Damaged { .. }) {
        let text = format!("{directory}: there is no database: none of the files of one is in it");
        return Failure::Failed(text);
    }
    let text = error.to_string();
    match text.contains(directory) {
        true => error.into(),
        false => Failure::Failed(format!("{directory}: {text}")),
    }
}

/// What reading has cost so far, over all attempts of a command.
#[derive(Clone)]
pub(crate) struct Cost {
    traffic: Traffic,
    began: Instant,
}

impl Cost {
    /// Nothing yet.
    pub(crate) fn none() -> Cost {
        Cost { traffic: Traffic::default(), began: Instant::now() }
    }
}

/// An open database, and what is counted about it.
#[derive(Clone, Copy)]
pub(crate) struct Database<'d> {
    /// Its path or URL, as people may see it.
    pub(crate) name: &'d str,
    pub(crate) reader: &'d Reader<Store>,
    /// Units that one plan may ask for. What is planned is fetched as speculation, which has a
    /// quarter of the budget; half of that, so that a plan does not push out the one before it.
    pub(crate) plan_units: u64,
    /// Bytes of a unit.
    pub(crate) unit: u64,
}

impl Database<'_> {
    /// Regions of the database and of its index.
    fn regions(&self) -> impl Iterator<Item = &Region> {
        let index = self.reader.index().map(|index| index.storage());
        self.reader.storages().iter().chain(index).filter_map(Store::region)
    }

    /// Whether bytes come from a pager, so that planning pays.
    pub(crate) fn is_remote(&self) -> bool {
        self.regions().next().is_some()
    }

    /// Bytes of the database.
    pub(crate) fn bytes(&self) -> u64 {
        self.reader.storages().iter().map(|store| store.len()).sum()
    }

    /// Adds what the regions have counted.
    pub(crate) fn add_region_stats(&self, sum: &mut RegionStats) {
        for stats in self.regions().map(Region::stats) {
            sum.faults += stats.faults + stats.marker_faults;
            sum.loads += stats.loads;
            sum.load_hits += stats.load_hits;
            sum.prefetched += stats.prefetched;
            sum.prefetch_unused += stats.prefetch_unused;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However little is left for what is fetched, it is enough to start.
    #[test]
    fn a_part_of_the_memory_is_a_budget() {
        for (unit, preset) in
            [(None, None), (Some(2 << 20), None), (None, Some(Preset::Throughput))]
        {
            let reading = Reading { budget: 256 << 20, unit, preset, map: false };
            for fetched_max in [1 << 20, 16 << 20, 64 << 20] {
                let opener = Opener::new(&reading, None, fetched_max, &Cost::none());
                let budget = opener.budget();
                assert!(opener.builder().plan().is_ok(), "{budget} bytes in units of {unit:?}");
                assert!(budget <= fetched_max.max(80 << 20), "{budget} bytes");
            }
        }
    }

    /// Twelve databases that are open at once, each larger than the budget: they are regions of one pager,
    /// and whatever is read of them, it never holds more than that.
    #[test]
    fn all_databases_are_read_under_one_budget() {
        const BUDGET: u64 = 3 << 20;
        const VALUES: u64 = 12_000;
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let at = |n: u64| directory.path().join(format!("{n}.tdb"));
        let mut builder = traildb::Builder::new(&["a"]).expect("a good name");
        for n in 0..VALUES {
            let value = format!("{:020}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).repeat(15);
            builder.add(traildb::Uuid::default(), n, &[value]).expect("a good event");
        }
        let written = builder.finish(at(0)).expect("a database");
        assert!(written.bytes > BUDGET, "{} bytes", written.bytes);
        (1..12).for_each(|n| std::fs::hard_link(at(0), at(n)).expect("the same disk"));
        let reading = Reading { budget: BUDGET, unit: None, preset: None, map: false };
        let opener = Opener::new(&reading, None, u64::MAX, &Cost::none());
        let open = |n: u64| opener.open(format!("file://{}", at(n).display()).as_ref());
        let open: Vec<Reader<Store>> = (0..12).map(|n| open(n).expect("sound")).collect();
        thread::scope(|scope| {
            for half in open.chunks(6) {
                scope.spawn(move || {
                    for number in 1..=VALUES {
                        for reader in half {
                            let value = reader.value(traildb::Item::new(1, number)).expect("there");
                            assert_eq!(value.len(), 300);
                        }
                    }
                });
            }
        });
        let pager = opener.pager().expect("made for the first");
        assert_eq!(pager.regions().len(), 12, "all are of one pager");
        let regions = open.iter().flat_map(Reader::storages).filter_map(Store::region);
        let fetched: u64 = regions.map(|region| region.stats().bytes_fetched).sum();
        let peak = pager.budget().peak();
        assert!(fetched > 12 * BUDGET, "{fetched} bytes were fetched");
        assert!((BUDGET / 2..=BUDGET).contains(&peak), "{peak} bytes at a time");
    }

    #[test]
    fn members_of_a_directory() {
        let cases = [
            ("s3://b/k", "info", None),
            ("s3://b/k?region=x", "info", None),
            ("http://h/p?dir=/", "info", None),
            ("s3://b/k/", "info", Some("s3://b/k/info")),
            ("s3://b/k/?region=x", "lexicon.a", Some("s3://b/k/lexicon.a?region=x")),
            ("http://h/k/#extmem:retries=1", "a%b", Some("http://h/k/a%25b#extmem:retries=1")),
        ];
        for (url, name, expected) in cases {
            let got = MemberUrls::of(url).map(|urls| urls.of_member(name));
            assert_eq!(got.as_deref(), expected, "{url} {name}");
        }
    }
}
