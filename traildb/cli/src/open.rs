//! A path or a URL to an open database.
//!
//! ```text
//!   path ------> file map                        (a directory: one map per member)
//!   URL -------> source --> pager --> region     (ending in `/`: one region per member)
//! ```

use std::{
    fs, io,
    ops::{Deref, Range},
    path::Path,
    time::Instant,
};

use memmap2::Mmap;
use pager::{Guard, Mapped, Pager, Region, RegionStats, SourceError};
use sources::{Traffic, traffic::TrafficCount};
use traildb::{Reader, Storage, storage::Memory};

use crate::{bytes, failure::Failure};

/// Where a database is, and how much memory its bytes may take.
#[derive(clap::Args)]
pub(crate) struct Input {
    /// The database: a file, a directory, or a URL: s3://bucket/key, https://host/path,
    /// file:///path. If there is nothing at a path, PATH.tdb is tried. A URL of a database in the
    /// directory form ends in `/`. Options stand behind a `?`, as in s3://bucket/key?region=x.
    #[arg(short, long, value_name = "PATH|URL", default_value = "a")]
    input: String,

    /// For a URL: the most memory that fetched bytes may take; at least 32 units.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = bytes::parse)]
    budget: u64,

    /// For a URL: what is fetched and dropped as one, a power of two from 4KiB to 2MiB.
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = bytes::parse)]
    unit: u64,

    /// For a URL: reads through page faults instead of pinned loads. A source that fails then ends
    /// the process with SIGBUS.
    #[arg(long)]
    map: bool,
}

/// An open database, and what is counted about it.
pub(crate) struct Database {
    pub(crate) reader: Reader<Store>,
    /// Units that one plan may ask for. What is planned is fetched as speculation, which has a
    /// quarter of the budget; half of that, so that a plan does not push out the one before it.
    pub(crate) plan_units: u64,
    /// Bytes of a unit.
    pub(crate) unit: u64,
    traffic: Traffic,
    opened_at: Instant,
}

impl Input {
    /// Opens the database.
    pub(crate) fn open(&self) -> Result<Database, Failure> {
        let opened_at = Instant::now();
        let traffic = Traffic::default();
        let reader = match self.input.as_str() {
            "-" => {
                let text = "a database is read out of order, so it cannot come from stdin";
                return Err(Failure::Usage(text.to_owned()));
            }
            url if is_url(url) => self.open_url(&traffic)?,
            path => open_path(Path::new(path))?,
        };
        let unit = self.unit.max(1);
        let plan_units = (self.budget / 8 / unit).clamp(4, 1 << 16);
        Ok(Database { reader, plan_units, unit, traffic, opened_at })
    }

    fn open_url(&self, traffic: &Traffic) -> Result<Reader<Store>, Failure> {
        let pager = Pager::builder().budget_bytes(self.budget).unit_bytes(self.unit).build()?;
        let sources = sources::Options::default().traffic(traffic.clone());
        let open = |url: &str| -> Result<Store, pager::Error> {
            let region = pager.open(sources.open(url)?)?;
            Ok(match self.map {
                true => Store::Mapped(region.map()?, region),
                false => Store::Region(region),
            })
        };
        let Some(urls) = MemberUrls::of(&self.input) else {
            return Ok(Reader::new(open(&self.input)?)?);
        };
        let opened = Reader::open_directory(|name| match open(&urls.of_member(name)) {
            Ok(store) => Ok(Some(store)),
            Err(pager::Error::Source(SourceError::NotFound { .. })) => Ok(None),
            Err(error) => Err(error.into()),
        });
        // Not the URL as it was given: it may hold a password or a signature.
        opened.map_err(|error| in_directory("the database in the directory form", error))
    }
}

/// Whether `input` is a URL rather than a path.
fn is_url(input: &str) -> bool {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    };
    input.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme))
}

/// The URLs of the members of a database in the directory form.
struct MemberUrls<'a> {
    directory: &'a str,
    /// The query, the options: everything behind the path.
    rest: &'a str,
}

impl MemberUrls<'_> {
    /// `None` if `url` names one object: its path does not end in `/`.
    fn of(url: &str) -> Option<MemberUrls<'_>> {
        let (directory, rest) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
        directory.ends_with('/').then_some(MemberUrls { directory, rest })
    }

    fn of_member(&self, name: &str) -> String {
        // Names consist of letters, digits, `_`, `-`, `.` and `%`; only the last means something.
        format!("{}{}{}", self.directory, name.replace('%', "%25"), self.rest)
    }
}

fn open_path(path: &Path) -> Result<Reader<Store>, Failure> {
    let path = traildb::existing(path);
    let failed = |error| Failure::file(&path, error);
    if !path.metadata().map_err(failed)?.is_dir() {
        return Ok(Reader::new(map(&path).map_err(failed)?)?);
    }
    let opened = Reader::open_directory(|name| match map(&path.join(name)) {
        Ok(store) => Ok(Some(store)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    });
    opened.map_err(|error| in_directory(&path.display().to_string(), error))
}

/// The error of a directory: a member that is not there cannot say where it is not.
fn in_directory(directory: &str, error: traildb::Error) -> Failure {
    let text = error.to_string();
    match text.contains(directory) {
        true => error.into(),
        false => Failure::Failed(format!("{directory}: {text}")),
    }
}

#[expect(unsafe_code, reason = "mapping a file assumes something about everybody else")]
fn map(path: &Path) -> io::Result<Store> {
    // Asked first: opening a pipe would wait for somebody to write to it.
    if !path.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let file = fs::File::open(path)?;
    // SAFETY: assumes that nobody rewrites or shortens the file; databases are written once.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Store::Map(Memory::new(map, path.display().to_string())))
}

impl Database {
    fn regions(&self) -> impl Iterator<Item = &Region> {
        self.reader.storages().iter().filter_map(Store::region)
    }

    /// Whether bytes come from a pager, so that planning pays.
    pub(crate) fn is_remote(&self) -> bool {
        self.regions().next().is_some()
    }

    /// When opening began.
    pub(crate) fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// Bytes of the database.
    pub(crate) fn bytes(&self) -> u64 {
        self.reader.storages().iter().map(|store| store.len()).sum()
    }

    /// Requests so far.
    pub(crate) fn traffic(&self) -> TrafficCount {
        self.traffic.count()
    }

    /// What the regions have counted, in sum.
    pub(crate) fn region_stats(&self) -> RegionStats {
        let mut sum = RegionStats::default();
        for stats in self.regions().map(Region::stats) {
            sum.faults += stats.faults + stats.marker_faults;
            sum.loads += stats.loads;
            sum.load_hits += stats.load_hits;
            sum.prefetched += stats.prefetched;
            sum.prefetch_unused += stats.prefetch_unused;
        }
        sum
    }
}

/// The bytes of a database, or of one member: a mapped file, or fetched as needed.
pub(crate) enum Store {
    Map(Memory<Mmap>),
    Region(Region),
    Mapped(Mapped, Region),
}

impl Store {
    fn region(&self) -> Option<&Region> {
        match self {
            Store::Map(_) => None,
            Store::Region(region) | Store::Mapped(_, region) => Some(region),
        }
    }
}

/// Bytes that stay put.
pub(crate) enum Held<'a> {
    Slice(&'a [u8]),
    Pinned(Guard<'a>),
}

impl Deref for Held<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Held::Slice(bytes) => bytes,
            Held::Pinned(guard) => guard,
        }
    }
}

impl Storage for Store {
    type Bytes<'a> = Held<'a>;

    fn len(&self) -> u64 {
        match self {
            Store::Map(map) => map.len(),
            Store::Region(region) | Store::Mapped(_, region) => Storage::len(region),
        }
    }

    fn name(&self) -> &str {
        match self {
            Store::Map(map) => map.name(),
            Store::Region(region) | Store::Mapped(_, region) => Storage::name(region),
        }
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<Held<'_>> {
        match self {
            Store::Map(map) => map.bytes(range).map(Held::Slice),
            Store::Region(region) => region.bytes(range).map(Held::Pinned),
            Store::Mapped(mapped, _) => {
                let inside = |at: u64| usize::try_from(at).ok();
                let slice = inside(range.start)
                    .zip(inside(range.end))
                    .and_then(|(start, end)| mapped.get(start..end));
                slice.map(Held::Slice).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
        }
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Store::Region(region) => region.read(at, buf),
            Store::Map(_) | Store::Mapped(..) => {
                let end = at.saturating_add(buf.len() as u64);
                buf.copy_from_slice(&self.bytes(at..end)?);
                Ok(())
            }
        }
    }

    fn is_remote(&self) -> bool {
        self.region().is_some()
    }

    fn will_need(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        self.region().map_or(Ok(()), |region| Storage::will_need(region, ranges))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls() {
        let cases = [
            ("a", false),
            ("/x/a.tdb", false),
            ("s3://b/k", true),
            ("http://h/p", true),
            ("file:///x", true),
            ("nothing://x", true),
            ("://x", false),
            ("dir/a://b", false),
        ];
        for (input, expected) in cases {
            assert_eq!(is_url(input), expected, "{input}");
        }
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
