//! Bytes that claim to be the database and its collections. A version that is not known is refused.

#![no_main]

mod frame;

const KINDS: [&[u8; 5]; 4] = [b"s3dD\x01", b"s3dC\x01", b"s3dC\x02", b"s3dC\x03"];

libfuzzer_sys::fuzz_target!(|data: &[u8]| frame::decode(data, &KINDS));
