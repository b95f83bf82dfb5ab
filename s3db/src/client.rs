//! Who writes: a client, in one of its lives, with stamps that only grow.
//!
//! An *incarnation* is a client and an epoch. The epoch is claimed at start by compare and swap on
//! `clients/CLIENT`, so no two processes have the same one. The first epoch of a name is the time of
//! its claim in microseconds, the next ones count on from there: a name that was retired and comes
//! back takes none of its old epochs again, of whose streams others may remember how far they read. The same object holds a bound that all
//! stamps of earlier lives are below: the next life starts above it, whatever its clock says, and a
//! life that needs a higher bound claims that first, by which it learns that it is over.
//!
//! A client that is over is *retired*: its object is deleted, by itself when it has nothing in the
//! log any more, or by garbage collection when its bound is longer ago than any tombstone stays.
//! After that no life of it can raise its bound, and what it left in the log may go, fences included.
//!
//! The object is a frame (see `frame`) of magic `s3dI`, version 1: epoch (8), bound in microseconds
//! (8), first epoch that may not be fenced yet (8), write id (16).

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::{
    cloud::{Cloud, Delete, ETag, Fault, Get, Put, PutIf},
    error::StoreError,
    frame::{FrameError, Reader, Writer},
    retry::Attempts,
    settings::Settings,
    stamp::Stamp,
};

const MAGIC: &str = "s3dI";
const VERSION: u8 = 1;
/// What the names of all clients' objects start with.
pub(crate) const CLIENTS: &str = "clients/";

/// How far ahead of its clock a client claims stamps at most: one put per minute of writing. The
/// next life begins there, so it must be well below what a clock may be ahead
/// ([`Settings::clock_ahead_max`]): a quarter of it at most.
const CLAIM_US: u64 = 60_000_000;
/// How far beyond what was claimed before at least. Lives that are short follow each other at this
/// distance, not at the one above.
const CLAIM_MIN_US: u64 = 1_000_000;
/// Lives of a client that may not be fenced yet. More are no state of a client's object.
const UNFENCED_MAX: u64 = 1 << 20;
/// A client that writes nothing raises its bound when that is older than such a part of what makes
/// a client count as gone.
const KEPT_ALIVE_PART: u64 = 15;

/// What is known of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClientRecord {
    pub(crate) epoch: u64,
    /// Stamps of this and all earlier lives are at most this.
    pub(crate) bound_us: u64,
    /// Epochs before this one can append nothing any more.
    pub(crate) fence_from: u64,
    write_id: u128,
}

impl ClientRecord {
    /// What a first life finds, at the time `now_us`: an epoch that nobody ever had, all over.
    fn before_first(now_us: u64) -> ClientRecord {
        let epoch = now_us.max(1);
        ClientRecord { epoch: epoch - 1, bound_us: 0, fence_from: epoch, write_id: 0 }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut to = Writer::new(MAGIC, VERSION);
        to.u64(self.epoch);
        to.u64(self.bound_us);
        to.u64(self.fence_from);
        to.u128(self.write_id);
        to.finish()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<ClientRecord, FrameError> {
        let mut from = Reader::new(bytes, MAGIC, VERSION)?;
        let record = ClientRecord {
            epoch: from.u64()?,
            bound_us: from.u64()?,
            fence_from: from.u64()?,
            write_id: from.u128()?,
        };
        from.done()?;
        // Times in microseconds, and counts that begin at one.
        let is_time =
            [record.epoch, record.bound_us, record.fence_from].map(is_number) == [true; 3];
        if !is_time || record.epoch.saturating_sub(record.fence_from) > UNFENCED_MAX {
            return Err(FrameError::Field { at: 5, what: "no epoch or bound of a client" });
        }
        Ok(record)
    }
}

/// One life of a client.
pub(crate) struct Incarnation {
    cloud: Cloud,
    settings: Settings,
    pub(crate) client: u64,
    pub(crate) epoch: u64,
    state: Mutex<State>,
    /// Held while a higher bound is claimed.
    claim: tokio::sync::Mutex<(ClientRecord, ETag)>,
}

struct State {
    /// Of the last stamp, or the highest that was seen.
    clock: u64,
    sequence: u64,
    bound_us: u64,
}

impl Incarnation {
    /// Begins a life of `client`. `date_ms` is the object store's clock, 0 if unknown.
    pub(crate) async fn claim(
        cloud: &Cloud,
        settings: &Settings,
        client: u64,
        date_ms: u64,
    ) -> Result<Incarnation, StoreError> {
        let object = object(client);
        let mut attempts = Attempts::new(cloud, settings);
        loop {
            let old = read(cloud, settings, &object).await?;
            let (before, condition) = match &old {
                Some((record, etag)) => (*record, PutIf::Matches(etag.clone())),
                None => (ClientRecord::before_first(cloud.clock.wall_us()), PutIf::Absent),
            };
            let wall = cloud.clock.wall_us();
            // A bound is for ever: no wrong clock may raise it.
            check_clock(settings, wall, date_ms)?;
            if before.bound_us > limit_us(settings, date_ms) {
                let ahead_ms = before.bound_us / 1000 - date_ms;
                return Err(StoreError::Claimed { client, ahead_ms });
            }
            let record = ClientRecord {
                epoch: before.epoch + 1,
                bound_us: claim_us(settings, before.bound_us, wall.max(date_ms * 1000)),
                write_id: cloud.chance.next_u128(),
                ..before
            };
            if let Some(etag) = swap(cloud, settings, &object, record, condition).await? {
                return Ok(Incarnation {
                    cloud: cloud.clone(),
                    settings: *settings,
                    client,
                    epoch: record.epoch,
                    state: Mutex::new(State {
                        clock: before.bound_us,
                        sequence: 0,
                        bound_us: record.bound_us,
                    }),
                    claim: tokio::sync::Mutex::new((record, etag)),
                });
            }
            attempts.after_loss(&object).await?;
        }
    }

    /// The first epoch that may still append.
    pub(crate) async fn fence_from(&self) -> u64 {
        self.claim.lock().await.0.fence_from
    }

    /// Writes down that all earlier epochs are over, so that nobody needs to fence them again.
    pub(crate) async fn fenced(&self) -> Result<(), StoreError> {
        self.change(|record| record.fence_from = record.epoch).await
    }

    /// Retires the client. The caller sees to it that all it wrote is on its pages, and that its name
    /// is never used again. False when this life was over already.
    pub(crate) async fn retire(&self) -> Result<bool, StoreError> {
        let claim = self.claim.lock().await;
        let outcome = self.cloud.objects.delete(&object(self.client), Some(&claim.1)).await;
        // Without an answer it stays until garbage collection comes.
        Ok(outcome == Delete::Gone)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Write follows read: later stamps are greater than one of this clock, which was read.
    pub(crate) fn observe(&self, clock: u64) {
        let mut state = self.state();
        state.clock = state.clock.max(clock);
    }

    /// The next stamp of this client. `date_ms` is the object store's clock, 0 if unknown.
    ///
    /// It is never behind that clock: what a slow machine writes blindly, over a record that it did
    /// not read, would lose against what was there long before.
    pub(crate) async fn stamp(&self, date_ms: u64) -> Result<Stamp, StoreError> {
        loop {
            let wall = self.cloud.clock.wall_us().max(date_ms * 1000);
            let clock = {
                let mut state = self.state();
                let clock = wall.max(state.clock + 1);
                check_clock(&self.settings, clock, date_ms)?;
                if clock <= state.bound_us {
                    state.clock = clock;
                    state.sequence += 1;
                    let (client, sequence) = (self.client, state.sequence);
                    return Ok(Stamp { clock, client, sequence });
                }
                clock
            };
            self.raise_bound(clock, wall).await?;
        }
    }

    /// Shows that this life goes on, if it showed nothing for long.
    pub(crate) async fn keep_alive(&self) -> Result<(), StoreError> {
        let wall = self.cloud.clock.wall_us();
        let age_us = self.settings.tombstone_age.as_micros() as u64 / KEPT_ALIVE_PART;
        let bound_us = self.state().bound_us;
        if wall > bound_us.saturating_add(age_us) {
            self.raise_bound(wall, wall).await
        } else {
            Ok(())
        }
    }

    /// Claims stamps up to `clock` and beyond.
    async fn raise_bound(&self, clock: u64, wall: u64) -> Result<(), StoreError> {
        let bound = claim_us(&self.settings, clock, wall);
        self.change(|record| record.bound_us = record.bound_us.max(bound)).await?;
        let bound_us = self.claim.lock().await.0.bound_us;
        self.state().bound_us = bound_us;
        Ok(())
    }

    /// Changes the client's object, which only the newest incarnation can.
    async fn change(&self, change: impl Fn(&mut ClientRecord)) -> Result<(), StoreError> {
        let object = object(self.client);
        let mut claim = self.claim.lock().await;
        let mut record = claim.0;
        change(&mut record);
        record.write_id = self.cloud.chance.next_u128();
        let condition = PutIf::Matches(claim.1.clone());
        match swap(&self.cloud, &self.settings, &object, record, condition).await? {
            Some(etag) => {
                *claim = (record, etag);
                Ok(())
            }
            None => Err(StoreError::Fenced { client: self.client, epoch: self.epoch }),
        }
    }
}

/// Whether a number can be a time in microseconds or a count. Those beyond are nobody's, and there
/// is room to add to those that are.
pub(crate) fn is_number(number: u64) -> bool {
    i64::try_from(number).is_ok()
}

/// The bound of stamps to claim by a clock, above one that is claimed or used.
fn claim_us(settings: &Settings, used_us: u64, wall_us: u64) -> u64 {
    let most = (settings.clock_ahead_max.as_micros() as u64 / 4).clamp(CLAIM_MIN_US, CLAIM_US);
    (used_us + CLAIM_MIN_US).max(wall_us + most)
}

/// The highest clock that a stamp may have.
fn limit_us(settings: &Settings, date_ms: u64) -> u64 {
    let ahead_max = settings.clock_ahead_max.as_micros() as u64;
    if date_ms == 0 { u64::MAX } else { (date_ms * 1000).saturating_add(ahead_max) }
}

fn check_clock(settings: &Settings, clock_us: u64, date_ms: u64) -> Result<(), StoreError> {
    if clock_us > limit_us(settings, date_ms) {
        return Err(StoreError::Clock { ahead_ms: clock_us / 1000 - date_ms });
    }
    Ok(())
}

/// Retires `client` if all stamps of all its lives are before `before_us`.
pub(crate) async fn retire(
    cloud: &Cloud,
    settings: &Settings,
    client: u64,
    before_us: u64,
) -> Result<bool, StoreError> {
    let object = object(client);
    match read(cloud, settings, &object).await? {
        Some((record, etag)) if record.bound_us < before_us => {
            Ok(cloud.objects.delete(&object, Some(&etag)).await == Delete::Gone)
        }
        _ => Ok(false),
    }
}

/// The object of a client.
pub(crate) fn object(client: u64) -> String {
    format!("{CLIENTS}{client:016x}")
}

async fn read(
    cloud: &Cloud,
    settings: &Settings,
    object: &str,
) -> Result<Option<(ClientRecord, ETag)>, StoreError> {
    let mut attempts = Attempts::new(cloud, settings);
    loop {
        match cloud.objects.get(object, None).await {
            Ok(Get::Found { bytes, etag, .. }) => {
                let damaged = |source| StoreError::Damaged { object: object.to_owned(), source };
                return Ok(Some((ClientRecord::decode(&bytes).map_err(damaged)?, etag)));
            }
            Ok(_) => return Ok(None),
            Err(fault) => attempts.after(fault).await?,
        }
    }
}

/// Compare and swap of a client's object, with H3. `None`: another version is there.
async fn swap(
    cloud: &Cloud,
    settings: &Settings,
    object: &str,
    record: ClientRecord,
    condition: PutIf,
) -> Result<Option<ETag>, StoreError> {
    let mut attempts = Attempts::new(cloud, settings);
    loop {
        let fault = match cloud.objects.put(object, record.encode(), condition.clone()).await {
            Put::Stored(etag) => return Ok(Some(etag)),
            Put::Conflict => Fault::Throttled { what: object.to_owned() },
            Put::Failed(fault) => fault,
            // Refused too: an earlier attempt may have been ours.
            Put::Refused | Put::Missing | Put::Unknown(_) => {
                match read(cloud, settings, object).await? {
                    Some((there, etag)) if there.write_id == record.write_id => {
                        return Ok(Some(etag));
                    }
                    Some((_, etag)) => match &condition {
                        // Nothing has happened yet: the same condition again is safe.
                        PutIf::Matches(expected) if *expected == etag => {
                            Fault::Throttled { what: object.to_owned() }
                        }
                        _ => return Ok(None),
                    },
                    // Deleted: the client was retired.
                    None if condition != PutIf::Absent => return Ok(None),
                    None => Fault::Throttled { what: object.to_owned() },
                }
            }
        };
        attempts.after(fault).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_room_after_them() {
        let sound = ClientRecord { epoch: 9, bound_us: 9, fence_from: 9, write_id: 9 };
        assert_eq!(ClientRecord::decode(&sound.encode()), Ok(sound));
        let records = [
            ClientRecord { epoch: u64::MAX, fence_from: u64::MAX, ..sound },
            ClientRecord { bound_us: u64::MAX, ..sound },
            ClientRecord { fence_from: u64::MAX, ..sound },
            // As many streams to be fenced at the next start.
            ClientRecord { epoch: 1 << 40, ..sound },
        ];
        for record in records {
            assert!(ClientRecord::decode(&record.encode()).is_err(), "{record:?}");
        }
    }
}
