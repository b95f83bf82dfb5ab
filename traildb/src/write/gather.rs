//! Encoded trails of all blocks in the order of the file: by UUID.

use std::io;

use super::encode::Encoded;
use crate::item::Uuid;

/// The members `trails.toc`, `trails.data` and `uuids`, as they can be written one after another.
pub(super) struct Gathered {
    blocks: Vec<Vec<u8>>,
    /// Where the trails of each block start, and where its last one ends.
    starts: Vec<Vec<u64>>,
    /// UUID, block, and place in the block; by ascending UUID.
    order: Vec<(Uuid, u32, u32)>,
    bytes: u64,
}

impl Gathered {
    pub(super) fn new(encoded: Vec<Encoded>) -> Gathered {
        let trails = encoded.iter().map(|block| block.trails.len()).sum();
        let mut gathered = Gathered {
            blocks: Vec::with_capacity(encoded.len()),
            starts: Vec::with_capacity(encoded.len()),
            order: Vec::with_capacity(trails),
            bytes: 0,
        };
        for (block, Encoded { bytes, trails }) in (0..).zip(encoded) {
            let places = trails.iter().zip(0..).map(|(&(uuid, _), at)| (uuid, block, at));
            gathered.order.extend(places);
            let end = bytes.len() as u64;
            let starts = trails.iter().map(|&(_, start)| start);
            gathered.starts.push(starts.chain([end]).collect());
            gathered.bytes += end;
            gathered.blocks.push(bytes);
        }
        gathered.order.sort_unstable_by_key(|&(uuid, ..)| uuid);
        gathered
    }

    /// Bytes of all trails.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where each trail ends.
    pub(super) fn ends(&self) -> impl Iterator<Item = u64> {
        let len = |&(_, block, at): &(Uuid, u32, u32)| {
            let starts = &self.starts[block as usize];
            starts[at as usize + 1] - starts[at as usize]
        };
        self.order.iter().map(len).scan(0, |end, len| {
            *end += len;
            Some(*end)
        })
    }

    /// Calls `put` with the bytes of all trails, one after another.
    pub(super) fn data(&self, mut put: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.order.iter().try_for_each(|&(_, block, at)| {
            let starts = &self.starts[block as usize];
            let (start, end) = (starts[at as usize], starts[at as usize + 1]);
            put(&self.blocks[block as usize][start as usize..end as usize])
        })
    }

    pub(super) fn uuids(&self) -> impl Iterator<Item = Uuid> {
        self.order.iter().map(|&(uuid, ..)| uuid)
    }
}
