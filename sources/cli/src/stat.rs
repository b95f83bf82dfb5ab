//! `extmem stat`: length and version.

use std::io::{self, Write};

use pager::{Pager, Strength};
use serde_json::json;

use crate::Failure;

/// Say an object's length and version, without reading it.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  extmem stat s3://bucket/key\n  extmem stat --json ./file")]
pub(crate) struct Args {
    /// Address of the object: s3://, http(s)://, file:// or a path
    url: String,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let source = sources::open(&args.url)?;
    // A budget as small as they come: nothing is read.
    let pager = Pager::builder().budget_bytes(16 << 20).build()?;
    let region = pager.open(source)?;
    let version = region.version();
    let strength = match version.strength() {
        Strength::Strong => "strong",
        Strength::Weak => "weak",
    };
    let mut out = io::stdout().lock();
    let written = if args.json {
        let line = json!({
            "name": region.name(),
            "bytes": region.len(),
            "version": version.token(),
            "strength": strength,
        });
        writeln!(out, "{line}")
    } else {
        // A file may be called anything: nothing of it may move the cursor of a terminal.
        let name = region.name().replace(char::is_control, " ");
        let (bytes, token) = (region.len(), version.token());
        writeln!(out, "name     {name}\nbytes    {bytes}\nversion  {token} ({strength})")
    };
    written.and_then(|()| out.flush()).map_err(Failure::output)
}
