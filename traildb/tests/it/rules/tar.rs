//! The archive and its index (P1 to P6).

use super::rule;

const BLOCK: usize = 512;

/// One header, as far as the format speaks of it.
struct Header {
    name: Vec<u8>,
    size: u64,
    kind: u8,
}

/// The members of a package, in the order in which they lie. The walk from header to header and the
/// index must tell the same.
pub(super) fn members(file: &[u8]) -> Result<Vec<(String, &[u8])>, String> {
    rule!(file.len().is_multiple_of(BLOCK), "P1: {} bytes are no blocks", file.len());
    let mut found: Vec<(String, usize, &[u8])> = Vec::new();
    let mut at = 0;
    let mut long_name = None;
    loop {
        let block = file.get(at..at + BLOCK).ok_or("P1: no end of the archive")?;
        if block.iter().all(|&byte| byte == 0) {
            break;
        }
        let header = header(block).map_err(|e| format!("{e}, in the header at {at}"))?;
        at += BLOCK;
        let size = usize::try_from(header.size).map_err(|_| "P6: a size beyond memory")?;
        let data = file.get(at..at.saturating_add(size)).ok_or("P1: a member beyond the end")?;
        let padded = size.next_multiple_of(BLOCK);
        let padding = file.get(at + size..at + padded).ok_or("P1: a member beyond the end")?;
        rule!(padding.iter().all(|&byte| byte == 0), "P1: padding at {}", at + size);
        match header.kind {
            b'L' => {
                rule!(header.name == b"././@LongLink", "P6: a long name called {:?}", header.name);
                let (last, name) = data.split_last().ok_or("P6: an empty long name")?;
                rule!(*last == 0 && !name.contains(&0), "P6: a long name {data:?}");
                rule!(name.len() > 100, "P6: a long name of {} bytes", name.len());
                rule!(long_name.replace(name.to_vec()).is_none(), "P6: two long names");
            }
            b'0' => {
                let name = match long_name.take() {
                    Some(name) => {
                        rule!(name.starts_with(&header.name), "P6: {:?}", header.name);
                        name
                    }
                    None => header.name,
                };
                let name = String::from_utf8(name).map_err(|_| "P6: a name is no text")?;
                rule!(found.iter().all(|(other, ..)| *other != name), "P4: {name} twice");
                found.push((name, at, data));
            }
            kind => return Err(format!("P6: type {kind} at {at}")),
        }
        at += padded;
    }
    rule!(long_name.is_none(), "P6: a long name of nothing");
    rule!(file.len() == at + 2 * BLOCK, "P1: {} bytes behind the members", file.len() - at);
    rule!(file[at..].iter().all(|&byte| byte == 0), "P1: something behind the members");
    index(&found)?;
    Ok(found.into_iter().map(|(name, _, data)| (name, data)).collect())
}

fn header(block: &[u8]) -> Result<Header, String> {
    let text = |range: std::ops::Range<usize>| {
        let cell = &block[range];
        let end = cell.iter().position(|&byte| byte == 0).unwrap_or(cell.len());
        (&cell[..end], cell[end..].iter().all(|&byte| byte == 0))
    };
    let (name, clean) = text(0..100);
    rule!(clean && !name.is_empty(), "P6: name {name:?}");
    rule!(octal(&block[100..108])? == 0o644 || block[156] == b'L', "P6: mode");
    for (what, range) in [("uid", 108..116), ("gid", 116..124), ("mtime", 136..148)] {
        rule!(octal(&block[range])? == 0, "P6: {what}");
    }
    for (what, range) in [("link", 157..257), ("user", 265..297), ("group", 297..329)] {
        let (cell, clean) = text(range);
        // A long-name record is a file of root's to some writers.
        rule!(clean && (cell.is_empty() || block[156] == b'L'), "P6: {what} {cell:?}");
    }
    rule!(&block[257..265] == b"ustar  \0", "P6: magic {:?}", &block[257..265]);
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| u64::from(if (148..156).contains(&at) { b' ' } else { byte }))
        .sum();
    rule!(octal(&block[148..156])? == sum, "P6: checksum");
    let size = &block[124..136];
    let size = match size[0] & 0x80 != 0 {
        // Base 256, the highest byte first; the topmost bit only says so.
        true => {
            let number = size[1..].iter().fold(0u128, |n, &byte| n << 8 | u128::from(byte));
            rule!(size[0] == 0x80, "P6: a negative size");
            rule!(number >= 1 << 33, "P6: base 256 for {number}, which octal can say");
            u64::try_from(number).map_err(|_| "P6: a size of more than 64 bits")?
        }
        false => octal(size)?,
    };
    Ok(Header { name: name.to_vec(), size, kind: block[156] })
}

/// A number in octal digits, with spaces or NUL bytes around it.
fn octal(cell: &[u8]) -> Result<u64, String> {
    let text = std::str::from_utf8(cell).map_err(|_| format!("P6: number {cell:?}"))?;
    let text = text.trim_matches(|c| c == ' ' || c == '\0');
    u64::from_str_radix(text, 8).map_err(|_| format!("P6: number {cell:?}"))
}

/// The index tells of every member, in the order in which they lie (P2, P4, P5).
fn index(found: &[(String, usize, &[u8])]) -> Result<(), String> {
    let place = found.iter().find(|(name, ..)| name == "tar.toc");
    let (_, at, bytes) = place.ok_or("P2: no index")?;
    rule!(*at == 2560, "P2: the index is at {at}");
    let mut expected = String::from("TAR TOC FOR TDB VER 1\n");
    for (name, at, data) in found {
        expected += &format!("{name} {at} {}\n", data.len());
    }
    expected.push('\n');
    let (text, rest) = bytes.split_at_checked(expected.len()).ok_or("P4: the index is short")?;
    rule!(text == expected.as_bytes(), "P4: index {:?}", String::from_utf8_lossy(text));
    rule!(rest.iter().all(|&byte| byte == 0), "P5: behind the end of the index");
    Ok(())
}
