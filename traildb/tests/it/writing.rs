//! What a builder writes reads back the same.

use proptest::prelude::*;
use traildb::{Bigrams, Builder, Error, InputError, Options, Reader, Uuid, synth};

use crate::support::{Rows, contents, fixtures, scratch};

/// Writes `trails` and reads them back, as a package and as a directory.
fn round_trip(fields: &[String], trails: &[Rows]) -> Vec<Vec<Rows>> {
    let folder = scratch();
    [false, true]
        .map(|directory| {
            let path = folder.path().join(format!("db-{directory}.tdb"));
            let options = Options::default().directory(directory);
            let mut builder = Builder::with_options(fields, options).unwrap();
            for (uuid, events) in trails {
                for (time, values) in events {
                    builder.add(*uuid, *time, values).unwrap();
                }
            }
            let written = builder.finish(&path).unwrap();
            let reader = Reader::open(&path).unwrap();
            assert_eq!((written.trails, written.events), (reader.trails(), reader.events()));
            let names: Vec<String> = reader.fields().unwrap().names().map(str::to_owned).collect();
            assert_eq!(names, fields);
            contents(&reader).unwrap()
        })
        .into()
}

#[test]
fn events_of_every_fixture_read_back_equal() {
    for fixture in fixtures() {
        let names = fixture.meta["fields"].as_array().unwrap();
        let names: Vec<String> = names.iter().map(|n| n.as_str().unwrap().to_owned()).collect();
        for got in round_trip(&names, &fixture.trails) {
            assert!(got == fixture.trails, "{}", fixture.name);
        }
    }
}

#[test]
fn equal_input_gives_equal_bytes_and_a_second_run_replaces_the_first() {
    let folder = scratch();
    let path = folder.path().join("a.tdb");
    let spec = synth::Spec { events: 20_000, trails: 900, titles: 4000, seed: 3 };
    let mut runs = Vec::new();
    for _ in 0..2 {
        let mut builder = Builder::new(&synth::FIELDS).unwrap();
        let mut told = 0;
        synth::fill(&spec, &mut builder, |events| told = events).unwrap();
        assert_eq!(told, 20_000);
        let written = builder.finish(&path).unwrap();
        runs.push(std::fs::read(&path).unwrap());
        assert_eq!(written.bytes, runs[0].len() as u64);
    }
    assert!(runs[0] == runs[1]);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "no litter: {left:?}");
}

/// Threads change how fast a database is written, and nothing else.
#[test]
fn threads_do_not_change_a_byte() {
    let folder = scratch();
    // More than a batch, and more than a million items, so that rounds look at a part of them.
    let spec = synth::Spec { events: 600_000, trails: 40_000, titles: 150_000, seed: 5 };
    let write = |threads: usize, bigrams| {
        let path = folder.path().join(format!("{threads}.tdb"));
        let options = Options::default().threads(threads).bigrams(bigrams);
        let mut builder = Builder::with_options(&synth::FIELDS, options).unwrap();
        synth::fill(&spec, &mut builder, |_| ()).unwrap();
        builder.finish(&path).unwrap();
        std::fs::read(&path).unwrap()
    };
    let one = write(1, Bigrams::Auto);
    for threads in [2, 3] {
        assert!(write(threads, Bigrams::Auto) == one, "{threads} threads");
    }
    for bigrams in [Bigrams::On, Bigrams::Off] {
        assert!(write(1, bigrams) == write(2, bigrams), "{bigrams:?}");
    }
}

/// Values that always come together are written as pairs, and no reader is confused by events of
/// more items than are looked at for pairs.
#[test]
fn pairs_of_wide_events_read_back() {
    for fields in [2usize, 40, 300] {
        let names: Vec<String> = (0..fields).map(|n| format!("f{n}")).collect();
        let mut trails = Vec::new();
        for trail in 0..50u8 {
            let mut uuid = [0; 16];
            uuid[15] = trail;
            let event = |n: u64| {
                let value = |f: usize| match (n + f as u64 / 7) % 5 {
                    0 => Vec::new(),
                    k => format!("{k}-{}", f % 3).into_bytes(),
                };
                (n * 60, (0..fields).map(value).collect())
            };
            trails.push((Uuid(uuid), (0..20).map(event).collect()));
        }
        for got in round_trip(&names, &trails) {
            assert!(got == trails, "{fields} fields");
        }
        let size = |bigrams| {
            let path = scratch().path().join("a.tdb");
            let options = Options::default().directory(true).bigrams(bigrams);
            let mut builder = Builder::with_options(&names, options).unwrap();
            for (uuid, events) in &trails {
                for (time, values) in events {
                    builder.add(*uuid, *time, values).unwrap();
                }
            }
            let folder = path.parent().unwrap();
            std::fs::create_dir_all(folder).unwrap();
            builder.finish(&path).unwrap();
            let size = std::fs::metadata(path.join("trails.data")).unwrap().len();
            std::fs::remove_dir_all(folder).unwrap();
            size
        };
        let [off, auto, on] = [Bigrams::Off, Bigrams::Auto, Bigrams::On].map(size);
        assert!(auto < off * 19 / 20 && on < off * 19 / 20, "{fields}: {off}, {auto}, {on} bytes");
    }
}

/// Of so many values that have nothing to do with each other only a few pairs come twice, by chance. These
/// save less than the thousandth that `Auto` wants, so its bytes are those without any; `On` takes them.
#[test]
fn pairs_that_do_not_pay_are_left_out() {
    let folder = scratch();
    let write = |bigrams| {
        let path = folder.path().join("a.tdb");
        let mut builder =
            Builder::with_options(&["a", "b", "c"], Options::default().bigrams(bigrams)).unwrap();
        let mut state = 11u64;
        let mut random = || {
            // SplitMix64.
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ z >> 31
        };
        for _ in 0..60_000 {
            let values = [(); 3].map(|()| (random() % 8_000).to_string());
            let (trail, time) = (random() % 300, random() % (1 << 40));
            builder.add(Uuid::from_number(trail.into()), time, &values).unwrap();
        }
        builder.finish(&path).unwrap();
        std::fs::read(&path).unwrap()
    };
    let [off, auto, on] = [Bigrams::Off, Bigrams::Auto, Bigrams::On].map(write);
    assert!(auto == off, "{} bytes, and {} without pairs", auto.len(), off.len());
    assert!(on != off, "there are pairs that could be taken");
}

/// Only pairs that occur twice were thought of, and a short text of wide values was half as large again as the
/// C library's: words are enough for all of its pairs.
#[test]
fn pairs_that_occur_once_are_worth_their_words_where_there_are_enough() {
    let folder = scratch();
    let trails = |bigrams| {
        let path = folder.path().join("a.tdb");
        let mut builder =
            Builder::with_options(&["id", "kind"], Options::default().bigrams(bigrams)).unwrap();
        for n in 0..3000u64 {
            let id = (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 4).to_string();
            builder.add(Uuid::from_number((n % 100).into()), n, &[id.as_str(), "x"]).unwrap();
        }
        builder.finish(&path).unwrap();
        let verified = Reader::open(&path).unwrap();
        assert_eq!(verified.events(), 3000);
        std::fs::metadata(&path).unwrap().len()
    };
    let (off, auto) = (trails(Bigrams::Off), trails(Bigrams::Auto));
    assert!(auto < off, "{auto} bytes, and {off} without pairs");
}

/// What is too far away when it is added need not stay so: events between may follow. So the end tells,
/// before there is anything at the path.
#[test]
fn events_too_far_apart_may_get_others_between_until_the_end() {
    let folder = scratch();
    let path = folder.path().join("a.tdb");
    let (step, far) = (1u64 << 46, 1u64 << 50);
    for filled in [false, true] {
        let mut builder = Builder::new(&["a"]).unwrap();
        for time in [far, 3, u64::from(filled)] {
            builder.add(Uuid::default(), time, &["v"]).unwrap();
        }
        if filled {
            (1..far / step).rev().for_each(|n| {
                builder.add(Uuid::default(), n * step, &["v"]).unwrap();
            });
            builder.finish(&path).unwrap();
            assert_eq!(Reader::open(&path).unwrap().events(), 2 + far / step);
            continue;
        }
        let error = builder.finish(&path).unwrap_err();
        let expected = InputError::Delta { uuid: Uuid::default(), before: 3, time: far };
        assert!(matches!(&error, Error::Input(got) if *got == expected), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was written");
    }
}

#[test]
fn events_too_far_apart_are_named() {
    let folder = scratch();
    let mut builder = Builder::new(&["a"]).unwrap();
    let uuid = Uuid([9; 16]);
    for time in [5, 5 + (1 << 47) - 2, 5 + (1 << 48)] {
        builder.add(uuid, time, &["v"]).unwrap();
    }
    let error = builder.finish(folder.path().join("a.tdb")).unwrap_err();
    let text = error.to_string();
    for part in [&uuid.to_string(), "140737488355331", "281474976710661"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn wrong_input_is_refused_before_anything_is_written() {
    let refused = |names: &[&str]| match Builder::new(names).unwrap_err() {
        Error::Input(error) => error,
        other => panic!("{other}"),
    };
    assert_eq!(refused(&["time"]), InputError::ReservedName);
    assert!(matches!(refused(&["a", "a"]), InputError::DuplicateName(_)));
    assert!(matches!(refused(&["a b"]), InputError::MalformedName(_)));
    assert!(matches!(refused(&[""]), InputError::MalformedName(_)));
    let many: Vec<String> = (0..16_383).map(|n| format!("f{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(matches!(refused(&many), InputError::TooManyFields(16_383)));

    let mut builder = Builder::new(&["a"]).unwrap();
    let none: [&str; 0] = [];
    let error = builder.add(Uuid::default(), 0, &none).unwrap_err();
    assert!(matches!(error, Error::Input(InputError::Arity { got: 0, expected: 1 })), "{error}");
    assert_eq!(builder.events(), 0);

    let folder = scratch();
    let path = folder.path().join("a.tdb");
    let times: [&[u64]; 2] = [&[u64::MAX], &[0, 1 << 47]];
    for times in times {
        let mut builder = Builder::new(&["a"]).unwrap();
        for &time in times {
            builder.add(Uuid::default(), time, &["v"]).unwrap();
        }
        assert!(matches!(builder.finish(&path).unwrap_err(), Error::Input(_)));
        assert!(!path.exists());
    }
    let error = Builder::new(&["a"]).unwrap().finish(folder.path().join("no/such/a.tdb"));
    assert!(matches!(error.unwrap_err(), Error::File { .. }));
    let small = Builder::with_options(&["a"], Options::default().memory_bytes(10_000));
    assert!(matches!(small.unwrap_err(), Error::Input(InputError::Memory { .. })));
}

fn any_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => Just(Vec::new()),
        4 => (0..6u8).prop_map(|n| vec![b'a' + n]),
        2 => prop::collection::vec(any::<u8>(), 0..40),
        1 => Just(vec![0; 70_000]),
    ]
}

fn any_time() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..1000u64, 1 => 0..(1u64 << 47) - 2, 1 => Just(0), 1 => Just((1 << 47) - 3)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_databases_read_back_equal(
        fields in prop_oneof![6 => 0..6usize, 2 => 120..140usize, 1 => Just(2000usize)],
        events in prop::collection::vec(
            (0..12u8, any_time(), prop::collection::vec(any_value(), 6)), 0..80),
    ) {
        let names: Vec<String> = (0..fields).map(|n| format!("field-{n}")).collect();
        let mut trails: std::collections::BTreeMap<u128, Rows> = Default::default();
        for (n, (trail, time, values)) in events.iter().enumerate() {
            // Extreme UUIDs among them, and wide fields all used at some time.
            let uuid = match trail {
                0 => Uuid([0; 16]),
                1 => Uuid([255; 16]),
                n => Uuid([n.wrapping_mul(37); 16]),
            };
            let values =
                (0..fields).map(|field| match fields > 6 && field % 50 != n % 50 {
                    true => Vec::new(),
                    false => values[field % 6].clone(),
                });
            let rows = trails.entry(uuid.number()).or_insert((uuid, Vec::new()));
            rows.1.push((*time, values.collect()));
        }
        let mut expected: Vec<Rows> = trails.into_values().collect();
        let got = round_trip(&names, &expected);
        for rows in &mut expected {
            rows.1.sort_by_key(|(time, _)| *time);
        }
        for got in got {
            prop_assert!(got == expected);
        }
    }
}
