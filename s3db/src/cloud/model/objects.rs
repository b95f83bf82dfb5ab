//! The object store: strong today, eventual in 2007.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Answer, Caller, Event, Fate, Mishap, Process, Silence, World};
use crate::{
    cloud::{Delete, ETag, Fault, Get, Listing, Objects, Put, PutIf, ledger::CallKind},
    names::PAGES,
    page::Page,
};

/// One version of an object.
#[derive(Clone, Debug)]
pub struct Version {
    /// When it came.
    pub at_us: u64,
    /// Its bytes; `None` after a delete. Of what is sealed: what is in it.
    pub bytes: Option<Bytes>,
    /// The bytes as they were put, if they are others.
    sealed: Option<Bytes>,
    /// Who did it.
    pub process: Process,
}

impl Version {
    /// As it was put.
    fn held(&self) -> Option<&Bytes> {
        self.sealed.as_ref().or(self.bytes.as_ref())
    }

    fn etag(&self) -> Option<ETag> {
        self.held().map(tag)
    }
}

/// From content alone, as S3 does it.
pub(crate) fn tag(bytes: &Bytes) -> ETag {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    ETag::new(&format!("\"{hash:016x}\""))
}

/// All objects, with all their versions.
#[derive(Default)]
pub(crate) struct Store {
    objects: BTreeMap<String, Vec<Version>>,
    /// Only the newest version of each is kept.
    pub(super) forgets: bool,
}

impl Store {
    pub(super) fn history(&self, prefix: &str) -> Vec<(String, Vec<Version>)> {
        self.objects
            .range(prefix.to_owned()..)
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(|(name, versions)| (name.clone(), versions.clone()))
            .collect()
    }

    /// The bytes of an object that is there.
    pub(crate) fn bytes(&self, name: &str) -> Option<&Bytes> {
        self.newest(name)?.bytes.as_ref()
    }

    /// Whether an object was there once, and is not any more.
    pub(crate) fn is_gone(&self, name: &str) -> bool {
        self.objects.get(name).is_some_and(|versions| !versions.is_empty())
            && self.newest(name).is_none()
    }

    /// The objects that are there, from those on whose names start with `prefix`.
    pub(crate) fn with_prefix<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl DoubleEndedIterator<Item = (&'a str, &'a Bytes)> {
        // Nothing that is not ASCII is in a name.
        let end = format!("{prefix}\u{7f}");
        let there = self.objects.range(prefix.to_owned()..end);
        there.filter_map(|(name, versions)| Some((&name[..], versions.last()?.bytes.as_ref()?)))
    }

    fn newest(&self, name: &str) -> Option<&Version> {
        self.objects.get(name)?.last().filter(|version| version.bytes.is_some())
    }

    fn add(&mut self, name: &str, version: Version) {
        let versions = self.objects.entry(name.to_owned()).or_default();
        if self.forgets {
            versions.clear();
        }
        versions.push(version);
    }
}

impl World {
    /// The effect of a put, at the moment it happens.
    fn put_now(&self, process: Process, name: &str, bytes: &Bytes, condition: &PutIf) -> Put {
        let at_us = self.time.now_us();
        let mut state = self.state();
        let there = state.objects.newest(name).cloned();
        let opened = state.opener.as_ref().map(|opener| opener.object(name, bytes));
        let (shown, sealed) = match opened.filter(|opened| opened != bytes) {
            Some(opened) => (opened, Some(bytes.clone())),
            None => (bytes.clone(), None),
        };
        let is_met = match (condition, &there) {
            (PutIf::Always, _) => true,
            (PutIf::Absent, there) => there.is_none(),
            (PutIf::Matches(_), None) => return Put::Missing,
            (PutIf::Matches(etag), Some(there)) => there.etag().as_ref() == Some(etag),
        };
        if !is_met {
            return Put::Refused;
        }
        if let Some(broken) = check_put(name, there.as_ref(), &shown, condition) {
            state.broken.push(broken);
        }
        state.audit(&Event::Put { name, bytes: &shown, is_swap: there.is_some() });
        let version = Version { at_us, bytes: Some(shown), sealed, process };
        state.objects.add(name, version);
        Put::Stored(tag(bytes))
    }

    fn delete_now(&self, process: Process, name: &str, only: Option<&ETag>) -> Delete {
        let at_us = self.time.now_us();
        let mut state = self.state();
        let Some(there) = state.objects.newest(name) else { return Delete::Gone };
        if only.is_some_and(|only| there.etag().as_ref() != Some(only)) {
            return Delete::Refused;
        }
        state.audit(&Event::Deleted { name });
        state.objects.add(name, Version { at_us, bytes: None, sealed: None, process });
        Delete::Gone
    }

    /// Stores an object without a call: what was there before the run.
    pub fn put_silently(&self, name: &str, bytes: Bytes) {
        let (at_us, process) = (self.time.now_us(), Process(0));
        let version = Version { at_us, bytes: Some(bytes), sealed: None, process };
        self.state().objects.add(name, version);
    }
}

/// Invariant 6: the version of a page rises by one per conditional put. One that is sealed with another key is
/// the same version.
fn check_put(
    name: &str,
    there: Option<&Version>,
    bytes: &Bytes,
    condition: &PutIf,
) -> Option<String> {
    if !name.starts_with(PAGES) || *condition == PutIf::Always {
        return None;
    }
    let new = Page::decode(bytes).ok()?;
    let old = match there.and_then(|there| Some((there, there.bytes.as_ref()?))) {
        Some((there, old)) if there.sealed.is_some() && old == bytes => return None,
        Some((_, bytes)) => Page::decode(bytes).ok()?.version,
        None => 0,
    };
    (new.version != old + 1).then(|| format!("{name}: version {} follows {old}", new.version))
}

#[async_trait]
impl Objects for Caller {
    async fn get(&self, name: &str, unless: Option<&ETag>) -> Result<Get, Fault> {
        let world = &self.world;
        world.ledger.add(CallKind::get(name), 0);
        let base_us = {
            let state = world.state();
            let len = state.objects.newest(name).and_then(Version::held);
            let len = len.map_or(0, Bytes::len);
            state.latency.get.as_micros() as u64
                + (len as f64 * state.latency.get_byte_ns / 1000.0) as u64
        };
        let fate = self.before(name, base_us, false).await;
        if let Some(fault) = self.denied(name) {
            return Err(fault);
        }
        let answer = {
            let now_us = world.time.now_us();
            let mut state = world.state();
            let state = &mut *state;
            let stale = state.faults.stale_max.map_or(0, |max| max.as_micros() as u64);
            let oldest =
                if stale == 0 { now_us } else { now_us - state.random.u64(..=stale.min(now_us)) };
            let versions = state.objects.objects.get(name);
            // The newest that existed `stale` ago, or any since.
            let seen = versions
                .and_then(|versions| versions.iter().rev().find(|version| version.at_us <= oldest));
            let is_old = |newest: &Version| seen.is_none_or(|seen| seen.at_us < newest.at_us);
            if versions.and_then(|versions| versions.last()).is_some_and(is_old) {
                state.met.count(Mishap::StaleRead);
            }
            match seen.and_then(|version| Some((version.held()?.clone(), version.etag()?))) {
                None => Get::Absent,
                Some((_, etag)) if unless == Some(&etag) => Get::Unchanged { date_ms: 0 },
                Some((bytes, etag)) => Get::Found { bytes, etag, date_ms: 0 },
            }
        };
        let date = world.date_told_ms();
        let answer = match answer {
            Get::Unchanged { .. } => Get::Unchanged { date_ms: date },
            Get::Found { bytes, etag, .. } => Get::Found { bytes, etag, date_ms: date },
            Get::Absent => Get::Absent,
        };
        let bytes_in = match &answer {
            Get::Found { bytes, .. } => bytes.len() as u64,
            _ => 0,
        };
        self.after(name).await;
        match fate {
            Fate::Fine => {
                world.ledger.add_answer(CallKind::get(name), bytes_in);
                self.answered(match &answer {
                    Get::Found { .. } => Answer::Done,
                    Get::Unchanged { .. } => Answer::Unchanged,
                    Get::Absent => Answer::Absent,
                });
                world.note(self.process, || format!("get {name} {}", show(&answer)));
                Ok(answer)
            }
            Fate::Throttled(answer) => Err(self.throttled(name, answer)),
            fate => {
                world.note(self.process, || format!("get {name} no answer"));
                self.time_out(fate.silence()).await;
                Err(self.lost(name, fate.silence()))
            }
        }
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: PutIf) -> Put {
        let world = &self.world;
        world.ledger.add(CallKind::put(name), bytes.len() as u64);
        let base_us = {
            let latency = &world.state().latency;
            let get =
                latency.get.as_micros() as f64 + bytes.len() as f64 * latency.get_byte_ns / 1000.0;
            (get * latency.put_factor) as u64
        };
        let fate = self.before(name, base_us, true).await;
        let conflict = condition != PutIf::Always && world.state().meets(Mishap::Conflict);
        let put = match fate {
            Fate::Throttled(answer) => Put::Failed(self.throttled(name, answer)),
            Fate::LostRequest(silence) => Put::Unknown(self.lost(name, silence)),
            Fate::Late(us) => {
                let (world, process, name) = (world.clone(), self.process, name.to_owned());
                let lost = Put::Unknown(self.lost(&name, Silence::Nothing));
                self.world.time.later(us, move || {
                    let outcome = world.put_now(process, &name, &bytes, &condition);
                    world.note(process, || {
                        format!("put {name} arrives late: {}", outcome_of(&outcome))
                    });
                });
                lost
            }
            _ if conflict => Put::Conflict,
            Fate::LostAnswer(silence) => {
                let outcome = world.put_now(self.process, name, &bytes, &condition);
                world.note(self.process, || format!("put {name} {} unheard", outcome_of(&outcome)));
                Put::Unknown(self.lost(name, silence))
            }
            Fate::Fine => world.put_now(self.process, name, &bytes, &condition),
        };
        self.after(name).await;
        world.note(self.process, || format!("put {name} {}", outcome_of(&put)));
        match put {
            Put::Stored(_) => self.answered(Answer::Done),
            Put::Refused => self.answered(Answer::Refused),
            Put::Conflict => self.answered(Answer::Conflict),
            Put::Missing => self.answered(Answer::Missing),
            Put::Unknown(_) => self.time_out(fate.silence()).await,
            Put::Failed(_) => {}
        }
        put
    }

    async fn delete(&self, name: &str, only: Option<&ETag>) -> Delete {
        let world = &self.world;
        world.ledger.add(CallKind::Delete, 0);
        world.state().audit(&Event::Freed { name });
        let base_us = world.state().latency.get.as_micros() as u64;
        let fate = self.before(name, base_us, true).await;
        let conflict = only.is_some() && world.state().meets(Mishap::ConflictDelete);
        let outcome = match fate {
            Fate::Throttled(answer) => Delete::Failed(self.throttled(name, answer)),
            Fate::LostRequest(silence) => Delete::Unknown(self.lost(name, silence)),
            Fate::Late(us) => {
                let (world, process) = (world.clone(), self.process);
                let (name, only) = (name.to_owned(), only.cloned());
                let lost = Delete::Unknown(self.lost(&name, Silence::Nothing));
                self.world.time.later(us, move || {
                    world.delete_now(process, &name, only.as_ref());
                    world.note(process, || format!("delete {name} arrives late"));
                });
                lost
            }
            _ if conflict => Delete::Conflict,
            Fate::LostAnswer(silence) => {
                world.delete_now(self.process, name, only);
                Delete::Unknown(self.lost(name, silence))
            }
            Fate::Fine => world.delete_now(self.process, name, only),
        };
        self.after(name).await;
        world.note(self.process, || format!("delete {name} {outcome:?}"));
        match outcome {
            Delete::Gone => self.answered(Answer::Done),
            Delete::Refused => self.answered(Answer::Refused),
            Delete::Conflict => self.answered(Answer::Conflict),
            Delete::Unknown(_) => self.time_out(fate.silence()).await,
            Delete::Failed(_) => {}
        }
        outcome
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Listing, Fault> {
        let world = &self.world;
        world.ledger.add(CallKind::list(), 0);
        let base_us = world.state().latency.get.as_micros() as u64;
        let fate = self.before(prefix, base_us, false).await;
        if let Some(fault) = self.denied(prefix) {
            return Err(fault);
        }
        let answer = {
            let now_us = world.time.now_us();
            let mut state = world.state();
            let stale = state.faults.stale_max.map_or(0, |max| max.as_micros() as u64);
            let oldest =
                if stale == 0 { now_us } else { now_us - state.random.u64(..=stale.min(now_us)) };
            let was_there = |versions: &[Version]| {
                let seen = versions.iter().rev().find(|version| version.at_us <= oldest);
                seen.is_some_and(|version| version.bytes.is_some())
            };
            let mut names = state
                .objects
                .objects
                .range(prefix.to_owned()..)
                .take_while(|(name, _)| name.starts_with(prefix))
                .filter(|(name, versions)| {
                    after.is_none_or(|after| name.as_str() > after) && was_there(versions)
                })
                .map(|(name, _)| name.clone());
            let names_taken: Vec<String> = names.by_ref().take(max).collect();
            Listing { names: names_taken, more: names.next().is_some() }
        };
        self.after(prefix).await;
        match fate {
            Fate::Fine => {
                self.answered(Answer::Done);
                world.note(self.process, || format!("list {prefix} {} names", answer.names.len()));
                Ok(answer)
            }
            Fate::Throttled(answer) => Err(self.throttled(prefix, answer)),
            fate => {
                self.time_out(fate.silence()).await;
                Err(self.lost(prefix, fate.silence()))
            }
        }
    }
}

fn show(answer: &Get) -> String {
    match answer {
        Get::Found { bytes, .. } => match Page::decode(bytes) {
            Ok(page) => format!("version {}", page.version),
            Err(_) => format!("{} bytes", bytes.len()),
        },
        Get::Unchanged { .. } => "unchanged".into(),
        Get::Absent => "absent".into(),
    }
}

fn outcome_of(put: &Put) -> &'static str {
    match put {
        Put::Stored(_) => "stored",
        Put::Refused => "refused (412)",
        Put::Conflict => "conflict (409)",
        Put::Missing => "missing (404)",
        Put::Unknown(_) => "no answer",
        Put::Failed(_) => "failed",
    }
}
