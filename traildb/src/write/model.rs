//! Which items get code words: as many of the most frequent as make code words and literals
//! together take the fewest bits.

use std::collections::HashMap;

use super::{group::Grouped, huffman};
use crate::{
    bits,
    item::Item,
    member::codebook::{self, Code},
};

/// Above so many events, statistics are taken from every tenth trail.
const SAMPLE_FROM: u64 = 1_000_000;
/// Numbers of code words that are tried.
const SIZES: [usize; 14] =
    [1, 64, 256, 1024, 2048, 4096, 8192, 12_288, 16_384, 20_480, 24_576, 32_768, 49_152, 65_536];

/// How each item is written.
pub(super) struct Model {
    /// Bits of the field in a literal.
    pub(super) field_bits: u32,
    /// Bits of the value in a literal, by field; field 0 is the delta.
    pub(super) value_bits: Vec<u32>,
    deltas: HashMap<u64, Code>,
    /// By field from 1 and value number; no bits for items without a word.
    values: Vec<Vec<Code>>,
}

const NONE: Code = Code { word: 0, bits: 0 };

impl Model {
    /// The model of `grouped`, whose fields have `counts` values each.
    pub(super) fn of(grouped: &Grouped, counts: &[u64]) -> Model {
        let mut value_bits = vec![bits::width(grouped.delta_max)];
        value_bits.extend(counts.iter().map(|&count| bits::width(count)));
        let field_bits = bits::width(counts.len() as u64 + 1);
        let mut model = Model {
            field_bits,
            value_bits,
            deltas: HashMap::new(),
            values: counts.iter().map(|&count| vec![NONE; count as usize + 1]).collect(),
        };
        model.choose(frequencies(grouped, counts));
        model
    }

    /// The code word of an item, if it has one that is shorter than the literal.
    #[inline]
    pub(super) fn code(&self, field: u16, value: u64) -> Option<Code> {
        let code = match field {
            0 => self.deltas.get(&value).copied().unwrap_or(NONE),
            _ => self.values[usize::from(field) - 1][value as usize],
        };
        let literal = self.literal_bits(field);
        (code.bits > 0 && u32::from(code.bits) < literal).then_some(code)
    }

    /// Bits of a literal without its flag.
    fn literal_bits(&self, field: u16) -> u32 {
        self.field_bits + self.value_bits[usize::from(field)]
    }

    fn choose(&mut self, mut frequencies: Vec<(u64, u16, u64)>) {
        // The most frequent first; equal ones in the order of items, so that output is determined.
        frequencies.sort_unstable_by_key(|&(count, field, value)| {
            (std::cmp::Reverse(count), field, value)
        });
        let literals: u64 = frequencies
            .iter()
            .map(|&(count, field, _)| count * u64::from(self.literal_bits(field)))
            .sum();
        let mut best: (u64, Vec<u8>) = (literals, Vec::new());
        for size in SIZES {
            let size = size.min(frequencies.len());
            let coded = &frequencies[..size];
            let ascending: Vec<u64> = coded.iter().rev().map(|&(count, ..)| count).collect();
            let mut lengths = huffman::lengths(&ascending);
            lengths.reverse();
            let saved: u64 = coded
                .iter()
                .zip(&lengths)
                .map(|(&(count, field, _), &bits)| {
                    count * u64::from(self.literal_bits(field).saturating_sub(u32::from(bits)))
                })
                .sum();
            if literals - saved < best.0 {
                best = (literals - saved, lengths);
            }
        }
        let (_, lengths) = best;
        let words = huffman::words(&lengths);
        for (&(_, field, value), (word, bits)) in
            frequencies.iter().zip(words.into_iter().zip(lengths))
        {
            let code = Code { word, bits };
            match field {
                0 => drop(self.deltas.insert(value, code)),
                _ => self.values[usize::from(field) - 1][value as usize] = code,
            }
        }
    }

    /// The member `trails.codebook`.
    pub(super) fn codebook(&self) -> Vec<u8> {
        let deltas =
            self.deltas.iter().map(|(&delta, &code)| ((Item::new(0, delta).raw(), 0), code));
        let values = self.values.iter().enumerate().flat_map(|(field, codes)| {
            codes.iter().enumerate().filter(|(_, code)| code.bits > 0).map(move |(value, &code)| {
                ((Item::new(field as u16 + 1, value as u64).raw(), 0), code)
            })
        });
        codebook::write(deltas.chain(values))
    }
}

/// How often each item occurs among the changes: (count, field, value).
fn frequencies(grouped: &Grouped, counts: &[u64]) -> Vec<(u64, u16, u64)> {
    let step = if grouped.events() > SAMPLE_FROM { 10 } else { 1 };
    let mut deltas: HashMap<u64, u64> = HashMap::new();
    let mut values: Vec<Vec<u32>> =
        counts.iter().map(|&count| vec![0; count as usize + 1]).collect();
    for trail in (0..grouped.trails() as usize).step_by(step) {
        grouped.edges(trail, |delta, changed| {
            *deltas.entry(delta).or_default() += 1;
            for &(field, value) in changed {
                values[usize::from(field) - 1][value as usize] += 1;
            }
        });
    }
    let deltas = deltas.into_iter().map(|(delta, count)| (count, 0, delta));
    let values = values.into_iter().enumerate().flat_map(|(field, counts)| {
        counts
            .into_iter()
            .enumerate()
            .filter(|&(_, count)| count > 0)
            .map(move |(value, count)| (u64::from(count), field as u16 + 1, value as u64))
    });
    deltas.chain(values).collect()
}
