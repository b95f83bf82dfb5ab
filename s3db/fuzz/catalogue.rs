//! Bytes that claim to be the database, its collections, their writers, who owns the log, or what the sequencer
//! has. A version that is not known is refused.

#![no_main]

mod frame;

const KINDS: [&[u8; 5]; 18] = [
    b"s3dD\x01",
    b"s3dD\x02",
    b"s3dD\x03",
    b"s3dD\x04",
    b"s3dA\x01",
    b"s3dW\x01",
    b"s3dC\x01",
    b"s3dC\x02",
    b"s3dC\x03",
    b"s3dC\x04",
    b"s3dC\x05",
    b"s3dN\x01",
    b"s3dN\x02",
    b"s3dN\x03",
    b"s3dN\x04",
    b"s3dV\x01",
    b"s3dV\x02",
    b"s3dV\x03",
];

libfuzzer_sys::fuzz_target!(|data: &[u8]| frame::decode(data, &KINDS));
