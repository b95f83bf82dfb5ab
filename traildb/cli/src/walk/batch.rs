//! Decoded events whose values are still numbers.

use traildb::{Item, Uuid};

/// Items of a batch whose values come from afar: waiting for them is shared by many.
const BATCH_REMOTE: usize = 1 << 20;
/// Items of a batch whose values are at hand: they stay in the processor's cache.
const BATCH_LOCAL: usize = 1 << 15;

/// Bytes that an item or an event of a batch takes at most, with room to grow, and in the lists of
/// those whose values are looked for.
const ITEM_BYTES: u64 = 64;

/// Events of some shards, in the order in which they are printed.
pub(crate) struct Batch {
    pub(crate) steps: Vec<Step>,
    /// The trail that the first steps are of, if it began in a batch before.
    pub(crate) within: Option<Uuid>,
    /// Of each shard, for each of its events, its items: one for each column that is a field.
    pub(crate) items: Vec<Vec<Item>>,
    /// Shards that the walk has met any event of, in this batch or one before. Whether any of these was taken
    /// is for who takes them to know.
    pub(super) seen: Vec<bool>,
    held: usize,
    items_max: usize,
}

pub(crate) enum Step {
    /// A trail begins.
    Begin(Uuid),
    /// An event, with its time and shard.
    Event(u64, u32),
    /// The trail is over.
    End,
}

impl Batch {
    pub(super) fn new(shards: usize, is_remote: bool) -> Batch {
        let items_max = if is_remote { BATCH_REMOTE } else { BATCH_LOCAL };
        Batch {
            steps: Vec::new(),
            within: None,
            items: vec![Vec::new(); shards],
            seen: vec![false; shards],
            held: 0,
            items_max,
        }
    }

    /// Holds no more than so many bytes, unless few items take more.
    pub(super) fn hold_at_most(&mut self, bytes: u64) {
        let items = usize::try_from(bytes / ITEM_BYTES).unwrap_or(usize::MAX);
        self.items_max = self.items_max.min(items.max(BATCH_LOCAL));
    }

    /// Adds an event of `shard`.
    #[inline]
    pub(super) fn event(&mut self, time: u64, shard: usize, items: impl Iterator<Item = Item>) {
        let before = self.items[shard].len();
        self.items[shard].extend(items);
        self.seen[shard] = true;
        self.held += 1 + self.items[shard].len() - before;
        // Shards are far fewer than 2^32.
        self.steps.push(Step::Event(time, shard as u32));
    }

    pub(super) fn is_full(&self) -> bool {
        self.held >= self.items_max || self.steps.len() >= self.items_max
    }

    /// An empty batch that goes on behind this one.
    pub(super) fn next(&self, within: Option<Uuid>) -> Batch {
        Batch {
            steps: Vec::new(),
            within,
            items: vec![Vec::new(); self.items.len()],
            seen: self.seen.clone(),
            held: 0,
            items_max: self.items_max,
        }
    }

    /// Takes over the memory of a batch that is done with. There must be nothing in this one.
    pub(super) fn take_memory(&mut self, old: Batch) {
        let Batch { mut steps, mut items, .. } = old;
        steps.clear();
        items.iter_mut().for_each(Vec::clear);
        (self.steps, self.items) = (steps, items);
    }
}
