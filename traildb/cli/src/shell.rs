//! `tdb completions` and `tdb man`: what a package of the command installs beside it.

use std::{fs, path::PathBuf};

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
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let pages = command.get_subcommands().cloned().chain([command.clone()]);
    for command in pages {
        let page =
            clap_mangen::Man::new(command).source(concat!("tdb ", env!("CARGO_PKG_VERSION")));
        let path = args.directory.join(page.get_filename());
        let mut text = Vec::new();
        page.render(&mut text)
            .and_then(|()| fs::write(&path, as_it_stands(&String::from_utf8_lossy(&text))))
            .map_err(|error| Failure::file(&path, error))?;
    }
    Ok(())
}

/// A page in which lines that start with a blank are left as they are, not filled: examples and
/// tables.
fn as_it_stands(page: &str) -> String {
    let mut text = String::new();
    let mut filled = true;
    for line in page.lines() {
        if filled == line.starts_with(' ') {
            text.push_str(if filled { ".nf\n" } else { ".fi\n" });
            filled = !filled;
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}
