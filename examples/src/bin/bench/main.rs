//! The benchmarks that need an S3: how long from a question to its answer, how near a cold scan
//! comes to a download, and how much may be asked until a download wins.
//!
//! ```text
//! bench [needle] [cold] [break_even] [blog] [--write BENCHMARKS.md]
//! ```
//!
//! The S3 is `s3-endpoint` in a process of its own. Every run opens a new pager with new
//! connections; what is compared runs in turn.

#![forbid(unsafe_code)]

mod blog;
mod break_even;
mod cold;
mod measure;
mod needle;
mod svg;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, ValueEnum};
use examples::{credentials, data};

/// Measures against a paced S3 and prints Markdown.
#[derive(Parser)]
struct Args {
    /// Which. Default: all but blog.
    #[arg(value_enum)]
    which: Vec<Which>,

    /// Put the figures into this file, between its marks.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,

    /// Folder for charts.
    #[arg(long, default_value = "examples/charts", value_name = "FOLDER")]
    charts: PathBuf,

    /// Least size of the large database, in megabytes.
    #[arg(long, default_value_t = 1_000)]
    large: u64,

    /// Least size of the small database, in megabytes.
    #[arg(long, default_value_t = 100)]
    small: u64,

    /// Runs of each; medians are told.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Needle,
    Cold,
    #[value(name = "break_even")]
    BreakEven,
    /// The four charts of the article that the project started from; only if it is named.
    Blog,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Which::Needle => "needle",
            Which::Cold => "cold",
            Which::BreakEven => "break_even",
            Which::Blog => "blog",
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(code) = credentials::ensure() {
        return code;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bench: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let usual = [Which::Needle, Which::Cold, Which::BreakEven];
    let which = if args.which.is_empty() { &usual[..] } else { &args.which };
    for &which in which {
        eprintln!("== {}", which.name());
        let text = match which {
            Which::Needle => needle::run(&database(args.large)?, args.rounds)?,
            Which::Cold => cold::run(&database(args.large / 2)?, args.rounds)?,
            Which::BreakEven => break_even::run(&database(args.small)?, args.rounds)?,
            Which::Blog => blog::run(&database(args.small)?, &args.charts)?,
        };
        let text = format!("{}\n\n{text}", measure::machine());
        println!("{text}");
        if let Some(file) = &args.write {
            write(file, which.name(), &text)?;
        }
    }
    Ok(())
}

fn database(megabytes: u64) -> Result<PathBuf, String> {
    let bytes = megabytes.saturating_mul(1_000_000);
    let (path, there) = data::path(&data::folder()?, bytes, 1);
    if !there {
        eprintln!("making {}", path.display());
        data::make(&path, bytes, 1, |_, _| {})?;
    }
    Ok(path)
}

/// Replaces what stands between `<!-- name -->` and `<!-- end name -->`.
fn write(file: &Path, name: &str, text: &str) -> Result<(), String> {
    let told = |e: &dyn std::fmt::Display| format!("{}: {e}", file.display());
    let old = fs::read_to_string(file).map_err(|e| told(&e))?;
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end {name} -->"));
    let places = old.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some(format!("{before}{begin}{}\n{end}{after}", text.trim_end()))
    });
    let new = places.ok_or_else(|| told(&format!("no place marked {name}")))?;
    fs::write(file, new).map_err(|e| told(&e))
}
