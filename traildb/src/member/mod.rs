//! One file per member, its reading and its writing side by side.

pub(crate) mod info; // counts and time range
pub(crate) mod fields; // names
pub(crate) mod lexicon; // the values of a field
pub(crate) mod codebook; // code words to items
pub(crate) mod trails; // where trails are, and their bits
pub(crate) mod uuids; // which trail is whose
