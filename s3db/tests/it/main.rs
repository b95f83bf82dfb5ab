//! The store's types, from outside.

mod aws;
mod blobs;
mod claims;
mod curate;
mod dates;
mod conformance;
mod disk;
mod dropping;
mod embedded;
mod fates;
mod fresh;
mod golden;
mod hostile;
mod ledger;
mod index;
mod meddle;
mod mishaps;
mod model;
mod mutations;
mod owners;
mod pool;
mod policy;
mod printed;
mod readers;
mod scans;
mod sealed;
mod sequence;
mod version_index;
mod versions;
mod simulate;
mod turns;
mod verify;
mod watch;

use proptest::prelude::*;
use s3db::{Blob, Change, INLINE_BYTES_MAX, KEY_BYTES_MAX, Key, LogRecord, Payload, Stamp};

/// Any log record; short ones mostly, the longest now and then.
fn any_record() -> impl Strategy<Value = LogRecord> {
    let bytes = |least, most: usize| {
        prop_oneof![
            20 => prop::collection::vec(any::<u8>(), least..most.min(64)),
            1 => prop::collection::vec(any::<u8>(), most..=most),
        ]
    };
    let parts = (bytes(1, KEY_BYTES_MAX), bytes(0, INLINE_BYTES_MAX));
    let stamp = any::<(u64, u64, u64)>().prop_map(|(clock, client, sequence)| Stamp {
        clock,
        client,
        sequence,
    });
    (stamp, parts, 0..4).prop_map(|(stamp, (key, payload), kind)| {
        let key = Key::new(key).expect("within the bounds");
        let payload = Payload::new(payload).expect("within the bounds");
        let change = match kind {
            0 => Change::Insert(key, payload),
            1 => Change::Delete(key, payload),
            2 => {
                let clock = stamp.clock & i64::MAX as u64;
                let bytes = payload.as_bytes().len() as u64 + 1;
                Change::Blob(key, Blob::new(Stamp { clock, ..stamp }, bytes, 7, 9).unwrap())
            }
            _ => Change::Update(key, payload),
        };
        LogRecord { stamp, change }
    })
}
