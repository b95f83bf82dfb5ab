//! Keys of secondary indexes.
//!
//! Search keys repeat, so an entry of a secondary index is the pair of a search key and the key of
//! the record it was found in. As one key of a leaf that sorts by the search key first:
//!
//! ```text
//!   search key, each 0x00 as 0x00 0xff  |  0x00 0x01  |  record key
//! ```

use bytes::Bytes;

/// The leaf key of the pair.
pub(crate) fn join(search: &[u8], record: &[u8]) -> Bytes {
    let mut joined = escape(search);
    joined.extend_from_slice(&[0, 1]);
    joined.extend_from_slice(record);
    joined.into()
}

/// Where entries of search keys from `search` on begin.
pub(crate) fn begin(search: &[u8]) -> Bytes {
    escape(search).into()
}

/// Where entries of `search` end.
pub(crate) fn end(search: &[u8]) -> Bytes {
    let mut end = escape(search);
    end.extend_from_slice(&[0, 2]);
    end.into()
}

fn escape(search: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(search.len() + 8);
    for &byte in search {
        escaped.push(byte);
        if byte == 0 {
            escaped.push(0xff);
        }
    }
    escaped
}

/// The pair of a leaf key; `None` if it is none.
pub(crate) fn divide(joined: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut search = Vec::new();
    let mut at = 0;
    while let [byte, rest @ ..] = &joined[at..] {
        match (byte, rest.first()) {
            (0, Some(1)) => return Some((search, &joined[at + 2..])),
            (0, Some(0xff)) => at += 2,
            (0, _) => return None,
            _ => at += 1,
        }
        search.push(*byte);
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Pairs come back whole, and sort by search key, then by record key.
        #[test]
        fn pairs_keep_their_order(
            a in (prop::collection::vec(0u8..3, 0..5), prop::collection::vec(0u8..3, 1..5)),
            b in (prop::collection::vec(0u8..3, 0..5), prop::collection::vec(0u8..3, 1..5)),
        ) {
            let (joined_a, joined_b) = (join(&a.0, &a.1), join(&b.0, &b.1));
            let (search, record) = divide(&joined_a).unwrap();
            prop_assert_eq!((&search, record), (&a.0, &a.1[..]));
            prop_assert_eq!(joined_a.cmp(&joined_b), a.cmp(&b));
            prop_assert!(begin(&a.0) <= joined_a && joined_a < end(&a.0));
            prop_assert_eq!(begin(&a.0) <= joined_b && joined_b < end(&a.0), a.0 == b.0);
        }
    }
}
