//! The four charts of the article of 2016 that the project started from (V. Tuulos, "Querying data
//! in Amazon S3 directly with user-space page fault handling"), measured again, beside the figures
//! that its text gives.
//!
//! ```text
//! bench_blog [--charts FOLDER] [--write BENCHMARKS.md] [--quick]
//! ```

#![forbid(unsafe_code)]

mod cached; // what faults cost when the bytes are here
mod handles; // bandwidth
mod svg; // charts
mod trails; // the first trails, and random ones
mod way; // how bytes come

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use examples::{
    credentials, data,
    report::{self, Goal, Section},
};

use crate::svg::Chart;

/// Draws the charts, and says in Markdown what they show.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Folder for the charts.
    #[arg(long, default_value = "examples/charts", value_name = "FOLDER")]
    charts: PathBuf,

    /// Put the section into this file.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// One run of each point instead of three.
    #[arg(long)]
    quick: bool,

    /// Print a JSON object instead of Markdown.
    #[arg(long)]
    json: bool,

    /// Least size of the database, in megabytes: the article's had 100.
    #[arg(long, default_value_t = 100)]
    megabytes: u64,
}

/// A chart, what it says, and the figures in it that stand beside the article's.
pub(crate) struct Drawn {
    name: &'static str,
    chart: Chart,
    says: String,
    goals: Vec<Goal>,
}

/// Measures on the database at a path, with so many runs of each point.
type Draw = fn(&Path, usize) -> Result<Drawn, String>;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(code) = credentials::ensure() {
        return code;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench_blog: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let runs = if args.quick { 1 } else { 3 };
    let path = data::ensure(args.megabytes.saturating_mul(1_000_000))?;
    let mut section = Section {
        name: "blog",
        title: "6. The article's four charts",
        question: "What do the charts of the article look like now, beside its own figures?",
        body:
            "Dashed lines are the article's, as far as its text gives them: 100 MB, an r3.8xlarge \
               beside its S3. Ours are of a database of the same size and an S3 with 30 ms to the \
               first byte and 90 MB/s per connection, on a machine with far fewer cores.\n\n"
                .to_owned(),
        goals: Vec::new(),
    };
    fs::create_dir_all(&args.charts).map_err(|e| format!("{}: {e}", args.charts.display()))?;
    let charts: [Draw; 4] = [trails::first, trails::random, cached::scan, handles::bandwidth];
    for draw in charts {
        let drawn = draw(&path, runs)?;
        let file = args.charts.join(drawn.name).with_extension("svg");
        fs::write(&file, drawn.chart.svg()).map_err(|e| format!("{}: {e}", file.display()))?;
        eprintln!("  {}", file.display());
        let title = &drawn.chart.title;
        section.body += &format!("### {title}\n\n![{title}]({})\n\n", file.display());
        section.body += &format!("{}\n\n{}\n", drawn.says, drawn.chart.markdown());
        section.goals.extend(drawn.goals);
    }
    let command = report::command("bench-blog");
    match args.json {
        true => println!("{}", section.json(&command)),
        false => println!("{}", section.markdown(&command)),
    }
    match &args.write {
        Some(file) => section.write(file, &command),
        None => Ok(()),
    }
}
