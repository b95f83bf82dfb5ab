//! A disk of the one machine that all processes run on: what it keeps survives them, and some of it lies.

use std::{collections::BTreeMap, io};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Caller, Mishap, State};
use crate::cloud::{Disk, disk::Kept};

/// What reading or writing takes, in microseconds.
const ROUND_US: u64 = 150;
/// Older versions of a file that can come back.
const VERSIONS_MAX: usize = 4;

/// Files, each with its last versions, the newest behind.
#[derive(Default)]
pub(super) struct Files {
    files: BTreeMap<String, (u64, Vec<Bytes>)>,
    uses: u64,
    pub(super) found: u64,
    pub(super) faults: u64,
}

fn broken() -> io::Error {
    io::Error::other("the disk is broken")
}

fn cut(random: &mut fastrand::Rng, bytes: &Bytes) -> Bytes {
    bytes.slice(..random.usize(..=bytes.len()))
}

impl State {
    fn read_file(&mut self, name: &str) -> io::Result<Option<Bytes>> {
        let State { random, faults, met, files: there, .. } = self;
        there.uses += 1;
        let uses = there.uses;
        let Some((used, versions)) = there.files.get_mut(name) else { return Ok(None) };
        *used = uses;
        let Some(newest) = versions.last().cloned() else { return Ok(None) };
        there.found += 1;
        if !met.roll(random, faults, Mishap::Disk) {
            return Ok(Some(newest));
        }
        there.faults += 1;
        Ok(Some(match random.u32(..5) {
            0 => return Err(broken()),
            1 => cut(random, &newest),
            2 => {
                let mut bytes = newest.to_vec();
                if let Some(at) = (!bytes.is_empty()).then(|| random.usize(..bytes.len())) {
                    bytes[at] ^= 1 << random.u32(..8);
                }
                bytes.into()
            }
            3 => versions[random.usize(..versions.len())].clone(),
            _ => {
                let other = random.usize(..there.files.len());
                let (_, versions) = there.files.values().nth(other).expect("there are so many");
                versions.last().cloned().unwrap_or_default()
            }
        }))
    }

    fn write_file(&mut self, name: &str, mut bytes: Bytes) -> io::Result<()> {
        let State { random, faults, met, files: there, .. } = self;
        there.uses += 1;
        if met.roll(random, faults, Mishap::Disk) {
            there.faults += 1;
            match random.u32(..3) {
                0 => return Err(broken()),
                1 => return Ok(()),
                _ => bytes = cut(random, &bytes),
            }
        }
        let (used, versions) = there.files.entry(name.to_owned()).or_default();
        *used = there.uses;
        versions.push(bytes);
        if versions.len() > VERSIONS_MAX {
            versions.remove(0);
        }
        Ok(())
    }
}

#[async_trait]
impl Disk for Caller {
    async fn read(&self, name: &str, bytes_max: u64) -> io::Result<Option<Bytes>> {
        self.world.time.sleep(ROUND_US).await;
        let file = self.world.state().read_file(name);
        let is_short = |bytes: &Bytes| bytes.len() as u64 <= bytes_max;
        let file = file.map(|file| file.filter(is_short));
        self.world.note(self.process, || match &file {
            Ok(Some(bytes)) => format!("disk: reads {name}: {} bytes", bytes.len()),
            Ok(None) => format!("disk: no {name}"),
            Err(_) => format!("disk: cannot read {name}"),
        });
        file
    }

    async fn write(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        self.world.time.sleep(ROUND_US).await;
        let len = bytes.len();
        let written = self.world.state().write_file(name, bytes);
        self.world.note(self.process, || format!("disk: writes {name}: {len} bytes {written:?}"));
        written
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.world.time.sleep(ROUND_US).await;
        let mut state = self.world.state();
        if state.meets(Mishap::Disk) {
            state.files.faults += 1;
            return Err(broken());
        }
        state.files.files.remove(name);
        Ok(())
    }

    async fn list(&self) -> io::Result<Vec<Kept>> {
        self.world.time.sleep(ROUND_US).await;
        let state = self.world.state();
        let kept = state.files.files.iter().map(|(name, (used, versions))| Kept {
            name: name.clone(),
            bytes: versions.last().map_or(0, |bytes| bytes.len() as u64),
            used: *used,
        });
        Ok(kept.collect())
    }
}
