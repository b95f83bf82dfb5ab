//! Code lengths of at most 16 bits that make the whole shortest.
//!
//! Package-merge: L. L. Larmore and D. S. Hirschberg, "A fast algorithm for optimal length-limited
//! Huffman codes", Journal of the ACM 37(3), 1990.

/// The longest code word of the format, in bits.
pub(super) const BITS_MAX: usize = 16;

/// What a level of the algorithm holds, by ascending weight.
#[derive(Clone, Copy)]
enum Coin {
    Leaf,
    /// Two neighbours of the level below.
    Package,
}

/// The lengths of the code words of symbols with these weights, which ascend. None are for no
/// symbols, and a lone symbol gets one bit.
///
/// # Panics
/// When there are more than 65,536 weights: no code of 16 bits has room for them.
pub(super) fn lengths(weights: &[u64]) -> Vec<u8> {
    assert!(weights.len() <= 1 << BITS_MAX, "{} symbols", weights.len());
    debug_assert!(weights.is_sorted());
    if weights.len() < 2 {
        return vec![1; weights.len()];
    }
    let mut levels: Vec<Vec<Coin>> = Vec::with_capacity(BITS_MAX);
    let mut below: Vec<u64> = Vec::new();
    for _ in 0..BITS_MAX {
        let packages: Vec<u64> =
            below.chunks_exact(2).map(|pair| pair[0].saturating_add(pair[1])).collect();
        let mut level = Vec::with_capacity(weights.len() + packages.len());
        let mut merged = Vec::with_capacity(weights.len() + packages.len());
        let (mut leaf, mut package) = (0, 0);
        while leaf < weights.len() || package < packages.len() {
            let take_leaf = match (weights.get(leaf), packages.get(package)) {
                (Some(w), Some(p)) => w <= p,
                (leaf, _) => leaf.is_some(),
            };
            if take_leaf {
                level.push(Coin::Leaf);
                merged.push(weights[leaf]);
                leaf += 1;
            } else {
                level.push(Coin::Package);
                merged.push(packages[package]);
                package += 1;
            }
        }
        levels.push(level);
        below = merged;
    }
    // A symbol's length is the number of levels at which its coin is among those taken: the first
    // 2n - 2 of the top level, and below it the pairs that the taken packages are made of.
    let mut lengths = vec![0u8; weights.len()];
    let mut taken = 2 * weights.len() - 2;
    for level in levels.iter().rev() {
        let leaves = level[..taken].iter().filter(|coin| matches!(coin, Coin::Leaf)).count();
        for length in &mut lengths[..leaves] {
            *length += 1;
        }
        taken = 2 * (taken - leaves);
    }
    lengths
}

/// Code words of these lengths, no one the start of another. The first bit of a word is its lowest.
pub(super) fn words(lengths: &[u8]) -> Vec<u16> {
    let mut by_length: Vec<usize> = (0..lengths.len()).collect();
    by_length.sort_by_key(|&at| lengths[at]);
    let mut words = vec![0u16; lengths.len()];
    let (mut next, mut bits) = (0u32, 0u32);
    for at in by_length {
        let length = u32::from(lengths[at]);
        next <<= length - bits;
        bits = length;
        assert!(next < 1 << bits, "the lengths leave room for every word");
        words[at] = (next as u16).reverse_bits() >> (16 - length);
        next += 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The optimal lengths by a plain Huffman tree, where no length exceeds the limit.
    fn cost(weights: &[u64], lengths: &[u8]) -> u64 {
        weights.iter().zip(lengths).map(|(w, &l)| w * u64::from(l)).sum()
    }

    #[test]
    fn lengths_of_small_alphabets() {
        assert_eq!(lengths(&[]), []);
        assert_eq!(lengths(&[5]), [1]);
        assert_eq!(lengths(&[1, 2]), [1, 1]);
        assert_eq!(lengths(&[1, 1, 2]), [2, 2, 1]);
        assert_eq!(lengths(&[1; 8]), [3; 8]);
        assert_eq!(cost(&[1, 1, 2, 4, 8], &lengths(&[1, 1, 2, 4, 8])), 4 + 4 + 6 + 8 + 8);
    }

    #[test]
    fn the_limit_holds_and_the_code_is_full() {
        // Fibonacci weights want one bit more for each symbol.
        let mut weights = vec![1u64, 1];
        while weights.len() < 60 {
            weights.push(weights[weights.len() - 1] + weights[weights.len() - 2]);
        }
        let most = [weights, vec![1; 65_536], (1..=50_000).collect()];
        for weights in most {
            let lengths = lengths(&weights);
            assert!(lengths.iter().all(|&l| (1..=16).contains(&l)));
            let kraft: u64 = lengths.iter().map(|&l| 1u64 << (16 - l)).sum();
            assert_eq!(kraft, 1 << 16, "no code space is left over");
            let words = words(&lengths);
            let mut seen = vec![false; 1 << 16];
            for (&word, &length) in words.iter().zip(&lengths) {
                for entry in (usize::from(word)..1 << 16).step_by(1 << length) {
                    assert!(!std::mem::replace(&mut seen[entry], true), "prefix free");
                }
            }
        }
    }
}
