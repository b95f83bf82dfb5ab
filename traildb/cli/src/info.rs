//! `tdb info`: what a database is, without reading its events.

use std::{
    collections::HashMap,
    fmt::{Display, Write as _},
};

use indicatif::HumanCount;
use serde_json::json;

use crate::{
    bytes, dates,
    failure::Failure,
    open::{Database, without_options},
    output::Output,
    shards::{self, Losses},
    stats,
    table::{Align, Table},
    threads,
};

/// Describes a database: version, trails, events, times, fields, sizes. Of several, a line each.
///
/// The number of values of a field does not count NULL, the empty value.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tdb info -i edits.tdb
  tdb info -i s3://bucket/edits.tdb --json
  tdb info -i https://host/edits.tdb --stats
  tdb info logs/2016-*/*.tdb --keep-going")]
pub(crate) struct Args {
    #[command(flatten)]
    inputs: shards::Args,

    /// Prints one JSON object.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    threads: threads::Args,

    #[command(flatten)]
    stats: stats::Args,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let shards = args.inputs.shards(Some("a"))?;
    let open = shards.open_all(args.threads.count())?;
    let mut output = Output::create("-")?;
    let text = match (open.as_slice(), args.json) {
        ([(_, database)], false) if shards.names.len() == 1 => text(database)?,
        ([(_, database)], true) if shards.names.len() == 1 => format!("{}\n", json(database)?),
        (all, false) => many_text(all)?,
        (all, true) => many_json(all, &shards.losses)?,
    };
    output.put(text.as_bytes())?;
    output.finish()?;
    args.stats.print(open.iter().map(|(_, database)| database), &shards.opener);
    shards.losses.result(shards.names.len())
}

/// Sums and bounds over all databases.
#[derive(Default)]
struct Sum {
    trails: u64,
    events: u64,
    bytes: u64,
    time_min: Option<u64>,
    time_max: Option<u64>,
}

impl Sum {
    fn of(all: &[(String, Database)]) -> Sum {
        let mut sum = Sum::default();
        for (_, database) in all {
            let reader = &database.reader;
            sum.trails = sum.trails.saturating_add(reader.trails());
            sum.events = sum.events.saturating_add(reader.events());
            sum.bytes = sum.bytes.saturating_add(database.bytes());
            sum.time_min = [sum.time_min, reader.time_min()].into_iter().flatten().min();
            sum.time_max = [sum.time_max, reader.time_max()].into_iter().flatten().max();
        }
        sum
    }
}

fn many_text(all: &[(String, Database)]) -> Result<String, Failure> {
    let mut table = Table::new(&[
        ("database", Align::Left),
        ("trails", Align::Right),
        ("events", Align::Right),
        ("bytes", Align::Right),
        ("fields", Align::Right),
        ("first", Align::Left),
        ("last", Align::Left),
    ]);
    let time = |time: Option<u64>| match time {
        Some(time) => dates::shown(time).unwrap_or_else(|| time.to_string()),
        None => String::new(),
    };
    for (name, database) in all {
        let reader = &database.reader;
        table.row([
            without_options(name).to_owned(),
            HumanCount(reader.trails()).to_string(),
            HumanCount(reader.events()).to_string(),
            bytes::show(database.bytes()),
            reader.fields()?.len().to_string(),
            time(reader.time_min()),
            time(reader.time_max()),
        ]);
    }
    let sum = Sum::of(all);
    table.row([
        format!("{} databases", all.len()),
        HumanCount(sum.trails).to_string(),
        HumanCount(sum.events).to_string(),
        bytes::show(sum.bytes),
        String::new(),
        time(sum.time_min),
        time(sum.time_max),
    ]);
    Ok(table.render(""))
}

fn many_json(all: &[(String, Database)], losses: &Losses) -> Result<String, Failure> {
    let databases = all.iter().map(|(name, database)| {
        let mut object = json(database)?;
        object["name"] = without_options(name).into();
        Ok(object)
    });
    let databases: Vec<serde_json::Value> = databases.collect::<Result<_, Failure>>()?;
    let sum = Sum::of(all);
    let object = json!({
        "databases": databases,
        "trails": sum.trails,
        "events": sum.events,
        "bytes": sum.bytes,
        "time_min": sum.time_min,
        "time_max": sum.time_max,
        "passed_over": losses.json(),
    });
    Ok(format!("{object}\n"))
}

/// What is said of a field.
struct Field {
    name: String,
    /// Number of distinct values, NULL not counted.
    values: u64,
    /// Bytes of the lexicon.
    bytes: u64,
}

fn fields(database: &Database) -> Result<Vec<Field>, Failure> {
    let reader = &database.reader;
    let members: HashMap<&str, u64> = reader.members().into_iter().collect();
    let field = |(name, number): (&str, u16)| {
        let bytes = members.get(&*format!("lexicon.{name}")).copied().unwrap_or(0);
        Ok(Field { name: name.to_owned(), values: reader.values(number)?, bytes })
    };
    reader.fields()?.names().zip(1..).map(field).collect()
}

fn text(database: &Database) -> Result<String, Failure> {
    let reader = &database.reader;
    let (fields, members) = (fields(database)?, reader.members());
    let (trails, events, total) = (reader.trails(), reader.events(), database.bytes());
    let mut out = String::new();
    // Writing to a string does not fail.
    let mut line = |name: &str, value: &dyn Display| {
        let _ = writeln!(out, "{name:<10}{value}");
    };
    line("version", &reader.version());
    line("trails", &HumanCount(trails));
    match trails {
        0 => line("events", &HumanCount(events)),
        _ => {
            let mean = events as f64 / trails as f64;
            line("events", &format_args!("{} ({mean:.1} a trail)", HumanCount(events)));
        }
    }
    match (reader.time_min(), reader.time_max()) {
        (Some(min), Some(max)) => {
            line("time", &format_args!("{min} to {max}"));
            if let (Some(min), Some(max)) = (dates::shown(min), dates::shown(max)) {
                line("", &format_args!("{min} to {max}, if these are seconds since 1970"));
            }
        }
        _ => line("time", &"no events"),
    }
    line("bytes", &format_args!("{} ({})", HumanCount(total), bytes::show(total)));
    line("fields", &fields.len());

    if !fields.is_empty() {
        let mut table = Table::new(&[
            ("field", Align::Left),
            ("values", Align::Right),
            ("bytes", Align::Right),
            ("bytes a value", Align::Right),
        ]);
        for field in &fields {
            let mean = match field.values {
                0 => String::new(),
                n => format!("{:.1}", field.bytes as f64 / n as f64),
            };
            let (values, bytes) = (HumanCount(field.values), HumanCount(field.bytes));
            table.row([field.name.clone(), values.to_string(), bytes.to_string(), mean]);
        }
        let _ = write!(out, "\n{}", table.render("  "));
    }
    let columns = [("member", Align::Left), ("bytes", Align::Right), ("%", Align::Right)];
    let mut table = Table::new(&columns);
    for (name, len) in members {
        let share = len as f64 * 100.0 / total.max(1) as f64;
        table.row([name.to_owned(), HumanCount(len).to_string(), format!("{share:.1}")]);
    }
    let _ = write!(out, "\n{}", table.render("  "));
    Ok(out)
}

fn json(database: &Database) -> Result<serde_json::Value, Failure> {
    let reader = &database.reader;
    let fields: Vec<_> = fields(database)?
        .into_iter()
        .map(|field| json!({ "name": field.name, "values": field.values, "bytes": field.bytes }))
        .collect();
    let members: Vec<_> = reader
        .members()
        .into_iter()
        .map(|(name, bytes)| json!({ "name": name, "bytes": bytes }))
        .collect();
    Ok(json!({
        "version": reader.version(),
        "trails": reader.trails(),
        "events": reader.events(),
        "time_min": reader.time_min(),
        "time_max": reader.time_max(),
        "bytes": database.bytes(),
        "fields": fields,
        "members": members,
    }))
}
