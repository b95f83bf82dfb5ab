//! Whether the history of one object under compare and swap is linearizable.
//!
//! M. Herlihy, J. Wing: *Linearizability: A Correctness Condition for Concurrent Objects*, TOPLAS 1990. An object
//! is a register that holds one version or none: it is created, replaced and deleted under conditions, and can
//! come back, also as what it was before.
//!
//! ```text
//!   none --put if absent--> v1 --put if v1--> v2 --delete--> none --put if absent--> v1 ...
//! ```
//!
//! In general that is hard to decide (P. Gibbons, E. Korach, *Testing Shared Memories*, 1997). The way is that of J.
//! Wing and C. Gong (*Testing and Verifying Concurrent Objects*, JPDC 1993): of the calls that can come next,
//! since none that is left had ended when they began, one after the other is tried; with what G. Lowe adds to it
//! (*Testing for linearizability*, 2017): where it was once it does not come again. What keeps it short is that a
//! call that changes nothing is taken as soon as it can be: whatever order there is from there, it can come
//! first. And that of the others nearly always one fits, since each names the version that it replaces.
//!
//! A call without an answer may have happened at any time after it began, or never.

use std::collections::HashSet;

/// Places that a search comes to at most: each change of an object is one, and few more are.
const PLACES_MAX: usize = 200_000;

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
    /// Was to replace or to delete this version, or none, and another one was there.
    Refused(Tag),
    /// Deleted it: this version, or whatever was there, if anything was. Without an answer it may have.
    Deleted {
        /// The version that it was to delete, if it named one.
        only: Tag,
        /// Whether it is known that the object was not there then.
        is_known: bool,
    },
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

impl Call {
    fn is_known(&self) -> bool {
        !matches!(self.did, Did::Put { is_known: false, .. } | Did::Deleted { is_known: false, .. })
    }

    /// What an object is after this call that was `there` before. `None`: it cannot have been.
    fn after<'a>(&'a self, there: Option<&'a str>) -> Option<Option<&'a str>> {
        match &self.did {
            Did::Got(tag) => (tag.as_deref() == there).then_some(there),
            Did::Refused(old) => (there.is_some() && old.as_deref() != there).then_some(there),
            Did::Put { old, new, .. } => (old.as_deref() == there).then_some(Some(new)),
            Did::Deleted { only, .. } => {
                (there.is_none() || only.is_none() || only.as_deref() == there).then_some(None)
            }
        }
    }

    /// Whether it changes nothing, whatever was there.
    fn is_look(&self) -> bool {
        matches!(self.did, Did::Got(_) | Did::Refused(_))
    }
}

/// Where a search is.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place<'a> {
    /// All known calls before this one have been, and of the others these, in their order.
    first: usize,
    been: Vec<usize>,
    /// Calls without an answer that have been.
    guessed: Vec<usize>,
    there: Option<&'a str>,
}

/// The calls, in the order in which they began.
struct Search<'a> {
    known: Vec<&'a Call>,
    open: Vec<&'a Call>,
}

/// Decides whether calls of one object, which was `first` before all of them, are linearizable.
///
/// # Errors
/// How far an order goes, and what does not fit there.
pub fn check(first: Tag, calls: &[Call]) -> Result<(), String> {
    let (mut known, mut open): (Vec<&Call>, Vec<&Call>) =
        calls.iter().partition(|call| call.is_known());
    known.sort_by_key(|call| call.from);
    open.sort_by_key(|call| call.from);
    let search = Search { known, open };
    let begin = Place { first: 0, been: Vec::new(), guessed: Vec::new(), there: first.as_deref() };
    let (mut stack, mut met) = (vec![begin], HashSet::new());
    let mut furthest: Option<Place<'_>> = None;
    while let Some(mut place) = stack.pop() {
        search.look(&mut place);
        if place.first == search.known.len() {
            return Ok(());
        }
        if !met.insert(place.clone()) {
            continue;
        }
        if met.len() > PLACES_MAX {
            return Err(format!("not decided after {PLACES_MAX} places"));
        }
        search.changes(&place, &mut stack);
        let count = |place: &Place<'_>| place.first + place.been.len();
        if furthest.as_ref().is_none_or(|there| count(there) < count(&place)) {
            furthest = Some(place);
        }
    }
    Err(furthest.map_or_else(String::new, |place| search.explain(&place)))
}

impl<'a> Search<'a> {
    /// Known calls that can come next: no other one that is left had ended when they began. And when the first
    /// of all that are left ended.
    fn next(&self, place: &Place<'_>) -> (Vec<usize>, u64) {
        let (mut next, mut end_min) = (Vec::new(), u64::MAX);
        for (at, call) in self.known.iter().enumerate().skip(place.first) {
            // Those behind it began even later.
            if call.from > end_min {
                break;
            }
            if place.been.binary_search(&at).is_err() {
                end_min = end_min.min(call.to);
                next.push(at);
            }
        }
        next.retain(|at| self.known[*at].from <= end_min);
        (next, end_min)
    }

    fn take(&self, place: &mut Place<'a>, at: usize) {
        if let Err(behind) = place.been.binary_search(&at) {
            place.been.insert(behind, at);
        }
        let done = place.been.iter().enumerate().take_while(|(n, at)| place.first + n == **at);
        let done = done.count();
        place.been.drain(..done);
        place.first += done;
    }

    /// All that only looks and can come next comes next.
    fn look(&self, place: &mut Place<'a>) {
        loop {
            let (next, _) = self.next(place);
            let fits = |at: &usize| {
                let call = self.known[*at];
                call.is_look() && call.after(place.there).is_some()
            };
            let looks: Vec<usize> = next.into_iter().filter(fits).collect();
            if looks.is_empty() {
                return;
            }
            looks.into_iter().for_each(|at| self.take(place, at));
        }
    }

    /// Each change that can come next. What is known is tried before what is guessed: it goes on the stack last.
    fn changes(&self, place: &Place<'a>, stack: &mut Vec<Place<'a>>) {
        let (next, end_min) = self.next(place);
        for (at, call) in self.open.iter().enumerate() {
            if call.from > end_min {
                break;
            }
            let Err(behind) = place.guessed.binary_search(&at) else { continue };
            let Some(there) = call.after(place.there).filter(|it| *it != place.there) else {
                continue;
            };
            let mut guessed = place.guessed.clone();
            guessed.insert(behind, at);
            stack.push(Place { guessed, there, ..place.clone() });
        }
        for at in next.into_iter().rev() {
            let Some(there) = self.known[at].after(place.there) else { continue };
            if !self.known[at].is_look() {
                let mut to = Place { there, ..place.clone() };
                self.take(&mut to, at);
                stack.push(to);
            }
        }
    }

    fn explain(&self, place: &Place<'_>) -> String {
        let (next, _) = self.next(place);
        let of = self.known.len();
        let left = next.into_iter().map(|at| self.known[at]).map(|call| {
            let Call { from, to, did } = call;
            format!("{did:?} from {from} to {to}")
        });
        format!(
            "{} of {of} calls have an order; where it is {:?}, none of these can be next: {}",
            place.first + place.been.len(),
            place.there,
            left.take(SHOWN_MAX).collect::<Vec<_>>().join("; ")
        )
    }
}

/// Calls that are shown.
const SHOWN_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(name: &str) -> Tag {
        (name != "-").then(|| name.to_owned())
    }

    /// `FROM-TO get v`, `FROM-TO put OLD NEW` (`put?` without an answer), `FROM-TO refused OLD`, `FROM-TO delete
    /// ONLY` (whatever is there: `-`).
    fn call(text: &str) -> Call {
        let words: Vec<&str> = text.split(' ').collect();
        let (from, to) = words[0].split_once('-').unwrap();
        let to = if to.is_empty() { u64::MAX } else { to.parse().unwrap() };
        let did = match words[1..] {
            ["get", of] => Did::Got(tag(of)),
            ["put", old, new] => Did::Put { old: tag(old), new: new.into(), is_known: true },
            ["put?", old, new] => Did::Put { old: tag(old), new: new.into(), is_known: false },
            ["refused", old] => Did::Refused(tag(old)),
            ["delete", only] => Did::Deleted { only: tag(only), is_known: true },
            ["delete?", only] => Did::Deleted { only: tag(only), is_known: false },
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
            ("what was before comes back", true, &["0-1 put - a", "2-3 put a b", "4-5 put b a"]),
            (
                "deleted, and created again",
                true,
                &["0-1 put - a", "2-3 delete a", "4-5 get -", "6-7 put - a", "8-9 get a"],
            ),
            ("deleted, and got", false, &["0-1 put - a", "2-3 delete a", "4-5 get a"]),
            ("deleted, and replaced", false, &["0-1 put - a", "2-3 delete a", "4-5 put a b"]),
            ("deleted, and not created", false, &["0-1 put - a", "2-3 delete a", "4-5 refused -"]),
            (
                "deleted, and refused as if another one was there",
                false,
                &["0-1 put - a", "2-3 delete a", "4-5 refused a"],
            ),
            ("another version is deleted", false, &["0-1 put - a", "2-3 put a b", "4-5 delete a"]),
            ("what is not there is gone", true, &["0-1 delete a", "2-3 delete -", "4-5 put - a"]),
            (
                "created twice, deleted once",
                false,
                &["0-1 put - a", "2-9 delete a", "3-8 put - b", "10-11 put - c"],
            ),
            (
                "deleted beside a get of either",
                true,
                &["0-1 put - a", "2-9 delete a", "3-4 get a", "5-6 get -"],
            ),
            (
                "gone, and there again",
                false,
                &["0-1 put - a", "2-9 delete a", "3-4 get -", "5-6 get a"],
            ),
            (
                "no answer, and it goes much later",
                true,
                &["0-1 put - a", "2- delete? a", "3-4 get a", "5-6 get -", "7-8 put - b"],
            ),
            (
                "no answer, and it takes what came later",
                false,
                &["0-1 put - a", "2- delete? a", "3-4 put a b", "5-6 get -"],
            ),
            (
                "no answer to one that takes whatever is there",
                true,
                &["0-1 put - a", "2- delete? -", "3-4 put a b", "5-6 get -"],
            ),
            (
                "one delete without an answer is one",
                false,
                &["0-1 put - a", "2- delete? -", "3-4 get -", "5-6 put - b", "7-8 get -"],
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
            let is_open = |call: &Call| {
                let did = &call.did;
                matches!(
                    did,
                    Did::Put { is_known: false, .. } | Did::Deleted { is_known: false, .. }
                )
            };
            if left.iter().all(is_open) {
                return true;
            }
            (0..left.len()).any(|at| {
                let call = &left[at];
                if left.iter().any(|other| other.to < call.from) {
                    return false;
                }
                let mut rest = left.to_vec();
                rest.remove(at);
                match &call.did {
                    Did::Got(tag) => tag == current && go(current, &rest),
                    Did::Refused(old) => current.is_some() && old != current && go(current, &rest),
                    Did::Put { old, new, .. } => old == current && go(&Some(new.clone()), &rest),
                    Did::Deleted { only, .. } => {
                        let is_it = only.is_none() || only == current || current.is_none();
                        is_it && go(&None, &rest)
                    }
                }
            })
        }
        go(&None, calls)
    }

    mod random {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(2000))]

            /// Of any few calls it says what trying all orders says.
            #[test]
            fn agrees_with_all_orders(
                texts in prop::collection::vec((0..6usize, 0..4usize, 0..3usize, 0..9u64, 0..5u64), 1..7)
            ) {
                let names = ["-", "a", "b", "c"];
                // It is read in the end.
                let last = texts.len() % names.len();
                let mut calls = vec![Call { from: 99, to: 99, did: Did::Got(tag(names[last])) }];
                for (kind, old, new, from, len) in texts {
                    let (old, new) = (tag(names[old]), names[new + 1].to_owned());
                    let (did, is_known) = match kind {
                        0 => (Did::Got(old), true),
                        1 => (Did::Refused(old), true),
                        2 | 3 => (Did::Put { old, new, is_known: kind == 2 }, kind == 2),
                        _ => (Did::Deleted { only: old, is_known: kind == 4 }, kind == 4),
                    };
                    calls.push(Call { from, to: if is_known { from + len } else { u64::MAX }, did });
                }
                prop_assert_eq!(check(None, &calls).is_ok(), by_all_orders(&calls), "{:?}", calls);
            }
        }
    }

    /// Of a long history it comes to no more places than there are changes, whatever was never answered.
    #[test]
    fn a_long_history_is_decided() {
        let mut calls = Vec::new();
        for n in 0..5_000u64 {
            let (old, from) = (n.checked_sub(1).map(|old| format!("v{old}")), 10 * n);
            let lost = Did::Put { old: old.clone(), new: format!("lost {n}"), is_known: false };
            calls.push(Call { from, to: u64::MAX, did: lost });
            calls.push(call(&format!(
                "{}-{} put {} v{n}",
                from + 1,
                from + 25,
                old.as_deref().unwrap_or("-")
            )));
            calls.push(call(&format!("{}-{} get v{n}", from + 9, from + 30)));
        }
        assert_eq!(check(None, &calls), Ok(()));
        calls.push(call("60000-60001 get v17"));
        let error = check(None, &calls).unwrap_err();
        assert!(error.starts_with("10000 of 10001 calls"), "{error}");
    }
}
