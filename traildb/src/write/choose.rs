//! Which symbols get code words, and of what length: so that code words and literals together take
//! the fewest bits.
//!
//! A symbol that occurs c times, in a text of T symbols, wants a word of n = log2(T / c) bits, at
//! most 16. With it c * (fallback - 1 - n) bits are saved. But its word takes a part of 2^-n of the
//! room for words, and makes those of all others longer, by log2(1 / (1 - 2^-n)), or about
//! 1.44 * 2^-n bits each. What is left is the worth of the symbol. The most worthy ones are tried,
//! in several numbers, with an optimal code for each.

use super::{huffman, symbols::BIT};

/// What may get a code word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// How often it occurs.
    pub(super) count: u64,
    /// What an occurrence takes without a code word, its flags included, in parts of a bit.
    pub(super) fallback: u32,
}

/// The length of each candidate's code word in bits, 0 for none.
pub(super) fn lengths(candidates: &[Candidate]) -> Vec<u8> {
    let total: u64 = candidates.iter().map(|candidate| candidate.count).sum();
    let mut worthy: Vec<(u64, u32)> = candidates
        .iter()
        .zip(0..)
        .filter_map(|(candidate, at)| Some((worth(candidate, total)?, at)))
        .collect();
    worthy.sort_unstable_by_key(|&(worth, at)| (std::cmp::Reverse(worth), at));
    worthy.truncate(1 << huffman::BITS_MAX);
    let worthy: Vec<u32> = worthy.into_iter().map(|(_, at)| at).collect();

    let saved = |n: usize| code(candidates, &worthy[..n]).0;
    let mut best = search(worthy.len(), saved);
    // Words that are no shorter than what they stand for only take room.
    let (_, mut lengths) = code(candidates, &worthy[..best]);
    let mut kept = worthy[..best].to_vec();
    for _ in 0..4 {
        kept.retain(|&at| saves(&candidates[at as usize], lengths[at as usize]) > 0);
        if kept.len() == best {
            break;
        }
        best = kept.len();
        lengths = code(candidates, &kept).1;
    }
    for (length, candidate) in lengths.iter_mut().zip(candidates) {
        if *length > 0 && saves(candidate, *length) == 0 {
            *length = 0;
        }
    }
    lengths
}

/// Parts of a bit that a word of this length saves at each occurrence.
fn saves(candidate: &Candidate, length: u8) -> u64 {
    u64::from(candidate.fallback.saturating_sub(cost(length)))
}

/// What a code word takes with its flag, in parts of a bit.
pub(super) fn cost(length: u8) -> u32 {
    (1 + u32::from(length)) * BIT
}

fn worth(candidate: &Candidate, total: u64) -> Option<u64> {
    let bits = ideal(candidate.count, total);
    let saved = candidate.count * u64::from(candidate.fallback.checked_sub(BIT + bits)?);
    // 369 / 256 is 1.44. A word that is shorter than the limit has the share that its symbol has.
    let share = (total >> huffman::BITS_MAX).max(candidate.count.min(total / 2));
    saved.checked_sub(share * 369 * u64::from(BIT) / 256).filter(|&worth| worth > 0)
}

/// The length that a symbol wants, in parts of a bit: log2(total / count), within 1 to 16 bits.
pub(super) fn ideal(count: u64, total: u64) -> u32 {
    let bits = log2(total.max(1)).saturating_sub(log2(count.max(1)));
    bits.clamp(BIT, huffman::BITS_MAX as u32 * BIT)
}

/// The logarithm of `x` to base 2 in parts of a bit. Integers alone, so that the file does not
/// depend on a machine's idea of a logarithm; between powers of two the curve
/// x + 0.34 x (1 - x), which is at most 0.008 bits off.
fn log2(x: u64) -> u32 {
    let whole = x.ilog2();
    // The 16 bits after the first.
    let part = ((x << (63 - whole) << 1) >> 48) as u32;
    let curve = (u64::from(part) * u64::from((1 << 16) - part) >> 16) as u32;
    whole * BIT + (part + curve * 34 / 100) * BIT / (1 << 16)
}

/// The number of candidates from 0 to `most` at which `saved` is greatest, if it rises and falls
/// but once: each step leaves out a third of what is left.
fn search(most: usize, mut saved: impl FnMut(usize) -> u64) -> usize {
    let (mut low, mut high) = (0, most);
    // A code of twenty thousand symbols is not felt to differ from one of a few hundred more.
    while high - low > 2 + high / 64 {
        let third = (high - low) / 3;
        if saved(low + third) < saved(high - third) {
            low += third;
        } else {
            high -= third;
        }
    }
    let tried = [low, (low + high) / 2, high, most];
    tried.into_iter().max_by_key(|&n| (saved(n), std::cmp::Reverse(n))).expect("four were tried")
}

/// An optimal code for the candidates `chosen`: what it saves in all, and the length of each
/// candidate's word.
fn code(candidates: &[Candidate], chosen: &[u32]) -> (u64, Vec<u8>) {
    let count = |at: u32| candidates[at as usize].count;
    let mut ascending = chosen.to_vec();
    ascending.sort_unstable_by_key(|&at| (count(at), std::cmp::Reverse(at)));
    let weights: Vec<u64> = ascending.iter().map(|&at| count(at)).collect();
    let mut lengths = vec![0; candidates.len()];
    for (&at, length) in ascending.iter().zip(huffman::lengths(&weights)) {
        lengths[at as usize] = length;
    }
    let saved =
        chosen.iter().map(|&at| count(at) * saves(&candidates[at as usize], lengths[at as usize]));
    (saved.sum(), lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms() {
        for x in [1u64, 2, 3, 5, 7, 1000, 123_456_789, u64::MAX] {
            let (got, exact) = (f64::from(log2(x)) / f64::from(BIT), (x as f64).log2());
            assert!((got - exact).abs() < 0.02, "{x}: {got} for {exact}");
        }
    }

    fn bits(candidates: &[Candidate], lengths: &[u8]) -> u64 {
        let bits = |(candidate, &length): (&Candidate, &u8)| {
            let bits = if length == 0 { candidate.fallback } else { cost(length) };
            candidate.count * u64::from(bits)
        };
        candidates.iter().zip(lengths).map(bits).sum()
    }

    #[test]
    fn symbols_that_gain_nothing_get_no_word() {
        assert_eq!(lengths(&[]), []);
        let one = |count, bits| Candidate { count, fallback: bits * BIT };
        assert_eq!(lengths(&[one(5, 20)]), [1], "a lone symbol");
        assert_eq!(lengths(&[one(5, 2)]), [0], "a word and its flag are as long");
        // A hundred thousand symbols cannot have words of 16 bits, and of 17 they would not gain.
        assert!(lengths(&vec![one(1, 17); 100_000]).iter().all(|&length| length == 0));
        let many = vec![one(1, 24); 100_000];
        let got = lengths(&many);
        assert!(got.iter().all(|&length| length == 0 || length >= 14));
        let all_16 = 65_536 * 17 + (100_000 - 65_536) * 24;
        assert!(bits(&many, &got) <= all_16 * u64::from(BIT));
    }

    #[test]
    fn a_skewed_text_takes_no_more_than_any_simple_choice() {
        // Frequencies fall like 1 / k; literals of two kinds.
        let candidates: Vec<Candidate> = (0..200_000u64)
            .map(|k| Candidate {
                count: 1 + 3_000_000 / (k + 1),
                fallback: if k % 3 == 0 { 33 } else { 24 } * BIT,
            })
            .collect();
        let got = bits(&candidates, &lengths(&candidates));
        for n in [0, 1000, 5000, 10_000, 20_000, 30_000, 65_536] {
            let first: Vec<u32> = (0..n).collect();
            let simple = bits(&candidates, &code(&candidates, &first).1);
            assert!(got <= simple, "{got} bits, and {simple} with the first {n}");
        }
    }
}
