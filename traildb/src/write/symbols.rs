//! What code words stand for, and how an event is covered by them.
//!
//! ```text
//!   event     time, item, item, item
//!   found     (time, item 1) (time, item 3) (item 2, item 3)     pairs that have code words
//!   taken     the pair that saves most, then the next that shares no item with it, ...
//! ```

use hashbrown::HashMap;

use super::stream;

/// No item, or no pair.
pub(super) const NONE: u32 = u32::MAX;

/// Costs are counted in so many parts of a bit.
pub(super) const BIT: u32 = 256;

/// Items of an event that are looked at for pairs: those that occur most often. Without a bound, an
/// event of thousands of items would take millions of pairs.
const PAIR_ITEMS_MAX: usize = 32;

/// Items and pairs that may have code words, and what writing each costs.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    /// Numbers of items, by key. The most frequent item is number 0.
    items: HashMap<u64, Known>,
    /// Numbers of pairs, by the numbers of their items.
    pairs: HashMap<u64, u32>,
    /// By pair: what it saves, in parts of a bit, against its items. 0 if it is not to be used.
    pub(super) savings: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    id: u32,
    /// Whether there are pairs with it in first, or second, place.
    first: bool,
    second: bool,
}

impl Symbols {
    /// The items of these keys, and no pairs.
    pub(super) fn new(keys: impl IntoIterator<Item = u64>) -> Symbols {
        let known = |id| Known { id, first: false, second: false };
        let items = keys.into_iter().zip(0..).map(|(key, id)| (key, known(id))).collect();
        Symbols { items, ..Symbols::default() }
    }

    /// The number of an item, or [`NONE`].
    #[inline]
    pub(super) fn item(&self, key: u64) -> u32 {
        self.items.get(&key).map_or(NONE, |known| known.id)
    }

    /// Makes these the pairs that are used. `keys` are those of the items by number.
    pub(super) fn set_pairs(&mut self, keys: &[u64], pairs: &[(u32, u32)], savings: Vec<u32>) {
        for known in self.items.values_mut() {
            (known.first, known.second) = (false, false);
        }
        self.pairs.clear();
        for (number, (&(a, b), &saving)) in pairs.iter().zip(&savings).enumerate() {
            if saving > 0 {
                self.pairs.insert(pair_key(a, b), number as u32);
                self.items.get_mut(&keys[a as usize]).expect("a known item").first = true;
                self.items.get_mut(&keys[b as usize]).expect("a known item").second = true;
            }
        }
        self.savings = savings;
    }
}

/// The two numbers of a pair as one.
#[inline]
pub(super) fn pair_key(a: u32, b: u32) -> u64 {
    u64::from(a) << 32 | u64::from(b)
}

/// How one event is covered. Used again for the next.
#[derive(Debug, Default)]
pub(super) struct Cover {
    /// By position in the event: the number of the item, or [`NONE`].
    pub(super) items: Vec<u32>,
    /// By position: the pair that starts there and the position of its second item; [`NONE`] if the
    /// item is alone.
    pub(super) pairs: Vec<(u32, u32)>,
    /// By position: whether it is the second item of a pair.
    pub(super) is_second: Vec<bool>,
    candidates: Vec<(u32, usize, Known)>,
    found: Vec<(u32, usize, usize, u32)>,
}

impl Cover {
    /// Covers an event, which starts with its time.
    #[inline]
    pub(super) fn event(&mut self, symbols: &Symbols, keys: &[u64]) {
        self.items.clear();
        self.candidates.clear();
        for (at, key) in keys.iter().enumerate() {
            let known = symbols.items.get(key);
            self.items.push(known.map_or(NONE, |known| known.id));
            if let Some(&known) = known.filter(|known| known.first || known.second) {
                self.candidates.push((known.id, at, known));
            }
        }
        self.pairs.clear();
        self.pairs.resize(keys.len(), (NONE, 0));
        self.is_second.clear();
        self.is_second.resize(keys.len(), false);
        if self.candidates.len() > 1 {
            self.join(symbols);
        }
    }

    fn join(&mut self, symbols: &Symbols) {
        most_frequent(&mut self.candidates, |&(id, ..)| id, |&(_, at, _)| at);
        self.found.clear();
        for (n, &(a, at, known)) in self.candidates.iter().enumerate() {
            if !known.first {
                continue;
            }
            for &(b, then, known) in &self.candidates[n + 1..] {
                if known.second
                    && let Some(&pair) = symbols.pairs.get(&pair_key(a, b))
                {
                    self.found.push((symbols.savings[pair as usize], at, then, pair));
                }
            }
        }
        if self.found.len() > 1 {
            let order = |&(saving, at, then, _): &(u32, usize, usize, u32)| {
                (std::cmp::Reverse(saving), at, then)
            };
            self.found.sort_unstable_by_key(order);
        }
        for &(_, at, then, pair) in &self.found {
            let free = |at: usize| self.pairs[at].0 == NONE && !self.is_second[at];
            if free(at) && free(then) {
                self.pairs[at] = (pair, then as u32);
                self.is_second[then] = true;
            }
        }
    }
}

/// Keeps the [`PAIR_ITEMS_MAX`] candidates with the lowest numbers, in the order of the event.
pub(super) fn most_frequent<T>(
    candidates: &mut Vec<T>,
    id: impl Fn(&T) -> u32,
    at: impl Fn(&T) -> usize,
) {
    if candidates.len() > PAIR_ITEMS_MAX {
        candidates.sort_unstable_by_key(id);
        candidates.truncate(PAIR_ITEMS_MAX);
        candidates.sort_unstable_by_key(at);
    }
}

/// What a literal takes, in bits.
#[derive(Clone, Debug)]
pub(super) struct Literals {
    /// Bits of the field.
    pub(super) field_bits: u32,
    /// Bits of the value, by field; field 0 is the delta.
    pub(super) value_bits: Vec<u32>,
}

impl Literals {
    /// Bits of the literal of an item, its flag included.
    #[inline]
    pub(super) fn bits(&self, key: u64) -> u32 {
        1 + self.field_bits + self.value_bits[usize::from(stream::field(key))]
    }
}
