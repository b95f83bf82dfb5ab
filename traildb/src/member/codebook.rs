//! `trails.codebook`: what each 16-bit window of the stream decodes to (FORMAT.md B1-B5).
//!
//! ```text
//!   file     65536 entries of 20 bytes: u128 symbol (two items), u32 length of the code word
//!   memory   first     by the next 11 bits: where in the second table to look, and by how many bits
//!                      more, as many as the longest code word that starts so has; 8 KB, which stay
//!                      in the first cache
//!            second    a symbol and the length of its code word; one for each short code word, and
//!                      about one for each long one
//!
//!   entry    0-4 length | 5 wide | 6-12 field, 14-34 value | 35-41 field, 43-63 value
//! ```
//!
//! Always two looks, rather than one for short code words: how long the next one is cannot be guessed,
//! and a wrong guess of the processor costs more than a look. An entry is its symbol, both items as they
//! are: nothing is looked up behind it but items that are too wide for it.

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
/// The low bits of a first entry: how many bits more choose the second.
const MORE_BITS: u32 = 3;
/// The low bits of a second entry: the length of the code word, 0 in an unused one, or with `WIDE`, of
/// one whose symbol is found by its number.
const KIND_BITS: u32 = 6;
const WIDE: u64 = 1 << 5;
/// Bits of an item in an entry, if it fits: a narrow one of a value below 2^21.
const ITEM_BITS: u32 = 29;

/// What a code word stands for: one item or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symbol {
    /// The first item. A time item is its delta times 256, whatever the delta: like a narrow item.
    pub(crate) first: u64,
    /// The second item, if `second_field` is not 0.
    pub(crate) second: u64,
    pub(crate) first_field: u16,
    pub(crate) second_field: u16,
}

/// The codebook, made small and quick to look up.
#[derive(Debug)]
pub(crate) struct Codebook {
    first: Box<[u32; 1 << FIRST_BITS]>,
    /// The first is unused: what no code word starts like leads there.
    second: Box<[u64]>,
    /// Symbols that do not fit in an entry.
    wide: Vec<Symbol>,
}

impl Codebook {
    /// The codebook of a database without trails.
    pub(crate) fn empty() -> Codebook {
        let first = Box::new([0; 1 << FIRST_BITS]);
        Codebook { first, second: Box::new([0]), wide: Vec::new() }
    }

    /// The code word at the start of `bits`: its symbol and its length, or `None` when no code word
    /// starts like this.
    #[inline(always)]
    pub(crate) fn find(&self, bits: u64) -> Option<(Symbol, u32)> {
        let place = self.first[bits as usize & ((1 << FIRST_BITS) - 1)];
        let more = (1u64 << (place & ((1 << MORE_BITS) - 1))) - 1;
        let place = u64::from(place >> MORE_BITS) + (bits >> FIRST_BITS & more);
        let entry = *self.second.get(place as usize)?;
        let kind = entry & ((1 << KIND_BITS) - 1);
        if kind.wrapping_sub(1) >= u64::from(CODE_BITS_MAX) {
            return self.find_wide(entry);
        }
        let first = entry >> KIND_BITS & ((1 << ITEM_BITS) - 1);
        let second = entry >> (KIND_BITS + ITEM_BITS);
        let symbol = Symbol {
            first,
            second,
            first_field: (first & 127) as u16,
            second_field: (second & 127) as u16,
        };
        Some((symbol, kind as u32))
    }

    #[cold]
    fn find_wide(&self, entry: u64) -> Option<(Symbol, u32)> {
        let bits = (entry & ((1 << KIND_BITS) - 1)).checked_sub(WIDE)?;
        let symbol = self.wide.get((entry >> KIND_BITS) as usize)?;
        Some((*symbol, bits as u32))
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

        // How many bits the longest code word has beyond the first eleven, for each of those.
        let mut more = vec![0u32; 1 << FIRST_BITS];
        for &(bits, at) in owners.iter().filter(|owner| owner.0 > FIRST_BITS) {
            let more = &mut more[at & ((1 << FIRST_BITS) - 1)];
            *more = (*more).max(bits - FIRST_BITS);
        }
        let mut first = Box::new([0u32; 1 << FIRST_BITS]);
        let mut second = vec![0u64];
        let mut wide = Vec::new();
        for (bits, at) in owners {
            let symbol = match version {
                0 => Symbol::parse_v0(entry(at)),
                _ => Symbol::parse(entry(at)),
            };
            let symbol =
                symbol.and_then(|symbol| symbol.check(counts)).map_err(|e| damaged(at, e))?;
            let packed = symbol.pack(bits, &mut wide);
            let starts_alike = || damaged(at, "its code word starts with another one".into());
            // At most 65536 entries, so places have 17 bits.
            let place = (second.len() as u32) << MORE_BITS;
            if bits <= FIRST_BITS {
                second.push(packed);
                for slot in first[at..].iter_mut().step_by(1 << bits) {
                    if *slot != 0 {
                        return Err(starts_alike());
                    }
                    *slot = place;
                }
                continue;
            }
            let prefix = at & ((1 << FIRST_BITS) - 1);
            let more = more[prefix];
            if first[prefix] == 0 {
                first[prefix] = place | more;
                second.resize(second.len() + (1 << more), 0);
            } else if first[prefix] & ((1 << MORE_BITS) - 1) == 0 {
                return Err(starts_alike());
            }
            let base = (first[prefix] >> MORE_BITS) as usize;
            let table = &mut second[base..base + (1 << more)];
            for slot in table[at >> FIRST_BITS..].iter_mut().step_by(1 << (bits - FIRST_BITS)) {
                if *slot != 0 {
                    return Err(starts_alike());
                }
                *slot = packed;
            }
        }
        Ok(Codebook { first, second: second.into_boxed_slice(), wide })
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
        let first = if a.field() == 0 { a.value() << 8 } else { a.raw() };
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

    /// The entry of a code word of `bits` bits; the symbol goes to `wide` if it does not fit.
    fn pack(self, bits: u32, wide: &mut Vec<Symbol>) -> u64 {
        let bits = u64::from(bits);
        let Symbol { first, second, .. } = self;
        // A narrow item, and a delta like one, has bit 7 clear, as what reads entries expects.
        let fits = |item: u64| item >> ITEM_BITS == 0 && item >> 7 & 1 == 0;
        if fits(first) && fits(second) {
            return second << (KIND_BITS + ITEM_BITS) | first << KIND_BITS | bits;
        }
        wide.push(self);
        (wide.len() as u64 - 1) << KIND_BITS | WIDE | bits
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
