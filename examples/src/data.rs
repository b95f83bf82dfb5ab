//! The database that is asked: made once by the seeded generator, kept in a cache folder.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use traildb::{
    Builder, Error, Reader, Storage, Uuid,
    synth::{self, Spec},
};

/// Trails looked at for each user wanted, before those with few events are taken as well.
const LOOKS_PER_USER: u64 = 100;
/// How often a database that came out too small is made again.
const ATTEMPTS_MAX: u32 = 4;
/// A user worth asking about has so many events.
const EVENTS_MIN: usize = 5;

/// Where made databases are kept: `EXTMEM_DATA`, or `extmem` in the user's cache folder.
///
/// # Errors
/// When neither that nor a home folder is named by the environment.
pub fn folder() -> Result<PathBuf, String> {
    let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    named("EXTMEM_DATA")
        .or_else(|| named("XDG_CACHE_HOME").map(|cache| cache.join("extmem")))
        .or_else(|| named("HOME").map(|home| home.join(".cache/extmem")))
        .ok_or_else(|| "set EXTMEM_DATA to a folder for the made database".to_owned())
}

/// The path of a made database of at least `bytes` bytes, and whether it is there already.
pub fn path(folder: &Path, bytes: u64, seed: u64) -> (PathBuf, bool) {
    let path = folder.join(format!("edits-{bytes}-{seed}.tdb"));
    let there = path.metadata().is_ok_and(|stat| stat.len() >= bytes);
    (path, there)
}

/// Makes a database of at least `bytes` bytes at `path`. `progress` hears how many events of how
/// many there are; after the last of them the file is written.
///
/// # Errors
/// When the folder cannot be written.
pub fn make(
    path: &Path,
    bytes: u64,
    seed: u64,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| told(&e))?;
    }
    // How well the events compress decides what they come to: a small database can be short.
    let mut wanted = bytes;
    for _ in 0..ATTEMPTS_MAX {
        let spec = Spec::of_bytes(wanted, seed);
        let mut builder = Builder::new(&synth::FIELDS).map_err(|e| told(&e))?;
        synth::fill(&spec, &mut builder, |events| progress(events, spec.events))
            .map_err(|e| told(&e))?;
        builder.finish(path).map_err(|e| told(&e))?;
        let len = path.metadata().map_err(|e| told(&e))?.len();
        if len >= bytes {
            return Ok(());
        }
        wanted += 2 * (bytes - len);
    }
    Err(told(&format!("came out below {bytes} bytes, {ATTEMPTS_MAX} times")))
}

/// The path of a database of at least `bytes` bytes for the benchmarks, which is made if it is
/// missing.
///
/// # Errors
/// As for [`folder`] and [`make`].
pub fn ensure(bytes: u64) -> Result<PathBuf, String> {
    let seed = 1;
    let (path, there) = path(&folder()?, bytes, seed);
    if !there {
        eprintln!("  making {}, once", path.display());
        make(&path, bytes, seed, |_, _| {})?;
    }
    Ok(path)
}

/// Chooses `count` users of a database at random, such that equal seeds choose equally. Users with
/// a handful of events are preferred to those with fewer.
///
/// # Errors
/// When the database cannot be read.
pub fn users<S: Storage>(reader: &Reader<S>, count: usize, seed: u64) -> Result<Vec<Uuid>, Error> {
    let trails = reader.trails();
    if trails == 0 {
        return Ok(Vec::new());
    }
    let (mut chosen, mut spare) = (Vec::new(), Vec::new());
    let mut random = seed;
    for _ in 0..LOOKS_PER_USER * count as u64 {
        if chosen.len() == count {
            break;
        }
        let trail = split_mix(&mut random) % trails;
        let mut cursor = reader.trail(trail)?;
        let mut events = 0;
        while events < EVENTS_MIN && cursor.next_event()?.is_some() {
            events += 1;
        }
        let list = if events == EVENTS_MIN { &mut chosen } else { &mut spare };
        if !list.contains(&trail) {
            list.push(trail);
        }
    }
    chosen.extend(spare);
    chosen.truncate(count);
    chosen.into_iter().map(|trail| reader.uuid(trail)).collect()
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
