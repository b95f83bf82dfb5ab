//! Every leaf and wrapper against real servers, and against servers that misbehave on purpose.

mod bad_servers;
mod behind;
mod concat;
mod disk_cache;
mod fake;
mod faults;
mod leaves;
mod regions;
mod servers;
mod uploads;
mod wrappers;
