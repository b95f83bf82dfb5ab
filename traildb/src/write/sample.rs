//! The part of the events that statistics are made from.
//!
//! Which events belong to it depends on their trail and place alone, not on the memory or the
//! threads that there are: the file is the same whatever it was made with.

use super::{group::Block, stream::Stream};
use crate::item::Uuid;

/// At most about so many times and values are looked at. Beyond that, more change little.
const CELLS_MAX: u64 = 1 << 25;
/// Events of a trail are taken or left in runs of so many, so that a single trail is sampled too.
const RUN_BITS: u32 = 9;

/// Says which events are of the sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampler {
    /// Of 2^32 runs, so many are taken.
    taken: u64,
}

impl Sampler {
    /// The sampler for events with so many times and values in all.
    pub(super) fn new(cells: u64) -> Sampler {
        Sampler { taken: (u128::from(CELLS_MAX) << 32).div_ceil(cells.max(1).into()) as u64 }
    }

    /// A sampler that takes one in `n` of what this one takes.
    pub(super) fn one_in(self, n: u64) -> Sampler {
        Sampler { taken: self.taken.min(1 << 32) / n }
    }

    pub(super) fn takes_all(self) -> bool {
        self.taken >= 1 << 32
    }

    /// Whether it takes the event of that number in the trail.
    #[inline]
    pub(super) fn takes(self, uuid: Uuid, event: u64) -> bool {
        if self.takes_all() {
            return true;
        }
        // Two rounds of multiplication and folding: UUIDs are often random, but need not be.
        let number = uuid.number();
        let mut hash = number as u64 ^ (number >> 64) as u64 ^ (event >> RUN_BITS) << 40;
        for _ in 0..2 {
            hash = (hash ^ hash >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
        hash >> 32 < self.taken
    }
}

/// The sample of grouped events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample<'g> {
    blocks: &'g [Block],
    sampler: Sampler,
}

impl<'g> Sample<'g> {
    pub(super) fn new(blocks: &'g [Block], sampler: Sampler) -> Sample<'g> {
        Sample { blocks, sampler }
    }

    /// A smaller sample of the same events.
    pub(super) fn one_in(self, n: u64) -> Sample<'g> {
        Sample { sampler: self.sampler.one_in(n), ..self }
    }

    /// Number of parts, which can be looked at in parallel.
    pub(super) fn parts(&self) -> usize {
        self.blocks.len()
    }

    /// Calls `event` with the keys of each event of a part, the delta first.
    pub(super) fn each(&self, part: usize, mut event: impl FnMut(&[u64])) {
        let mut stream = Stream::new(&self.blocks[part].bytes);
        let mut keys = Vec::new();
        while let Some(uuid) = stream.next_trail() {
            let mut n = 0;
            let mut takes = false;
            while stream.next_event(&mut keys) {
                if n % (1 << RUN_BITS) == 0 {
                    takes = self.sampler.takes(uuid, n);
                }
                if takes {
                    event(&keys);
                }
                n += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sampler_takes_its_share() {
        assert!(Sampler::new(0).takes_all() && Sampler::new(CELLS_MAX).takes_all());
        let third = Sampler::new(3 * CELLS_MAX);
        let trails = (0..30_000u128).filter(|&n| third.takes(Uuid::from_number(n << 77), 0));
        assert!((9_500..10_500).contains(&trails.count()), "of trails");
        let runs = (0..30_000u64).filter(|n| third.takes(Uuid::default(), n << RUN_BITS));
        assert!((9_500..10_500).contains(&runs.count()), "of runs of one trail");
    }
}
