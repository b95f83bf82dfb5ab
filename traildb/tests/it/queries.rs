//! Filters, views, merged cursors and scans, each against the plainest code that says the same.

use std::{path::PathBuf, sync::Arc};

use proptest::{collection::vec, prelude::*};
use traildb::{
    Batch, Builder, Error, Event, Filter, Item, MultiBatch, MultiCursor, Reader, Trail, Uuid, View,
    filter::{self, BindError, Clause, Expr, FileValues, Term, UnknownFields},
    storage::File,
};

use crate::support::{self, Row, Rows};

const FIELDS: [&str; 3] = ["a", "b", "c"];

/// What a random database holds: a list of trails, each of times and values.
pub(crate) type Plain = Vec<Vec<(u64, [u8; 3])>>;

pub(crate) fn plain() -> impl Strategy<Value = Plain> {
    let event = (0..20u64, [0..5u8, 0..3u8, 0..8u8]);
    vec(vec(event, 1..12), 0..12)
}

/// Value number `n` of a field: 0 is the empty one.
pub(crate) fn value(n: u8) -> Vec<u8> {
    match n {
        0 => Vec::new(),
        1 => b"one".to_vec(),
        2 => b"\"t) (w&o\\ \n".to_vec(),
        3 => vec![0, 255, 128],
        n => vec![b'x'; usize::from(n)],
    }
}

/// The database of `plain`, and what is in it in the order of the file.
pub(crate) fn database(plain: &Plain) -> (tempfile::TempDir, Reader<File>, Vec<Rows>) {
    let dir = support::scratch();
    let path = dir.path().join("db.tdb");
    let mut builder = Builder::new(&FIELDS).unwrap();
    let mut rows: Vec<Rows> = Vec::new();
    for (number, trail) in plain.iter().enumerate() {
        let uuid = Uuid::from_number((number as u128 * 0x9E37_79B9_7F4A_7C15) << 20);
        let mut events: Vec<Row> = Vec::new();
        for (time, values) in trail {
            let values: Vec<Vec<u8>> = values.iter().map(|&n| value(n)).collect();
            builder.add(uuid, *time, &values).unwrap();
            events.push((*time, values));
        }
        events.sort_by_key(|row| row.0);
        rows.push((uuid, events));
    }
    rows.sort_by_key(|trail| trail.0);
    builder.finish(&path).unwrap();
    (dir, Reader::open(&path).unwrap(), rows)
}

/// A condition, as a tree that is easy to make and to evaluate.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    Is(usize, u8),
    In(usize, Vec<u8>),
    /// `>=`, `<`, `=`, `!=` and so on by number.
    Time(usize, u64),
    Not(Box<Wanted>),
    All(Vec<Wanted>),
    Any(Vec<Wanted>),
}

pub(crate) fn wanted() -> impl Strategy<Value = Wanted> {
    let leaf = prop_oneof![
        // A value number of 9 or more is in no database.
        4 => (0..3usize, 0..12u8).prop_map(|(field, n)| Wanted::Is(field, n)),
        1 => (0..3usize, vec(0..12u8, 0..4)).prop_map(|(field, n)| Wanted::In(field, n)),
        1 => (0..6usize, 0..22u64).prop_map(|(op, time)| Wanted::Time(op, time)),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|w| Wanted::Not(Box::new(w))),
            vec(inner.clone(), 1..4).prop_map(Wanted::All),
            vec(inner, 1..4).prop_map(Wanted::Any),
        ]
    })
}

const COMPARISONS: [&str; 6] = ["=", "!=", "<", "<=", ">", ">="];

impl Wanted {
    pub(crate) fn matches(&self, (time, values): &Row) -> bool {
        match self {
            Wanted::Is(field, n) => values[*field] == value(*n),
            Wanted::In(field, list) => list.iter().any(|&n| values[*field] == value(n)),
            Wanted::Time(op, at) => match op {
                0 => time == at,
                1 => time != at,
                2 => time < at,
                3 => time <= at,
                4 => time > at,
                _ => time >= at,
            },
            Wanted::Not(inner) => !inner.matches(&(*time, values.clone())),
            Wanted::All(list) => list.iter().all(|w| w.matches(&(*time, values.clone()))),
            Wanted::Any(list) => list.iter().any(|w| w.matches(&(*time, values.clone()))),
        }
    }

    pub(crate) fn expr(&self) -> Expr {
        match self {
            Wanted::Is(field, n) => Expr::is(FIELDS[*field], value(*n)),
            Wanted::In(field, list) => Expr::one_of(FIELDS[*field], list.iter().map(|&n| value(n))),
            Wanted::Time(op, at) => match op {
                0 => Expr::time(at..=at),
                1 => Expr::time(at..=at).not(),
                2 => Expr::time(..at),
                3 => Expr::time(..=at),
                4 => Expr::time(..=at).not(),
                _ => Expr::time(at..),
            },
            Wanted::Not(inner) => inner.expr().not(),
            Wanted::All(list) => list.iter().map(Wanted::expr).reduce(Expr::and).unwrap(),
            Wanted::Any(list) => list.iter().map(Wanted::expr).reduce(Expr::or).unwrap(),
        }
    }

    /// As text. A list is written as alternatives, and one of nothing as what never is.
    fn text(&self) -> String {
        let quoted = |n: u8| -> String {
            let byte = |b: u8| match b {
                b'"' | b'\\' => format!("\\{}", char::from(b)),
                b' '..=b'~' => char::from(b).to_string(),
                b => format!("\\x{b:02x}"),
            };
            format!("\"{}\"", value(n).into_iter().map(byte).collect::<String>())
        };
        let join = |list: &[Wanted], by: &str| {
            format!("({})", list.iter().map(Wanted::text).collect::<Vec<_>>().join(by))
        };
        match self {
            Wanted::Is(field, n) if n % 2 == 0 => format!("{}={}", FIELDS[*field], quoted(*n)),
            Wanted::Is(field, n) => format!("!{}!={}", FIELDS[*field], quoted(*n)),
            Wanted::In(_, list) if list.is_empty() => "time<0".into(),
            Wanted::In(field, list) => {
                let list: Vec<_> = list.iter().map(|&n| Wanted::Is(*field, n)).collect();
                join(&list, " ")
            }
            Wanted::Time(op, at) => format!("time{}{at}", COMPARISONS[*op]),
            Wanted::Not(inner) => format!("!{}", inner.text()),
            Wanted::All(list) => join(list, " & "),
            Wanted::Any(list) => join(list, " "),
        }
    }
}

/// The events that a cursor gives on each trail.
fn rows(view: &View<'_, File>) -> Vec<Rows> {
    let mut cursor = view.cursor().unwrap();
    let reader = view.reader();
    let trails = (0..reader.trails()).map(|trail| {
        cursor.seek(trail).unwrap();
        (reader.uuid(trail).unwrap(), rest(&mut cursor))
    });
    trails.collect()
}

fn rest(cursor: &mut Trail<'_, File>) -> Vec<Row> {
    let reader = cursor.reader();
    let mut events = Vec::new();
    while let Some(event) = cursor.next_event().unwrap() {
        events.push(row(reader, event));
    }
    events
}

fn row(reader: &Reader<File>, event: Event<'_>) -> Row {
    let values = event.items.iter().map(|&item| reader.value(item).unwrap().to_vec());
    (event.time, values.collect())
}

fn filtered(rows: &[Rows], wanted: &Wanted) -> Vec<Rows> {
    let mut rows = rows.to_vec();
    rows.iter_mut().for_each(|(_, events)| events.retain(|row| wanted.matches(row)));
    rows
}

proptest! {
    /// Put together or read from text, a filter finds what a look at every event finds; and in
    /// bulk, counted, scanned by several threads or one by one, the events are the same.
    #[test]
    fn filters_find_what_a_naive_evaluator_finds(plain in plain(), wanted in wanted()) {
        let (_dir, reader, all) = database(&plain);
        let expected = filtered(&all, &wanted);
        let bound = match wanted.expr().bind(&reader) {
            Ok(filter) => filter,
            Err(BindError::TooLarge) => return Ok(()),
            Err(error) => panic!("{error}"),
        };
        let text = wanted.text();
        let parsed = filter::parse(&text).unwrap().bind(&reader).unwrap();
        for (what, filter) in [("an expression", bound), ("a text", parsed)] {
            let view = reader.view().with_filter(filter.clone());
            prop_assert_eq!(&rows(&view), &expected, "{}: {}", what, &text);
            let times = filter.times();
            let mut batch = Batch::new(3);
            for (trail, (_, events)) in expected.iter().enumerate() {
                let trail = trail as u64;
                prop_assert_eq!(view.trail_len(trail).unwrap(), events.len() as u64);
                let mut cursor = view.trail(trail).unwrap();
                let mut found = Vec::new();
                while cursor.next_batch(&mut batch).unwrap() > 0 {
                    prop_assert!(batch.len() == batch.iter().len() && batch.len() <= 3);
                    found.extend(batch.iter().map(|event| row(&reader, event)));
                }
                prop_assert_eq!(&found, events);
                for (time, _) in events {
                    prop_assert!(times.as_ref().is_some_and(|times| times.contains(time)));
                }
            }
        }
    }

    /// Cursors merged by time give what a stable sort of all their events gives.
    #[test]
    fn merged_cursors_are_a_stable_sort(
        first in plain(),
        second in plain(),
        picks in vec((any::<bool>(), any::<prop::sample::Index>(), 0..3u64), 0..8),
        batch_max in 1..7usize,
    ) {
        let (_a, one, _) = database(&first);
        let (_b, two, _) = database(&second);
        let mut cursors = Vec::new();
        let mut expected = Vec::new();
        for (which, pick, skip) in picks {
            let reader = if which { &one } else { &two };
            if reader.trails() == 0 {
                continue;
            }
            let trail = pick.index(reader.trails() as usize) as u64;
            // A cursor is merged from where it is, also when its next event was looked at.
            let mut cursor = reader.trail(trail).unwrap();
            for _ in 0..skip {
                cursor.next_event().unwrap();
                cursor.peek_event().unwrap();
            }
            let number = cursors.len();
            cursors.push(cursor);
            let events = rest(&mut reader.trail(trail).unwrap());
            let left = events.into_iter().skip(skip as usize);
            expected.extend(left.map(|row| (row.0, number, row)));
        }
        expected.sort_by_key(|&(time, number, _)| (time, number));
        let expected: Vec<(usize, Row)> =
            expected.into_iter().map(|(_, number, row)| (number, row)).collect();
        let readers: Vec<&Reader<File>> = cursors.iter().map(Trail::reader).collect();
        let starts: Vec<u64> = cursors.iter().map(|cursor| cursor.id().unwrap()).collect();
        let mut merged = MultiCursor::new(cursors);
        let mut found = Vec::new();
        let mut batch = MultiBatch::new(batch_max);
        loop {
            // One by one and in bulk by turns.
            let peeked = merged.peek().unwrap().map(|head| (head.cursor, head.event.time));
            let Some(next) = merged.next_event().unwrap() else { break };
            prop_assert_eq!(peeked, Some((next.cursor, next.event.time)));
            found.push((next.cursor, row(readers[next.cursor], next.event)));
            merged.next_batch(&mut batch).unwrap();
            found.extend(batch.iter().map(|next| (next.cursor, row(readers[next.cursor], next.event))));
        }
        prop_assert_eq!(found, expected);
        // From the start again.
        let mut starts = starts.iter();
        merged.reset(|cursor| cursor.seek(*starts.next().unwrap())).unwrap();
        let mut count = 0;
        while merged.next_batch(&mut batch).unwrap() > 0 {
            count += batch.len() as u64;
        }
        let sum = |cursor: &Trail<'_, File>| cursor.reader().trail_len(cursor.id().unwrap()).unwrap();
        prop_assert_eq!(count, merged.cursors().iter().map(sum).sum::<u64>());
    }

    /// Events as changes, put together again, are the events.
    #[test]
    fn changes_add_up(plain in plain()) {
        let (_dir, reader, all) = database(&plain);
        let view = reader.view().only_changes();
        for (trail, (_, events)) in all.iter().enumerate() {
            let mut cursor = view.trail(trail as u64).unwrap();
            let mut state: Vec<Item> = (1..=3).map(|field| Item::new(field, 0)).collect();
            let mut found = Vec::new();
            let mut first = true;
            while let Some(event) = cursor.next_event().unwrap() {
                for item in event.items {
                    let slot = &mut state[usize::from(item.field()) - 1];
                    prop_assert!(first || *slot != *item, "{:?} did not change", item);
                    *slot = *item;
                }
                first = false;
                found.push(row(&reader, Event { time: event.time, items: &state }));
            }
            prop_assert_eq!(&found, events);
        }
    }
}

/// Trails enough for many chunks, each with `1 + number % 5` events.
pub(crate) fn large() -> (tempfile::TempDir, Reader<File>) {
    let dir = support::scratch();
    let path = dir.path().join("db.tdb");
    let mut builder = Builder::new(&["n", "even"]).unwrap();
    for number in 0..20_000u64 {
        for k in 0..=number % 5 {
            let values = [number.to_string(), ["", "yes"][(number % 2) as usize].into()];
            builder.add(Uuid::from_number(u128::from(number)), 100 + k, &values).unwrap();
        }
    }
    builder.finish(&path).unwrap();
    (dir, Reader::open(&path).unwrap())
}

#[test]
fn a_scan_merges_in_the_order_of_trails() {
    let (_dir, reader) = large();
    let named: Vec<u64> = (0..20_000).rev().step_by(7).collect();
    for threads in [1, 2, 5] {
        let collect = |scan: traildb::Scan<'_, File>| {
            let mut found = Vec::new();
            let work = |chunk: &mut traildb::Chunk<'_, '_, File>| {
                let mut list = Vec::new();
                while let Some(trail) = chunk.next_trail()? {
                    list.push((trail.id().unwrap(), trail.count_rest()?));
                }
                Ok::<_, Error>(list)
            };
            let merge = |list: Vec<(u64, u64)>| {
                found.extend(list);
                Ok(())
            };
            scan.threads(threads).run(work, merge).unwrap();
            found
        };
        let expected = |trail: u64| (trail, 1 + trail % 5);
        let all: Vec<_> = (0..20_000).map(expected).collect();
        assert!(collect(reader.view().scan()) == all, "{threads} threads");
        assert!(collect(reader.view().scan().range(500..19_000)) == all[500..19_000]);
        assert!(collect(reader.view().scan().range(19_999..u64::MAX)) == all[19_999..]);
        assert!(collect(reader.view().scan().range(30_000..40_000)).is_empty());
        let found = collect(reader.view().scan().trails(named.clone()));
        assert!(found == named.iter().copied().map(expected).collect::<Vec<_>>());
        assert!(collect(reader.view().scan().trails([])).is_empty());
    }
}

#[test]
fn a_scan_stops_at_the_first_error_in_order() {
    let (_dir, reader) = large();
    for threads in [1, 3] {
        let mut merged = 0;
        let done = reader.view().scan().threads(threads).run(
            |chunk| {
                let mut last = 0;
                while let Some(trail) = chunk.next_trail()? {
                    last = trail.id().unwrap();
                    if last == 7777 || last == 15_000 {
                        return Err(Error::NoSuchTrail { trail: last, trails: 0 });
                    }
                }
                Ok(last)
            },
            |last| {
                merged = last;
                Ok(())
            },
        );
        assert!(matches!(done, Err(Error::NoSuchTrail { trail: 7777, .. })), "{done:?}");
        assert!(merged < 7777 && merged > 5000, "merged up to {merged}");
        let done =
            reader.view().scan().threads(threads).run(|_| Ok(()), |()| Err(Error::FilterOfChanges));
        assert!(matches!(done, Err(Error::FilterOfChanges)));
        let done = reader.view().scan().threads(threads).trails([1, 20_000]).run(
            |chunk| {
                while chunk.next_trail()?.is_some() {}
                Ok::<_, Error>(())
            },
            |()| Ok(()),
        );
        assert!(matches!(done, Err(Error::NoSuchTrail { trail: 20_000, .. })));
    }
}

#[test]
#[should_panic(expected = "this one is broken")]
fn a_panic_of_a_scan_is_passed_on() {
    let (_dir, reader) = large();
    let work = |chunk: &mut traildb::Chunk<'_, '_, File>| {
        while let Some(trail) = chunk.next_trail()? {
            assert_ne!(trail.id(), Some(9000), "this one is broken");
        }
        Ok::<_, Error>(())
    };
    let _ = reader.view().scan().threads(3).run(work, |()| Ok(()));
}

#[test]
fn the_strongest_filter_counts() {
    let (_dir, reader) = large();
    let bind = |text: &str| Arc::new(filter::parse(text).unwrap().bind(&reader).unwrap());
    let count = |cursor: &mut Trail<'_, File>, trail: u64| {
        cursor.seek(trail).unwrap();
        cursor.count_rest().unwrap()
    };
    // Trail 4 has events at 100 to 104.
    let view = reader.view().with_filter(bind("time<102"));
    let mut cursor = view.cursor().unwrap();
    assert_eq!(count(&mut cursor, 4), 2, "the database's");
    let view = view.with_trail_filter(4, bind("time=104")).with_trail_filter(9, Filter::none());
    let mut cursor = view.cursor().unwrap();
    assert_eq!(count(&mut cursor, 4), 1, "the trail's");
    assert_eq!(count(&mut cursor, 9), 0, "the trail's, of nothing");
    assert_eq!(count(&mut cursor, 14), 2, "the database's again");
    cursor.set_filter(Some(bind("time>=101"))).unwrap();
    assert_eq!(count(&mut cursor, 4), 4, "the cursor's");
    assert_eq!(count(&mut cursor, 9), 4, "the cursor's on another trail");
    cursor.set_filter(None).unwrap();
    assert_eq!(count(&mut cursor, 4), 1, "the trail's again");
    // In the middle of a trail.
    cursor.set_filter(Some(Arc::new(Filter::all()))).unwrap();
    cursor.seek(4).unwrap();
    assert_eq!(cursor.next_event().unwrap().unwrap().time, 100);
    cursor.set_filter(Some(bind("time>=103"))).unwrap();
    assert_eq!(cursor.next_event().unwrap().unwrap().time, 103);
    // A view of one trail only.
    let view = reader.view().with_filter(Filter::none()).with_trail_filter(14, Filter::all());
    let seen: u64 = (0..30).map(|trail| view.trail_len(trail).unwrap()).sum();
    assert_eq!(seen, 5);
}

/// A trail that its view shows nothing of is not read until a filter of the cursor asks for it.
#[test]
fn the_filter_of_a_cursor_overrides_one_that_lets_nothing_through() {
    let (_dir, reader) = large();
    let bind = |text: &str| Arc::new(filter::parse(text).unwrap().bind(&reader).unwrap());
    let times = |cursor: &mut Trail<'_, File>| {
        let mut times = Vec::new();
        while let Some(event) = cursor.next_event().unwrap() {
            times.push(event.time);
        }
        times
    };
    let view = reader.view().with_filter(Filter::none());
    let mut cursor = view.trail(4).unwrap();
    cursor.set_filter(Some(bind("time>=103"))).unwrap();
    assert_eq!(times(&mut cursor), [103, 104]);
    let mut cursor = view.trail(4).unwrap();
    assert_eq!(times(&mut cursor), [0u64; 0], "nothing is seen until then");
    cursor.set_filter(Some(Arc::new(Filter::none()))).unwrap();
    assert_eq!(times(&mut cursor), [0u64; 0]);
    cursor.set_filter(Some(Arc::new(Filter::all()))).unwrap();
    assert_eq!(times(&mut cursor), [100, 101, 102, 103, 104]);
    // What was read is not read again.
    cursor.set_filter(Some(Arc::new(Filter::none()))).unwrap();
    cursor.set_filter(Some(Arc::new(Filter::all()))).unwrap();
    assert_eq!(times(&mut cursor), [0u64; 0]);
}

#[test]
fn changes_cannot_be_filtered() {
    let (_dir, reader) = large();
    let filter = || Filter::new([Clause::new([Term::time(..1)])]);
    let view = reader.view().only_changes();
    let mut cursor = view.cursor().unwrap();
    assert!(matches!(cursor.set_filter(Some(Arc::new(filter()))), Err(Error::FilterOfChanges)));
    let refused = [view.clone().with_filter(filter()), view.with_trail_filter(3, filter())];
    for view in refused {
        assert!(matches!(view.trail(1), Err(Error::FilterOfChanges)));
    }
}

#[test]
fn filters_that_cannot_be_bound() {
    let (_dir, reader) = large();
    let text = "n=1 & nobody=2";
    let expr = filter::parse(text).unwrap();
    let error = expr.bind(&reader).unwrap_err();
    assert_eq!(
        error.to_string(),
        "filter, character 7: the database has no field \"nobody\"\n  n=1 & nobody=2\n        ^"
    );
    let lenient = expr.bind_with(&reader, UnknownFields::NoMatch).unwrap();
    assert!(lenient.is_none());
    let negated = filter::parse("nobody!=2").unwrap();
    assert!(negated.bind_with(&reader, UnknownFields::NoMatch).unwrap().is_all());
    assert!(matches!(filter::parse("n=@f").unwrap().bind(&reader), Err(BindError::Text(_))));
    // 2^13 alternatives of alternatives.
    let pair = |k: u32| format!("(n={k} & even={k})");
    let text: Vec<String> = (0..13).map(pair).collect();
    let error = filter::parse(text.join(" ")).unwrap().bind(&reader).unwrap_err();
    assert!(matches!(error, BindError::TooLarge), "{error}");
    // One after the other they are 26 clauses.
    let flat = filter::parse(text.join(" & ")).unwrap().bind(&reader).unwrap();
    assert!(flat.is_none() || flat.clauses().len() == 26);
    // What is not multiplied out takes no more than its text does.
    let many: Vec<String> = (0..5000).map(|k| format!("n!={k}")).collect();
    filter::parse(many.join(" & ")).unwrap().bind(&reader).unwrap();
}

#[test]
fn a_filter_of_the_c_library_means_what_it_does_there() {
    let folder = support::scratch();
    let path = folder.path().join("c.tdb");
    let mut builder = Builder::new(&["a", "b"]).unwrap();
    for (time, a, b) in [(1, "x", "y"), (2, "x)", "q"), (3, "\"q\"", "y"), (4, "x", "z")] {
        builder.add(Uuid::default(), time, &[a, b]).unwrap();
    }
    builder.finish(&path).unwrap();
    let reader = Reader::open(&path).unwrap();
    // What its command has answered.
    let cases: [(&str, &[u64]); 15] = [
        ("", &[]),
        (" ", &[]),
        ("a=x", &[1, 4]),
        ("a=x && b=y", &[1]),
        ("a=x & b=y", &[1]),
        ("a=x)", &[2]),
        ("a=\"q\"", &[3]),
        ("a=x & ", &[]),
        ("& a=x", &[]),
        ("!a=x", &[]),
        ("(a=x)", &[]),
        ("a=x &b=y", &[]),
        ("a=x& b=y", &[1, 3]),
        ("a!=x &  & b=y", &[]),
        ("a=x) b=z", &[2, 4]),
    ];
    for (text, expected) in cases {
        let expr = filter::parse_compat(text).unwrap();
        let bound = expr.bind_with(&reader, UnknownFields::NoMatch).unwrap();
        let mut cursor = reader.view().with_filter(bound).trail(0).unwrap();
        let mut times = Vec::new();
        while let Some(event) = cursor.next_event().unwrap() {
            times.push(event.time);
        }
        assert_eq!(times, expected, "{text:?}");
    }
}

#[test]
fn values_from_files() {
    let (_dir, reader) = large();
    let expr = filter::parse("n=@list & even=@\"the other\"").unwrap();
    let files: Vec<PathBuf> = expr.files().into_iter().map(PathBuf::from).collect();
    assert_eq!(files, ["list", "the other"].map(PathBuf::from));
    let read = |path: &std::path::Path| match path.to_str() {
        // As some editors write it, with a byte order mark.
        Some("list") => Ok(b"\xef\xbb\xbf15\r\n\nno such value\n4\n17\n".to_vec()),
        Some("the other") => Ok(b"yes".to_vec()),
        _ => Err(std::io::Error::other("another file")),
    };
    let lines = expr.clone().load_files(FileValues::Lines, read).unwrap();
    assert!(lines.files().is_empty());
    let view = reader.view().with_filter(lines.bind(&reader).unwrap());
    let found: Vec<u64> = (0..100).filter(|&trail| view.trail_len(trail).unwrap() > 0).collect();
    assert_eq!(found, [15, 17]);
    let whole = expr.clone().load_files(FileValues::Whole, read).unwrap();
    assert!(whole.bind(&reader).unwrap().is_none(), "no value is the whole list");
    let denied = |_: &std::path::Path| Err(std::io::Error::other("not here"));
    let error = expr.load_files(FileValues::Lines, denied).unwrap_err();
    assert_eq!((error.at(), error.reason()), (2, "list: not here"));
}

#[test]
fn a_filter_sees_the_fixtures_as_they_are() {
    for fixture in support::fixtures() {
        let reader = fixture.open();
        let names: Vec<String> = reader.fields().unwrap().names().map(String::from).collect();
        let Some((_, events)) = fixture.trails.first() else { continue };
        let (time, values) = &events[0];
        for (field, name) in names.iter().enumerate().take(5) {
            let wanted = &values[field];
            let expr = Expr::is(name, wanted).and(Expr::time(time..=time));
            let view = reader.view().with_filter(expr.bind(&reader).unwrap());
            for (trail, (_, events)) in fixture.trails.iter().enumerate() {
                let matching =
                    events.iter().filter(|row| row.0 == *time && row.1[field] == *wanted);
                let found = view.trail_len(trail as u64).unwrap();
                assert_eq!(found, matching.count() as u64, "{}, {name}", fixture.name);
            }
        }
    }
}
