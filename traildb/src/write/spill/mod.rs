//! What does not fit in memory: sorted runs of events in temporary files, and values with them.
//!
//! ```text
//!   rows ------> group --> run     memory is full: trails and rows start anew
//!   values ------------> epoch     and these too, when they take much of it
//!                          |
//!   at the end   resolve (one numbering) --> rewrite runs --> merge --> chunks of trails
//! ```

mod folder; // temporary files, and who removes them
mod sort; // records sorted as bytes
mod dictionary; // values of several epochs into one lexicon
mod merge; // runs of events into one

use std::path::Path;

pub(super) use self::{
    dictionary::Lexicon,
    folder::{Folder, Writer, remove_stale},
    merge::Merged,
};
use super::{group::Block, sample::Sampler, values::Values, window::Part};
use crate::error::Error;

pub(super) use self::merge::TRAIL_BYTES;

/// What has been spilled.
#[derive(Debug)]
pub(super) struct Spill {
    folder: Folder,
    /// The runs of each epoch; the last one goes on.
    runs: Vec<Vec<Part>>,
    /// The values of the epochs that are over.
    epochs: Vec<dictionary::Epoch>,
}

/// How often events and values were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spilled {
    pub(super) events: usize,
    pub(super) values: usize,
}

/// All that was spilled, joined.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) merged: Merged,
    /// `None` when the values stayed in memory.
    pub(super) lexicons: Option<Vec<Lexicon>>,
}

impl Spill {
    /// Spills to a folder of its own in `parent`.
    pub(super) fn new(parent: &Path) -> Result<Spill, Error> {
        let folder = Folder::create(parent)?;
        Ok(Spill { folder, runs: vec![Vec::new()], epochs: Vec::new() })
    }

    /// Where temporary files are.
    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Writes grouped events, whose deltas of first events are times.
    pub(super) fn events(&mut self, blocks: &[Block]) -> Result<(), Error> {
        let run = merge::write_run(&self.folder, blocks)?;
        self.runs.last_mut().expect("an epoch goes on").push(run);
        Ok(())
    }

    /// Writes the values of all fields and empties their tables. The events that use their numbers
    /// must have been written.
    pub(super) fn values<V: std::ops::DerefMut<Target = Values>>(
        &mut self,
        tables: impl Iterator<Item = V>,
    ) -> Result<(), Error> {
        let epoch = self.epochs.len();
        self.epochs.push(dictionary::Epoch::write(&self.folder, epoch, tables)?);
        self.runs.push(Vec::new());
        Ok(())
    }

    /// How often what was written.
    pub(super) fn spilled(&self) -> Spilled {
        Spilled { events: self.runs.iter().map(Vec::len).sum(), values: self.epochs.len() }
    }

    /// Whether values were written.
    pub(super) fn has_values(&self) -> bool {
        !self.epochs.is_empty()
    }

    /// Joins everything with about so much memory. Deltas of first events are counted from `base`.
    ///
    /// # Errors
    /// As for reading and writing files, and when events are too far apart.
    pub(super) fn join(
        &mut self,
        memory: u64,
        base: u64,
        delta_max: u64,
        sampler: Sampler,
    ) -> Result<Joined, Error> {
        let mut runs = Vec::new();
        let mut lexicons = None;
        if self.epochs.is_empty() {
            runs = self.runs.concat();
        } else {
            let epochs = std::mem::take(&mut self.epochs);
            let ended = epochs.len();
            let mut resolved = dictionary::resolve(&self.folder, epochs, memory)?;
            debug_assert!(self.runs[ended..].iter().all(Vec::is_empty), "values come after events");
            for (epoch, of_epoch) in self.runs.iter().enumerate().take(ended) {
                let maps = resolved.maps(epoch)?;
                for run in of_epoch {
                    runs.push(merge::rewrite_run(&self.folder, run, &maps)?);
                }
            }
            lexicons = Some(resolved.into_lexicons());
        }
        self.runs.clear();
        let merged = merge::all(&self.folder, runs, memory, base, delta_max, sampler)?;
        Ok(Joined { merged, lexicons })
    }
}
