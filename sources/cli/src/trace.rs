//! `extmem trace`: runs a command and records what it reads.

use std::{
    ffi::OsString,
    fs,
    io::{self, ErrorKind, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Failure, recording, replay::look_over};

/// Run a command and record what it reads, for `extmem replay`.
#[derive(clap::Args)]
#[command(
    after_help = "The command is one that reads through extmem and honours EXTMEM_TRACE: `extmem \
    cat`, `tdb`, or a program that gives its pager a `Recorder`. Of memory-mapped reads only page \
    faults are seen.\n\n\
    Examples:\n  \
    extmem trace --out users.trace -- tdb dump -i s3://bucket/events.tdb -u @users.txt\n  \
    extmem replay users.trace"
)]
pub(crate) struct Args {
    /// File to record into
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    /// The command, with its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Returns the command's own exit code.
pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let told = |path: &Path, error: io::Error| {
        Failure::Told(format!("{}: {error}", path.display()).replace(char::is_control, " "))
    };
    // The command may go elsewhere before it opens anything.
    let out = std::path::absolute(&args.out).map_err(|error| told(&args.out, error))?;
    if args.force {
        match fs::remove_file(&out) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(told(&out, error)),
            _ => {}
        }
    } else if out.try_exists().map_err(|error| told(&out, error))? {
        let text = format!("{}: it is there already; --force replaces it", out.display());
        return Err(Failure::Told(text.replace(char::is_control, " ")));
    }
    let (program, rest) = args.command.split_first().expect("clap asks for a command");
    let status = Command::new(program).args(rest).env(recording::VARIABLE, &out).status();
    let status = status.map_err(|error| told(Path::new(program), error))?;
    let said = match out.try_exists() {
        Ok(true) => {
            let seen = look_over(&out)?;
            let overview = &seen.overview;
            format!("{} accesses, {} lost", overview.accesses(), overview.lost)
        }
        _ => "nothing was recorded: the command does not read through extmem, or was not asked \
              to read anything"
            .to_owned(),
    };
    let name = out.display().to_string().replace(char::is_control, " ");
    // Where stderr is closed, nobody reads it.
    let _ = writeln!(io::stderr(), "extmem: {name}: {said}");
    // As a shell tells of a signal.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(u8::try_from(code.unwrap_or(1)).unwrap_or(1))
}
