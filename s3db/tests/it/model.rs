//! What is encoded comes back, alone and in streams.

use proptest::prelude::*;
use s3db::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, LogRecord, LogRecords};

use crate::any_record;

proptest! {
    #[test]
    fn a_record_comes_back(record in any_record(), after in prop::collection::vec(any::<u8>(), 0..50)) {
        let mut bytes = record.to_bytes();
        let len = bytes.len();
        prop_assert!((FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&len));
        bytes.extend_from_slice(&after);
        prop_assert_eq!(LogRecord::decode(&bytes), Ok((record, len)));
    }

    #[test]
    fn a_stream_comes_back(records in prop::collection::vec(any_record(), 0..20)) {
        let mut bytes = Vec::new();
        let lengths: Vec<usize> = records.iter().map(|record| record.encode(&mut bytes)).collect();
        prop_assert_eq!(lengths.iter().sum::<usize>(), bytes.len());
        let mut stream = LogRecords::new(&bytes);
        let got: Result<Vec<_>, _> = stream.by_ref().collect();
        prop_assert_eq!(got, Ok(records));
        prop_assert_eq!(stream.offset(), bytes.len() as u64);
    }
}
