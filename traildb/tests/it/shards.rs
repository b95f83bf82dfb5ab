//! Many databases as one, against the plainest code that says the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::{collection::vec, prelude::*};
use tempfile::TempDir;
use traildb::{
    Error, Index, Reader, Shards, Storage, Uuid,
    filter::{self, BindError, UnknownFields},
    index::Build,
    shards::{Match, Merge, Query},
    storage::File,
};

use crate::{
    queries::{Plain, Wanted, database, plain, wanted},
    support::{Row, Rows},
};

/// Events of one UUID: time, shard, values.
type Events = Vec<(u64, usize, Row)>;

/// Databases with trails in common: [`database`] names trails by their place.
struct Many {
    dirs: Vec<TempDir>,
    rows: Vec<Vec<Rows>>,
    indexed: bool,
}

impl Many {
    fn new(plains: &[Plain], indexed: bool) -> Many {
        let mut many = Many { dirs: Vec::new(), rows: Vec::new(), indexed };
        for plain in plains {
            let (dir, reader, rows) = database(plain);
            if indexed {
                Build::new(&reader).write(dir.path().join("index")).unwrap();
            }
            many.dirs.push(dir);
            many.rows.push(rows);
        }
        many
    }

    fn shards(&self) -> Shards<'_, File> {
        let mut shards = Shards::new();
        for (number, dir) in self.dirs.iter().enumerate() {
            shards.add(format!("shard {number}"), move || {
                let mut reader = Reader::open(dir.path().join("db.tdb"))?;
                if self.indexed {
                    let file = File::open(dir.path().join("index")).unwrap();
                    reader.attach(Index::open(file, &reader)?)?;
                }
                Ok(reader)
            });
        }
        shards
    }

    /// Events that match, by UUID, in the order in which they are to come.
    fn expected(&self, wanted: Option<&Wanted>) -> BTreeMap<Uuid, Events> {
        let mut all: BTreeMap<Uuid, Events> = BTreeMap::new();
        for (shard, rows) in self.rows.iter().enumerate() {
            for (uuid, events) in rows {
                for row in events.iter().filter(|row| wanted.is_none_or(|w| w.matches(row))) {
                    all.entry(*uuid).or_default().push((row.0, shard, row.clone()));
                }
            }
        }
        all.values_mut().for_each(|events| events.sort_by_key(|event| (event.0, event.1)));
        all
    }
}

fn merged(merge: &mut Merge<'_, File>, readers: &[&Reader<File>]) -> Vec<(Uuid, Events)> {
    let mut found = Vec::new();
    while let Some(uuid) = merge.next_trail().unwrap() {
        assert!(merge.places().is_sorted() && !merge.places().is_empty());
        let mut events = Vec::new();
        while let Some(next) = merge.next_event().unwrap() {
            let value = |&item| readers[next.place].value(item).unwrap().to_vec();
            let row = (next.event.time, next.event.items.iter().map(value).collect());
            events.push((next.event.time, next.place, row));
        }
        found.push((uuid, events));
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Counts, users and lists of all shards are those of a look at every event, with an index and
    /// without, whatever the number of threads.
    #[test]
    fn a_query_finds_what_a_naive_evaluator_finds(
        plains in vec(plain(), 0..5),
        wanted in wanted(),
        indexed in any::<bool>(),
        threads in 1..5usize,
    ) {
        let many = Many::new(&plains, indexed);
        let expr = wanted.expr();
        let query = Query::default().filter(&expr).threads(threads);
        let found = match many.shards().query(query.list_trails()) {
            Err(BindError::TooLarge) => return Ok(()),
            found => found.unwrap(),
        };
        let expected = many.expected(Some(&wanted));
        let matches: Vec<(Uuid, u64, u64, u64)> = expected
            .iter()
            .map(|(uuid, events)| {
                let (first, last) = (events[0].0, events[events.len() - 1].0);
                (*uuid, events.len() as u64, first, last)
            })
            .collect();
        let plain = |m: &Match| (m.uuid, m.events, m.first, m.last);
        prop_assert_eq!(found.matches.iter().map(plain).collect::<Vec<_>>(), matches);
        prop_assert_eq!(found.users, expected.len() as u64);
        let events = expected.values().flatten();
        prop_assert_eq!(found.events, events.clone().count() as u64);
        prop_assert_eq!(found.first, events.clone().map(|event| event.0).min());
        prop_assert_eq!(found.last, events.clone().map(|event| event.0).max());
        let trails: BTreeSet<(usize, Uuid)> =
            expected.iter().flat_map(|(u, events)| events.iter().map(|e| (e.1, *u))).collect();
        prop_assert_eq!(found.trails, trails.len() as u64);
        prop_assert_eq!(found.shards, plains.len() as u64);
        prop_assert_eq!(found.indexed, if indexed { plains.len() as u64 } else { 0 });
        let all = many.rows.iter().flatten();
        prop_assert_eq!(found.events_all, all.map(|(_, events)| events.len() as u64).sum::<u64>());
        let counted = many.shards().query(query).unwrap();
        prop_assert_eq!((counted.events, counted.users), (found.events, found.users));
        prop_assert!(counted.matches.is_empty());
        // Of some UUIDs only, one of which no shard has.
        let some: Vec<Uuid> =
            expected.keys().step_by(2).copied().chain([Uuid::from_number(77)]).collect();
        let of_some = many.shards().query(query.uuids(&some)).unwrap();
        prop_assert_eq!(of_some.users, some.len() as u64 - 1);
    }

    /// A merge gives trails in the order of UUIDs, and events in that of time, then of shards.
    #[test]
    fn a_merge_is_a_sort(
        plains in vec(plain(), 0..5),
        wanted in prop::option::of(wanted()),
        indexed in any::<bool>(),
        window in 1..4usize,
    ) {
        let many = Many::new(&plains, indexed);
        let shards = many.shards();
        let open = shards.open_all(3).unwrap();
        let readers: Vec<&Reader<File>> = open.iter().map(|one| &one.reader).collect();
        let mut merge = Merge::new(&open).unwrap();
        (0..open.len()).for_each(|place| merge.window(place, window));
        if let Some(wanted) = &wanted {
            match wanted.expr().bind_each(readers.iter().copied(), UnknownFields::Refuse) {
                Err(BindError::TooLarge) => return Ok(()),
                filters => merge.filter(filters.unwrap()).unwrap(),
            }
        }
        let mut found = merged(&mut merge, &readers);
        let expected = many.expected(wanted.as_ref());
        let empty = found.iter().filter(|(_, events)| events.is_empty()).count();
        prop_assert!(wanted.is_some() || empty == 0);
        found.retain(|(_, events)| !events.is_empty());
        prop_assert_eq!(found, expected.clone().into_iter().collect::<Vec<_>>());

        // Named trails only, in any order, with one that is not there.
        let mut some: Vec<Uuid> = expected.keys().rev().step_by(2).copied().collect();
        some.insert(some.len() / 2, Uuid::from_number(77));
        let mut merge = Merge::new(&open).unwrap();
        let known = merge.select(&some).unwrap();
        prop_assert_eq!(known.iter().filter(|known| !**known).count(), 1);
        let found: Vec<Uuid> = merged(&mut merge, &readers).into_iter().map(|one| one.0).collect();
        some.retain(|&uuid| uuid != Uuid::from_number(77));
        some.sort_unstable();
        prop_assert_eq!(found, some);
    }
}

fn three() -> Many {
    let trail = |times: Range<u64>| times.map(|time| (time, [1, 2, 3])).collect::<Vec<_>>();
    let shard = |n: u64| vec![trail(n..n + 4), trail(n + 2..n + 7), trail(0..n + 1)];
    Many::new(&[shard(1), shard(2), shard(3)], false)
}

#[test]
fn no_more_shards_are_open_than_may_be() {
    let many = three();
    let (open, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut shards: Shards<'_, Counted> = Shards::new();
    for n in 0..40 {
        let (many, open, most) = (&many, &open, &most);
        shards.add(format!("{n}"), move || {
            let file = File::open(many.dirs[n % 3].path().join("db.tdb")).unwrap();
            most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            Ok(Reader::new(Counted(file, open))?)
        });
    }
    let shards = shards.open_max(3);
    let found = shards.query(Query::default().threads(16)).unwrap();
    assert_eq!((found.shards, found.users, open.load(Ordering::SeqCst)), (40, 3, 0));
    let most = most.load(Ordering::SeqCst);
    assert!((1..=3).contains(&most), "{most} were open");
    let error = shards.open_all(2).unwrap_err();
    let BindError::Database(Error::TooManyShards { shards: 40, open_max: 3 }) = error else {
        panic!("{error}")
    };
}

/// A file that notes when it is closed.
#[derive(Debug)]
struct Counted<'c>(File, &'c AtomicUsize);

impl Storage for Counted<'_> {
    type Bytes<'a>
        = Vec<u8>
    where
        Self: 'a;

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn bytes(&self, range: Range<u64>) -> std::io::Result<Vec<u8>> {
        self.0.bytes(range)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn bad_shards_end_a_query_or_are_noted() {
    let many = three();
    let with_bad = || {
        let mut shards = many.shards();
        shards.add("missing", || Ok(Reader::open("/no/such/database")?));
        shards
    };
    for threads in [1, 4] {
        let query = Query::default().threads(threads);
        assert!(with_bad().query(query).is_err());
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        let shards = with_bad().keep_going(move |name, _| {
            assert_eq!(name, "missing");
            count.fetch_add(1, Ordering::SeqCst);
            true
        });
        let found = shards.query(query).unwrap();
        assert_eq!((found.shards, found.users), (3, 3));
        let losses = shards.losses();
        assert_eq!((losses.len(), losses[0].shard, &*losses[0].name), (1, 3, "missing"));
        assert!(losses[0].reason.contains("/no/such/database"), "{:?}", losses[0]);
        assert_eq!(told.load(Ordering::SeqCst), 1);
        assert_eq!(shards.open_all(threads).unwrap().len(), 3);
        // Not every failure is passed over.
        assert!(with_bad().keep_going(|_, _| false).query(query).is_err());
    }
}

#[test]
fn damage_in_one_shard_leaves_the_others_in_a_merge() {
    let many = three();
    let path = many.dirs[1].path().join("db.tdb");
    let mut file = std::fs::read(&path).unwrap();
    let reader = Reader::open(&path).unwrap();
    let offset = |member: &str| {
        let index = String::from_utf8_lossy(&file[2560..4096]).into_owned();
        let line = index.lines().find(|line| line.starts_with(member)).unwrap().to_owned();
        line.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
    };
    // The second trail starts with a literal of field 7, where there are three.
    let toc = offset("trails.toc ") + 4;
    let start = u32::from_le_bytes(file[toc..toc + 4].try_into().unwrap()) as usize;
    let at = offset("trails.data ") + start;
    file[at] = file[at] & 7 | 0b0111_0000;
    drop(reader);
    std::fs::write(&path, file).unwrap();
    let shards = many.shards();
    let open = shards.open_all(1).unwrap();
    let mut merge = Merge::new(&open).unwrap();
    let (mut events, mut errors) = (vec![0; 3], Vec::new());
    loop {
        match merge.next_trail() {
            Ok(None) => break,
            Ok(Some(_)) => loop {
                match merge.next_event() {
                    Ok(None) => break,
                    Ok(Some(next)) => events[next.place] += 1,
                    Err(error) => errors.push(error.place),
                }
            },
            Err(error) => errors.push(error.place),
        }
    }
    let count = |shard: usize| many.rows[shard].iter().map(|(_, events)| events.len()).sum();
    assert_eq!((events[0], events[2]), (count(0), count(2)), "the others are whole");
    assert_eq!(errors, [1], "told once");
    assert!(events[1] < count(1));
}

#[test]
fn a_field_that_no_shard_has_is_an_error() {
    let many = three();
    let shards = many.shards();
    let expr = filter::parse("a=one & nothing=1").unwrap();
    let error = shards.query(Query::default().filter(&expr)).unwrap_err();
    assert!(error.to_string().contains("\"nothing\""), "{error}");
    let lenient = Query::default().filter(&expr).unknown_fields(UnknownFields::NoMatch);
    assert_eq!(shards.query(lenient).unwrap().events, 0);
    assert_eq!(Shards::<File>::new().query(Query::default().filter(&expr)).unwrap().shards, 0);
}

/// Numbers of events are what each file says.
#[test]
fn sums_of_made_up_numbers_do_not_overflow() {
    let mut members = crate::hostile::good();
    let info = format!("3 {} 5 9 4\n", u64::MAX);
    members.insert("info".into(), info.into_bytes());
    let mut shards: Shards<'_, &[u8]> = Shards::new();
    for name in ["one", "two"] {
        let members = &members;
        shards.add(name, move || {
            Ok(Reader::open_directory(|name| Ok(members.get(name).map(Vec::as_slice)))?)
        });
    }
    let found = shards.query(Query::default()).unwrap();
    assert_eq!((found.events, found.events_all, found.trails_all), (8, u64::MAX, 6));
}
