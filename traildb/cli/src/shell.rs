//! `tdb completions` and `tdb man`: what a package of the command installs beside it.

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{Cli, failure::Failure, output::Output};

/// Prints the completions of a shell.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tdb completions bash > /etc/bash_completion.d/tdb
  tdb completions zsh > ~/.zfunc/_tdb
  tdb completions fish > ~/.config/fish/completions/tdb.fish")]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,
}

/// Writes man pages: tdb.1 and one for each command.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tdb man /usr/local/share/man/man1
  tdb man . && man ./tdb-make.1")]
pub(crate) struct Man {
    /// The directory, which must exist. Pages that are there are replaced.
    directory: PathBuf,
}

/// Runs `tdb completions`.
pub(crate) fn completions(args: &Completions) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tdb", &mut text);
    let mut output = Output::create("-")?;
    output.put(&text)?;
    output.finish()
}

/// Runs `tdb man`.
pub(crate) fn man(args: &Man) -> Result<(), Failure> {
    clap_mangen::generate_to(Cli::command(), &args.directory)
        .map_err(|error| Failure::file(&args.directory, error))
}
