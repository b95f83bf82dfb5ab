//! The name of a page, which errors tell too.

use std::fmt;

use crate::names::PAGES;

/// Names a page for ever. The second half is random, so that a name is never used twice; the first is that of
/// its tree's root: the tag of the collection, if the database has tags.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u128);

impl PageId {
    /// The name of the page's object.
    pub fn object(self) -> String {
        format!("{PAGES}{:032x}", self.0)
    }

    /// The page whose object has this name.
    pub fn of_object(name: &str) -> Option<PageId> {
        let digits = name.strip_prefix(PAGES).filter(|digits| digits.len() == 32)?;
        u128::from_str_radix(digits, 16).ok().map(PageId)
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell pages apart in a trace.
        write!(f, "{:08x}", (self.0 >> 32) as u32)
    }
}
