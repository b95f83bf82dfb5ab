//! Where a package goes that becomes no file here.

use std::io;

/// Takes a package from its first byte to its last, and makes it visible at once or not at all.
///
/// - **Shape.** `begin`, any number of `write`s, then `finish`. When it is dropped before that, or
///   after an error, nothing may be left to be found under the name of the database.
/// - **Units.** Bytes. Those of all `write`s together are as many as `begin` was told.
/// - **Order.** From first to last. The head of a package, which has the index, comes first; whoever
///   sends parts in any order does well to send this one last.
/// - **Errors.** Are told to whoever called [`finish_to`](crate::Builder::finish_to), and end it.
/// - **Cost.** `write` may block. It is called with pieces of any length, most of them short, so it
///   had better collect them.
pub trait Sink {
    /// The package will have `len` bytes.
    ///
    /// # Errors
    /// When so much cannot be taken.
    fn begin(&mut self, len: u64) -> io::Result<()>;

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When the bytes cannot be taken. Nothing is written after it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// All bytes were written: makes them visible, and returns when they will stay so.
    ///
    /// # Errors
    /// When it is not sure that all bytes will stay. Then none are visible.
    fn finish(self) -> io::Result<()>;
}
