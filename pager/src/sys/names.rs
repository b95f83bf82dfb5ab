//! Names of files that a program maps by itself, told when one of them loses bytes under its readers.
//!
//! ```text
//!   map of a file --> touch behind its end --> SIGBUS --> its name and the byte, on stderr
//!                                                     --> the handler from before, by default the end
//! ```
//!
//! A page of a map that the file has no bytes for any more raises SIGBUS, which ends the process without a
//! word. A handler finds the name of the map that the address is in. It waits for nothing: names lie in a
//! table of atomics, in places that are never freed.

use std::{
    io,
    ops::Range,
    sync::{
        OnceLock,
        atomic::{
            AtomicU8, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use nix::{
    errno::Errno,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction},
};

/// Maps whose names are known; those of more are not told. Memory is taken for those that there are.
const MAPS_MAX: usize = 4096;
/// Bytes of a name, the last ones: the end of a path says most.
const NAME_BYTES_MAX: usize = 1000;
/// Bytes of what is told.
const LINE_BYTES_MAX: usize = NAME_BYTES_MAX + 200;

/// Where a map is that nobody can make.
const FREE: usize = 0;
const TAKEN: usize = 1;

static PLACES: [Place; MAPS_MAX] = [const { Place::new() }; MAPS_MAX];
/// Where to look first for a free one.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// The handler that was there before ours, once that is there. None if there can be none.
static BEFORE: OnceLock<Option<SigAction>> = OnceLock::new();

struct Place {
    /// The first byte of the map; or nobody has this place, or somebody is about to fill it.
    start: AtomicUsize,
    end: AtomicUsize,
    len: AtomicUsize,
    name: [AtomicU8; NAME_BYTES_MAX],
}

/// The name of a file that is mapped, for as long as this lives.
///
/// Should the file lose bytes, reading them from the map ends the process by SIGBUS. Then a line on stderr
/// says of which file and at which byte, before the handler that was there does what it does. A process has
/// up to 4096 such names; of a long one the last 1000 bytes are told.
///
/// ```
/// let bytes = vec![0; 4096]; // a map, in earnest
/// let name = pager::MapName::new(&bytes, "events.tdb");
/// drop(name); // before the map is
/// ```
#[derive(Debug)]
pub struct MapName {
    place: Option<&'static Place>,
}

impl MapName {
    /// Calls a map `name`. What is mapped there later is called so as well until this is dropped.
    pub fn new(map: &[u8], name: &str) -> MapName {
        let Range { start, end } = map.as_ptr_range();
        let heard = BEFORE.get_or_init(listen).is_some();
        if map.is_empty() || !heard {
            return MapName { place: None };
        }
        let first = NEXT.load(Relaxed);
        let is_free =
            |place: &&Place| place.start.compare_exchange(FREE, TAKEN, Acquire, Relaxed).is_ok();
        let mut places = PLACES.iter().enumerate().cycle().skip(first).take(MAPS_MAX);
        let Some((at, place)) = places.find(|(_, place)| is_free(place)) else {
            return MapName { place: None };
        };
        NEXT.store((at + 1) % MAPS_MAX, Relaxed);
        place.fill(start as usize..end as usize, name);
        MapName { place: Some(place) }
    }
}

impl Drop for MapName {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            place.start.store(FREE, Release);
        }
    }
}

impl Place {
    const fn new() -> Place {
        Place {
            start: AtomicUsize::new(FREE),
            end: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            name: [const { AtomicU8::new(0) }; NAME_BYTES_MAX],
        }
    }

    /// Fills a place that was taken.
    fn fill(&self, map: Range<usize>, name: &str) {
        let cut = name.ceil_char_boundary(name.len().saturating_sub(NAME_BYTES_MAX));
        // Nothing in it may move the cursor of a terminal.
        let bytes =
            name[cut..].bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte });
        bytes.zip(&self.name).for_each(|(byte, to)| to.store(byte, Relaxed));
        self.len.store(name.len() - cut, Relaxed);
        self.end.store(map.end, Relaxed);
        self.start.store(map.start, Release);
    }

    /// Which byte of its map is at an address, if one is.
    fn byte_at(&self, address: usize) -> Option<usize> {
        let start = self.start.load(Acquire);
        let is_inside = start > TAKEN && (start..self.end.load(Relaxed)).contains(&address);
        is_inside.then(|| address - start)
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("start", &self.start).finish_non_exhaustive()
    }
}

/// Sets the handler. Gives the one from before.
fn listen() -> Option<SigAction> {
    // On the stack of the thread, which is not what has come to an end: that for signals may be so small that
    // little more than what the kernel saves has room there.
    let flags = SaFlags::empty();
    let action = SigAction::new(SigHandler::SigAction(on_sigbus), flags, SigSet::empty());
    // SAFETY: the handler reads atomics, and calls write, sigaction, raise and what reads and sets errno, all
    // of which a handler may. It neither allocates nor takes a lock. The action from before is only ever set
    // again, as it was.
    unsafe { sigaction(Signal::SIGBUS, &action) }.ok()
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let errno = Errno::last_raw();
    // SAFETY: the kernel hands this over, since the handler was set with SA_SIGINFO, and of SIGBUS, where it
    // sent that itself, it has an address. Where a process sent it the same bytes are something else, which
    // is not looked at.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let is_sent = code <= 0;
    if !is_sent && let Some(line) = Line::of(address) {
        line.say();
    }
    let by_default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    let before = match BEFORE.get() {
        Some(Some(before)) => before,
        _ => &by_default,
    };
    // SAFETY: the action that was there before, or none. What raised the signal is tried again when this
    // returns, and then meets that.
    let _ = unsafe { sigaction(Signal::SIGBUS, before) };
    if is_sent {
        // Nothing is tried again: it comes when this returns.
        let _ = raise(Signal::SIGBUS);
    }
    Errno::set_raw(errno);
}

/// What is told of an address.
struct Line {
    bytes: [u8; LINE_BYTES_MAX],
    len: usize,
}

impl Line {
    /// `None` if it is in no map that has a name.
    fn of(address: usize) -> Option<Line> {
        let (place, byte) =
            PLACES.iter().find_map(|place| Some((place, place.byte_at(address)?)))?;
        let mut line = Line { bytes: [0; LINE_BYTES_MAX], len: 0 };
        let len = place.len.load(Relaxed).min(NAME_BYTES_MAX);
        place.name[..len].iter().for_each(|byte| line.put(&[byte.load(Relaxed)]));
        line.put(b": byte ");
        line.number(byte);
        line.put(
            b" is lost: the file is shorter than when it was opened, or its disk fails. SIGBUS ends \
              the process\n",
        );
        Some(line)
    }

    fn put(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(to) = self.bytes.get_mut(self.len) {
                *to = byte;
                self.len += 1;
            }
        }
    }

    fn number(&mut self, number: usize) {
        // 20 digits are as many as there can be.
        let mut digits = [0; 20];
        let (mut rest, mut first) = (number, digits.len());
        loop {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                return self.put(&digits[first..]);
            }
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Past every lock, which the thread that is at fault may hold.
    fn say(&self) {
        let mut rest = self.as_bytes();
        while !rest.is_empty() {
            match nix::unistd::write(io::stderr(), rest) {
                Ok(0) => return,
                Ok(written) => rest = &rest[written..],
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bytes: &[u8], at: usize) -> Option<String> {
        let line = Line::of(bytes.as_ptr() as usize + at)?;
        Some(String::from_utf8_lossy(line.as_bytes()).into_owned())
    }

    /// One test, since the table is of the process.
    #[test]
    fn an_address_has_the_name_of_its_map_while_that_lives() {
        let maps = [vec![0; 100], vec![0; 6000], Vec::new()];
        let parts = [&maps[0][..], &maps[1][..5000], &maps[2]];
        let names: Vec<MapName> = parts
            .into_iter()
            .zip(["a\n\u{e9}", "b", "c"])
            .map(|(map, name)| MapName::new(map, name))
            .collect();
        let line = told(&maps[0], 99).expect("a name");
        assert!(line.starts_with("a \u{e9}: byte 99 is lost") && line.ends_with('\n'), "{line}");
        assert!(told(&maps[1], 0).expect("a name").starts_with("b: byte 0 is"));
        assert!(told(&maps[1], 4321).expect("a name").starts_with("b: byte 4321 is"));
        assert_eq!(told(&maps[1], 5000), None);
        drop(names);
        assert_eq!(told(&maps[0], 99), None);

        // Of a long name the end is told, whole characters of it.
        let map = vec![0; 2 * MAPS_MAX];
        let long = format!("/{}/\u{20ac}{}", "d".repeat(5000), "x".repeat(998));
        let name = MapName::new(&map, &long);
        let line = told(&map, 1).expect("a name");
        assert!(line.starts_with(&format!("{}: byte 1 ", "x".repeat(998))), "{line}");
        drop(name);

        // There are so many, and no more.
        let names: Vec<MapName> =
            (0..MAPS_MAX + 10).map(|n| MapName::new(&map[n..=n], &n.to_string())).collect();
        assert_eq!(names.iter().filter(|name| name.place.is_none()).count(), 10);
        assert!(told(&map, 7).expect("a name").starts_with("7: byte 0 "));
        drop(names);
        assert!(MapName::new(&map, "again").place.is_some());
    }
}
