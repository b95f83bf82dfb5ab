//! A program beside ours that is told what to do, a line at a time, and answers each with a line of numbers.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// How long an answer may take: many times what a pass does.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// How long a program may take to end when nothing more is to do.
const END_MAX: Duration = Duration::from_secs(10);

/// A running one. Dropping it ends it.
pub(super) struct Peer {
    name: String,
    child: Child,
    /// Closed to end it.
    input: Option<ChildStdin>,
    answers: Receiver<String>,
    answer_max: Duration,
}

impl Peer {
    /// Where the program `name` would be: beside this one, also where this is a test. `None` if it is not built.
    pub(super) fn built(name: &str) -> Option<PathBuf> {
        let here = env::current_exe().ok()?;
        let folder = here.parent()?;
        let folder = if folder.ends_with("deps") { folder.parent()? } else { folder };
        Some(folder.join(name)).filter(|program| program.is_file())
    }

    /// Starts `program`.
    pub(super) fn start(
        program: &Path,
        args: &[&OsStr],
        variables: &[(&str, String)],
    ) -> Result<Peer, String> {
        let name = program.file_name().unwrap_or_default().display().to_string();
        let mut child = Command::new(program)
            .args(args)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let (input, output) = (child.stdin.take(), child.stdout.take().ok_or("no output")?);
        // One answer at a time is awaited. What comes unasked for waits in the pipe, and not here.
        let (told, answers) = mpsc::sync_channel(1);
        thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.take_while(|line| told.send(line.clone()).is_ok()).for_each(drop);
        });
        Ok(Peer { name, child, input, answers, answer_max: ANSWER_MAX })
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells it `command`; returns the numbers of its answer, of which there are `N`.
    ///
    /// # Errors
    /// When it ends or hangs, with its last words, or answers with something else.
    pub(super) fn ask<const N: usize>(&mut self, command: &str) -> Result<[u64; N], String> {
        let input = self.input.as_mut().ok_or("it was ended")?;
        // If it is not there to be told, there is no answer either.
        let _ = writeln!(input, "{command}");
        let line = match self.answers.recv_timeout(self.answer_max) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                let _ = self.child.kill();
                return Err(format!("{}: no answer to {command:?}", self.name));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(self.last_words()),
        };
        let numbers: Option<Vec<u64>> = line.split(' ').map(|word| word.parse().ok()).collect();
        let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
        numbers.ok_or_else(|| format!("{}: {command:?} was answered by {line:?}", self.name))
    }

    /// What it said before it ended.
    fn last_words(&mut self) -> String {
        self.end();
        let mut said = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            // Whatever it is, it is for people.
            let _ = errors.read_to_string(&mut said);
        }
        match said.trim().lines().last() {
            Some(line) => line.to_owned(),
            None => format!("{} ended", self.name),
        }
    }

    /// Waits until it has ended, and has it ended if it does not.
    fn end(&mut self) {
        drop(self.input.take());
        let start = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if start.elapsed() > END_MAX {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Peer {
        let args = ["-c".as_ref(), script.as_ref()];
        Peer::start("/bin/sh".as_ref(), &args, &[("WORD", "7".to_owned())]).expect("a shell")
    }

    #[test]
    fn a_peer_answers_ends_or_is_ended() {
        let mut peer = shell("while read a; do echo \"$a $WORD\"; done");
        assert_eq!(peer.ask("1 2").expect("three numbers"), [1, 2, 7]);
        assert_eq!(peer.ask("5").expect("two numbers"), [5, 7]);
        let told = peer.ask::<1>("5").expect_err("two");
        assert_eq!(told, "sh: \"5\" was answered by \"5 7\"");

        let mut peer = shell("read a; echo first >&2; echo 'it cannot' >&2; exit 3");
        assert_eq!(peer.ask::<1>("go").expect_err("no answer"), "it cannot");
        assert!(peer.ask::<1>("go").is_err(), "nor later");

        let mut peer = shell("while read a; do exec sleep 600; done");
        peer.answer_max = Duration::from_millis(50);
        assert_eq!(peer.ask::<1>("go").expect_err("too late"), "sh: no answer to \"go\"");
        let start = Instant::now();
        drop(peer);
        assert!(start.elapsed() < END_MAX, "it was ended when it hung");
    }
}
