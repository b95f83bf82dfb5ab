//! The package form: one file, a tar archive whose index lies at a fixed place (FORMAT.md P1-P6).
//!
//! ```text
//!  0           512         1024        1536        2048        2560
//!  +-----------+-----------+-----------+-----------+-----------+----------- - -
//!  | header of | version   | header of | info      | header of | tar.toc
//!  | version   |           | info      |           | tar.toc   |
//!  +-----------+-----------+-----------+-----------+-----------+----------- - -
//! ```

use std::{collections::HashMap, fmt::Write as _};

use super::{Member, Members, Plan};
use crate::{error::Error, item::FIELDS_MAX, storage::Storage};

/// A tar archive is made of blocks of this many bytes.
pub(crate) const BLOCK: u64 = 512;

/// Where the index starts (P2). Readers go there without looking at a header, so `version` and
/// `info` can never outgrow one block each; the writer refuses to.
pub(crate) const INDEX_AT: u64 = 5 * BLOCK;

// The number is part of the format. A change of `BLOCK` must not move it unnoticed.
const _: () = assert!(INDEX_AT == 2560);

/// The first line of the index (P4).
const MAGIC: &str = "TAR TOC FOR TDB VER 1\n";

/// What opening reads at first, in one request: the head and the index of up to some 4,500 fields.
/// At 90 MB/s this takes 3 ms, a tenth of the round trip that a second request would cost.
const HEAD_BYTES: u64 = 256 << 10;

/// An index cannot be longer: all fields with the longest names, and the other members.
pub(crate) const INDEX_BYTES_MAX: u64 = (FIELDS_MAX as u64 + 16) * (511 + 8 + 43);

/// Finds the members of a package.
pub(crate) fn open<S: Storage>(storage: S) -> Result<Members<S>, Error> {
    let len = storage.len();
    let mut members = Members { stores: vec![storage], by_name: HashMap::new() };
    let whole =
        |name: &str, start: u64| Member { name: name.into(), store: 0, start, len: len - start };
    if len < INDEX_AT + MAGIC.len() as u64 {
        let reason = format!("{len} bytes are too few for a package");
        return Err(whole("(package)", 0).damaged(&members, 0, reason));
    }
    let head_len = len.min(HEAD_BYTES);
    let mut plan = Plan::default();
    plan.add_head(0, head_len);
    plan.announce(&members)?;
    let index = whole("tar.toc", INDEX_AT);
    let mut text = vec![0; (head_len - INDEX_AT) as usize];
    members.read(&index, 0, &mut text)?;
    if !text.starts_with(MAGIC.as_bytes()) {
        let reason = "the index of a package does not start here: this is no TrailDB package";
        return Err(index.damaged(&members, 0, reason));
    }
    // The index names its own size, but only its end counts. It is read further in growing steps,
    // the first of which is the rest of what it claims to have.
    let mut step = claimed_len(&text).saturating_sub(text.len() as u64).max(HEAD_BYTES);
    let end = loop {
        if let Some(end) = find_end(&text) {
            break end;
        }
        let have = text.len() as u64;
        let more = step.min(index.len - have).min(INDEX_BYTES_MAX.saturating_sub(have));
        if more == 0 {
            return Err(index.damaged(
                &members,
                have,
                "the index has no end: no empty line follows",
            ));
        }
        text.resize((have + more) as usize, 0);
        members.read(&index, have, &mut text[have as usize..])?;
        step *= 2;
    };
    for (offset, name, start, size) in lines(&members, &index, &text[..end])? {
        if start.checked_add(size).is_none_or(|end| end > len) {
            let reason =
                format!("member {name:?} at {start}, {size} bytes, is outside the file ({len})");
            return Err(index.damaged(&members, offset, reason));
        }
        let member = Member { name: name.into(), store: 0, start, len: size };
        if members.by_name.insert(name.into(), member).is_some() {
            return Err(index.damaged(&members, offset, format!("member {name:?} occurs twice")));
        }
    }
    Ok(members)
}

/// Where the lines of an index end: after the newline before the first empty line (P5).
fn find_end(text: &[u8]) -> Option<usize> {
    text.windows(2).position(|pair| pair == b"\n\n").map(|at| at + 1)
}

/// The size that the index claims for itself, if the line is there.
fn claimed_len(text: &[u8]) -> u64 {
    let size = text.split(|&b| b == b'\n').find_map(|line| {
        let rest = std::str::from_utf8(line).ok()?.strip_prefix("tar.toc ")?;
        rest.split_once(' ')?.1.parse().ok()
    });
    size.unwrap_or(0)
}

type Line<'t> = (u64, &'t str, u64, u64);

/// The lines of an index: offset of the line, member name, start, size.
fn lines<'t, S: Storage>(
    members: &Members<S>,
    index: &Member,
    text: &'t [u8],
) -> Result<Vec<Line<'t>>, Error> {
    let mut lines = Vec::new();
    let mut at = MAGIC.len();
    while at < text.len() {
        let line = text[at..].split(|&b| b == b'\n').next().unwrap_or_default();
        let parsed = parse_line(line);
        let Some((name, start, size)) = parsed else {
            let shown = String::from_utf8_lossy(&line[..line.len().min(80)]);
            let reason = format!("{shown:?} is not `name offset size`");
            return Err(index.damaged(members, at as u64, reason));
        };
        if lines.len() >= FIELDS_MAX + 16 {
            return Err(index.damaged(members, at as u64, "the index has too many lines"));
        }
        lines.push((at as u64, name, start, size));
        at += line.len() + 1;
    }
    if lines.is_empty() {
        return Err(index.damaged(members, at as u64, "the index names no member"));
    }
    Ok(lines)
}

fn parse_line(line: &[u8]) -> Option<(&str, u64, u64)> {
    let mut parts = std::str::from_utf8(line).ok()?.split(' ');
    let (name, start, size) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = parts.next().is_none() && !name.is_empty();
    whole.then_some((name, decimal(start)?, decimal(size)?))
}

/// A decimal number of digits alone.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// One member of a package to be written: its name and size, in the order of the file (P3).
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) size: u64,
}

/// The shape of a package before it is written: every header and offset.
pub(crate) struct Layout {
    /// What goes before each part's data: headers, preceded by the padding of the part before.
    pub(crate) before: Vec<Vec<u8>>,
    /// What goes after the last part: its padding and the end of the archive.
    pub(crate) end: Vec<u8>,
    /// The index, padded to its reserved size; the data of the part named `tar.toc`.
    pub(crate) index: Vec<u8>,
}

/// Lays a package out. `parts` has `version`, `info` and `tar.toc` first, the latter of size 0: its
/// size is found here.
pub(crate) fn lay_out(parts: &[Part]) -> Layout {
    // A line is the name, two numbers of at most 20 digits, two spaces and a newline; the lines are
    // followed by an empty one. No offset is known yet, so room is reserved for the longest.
    let reserved =
        MAGIC.len() as u64 + parts.iter().map(|p| p.name.len() as u64 + 43).sum::<u64>() + 1;
    let mut index = String::from(MAGIC);
    let mut before = Vec::with_capacity(parts.len());
    let mut at = 0;
    let mut padding = 0;
    for part in parts {
        let size = if part.name == "tar.toc" { reserved } else { part.size };
        let mut head = vec![0; padding as usize];
        head.extend(tar_headers(&part.name, size));
        at += head.len() as u64;
        before.push(head);
        writeln!(index, "{} {at} {size}", part.name).expect("writing to a string cannot fail");
        at += size;
        padding = size.next_multiple_of(BLOCK) - size;
    }
    index.push('\n');
    let mut index = index.into_bytes();
    assert!(index.len() as u64 <= reserved, "the reserved room holds the longest lines");
    index.resize(reserved as usize, 0);
    Layout { before, end: vec![0; (padding + 2 * BLOCK) as usize], index }
}

/// The tar header of a member, preceded by a long-name record when it needs one (P6).
fn tar_headers(name: &str, size: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    if name.len() > 100 {
        bytes.extend(tar_header("././@LongLink", name.len() as u64 + 1, b'L'));
        bytes.extend(name.as_bytes());
        bytes.resize((bytes.len() as u64 + 1).next_multiple_of(BLOCK) as usize, 0);
    }
    bytes.extend(tar_header(&name[..name.len().min(100)], size, b'0'));
    bytes
}

fn tar_header(name: &str, size: u64, kind: u8) -> [u8; BLOCK as usize] {
    let mut header = [0; BLOCK as usize];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < 8 << 30 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        // GNU: the high bit, then the number, big-endian.
        put(124, &[0x80]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar  \0");
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_puts_the_index_where_readers_look() {
        let part = |name: &str, size| Part { name: name.into(), size };
        let long = format!("lexicon.{}", "n".repeat(240));
        let parts = [
            part("version", 1),
            part("info", 20),
            part("tar.toc", 0),
            part(&long, 1000),
            part("fields", 512),
            part("huge", 9 << 30),
        ];
        let layout = lay_out(&parts);
        assert_eq!(layout.before[0].len() + 1, 513);
        let to_index: usize = layout.before[..3].iter().map(Vec::len).sum::<usize>() + 1 + 20;
        assert_eq!(to_index as u64, INDEX_AT);
        let text = String::from_utf8(layout.index.clone()).unwrap();
        let start = INDEX_AT + (layout.index.len() as u64).next_multiple_of(BLOCK) + 3 * BLOCK;
        assert!(text.contains(&format!("\n{long} {start} 1000\n")), "{text}");
        assert_eq!(layout.before[3].len() % 512, (512 - layout.index.len() % 512) % 512);
    }

    #[test]
    fn index_lines_that_are_refused() {
        let cases: [&[u8]; 8] =
            [b"a 1", b"a 1 2 3", b" 1 2", b"a +1 2", b"a 1 ", b"a -1 2", b"a 1 0x2", b"\xff 1 2"];
        for line in cases {
            assert_eq!(parse_line(line), None, "{line:?}");
        }
        assert_eq!(parse_line(b"a 1 99999999999999999999"), None, "beyond 64 bits");
        assert_eq!(parse_line(b"lexicon.x 10 20"), Some(("lexicon.x", 10, 20)));
    }
}
