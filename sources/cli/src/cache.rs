//! `extmem cache`: what lies in a disk cache, removing it, and checking it.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use sources::{Cache, CachePolicy, disk_cache::CachedObject, size};

use crate::{FAILED, Failure, OK};

/// Look at a disk cache, remove objects from it, or check every block of it.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    extmem cache ls --dir /var/cache/extmem\n  \
    extmem cache rm s3://bucket/key                with EXTMEM_CACHE set\n  \
    extmem cache rm --all\n  \
    extmem cache verify --repair --json")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List the objects and how much of each is there
    Ls(Common),
    /// Remove objects, named by address or by the id that `ls` prints
    Rm {
        #[command(flatten)]
        common: Common,
        /// Objects to remove
        #[arg(required_unless_present = "all")]
        which: Vec<String>,
        /// Remove everything
        #[arg(long, conflicts_with = "which")]
        all: bool,
    },
    /// Read every block and compare it with its checksum; exit code 1 if any is damaged
    Verify {
        #[command(flatten)]
        common: Common,
        /// Remove what is damaged: it will be fetched again
        #[arg(long)]
        repair: bool,
    },
}

#[derive(clap::Args)]
struct Common {
    /// Directory of the cache
    #[arg(long, env = "EXTMEM_CACHE", value_name = "DIR")]
    dir: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Common {
    /// Opens the cache, which must be there: a mistyped name should not make a directory.
    fn open(&self) -> Result<Cache, Failure> {
        let told = |error: io::Error| Failure::Told(error.to_string());
        if !self.dir.join("cache.json").exists() {
            let text = format!("{}: there is no cache here", self.dir.display());
            return Err(Failure::Told(text));
        }
        // Who looks changes no bound.
        let policy = CachePolicy::from_environment().map_err(told)?;
        Cache::open(&self.dir, CachePolicy { bytes_max: None, ..policy }).map_err(told)
    }

    fn failed(&self, error: io::Error) -> Failure {
        Failure::Told(format!("cache {}: {error}", self.dir.display()))
    }
}

pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    match &args.action {
        Action::Ls(common) => ls(common),
        Action::Rm { common, which, all } => rm(common, which, *all),
        Action::Verify { common, repair } => verify(common, *repair),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::output)
}

fn ls(common: &Common) -> Result<u8, Failure> {
    let objects = common.open()?.list().map_err(|error| common.failed(error))?;
    if common.json {
        let objects: Vec<_> = objects.iter().map(as_json).collect();
        print(&format!("{}\n", json!({ "objects": objects })))?;
        return Ok(OK);
    }
    let mut text =
        format!("{:<32}  {:>10}  {:>10}  {:>6}  OBJECT\n", "ID", "CACHED", "OF", "SHARE");
    for object in &objects {
        let share = object.cached_bytes as f64 * 100.0 / object.len.max(1) as f64;
        let name = match (&object.name, &object.key_id) {
            (Some(name), _) => printable(name),
            (None, Some(key_id)) => format!("(encrypted with key {key_id})"),
            (None, None) => "(unknown)".to_owned(),
        };
        text.push_str(&format!(
            "{:<32}  {:>10}  {:>10}  {share:>5.1}%  {name}\n",
            object.id,
            size::show(object.cached_bytes),
            size::show(object.len),
        ));
    }
    let bytes: u64 = objects.iter().map(|object| object.disk_bytes).sum();
    text.push_str(&format!("{} object(s), {} on disk\n", objects.len(), size::show(bytes)));
    print(&text)?;
    Ok(OK)
}

/// A name from a file, without what a terminal would obey.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn as_json(object: &CachedObject) -> serde_json::Value {
    json!({
        "id": object.id,
        "name": object.name,
        "version": object.version,
        "key_id": object.key_id,
        "bytes": object.len,
        "cached_blocks": object.blocks,
        "cached_bytes": object.cached_bytes,
        "disk_bytes": object.disk_bytes,
        "segments": object.segments,
        "hot_segments": object.hot_segments,
    })
}

fn rm(common: &Common, which: &[String], all: bool) -> Result<u8, Failure> {
    let cache = common.open()?;
    let failed = |error| common.failed(error);
    let mut freed = 0;
    let mut missing = Vec::new();
    if all {
        freed = cache.clear().map_err(failed)?;
    }
    for name in which {
        match cache.remove(name).map_err(failed)? {
            0 => missing.push(name.clone()),
            bytes => freed += bytes,
        }
    }
    if common.json {
        print(&format!("{}\n", json!({ "freed_bytes": freed, "not_found": missing })))?;
    } else {
        print(&format!("{} freed\n", size::show(freed)))?;
    }
    match missing.first() {
        Some(name) => Err(Failure::Told(format!("{name}: nothing of it is in the cache"))),
        None => Ok(OK),
    }
}

fn verify(common: &Common, repair: bool) -> Result<u8, Failure> {
    let cache = common.open()?;
    let bar = match io::stderr().is_terminal() {
        true => ProgressBar::new(0).with_style(
            ProgressStyle::with_template("{bar:40} {pos}/{len} segments {eta}")
                .expect("the template is well formed"),
        ),
        false => ProgressBar::hidden(),
    };
    let found = cache.verify(repair, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let found = found.map_err(|error| common.failed(error))?;
    if common.json {
        let value = json!({
            "segments": found.segments,
            "good_blocks": found.good_blocks,
            "good_bytes": found.good_bytes,
            "damaged_blocks": found.damaged_blocks,
            "damaged": found.damaged,
            "removed": found.removed,
            "sealed_segments": found.sealed_segments,
        });
        print(&format!("{value}\n"))?;
    } else {
        let mut text = format!(
            "{} segment(s), {} block(s), {} are what was written\n",
            found.segments,
            found.good_blocks,
            size::show(found.good_bytes)
        );
        for path in &found.damaged {
            text.push_str(&format!("damaged  {path}\n"));
        }
        if found.removed > 0 {
            text.push_str(&format!("{} removed; they will be fetched again\n", found.removed));
        }
        print(&text)?;
    }
    Ok(if found.damaged.is_empty() { OK } else { FAILED })
}
