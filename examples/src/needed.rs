//! Which bytes a query needs: what no reader can do without, counted in units.

use std::{
    collections::BTreeSet,
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use traildb::{Reader, Storage, Uuid, storage::File};

use crate::query;

/// A storage that writes down which units are read through it.
struct Recording {
    file: File,
    units: Arc<Mutex<Units>>,
}

struct Units {
    unit_bytes: u64,
    on: bool,
    touched: BTreeSet<u64>,
}

impl Recording {
    fn note(&self, range: Range<u64>) {
        let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
        if units.on && !range.is_empty() {
            let unit = units.unit_bytes;
            units.touched.extend(range.start / unit..=(range.end - 1) / unit);
        }
    }
}

impl Storage for Recording {
    type Bytes<'a> = Vec<u8>;

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn name(&self) -> &str {
        self.file.name()
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.note(range.clone());
        self.file.bytes(range)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.note(at..at + buf.len() as u64);
        self.file.read(at, buf)
    }
}

/// Bytes of the units that hold what the query for `users` needs: header, fields and codebook, and
/// for each user the entry of the UUID, the trail's place, the trail and its values.
///
/// Looking for a UUID is no need: one unit is counted for it, however many a search reads.
///
/// # Errors
/// When the file cannot be read.
pub fn bytes(path: &Path, users: &[Uuid], unit_bytes: u64) -> Result<u64, String> {
    let units = Units { unit_bytes, on: true, touched: BTreeSet::new() };
    let units = Arc::new(Mutex::new(units));
    let record = |on| units.lock().unwrap_or_else(PoisonError::into_inner).on = on;
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let text = |e: traildb::Error| e.to_string();
    let reader = Reader::new(Recording { file, units: units.clone() }).map_err(text)?;
    record(false);
    let trails = reader.trail_ids(users).map_err(text)?;
    record(true);
    query::events_of_trails(&reader, &trails, || {}).map_err(text)?;
    let touched = units.lock().unwrap_or_else(PoisonError::into_inner).touched.len() as u64;
    let len = path.metadata().map_err(|e| format!("{}: {e}", path.display()))?.len();
    Ok(len.min((touched + users.len() as u64) * unit_bytes))
}
