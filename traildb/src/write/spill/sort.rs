//! Records that are sorted as bytes, more of them than fit in memory.
//!
//! ```text
//!   record   its length, its bytes      in a run, ascending
//!   run 0    a   d   f
//!   run 1    b   d           ---->   a b c d d f
//!   run 2    c
//! ```

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
};

use super::{
    super::{
        varint,
        window::{Part, Window},
    },
    folder::{self, Folder, Writer},
};
use crate::error::Error;

/// Writes a run. Records must come in ascending order.
#[derive(Debug)]
pub(super) struct RunWriter {
    writer: Writer,
    record_max: usize,
}

impl RunWriter {
    pub(super) fn new(folder: &Folder) -> Result<RunWriter, Error> {
        Ok(RunWriter { writer: folder.writer("sorted")?, record_max: 0 })
    }

    /// Appends a record, which is `head` and then `tail`.
    pub(super) fn put(&mut self, head: &[u8], tail: &[u8]) -> Result<(), Error> {
        let len = head.len() + tail.len();
        self.record_max = self.record_max.max(len + varint::BYTES_MAX);
        varint::put(&mut self.writer.buffer, len as u64);
        self.writer.buffer.extend_from_slice(head);
        self.writer.write(tail)
    }

    pub(super) fn finish(self) -> Result<Part, Error> {
        self.writer.finish(self.record_max)
    }
}

/// Runs merged into one sequence. Their files are removed at the end.
#[derive(Debug)]
pub(super) struct Merge {
    runs: Vec<Part>,
    inputs: Vec<Window<'static>>,
    /// The next record of each run.
    heap: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
    current: Vec<u8>,
}

impl Merge {
    /// Merges runs, with buffers of `memory` bytes in all; in several steps if there are so many
    /// that each would have too small a buffer.
    pub(super) fn new(folder: &Folder, mut runs: Vec<Part>, memory: u64) -> Result<Merge, Error> {
        let fan_in = fan_in(&runs, memory);
        while runs.len() > fan_in {
            let mut fewer = Vec::with_capacity(runs.len().div_ceil(fan_in));
            for group in runs.chunks(fan_in) {
                let mut merge = Merge::of(group.to_vec(), memory)?;
                let mut out = RunWriter::new(folder)?;
                while let Some(record) = merge.next()? {
                    out.put(record, &[])?;
                }
                fewer.push(out.finish()?);
            }
            runs = fewer;
        }
        Merge::of(runs, memory)
    }

    fn of(runs: Vec<Part>, memory: u64) -> Result<Merge, Error> {
        let buffer = buffer(runs.len(), memory);
        let inputs = runs.iter().map(|run| Window::part(run, buffer)).collect();
        let mut merge = Merge { runs, inputs, heap: BinaryHeap::new(), current: Vec::new() };
        for run in 0..merge.inputs.len() {
            let mut record = Vec::new();
            if read(&mut merge.inputs[run], &mut record)? {
                merge.heap.push(Reverse((record, run)));
            }
        }
        Ok(merge)
    }

    /// The least record that is left.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, Error> {
        let Some(mut least) = self.heap.peek_mut() else { return Ok(None) };
        let Reverse((record, run)) = &mut *least;
        std::mem::swap(&mut self.current, record);
        if !read(&mut self.inputs[*run], record)? {
            PeekMut::pop(least);
        }
        Ok(Some(&self.current))
    }
}

impl Drop for Merge {
    fn drop(&mut self) {
        self.runs.iter().for_each(|run| folder::remove(&run.path));
    }
}

/// Reads the next record. Returns whether there was one.
fn read(window: &mut Window<'_>, record: &mut Vec<u8>) -> Result<bool, Error> {
    record.clear();
    if window.is_empty() {
        return Ok(false);
    }
    let (bytes, at) = window.record()?;
    let len = varint::take(bytes, at) as usize;
    record.extend_from_slice(&bytes[*at..*at + len]);
    *at += len;
    Ok(true)
}

/// Buffers smaller than this make more calls of the system than another pass would.
const BUFFER_MIN: u64 = 16 << 10;

/// How many runs to read at once.
pub(super) fn fan_in(runs: &[Part], memory: u64) -> usize {
    let record_max = runs.iter().map(|run| run.record_max as u64).max().unwrap_or(0);
    (memory / BUFFER_MIN.max(2 * record_max)).clamp(2, 1 << 16) as usize
}

/// The buffer of each of so many runs.
pub(super) fn buffer(runs: usize, memory: u64) -> usize {
    (memory as usize / runs.max(1)).min(super::super::window::BUFFER_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_runs_come_out_as_one() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::create(parent.path()).unwrap();
        let mut all: Vec<Vec<u8>> =
            (0..5000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[..3].into()).collect();
        let mut runs = Vec::new();
        for part in all.chunks(71) {
            let mut part = part.to_vec();
            part.sort_unstable();
            let mut out = RunWriter::new(&folder).unwrap();
            part.iter().for_each(|record| out.put(&record[..1], &record[1..]).unwrap());
            runs.push(out.finish().unwrap());
        }
        all.sort_unstable();
        // Little memory: three passes of four runs each.
        let mut merge = Merge::new(&folder, runs, 4 * BUFFER_MIN).unwrap();
        for record in &all {
            assert_eq!(merge.next().unwrap(), Some(&record[..]));
        }
        assert_eq!(merge.next().unwrap(), None);
        drop(merge);
        let left = std::fs::read_dir(parent.path()).unwrap().next().unwrap().unwrap().path();
        let left = std::fs::read_dir(left).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.collect();
        assert_eq!(left, [super::super::folder::MARKER], "files of runs are removed");
    }
}
