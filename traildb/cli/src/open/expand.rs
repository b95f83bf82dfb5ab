//! One name for many databases: patterns, directories, lists.
//!
//! | input | databases |
//! | --- | --- |
//! | `a.tdb`, `db` (with `info` in it), `https://host/a.tdb` | itself |
//! | `logs/2016-*/*.tdb` | files and directory databases that match; `**` for any depth |
//! | `logs` (a directory that is no database) | every `*.tdb` below it, and directory databases |
//! | `s3://bucket/2016-*/*.tdb` | keys that match |
//! | `s3://bucket/2016-01/` (no database in the directory form) | keys below that end in `.tdb` |
//! | `@list` | the lines of the file `list`, each an input of its own; `#` starts a comment |
//!
//! `*` and `[a-z]` do not match a `/`; in a path `?` is one character (in a URL it starts options).
//! What a pattern finds comes in the order of names.

use std::{
    fs,
    path::{Path, PathBuf},
};

use glob::{MatchOptions, Pattern};
use traildb::{Unfinished, index::SUFFIX};

use super::is_url;
use crate::failure::Failure;

/// Databases that all inputs together may name.
const DATABASES_MAX: usize = 100_000;
/// Objects of a bucket that are looked at for one pattern.
const KEYS_MAX: usize = 1_000_000;
/// Directories within directories that are looked into.
const DEPTH_MAX: usize = 32;
/// The longest list file.
const LIST_BYTES_MAX: u64 = 64 << 20;

const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// The databases that `inputs` name, in their order.
pub(super) fn databases(inputs: &[String]) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for input in inputs {
        match input.strip_prefix('@') {
            Some(list) => lines(list)?.iter().try_for_each(|line| expand(line, &mut found))?,
            None => expand(input, &mut found)?,
        }
    }
    Ok(found)
}

fn lines(path: &str) -> Result<Vec<String>, Failure> {
    let failed = |error| Failure::file(path, error);
    let len = fs::metadata(path).map_err(failed)?.len();
    if len > LIST_BYTES_MAX {
        return Err(Failure::file(path, "a list of databases has at most 64 MiB"));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    let lines = text.lines().map(|line| line.split(" #").next().unwrap_or_default().trim());
    let lines: Vec<String> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    match lines.is_empty() {
        true => Err(Failure::file(path, "the list names no database")),
        false => Ok(lines),
    }
}

fn expand(input: &str, found: &mut Vec<String>) -> Result<(), Failure> {
    let before = found.len();
    if is_url(input) {
        of_url(input, found)?;
    } else {
        of_path(input, found)?;
    }
    if found.len() == before {
        return Err(Failure::Failed(format!("{}: no database is there", without_options(input))));
    }
    if found.len() > DATABASES_MAX {
        return Err(Failure::Failed(format!(
            "the inputs name more than {DATABASES_MAX} databases"
        )));
    }
    Ok(())
}

/// What may be shown of a URL: options may hold secrets.
pub(crate) fn without_options(input: &str) -> &str {
    match is_url(input) {
        true => &input[..input.find(['?', '#']).unwrap_or(input.len())],
        false => input,
    }
}

fn has_pattern(text: &str, marks: &[char]) -> bool {
    text.contains(marks)
}

fn pattern_of(text: &str) -> Result<Pattern, Failure> {
    Pattern::new(text).map_err(|error| {
        Failure::Usage(format!("{text}: character {}: {}", error.pos + 1, error.msg))
    })
}

fn of_path(input: &str, found: &mut Vec<String>) -> Result<(), Failure> {
    let path = traildb::existing(Path::new(input));
    if path.exists() {
        if path.is_dir() && !is_database(&path) {
            let before = found.len();
            below(&path, 0, found)?;
            if found.len() > before {
                return Ok(());
            }
        }
        // A directory without any database is told of when it is opened as one.
        found.push(input.to_owned());
        return Ok(());
    }
    if !has_pattern(input, &['*', '?', '[']) {
        // So is a path at which nothing is.
        found.push(input.to_owned());
        return Ok(());
    }
    pattern_of(input)?;
    let paths = glob::glob_with(input, OPTIONS)
        .map_err(|error| Failure::Usage(format!("{input}: {}", error.msg)))?;
    for path in paths {
        let path = path.map_err(|error| Failure::file(error.path(), error.error()))?;
        // Directories on the way to files match a `*` at the end as well.
        if path.is_file() && !is_index(&path) && !is_unfinished(&path) || is_database(&path) {
            found.push(text_of(path)?);
        }
        if found.len() > DATABASES_MAX {
            break;
        }
    }
    Ok(())
}

/// Whether a file is the index beside a database, which a pattern finds as well.
fn is_index(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(SUFFIX.as_bytes())
}

/// Whether something is being written there, or was by a process that died.
fn is_unfinished(path: &Path) -> bool {
    path.file_name().is_some_and(Unfinished::is_name)
}

/// Whether a directory is a database in the directory form, and whole.
fn is_database(path: &Path) -> bool {
    !is_unfinished(path) && path.join("info").is_file() && path.join("fields").is_file()
}

/// Every database below a directory, in the order of names.
fn below(path: &Path, depth: usize, found: &mut Vec<String>) -> Result<(), Failure> {
    let failed = |error| Failure::file(path, error);
    let mut entries: Vec<fs::DirEntry> =
        fs::read_dir(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
        // A link may point to a database, but is not followed into directories: it may lead back.
        if path.is_file() && path.extension().is_some_and(|extension| extension == "tdb")
            || is_database(&path)
        {
            found.push(text_of(path)?);
        } else if kind.is_dir() && depth < DEPTH_MAX {
            below(&path, depth + 1, found)?;
        }
        if found.len() > DATABASES_MAX {
            break;
        }
    }
    Ok(())
}

fn text_of(path: PathBuf) -> Result<String, Failure> {
    let failed = |path: std::ffi::OsString| Failure::file(path, "the name is no UTF-8");
    path.into_os_string().into_string().map_err(failed)
}

fn of_url(url: &str, found: &mut Vec<String>) -> Result<(), Failure> {
    let (place, options) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
    let (scheme, rest) = place.split_once("://").unwrap_or(("", place));
    let in_bucket = scheme.eq_ignore_ascii_case("s3");
    let patterned = has_pattern(rest, &['*', '[']);
    if !in_bucket && patterned {
        let text = "only in buckets (s3://) and among paths can databases be looked for";
        return Err(Failure::Usage(format!("{scheme}://...: {text}")));
    }
    if !in_bucket || !(patterned || rest.ends_with('/')) {
        found.push(url.to_owned());
        return Ok(());
    }
    // The slash of a bucket alone is no key; everything in the bucket is meant.
    let whole = rest.split_once('/').is_some_and(|(_, key)| key.is_empty());
    let asked = if whole { format!("{scheme}://{rest}*.tdb{options}") } else { url.to_owned() };
    let listing = match list(&asked) {
        Ok(listing) => listing,
        // Who may read may not be allowed to list. Then it can only be a database.
        Err(Failure::Failed(_)) if !patterned && !whole => {
            found.push(url.to_owned());
            return Ok(());
        }
        Err(failure) => return Err(failure),
    };
    let Listing { bucket, key, keys } = listing;
    let url_of = |key: &str| format!("{scheme}://{bucket}/{}{options}", encoded(key));
    if patterned {
        let pattern = pattern_of(&key)?;
        let hits =
            keys.iter().filter(|key| pattern.matches_with(key, OPTIONS) && !key.ends_with(SUFFIX));
        found.extend(hits.map(|key| url_of(key)));
        return Ok(());
    }
    let is_member = |name: &str| keys.iter().any(|known| *known == format!("{key}{name}"));
    if is_member("info") && is_member("fields") {
        found.push(url.to_owned());
    } else {
        found.extend(keys.iter().filter(|key| key.ends_with(".tdb")).map(|key| url_of(key)));
    }
    Ok(())
}

/// What a bucket has under the part of a key that is no pattern.
struct Listing {
    bucket: String,
    /// The key that was asked for, as it is: not percent-encoded.
    key: String,
    keys: Vec<String>,
}

fn list(url: &str) -> Result<Listing, Failure> {
    // Connections belong to a runtime, so these are not those that databases are read by.
    let (bucket, key, aws) = sources::Options::default().s3_place(url)?;
    let prefix = &key[..key.find(['*', '[']).unwrap_or(key.len())];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("no runtime for requests: {error}")))?;
    let policy = sources::RetryPolicy::default();
    let listed = runtime.block_on(sources::s3::list(&bucket, prefix, &aws, &policy, KEYS_MAX))?;
    let keys = listed.into_iter().map(|object| object.key).collect();
    Ok(Listing { bucket, key, keys })
}

/// A key as it stands in an address: what would mean something there is percent-encoded.
fn encoded(key: &str) -> String {
    key.replace('%', "%25").replace('?', "%3F").replace('#', "%23")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_every_kind() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let at = |name: &str| directory.path().join(name).to_str().expect("plain").to_owned();
        for name in [
            "2016-01/a.tdb",
            "2016-01/b.tdb",
            "2016-02/a.tdb",
            "2016-02/a.tdb.tdbidx",
            "2016-02/a.tdb.tdbidx.7-0.part",
            "2016-02/b.tdb.7-0.part",
            "2016-02/notes",
            "x[1].tdb",
        ] {
            fs::create_dir_all(directory.path().join(name).parent().expect("a parent")).unwrap();
            fs::write(at(name), "").unwrap();
        }
        fs::create_dir(at("2016-02/dir")).unwrap();
        fs::create_dir(at("2016-02/c.7-1.part")).unwrap();
        for member in ["info", "fields"] {
            fs::write(at("2016-02/dir/") + member, "").unwrap();
            fs::write(at("2016-02/c.7-1.part/") + member, "").unwrap();
        }
        fs::write(at("list"), format!("# shards\n{}\n\n{} # one\n", at("2016-01/*"), at("x[1]")))
            .unwrap();
        let cases: [(&str, &[&str]); 9] = [
            ("2016-01/a.tdb", &["2016-01/a.tdb"]),
            ("2016-01/a", &["2016-01/a"]),
            ("2016-*/*.tdb", &["2016-01/a.tdb", "2016-01/b.tdb", "2016-02/a.tdb"]),
            ("2016-0?/a*", &["2016-01/a.tdb", "2016-02/a.tdb"]),
            ("2016-02/*", &["2016-02/a.tdb", "2016-02/dir", "2016-02/notes"]),
            ("**/b.tdb", &["2016-01/b.tdb"]),
            ("x[1].tdb", &["x[1].tdb"]),
            ("2016-02", &["2016-02/a.tdb", "2016-02/dir"]),
            ("nothing", &["nothing"]),
        ];
        for (input, expected) in cases {
            let expected: Vec<String> = expected.iter().map(|name| at(name)).collect();
            assert_eq!(databases(&[at(input)]).expect(input), expected, "{input}");
        }
        let list = format!("@{}", at("list"));
        let expected = ["2016-01/a.tdb", "2016-01/b.tdb", "x[1]"].map(at);
        assert_eq!(databases(&[list]).unwrap(), expected);
        for none in ["no-*.tdb", "2016-[", "@list-that-is-not-there"] {
            let input = if none.starts_with('@') { none.to_owned() } else { at(none) };
            assert!(databases(&[input]).is_err(), "{none}");
        }
    }

    #[test]
    fn urls_that_are_not_listed_stay_as_they_are() {
        for url in ["s3://b/k.tdb?region=x*", "http://h/a.tdb?x=*", "http://h/db/", "file:///a.tdb"]
        {
            assert_eq!(databases(&[url.to_owned()]).unwrap(), [url]);
        }
        for url in ["http://h/*.tdb", "file:///x/*.tdb"] {
            assert!(matches!(databases(&[url.to_owned()]), Err(Failure::Usage(_))), "{url}");
        }
    }
}
