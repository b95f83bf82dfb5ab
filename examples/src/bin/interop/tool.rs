//! The two programs, run as a user would.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A run that takes longer hangs.
const SECONDS_MAX: u64 = 600;

/// Whose program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Whose {
    Theirs,
    Ours,
}

/// One of the two programs.
pub(crate) struct Tool {
    program: PathBuf,
    pub(crate) whose: Whose,
}

/// What a run printed, or how it failed.
pub(crate) type Output = Result<Vec<u8>, String>;

impl Tool {
    pub(crate) fn theirs(program: &Path) -> Result<Tool, String> {
        Tool::new(program, Whose::Theirs)
    }

    pub(crate) fn ours(program: &Path) -> Result<Tool, String> {
        Tool::new(program, Whose::Ours)
    }

    fn new(program: &Path, whose: Whose) -> Result<Tool, String> {
        // A name without a folder is looked for in PATH; one with a folder must be there, and is
        // found from the folders that it runs in, too.
        let program = match program.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => fs::canonicalize(program)
                .map_err(|e| format!("{}: there is no such program: {e}", program.display()))?,
            _ => program.to_owned(),
        };
        Ok(Tool { program, whose })
    }

    /// Whether the command `command` has the option `option`, as its help says.
    pub(crate) fn knows(&self, command: &str, option: &str) -> bool {
        let help = self.run(Path::new("."), &[command, "--help"], None).unwrap_or_default();
        String::from_utf8_lossy(&help).contains(option)
    }

    /// A word for reports.
    pub(crate) fn name(&self) -> &'static str {
        match self.whose {
            Whose::Theirs => "theirs",
            Whose::Ours => "ours",
        }
    }

    /// Runs the program in `folder`. What it says on stderr is part of the failure only.
    pub(crate) fn run(&self, folder: &Path, words: &[&str], input: Option<&[u8]>) -> Output {
        let began = Instant::now();
        let mut child = Command::new(&self.program)
            .args(words)
            .current_dir(folder)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", self.program.display()))?;
        let stdin = child.stdin.take();
        let written = std::thread::scope(|scope| {
            // A program that does not read to the end is not waited for: the pipe breaks.
            let writer = stdin.zip(input).map(|(mut pipe, bytes)| {
                scope.spawn(move || pipe.write_all(bytes).map_err(|e| e.to_string()))
            });
            let output = child.wait_with_output().map_err(|e| e.to_string());
            (output, writer.map(|writer| writer.join()))
        });
        let output = written.0?;
        if began.elapsed() > Duration::from_secs(SECONDS_MAX) {
            return Err(format!("took more than {SECONDS_MAX} s"));
        }
        match output.status.success() {
            true => Ok(output.stdout),
            false => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said = said.lines().last().unwrap_or_default().trim();
                Err(format!("{}: {} {said}", words.join(" "), output.status))
            }
        }
    }

    /// Prints events as the C tool prints them.
    pub(crate) fn dump(&self, folder: &Path, db: &str, more: &[&str]) -> Output {
        let mut words = vec!["dump", "-i", db];
        if self.whose == Whose::Ours {
            words.push("--compat");
        }
        words.extend(more);
        self.run(folder, &words, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs run in the folder of a data set, and are named from where one is.
    #[test]
    fn a_relative_path_is_found_from_another_folder() {
        let here = std::env::current_dir().unwrap();
        let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
        let tool = Tool::ours(&up.join("bin/sh")).unwrap();
        // Deeper than here, so that the same steps up do not lead to the same place.
        let scratch = tempfile::tempdir().unwrap();
        let deep = here.components().fold(scratch.path().to_owned(), |path, _| path.join("x"));
        fs::create_dir_all(&deep).unwrap();
        assert_eq!(tool.run(&deep, &["-c", "echo found"], None), Ok(b"found\n".to_vec()));
        assert!(Tool::ours(Path::new("./no-such-program")).is_err());
        assert!(Tool::ours(Path::new("sh")).unwrap().run(&deep, &["-c", ":"], None).is_ok());
    }
}
