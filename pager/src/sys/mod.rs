//! The operating system: mappings, userfaultfd, frames. The only unsafe code of the crate, but for
//! the lines of `region` and `sealed` that make a slice.

mod mapping;

pub(crate) use mapping::FrameMemory;
