//! The events: of a file, or made up once and kept.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use examples::data;
use traildb::synth::{self, Spec};

/// As many as the C library's figures were taken from.
const SPEC: Spec = Spec { events: 5_000_000, trails: 400_000, titles: 1_000_000, seed: 1 };

/// The path of the events, and whether they are made up.
pub(super) fn events(given: Option<&Path>) -> Result<(PathBuf, bool), String> {
    match given {
        Some(path) => Ok((path.to_owned(), false)),
        None => {
            let folder = data::folder()?;
            let path = folder.join(format!("synth-{}-{}.csv", SPEC.events, SPEC.seed));
            if !path.exists() {
                eprintln!("  making {}, once", path.display());
                fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
                make(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            }
            Ok((path, true))
        }
    }
}

fn make(path: &Path) -> std::io::Result<()> {
    // Under another name until it is whole.
    let unfinished = path.with_extension(format!("{}.part", std::process::id()));
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&unfinished)?);
    writeln!(out, "uuid,time,{}", synth::FIELDS.join(","))?;
    synth::generate(&SPEC, |edit| {
        let [user, ip, title] = &edit.values;
        writeln!(out, "{},{},{user},{ip},{title}", edit.uuid, edit.time)
    })?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(unfinished, path)
}

/// The title of the first event.
pub(super) fn first_title(csv: &Path) -> Result<String, String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", csv.display());
    let mut lines = BufReader::new(File::open(csv).map_err(|e| told(&e))?).lines();
    let mut line = || lines.next().transpose().ok().flatten();
    let (header, event) = line().zip(line()).ok_or_else(|| told(&"no events"))?;
    let column = header.split(',').position(|name| name == "title");
    let title = column.and_then(|column| event.split(',').nth(column));
    title.map(str::to_owned).ok_or_else(|| told(&"no column `title`"))
}

/// How many events at the end of the file are looked at for a rare title.
const CANDIDATES: usize = 200;

/// The rarest of the titles of the last events.
pub(super) fn rare_title(csv: &Path) -> Result<String, String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", csv.display());
    let text = fs::read(csv).map_err(|e| told(&e))?;
    let lines = || text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let header = lines().next().ok_or_else(|| told(&"no events"))?;
    let column = header.split(|&byte| byte == b',').position(|name| name == b"title");
    let column = column.ok_or_else(|| told(&"no column `title`"))?;
    let title = |line: &[u8]| line.split(|&byte| byte == b',').nth(column).map(<[u8]>::to_vec);
    let mut last: Vec<Vec<u8>> = Vec::new();
    for line in text.rsplit(|&byte| byte == b'\n').filter(|line| !line.is_empty()).take(CANDIDATES)
    {
        last.extend(title(line).filter(|title| !title.is_empty()));
    }
    let mut counts: HashMap<Vec<u8>, u64> = last.into_iter().map(|title| (title, 0)).collect();
    for line in lines().skip(1) {
        let cell = line.split(|&byte| byte == b',').nth(column).unwrap_or_default();
        if let Some(count) = counts.get_mut(cell) {
            *count += 1;
        }
    }
    let rarest = counts.into_iter().min_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
    let (title, _) = rarest.ok_or_else(|| told(&"no titles"))?;
    String::from_utf8(title).map_err(|e| told(&e))
}
