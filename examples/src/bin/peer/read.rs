//! What is asked of a database.

use std::{fs, time::Instant};

use traildb::{
    Filter, Item, Reader, Uuid,
    filter::{Clause, Term},
};

use crate::{Figures, On, Read, split_mix};

type Db = Reader<Vec<u8>>;

pub(crate) fn run(what: &Read) -> Result<Figures, String> {
    let (Read::Scan(on)
    | Read::Values(on)
    | Read::Filter { on, .. }
    | Read::Uuids { on, .. }
    | Read::Items { on, .. }) = what;
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", on.db.display());
    let db = Db::new(fs::read(&on.db).map_err(|e| told(&e))?).map_err(|e| told(&e))?;
    let rounds = |work: &mut dyn FnMut() -> Result<(u64, u64), traildb::Error>| {
        timed(on, work).map_err(|e| told(&e))
    };
    match what {
        Read::Scan(_) => rounds(&mut || scan(&db)),
        Read::Values(_) => rounds(&mut || values(&db)),
        Read::Filter { terms, .. } => {
            let terms = bound(&db, terms)?;
            rounds(&mut || filter(&db, &terms))
        }
        Read::Uuids { count, .. } => {
            let uuids = some_uuids(&db, *count).map_err(|e| told(&e))?;
            rounds(&mut || trails(&db, &uuids))
        }
        Read::Items { field, count, .. } => {
            let field = db.field(field).map_err(|e| told(&e))?;
            let values = some_values(&db, field, *count).map_err(|e| told(&e))?;
            rounds(&mut || items(&db, field, &values))
        }
    }
}

/// Runs once to warm up, then as often as was asked for.
fn timed(
    on: &On,
    work: &mut dyn FnMut() -> Result<(u64, u64), traildb::Error>,
) -> Result<Figures, traildb::Error> {
    let mut figures = Figures::default();
    let clock = Instant::now();
    (figures.events, figures.sum) = work()?;
    figures.first = clock.elapsed().as_secs_f64();
    for _ in 0..on.rounds {
        let clock = Instant::now();
        (figures.events, figures.sum) = work()?;
        figures.seconds.push(clock.elapsed().as_secs_f64());
    }
    Ok(figures)
}

/// Number of events, and the sum of their times.
fn scan(db: &Db) -> Result<(u64, u64), traildb::Error> {
    let (mut events, mut sum) = (0, 0u64);
    let mut cursor = db.cursor()?;
    for trail in 0..db.trails() {
        cursor.seek(trail)?;
        while let Some(event) = cursor.next_event()? {
            events += 1;
            sum = sum.wrapping_add(event.time);
        }
    }
    Ok((events, sum))
}

/// The same, and of every value its length and its last byte.
fn values(db: &Db) -> Result<(u64, u64), traildb::Error> {
    let (mut events, mut sum) = (0, 0u64);
    let mut cursor = db.view().values_ahead().cursor()?;
    for trail in 0..db.trails() {
        cursor.seek(trail)?;
        while let Some(event) = cursor.next_with_values()? {
            events += 1;
            sum = sum.wrapping_add(event.time);
            for value in event.values() {
                sum += value.len() as u64 + u64::from(value.last().copied().unwrap_or(0));
            }
        }
    }
    Ok((events, sum))
}

fn bound(db: &Db, terms: &[String]) -> Result<Vec<Item>, String> {
    let pairs = terms.chunks(2).map(|pair| match pair {
        [field, value] => {
            let number = db.field(field).map_err(|e| e.to_string())?;
            let item = db.item(number, value.as_bytes()).map_err(|e| e.to_string())?;
            item.ok_or_else(|| format!("{field} has no value {value:?}"))
        }
        _ => Err("a field without a value".to_owned()),
    });
    pairs.collect()
}

/// The same of events that have all these items.
fn filter(db: &Db, terms: &[Item]) -> Result<(u64, u64), traildb::Error> {
    let (mut events, mut sum) = (0, 0u64);
    let clauses = terms.iter().map(|&term| Clause::new([Term::is(term)]));
    let mut cursor = db.view().with_filter(Filter::new(clauses)).cursor()?;
    for trail in 0..db.trails() {
        cursor.seek(trail)?;
        while let Some(event) = cursor.next_event()? {
            events += 1;
            sum = sum.wrapping_add(event.time);
        }
    }
    Ok((events, sum))
}

fn some_uuids(db: &Db, count: u64) -> Result<Vec<Uuid>, traildb::Error> {
    let mut state = 1;
    (0..count).map(|_| db.uuid(split_mix(&mut state) % db.trails())).collect()
}

/// The events of these trails, and the sum of their times.
fn trails(db: &Db, uuids: &[Uuid]) -> Result<(u64, u64), traildb::Error> {
    let (mut events, mut sum) = (0, 0u64);
    let mut cursor = db.cursor()?;
    for &uuid in uuids {
        let trail = db.trail_id(uuid)?.unwrap_or(u64::MAX);
        cursor.seek(trail)?;
        while let Some(event) = cursor.next_event()? {
            events += 1;
            sum = sum.wrapping_add(event.time);
        }
    }
    Ok((events, sum))
}

fn some_values(db: &Db, field: u16, count: u64) -> Result<Vec<Vec<u8>>, traildb::Error> {
    let mut state = 1;
    let last = db.values(field)?;
    let value = |_| {
        let number = 1 + split_mix(&mut state) % last;
        db.value(Item::new(field, number)).map(|value| value.to_vec())
    };
    (0..count).map(value).collect()
}

/// How many of these values there are, and the sum of their numbers.
fn items(db: &Db, field: u16, values: &[Vec<u8>]) -> Result<(u64, u64), traildb::Error> {
    let (mut found, mut sum) = (0, 0);
    for value in values {
        if let Some(item) = db.item(field, value)? {
            found += 1;
            sum += item.value();
        }
    }
    Ok((found, sum))
}
