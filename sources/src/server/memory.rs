//! An object that a block server has in memory, mapped: no copy, and one in memory for all processes.
//!
//! ```no_run
//! # use sources::{BlockSource, server::{Link, Place, Served}};
//! # async fn run() -> Result<(), sources::SourceError> {
//! let link = Link::new(Place::Unix("/run/extmem.sock".into()), String::new());
//! let served = Served::new("s3://bucket/key", "s3://bucket/key", link)?;
//! let version = served.stat().await?.version;
//! let bytes = served.map(&version).await?; // a &[u8] of the whole object
//! # let _ = bytes; Ok(()) }
//! ```

use std::{ops::Deref, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use pager::{
    SealedMap, SourceError, Version,
    sealed::{Assembly, Part},
};
use tokio::time::timeout;

use super::{
    client::{Connection, Lost, Reply},
    frames::{Answer, Code, Request},
    served::{Failed, Served, Shared},
};
use crate::size;

/// Pieces that are asked for at once: fewer than descriptors may wait.
const PIECES_AT_ONCE: usize = 16;
/// How long the server may take for one piece. Its source has its time, tries again included, and other
/// pieces come before it.
const PIECE_WAIT: Duration = Duration::from_secs(180);
/// Pieces of one object: each is a mapping, of which a process has some 65,000 (`vm.max_map_count`): so
/// it can have three of the largest objects mapped.
const PIECES_MAX: u64 = 16_384;
/// What to do where nothing can be mapped.
const ELSE: &str = "a region over the same source reads it all the same";

/// A whole object, in memory that its server keeps as long as this lives.
#[derive(Debug)]
pub struct ServedMap {
    map: SealedMap,
    /// The server counts the memory as used at least until the connection ends.
    _connection: Arc<Connection>,
}

impl Deref for ServedMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<[u8]> for ServedMap {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Served {
    /// Maps all of a version that [`stat`](pager::BlockSource::stat) has named. The server fetches
    /// what it does not have, and must have memory for all of it (`--memory-bytes`, by default a
    /// quarter of what is available).
    ///
    /// # Errors
    /// [`SourceError::Permanent`] where the server has no memory to share, or too little for this
    /// object while others have mapped theirs, or is not on this machine. Whoever can do without a map
    /// of everything opens a region over this source then (`pager.open(served)`): its bytes come from
    /// the files of the server's cache, which are in the page cache once for all programs, and it holds
    /// no more of them than its budget. Otherwise as for [`read`](pager::BlockSource::read). One
    /// attempt; the fallback is not used.
    pub async fn map(&self, version: &Version) -> Result<ServedMap, SourceError> {
        let mapped = self.shared.map(version).await;
        mapped.map_err(|failed| self.shared.failed("map", None, failed))
    }
}

impl Shared {
    async fn map(&self, version: &Version) -> Result<ServedMap, Failed> {
        let len = self.len_of(version);
        let len =
            len.ok_or_else(|| self.refused("a version that `stat` has not named".to_owned()))?;
        // Its own: what it is given the server counts until it ends, mapped or not.
        let connection = self.link.own_connection().await?;
        if !connection.has_memory {
            let why = "the block server has no memory to share: it needs --memory-bytes above 0, and \
                       to be reached by its Unix socket";
            return Err(self.refused(format!("{why}; {ELSE}")));
        }
        let (handle, stat) = self.open_once(&connection, Some((version.clone(), len))).await?;
        if stat.version != *version {
            return Err(Failed::Told(self.changed(version, stat.version.to_string())));
        }
        let unmapped = |error| self.refused(format!("the server's memory: {error}"));
        let mut assembly = Assembly::new(len).map_err(unmapped)?;
        if len > 0 {
            // So that what is missing is fetched in as few requests as there are gaps.
            connection.tell(&Request::Ahead { handle, offset: 0, length: len });
            // The first one tells how large they are.
            let first = self.piece(&connection, handle, version, 0, len).await?;
            let each = first.range.end - first.range.start;
            if len.div_ceil(each) > PIECES_MAX {
                let why = format!("{len} bytes in pieces of {each} are too many to map");
                return Err(self.refused(why));
            }
            assembly.push(&first).map_err(unmapped)?;
            let starts = (each..len).step_by(each as usize);
            let rest = stream::iter(starts)
                .map(|at| self.piece(&connection, handle, version, at, len))
                .buffered(PIECES_AT_ONCE);
            let mut rest = std::pin::pin!(rest);
            let mut at = each;
            while let Some(part) = rest.try_next().await? {
                if part.range.end != (len - at).min(each) {
                    return Err(self.broken("pieces of different sizes"));
                }
                at += part.range.end;
                // Mapped and closed at once: there may be more than descriptors.
                assembly.push(&part).map_err(unmapped)?;
            }
        }
        let map = assembly.finish().map_err(unmapped)?;
        Ok(ServedMap { map, _connection: connection })
    }

    /// The piece that begins at `at`.
    async fn piece(
        &self,
        connection: &Connection,
        handle: u32,
        version: &Version,
        at: u64,
        len: u64,
    ) -> Result<Part, Failed> {
        let asked =
            timeout(PIECE_WAIT, connection.ask(&Request::Memory { handle, offset: at })).await;
        let late = || Lost::new(format!("the block server gave no memory within {PIECE_WAIT:?}"));
        match asked.unwrap_or_else(|_| Err(late()))? {
            Reply::File { file, position: 0, length } if length > 0 && length <= len - at => {
                Ok(Part { file, range: 0..length })
            }
            Reply::File { .. } => Err(self.broken("a piece in an impossible place")),
            Reply::Answer(Answer::Failed { code: Code::Throttled, text, .. }) => {
                let why = format!("{text}, and this object takes {}", size::show(len));
                Err(self.refused(format!("{why}; {ELSE}, or --memory-bytes says more")))
            }
            other => Err(self.unexpected(other, Some(version), None)),
        }
    }

    fn refused(&self, reason: String) -> Failed {
        let object = self.name.clone();
        Failed::Told(SourceError::Permanent { object, reason, cause: None })
    }

    fn broken(&self, reason: &str) -> Failed {
        let (object, reason) = (self.name.clone(), reason.to_owned());
        Failed::Told(SourceError::Corrupt { object, range: None, reason })
    }
}
