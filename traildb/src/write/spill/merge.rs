//! Sorted runs into one: by UUID, within a trail by time, equal times in the order of the runs.
//!
//! ```text
//!   run   a `stream` in the order of UUIDs; deltas of first events are times
//!
//!   run 0   A.....   C...        D
//!   run 1      B...  C..         D..    ---->   A B C C D D, changes and deltas told anew
//! ```
//!
//! Nothing of a trail is held but one event of each run, so a trail may be longer than the memory.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{
    super::{
        group::Block,
        sample::{self, RUN_EVENTS, Sampler},
        stream::{self, Stream},
        window::{self, Part},
    },
    folder::{self, Folder, Writer},
    sort,
};
use crate::{
    error::{Error, InputError},
    item::Uuid,
};

/// Bytes of a chunk of merged trails, unless a trail alone has more.
const CHUNK_BYTES: u64 = 2 << 20;

/// Bytes of memory that a trail takes while a run is written.
pub(in super::super) const TRAIL_BYTES: u64 = 24;

/// Writes the trails of blocks as a run.
pub(in super::super) fn write_run(folder: &Folder, blocks: &[Block]) -> Result<Part, Error> {
    let trails = blocks.iter().map(|block| block.trails.len()).sum();
    let mut order: Vec<(Uuid, u32, u32)> = Vec::with_capacity(trails);
    for (block, number) in blocks.iter().zip(0..) {
        let trails = block.trails.iter().zip(0..);
        order.extend(trails.map(|(&(uuid, _), at)| (uuid, number, at)));
    }
    order.sort_unstable_by_key(|&(uuid, ..)| uuid);
    let mut out = folder.writer("run")?;
    for (_, block, at) in order {
        out.write(blocks[block as usize].trail(at as usize))?;
    }
    out.finish(blocks.iter().map(|block| block.record_max).max().unwrap_or(0))
}

/// Writes a run with other numbers for its values: `maps` has for each field what its numbers from 1
/// become. Removes the old one.
pub(super) fn rewrite_run(folder: &Folder, run: &Part, maps: &[Vec<u64>]) -> Result<Part, Error> {
    let mut out = folder.writer("run")?;
    let mut stream = Stream::part(run, window::BUFFER_BYTES);
    let mut keys = Vec::new();
    let mut record_max = run.record_max;
    while let Some(uuid) = stream.next_trail()? {
        stream::put_trail(&mut out.buffer, uuid);
        while stream.next_event(&mut keys)? {
            for key in &mut keys[1..] {
                let (field, value) = (stream::field(*key), stream::value(*key));
                if value != 0 {
                    let number = maps[usize::from(field) - 1][value as usize - 1];
                    *key = stream::key(field, number);
                }
            }
            let start = out.buffer.len();
            stream::put_event(&mut out.buffer, keys[0], &keys[1..]);
            record_max = record_max.max(out.buffer.len() - start);
            out.spill()?;
        }
        stream::put_end(&mut out.buffer);
    }
    folder::remove(&run.path);
    out.finish(record_max)
}

/// Merged trails.
#[derive(Debug)]
pub(in super::super) struct Merged {
    /// Whole trails each, in order.
    pub(in super::super) chunks: Vec<Part>,
    /// The chunks of a sample of the events, if it is not all of them.
    pub(in super::super) sample: Option<Vec<Part>>,
    pub(in super::super) trails: u64,
    pub(in super::super) keys: u64,
    pub(in super::super) delta_max: u64,
}

/// Merges runs until there are few enough to be read at once, and those into the result.
///
/// # Errors
/// When a file cannot be written or read, and when events are too far apart.
pub(in super::super) fn all(
    folder: &Folder,
    mut runs: Vec<Part>,
    memory: u64,
    base: u64,
    delta_max: u64,
    sampler: Sampler,
) -> Result<Merged, Error> {
    let fan_in = sort::fan_in(&runs, memory);
    while runs.len() > fan_in {
        let mut merged = Vec::with_capacity(runs.len().div_ceil(fan_in));
        // Neighbours, so that the order of the runs is kept.
        for group in runs.chunks(fan_in) {
            let out = Out::new(folder, 0, u64::MAX, None)?;
            merged.push(merge(group, memory, out)?.0);
            group.iter().for_each(|run| folder::remove(&run.path));
        }
        runs = merged;
    }
    let sampler = (!sampler.takes_all()).then_some(sampler);
    let (_, merged) = merge(&runs, memory, Out::new(folder, base, delta_max, sampler)?)?;
    runs.iter().for_each(|run| folder::remove(&run.path));
    Ok(merged)
}

/// The runs as one file, and what is in it.
fn merge(runs: &[Part], memory: u64, mut out: Out) -> Result<(Part, Merged), Error> {
    let buffer = sort::buffer(runs.len(), memory);
    let mut inputs: Vec<Input> = runs.iter().map(|run| Input::new(run, buffer)).collect();
    let mut heads = BinaryHeap::new();
    for (run, input) in inputs.iter_mut().enumerate() {
        heads.extend(input.stream.next_trail()?.map(|uuid| Reverse((uuid, run))));
    }
    let mut group = Vec::new();
    while let Some(Reverse((uuid, run))) = heads.pop() {
        group.clear();
        group.push(run);
        while let Some(&Reverse((next, run))) = heads.peek().filter(|head| head.0.0 == uuid) {
            debug_assert_eq!(next, uuid);
            group.push(run);
            heads.pop();
        }
        out.trail(uuid)?;
        match &group[..] {
            &[run] => copy(&mut inputs[run], &mut out)?,
            group => join(&mut inputs, group, &mut out)?,
        }
        out.end_trail()?;
        for &run in &group {
            let next = inputs[run].stream.next_trail()?;
            heads.extend(next.map(|uuid| Reverse((uuid, run))));
        }
    }
    out.finish()
}

/// A run being read.
struct Input {
    stream: Stream<'static>,
    /// The current event: its time, and its keys, the delta first.
    time: u64,
    keys: Vec<u64>,
    /// All its items.
    state: Vec<u64>,
}

impl Input {
    fn new(run: &Part, buffer: usize) -> Input {
        let (time, keys, state) = (0, Vec::new(), Vec::new());
        Input { stream: Stream::part(run, buffer), time, keys, state }
    }

    fn start(&mut self) {
        self.time = 0;
        self.state.clear();
    }

    fn next(&mut self) -> Result<bool, Error> {
        let found = self.stream.next_event(&mut self.keys)?;
        if found {
            // Its times are of 64 bits, and so are their sums.
            self.time = self.time.wrapping_add(self.keys[0]);
        }
        Ok(found)
    }
}

/// A trail of one run alone: only the first delta changes.
fn copy(input: &mut Input, out: &mut Out) -> Result<(), Error> {
    input.start();
    while input.next()? {
        out.event(input.time, &input.keys[1..])?;
    }
    Ok(())
}

/// A trail of several runs.
fn join(inputs: &mut [Input], group: &[usize], out: &mut Out) -> Result<(), Error> {
    let mut open = Vec::with_capacity(group.len());
    let mut scratch = Vec::new();
    for &run in group {
        inputs[run].start();
        if inputs[run].next()? {
            inputs[run].apply(&mut scratch);
            open.push(run);
        }
    }
    let (mut before, mut changed) = (Vec::new(), Vec::new());
    // Runs are in the order of addition, and the first of the earliest ones is taken.
    while let Some(at) = (0..open.len()).min_by_key(|&at| inputs[open[at]].time) {
        let input = &mut inputs[open[at]];
        stream::difference(&before, &input.state, &mut changed);
        out.event(input.time, &changed)?;
        before.clone_from(&input.state);
        if input.next()? {
            input.apply(&mut scratch);
        } else {
            open.remove(at);
        }
    }
    Ok(())
}

impl Input {
    /// Applies what the current event changes to the state.
    fn apply(&mut self, scratch: &mut Vec<u64>) {
        scratch.clear();
        let mut old = self.state.iter().copied().peekable();
        for &key in &self.keys[1..] {
            while let Some(kept) = old.next_if(|&old| stream::field(old) < stream::field(key)) {
                scratch.push(kept);
            }
            old.next_if(|&old| stream::field(old) == stream::field(key));
            if stream::value(key) != 0 {
                scratch.push(key);
            }
        }
        scratch.extend(old);
        std::mem::swap(&mut self.state, scratch);
    }
}

/// Merged trails being written.
struct Out {
    writer: Writer,
    base: u64,
    delta_limit: u64,
    uuid: Uuid,
    /// The time of the event before.
    time: u64,
    chunks: Vec<Part>,
    chunk_start: u64,
    record_max: usize,
    trails: u64,
    keys: u64,
    delta_max: u64,
    sample: Option<SampleOut>,
}

impl Out {
    fn new(
        folder: &Folder,
        base: u64,
        delta_limit: u64,
        sampler: Option<Sampler>,
    ) -> Result<Out, Error> {
        let sample = sampler.map(|sampler| SampleOut::new(folder, sampler)).transpose()?;
        Ok(Out {
            writer: folder.writer("merged")?,
            base,
            delta_limit,
            uuid: Uuid::default(),
            time: base,
            chunks: Vec::new(),
            chunk_start: 0,
            record_max: 16,
            trails: 0,
            keys: 0,
            delta_max: 0,
            sample,
        })
    }

    fn trail(&mut self, uuid: Uuid) -> Result<(), Error> {
        if self.writer.len() - self.chunk_start >= CHUNK_BYTES {
            self.end_chunk();
        }
        (self.uuid, self.time) = (uuid, self.base);
        self.trails += 1;
        stream::put_trail(&mut self.writer.buffer, uuid);
        if let Some(sample) = &mut self.sample {
            sample.events = 0;
        }
        Ok(())
    }

    fn event(&mut self, time: u64, changed: &[u64]) -> Result<(), Error> {
        let (uuid, before) = (self.uuid, self.time);
        let delta = time - before;
        if delta > self.delta_limit {
            return Err(InputError::Delta { uuid, before, time }.into());
        }
        self.time = time;
        self.delta_max = self.delta_max.max(delta);
        self.keys += 1 + changed.len() as u64;
        let start = self.writer.buffer.len();
        stream::put_event(&mut self.writer.buffer, delta, changed);
        self.record_max = self.record_max.max(self.writer.buffer.len() - start);
        if let Some(sample) = &mut self.sample {
            sample.event(uuid, delta, changed)?;
        }
        self.writer.spill()
    }

    fn end_trail(&mut self) -> Result<(), Error> {
        stream::put_end(&mut self.writer.buffer);
        self.sample.as_mut().map_or(Ok(()), SampleOut::end_run)
    }

    fn end_chunk(&mut self) {
        // How long records are is known at the end.
        self.chunks.push(self.writer.part_from(self.chunk_start, 0));
        self.chunk_start = self.writer.len();
    }

    fn finish(mut self) -> Result<(Part, Merged), Error> {
        self.end_chunk();
        for chunk in &mut self.chunks {
            chunk.record_max = self.record_max;
        }
        let Out { trails, keys, delta_max, chunks, record_max, .. } = self;
        let part = self.writer.finish(record_max)?;
        let sample = self.sample.map(|sample| sample.finish(record_max)).transpose()?;
        Ok((part, Merged { chunks, sample, trails, keys, delta_max }))
    }
}

/// The events of the sample, in a file of their own: they are read several times, and the others
/// need not be. A run of them is a trail whose UUID is the hash that it was chosen by.
struct SampleOut {
    sampler: Sampler,
    writer: Writer,
    chunks: Vec<Part>,
    chunk_start: u64,
    /// Events of the trail so far.
    events: u64,
    taking: bool,
}

impl SampleOut {
    fn new(folder: &Folder, sampler: Sampler) -> Result<SampleOut, Error> {
        let (chunks, writer) = (Vec::new(), folder.writer("sample")?);
        Ok(SampleOut { sampler, writer, chunks, chunk_start: 0, events: 0, taking: false })
    }

    fn event(&mut self, uuid: Uuid, delta: u64, changed: &[u64]) -> Result<(), Error> {
        if self.events.is_multiple_of(RUN_EVENTS) {
            self.end_run()?;
            let hash = sample::hash(uuid, self.events);
            self.taking = self.sampler.takes(hash);
            if self.taking {
                stream::put_trail(&mut self.writer.buffer, Uuid::from_number(hash.into()));
            }
        }
        self.events += 1;
        if self.taking {
            stream::put_event(&mut self.writer.buffer, delta, changed);
        }
        Ok(())
    }

    fn end_run(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.taking) {
            stream::put_end(&mut self.writer.buffer);
            if self.writer.len() - self.chunk_start >= CHUNK_BYTES {
                self.chunks.push(self.writer.part_from(self.chunk_start, 0));
                self.chunk_start = self.writer.len();
            }
        }
        self.writer.spill()
    }

    fn finish(mut self, record_max: usize) -> Result<Vec<Part>, Error> {
        self.chunks.push(self.writer.part_from(self.chunk_start, 0));
        self.writer.flush()?;
        for chunk in &mut self.chunks {
            chunk.record_max = record_max;
        }
        Ok(self.chunks)
    }
}
