//! How many round trips a query takes, on a storage whose clock stands still but for waiting.
//!
//! ```text
//!   will_need(ranges)   their units arrive one round trip from now
//!   read                of a unit that is there: nothing; on its way: until it arrives;
//!                       missing: one round trip
//! ```
//!
//! The database has millions of trails and is never stored: every byte is computed when it is read.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    sync::{Arc, Mutex},
};

use traildb::{Builder, Index, Item, Reader, Storage, Uuid, filter, index::Build};

use crate::support;

const UNIT: u64 = 64 << 10;

type Fill = Box<dyn Fn(u64, &mut [u8]) + Send + Sync>;

/// An object of computed bytes, a round trip away.
struct Far {
    len: u64,
    /// Start of each part, and what computes its bytes from the offset in the part.
    parts: Vec<(Range<u64>, Fill)>,
    /// Objects that are read together have one.
    state: Arc<Mutex<State>>,
    /// The first unit of this object among all of them.
    unit: u64,
}

#[derive(Default)]
struct State {
    /// Round trips waited for.
    now: u64,
    /// When each unit arrives.
    units: HashMap<u64, u64>,
}

impl Far {
    /// An object of these bytes. `unit` is its first unit among those that share `state`.
    fn of(bytes: Vec<u8>, state: &Arc<Mutex<State>>, unit: u64) -> Far {
        let len = bytes.len() as u64;
        Far { len, parts: vec![(0..len, fixed(bytes))], state: state.clone(), unit }
    }

    /// Round trips so far, with the one that asked for length and version.
    fn round_trips(&self) -> u64 {
        self.state.lock().unwrap().now + 1
    }

    fn bytes_fetched(&self) -> u64 {
        self.state.lock().unwrap().units.len() as u64 * UNIT
    }
}

impl Storage for Far {
    type Bytes<'a> = Vec<u8>;

    fn len(&self) -> u64 {
        self.len
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?}");
        let mut state = self.state.lock().unwrap();
        // What one read lacks is asked for at once.
        let now = state.now;
        let mut ready = now;
        for unit in range.start / UNIT..range.end.div_ceil(UNIT) {
            ready = ready.max(*state.units.entry(self.unit + unit).or_insert(now + 1));
        }
        state.now = ready;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        for (place, fill) in &self.parts {
            let (from, to) = (place.start.max(range.start), place.end.min(range.end));
            if from < to {
                let slot = &mut bytes[(from - range.start) as usize..(to - range.start) as usize];
                fill(from - place.start, slot);
            }
        }
        Ok(bytes)
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn will_need(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let arrival = state.now + 1;
        for range in ranges {
            assert!(range.start < range.end && range.end <= self.len, "{range:?}");
            for unit in range.start / UNIT..range.end.div_ceil(UNIT) {
                state.units.entry(self.unit + unit).or_insert(arrival);
            }
        }
        Ok(())
    }
}

/// Bytes that repeat `entry(k)` for k = 0, 1, ...
fn table<const N: usize>(entry: impl Fn(u64) -> [u8; N] + Send + Sync + 'static) -> Fill {
    Box::new(move |offset, out| {
        for (byte, at) in out.iter_mut().zip(offset..) {
            *byte = entry(at / N as u64)[(at % N as u64) as usize];
        }
    })
}

fn fixed(bytes: Vec<u8>) -> Fill {
    Box::new(move |offset, out| {
        let from = offset as usize;
        out.copy_from_slice(&bytes[from..from + out.len()]);
    })
}

/// Bytes that a trail of [`far`] takes.
const TRAIL_BYTES: u64 = 400;
/// Values of each field, of eight bytes each.
const VALUES: u64 = 1_000_000;

/// A database of `trails` trails with one event each, whose UUIDs are `key(k)`, ascending, and
/// whose events have value k in each of `fields` fields.
fn far(trails: u64, fields: u64, key: impl Fn(u64) -> u128 + Send + Sync + 'static) -> Arc<Far> {
    let names: Vec<String> = (0..fields).map(|n| format!("field_{n}")).collect();
    let mut members: Vec<(String, u64, Fill)> = Vec::new();
    let lexicon_len = 4 * (VALUES + 2) + 8 * VALUES;
    for name in &names {
        let offsets = table(|k| match k {
            0 => (VALUES as u32).to_le_bytes(),
            k => ((4 * (VALUES + 2) + 8 * (k - 1)) as u32).to_le_bytes(),
        });
        let values = table::<8>(|k| format!("{k:08}").as_bytes().try_into().unwrap());
        let numbers = 4 * (VALUES + 2);
        let fill: Fill = Box::new(move |offset, out: &mut [u8]| {
            let head = numbers.saturating_sub(offset).min(out.len() as u64) as usize;
            offsets(offset, &mut out[..head]);
            values((offset + head as u64).saturating_sub(numbers), &mut out[head..]);
        });
        members.push((format!("lexicon.{name}"), lexicon_len, fill));
    }
    let list: String = names.iter().flat_map(|n| [n, "\n"]).chain(["\n"]).collect();
    members.push(("fields".into(), list.len() as u64, fixed(list.into_bytes())));
    members.push(("trails.codebook".into(), 20 << 16, Box::new(|_, out| out.fill(0))));
    let toc = table(|k| ((k * TRAIL_BYTES) as u32).to_le_bytes());
    members.push(("trails.toc".into(), 4 * (trails + 1), toc));
    let (field_bits, value_bits) = (width(fields + 1), width(VALUES));
    let data: Fill = Box::new(move |offset, out| {
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            let trail = literals(at / TRAIL_BYTES, fields, field_bits, value_bits);
            let from = (at % TRAIL_BYTES) as usize;
            let n = (trail.len() - from).min(out.len() - done);
            out[done..done + n].copy_from_slice(&trail[from..from + n]);
            done += n;
        }
    });
    members.push(("trails.data".into(), TRAIL_BYTES * trails + 8, data));
    members.push(("uuids".into(), 16 * trails, table(move |k| key(k).to_le_bytes())));

    let info = format!("{trails} {trails} 1000 1000 0\n").into_bytes();
    let mut index = String::from("TAR TOC FOR TDB VER 1\nversion 512 1\n");
    index.push_str(&format!("info 1536 {}\n", info.len()));
    let reserved: u64 = members.iter().map(|m| m.0.len() as u64 + 43).sum::<u64>() + 200;
    index.push_str(&format!("tar.toc 2560 {reserved}\n"));
    let mut at = (2560 + reserved).next_multiple_of(512);
    let mut parts = vec![(512..513, fixed(b"1".to_vec()))];
    parts.push((1536..1536 + info.len() as u64, fixed(info)));
    for (name, len, fill) in members {
        index.push_str(&format!("{name} {at} {len}\n"));
        parts.push((at..at + len, fill));
        at = (at + len).next_multiple_of(512) + 512;
    }
    index.push('\n');
    parts.push((2560..2560 + index.len() as u64, fixed(index.into_bytes())));
    Arc::new(Far { len: at + 1024, parts, state: Arc::default(), unit: 0 })
}

fn width(x: u64) -> u32 {
    64 - x.leading_zeros()
}

/// A trail of one event, all literals: delta 0, then `1 + k % VALUES` in each field.
fn literals(trail: u64, fields: u64, field_bits: u32, value_bits: u32) -> Vec<u8> {
    let mut bits: Vec<bool> = vec![false; 3];
    let mut put = |value: u64, n: u32| bits.extend((0..n).map(|b| value >> b & 1 == 1));
    put(0, 1 + field_bits + 1);
    for field in 1..=fields {
        put(0, 1);
        put(field, field_bits);
        put(1 + trail % VALUES, value_bits);
    }
    assert!(bits.len().div_ceil(8) as u64 <= TRAIL_BYTES, "the fields fit in a trail");
    // More events, of delta 0, fill the trail's bytes up.
    let event = 1 + field_bits as usize + 1;
    while bits.len() + event <= TRAIL_BYTES as usize * 8 {
        bits.extend(std::iter::repeat_n(false, event));
    }
    let unused = TRAIL_BYTES as usize * 8 - bits.len();
    assert!(unused < 8, "{unused} bits are left: the trail's length does not fit the fields");
    for (b, bit) in bits.iter_mut().take(3).enumerate() {
        *bit = unused >> b & 1 == 1;
    }
    bits.resize(TRAIL_BYTES as usize * 8, false);
    bits.chunks(8).map(|c| c.iter().rev().fold(0, |byte, &b| byte << 1 | u8::from(b))).collect()
}

/// A key near `k / trails`, as uniform keys are: the deviation wanders like a random walk's bridge.
fn uniform(trails: u64) -> impl Fn(u64) -> u128 + Send + Sync + Clone {
    let step = u128::MAX / u128::from(trails);
    move |k| {
        // A deviation of the rank by up to sqrt(T) / 2 at the middle, and none at the ends.
        let x = k as f64 / trails as f64;
        let wave = (x * 37.0).sin() * (trails as f64 * x * (1.0 - x)).sqrt();
        let rank = (k as f64 + wave).clamp(0.0, trails as f64 - 1.0);
        (rank * step as f64 / 2.0) as u128 * 2 + u128::from(k)
    }
}

/// Looks for the trails `ks` and checks what is found. Returns the round trips up to their first
/// events, and up to their values.
fn query(far: &Arc<Far>, uuids: &[Uuid], ks: &[u64], fields: u64) -> (u64, u64) {
    let reader = Reader::new(far.clone()).unwrap();
    let found = reader.trail_ids(uuids).unwrap();
    let expected: Vec<Option<u64>> = ks.iter().copied().map(Some).collect();
    assert_eq!(found, expected);
    reader.prefetch_trails(ks).unwrap();
    let mut items = Vec::new();
    for &k in ks {
        let mut trail = reader.trail(k).unwrap();
        let event = trail.next_event().unwrap().expect("every trail has an event");
        assert_eq!(event.time, 1000);
        assert_eq!(event.items.len() as u64, fields);
        items.extend(event.items.iter().map(|&item| (k, item)));
    }
    let to_events = far.round_trips();
    let all: Vec<Item> = items.iter().map(|&(_, item)| item).collect();
    reader.prefetch_values(&all).unwrap();
    for (k, item) in items {
        assert_eq!(*reader.value(item).unwrap(), *format!("{:08}", k % VALUES).as_bytes());
    }
    (to_events, far.round_trips())
}

#[test]
fn the_keys_of_these_tests_ascend() {
    let key = uniform(100_000);
    assert!((1..100_000).all(|k| key(k - 1) < key(k)));
}

#[test]
fn named_users_take_four_round_trips_to_events_and_six_to_values() {
    for trails in [3, 1000, 100_000, 4_000_000] {
        for users in [1, 10] {
            let key = uniform(trails);
            let far = far(trails, 3, key.clone());
            let ks: Vec<u64> =
                (0..users.min(trails)).map(|n| (n * 7919 + trails / 3) % trails).collect();
            let uuids: Vec<Uuid> = ks.iter().map(|&k| Uuid::from_number(key(k))).collect();
            let (events, values) = query(&far, &uuids, &ks, 3);
            assert!(events <= 4, "{users} of {trails}: {events} round trips to events");
            assert!(values <= 6, "{users} of {trails}: {values} round trips to values");
            if trails == 4_000_000 {
                let part = far.bytes_fetched() as f64 / far.len as f64;
                assert!(part < 0.02, "{users} users took {part} of the bytes");
            }
        }
    }
}

#[test]
fn many_fields_take_no_more_round_trips() {
    let (trails, fields) = (50_000, 60);
    let key = uniform(trails);
    let far = far(trails, fields, key.clone());
    let uuids = [Uuid::from_number(key(777))];
    let (events, values) = query(&far, &uuids, &[777], fields);
    assert!(events <= 4 && values <= 6, "{events} and {values}");
}

#[test]
fn clustered_uuids_take_a_bounded_number_more() {
    let trails = 4_000_000u64;
    type Key = Box<dyn Fn(u64) -> u128 + Send + Sync>;
    type Case = (&'static str, fn() -> Key);
    let cases: [Case; 3] = [
        ("all at the start of the range", || Box::new(u128::from)),
        ("two clusters", || {
            Box::new(|k| u128::from(k) + if k < 1_000_000 { 0 } else { u128::MAX / 2 })
        }),
        ("exponential", || Box::new(|k| (1u128 << (k / 32_000)) + u128::from(k))),
    ];
    for (what, key) in cases {
        let far = far(trails, 3, key());
        let ks = [0, 123_456, 999_999, 1_000_000, 3_999_999];
        let uuids: Vec<Uuid> = ks.iter().map(|&k| Uuid::from_number(key()(k))).collect();
        let (events, values) = query(&far, &uuids, &ks, 3);
        assert!(events <= 8, "{what}: {events} round trips to events");
        assert_eq!(values, events + 2, "{what}");
    }
}

/// A database whose values are spread over its trails, and its index.
fn indexed(trails: u64) -> (Vec<u8>, Vec<u8>) {
    let dir = support::scratch();
    let path = dir.path().join("db.tdb");
    let mut builder = Builder::new(&["one", "few", "many"]).unwrap();
    for trail in 0..trails {
        for time in 0..4 {
            let spread = (trail * 4 + time).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
            let values = [
                format!("{trail:020}"),
                format!("{:020}", (trail * 4 + time) % (trails / 4)),
                format!("{:020}", spread % 50),
            ];
            builder.add(Uuid::from_number(u128::from(trail) << 64), time, &values).unwrap();
        }
    }
    builder.finish(&path).unwrap();
    let reader = Reader::open(&path).unwrap();
    Build::new(&reader).write(dir.path().join("index")).unwrap();
    (std::fs::read(&path).unwrap(), std::fs::read(dir.path().join("index")).unwrap())
}

#[test]
fn a_filtered_query_with_an_index_takes_eight_round_trips() {
    let trails = 60_000;
    let (database, index) = indexed(trails);
    let cases = [
        ("one trail", "one=00000000000000000077", 8, 1),
        (
            "ten trails",
            "one=00000000000000000000 one=00000000000000006000 \
            one=00000000000000012000 one=00000000000000018000 one=00000000000000024000 \
            one=00000000000000030000 one=00000000000000036000 one=00000000000000042000 \
            one=00000000000000048000 one=00000000000000054000",
            8,
            10,
        ),
        ("a list", "few=00000000000000000123", 8, 1),
        // Values are found in three rounds for each field.
        ("two fields", "few=00000000000000000123 & one!=00000000000000000077 & time<4", 11, 1),
        ("a value that is not there", "one=00000000000000099999", 6, 0),
        ("no trail has both", "one=00000000000000000001 & one=00000000000000000002", 8, 0),
    ];
    for (what, text, most, least_events) in cases {
        // One clock for both.
        let state = Arc::default();
        let far = Arc::new(Far::of(database.clone(), &state, 0));
        let units = database.len() as u64 / UNIT + 1;
        let index = Arc::new(Far::of(index.clone(), &state, units));
        let mut reader = Reader::new(far.clone()).unwrap();
        let index = Index::open(index, &reader).unwrap();
        reader.attach(index).unwrap();
        let wanted = filter::parse(text).unwrap().bind(&reader).unwrap();
        let mut events = 0;
        reader
            .view()
            .with_filter(wanted)
            .scan_matching()
            .unwrap()
            .run(
                |chunk| {
                    let mut count = 0;
                    while let Some(trail) = chunk.next_trail()? {
                        count += trail.count_rest()?;
                    }
                    Ok::<u64, traildb::Error>(count)
                },
                |count| {
                    events += count;
                    Ok(())
                },
            )
            .unwrap();
        assert!(events >= least_events, "{what}: {events} events");
        let (rounds, part) = (far.round_trips(), far.bytes_fetched() as f64 / far.len as f64);
        println!("{what}: {rounds} round trips, {events} events, {part:.3} of the bytes");
        assert!(rounds <= most, "{what}: {rounds} round trips");
    }
}

/// The bytes of lexicons far away, which are not read whole: with an index a value is found by it and
/// looked at, and without one its neighbours of the same length are.
#[test]
fn a_far_lexicon_is_not_read_whole_to_find_a_value() {
    let (database, index) = indexed(60_000);
    let far = Arc::new(Far::of(database, &Arc::default(), 0));
    let index = Arc::new(Far::of(index, &Arc::default(), 0));
    let mut reader = Reader::new(far.clone()).unwrap();
    let index = Index::open(index, &reader).unwrap();
    reader.attach(index).unwrap();
    let lexicon = reader.members().iter().find(|member| member.0 == "lexicon.one").unwrap().1;
    assert!(lexicon > 20 * UNIT, "{lexicon} bytes");
    for (value, is_there) in [(77, true), (31_234, true), (60_001, false)] {
        let before = far.bytes_fetched();
        let found = reader.item(1, format!("{value:020}").as_bytes()).unwrap();
        assert_eq!(found.is_some(), is_there, "{value}");
        let fetched = far.bytes_fetched() - before;
        assert!(fetched <= 5 * UNIT, "{value}: {fetched} of {lexicon} bytes");
    }

    let dir = support::scratch();
    let path = dir.path().join("db.tdb");
    let mut builder = Builder::new(&["text"]).unwrap();
    for n in 0..20_000u64 {
        let width = if n % 5_000 == 1_234 { 7 } else { 200 + n as usize % 50 };
        builder.add(Uuid::default(), n, &[format!("{n:0width$}")]).unwrap();
    }
    builder.finish(&path).unwrap();
    let far = Arc::new(Far::of(std::fs::read(&path).unwrap(), &Arc::default(), 0));
    let reader = Reader::new(far.clone()).unwrap();
    let lexicon = reader.members().iter().find(|member| member.0 == "lexicon.text").unwrap().1;
    assert!(lexicon > 60 * UNIT, "{lexicon} bytes");
    let (before, rounds) = (far.bytes_fetched(), far.round_trips());
    // Again and again, too: no table is made of what is far away.
    for n in [1_234u64, 6_234, 11_234, 16_234] {
        let found = reader.item(1, format!("{n:07}").as_bytes()).unwrap();
        assert_eq!(found, Some(Item::new(1, n + 1)));
    }
    assert_eq!(reader.item(1, b"no such").unwrap(), None);
    // The offsets are two units, and four values lie in as many.
    let fetched = far.bytes_fetched() - before;
    assert!(fetched <= 10 * UNIT, "{fetched} of {lexicon} bytes");
    // For the first one: the lexicon's head, the offsets, and those of its length.
    let rounds = far.round_trips() - rounds;
    assert!(rounds <= 5, "{rounds} round trips");
}

/// Values of the length of the wanted one, of which each lies in a unit of its own: they were read one
/// after the other, a round trip each.
#[test]
fn values_of_one_length_are_asked_for_together() {
    const VALUES: u64 = 20_000;
    const EACH: u64 = 400;
    let dir = support::scratch();
    let path = dir.path().join("db.tdb");
    let mut builder = Builder::new(&["text"]).unwrap();
    for n in 0..VALUES {
        // None of the others has a length that shares the bit of seven, as 519 has.
        let width = if n % EACH == 123 { 7 } else { 520 + n as usize % 50 };
        builder.add(Uuid::default(), n, &[format!("{n:0width$}")]).unwrap();
    }
    builder.finish(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let wanted = [0, 1, 25, 48, 49].map(|k| EACH * k + 123);
    for n in wanted.into_iter().map(Some).chain([None]) {
        let far = Arc::new(Far::of(bytes.clone(), &Arc::default(), 0));
        let reader = Reader::new(far.clone()).unwrap();
        let before = far.bytes_fetched();
        let rounds = far.round_trips();
        let value = n.map_or("no such".to_owned(), |n| format!("{n:07}"));
        let found = reader.item(1, value.as_bytes()).unwrap();
        assert_eq!(found, n.map(|n| Item::new(1, n + 1)), "{value}");
        // The lexicon's head; its offsets; of fifty values 8, 16, and the rest.
        let rounds = far.round_trips() - rounds;
        assert!(rounds <= 6, "{value}: {rounds} round trips");
        // Of the first one at most seven more are fetched than are looked at.
        let units = (far.bytes_fetched() - before) / UNIT;
        let most = n.map_or(50, |n| 2 * (n / EACH) + 8).min(50) + 5;
        assert!(units <= most, "{value}: {units} units");
    }
    // Many of them at once take no more.
    let far = Arc::new(Far::of(bytes, &Arc::default(), 0));
    let reader = Reader::new(far.clone()).unwrap();
    let rounds = far.round_trips();
    let terms: Vec<String> = wanted.iter().map(|n| format!("text={n:07}")).collect();
    let bound = filter::parse(terms.join(" ")).unwrap().bind(&reader);
    assert!(bound.is_ok());
    let rounds = far.round_trips() - rounds;
    assert!(rounds <= 6, "{rounds} round trips");
}

#[test]
fn a_thousand_trails_at_random_take_a_few_round_trips_for_each_chunk() {
    let trails = 4_000_000u64;
    let far = far(trails, 3, uniform(trails));
    let reader = Reader::new(far.clone()).unwrap();
    let named: Vec<u64> = (0..1024).map(|k| k * 3_904 + k % 7).collect();
    let mut events = 0u64;
    reader
        .view()
        .scan()
        .trails(named)
        .run(
            |chunk| {
                let mut count = 0;
                while let Some(trail) = chunk.next_trail()? {
                    count += u64::from(trail.next_event()?.is_some());
                }
                Ok::<u64, traildb::Error>(count)
            },
            |count| {
                events += count;
                Ok(())
            },
        )
        .unwrap();
    assert_eq!(events, 1024);
    // Three to open, and two for each of the chunks, of 256, 512 and 256: where trails are, and themselves.
    let rounds = far.round_trips();
    assert!(rounds <= 9, "{rounds} round trips");
}

#[test]
fn a_long_list_of_trails_takes_few_round_trips() {
    let trails = 200_000;
    let far = far(trails, 1, uniform(trails));
    let reader = Reader::new(far.clone()).unwrap();
    let mut listed = 0;
    reader
        .view()
        .scan()
        .trails((0..trails).step_by(2))
        .run(
            |chunk| {
                let mut trails = 0u64;
                while let Some(trail) = chunk.next_trail()? {
                    assert!(trail.next_event()?.is_some());
                    trails += 1;
                }
                Ok::<_, traildb::Error>(trails)
            },
            |trails| {
                listed += trails;
                Ok(())
            },
        )
        .unwrap();
    assert_eq!(listed, trails / 2);
    // Two for each chunk of up to 4096 trails, and for those that come before.
    let most = 4 + 2 * (5 + listed / 4096);
    assert!(far.round_trips() <= most, "{} round trips of {most}", far.round_trips());
}

/// Announcing came before the step to the next trail: whoever went on after an error never came to the
/// end, and the trails before the wrong one were not handed out.
#[test]
fn a_list_with_a_trail_that_is_none_goes_on_behind_it() {
    let reader = Reader::new(far(1000, 1, uniform(1000))).unwrap();
    let mut seen = Vec::new();
    let work = |chunk: &mut traildb::Chunk<'_, '_, Arc<Far>>| {
        let mut seen = Vec::new();
        for _ in 0..10 {
            match chunk.next_trail() {
                Ok(Some(trail)) => seen.push(trail.id().unwrap().to_string()),
                Ok(None) => break,
                Err(error) => seen.push(error.to_string()),
            }
        }
        Ok::<_, traildb::Error>(seen)
    };
    let view = reader.view();
    let scan = view.scan().threads(1).trails([0, 1, 1005, 2]);
    scan.run(work, |part| {
        seen.extend(part);
        Ok(())
    })
    .unwrap();
    assert_eq!([&seen[0], &seen[1], &seen[3]], ["0", "1", "2"], "{seen:?}");
    assert!(seen.len() == 4 && seen[2].contains("1005"), "{seen:?}");
}
