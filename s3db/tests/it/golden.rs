//! Bytes written by versions 1, 2 and 3, which every later version reads.

use std::{collections::BTreeSet, fs, path::Path};

use bytes::Bytes;
use s3db::{
    Backend, Blob, Change, Claim, Claims, ClientRecord, Collection, Database, DecodeError, Entry,
    Index, Inspected, Isolation, KeptPage, Key, LogRecord, LoggedTransaction, Numbers, Payload,
    Proposal, SealedFrame, SearchBy, SequencedCommit, SequencedIndex, SequencedWrite, Settings,
    Stamp, Value,
    blob::Part,
    cloud::{ETag, embedded::Stored},
    page::{Entries, Follower, Link, Page, PageId, Slot, Stream},
};

/// One line per record: what it is, its bytes in hexadecimal.
const GOLDEN: &str = include_str!("../golden/log-v1.txt");

/// The same of pages, transactions, log objects, clients and the catalogue.
const OBJECTS: &str = include_str!("../golden/objects-v1.txt");

/// The same of what is there for isolation.
const SEQUENCE: &str = include_str!("../golden/sequence-v1.txt");

/// The same of what waits for a curator.
const PROPOSALS: &str = include_str!("../golden/proposal-v1.txt");

/// The same of what is there where collections name their writers.
const WRITERS: &str = include_str!("../golden/writers-v1.txt");

/// The same of databases of the versions before, and of who owns the log.
const DATABASES: &str = include_str!("../golden/databases-v3.txt");

/// The same of files of the disk tier.
const KEPT: &str = include_str!("../golden/disk-v1.txt");

/// The same of what is sealed.
const SEALED: &str = include_str!("../golden/sealed-v1.txt");

const ROOT: PageId = PageId(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
const LEFT: PageId = PageId(0x1111);
const RIGHT: PageId = PageId(u128::MAX);

fn stamp(clock: u64, client: u64, sequence: u64) -> Stamp {
    Stamp { clock, client, sequence }
}

fn pages() -> Vec<Page> {
    let bytes = Bytes::from_static;
    let slot = |key, stamp, payload: Option<&'static [u8]>| Slot {
        key: bytes(key),
        stamp,
        payload: payload.map(|payload| bytes(payload).into()),
    };
    let stream = |client, epoch| Stream { client, epoch };
    let mut leaf = Page {
        id: LEFT,
        version: 7,
        write_id: 0xabcdef,
        checkpoint_ms: 1_763_690_400_123,
        low: bytes(b"b"),
        high: Some(bytes(b"m")),
        right: Some(RIGHT),
        origin: Some((ROOT, 3)),
        applied: vec![(stream(1, 1), 5), (stream(1, 2), 9), (stream(2, 1), 1)],
        ..Page::root(ROOT)
    };
    let dead = Page {
        dead: true,
        version: 8,
        write_id: 100,
        checkpoint_ms: 1_763_690_400_456,
        origin: None,
        applied: Vec::new(),
        ..leaf.clone()
    };
    leaf.entries = Entries::Leaf(vec![
        slot(b"b", stamp(5, 1, 2), Some(b"")),
        slot(b"key", stamp(1_763_690_400_000_000, 0xfeed, 1), Some(b"\x00\xffpayload")),
        slot(b"l", stamp(6, 2, 1), None),
    ]);
    let link = |key, child| Link { key: bytes(key), child };
    let inner = Page {
        level: 2,
        version: 2,
        write_id: 99,
        checkpoint_ms: 1_763_690_400_000,
        entries: Entries::Inner(vec![link(b"", LEFT), link(b"m", RIGHT)]),
        ..Page::root(ROOT)
    };
    let followers = rules().into_iter().zip(0..);
    let followers = followers.map(|(by, n)| Follower { root: PageId(ROOT.0 + n), by });
    let mut with_blob = Page { version: 1, write_id: 5, ..Page::root(LEFT) };
    with_blob.entries = Entries::Leaf(vec![
        slot(b"b", stamp(5, 1, 2), Some(b"here")),
        Slot { key: bytes(b"large"), stamp: stamp(9, 7, 4), payload: Some(Value::Blob(blob())) },
    ]);
    let followed = Page { followers: followers.collect(), ..leaf.clone() };
    vec![Page::root(ROOT), leaf, inner, dead, followed, with_blob]
}

fn blob() -> Blob {
    Blob::new(stamp(1_763_690_400_000_000, 0xfeed, 3), (20 << 20) + 1, 8 << 20, 0xdead_beef)
        .unwrap()
}

/// One of each kind of search keys.
fn rules() -> [SearchBy; 3] {
    [
        SearchBy::Payload,
        SearchBy::Part { separator: b',', number: 258 },
        SearchBy::Json("größe".into()),
    ]
}

fn transactions() -> Vec<LoggedTransaction> {
    let key = |key: &str| Key::new(key).unwrap();
    let payload = |payload: &str| Payload::new(payload).unwrap();
    let entry = |tree, page, is_secondary, clock, sequence, change| Entry {
        tree,
        page,
        is_secondary,
        record: LogRecord { stamp: stamp(clock, 7, sequence), change },
    };
    let entries = vec![
        entry(ROOT, LEFT, false, 5, 1, Change::Update(key("user/1"), payload("Ada"))),
        entry(RIGHT, RIGHT, true, 6, 2, Change::Insert(key("by-age/36"), payload("user/1"))),
        entry(ROOT, LEFT, false, 7, 3, Change::Delete(key("user/2"), payload(""))),
    ];
    let of =
        |number, total, entries| LoggedTransaction { client: 7, epoch: 2, number, total, entries };
    vec![of(4, 3, entries), of(5, 9000, vec![]), of(6, 0, vec![])]
}

#[test]
fn objects_of_version_1_are_still_written_and_read() {
    let [whole, spilled, empty] = <[_; 3]>::try_from(transactions()).unwrap();
    let transaction = |transaction: &LoggedTransaction, object: Option<&str>| {
        Inspected::Transaction(transaction.clone(), object.map(str::to_owned))
    };
    let index =
        |name: &str, root, is_ready| Index { name: name.to_owned(), root, is_ready, by: None };
    let indexes = vec![index("by-age", LEFT, true), index("by-name", RIGHT, false)];
    let with_rules = rules().into_iter().enumerate().map(|(n, by)| Index {
        by: Some(by),
        ..index(&format!("by-{n}"), PageId(ROOT.0 + n as u128), n == 0)
    });
    let with_rules: Vec<Index> =
        [index("by-age", LEFT, true)].into_iter().chain(with_rules).collect();
    let collection = |indexes, has_root| {
        let (name, root, isolation) = (String::new(), ROOT, None);
        Inspected::Collection(Collection { name, root, indexes, has_root, isolation })
    };
    let message = |hidden_until_ms, receives, holder, group: Option<&str>, body: &'static str| {
        let (group, body) = (group.map(str::to_owned), body.into());
        Inspected::Message(Stored { hidden_until_ms, receives, holder, group, body })
    };
    let database = |id, backend, shards| {
        let (is_encrypted, has_tags, has_writers) = (false, false, false);
        let database = Database { id, backend, shards, is_encrypted, has_tags, has_writers };
        Inspected::Database(database)
    };
    let with_blob = LoggedTransaction {
        client: 7,
        epoch: 2,
        number: 7,
        total: 1,
        entries: vec![Entry {
            tree: ROOT,
            page: LEFT,
            is_secondary: false,
            record: expected().pop().unwrap(),
        }],
    };
    let part = Part { stamp: blob().stamp(), number: 2, body: Bytes::from_static(b"body") };
    let mut expected: Vec<Inspected> = pages().into_iter().map(Inspected::Page).collect();
    expected.extend([
        transaction(&whole, None),
        transaction(&spilled, Some("spill/7/2/5")),
        Inspected::Log {
            stream: Stream { client: 7, epoch: 2 },
            number: 11,
            write_id: 0xbeef,
            transactions: vec![transaction(&whole, None), transaction(&empty, None)],
        },
        Inspected::Fence {
            stream: Stream { client: 7, epoch: 1 },
            number: 12,
            write_id: 0xcafe,
            by_epoch: 2,
        },
        message(1_763_690_400_000, 2, 0xbeef, Some("größe"), "body"),
        message(0, 0, 1, None, ""),
        Inspected::Client(ClientRecord {
            epoch: 3,
            bound_us: 1_763_690_400_000_000,
            fence_from: 3,
            write_id: 0xf00d,
        }),
        database(ROOT.0, Backend::S3Log, 16),
        database(1, Backend::SqsFifo, 1000),
        collection(indexes, false),
        collection(with_rules.clone(), false),
        transaction(&with_blob, None),
        Inspected::Part(part),
        collection(Vec::new(), true),
        collection(with_rules, true),
    ]);
    compare(OBJECTS, expected);
}

fn compare(golden: &str, expected: Vec<Inspected>) {
    let lines: Vec<_> = golden.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.len(), expected.len());
    for (line, expected) in lines.into_iter().zip(expected) {
        let bytes = Bytes::from(unhex(line.rsplit(' ').next().unwrap()));
        assert_eq!(Inspected::decode(&bytes).as_ref(), Ok(&expected), "{line}");
        assert_eq!(expected.encode().as_ref(), Some(&bytes), "{line}");
        // Every bit counts, and every byte.
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1 << (at % 8);
            assert!(Inspected::decode(&damaged.into()).is_err(), "{line}: byte {at}");
            assert!(Inspected::decode(&bytes.slice(..at)).is_err(), "{line}: cut at {at}");
        }
    }
}

#[test]
fn what_is_there_for_isolation_is_still_written_and_read() {
    let date_ms = 0x19a_a3f6_a6c0;
    let write = |tree, key: &'static [u8], payload: Option<&'static [u8]>| SequencedWrite {
        tree,
        key: Bytes::from_static(key),
        payload: payload.map(|payload| Bytes::from_static(payload).into()),
    };
    let writes = vec![
        write(LEFT, b"a", Some(b"\x00\xffpayload")),
        write(LEFT, b"b", None),
        write(ROOT, b"a", Some(b"")),
    ];
    let name = format!("sequencer/data/{date_ms:016x}-{:032x}", 9);
    let commit = |id, client, epoch, date_ms, object: Option<(String, u32)>, writes: &[_]| {
        SequencedCommit { id, client, epoch, date_ms, object, writes: writes.to_vec().into() }
    };
    let numbers = Numbers {
        write_id: 0xabcdef,
        last: 12,
        applied: 10,
        horizon: 3,
        dates: vec![(4, date_ms - 1000), (9, date_ms)],
        lives: vec![(7, 2, 12), (8, 1, 11)],
        indexes: Vec::new(),
        commits: vec![
            commit(8, 8, 1, date_ms, None, &writes),
            commit(9, 7, 2, date_ms + 1, Some((name.clone(), 77)), &[]),
        ],
        aside: vec![],
    };
    let aside = Numbers {
        applied: 11,
        dates: vec![],
        lives: vec![(7, 2, 12)],
        commits: vec![commit(10, 7, 2, date_ms + 1, None, &writes)],
        aside: vec![
            (5, commit(8, 8, 1, date_ms, None, &writes)),
            (11, commit(9, 7, 2, date_ms, Some((name, 77)), &[])),
        ],
        ..numbers.clone()
    };
    let collection = |has_root, isolation| {
        let (name, root, indexes) = (String::new(), ROOT, Vec::new());
        let isolation = Some(isolation);
        Inspected::Collection(Collection { name, root, indexes, has_root, isolation })
    };
    let with_index = Inspected::Collection(Collection {
        name: String::new(),
        root: ROOT,
        indexes: vec![Index {
            name: "born".into(),
            root: LEFT,
            is_ready: true,
            by: Some(rules()[1].clone()),
        }],
        has_root: true,
        isolation: Some(Isolation::Snapshot),
    });
    // The newer version first, a delete: the number of its commit has all bits turned over.
    let slot = |number: u64, client, payload: &'static [u8]| Slot {
        key: [b"k\x00\xff\x00\x01", &(!number).to_be_bytes()[..]].concat().into(),
        stamp: stamp(number, client, 0),
        payload: Some(Bytes::from_static(payload).into()),
    };
    let stream = |client| Stream { client, epoch: 0 };
    let leaf = Page {
        version: 2,
        write_id: 99,
        checkpoint_ms: date_ms,
        applied: vec![(stream(0), 5), (stream(1), 1)],
        entries: Entries::Leaf(vec![slot(5, 7, b"\x00"), slot(2, 8, b"\x01payload")]),
        ..Page::root(ROOT)
    };
    // Where payloads lie in blobs.
    let in_blob =
        |tree, key| SequencedWrite { payload: Some(Value::Blob(blob())), ..write(tree, key, None) };
    let far = vec![write(LEFT, b"b", Some(b"x")), in_blob(ROOT, b"a")];
    let near = Numbers {
        write_id: 5,
        last: 3,
        applied: 2,
        commits: vec![
            commit(8, 8, 1, date_ms, None, &[in_blob(LEFT, b"a")]),
            commit(9, 7, 2, date_ms, None, &[write(LEFT, b"b", None)]),
        ],
        ..Numbers::default()
    };
    // Where there are indexes.
    let entry = write(LEFT, b"x\x00\x01a", Some(b""));
    let followed = Numbers {
        write_id: 6,
        last: 2,
        applied: 1,
        indexes: vec![
            SequencedIndex { of: ROOT, root: LEFT, by: rules()[1].clone(), is_ready: true },
            SequencedIndex { of: ROOT, root: RIGHT, by: rules()[0].clone(), is_ready: false },
        ],
        commits: vec![commit(8, 8, 1, date_ms, None, &[entry, write(ROOT, b"a", Some(b"x"))])],
        aside: vec![(1, commit(9, 7, 2, date_ms, None, &[write(LEFT, b"y\x00\x01b", None)]))],
        ..Numbers::default()
    };
    // An entry that is longer than any key of a record.
    let key = [&[b's'; 1024][..], b"\x00\x01k"].concat().into();
    let long = SequencedWrite { key, ..write(LEFT, b"", Some(b"")) };
    let entries = vec![long, write(ROOT, b"k", Some(b"x"))];
    let mut of_blobs = leaf.clone();
    of_blobs.entries = Entries::Leaf(vec![
        slot(5, 7, b"\x00"),
        Slot { payload: Some(Value::Blob(blob())), ..slot(2, 8, b"") },
    ]);
    compare(
        SEQUENCE,
        vec![
            Inspected::Numbers(numbers),
            Inspected::Numbers(Numbers { write_id: 1, ..Numbers::default() }),
            Inspected::Writes(9, writes),
            collection(false, Isolation::Snapshot),
            collection(true, Isolation::Serializable),
            Inspected::Page(leaf),
            Inspected::Numbers(aside),
            Inspected::Writes(9, far),
            Inspected::Numbers(near),
            Inspected::Page(of_blobs),
            Inspected::Numbers(followed),
            Inspected::Writes(9, entries),
            with_index,
        ],
    );
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

fn expected() -> Vec<LogRecord> {
    let key = |key: &str| Key::new(key).unwrap();
    let payload = |payload: &[u8]| Payload::new(payload).unwrap();
    let record = |stamp, change| LogRecord { stamp, change };
    vec![
        record(stamp(1, 2, 3), Change::Insert(key("k"), payload(b""))),
        record(
            stamp(1_763_690_400_000_000, 0xfeed, 1),
            Change::Update(key("user/1"), payload(b"\x00\xff state")),
        ),
        record(stamp(u64::MAX, u64::MAX, u64::MAX), Change::Delete(key("user/1"), payload(b""))),
        record(stamp(5, 2, 4), Change::Delete(key("by-age/42"), payload(b"user/1"))),
        record(stamp(9, 7, 4), Change::Blob(key("large"), blob())),
    ]
}

#[test]
fn version_1_is_still_written_and_read() {
    let lines: Vec<_> = GOLDEN.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.len(), expected().len());
    for (line, record) in lines.into_iter().zip(expected()) {
        let digits = line.rsplit(' ').next().unwrap();
        let bytes = unhex(digits);
        assert_eq!(record.to_bytes(), bytes, "{line}");
        assert_eq!(LogRecord::decode(&bytes), Ok((record, bytes.len())), "{line}");
    }
}

#[test]
fn a_kind_from_the_future_is_named() {
    // Kind 9 under a checksum that holds: what a newer program of the same version would write.
    let mut bytes = expected()[0].to_bytes();
    let body = bytes.len() - 4;
    bytes[5] = 9;
    let sum = crc32c(&bytes[..body]);
    bytes[body..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(LogRecord::decode(&bytes), Err(DecodeError::Kind(9)));
}

/// Bit by bit, as the definition has it: reflected polynomial 0x82f63b78.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// A proposal of version 1 is what it was, under the name that it had.
#[test]
fn proposals_of_version_1_are_still_written_and_read() {
    let lines = PROPOSALS.lines().filter(|line| !line.starts_with('#'));
    let [line] = lines.collect::<Vec<_>>()[..] else { panic!("there is one") };
    let (name, digits) = line.split_once(' ').unwrap();
    let bytes = Bytes::from(unhex(digits));
    let [_, tag, id] = name.split('/').collect::<Vec<_>>()[..] else { panic!("{name}") };
    assert_eq!(tag, format!("{:016x}", ROOT.0 >> 64));
    let proposal = Proposal::decode(&bytes).unwrap();
    assert_eq!((proposal.id.to_string().as_str(), proposal.id), (id, id.parse().unwrap()));
    let entry = |sequence, change| Entry {
        tree: ROOT,
        page: LEFT,
        is_secondary: false,
        record: LogRecord { stamp: stamp(1_763_690_400_000_000, 7, sequence), change },
    };
    let key = |key: &str| Key::new(key).unwrap();
    let payload = |payload: &str| Payload::new(payload).unwrap();
    let entries = vec![
        entry(1, Change::Update(key("bread"), payload("2.10"))),
        entry(2, Change::Delete(key("butter"), payload(""))),
    ];
    let expected = LoggedTransaction { client: 7, epoch: 2, number: 8, total: 2, entries };
    assert_eq!(proposal.transaction, expected);
    assert_eq!(expected.encode(), bytes);
    // What somebody changed is another one.
    let mut changed = bytes.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    assert_eq!(Proposal::decode(&changed.into()), None);
    let of = |root| {
        let (name, indexes) = ("prices".to_owned(), Vec::new());
        Collection { name, root, indexes, has_root: true, isolation: None }
    };
    let settings = Settings::default();
    let (day_us, proposed_us) = (24 * 3_600_000_000, 1_763_690_400_000_000);
    let cases = [
        ("at once", ROOT, proposed_us, None),
        ("after a week", ROOT, proposed_us + 7 * day_us, None),
        ("after half of the age of tombstones", ROOT, proposed_us + 15 * day_us, Some("ago")),
        ("before it was proposed", ROOT, proposed_us - day_us, Some("in the future")),
        ("for another collection", RIGHT, proposed_us, Some("something else")),
    ];
    for (what, root, now_us, expected) in cases {
        let found = proposal.objection(&of(root), now_us, &settings);
        let is_it = match (&found, expected) {
            (Some(found), Some(expected)) => found.contains(expected),
            (found, expected) => found.is_none() && expected.is_none(),
        };
        assert!(is_it, "{what}: {found:?}");
    }
}

/// A database of version 4, and who may write to a collection of it.
#[test]
fn writers_of_version_1_are_still_written_and_read() {
    let database = |is_encrypted| Database {
        id: ROOT.0,
        backend: Backend::S3Log,
        shards: 16,
        is_encrypted,
        has_tags: true,
        has_writers: true,
    };
    let expected = vec![
        Inspected::Database(database(false)),
        Inspected::Database(database(true)),
        Inspected::Writers(vec![7, 0xfeed, u64::MAX]),
    ];
    compare(WRITERS, expected);
}

#[test]
fn databases_of_versions_2_and_3_and_claims_are_still_written_and_read() {
    let database = |backend, shards, is_encrypted, has_tags| {
        let (id, has_writers) = (ROOT.0, false);
        let database = Database { id, backend, shards, is_encrypted, has_tags, has_writers };
        Inspected::Database(database)
    };
    let expected = vec![
        database(Backend::SqsStandard, 16, true, false),
        database(Backend::SqsFifo, 1000, false, true),
        database(Backend::S3Log, 1, true, true),
        Inspected::Claims(Claims {
            write_id: 0xabcdef,
            parts: [
                (0, Claim { client: 7, date_ms: 1_763_690_400_123 }),
                (999, Claim { client: u64::MAX, date_ms: 0 }),
            ]
            .into(),
        }),
    ];
    compare(DATABASES, expected);
}

#[test]
fn what_is_kept_on_a_disk_is_still_written_and_read() {
    let kept = |object: &str, etag: &str, bytes: Bytes| {
        Inspected::Kept(KeptPage { object: object.to_owned(), etag: ETag::new(etag), bytes })
    };
    let last = |golden: &str| {
        let line = golden.lines().find(|line| !line.starts_with('#')).unwrap();
        Bytes::from(unhex(line.rsplit(' ').next().unwrap()))
    };
    let expected = vec![
        kept(
            "page/0123456789abcdeffedcba9876543210",
            "\"5d41402abc4b2a76b9719d911017c592\"",
            Page::root(ROOT).encode(),
        ),
        kept("page/1", "17-42", last(SEALED)),
        kept("", "", Bytes::new()),
    ];
    compare(KEPT, expected);
}

/// What opens it is tested beside the code that does.
#[test]
fn what_is_sealed_still_says_by_which_key() {
    let line = SEALED.lines().find(|line| !line.starts_with('#')).unwrap();
    let bytes = Bytes::from(unhex(line));
    let sealed = bytes.slice(41..bytes.len() - 4);
    compare(SEALED, vec![Inspected::Sealed(SealedFrame { key: 7, salt: [9; 32], sealed })]);
}

/// The magics of `text` that are in quotes of this kind, as `"s3dP"`.
fn magics(text: &str, quote: char) -> BTreeSet<String> {
    let quoted = text.split(quote).filter(|word| word.len() == 4 && word.starts_with("s3d"));
    quoted.map(str::to_owned).collect()
}

/// Everything that the code writes has a line in the table of formats, golden bytes, and is searched by the
/// fuzzer in each version that there are golden bytes of. What is left out fails here.
#[test]
fn every_format_is_in_the_table_and_has_golden_bytes_and_is_searched() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let files = |of: &str, end: &str| {
        let (mut found, mut folders) = (Vec::new(), vec![folder.join(of)]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.to_str().unwrap().ends_with(end) {
                    found.push(path);
                }
            }
        }
        found
    };
    let protocol = read(&folder.join("PROTOCOL.md"));
    let formats = protocol.split("| magic | what | where |").nth(1).unwrap();
    let rows = formats.lines().skip(2).take_while(|line| line.starts_with('|'));
    let mut table = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let here = magics(cells[1], '`');
        let source = read(&folder.join(cells[3].trim_matches('`')));
        for magic in &here {
            assert!(source.contains(magic.as_str()), "{magic} is not in {}", cells[3]);
        }
        table.extend(here);
    }
    // What is marked as not opened lies nowhere; see `frame`.
    let written = files("src", ".rs").into_iter().flat_map(|path| magics(&read(&path), '"'));
    let mut written: BTreeSet<String> = written.collect();
    assert!(written.remove("s3dX"));
    assert_eq!(written, table, "the code and the table of PROTOCOL.md");

    let mut golden = BTreeSet::new();
    for path in files("tests/golden", ".txt") {
        let text = read(&path);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let bytes = unhex(line.rsplit(' ').next().unwrap());
            golden.insert((String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes[4]));
        }
    }
    let with_bytes: BTreeSet<String> = golden.iter().map(|(magic, _)| magic.clone()).collect();
    assert_eq!(with_bytes, table, "tests/golden and the table of PROTOCOL.md");
    let targets: String = files("fuzz", ".rs").iter().map(|path| read(path)).collect();
    for (magic, version) in golden {
        let kind = format!("b\"{magic}\\x{version:02x}\"");
        assert!(targets.contains(&kind), "{kind} is in no target of fuzz/");
    }
}
