//! `tdb info`: what a database is, without reading its events.

use std::fmt::{Display, Write as _};

use serde_json::json;

use crate::{
    bytes,
    failure::Failure,
    open::{Database, Input},
    output::Output,
    stats,
};

/// Describes a database: version, trails, events, times, fields, sizes.
///
/// The number of values of a field does not count NULL, the empty value.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tdb info -i edits.tdb
  tdb info -i s3://bucket/edits.tdb --json
  tdb info -i https://host/edits.tdb --stats")]
pub(crate) struct Args {
    #[command(flatten)]
    input: Input,

    /// Prints one JSON object.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    stats: stats::Args,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let database = args.input.open()?;
    let text = if args.json { json(&database)? } else { text(&database)? };
    let mut output = Output::create("-")?;
    output.put(text.as_bytes())?;
    output.finish()?;
    args.stats.print(&database);
    Ok(())
}

/// The fields and how many values each has.
fn fields(database: &Database) -> Result<Vec<(String, u64)>, Failure> {
    let reader = &database.reader;
    let fields = reader.fields()?;
    let counted = |(name, number): (&str, u16)| Ok((name.to_owned(), reader.values(number)?));
    fields.names().zip(1..).map(counted).collect()
}

fn text(database: &Database) -> Result<String, Failure> {
    let reader = &database.reader;
    let (fields, members) = (fields(database)?, reader.members());
    let mut out = String::new();
    // Writing to a string does not fail.
    let mut line = |name: &str, value: &dyn Display| {
        let _ = writeln!(out, "{name:<10}{value}");
    };
    line("version", &reader.version());
    line("trails", &reader.trails());
    line("events", &reader.events());
    match (reader.time_min(), reader.time_max()) {
        (Some(min), Some(max)) => line("time", &format_args!("{min} to {max}")),
        _ => line("time", &"no events"),
    }
    line("bytes", &format_args!("{} ({})", database.bytes(), bytes::show(database.bytes())));
    line("fields", &fields.len());
    let wide = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    for (name, values) in &fields {
        let _ = writeln!(out, "  {name:<wide$}{values} values");
    }
    let _ = writeln!(out, "{:<10}{}", "members", members.len());
    let wide = members.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    for (name, len) in members {
        let _ = writeln!(out, "  {name:<wide$}{len} bytes");
    }
    Ok(out)
}

fn json(database: &Database) -> Result<String, Failure> {
    let reader = &database.reader;
    let fields: Vec<_> = fields(database)?
        .into_iter()
        .map(|(name, values)| json!({ "name": name, "values": values }))
        .collect();
    let members: Vec<_> = reader
        .members()
        .into_iter()
        .map(|(name, bytes)| json!({ "name": name, "bytes": bytes }))
        .collect();
    let object = json!({
        "version": reader.version(),
        "trails": reader.trails(),
        "events": reader.events(),
        "time_min": reader.time_min(),
        "time_max": reader.time_max(),
        "bytes": database.bytes(),
        "fields": fields,
        "members": members,
    });
    Ok(format!("{object}\n"))
}
