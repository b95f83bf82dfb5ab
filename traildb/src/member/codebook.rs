//! `trails.codebook`: what each 16-bit window of the stream decodes to (FORMAT.md B1-B5).
//!
//! ```text
//!   file     65536 entries of 20 bytes: u128 symbol (two items), u32 length of the code word
//!   memory   first level   2048 entries by the next 11 bits: 8 KB, which stays in the first cache
//!            second level  65536 entries by the next 16 bits, for longer code words
//!            symbols       the distinct ones, shortest code word first
//! ```

use crate::{
    container::{Member, Members},
    error::Error,
    item::Item,
    storage::Storage,
};

/// The longest code word, in bits.
pub(crate) const CODE_BITS_MAX: u32 = 16;
const ENTRIES: usize = 1 << CODE_BITS_MAX;
const ENTRY_BYTES: usize = 20;
const ENTRY_BYTES_V0: usize = 12;
/// The size of the member in version 1, in bytes.
pub(crate) const BYTES: u64 = (ENTRIES * ENTRY_BYTES) as u64;

const FIRST_BITS: u32 = 11;
/// An entry is `symbol number << 5 | code length`; 0 is an unused entry.
const LENGTH_BITS: u32 = 5;

/// What a code word stands for: one item or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symbol {
    /// The first item; for a time item its delta.
    pub(crate) first: u64,
    /// The second item, if `second_field` is not 0.
    pub(crate) second: u64,
    pub(crate) first_field: u16,
    pub(crate) second_field: u16,
}

/// The codebook, made small and quick to look up.
#[derive(Debug)]
pub(crate) struct Codebook {
    first: Box<[u32]>,
    second: Box<[u32]>,
    symbols: Vec<Symbol>,
}

impl Codebook {
    /// The codebook of a database without trails.
    pub(crate) fn empty() -> Codebook {
        let zeros = |n| vec![0; n].into_boxed_slice();
        Codebook { first: zeros(1 << FIRST_BITS), second: zeros(ENTRIES), symbols: Vec::new() }
    }

    /// The code word at the start of `bits`: its symbol and its length, or `None` when no code word
    /// starts like this.
    #[inline(always)]
    pub(crate) fn find(&self, bits: u64) -> Option<(&Symbol, u32)> {
        let mut entry = self.first[bits as usize & ((1 << FIRST_BITS) - 1)];
        if entry == 0 {
            entry = self.second[bits as usize & (ENTRIES - 1)];
            if entry == 0 {
                return None;
            }
        }
        let symbol = self.symbols.get((entry >> LENGTH_BITS) as usize)?;
        Some((symbol, entry & ((1 << LENGTH_BITS) - 1)))
    }

    /// The size that the member must have.
    pub(crate) fn bytes(version: u64) -> u64 {
        (ENTRIES * if version == 0 { ENTRY_BYTES_V0 } else { ENTRY_BYTES }) as u64
    }

    /// Reads and checks the table. `counts[f]` is the greatest value number of field f.
    pub(crate) fn read<S: Storage>(
        members: &Members<S>,
        member: &Member,
        version: u64,
        counts: &[u64],
    ) -> Result<Codebook, Error> {
        if member.len != Codebook::bytes(version) {
            let reason =
                format!("{} bytes where {} are expected", member.len, Codebook::bytes(version));
            return Err(member.damaged(members, 0, reason));
        }
        let bytes = members.read_whole(member, BYTES)?;
        let entry_bytes = bytes.len() / ENTRIES;
        let damaged = |entry: usize, reason: String| {
            member.damaged(
                members,
                (entry * entry_bytes) as u64,
                format!("entry {entry}: {reason}"),
            )
        };
        let entry = |at: usize| &bytes[at * entry_bytes..(at + 1) * entry_bytes];
        let length = |entry: &[u8]| {
            u32::from_le_bytes(entry[entry_bytes - 4..].try_into().expect("four bytes"))
        };

        // A code word of n bits fills every entry whose low n bits it is; the first of these, which
        // has no other bits, stands for all of them (B3).
        let mut owners = Vec::new();
        for at in 0..ENTRIES {
            let bits = length(entry(at));
            if bits > CODE_BITS_MAX {
                return Err(damaged(at, format!("a code word of {bits} bits")));
            }
            if bits == 0 {
                continue;
            }
            let owner = at & ((1 << bits) - 1);
            if owner == at {
                owners.push((bits, at));
            } else if entry(owner) != entry(at) {
                return Err(damaged(
                    at,
                    format!("differs from entry {owner}, whose code word it has"),
                ));
            }
        }
        owners.sort_unstable();

        let mut second = vec![0u32; ENTRIES].into_boxed_slice();
        let mut symbols = Vec::with_capacity(owners.len());
        for (bits, at) in owners {
            let symbol = match version {
                0 => Symbol::parse_v0(entry(at)),
                _ => Symbol::parse(entry(at)),
            };
            let symbol =
                symbol.and_then(|symbol| symbol.check(counts)).map_err(|e| damaged(at, e))?;
            let packed = (symbols.len() as u32) << LENGTH_BITS | bits;
            symbols.push(symbol);
            for slot in second[at..].iter_mut().step_by(1 << bits) {
                if *slot != 0 {
                    return Err(damaged(at, "its code word starts with another one".into()));
                }
                *slot = packed;
            }
        }
        let short = |entry: u32| entry & ((1 << LENGTH_BITS) - 1) <= FIRST_BITS;
        let first = second[..1 << FIRST_BITS].iter().map(|&e| if short(e) { e } else { 0 });
        Ok(Codebook { first: first.collect(), second, symbols })
    }
}

impl Symbol {
    fn new(first: u64, second: u64) -> Result<Symbol, String> {
        let refuse = |raw: u64| format!("{raw:#x} is not an item");
        let a = Item::from_raw(first).ok_or_else(|| refuse(first))?;
        let b = Item::from_raw(second).ok_or_else(|| refuse(second))?;
        if second != 0 && b.field() == 0 {
            return Err("a time item in second place".into());
        }
        let first = if a.field() == 0 { a.value() } else { a.raw() };
        Ok(Symbol { first, second, first_field: a.field(), second_field: b.field() })
    }

    fn parse(entry: &[u8]) -> Result<Symbol, String> {
        let word =
            |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("eight bytes"));
        Symbol::new(word(0), word(8))
    }

    /// Version 0: two narrow items of 32 bits.
    fn parse_v0(entry: &[u8]) -> Result<Symbol, String> {
        let word = |at: usize| {
            u64::from(u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes")))
        };
        Symbol::new(word(0), word(4))
    }

    /// Both items must be of this database. A time item is bounded by checked addition instead.
    fn check(self, counts: &[u64]) -> Result<Symbol, String> {
        let item = |field: u16, item: u64| {
            let value = Item(item).value();
            match counts.get(usize::from(field)) {
                None => Err(format!("field {field} of {}", counts.len())),
                Some(&count) if field > 0 && value > count => {
                    Err(format!("value {value} of field {field}, which has {count}"))
                }
                Some(_) => Ok(()),
            }
        };
        item(self.first_field, self.first)?;
        item(self.second_field, self.second)?;
        Ok(self)
    }
}

/// A code word: its bits, the first of the stream lowest, and their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    pub(crate) word: u16,
    pub(crate) bits: u8,
}

/// The table of these symbols (first item, second item or 0) and code words.
pub(crate) fn write(codes: impl IntoIterator<Item = ((u64, u64), Code)>) -> Vec<u8> {
    let mut bytes = vec![0; ENTRIES * ENTRY_BYTES];
    for ((first, second), code) in codes {
        for at in (usize::from(code.word)..ENTRIES).step_by(1 << code.bits) {
            let entry = &mut bytes[at * ENTRY_BYTES..(at + 1) * ENTRY_BYTES];
            entry[..8].copy_from_slice(&first.to_le_bytes());
            entry[8..16].copy_from_slice(&second.to_le_bytes());
            entry[16..].copy_from_slice(&u32::from(code.bits).to_le_bytes());
        }
    }
    bytes
}
