//! What every sink promises, checked: call [`check`] on yours, with a source of the same object.
//!
//! | check | what is promised |
//! | --- | --- |
//! | `sink name` | not empty, no `@` before the host and no signature |
//! | `sink whole` | every byte is written; what is not written keeps its bytes; the length stays |
//! | `sink version` | a commit returns a strong version, a new one, which is what `stat` says and `read` reads |
//! | `sink unseen` | nothing of it is seen before the commit, nor after an abort or a drop |
//! | `sink conflict` | who began from a version that is not there any more is told, and changes nothing |
//! | `sink at once` | of many that began from one version, one is committed, whole |

use std::sync::Arc;

use futures::{StreamExt, future::join_all};
use pager::{BlockSink, BlockSource, SinkError, Strength, Version, Writing};

use super::{Checked, Violation, name_is_public, violated};
use crate::chance::Chance;

/// New versions that are committed at once.
const WRITERS: u64 = 4;
/// Bytes of one piece, as the pager writes them at most.
const PIECE: usize = 1 << 20;
/// Ranges of one version.
const RANGES: u64 = 12;

/// Checks `sink`, whose object `source` reads and which has the bytes `expected`, on the present tokio
/// runtime. Leaves other bytes there, of the same length.
///
/// # Errors
/// The first promise that was not kept.
pub async fn check(
    source: impl BlockSource,
    sink: impl BlockSink,
    expected: &[u8],
) -> Result<(), Violation> {
    name_is_public(sink.name())
        .map_err(|wrong| Violation { check: "sink name", detail: wrong.detail })?;
    let mut object = Object {
        source: Arc::new(source),
        sink: Arc::new(sink),
        bytes: expected.to_vec(),
        chance: Chance::seeded(expected.len() as u64),
    };
    object.same("sink whole").await?;
    object.unseen().await?;
    for round in 0..4 {
        object.replace(round).await?;
    }
    object.conflict().await?;
    object.at_once().await
}

struct Object {
    source: Arc<dyn BlockSource>,
    sink: Arc<dyn BlockSink>,
    /// What is there.
    bytes: Vec<u8>,
    chance: Chance,
}

/// A version that is to be: where, and what.
type Patches = Vec<(u64, Vec<u8>)>;

fn failed<E: std::fmt::Display>(check: &'static str) -> impl Fn(E) -> Violation {
    move |error| Violation { check, detail: error.to_string() }
}

impl Object {
    async fn version(&self, check: &'static str) -> Result<Version, Violation> {
        Ok(self.source.stat().await.map_err(failed(check))?.version)
    }

    /// The object has the bytes that it should have.
    async fn same(&self, check: &'static str) -> Checked {
        let stat = self.source.stat().await.map_err(failed(check))?;
        if stat.len != self.bytes.len() as u64 {
            return violated(check, format!("{} bytes of {}", stat.len, self.bytes.len()));
        }
        if stat.len == 0 {
            return Ok(());
        }
        let mut body = self.source.read(&stat.version, 0..stat.len).await.map_err(failed(check))?;
        let mut at = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(failed(check))?;
            let end = at + chunk.len();
            let expected = &self.bytes[at..end];
            if let Some(wrong) = chunk.iter().zip(expected).position(|(got, wanted)| got != wanted)
            {
                return violated(check, format!("a wrong byte at {}", at + wrong));
            }
            at = end;
        }
        if at != self.bytes.len() {
            return violated(check, format!("the object ends at {at}"));
        }
        Ok(())
    }

    /// Some ranges, upwards and apart, with bytes of their own.
    fn patches(&self, round: u64) -> Patches {
        let len = self.bytes.len() as u64;
        let mut patches = Patches::new();
        let mut at = match round {
            // From the first byte on, to the last one, and in the middle.
            0 => 0,
            _ => self.chance.below(len.max(1)),
        };
        for n in 0..RANGES {
            let most = (len - at.min(len)).min(PIECE as u64);
            if most == 0 {
                break;
            }
            let size = match (round, n) {
                (1, _) => 1,
                _ => 1 + self.chance.below(most),
            };
            let seed = self.chance.next();
            let bytes = (0..size).map(|n| (seed ^ n.wrapping_mul(0x9E37_79B9)) as u8).collect();
            patches.push((at, bytes));
            at += size + self.chance.below(len / 8 + 1);
        }
        if round == 2
            && let Some((start, bytes)) = patches.last_mut()
        {
            let to_the_end = (len - *start).min(PIECE as u64) as usize;
            bytes.resize(to_the_end, 0xA5);
        }
        patches
    }

    async fn begin(
        &self,
        base: &Version,
        patches: &Patches,
    ) -> Result<Box<dyn Writing>, SinkError> {
        let mut writing = self.sink.begin(base, self.bytes.len() as u64).await?;
        for (at, bytes) in patches {
            writing.write(*at, bytes).await?;
        }
        Ok(writing)
    }

    fn apply(&mut self, patches: &Patches) {
        for (at, bytes) in patches {
            self.bytes[*at as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    async fn replace(&mut self, round: u64) -> Checked {
        const VERSION: &str = "sink version";
        let base = self.version(VERSION).await?;
        let patches = self.patches(round);
        let mut writing = self.begin(&base, &patches).await.map_err(failed("sink whole"))?;
        let version = writing.commit().await.map_err(failed("sink whole"))?;
        drop(writing);
        let before = self.bytes.clone();
        self.apply(&patches);
        // A version that is a digest of the bytes is the same when they are.
        let moved = version != base || self.bytes == before;
        if version.strength() != Strength::Strong || !moved {
            return violated(VERSION, format!("{base:?} became {version:?}"));
        }
        let found = self.version(VERSION).await?;
        if found != version {
            return violated(VERSION, format!("committed {version:?}, found {found:?}"));
        }
        self.same("sink whole").await
    }

    async fn unseen(&self) -> Checked {
        const UNSEEN: &str = "sink unseen";
        let base = self.version(UNSEEN).await?;
        let patches = self.patches(0);
        for round in 0..3 {
            let writing = self.begin(&base, &patches).await.map_err(failed(UNSEEN))?;
            self.same(UNSEEN).await?;
            match round {
                0 => writing.abort().await,
                _ => drop(writing),
            }
            let found = self.version(UNSEEN).await?;
            if found != base {
                return violated(UNSEEN, format!("{base:?} became {found:?}"));
            }
            self.same(UNSEEN).await?;
        }
        Ok(())
    }

    async fn conflict(&mut self) -> Checked {
        const CONFLICT: &str = "sink conflict";
        let base = self.version(CONFLICT).await?;
        let patches = self.patches(3);
        // Begun before the other was committed, and begun after.
        let early = self.begin(&base, &patches).await.map_err(failed(CONFLICT))?;
        self.replace(1).await?;
        let outcomes = [self.finish(early).await, self.whole(&base, &patches).await];
        let other = Version::strong("\"no-version-of-this-object\"");
        for outcome in outcomes.into_iter().chain([self.whole(&other, &patches).await]) {
            match outcome {
                Err(SinkError::Conflict { .. }) => {}
                other => return violated(CONFLICT, format!("{other:?}")),
            }
            self.same(CONFLICT).await?;
        }
        Ok(())
    }

    async fn finish(&self, mut writing: Box<dyn Writing>) -> Result<Version, SinkError> {
        let outcome = writing.commit().await;
        writing.abort().await;
        outcome
    }

    async fn whole(&self, base: &Version, patches: &Patches) -> Result<Version, SinkError> {
        let writing = self.begin(base, patches).await?;
        self.finish(writing).await
    }

    async fn at_once(&mut self) -> Checked {
        const AT_ONCE: &str = "sink at once";
        let base = self.version(AT_ONCE).await?;
        let all: Vec<Patches> = (0..WRITERS).map(|_| self.patches(3)).collect();
        let outcomes = join_all(all.iter().map(|patches| self.whole(&base, patches))).await;
        let mut committed = Vec::new();
        for (outcome, patches) in outcomes.iter().zip(&all) {
            match outcome {
                Ok(version) => committed.push((version, patches)),
                Err(SinkError::Conflict { .. }) => {}
                Err(error) => return violated(AT_ONCE, error.to_string()),
            }
        }
        let &[(version, patches)] = &committed[..] else {
            return violated(AT_ONCE, format!("{} of {WRITERS} were committed", committed.len()));
        };
        if self.version(AT_ONCE).await? != *version {
            return violated(AT_ONCE, "another version is there than the one that was committed");
        }
        let patches = patches.clone();
        self.apply(&patches);
        self.same(AT_ONCE).await
    }
}
