//! Bytes that nobody vouches for.

use proptest::prelude::*;
use s3db::{BoundError, DecodeError, LogRecord, LogRecords, StreamError};

use crate::any_record;

proptest! {
    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(LogRecord::decode(&bytes).is_err());
    }

    /// Noise behind a plausible start comes further.
    #[test]
    fn noise_behind_the_magic_is_refused(noise in prop::collection::vec(any::<u8>(), 0..200), kind in 0..5u8) {
        let mut bytes = b"s3dL\x01".to_vec();
        bytes.push(kind);
        bytes.extend_from_slice(&noise);
        prop_assert!(LogRecord::decode(&bytes).is_err());
    }

    #[test]
    fn every_flipped_bit_is_found(record in any_record(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let mut bytes = record.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        prop_assert!(LogRecord::decode(&bytes).is_err(), "byte {} bit {}", at, bit);
    }

    #[test]
    fn every_cut_asks_for_more(record in any_record(), at in any::<prop::sample::Index>()) {
        let bytes = record.to_bytes();
        let cut = at.index(bytes.len());
        match LogRecord::decode(&bytes[..cut]) {
            Err(DecodeError::Truncated { have, need }) => {
                prop_assert_eq!(have, cut);
                prop_assert!(have < need && need <= bytes.len(), "{} of {}", have, need);
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_stream_ends_at_the_damage(records in prop::collection::vec(any_record(), 1..5), at in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for record in &records {
            record.encode(&mut bytes);
            ends.push(bytes.len());
        }
        let at = at.index(bytes.len());
        bytes[at] ^= 0x10;
        let hit = ends.iter().position(|&end| at < end).expect("inside the stream");
        let got: Vec<_> = LogRecords::new(&bytes).collect();
        prop_assert_eq!(got.len(), hit + 1, "one error, and nothing after it");
        for (got, record) in got[..hit].iter().zip(&records) {
            prop_assert_eq!(got.as_ref(), Ok(record));
        }
        let start = if hit == 0 { 0 } else { ends[hit - 1] };
        match &got[hit] {
            Err(StreamError { index, offset, .. }) => {
                prop_assert_eq!((*index, *offset), (hit as u64, start as u64));
            }
            Ok(record) => prop_assert!(false, "{:?}", record),
        }
    }
}

#[test]
fn each_lie_has_its_name() {
    let mut head = [0u8; 60];
    head[..6].copy_from_slice(b"s3dL\x01\x01");
    head[6] = 1;
    // (what, byte, value, expected)
    let cases = [
        ("another file", 0, b'P', DecodeError::Magic(*b"P3dL")),
        ("a later version", 4, 3, DecodeError::Version(3)),
        ("an empty key", 6, 0, DecodeError::Bound(BoundError::EmptyKey)),
        ("a huge key", 7, 0xff, DecodeError::Bound(BoundError::LongKey(0xff01))),
        ("a huge payload", 11, 0xff, DecodeError::Bound(BoundError::LongInline(0xff00_0000))),
        ("a payload past the end", 8, 200, DecodeError::Truncated { have: 60, need: 241 }),
    ];
    for (what, at, value, expected) in cases {
        let mut bytes = head;
        bytes[at] = value;
        assert_eq!(LogRecord::decode(&bytes), Err(expected), "{what}");
    }
    let wrong = LogRecord::decode(&head);
    assert!(matches!(wrong, Err(DecodeError::Checksum { stored: 0, .. })), "{wrong:?}");
}
