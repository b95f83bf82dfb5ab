//! What eviction policies keep: entries in a slab, queues threaded through it, an index by key.
//!
//! ```text
//!   index   key -> slot           4 bytes for each slot of an open-addressed table
//!   slab    [ key | tag | prev | next ]          24 bytes for each entry
//!   Queue   head (newest) <-> ... <-> tail (oldest), with its length and its bytes
//! ```
//!
//! A pager with 4 KiB units and a budget of 1 GiB has 262,144 entries, and S3-FIFO remembers nearly
//! as many ghosts: at 32 bytes each this takes 16 MiB, where a `HashMap` of boxed nodes takes over
//! 50. That is why the index and the lists are written out here.

/// No entry: the end of a list, an empty slot.
pub(super) const NONE: u32 = u32::MAX;

/// Weights are kept in 40 bits: an entry of 1 TiB and more counts as one of 1 TiB.
const WEIGHT_BITS: u32 = 40;
const WEIGHT_MAX: u64 = (1 << WEIGHT_BITS) - 1;

const QUEUE_AT: u32 = WEIGHT_BITS;
const FREQUENCY_AT: u32 = QUEUE_AT + 2;
const FLAGS_AT: u32 = FREQUENCY_AT + 2;

/// A bit of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flag {
    /// Fetched for nobody, and not asked for since.
    Guess,
    /// Named as a victim, and not refused since.
    Named,
}

/// One entry of the slab.
#[derive(Clone, Copy, Debug)]
struct Node {
    key: u64,
    /// Weight, queue, frequency, flags: see the constants above.
    tag: u64,
    /// Towards the head: newer.
    prev: u32,
    /// Towards the tail: older. In a free slot, the next free slot.
    next: u32,
}

/// A list of entries, newest at the head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    head: u32,
    tail: u32,
    len: usize,
    /// A sum of up to 2^32 weights of 40 bits.
    bytes: u128,
}

impl Default for Queue {
    fn default() -> Queue {
        Queue { head: NONE, tail: NONE, len: 0, bytes: 0 }
    }
}

impl Queue {
    /// The oldest entry.
    pub(super) fn tail(&self) -> Option<u32> {
        (self.tail != NONE).then_some(self.tail)
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Sum of the entries' weights.
    pub(super) fn bytes(&self) -> u128 {
        self.bytes
    }
}

/// The slab, its index, and `N` queues. `N` is at most 4: an entry names its queue in two bits.
#[derive(Clone, Debug)]
pub(super) struct Entries<const N: usize> {
    nodes: Vec<Node>,
    free: u32,
    live: usize,
    index: Vec<u32>,
    queues: [Queue; N],
}

impl<const N: usize> Default for Entries<N> {
    fn default() -> Entries<N> {
        const { assert!(N <= 4, "an entry names its queue in two bits") };
        Entries {
            nodes: Vec::new(),
            free: NONE,
            live: 0,
            index: vec![NONE; 16],
            queues: [Queue::default(); N],
        }
    }
}

impl<const N: usize> Entries<N> {
    /// One of the queues.
    pub(super) fn queue(&self, queue: usize) -> &Queue {
        &self.queues[queue]
    }

    /// The entry of `key`.
    pub(super) fn find(&self, key: u64) -> Option<u32> {
        let at = self.index[self.slot_of(key)];
        (at != NONE).then_some(at)
    }

    /// Adds `key`, which is not there, at the head of `queue`, with frequency 0.
    pub(super) fn insert(&mut self, key: u64, weight: u64, queue: usize) -> u32 {
        // At most three slots of four are used, or probing would take long.
        if (self.live + 1) * 4 > self.index.len() * 3 {
            self.resize(self.index.len() * 2);
        }
        let slot = self.slot_of(key);
        debug_assert_eq!(self.index[slot], NONE, "key {key} is there already");
        let node = Node { key, tag: weight.min(WEIGHT_MAX), prev: NONE, next: NONE };
        let at = if self.free == NONE {
            let at = u32::try_from(self.nodes.len()).expect("entries take memory: never 2^32");
            assert!(at != NONE, "entries take memory: there are never 2^32");
            self.nodes.push(node);
            at
        } else {
            let at = self.free;
            self.free = self.nodes[at as usize].next;
            self.nodes[at as usize] = node;
            at
        };
        self.index[slot] = at;
        self.live += 1;
        self.link(at, queue);
        at
    }

    /// Forgets an entry.
    pub(super) fn remove(&mut self, at: u32) {
        self.unlink(at);
        self.unindex(self.nodes[at as usize].key);
        self.nodes[at as usize].next = self.free;
        self.free = at;
        self.live -= 1;
        // A large region was closed: give its memory back.
        if self.live == 0 && self.nodes.len() > 1024 {
            *self = Entries::default();
        }
    }

    /// Moves an entry to the head of `queue`, which may be its own.
    pub(super) fn move_to_head(&mut self, at: u32, queue: usize) {
        self.unlink(at);
        self.link(at, queue);
    }

    /// The key of an entry.
    pub(super) fn key(&self, at: u32) -> u64 {
        self.nodes[at as usize].key
    }

    /// The entry next to `at` towards the head.
    pub(super) fn newer(&self, at: u32) -> Option<u32> {
        let newer = self.nodes[at as usize].prev;
        (newer != NONE).then_some(newer)
    }

    /// The queue that holds an entry.
    pub(super) fn queue_of(&self, at: u32) -> usize {
        self.bits(at, QUEUE_AT, 3) as usize
    }

    /// How often an entry was asked for, 0 to 3.
    pub(super) fn frequency(&self, at: u32) -> u64 {
        self.bits(at, FREQUENCY_AT, 3)
    }

    /// Sets how often an entry was asked for; more than 3 counts as 3.
    pub(super) fn set_frequency(&mut self, at: u32, frequency: u64) {
        self.set_bits(at, FREQUENCY_AT, 3, frequency.min(3));
    }

    /// Whether a flag of an entry is set.
    pub(super) fn has(&self, at: u32, flag: Flag) -> bool {
        self.bits(at, FLAGS_AT + flag as u32, 1) == 1
    }

    /// Sets or clears a flag of an entry.
    pub(super) fn set(&mut self, at: u32, flag: Flag, value: bool) {
        self.set_bits(at, FLAGS_AT + flag as u32, 1, u64::from(value));
    }

    /// The weight of an entry.
    pub(super) fn weight(&self, at: u32) -> u64 {
        self.bits(at, 0, WEIGHT_MAX)
    }

    fn bits(&self, at: u32, shift: u32, mask: u64) -> u64 {
        self.nodes[at as usize].tag >> shift & mask
    }

    fn set_bits(&mut self, at: u32, shift: u32, mask: u64, value: u64) {
        let tag = &mut self.nodes[at as usize].tag;
        *tag = *tag & !(mask << shift) | value << shift;
    }

    fn link(&mut self, at: u32, queue: usize) {
        self.set_bits(at, QUEUE_AT, 3, queue as u64);
        let weight = self.weight(at);
        let list = &mut self.queues[queue];
        let head = std::mem::replace(&mut list.head, at);
        if head == NONE {
            list.tail = at;
        } else {
            self.nodes[head as usize].prev = at;
        }
        let list = &mut self.queues[queue];
        list.len += 1;
        list.bytes += u128::from(weight);
        let node = &mut self.nodes[at as usize];
        (node.prev, node.next) = (NONE, head);
    }

    fn unlink(&mut self, at: u32) {
        let queue = self.queue_of(at);
        let weight = self.weight(at);
        let Node { prev, next, .. } = self.nodes[at as usize];
        match prev {
            NONE => self.queues[queue].head = next,
            _ => self.nodes[prev as usize].next = next,
        }
        match next {
            NONE => self.queues[queue].tail = prev,
            _ => self.nodes[next as usize].prev = prev,
        }
        let list = &mut self.queues[queue];
        list.len -= 1;
        list.bytes -= u128::from(weight);
    }

    /// The slot of `key`, or the empty slot where it would go.
    fn slot_of(&self, key: u64) -> usize {
        let mask = self.index.len() - 1;
        let mut slot = home(key) & mask;
        // Ends: at least one slot of four is empty.
        while self.index[slot] != NONE && self.nodes[self.index[slot] as usize].key != key {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Takes `key` out of the index, and moves those behind it up, so that no probe stops early.
    fn unindex(&mut self, key: u64) {
        let mask = self.index.len() - 1;
        let mut hole = self.slot_of(key);
        let mut slot = hole;
        loop {
            slot = (slot + 1) & mask;
            let at = self.index[slot];
            if at == NONE {
                break;
            }
            // It may move back to the hole unless its home lies behind the hole.
            let from_home = slot.wrapping_sub(home(self.nodes[at as usize].key)) & mask;
            if from_home >= slot.wrapping_sub(hole) & mask {
                self.index[hole] = at;
                hole = slot;
            }
        }
        self.index[hole] = NONE;
    }

    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.index, vec![NONE; slots]);
        for at in old.into_iter().filter(|&at| at != NONE) {
            let slot = self.slot_of(self.nodes[at as usize].key);
            self.index[slot] = at;
        }
    }
}

/// Spreads a key over all bits: the finaliser of MurmurHash3 (Austin Appleby). Keys come from the
/// pager and not from outside, so nobody can choose them to collide.
fn home(key: u64) -> usize {
    let mut hash = key;
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (hash ^ hash >> 33) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, VecDeque};

    #[test]
    fn an_entry_takes_24_bytes() {
        assert_eq!(size_of::<Node>(), 24);
    }

    #[test]
    fn the_tag_keeps_its_fields_apart() {
        let mut entries = Entries::<4>::default();
        let at = entries.insert(u64::MAX, u64::MAX, 3);
        entries.set_frequency(at, 9);
        entries.set(at, Flag::Named, true);
        assert_eq!(entries.weight(at), WEIGHT_MAX, "capped");
        assert_eq!((entries.frequency(at), entries.queue_of(at)), (3, 3));
        assert!(entries.has(at, Flag::Named) && !entries.has(at, Flag::Guess));
        entries.move_to_head(at, 1);
        entries.set(at, Flag::Guess, true);
        entries.set(at, Flag::Named, false);
        assert!(entries.has(at, Flag::Guess) && !entries.has(at, Flag::Named));
        assert_eq!((entries.queue_of(at), entries.frequency(at)), (1, 3));
        assert_eq!(entries.queue(1).bytes(), u128::from(WEIGHT_MAX));
        assert_eq!((entries.queue(3).len(), entries.queue(3).bytes()), (0, 0));
    }

    #[test]
    fn memory_of_a_closed_region_is_given_back() {
        let mut entries = Entries::<1>::default();
        for key in 0..10_000 {
            entries.insert(key, 1, 0);
        }
        while let Some(at) = entries.queue(0).tail() {
            entries.remove(at);
        }
        assert_eq!((entries.nodes.capacity(), entries.index.len()), (0, 16));
    }

    proptest! {
        /// Slab, index and queues agree with a map and two deques. Few keys, so that they collide
        /// in a table of 16 slots, which then grows.
        #[test]
        fn entries_match_a_model(ops in prop::collection::vec((0..3u8, 0..40u64, 0..2usize), 0..400)) {
            let mut entries = Entries::<2>::default();
            let mut model: HashMap<u64, usize> = HashMap::new();
            let mut lists: [VecDeque<u64>; 2] = Default::default();
            for (op, key, queue) in ops {
                let found = entries.find(key);
                prop_assert_eq!(found.is_some(), model.contains_key(&key));
                if let (1.., Some(&old)) = (op, model.get(&key)) {
                    lists[old].retain(|&k| k != key);
                }
                match (op, found) {
                    (0, None) => {
                        entries.insert(key, key + 1, queue);
                        model.insert(key, queue);
                        lists[queue].push_front(key);
                    }
                    (1, Some(at)) => {
                        entries.move_to_head(at, queue);
                        model.insert(key, queue);
                        lists[queue].push_front(key);
                    }
                    (2, Some(at)) => {
                        entries.remove(at);
                        model.remove(&key);
                    }
                    _ => {}
                }
                for (queue, list) in lists.iter().enumerate() {
                    let mut keys = Vec::new();
                    let mut next = entries.queue(queue).tail();
                    while let Some(at) = next {
                        keys.push(entries.key(at));
                        next = entries.newer(at);
                    }
                    prop_assert!(keys.iter().rev().eq(list.iter()));
                    prop_assert_eq!(entries.queue(queue).len(), list.len());
                    let bytes: u64 = list.iter().map(|key| key + 1).sum();
                    prop_assert_eq!(entries.queue(queue).bytes(), u128::from(bytes));
                }
            }
        }
    }
}
