//! Parts of objects in memory that clients map: sealed memory files, which are handed out to all who
//! ask, so that each byte is in memory once.
//!
//! What a connection was given is its own until it ends, and takes room until then: its client may
//! have it mapped. A client that keeps a map or a descriptor beyond its connection takes the room, too:
//! what it is given has a lock on it (`flock(2)`), which ends with the last of both. What nobody has
//! leaves, oldest use first, and after some minutes in any case. A client may take the lock for itself alone: then others are given the
//! same bytes anew, and what it keeps is counted until it lets go.

use std::{
    fs::File,
    io::{self, Write},
    ops::Range,
    os::fd::AsRawFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt;
use pager::{BlockSource, SourceError, Version, sealed};
use tokio::sync::OnceCell;

use super::{
    handles::Pinned,
    objects::{Object, turn_for},
    recent::Recent,
    seats::Seat,
    seen::shown,
};

/// A piece has at least so many bytes, where all memory is in no more pieces than there may be files:
/// each is a descriptor, and a mapping of every client.
const PIECE_BYTES_MIN: u64 = 1 << 20;
/// And never more: while one is made it is in memory twice.
const PIECE_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a page.
const PAGE: u64 = 4096;
/// Of the descriptors that this process may have, pieces take at most this part.
const FILES_SHARE: u64 = 4;
/// Bytes of pieces that are being made.
const FILLING_BYTES: u64 = 256 << 20;
const FILLS_MAX: u64 = 16;
/// What nobody has had for so long is given back to the machine: it is in the cache, too.
const IDLE: Duration = Duration::from_secs(300);
/// How often that is looked at.
const IDLE_LOOK: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Pieces {
    room: Room,
    /// Of one piece, but for the last of an object.
    piece_bytes: u64,
    held: Mutex<Held>,
}

/// What pieces may take of this process. Small objects run out of descriptors first.
#[derive(Clone, Copy)]
struct Room {
    bytes: u64,
    pieces: usize,
}

/// Which address, version and length, and which of its pieces.
type Key = (String, Version, u64, u64);

#[derive(Default)]
struct Held {
    pieces: Recent<Key, Arc<Piece>>,
    /// Those that a client has locked for itself, and their bytes. Nobody is given them any more.
    lost: Vec<(Arc<Piece>, u64)>,
}

/// A part of an object.
#[derive(Debug, Default)]
pub(super) struct Piece {
    /// Made by the first who asks; others wait.
    file: OnceCell<File>,
    /// Since when nobody has it, as far as somebody has looked.
    free_since: Mutex<Option<Instant>>,
}

/// Why there is none.
pub(super) enum NoPiece {
    /// All room is taken by pieces that clients have.
    Full,
    Source(SourceError),
    System(io::Error),
}

impl Piece {
    /// The memory file, opened anew for a client: for reading, and with a lock that says so for as long
    /// as that has it open or mapped.
    pub(super) fn file(&self) -> io::Result<File> {
        let file = self.file.get().ok_or(io::ErrorKind::NotFound)?;
        let own = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        own.try_lock_shared()?;
        Ok(own)
    }

    /// Since when nobody has it; `now` if that is new, or if nobody does.
    fn free_since(&self, is_free: bool, now: Instant) -> Instant {
        let mut since = self.free_since.lock().unwrap_or_else(PoisonError::into_inner);
        match is_free {
            true => *since.get_or_insert(now),
            false => {
                *since = None;
                now
            }
        }
    }

    /// Whether no client has it open or mapped any more.
    fn is_free(&self) -> bool {
        self.file.get().is_none_or(|file| file.try_lock().is_ok_and(|()| file.unlock().is_ok()))
    }
}

impl Pieces {
    /// Room for `bytes_max` of pieces, in a process that may have `files_max` descriptors.
    pub(super) fn new(bytes_max: u64, extent_bytes: u64, files_max: u64) -> Pieces {
        let piece_bytes = piece_bytes(bytes_max, extent_bytes, files_max);
        let room = Room { bytes: bytes_max, pieces: pieces_max(files_max) as usize };
        Pieces { room, piece_bytes, held: Mutex::default() }
    }

    /// Whether there is room for any.
    pub(super) fn is_on(&self) -> bool {
        self.room.bytes >= self.piece_bytes
    }

    /// How much may be in memory, or 0 if nothing.
    pub(super) fn room_bytes(&self) -> u64 {
        if self.is_on() { self.room.bytes } else { 0 }
    }

    /// Gives back what nobody has, for ever.
    pub(super) async fn give_back(&self) {
        loop {
            tokio::time::sleep(IDLE_LOOK).await;
            self.with(|held| held.give_back(Instant::now()));
        }
    }

    /// How many may be made at once.
    pub(super) fn fills_max(&self) -> usize {
        (FILLING_BYTES / self.piece_bytes).clamp(1, FILLS_MAX) as usize
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> u64 {
        self.with(|held| {
            held.forget_lost();
            held.pieces.bytes() + held.lost_bytes()
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Held) -> T) -> T {
        work(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The piece with the byte at `offset`, its file for one client, and where it lies in the object.
    /// `seat` is whose turn it is to have it made.
    pub(super) async fn get(
        &self,
        object: &Object,
        url: &str,
        pinned: &Pinned,
        offset: u64,
        seat: &Seat,
    ) -> Result<(Arc<Piece>, File, Range<u64>), NoPiece> {
        let at = offset / self.piece_bytes;
        let start = at * self.piece_bytes;
        let range = start..(start + self.piece_bytes).min(pinned.len);
        // By the address that was asked for: two services may call an object alike.
        let key = (url.to_owned(), pinned.version.clone(), pinned.len, at);
        // Memory comes in whole pages.
        let len = (range.end - range.start).next_multiple_of(PAGE);
        let mut is_second = false;
        loop {
            let piece = self.with(|held| held.piece(&key, len, self.room));
            let piece = piece.ok_or(NoPiece::Full)?;
            let make = || async {
                let turn = turn_for(seat, (url, object), &pinned.version, &range).await;
                let (_turn, _fill) = (turn, seat.fill().await);
                fill(object, pinned, range.clone()).await
            };
            let made = piece.file.get_or_try_init(make).await;
            if let Err(error) = made {
                // Whoever asks next tries again, if nobody else does already.
                drop(piece);
                self.with(|held| held.forget(&key));
                return Err(error);
            }
            match piece.file() {
                Ok(file) => return Ok((piece, file, range)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !is_second => {
                    tracing::warn!(
                        url = shown(url),
                        "a client has locked memory for itself: made anew"
                    );
                    self.with(|held| held.lose(&key, &piece));
                    is_second = true;
                }
                Err(error) => return Err(NoPiece::System(error)),
            }
        }
    }
}

/// Large enough that all memory is in as many pieces as there may be files.
fn piece_bytes(bytes_max: u64, extent_bytes: u64, files_max: u64) -> u64 {
    let least = bytes_max.div_ceil(pieces_max(files_max)).min(PIECE_BYTES_MAX);
    extent_bytes.max(PIECE_BYTES_MIN).max(least.next_power_of_two())
}

/// As many pieces as may have a descriptor each.
fn pieces_max(files_max: u64) -> u64 {
    (files_max / FILES_SHARE).max(1)
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
    /// The piece of that name, there or to be made. `None` where there is no room, and then none leaves.
    fn piece(&mut self, key: &Key, len: u64, room: Room) -> Option<Arc<Piece>> {
        if let Some(piece) = self.pieces.touch(key) {
            // It has been somebody's since it was looked at, even if it is free by the next time.
            piece.free_since(false, Instant::now());
            return Some(piece.clone());
        }
        self.forget_lost();
        let mut bytes = self.pieces.bytes() + self.lost_bytes() + len;
        let mut pieces = self.pieces.count() + self.lost.len() + 1;
        let mut leaving = Vec::new();
        if bytes > room.bytes || pieces > room.pieces {
            for (name, piece, of_it) in self.pieces.oldest_first() {
                // Nobody has it but this map.
                if Arc::strong_count(piece) == 1 && piece.is_free() {
                    (bytes, pieces) = (bytes - of_it, pieces - 1);
                    leaving.push(name.clone());
                }
                if bytes <= room.bytes && pieces <= room.pieces {
                    break;
                }
            }
        }
        if bytes > room.bytes || pieces > room.pieces {
            return None;
        }
        for name in leaving {
            self.pieces.remove(&name);
        }
        let piece = Arc::<Piece>::default();
        self.pieces.insert(key.clone(), piece.clone(), len);
        Some(piece)
    }

    /// Lets those go that nobody has had for long.
    fn give_back(&mut self, now: Instant) {
        self.forget_lost();
        let mut leaving = Vec::new();
        for (name, piece, _) in self.pieces.oldest_first() {
            let is_free = Arc::strong_count(piece) == 1 && piece.is_free();
            if now.saturating_duration_since(piece.free_since(is_free, now)) >= IDLE {
                leaving.push(name.clone());
            }
        }
        for name in leaving {
            self.pieces.remove(&name);
        }
    }

    /// Gives `piece` to nobody any more: somebody has it for himself. Unless another took its place.
    fn lose(&mut self, key: &Key, piece: &Arc<Piece>) {
        self.forget_lost();
        if self.pieces.peek(key).is_some_and(|there| Arc::ptr_eq(there, piece)) {
            let before = self.pieces.bytes();
            if let Some(piece) = self.pieces.remove(key) {
                self.lost.push((piece, before - self.pieces.bytes()));
            }
        }
    }

    /// Lets those go that nobody has any more.
    fn forget_lost(&mut self) {
        self.lost.retain(|(piece, _)| Arc::strong_count(piece) > 1 || !piece.is_free());
    }

    fn lost_bytes(&self) -> u64 {
        self.lost.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Removes a piece that could not be made, unless somebody is about to.
    fn forget(&mut self, key: &Key) {
        let empty = |piece: &Arc<Piece>| Arc::strong_count(piece) == 1 && !piece.file.initialized();
        if self.pieces.peek(key).is_some_and(empty) {
            self.pieces.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_not_more_pieces_than_files() {
        let mib = 1 << 20;
        let cases = [
            (4 << 30, mib, 65_536, mib),
            (4 << 30, mib, 1024, 16 * mib),
            (64 << 30, 4096, 65_536, 4 * mib),
            (16 * mib, 16 * mib, 1024, 16 * mib),
            (1 << 40, mib, 1024, 256 * mib),
            (0, 4096, 1024, mib),
            (u64::MAX, 4096, 0, 256 * mib),
        ];
        for (bytes_max, extent, files, expected) in cases {
            assert_eq!(piece_bytes(bytes_max, extent, files), expected, "{bytes_max} {files}");
        }
    }

    fn key(at: u64) -> Key {
        ("url".to_owned(), Version::strong("v"), 100, at)
    }

    /// Whoever was given a piece and has left may have it mapped still: it was counted as nobody's.
    #[test]
    fn what_somebody_keeps_does_not_leave() {
        const ROOM: Room = Room { bytes: 10, pieces: 10 };
        let mut held = Held::default();
        let piece = held.piece(&key(0), 10, ROOM).expect("room");
        let file = sealed::seal(10, |file| file.write_all(&[7; 10])).expect("sealed");
        piece.file.set(file).expect("the first");
        let given = [piece.file().expect("a file"), piece.file().expect("another")];
        drop(piece);
        let kept = given.map(|file| {
            let mapped = pager::SealedMap::new(&[sealed::Part { file, range: 0..10 }]);
            mapped.expect("a map of a file that is closed by now")
        });
        assert!(held.piece(&key(1), 10, ROOM).is_none(), "two have it mapped");
        let [one, two] = kept;
        drop(one);
        assert!(held.piece(&key(1), 10, ROOM).is_none(), "one has");
        drop(two);
        assert!(held.piece(&key(1), 10, ROOM).is_some());
    }

    /// A lock that was made an exclusive one kept the piece from everybody else.
    #[test]
    fn what_somebody_locks_for_himself_is_made_anew_and_counted() {
        const ROOM: Room = Room { bytes: 20, pieces: 10 };
        let mut held = Held::default();
        let make = |held: &mut Held, at: u64| {
            let piece = held.piece(&key(at), 10, ROOM)?;
            let file = sealed::seal(10, |file| file.write_all(&[7; 10])).expect("sealed");
            piece.file.set(file).expect("the first");
            Some(piece)
        };
        let piece = make(&mut held, 0).expect("room");
        let own = piece.file().expect("a file");
        own.try_lock().expect("nobody else has it");
        let refused = piece.file().expect_err("it has");
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        held.lose(&key(0), &piece);
        drop(piece);
        let second = make(&mut held, 0).expect("room for two");
        second.file().expect("a file of its own");
        held.lose(&key(0), &Arc::default());
        assert_eq!((held.pieces.bytes(), held.lost_bytes()), (10, 10));
        assert!(held.piece(&key(1), 10, ROOM).is_none(), "both are somebody's");
        drop(own);
        assert!(held.piece(&key(1), 10, ROOM).is_some());
        assert_eq!((held.pieces.bytes(), held.lost_bytes()), (20, 0));
    }

    /// Memory is no longer something that only those have who ask for it: it was held until others needed
    /// the room, and that may be never.
    #[test]
    fn what_nobody_has_had_for_minutes_is_given_back() {
        const ROOM: Room = Room { bytes: 100, pieces: 10 };
        let mut held = Held::default();
        let mut made: Vec<_> = (0..3)
            .map(|at| {
                let piece = held.piece(&key(at), 10, ROOM).expect("room");
                let file = sealed::seal(10, |file| file.write_all(&[7; 10])).expect("sealed");
                piece.file.set(file).expect("the first");
                piece
            })
            .collect();
        let start = Instant::now();
        let minute = Duration::from_secs(60);
        let kept = made[0].file().expect("a file");
        // One is mapped by a client, one is a connection's, and one is nobody's.
        drop((made.remove(2), made.remove(0)));
        let there = |held: &Held| -> Vec<u64> {
            (0..3).filter(|at| held.pieces.peek(&key(*at)).is_some()).collect()
        };
        held.give_back(start);
        held.give_back(start + 4 * minute);
        assert_eq!(there(&held), [0, 1, 2], "too soon");
        held.give_back(start + 5 * minute);
        assert_eq!((there(&held), held.pieces.bytes()), (vec![0, 1], 20));
        // From now on nobody has them; but one is asked for in between.
        drop((kept, made));
        held.give_back(start + 20 * minute);
        drop(held.piece(&key(1), 10, ROOM).expect("it is there"));
        held.give_back(start + 24 * minute);
        held.give_back(start + 26 * minute);
        assert_eq!(there(&held), [1]);
        held.give_back(start + 29 * minute);
        assert_eq!((there(&held), held.pieces.bytes()), (vec![], 0));
    }

    /// As long as no other piece was made, what nobody had any more was held, and shown.
    #[test]
    fn what_was_let_go_is_not_counted() {
        let pieces = Pieces::new(1 << 30, 1 << 20, 1024);
        let file = sealed::seal(10, |file| file.write_all(&[7; 10])).expect("sealed");
        let piece = pieces.with(|held| held.piece(&key(0), 10, pieces.room)).expect("room");
        piece.file.set(file).expect("the first");
        let own = piece.file().expect("a file");
        own.try_lock().expect("nobody else has it");
        pieces.with(|held| held.lose(&key(0), &piece));
        drop(piece);
        assert_eq!(pieces.bytes(), 10, "a client has it");
        drop(own);
        assert_eq!(pieces.bytes(), 0);
    }

    #[test]
    fn what_clients_have_stays_and_the_rest_leaves_in_its_order() {
        const ROOM: Room = Room { bytes: 30, pieces: 4 };
        let mut held = Held::default();
        let mine = held.piece(&key(0), 10, ROOM).expect("room");
        for at in 1..3 {
            drop(held.piece(&key(at), 10, ROOM).expect("room"));
        }
        drop(held.piece(&key(1), 10, ROOM).expect("it is there"));
        drop(held.piece(&key(3), 10, ROOM).expect("2 leaves"));
        let there =
            |held: &Held| (0..5).filter(|at| held.pieces.peek(&key(*at)).is_some()).collect();
        let left: Vec<u64> = there(&held);
        assert_eq!((left, held.pieces.bytes()), (vec![0, 1, 3], 30));
        let more = [held.piece(&key(1), 10, ROOM), held.piece(&key(3), 10, ROOM)];
        assert!(held.piece(&key(4), 10, ROOM).is_none(), "all are in use");
        drop((mine, more));
        assert!(held.piece(&key(4), 31, ROOM).is_none(), "too large for ever");
        assert_eq!(held.pieces.count(), 3, "so none had to leave for it");
        assert!(held.piece(&key(4), 30, ROOM).is_some());
        assert_eq!(held.pieces.bytes(), 30);
        held.forget(&key(4));
        let all = (held.pieces.bytes(), held.pieces.count());
        assert_eq!(all, (0, 0), "one that was never made");
    }

    /// Memory was counted, and descriptors were not: of small objects there were as many as clients
    /// asked for, until the server could open nothing any more.
    #[test]
    fn small_pieces_are_not_more_than_there_may_be() {
        let room = Room { bytes: 1 << 30, pieces: 3 };
        let mut held = Held::default();
        (0..100).for_each(|at| drop(held.piece(&key(at), PAGE, room).expect("room")));
        assert_eq!((held.pieces.count(), held.pieces.bytes()), (3, 3 * PAGE));
        let mine: Vec<_> =
            (97..100).map(|at| held.piece(&key(at), PAGE, room).expect("there")).collect();
        assert!(held.piece(&key(100), PAGE, room).is_none(), "clients have them all");
        drop(mine);
        assert!(held.piece(&key(100), PAGE, room).is_some());
    }
}
