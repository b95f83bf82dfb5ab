//! The bytes of a database, or of one member: a mapped file, or fetched as needed.

use std::{
    fs, io,
    ops::{Deref, Range},
    path::Path,
};

use memmap2::Mmap;
use pager::{Guard, MapName, Mapped, Region};
use traildb::{Storage, storage::Memory};

/// The bytes of a database, or of one member: a mapped file, or fetched as needed.
pub(crate) enum Store {
    /// With its name, which goes before it does.
    Map(#[expect(dead_code, reason = "it is called so while this lives")] MapName, Memory<Mmap>),
    Region(Region),
    Mapped(Mapped, Region),
}

impl Store {
    /// Maps the file at `path`.
    #[expect(unsafe_code, reason = "mapping a file assumes something about everybody else")]
    pub(crate) fn map(path: &Path) -> io::Result<Store> {
        // Asked first: opening a pipe would wait for somebody to write to it.
        if !path.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = fs::File::open(path)?;
        // SAFETY: assumes that nobody rewrites or shortens the file; databases are written once.
        let map = unsafe { Mmap::map(&file)? };
        let path = path.display();
        // Who shortens it all the same ends this process, and is told of.
        let name = MapName::new(&map, &format!("tdb: {path}"));
        Ok(Store::Map(name, Memory::new(map, path.to_string())))
    }

    pub(super) fn region(&self) -> Option<&Region> {
        match self {
            Store::Map(..) => None,
            Store::Region(region) | Store::Mapped(_, region) => Some(region),
        }
    }
}

/// Bytes that stay put.
pub(crate) enum Held<'a> {
    Slice(&'a [u8]),
    Pinned(Guard<'a>),
}

impl Deref for Held<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Held::Slice(bytes) => bytes,
            Held::Pinned(guard) => guard,
        }
    }
}

impl Storage for Store {
    type Bytes<'a> = Held<'a>;

    fn len(&self) -> u64 {
        match self {
            Store::Map(_, map) => map.len(),
            Store::Region(region) | Store::Mapped(_, region) => Storage::len(region),
        }
    }

    fn name(&self) -> &str {
        match self {
            Store::Map(_, map) => map.name(),
            Store::Region(region) | Store::Mapped(_, region) => Storage::name(region),
        }
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<Held<'_>> {
        match self {
            Store::Map(_, map) => map.bytes(range).map(Held::Slice),
            Store::Region(region) => region.bytes(range).map(Held::Pinned),
            Store::Mapped(mapped, _) => {
                let inside = |at: u64| usize::try_from(at).ok();
                let slice = inside(range.start)
                    .zip(inside(range.end))
                    .and_then(|(start, end)| mapped.get(start..end));
                slice.map(Held::Slice).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
        }
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Store::Region(region) => region.read(at, buf),
            Store::Map(..) | Store::Mapped(..) => {
                let end = at.saturating_add(buf.len() as u64);
                buf.copy_from_slice(&self.bytes(at..end)?);
                Ok(())
            }
        }
    }

    fn is_remote(&self) -> bool {
        self.region().is_some()
    }

    fn will_need(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        self.region().map_or(Ok(()), |region| Storage::will_need(region, ranges))
    }
}
