//! How often items, and pairs of items, occur: exactly, for those that occur often enough.
//!
//! ```text
//!   first pass    every item -> one of 2^22 small counters, shared by those that collide
//!   second pass   items whose counter reached the least number -> a table, exactly
//! ```
//!
//! Most items of most databases are rare, and a table of all would be larger than the database.
//! The first pass keeps them out; a few get in by collision, and are dropped at the end.

use hashbrown::HashMap;

use super::{
    parallel,
    sample::Sample,
    symbols::{NONE, Symbols, most_frequent, pair_key},
};
use crate::error::Error;

/// Small counters, by the hash of what they count.
struct Sieve {
    counters: Vec<u8>,
}

const SIEVE_BITS: u32 = 22;
/// Counters that may reach the least number. No code has more than 2^16 words.
const REACHED_MAX: usize = 1 << 17;

impl Sieve {
    fn new() -> Sieve {
        Sieve { counters: vec![0; 1 << SIEVE_BITS] }
    }

    #[inline]
    fn slot(key: u64) -> usize {
        // Fibonacci hashing, with the high half folded in first: keys of pairs differ there.
        let folded = key ^ key >> 29;
        (folded.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SIEVE_BITS)) as usize
    }

    #[inline]
    fn add(&mut self, key: u64) {
        let counter = &mut self.counters[Sieve::slot(key)];
        *counter = counter.saturating_add(1);
    }

    #[inline]
    fn reached(&self, key: u64, least: u32) -> bool {
        u32::from(self.counters[Sieve::slot(key)]) >= least
    }

    /// `least`, or more if so many counters reached it that the table could grow without bound.
    fn least(&self, least: u32) -> u32 {
        let mut of = [0usize; 256];
        self.counters.iter().for_each(|&counter| of[usize::from(counter)] += 1);
        let mut enough = u32::from(u8::MAX);
        let mut reached = of[enough as usize];
        while enough > least && reached + of[enough as usize - 1] <= REACHED_MAX {
            enough -= 1;
            reached += of[enough as usize];
        }
        enough
    }

    fn sum(mut all: Vec<Sieve>) -> Sieve {
        let mut sum = all.pop().expect("one thread at least");
        for other in all {
            for (counter, more) in sum.counters.iter_mut().zip(other.counters) {
                *counter = counter.saturating_add(more);
            }
        }
        sum
    }
}

type Table = HashMap<u64, u32>;

/// What is counted.
trait Counted: Sync {
    /// Whether there may be many more of them than a table has room for, however few occur twice.
    const IS_MANY: bool;

    /// Calls `count` for everything in a part of the sample.
    fn each(&self, sample: &Sample<'_>, part: usize, count: impl FnMut(u64)) -> Result<(), Error>;
}

/// Counts what is in every part of the sample, if it occurs `least` times or more. The
/// most frequent come first, equal ones by ascending key.
fn frequent<C: Counted>(
    sample: &Sample<'_>,
    threads: usize,
    least: u32,
    counted: &C,
) -> Result<Vec<(u64, u64)>, Error> {
    let mut least = least.min(u32::from(u8::MAX));
    let mut sieve = None;
    if least > 1 || C::IS_MANY {
        let count = |sieve: &mut Sieve, part| counted.each(sample, part, |key| sieve.add(key));
        let sum = Sieve::sum(parallel::fold(threads, sample.parts(), Sieve::new, count)?);
        least = sum.least(least);
        sieve = Some(sum);
    }
    let count = |table: &mut Table, part| {
        counted.each(sample, part, |key| {
            if sieve.as_ref().is_none_or(|sieve| sieve.reached(key, least)) {
                *table.entry(key).or_insert(0) += 1;
            }
        })
    };
    let mut tables = parallel::fold(threads, sample.parts(), Table::default, count)?.into_iter();
    let mut sum = tables.next().expect("one thread at least");
    for (key, more) in tables.flatten() {
        *sum.entry(key).or_insert(0) += more;
    }
    let mut counts: Vec<(u64, u64)> = sum
        .into_iter()
        .filter(|&(_, count)| count >= least)
        .map(|(key, count)| (key, u64::from(count)))
        .collect();
    counts.sort_unstable_by_key(|&(key, count)| (std::cmp::Reverse(count), key));
    Ok(counts)
}

/// Keys of items and how often each occurs, if `least` times or more.
pub(super) fn items(
    sample: &Sample<'_>,
    threads: usize,
    least: u32,
) -> Result<Vec<(u64, u64)>, Error> {
    frequent(sample, threads, least, &Items)
}

struct Items;

impl Counted for Items {
    const IS_MANY: bool = false;

    #[inline]
    fn each(
        &self,
        sample: &Sample<'_>,
        part: usize,
        mut count: impl FnMut(u64),
    ) -> Result<(), Error> {
        sample.each(part, |keys| keys.iter().for_each(|&key| count(key)))
    }
}

/// The numbers of a pair's items, and how often it occurs.
pub(super) type PairCount = ((u32, u32), u64);

/// Pairs of items of the same event, both of them known, and how often each occurs, if `least`
/// times or more.
pub(super) fn pairs(
    sample: &Sample<'_>,
    threads: usize,
    symbols: &Symbols,
    least: u32,
) -> Result<Vec<PairCount>, Error> {
    let counts = frequent(sample, threads, least, &Pairs(symbols))?;
    let numbers = |(key, count)| (((key >> 32) as u32, key as u32), count);
    Ok(counts.into_iter().map(numbers).collect())
}

struct Pairs<'s>(&'s Symbols);

impl Counted for Pairs<'_> {
    const IS_MANY: bool = true;

    #[inline]
    fn each(
        &self,
        sample: &Sample<'_>,
        part: usize,
        mut count: impl FnMut(u64),
    ) -> Result<(), Error> {
        let mut known: Vec<(u32, usize)> = Vec::new();
        sample.each(part, |keys| {
            known.clear();
            let numbers = keys.iter().map(|&key| self.0.item(key)).zip(0..);
            known.extend(numbers.filter(|&(id, _)| id != NONE));
            most_frequent(&mut known, |&(id, _)| id, |&(_, at)| at);
            for (n, &(a, _)) in known.iter().enumerate() {
                for &(b, _) in &known[n + 1..] {
                    count(pair_key(a, b));
                }
            }
        })
    }
}
