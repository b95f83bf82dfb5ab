//! `version`, `info` and `fields` (FORMAT.md V, N2, F).

use super::{Log, need};
use crate::{
    container::Members,
    error::Error,
    member::{
        fields::Fields,
        info::{self, Info},
    },
    storage::Storage,
};

/// The version, or `None` if it is not known.
pub(super) fn version<S: Storage>(members: &Members<S>, log: &Log) -> Result<Option<u64>, Error> {
    log.take(info::read_version(members))
}

/// What `info` says, or `None` if it cannot be read.
pub(super) fn info<S: Storage>(members: &Members<S>, log: &Log) -> Result<Option<Info>, Error> {
    let Some(member) = need(members, "info", log) else { return Ok(None) };
    let Some(info) = log.take(Info::read(members, &member))? else { return Ok(None) };
    if info.trails == 0 && info != Info::EMPTY {
        log.warning("info", 0, "an empty database is `0 0 18446744073709551615 0 0` (E1)");
    }
    if info.trails > 0 && info.time_min > info.time_max {
        let (min, max) = (info.time_min, info.time_max);
        log.error("info", 0, format!("the least timestamp {min} is after the greatest {max}"));
    }
    let text = members.read_whole(&member, 512)?;
    if text != info.write() {
        log.warning("info", 0, "five numbers with single spaces and a newline are expected (N2)");
    }
    Ok(Some(info))
}

/// The names of the fields, or `None` if they cannot be used.
pub(super) fn fields<S: Storage>(
    members: &Members<S>,
    version: u64,
    log: &Log,
) -> Result<Option<Fields>, Error> {
    let Some(member) = need(members, "fields", log) else { return Ok(None) };
    let Some(fields) = log.take(Fields::read(members, &member))? else { return Ok(None) };
    let mut expected = fields.write().len() as u64;
    if version == 0 {
        expected -= 1;
    }
    if member.len < expected {
        log.warning("fields", member.len, "the list does not end with an empty line (F2)");
    } else if member.len > expected {
        let more = member.len - expected;
        log.warning("fields", expected, format!("{more} bytes follow the list"));
    }
    Ok(Some(fields))
}
