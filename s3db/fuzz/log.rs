//! Bytes that claim to be log records, transactions, log objects, parts of blobs, clients, messages of queues
//! in a directory, or frames that are sealed.

#![no_main]

mod frame;

const KINDS: [&[u8; 5]; 8] = [
    b"s3dL\x01",
    b"s3dL\x02",
    b"s3dB\x01",
    b"s3dT\x01",
    b"s3dO\x01",
    b"s3dI\x01",
    b"s3dQ\x01",
    b"s3dE\x01",
];

libfuzzer_sys::fuzz_target!(|data: &[u8]| frame::decode(data, &KINDS));
