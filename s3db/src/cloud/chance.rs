//! Randomness.

/// A source of random numbers. Names made from it must not collide among all clients, so outside
/// the simulator it is seeded by the operating system with at least 128 bits.
pub trait Chance: Send + Sync {
    /// The next 64 bits.
    fn next_u64(&self) -> u64;

    /// The next 128 bits.
    fn next_u128(&self) -> u128 {
        u128::from(self.next_u64()) << 64 | u128::from(self.next_u64())
    }

    /// A number below `bound`, nearly evenly: the bias is at most `bound` in 2^64.
    ///
    /// # Panics
    /// When `bound` is 0.
    fn below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below zero");
        self.next_u64() % bound
    }

    /// True with probability `p` (0 to 1). Nothing is named by it: it may come from a weaker source than
    /// the numbers do.
    fn with_probability(&self, p: f64) -> bool {
        unit(self.next_u64()) < p
    }
}

/// A number from 0 to below 1, of 64 random bits. 53 of them are what an f64 holds.
pub(crate) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
