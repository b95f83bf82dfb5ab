//! `version` and `info`: five numbers about the whole (FORMAT.md V1-V2, N2).

use crate::{
    bits,
    container::{Member, Members, package::decimal},
    error::Error,
    item::{DELTA_MAX, TRAILS_MAX},
    storage::Storage,
};

/// The newest version that this crate reads, and the one that it writes.
pub(crate) const VERSION: u64 = 1;

/// Neither member may exceed one block of the package.
const BYTES_MAX: u64 = 512;

/// What `info` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) trails: u64,
    pub(crate) events: u64,
    pub(crate) time_min: u64,
    pub(crate) time_max: u64,
    pub(crate) delta_max: u64,
}

impl Info {
    /// What an empty database says (E1).
    pub(crate) const EMPTY: Info =
        Info { trails: 0, events: 0, time_min: u64::MAX, time_max: 0, delta_max: 0 };

    pub(crate) fn read<S: Storage>(members: &Members<S>, member: &Member) -> Result<Info, Error> {
        let bytes = members.read_whole(member, BYTES_MAX)?;
        let info = parse(&bytes).ok_or_else(|| {
            member.damaged(members, 0, "five decimal numbers and a newline are expected")
        })?;
        info.check().map_err(|reason| member.damaged(members, 0, reason))?;
        Ok(info)
    }

    fn check(&self) -> Result<(), String> {
        let Info { trails, events, delta_max, .. } = *self;
        if trails > TRAILS_MAX {
            return Err(format!("{trails} trails are too many: at most {TRAILS_MAX}"));
        }
        if events < trails || (trails == 0 && events > 0) {
            return Err(format!("{trails} trails cannot have {events} events"));
        }
        if bits::width(delta_max) > bits::width(DELTA_MAX) {
            return Err(format!("the greatest delta {delta_max} is too large"));
        }
        Ok(())
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let Info { trails, events, time_min, time_max, delta_max } = self;
        format!("{trails} {events} {time_min} {time_max} {delta_max}\n").into_bytes()
    }
}

fn parse(bytes: &[u8]) -> Option<Info> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut numbers = text.strip_suffix('\n').unwrap_or(text).split(' ').map(decimal);
    let mut next = || numbers.next().flatten();
    let info = Info {
        trails: next()?,
        events: next()?,
        time_min: next()?,
        time_max: next()?,
        delta_max: next()?,
    };
    numbers.next().is_none().then_some(info)
}

/// The format version: absent means 0 (V1). Versions above [`VERSION`] are refused.
pub(crate) fn read_version<S: Storage>(members: &Members<S>) -> Result<u64, Error> {
    let Some(member) = members.find("version") else { return Ok(0) };
    let bytes = members.read_whole(&member, BYTES_MAX)?;
    let text = std::str::from_utf8(&bytes).ok().map(str::trim_ascii_end);
    let version = text
        .and_then(decimal)
        .ok_or_else(|| member.damaged(members, 0, "a decimal number is expected"))?;
    if version > VERSION {
        return Err(Error::Version { object: members.object().to_owned(), version });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_reads_what_it_writes() {
        let info = Info { trails: 3, events: 9, time_min: 5, time_max: u64::MAX, delta_max: 8 };
        assert_eq!(parse(&info.write()), Some(info));
        assert_eq!(Info::EMPTY.write(), b"0 0 18446744073709551615 0 0\n");
    }

    #[test]
    fn info_that_is_refused() {
        for text in ["", "1 2 3 4", "1 2 3 4 5 6\n", "1  2 3 4 5", "1 2 3 4 -5", "a b c d e"] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
        let cases = [
            ("events without trails", "0 1 0 0 0\n"),
            ("fewer events than trails", "2 1 0 0 0\n"),
            ("a delta of 48 bits", "1 1 0 0 140737488355328\n"),
            ("2^59 trails", "576460752303423488 576460752303423488 0 0 0\n"),
        ];
        for (what, text) in cases {
            assert!(parse(text.as_bytes()).unwrap().check().is_err(), "{what}");
        }
    }
}
