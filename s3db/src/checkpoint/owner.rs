//! Who checkpoints what: parts of the log that a client has made its own, for thrift.
//!
//! ```text
//!   owner     claims its parts by compare and swap, dated by the object store's clock, and renews that;
//!             drains them at every interval
//!   others    see a claim that is fresh: they append, and leave the rest to it
//!   anybody   takes over a part whose claim is not fresh; and brings to its page what has waited for longer
//!             than `owner_patience`, whoever claims what
//! ```
//!
//! A part is a queue of pending updates, or all of s3-log (the paper, 5.3, names owners and does without
//! them). Nothing depends on it: pages are put by compare and swap (H2) whoever puts them, sweeps take on
//! everything, and forwarding is anybody's. What it saves is that two read, apply and lose a swap for the
//! same records.
//!
//! All claims lie in one object, `owners`: a frame of magic `s3dW`, version 1.
//!
//! | bytes | field |
//! | --- | --- |
//! | 16 | write id |
//! | 4, and each | parts: number (4), client (8), when it was claimed or renewed (8), by the object store's clock, milliseconds since 1970 |

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;

use crate::{
    catalog::Backend,
    checkpoint::Checkpointed,
    cloud::{ETag, Get, Put, PutIf},
    error::StoreError,
    frame::{FrameError, Reader, Writer, is_number},
    log::Scope,
    names::OWNERS,
    retry::Attempts,
    settings::Settings,
    store::Store,
};

const MAGIC: &str = "s3dW";
const VERSION: u8 = 1;
/// Parts that one database has at most.
const PARTS_MAX: usize = 1000;
/// How far a claim may be ahead of what is known of the object store's clock: two processes know it within
/// this.
const AHEAD_MS: u64 = 2000;
/// How many leases it takes to look again where nobody owned anything.
const NOBODY_LEASES: u64 = 10;

/// A claim of one part of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose it is.
    pub client: u64,
    /// When it was renewed, by the object store's clock, in milliseconds since 1970.
    pub date_ms: u64,
}

/// All claims of parts of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Random in every version, so that no ETag comes back.
    pub write_id: u128,
    /// By the number of the part.
    pub parts: BTreeMap<u32, Claim>,
}

impl Claims {
    pub(crate) fn encode(&self) -> Bytes {
        let mut to = Writer::new(MAGIC, VERSION);
        to.u128(self.write_id);
        to.u32(self.parts.len() as u32);
        for (part, claim) in &self.parts {
            to.u32(*part);
            to.u64(claim.client);
            to.u64(claim.date_ms);
        }
        to.finish()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Claims, FrameError> {
        let mut from = Reader::new(bytes, MAGIC, VERSION)?;
        let mut claims = Claims { write_id: from.u128()?, ..Claims::default() };
        let count = from.u32()? as usize;
        if count > PARTS_MAX {
            return Err(from.field("more parts than a log has"));
        }
        for _ in 0..count {
            let part = from.u32()?;
            if claims.parts.last_key_value().is_some_and(|(last, _)| *last >= part) {
                return Err(from.field("parts that do not rise"));
            }
            let claim = Claim { client: from.u64()?, date_ms: from.u64()? };
            if !is_number(claim.date_ms) {
                return Err(from.field("a time after which there is none"));
            }
            claims.parts.insert(part, claim);
        }
        from.done()?;
        Ok(claims)
    }
}

/// Whether a claim counts. `now_ms` is the object store's clock, `same_ms` how long this process has seen
/// the very same claim, by its own.
///
/// A claim from the future is nobody's: it would count for as long as its clock was wrong. One that nobody
/// has renewed for a lease does not count either, whatever the dates say.
fn is_fresh(claim: Claim, lease_ms: u64, now_ms: u64, same_ms: u64) -> bool {
    let age_ms = now_ms.saturating_sub(claim.date_ms);
    now_ms > 0 && claim.date_ms <= now_ms + AHEAD_MS && age_ms < lease_ms && same_ms < lease_ms
}

/// The part that a scope belongs to. `None` for what is anybody's.
fn part_of(scope: Scope) -> Option<u32> {
    match scope {
        Scope::Shard(shard) => Some(shard),
        Scope::Stream(_) => Some(0),
        Scope::Client(_) => None,
    }
}

/// What one process knows of claims.
#[derive(Default)]
pub(crate) struct Owners(Mutex<Known>);

#[derive(Default)]
struct Known {
    claims: Claims,
    /// When they were read last, by our monotonic clock; 0 for never.
    read_us: u64,
    /// Since when each claim is what it is, as far as was seen here.
    since_us: BTreeMap<u32, (Claim, u64)>,
    /// The client that claims for this process.
    me: Option<u64>,
    /// Since when each scope is left to its owner.
    left_us: BTreeMap<Scope, u64>,
}

impl Known {
    fn take(&mut self, claims: Claims, now_us: u64) {
        self.since_us.retain(|part, (claim, _)| claims.parts.get(part) == Some(claim));
        for (part, claim) in &claims.parts {
            self.since_us.entry(*part).or_insert((*claim, now_us));
        }
        (self.claims, self.read_us) = (claims, now_us);
    }

    /// How long the claim of a part has been what it is.
    fn same_ms(&self, part: u32, now_us: u64) -> u64 {
        self.since_us.get(&part).map_or(0, |(_, us)| now_us.saturating_sub(*us) / 1000)
    }
}

impl Owners {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lease_ms(settings: &Settings) -> u64 {
    settings.owner_lease.as_millis() as u64
}

impl Store {
    async fn read_claims(&self) -> Result<(Claims, Option<ETag>), StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            let asked_us = self.cloud.clock.monotonic_us();
            match self.cloud.objects.get(OWNERS, None).await {
                Ok(Get::Found { bytes, etag, date_ms }) => {
                    self.pages.saw_date(date_ms, asked_us);
                    // What is damaged is nobody's claim, and is put again by whoever claims next.
                    return Ok((Claims::decode(&bytes).unwrap_or_default(), Some(etag)));
                }
                Ok(_) => return Ok((Claims::default(), None)),
                Err(fault) => attempts.after(fault).await?,
            }
        }
    }

    /// Claims parts of the log for `client`, or renews its claims: queues of pending updates by their
    /// numbers, or, where the log is objects, 0 for all of it. A part that another client's claim holds
    /// stays that one's, as long as it is fresh ([`Settings::owner_lease`]). Says which parts are its own
    /// now. To be called again within half a lease, and to be followed by [`Store::tend`]: whoever claims
    /// and does not checkpoint holds others up by [`Settings::owner_patience`], no more.
    ///
    /// # Errors
    /// Whatever the object store says.
    pub async fn own(&self, client: u64, parts: &[u32]) -> Result<Vec<u32>, StoreError> {
        let count = match self.database().backend {
            Backend::S3Log => 1,
            _ => self.database().shards,
        };
        let lease_ms = lease_ms(&self.settings);
        self.owners.known().me = Some(client);
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            let (mut claims, etag) = self.read_claims().await?;
            if etag.is_none() {
                // Nothing told the time.
                self.ask_date().await?;
            }
            let (now_ms, now_us) = (self.pages.date_ms(), self.cloud.clock.monotonic_us());
            // Those of owners that are gone: others would look for them for ever.
            let is_old = |claim: &Claim| {
                now_ms.saturating_sub(claim.date_ms) >= NOBODY_LEASES * lease_ms.max(1)
            };
            claims.parts.retain(|_, claim| !is_old(claim));
            let mut own = Vec::new();
            {
                let mut known = self.owners.known();
                known.take(claims.clone(), now_us);
                for &part in parts.iter().filter(|part| **part < count) {
                    let is_others = claims.parts.get(&part).is_some_and(|claim| {
                        let same_ms = known.same_ms(part, now_us);
                        claim.client != client && is_fresh(*claim, lease_ms, now_ms, same_ms)
                    });
                    if !is_others {
                        claims.parts.insert(part, Claim { client, date_ms: now_ms });
                        own.push(part);
                    }
                }
            }
            if own.is_empty() {
                return Ok(own);
            }
            claims.write_id = self.cloud.chance.next_u128();
            let condition = etag.map_or(PutIf::Absent, PutIf::Matches);
            match self.cloud.objects.put(OWNERS, claims.encode(), condition).await {
                Put::Stored(_) => {
                    self.owners.known().take(claims, now_us);
                    return Ok(own);
                }
                // Others claimed meanwhile; or this claim is there, and is found to be.
                Put::Refused | Put::Missing | Put::Conflict => attempts.after_loss(OWNERS).await?,
                Put::Unknown(fault) | Put::Failed(fault) => attempts.after(fault).await?,
            }
        }
    }

    /// Gives claims back, so that others need not wait for their end.
    ///
    /// # Errors
    /// Whatever the object store says. They end by themselves.
    pub async fn disown(&self, client: u64) -> Result<(), StoreError> {
        self.owners.known().me = None;
        let (mut claims, etag) = self.read_claims().await?;
        let had = claims.parts.len();
        claims.parts.retain(|_, claim| claim.client != client);
        if let (true, Some(etag)) = (claims.parts.len() < had, etag) {
            claims.write_id = self.cloud.chance.next_u128();
            // Once: what fails costs others a wait.
            let _: Put =
                self.cloud.objects.put(OWNERS, claims.encode(), PutIf::Matches(etag)).await;
        }
        Ok(())
    }

    /// Checkpoints what is in these parts of the log, as their owner does at every interval.
    ///
    /// # Errors
    /// As [`Store::sweep`].
    pub async fn tend(&self, parts: &[u32]) -> Result<Checkpointed, StoreError> {
        let parts: BTreeSet<u32> = parts.iter().copied().collect();
        let scopes = match self.database().backend {
            Backend::S3Log if parts.contains(&0) => {
                // It finds streams by their objects.
                self.log.scopes(&[]).await?
            }
            Backend::S3Log => Vec::new(),
            _ => parts.into_iter().map(Scope::Shard).collect(),
        };
        self.sweep_scopes(scopes).await
    }

    /// Whether what waits in `scope` is left to another client, which has made it its own. Never for longer
    /// than [`Settings::owner_patience`].
    pub(crate) async fn is_left_to_owner(&self, scope: Scope) -> bool {
        let lease_ms = lease_ms(&self.settings);
        let Some(part) = part_of(scope).filter(|_| lease_ms > 0) else { return false };
        let now_us = self.cloud.clock.monotonic_us();
        let is_due = {
            let known = self.owners.known();
            let leases = if known.claims.parts.is_empty() { NOBODY_LEASES * 3 } else { 1 };
            let age_us = now_us.saturating_sub(known.read_us);
            known.read_us == 0 || age_us >= lease_ms * 1000 / 3 * leases
        };
        if is_due {
            let claims = self.read_claims().await;
            let (now_us, mut known) = (self.cloud.clock.monotonic_us(), self.owners.known());
            match claims {
                Ok((claims, _)) => known.take(claims, now_us),
                // What is known ends by itself.
                Err(_) => known.read_us = now_us,
            }
        }
        let (now_ms, now_us) = (self.pages.date_ms(), self.cloud.clock.monotonic_us());
        let mut known = self.owners.known();
        let owner = known.claims.parts.get(&part).is_some_and(|claim| {
            let same_ms = known.same_ms(part, now_us);
            known.me != Some(claim.client) && is_fresh(*claim, lease_ms, now_ms, same_ms)
        });
        let patience_us = self.settings.owner_patience.as_micros() as u64;
        let since_us = known.left_us.get(&scope).copied().unwrap_or(now_us);
        if !owner || now_us.saturating_sub(since_us) >= patience_us {
            known.left_us.remove(&scope);
            return false;
        }
        known.left_us.insert(scope, since_us);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_counts_for_a_lease_whatever_its_clock_says() {
        let now_ms: u64 = 1_763_690_400_000;
        // The date of the claim, by seconds after now; how long it was seen; whether it counts.
        let cases = [
            ("just renewed", 0, 0, true),
            ("nearly over", -29, 29, true),
            ("over", -30, 0, false),
            ("renewed by one who knows the time a little earlier", 2, 0, true),
            ("from the future", 3, 0, false),
            ("from next year", 31_000_000, 0, false),
            ("within what clocks differ, and never renewed", 1, 30, false),
        ];
        for (what, ahead_s, same_s, expected) in cases {
            let claim = Claim { client: 1, date_ms: now_ms.saturating_add_signed(1000 * ahead_s) };
            assert_eq!(is_fresh(claim, 30_000, now_ms, 1000 * same_s), expected, "{what}");
        }
        let claim = Claim { client: 1, date_ms: 0 };
        assert!(!is_fresh(claim, 30_000, 0, 0), "an object store that tells no time");
    }

    #[test]
    fn claims_come_back_and_noise_does_not() {
        let claim = |client| Claim { client, date_ms: 7 };
        let parts = BTreeMap::from([(0, claim(1)), (999, claim(u64::MAX))]);
        let claims = Claims { write_id: 5, parts };
        let bytes = claims.encode();
        assert_eq!(Claims::decode(&bytes), Ok(claims));
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1 << (at % 8);
            assert!(Claims::decode(&damaged.into()).is_err(), "byte {at}");
        }
        let twice = |numbers: [u32; 2]| {
            let mut to = Writer::new(MAGIC, VERSION);
            to.u128(0);
            to.u32(2);
            for number in numbers {
                to.u32(number);
                to.u64(1);
                to.u64(1);
            }
            Claims::decode(&to.finish())
        };
        assert!(twice([3, 4]).is_ok() && twice([3, 3]).is_err() && twice([4, 3]).is_err());
    }
}
