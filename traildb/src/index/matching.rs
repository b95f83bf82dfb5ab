//! The trails that can match a filter, in ascending order.
//!
//! ```text
//!   window of trails     |0110 1000 ...|      for each clause the union of its items' lists,
//!                      & |1110 0001 ...|      for the filter the intersection of its clauses
//! ```
//!
//! Lists are read along with the windows, so memory does not grow with the database. A clause with a
//! time, or with an item that must not be, says nothing about whole trails and is passed over: what
//! is found may be too much, never too little.

use std::{fmt, ops::Range, sync::Arc};

use super::{
    Index,
    layout::{Entry, number},
    postings::{self, List},
};
use crate::{
    container::Plan,
    error::Error,
    filter::{Clause, Filter, Term},
    item::Item,
    storage::Storage,
};

/// Trails that are looked at together: their bits stay in the first cache.
const WINDOW: u64 = 1 << 16;
/// Lists opened with one plan.
const BATCH: usize = 1024;

/// The trails that can match, ascending. An error ends it.
pub struct Matching<S: Storage> {
    index: Option<Arc<Index<S>>>,
    /// For each clause that says something, the lists of its items.
    clauses: Vec<Vec<List>>,
    /// Trails with a filter of their own, ascending, and whether that can match.
    own: Vec<(u64, bool)>,
    own_used: usize,
    /// Whether trails without a filter of their own can match at all.
    others: bool,
    trails: u64,
    window: Range<u64>,
    bits: Vec<u8>,
    clause_bits: Vec<u8>,
    /// The next trail of the window to look at.
    at: u64,
}

impl<S: Storage> Matching<S> {
    /// Trails that `filter` can match, with the help of `index` if there is one; those in `own` are
    /// in, or not, as it is said there.
    pub(crate) fn new(
        index: Option<Arc<Index<S>>>,
        filter: Option<&Filter>,
        mut own: Vec<(u64, bool)>,
        trails: u64,
    ) -> Result<Matching<S>, Error> {
        own.retain(|&(trail, _)| trail < trails);
        own.sort_unstable();
        let others = filter.is_none_or(|filter| filter.times().is_some() && !filter.is_none());
        let mut clauses = Vec::new();
        if let (Some(index), Some(filter), true) = (&index, filter, others) {
            for clause in filter.clauses() {
                if let Some(items) = positive_items(clause) {
                    clauses.push(index.lists(&items)?);
                }
            }
        }
        Ok(Matching {
            index,
            clauses,
            own,
            own_used: 0,
            others,
            trails,
            window: 0..0,
            bits: vec![0; (WINDOW / 8) as usize],
            clause_bits: vec![0; (WINDOW / 8) as usize],
            at: 0,
        })
    }

    /// Finds out about the next window. Returns whether there is one.
    fn advance(&mut self) -> Result<bool, Error> {
        let start = self.window.end;
        if start >= self.trails {
            return Ok(false);
        }
        self.window = start..self.trails.min(start + WINDOW);
        self.at = start;
        let len = self.window.end - start;
        self.bits.fill(0);
        if self.others {
            postings::set(&mut self.bits, 0..len);
        }
        if let Some(index) = &self.index {
            for lists in &mut self.clauses {
                self.clause_bits.fill(0);
                for list in lists {
                    let window = self.window.clone();
                    list.fill(&index.pages, window, self.trails, &mut self.clause_bits)?;
                }
                let pairs = self.bits.iter_mut().zip(&self.clause_bits);
                pairs.for_each(|(bits, clause)| *bits &= clause);
            }
        }
        while let Some(&(trail, can)) = self.own.get(self.own_used)
            && trail < self.window.end
        {
            let (byte, bit) = (((trail - start) / 8) as usize, 1 << ((trail - start) % 8));
            self.bits[byte] = self.bits[byte] & !bit | if can { bit } else { 0 };
            self.own_used += 1;
        }
        Ok(true)
    }
}

impl<S: Storage> Iterator for Matching<S> {
    type Item = Result<u64, Error>;

    fn next(&mut self) -> Option<Result<u64, Error>> {
        loop {
            while self.at < self.window.end {
                let at = self.at - self.window.start;
                let byte = self.bits[(at / 8) as usize] >> (at % 8);
                if byte == 0 {
                    self.at += 8 - at % 8;
                    continue;
                }
                let trail = self.at + u64::from(byte.trailing_zeros());
                self.at = trail + 1;
                // Bits behind the last trail are not set by sound lists.
                if trail < self.window.end {
                    return Some(Ok(trail));
                }
            }
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.window = self.trails..self.trails;
                    self.at = self.trails;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl<S: Storage> std::iter::FusedIterator for Matching<S> {}

impl<S: Storage> fmt::Debug for Matching<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matching").field("at", &self.at).finish_non_exhaustive()
    }
}

/// Whether an index can say of any trail that the filter does not match it.
pub(crate) fn restricts(filter: &Filter) -> bool {
    filter.clauses().iter().any(|clause| positive_items(clause).is_some())
}

/// The items of which a trail must have one to match the clause, or `None` if it need not.
fn positive_items(clause: &Clause) -> Option<Vec<Item>> {
    let mut items = Vec::new();
    for term in clause.terms() {
        match term {
            Term::Items(set) if !set.is_negated() => items.extend_from_slice(set.items()),
            _ => return None,
        }
    }
    Some(items)
}

impl<S: Storage> Index<S> {
    /// The lists of items, those of no trail left out. Items that the database does not have are in
    /// no trail.
    fn lists(&self, items: &[Item]) -> Result<Vec<List>, Error> {
        let mut lists = Vec::new();
        for batch in items.chunks(BATCH) {
            let known = |item: &&Item| (1..=self.head.fields).contains(&u32::from(item.field()));
            let mut known_items = Vec::new();
            for &item in batch.iter().filter(known) {
                if item.value() <= self.entry(item.field())?.count {
                    known_items.push(item);
                }
            }
            self.announce_slots(&known_items)?;
            let mut open: Vec<(u64, Entry)> = Vec::new();
            let mut plan = Plan::default();
            for item in known_items {
                match self.slot(item)? {
                    Slot::None => {}
                    Slot::One(trail) => lists.push(List::one(trail)),
                    Slot::List(at, entry) => {
                        self.plan_list(&mut plan, at, &entry);
                        open.push((at, entry));
                    }
                }
            }
            plan.announce(self.pages.members())?;
            let first = lists.len();
            for (at, entry) in open {
                let end = entry.lists_at + entry.lists_len;
                lists.push(List::open(&self.pages, at, end, self.head.trails)?);
            }
            let mut plan = Plan::default();
            for list in &mut lists[first..] {
                list.plan(&self.pages, &mut plan);
            }
            plan.announce(self.pages.members())?;
        }
        Ok(lists)
    }

    /// Announces where the lists of these items start, whose slots have arrived.
    pub(super) fn announce_lists(&self, items: &[Item]) -> Result<(), Error> {
        if !self.pages.members().is_remote() {
            return Ok(());
        }
        let mut plan = Plan::default();
        for &item in items {
            if let Slot::List(at, entry) = self.slot(item)? {
                self.plan_list(&mut plan, at, &entry);
            }
        }
        plan.announce(self.pages.members())
    }

    fn plan_list(&self, plan: &mut Plan, at: u64, entry: &Entry) {
        let end = entry.lists_at + entry.lists_len;
        self.pages.plan(plan, at..end.min(at + postings::HEAD_BYTES));
    }

    /// Where the trails of an item are, which the index has (K5).
    fn slot(&self, item: Item) -> Result<Slot, Error> {
        let entry = self.entry(item.field())?;
        let at = entry.slots_at + item.value() * entry.slot_width;
        let mut bytes = Vec::new();
        self.pages.read(at..at + entry.slot_width, &mut bytes)?;
        let slot = number(&bytes);
        if slot & 1 == 1 {
            return match slot >> 1 {
                trail if trail < self.head.trails => Ok(Slot::One(trail)),
                _ => Err(self.pages.damaged(at, "a trail that does not exist")),
            };
        }
        match (slot >> 1).checked_sub(1) {
            None => Ok(Slot::None),
            Some(list) if list < entry.lists_len => Ok(Slot::List(entry.lists_at + list, entry)),
            Some(_) => Err(self.pages.damaged(at, "a list outside the lists")),
        }
    }
}

/// Where the trails of an item are.
enum Slot {
    None,
    One(u64),
    /// The position of the list, and the entry of its field.
    List(u64, Entry),
}
