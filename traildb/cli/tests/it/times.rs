//! Times up to 2^64 - 1, through every command.

use std::fs;

use serde_json::Value as Json;

use crate::support::{Sample, printed, run, stderr, uuid};

/// An event lies no more than 2^47 - 2 behind the one before it, so that many climb to the end of time.
const STEP: u64 = (1 << 47) - 2;

/// Trail, time and two values, in the order of trails and of time: many short trails from 0 on, and one
/// up to 2^64 - 1.
fn events() -> Vec<(u8, u64, String, String)> {
    let mut events = Vec::new();
    let rare =
        |k: u64| if k.is_multiple_of(999) { "rare".to_owned() } else { format!("a{}", k % 5) };
    for trail in 0..200 {
        for k in 0..1 + u64::from(trail) % 4 {
            let n = u64::from(trail) * 7 + k;
            events.push((trail, k * STEP / 3, rare(n), format!("b{}", n % 50)));
        }
    }
    let steps = u64::MAX / STEP;
    let climb = (0..=steps).map(|k| k * STEP);
    let ends = [u64::MAX - 1, u64::MAX, u64::MAX];
    for (k, time) in (0..).zip(climb.chain(ends)) {
        let a = if time == u64::MAX { "rare".to_owned() } else { rare(k) };
        events.push((200, time, a, format!("b{}", k % 50)));
    }
    events
}

#[test]
fn times_to_the_end_of_64_bits_go_through_every_command() {
    let sample = Sample::new(&[]);
    let at = |name: &str| sample.beside(name);
    let events = events();
    assert!(events.len() > 131_072);
    let line = |(trail, time, a, b): &(u8, u64, String, String)| {
        format!("{},{time},{a},{b}\n", uuid(*trail))
    };
    let rows: String = events.iter().map(line).collect();
    let (csv, path) = (at("events.csv"), at("events.tdb"));
    fs::write(&csv, &rows).expect("room");
    printed(&["make", "-i", &csv, "-d", ",", "-f", "uuid,time,a,b", "-o", &path]);
    let text = printed(&["verify", "-i", &path, "--strict", "-T", "2"]);
    assert!(text.starts_with("sound: 201 trails"), "{text}");
    let print = |more: &[&str]| {
        printed(&[&["dump", "-i", &path, "-d", ",", "-f", "uuid,time,a,b"], more].concat())
    };
    assert!(print(&[]) == rows, "other events");

    let (middle, end) = (1u64 << 63, u64::MAX);
    type Naive = fn(u64, &str, &str) -> bool;
    let cases: [(String, Naive); 5] = [
        ("a=rare".to_owned(), |_, a, _| a == "rare"),
        (format!("a=rare & time>={middle}"), |time, a, _| a == "rare" && time >= 1 << 63),
        (format!("a=rare & b=b7 & time<{end}"), |time, a, b| {
            a == "rare" && b == "b7" && time < u64::MAX
        }),
        (format!("time>={end}"), |time, _, _| time == u64::MAX),
        (format!("time<{middle} & a!=rare"), |time, a, _| time < 1 << 63 && a != "rare"),
    ];
    for is_indexed in [false, true] {
        if is_indexed {
            printed(&["index", &path]);
        }
        for (filter, naive) in &cases {
            let found: Vec<_> =
                events.iter().filter(|(_, time, a, b)| naive(*time, a, b)).collect();
            assert!(!found.is_empty(), "{filter}");
            let expected: String = found.iter().map(|event| line(event)).collect();
            assert!(print(&["-F", filter]) == expected, "{filter}: other events");
            let json = printed(&["query", "-i", &path, "-F", filter, "--json", "-T", "2"]);
            let json: Json = serde_json::from_str(&json).expect("JSON");
            assert_eq!(json["events"].as_u64(), Some(found.len() as u64), "{filter}");
            assert_eq!(json["first"].as_u64(), found.iter().map(|e| e.1).min(), "{filter}");
            assert_eq!(json["last"].as_u64(), found.iter().map(|e| e.1).max(), "{filter}");
        }
    }
    let merged = at("merged.tdb");
    printed(&["merge", &path, "-o", &merged]);
    let again = printed(&["dump", "-i", &merged, "-d", ",", "-f", "uuid,time,a,b"]);
    assert!(again == rows, "a merge has other events");

    // One more than there is.
    fs::write(&csv, format!("{},18446744073709551616,a,b\n", uuid(1))).expect("room");
    let made = at("more.tdb");
    let output = run(&["make", "-i", &csv, "-d", ",", "-f", "uuid,time,a,b", "-o", &made]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}
