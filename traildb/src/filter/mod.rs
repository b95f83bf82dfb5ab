//! Which events are wanted: a filter in conjunctive normal form.
//!
//! ```text
//!   text --parse--> Expr --load_files--> Expr --bind(&Reader)--> Filter --> cursor, scan, index
//!                   names and bytes                               items
//! ```
//!
//! [`Expr`] knows no database and can be bound to many; [`Filter`] speaks of the items of one.

mod date; // points in time as text
mod expr; // names and bytes; binding them to a database
mod parse; // the grammar
mod compat; // that of the C library's command
mod place; // errors that show where

use std::{
    ops::{Bound, RangeBounds, RangeInclusive},
    sync::Arc,
};

pub use compat::parse_compat;
pub use expr::{BindError, Expr, FileValues, UnknownFields};
pub use parse::parse;
pub use place::ParseError;

use crate::item::Item;

/// A condition on events: all clauses hold. A clause holds if one of its terms does.
///
/// As in the C library, a filter without clauses matches every event, a clause without terms
/// matches none, and one of an empty field is asked for by the item of number 0.
///
/// Items belong to the database that they come from: with those of another a filter finds nothing,
/// or something else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    clauses: Vec<Clause>,
}

/// Terms of which one has to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    terms: Vec<Term>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Term {
    /// The event has one of these items, or, negated, none of them.
    Items(ItemSet),
    /// The timestamp is from `first` to `last`, both included. No event is if `first > last`.
    Time {
        /// The first timestamp that matches.
        first: u64,
        /// The last timestamp that matches.
        last: u64,
    },
}

/// Items of one field, to be in or not to be in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemSet {
    field: u16,
    /// Ascending, each once.
    items: Arc<[Item]>,
    negated: bool,
}

impl ItemSet {
    pub(crate) fn new(field: u16, mut items: Vec<Item>, negated: bool) -> ItemSet {
        items.sort_unstable();
        items.dedup();
        ItemSet { field, items: items.into(), negated }
    }

    /// The field that all items are of; 0 if there are none.
    pub fn field(&self) -> u16 {
        self.field
    }

    /// The items, in ascending order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Whether the event must have none of the items.
    pub fn is_negated(&self) -> bool {
        self.negated
    }

    /// Whether every event or none fulfils this, whatever it holds.
    fn constant(&self) -> Option<bool> {
        self.items.is_empty().then_some(self.negated)
    }

    #[inline]
    fn matches(&self, event: &[Item]) -> bool {
        let Some(item) = usize::from(self.field).checked_sub(1).and_then(|k| event.get(k)) else {
            return self.negated;
        };
        let found = match &*self.items {
            [one] => one == item,
            many => many.binary_search(item).is_ok(),
        };
        found != self.negated
    }
}

impl Term {
    /// The event has `item`.
    pub fn is(item: Item) -> Term {
        Term::Items(ItemSet::new(item.field(), vec![item], false))
    }

    /// The event does not have `item`.
    pub fn is_not(item: Item) -> Term {
        Term::Items(ItemSet::new(item.field(), vec![item], true))
    }

    /// The event has one of `items`, all of one field. No event has, if there are none.
    ///
    /// # Panics
    /// When the items are not of one field.
    pub fn one_of(items: impl IntoIterator<Item = Item>) -> Term {
        Term::set(items, false)
    }

    /// The event has none of `items`, all of one field. Every event is like this, if there are
    /// none.
    ///
    /// # Panics
    /// When the items are not of one field.
    pub fn none_of(items: impl IntoIterator<Item = Item>) -> Term {
        Term::set(items, true)
    }

    fn set(items: impl IntoIterator<Item = Item>, negated: bool) -> Term {
        let items: Vec<Item> = items.into_iter().collect();
        let field = items.first().map_or(0, |item| item.field());
        assert!(items.iter().all(|item| item.field() == field), "items of one field");
        Term::Items(ItemSet::new(field, items, negated))
    }

    /// The timestamp lies in `times`: `from..until`, `from..`, `..=last`.
    pub fn time(times: impl RangeBounds<u64>) -> Term {
        let first = match times.start_bound() {
            Bound::Unbounded => Some(0),
            Bound::Included(&first) => Some(first),
            Bound::Excluded(&before) => before.checked_add(1),
        };
        let last = match times.end_bound() {
            Bound::Unbounded => Some(u64::MAX),
            Bound::Included(&last) => Some(last),
            Bound::Excluded(&until) => until.checked_sub(1),
        };
        match (first, last) {
            (Some(first), Some(last)) if first <= last => Term::Time { first, last },
            _ => Term::Time { first: 1, last: 0 },
        }
    }

    /// Whether every event or none fulfils this, whatever it holds.
    fn constant(&self) -> Option<bool> {
        match self {
            Term::Items(set) => set.constant(),
            Term::Time { first: 0, last: u64::MAX } => Some(true),
            Term::Time { first, last } => (first > last).then_some(false),
        }
    }

    #[inline]
    fn matches(&self, time: u64, event: &[Item]) -> bool {
        match self {
            Term::Items(set) => set.matches(event),
            Term::Time { first, last } => (*first..=*last).contains(&time),
        }
    }
}

impl Clause {
    /// A clause of these terms. Without any, it matches no event.
    pub fn new(terms: impl IntoIterator<Item = Term>) -> Clause {
        let mut clause = Clause::default();
        for term in terms {
            match term.constant() {
                Some(true) => return Clause { terms: vec![Term::time(..)] },
                Some(false) => {}
                None => clause.terms.push(term),
            }
        }
        clause
    }

    /// The terms. Those that no event fulfils are left out, and of a clause that every event
    /// fulfils one term is left that says so.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    fn is_always(&self) -> bool {
        self.terms.iter().any(|term| term.constant() == Some(true))
    }
}

impl Filter {
    /// The filter that matches every event.
    pub fn all() -> Filter {
        Filter::default()
    }

    /// The filter that matches no event. As the filter of a database it hides all trails that have
    /// no filter of their own.
    pub fn none() -> Filter {
        Filter { clauses: vec![Clause::default()] }
    }

    /// A filter that one clause after the other is added to with [`and`](Filter::and).
    pub fn new(clauses: impl IntoIterator<Item = Clause>) -> Filter {
        clauses.into_iter().fold(Filter::all(), Filter::and)
    }

    /// This filter, and one of the terms of `clause`.
    #[must_use]
    pub fn and(mut self, clause: Clause) -> Filter {
        if self.is_none() || clause.is_always() {
            return self;
        }
        if clause.terms.is_empty() {
            return Filter::none();
        }
        self.clauses.push(clause);
        self
    }

    /// The clauses, all of which must hold. Those that always do are left out.
    pub fn clauses(&self) -> &[Clause] {
        &self.clauses
    }

    /// Whether every event matches.
    pub fn is_all(&self) -> bool {
        self.clauses.is_empty()
    }

    /// Whether it is certain, without a look at any event, that none matches.
    pub fn is_none(&self) -> bool {
        self.clauses.iter().any(|clause| clause.terms.is_empty())
    }

    /// Whether an event with this timestamp and these items (one for each user field, in order)
    /// matches. An item of a field that the event lacks does not match, its negation does.
    #[inline]
    pub fn matches(&self, time: u64, items: &[Item]) -> bool {
        self.clauses.iter().all(|clause| clause.terms.iter().any(|term| term.matches(time, items)))
    }

    /// The field, the item and whether it is negated, where that is all that is asked for.
    pub(crate) fn only_item(&self) -> Option<(u16, Item, bool)> {
        match &self.clauses[..] {
            [clause] => match &clause.terms[..] {
                [Term::Items(set)] => match *set.items {
                    [item] => Some((set.field, item, set.negated)),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        }
    }

    /// The field and the item, no NULL, without which no event matches, if it is easy to see.
    pub(crate) fn needed_item(&self) -> Option<(u16, Item)> {
        self.clauses.iter().find_map(|clause| match &clause.terms[..] {
            [Term::Items(set)] if !set.negated => match *set.items {
                [item] if !item.is_null() => Some((set.field, item)),
                _ => None,
            },
            _ => None,
        })
    }

    /// Timestamps outside of which no event matches; those within need not. `None` if no event can
    /// match at all.
    pub fn times(&self) -> Option<RangeInclusive<u64>> {
        let (mut first, mut last) = (0, u64::MAX);
        for clause in &self.clauses {
            let mut hull: Option<(u64, u64)> = None;
            let only_times = clause.terms.iter().all(|term| match *term {
                Term::Time { first, last } => {
                    let (a, b) = hull.unwrap_or((first, last));
                    hull = Some((a.min(first), b.max(last)));
                    true
                }
                Term::Items(_) => false,
            });
            if only_times {
                let (a, b) = hull?;
                (first, last) = (first.max(a), last.min(b));
            }
        }
        (first <= last).then_some(first..=last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_term_matches() {
        let item = |field, value| Item::new(field, value);
        let event = [item(1, 5), item(2, 0), item(3, 7)];
        let cases = [
            ("has it", Term::is(item(1, 5)), true),
            ("has another", Term::is(item(1, 6)), false),
            ("not another", Term::is_not(item(1, 6)), true),
            ("NULL", Term::is(item(2, 0)), true),
            ("a field that is not there", Term::is(item(9, 1)), false),
            ("not in a field that is not there", Term::is_not(item(9, 1)), true),
            ("one of many", Term::one_of([item(3, 9), item(3, 7), item(3, 7)]), true),
            ("none of many", Term::none_of([item(3, 9), item(3, 7)]), false),
            ("one of none", Term::one_of([]), false),
            ("none of none", Term::none_of([]), true),
            ("at its first second", Term::time(100..101), true),
            ("one second late", Term::time(..100), false),
            ("up to it", Term::time(..=100), true),
            ("from later on", Term::time(101..), false),
            ("an empty range", Term::time(50..50), false),
        ];
        for (what, term, expected) in cases {
            assert_eq!(term.matches(100, &event), expected, "{what}");
            let filter = Filter::new([Clause::new([term])]);
            assert_eq!(filter.matches(100, &event), expected, "{what}, as a filter");
        }
    }

    #[test]
    fn filters_that_are_all_or_none() {
        let term = || Term::is(Item::new(1, 1));
        assert!(Filter::all().is_all() && Filter::all().matches(0, &[]));
        assert!(Filter::none().is_none() && !Filter::none().matches(0, &[]));
        let empty = Filter::new([Clause::new([term()]), Clause::new([])]);
        assert!(empty.is_none() && empty.and(Clause::new([term()])).is_none());
        let always = Clause::new([term(), Term::none_of([])]);
        assert_eq!((always.terms().len(), Filter::new([always]).is_all()), (1, true));
        let never = Clause::new([Term::one_of([]), Term::time(5..5)]);
        assert!(Filter::new([never]).is_none());
    }

    #[test]
    fn times_that_can_match() {
        let time = |range: std::ops::Range<u64>| Clause::new([Term::time(range)]);
        let or_item = Clause::new([Term::time(0..5), Term::is(Item::new(1, 1))]);
        let two = Clause::new([Term::time(10..20), Term::time(30..40)]);
        let cases = [
            ("none", vec![], Some(0..=u64::MAX)),
            ("two clauses", vec![time(10..50), time(0..20)], Some(10..=19)),
            ("apart", vec![time(10..20), time(20..30)], None),
            ("one of two", vec![two.clone()], Some(10..=39)),
            ("with an item", vec![or_item, two], Some(10..=39)),
            ("never", vec![Clause::new([])], None),
        ];
        for (what, clauses, expected) in cases {
            assert_eq!(Filter::new(clauses).times(), expected, "{what}");
        }
    }
}
