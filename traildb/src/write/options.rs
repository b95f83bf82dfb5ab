//! How a database is written.

use std::path::PathBuf;

/// Whether pairs of items get code words of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bigrams {
    /// If they make the database smaller, which a sample tells (default).
    #[default]
    Auto,
    /// Where they save anything.
    On,
    /// Never. Writing is quicker.
    Off,
}

/// How a database is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// A directory with a file for each member instead of a package. Default: a package.
    pub directory: bool,
    /// Fails where something has the name already, whenever that came to be there. Default: a database
    /// of the same form is replaced.
    pub keep_existing: bool,
    /// About the most memory to be used, in bytes; 0 for no limit (default). What does not fit goes
    /// to temporary files. With a limit, making a builder looks into their directory, and removes what
    /// builders that were killed have left there.
    pub memory_bytes: u64,
    /// Of this, what the caller takes while events are added, in bytes. Default: 0.
    pub reserved_bytes: u64,
    /// The directory of temporary files. Default: that of the system. Where it lies in memory, as it
    /// does on some systems, name another. With a limit of memory it is looked into when a builder is made.
    pub temporary_directory: Option<PathBuf>,
    /// Whether pairs of items get code words. Default: if they make the database smaller.
    pub bigrams: Bigrams,
    /// Threads to write with, the caller's included; 0 for as many as there are processors
    /// (default).
    pub threads: usize,
}

impl Options {
    /// Writes a directory.
    pub fn directory(mut self, directory: bool) -> Options {
        self.directory = directory;
        self
    }

    /// Replaces nothing.
    pub fn keep_existing(mut self, keep_existing: bool) -> Options {
        self.keep_existing = keep_existing;
        self
    }

    /// Uses about `bytes` bytes of memory, which are 64 MiB or more, and temporary files beyond
    /// that; 0 for no limit.
    ///
    /// A single event, or its values, may need more: about four times the bytes of the longest.
    pub fn memory_bytes(mut self, bytes: u64) -> Options {
        self.memory_bytes = bytes;
        self
    }

    /// Leaves `bytes` of the memory allowed to the caller while events are added: what they are read
    /// from is often a cache. At most half of what there is for events counts, and a quarter of all when
    /// they are joined.
    pub fn reserved_bytes(mut self, bytes: u64) -> Options {
        self.reserved_bytes = bytes;
        self
    }

    /// Makes temporary files in that directory, in one of their own. They may take several times
    /// the bytes of the database.
    pub fn temporary_directory(mut self, path: impl Into<PathBuf>) -> Options {
        self.temporary_directory = Some(path.into());
        self
    }

    /// Says whether pairs of items get code words.
    pub fn bigrams(mut self, bigrams: Bigrams) -> Options {
        self.bigrams = bigrams;
        self
    }

    /// Writes with so many threads; 0 for as many as there are processors.
    pub fn threads(mut self, threads: usize) -> Options {
        self.threads = threads;
        self
    }
}
