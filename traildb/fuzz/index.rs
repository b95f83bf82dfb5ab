//! Whatever the bytes of an index, whose checksums fit, it answers or refuses: no panic, no hang, no
//! memory without bound, and no trail that does not exist. One that is as it was written misses none.
//!
//! ```text
//!   flags | length in 8 bits, text of a filter | patches: position in 16 bits, what in 8
//! ```
#![no_main]

mod bytes;
mod small;

use std::sync::Arc;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use traildb::{
    Index,
    filter::{self, UnknownFields},
};

/// The index is far away, so that plans are made.
const REMOTE: u8 = 1;
/// The file ends where the first patch says.
const CUT: u8 = 2;

const PAGE: usize = 4096;

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

fuzz_target!(|input: &[u8]| {
    let Some((&[flags, len], rest)) = input.split_first_chunk::<2>() else { return };
    let (text, patches) = rest.split_at(rest.len().min(usize::from(len)));
    let small = small::database();
    let mut bytes = small.index.clone();
    let mut patches = patches.chunks_exact(3).map(|patch| {
        (usize::from(u16::from_le_bytes([patch[0], patch[1]])) % small.index.len(), patch[2])
    });
    if flags & CUT != 0 {
        bytes.truncate(patches.next().map_or(0, |(at, _)| at));
    }
    for (at, byte) in patches.filter(|&(at, _)| at < small.index.len()) {
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
    }
    let pages = bytes.chunks_exact_mut(PAGE).zip(small.index.chunks_exact(PAGE));
    for (number, (page, before)) in pages.enumerate() {
        if page != before {
            let crc = crc32c(&page[..PAGE - 4]).wrapping_add(number as u32);
            page[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let whole = bytes == small.index;
    let reader = &small.reader;
    let Ok(index) = Index::open(Bytes { bytes, remote: flags & REMOTE != 0 }, reader) else {
        assert!(!whole, "refused as it was written");
        return;
    };
    let index = Arc::new(index);
    // Errors are answers; what counts is that they come.
    for (field, value) in [(1, "x1"), (2, ""), (2, "6"), (3, "user 4"), (3, "no such user")] {
        let found = index.item(reader, field, value.as_bytes());
        if let Ok(Some(item)) = found {
            assert_eq!(*reader.value(item).expect("an item of the database"), *value.as_bytes());
        }
        assert!(!whole || found.is_ok_and(|found| found.is_some() == !value.starts_with("no")));
    }
    let parsed = std::str::from_utf8(text).ok().and_then(|text| filter::parse(text).ok());
    let bound = parsed.map(|expr| expr.bind_with(reader, UnknownFields::NoMatch));
    let Some(Ok(wanted)) = bound else { return };
    let Ok(matching) = index.matching_trails(reader, &wanted) else {
        assert!(!whole, "not answered as it was written");
        return;
    };
    let mut found = Vec::new();
    for trail in matching {
        let Ok(trail) = trail else {
            assert!(!whole, "not answered as it was written");
            return;
        };
        assert!(trail < reader.trails() && found.last().is_none_or(|&last| last < trail));
        found.push(trail);
    }
    if whole {
        for ((time, items), trail) in small.events.iter().zip(&small.trails) {
            let missed = wanted.matches(*time, items) && found.binary_search(trail).is_err();
            assert!(!missed, "trail {trail} is missed");
        }
    }
});
