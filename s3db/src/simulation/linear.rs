//! Whether the history of one object under compare and swap is linearizable.
//!
//! M. Herlihy, J. Wing: *Linearizability: A Correctness Condition for Concurrent Objects*, TOPLAS 1990. In
//! general that is hard to decide (P. Gibbons, E. Korach, *Testing Shared Memories*, 1997). Here it is not:
//! no two versions have equal tags (H2), and each put names the version that it replaces. So the order of
//! the puts that happened is given, as a chain, and with it the place of every get that found something:
//!
//! ```text
//!   put v1 | gets of v1 | put v2 | gets of v2 | ...          groups, in the only order there can be
//! ```
//!
//! It is linearizable if and only if no call of a later group had ended before one of an earlier group began:
//! the order in time and that of the groups have no contradiction, so some order has both. One pass that
//! keeps the latest begin so far decides that. A put that was refused belongs to no group. It must fit in
//! among the gets of some version: not before a group of which a call had ended when it began, not behind one of
//! which a call began after it had ended, and not where the version that it expected is there. The versions that
//! are left are one interval, found by bisection, of which one at most is taken out. Those that were
//! refused are laid into the first place that is free, in the order in which they began: whoever began later
//! finds none before. All of it takes the time of sorting the calls.
//!
//! A put without an answer may have happened at any time after it began, or never: it is in the chain if
//! somebody saw its version, or put another upon it. That decides where each object is read in the end.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, HashSet},
};

/// One version of an object, by its tag; `None`: it is not there.
pub type Tag = Option<String>;

/// What a call did, as far as its caller knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Did {
    /// Found this version.
    Got(Tag),
    /// Put `new` in the place of `old`. Without an answer it may have.
    Put {
        /// What it was to replace.
        old: Tag,
        /// What it was to put.
        new: String,
        /// Whether it is known that it did.
        is_known: bool,
    },
    /// Was to replace this version, and another one was there.
    Refused(Tag),
}

/// One call of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it began.
    pub from: u64,
    /// When its answer came; `u64::MAX` if none did.
    pub to: u64,
    /// What it did.
    pub did: Did,
}

/// A group: a put that happened, and the gets of its version. The first one has no put.
#[derive(Clone, Copy)]
struct Group {
    /// The latest begin, and the earliest end, of a call in it.
    begin_max: u64,
    end_min: u64,
}

const EMPTY: Group = Group { begin_max: 0, end_min: u64::MAX };

impl Group {
    fn take(&mut self, call: &Call) {
        self.begin_max = self.begin_max.max(call.from);
        self.end_min = self.end_min.min(call.to);
    }
}

/// Decides whether calls of one object, which was `first` before all of them, are linearizable.
///
/// # Errors
/// What contradicts what.
pub fn check(first: Tag, calls: &[Call]) -> Result<(), String> {
    let calls = &merged(calls)?[..];
    let chain = chain(&first, calls)?;
    let places: HashMap<&Tag, usize> =
        chain.iter().enumerate().map(|(at, tag)| (tag, at)).collect();
    // The put of a version, and the gets of it, are two groups, one behind the other.
    let mut groups = vec![EMPTY; 2 * chain.len()];
    for call in calls {
        match &call.did {
            Did::Got(tag) => {
                let at =
                    places.get(tag).ok_or_else(|| format!("{tag:?} was got, and never put"))?;
                groups[2 * at + 1].take(call);
            }
            Did::Put { new, .. } => {
                if let Some(at) = places.get(&Some(new.clone())) {
                    groups[2 * at].take(call);
                }
            }
            Did::Refused(_) => {}
        }
    }
    let mut begin_max = 0;
    for (at, group) in groups.iter().enumerate() {
        if group.end_min < begin_max {
            return Err(format!(
                "a call of version {:?} had ended at {}, and one of a version before it began at {begin_max}",
                chain[at / 2],
                group.end_min
            ));
        }
        begin_max = begin_max.max(group.begin_max);
    }
    refused(&chain, &groups, calls)
}

/// Attempts at one put are one: the one that is known to have happened, or any of those that may have.
fn merged(calls: &[Call]) -> Result<Vec<Call>, String> {
    let mut merged: Vec<Call> = Vec::with_capacity(calls.len());
    let mut puts: HashMap<&String, usize> = HashMap::new();
    for call in calls {
        let Did::Put { old, new, is_known } = &call.did else {
            merged.push(call.clone());
            continue;
        };
        let Some(place) = puts.get(new).copied() else {
            puts.insert(new, merged.len());
            merged.push(call.clone());
            continue;
        };
        let there = &mut merged[place];
        let Did::Put { old: there_old, is_known: there_known, .. } = &there.did else { continue };
        match (there_known, is_known) {
            _ if there_old != old => {
                return Err(format!("{new} was put in the place of {old:?} and of {there_old:?}"));
            }
            (true, true) => return Err(format!("{new} was put twice")),
            (false, true) => *there = call.clone(),
            (false, false) => there.from = there.from.min(call.from),
            (true, false) => {}
        }
    }
    Ok(merged)
}

/// The versions that were there, one after the other.
fn chain(first: &Tag, calls: &[Call]) -> Result<Vec<Tag>, String> {
    let mut over: BTreeMap<&Tag, Vec<&String>> = BTreeMap::new();
    let mut before: HashMap<&String, &Tag> = HashMap::new();
    let mut happened: Vec<&String> = Vec::new();
    let mut known = 0;
    for call in calls {
        match &call.did {
            Did::Put { old, new, is_known } => {
                over.entry(old).or_default().push(new);
                before.insert(new, old);
                if *is_known {
                    known += 1;
                    happened.push(new);
                }
            }
            Did::Got(tag) => happened.extend(tag),
            Did::Refused(_) => {}
        }
    }
    // Of those without an answer the ones that were seen happened, and the ones that another that happened
    // was put upon.
    let mut is_in: HashSet<&String> = HashSet::new();
    while let Some(tag) = happened.pop() {
        if is_in.insert(tag) {
            happened.extend(before.get(tag).and_then(|old| old.as_ref()));
        }
    }
    let is_known: HashSet<&String> = calls
        .iter()
        .filter_map(|call| match &call.did {
            Did::Put { new, is_known: true, .. } => Some(new),
            _ => None,
        })
        .collect();
    let mut chain = vec![first.clone()];
    let mut met = 0;
    while let Some(puts) = chain.last().and_then(|last| over.remove(last)) {
        let mut puts = puts.into_iter().filter(|new| is_in.contains(new));
        let Some(new) = puts.next() else { break };
        if let Some(other) = puts.next() {
            return Err(format!("{new} and {other} were both put in the place of one version"));
        }
        met += usize::from(is_known.contains(new));
        chain.push(Some(new.clone()));
    }
    match met == known {
        true => Ok(chain),
        false => Err(format!("{} puts replaced what was not there", known - met)),
    }
}

/// Every put that was refused fits somewhere, in the order of time.
fn refused(chain: &[Tag], groups: &[Group], calls: &[Call]) -> Result<(), String> {
    // Before and behind each group: the latest begin, and the earliest end.
    let mut begin_max = vec![0; groups.len() + 1];
    let mut end_min = vec![u64::MAX; groups.len() + 1];
    for at in 0..groups.len() {
        begin_max[at + 1] = begin_max[at].max(groups[at].begin_max);
    }
    for at in (0..groups.len()).rev() {
        end_min[at] = end_min[at + 1].min(groups[at].end_min);
    }
    // Among the gets of a version, in any order with them: behind its put, and before that of the next.
    let begins: Vec<u64> = (0..chain.len()).map(|at| begin_max[2 * at + 1]).collect();
    let ends: Vec<u64> = (0..chain.len()).map(|at| end_min[2 * at + 2]).collect();
    let places: HashMap<&Tag, usize> =
        chain.iter().enumerate().map(|(at, tag)| (tag, at)).collect();
    let mut all: Vec<&Call> =
        calls.iter().filter(|call| matches!(call.did, Did::Refused(_))).collect();
    all.sort_by_key(|call| call.from);
    // Of those that have been laid: when they end, and in which version they are.
    let mut laid: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut furthest = 0;
    for call in all {
        let Did::Refused(expected) = &call.did else { continue };
        // Not before those that had ended when it began.
        while let Some(Reverse((_, place))) =
            laid.peek().copied().filter(|Reverse((to, _))| *to < call.from)
        {
            laid.pop();
            furthest = furthest.max(place);
        }
        let least = ends.partition_point(|end| *end < call.from).max(furthest);
        let behind = begins.partition_point(|begin| *begin <= call.to);
        let place = match places.get(expected) {
            Some(at) if *at == least => least + 1,
            _ => least,
        };
        if place >= behind {
            return Err(format!(
                "a put over {expected:?} was refused between {} and {}, when that was there",
                call.from, call.to
            ));
        }
        laid.push(Reverse((call.to, place)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(name: &str) -> Tag {
        (name != "-").then(|| name.to_owned())
    }

    /// `FROM-TO get v`, `FROM-TO put OLD NEW` (`put?` without an answer), `FROM-TO refused OLD`.
    fn call(text: &str) -> Call {
        let words: Vec<&str> = text.split(' ').collect();
        let (from, to) = words[0].split_once('-').unwrap();
        let to = if to.is_empty() { u64::MAX } else { to.parse().unwrap() };
        let did = match words[1..] {
            ["get", of] => Did::Got(tag(of)),
            ["put", old, new] => Did::Put { old: tag(old), new: new.into(), is_known: true },
            ["put?", old, new] => Did::Put { old: tag(old), new: new.into(), is_known: false },
            ["refused", old] => Did::Refused(tag(old)),
            _ => panic!("{text}"),
        };
        Call { from: from.parse().unwrap(), to, did }
    }

    #[test]
    fn histories_that_are_and_that_are_not() {
        let cases: &[(&str, bool, &[&str])] = &[
            (
                "one after the other",
                true,
                &["0-1 put - a", "2-3 get a", "4-5 put a b", "6-7 get b"],
            ),
            (
                "a get beside a put sees either",
                true,
                &["0-1 put - a", "2-9 put a b", "3-4 get b", "3-5 get a"],
            ),
            (
                "a get after a put sees what was before",
                false,
                &["0-1 put - a", "2-3 put a b", "4-5 get a"],
            ),
            ("gets go back", false, &["0-1 put - a", "2-9 put a b", "3-4 get b", "5-6 get a"]),
            ("two in the place of one", false, &["0-1 put - a", "2-3 put a b", "2-3 put a c"]),
            ("what nobody put", false, &["0-1 put - a", "2-3 get x"]),
            ("in the place of what was never there", false, &["0-1 put - a", "2-3 put x b"]),
            ("puts in another order than in time", false, &["4-5 put - a", "2-3 put a b"]),
            ("refused for another version", true, &["0-1 put - a", "2-3 put a b", "4-5 refused a"]),
            (
                "refused beside the put that was faster",
                true,
                &["0-1 put - a", "2-9 put a b", "3-4 refused a"],
            ),
            (
                "refused for what was there all the time",
                false,
                &["0-1 put - a", "2-3 refused a", "4-5 put a b"],
            ),
            ("created where something is", true, &["0-1 put - a", "2-3 refused -"]),
            ("not created where nothing is", false, &["0-1 refused -", "2-3 put - a"]),
            (
                "no answer, and nobody saw it",
                true,
                &["0-1 put - a", "2- put? a b", "3-4 get a", "5-6 put a c"],
            ),
            (
                "no answer, and somebody did",
                true,
                &["0-1 put - a", "2- put? a b", "3-4 get a", "9-9 get b"],
            ),
            (
                "the second attempt, and what is seen after the first",
                true,
                &[
                    "0-1 put - a",
                    "2- put? a b",
                    "3-4 refused a",
                    "5-6 refused a",
                    "6- put? a b",
                    "8-9 get b",
                ],
            ),
            ("both attempts of one", false, &["0-1 put - a", "2-3 put a b", "4-5 put a b"]),
            (
                "nobody saw either of two",
                true,
                &["0-1 put - a", "2- put? a b", "2- put? b c", "3-4 put a d"],
            ),
            (
                "no answer, seen and gone back",
                false,
                &["0-1 put - a", "2- put? a b", "3-4 get b", "5-6 get a"],
            ),
            (
                "no answer, and something was put upon it",
                true,
                &["0-1 put - a", "2- put? a b", "5-6 put b c", "7-8 refused a"],
            ),
            (
                "refused, and then another for what the first one needed to be gone",
                false,
                &["0-1 put - a", "2-20 put a b", "3-4 refused a", "5-6 refused b", "7-8 get a"],
            ),
        ];
        for (what, is_fine, calls) in cases {
            let calls: Vec<Call> = calls.iter().map(|text| call(text)).collect();
            let outcome = check(None, &calls);
            assert_eq!(outcome.is_ok(), *is_fine, "{what}: {outcome:?}");
        }
    }

    /// All orders of a few calls, tried one by one: what the fast way must agree with.
    fn by_all_orders(calls: &[Call]) -> bool {
        fn go(current: &Tag, left: &[Call]) -> bool {
            if left.iter().all(|call| matches!(&call.did, Did::Put { is_known: false, .. })) {
                return true;
            }
            (0..left.len()).any(|at| {
                let call = &left[at];
                if left.iter().any(|other| other.to < call.from) {
                    return false;
                }
                let rest: Vec<Call> = left
                    .iter()
                    .enumerate()
                    .filter(|(n, _)| *n != at)
                    .map(|(_, it)| it.clone())
                    .collect();
                match &call.did {
                    Did::Got(tag) => tag == current && go(current, &rest),
                    Did::Refused(old) => old != current && go(current, &rest),
                    Did::Put { old, new, .. } => old == current && go(&Some(new.clone()), &rest),
                }
            })
        }
        go(&None, calls)
    }

    mod random {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            /// Of any few calls it says what trying all orders says.
            #[test]
            fn agrees_with_all_orders(
                texts in prop::collection::vec((0..4usize, 0..5usize, 0..4usize, 0..9u64, 0..5u64), 1..7)
            ) {
                let names = ["-", "a", "b", "c", "d"];
                // It is read in the end.
                let last = texts.len() % names.len();
                let mut calls = vec![Call { from: 99, to: 99, did: Did::Got(tag(names[last])) }];
                for (kind, old, new, from, len) in texts {
                    let new = names[new + 1];
                    let old = tag(names[old]);
                    let is_new = |it: &Call| !matches!(&it.did, Did::Put { new: there, .. } if there == new);
                    let did = match kind {
                        0 => Did::Got(old),
                        1 => Did::Refused(old),
                        // Tags are put once, and nothing is put in its own place.
                        _ if !calls.iter().all(is_new) || old.as_deref() == Some(new) => continue,
                        _ => Did::Put { old, new: new.into(), is_known: kind == 2 },
                    };
                    let to = if kind == 3 { u64::MAX } else { from + len };
                    calls.push(Call { from, to, did });
                }
                prop_assert_eq!(check(None, &calls).is_ok(), by_all_orders(&calls), "{:?}", calls);
            }
        }
    }
}
