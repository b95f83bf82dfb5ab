//! Objects among files.
//!
//! ```text
//!   logs/2016-*/**/x.tdb     logs --> its entries, each with the parts that may come next
//!                                       --> theirs, where any may          each directory once
//! ```

use std::{
    borrow::Cow,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use super::{
    Expand, ExpandError,
    pattern::{Letter, Pattern, Places, Wrong},
};

/// Directories within directories that are looked into, beside those that a pattern has parts for.
const DEPTH_MAX: usize = 32;

/// A byte that is no UTF-8, from 0x80 on, is the character with this added while names are matched: of the
/// last 128, which nobody has given a meaning.
const BYTES: u32 = 0x10_ff00;

/// What has been looked at for one input.
struct Walk<'e> {
    expand: &'e Expand,
    input: &'e OsStr,
    looked: usize,
}

/// One entry of a directory.
struct Entry {
    /// For patterns.
    name: String,
    path: PathBuf,
    is_link: bool,
    is_dir: bool,
}

impl Expand {
    pub(super) fn of_path(
        &self,
        input: &OsStr,
        found: &mut Vec<OsString>,
    ) -> Result<(), ExpandError> {
        let mut walk = Walk { expand: self, input, looked: 0 };
        let (path, mut longer) = (Path::new(input), input.to_owned());
        longer.push(&self.ending);
        if path.exists() || Path::new(&longer).exists() {
            let before = found.len();
            if path.is_dir() && !self.is_whole(path) {
                walk.below(path, 0, found)?;
            }
            if found.len() == before {
                // A directory without any of them is told of when it is opened as one.
                found.push(input.to_owned());
            }
            return Ok(());
        }
        let text = text_of(input);
        if !text.contains(['*', '?', '[']) {
            // So is a path at which nothing is.
            found.push(input.to_owned());
            return Ok(());
        }
        let (root, rest) = match text.strip_prefix('/') {
            Some(rest) => (PathBuf::from("/"), rest),
            None => (PathBuf::new(), text.as_str()),
        };
        let pattern = parse(rest).map_err(|(at, why)| {
            let at = at + 1 + usize::from(rest.len() < text.len());
            ExpandError::Pattern { pattern: input.to_string_lossy().into_owned(), at, why }
        })?;
        walk.matching(&pattern, &root, &pattern.start(), 0, found)
    }

    /// Whether a directory is an object: it has all members, and a name that one may have.
    fn is_whole(&self, path: &Path) -> bool {
        let name = path.file_name().map(|name| name.to_string_lossy());
        !self.members.is_empty()
            && self.members.iter().all(|member| path.join(member).is_file())
            && name.is_none_or(|name| self.is_one(&name))
    }
}

/// A name as text: each byte that is no UTF-8 is a character of its own.
fn text_of(name: &OsStr) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        let bytes = chunk.invalid().iter();
        text.extend(bytes.filter_map(|&byte| char::from_u32(BYTES + u32::from(byte))));
    }
    text
}

/// The name that is so as text.
fn name_of(text: &str) -> OsString {
    let mut name = Vec::with_capacity(text.len());
    for char in text.chars() {
        let byte = u32::from(char).checked_sub(BYTES).and_then(|byte| u8::try_from(byte).ok());
        match byte.filter(|byte| !byte.is_ascii()) {
            Some(byte) => name.push(byte),
            None => name.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    OsString::from_vec(name)
}

/// Slashes one after the other are one to the system, and one at the end means nothing here.
fn parse(text: &str) -> Result<Pattern, Wrong> {
    let mut letters: Vec<Letter> = Vec::new();
    let mut places = Vec::new();
    for (at, char) in text.trim_end_matches('/').chars().enumerate() {
        if char != '/' || letters.last().is_some_and(|&(last, _)| last != '/') {
            letters.push((char, false));
            places.push(at);
        }
    }
    Pattern::parse(&letters).map_err(|(at, why)| (places.get(at).copied().unwrap_or(at), why))
}

impl Walk<'_> {
    /// What matches in and below `directory`, where the parts at `places` may come next.
    fn matching(
        &mut self,
        pattern: &Pattern,
        directory: &Path,
        places: &Places,
        depth: usize,
        found: &mut Vec<OsString>,
    ) -> Result<(), ExpandError> {
        if let Some(name) = pattern.only(places) {
            // Who may go through a directory may not be allowed to list it.
            let path = directory.join(name_of(&name));
            if !path.exists() {
                return Ok(());
            }
            let is_dir = path.is_dir();
            let entry = Entry { name, path, is_link: false, is_dir };
            return self.enter(pattern, &entry, places, depth, found);
        }
        for entry in self.entries(directory)? {
            self.enter(pattern, &entry, places, depth, found)?;
        }
        Ok(())
    }

    fn enter(
        &mut self,
        pattern: &Pattern,
        entry: &Entry,
        places: &Places,
        depth: usize,
        found: &mut Vec<OsString>,
    ) -> Result<(), ExpandError> {
        let next = pattern.step(places, &entry.name, false);
        if next.is_end() {
            let is_one = match entry.is_dir {
                true => self.expand.is_whole(&entry.path),
                false => entry.path.is_file() && self.expand.is_one(&last(&entry.path)),
            };
            if is_one {
                self.take(&entry.path, found)?;
                // What is in an object is none.
                return Ok(());
            }
        }
        let next = if entry.is_link { pattern.step(places, &entry.name, true) } else { next };
        if !entry.is_dir || next.is_empty() || depth >= DEPTH_MAX + pattern.len() {
            return Ok(());
        }
        self.matching(pattern, &entry.path, &next, depth + 1, found)
    }

    /// What ends as objects do below `directory`.
    fn below(
        &mut self,
        directory: &Path,
        depth: usize,
        found: &mut Vec<OsString>,
    ) -> Result<(), ExpandError> {
        for entry in self.entries(directory)? {
            let is_one = match entry.is_dir {
                true => self.expand.is_whole(&entry.path),
                false => self.expand.ends_well(&last(&entry.path)) && entry.path.is_file(),
            };
            if is_one {
                self.take(&entry.path, found)?;
            } else if entry.is_dir && !entry.is_link && depth < DEPTH_MAX {
                self.below(&entry.path, depth + 1, found)?;
            }
        }
        Ok(())
    }

    /// The entries of a directory, in the order of names, but for those that are none by their names. A
    /// directory that is gone by now has none.
    fn entries(&mut self, directory: &Path) -> Result<Vec<Entry>, ExpandError> {
        let failed = |source| ExpandError::File { path: directory.to_owned(), source };
        let here = directory.as_os_str().is_empty();
        let entries = match fs::read_dir(if here { Path::new(".") } else { directory }) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut listed = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            self.looked += 1;
            let max = self.expand.looked_max;
            if self.looked > max {
                return Err(self.expand.too_many(self.input, max, "files are to be looked at"));
            }
            let path = directory.join(entry.file_name());
            if !self.expand.is_one(&last(&path)) {
                continue;
            }
            let kind = entry.file_type().map_err(failed)?;
            let name = text_of(&entry.file_name());
            let is_dir = if kind.is_symlink() { path.is_dir() } else { kind.is_dir() };
            listed.push(Entry { name, path, is_link: kind.is_symlink(), is_dir });
        }
        listed.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(listed)
    }

    fn take(&self, path: &Path, found: &mut Vec<OsString>) -> Result<(), ExpandError> {
        found.push(path.as_os_str().to_owned());
        self.expand.check(self.input, found.len())
    }
}

/// The last part of a path, for people and for what they say of names.
fn last(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tdb() -> Expand {
        let not = |name: &str| name.ends_with(".tdbidx") || name.ends_with(".part");
        Expand::new(".tdb").members(&["info", "fields"]).except(not)
    }

    struct Files(tempfile::TempDir);

    impl Files {
        fn new(names: &[&str]) -> Files {
            let files = Files(tempfile::tempdir().expect("a temporary directory"));
            for name in names {
                let path = files.at(name);
                fs::create_dir_all(Path::new(&path).parent().expect("a parent")).expect("room");
                fs::write(path, "").expect("room");
            }
            files
        }

        fn at(&self, name: &str) -> String {
            self.0.path().join(name).to_str().expect("a plain path").to_owned()
        }

        fn check(&self, input: &str, expected: &[&str]) {
            let expected: Vec<String> = expected.iter().map(|name| self.at(name)).collect();
            assert_eq!(tdb().names(&[self.at(input)]).expect(input), expected, "{input}");
        }
    }

    #[test]
    fn paths_of_every_kind() {
        let files = Files::new(&[
            "2016-01/a.tdb",
            "2016-01/b.tdb",
            "2016-02/a.tdb",
            "2016-02/a.tdb.tdbidx",
            "2016-02/a.tdb.tdbidx.7-0.part",
            "2016-02/b.tdb.7-0.part",
            "2016-02/dir/info",
            "2016-02/dir/fields",
            "2016-02/c.7-1.part/info",
            "2016-02/c.7-1.part/fields",
            "2016-02/notes",
            "x[1].tdb",
        ]);
        for (input, expected) in [
            ("2016-01/a.tdb", &["2016-01/a.tdb"][..]),
            ("2016-01/a", &["2016-01/a"]),
            ("2016-*/*.tdb", &["2016-01/a.tdb", "2016-01/b.tdb", "2016-02/a.tdb"]),
            ("2016-*//*.tdb", &["2016-01/a.tdb", "2016-01/b.tdb", "2016-02/a.tdb"]),
            ("2016-0?/a*", &["2016-01/a.tdb", "2016-02/a.tdb"]),
            ("2016-0[!1]/a*", &["2016-02/a.tdb"]),
            ("2016-02/*", &["2016-02/a.tdb", "2016-02/dir", "2016-02/notes"]),
            ("2016-02/**", &["2016-02/a.tdb", "2016-02/dir", "2016-02/notes"]),
            ("**/b.tdb", &["2016-01/b.tdb"]),
            ("x[1].tdb", &["x[1].tdb"]),
            ("x[[]*", &["x[1].tdb"]),
            ("2016-02", &["2016-02/a.tdb", "2016-02/dir"]),
            ("nothing", &["nothing"]),
        ] {
            files.check(input, expected);
        }
        for none in ["no-*.tdb", "2016-01/a.tdb/*", "x[2]*"] {
            let error = tdb().names(&[files.at(none)]).expect_err(none);
            assert!(matches!(error, ExpandError::Nothing { .. }), "{none}: {error}");
        }
        let text = files.at("2016-[");
        let error = tdb().names(&[&text]).expect_err("no pattern");
        let ExpandError::Pattern { pattern, at, .. } = error else { panic!("{error}") };
        assert_eq!((&pattern, at), (&text, text.len()));
    }

    /// Names are bytes: one that is no UTF-8 is found, and hides none of the others.
    #[test]
    fn names_of_any_bytes() {
        let files = Files::new(&["logs/a.tdb"]);
        let at = |name: &[u8]| files.0.path().join("logs").join(OsStr::from_bytes(name));
        let odd = [&b"b\xe9.tdb"[..], b"b\xe9\xe8.tdb", b"c\xc3\xa9.tdb"];
        odd.iter().for_each(|name| fs::write(at(name), "").expect("room"));
        let all: [&[u8]; 4] = [b"a.tdb", odd[0], odd[1], odd[2]];
        let cases: [(&[u8], &[&[u8]]); 9] = [
            (b"", &all),
            (b"*.tdb", &all),
            (b"b*.tdb", &odd[..2]),
            (b"?\xe9*", &odd[..2]),
            (b"b?.tdb", &odd[..1]),
            (b"b??.tdb", &odd[1..2]),
            (b"c?.tdb", &odd[2..]),
            (b"b\xe9[\xe0-\xef].tdb", &odd[1..2]),
            (b"b\xe9.tdb", &odd[..1]),
        ];
        for (input, expected) in cases {
            let expected: Vec<OsString> = expected.iter().map(|name| at(name).into()).collect();
            let got = tdb().os_names(&[at(input)]).expect("all can be named");
            assert_eq!(got, expected, "{}", input.escape_ascii());
        }
        // In a part that leaves nothing open, before one that does.
        fs::create_dir(at(b"d\xff")).expect("room");
        fs::write(at(b"d\xff/e.tdb"), "").expect("room");
        assert_eq!(tdb().os_names(&[at(b"d\xff/*")]).expect("one"), [at(b"d\xff/e.tdb")]);
        // In a list.
        let list = files.0.path().join("list");
        let line =
            [&b"\xef\xbb\xbf"[..], at(odd[0]).as_os_str().as_bytes(), b" # one\r\n"].concat();
        fs::write(&list, line).expect("room");
        let mut input = OsString::from("@");
        input.push(&list);
        assert_eq!(tdb().os_names(&[&input]).expect("one"), [at(odd[0])]);
        // Who wants text gets none of them.
        let error = tdb().names(&[files.at("logs/b*")]).expect_err("no UTF-8");
        assert!(matches!(error, ExpandError::File { .. }), "{error}");
    }

    #[test]
    fn a_list_names_one_on_each_line() {
        let files = Files::new(&["2016-01/a.tdb", "2016-01/b.tdb"]);
        let lines = [&files.at("2016-01/*"), "", "s3://b/k.tdb?region=x#y"];
        fs::write(files.at("list"), format!("# shards\n{} # two\n", lines.join("\n"))).unwrap();
        let got = tdb().names(&[format!("@{}", files.at("list")), files.at("x")]).unwrap();
        let expected = [
            files.at("2016-01/a.tdb"),
            files.at("2016-01/b.tdb"),
            lines[2].to_owned(),
            files.at("x"),
        ];
        assert_eq!(got, expected);
        fs::write(files.at("list"), "# none\n\n").unwrap();
        for list in ["list", "no-list"] {
            let error = tdb().names(&[format!("@{}", files.at(list))]).expect_err(list);
            let ExpandError::File { path, .. } = error else { panic!("{error}") };
            assert!(path.ends_with(list), "{}", path.display());
        }
    }

    #[test]
    fn links_lead_to_objects_and_not_back() {
        let files = Files::new(&["real/a.tdb", "real/deep/b.tdb", "logs/c.tdb"]);
        symlink(files.at("real"), files.at("logs/link")).unwrap();
        symlink(files.at("logs"), files.at("logs/back")).unwrap();
        symlink(files.at("real/a.tdb"), files.at("logs/d.tdb")).unwrap();
        symlink(files.at("nowhere"), files.at("logs/e.tdb")).unwrap();
        for (input, expected) in [
            ("logs", &["logs/c.tdb", "logs/d.tdb"][..]),
            ("logs/*.tdb", &["logs/c.tdb", "logs/d.tdb"]),
            ("logs/**/*.tdb", &["logs/c.tdb", "logs/d.tdb"]),
            ("logs/l*/*.tdb", &["logs/link/a.tdb"]),
            ("logs/l*/**/*.tdb", &["logs/link/a.tdb", "logs/link/deep/b.tdb"]),
        ] {
            files.check(input, expected);
        }
    }

    #[test]
    fn more_than_is_allowed_is_an_error_that_says_what() {
        let files = Files::new(&["a.tdb", "b.tdb", "c.tdb", "notes"]);
        for input in ["", "*.tdb", "**/*.tdb"] {
            let input = files.at(input);
            assert_eq!(tdb().names_max(3).looked_max(4).names(&[&input]).expect("3").len(), 3);
            let two = tdb().names_max(2).names(&[&input]);
            assert!(matches!(two, Err(ExpandError::TooMany { max: 2, .. })), "{two:?}");
            let three = tdb().looked_max(3).names(&[&input]);
            assert!(matches!(three, Err(ExpandError::TooMany { max: 3, .. })), "{three:?}");
        }
        let twice = [files.at("a.tdb"), files.at("b.tdb")];
        let one = tdb().names_max(1).names(&twice);
        assert!(matches!(one, Err(ExpandError::TooMany { max: 1, .. })), "{one:?}");
    }

    /// Each directory is read once, however many ways a pattern has to get there.
    #[test]
    fn a_directory_is_looked_into_once() {
        let deep = format!("{}z.tdb", "a/".repeat(20));
        let files = Files::new(&[&deep]);
        let input = format!("{}*.tdb", "**/a/".repeat(8));
        let got = tdb().looked_max(21).names(&[files.at(&input)]).expect("21 entries in all");
        assert_eq!(got, [files.at(&deep)]);
    }

    /// A program that opens what strangers name does not tell them what is there.
    #[test]
    fn nothing_is_looked_for_where_not_everything_is_allowed() {
        let files = Files::new(&["a.tdb", "list"]);
        fs::write(files.at("list"), "/etc/passwd\n").unwrap();
        let options = crate::Options::default().allow(crate::AllowList::new());
        for input in [files.at("*.tdb"), files.at(""), format!("@{}", files.at("list"))] {
            assert_eq!(tdb().options(&options).names(&[&input]).expect("as it is"), [input]);
        }
    }
}
