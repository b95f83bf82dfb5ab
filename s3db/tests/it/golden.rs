//! Bytes written by version 1, which every later version reads.

use s3db::{Change, DecodeError, Key, LogRecord, Payload, Stamp};

/// One line per record: what it is, its bytes in hexadecimal.
const GOLDEN: &str = include_str!("../golden/log-v1.txt");

fn expected() -> Vec<LogRecord> {
    let key = |key: &str| Key::new(key).unwrap();
    let payload = |payload: &[u8]| Payload::new(payload).unwrap();
    let stamp = |clock, client, sequence| Stamp { clock, client, sequence };
    let record = |stamp, change| LogRecord { stamp, change };
    vec![
        record(stamp(1, 2, 3), Change::Insert(key("k"), payload(b""))),
        record(
            stamp(1_763_690_400_000_000, 0xfeed, 1),
            Change::Update(key("user/1"), payload(b"\x00\xff state")),
        ),
        record(stamp(u64::MAX, u64::MAX, u64::MAX), Change::Delete(key("user/1"), payload(b""))),
        record(stamp(5, 2, 4), Change::Delete(key("by-age/42"), payload(b"user/1"))),
    ]
}

#[test]
fn version_1_is_still_written_and_read() {
    let lines: Vec<_> = GOLDEN.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.len(), expected().len());
    for (line, record) in lines.into_iter().zip(expected()) {
        let digits = line.rsplit(' ').next().unwrap();
        let bytes: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect();
        assert_eq!(record.to_bytes(), bytes, "{line}");
        assert_eq!(LogRecord::decode(&bytes), Ok((record, bytes.len())), "{line}");
    }
}

#[test]
fn a_kind_from_the_future_is_named() {
    // Kind 9 under a checksum that holds: what a newer program of the same version would write.
    let mut bytes = expected()[0].to_bytes();
    let body = bytes.len() - 4;
    bytes[5] = 9;
    let sum = crc32c(&bytes[..body]);
    bytes[body..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(LogRecord::decode(&bytes), Err(DecodeError::Kind(9)));
}

/// Bit by bit, as the definition has it: reflected polynomial 0x82f63b78.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}
