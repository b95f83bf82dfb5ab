//! Where bytes go back to: one object, replaced as a whole, if it is still the one that was read.
//!
//! ```text
//!   begin(&base, len) --> Writing: write(at, bytes) ... --> commit() --> the new version
//!                            |                                 |
//!                            +-- abort(), or dropped           +-- Conflict: it is at another version
//!                                nothing has changed               nothing has changed
//! ```
//!
//! The new version has the bytes of `base`, but for those that were written. Until `commit` nobody
//! sees any of it; after that everybody sees all of it.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    error::{Cause, SourceError},
    source::Version,
};

/// Why an object was not replaced, or may not have been.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SinkError {
    /// The object is at another version than the one that was to be replaced. Nothing was written.
    #[error("{object} changed: {expected} was to be replaced, found {found}; nothing was written")]
    Conflict {
        /// The sink's name.
        object: String,
        /// The version that was to be replaced.
        expected: String,
        /// The version found instead, or what is known of it.
        found: String,
    },

    /// The object is at another version, and before that it may have been at ours: the answer to an attempt was
    /// lost, and by the time that somebody looked, somebody else had replaced what was there. All of it was
    /// written once, or nothing; whoever wrote what is there now may have read it.
    #[error(
        "{object} changed: {expected} was to be replaced, found {found}; it may have been replaced by this \
         version, and that by another since: read it again before anything is written twice"
    )]
    Overtaken {
        /// The sink's name.
        object: String,
        /// The version that was to be replaced.
        expected: String,
        /// The version found instead, or what is known of it.
        found: String,
    },

    /// Nothing was written, and why.
    #[error(transparent)]
    Failed(#[from] SourceError),

    /// The answer was lost, and asking did not settle whether the object was replaced. All of it was,
    /// or nothing. [`Writing::commit`] may be called again.
    #[error("{object}: it is not known whether a new version was written: {reason}")]
    Unsettled {
        /// The sink's name.
        object: String,
        /// What went wrong, in a few words.
        reason: String,
        /// What the transport or the system said.
        #[source]
        cause: Option<Cause>,
    },
}

impl SinkError {
    /// One short word for counters: `conflict`, `overtaken`, `unsettled`, or that of the [`SourceError`].
    pub fn kind(&self) -> &'static str {
        match self {
            SinkError::Conflict { .. } => "conflict",
            SinkError::Overtaken { .. } => "overtaken",
            SinkError::Failed(error) => error.kind(),
            SinkError::Unsettled { .. } => "unsettled",
        }
    }
}

/// A place that bytes go back to: one object.
///
/// - **Shape.** Any number of [`begin`](BlockSink::begin)s, one after the other or at once; of several
///   that began from one version and commit, one succeeds.
/// - **Version.** What is committed is a version that the object's [`BlockSource`] reads from then on,
///   and what its `stat` says. It names the bytes themselves ([`Strength::Strong`]).
/// - **All or nothing.** A crash, of this process or of the machine, at any moment leaves the object
///   with all the old bytes or with all the new ones, and a commit that has succeeded is there for good.
/// - **Attempts.** A sink tries again by itself what may be tried again, and bounds that: each call ends. One
///   that does not end within [`Builder::sink_deadline`](crate::Builder::sink_deadline) is dropped.
/// - **Cancellation.** A future may be dropped at any point. A commit that was cut off is unsettled.
/// - **Where it runs.** On the runtime of the pager, whose threads it must not block, like a source.
/// - **Secrets.** [`name`](BlockSink::name) and every error leave out credentials and signatures.
///
/// [`BlockSource`]: crate::BlockSource
/// [`Strength::Strong`]: crate::Strength::Strong
#[async_trait]
pub trait BlockSink: Send + Sync + 'static {
    /// A name for errors, such as `s3://bucket/key`.
    fn name(&self) -> &str;

    /// Begins a new version of the object of `len` bytes that is at `base`. It has the same length.
    ///
    /// # Errors
    /// [`SinkError::Conflict`], if that is known already; [`SinkError::Failed`].
    async fn begin(&self, base: &Version, len: u64) -> Result<Box<dyn Writing>, SinkError>;
}

/// A new version of an object that is being written. Dropping it, but for a commit that succeeded,
/// leaves the object as it was, and takes away what was written as far as that can be done at once.
#[async_trait]
pub trait Writing: Send {
    /// The new version has `bytes` from `offset` on. Calls go upwards: no byte lies below the end of
    /// the call before, nor beyond the object. The bytes are not needed after the call.
    ///
    /// # Errors
    /// [`SinkError::Conflict`] when bytes in between had to be read and are not there any more;
    /// [`SinkError::Failed`]. Nothing but dropping or [`abort`](Writing::abort) is of use then.
    async fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError>;

    /// Makes all of it the object, if that is still at the version that this began from. Returns the
    /// new version.
    ///
    /// # Errors
    /// [`SinkError::Conflict`] and [`SinkError::Failed`], after which nothing of this was written;
    /// [`SinkError::Overtaken`], after which that is not known any more; and [`SinkError::Unsettled`], after
    /// which this may be called again to find out.
    async fn commit(&mut self) -> Result<Version, SinkError>;

    /// Takes away what was written. What cannot be taken away is left: it is not the object.
    async fn abort(self: Box<Self>) {}
}

/// A pointer to a sink is a sink.
macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        impl<S: BlockSink + ?Sized> BlockSink for $pointer<S> {
            fn name(&self) -> &str {
                (**self).name()
            }

            async fn begin(&self, base: &Version, len: u64) -> Result<Box<dyn Writing>, SinkError> {
                (**self).begin(base, len).await
            }
        }
    };
}

forward!(Arc);
forward!(Box);
