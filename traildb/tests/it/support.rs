//! Fixtures and comparisons.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value as Json;
use traildb::{Reader, Storage, Uuid};

/// One event: its time, and the bytes of each value.
pub(crate) type Row = (u64, Vec<Vec<u8>>);
/// One trail: its UUID, and its events.
pub(crate) type Rows = (Uuid, Vec<Row>);

/// A directory beside the workspace that fixtures are found in. In CI they must be there.
pub(crate) fn shared(what: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(what);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing, and CI is set", path.display());
    println!("left out: {what}: {} does not exist", path.display());
    None
}

/// A fixture: a database and what is in it.
pub(crate) struct Fixture {
    pub(crate) name: String,
    /// One member of the name "" for a package, all members for a directory.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) meta: Json,
    pub(crate) trails: Vec<Rows>,
}

impl Fixture {
    pub(crate) fn package(&self) -> Option<&[u8]> {
        self.files.get("").map(Vec::as_slice)
    }

    /// A reader over memory.
    pub(crate) fn open(&self) -> Reader<&[u8]> {
        let get = |name: &str| Ok(self.files.get(name).map(Vec::as_slice));
        match self.package() {
            Some(bytes) => Reader::new(bytes),
            None => Reader::open_directory(get),
        }
        .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

fn gunzip(path: &Path) -> Vec<u8> {
    let file = fs::File::open(path).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Every fixture of `../shared/golden-tdb`; none, with a printed line, where that is missing.
pub(crate) fn fixtures() -> Vec<Fixture> {
    let Some(root) = shared("golden-tdb") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in fs::read_dir(&root).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let Some(name) = file.strip_suffix(".meta.json") else { continue };
        let mut files = BTreeMap::new();
        let directory = root.join(format!("{name}.tdbdir"));
        if directory.exists() {
            for member in fs::read_dir(&directory).unwrap() {
                let member = member.unwrap();
                let file = member.file_name().into_string().unwrap();
                let name = file.strip_suffix(".gz").unwrap().to_owned();
                files.insert(name, gunzip(&member.path()));
            }
        } else {
            files.insert(String::new(), gunzip(&root.join(format!("{name}.tdb.gz"))));
        }
        let lines = fs::read_to_string(root.join(format!("{name}.jsonl"))).unwrap();
        found.push(Fixture {
            name: name.to_owned(),
            files,
            meta: serde_json::from_slice(&fs::read(root.join(&file)).unwrap()).unwrap(),
            trails: lines.lines().map(parse_line).collect(),
        });
    }
    assert!(!found.is_empty(), "{} has no fixtures", root.display());
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn parse_line(line: &str) -> Rows {
    let json: Json = serde_json::from_str(line).unwrap();
    let value = |json: &Json| match json {
        Json::String(text) => text.clone().into_bytes(),
        other => unhex(other["hex"].as_str().unwrap()),
    };
    let event = |json: &Json| {
        let parts = json.as_array().unwrap();
        (parts[0].as_u64().unwrap(), parts[1..].iter().map(value).collect())
    };
    let events = json["events"].as_array().unwrap().iter().map(event).collect();
    (json["uuid"].as_str().unwrap().parse().unwrap(), events)
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|k| u8::from_str_radix(&text[k..k + 2], 16).unwrap()).collect()
}

/// Everything in a database, read trail by trail with one cursor.
pub(crate) fn contents<S: Storage>(reader: &Reader<S>) -> Result<Vec<Rows>, traildb::Error> {
    let mut all = Vec::new();
    let mut cursor = reader.cursor()?;
    for trail in 0..reader.trails() {
        cursor.seek(trail)?;
        let mut events = Vec::new();
        while let Some(event) = cursor.next_event()? {
            let value = |item: &traildb::Item| reader.value(*item).map(|value| value.to_vec());
            events.push((event.time, event.items.iter().map(value).collect::<Result<_, _>>()?));
        }
        all.push((reader.uuid(trail)?, events));
    }
    Ok(all)
}

/// The members of a fixture by name, whatever its form.
pub(crate) fn members(fixture: &Fixture) -> BTreeMap<String, Vec<u8>> {
    let Some(package) = fixture.package() else { return fixture.files.clone() };
    let end = package[2560..].windows(2).position(|pair| pair == b"\n\n").unwrap();
    let index = std::str::from_utf8(&package[2560..2560 + end]).unwrap();
    let line = |line: &str| {
        let mut parts = line.split(' ');
        let name = parts.next().unwrap().to_owned();
        let mut number = || parts.next().unwrap().parse::<usize>().unwrap();
        let (start, len) = (number(), number());
        (name, package[start..start + len].to_vec())
    };
    index.lines().skip(1).map(line).filter(|(name, _)| name != "tar.toc").collect()
}

/// A package of these members.
pub(crate) fn package(members: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let room: usize = members.keys().map(|name| name.len() + 43).sum();
    let mut file = vec![0; (2560 + 23 + room).next_multiple_of(512)];
    let mut index = String::from("TAR TOC FOR TDB VER 1\n");
    for (name, bytes) in members {
        index.push_str(&format!("{name} {} {}\n", file.len(), bytes.len()));
        file.extend(bytes);
        file.resize(file.len().next_multiple_of(512), 0);
    }
    index.push('\n');
    file[2560..2560 + index.len()].copy_from_slice(index.as_bytes());
    file
}

/// The database of these members, each a storage of its own.
pub(crate) fn open_members(
    members: &BTreeMap<String, Vec<u8>>,
) -> Result<Reader<&[u8]>, traildb::Error> {
    Reader::open_directory(|name| Ok(members.get(name).map(Vec::as_slice)))
}

/// A folder for files that nobody keeps: in memory where that can be had, since a builder waits
/// for the disk with every member that it writes.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap()
}
