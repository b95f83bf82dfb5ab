//! The caches of this process by directory, as addresses and the environment name them.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `EXTMEM_CACHE` | the directory of the disk cache; without it there is none |
//! | `EXTMEM_CACHE_BYTES` | the most it may take, such as `64GiB`, from now on. Default: what was said last, or 16 GiB |
//! | `EXTMEM_CACHE_FREE` | what must stay free on its disk. Default: 1 GiB |
//! | `EXTMEM_CACHE_KEY_FILE` | file with the key that encrypts it |
//! | `EXTMEM_CACHE_KEY` | the key itself, as 64 hexadecimal digits |

use std::{
    collections::{HashMap, HashSet},
    env, io,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError, Weak},
};

use tracing::warn;

use super::{Cache, CacheKey, CachePolicy, Inner};
use crate::size;

#[derive(Default)]
struct Shared {
    open: HashMap<PathBuf, Weak<Inner>>,
    warned: HashSet<PathBuf>,
}

/// One for the process, not one for each set of options: readers of the same directory should share
/// their requests.
static SHARED: LazyLock<Mutex<Shared>> = LazyLock::new(Mutex::default);

/// The directory that the environment names.
pub(crate) fn directory_of_environment() -> Option<PathBuf> {
    env::var_os("EXTMEM_CACHE").filter(|text| !text.is_empty()).map(PathBuf::from)
}

impl CachePolicy {
    /// The defaults, with what the environment says: `EXTMEM_CACHE_BYTES`, `EXTMEM_CACHE_FREE`, and
    /// `EXTMEM_CACHE_KEY_FILE` or `EXTMEM_CACHE_KEY`.
    ///
    /// # Errors
    /// When a variable cannot be understood, or the key cannot be read.
    pub fn from_environment() -> io::Result<CachePolicy> {
        let mut policy = CachePolicy::default();
        let said = |name: &str| {
            let Ok(text) = env::var(name) else { return Ok(None) };
            size::parse(&text).map(Some).map_err(|why| {
                io::Error::new(io::ErrorKind::InvalidInput, format!("{name}={text}: {why}"))
            })
        };
        policy.bytes_max = said("EXTMEM_CACHE_BYTES")?;
        if let Some(bytes) = said("EXTMEM_CACHE_FREE")? {
            policy.free_bytes_min = bytes;
        }
        if let Some(path) = env::var_os("EXTMEM_CACHE_KEY_FILE").filter(|path| !path.is_empty()) {
            policy.key = Some(CacheKey::from_file(Path::new(&path))?);
        } else if let Some(text) = env::var("EXTMEM_CACHE_KEY").ok().filter(|key| !key.is_empty()) {
            policy.key = Some(CacheKey::from_hex(&text)?);
        }
        Ok(policy)
    }
}

/// The cache in `directory`, opened once for the process. `None`, with one warning, if it cannot be
/// opened: whoever reads goes on without.
pub(crate) fn open(directory: &Path) -> Option<Cache> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let place = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    if let Some(cache) = shared.open.get(&place).and_then(Cache::upgrade) {
        return Some(cache);
    }
    let opened = CachePolicy::from_environment().and_then(|policy| Cache::open(&place, policy));
    match opened {
        Ok(cache) => {
            shared.open.retain(|_, cache| cache.strong_count() > 0);
            shared.open.insert(place, cache.downgrade());
            Some(cache)
        }
        Err(error) => {
            if shared.warned.insert(place) {
                warn!(%error, "reading without the disk cache");
            }
            None
        }
    }
}

/// Waits until what was read through the caches that addresses and the environment name is on its way
/// to the disk: for a program that is done, before it lets go of its sources and ends.
///
/// A cache that is dropped waits for its last blocks as well. But the last to drop it may be a thread of a
/// runtime that shuts down, and the end of a program does not wait for that.
///
/// Blocks the thread, for ten seconds where the disk takes nothing; that is warned of, and no error.
pub fn flush_all() {
    let open: Vec<Cache> = {
        let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.open.values().filter_map(Cache::upgrade).collect()
    };
    if open.is_empty() {
        return;
    }
    // On a thread of its own: this one may be a runtime's.
    let flushed = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        open.iter().try_for_each(|cache| runtime.block_on(cache.flush()))
    });
    if let Ok(Err(error)) = flushed.join() {
        warn!(%error, "leaving the disk cache");
    }
}
