//! Bytes that claim to be pages, in the object store or on a disk.

#![no_main]

mod frame;

const KINDS: [&[u8; 5]; 3] = [b"s3dP\x01", b"s3dP\x02", b"s3dF\x01"];

libfuzzer_sys::fuzz_target!(|data: &[u8]| frame::decode(data, &KINDS));
