//! How bytes come: blocks of one size as the article had them, or as the pager does by default.

use std::{sync::Arc, time::Duration};

use examples::{
    faults::Faulting,
    measure::{self, Cost},
    server::{Distance, Server},
};
use pager::{
    Pager, Region, RegionOptions,
    policy::{
        NoPrefetch, PrefetchPolicy,
        prefetch::{Advice, Limits, Signal, Want},
    },
};
use sources::{BlockSource, Options};
use traildb::{Reader, Storage};

/// As far away as an S3 in the same region.
pub(crate) const FAR: Distance = Distance { first_byte_ms: 30, rate: 90_000_000, link_rate: 0 };
const BUDGET_BYTES: u64 = 512 << 20;
/// The largest unit of residency.
const UNIT_BYTES_MAX: u64 = 2 << 20;
/// Beyond so many times the baseline there is nothing left to see.
const OFF_CHART: u32 = 8;
/// A point that takes longer is measured once.
const LONG: Duration = Duration::from_secs(5);

/// How bytes come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// A block of so many bytes for each touch of one that is missing, and nothing else.
    Blocks(u64),
    /// Small units, read-ahead that grows with a stream, and what the reader announces.
    Adaptive,
}

impl Way {
    /// The article's small and large blocks, and ours.
    pub(crate) const ALL: [(&str, Way); 3] = [
        ("blocks of 16 KiB", Way::Blocks(16 << 10)),
        ("blocks of 16 MiB", Way::Blocks(16 << 20)),
        ("adaptive", Way::Adaptive),
    ];

    pub(crate) fn region(
        self,
        pager: &Pager,
        source: Arc<dyn BlockSource>,
    ) -> Result<Region, String> {
        let options = match self {
            Way::Adaptive => RegionOptions::default(),
            Way::Blocks(bytes) if bytes <= UNIT_BYTES_MAX => {
                RegionOptions::default().unit_bytes(bytes).prefetch(|| Box::new(NoPrefetch))
            }
            Way::Blocks(bytes) => {
                let units = bytes / UNIT_BYTES_MAX;
                let options = RegionOptions::default().unit_bytes(UNIT_BYTES_MAX);
                options.prefetch(move || Box::new(RestOfBlock { units }))
            }
        };
        pager.open_with(source, options).map_err(|e| e.to_string())
    }

    /// The region as the storage of a database. Only the adaptive way is told plans.
    pub(crate) fn storage(
        self,
        pager: &Pager,
        source: Arc<dyn BlockSource>,
    ) -> Result<Faulting, String> {
        let region = self.region(pager, source)?;
        let storage = match self {
            Way::Blocks(_) => Faulting::bare(region),
            Way::Adaptive => Faulting::new(region),
        };
        storage.map_err(|e| e.to_string())
    }
}

/// Fetches the rest of a block that is larger than a unit, when its first missing unit is touched.
struct RestOfBlock {
    units: u64,
}

impl PrefetchPolicy for RestOfBlock {
    fn demand(&mut self, at: u64, signal: Signal, limits: &Limits, wants: &mut Vec<Want>) {
        let end = (at / self.units + 1) * self.units;
        let end = end.min(limits.units).min(at + 1 + limits.window_max);
        if signal == Signal::Miss && at + 1 < end {
            wants.push(Want::new(at + 1..end));
        }
    }

    fn unused(&mut self, _: u64) {}

    fn advise(&mut self, _: &Advice, _: &Limits, _: &mut Vec<Want>) {}
}

pub(crate) fn pager() -> Result<Pager, String> {
    Pager::builder().budget_bytes(BUDGET_BYTES).build().map_err(|e| e.to_string())
}

pub(crate) fn source(server: &Server) -> Result<Arc<dyn BlockSource>, String> {
    Options::default().open(server.url()).map_err(|e| e.to_string())
}

/// Median wall time of `work`; long work runs once.
pub(crate) fn timed(
    runs: usize,
    mut work: impl FnMut(usize) -> Result<(), String>,
) -> Result<Duration, String> {
    let mut costs: Vec<Cost> = Vec::new();
    for run in 0..runs {
        costs.push(measure::cost(|| work(run))?.1);
        if costs[run].wall > LONG {
            break;
        }
    }
    Ok(measure::wall(&costs))
}

/// Whether more of a way that took `time` would be off the chart.
pub(crate) fn is_off(time: Duration, baseline: Duration) -> bool {
    time > OFF_CHART * baseline
}

/// Decodes the events of these trails, one after the other.
pub(crate) fn decode<S: Storage>(
    reader: &Reader<S>,
    trails: impl IntoIterator<Item = u64>,
) -> Result<u64, String> {
    let scan = || {
        let mut cursor = reader.cursor()?;
        let mut events = 0;
        for trail in trails {
            cursor.seek(trail)?;
            while cursor.next_event()?.is_some() {
                events += 1;
            }
        }
        Ok(events)
    };
    scan().map_err(|e: traildb::Error| e.to_string())
}
