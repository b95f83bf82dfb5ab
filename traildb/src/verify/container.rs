//! The package around its members: tar headers, padding, order (FORMAT.md P1-P6).
//!
//! Readers use the index alone, so most of this is a warning: `tar` cannot unpack such a file. But what lies
//! around a member is all that tells whether its bytes are where the index says: a file that has lost some, or
//! has some more, is read without a complaint where nothing contradicts itself.

use super::{Log, stream};
use crate::{
    container::{
        Member, Members, Plan,
        package::{BLOCK, INDEX_AT, INDEX_BYTES_MAX},
    },
    error::Error,
    item::FIELDS_MAX,
    storage::Storage,
};

const PACKAGE: &str = "(package)";
/// Headers that a walk looks at: each member may have two.
const HEADERS_MAX: usize = 2 * (FIELDS_MAX + 16);
/// The longest name that a long-name record may give: a member of a field of 511 bytes.
const NAME_BYTES_MAX: u64 = 1024;

/// Checks what lies around the members.
pub(super) fn check<S: Storage>(members: &Members<S>, log: &Log) -> Result<(), Error> {
    let mut list: Vec<&Member> = members.iter().collect();
    list.sort_unstable_by_key(|member| (member.start(), member.len));
    overlaps(&list, log);
    order(&list, log);
    index(members, &list, log)?;
    walk(members, &list, log)
}

/// P5: behind the empty line that ends the index, NUL bytes up to its size.
fn index<S: Storage>(members: &Members<S>, list: &[&Member], log: &Log) -> Result<(), Error> {
    let Some(index) = list.iter().find(|member| &*member.name == "tar.toc") else {
        log.warning("tar.toc", 0, "the index does not name itself (P4)");
        return Ok(());
    };
    // It was read whole to find the members, so it is no longer than what they may take.
    let mut text = vec![0; index.len.min(INDEX_BYTES_MAX) as usize];
    members.read(index, 0, &mut text)?;
    let end = text.windows(2).position(|pair| pair == b"\n\n").map_or(text.len(), |at| at + 2);
    if let Some(at) = text[end..].iter().position(|&b| b != 0) {
        let at = (end + at) as u64;
        log.warning("tar.toc", at, "only NUL bytes may follow the end of the index (P5)");
    }
    if index.start() != INDEX_AT {
        log.warning("tar.toc", 0, format!("the index says that it is at {}", index.start()));
    }
    Ok(())
}

fn overlaps(list: &[&Member], log: &Log) {
    let mut end = (0, "the head of the file");
    for member in list {
        if member.start() < end.0 && member.len > 0 {
            log.error(
                "tar.toc",
                0,
                format!("member {:?} at {} overlaps {}", member.name, member.start(), end.1),
            );
        }
        if member.start() + member.len > end.0 {
            end = (member.start() + member.len, &member.name);
        }
    }
}

/// P3: the order of members; of the lexicons only that they lie together.
fn order(list: &[&Member], log: &Log) {
    let rank = |member: &&&Member| match &*member.name {
        "version" => 0,
        "info" => 1,
        "tar.toc" => 2,
        "fields" => 4,
        "trails.codebook" => 5,
        "trails.toc" => 6,
        "trails.data" => 7,
        "uuids" | "cookies" => 8,
        name if name.starts_with("lexicon.") => 3,
        _ => 9,
    };
    for member in list.iter().filter(|member| rank(member) == 9) {
        log.warning("tar.toc", 0, format!("member {:?} is none of the format's", member.name));
    }
    let known: Vec<&&Member> = list.iter().filter(|member| rank(member) != 9).collect();
    if let Some(pair) = known.windows(2).find(|pair| rank(&pair[0]) > rank(&pair[1])) {
        let reason = format!("member {:?} lies before {:?}", pair[0].name, pair[1].name);
        log.warning("tar.toc", 0, reason);
    }
}

/// Passes over the archive as tar does, and compares it with the index.
fn walk<S: Storage>(members: &Members<S>, list: &[&Member], log: &Log) -> Result<(), Error> {
    let whole = members.whole(PACKAGE);
    let mut plan = Plan::default();
    for member in list {
        plan.add(&whole, member.start().saturating_sub(BLOCK)..member.start());
    }
    plan.announce(members)?;

    let odd = whole.len % BLOCK;
    if odd != 0 {
        let reason = format!("{odd} bytes too many, or {} too few: not in blocks", BLOCK - odd);
        log.error(PACKAGE, whole.len, reason);
    }
    // What lies behind the place where a walk ends was not compared with the index.
    let ends = |at: u64, reason: &str| match list.iter().find(|one| one.start() + one.len > at) {
        None => log.warning(PACKAGE, at, reason),
        Some(member) => log.error(
            PACKAGE,
            at,
            format!("{reason}: {:?} may lie elsewhere than the index says", member.name),
        ),
    };
    let mut seen = 0;
    let mut at = 0;
    let mut long_name = None;
    for _ in 0..HEADERS_MAX {
        if whole.len - at < BLOCK {
            ends(at, "the archive has no end, two blocks of zeros");
            return Ok(());
        }
        let mut block = [0; BLOCK as usize];
        members.read(&whole, at, &mut block)?;
        if block == [0; BLOCK as usize] {
            let second = (whole.len - at).saturating_sub(BLOCK).min(BLOCK);
            let mut block = vec![0; second as usize];
            members.read(&whole, at + BLOCK, &mut block)?;
            if second < BLOCK || block.iter().any(|&b| b != 0) {
                log.warning(PACKAGE, at + BLOCK, "the archive ends with one block of zeros");
            } else if whole.len > at + 2 * BLOCK {
                let more = whole.len - at - 2 * BLOCK;
                log.warning(PACKAGE, at + 2 * BLOCK, format!("{more} bytes follow the archive"));
            }
            if seen < list.len() {
                ends(at, &format!("{seen} of {} members have a tar header", list.len()));
            }
            return Ok(());
        }
        let Some(header) = Header::parse(&block) else {
            ends(at, "no tar header, or one whose checksum is wrong");
            return Ok(());
        };
        let data = at + BLOCK;
        let Some(end) = data.checked_add(header.size).filter(|&end| end <= whole.len) else {
            ends(at, &format!("a tar header of {} bytes, beyond the file", header.size));
            return Ok(());
        };
        if header.kind == b'L' {
            let mut name = vec![0; header.size.min(NAME_BYTES_MAX) as usize];
            members.read(&whole, data, &mut name)?;
            name.truncate(name.iter().position(|&b| b == 0).unwrap_or(name.len()));
            long_name = Some(String::from_utf8_lossy(&name).into_owned());
        } else {
            let name = long_name.take().unwrap_or(header.name);
            match list.iter().find(|member| *member.name == *name) {
                None => log.warning(PACKAGE, at, format!("member {name:?} is not in the index")),
                Some(member) => {
                    seen += 1;
                    if (member.start(), member.len) != (data, header.size) {
                        let reason = format!(
                            "tar has member {name:?} at {data}, {} bytes; the index at {}, {} bytes",
                            header.size,
                            member.start(),
                            member.len
                        );
                        log.error(PACKAGE, at, reason);
                    }
                }
            }
            if data == INDEX_AT && name != "tar.toc" {
                let reason = format!("{name:?} is where the index must be");
                log.error(PACKAGE, at, reason);
            }
        }
        let next = end.next_multiple_of(BLOCK).min(whole.len);
        let mut padding = vec![0; (next - end) as usize];
        members.read(&whole, end, &mut padding)?;
        if padding.iter().any(|&b| b != 0) {
            log.warning(PACKAGE, end, "the padding behind a member is not zero");
        }
        at = next;
    }
    ends(at, "the archive has more headers than a database can have members");
    Ok(())
}

struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Header {
    /// `None` unless the checksum is that of the block.
    fn parse(block: &[u8; BLOCK as usize]) -> Option<Header> {
        let octal = |range: std::ops::Range<usize>| {
            let text = std::str::from_utf8(&block[range]).ok()?;
            u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).ok()
        };
        let sum = octal(148..156)?;
        let with_blanks = |k: usize| if (148..156).contains(&k) { b' ' } else { block[k] };
        let right: u64 = (0..block.len()).map(|k| u64::from(with_blanks(k))).sum();
        if sum != right || &block[257..262] != b"ustar" {
            return None;
        }
        // P6: from 8 GiB on, base 256 behind a high bit.
        let size = match block[124] & 0x80 {
            0 => octal(124..136)?,
            _ => {
                let mut low: [u8; 8] = block[128..136].try_into().expect("eight bytes");
                low.reverse();
                stream::number(&low)
            }
        };
        let name = &block[..100];
        let name = &name[..name.iter().position(|&b| b == 0).unwrap_or(100)];
        Some(Header { name: String::from_utf8_lossy(name).into_owned(), size, kind: block[156] })
    }
}
