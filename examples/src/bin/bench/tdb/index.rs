//! A filter with an index: each tool on the file that its library wrote, with and without the index
//! that it made.
//!
//! That an index makes a query faster can be read in two ways, and both are measured: how long the two
//! tools take for the query with their indexes, and how many times as fast as its own scan without one
//! each of them is then. The second says less of who is faster: a tool whose scan takes twice as long has
//! an index that gains twice as much.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use examples::{
    measure::median,
    report::{Aim, Goal},
};

use super::{Files, Row, Unit, figures::beside, path};

/// Queries of each kind in a round.
struct Query<'q> {
    tool: &'q Path,
    db: &'q Path,
    filter: &'q str,
}

pub(super) fn run(
    tool: &Path,
    files: &Files,
    rounds: usize,
    csv: &Path,
    rows: &mut Vec<Row>,
    goals: &mut Vec<Goal>,
) -> Result<(), String> {
    let Some(theirs) = &files.theirs else {
        eprintln!("  no index: the C library's file is missing, which `make interop-peer` is for");
        return Ok(());
    };
    let filter = format!("title={}", super::data::rare_title(csv)?);
    let ours = beside("tdb")?;
    let queries = [
        Query { tool, db: theirs, filter: &filter },
        Query { tool: &ours, db: &files.ours, filter: &filter },
    ];
    let made = queries.each_ref().map(|query| time(query, &["index", "-i", path(query.db)?]));
    let [theirs, ours] = made;
    let (theirs, ours) = (theirs?.0, ours?.0);
    rows.push(row("tool: make the index", vec![theirs], vec![ours]));
    let [mut with, mut without] = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for _ in 0..rounds {
        let mut answers = Vec::new();
        for (at, query) in queries.iter().enumerate() {
            for (list, more) in [(&mut with, &[][..]), (&mut without, &["--no-index"][..])] {
                let (seconds, lines) = query.ask(more)?;
                list[at].push(seconds);
                answers.push(lines);
            }
        }
        if answers.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(format!("{filter}: the tools find {answers:?} events"));
        }
    }
    let [with, without] = [with, without].map(|[theirs, ours]| (theirs, ours));
    let gained = Row {
        what: "tool: so many times as fast with the index as without".to_owned(),
        unit: Unit::Times,
        ..row("", gains(&with.0, &without.0), gains(&with.1, &without.1))
    };
    let with = row("tool: dump of a rare title with an index", with.0, with.1);
    let goal = |what: &str, row: &Row, aim| Goal::new(what, row.ratio.unwrap_or(f64::NAN), aim);
    goals.push(goal("time of an indexed query: ours / C library", &with, Aim::AtMost(1.0)));
    let what = "what the index gains over the tool's own scan: ours / C library";
    goals.push(goal(what, &gained, Aim::AtLeast(1.0)));
    rows.extend([with, row("tool: the same dump without", without.0, without.1), gained]);
    Ok(())
}

/// How many times as fast it is with an index, round by round.
fn gains(with: &[f64], without: &[f64]) -> Vec<f64> {
    without.iter().zip(with).map(|(without, with)| without / with).collect()
}

/// What is to be said of the two ways to read it.
pub(super) const READINGS: &str = "An index is looked at in two ways. The time of an indexed query is \
    that of the whole command, of either tool with its own index on its own file. What an index gains is \
    that time against the same tool's dump without it: where our scan is faster to begin with, an index \
    has less to gain, so this can miss its aim while our indexed query is the faster one. A \
    third reading, the 2.5 times of a filter's scan for an indexed query as well, is told by the first.";

fn row(what: &str, theirs: Vec<f64>, ours: Vec<f64>) -> Row {
    let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
    Row {
        what: what.to_owned(),
        unit: Unit::Seconds,
        theirs: Some(median(&theirs)),
        ours: median(&ours),
        ratio: Some(median(&ratios)),
    }
}

impl Query<'_> {
    /// Seconds, and the number of lines.
    fn ask(&self, more: &[&str]) -> Result<(f64, usize), String> {
        let mut words = vec!["dump", "-i", path(self.db)?, "-F", self.filter];
        words.extend(more);
        time(self, &words)
    }
}

fn time(query: &Query<'_>, words: &[&str]) -> Result<(f64, usize), String> {
    let clock = Instant::now();
    let told = |what: String| format!("{} {}: {what}", query.tool.display(), words.join(" "));
    let output = Command::new(query.tool)
        .args(words)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| told(e.to_string()))?;
    let seconds = clock.elapsed().as_secs_f64();
    match output.status.success() {
        true => Ok((seconds, output.stdout.iter().filter(|&&byte| byte == b'\n').count())),
        false => Err(told(output.status.to_string())),
    }
}
