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
    open::Database,
    output,
    shards::{self, Shards},
    stats::{self, Tally},
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
    let named = args.inputs.named(Some("a"))?;
    let shards = args.inputs.shards(&named, None)?;
    let names: Vec<&str> = shards.all.names().collect();
    let tally = Tally::default();
    let mut all = Vec::new();
    let described = shards.all.each(
        args.threads.count(),
        |number, reader| {
            let database = shards.opener.database(names[number], &reader);
            let description = Description::of(&database);
            tally.add(&database);
            description
        },
        |_, description| {
            all.push(description);
            Ok(())
        },
    );
    args.stats.print(&tally, &shards.opener);
    described?;
    let text = match (all.as_slice(), args.json) {
        ([one], false) if names.len() == 1 => one.text(),
        ([one], true) if names.len() == 1 => format!("{}\n", one.json()),
        (all, false) => many_text(all),
        (all, true) => many_json(all, &shards),
    };
    output::print(&text)?;
    shards.result()
}

/// What is said of a database.
struct Description {
    name: String,
    version: u64,
    trails: u64,
    events: u64,
    bytes: u64,
    time_min: Option<u64>,
    time_max: Option<u64>,
    fields: Vec<Field>,
    /// Members and their sizes, by name.
    members: Vec<(String, u64)>,
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
    fn of(all: &[Description]) -> Sum {
        let mut sum = Sum::default();
        for one in all {
            sum.trails = sum.trails.saturating_add(one.trails);
            sum.events = sum.events.saturating_add(one.events);
            sum.bytes = sum.bytes.saturating_add(one.bytes);
            sum.time_min = [sum.time_min, one.time_min].into_iter().flatten().min();
            sum.time_max = [sum.time_max, one.time_max].into_iter().flatten().max();
        }
        sum
    }
}

fn many_text(all: &[Description]) -> String {
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
    for one in all {
        table.row([
            one.name.clone(),
            HumanCount(one.trails).to_string(),
            HumanCount(one.events).to_string(),
            bytes::show(one.bytes),
            one.fields.len().to_string(),
            time(one.time_min),
            time(one.time_max),
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
    table.render("")
}

fn many_json(all: &[Description], shards: &Shards<'_>) -> String {
    let databases = all.iter().map(|one| {
        let mut object = one.json();
        object["name"] = one.name.as_str().into();
        object
    });
    let databases: Vec<serde_json::Value> = databases.collect();
    let sum = Sum::of(all);
    let object = json!({
        "databases": databases,
        "trails": sum.trails,
        "events": sum.events,
        "bytes": sum.bytes,
        "time_min": sum.time_min,
        "time_max": sum.time_max,
        "passed_over": shards.losses_json(),
    });
    format!("{object}\n")
}

/// What is said of a field.
struct Field {
    name: String,
    /// Number of distinct values, NULL not counted.
    values: u64,
    /// Bytes of the lexicon.
    bytes: u64,
}

impl Description {
    fn of(database: &Database<'_>) -> Result<Description, Failure> {
        let reader = database.reader;
        let members: Vec<(String, u64)> =
            reader.members().into_iter().map(|(name, len)| (name.to_owned(), len)).collect();
        let sizes: HashMap<&str, u64> =
            members.iter().map(|(name, len)| (name.as_str(), *len)).collect();
        let field = |(name, number): (&str, u16)| {
            let bytes = sizes.get(&*format!("lexicon.{name}")).copied().unwrap_or(0);
            Ok(Field { name: name.to_owned(), values: reader.values(number)?, bytes })
        };
        let fields =
            reader.fields()?.names().zip(1..).map(field).collect::<Result<_, Failure>>()?;
        Ok(Description {
            name: database.name.to_owned(),
            version: reader.version(),
            trails: reader.trails(),
            events: reader.events(),
            bytes: database.bytes(),
            time_min: reader.time_min(),
            time_max: reader.time_max(),
            fields,
            members,
        })
    }

    fn text(&self) -> String {
        let Description { trails, events, bytes: total, .. } = *self;
        let mut out = String::new();
        // Writing to a string does not fail.
        let mut line = |name: &str, value: &dyn Display| {
            let _ = writeln!(out, "{name:<10}{value}");
        };
        line("version", &self.version);
        line("trails", &HumanCount(trails));
        match trails {
            0 => line("events", &HumanCount(events)),
            _ => {
                let mean = events as f64 / trails as f64;
                line("events", &format_args!("{} ({mean:.1} a trail)", HumanCount(events)));
            }
        }
        match (self.time_min, self.time_max) {
            (Some(min), Some(max)) => {
                line("time", &format_args!("{min} to {max}"));
                if let (Some(min), Some(max)) = (dates::shown(min), dates::shown(max)) {
                    line("", &format_args!("{min} to {max}, if these are seconds since 1970"));
                }
            }
            _ => line("time", &"no events"),
        }
        line("bytes", &format_args!("{} ({})", HumanCount(total), bytes::show(total)));
        line("fields", &self.fields.len());

        if !self.fields.is_empty() {
            let mut table = Table::new(&[
                ("field", Align::Left),
                ("values", Align::Right),
                ("bytes", Align::Right),
                ("bytes a value", Align::Right),
            ]);
            for field in &self.fields {
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
        for (name, len) in &self.members {
            let share = *len as f64 * 100.0 / total.max(1) as f64;
            table.row([name.clone(), HumanCount(*len).to_string(), format!("{share:.1}")]);
        }
        let _ = write!(out, "\n{}", table.render("  "));
        out
    }

    fn json(&self) -> serde_json::Value {
        let field = |field: &Field| json!({ "name": field.name, "values": field.values, "bytes": field.bytes });
        let member = |(name, bytes): &(String, u64)| json!({ "name": name, "bytes": bytes });
        json!({
            "version": self.version,
            "trails": self.trails,
            "events": self.events,
            "time_min": self.time_min,
            "time_max": self.time_max,
            "bytes": self.bytes,
            "fields": self.fields.iter().map(field).collect::<Vec<_>>(),
            "members": self.members.iter().map(member).collect::<Vec<_>>(),
        })
    }
}
