//! Whole databases checked: nothing to find in good ones, every broken rule in damaged ones.

use traildb::{
    Builder, Options, Reader, Uuid,
    verify::{Finding, Report, Severity, Verifier},
};

use crate::{
    hostile::{Members, damages, good},
    support::{contents, fixtures, scratch},
    version0::turned_back,
};

fn of_members(members: &Members, threads: usize) -> Report {
    let verifier = Verifier::default().threads(threads);
    verifier.directory(|name| Ok(members.get(name).map(Vec::as_slice))).unwrap()
}

fn of_package(file: &[u8]) -> Report {
    Verifier::default().package(file).unwrap()
}

/// A package of the builder: 40 trails of 1 to 5 events.
fn package() -> Vec<u8> {
    let folder = scratch();
    let path = folder.path().join("db.tdb");
    let mut builder = Builder::new(&["user", "title"]).unwrap();
    for k in 0..120u64 {
        let values =
            [format!("u{}", k % 7), if k % 5 == 0 { String::new() } else { format!("t{k}") }];
        builder.add(Uuid::from_number(u128::from(k % 40) << 100), 1000 + k * k, &values).unwrap();
    }
    builder.finish(&path).unwrap();
    std::fs::read(&path).unwrap()
}

fn member_at(file: &[u8], name: &str) -> (usize, usize) {
    let end = file[2560..].windows(2).position(|pair| pair == b"\n\n").unwrap();
    let index = std::str::from_utf8(&file[2560..2560 + end]).unwrap();
    let line = index.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
    let numbers: Vec<usize> = line.split(' ').skip(1).map(|n| n.parse().unwrap()).collect();
    (numbers[0], numbers[1])
}

#[test]
fn golden_files_are_sound_to_the_last_warning() {
    for fixture in fixtures() {
        let report = match fixture.package() {
            Some(file) => of_package(file),
            None => of_members(&fixture.files, 2),
        };
        let name = &fixture.name;
        assert!(report.is_sound() && report.warnings == 0, "{name}: {report:?}");
        let number = |key: &str| fixture.meta[key].as_u64().unwrap();
        assert_eq!(report.trails, number("num_trails"), "{name}");
        assert_eq!(report.events, number("num_events"), "{name}");
        let sizes = fixture.meta["lexicon_sizes"].as_array().unwrap();
        let values: u64 = sizes.iter().map(|size| size.as_u64().unwrap() - 1).sum();
        assert_eq!(report.values, values, "{name}");
    }
}

#[test]
fn version_0_is_sound_too() {
    let mut some = false;
    for fixture in fixtures() {
        for last_offset in [false, true] {
            let Some(old) = turned_back(&fixture, last_offset) else { continue };
            let report = of_members(&old, 1);
            assert!(report.is_sound(), "{}: {report:?}", fixture.name);
            assert_eq!(report.version, Some(0));
            some = true;
        }
    }
    assert!(some || fixtures().is_empty());
}

#[test]
fn what_the_builder_writes_is_sound_and_counted() {
    let file = package();
    for threads in [1, 3] {
        let report = Verifier::default().threads(threads).package(file.as_slice()).unwrap();
        assert_eq!((report.errors, report.warnings), (0, 0), "{report:?}");
        assert_eq!((report.trails, report.events), (40, 120));
        assert_eq!(report.values, 7 + 96);
    }
}

#[test]
fn every_broken_rule_is_found_and_named() {
    for (what, at_fault, damage) in damages() {
        let mut members = good();
        damage(&mut members);
        let report = of_members(&members, 1);
        assert!(!report.is_sound(), "{what}: {report:?}");
        let of = report.by_member.get(at_fault).copied().unwrap_or_default();
        assert!(of.0 > 0, "{what}: not in {at_fault}: {report:?}");
    }
}

/// What no reader looks at when it reads: each a file, the member, and a word of the finding.
#[test]
fn rules_that_reading_does_not_check() {
    let file = package();
    let put = |at: usize, bytes: &[u8]| {
        let mut file = file.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let at = |name: &str| member_at(&file, name).0;
    let end = |name: &str| member_at(&file, name).0 + member_at(&file, name).1;
    let info = std::str::from_utf8(&file[1536..end("info")]).unwrap().to_owned();
    let numbers: Vec<u64> = info.trim_end().split(' ').map(|n| n.parse().unwrap()).collect();
    let with_info = |k: usize, value: u64| {
        let mut numbers = numbers.clone();
        numbers[k] = value;
        let text: Vec<String> = numbers.iter().map(u64::to_string).collect();
        let text = text.join(" ") + "\n";
        assert_eq!(text.len(), info.len(), "the same room");
        put(1536, text.as_bytes())
    };
    let lexicon = at("lexicon.user");
    let second = [file[lexicon + 4 + 28..lexicon + 4 + 32].to_vec(), b"u1u1u2u3".to_vec()].concat();
    let cases: Vec<(&str, Vec<u8>, Severity, &str, &str)> = vec![
        (
            "a value twice",
            {
                // Values u0 u1 u2 ... lie behind nine numbers.
                let values = lexicon + 4 * 9;
                assert_eq!(&file[values..values + 4], b"u0u1", "{second:?}");
                put(values, b"u1u1")
            },
            Severity::Error,
            "lexicon.user",
            "equals value 1",
        ),
        ("too many events", with_info(1, 119), Severity::Error, "info", "number of events"),
        (
            "a false maximum",
            with_info(3, numbers[3] - 1),
            Severity::Error,
            "info",
            "greatest times",
        ),
        (
            "a false delta",
            with_info(4, numbers[4] - 1),
            Severity::Warning,
            "info",
            "greatest delta",
        ),
        (
            "padding of trails",
            put(end("trails.data") - 1, b"x"),
            Severity::Warning,
            "trails.data",
            "zeros",
        ),
        (
            "padding of a member",
            put(end("version"), b"x"),
            Severity::Warning,
            "(package)",
            "padding",
        ),
        ("a header's checksum", put(1024 + 3, b"x"), Severity::Error, "(package)", "checksum"),
        (
            "the end of the archive",
            put(file.len() - 1, b"x"),
            Severity::Warning,
            "(package)",
            "one block",
        ),
        ("no end", file[..file.len() - 1024].to_vec(), Severity::Warning, "(package)", "no end"),
        (
            "half an end",
            file[..file.len() - 512].to_vec(),
            Severity::Warning,
            "(package)",
            "one block",
        ),
        (
            "more behind",
            [file.as_slice(), &[0; 512]].concat(),
            Severity::Warning,
            "(package)",
            "follow",
        ),
        ("fields go on", put(end("fields") - 1, b"x"), Severity::Error, "", ""),
        (
            "an end before the end",
            put(at("uuids") - 512, &[0; 512]),
            Severity::Error,
            "(package)",
            "\"uuids\" may lie elsewhere",
        ),
        (
            "a header beyond the file",
            {
                // Of the member before it, with a checksum that is right.
                let header = at("trails.data") - 512;
                let mut file = put(header + 124, b"77777777777");
                file[header + 148..header + 156].fill(b' ');
                let sum: u32 = file[header..header + 512].iter().map(|&b| u32::from(b)).sum();
                file[header + 148..header + 156]
                    .copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                file
            },
            Severity::Error,
            "(package)",
            "\"trails.data\" may lie elsewhere",
        ),
    ];
    for (what, file, severity, member, said) in cases {
        let report = of_package(&file);
        let hit = |finding: &&Finding| {
            finding.severity == severity
                && (member.is_empty() || finding.member == member)
                && finding.reason.contains(said)
        };
        assert!(report.findings.iter().any(|f| hit(&f)), "{what}: {report:?}");
    }
}

/// Readers go by the index alone: of a package that had lost a byte before its last member they read other UUIDs
/// than were written, and it was called sound, with a warning.
#[test]
fn a_package_that_has_lost_a_byte_is_not_sound() {
    let file = package();
    let uuids = member_at(&file, "uuids").0;
    for at in [uuids - 512, uuids - 300, uuids - 1] {
        for lost in [1, 16, 512] {
            let mut file = file.clone();
            file.drain(at - lost..at);
            assert!(!of_package(&file).is_sound(), "without {lost} bytes before {at}");
        }
    }
}

/// To every reader it is one that carries it once; the index refused what was called sound.
#[test]
fn an_event_that_carries_a_field_twice_is_not_sound() {
    let folder = scratch();
    let path = folder.path().join("db");
    let options = Options::default().directory(true);
    let mut builder = Builder::with_options(&["a"], options).unwrap();
    builder.add(Uuid::from_number(1), 5, &["x"]).unwrap();
    builder.add(Uuid::from_number(2), 6, &["y"]).unwrap();
    builder.finish(&path).unwrap();
    let read = |name: &str| std::fs::read(path.join(name)).unwrap();
    let names = ["version", "info", "fields", "lexicon.a", "trails.codebook", "uuids"];
    let mut members: Members = names.iter().map(|&name| (name.to_owned(), read(name))).collect();

    // Literals: a 0, the field in two bits, the number in one for the time, and in two for the field.
    let (time, a) = (|delta| [(0, 1), (0, 2), (delta, 1)], |number| [(0, 1), (1, 2), (number, 2)]);
    let trail = |symbols: &[[(u32, u32); 3]]| {
        let bits: u32 = 3 + symbols.iter().flatten().map(|&(_, bits)| bits).sum::<u32>();
        let (mut out, mut at) = (u64::from(8 * bits.div_ceil(8) - bits), 3);
        for &(value, bits) in symbols.iter().flatten() {
            out |= u64::from(value) << at;
            at += bits;
        }
        out.to_le_bytes()[..bits.div_ceil(8) as usize].to_vec()
    };
    let mut put = |first: &[[(u32, u32); 3]]| {
        let trails = [trail(first), trail(&[time(1), a(2)])];
        let ends = [0, trails[0].len(), trails[0].len() + trails[1].len()];
        let toc = ends.iter().flat_map(|&end| (end as u32).to_le_bytes()).collect();
        members.insert("trails.toc".to_owned(), toc);
        members.insert("trails.data".to_owned(), [trails.concat(), vec![0; 8]].concat());
        of_members(&members, 1)
    };
    let report = put(&[time(0), a(1)]);
    assert_eq!((report.errors, report.warnings, report.events), (0, 0, 2), "{report:?}");
    let report = put(&[time(0), a(2), a(1)]);
    assert!(!report.is_sound(), "{report:?}");
    assert!(report.findings[0].reason.contains("twice"), "{report:?}");
    assert_eq!(report.findings[0].trail, Some(0));
}

#[test]
fn it_goes_on_after_the_first_damage() {
    let mut file = package();
    let (toc, data) = (member_at(&file, "trails.toc").0, member_at(&file, "trails.data").0);
    let offset = |file: &[u8], k: usize| {
        u32::from_le_bytes(file[toc + 4 * k..toc + 4 * k + 4].try_into().unwrap()) as usize
    };
    for trail in [3, 17] {
        // The unused bits first, then a literal of field 3, where there are two.
        let at = data + offset(&file, trail);
        file[at] = file[at] & 7 | 0b0011_0000;
    }
    let uuids = member_at(&file, "uuids").0;
    file.copy_within(uuids + 16..uuids + 32, uuids + 32);
    let report = of_package(&file);
    let trails: Vec<u64> = report.findings.iter().filter_map(|finding| finding.trail).collect();
    assert_eq!(trails, [3, 17, 2], "{report:?}");
    assert_eq!(report.by_member["trails.data"].0, 2);
    assert_eq!(report.trails, 38, "the others are whole");
}

/// No change of any byte goes unnoticed, unless it makes another good database.
#[test]
fn every_change_is_a_finding_or_other_contents() {
    let good = package();
    let expected = contents(&Reader::new(good.as_slice()).unwrap()).unwrap();
    let book = member_at(&good, "trails.codebook");
    let mut noticed = 0;
    for at in (0..good.len()).step_by(11) {
        if (book.0..book.0 + book.1).contains(&at) && at % 7919 != 0 {
            continue;
        }
        let mut file = good.clone();
        file[at] ^= 1 << (at % 8);
        // The digits of a header's checksum may stand behind zeros or blanks.
        if (148..156).contains(&(at % 512)) && matches!(good[at], b'0' | b' ') {
            continue;
        }
        let report = of_package(&file);
        if report.errors + report.warnings > 0 || !report.unchecked.is_empty() {
            noticed += 1;
            continue;
        }
        let got = contents(&Reader::new(file.as_slice()).unwrap()).unwrap();
        // Bits that a trail does not use at its end may have any value.
        let (toc, toc_len) = member_at(&good, "trails.toc");
        let data = member_at(&good, "trails.data").0;
        let ends = good[toc..toc + toc_len].chunks_exact(4);
        let mut ends = ends.map(|end| u32::from_le_bytes(end.try_into().unwrap()) as usize);
        if ends.any(|end| data + end == at + 1) {
            continue;
        }
        // A user field's name may change too.
        let named = |file: &[u8]| {
            let reader = Reader::new(file.to_vec()).unwrap();
            reader.fields().unwrap().names().map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(got != expected || named(&file) != named(&good), "byte {at} is nobody's");
    }
    assert!(noticed > 300, "{noticed}");
}
