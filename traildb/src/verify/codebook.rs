//! `trails.codebook`: every entry (FORMAT.md I, B1-B5).

use super::{
    Log, Pace, need,
    stream::{Stream, number},
};
use crate::{container::Members, error::Error, item::Item, storage::Storage};

const ENTRIES: usize = 1 << 16;
const CODE_BITS_MAX: u64 = 16;

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    first: u64,
    second: u64,
    bits: u64,
}

/// Checks the codebook. `counts` are the numbers of values of the user fields. Returns whether
/// trails can be decoded with it.
pub(super) fn check<S: Storage>(
    members: &Members<S>,
    version: u64,
    trails: u64,
    counts: &[u64],
    log: &Log,
    pace: &Pace<'_>,
) -> Result<bool, Error> {
    const NAME: &str = "trails.codebook";
    // E1: nobody looks at it without trails.
    if trails == 0 && members.find(NAME).is_none() {
        return Ok(true);
    }
    let Some(member) = need(members, NAME, log) else { return Ok(false) };
    let (item_bytes, entry_bytes) = if version == 0 { (4, 12) } else { (8, 20) };
    let expected = (ENTRIES * entry_bytes) as u64;
    if member.len != expected {
        log.error(NAME, 0, format!("{} bytes where {expected} are expected", member.len));
        pace.add(member.len);
        return Ok(false);
    }
    let mut stream = Stream::new(members, &member, 0..expected, pace);
    let mut entries = Vec::with_capacity(ENTRIES);
    for _ in 0..ENTRIES {
        let bytes = stream.next(entry_bytes)?;
        let (items, bits) = bytes.split_at(2 * item_bytes);
        let (first, second) = items.split_at(item_bytes);
        entries.push(Entry { first: number(first), second: number(second), bits: number(bits) });
    }

    let mut sound = true;
    let mut error = |at: usize, reason: String| {
        sound = false;
        log.error(NAME, (at * entry_bytes) as u64, format!("entry {at}: {reason}"));
    };
    for (at, entry) in entries.iter().enumerate() {
        if entry.bits == 0 {
            if (entry.first, entry.second) != (0, 0) {
                log.warning(
                    NAME,
                    (at * entry_bytes) as u64,
                    format!("entry {at}: a symbol without a code word"),
                );
            }
            continue;
        }
        if entry.bits > CODE_BITS_MAX {
            error(at, format!("a code word of {} bits", entry.bits));
            continue;
        }
        let step = 1usize << entry.bits;
        let owner = at % step;
        if owner != at {
            if entries[owner] != *entry {
                error(at, format!("differs from entry {owner}, whose code word it has (B3)"));
            }
            continue;
        }
        if let Some(reason) = symbol(entry, counts) {
            error(at, reason);
        }
        for slot in (at..ENTRIES).step_by(step) {
            if entries[slot].bits != entry.bits {
                // A shorter or longer code word in a place that this one must fill. Told once.
                error(slot, format!("is not filled by entry {at}, whose code word it has (B4)"));
                break;
            }
        }
    }
    Ok(sound)
}

/// What is wrong with a symbol (I1, I2, B1, B2).
fn symbol(entry: &Entry, counts: &[u64]) -> Option<String> {
    let item = |raw: u64| {
        let item = Item::from_raw(raw).ok_or_else(|| format!("{raw:#x} is not an item"))?;
        let field = usize::from(item.field());
        match field.checked_sub(1).map(|field| counts.get(field)) {
            None => Ok(item),
            Some(None) => Err(format!("field {field} of {}", counts.len())),
            Some(Some(&count)) if item.value() > count => {
                Err(format!("value {} of field {field}, which has {count}", item.value()))
            }
            Some(Some(_)) => Ok(item),
        }
    };
    let (first, second) = match (item(entry.first), item(entry.second)) {
        (Ok(first), Ok(second)) => (first, second),
        (Err(reason), _) | (_, Err(reason)) => return Some(reason),
    };
    if entry.second != 0 && second.field() == 0 {
        return Some("a time item in second place (B2)".into());
    }
    (entry.second != 0 && first.field() == second.field())
        .then(|| format!("two items of field {}", first.field()))
}
