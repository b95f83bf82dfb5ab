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
pub type Row = (u64, Vec<Vec<u8>>);
/// One trail: its UUID, and its events.
pub type Rows = (Uuid, Vec<Row>);

/// A directory beside the workspace that fixtures are found in. In CI they must be there.
pub fn shared(what: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(what);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("CI").is_none(), "{} is missing, and CI is set", path.display());
    println!("left out: {what}: {} does not exist", path.display());
    None
}

/// A fixture: a database and what is in it.
pub struct Fixture {
    pub name: String,
    /// One member of the name "" for a package, all members for a directory.
    pub files: BTreeMap<String, Vec<u8>>,
    pub meta: Json,
    pub trails: Vec<Rows>,
    /// The lines that the trails were read from.
    pub lines: String,
}

impl Fixture {
    pub fn is_package(&self) -> bool {
        self.files.contains_key("")
    }

    pub fn package(&self) -> Option<&[u8]> {
        self.files.get("").map(Vec::as_slice)
    }

    /// A reader over memory.
    pub fn open(&self) -> Reader<&[u8]> {
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
pub fn fixtures() -> Vec<Fixture> {
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
            lines,
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
pub fn contents<S: Storage>(reader: &Reader<S>) -> Result<Vec<Rows>, traildb::Error> {
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
