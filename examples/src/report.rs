//! Sections of BENCHMARKS.md: a question, when and where and how it was asked, figures, goals.

use std::{
    fmt::{self, Display},
    fs, io,
    path::Path,
};

use serde_json::{Value, json};

use crate::measure;

/// One question and its answer.
#[derive(Clone, Debug)]
pub struct Section {
    /// A word that names it on the command line and in the file.
    pub name: &'static str,
    /// Its place among the benchmarks, and its title.
    pub title: &'static str,
    /// What is asked.
    pub question: &'static str,
    /// The figures, in Markdown.
    pub body: String,
    /// What was aimed for.
    pub goals: Vec<Goal>,
}

/// A figure with an aim.
#[derive(Clone, Debug)]
pub struct Goal {
    /// What was measured.
    pub what: String,
    /// The figure.
    pub measured: f64,
    /// What it should be.
    pub aim: Aim,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
    /// Told for comparison.
    None,
}

impl Goal {
    /// A figure with an aim.
    pub fn new(what: impl Into<String>, measured: f64, aim: Aim) -> Goal {
        Goal { what: what.into(), measured, aim }
    }

    /// Whether the aim was met; `None` if there is none.
    pub fn met(&self) -> Option<bool> {
        match self.aim {
            Aim::AtMost(most) => Some(self.measured <= most),
            Aim::AtLeast(least) => Some(self.measured >= least),
            Aim::None => None,
        }
    }
}

impl Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Aim::AtMost(most) => write!(f, "at most {}", aim(*most)),
            Aim::AtLeast(least) => write!(f, "at least {}", aim(*least)),
            Aim::None => Ok(()),
        }
    }
}

/// Variables that say what is measured, and against what: of paths the last part.
const VARIABLES: [&str; 2] = ["TDB", "BENCH_CSV"];
/// A variable that is text.
const NOTE: &str = "BENCH_NOTE";

/// The command that runs this program again: `target` of the Makefile, with what it was told by
/// variables, and the program's options.
pub fn command(target: &str) -> String {
    let mut target = target.to_owned();
    for name in VARIABLES {
        let value = std::env::var_os(name).unwrap_or_default();
        if let Some(file) = Path::new(&value).file_name() {
            target += &format!(" {name}={}", file.display());
        }
    }
    if let Some(note) = std::env::var(NOTE).ok().filter(|note| !note.is_empty()) {
        target += &format!(" {NOTE}=\"{note}\"");
    }
    let mut arguments = std::env::args().skip(1);
    let mut options = Vec::new();
    while let Some(argument) = arguments.next() {
        // The Makefile says where to write.
        match argument.as_str() {
            "--write" => drop(arguments.next()),
            _ => options.push(argument),
        }
    }
    match options.is_empty() {
        true => format!("make {target}"),
        false => format!("make {target} BENCH_ARGS=\"{}\"", options.join(" ")),
    }
}

/// Two places where they say something, and as many as an aim has.
fn figure(value: f64) -> String {
    if value.fract() == 0.0 || value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// An aim to its last place, which is no more than the third.
fn aim(value: f64) -> String {
    let exact = format!("{value:.3}");
    match exact.ends_with('0') {
        true => figure(value),
        false => exact,
    }
}

impl Section {
    /// The section as it stands in the file, measured now by `command`.
    pub fn markdown(&self, command: &str) -> String {
        let mut text = format!("## {}\n\n**{}**\n\n", self.title, self.question);
        if !self.goals.is_empty() {
            text += "| figure | measured | aim | met |\n| --- | --- | --- | --- |\n";
            for goal in &self.goals {
                let met = goal.met().map_or("", |met| if met { "yes" } else { "**no**" });
                let measured = match goal.aim {
                    Aim::AtMost(aim) | Aim::AtLeast(aim) if (aim * 100.0).fract() > 1e-9 => {
                        format!("{:.3}", goal.measured)
                    }
                    _ => figure(goal.measured),
                };
                text += &format!("| {} | {measured} | {} | {met} |\n", goal.what, goal.aim);
            }
            text.push('\n');
        }
        text += self.body.trim();
        let (date, machine) = (measure::date(), measure::machine());
        text += &format!("\n\nMeasured {date} by `{command}` on {machine}.\n");
        text
    }

    /// The same figures for programs.
    pub fn json(&self, command: &str) -> Value {
        let goals: Vec<_> = self
            .goals
            .iter()
            .map(|goal| {
                let aim = goal.aim.to_string();
                let (what, measured) = (&goal.what, goal.measured);
                json!({ "what": what, "measured": measured, "aim": aim, "met": goal.met() })
            })
            .collect();
        json!({
            "name": self.name,
            "question": self.question,
            "goals": goals,
            "markdown": self.body,
            "date": measure::date(),
            "machine": measure::machine(),
            "command": command,
        })
    }

    /// Puts the section into the file at `path`, in place of what an earlier run wrote, or else before
    /// the first whose number is higher, or at the end. All else stays as it is.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn write(&self, path: &Path, command: &str) -> Result<(), String> {
        let told = |error: io::Error| format!("{}: {error}", path.display());
        let old = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.map_err(told)?,
        };
        fs::write(path, replaced(&old, self.name, &self.markdown(command))).map_err(told)
    }
}

/// `old` with `text` between the marks of `name`. If they are missing they are put where the number in
/// the title of `text` belongs.
fn replaced(old: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end {name} -->\n"));
    let text = text.trim_end();
    let place = old.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    match place {
        Some((before, after)) => format!("{before}{begin}{text}\n{end}{after}"),
        None => {
            let (before, after) = old.split_at(place_of(number(text), old));
            let (before, after) = (before.trim_end(), after.trim_start());
            format!("{before}\n\n{begin}{text}\n{end}\n{after}").trim().to_owned() + "\n"
        }
    }
}

/// `## 8. Title` is 8.
fn number(text: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix("## ")?.split_once('.')?.0.parse().ok())
}

/// Where in `old` a section of this number begins: before the first with a higher one, and its mark.
fn place_of(own: Option<u32>, old: &str) -> usize {
    let (mut at, mut mark) = (0, None);
    for line in old.split_inclusive('\n') {
        if line.starts_with("<!-- ") && !line.starts_with("<!-- end ") {
            mark = Some(at);
        } else if let Some(title) = line.strip_prefix("## ") {
            let number = title.split_once('.').and_then(|(number, _)| number.parse::<u32>().ok());
            if own.zip(number).is_some_and(|(own, number)| number > own) {
                return mark.unwrap_or(at);
            }
        } else if line.starts_with("<!-- end ") {
            mark = None;
        }
        at += line.len();
    }
    old.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_replace_themselves_and_nothing_else() {
        let both = replaced(&replaced("Head.\n", "a", "one"), "b", "two\n\n");
        let expected =
            "Head.\n\n<!-- a -->\none\n<!-- end a -->\n\n<!-- b -->\ntwo\n<!-- end b -->\n";
        assert_eq!(both, expected);
        assert_eq!(replaced(&both, "a", "three"), expected.replace("one", "three"));
        assert_eq!(replaced("", "a", "x"), "<!-- a -->\nx\n<!-- end a -->\n");
    }

    /// Section 8 stood behind section 9, which was there before it.
    #[test]
    fn a_new_section_goes_where_its_number_says() {
        let one = "Head.\n\n<!-- a -->\n## 1. One\n<!-- end a -->\n\n";
        let three = "<!-- c -->\n## 3. Three\n\nText.\n<!-- end c -->\n\n";
        let ten = "<!-- j -->\n## 10. Ten\n<!-- end j -->\n";
        let both = format!("{one}{ten}");
        let all = format!("{one}{three}{ten}");
        assert_eq!(replaced(&both, "c", "## 3. Three\n\nText."), all);
        let twelve = "\n<!-- l -->\n## 12. Twelve\n<!-- end l -->\n";
        assert_eq!(replaced(&all, "l", "## 12. Twelve\n"), format!("{all}{twelve}"));
        let free = replaced("# Head\n\n## 2. Without a mark\n", "a", "## 1. One");
        let expected = "# Head\n\n<!-- a -->\n## 1. One\n<!-- end a -->\n\n## 2. Without a mark\n";
        assert_eq!(free, expected);
    }

    /// 0.983 of 0.985 was told as 0.98 of 0.98.
    #[test]
    fn figures_have_as_many_places_as_their_aims() {
        let cases = [
            (0.983, Aim::AtMost(0.985), "| 0.983 | at most 0.985 | yes |"),
            (1.1049, Aim::AtMost(1.10), "| 1.10 | at most 1.10 | **no** |"),
            (13_824.0, Aim::AtLeast(300.0), "| 13824 | at least 300 | yes |"),
            (2.074, Aim::AtLeast(2.0), "| 2.07 | at least 2 | yes |"),
        ];
        for (measured, aim, told) in cases {
            let goals = vec![Goal::new("x", measured, aim)];
            let (name, title, question, body) = ("x", "X", "?", String::new());
            let section = Section { name, title, question, body, goals };
            let text = section.markdown("make bench");
            assert!(text.contains(told), "{text}");
        }
    }

    #[test]
    fn aims_are_met_or_not() {
        let cases = [
            (1.10, Aim::AtMost(1.10), Some(true)),
            (1.11, Aim::AtMost(1.10), Some(false)),
            (40.0, Aim::AtLeast(40.0), Some(true)),
            (39.0, Aim::AtLeast(40.0), Some(false)),
            (f64::NAN, Aim::AtMost(1.0), Some(false)),
            (7.0, Aim::None, None),
        ];
        for (measured, aim, met) in cases {
            assert_eq!(Goal::new("", measured, aim).met(), met, "{measured} {aim:?}");
        }
    }
}
