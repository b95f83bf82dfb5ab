//! Checks a whole database, rule by rule of FORMAT.md, and goes on after damage where it can.
//!
//! ```text
//!   container    members, tar headers, padding           P  C
//!   small        version, info, fields                   V  N  F
//!   lexicon      offsets, values, that they differ       X
//!   codebook     entries, fill, prefixes                 B
//!   trails       offsets, then every event of every trail  T
//!   uuids        that they ascend                        U
//!
//!   each room --> Log (findings, bounded) --> Report
//! ```
//!
//! Reading a database checks what it uses and stops at the first error. This reads all of it, with
//! code of its own for everything but the decoding of trails, which is the reader's, in both of its ways.

mod log; // findings, counted and kept within a bound
mod stream; // a member from its start to its end
mod container; // tar headers, padding, order
mod small; // version, info, fields
mod lexicon; // offsets and values
mod codebook; // entries and code words
mod trails; // offsets, events, UUIDs

use std::{
    collections::BTreeMap,
    io,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread,
};

use self::log::Log;
use crate::{
    container::{Member, Members, directory, package},
    error::Error,
    member::fields::Fields,
    read::Reader,
    storage::Storage,
};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A reader fails here, or reads something else than was written.
    Error,
    /// A rule is broken that no reader of databases depends on, such as a tar header.
    Warning,
}

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// The member, or `(package)` for what lies between members.
    pub member: String,
    /// Where, in bytes from the start of the member (of the file for `(package)`).
    pub offset: u64,
    /// The trail concerned, if it is one.
    pub trail: Option<u64>,
    /// What is wrong.
    pub reason: String,
}

/// What was found, and how much was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The findings, by member and offset; not all of them if there are very many.
    pub findings: Vec<Finding>,
    /// All errors, those not listed included.
    pub errors: u64,
    /// All warnings, those not listed included.
    pub warnings: u64,
    /// Errors and warnings of each member that has any.
    pub by_member: BTreeMap<String, (u64, u64)>,
    /// What could not be checked because of damage elsewhere, and why.
    pub unchecked: Vec<String>,
    /// The format version of the file, if that much could be read.
    pub version: Option<u64>,
    /// Bytes of all members.
    pub bytes: u64,
    /// Values looked at.
    pub values: u64,
    /// Trails whose every event was decoded.
    pub trails: u64,
    /// Events decoded.
    pub events: u64,
}

impl Report {
    /// Whether everything was checked and no error found. Warnings do not count.
    pub fn is_sound(&self) -> bool {
        self.errors == 0 && self.unchecked.is_empty()
    }
}

/// How to check.
///
/// ```
/// # fn main() -> Result<(), traildb::Error> {
/// # let directory = tempfile::TempDir::new().unwrap();
/// # let path = directory.path().join("x.tdb");
/// # traildb::Builder::new(&["user"])?.finish(&path)?;
/// let file = traildb::storage::File::open(&path).unwrap();
/// let report = traildb::verify::Verifier::default().package(file)?;
/// assert!(report.is_sound(), "{:?}", report.findings);
/// # Ok(())
/// # }
/// ```
pub struct Verifier<'w> {
    threads: usize,
    findings_max: usize,
    watch: Option<Watch<'w>>,
}

type Watch<'w> = &'w (dyn Fn(u64, u64) + Sync);

impl Default for Verifier<'_> {
    fn default() -> Self {
        Verifier { threads: 1, findings_max: 100, watch: None }
    }
}

impl<'w> Verifier<'w> {
    /// Sets how many threads check. Default: 1.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, 1024);
        self
    }

    /// Sets how many findings are listed; all are counted. Default: 100.
    pub fn findings_max(mut self, findings_max: usize) -> Self {
        self.findings_max = findings_max.clamp(1, 1 << 20);
        self
    }

    /// Sets what is told, now and then and from any thread, of bytes checked and bytes in all.
    pub fn watch(mut self, watch: &'w (dyn Fn(u64, u64) + Sync)) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Checks a database in the package form.
    ///
    /// # Errors
    /// What the storage could not give. Damage is no error of this function: it is in the report.
    pub fn package<S: Storage>(&self, storage: S) -> Result<Report, Error> {
        let log = Log::new(self.findings_max);
        match log.take(package::open(storage))? {
            Some(members) => {
                container::check(&members, &log)?;
                self.members(members, log)
            }
            None => {
                let why = "everything: without the index no member can be found";
                Ok(Report { unchecked: vec![why.into()], ..log.into_report() })
            }
        }
    }

    /// Checks a database in the directory form: `open` gives the storage of each member by its
    /// name, or `None` if there is no such member.
    ///
    /// # Errors
    /// As for [`package`](Verifier::package).
    pub fn directory<S: Storage>(
        &self,
        open: impl FnMut(&str) -> io::Result<Option<S>>,
    ) -> Result<Report, Error> {
        let log = Log::new(self.findings_max);
        let mut opener = directory::Opener::new(open);
        for name in ["version", "info", "fields"] {
            opener.add(name)?;
        }
        let fields = opener.members().find("fields");
        let fields = fields.map(|member| Fields::read(opener.members(), &member));
        // What is wrong with the names is told by the room that checks them.
        for name in fields.and_then(Result::ok).iter().flat_map(Fields::names) {
            opener.add(&format!("lexicon.{name}"))?;
        }
        for name in ["trails.codebook", "trails.toc", "trails.data", "uuids", "cookies"] {
            opener.add(name)?;
        }
        self.members(opener.finish(), log)
    }

    fn members<S: Storage>(&self, members: Members<S>, log: Log) -> Result<Report, Error> {
        let bytes = members.iter().map(|member| member.len).sum();
        let pace = Pace { done: AtomicU64::new(0), total: bytes, watch: self.watch };
        let mut unchecked = Vec::new();
        let Some(version) = small::version(&members, &log)? else {
            unchecked.push("everything else: the version is not known".into());
            return Ok(Report { unchecked, bytes, ..log.into_report() });
        };
        let info = small::info(&members, &log)?;
        let names = small::fields(&members, version, &log)?;
        pace.add(["version", "info", "fields"].iter().map(|n| len(&members, n)).sum());

        let mut values = 0;
        let mut counts = None;
        match &names {
            None => unchecked.push("lexicons: the names of the fields are not known".into()),
            Some(names) => {
                let names: Vec<&str> = names.names().collect();
                let next = AtomicUsize::new(0);
                let checked = self.each_thread(names.len(), || {
                    let mut checked = Vec::new();
                    while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let count = lexicon::check(&members, name, version, &log, &pace)?;
                        checked.push((*name, count));
                    }
                    Ok(checked)
                })?;
                let mut found: BTreeMap<&str, Option<u64>> =
                    checked.into_iter().flatten().collect();
                let all: Option<Vec<u64>> =
                    names.iter().map(|name| found.remove(name).flatten()).collect();
                values = all.iter().flatten().sum();
                counts = all;
            }
        }

        let (mut trails, mut events) = (0, 0);
        let wanted = match (&info, &counts) {
            (None, _) => Err("trails, codebook and UUIDs: info cannot be read"),
            (_, None) => Err("trails: the values of a field are not known"),
            (Some(info), Some(counts)) => Ok((info, counts)),
        };
        match wanted {
            Err(why) => unchecked.push(why.into()),
            Ok((info, counts)) => {
                let code = codebook::check(&members, version, info.trails, counts, &log, &pace)?;
                let places = trails::check_offsets(&members, info, version, &log, &pace)?;
                if info.trails > 0 {
                    let ready = code && places;
                    let info = *info;
                    match if ready {
                        log.take(Reader::with_members(members, version))?
                    } else {
                        None
                    } {
                        Some(reader) => {
                            (trails, events) =
                                trails::check_events(&reader, &info, self, &log, &pace)?;
                        }
                        None => {
                            let why = "events: trails, their offsets or the codebook are damaged";
                            unchecked.push(why.into());
                        }
                    }
                }
            }
        }
        let report = log.into_report();
        Ok(Report { version: Some(version), unchecked, bytes, values, trails, events, ..report })
    }

    /// Runs `work` on as many threads as there are, and tasks for; gives what each has made.
    fn each_thread<T: Send>(
        &self,
        tasks: usize,
        work: impl Fn() -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        let threads = self.threads.min(tasks);
        if threads <= 1 {
            return Ok(vec![work()?]);
        }
        thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(&work)).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        })
    }
}

/// Bytes of a member, 0 if there is none.
fn len<S: Storage>(members: &Members<S>, name: &str) -> u64 {
    members.find(name).map_or(0, |member| member.len)
}

/// A member that the format demands; an error in the log if there is none.
fn need<S: Storage>(members: &Members<S>, name: &str, log: &Log) -> Option<Member> {
    let member = members.find(name);
    if member.is_none() {
        log.error(name, 0, "the member is missing");
    }
    member
}

/// How far checking is.
struct Pace<'w> {
    done: AtomicU64,
    total: u64,
    watch: Option<Watch<'w>>,
}

impl Pace<'_> {
    /// `bytes` more were checked.
    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(watch) = self.watch {
            watch(done.min(self.total), self.total);
        }
    }
}
