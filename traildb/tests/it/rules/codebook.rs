//! The codebook (B1 to B4) and the items in it (I1, I2).

use std::collections::HashSet;

use super::{little, rule};

/// A field and a number: of a value, or for field 0 a delta.
pub(super) type Pair = (u64, u64);

/// One entry: the items of its symbol, and the length of its code word.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) items: Vec<Pair>,
    pub(super) bits: u32,
}

pub(super) struct Codebook {
    /// `None` where no code word leads.
    pub(super) entries: Vec<Option<Entry>>,
    /// How many symbols of one item there are, and of two.
    pub(super) symbols: (usize, usize),
}

/// Takes an item apart (I1), in the one form that it has (I2).
fn item(raw: u64) -> Result<Pair, String> {
    let (field, number) = match raw >> 7 & 1 {
        0 => (raw & 0x7f, raw >> 8),
        _ => (raw & 0x7f | (raw >> 8 & 0x7f) << 7, raw >> 16),
    };
    let narrow = field < 128 && number < 1 << 24;
    let again = match narrow {
        true => number << 8 | field,
        false => number << 16 | (field >> 7) << 8 | 1 << 7 | field & 0x7f,
    };
    rule!(raw == again, "I2: item {raw:#x} should be {again:#x}");
    Ok((field, number))
}

/// Reads the member, whose fields have `counts` values each.
pub(super) fn read(member: &[u8], counts: &[u64], delta_max: u64) -> Result<Codebook, String> {
    rule!(member.len() == 65_536 * 20, "B1: {} bytes", member.len());
    let mut book = Codebook { entries: Vec::with_capacity(65_536), symbols: (0, 0) };
    for (at, raw) in member.chunks(20).enumerate() {
        let entry = entry(raw, counts, delta_max).map_err(|e| format!("{e}, in entry {at}"))?;
        book.entries.push(entry);
    }
    let mut known = HashSet::new();
    for (at, raw) in member.chunks(20).enumerate() {
        let Some(entry) = &book.entries[at] else { continue };
        // The code word is the low bits; every entry that ends with it is a copy of this one, so
        // no other word can start with it (B3, B4).
        let word = at & ((1 << entry.bits) - 1);
        let copies = (word..65_536).step_by(1 << entry.bits);
        if word == at {
            let same = |copy: usize| member[copy * 20..copy * 20 + 20] == *raw;
            rule!(copies.into_iter().all(same), "B3: the word of entry {at} is not everywhere");
            rule!(known.insert(&raw[..16]), "B4: the symbol of entry {at} has two words");
            match entry.items.len() {
                1 => book.symbols.0 += 1,
                _ => book.symbols.1 += 1,
            }
        } else {
            rule!(member[word * 20..word * 20 + 20] == *raw, "B3: entry {at} is no copy of {word}");
        }
    }
    Ok(book)
}

fn entry(raw: &[u8], counts: &[u64], delta_max: u64) -> Result<Option<Entry>, String> {
    let (first, second) = (little(&raw[..8]), little(&raw[8..16]));
    let bits = little(&raw[16..]) as u32;
    if bits == 0 {
        rule!(first == 0 && second == 0, "B1: a symbol without a word");
        return Ok(None);
    }
    rule!(bits <= 16, "B1: a word of {bits} bits");
    let mut items = vec![item(first)?];
    if second != 0 {
        items.push(item(second)?);
        rule!(items[1].0 != 0, "B2: a time item comes second");
        rule!(items[0].0 != items[1].0, "B2: two items of a field");
    }
    for &(field, number) in &items {
        let most = match field {
            0 => delta_max,
            _ => *counts.get(field as usize - 1).ok_or(format!("B1: an item of field {field}"))?,
        };
        rule!(number <= most, "B1: item ({field}, {number}), of {most}");
    }
    Ok(Some(Entry { items, bits }))
}
