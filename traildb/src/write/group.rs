//! Buckets of rows into blocks of trails: by trail, within a trail by time, and only what changes.

use super::{
    rows::{self, BUCKET_TRAILS, Bucket, RowReader},
    stream,
};
use crate::{error::InputError, item::Uuid};

/// Bytes of memory that a trail of a block takes without its events: its place, and in the stream
/// its UUID and its end.
pub(super) const TRAIL_BYTES: u64 = 24 + 16 + 1;

/// The trails of a bucket, as a [`stream`].
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    /// Each trail and where it starts, in the order of the bytes.
    pub(super) trails: Vec<(Uuid, u64)>,
    /// The greatest delta, first events counted from the base.
    pub(super) delta_max: u64,
    /// Number of deltas and changes.
    pub(super) keys: u64,
    /// Bytes of the longest record of the stream.
    pub(super) record_max: usize,
}

impl Block {
    /// The stream of the trail of that place.
    pub(super) fn trail(&self, at: usize) -> &[u8] {
        let end = self.trails.get(at + 1).map_or(self.bytes.len() as u64, |&(_, start)| start);
        &self.bytes[self.trails[at].1 as usize..end as usize]
    }
}

/// Groups the rows of a bucket. Events of equal times keep the order in which they were added.
///
/// `uuids` are those of the bucket's trails. The delta of a first event is counted from `base`,
/// which no event precedes.
///
/// # Errors
/// When events are further apart than `delta_max`.
pub(super) fn block(
    bucket: Bucket,
    uuids: &[Uuid],
    base: u64,
    delta_max: u64,
) -> Result<Block, InputError> {
    let n = bucket.rows();
    let bytes = bucket.into_bytes();
    let mut trails = Vec::with_capacity(n);
    let mut times = Vec::with_capacity(n);
    let mut places = Vec::with_capacity(n);
    // A counting sort by trail keeps the order of addition within each.
    let mut starts = [0u32; BUCKET_TRAILS + 1];
    for row in RowReader::new(&bytes) {
        starts[usize::from(row.trail) + 1] += 1;
        trails.push(row.trail);
        times.push(row.time);
        places.push(row.items);
    }
    for at in 1..starts.len() {
        starts[at] += starts[at - 1];
    }
    let mut next = starts;
    let mut order = vec![0u32; n];
    for (row, &trail) in trails.iter().enumerate() {
        let place = &mut next[usize::from(trail)];
        order[*place as usize] = row as u32;
        *place += 1;
    }
    drop(trails);

    let mut block = Block { bytes: Vec::with_capacity(bytes.len() / 2), ..Block::default() };
    let (mut before, mut now, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    for (trail, &uuid) in uuids.iter().enumerate() {
        let order = &mut order[starts[trail] as usize..starts[trail + 1] as usize];
        let time = |&row: &u32| times[row as usize];
        if !order.is_sorted_by_key(time) {
            order.sort_by_key(time);
        }
        block.trails.push((uuid, block.bytes.len() as u64));
        stream::put_trail(&mut block.bytes, uuid);
        before.clear();
        let mut last = base;
        for row in order {
            let time = times[*row as usize];
            let delta = time - last;
            if delta > delta_max {
                return Err(InputError::Delta { uuid, before: last, time });
            }
            block.delta_max = block.delta_max.max(delta);
            last = time;
            rows::items(&bytes, places[*row as usize], &mut now);
            stream::difference(&before, &now, &mut changed);
            let start = block.bytes.len();
            stream::put_event(&mut block.bytes, delta, &changed);
            block.record_max = block.record_max.max(stream::record_max(block.bytes.len() - start));
            block.keys += 1 + changed.len() as u64;
            std::mem::swap(&mut before, &mut now);
        }
        stream::put_end(&mut block.bytes);
    }
    block.bytes.shrink_to_fit();
    Ok(block)
}
