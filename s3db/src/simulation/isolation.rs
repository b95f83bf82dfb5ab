//! Whether a history is one of isolated transactions: the anomalies of Adya.
//!
//! A. Adya: *Weak Consistency: A Generalized Theory and Optimistic Implementations for Distributed
//! Transactions*, MIT 1999. Transactions are the nodes of a graph, with three kinds of edges:
//!
//! ```text
//!   ww   the next version of a record is by that one
//!   wr   that one read the version by this one
//!   rw   this one read a version, and that one wrote the next: of a record, or one more in a range
//! ```
//!
//! A cycle is an anomaly, by the kinds of edges that it takes:
//!
//! | name | what | snapshot | serializable |
//! | --- | --- | --- | --- |
//! | G0 | ww alone: writes of two are mixed | never | never |
//! | G1a | what was aborted is read | never | never |
//! | G1b | what was written again by the same transaction is read | never | never |
//! | G1c | ww and wr: each sees the other | never | never |
//! | G-single | one rw: a snapshot of two moments, or an update that is lost | never | never |
//! | G2-item, G2 | more of them: write skew; by ranges: phantoms | may be | never |
//!
//! The order of versions is given, and is itself checked: it follows the numbers of the commits, and has
//! each version once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::catalog::Isolation;

/// What is wrong with a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anomaly {
    /// Write cycles.
    G0,
    /// Aborted reads.
    G1a,
    /// Intermediate reads.
    G1b,
    /// Circular information flow.
    G1c,
    /// One anti-dependency: read skew, lost update.
    GSingle,
    /// Anti-dependencies of records: write skew.
    G2Item,
    /// Of ranges, too: phantoms.
    G2,
    /// Versions that are not in the order of their commits, or not there.
    VersionOrder,
}

impl Anomaly {
    /// As the literature has it.
    pub fn name(self) -> &'static str {
        match self {
            Anomaly::G0 => "G0",
            Anomaly::G1a => "G1a",
            Anomaly::G1b => "G1b",
            Anomaly::G1c => "G1c",
            Anomaly::GSingle => "G-single",
            Anomaly::G2Item => "G2-item",
            Anomaly::G2 => "G2",
            Anomaly::VersionOrder => "version order",
        }
    }
}

/// A transaction of a history, by its place in it.
pub type Id = usize;

/// A version of a record: which transaction wrote it, with which of its operations. `None`: it was never
/// written.
pub type Source = Option<(Id, u32)>;

/// What a transaction read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// One record.
    Item(String, Source),
    /// All records from the first key to before the second. Those that are not listed were never written.
    Range(String, String, Vec<(String, Source)>),
}

/// What one transaction did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Its number among the commits; `None` if it was aborted.
    pub number: Option<u64>,
    /// What it read of others.
    pub reads: Vec<Read>,
    /// What it wrote, in order: a key and the number of the operation. The last one of a key counts.
    pub writes: Vec<(String, u32)>,
}

impl Transaction {
    fn last_write(&self, key: &str) -> Option<u32> {
        self.writes.iter().rev().find(|(of, _)| of == key).map(|(_, operation)| *operation)
    }
}

/// What transactions did, and in which order versions of records are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histories {
    /// All of them.
    pub transactions: Vec<Transaction>,
    /// By key, who wrote its versions, oldest first.
    pub versions: BTreeMap<String, Vec<Id>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    WriteWrite,
    WriteRead,
    ReadWrite,
    /// Of a range, by a record that was not listed.
    Phantom,
}

type Edges = BTreeSet<(Id, Id, Kind)>;

/// All anomalies that may not be at this level, each with those it was seen at.
pub fn anomalies(of: &Histories, isolation: Isolation) -> Vec<(Anomaly, String)> {
    let mut found = Vec::new();
    order_of_versions(of, &mut found);
    let mut edges = Edges::new();
    for ids in of.versions.values() {
        for pair in ids.windows(2).filter(|pair| pair[0] != pair[1]) {
            edges.insert((pair[0], pair[1], Kind::WriteWrite));
        }
    }
    for (id, transaction) in of.transactions.iter().enumerate() {
        if transaction.number.is_none() {
            continue;
        }
        for read in &transaction.reads {
            match read {
                Read::Item(key, source) => {
                    look(of, id, key, *source, Kind::ReadWrite, &mut edges, &mut found);
                }
                Read::Range(from, to, listed) => {
                    for (key, source) in listed {
                        look(of, id, key, *source, Kind::ReadWrite, &mut edges, &mut found);
                    }
                    let others = of.versions.range(from.clone()..to.clone());
                    for (key, _) in others.filter(|(key, _)| !listed.iter().any(|it| it.0 == **key))
                    {
                        look(of, id, key, None, Kind::Phantom, &mut edges, &mut found);
                    }
                }
            }
        }
    }
    cycles(&edges, isolation, &mut found);
    found
}

fn order_of_versions(of: &Histories, found: &mut Vec<(Anomaly, String)>) {
    for (key, ids) in &of.versions {
        let numbers: Vec<Option<u64>> =
            ids.iter().map(|id| of.transactions.get(*id).and_then(|it| it.number)).collect();
        if numbers.contains(&None) || !numbers.is_sorted_by(|a, b| a < b) {
            let what = format!("versions of {key} are by {ids:?}, which are commits {numbers:?}");
            found.push((Anomaly::VersionOrder, what));
        }
    }
    for (id, transaction) in of.transactions.iter().enumerate() {
        for (key, _) in transaction.writes.iter().filter(|_| transaction.number.is_some()) {
            if !of.versions.get(key).is_some_and(|ids| ids.contains(&id)) {
                found.push((Anomaly::VersionOrder, format!("no version of {key} is by {id}")));
            }
        }
    }
}

/// What it means that `id` read this version of `key`.
fn look(
    of: &Histories,
    id: Id,
    key: &str,
    source: Source,
    kind: Kind,
    edges: &mut Edges,
    found: &mut Vec<(Anomaly, String)>,
) {
    let versions = of.versions.get(key).map_or(&[][..], |ids| ids);
    let next = match source {
        None => versions.first(),
        Some((writer, _)) if writer == id => return,
        Some((writer, operation)) => {
            let by = of.transactions.get(writer);
            let Some(by) = by.filter(|by| by.number.is_some()) else {
                found.push((Anomaly::G1a, format!("{id} read {key} of {writer}, which aborted")));
                return;
            };
            if by.last_write(key) != Some(operation) {
                let what = format!("{id} read {key} of {writer}, which wrote it again");
                found.push((Anomaly::G1b, what));
            }
            edges.insert((writer, id, Kind::WriteRead));
            let at = versions.iter().position(|it| *it == writer);
            at.and_then(|at| versions.get(at + 1))
        }
    };
    // Where the next version is its own, what comes behind that follows from ww.
    if let Some(next) = next.filter(|next| **next != id) {
        edges.insert((id, *next, kind));
    }
}

/// A way along edges, if there is one.
fn way(edges: &Edges, from: Id, to: Id, takes: impl Fn(Kind) -> bool) -> Option<Vec<Id>> {
    let mut before: BTreeMap<Id, Id> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(at) = queue.pop_front() {
        if at == to {
            let mut way = vec![to];
            while let Some(last) = way.last().filter(|last| **last != from) {
                way.push(before[last]);
            }
            way.reverse();
            return Some(way);
        }
        let out = edges.range((at, 0, Kind::WriteWrite)..=(at, Id::MAX, Kind::Phantom));
        for (_, next, kind) in out {
            if takes(*kind) && *next != from && !before.contains_key(next) {
                before.insert(*next, at);
                queue.push_back(*next);
            }
        }
    }
    None
}

fn cycles(edges: &Edges, isolation: Isolation, found: &mut Vec<(Anomaly, String)>) {
    let is_dependency = |kind: Kind| kind <= Kind::WriteRead;
    let mut seen = BTreeSet::new();
    for &(from, to, kind) in edges {
        let closes = |takes: &dyn Fn(Kind) -> bool| way(edges, to, from, takes);
        let closed = match kind {
            Kind::WriteWrite => closes(&|kind| kind == Kind::WriteWrite)
                .map(|way| (Anomaly::G0, way))
                .or_else(|| closes(&is_dependency).map(|way| (Anomaly::G1c, way))),
            Kind::WriteRead => closes(&is_dependency).map(|way| (Anomaly::G1c, way)),
            Kind::ReadWrite | Kind::Phantom => {
                let single = closes(&is_dependency).map(|way| (Anomaly::GSingle, way));
                let many = || {
                    let is_item = kind == Kind::ReadWrite;
                    let item = closes(&|kind| kind < Kind::Phantom).filter(|_| is_item);
                    let item = item.map(|way| (Anomaly::G2Item, way));
                    item.or_else(|| closes(&|_| true).map(|way| (Anomaly::G2, way)))
                };
                let may_be = isolation == Isolation::Snapshot;
                single.or_else(|| if may_be { None } else { many() })
            }
        };
        // One of each is enough to look at.
        if let Some((anomaly, way)) = closed
            && seen.insert(anomaly)
        {
            found.push((anomaly, format!("{from} -> {way:?} by {kind:?}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Transactions by what they read and write, as in `r x 0` (reads the version of 0), `r y -` (never
    /// written), `w x`, `range a c x=0`. They are committed in order, those with `!` are aborted.
    fn histories(all: &[&str], versions: &[(&str, &[Id])]) -> Histories {
        let mut transactions = Vec::new();
        let mut number = 0;
        for text in all {
            let mut it = Transaction::default();
            if !text.contains('!') {
                number += 1;
                it.number = Some(number);
            }
            let source = |word: &str| {
                let (id, operation) = word.split_once('.').unwrap_or((word, "0"));
                id.parse().ok().map(|id| (id, operation.parse().unwrap()))
            };
            for operation in text.split(',').map(str::trim) {
                let words: Vec<&str> = operation.split(' ').collect();
                match words[..] {
                    ["r", key, of] => it.reads.push(Read::Item(key.into(), source(of))),
                    ["w", key] => it.writes.push((key.into(), 0)),
                    ["w", key, n] => it.writes.push((key.into(), n.parse().unwrap())),
                    ["range", from, to, ref listed @ ..] => {
                        let pair = |word: &&str| {
                            let (key, of) = word.split_once('=').unwrap();
                            (key.to_owned(), source(of))
                        };
                        let listed = listed.iter().map(pair).collect();
                        it.reads.push(Read::Range(from.into(), to.into(), listed));
                    }
                    _ => {}
                }
            }
            transactions.push(it);
        }
        let versions =
            versions.iter().map(|(key, ids)| ((*key).to_owned(), ids.to_vec())).collect();
        Histories { transactions, versions }
    }

    fn names(of: &Histories, isolation: Isolation) -> Vec<&'static str> {
        let mut names: Vec<_> =
            anomalies(of, isolation).into_iter().map(|(anomaly, _)| anomaly.name()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    type Case = (
        &'static str,
        &'static [&'static str],
        &'static [(&'static str, &'static [Id])],
        &'static [&'static str],
        &'static [&'static str],
    );

    /// What it is, what was done, the order of versions, and what must be found at each level.
    const CASES: &[Case] = &[
        (
            "one after the other",
            &["w x, w y", "r x 0, r y 0, w x", "r x 1, range a z x=1 y=0"],
            &[("x", &[0, 1]), ("y", &[0])],
            &[],
            &[],
        ),
        (
            "a snapshot of before",
            &["w x, w y", "w x, w y", "r x 0, r y 0"],
            &[("x", &[0, 1]), ("y", &[0, 1])],
            &[],
            &[],
        ),
        ("own writes", &["w x", "r x 0, w x, r x 1"], &[("x", &[0, 1])], &[], &[]),
        ("an aborted one that nobody read", &["w x", "! w x, r x 0"], &[("x", &[0])], &[], &[]),
        (
            "G0: the writes of two are mixed",
            &["w x, w y", "w x, w y"],
            &[("x", &[0, 1]), ("y", &[1, 0])],
            &["G0", "version order"],
            &["G0", "version order"],
        ),
        ("G1a: what was aborted is read", &["! w x", "r x 0"], &[], &["G1a"], &["G1a"]),
        (
            "G1b: what was written again is read",
            &["w x 0, w x 1", "r x 0.0"],
            &[("x", &[0])],
            &["G1b"],
            &["G1b"],
        ),
        (
            "G1c: each sees the other",
            &["w x, r y 1", "w y, r x 0"],
            &[("x", &[0]), ("y", &[1])],
            &["G1c"],
            &["G1c"],
        ),
        (
            "G-single: read skew",
            &["w x, w y", "r x 0, r y 2", "w x, w y"],
            &[("x", &[0, 2]), ("y", &[0, 2])],
            &["G-single"],
            &["G-single"],
        ),
        (
            "G-single: a lost update",
            &["w x", "r x 0, w x", "r x 0, w x"],
            &[("x", &[0, 1, 2])],
            &["G-single"],
            &["G-single"],
        ),
        (
            "G2-item: write skew",
            &["w x, w y", "r x 0, r y 0, w x", "r x 0, r y 0, w y"],
            &[("x", &[0, 1]), ("y", &[0, 2])],
            &[],
            &["G2-item"],
        ),
        (
            "G2: each inserts into the range that the other read",
            &["range a z, w x", "range a z, w y"],
            &[("x", &[0]), ("y", &[1])],
            &[],
            &["G2"],
        ),
        (
            "a phantom between a range and a record: one moment is not enough",
            &["w s", "range a c, r s 2", "w b, w s"],
            &[("s", &[0, 2]), ("b", &[2])],
            &["G-single"],
            &["G-single"],
        ),
        (
            "ranges that do not meet",
            &["range a b, w x", "range c d, w y"],
            &[("x", &[0]), ("y", &[1])],
            &[],
            &[],
        ),
        (
            "versions that are not in the order of commits",
            &["w x", "w x"],
            &[("x", &[1, 0])],
            &["version order"],
            &["version order"],
        ),
        ("a version that is gone", &["w x"], &[], &["version order"], &["version order"]),
    ];

    #[test]
    fn every_anomaly_is_found_and_nothing_else() {
        for (what, all, versions, snapshot, serializable) in CASES {
            let of = histories(all, versions);
            assert_eq!(names(&of, Isolation::Snapshot), *snapshot, "{what}: snapshot");
            assert_eq!(names(&of, Isolation::Serializable), *serializable, "{what}: serializable");
        }
    }
}
