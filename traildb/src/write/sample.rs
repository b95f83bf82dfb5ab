//! The part of the events that statistics are made from.
//!
//! Which events belong to it depends on their trail and place alone, not on the memory or the
//! threads that there are: the file is the same whatever it was made with.

use super::{
    group::Block,
    parallel,
    stream::{self, Stream},
    window::{self, Part},
};
use crate::{error::Error, item::Uuid};

/// At most about so many times and values are looked at. Beyond that, more change little: four times
/// as many make a database of 5 million events 0.02 % smaller. Unit tests sample little data too.
const CELLS_MAX: u64 = if cfg!(test) { 1 << 9 } else { 1 << 23 };
/// Events of a trail are taken or left in runs of so many, so that a single trail is sampled too.
pub(super) const RUN_EVENTS: u64 = if cfg!(test) { 4 } else { 1 << 9 };

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

    /// How many of so many keys are in the sample, about.
    pub(super) fn share(self, keys: u64) -> u64 {
        (u128::from(keys) * u128::from(self.taken.min(1 << 32)) >> 32) as u64
    }

    /// Whether it takes the run of events of that hash.
    #[inline]
    pub(super) fn takes(self, hash: u64) -> bool {
        hash >> 32 < self.taken
    }
}

/// By what a run of events is chosen: its trail, and the number of its first event there.
#[inline]
pub(super) fn hash(uuid: Uuid, event: u64) -> u64 {
    // Two rounds of multiplication and folding: UUIDs are often random, but need not be.
    let number = uuid.number();
    let mut hash = number as u64 ^ (number >> 64) as u64 ^ (event / RUN_EVENTS) << 40;
    for _ in 0..2 {
        hash = (hash ^ hash >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    hash
}

/// The sample of grouped events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample<'g> {
    parts: Parts<'g>,
    sampler: Sampler,
}

/// Where the events are.
#[derive(Clone, Copy, Debug)]
enum Parts<'g> {
    Blocks(&'g [Block]),
    Files(&'g [Part]),
    /// Only the events that the first sampler took, each run of them under its hash instead of its
    /// UUID.
    Hashed(&'g [Part]),
    /// The same in memory.
    Held(&'g [Vec<u8>]),
}

impl<'g> Sample<'g> {
    pub(super) fn of_blocks(blocks: &'g [Block], sampler: Sampler) -> Sample<'g> {
        Sample { parts: Parts::Blocks(blocks), sampler }
    }

    /// The sample of all events of these files.
    pub(super) fn of_files(files: &'g [Part], sampler: Sampler) -> Sample<'g> {
        Sample { parts: Parts::Files(files), sampler }
    }

    /// A sample that has been taken: the files have nothing else, and hashes in place of UUIDs.
    pub(super) fn of_hashed(files: &'g [Part], sampler: Sampler) -> Sample<'g> {
        Sample { parts: Parts::Hashed(files), sampler }
    }

    /// A sample that is [held](Sample::hold).
    pub(super) fn of_held(held: &'g [Vec<u8>], sampler: Sampler) -> Sample<'g> {
        Sample { parts: Parts::Held(held), sampler }
    }

    pub(super) fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// Whether looking at it means to pass over events that are not in it.
    pub(super) fn is_thin(&self) -> bool {
        matches!(self.parts, Parts::Blocks(_)) && !self.sampler.takes_all()
    }

    /// The events of the sample alone: they are looked at several times, and the others need not be.
    ///
    /// # Errors
    /// When a temporary file cannot be read.
    pub(super) fn hold(&self, threads: usize) -> Result<Vec<Vec<u8>>, Error> {
        let hold = |part| {
            let (mut held, mut run) = (Vec::new(), None);
            self.walk_part(part, |hash, keys| {
                if run != Some(hash) {
                    if run.replace(hash).is_some() {
                        stream::put_end(&mut held);
                    }
                    stream::put_trail(&mut held, Uuid::from_number(hash.into()));
                }
                stream::put_event(&mut held, keys[0], &keys[1..]);
            })?;
            if run.is_some() {
                stream::put_end(&mut held);
            }
            held.shrink_to_fit();
            Ok(held)
        };
        parallel::map(threads, (0..self.parts()).collect(), hold).into_iter().collect()
    }

    /// A smaller sample of the same events.
    pub(super) fn one_in(self, n: u64) -> Sample<'g> {
        Sample { sampler: self.sampler.one_in(n), ..self }
    }

    /// Number of parts, which can be looked at in parallel.
    pub(super) fn parts(&self) -> usize {
        match self.parts {
            Parts::Blocks(blocks) => blocks.len(),
            Parts::Files(files) | Parts::Hashed(files) => files.len(),
            Parts::Held(held) => held.len(),
        }
    }

    /// Calls `event` with the keys of each event of a part, the delta first.
    ///
    /// # Errors
    /// When a temporary file cannot be read.
    #[inline]
    pub(super) fn each(&self, part: usize, mut event: impl FnMut(&[u64])) -> Result<(), Error> {
        self.walk_part(part, |_, keys| event(keys))
    }

    /// The same, and the hash of the run that the event belongs to.
    #[inline]
    fn walk_part(&self, part: usize, event: impl FnMut(u64, &[u64])) -> Result<(), Error> {
        let known = |uuid: Uuid, _| uuid.number() as u64;
        let file = |part: &Part| Stream::part(part, window::BUFFER_BYTES);
        match self.parts {
            Parts::Blocks(blocks) => self.walk(Stream::new(&blocks[part].bytes), hash, event),
            Parts::Files(files) => self.walk(file(&files[part]), hash, event),
            Parts::Hashed(files) => self.walk(file(&files[part]), known, event),
            Parts::Held(held) => self.walk(Stream::new(&held[part]), known, event),
        }
    }

    #[inline]
    fn walk(
        &self,
        mut stream: Stream<'_>,
        hash: impl Fn(Uuid, u64) -> u64,
        mut event: impl FnMut(u64, &[u64]),
    ) -> Result<(), Error> {
        let mut keys = Vec::new();
        while let Some(uuid) = stream.next_trail()? {
            let (mut n, mut run, mut takes) = (0, 0, false);
            while stream.next_event(&mut keys)? {
                if n % RUN_EVENTS == 0 {
                    run = hash(uuid, n);
                    takes = self.sampler.takes(run);
                }
                if takes {
                    event(run, &keys);
                }
                n += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sampler_takes_its_share() {
        assert!(Sampler::new(0).takes_all() && Sampler::new(CELLS_MAX).takes_all());
        let third = Sampler::new(3 * CELLS_MAX);
        let trails = (0..30_000u128).filter(|&n| third.takes(hash(Uuid::from_number(n << 77), 0)));
        assert!((9_500..10_500).contains(&trails.count()), "of trails");
        let runs = (0..30_000u64).filter(|n| third.takes(hash(Uuid::default(), n * RUN_EVENTS)));
        assert!((9_500..10_500).contains(&runs.count()), "of runs of one trail");
    }
}
