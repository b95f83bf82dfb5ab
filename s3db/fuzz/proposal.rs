//! Bytes that claim to be proposals, and names of such. What may be approved is of one collection, and of a time
//! that counts; a name is written in one way, and says what is in it.

#![no_main]

mod frame;

use bytes::Bytes;
use s3db::{Collection, Proposal, ProposalId, Settings, page::PageId};

const ROOT: PageId = PageId(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
const NOW_US: u64 = 1_763_690_400_000_000;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(id) = String::from_utf8_lossy(data).parse::<ProposalId>() {
        assert_eq!(id.to_string().as_bytes(), data);
    }
    propose(Bytes::copy_from_slice(data));
    propose(frame::of(b"s3dT\x01", data));
});

fn propose(bytes: Bytes) {
    let Some(proposal) = Proposal::decode(&bytes) else { return };
    assert_eq!(proposal.bytes(), bytes.len());
    assert_eq!(proposal.id.to_string().parse::<ProposalId>().as_ref().ok(), Some(&proposal.id));
    // One more byte is another proposal, or none.
    let more = Bytes::from([&bytes[..], b"x"].concat());
    assert!(Proposal::decode(&more).is_none_or(|other| other.id != proposal.id));
    let (name, indexes) = ("prices".to_owned(), Vec::new());
    let of = Collection { name, root: ROOT, indexes, has_root: true, isolation: None };
    let settings = Settings::default();
    let ahead_us = settings.clock_ahead_max.as_micros() as u64;
    let age_us = settings.tombstone_age.as_micros() as u64 / 2;
    for now_us in [0, NOW_US, u64::MAX] {
        if proposal.objection(&of, now_us, &settings).is_some() {
            continue;
        }
        for entry in &proposal.transaction.entries {
            let clock = entry.record.stamp.clock;
            assert!(entry.tree == ROOT && !entry.is_secondary);
            assert!(
                clock <= now_us.saturating_add(ahead_us) && now_us.saturating_sub(clock) <= age_us
            );
        }
    }
}
