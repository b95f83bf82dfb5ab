//! The questions that both tools are asked about every data set.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    agree::Report,
    events::{Row, Set},
    tool::{Output, Tool, Whose},
};

/// A file that one of the tools made.
struct Made {
    /// Whose it is, and of what.
    what: String,
    /// Its path in the folder of the data set.
    path: String,
}

/// Has a database that is there made again by our tool, in every form: the C tool must read the same
/// events of both, and ours what the C tool reads.
pub(crate) fn again(
    db: &Path,
    theirs: &Tool,
    ours: &Tool,
    folder: &Path,
    report: &mut Report,
) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let db = db.canonicalize().map_err(|e| format!("{}: {e}", db.display()))?;
    let db = db.to_str().ok_or_else(|| format!("{}: the name is no UTF-8", db.display()))?;
    let info = ours.run(folder, &["info", "-i", db, "--json"], None)?;
    let info: serde_json::Value = serde_json::from_slice(&info).map_err(|e| e.to_string())?;
    let fields = info["fields"].as_array().map_or(&[][..], Vec::as_slice);
    let names = fields.iter().filter_map(|field| field["name"].as_str());
    let names = ["uuid", "time"].into_iter().chain(names).collect::<Vec<_>>().join(",");
    let events = ours.run(folder, &["dump", "-i", db, "-j"], None)?;

    let question = ["-d", ",", "--csv-header"];
    let original = theirs.dump(folder, db, &question);
    report.same(&format!("dump of {db}"), &original, &ours.dump(folder, db, &question));
    for form in ["pkg", "dir"] {
        for bigrams in ["auto", "on", "off"] {
            let output = format!("{form}-{bigrams}");
            let what = format!("{db} made again, {form}, bigrams {bigrams}");
            let options = ["--tdb-format", form, "--bigrams", bigrams, "-o", &output];
            let words = [&["make", "-j", "-f", &names][..], &options].concat();
            let made = ours.run(folder, &words, Some(&events));
            if !report.works(&what, &made) {
                continue;
            }
            let read = theirs.dump(folder, &output, &question);
            report.same_events(&what, &original, &read);
            report.same(&format!("dump of {what}"), &read, &ours.dump(folder, &output, &question));
        }
    }
    Ok(())
}

struct Check<'c> {
    set: &'c Set,
    theirs: &'c Tool,
    ours: &'c Tool,
    folder: PathBuf,
    report: &'c mut Report,
}

/// Asks everything about one data set.
pub(crate) fn all(
    set: &Set,
    theirs: &Tool,
    ours: &Tool,
    folder: &Path,
    report: &mut Report,
) -> Result<(), String> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut check = Check { set, theirs, ours, folder: folder.to_owned(), report };
    let made = check.make("whole", &set.rows)?;
    check.reading(&made);
    check.same_content(&made);
    check.some_trails(&made);
    if ours.knows("dump", "--filter") {
        check.filters(&made)?;
        if ours.knows("index", "--output") {
            check.indexes(&made);
        }
    }
    if ours.knows("merge", "--output") {
        check.merges()?;
    }
    Ok(())
}

impl<'c> Check<'c> {
    fn tools(&self) -> [&'c Tool; 2] {
        [self.theirs, self.ours]
    }

    /// Both tools make databases of `rows`, in every form that the data can be said in.
    fn make(&mut self, name: &str, rows: &[Row]) -> Result<Vec<Made>, String> {
        let mut forms: Vec<(&str, Vec<String>)> = Vec::new();
        let fields: String = self.set.fields.iter().map(|field| format!(",{field}")).collect();
        let words = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        if self.set.csv {
            self.write(&format!("{name}.csv"), &self.set.as_csv(rows))?;
            let input = format!("{name}.csv");
            let csv = ["make", "-c", "-d", ",", "--csv-header", "-i", &input];
            forms.push(("csv", words(&csv)));
            forms.push(("dir", words(&[&csv[..], &["--tdb-format", "dir"]].concat())));
            if self.ours.knows("make", "--no-bigrams") {
                forms.push(("nobi", words(&[&csv[..], &["--no-bigrams"]].concat())));
            }
        }
        if self.set.json {
            self.write(&format!("{name}.json"), &self.set.as_json(rows))?;
            let (input, fields) = (format!("{name}.json"), format!("uuid,time{fields}"));
            forms.push(("json", words(&["make", "-j", "-f", &fields, "-i", &input])));
        }
        let mut made = Vec::new();
        for (form, words) in &forms {
            for tool in self.tools() {
                let output = format!("{name}.{form}.{}", tool.name());
                let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
                words.extend(["-o", &output]);
                let done = tool.run(&self.folder, &words, None);
                let what = format!("{} of {name} {form}", tool.name());
                match tool.whose {
                    Whose::Ours => {
                        if !self.report.works(&what, &done) {
                            continue;
                        }
                    }
                    Whose::Theirs => drop(done.map_err(|e| format!("{what}: {e}"))?),
                }
                let package = format!("{output}.tdb");
                let path = match self.folder.join(&package).exists() {
                    true => package,
                    false => output,
                };
                made.push(Made { what, path });
            }
        }
        Ok(made)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let path = self.folder.join(name);
        fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// The same question of both tools about one file: the same bytes.
    fn ask(&mut self, about: &Made, what: &str, more: &[&str]) {
        let theirs = self.theirs.dump(&self.folder, &about.path, more);
        let ours = self.ours.dump(&self.folder, &about.path, more);
        self.report.same(&format!("{what} of {}", about.what), &theirs, &ours);
    }

    /// Each file reads the same with both tools.
    fn reading(&mut self, made: &[Made]) {
        let first = self.set.fields.first().map_or("time", String::as_str);
        let some = format!("time,{first},uuid");
        let questions: [(&str, &[&str]); 5] = [
            ("dump", &["-d", ",", "--csv-header"]),
            ("dump as CSV with blanks", &[]),
            ("dump as JSON", &["-j"]),
            ("dump as JSON without empty values", &["-j", "--json-no-empty"]),
            ("dump of some fields", &["-d", "|", "-f", &some]),
        ];
        for about in made {
            for (what, more) in questions {
                self.ask(about, what, more);
            }
        }
    }

    /// All files hold the same events.
    fn same_content(&mut self, made: &[Made]) {
        let Some((first, others)) = made.split_first() else { return };
        let dump = |about: &Made| self.theirs.dump(&self.folder, &about.path, &["-d", ","]);
        let reference = dump(first);
        for about in others {
            let what = format!("events of {} and of {}", first.what, about.what);
            self.report.same_events(&what, &reference, &dump(about));
        }
    }

    /// Some trails, by UUID, among them one that is not there and something that is none.
    fn some_trails(&mut self, made: &[Made]) {
        let mut uuids: Vec<String> = self.set.rows.iter().map(|row| row.uuid.clone()).collect();
        uuids.sort();
        uuids.dedup();
        let mut some: Vec<String> = uuids.into_iter().step_by(3).take(20).collect();
        some.push("00112233445566778899aabbccddeeff".to_owned());
        some.push("nonsense".to_owned());
        let listed = some.join(",");
        let in_file: String = some.iter().map(|uuid| format!("{uuid}\n")).collect();
        if self.write("uuids", in_file.as_bytes()).is_err() {
            return;
        }
        for about in made {
            self.ask(about, "some trails", &["-d", ",", "--uuids", &listed]);
            self.ask(about, "trails of a file", &["-d", ",", "--uuids", "@uuids"]);
            if let (Some(filter), true) =
                (self.set.filters.first(), self.ours.knows("dump", "--filter"))
            {
                let more = ["-d", ",", "--uuids", &listed, "--filter", filter];
                self.ask(about, "some trails and a filter", &more);
            }
        }
    }

    /// Every filter, without an index.
    fn filters(&mut self, made: &[Made]) -> Result<(), String> {
        let mut filters = self.set.filters.clone();
        // A value that the grammar cannot say is read from a file.
        let odd =
            self.set.rows.iter().flat_map(|row| row.values.iter().zip(&self.set.fields)).last();
        if let Some((value, field)) = odd {
            self.write("value", value)?;
            filters.push(format!("{field}=@value"));
            filters.push(format!("{field}!=@value"));
        }
        for about in made {
            for filter in &filters {
                let what = format!("filter {filter:?}");
                self.ask(about, &what, &["-d", ",", "--no-index", "--filter", filter]);
            }
        }
        Ok(())
    }

    /// Each tool indexes both tools' files; with its index it must answer as without.
    fn indexes(&mut self, made: &[Made]) {
        if self.set.rows.is_empty() {
            // The C tool divides what there is not.
            return;
        }
        let filters = self.set.filters.clone();
        // Two files are enough: one of each tool.
        for about in made.iter().take(2) {
            for tool in self.tools() {
                let index = format!("{}.{}-index", about.path, tool.name());
                let done =
                    tool.run(&self.folder, &["index", "-i", &about.path, "-o", &index], None);
                let what = format!("{} index of {}", tool.name(), about.what);
                if tool.whose == Whose::Ours && !self.report.works(&what, &done) {
                    continue;
                }
                for filter in &filters {
                    // The C tool's index is undefined for values that are not there.
                    if tool.whose == Whose::Theirs && self.set.asks_for_nothing(filter) {
                        continue;
                    }
                    let with = ["-d", ",", "--index-path", &index, "--filter", filter];
                    let with = tool.dump(&self.folder, &about.path, &with);
                    let without = ["-d", ",", "--no-index", "--filter", filter];
                    let without = self.theirs.dump(&self.folder, &about.path, &without);
                    self.report.same(&format!("{what}, filter {filter:?}"), &without, &with);
                }
            }
        }
    }

    /// Halves of the data, merged by both tools, whoever made them.
    fn merges(&mut self) -> Result<(), String> {
        let middle = self.set.rows.len() / 2;
        let (left, right) = self.set.rows.split_at(middle);
        let (left, right) = (self.make("left", left)?, self.make("right", right)?);
        // With other fields: the first one is missing in what is merged in.
        let narrower = self.narrower()?;
        let mut cases: Vec<(String, Vec<String>)> = Vec::new();
        for (left, right) in left.iter().zip(&right).take(2) {
            let what = format!("merge of {} and {}", left.what, right.what);
            cases.push((what, vec![left.path.clone(), right.path.clone()]));
        }
        if let ([theirs, ..], [_, ours, ..]) = (&left[..], &right[..]) {
            let what = "merge of a file of theirs and one of ours".to_owned();
            cases.push((what, vec![theirs.path.clone(), ours.path.clone()]));
        }
        for other in &narrower {
            let what = format!("merge with fewer fields, {}", other.what);
            cases.push((what, vec![left[0].path.clone(), other.path.clone()]));
            let what = format!("merge into fewer fields, {}", other.what);
            cases.push((what, vec![other.path.clone(), left[0].path.clone()]));
        }
        cases.push(("merge of one".to_owned(), vec![left[0].path.clone()]));
        let filter = self.set.filters.first().cloned();
        for (n, (what, inputs)) in cases.iter().enumerate() {
            self.merge(what, &format!("merged{n}"), inputs, None);
            if let (Some(filter), 0..2) = (&filter, n) {
                let what = format!("{what} with a filter");
                self.merge(&what, &format!("filtered{n}"), inputs, Some(filter));
            }
        }
        Ok(())
    }

    /// Databases of a few events without the first field.
    fn narrower(&mut self) -> Result<Vec<Made>, String> {
        if self.set.fields.len() < 2 {
            return Ok(Vec::new());
        }
        let less = |row: &Row| Row {
            uuid: row.uuid.clone(),
            time: row.time,
            values: row.values[1..].to_vec(),
        };
        let rows: Vec<Row> = self.set.rows.iter().take(200).map(less).collect();
        let fields = self.set.fields[1..].to_vec();
        let Set { name, csv, json, .. } = *self.set;
        let set = Set { name, fields, rows: Vec::new(), csv, json, filters: Vec::new() };
        let mut check = Check {
            set: &set,
            theirs: self.theirs,
            ours: self.ours,
            folder: self.folder.clone(),
            report: &mut *self.report,
        };
        let made = check.make("narrow", &rows)?;
        Ok(made.into_iter().take(2).collect())
    }

    fn merge(&mut self, what: &str, name: &str, inputs: &[String], filter: Option<&str>) {
        let merged = self.tools().map(|tool| -> Result<String, String> {
            let output = format!("{name}.{}", tool.name());
            let mut words = vec!["merge", "-o", &output];
            words.extend(filter.iter().flat_map(|filter| ["--filter", filter]));
            words.extend(inputs.iter().map(String::as_str));
            tool.run(&self.folder, &words, None)?;
            Ok(format!("{output}.tdb"))
        });
        // Both results, read by both tools.
        for reader in self.tools() {
            let dump = |path: &Result<String, String>| -> Output {
                reader.dump(
                    &self.folder,
                    path.as_ref().map_err(String::clone)?,
                    &["-d", ",", "--csv-header"],
                )
            };
            let what = format!("{what}, read by {}", reader.name());
            let [theirs, ours] = [dump(&merged[0]), dump(&merged[1])];
            // What ours cannot read of theirs is no failure of theirs.
            let of_theirs = reader.whose == Whose::Theirs || merged[0].is_err();
            if of_theirs || self.report.works(&what, &theirs) {
                self.report.same_events(&what, &theirs, &ours);
            }
        }
    }
}
