//! The default for regions: hints first, then streams, then strides.
//!
//! ```text
//!   signal --> plan: is it part of a hint? ----- yes --> the plan goes on; nobody guesses here
//!                | no
//!                v
//!           sequential: part of a stream? ------ yes --> its window goes on
//!                | no
//!                v
//!             stride: every n-th unit?  -------- yes --> its window goes on
//! ```
//!
//! Who has said what will be needed is believed: units of a plan start no streams, which would run
//! past the end of the hint. A stream that has started goes on through them. Each signal counts
//! for one of the guessers only, so that a stream of single steps is not a stride as well.

use std::ops::Range;

use super::{
    plan::Plan,
    prefetch::{Advice, Limits, PrefetchPolicy, Signal, Want},
    sequential::Sequential,
    stride::Stride,
};

/// Plan, else sequential, else stride: see the module's page. The default of regions.
#[derive(Clone, Debug, Default)]
pub struct Adaptive {
    plan: Plan,
    sequential: Sequential,
    stride: Stride,
}

impl Adaptive {
    /// A policy that knows nothing yet.
    pub fn new() -> Adaptive {
        Adaptive::default()
    }

    fn follow(
        &mut self,
        units: Range<u64>,
        signal: Signal,
        limits: &Limits,
        wants: &mut Vec<Want>,
    ) {
        let before = wants.len();
        if self.plan.follow(units.clone(), signal, limits, wants) {
            // One call, one speaker: the limits are for both together.
            if wants.len() == before {
                self.sequential.go_on(units, signal, limits, wants);
            }
        } else if !self.sequential.follow(units.clone(), signal, limits, wants) {
            self.stride.demand(units.start, signal, limits, wants);
        }
    }
}

impl PrefetchPolicy for Adaptive {
    fn demand(&mut self, at: u64, signal: Signal, limits: &Limits, wants: &mut Vec<Want>) {
        self.follow(at..at.saturating_add(1), signal, limits, wants);
    }

    fn missed(&mut self, units: Range<u64>, limits: &Limits, wants: &mut Vec<Want>) {
        self.follow(units, Signal::Miss, limits, wants);
    }

    fn unused(&mut self, at: u64) {
        self.plan.unused(at);
        self.sequential.unused(at);
        self.stride.unused(at);
    }

    fn advise(&mut self, advice: &Advice, limits: &Limits, wants: &mut Vec<Want>) {
        self.plan.advise(advice, limits, wants);
        self.sequential.advise(advice, limits, wants);
        self.stride.advise(advice, limits, wants);
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "wants of one range are meant")]
mod tests {
    use super::*;
    use crate::policy::simulation::{Reader, World, run};

    const LIMITS: Limits = Limits { units: 10_000, window_max: 4096, extent_max: 256 };

    fn step(policy: &mut Adaptive, at: u64, signal: Signal) -> Vec<Range<u64>> {
        let mut wants = Vec::new();
        policy.demand(at, signal, &LIMITS, &mut wants);
        wants.into_iter().map(|want| want.units).collect()
    }

    #[test]
    fn who_speaks() {
        let mut policy = Adaptive::new();
        // Without hints: streams, and strides.
        assert_eq!(step(&mut policy, 0, Signal::Miss), []);
        assert_eq!(step(&mut policy, 1, Signal::Miss), [2..4]);
        for at in [1000, 1010, 1020] {
            assert_eq!(step(&mut policy, at, Signal::Miss), []);
        }
        assert_eq!(step(&mut policy, 1030, Signal::Miss), [1040..1041, 1050..1051]);
        // With hints: these and nothing behind them.
        let mut wants = Vec::new();
        policy.advise(&Advice::WillNeed(vec![5000..5003, 2..3]), &LIMITS, &mut wants);
        assert_eq!(wants.iter().map(|w| w.units.clone()).collect::<Vec<_>>(), [5000..5003, 2..3]);
        for at in 5000..5003 {
            assert_eq!(step(&mut policy, at, Signal::Late), []);
            assert_eq!(step(&mut policy, at, Signal::Hit), []);
        }
        assert_eq!(step(&mut policy, 2, Signal::Marker), [4..8], "the stream goes through");
    }

    #[test]
    fn random_silences_guesses_but_not_hints() {
        let mut policy = Adaptive::new();
        let mut wants = Vec::new();
        policy.advise(&Advice::Random, &LIMITS, &mut wants);
        for at in (0..10).chain((100..200).step_by(10)) {
            assert_eq!(step(&mut policy, at, Signal::Miss), [], "at {at}");
        }
        policy.advise(&Advice::WillNeed(vec![7000..7002]), &LIMITS, &mut wants);
        assert_eq!(wants, [Want::new(7000..7002)]);
    }

    #[test]
    fn a_scan_beside_random_reads_keeps_the_link_busy() {
        let world = World { units: 16_000, ..World::default() };
        let mut state = 5u64;
        let random = (0..60).map(move |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % 8_000
        });
        let readers = vec![Reader::new(0, 8_000..16_000), Reader::new(0, random)];
        let out = run(&world, &mut Adaptive::new(), readers);
        println!("{out:?}");
        // The scan alone takes 1.31 s at best; sixty misses take 1.9 s beside it.
        assert!(out.time_us < 2_100_000, "{out:?}");
        assert!(out.wasted < 8, "{out:?}");
    }
}
