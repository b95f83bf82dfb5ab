//! `trails.codebook`: what each 16-bit window of the stream decodes to (FORMAT.md B1-B5).
//!
//! ```text
//!   file     65536 entries of 20 bytes: u128 symbol (two items), u32 length of the code word
//!   memory   first     by the next 11 bits, flag included: where in the second table to look, and by
//!                      how many bits more, as many as the longest symbol that starts so has; or how
//!                      many bits of value a literal has. 8 KB, which stay in the first cache
//!            second    a symbol and its length; one for each short code word and for each field of
//!                      a literal, and about one for each long code word
//!
//!   entry    two narrow items as they are; of one item alone, also its field in place of the other
//!   length   flag included, in a table of its own, which is smaller; 0: ask by another way
//! ```
//!
//! Always two looks, rather than one for short code words, and the same two for a literal: neither how
//! long the next symbol is nor what kind it is of can be guessed, and a wrong guess of the processor
//! costs more than a look. An entry is its symbol, both items as they are: nothing is looked up behind
//! it but items that are too wide for it.

use crate::{
    bits,
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
const FIRST: usize = (1 << FIRST_BITS) - 1;
/// A first entry: a mask of the bits that come next, which are added to a place in the second table,
/// which comes then; and at last the kind of literal, 0 for a code word.
const MORE_BITS: u32 = CODE_BITS_MAX + 1 - FIRST_BITS;
const MORE: u32 = (1 << MORE_BITS) - 1;
const LITERAL_BITS: u32 = 4;
const PLACE_AT: u32 = MORE_BITS;
const KIND_AT: u32 = u32::BITS - LITERAL_BITS;
/// More than there are code words and fields together. Only what is in use takes memory.
const PLACES: usize = 1 << 17;
/// Databases with at most so many fields, time included, have their literals in the tables.
pub(crate) const FIELDS_NARROW: usize = 8;

/// What a code word or literal stands for: one item or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Symbol {
    /// The first item. A time item is its delta times 256, whatever the delta: like a narrow item.
    pub(crate) first: u64,
    /// The second item, if `second_field` is not 0.
    pub(crate) second: u64,
    pub(crate) first_field: u16,
    pub(crate) second_field: u16,
}

/// What literals are made of (FORMAT.md T6).
#[derive(Debug)]
pub(crate) struct Literals {
    /// Bits of the field.
    field_bits: u32,
    /// For each field, the time first, bits of the value, and the greatest value.
    pub(crate) fields: Vec<(u32, u64)>,
    /// Whether one look at the stream shows any literal whole.
    short: bool,
}

impl Literals {
    /// Of a database with these greatest values of its fields, and that greatest delta.
    pub(crate) fn new(delta_max: u64, counts: impl IntoIterator<Item = u64>) -> Literals {
        let time = (bits::width(delta_max), u64::MAX);
        let values = counts.into_iter().map(|count| (bits::width(count), count));
        let fields: Vec<(u32, u64)> = std::iter::once(time).chain(values).collect();
        let field_bits = bits::width(fields.len() as u64);
        let value_bits = fields.iter().map(|&(bits, _)| bits).max().unwrap_or(0);
        Literals { field_bits, fields, short: 1 + field_bits + value_bits <= bits::PEEK_BITS }
    }

    /// The literal at `bit` of `bytes`, where `word` was peeked, and its bits. The error is a reason.
    #[inline(always)]
    fn read(&self, bytes: &[u8], bit: u64, word: u64) -> Result<(Symbol, u32), &'static str> {
        let field = bits::low(word >> 1, self.field_bits);
        let Some(&(value_bits, value_max)) = self.fields.get(field as usize) else {
            return Err("a literal of a field that does not exist");
        };
        let before = 1 + self.field_bits;
        let value = match self.short {
            true => bits::low(word >> before, value_bits),
            // A literal may have 63 bits, and a peek is good for 57: the value gets its own.
            false => bits::low(bits::peek(bytes, bit + u64::from(before)), value_bits),
        };
        if value > value_max {
            return Err("a literal of a value that does not exist");
        }
        let field = field as u16;
        let first = if field == 0 { value << 8 } else { Item::pack(field, value).raw() };
        let symbol = Symbol { first, second: 0, first_field: field, second_field: 0 };
        Ok((symbol, before + value_bits))
    }
}

/// The codebook, made small and quick to look up, and the literals beside it.
#[derive(Debug)]
pub(crate) struct Codebook {
    first: [u32; 1 << FIRST_BITS],
    /// The first is unused: what no symbol starts like leads there.
    second: Box<[u64; PLACES]>,
    /// The lengths in the second: who goes on waits for these alone, and they stay in nearer caches.
    lengths: Box<[u8; PLACES]>,
    /// Symbols that do not fit in an entry.
    wide: Vec<Symbol>,
    literals: Literals,
    /// By the kind of literal, that is 1 + its field: where its value is in the stream, and the greatest
    /// one in that place.
    masks: [u64; 1 << LITERAL_BITS],
    values_max: [u64; 1 << LITERAL_BITS],
    /// What a value in its place is multiplied by to be where it is in an item.
    value_unit: u64,
}

/// A symbol that was found, and not looked at yet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Word {
    /// Its place in the second table.
    pub(crate) place: u32,
    /// The value of a literal, where it is in the stream; else 0.
    pub(crate) value: u64,
}

/// The bits of a length that [`Codebook::find`] returns that are the length, and the one that says that
/// the symbol has the item that was marked.
pub(crate) const LENGTH: u8 = MARK - 1;
pub(crate) const MARK: u8 = 1 << 7;

/// The lengths of symbols, and which of them have an item.
#[derive(Debug)]
pub(crate) struct Marked {
    lengths: Box<[u8; PLACES]>,
    values: [u64; 1 << LITERAL_BITS],
}

impl Marked {
    pub(crate) fn marks(&self) -> Marks<'_> {
        Marks { lengths: &self.lengths, values: &self.values }
    }
}

/// The same, or lengths without marks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks<'m> {
    /// By the place in the second table.
    lengths: &'m [u8; PLACES],
    /// By the kind of literal, the value of the item, where it is in the stream.
    values: &'m [u64; 1 << LITERAL_BITS],
}

/// No literal has a value of so many bits.
const NO_VALUES: [u64; 1 << LITERAL_BITS] = [u64::MAX; 1 << LITERAL_BITS];

/// What two looks at the tables show. Fields are the lowest 7 bits of items.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// As in a [`Symbol`].
    pub(crate) first: u64,
    /// The same, or the field of the first item if that is alone. The two are of one field in no other
    /// case.
    pub(crate) second: u64,
    /// The length of the symbol, flag included; 0 when [`symbol`](Codebook::symbol) knows more.
    pub(crate) bits: u64,
    /// Whether a literal has a value that there is.
    pub(crate) exists: bool,
}

/// The second table, and what the values of literals are multiplied by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries<'c> {
    second: &'c [u64; PLACES],
    value_unit: u64,
}

impl Entries<'_> {
    /// Both items of a symbol, as those of a [`Look`]. What is above its place is passed over.
    #[inline(always)]
    pub(crate) fn items(self, Word { place, value }: Word) -> [u64; 2] {
        let entry = self.second[place as usize & (PLACES - 1)];
        let first = entry & u64::from(u32::MAX);
        [first.wrapping_add(value.wrapping_mul(self.value_unit)), entry >> 32]
    }
}

impl Codebook {
    /// The codebook of a database without trails.
    pub(crate) fn empty(literals: Literals) -> Codebook {
        let (second, lengths) = (vec![0; PLACES], vec![0; PLACES]);
        Codebook::new([0; 1 << FIRST_BITS], second, lengths, 1, Vec::new(), literals)
    }

    /// Puts the literals of `literals` in the tables, after `used` places.
    fn new(
        mut first: [u32; 1 << FIRST_BITS],
        mut second: Vec<u64>,
        mut lengths: Vec<u8>,
        used: usize,
        wide: Vec<Symbol>,
        literals: Literals,
    ) -> Codebook {
        let (mut masks, mut values_max) = ([0; 1 << LITERAL_BITS], [0; 1 << LITERAL_BITS]);
        let value_at = 1 + literals.field_bits;
        if literals.fields.len() <= FIELDS_NARROW {
            for (field, &(bits, max)) in literals.fields.iter().enumerate() {
                let length = value_at + bits;
                let narrow = field == 0 || max < 1 << 24;
                if length > bits::PEEK_BITS || !narrow {
                    continue;
                }
                let (place, kind) = (used + field, field + 1);
                let mask = (1 << bits) - 1;
                (masks[kind], values_max[kind]) = (mask << value_at, max.min(mask) << value_at);
                second[place] = pack(field as u64, field as u64);
                lengths[place] = length as u8;
                for slot in first[field << 1..].iter_mut().step_by(1 << value_at) {
                    *slot = (place as u32) << PLACE_AT | (kind as u32) << KIND_AT;
                }
            }
        }
        let lengths = lengths.into_boxed_slice().try_into().expect("so many were made");
        let second = second.into_boxed_slice().try_into().expect("so many were made");
        // Items have their value from bit 8 on; with few fields, literals have it before.
        let value_unit = 1 << 8u32.saturating_sub(value_at);
        Codebook { first, second, lengths, wide, literals, masks, values_max, value_unit }
    }

    /// Number of fields, the time included.
    pub(crate) fn fields(&self) -> usize {
        self.literals.fields.len()
    }

    /// The symbol that `word` starts with. Literals only of databases with few fields.
    #[inline(always)]
    pub(crate) fn look(&self, word: u64) -> Look {
        let place = self.first[word as usize & FIRST];
        let more = (word >> FIRST_BITS) as u32 & place & MORE;
        let at = (place >> PLACE_AT).wrapping_add(more);
        let at = at as usize & (PLACES - 1);
        let entry = self.second[at];
        let kind = (place >> KIND_AT) as usize;
        let value = word & self.masks[kind];
        let first = entry & u64::from(u32::MAX);
        Look {
            first: first.wrapping_add(value.wrapping_mul(self.value_unit)),
            second: entry >> 32,
            bits: u64::from(self.lengths[at]),
            exists: value <= self.values_max[kind],
        }
    }

    /// The symbol that `peeked` starts with, without a look at the second table, and its length, flag
    /// included, with [`MARK`] if it has the item that is marked. `None` if [`symbol`](Codebook::symbol)
    /// knows more. Literals only of databases with few fields.
    #[inline(always)]
    pub(crate) fn find(&self, marks: Marks<'_>, peeked: u64) -> Option<(Word, u8)> {
        let slot = self.first[peeked as usize & FIRST];
        let more = (peeked >> FIRST_BITS) as u32 & slot & MORE;
        let place = (slot >> PLACE_AT).wrapping_add(more) & (PLACES as u32 - 1);
        let length = marks.lengths[place as usize];
        let kind = (slot >> KIND_AT) as usize;
        let value = peeked & self.masks[kind];
        if length == 0 || value > self.values_max[kind] {
            return None;
        }
        let length = if value == marks.values[kind] { marked(length) } else { length };
        Some((Word { place, value }, length))
    }

    /// What symbols that were [found](Codebook::find) stand for.
    #[inline(always)]
    pub(crate) fn entries(&self) -> Entries<'_> {
        Entries { second: &self.second, value_unit: self.value_unit }
    }

    /// Lengths where nothing is marked.
    pub(crate) fn unmarked(&self) -> Marks<'_> {
        Marks { lengths: &self.lengths, values: &NO_VALUES }
    }

    /// Lengths where symbols are marked that have an item of that field, no NULL. Those that
    /// [`find`](Codebook::find) does not find are not.
    pub(crate) fn mark(&self, field: usize, item: Item) -> Marked {
        let mut marked = Marked { lengths: self.lengths.clone(), values: NO_VALUES };
        for (length, &entry) in marked.lengths.iter_mut().zip(self.second.iter()) {
            // Of one item alone the other half is its field, which is no item but NULL.
            let has = entry & u64::from(u32::MAX) == item.0 || entry >> 32 == item.0;
            if has && *length > 0 {
                *length |= MARK;
            }
        }
        // Values of literals in the tables are those of narrow items.
        let literal = self.masks.get(field + 1).is_some_and(|&mask| mask > 0);
        if literal && item.0 >> 32 == 0 {
            marked.values[field + 1] = (item.0 >> 8 << 8) / self.value_unit;
        }
        marked
    }

    /// The symbol at `bit` of `bytes`, where `word` was peeked (T5, T6), and its bits. The error is a
    /// reason.
    #[inline(always)]
    pub(crate) fn symbol(
        &self,
        bytes: &[u8],
        bit: u64,
        word: u64,
    ) -> Result<(Symbol, u32), &'static str> {
        if word & 1 == 0 {
            return self.literals.read(bytes, bit, word);
        }
        let Look { first, second, bits, .. } = self.look(word);
        if bits == 0 {
            return self.find_wide(first, second);
        }
        let (first_field, second_field) = ((first & 127) as u16, (second & 127) as u16);
        let symbol = match first_field == second_field {
            true => Symbol { first, second: 0, first_field, second_field: 0 },
            false => Symbol { first, second, first_field, second_field },
        };
        Ok((symbol, bits as u32))
    }

    /// The same, for the rare.
    #[cold]
    #[inline(never)]
    pub(crate) fn rare_symbol(
        &self,
        bytes: &[u8],
        bit: u64,
        word: u64,
    ) -> Result<(Symbol, u32), &'static str> {
        self.symbol(bytes, bit, word)
    }

    /// An entry without a length has its symbol's place in `first` and its length in `second`.
    #[cold]
    fn find_wide(&self, place: u64, bits: u64) -> Result<(Symbol, u32), &'static str> {
        let symbol = self.wide.get(place as usize).filter(|_| bits > 0);
        Ok((*symbol.ok_or("no code word starts like this")?, bits as u32))
    }

    /// The size that the member must have.
    pub(crate) fn bytes(version: u64) -> u64 {
        (ENTRIES * if version == 0 { ENTRY_BYTES_V0 } else { ENTRY_BYTES }) as u64
    }

    /// Reads and checks the table.
    pub(crate) fn read<S: Storage>(
        members: &Members<S>,
        member: &Member,
        version: u64,
        literals: Literals,
    ) -> Result<Codebook, Error> {
        let counts: Vec<u64> = literals.fields.iter().map(|&(_, count)| count).collect();
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

        // From here on a code word has its flag in front. How many bits the longest one has beyond the
        // first eleven, for each of those.
        let flagged = |at: usize| at << 1 | 1;
        let mut more = vec![0u32; 1 << FIRST_BITS];
        for &(bits, at) in owners.iter().filter(|owner| owner.0 + 1 > FIRST_BITS) {
            let more = &mut more[flagged(at) & FIRST];
            *more = (*more).max(bits + 1 - FIRST_BITS);
        }
        let mut first = [0u32; 1 << FIRST_BITS];
        let (mut second, mut lengths, mut used) = (vec![0u64; PLACES], vec![0u8; PLACES], 1);
        let mut wide = Vec::new();
        for (bits, at) in owners {
            let symbol = match version {
                0 => Symbol::parse_v0(entry(at)),
                _ => Symbol::parse(entry(at)),
            };
            let symbol =
                symbol.and_then(|symbol| symbol.check(&counts)).map_err(|e| damaged(at, e))?;
            let length = bits + 1;
            let (packed, stored) = symbol.pack(length, &mut wide);
            let starts_alike = || damaged(at, "its code word starts with another one".into());
            // Code words of one length differ, and each place is for at least one window of 16 bits:
            // there are at most 65536.
            let place = (used as u32) << PLACE_AT;
            if length <= FIRST_BITS {
                (second[used], lengths[used]) = (packed, stored);
                used += 1;
                for slot in first[flagged(at)..].iter_mut().step_by(1 << length) {
                    if *slot != 0 {
                        return Err(starts_alike());
                    }
                    *slot = place;
                }
                continue;
            }
            let prefix = flagged(at) & FIRST;
            let more = more[prefix];
            if first[prefix] == 0 {
                first[prefix] = place | ((1 << more) - 1);
                used += 1 << more;
            } else if first[prefix] & MORE == 0 {
                return Err(starts_alike());
            }
            let base = (first[prefix] >> PLACE_AT) as usize;
            for at in (flagged(at) >> FIRST_BITS..1 << more).step_by(1 << (length - FIRST_BITS)) {
                let slot = base + at;
                if (second[slot], lengths[slot]) != (0, 0) {
                    return Err(starts_alike());
                }
                (second[slot], lengths[slot]) = (packed, stored);
            }
        }
        Ok(Codebook::new(first, second, lengths, used, wide, literals))
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

    /// The entry of a symbol of `length` bits, and the length beside it; it goes to `wide` if it does not
    /// fit.
    fn pack(self, length: u32, wide: &mut Vec<Symbol>) -> (u64, u8) {
        let Symbol { first, second, first_field, second_field } = self;
        // A narrow item, and a delta like one, has bit 7 clear, as what reads entries expects.
        let fits = |item: u64| item >> 32 == 0 && item >> 7 & 1 == 0;
        // Two items of one field, which nobody writes, would look like one.
        let alone = second == 0;
        if fits(first) && fits(second) && (alone || first_field != second_field) {
            let second = if alone { u64::from(first_field) } else { second };
            return (pack(first, second), length as u8);
        }
        wide.push(self);
        (pack(wide.len() as u64 - 1, u64::from(length)), 0)
    }

    /// Both items for a sparse row: the second, which is written first, may be but a shadow.
    pub(crate) fn sparse(self) -> [u64; 2] {
        let Symbol { first, second, first_field, second_field } = self;
        match second_field {
            0 => [first, u64::from(first_field)],
            // The later one counts.
            field if field == first_field => [second, second],
            _ => [first, second],
        }
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

/// An entry of the second table.
fn pack(first: u64, second: u64) -> u64 {
    second << 32 | first
}

/// Where a literal has the value that is marked, which is so rare that a branch is the cheapest.
#[cold]
#[inline(never)]
fn marked(length: u8) -> u8 {
    length | MARK
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
