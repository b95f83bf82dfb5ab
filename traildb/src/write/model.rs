//! The code: which items and pairs get code words, found by covering the events with them, and
//! choosing again by what was used.
//!
//! ```text
//!   items, counted --> lengths -------------------> costs of items
//!   pairs, counted --> those that would save --+
//!                                              v
//!                       cover events --> counts of what was used --> lengths --> costs
//!                            ^                                                     |
//!                            +--------------- until it stops paying <--------------+
//! ```

use super::{
    Bigrams,
    choose::{self, Candidate},
    count, huffman, parallel,
    sample::Sample,
    stream,
    symbols::{BIT, Cover, Literals, NONE, Symbols},
};
use crate::{
    error::Error,
    item::Item,
    member::codebook::{self, Code},
};

/// Items, and pairs, that occur less often than once in so many are not looked at. A code word of
/// 16 bits pays for what occurs once in 65,536, or a few times less often.
const RARE: u64 = 1 << 20;
/// Pairs that are tried as symbols at first.
const PAIRS_MAX: usize = 1 << 17;
/// Times that events are covered to choose again, at most.
const ROUNDS_MAX: usize = 4;
/// Covering again must save so many parts of 2^16 to go on: 0.05 %.
const GAIN_MIN: u64 = 32;
/// Bigrams must save as much to be used when they need not: they cost time to write.
const PAIRS_GAIN_MIN: u64 = 64;
/// Events looked at for pairs, and covered to choose again: one in so many, once there are more
/// than [`SMALL`] items.
const THINNED: u64 = 4;
const SMALL: u64 = 1 << 20;

const NO_CODE: Code = Code { word: 0, bits: 0 };

/// How each item is written.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) literals: Literals,
    pub(super) symbols: Symbols,
    /// By number of the item.
    pub(super) item_codes: Vec<Code>,
    /// By number of the pair.
    pub(super) pair_codes: Vec<Code>,
    keys: Vec<u64>,
    pairs: Vec<(u32, u32)>,
}

/// How often each symbol was used to cover a sample.
struct Used {
    items: Vec<u64>,
    pairs: Vec<u64>,
}

impl Model {
    /// The model of a sample of a text of `keys` items.
    pub(super) fn of(
        sample: Sample<'_>,
        keys: u64,
        literals: Literals,
        bigrams: Bigrams,
        threads: usize,
    ) -> Result<Model, Error> {
        let keys = sample.sampler().share(keys);
        let held = if sample.is_thin() { sample.hold(threads)? } else { Vec::new() };
        let sample = match held.is_empty() {
            true => sample,
            false => Sample::of_held(&held, sample.sampler()),
        };
        let least = |of: u64| (of / RARE).clamp(1, 255) as u32;
        let counts = count::items(&sample, threads, least(keys))?;
        let mut symbols = Symbols::new(counts.iter().map(|&(key, _)| key));
        let keys_by_id: Vec<u64> = counts.iter().map(|&(key, _)| key).collect();
        let fallback: Vec<u32> = keys_by_id.iter().map(|&key| literals.bits(key) * BIT).collect();
        let alone: Vec<Candidate> = counts
            .iter()
            .zip(&fallback)
            .map(|(&(_, count), &fallback)| Candidate { count, fallback })
            .collect();
        let mut item_lengths = choose::lengths(&alone);
        let (mut pairs, mut pair_lengths) = (Vec::new(), Vec::new());
        if bigrams != Bigrams::Off {
            let thin = if keys > SMALL { THINNED } else { 1 };
            let mut thinned = sample.one_in(thin);
            let thinned_held = if thin > 1 { thinned.hold(threads)? } else { Vec::new() };
            if thin > 1 {
                thinned = Sample::of_held(&thinned_held, thinned.sampler());
            }
            let search = Search { sample, thinned, thin, threads, fallback: &fallback };
            let alone_bits = total(&alone, &item_lengths);
            // Words cost nothing as long as there are enough of them, so that even pairs that occur once
            // are worth theirs where the text is short.
            let least = least(keys / thin);
            let found = search.pairs(&mut symbols, &keys_by_id, item_lengths.clone(), least)?;
            let pays = found.bits + alone_bits / (1 << 16) * PAIRS_GAIN_MIN < alone_bits;
            if bigrams == Bigrams::On || pays {
                (item_lengths, pairs, pair_lengths) =
                    (found.item_lengths, found.pairs, found.pair_lengths);
            } else {
                symbols.set_pairs(&keys_by_id, &[], Vec::new());
            }
        }
        let model =
            Model::with_lengths(literals, symbols, keys_by_id, pairs, &item_lengths, &pair_lengths);
        Ok(model)
    }

    fn with_lengths(
        literals: Literals,
        symbols: Symbols,
        keys: Vec<u64>,
        pairs: Vec<(u32, u32)>,
        item_lengths: &[u8],
        pair_lengths: &[u8],
    ) -> Model {
        let lengths: Vec<u8> = item_lengths.iter().chain(pair_lengths).copied().collect();
        let coded: Vec<usize> = (0..lengths.len()).filter(|&at| lengths[at] > 0).collect();
        let words = huffman::words(&coded.iter().map(|&at| lengths[at]).collect::<Vec<_>>());
        let mut codes = vec![NO_CODE; lengths.len()];
        for (&at, word) in coded.iter().zip(words) {
            codes[at] = Code { word, bits: lengths[at] };
        }
        let pair_codes = codes.split_off(item_lengths.len());
        Model { literals, symbols, item_codes: codes, pair_codes, keys, pairs }
    }

    /// The member `trails.codebook`.
    pub(super) fn codebook(&self) -> Vec<u8> {
        let item = |id: u32| {
            let key = self.keys[id as usize];
            Item::new(stream::field(key), stream::value(key)).raw()
        };
        let items = (0..).zip(&self.item_codes).map(|(id, &code)| ((item(id), 0), code));
        let pairs = self.pairs.iter().zip(&self.pair_codes);
        let pairs = pairs.map(|(&(a, b), &code)| ((item(a), item(b)), code));
        codebook::write(items.chain(pairs).filter(|(_, code)| code.bits > 0))
    }
}

/// What searching for pairs needs.
struct Search<'a> {
    sample: Sample<'a>,
    /// One in `thin` events of it.
    thinned: Sample<'a>,
    thin: u64,
    threads: usize,
    /// Cost of each item's literal.
    fallback: &'a [u32],
}

struct Found {
    item_lengths: Vec<u8>,
    pairs: Vec<(u32, u32)>,
    pair_lengths: Vec<u8>,
    /// What the sample takes with these, in parts of a bit, apart from items without a number.
    bits: u64,
}

impl Search<'_> {
    fn pairs(
        &self,
        symbols: &mut Symbols,
        keys: &[u64],
        mut item_lengths: Vec<u8>,
        least: u32,
    ) -> Result<Found, Error> {
        let mut costs = self.costs(&item_lengths);
        let counted = count::pairs(&self.thinned, self.threads, symbols, least)?;
        let total_thin: u64 = counted.iter().map(|&(_, count)| count).sum::<u64>() * 2;
        // At first a pair is thought to cost what its frequency alone would give it.
        let saves = |&((a, b), count): &((u32, u32), u64)| {
            let cost = BIT + choose::ideal(count, total_thin);
            (costs[a as usize] + costs[b as usize]).saturating_sub(cost)
        };
        let mut worthy: Vec<(u64, u32, (u32, u32))> = counted
            .iter()
            .map(|pair| (pair.1 * u64::from(saves(pair)), saves(pair), pair.0))
            .filter(|&(worth, ..)| worth > 0)
            .collect();
        worthy.sort_unstable_by_key(|&(worth, _, pair)| (std::cmp::Reverse(worth), pair));
        worthy.truncate(PAIRS_MAX);
        let pairs: Vec<(u32, u32)> = worthy.iter().map(|&(_, _, pair)| pair).collect();
        symbols.set_pairs(keys, &pairs, worthy.iter().map(|&(_, saving, _)| saving).collect());

        let mut pair_lengths = Vec::new();
        let mut bits = u64::MAX;
        for round in 0..ROUNDS_MAX {
            // The last word belongs to the whole sample: rare symbols are rarer in a part of it.
            let used = self.cover(&self.thinned, symbols, keys.len(), pairs.len())?;
            let (candidates, now_bits) = self.choose(&used, &pairs, &mut costs);
            let lengths = candidates;
            let (items, of_pairs) = lengths.split_at(keys.len());
            (item_lengths, pair_lengths) = (items.to_vec(), of_pairs.to_vec());
            self.set_savings(symbols, keys, &pairs, &pair_lengths, &costs);
            let gained = bits.saturating_sub(now_bits);
            bits = now_bits;
            if round > 0 && gained < bits / (1 << 16) * GAIN_MIN {
                break;
            }
        }
        if self.thin > 1 {
            let used = self.cover(&self.sample, symbols, keys.len(), pairs.len())?;
            let (lengths, now_bits) = self.choose(&used, &pairs, &mut costs);
            let (items, of_pairs) = lengths.split_at(keys.len());
            (item_lengths, pair_lengths) = (items.to_vec(), of_pairs.to_vec());
            self.set_savings(symbols, keys, &pairs, &pair_lengths, &costs);
            bits = now_bits;
        }
        Ok(Found { item_lengths, pairs, pair_lengths, bits })
    }

    /// What each item costs.
    fn costs(&self, lengths: &[u8]) -> Vec<u32> {
        let cost = |(&length, &fallback): (&u8, &u32)| {
            if length > 0 { choose::cost(length).min(fallback) } else { fallback }
        };
        lengths.iter().zip(self.fallback).map(cost).collect()
    }

    fn cover(
        &self,
        sample: &Sample<'_>,
        symbols: &Symbols,
        items: usize,
        pairs: usize,
    ) -> Result<Used, Error> {
        type Counts = (Vec<u32>, Vec<u32>, Cover);
        let init = || (vec![0; items], vec![0; pairs], Cover::default());
        let work = |(items, pairs, cover): &mut Counts, part| {
            sample.each(part, |keys| {
                cover.event(symbols, keys);
                for (at, &(pair, _)) in cover.pairs.iter().enumerate() {
                    if pair != NONE {
                        pairs[pair as usize] += 1;
                    } else if !cover.is_second[at] && cover.items[at] != NONE {
                        items[cover.items[at] as usize] += 1;
                    }
                }
            })
        };
        let mut used = Used { items: vec![0; items], pairs: vec![0; pairs] };
        for (items, pairs, _) in parallel::fold(self.threads, sample.parts(), init, work)? {
            used.items.iter_mut().zip(items).for_each(|(sum, n)| *sum += u64::from(n));
            used.pairs.iter_mut().zip(pairs).for_each(|(sum, n)| *sum += u64::from(n));
        }
        Ok(used)
    }

    /// Lengths for what was used, items first, and what it takes with them. `costs` are those of
    /// items, before and after.
    fn choose(&self, used: &Used, pairs: &[(u32, u32)], costs: &mut Vec<u32>) -> (Vec<u8>, u64) {
        let items = used.items.iter().zip(self.fallback);
        let items = items.map(|(&count, &fallback)| Candidate { count, fallback });
        let both = pairs.iter().map(|&(a, b)| costs[a as usize] + costs[b as usize]);
        let pairs = used.pairs.iter().zip(both);
        let pairs = pairs.map(|(&count, fallback)| Candidate { count, fallback });
        let candidates: Vec<Candidate> = items.chain(pairs).collect();
        let lengths = choose::lengths(&candidates);
        *costs = self.costs(&lengths[..used.items.len()]);
        let bits = total(&candidates, &lengths);
        (lengths, bits)
    }

    fn set_savings(
        &self,
        symbols: &mut Symbols,
        keys: &[u64],
        pairs: &[(u32, u32)],
        lengths: &[u8],
        costs: &[u32],
    ) {
        let saving = |(&(a, b), &length): (&(u32, u32), &u8)| match length {
            0 => 0,
            _ => (costs[a as usize] + costs[b as usize]).saturating_sub(choose::cost(length)),
        };
        symbols.set_pairs(keys, pairs, pairs.iter().zip(lengths).map(saving).collect());
    }
}

/// What the candidates take with words of these lengths, in parts of a bit.
fn total(candidates: &[Candidate], lengths: &[u8]) -> u64 {
    let bits = |(candidate, &length): (&Candidate, &u8)| {
        let bits = if length > 0 { choose::cost(length) } else { candidate.fallback };
        candidate.count * u64::from(bits)
    };
    candidates.iter().zip(lengths).map(bits).sum()
}
