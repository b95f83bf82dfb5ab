//! The third chart: what a scan through page faults costs when every byte is on the machine.

use std::{path::Path, sync::Arc};

use examples::report::{Aim, Goal};
use pager::Bytes;
use sources::{BlockSource, Memory};
use traildb::{Reader, storage};

use crate::{
    Drawn,
    svg::{Axis, Chart, Series},
    way::{Way, decode, pager, timed},
};

/// Runs of each point at least: they are short.
const RUNS_MIN: usize = 5;

/// Overhead of a full scan, by size of the block.
pub(crate) fn scan(path: &Path, runs: usize) -> Result<Drawn, String> {
    let runs = runs.max(RUNS_MIN);
    let bytes = Bytes::from(std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?);
    let memory: Arc<dyn BlockSource> = Arc::new(Memory::new("cached", bytes.clone()));
    let local = Reader::new(storage::Memory::new(bytes, "memory")).map_err(|e| e.to_string())?;
    let over = |way: Way| -> Result<f64, String> {
        // The two run in turn, so that a machine whose speed drifts cancels out.
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            here.push(timed(1, |_| decode(&local, 0..local.trails()).map(drop))?);
            there.push(timed(1, |_| {
                let pager = pager()?;
                let storage = way.storage(&pager, memory.clone())?;
                let reader = Reader::new(storage).map_err(|e| e.to_string())?;
                decode(&reader, 0..reader.trails()).map(drop)
            })?);
        }
        let ratios = there.iter().zip(&here).map(|(a, b)| a.as_secs_f64() / b.as_secs_f64());
        Ok((examples::measure::median(&ratios.collect::<Vec<_>>()) - 1.0) * 100.0)
    };
    let mut points = Vec::new();
    for shift in [12, 14, 16, 18, 20, 21, 22, 23, 24] {
        let bytes = 1u64 << shift;
        points.push(((bytes >> 10) as f64, over(Way::Blocks(bytes))?));
    }
    let adaptive = over(Way::Adaptive)?;
    let least = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let goals = vec![
        Goal::new("overhead of a cached scan, best block, % (article: 10 to 15)", least, Aim::None),
        Goal::new("overhead of a cached scan, adaptive, %", adaptive, Aim::None),
    ];
    let series = vec![
        Series::ours("blocks of one size", points),
        Series::flat("adaptive", 4.0, 16_384.0, adaptive),
        Series::theirs("2016: large blocks, low", &[(1_024.0, 10.0), (16_384.0, 10.0)]),
        Series::theirs("2016: large blocks, high", &[(1_024.0, 15.0), (16_384.0, 15.0)]),
    ];
    let says = "Decode every event through page faults from bytes that are in this process's \
                memory, over the same scan without faults. In 2016, against a downloaded file, the \
                overhead was 10 to 15 % with large blocks and more with 4 to 16 KB.";
    let chart = Chart {
        title: "Overhead of a fully cached scan".to_owned(),
        x: Axis { label: "block, KiB", log: true },
        y: Axis { label: "% more time", log: false },
        series,
    };
    Ok(Drawn { name: "cached-scan", chart, says: says.into(), goals })
}
