//! A large array of atomic words that costs memory only where it is used.

use std::io;

#[cfg(not(shuttle))]
use super::mapping::{Mapping, PAGE};
use crate::sync::AtomicU32;

#[cfg(shuttle)]
pub(crate) use modelled::LazyWords;

/// `len` words, all zero until written. A page of 1,024 words is committed when one is written.
#[cfg(not(shuttle))]
pub(crate) struct LazyWords {
    /// `None` for an empty array, which has nothing to map.
    mapping: Option<Mapping>,
    len: usize,
}

#[cfg(not(shuttle))]
impl LazyWords {
    /// Words of one page.
    pub(crate) const PER_PAGE: usize = PAGE / size_of::<AtomicU32>();

    pub(crate) fn new(len: usize) -> io::Result<LazyWords> {
        let bytes = len
            .checked_mul(size_of::<AtomicU32>())
            .and_then(|bytes| bytes.checked_next_multiple_of(PAGE))
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mapping = match bytes {
            0 => None,
            _ => Some(Mapping::reserve(bytes, PAGE)?),
        };
        if let Some(mapping) = &mapping {
            // One huge page would commit 2 MiB for a single word.
            let _ = mapping.advise(0, bytes, libc::MADV_NOHUGEPAGE);
        }
        Ok(LazyWords { mapping, len })
    }

    /// Gives back the memory of `words`, whole pages of zeros that nobody writes meanwhile.
    pub(crate) fn forget(&self, words: std::ops::Range<usize>) {
        if let Some(mapping) = &self.mapping {
            let start = words.start * size_of::<AtomicU32>();
            let len = (words.len() * size_of::<AtomicU32>()).min(mapping.len() - start);
            // Refused only for locked memory, which then stays: zeros it has, zeros it keeps.
            let _ = mapping.advise(start, len, libc::MADV_DONTNEED);
        }
    }

    pub(crate) fn as_slice(&self) -> &[AtomicU32] {
        match &self.mapping {
            // SAFETY: the mapping holds at least `len` words, is page aligned, zero-filled and
            // lives as long as `self`; atomics may be written through shared references.
            Some(mapping) => unsafe {
                std::slice::from_raw_parts(mapping.base().as_ptr().cast(), self.len)
            },
            None => &[],
        }
    }
}

/// The same for a model checker, whose atomics are no plain words.
#[cfg(shuttle)]
mod modelled {
    use super::*;
    use crate::sync::Ordering;

    pub(crate) struct LazyWords(Vec<AtomicU32>);

    impl LazyWords {
        /// Fewer than in a page, so that a model with few units has several pages.
        pub(crate) const PER_PAGE: usize = 2;

        pub(crate) fn new(len: usize) -> io::Result<LazyWords> {
            Ok(LazyWords((0..len).map(|_| AtomicU32::new(0)).collect()))
        }

        pub(crate) fn forget(&self, words: std::ops::Range<usize>) {
            for word in &self.0[words.start..words.end.min(self.0.len())] {
                assert_eq!(word.swap(0, Ordering::SeqCst), 0, "only zeros are given back");
            }
        }

        pub(crate) fn as_slice(&self) -> &[AtomicU32] {
            &self.0
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn words_start_at_zero_and_keep_what_is_written() {
        let words = LazyWords::new(1 << 28).unwrap();
        let last = &words.as_slice()[(1 << 28) - 1];
        assert_eq!(last.load(Ordering::Relaxed), 0);
        last.store(7, Ordering::Relaxed);
        assert_eq!(words.as_slice()[(1 << 28) - 1].load(Ordering::Relaxed), 7);
        assert!(LazyWords::new(0).unwrap().as_slice().is_empty());
    }
}
