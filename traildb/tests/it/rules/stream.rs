//! Trails as bits, and the events in them (T3 to T10).

use super::{Info, codebook::Codebook, codebook::Pair, digits, rule};
use crate::support::Row;

/// What the events are, to be compared with what the members say that they are.
pub(super) struct Seen {
    events: u64,
    time_min: u64,
    time_max: u64,
    delta_max: u64,
    /// Whether each value of each field occurs.
    values: Vec<Vec<bool>>,
}

impl Seen {
    pub(super) fn new(lexicons: &[Vec<Vec<u8>>]) -> Seen {
        let values = lexicons.iter().map(|values| vec![false; values.len()]).collect();
        Seen { events: 0, time_min: u64::MAX, time_max: 0, delta_max: 0, values }
    }

    /// Whether `info` told the truth (N2, L4).
    pub(super) fn agrees(&self, info: &Info) -> Result<(), String> {
        rule!(self.events == info.events, "N2: {} events, not {}", self.events, info.events);
        rule!(self.time_min == info.time_min, "N2: from {}, not {}", self.time_min, info.time_min);
        rule!(self.time_max == info.time_max, "N2: to {}, not {}", self.time_max, info.time_max);
        let (seen, told) = (self.delta_max, info.delta_max);
        rule!(seen == told, "N2: the greatest delta is {seen}, not {told}");
        rule!(info.time_min <= (1 << 47) - 2 && told <= (1 << 47) - 2, "L4: {}", info.time_min);
        Ok(())
    }

    /// How many values of lexicons are in no event. The format does not forbid them.
    pub(super) fn unused(&self) -> usize {
        self.values.iter().flatten().filter(|used| !**used).count()
    }
}

/// The bits of one trail.
struct Bits<'b> {
    bytes: &'b [u8],
    at: usize,
    end: usize,
}

impl Bits<'_> {
    /// The next bit; behind the end of the trail there are only zeros.
    fn bit(&mut self) -> u64 {
        let bit = match self.at < self.end {
            true => self.bytes[self.at / 8] >> (self.at % 8) & 1,
            false => 0,
        };
        self.at += 1;
        u64::from(bit)
    }

    /// A number of `n` bits, the lowest first.
    fn number(&mut self, n: u32) -> u64 {
        (0..n).fold(0, |number, place| number | self.bit() << place)
    }
}

/// The events of the trail in `bytes`.
pub(super) fn events(
    bytes: &[u8],
    info: &Info,
    lexicons: &[Vec<Vec<u8>>],
    book: &Codebook,
    seen: &mut Seen,
) -> Result<Vec<Row>, String> {
    let mut bits = Bits { bytes, at: 0, end: bytes.len() * 8 };
    let unused = bits.number(3) as usize;
    bits.end -= unused;
    let rest = (bits.end..bytes.len() * 8).all(|at| bytes[at / 8] >> (at % 8) & 1 == 0);
    rule!(rest, "T4: a bit is set behind the end");
    rule!(bits.end >= 3, "T7: no events");

    let mut symbols: Vec<Vec<Pair>> = Vec::new();
    while bits.at < bits.end {
        symbols.push(symbol(&mut bits, lexicons, info, book)?);
        rule!(bits.at <= bits.end, "T6: the last symbol goes {} bits beyond", bits.at - bits.end);
    }
    rule!(symbols.first().is_some_and(|first| first[0].0 == 0), "T7: it starts without a time");

    let mut rows: Vec<Row> = Vec::new();
    let mut state = vec![0u64; lexicons.len()];
    let mut time = info.time_min;
    // Each run of symbols up to the next one that starts with a time is an event (T7).
    let starts: Vec<usize> =
        symbols.iter().enumerate().filter(|(_, s)| s[0].0 == 0).map(|(at, _)| at).collect();
    for (n, &start) in starts.iter().enumerate() {
        let end = starts.get(n + 1).copied().unwrap_or(symbols.len());
        let items: Vec<Pair> = symbols[start..end].concat();
        let delta = items[0].1;
        time = time.checked_add(delta).ok_or("T8: a time of more than 64 bits")?;
        seen.delta_max = seen.delta_max.max(delta);
        let mut carried = vec![false; lexicons.len()];
        for &(field, number) in &items[1..] {
            let at = field as usize - 1;
            rule!(
                !std::mem::replace(&mut carried[at], true),
                "T9: field {field} twice in event {n}"
            );
            // The first event may carry NULLs; later ones only what changes.
            let changes = state[at] != number || n == 0 && number == 0;
            rule!(changes, "T9: field {field} of event {n} is carried and does not change");
            state[at] = number;
            if number > 0 {
                seen.values[at][number as usize - 1] = true;
            }
        }
        seen.events += 1;
        seen.time_min = seen.time_min.min(time);
        seen.time_max = seen.time_max.max(time);
        let value = |(values, &number): (&Vec<Vec<u8>>, &u64)| match number {
            0 => Vec::new(),
            _ => values[number as usize - 1].clone(),
        };
        rows.push((time, lexicons.iter().zip(&state).map(value).collect()));
    }
    Ok(rows)
}

/// One symbol (T5, T6).
fn symbol(
    bits: &mut Bits<'_>,
    lexicons: &[Vec<Vec<u8>>],
    info: &Info,
    book: &Codebook,
) -> Result<Vec<Pair>, String> {
    let began = bits.at;
    if bits.bit() == 1 {
        let after = bits.at;
        let entry = book.entries[bits.number(16) as usize].as_ref();
        let entry = entry.ok_or(format!("T5: no code word at bit {after}"))?;
        bits.at = after + entry.bits as usize;
        return Ok(entry.items.clone());
    }
    let field = bits.number(digits(lexicons.len() as u64 + 1));
    let most = match field {
        0 => info.delta_max,
        _ => {
            let values = lexicons.get(field as usize - 1);
            values.ok_or(format!("T6: a literal of field {field} at bit {began}"))?.len() as u64
        }
    };
    let number = bits.number(digits(most));
    rule!(number <= most, "T6: literal ({field}, {number}) at bit {began}, of {most}");
    Ok(vec![(field, number)])
}
