//! `tdb verify`: every rule of the format, for whole databases.

use std::{fmt::Write as _, time::Instant};

use indicatif::HumanCount;
use serde_json::json;
use traildb::verify::{Report, Severity, Verifier};

use crate::{
    bytes,
    failure::Failure,
    open::Parts,
    output::Output,
    progress, shards,
    table::{Align, Table},
    threads,
};

const NOTES: &str = "\
Looks at every byte: the package and its tar headers, every value, every code word, every event of
every trail. Trails are read in both ways that there are, as whole events and as changes. Goes on after
damage where it can. An error is what makes a reader fail or read something else than was written, or a
sign that it may, such as a broken tar header before a member; a warning breaks a rule that no reader
depends on.

Exit codes: 0 sound, 5 damaged (or with --strict: any warning), 1 not read.

Examples:
  tdb verify -i edits.tdb
  tdb verify -i s3://bucket/edits.tdb --json
  tdb verify -i edits.tdb --strict --findings 1000
  tdb verify logs/*.tdb --keep-going";

/// Checks a database byte by byte and says where it is damaged.
#[derive(clap::Args)]
#[command(after_help = NOTES)]
pub(crate) struct Args {
    #[command(flatten)]
    inputs: shards::Args,

    /// Prints a JSON object for each database, in a line.
    #[arg(long)]
    json: bool,

    /// Fails on warnings too.
    #[arg(long)]
    strict: bool,

    /// The most findings that are listed; all are counted.
    #[arg(long, value_name = "N", default_value = "20")]
    findings: usize,

    #[command(flatten)]
    threads: threads::Args,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let named = args.inputs.named(Some("a"))?;
    let shards = args.inputs.shards(&named, None)?;
    let mut output = Output::create("-")?;
    let (mut damaged, mut sum) = (0, Report::default());
    for (number, name) in shards.all.names().enumerate() {
        let began = Instant::now();
        let report = match check(args, shards.opener.parts(&named.names[number])) {
            Ok(report) => report,
            Err(failure) => {
                shards.all.pass_over(number, failure)?;
                continue;
            }
        };
        let sound = report.is_sound() && !(args.strict && report.warnings > 0);
        damaged += u64::from(!sound);
        sum.errors += report.errors;
        sum.warnings += report.warnings;
        sum.unchecked.extend(report.unchecked.iter().take(1).cloned());
        let seconds = began.elapsed().as_secs_f64();
        let name = (shards.all.len() > 1).then_some(name);
        let text = match args.json {
            true => json(name, &report, sound, seconds),
            false => text(name, &report, sound, seconds),
        };
        output.put(text.as_bytes())?;
    }
    output.finish()?;
    match damaged {
        0 => shards.result(),
        _ => Err(Failure::Damaged(summary(&sum, damaged, shards.all.len()))),
    }
}

fn check(args: &Args, parts: Result<Parts, Failure>) -> Result<Report, Failure> {
    let bar = progress::reading(1);
    let watch = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let verifier =
        Verifier::default().threads(args.threads.count()).findings_max(args.findings).watch(&watch);
    let report = match parts? {
        Parts::Package(store) => verifier.package(store)?,
        Parts::Directory { open, .. } => verifier.directory(open)?,
    };
    bar.finish_and_clear();
    Ok(report)
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn plural(n: u64, one: &str) -> String {
    format!("{} {one}{}", HumanCount(n), if n == 1 { "" } else { "s" })
}

fn summary(report: &Report, damaged: u64, of: usize) -> String {
    let mut text =
        format!("{}, {}", plural(report.errors, "error"), plural(report.warnings, "warning"));
    if of > 1 {
        let _ = write!(text, " in {damaged} of {of} databases");
    }
    if !report.unchecked.is_empty() {
        text.push_str(", not everything could be checked");
    }
    text
}

fn text(name: Option<&str>, report: &Report, sound: bool, seconds: f64) -> String {
    let mut out = String::new();
    let name = name.map_or(String::new(), |name| format!("{name}: "));
    if !report.findings.is_empty() {
        let mut table = Table::new(&[
            ("", Align::Left),
            ("member", Align::Left),
            ("offset", Align::Right),
            ("trail", Align::Right),
            ("what", Align::Left),
        ]);
        for finding in &report.findings {
            table.row([
                severity(finding.severity).to_owned(),
                finding.member.clone(),
                finding.offset.to_string(),
                finding.trail.map_or(String::new(), |trail| trail.to_string()),
                finding.reason.clone(),
            ]);
        }
        out.push_str(&table.render(""));
        let more = report.errors + report.warnings - report.findings.len() as u64;
        if more > 0 {
            let _ = writeln!(out, "and {} more; --findings lists more of them", HumanCount(more));
        }
        out.push('\n');
    }
    if report.by_member.len() > 1 {
        let columns =
            [("member", Align::Left), ("errors", Align::Right), ("warnings", Align::Right)];
        let mut table = Table::new(&columns);
        for (member, (errors, warnings)) in &report.by_member {
            table.row([
                member.clone(),
                HumanCount(*errors).to_string(),
                HumanCount(*warnings).to_string(),
            ]);
        }
        let _ = writeln!(out, "{}", table.render(""));
    }
    for what in &report.unchecked {
        let _ = writeln!(out, "not checked: {what}");
    }
    let state = match (sound, report.is_sound()) {
        (true, _) => "sound",
        (false, true) => "sound, but for warnings",
        (false, false) => "damaged",
    };
    let _ = writeln!(
        out,
        "{name}{state}: {}, {}, {} and {} checked in {seconds:.2} s",
        plural(report.trails, "trail"),
        plural(report.events, "event"),
        plural(report.values, "value"),
        bytes::show(report.bytes),
    );
    out
}

fn json(name: Option<&str>, report: &Report, sound: bool, seconds: f64) -> String {
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "severity": severity(finding.severity),
                "member": finding.member,
                "offset": finding.offset,
                "trail": finding.trail,
                "reason": finding.reason,
            })
        })
        .collect();
    let members: serde_json::Map<String, serde_json::Value> = report
        .by_member
        .iter()
        .map(|(member, (errors, warnings))| {
            (member.clone(), json!({ "errors": errors, "warnings": warnings }))
        })
        .collect();
    let mut object = json!({
        "sound": sound,
        "errors": report.errors,
        "warnings": report.warnings,
        "unchecked": report.unchecked,
        "findings": findings,
        "members": members,
        "version": report.version,
        "trails": report.trails,
        "events": report.events,
        "values": report.values,
        "bytes": report.bytes,
        "seconds": seconds,
    });
    if let Some(name) = name {
        object["name"] = name.into();
    }
    format!("{object}\n")
}
