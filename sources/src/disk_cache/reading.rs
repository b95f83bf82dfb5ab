//! One range, from memory, disk and source, in order.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt};
use pager::{BlockSource, ByteStream, SourceError, Version};
use tokio::sync::mpsc;

use super::{
    DiskCache, Inner, Object,
    core::{Core, Survey},
    flight::{Flight, Flights, Found, Passed},
    writer::Job,
};

/// Bytes that a flight may be ahead of the reader that began it.
const AHEAD_BYTES: u64 = 4 << 20;

/// How often a block is looked for before it is fetched, although it may just have been written.
const LOOKS_MAX: u32 = 4;

/// A read under way.
pub(super) struct Reading<S> {
    inner: Arc<Inner>,
    object: Arc<Object>,
    source: Arc<S>,
    version: Version,
    range: Range<u64>,
    /// Whether the bytes are for somebody who will ask for them later.
    ahead: bool,
    /// Blocks of the flight that this read began.
    ours: Option<Arriving>,
}

/// The blocks of a flight, for whoever began it. Ends early where others want it to go on, and this one
/// is slow.
type Arriving = mpsc::Receiver<Result<Bytes, SourceError>>;

/// A request that [`Reading::begin`] has made.
pub(super) struct Began {
    blocks: Range<u64>,
    arriving: Arriving,
}

impl Began {
    /// Waits until no more come. Those that did not, if any: the last ones.
    pub(super) async fn arrive(self) -> Result<Option<Range<u64>>, SourceError> {
        let Began { mut blocks, mut arriving } = self;
        while let Some(block) = arriving.recv().await {
            block?;
            blocks.start += 1;
        }
        Ok((!blocks.is_empty()).then_some(blocks))
    }
}

impl<S: BlockSource> Reading<S> {
    /// A read of `range`, which is within the object; `ahead` where it is for later.
    pub(super) fn new(
        cache: &DiskCache<S>,
        object: Arc<Object>,
        version: &Version,
        range: Range<u64>,
        ahead: bool,
    ) -> Reading<S> {
        let (inner, source) = (cache.cache.inner.clone(), cache.source.clone());
        Reading { inner, object, source, version: version.clone(), range, ahead, ours: None }
    }

    /// The next bytes, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let layout = self.object.identity.layout;
        let mut looks = 0;
        while self.range.start < self.range.end {
            if let Some(ours) = &mut self.ours {
                match ours.recv().await {
                    Some(bytes) => return Ok(Some(self.take(bytes?))),
                    None => self.ours = None,
                }
            }
            let block = layout.block_of(self.range.start);
            let generation = match self.object.flights.find(block) {
                Found::Here(bytes) => return Ok(Some(self.take(bytes))),
                Found::Coming(coming, flight) => {
                    if let Some(answer) = self.object.flights.answer(coming, &flight).await {
                        let bytes = answer?;
                        self.inner.joined();
                        return Ok(Some(self.take(bytes)));
                    }
                    continue;
                }
                Found::Nowhere(generation) => generation,
            };
            let end = layout.blocks_of(&self.range).end;
            match self.survey(block, end).await? {
                Survey::Hit(bytes) => return Ok(Some(self.take(bytes))),
                Survey::Miss(count) => {
                    // Where many read and write, something always happened.
                    looks += 1;
                    let generation = (looks <= LOOKS_MAX).then_some(generation);
                    let begun = self.object.flights.begin(block..block + count, generation);
                    if let Some(flight) = begun {
                        self.ours = Some(self.fly(flight));
                    }
                }
            }
        }
        Ok(None)
    }

    async fn survey(&self, block: u64, end: u64) -> Result<Survey, SourceError> {
        let (core, object, ahead) = (&self.inner.core, self.object.clone(), self.ahead);
        if !core.reads.is_well() {
            return Ok(core.survey(&object.identity, block, end, ahead));
        }
        let look = move |core: &Core| Ok(core.survey(&object.identity, block, end, ahead));
        let found = self.inner.look(self.source.name(), &self.range, look).await?;
        Ok(found.unwrap_or(Survey::Miss(1)))
    }

    /// Begins the next request that is this read's own, and goes on behind it. Passes over what is here,
    /// on the disk, or on its way already: somebody waits for that in `coming`. `None` where nothing is
    /// missing any more, or the disk would not keep it.
    pub(super) async fn begin(
        &mut self,
        coming: &mut Vec<Passed>,
    ) -> Result<Option<Began>, SourceError> {
        let layout = self.object.identity.layout;
        let mut looks = 0;
        // First: whoever is waited for goes on without its reader, which is to find its bytes on the disk.
        while self.range.start < self.range.end && self.inner.is_kept() {
            let blocks = layout.blocks_of(&self.range);
            let (at, generation) = self.object.flights.pass(blocks.clone(), coming);
            let gap = if at < blocks.end { self.gap(at..blocks.end).await? } else { None };
            let Some(gap) = gap else { break };
            // Where many read and write, something always happened.
            looks = if gap.start == blocks.start { looks + 1 } else { 0 };
            self.range.start = self.range.start.max(layout.block_range(gap.start).start);
            let generation = (looks <= LOOKS_MAX).then_some(generation);
            if let Some(flight) = self.object.flights.begin(gap, generation) {
                self.range.start = layout.range_of(&flight.blocks).end.min(self.range.end);
                let blocks = flight.blocks.clone();
                return Ok(Some(Began { blocks, arriving: self.fly(flight) }));
            }
        }
        self.range.start = self.range.end;
        Ok(None)
    }

    /// Goes on with other blocks than those that were to come next, which are handed back.
    pub(super) fn turn_to(&mut self, blocks: Range<u64>) -> Range<u64> {
        let layout = self.object.identity.layout;
        let before = std::mem::replace(&mut self.range, layout.range_of(&blocks));
        layout.blocks_of(&before)
    }

    /// The requests under way for its object.
    pub(super) fn flights(&self) -> &Flights {
        &self.object.flights
    }

    /// The first of `blocks` that are not on the disk. None are where it cannot be read.
    async fn gap(&self, blocks: Range<u64>) -> Result<Option<Range<u64>>, SourceError> {
        let object = self.object.clone();
        let look = move |core: &Core| core.gap(&object.identity, &blocks);
        let found = self.inner.look(self.source.name(), &self.range, look).await?;
        Ok(found.flatten())
    }

    /// The part of `bytes`, which start with the present block, that was asked for.
    fn take(&mut self, bytes: Bytes) -> Bytes {
        let layout = self.object.identity.layout;
        let from = self.range.start - layout.block_range(layout.block_of(self.range.start)).start;
        let wanted = self.range.end - self.range.start;
        let to = (from + wanted).min(bytes.len() as u64);
        self.range.start += to - from;
        bytes.slice(from as usize..to as usize)
    }

    fn fly(&self, flight: Arc<Flight>) -> Arriving {
        let ahead = (AHEAD_BYTES / self.object.identity.layout.block_bytes).max(1);
        let (sender, receiver) = mpsc::channel(ahead as usize);
        let flying = Flying {
            inner: self.inner.clone(),
            object: self.object.clone(),
            source: self.source.clone(),
            version: self.version.clone(),
            flight,
            ahead: self.ahead,
            sender: Some(sender),
        };
        tokio::spawn(flying.run());
        receiver
    }
}

/// The task of a flight.
struct Flying<S> {
    inner: Arc<Inner>,
    object: Arc<Object>,
    source: Arc<S>,
    version: Version,
    flight: Arc<Flight>,
    ahead: bool,
    sender: Option<mpsc::Sender<Result<Bytes, SourceError>>>,
}

/// A flight is over however its task ends, also with its runtime.
impl<S> Drop for Flying<S> {
    fn drop(&mut self) {
        self.object.flights.over(&self.flight);
    }
}

impl<S: BlockSource> Flying<S> {
    async fn run(mut self) {
        if let Err(error) = self.fly().await {
            self.flight.failed(&error);
            if let Some(sender) = &self.sender {
                // Full: its reader takes the error after the blocks before it.
                let _ = sender.send(Err(error)).await;
            }
        }
    }

    async fn fly(&mut self) -> Result<(), SourceError> {
        let layout = self.object.identity.layout;
        let range = layout.range_of(&self.flight.blocks);
        let mut body = Blocks {
            name: self.source.name().to_owned(),
            body: self.source.read(&self.version, range.clone()).await?,
            rest: Bytes::new(),
            got: 0,
            range,
        };
        for block in self.flight.blocks.clone() {
            if !self.is_wanted(block).await {
                return Ok(());
            }
            let bytes = body.block(layout.block_len(block)).await?;
            self.inner.missed();
            let room = self.inner.room_for(&bytes).await;
            self.flight.arrived(block, &bytes, room.is_some());
            if let Some(sender) = &self.sender {
                // There is room: `is_wanted` waited for it, and nobody else sends.
                let _ = sender.try_send(Ok(bytes.clone()));
            }
            if let Some(room) = room {
                let (object, flight) = (self.object.clone(), self.flight.clone());
                self.inner.write(Job {
                    object,
                    flight,
                    block,
                    bytes,
                    ahead: self.ahead,
                    _room: room,
                });
            }
        }
        Ok(())
    }

    /// Waits until somebody wants `block`. `false` when nobody will.
    async fn is_wanted(&mut self, block: u64) -> bool {
        if let Some(sender) = &self.sender {
            let room = sender.reserve();
            let others = self.flight.wanted(block);
            let has_room = tokio::select! {
                biased;
                room = room => room.is_ok(),
                () = others => false,
            };
            if has_room {
                return true;
            }
            // The reader that began it has left; or it is slow and others are waiting: then it
            // will find its blocks on disk.
            self.sender = None;
        }
        self.flight.is_wanted(block)
    }
}

/// A body cut into blocks.
struct Blocks {
    name: String,
    body: ByteStream,
    rest: Bytes,
    got: u64,
    range: Range<u64>,
}

impl Blocks {
    /// The next `len` bytes. After the last ones nothing may follow.
    async fn block(&mut self, len: usize) -> Result<Bytes, SourceError> {
        let bytes = self.exactly(len).await?;
        if self.got == self.range.end - self.range.start {
            let more = self.rest.len()
                + match self.body.next().now_or_never() {
                    Some(Some(Ok(more))) => more.len(),
                    _ => 0,
                };
            if more > 0 {
                let got = self.got + more as u64;
                return Err(SourceError::long_body(&self.name, self.range.clone(), got));
            }
        }
        Ok(bytes)
    }

    async fn exactly(&mut self, len: usize) -> Result<Bytes, SourceError> {
        let mut block: Option<BytesMut> = None;
        loop {
            let missing = len - block.as_ref().map_or(0, BytesMut::len);
            if self.rest.len() >= missing {
                let last = self.rest.split_to(missing);
                self.got += missing as u64;
                return Ok(match block {
                    // All in one chunk: no copy.
                    None => last,
                    Some(mut block) => {
                        block.extend_from_slice(&last);
                        block.freeze()
                    }
                });
            }
            if !self.rest.is_empty() {
                let rest = std::mem::take(&mut self.rest);
                self.got += rest.len() as u64;
                block.get_or_insert_with(|| BytesMut::with_capacity(len)).extend_from_slice(&rest);
            }
            self.rest = match self.body.next().await {
                Some(chunk) => chunk?,
                None => {
                    let range = self.range.clone();
                    return Err(SourceError::short_body(&self.name, range, self.got));
                }
            };
        }
    }
}
