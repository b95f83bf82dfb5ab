//! Every leaf and wrapper against real servers, and against servers that misbehave on purpose.

mod bad_servers;
mod behind;
mod concat;
mod disk_cache;
mod expand;
mod fake;
mod faults;
mod golden;
mod leaves;
mod regions;
mod s3_sinks;
mod served;
mod servers;
mod sinks;
mod tls;
mod uploads;
mod wrappers;
