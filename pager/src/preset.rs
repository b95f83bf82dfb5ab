//! Sets of settings for what a program cares about most.
//!
//! | | default | [`Latency`](Preset::Latency) | [`Throughput`](Preset::Throughput) | [`Frugal`](Preset::Frugal) |
//! | --- | --- | --- | --- | --- |
//! | unit of residency | 64 KiB | 64 KiB | 2 MiB | 2 MiB |
//! | most bytes of one request | the source's part, 1 to 16 MiB | 2 MiB | 16 MiB | 64 MiB |
//! | a long range is cut into requests of at least | 1 MiB | 256 KiB | 4 MiB | 64 MiB |
//! | requests for readers that wait, at a time | 128 | 256 | 128 | 8 |
//! | requests for guesses, beside those | 128 | 256 | 128 | 4 |
//! | longest window of a stream (16 requests) | 16 to 256 MiB | 32 MiB | 256 MiB | 1 GiB |
//!
//! - **`Latency`**: what is asked for together comes over many connections at once. A connection of
//!   90 MB/s sends 256 KiB in 3 ms, a tenth of the wait for its first byte: cutting finer would cost
//!   requests and save nothing. Long reads ahead are cut short, so that a request for somebody who
//!   waits finds the link free.
//! - **`Throughput`**: units of a whole huge page, which are moved into place where the kernel can,
//!   and long requests.
//! - **`Frugal`**: the fewest requests. A miss fetches 2 MiB around it, which is free of charge within
//!   a region of S3; what is wanted next to each other waits for few lanes and so meets in one
//!   request.
//!
//! Where the budget does not hold 64 units of 2 MiB, a preset halves its unit until it does, down
//! to 64 KiB; a unit that is set with [`Builder::unit_bytes`](crate::Builder::unit_bytes) stays as it is.
//! The shortest requests are for S3: a first byte after 30 ms, and 90 MB/s a connection. Of a source of which
//! latency times throughput is found to be a multiple of that, twice at least, they are as many times as long,
//! in powers of two and up to the longest. And of the requests at a time there are fewer where the source asks
//! for that, or where more bring no more bytes per second (at least 4): [`RegionStats`](crate::RegionStats)
//! has what was found and chosen.
//!
//! Requests have at most a quarter of the budget, guesses of all streams together, too. Settings that
//! are made after the preset come before it.
//!
//! What an object of 64 MiB takes, as `tests/it/presets` counts it (256 MiB of budget, a source that is
//! 2 ms off and whose parts have 8 MiB; scans and random reads vary by a few, as the guesses do):
//!
//! | requests | default | `Latency` | `Throughput` | `Frugal` |
//! | --- | --- | --- | --- | --- |
//! | a scan in pieces of 64 KiB | 38 | 63 | 19 | 7 |
//! | 400 reads of 4 KiB around ten places | 147 | 162 | 19 | 18 |
//! | one read of 2 MiB | 2 | 8 | 1 | 1 |

use std::{fmt, str::FromStr};

use crate::{budget::Budget, sys::PAGE};

/// What a program cares about most: see the module's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Preset {
    /// The shortest wait for single reads.
    Latency,
    /// The most bytes a second of long reads.
    Throughput,
    /// The fewest requests, which is what S3 charges for.
    Frugal,
}

impl Preset {
    /// All of them.
    pub const ALL: [Preset; 3] = [Preset::Latency, Preset::Throughput, Preset::Frugal];

    /// As [`FromStr`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Latency => "latency",
            Preset::Throughput => "throughput",
            Preset::Frugal => "frugal",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Preset, String> {
        let found = Preset::ALL.into_iter().find(|preset| preset.name() == text);
        found.ok_or_else(|| "a preset is latency, throughput or frugal".to_owned())
    }
}

/// How long the requests of a region are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extents {
    /// One request has at most so many bytes: the source's part, but not beyond these bounds.
    pub(crate) most: (u64, u64),
    /// A long range is cut into requests of at least so many bytes.
    pub(crate) least: u64,
}

impl Default for Extents {
    fn default() -> Extents {
        Extents { most: (1 << 20, 16 << 20), least: 1 << 20 }
    }
}

impl Extents {
    /// The most units of `unit` bytes in one request to a source whose parts have `part` bytes.
    pub(crate) fn units_max(self, part: u64, unit: u64) -> u64 {
        part.clamp(self.most.0, self.most.1).max(unit) / unit
    }

    /// The fewest units that are worth a request of their own.
    pub(crate) fn units_min(self, unit: u64) -> u64 {
        (self.least / unit).max(1)
    }
}

/// What a preset stands for.
pub(crate) struct Settings {
    pub(crate) unit: u64,
    pub(crate) extents: Extents,
    pub(crate) demand_requests: usize,
    pub(crate) guess_requests: usize,
}

impl Preset {
    pub(crate) fn settings(self) -> Settings {
        const MIB: u64 = 1 << 20;
        let (unit, most, least, demand_requests, guess_requests) = match self {
            Preset::Latency => (64 << 10, 2 * MIB, MIB / 4, 256, 256),
            Preset::Throughput => (2 * MIB, 16 * MIB, 4 * MIB, 128, 128),
            Preset::Frugal => (2 * MIB, 64 * MIB, 64 * MIB, 8, 4),
        };
        // Whatever the source's part is.
        let extents = Extents { most: (most, most), least };
        Settings { unit, extents, demand_requests, guess_requests }
    }
}

/// Units that a budget should hold where there is a choice: half of them may be pinned, and a policy
/// needs something to choose from.
const UNITS_WANTED: u64 = 64;
const UNIT_FITTED_MIN: u64 = 64 << 10;

/// `unit`, or the part of it of which `budget` holds enough.
pub(crate) fn fitted(unit: u64, budget: &Budget) -> u64 {
    let mut unit = unit;
    while unit > UNIT_FITTED_MIN && UNITS_WANTED * (unit + PAGE as u64) > budget.limit() {
        unit /= 2;
    }
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for preset in Preset::ALL {
            assert_eq!(preset.to_string().parse(), Ok(preset));
        }
        assert!("cheap".parse::<Preset>().is_err());
    }

    #[test]
    fn units_are_halved_until_the_budget_holds_enough() {
        let mib = 1 << 20;
        let cases = [
            ("plenty", 2 * mib, 1 << 30, 2 * mib),
            ("just enough", 2 * mib, 64 * (2 * mib + 4096), 2 * mib),
            ("one byte less", 2 * mib, 64 * (2 * mib + 4096) - 1, mib),
            ("little", 2 * mib, 16 * mib, mib / 8),
            ("hardly any", 2 * mib, mib, 64 << 10),
            ("small from the start", 4096, 0, 4096),
        ];
        for (what, unit, budget, expected) in cases {
            assert_eq!(fitted(unit, &Budget::new(budget)), expected, "{what}");
        }
    }

    #[test]
    fn requests_have_whole_units() {
        let usual = Extents::default();
        let frugal = Preset::Frugal.settings().extents;
        let cases = [
            ("a usual part", usual, 8 << 20, 64 << 10, (128, 16)),
            ("a part of a byte", usual, 1, 64 << 10, (16, 16)),
            ("an endless part", usual, u64::MAX, 4096, (4096, 256)),
            ("a unit as long as the least", usual, 1, 2 << 20, (1, 1)),
            ("whatever the part is", frugal, 1, 2 << 20, (32, 32)),
        ];
        for (what, extents, part, unit, expected) in cases {
            assert_eq!(
                (extents.units_max(part, unit), extents.units_min(unit)),
                expected,
                "{what}"
            );
        }
    }
}
