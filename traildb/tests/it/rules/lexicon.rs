//! Lexicons (X1 to X3).

use std::collections::HashSet;

use super::{little, rule};

/// The values of a lexicon, the first being number 1.
pub(super) fn values(member: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let width = if member.len() as u64 <= u64::from(u32::MAX) { 4 } else { 8 };
    let cell = |n: usize| -> Result<usize, String> {
        let bytes = member.get(n * width..(n + 1) * width).ok_or("X1: the lexicon is short")?;
        Ok(little(bytes) as usize)
    };
    let count = cell(0)?;
    rule!(count as u64 <= (1 << 40) - 2, "L2: {count} values");
    rule!(count < member.len(), "X1: {count} values in {} bytes", member.len());
    let mut start = cell(1)?;
    rule!(start == width * (count + 2), "X3: the first value is at {start}");
    let mut values = Vec::with_capacity(count);
    let mut known = HashSet::new();
    for number in 1..=count {
        let end = cell(number + 1)?;
        rule!(start < end && end <= member.len(), "X3: value {number} from {start} to {end}");
        let value = &member[start..end];
        rule!(known.insert(value), "X3: value {number} is there twice");
        values.push(value.to_vec());
        start = end;
    }
    rule!(start == member.len(), "X2: {} bytes behind the values", member.len() - start);
    Ok(values)
}
