//! The command, from outside.

mod support; // fixtures, servers, how the command is run
mod dump; // formats, selections, golden files
mod errors; // exit codes and what is said
mod making; // make and synth
mod remote; // the same through URLs
