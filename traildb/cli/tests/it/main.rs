//! The command, from outside.

mod support; // fixtures, servers, how the command is run
mod dump; // formats, selections, golden files
mod errors; // exit codes and what is said
mod indexing; // indexes made and used
mod query; // filters, and how much matches
mod shards; // many databases as one
mod making; // make and synth
mod times; // the largest there are
mod verifying; // verify
mod shell; // completions and man pages
mod remote; // the same through URLs
mod uploading; // databases that go into a bucket
mod killed; // what make and merge leave when they are killed
