//! Bytes that claim to be pages.

#![no_main]

mod frame;

libfuzzer_sys::fuzz_target!(|data: &[u8]| frame::decode(data, &[b"s3dP\x01", b"s3dP\x02"]));
