//! The two programs, and what they print.

use std::{
    env,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::Value as Json;

/// What one run measured.
pub(super) struct Figures {
    /// Events met, or values found.
    pub(super) events: u64,
    /// Depends on everything that was read.
    pub(super) sum: u64,
    pub(super) seconds: Vec<f64>,
    /// The pass that warmed up, where it is told.
    pub(super) first: f64,
    pub(super) cpu: f64,
    pub(super) rss_kib: u64,
}

/// A program that measures.
pub(super) struct Side {
    program: PathBuf,
}

impl Side {
    /// `peer`, which is built along with this program.
    pub(super) fn ours() -> Result<Side, String> {
        let program = beside("peer")?;
        match program.exists() {
            true => Ok(Side { program }),
            false => Err(format!("{} is missing: `make bench` builds it", program.display())),
        }
    }

    /// `peer-c`, if it was compiled.
    pub(super) fn theirs() -> Option<Side> {
        beside("peer-c").ok().filter(|program| program.exists()).map(|program| Side { program })
    }

    /// Runs the program and reads what it prints.
    pub(super) fn run(&self, words: &[&str]) -> Result<Figures, String> {
        let told = |what: &str| format!("{} {}: {what}", self.program.display(), words.join(" "));
        let output = Command::new(&self.program)
            .args(words)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|e| told(&e.to_string()))?;
        if !output.status.success() {
            return Err(told(&output.status.to_string()));
        }
        let json: Json =
            serde_json::from_slice(&output.stdout).map_err(|e| told(&e.to_string()))?;
        let number = |name: &str| json[name].as_f64().unwrap_or(0.0);
        let seconds = json["seconds"].as_array().map_or(&[][..], Vec::as_slice);
        let seconds: Vec<f64> = seconds.iter().filter_map(Json::as_f64).collect();
        if seconds.is_empty() {
            return Err(told("it measured nothing"));
        }
        Ok(Figures {
            events: json["events"].as_u64().unwrap_or(0),
            sum: json["sum"].as_u64().unwrap_or(0),
            seconds,
            first: number("first"),
            cpu: number("cpu"),
            rss_kib: json["rss_kib"].as_u64().unwrap_or(0),
        })
    }
}

/// A program in the folder of this one.
pub(super) fn beside(name: &str) -> Result<PathBuf, String> {
    Ok(env::current_exe().map_err(|e| e.to_string())?.with_file_name(name))
}
