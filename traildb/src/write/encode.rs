//! Trails as bits (FORMAT.md T3 to T7).

use super::{
    group::Block,
    model::Model,
    stream::{self, Stream},
    symbols::{Cover, NONE},
};
use crate::{bits::BitWriter, item::Uuid};

/// Bits before the first event of a trail: how many of its last byte are unused.
const RESIDUAL_BITS: u32 = 3;

/// The trails of a block, as they lie in `trails.data`.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    /// Each trail and where it starts.
    pub(super) trails: Vec<(Uuid, u64)>,
}

/// Encodes the trails of a block.
pub(super) fn block(mut block: Block, model: &Model) -> Encoded {
    let mut encoder = Encoder { model, cover: Cover::default(), out: BitWriter::default() };
    let mut trails = std::mem::take(&mut block.trails);
    let mut stream = Stream::new(&block.bytes);
    let mut keys = Vec::new();
    for (uuid, start) in &mut trails {
        let next = stream.next_trail();
        debug_assert_eq!(next, Some(*uuid), "a block's trails are in the order of its bytes");
        let at = encoder.out.len();
        *start = at as u64;
        encoder.out.put(0, RESIDUAL_BITS);
        while stream.next_event(&mut keys) {
            encoder.event(&keys);
        }
        let unused = encoder.out.align();
        encoder.out.patch(at, unused as u8);
    }
    let mut bytes = encoder.out.into_bytes();
    bytes.shrink_to_fit();
    Encoded { bytes, trails }
}

struct Encoder<'m> {
    model: &'m Model,
    cover: Cover,
    out: BitWriter,
}

impl Encoder<'_> {
    #[inline]
    fn event(&mut self, keys: &[u64]) {
        let Encoder { model, cover, out } = self;
        cover.event(&model.symbols, keys);
        for (at, &key) in keys.iter().enumerate() {
            if cover.is_second[at] {
                continue;
            }
            let (pair, _) = cover.pairs[at];
            let code = match (pair, cover.items[at]) {
                (NONE, NONE) => None,
                (NONE, item) => Some(model.item_codes[item as usize]),
                (pair, _) => Some(model.pair_codes[pair as usize]),
            };
            match code.filter(|code| code.bits > 0) {
                Some(code) => {
                    out.put(1 | u64::from(code.word) << 1, 1 + u32::from(code.bits));
                }
                None => {
                    let field = stream::field(key);
                    let bits = 1 + model.literals.field_bits;
                    out.put(u64::from(field) << 1, bits);
                    let value_bits = model.literals.value_bits[usize::from(field)];
                    out.put(stream::value(key), value_bits);
                }
            }
        }
    }
}
