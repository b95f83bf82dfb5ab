//! Who writes: a client, in one of its lives, with stamps that only grow.
//!
//! An *incarnation* is a client and an epoch. The epoch is claimed at start by compare and swap on
//! `clients/CLIENT`, so no two processes have the same one. The first epoch of a name is the time of
//! its claim in microseconds, the next ones count on from there: a name that was retired and comes
//! back takes none of its old epochs again, of whose streams others may remember how far they read.
//! The same object holds a bound that all stamps of earlier lives are below: the next life starts
//! above it, whatever its clock says, and a life that needs a higher bound claims that first, by
//! which it learns that it is over.
//!
//! ```text
//!   --- time --->   |<----------- CLAIM ----------->|
//!   stamps so far ..now                            bound
//!                   |<--- half --->| here the bound is raised, in the background
//! ```
//!
//! A client that goes on writing raises its bound before half of it is used up
//! ([`Incarnation::keep_alive`]), so that no commit waits for that. One that begins to write again
//! after a rest, or whose background stands still, raises it when it stamps.
//!
//! What a claim may not do is to keep the next life from writing: its first stamp is above the
//! bound, and no stamp may be further ahead of the object store's clock than
//! [`Settings::clock_ahead_max`]. So no claim reaches that limit, however wrong the clock of the
//! machine, and however soon one life follows the other: only stamps that are in use do.
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
    fail_point::{FailPoint, reached},
    frame::{FrameError, Reader, Writer, is_number},
    names::CLIENTS,
    retry::Attempts,
    settings::{Rule, Settings},
    stamp::Stamp,
};

const MAGIC: &str = "s3dI";
const VERSION: u8 = 1;

/// How far ahead of its clock a client claims stamps at most, and at most half of what a clock may
/// be ahead. One put per minute of writing. Longer would be cheaper, by next to nothing; but after
/// a crash the next life's stamps are as far ahead, and win against what others write meanwhile.
const CLAIM_US: u64 = 120_000_000;
/// How far beyond what is used before a claim goes at least: stamps for a while, one per microsecond.
/// Lives that are short follow each other at this distance, not at the one above.
const CLAIM_MIN_US: u64 = 100_000;
/// What two processes may differ by in what they take for the object store's time: it tells whole
/// seconds, and an answer takes a while. Claims end so long before the limit of stamps.
const DATES_DIFFER_US: u64 = 2_000_000;
/// Lives of a client that may not be fenced yet. More are no state of a client's object.
const UNFENCED_MAX: u64 = 1 << 20;
/// A client that writes nothing raises its bound when that is older than such a part of what makes
/// a client count as gone.
const KEPT_ALIVE_PART: u64 = 15;

/// What the object of a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRecord {
    /// Of its newest life.
    pub epoch: u64,
    /// Stamps of this and all earlier lives are at most this, in microseconds since 1970.
    pub bound_us: u64,
    /// Epochs before this one can append nothing any more.
    pub fence_from: u64,
    /// Random in every version, so that no ETag comes back.
    pub write_id: u128,
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
        let unfenced = record.epoch.checked_sub(record.fence_from);
        if !is_time || unfenced.is_none_or(|lives| lives > UNFENCED_MAX) {
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
    /// A newer life has begun, or the client was taken for gone. There is nothing more to ask.
    is_over: bool,
}

impl Incarnation {
    /// Begins a life of `client`. `date_ms` tells the object store's clock, 0 if unknown, or that it
    /// cannot be gone by: it is asked after every wait, since waits can be long.
    pub(crate) async fn claim(
        cloud: &Cloud,
        settings: &Settings,
        client: u64,
        date_ms: impl Fn() -> Result<u64, StoreError>,
    ) -> Result<Incarnation, StoreError> {
        let object = object(client);
        let mut attempts = Attempts::new(cloud, settings);
        loop {
            let old = read(cloud, settings, &object).await?;
            let (wall, date_ms) = (cloud.clock.wall_us(), date_ms()?);
            let (before, condition) = match &old {
                Some((record, etag)) => (*record, PutIf::Matches(etag.clone())),
                None => (ClientRecord::before_first(wall.max(date_ms * 1000)), PutIf::Absent),
            };
            // A bound is for ever: no wrong clock may raise it.
            check_machine(settings, wall, date_ms)?;
            if before.bound_us > limit_us(settings, date_ms) {
                let ahead_ms = before.bound_us / 1000 - date_ms;
                return Err(StoreError::Claimed { client, ahead_ms });
            }
            let record = ClientRecord {
                epoch: before.epoch + 1,
                bound_us: claim_us(settings, before.bound_us + 1, wall, date_ms),
                write_id: cloud.chance.next_u128(),
                ..before
            };
            if record.epoch - record.fence_from > UNFENCED_MAX {
                // What would be no client's object any more.
                return Err(StoreError::Invalid(format!(
                    "none of the {UNFENCED_MAX} lives of client {client:x} before this one could be \
                     ended: let it write to the log, or use another name"
                )));
            }
            if let Swap::Done(etag) = swap(cloud, settings, &object, record, condition).await? {
                reached(cloud, FailPoint::Claimed).await;
                return Ok(Incarnation {
                    cloud: cloud.clone(),
                    settings: *settings,
                    client,
                    epoch: record.epoch,
                    state: Mutex::new(State {
                        clock: before.bound_us,
                        sequence: 0,
                        bound_us: record.bound_us,
                        is_over: false,
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
        self.change(|record| {
            record.fence_from = record.epoch;
            true
        })
        .await
    }

    /// Retires the client: this life stamps nothing more, whatever comes of it. The caller sees to it
    /// that all it wrote is on its pages, and that its name is never used again. False when the object
    /// is still there, or the next life's.
    pub(crate) async fn retire(&self) -> Result<bool, StoreError> {
        let object = object(self.client);
        let mut claim = self.claim.lock().await;
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            // Nothing may be stamped any more, whatever becomes of it.
            self.state().is_over = true;
            match self.cloud.objects.delete(&object, Some(&claim.1)).await {
                Delete::Gone => return Ok(true),
                // Without an answer it stays until garbage collection comes.
                Delete::Unknown(_) | Delete::Failed(_) => return Ok(false),
                Delete::Refused => match read(&self.cloud, &self.settings, &object).await? {
                    // A claim of ours that nobody waited for.
                    Some((there, etag)) if there.epoch == self.epoch => *claim = (there, etag),
                    _ => return Ok(false),
                },
                Delete::Conflict => {}
            }
            attempts.after_loss(&object).await?;
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Write follows read: later stamps are greater than one of this clock, which was read.
    pub(crate) fn observe(&self, clock: u64) {
        let mut state = self.state();
        state.clock = state.clock.max(clock);
    }

    /// The next stamp of this client. `date_ms` tells the object store's clock, as in
    /// [`Incarnation::claim`].
    ///
    /// It is never behind that clock: what a slow machine writes blindly, over a record that it did
    /// not read, would lose against what was there long before.
    pub(crate) async fn stamp(
        &self,
        date_ms: impl Fn() -> Result<u64, StoreError>,
    ) -> Result<Stamp, StoreError> {
        let attempts = self.settings.attempts_max.max(1);
        for claims in 0..=attempts {
            let date_ms = date_ms()?;
            let mut wall = self.cloud.clock.wall_us().max(date_ms * 1000);
            check_machine(&self.settings, wall, date_ms)?;
            let clock = {
                let mut state = self.state();
                if state.is_over {
                    return Err(self.fenced_error());
                }
                if claims > 0 {
                    // A claim that took longer than it lasts by this clock: near its limit they are
                    // short. By the store's clock it lasts.
                    wall = wall.min(state.bound_us).max(date_ms * 1000);
                }
                let clock = wall.max(state.clock + 1);
                check_clock(&self.settings, clock, date_ms)?;
                if clock <= state.bound_us || !self.settings.rules.hold(Rule::ClaimFirst) {
                    state.clock = clock;
                    state.sequence += 1;
                    let (client, sequence) = (self.client, state.sequence);
                    return Ok(Stamp { clock, client, sequence });
                }
                clock
            };
            let room = clock + CLAIM_MIN_US;
            self.raise_bound(clock, claim_us(&self.settings, room, wall, date_ms)).await?;
        }
        // Others used up each claim, or none was there before it was over by all clocks.
        Err(StoreError::Contended { object: object(self.client), attempts })
    }

    /// That this life goes on, as far as is known.
    ///
    /// # Errors
    /// [`StoreError::Fenced`].
    pub(crate) fn check_goes_on(&self) -> Result<(), StoreError> {
        if self.state().is_over { Err(self.fenced_error()) } else { Ok(()) }
    }

    /// Raises the bound if half of it is used up, so that no commit has to; and shows that this life
    /// goes on, if it showed nothing for long. `date_ms` is the object store's clock, 0 if unknown.
    pub(crate) async fn keep_alive(&self, date_ms: u64) -> Result<(), StoreError> {
        let wall = self.cloud.clock.wall_us().max(date_ms * 1000);
        self.check_goes_on()?;
        let (clock, bound) = {
            let state = self.state();
            (state.clock, state.bound_us)
        };
        let next = claim_us(&self.settings, clock, wall, date_ms);
        let most = claim_most_us(&self.settings);
        // It writes, and time goes by; or it writes more than there are microseconds.
        let is_used = clock + most > bound && next >= bound + most / 2;
        let is_short = clock + CLAIM_MIN_US / 2 > bound;
        // Beyond the limit are stamps that were read, and that nobody may go past.
        let is_writing = (is_used || is_short) && clock <= limit_us(&self.settings, date_ms);
        let age_us = self.settings.tombstone_age.as_micros() as u64 / KEPT_ALIVE_PART;
        // By the store's clock, which garbage collection goes by.
        let now = if date_ms == 0 { wall } else { date_ms * 1000 };
        let is_old = now > bound.saturating_add(age_us);
        if next > bound && (is_writing || is_old) {
            return self.raise_bound(bound + 1, next).await;
        }
        Ok(())
    }

    /// Gives back what is claimed and not used. What is stamped later is claimed anew.
    pub(crate) async fn give_back(&self) -> Result<(), StoreError> {
        let object = object(self.client);
        let mut claim = self.claim.lock().await;
        self.check_goes_on()?;
        {
            let mut state = self.state();
            state.bound_us = state.bound_us.min(state.clock);
            // Whether the swap lands or not: nobody here goes by the old bound.
            claim.0.bound_us = claim.0.bound_us.min(state.bound_us);
        }
        let record = ClientRecord { write_id: self.cloud.chance.next_u128(), ..claim.0 };
        let condition = PutIf::Matches(claim.1.clone());
        if let Swap::Done(etag) =
            swap(&self.cloud, &self.settings, &object, record, condition).await?
        {
            *claim = (record, etag);
        }
        Ok(())
    }

    /// Claims stamps up to `bound`, unless somebody did up to `least` meanwhile.
    async fn raise_bound(&self, least: u64, bound: u64) -> Result<(), StoreError> {
        self.change(|record| {
            let is_needed = record.bound_us < least;
            record.bound_us = record.bound_us.max(bound);
            is_needed
        })
        .await
    }

    fn fenced_error(&self) -> StoreError {
        StoreError::Fenced { client: self.client, epoch: self.epoch }
    }

    /// Changes the client's object, which only the newest incarnation can; or leaves it, if `change`
    /// says that there is nothing to change.
    async fn change(&self, change: impl Fn(&mut ClientRecord) -> bool) -> Result<(), StoreError> {
        let object = object(self.client);
        let mut claim = self.claim.lock().await;
        self.check_goes_on()?;
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            let mut record = claim.0;
            if !change(&mut record) {
                break;
            }
            record.write_id = self.cloud.chance.next_u128();
            let condition = PutIf::Matches(claim.1.clone());
            match swap(&self.cloud, &self.settings, &object, record, condition).await? {
                Swap::Done(etag) => {
                    *claim = (record, etag);
                    break;
                }
                // Nobody else has this epoch: it is a put of ours that nobody waited for.
                Swap::Other(Some((there, etag))) if there.epoch == self.epoch => {
                    *claim = (there, etag);
                }
                Swap::Other(_) => {
                    self.state().is_over = true;
                    return Err(self.fenced_error());
                }
            }
            attempts.after_loss(&object).await?;
        }
        let bound_us = claim.0.bound_us;
        self.state().bound_us = bound_us;
        Ok(())
    }
}

/// How far ahead of its clock a client claims stamps at most.
fn claim_most_us(settings: &Settings) -> u64 {
    (settings.clock_ahead_max.as_micros() as u64 / 2).min(CLAIM_US)
}

/// The bound of stamps to claim by a clock: `least_us` at least.
///
/// The next life begins there, and must be able to. So the bound is less than what its first stamp
/// may be, if it takes the object store's time for less than [`DATES_DIFFER_US`] earlier than this
/// one does; unless `least_us` is further ahead.
fn claim_us(settings: &Settings, least_us: u64, wall_us: u64, date_ms: u64) -> u64 {
    let ahead_max = settings.clock_ahead_max.as_micros() as u64;
    let wall_us = wall_us.max(date_ms * 1000);
    let wanted = (least_us + CLAIM_MIN_US).max(wall_us + claim_most_us(settings));
    let limit = limit_us(settings, date_ms);
    wanted.min(limit - DATES_DIFFER_US.min(ahead_max / 4)).max(least_us.min(limit))
}

/// The highest clock that a stamp may have.
fn limit_us(settings: &Settings, date_ms: u64) -> u64 {
    let ahead_max = settings.clock_ahead_max.as_micros() as u64;
    if date_ms == 0 || !settings.rules.hold(Rule::ClockLimit) {
        return u64::MAX;
    }
    (date_ms * 1000).saturating_add(ahead_max)
}

fn check_clock(settings: &Settings, clock_us: u64, date_ms: u64) -> Result<(), StoreError> {
    if clock_us > limit_us(settings, date_ms) {
        return Err(StoreError::Clock { ahead_ms: clock_us / 1000 - date_ms });
    }
    Ok(())
}

/// That a machine's clock is right enough to claim stamps by: claims end [`DATES_DIFFER_US`] before
/// the limit, and would be over before they are there.
fn check_machine(settings: &Settings, wall_us: u64, date_ms: u64) -> Result<(), StoreError> {
    let ahead_max = settings.clock_ahead_max.as_micros() as u64;
    if wall_us > limit_us(settings, date_ms) - DATES_DIFFER_US.min(ahead_max / 4) {
        return Err(StoreError::Clock { ahead_ms: wall_us / 1000 - date_ms });
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
            let is_gone = cloud.objects.delete(&object, Some(&etag)).await == Delete::Gone;
            if is_gone {
                reached(cloud, FailPoint::Retired).await;
            }
            Ok(is_gone)
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

/// Whether a life of a client is over by now: a later one has begun, or the client was retired.
pub(crate) async fn is_over(
    cloud: &Cloud,
    settings: &Settings,
    (client, epoch): (u64, u64),
) -> Result<bool, StoreError> {
    let now = read(cloud, settings, &object(client)).await?;
    Ok(now.is_none_or(|(record, _)| record.epoch > epoch))
}

/// What came of a swap.
enum Swap {
    Done(ETag),
    /// Another version is there, or none.
    Other(Option<(ClientRecord, ETag)>),
}

/// Compare and swap of a client's object, with H3.
async fn swap(
    cloud: &Cloud,
    settings: &Settings,
    object: &str,
    record: ClientRecord,
    condition: PutIf,
) -> Result<Swap, StoreError> {
    let mut attempts = Attempts::new(cloud, settings);
    loop {
        let fault = match cloud.objects.put(object, record.encode(), condition.clone()).await {
            Put::Stored(etag) => return Ok(Swap::Done(etag)),
            Put::Conflict => Fault::Throttled { what: object.to_owned() },
            Put::Failed(fault) => fault,
            // Refused too: an earlier attempt may have been ours.
            Put::Refused | Put::Missing | Put::Unknown(_) => {
                match read(cloud, settings, object).await? {
                    Some((there, etag)) if there.write_id == record.write_id => {
                        return Ok(Swap::Done(etag));
                    }
                    Some((there, etag)) => match &condition {
                        // Nothing has happened yet: the same condition again is safe.
                        PutIf::Matches(expected) if *expected == etag => {
                            Fault::Throttled { what: object.to_owned() }
                        }
                        _ => return Ok(Swap::Other(Some((there, etag)))),
                    },
                    // Deleted: the client was retired.
                    None if condition != PutIf::Absent => return Ok(Swap::Other(None)),
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
            // Lives to come are over.
            ClientRecord { fence_from: 10, ..sound },
        ];
        for record in records {
            assert!(ClientRecord::decode(&record.encode()).is_err(), "{record:?}");
        }
    }

    #[test]
    fn claims_cover_what_is_used_and_leave_room_for_the_next_life() {
        let settings = Settings::default();
        let s = |s: u64| s * 1_000_000;
        let date = s(1_763_690_400);
        // The clock of the machine, and the least that is wanted, both by seconds after the date;
        // the bound, by microseconds.
        let cases = [
            ("a good clock", 0, 0, s(120)),
            ("a slow one", -500, 0, s(120)),
            ("a fast one", 100, 100, s(220)),
            ("one that is too fast for a whole claim", 250, 250, s(298)),
            ("one that is years ahead", 100_000_000, 0, s(298)),
            ("a life after a life", 0, 120, s(120) + CLAIM_MIN_US),
            ("one that was claimed to the end", 0, 298, s(298)),
            ("stamps in use beyond that", 0, 299, s(299)),
            ("and beyond the limit", 0, 301, s(300)),
        ];
        for (what, ahead, least, expected) in cases {
            let wall = date.saturating_add_signed(ahead * 1_000_000);
            let bound = claim_us(&settings, date + s(least), wall, date / 1000);
            assert_eq!(bound - date, expected, "{what}");
        }
        // Nothing known of the store's time: nothing is limited.
        assert_eq!(claim_us(&settings, 5, s(1000), 0), s(1120));
    }
}
