//! `trails.toc`, `trails.data` and `uuids`: places, then every event (FORMAT.md T, U).

use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    Log, Pace, Verifier, len, need,
    stream::{Stream, number},
};
use crate::{
    container::{Member, Members},
    error::Error,
    item::Item,
    member::{
        info::Info,
        trails::{PADDING, offset_width},
    },
    read::Reader,
    storage::Storage,
};

/// Trails that a thread takes at a time, at least.
const RUN: u64 = 1024;

/// Checks where trails are and whose (T1, T2, T4, U). Returns whether they can be read.
pub(super) fn check_offsets<S: Storage>(
    members: &Members<S>,
    info: &Info,
    version: u64,
    log: &Log,
    pace: &Pace<'_>,
) -> Result<bool, Error> {
    let uuids = uuids(members, info, version, log, pace)?;
    let toc = toc(members, info, log, pace)?;
    Ok(uuids && toc)
}

fn toc<S: Storage>(
    members: &Members<S>,
    info: &Info,
    log: &Log,
    pace: &Pace<'_>,
) -> Result<bool, Error> {
    const TOC: &str = "trails.toc";
    const DATA: &str = "trails.data";
    if info.trails == 0 {
        // E1: readers look at neither.
        pace.add(len(members, TOC) + len(members, DATA));
        return Ok(true);
    }
    let Some(data) = need(members, DATA, log) else { return Ok(false) };
    let width = offset_width(data.len);
    let Some(toc) = sized(members, TOC, (info.trails + 1) * width, info, log, pace) else {
        return Ok(false);
    };
    let mut stream = Stream::new(members, &toc, 0..toc.len, pace);
    let mut before = None;
    for trail in 0..=info.trails {
        let offset = number(stream.next(width as usize)?);
        let at = trail * width;
        if offset > data.len {
            let reason = format!("offset {offset} is outside trails.data, which has {}", data.len);
            log.error(TOC, at, reason);
        } else if let Some(before) = before
            && offset <= before
        {
            let reason = format!("is empty or ends before it starts: {before} to {offset}");
            log.trail(trail - 1, TOC, at, reason);
        } else if before.is_none() && offset != 0 {
            log.warning(TOC, at, format!("the first trail starts at {offset}, not at 0"));
        }
        before = Some(offset);
    }
    // T2: zeros for readers that look ahead.
    let end = before.unwrap_or(0);
    if end <= data.len && data.len - end < PADDING {
        let reason = format!("{} bytes follow the last trail, not {PADDING} (T2)", data.len - end);
        log.error(DATA, end, reason);
    } else if end < data.len {
        let mut rest = vec![0; (data.len - end).min(4096) as usize];
        members.read(&data, end, &mut rest)?;
        if rest.len() as u64 != PADDING || rest.iter().any(|&b| b != 0) {
            log.warning(DATA, end, format!("{PADDING} zeros must follow the last trail (T2)"));
        }
    }
    // A reader finds out about each trail by itself.
    Ok(true)
}

fn uuids<S: Storage>(
    members: &Members<S>,
    info: &Info,
    version: u64,
    log: &Log,
    pace: &Pace<'_>,
) -> Result<bool, Error> {
    let name = if version == 0 { "cookies" } else { "uuids" };
    if info.trails == 0 {
        pace.add(len(members, name));
        return Ok(true);
    }
    let Some(member) = sized(members, name, info.trails * 16, info, log, pace) else {
        return Ok(false);
    };
    let mut stream = Stream::new(members, &member, 0..member.len, pace);
    let mut before = None;
    for trail in 0..info.trails {
        let bytes = stream.next(16)?.try_into().expect("sixteen bytes");
        let uuid = u128::from_le_bytes(bytes);
        if version > 0 && before.is_some_and(|before| before >= uuid) {
            let reason = format!("{} is not above the UUID before it (U2)", crate::Uuid(bytes));
            log.trail(trail, name, trail * 16, reason);
        }
        before = Some(uuid);
    }
    Ok(true)
}

/// The member `name`, if it is there and has the size that the number of trails demands. If not, that
/// is told, and it is passed over.
fn sized<S: Storage>(
    members: &Members<S>,
    name: &str,
    expected: u64,
    info: &Info,
    log: &Log,
    pace: &Pace<'_>,
) -> Option<Member> {
    let member = need(members, name, log)?;
    if member.len == expected {
        return Some(member);
    }
    let reason = format!("{} bytes where {} trails need {expected}", member.len, info.trails);
    log.error(name, 0, reason);
    pace.add(member.len);
    None
}

/// What threads find out together.
struct Totals {
    trails: AtomicU64,
    events: AtomicU64,
    time_min: AtomicU64,
    time_max: AtomicU64,
    delta_max: AtomicU64,
}

/// Decodes every event of every trail. Returns how many trails and events were whole.
pub(super) fn check_events<S: Storage>(
    reader: &Reader<S>,
    info: &Info,
    verifier: &Verifier<'_>,
    log: &Log,
    pace: &Pace<'_>,
) -> Result<(u64, u64), Error> {
    // The reader may be stricter than we are about what every trail needs.
    if log.take(reader.cursor())?.is_none() {
        return Ok((0, 0));
    }
    let totals = Totals {
        trails: AtomicU64::new(0),
        events: AtomicU64::new(0),
        time_min: AtomicU64::new(u64::MAX),
        time_max: AtomicU64::new(0),
        delta_max: AtomicU64::new(0),
    };
    let data = reader.members().iter().find(|(name, _)| *name == "trails.data").map_or(0, |m| m.1);
    let run = (info.trails / (verifier.threads as u64 * 16)).max(RUN);
    let next = AtomicU64::new(0);
    let runs = info.trails.div_ceil(run);
    verifier.each_thread(runs.min(1 << 20) as usize, || {
        loop {
            let k = next.fetch_add(1, Ordering::Relaxed);
            if k >= runs {
                return Ok(());
            }
            let trails = k * run..info.trails.min((k + 1) * run);
            check_run(reader, info, trails, &totals, log)?;
            // Trails have no size that is known here; on average it is right.
            let share = |k: u64| (u128::from(data) * u128::from(k) / u128::from(runs)) as u64;
            pace.add(share(k + 1) - share(k));
        }
    })?;
    let get = |total: &AtomicU64| total.load(Ordering::Relaxed);
    let (trails, events) = (get(&totals.trails), get(&totals.events));
    if trails == info.trails {
        let compare = |what: &str, says: u64, is: u64| {
            if says != is {
                log.error("info", 0, format!("the {what} is {says} by info, {is} by the events"));
            }
        };
        compare("number of events", info.events, events);
        compare("least timestamp", info.time_min, get(&totals.time_min));
        compare("greatest timestamp", info.time_max, get(&totals.time_max));
        let delta = get(&totals.delta_max);
        if delta != info.delta_max {
            let reason =
                format!("the greatest delta is {} by info, {delta} by the events", info.delta_max);
            log.warning("info", 0, reason);
        }
    }
    Ok((trails, events))
}

fn check_run<S: Storage>(
    reader: &Reader<S>,
    info: &Info,
    trails: std::ops::Range<u64>,
    totals: &Totals,
    log: &Log,
) -> Result<(), Error> {
    // Both ways to read a trail: whole events, as most readers do, which has a decoder of its own where there
    // are few fields; and changes, since in whole events a field that comes twice looks like one that comes
    // once. With both, all of `verify` takes half as long again as with changes alone.
    let (mut cursor, mut changes) = (reader.cursor()?, reader.view().only_changes().cursor()?);
    // The latest event that carried each field.
    let mut carried = vec![0; reader.fields()?.len()];
    // An offset that is out of place was told of already.
    let known = log.has_errors("trails.toc");
    let (mut whole, mut events) = (0, 0);
    let (mut least, mut greatest, mut delta_max) = (u64::MAX, 0, 0);
    for trail in trails {
        match cursor.seek(trail).and_then(|()| changes.seek(trail)) {
            Err(Error::Damaged { member, .. }) if known && member == "trails.toc" => continue,
            result => {
                if log.take_in(Some(trail), result)?.is_none() {
                    continue;
                }
            }
        }
        let (mut before, mut is_told) = (info.time_min, false);
        let sound = loop {
            // What is wrong is told once, by the one that meets it first.
            let Some(event) = log.take_in(Some(trail), cursor.next_event())? else { break false };
            let Some(changed) = log.take_in(Some(trail), changes.next_event())? else {
                break false;
            };
            let (event, changed) = match (event, changed) {
                (None, None) => break true,
                (Some(event), Some(changed)) if event.time == changed.time => (event, changed),
                _ => {
                    log.trail(trail, "trails.data", 0, "its changes are not those of its events");
                    break false;
                }
            };
            events += 1;
            let twice = changed.items.iter().find(|item| {
                std::mem::replace(&mut carried[usize::from(item.field()) - 1], events) == events
            });
            let is_there = |item: &Item| event.items[usize::from(item.field()) - 1] == *item;
            let reason = match twice {
                Some(item) => format!("an event carries field {} twice (T9)", item.field()),
                None if changed.items.iter().all(is_there) => String::new(),
                None => "its changes are not those of its events".to_owned(),
            };
            if !reason.is_empty() && !is_told {
                log.trail(trail, "trails.data", 0, reason);
                is_told = true;
            }
            least = least.min(event.time);
            greatest = greatest.max(event.time);
            delta_max = delta_max.max(event.time - before);
            before = event.time;
        };
        whole += u64::from(sound);
    }
    totals.trails.fetch_add(whole, Ordering::Relaxed);
    totals.events.fetch_add(events, Ordering::Relaxed);
    totals.time_min.fetch_min(least, Ordering::Relaxed);
    totals.time_max.fetch_max(greatest, Ordering::Relaxed);
    totals.delta_max.fetch_max(delta_max, Ordering::Relaxed);
    Ok(())
}
