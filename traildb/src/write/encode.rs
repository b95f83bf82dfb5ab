//! Trails as bits (FORMAT.md T3 to T7).

use super::{
    group::Block,
    model::Model,
    parallel,
    spill::{Folder, Writer},
    stream::{self, Stream},
    symbols::{Cover, NONE},
    window::{self, Part},
};
use crate::{bits::BitWriter, error::Error, item::Uuid};

/// Bits before the first event of a trail: how many of its last byte are unused.
const RESIDUAL_BITS: u32 = 3;
/// A chunk of a file with more bytes is encoded by one thread, piece by piece.
const CHUNK_BYTES_MAX: u64 = 4 << 20;
/// Bytes of such a piece.
const PIECE_BYTES: usize = 256 << 10;

/// The trails of a block, as they lie in `trails.data`.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    /// Each trail and where it starts.
    pub(super) trails: Vec<(Uuid, u64)>,
}

/// Encodes the trails of a block.
pub(super) fn block(block: Block, model: &Model) -> Result<Encoded, Error> {
    whole(Stream::new(&block.bytes), model)
}

fn whole(mut stream: Stream<'_>, model: &Model) -> Result<Encoded, Error> {
    let mut encoder = Encoder { model, cover: Cover::default(), out: BitWriter::default() };
    let mut trails = Vec::new();
    let mut keys = Vec::new();
    while let Some(uuid) = stream.next_trail()? {
        let at = encoder.out.len();
        trails.push((uuid, at as u64));
        encoder.out.put(0, RESIDUAL_BITS);
        while stream.next_event(&mut keys)? {
            encoder.event(&keys);
        }
        let unused = encoder.out.align();
        encoder.out.patch(at, unused as u8);
    }
    let mut bytes = encoder.out.into_bytes();
    bytes.shrink_to_fit();
    Ok(Encoded { bytes, trails })
}

/// The trails of all chunks, encoded, in temporary files.
#[derive(Debug)]
pub(super) struct Files {
    /// The trails one after another.
    pub(super) data: Part,
    /// For each trail its UUID, and where it ends as a `u64`.
    pub(super) index: Part,
}

/// Bytes of a trail in the index.
pub(super) const INDEX_BYTES: usize = 24;

/// Encodes chunks of whole trails, in order.
///
/// # Errors
/// When a temporary file cannot be read or written.
pub(super) fn chunks(
    folder: &Folder,
    chunks: &[Part],
    model: &Model,
    threads: usize,
) -> Result<Files, Error> {
    let mut files =
        FilesWriter { data: folder.writer("data")?, index: folder.writer("index")?, end: 0 };
    let mut rest = chunks;
    while let Some(first) = rest.first() {
        let is_small = |chunk: &&Part| chunk.len() <= CHUNK_BYTES_MAX;
        let n = rest.iter().take(2 * threads).take_while(is_small).count();
        if n == 0 {
            files.pieces(Stream::part(first, window::BUFFER_BYTES), model)?;
            rest = &rest[1..];
            continue;
        }
        let encode = |chunk: &Part| whole(Stream::part(chunk, window::BUFFER_BYTES), model);
        for encoded in parallel::map(threads, rest[..n].iter().collect(), encode) {
            files.put(&encoded?)?;
        }
        rest = &rest[n..];
    }
    let FilesWriter { data, index, .. } = files;
    Ok(Files { data: data.finish(1)?, index: index.finish(INDEX_BYTES)? })
}

struct FilesWriter {
    data: Writer,
    index: Writer,
    /// Bytes of all trails so far.
    end: u64,
}

impl FilesWriter {
    fn put(&mut self, encoded: &Encoded) -> Result<(), Error> {
        let start = self.end;
        let ends = encoded.trails.iter().skip(1).map(|&(_, start)| start);
        let ends = ends.chain([encoded.bytes.len() as u64]);
        for (&(uuid, _), end) in encoded.trails.iter().zip(ends) {
            self.end_trail(uuid, start + end)?;
        }
        self.data.write(&encoded.bytes)
    }

    /// Encodes trails of any length.
    fn pieces(&mut self, mut stream: Stream<'_>, model: &Model) -> Result<(), Error> {
        let mut encoder = Encoder { model, cover: Cover::default(), out: BitWriter::default() };
        let mut keys = Vec::new();
        while let Some(uuid) = stream.next_trail()? {
            let at = self.data.len();
            encoder.out.put(0, RESIDUAL_BITS);
            while stream.next_event(&mut keys)? {
                encoder.event(&keys);
                if encoder.out.len() >= PIECE_BYTES {
                    self.data.write(encoder.out.bytes())?;
                    encoder.out.clear_bytes();
                }
            }
            let unused = encoder.out.align();
            self.data.write(encoder.out.bytes())?;
            encoder.out.clear_bytes();
            self.data.patch(at, unused as u8)?;
            self.end_trail(uuid, self.data.len())?;
        }
        Ok(())
    }

    fn end_trail(&mut self, uuid: Uuid, end: u64) -> Result<(), Error> {
        self.end = end;
        self.index.buffer.extend_from_slice(&uuid.0);
        self.index.write(&end.to_le_bytes())
    }
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
