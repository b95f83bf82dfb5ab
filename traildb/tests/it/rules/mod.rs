//! A checker of files, written from the text of FORMAT.md alone: it shares no line with the library,
//! so that reader and writer cannot be wrong together.
//!
//! ```text
//!   package --> tar (headers, index) --> members --> info, fields, lexicons, uuids
//!                                                --> codebook, toc, bits --> events
//! ```
//!
//! It asks more than a reader must: what a reader tolerates, a writer has to do right all the same
//! (no byte between members, no value carried twice, no bit set behind the end of a trail). Speed is
//! no concern: bits are taken one by one.

mod codebook;
mod lexicon;
mod stream;
mod tar;

use std::collections::{BTreeMap, BTreeSet};

use traildb::Uuid;

use crate::support::Rows;

/// Fails with a sentence that opens with the number of the rule.
macro_rules! rule {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}
pub(crate) use rule;

/// What a file that breaks no rule holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) fields: Vec<String>,
    /// The values of each field, in the order of their numbers from 1.
    pub(crate) lexicons: Vec<Vec<Vec<u8>>>,
    pub(crate) trails: Vec<Rows>,
    /// Symbols with a code word: of one item, and of two.
    pub(crate) codes: (usize, usize),
    /// Values of lexicons that are in no event.
    pub(crate) unused: usize,
}

/// The numbers of the member `info`.
pub(crate) struct Info {
    trails: u64,
    events: u64,
    time_min: u64,
    time_max: u64,
    delta_max: u64,
}

/// The number of binary digits, at least 1 (N1).
fn digits(x: u64) -> u32 {
    (u64::BITS - x.leading_zeros()).max(1)
}

/// Checks a package (P) and what is in it.
pub(crate) fn package(file: &[u8]) -> Result<Content, String> {
    let members = tar::members(file)?;
    let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
    let lexicons = names.iter().copied().filter(|name| name.starts_with("lexicon."));
    let expected: Vec<&str> = ["version", "info", "tar.toc"]
        .into_iter()
        .chain(lexicons)
        .chain(["fields", "trails.codebook", "trails.toc", "trails.data", "uuids"])
        .collect();
    rule!(names == expected, "P3: members {names:?}");
    let fields = fields(find(&members, "fields")?)?;
    let order: Vec<String> = fields.iter().map(|name| format!("lexicon.{name}")).collect();
    rule!(names[3..names.len() - 5] == order, "P3: lexicons {:?}", &names[3..names.len() - 5]);
    content(&members)
}

/// Checks a directory (C2), given as the bytes of each file.
pub(crate) fn directory(files: &BTreeMap<String, Vec<u8>>) -> Result<Content, String> {
    let members: Vec<(String, &[u8])> =
        files.iter().map(|(name, bytes)| (name.clone(), bytes.as_slice())).collect();
    let fields = fields(find(&members, "fields")?)?;
    let fixed =
        ["version", "info", "fields", "trails.codebook", "trails.toc", "trails.data", "uuids"];
    let expected: BTreeSet<String> = fixed
        .into_iter()
        .map(str::to_owned)
        .chain(fields.iter().map(|name| format!("lexicon.{name}")))
        .collect();
    let got: BTreeSet<String> = files.keys().cloned().collect();
    rule!(got == expected, "C1: files {got:?}");
    content(&members)
}

fn find<'m>(members: &[(String, &'m [u8])], name: &str) -> Result<&'m [u8], String> {
    let found = members.iter().find(|(other, _)| other == name).map(|(_, bytes)| *bytes);
    found.ok_or_else(|| format!("C1: no member {name}"))
}

fn content(members: &[(String, &[u8])]) -> Result<Content, String> {
    let get = |name: &str| find(members, name);
    rule!(get("version")? == b"1", "V1: version {:?}", get("version")?);
    let fields = fields(get("fields")?)?;
    let info = info(get("info")?)?;
    let lexicons = fields
        .iter()
        .map(|name| {
            lexicon::values(get(&format!("lexicon.{name}"))?).map_err(|e| e + " in " + name)
        })
        .collect::<Result<Vec<_>, String>>()?;
    let counts: Vec<u64> = lexicons.iter().map(|values| values.len() as u64).collect();
    let book = codebook::read(get("trails.codebook")?, &counts, info.delta_max)?;
    let uuids = uuids(get("uuids")?, info.trails)?;
    let spans = spans(get("trails.toc")?, get("trails.data")?, info.trails)?;
    if info.trails == 0 {
        empty(&info, &lexicons, &book)?;
    }
    let mut trails = Vec::new();
    let mut seen = stream::Seen::new(&lexicons);
    for (uuid, span) in uuids.into_iter().zip(spans) {
        let events = stream::events(&get("trails.data")?[span], &info, &lexicons, &book, &mut seen)
            .map_err(|e| format!("{e}, in trail {uuid}"))?;
        trails.push((uuid, events));
    }
    if info.trails > 0 {
        seen.agrees(&info)?;
    }
    let unused = seen.unused();
    Ok(Content { fields, lexicons, trails, codes: book.symbols, unused })
}

/// The five numbers (N2), each written in the one way that a decimal number has.
fn info(bytes: &[u8]) -> Result<Info, String> {
    rule!(bytes.len() <= 512, "N2: {} bytes of info", bytes.len());
    let text = std::str::from_utf8(bytes).map_err(|_| "N2: info is no text".to_owned())?;
    let numbers: Vec<u64> = text
        .trim_end_matches('\n')
        .split(' ')
        .map(|part| part.parse().map_err(|_| format!("N2: {part:?} in info")))
        .collect::<Result<_, _>>()?;
    let &[trails, events, time_min, time_max, delta_max] = numbers.as_slice() else {
        return Err(format!("N2: info {text:?}"));
    };
    let again = format!("{trails} {events} {time_min} {time_max} {delta_max}\n");
    rule!(text == again, "N2: info {text:?} is not {again:?}");
    Ok(Info { trails, events, time_min, time_max, delta_max })
}

/// The names of the user fields (F1 to F3).
fn fields(bytes: &[u8]) -> Result<Vec<String>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "F3: fields is no ASCII".to_owned())?;
    let mut names: Vec<&str> = text.split('\n').collect();
    rule!(names.pop() == Some("") && names.pop() == Some(""), "F2: fields ends with {text:?}");
    let mut known = BTreeSet::new();
    for name in &names {
        let good = |c: char| c.is_ascii_alphanumeric() || "_-%".contains(c);
        rule!((1..=511).contains(&name.len()) && name.chars().all(good), "F3: field {name:?}");
        rule!(*name != "time" && known.insert(*name), "F3: field {name:?}");
    }
    rule!(names.len() <= 16_382, "L1: {} fields", names.len());
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// UUIDs that ascend as numbers whose last byte counts most (U1, U2).
fn uuids(bytes: &[u8], trails: u64) -> Result<Vec<Uuid>, String> {
    rule!(bytes.len() as u64 == trails * 16, "U1: {} bytes, {trails} trails", bytes.len());
    let uuids: Vec<[u8; 16]> =
        bytes.chunks(16).map(|chunk| chunk.try_into().expect("sixteen bytes")).collect();
    for pair in uuids.windows(2) {
        let reversed = |uuid: &[u8; 16]| uuid.iter().rev().copied().collect::<Vec<u8>>();
        rule!(reversed(&pair[0]) < reversed(&pair[1]), "U2: {pair:x?}");
    }
    Ok(uuids.into_iter().map(Uuid).collect())
}

/// Where each trail is in `trails.data` (T1, T2): they follow each other, from the start to 8 zero
/// bytes before the end.
fn spans(toc: &[u8], data: &[u8], trails: u64) -> Result<Vec<std::ops::Range<usize>>, String> {
    let wide = data.len() as u64 >= (1 << 32) - 1;
    let width = if wide { 8 } else { 4 };
    rule!(toc.len() as u64 == width * (trails + 1), "T1: {} bytes, {trails} trails", toc.len());
    let offsets: Vec<usize> =
        toc.chunks(width as usize).map(|chunk| little(chunk) as usize).collect();
    rule!(data.len() >= 8, "T2: {} bytes of data", data.len());
    let end = data.len() - 8;
    rule!(data[end..].iter().all(|&b| b == 0), "T2: padding {:?}", &data[end..]);
    rule!(offsets[0] == 0 && offsets[offsets.len() - 1] == end, "T1: from {offsets:?}");
    for pair in offsets.windows(2) {
        rule!(pair[0] < pair[1], "T1: a trail from {} to {}", pair[0], pair[1]);
    }
    Ok(offsets.windows(2).map(|pair| pair[0]..pair[1]).collect())
}

/// A little-endian number of as many bytes as there are.
fn little(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// A database without trails (E1).
fn empty(info: &Info, lexicons: &[Vec<Vec<u8>>], book: &codebook::Codebook) -> Result<(), String> {
    let numbers = (info.events, info.time_min, info.time_max, info.delta_max);
    rule!(numbers == (0, u64::MAX, 0, 0), "E1: info {numbers:?}");
    rule!(lexicons.iter().all(Vec::is_empty), "E1: values in no event");
    rule!(book.symbols == (0, 0), "E1: code words for nothing");
    Ok(())
}
