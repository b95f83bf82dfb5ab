//! Parts of objects in memory that clients map: sealed memory files, which are handed out to all who
//! ask, so that each byte is in memory once.
//!
//! What a connection was given is its own until it ends, and takes room until then: its client may
//! have it mapped. What nobody has leaves, oldest use first. A client that keeps a map beyond its
//! connection keeps the memory, too; `PROTOCOL.md` asks it not to.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use futures::StreamExt;
use pager::{BlockSource, SourceError, sealed};
use tokio::sync::{OnceCell, Semaphore};

use super::{handles::Pinned, objects::Object};

/// A piece has at least so many bytes: each is a descriptor, and a mapping of every client.
const PIECE_BYTES_MIN: u64 = 1 << 20;
/// Bytes of a page.
const PAGE: u64 = 4096;
/// Of the descriptors that this process may have, pieces take at most this part.
const FILES_SHARE: u64 = 4;
/// Bytes of pieces that are being made, which are in memory twice.
const FILLING_BYTES: u64 = 256 << 20;
const FILLS_MAX: u64 = 16;

/// See the module.
pub(super) struct Pieces {
    room: Room,
    /// Of one piece, but for the last of an object.
    piece_bytes: u64,
    fills: Semaphore,
    held: Mutex<Held>,
}

/// What pieces may take of this process. Small objects run out of descriptors first.
#[derive(Clone, Copy)]
struct Room {
    bytes: u64,
    pieces: usize,
}

/// Which object, version, length, and which of its pieces.
type Key = (String, String, u64, u64);

#[derive(Default)]
struct Held {
    pieces: HashMap<Key, (Arc<Piece>, u64)>,
    bytes: u64,
    clock: u64,
}

/// A part of an object.
pub(super) struct Piece {
    len: u64,
    /// Made by the first who asks; others wait.
    file: OnceCell<File>,
}

/// Why there is none.
pub(super) enum NoPiece {
    /// All room is taken by pieces that clients have.
    Full,
    Source(SourceError),
    System(io::Error),
}

impl Piece {
    /// The memory file.
    pub(super) fn file(&self) -> io::Result<File> {
        match self.file.get() {
            Some(file) => file.try_clone(),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl Pieces {
    pub(super) fn new(bytes_max: u64, extent_bytes: u64) -> Pieces {
        let files_max = files_max();
        let piece_bytes = piece_bytes(bytes_max, extent_bytes, files_max);
        let fills = (FILLING_BYTES / piece_bytes).clamp(1, FILLS_MAX) as usize;
        let room = Room { bytes: bytes_max, pieces: pieces_max(files_max) as usize };
        Pieces { room, piece_bytes, fills: Semaphore::new(fills), held: Mutex::default() }
    }

    /// Whether there is room for any.
    pub(super) fn is_on(&self) -> bool {
        self.room.bytes >= self.piece_bytes
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> u64 {
        self.with(|held| held.bytes)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Held) -> T) -> T {
        work(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The piece with the byte at `offset`, and where it begins in the object.
    pub(super) async fn get(
        &self,
        object: &Object,
        url: &str,
        pinned: &Pinned,
        offset: u64,
    ) -> Result<(Arc<Piece>, Range<u64>), NoPiece> {
        let at = offset / self.piece_bytes;
        let start = at * self.piece_bytes;
        let range = start..(start + self.piece_bytes).min(pinned.len);
        // By the address that was asked for: two services may call an object alike.
        let key = (url.to_owned(), pinned.version.to_string(), pinned.len, at);
        // Memory comes in whole pages.
        let len = (range.end - range.start).next_multiple_of(PAGE);
        let piece = self.with(|held| held.piece(&key, len, self.room));
        let piece = piece.ok_or(NoPiece::Full)?;
        let make = || async {
            let _turn = self.fills.acquire().await;
            fill(object, pinned, range.clone()).await
        };
        let made = piece.file.get_or_try_init(make).await;
        if let Err(error) = made {
            // Whoever asks next tries again, if nobody else does already.
            drop(piece);
            self.with(|held| held.forget(&key));
            return Err(error);
        }
        Ok((piece, range))
    }
}

/// Large enough that all memory is in as many pieces as there may be files.
fn piece_bytes(bytes_max: u64, extent_bytes: u64, files_max: u64) -> u64 {
    let least = bytes_max.div_ceil(pieces_max(files_max));
    extent_bytes.max(PIECE_BYTES_MIN).max(least.checked_next_power_of_two().unwrap_or(1 << 62))
}

/// As many pieces as may have a descriptor each.
fn pieces_max(files_max: u64) -> u64 {
    (files_max / FILES_SHARE).max(1)
}

/// Descriptors that this process may have.
fn files_max() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    // What every system allows.
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(1024)
}

async fn fill(object: &Object, pinned: &Pinned, range: Range<u64>) -> Result<File, NoPiece> {
    let body = object.read(&pinned.version, range.clone()).await;
    let mut body = body.map_err(NoPiece::Source)?;
    let mut chunks = Vec::new();
    while let Some(chunk) = body.next().await {
        chunks.push(chunk.map_err(NoPiece::Source)?);
    }
    let (len, name) = (range.end - range.start, object.name().to_owned());
    let got: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    if got != len {
        return Err(NoPiece::Source(SourceError::short_body(&name, range, got)));
    }
    let write =
        move || sealed::seal(len, |file| chunks.iter().try_for_each(|chunk| file.write_all(chunk)));
    let sealed = tokio::task::spawn_blocking(write).await;
    sealed
        .map_err(|_| NoPiece::System(io::Error::other("the server stops")))?
        .map_err(NoPiece::System)
}

impl Held {
    /// The piece of that name, there or to be made. `None` where there is no room.
    fn piece(&mut self, key: &Key, len: u64, room: Room) -> Option<Arc<Piece>> {
        self.clock += 1;
        if let Some((piece, used)) = self.pieces.get_mut(key) {
            *used = self.clock;
            return Some(piece.clone());
        }
        while self.bytes.saturating_add(len) > room.bytes || self.pieces.len() >= room.pieces {
            // Nobody has it but this map.
            let idle = |piece: &Arc<Piece>| Arc::strong_count(piece) == 1;
            let leaving = self.pieces.iter().filter(|(_, (piece, _))| idle(piece));
            let oldest = leaving.min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone())?;
            if let Some((piece, _)) = self.pieces.remove(&oldest) {
                self.bytes -= piece.len;
            }
        }
        let piece = Arc::new(Piece { len, file: OnceCell::new() });
        self.bytes += len;
        self.pieces.insert(key.clone(), (piece.clone(), self.clock));
        Some(piece)
    }

    /// Removes a piece that could not be made, unless somebody is about to.
    fn forget(&mut self, key: &Key) {
        let empty = |piece: &Arc<Piece>| Arc::strong_count(piece) == 1 && !piece.file.initialized();
        if self.pieces.get(key).is_some_and(|(piece, _)| empty(piece))
            && let Some((piece, _)) = self.pieces.remove(key)
        {
            self.bytes -= piece.len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_not_more_pieces_than_files() {
        assert!(files_max() >= 64, "{}", files_max());
        let mib = 1 << 20;
        let cases = [
            (4 << 30, mib, 65_536, mib),
            (4 << 30, mib, 1024, 16 * mib),
            (64 << 30, 4096, 65_536, 4 * mib),
            (16 * mib, 16 * mib, 1024, 16 * mib),
            (0, 4096, 1024, mib),
            (u64::MAX, 4096, 0, 1 << 62),
        ];
        for (bytes_max, extent, files, expected) in cases {
            assert_eq!(piece_bytes(bytes_max, extent, files), expected, "{bytes_max} {files}");
        }
    }

    #[test]
    fn what_clients_have_stays_and_the_rest_leaves_in_its_order() {
        const ROOM: Room = Room { bytes: 30, pieces: 4 };
        let mut held = Held::default();
        let key = |at: u64| ("url".to_owned(), "v".to_owned(), 100, at);
        let mine = held.piece(&key(0), 10, ROOM).expect("room");
        for at in 1..3 {
            drop(held.piece(&key(at), 10, ROOM).expect("room"));
        }
        drop(held.piece(&key(1), 10, ROOM).expect("it is there"));
        drop(held.piece(&key(3), 10, ROOM).expect("2 leaves"));
        let there = |held: &Held| (0..5).filter(|at| held.pieces.contains_key(&key(*at))).collect();
        let left: Vec<u64> = there(&held);
        assert_eq!((left, held.bytes), (vec![0, 1, 3], 30));
        let more = [held.piece(&key(1), 10, ROOM), held.piece(&key(3), 10, ROOM)];
        assert!(held.piece(&key(4), 10, ROOM).is_none(), "all are in use");
        drop((mine, more));
        assert!(held.piece(&key(4), 30, ROOM).is_some());
        assert_eq!(held.bytes, 30);
        held.forget(&key(4));
        assert_eq!((held.bytes, held.pieces.len()), (0, 0), "one that was never made");
        assert!(held.piece(&key(5), 31, ROOM).is_none(), "too large for ever");
    }
    /// Memory was counted, and descriptors were not: of small objects there were as many as clients
    /// asked for, until the server could open nothing any more.
    #[test]
    fn small_pieces_are_not_more_than_there_may_be() {
        let room = Room { bytes: 1 << 30, pieces: 3 };
        let mut held = Held::default();
        let key = |at: u64| ("url".to_owned(), "v".to_owned(), 1, at);
        (0..100).for_each(|at| drop(held.piece(&key(at), PAGE, room).expect("room")));
        assert_eq!((held.pieces.len(), held.bytes), (3, 3 * PAGE));
        let mine: Vec<_> =
            (97..100).map(|at| held.piece(&key(at), PAGE, room).expect("there")).collect();
        assert!(held.piece(&key(100), PAGE, room).is_none(), "clients have them all");
        drop(mine);
        assert!(held.piece(&key(100), PAGE, room).is_some());
    }
}
