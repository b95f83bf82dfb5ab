//! Encoded trails in the order of the file: by UUID.

use super::{
    encode::{Encoded, Files, INDEX_BYTES},
    window::{self, Part, Window},
};
use crate::{error::Error, item::Uuid};

/// The members `trails.toc`, `trails.data` and `uuids`, as they can be written one after another.
pub(super) enum Gathered {
    /// In memory: the blocks, and the order of their trails.
    Memory(Blocks),
    /// In temporary files, and in order.
    Files(Files),
}

/// Encoded blocks, and the order of their trails.
pub(super) struct Blocks {
    bytes: Vec<Vec<u8>>,
    /// Where the trails of each block start, and where its last one ends.
    starts: Vec<Vec<u64>>,
    /// UUID, block, and place in the block; by ascending UUID.
    order: Vec<(Uuid, u32, u32)>,
}

impl Gathered {
    pub(super) fn of_blocks(encoded: Vec<Encoded>) -> Gathered {
        let trails = encoded.iter().map(|block| block.trails.len()).sum();
        let mut blocks = Blocks {
            bytes: Vec::with_capacity(encoded.len()),
            starts: Vec::with_capacity(encoded.len()),
            order: Vec::with_capacity(trails),
        };
        for (block, Encoded { bytes, trails }) in (0..).zip(encoded) {
            let places = trails.iter().zip(0..).map(|(&(uuid, _), at)| (uuid, block, at));
            blocks.order.extend(places);
            let starts = trails.iter().map(|&(_, start)| start);
            blocks.starts.push(starts.chain([bytes.len() as u64]).collect());
            blocks.bytes.push(bytes);
        }
        blocks.order.sort_unstable_by_key(|&(uuid, ..)| uuid);
        Gathered::Memory(blocks)
    }

    /// Bytes of all trails.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Gathered::Memory(blocks) => blocks.bytes.iter().map(|block| block.len() as u64).sum(),
            Gathered::Files(files) => files.data.len(),
        }
    }

    /// Calls `each` with every trail and where it ends.
    pub(super) fn trails(
        &self,
        mut each: impl FnMut(Uuid, u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match self {
            Gathered::Memory(blocks) => {
                let mut end = 0;
                blocks.order.iter().try_for_each(|&(uuid, block, at)| {
                    let starts = &blocks.starts[block as usize];
                    end += starts[at as usize + 1] - starts[at as usize];
                    each(uuid, end)
                })
            }
            Gathered::Files(files) => {
                let mut window = Window::part(&files.index, window::BUFFER_BYTES);
                while !window.is_empty() {
                    let (bytes, at) = window.record()?;
                    let (uuid, end) = bytes[*at..*at + INDEX_BYTES].split_at(16);
                    *at += INDEX_BYTES;
                    let uuid = Uuid(uuid.try_into().expect("sixteen bytes"));
                    each(uuid, u64::from_le_bytes(end.try_into().expect("eight bytes")))?;
                }
                Ok(())
            }
        }
    }

    /// Calls `put` with the bytes of all trails, one after another.
    pub(super) fn data(
        &self,
        mut put: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match self {
            Gathered::Memory(blocks) => blocks.order.iter().try_for_each(|&(_, block, at)| {
                let starts = &blocks.starts[block as usize];
                let (start, end) = (starts[at as usize], starts[at as usize + 1]);
                put(&blocks.bytes[block as usize][start as usize..end as usize])
            }),
            Gathered::Files(Files { data, .. }) => {
                let part = Part { record_max: 1, ..data.clone() };
                let mut window = Window::part(&part, window::BUFFER_BYTES);
                while !window.is_empty() {
                    let (bytes, at) = window.record()?;
                    put(&bytes[*at..])?;
                    *at = bytes.len();
                }
                Ok(())
            }
        }
    }
}
