//! What every policy is held to, ours and yours.
//!
//! ```
//! use pager::policy::{Clock, Stride, conformance};
//!
//! conformance::check_eviction(|| Box::new(Clock::new()));
//! conformance::check_prefetch(|| Box::new(Stride::new()));
//! ```
//!
//! Both run seeded scripts of calls against a model that is too simple to be wrong, and panic with
//! the name of the clause that does not hold, the script and the call. They take a second or less.
//!
//! | clause of an eviction policy | |
//! | --- | --- |
//! | `count` | `len` and `is_empty` agree with what was installed and not removed |
//! | `resident` | a victim is installed and not removed |
//! | `allowed` | `can_evict` holds for a victim |
//! | `offered` | `can_evict` is asked about resident entries only |
//! | `found` | `None` only if `can_evict` refuses every entry |
//! | `stays` | naming a victim does not remove it |
//! | `bounded` | one call asks at most [`QUESTIONS_EACH`] times per entry, and a few more |
//! | `constant` | where nothing is refused, many calls ask a few times each on average |
//! | `replay` | the same calls lead to the same victims |
//!
//! | clause of a prefetch policy | |
//! | --- | --- |
//! | `pushes` | what was in `wants` before stays there |
//! | `inside` | a want is a range of at least one unit, inside the region |
//! | `marker` | a marker is one of the units of its want |
//! | `count` | one call pushes at most [`WANTS_MAX`](super::prefetch::WANTS_MAX) wants |
//! | `window` | the units of one call are at most `window_max` |
//! | `once` | one call wants no unit twice |
//! | `random` | after [`Advice::Random`](super::prefetch::Advice::Random), signals lead to no wants where there are no hints |
//! | `replay` | the same calls lead to the same wants |

mod eviction;
mod prefetch;

pub use eviction::{QUESTIONS_EACH, check_eviction};
pub use prefetch::check_prefetch;

/// Numbers that are the same on every run: SplitMix64 (G. L. Steele, D. Lea, C. H. Flood, "Fast
/// Splittable Pseudorandom Number Generators", OOPSLA 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 up to `limit`, which is at least 1.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::atomic::{AtomicU64, Ordering},
    };

    /// The text of the panic that `act` ends in.
    pub(super) fn complaint(what: &str, act: impl FnOnce()) -> String {
        let error = catch_unwind(AssertUnwindSafe(act)).err();
        let error = error.unwrap_or_else(|| panic!("{what}: not found out"));
        *error.downcast::<String>().unwrap_or_else(|_| panic!("{what}: no text"))
    }

    /// A number that no other call returns, for policies that wrongly depend on chance.
    pub(super) fn salt() -> u64 {
        static SALTS: AtomicU64 = AtomicU64::new(0);
        SALTS.fetch_add(1, Ordering::Relaxed)
    }
}
