//! Frames from noise.

use bytes::Bytes;
use s3db::Inspected;

/// CRC-32C: reflected polynomial 0x82f63b78, a byte at a time.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

/// A frame of this kind (magic and version) with this body, under a checksum that holds.
pub fn of(kind: &[u8; 5], body: &[u8]) -> Bytes {
    let mut frame = kind.to_vec();
    frame.extend_from_slice(body);
    let sum = crc32c(&frame);
    frame.extend_from_slice(&sum.to_le_bytes());
    Bytes::from(frame)
}

/// Decodes `data` as it is, and as the body of a frame of each kind (magic and version) under a
/// checksum that holds: else no search would come past it. What is read and written again is read as
/// the same.
#[allow(dead_code, reason = "not every target that makes frames decodes all kinds")]
pub fn decode(data: &[u8], kinds: &[&[u8; 5]]) {
    let whole = Bytes::copy_from_slice(data);
    if let Ok(found) = Inspected::decode(&whole) {
        again(&found);
    }
    for kind in kinds {
        let frame = of(kind, data);
        if let Ok(found) = Inspected::decode(&frame) {
            assert_eq!(found.encode().as_ref(), Some(&frame), "one thing has one form");
            again(&found);
        }
    }
}

#[allow(dead_code, reason = "as above")]
fn again(found: &Inspected) {
    let bytes = found.encode().expect("what is decoded can be written");
    assert_eq!(Inspected::decode(&bytes).as_ref(), Ok(found));
    if let Inspected::Page(page) = found {
        assert_eq!(page.encoded_bytes(), bytes.len(), "what decides about splits");
    }
}
