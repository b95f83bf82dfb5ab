//! `bench`: what the store and the protocols of the paper take: in virtual time, and on this machine.

mod embedded; // on this machine: in a directory and in memory
mod machine; // that it was measured on, and when
mod paper; // the paper's tables, and today's
mod plot; // charts
mod section; // of BENCHMARKS.md

use std::{io, path::Path};

use clap::Subcommand;

use crate::output::{Failure, Output};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// The evaluation of "Building a Database on S3" (SIGMOD 2008), and the same questions today
    Paper(paper::Args),
    /// Commits, reads, recovery and freshness on this machine: in a directory and in memory
    Embedded(embedded::Args),
}

pub(crate) fn run(command: &Command, output: &Output) -> Result<(), Failure> {
    // On a thread without a runtime: within one, its locks give way after so many uses in one poll, and
    // wake only when the runtime has its turn, which it has not before the last virtual second.
    let measure = || match command {
        Command::Paper(args) => paper::run(args, output),
        Command::Embedded(args) => embedded::run(args, output),
    };
    std::thread::scope(|scope| scope.spawn(measure).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What went wrong with a file.
fn told(path: &Path, error: &io::Error) -> Failure {
    Failure::Told(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read};

    use super::section::Section;

    /// It was cut off first, and written then: who stopped it in between had neither.
    #[test]
    fn a_file_of_sections_is_replaced_in_one_step() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("B.md");
        let section = Section { name: "paper", text: "new" };
        section.write_into(&file).unwrap();
        let mut open = fs::File::open(&file).unwrap();
        Section { text: "newer", ..section }.write_into(&file).unwrap();
        let mut before = String::new();
        open.read_to_string(&mut before).unwrap();
        assert!(before.contains("new\n"), "who has it open has all of what it was");
        assert!(fs::read_to_string(&file).unwrap().contains("newer\n"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
