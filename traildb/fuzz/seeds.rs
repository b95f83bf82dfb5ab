//! Writes seeds: small databases in the compact form, of our own and of `../shared`, and small texts
//! for `make`, `filter` and `index`.
//!
//! ```text
//!   FOLDER/reader   flags, members
//!   FOLDER/make     flags, text: see make.rs
//!   FOLDER/filter   text
//!   FOLDER/index    flags, text of a filter, patches: see index.rs
//! ```

mod compact;

use std::{collections::BTreeMap, fs, io::Read, path::Path};

use compact::{Compact, PACKAGE, REMOTE, VERSION_0};
use traildb::{Builder, Options, Uuid, synth};

type Members = BTreeMap<String, Vec<u8>>;

fn main() {
    let root = std::env::args().nth(1).expect("usage: seeds FOLDER");
    texts(&Path::new(&root).join("make"));
    filters(&Path::new(&root).join("filter"), &Path::new(&root).join("index"));
    let folder = Path::new(&root).join("reader");
    fs::create_dir_all(&folder).expect("the folder can be made");
    let scratch = std::env::temp_dir().join(format!("traildb-seeds-{}", std::process::id()));
    fs::create_dir_all(&scratch).expect("a scratch folder can be made");
    let mut databases = vec![("edits".to_owned(), edits(&scratch.join("edits")))];
    databases.push(("wide".to_owned(), wide(&scratch.join("wide"))));
    databases.extend(shared(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../../shared/golden-tdb"
    ))));
    let mut written = 0;
    for (name, members) in &databases {
        for (form, flags) in
            [("dir", 0), ("pkg", PACKAGE), ("far", PACKAGE | REMOTE), ("old", VERSION_0)]
        {
            if let Some(bytes) = compact_of(members, flags).bytes() {
                fs::write(folder.join(format!("{name}-{form}")), bytes)
                    .expect("a seed is written");
                written += 1;
            }
        }
    }
    let _ = fs::remove_dir_all(&scratch);
    println!("{written} seeds of {} databases", databases.len());
}

/// Rows as they should be, and as they should not.
fn texts(folder: &Path) {
    fs::create_dir_all(folder).expect("the folder can be made");
    let uuid = "00112233445566778899aabbccddeeff";
    let csv = [
        format!("{uuid},1,x,y\n{uuid},2,,\nabc,3,z,w\n"),
        format!("{uuid},1,\"a \"\"b\"\"\",\"line\nbreak\"\r\n{uuid},18446744073709551615,\"\",y"),
        format!("{uuid},1,\"open,y\n{uuid},2,x\"y,\"x\"y\n"),
        format!("{uuid},0\n\n{uuid}\n{uuid},140737488355326,a,b,c,d\n,,,\n"),
        format!("{uuid},-1,x,y\ng,1,x,y\n{uuid},1,\0,\u{20ac}\n"),
    ];
    let json = [
        format!("{{\"uuid\": \"{uuid}\", \"time\": 1, \"a\": \"x\", \"b\": null}}\n"),
        format!("{{\"uuid\":\"abc\",\"time\":\"2\",\"a\":1.50,\"b\":true,\"c\":[{{}}]}}\n"),
        format!("{{\"uuid\":\"{uuid}\",\"time\":3,\"a\":{{\"hex\":\"c3ff\"}},\"b\":\"\\u20ac\\n\"}}"),
        format!("{{\"uuid\":\"{uuid}\",\"time\":3,\"a\":\"x\",\"a\":\"y\"}}\n[]\n{{\"uuid\":\n"),
    ];
    for (kind, texts, bit) in [("csv", &csv[..], 0), ("json", &json[..], 1)] {
        for (n, text) in texts.iter().enumerate() {
            // As the C tool reads and as we do; stopping and passing over; one thread and two; with
            // a database at the end or without.
            for flags in [0, 2, 4, 6 | 8, 16, 4 | 16] {
                let mut seed = vec![flags | bit];
                seed.extend(text.as_bytes());
                fs::write(folder.join(format!("{kind}-{n}-{flags}")), seed).expect("a seed is written");
            }
        }
    }
}

/// Filters as they should be and as they should not, alone and over an index.
fn filters(texts: &Path, indexes: &Path) {
    let filters = [
        "a=x1",
        "a=x1 a=x2 & b!= & user=\"user 4\"",
        "!(a=x1 & (b=1 b=2)) time>=1970-02-01T12:00:00Z",
        "time<1970-03 & time>=86400 & time!=172800 & b=",
        "user=@names/of/users & !a=@x1 & nothing=\"\\x41\\\"\"",
        "((((a=x1))))",
        "a=x1 & ",
        "a=\"open",
        "time=99999-99 & !!!",
        "title=AT&T (b=a(b)c)",
    ];
    for folder in [texts, indexes] {
        fs::create_dir_all(folder).expect("the folder can be made");
    }
    // The head, the entry of the first field, its lists; a cut.
    let patches: [&[u8]; 5] = [&[], &[8, 0, 3], &[40, 0, 0, 96, 0, 1], &[0, 16, 0x80], &[0, 32, 0]];
    for (n, text) in filters.iter().enumerate() {
        fs::write(texts.join(format!("filter-{n}")), text).expect("a seed is written");
        for (k, patch) in patches.iter().enumerate() {
            let flags = if k == 4 { 2 } else { k as u8 & 1 };
            let mut seed = vec![flags, text.len() as u8];
            seed.extend(text.as_bytes());
            seed.extend(*patch);
            fs::write(indexes.join(format!("index-{n}-{k}")), seed).expect("a seed is written");
        }
    }
}

fn compact_of(members: &Members, flags: u8) -> Compact {
    let get = |name: &str| members.get(name).cloned().unwrap_or_default();
    let fields = get("fields");
    let names = String::from_utf8_lossy(&fields).into_owned();
    let lexicons = names.lines().filter(|n| !n.is_empty()).take(64);
    let mut compact = Compact {
        flags,
        info: get("info"),
        uuids: get("uuids"),
        toc: get("trails.toc"),
        data: get("trails.data"),
        lexicons: lexicons.map(|name| get(&format!("lexicon.{name}"))).collect(),
        fields,
        ..Compact::default()
    };
    compact.take_codes(&get("trails.codebook"));
    // The most frequent codes will do: the others are literals that fail, which is a seed as well.
    compact.codes.truncate(19 * 400);
    compact
}

fn finish(builder: Builder, path: &Path) -> Members {
    builder.finish(path).expect("the database is written");
    directory(path)
}

fn edits(path: &Path) -> Members {
    let options = Options::default().directory(true);
    let mut builder = Builder::with_options(&synth::FIELDS, options).expect("the fields are good");
    let spec = synth::Spec { events: 300, trails: 20, titles: 60, seed: 1 };
    synth::fill(&spec, &mut builder, |_| ()).expect("the events are good");
    finish(builder, path)
}

fn wide(path: &Path) -> Members {
    let options = Options::default().directory(true);
    let names: Vec<String> = (0..200).map(|n| format!("f{n}")).collect();
    let mut builder = Builder::with_options(&names, options).expect("the fields are good");
    for k in 0..40u64 {
        let values: Vec<String> =
            (0..200u64)
                .map(|f| {
                    if (f + k).is_multiple_of(3) { String::new() } else { format!("{}", f * k % 7) }
                })
                .collect();
        let uuid = Uuid::from_number(u128::from(k % 5) << 100);
        builder.add(uuid, k * 1000, &values).expect("the event is good");
    }
    finish(builder, path)
}

fn directory(path: &Path) -> Members {
    let entries = fs::read_dir(path).expect("the folder can be read");
    let member = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().expect("names are ASCII");
        (name, fs::read(entry.path()).expect("the member can be read"))
    };
    entries.map(|entry| member(entry.expect("the folder can be read"))).collect()
}

/// The fixtures, where they are.
fn shared(root: &Path) -> Vec<(String, Members)> {
    let Ok(entries) = fs::read_dir(root) else {
        println!("left out: seeds of {}: it does not exist", root.display());
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if let Some(name) = file.strip_suffix(".tdb.gz") {
            found.push((name.to_owned(), unpacked(&gunzip(&entry.path()))));
        } else if let Some(name) = file.strip_suffix(".tdbdir") {
            let zipped = directory(&entry.path()).into_keys();
            let member = |file: String| {
                let bytes = gunzip(&entry.path().join(&file));
                (file.trim_end_matches(".gz").to_owned(), bytes)
            };
            found.push((name.to_owned(), zipped.map(member).collect()));
        }
    }
    found
}

fn gunzip(path: &Path) -> Vec<u8> {
    let file = fs::File::open(path).expect("the fixture can be opened");
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).expect("the fixture is whole");
    bytes
}

/// The members of a package, by its index.
fn unpacked(package: &[u8]) -> Members {
    let index = String::from_utf8_lossy(&package[2560..]);
    let lines = index.lines().skip(1).take_while(|line| !line.is_empty());
    let member = |line: &str| {
        let mut parts = line.split(' ');
        let name = parts.next()?.to_owned();
        let (start, len): (usize, usize) =
            (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some((name, package.get(start..start + len)?.to_vec()))
    };
    lines.filter_map(member).collect()
}
