//! Trails as bits (FORMAT.md T3 to T7).

use super::{group::Grouped, model::Model};
use crate::bits::BitWriter;

/// The member `trails.data` without its padding, and where each trail ends in it.
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    pub(super) ends: Vec<u64>,
}

/// Bits before the first event of a trail: how many of its last byte are unused.
const RESIDUAL_BITS: u32 = 3;

pub(super) fn trails(grouped: &Grouped, model: &Model) -> Encoded {
    let mut out = BitWriter::default();
    let mut ends = Vec::with_capacity(grouped.trails() as usize);
    for trail in 0..grouped.trails() as usize {
        let start = out.len();
        out.put(0, RESIDUAL_BITS);
        grouped.edges(trail, |delta, changed| {
            put(&mut out, model, 0, delta);
            for &(field, value) in changed {
                put(&mut out, model, field, u64::from(value));
            }
        });
        let unused = out.align();
        out.patch(start, unused as u8);
        ends.push(out.len() as u64);
    }
    Encoded { bytes: out.into_bytes(), ends }
}

fn put(out: &mut BitWriter, model: &Model, field: u16, value: u64) {
    match model.code(field, value) {
        Some(code) => {
            out.put(1, 1);
            out.put(u64::from(code.word), u32::from(code.bits));
        }
        None => {
            out.put(0, 1);
            out.put(u64::from(field), model.field_bits);
            out.put(value, model.value_bits[usize::from(field)]);
        }
    }
}
