//! What the names of all pages of one collection begin with.
//!
//! ```text
//!   page/ TTTTTTTTTTTTTTTT RRRRRRRRRRRRRRRR
//!         tag: 16 digits   random: 16 digits
//! ```
//!
//! The tag follows from the collection's name, so that a rule of the services, which knows names alone, can
//! tell whose page an object is; and so that a catalogue entry that leads to pages of another collection
//! shows as what it is. Its last bit says that the collection is curated: whoever meets a record knows by
//! the name of its tree whether it may come by the log.
//!
//! Pages of databases that were made before there were tags have names that are random from end to end. See
//! [`Database::has_tags`](crate::Database).

use crate::names::PAGES;
use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::page_id::PageId;

/// The first half of the names of a collection's pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Tag(u64);

impl Tag {
    /// Of the collection `name`: the first 64 bits of SHA-256 of `s3db collection NAME`, in the order of
    /// bytes, but for the last one.
    pub(crate) fn of(name: &str, is_curated: bool) -> Tag {
        let hash = Sha256::digest(format!("s3db collection {name}").as_bytes());
        let first = hash.iter().take(8).fold(0, |tag, byte| tag << 8 | u64::from(*byte));
        Tag(first & !1 | u64::from(is_curated))
    }

    /// Of a page, whatever it belongs to.
    pub(crate) fn of_page(page: PageId) -> Tag {
        Tag((page.0 >> 64) as u64)
    }

    /// The tag that is written so.
    pub(crate) fn parse(digits: &str) -> Option<Tag> {
        let tag = u64::from_str_radix(digits, 16).ok().map(Tag)?;
        (tag.to_string() == digits).then_some(tag)
    }

    pub(crate) fn is_curated(self) -> bool {
        self.0 & 1 == 1
    }

    /// A page of the collection, of the random half of `name`.
    pub(crate) fn page(self, name: PageId) -> PageId {
        PageId(u128::from(self.0) << 64 | u128::from(name.0 as u64))
    }

    /// What the names of its pages begin with.
    pub(crate) fn pages(self) -> String {
        format!("{PAGES}{self}")
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first is what `printf 's3db collection users' | sha256sum` says.
    #[test]
    fn tags_follow_from_names() {
        let (users, curated) = (Tag::of("users", false), Tag::of("users", true));
        assert_eq!((users.is_curated(), curated.is_curated()), (false, true));
        assert_eq!(users.0, curated.0 & !1);
        assert_ne!(users, Tag::of("Users", false));
        let page = users.page(PageId(u128::MAX));
        assert_eq!(page.object(), format!("{}ffffffffffffffff", users.pages()));
        assert_eq!(Tag::of_page(page), users);
        assert_eq!(Tag::parse(&users.to_string()), Some(users));
        assert_eq!(Tag::parse("+000000000000001"), None);
        assert_eq!(users.to_string(), "cb156236545132cc");
    }
}
