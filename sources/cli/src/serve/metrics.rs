//! What Prometheus is told: the one table of names. Times are in seconds, sizes in bytes.
//!
//! No label holds an object's name: there may be millions.

use std::{
    fmt::{Display, Write},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{Server, saved::Saved, seen::BUCKETS_US};

/// The text of `/metrics`, in Prometheus's format 0.0.4.
pub(super) fn text(server: &Server, used_bytes: u64, stopping: bool) -> String {
    let mut out = Text::default();
    let cache = server.objects.cache().count();
    let source = server.objects.traffic().count();
    let saved = Saved::of(server);
    let (_, clients) = server.seen.clients(0);
    let counted = |counter: &AtomicU64| counter.load(Relaxed);
    let counts = &server.counts;

    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    out.gauge("extmem_build_info", "Always 1; the version is a label", &[(&version, 1)]);
    out.gauge("extmem_uptime_seconds", "Since the start", &[("", server.seen.uptime().as_secs())]);
    out.gauge("extmem_stopping", "1 while it drains", &[("", u64::from(stopping))]);

    let blocks = [
        ("what=\"hit\"", cache.hit_blocks),
        ("what=\"miss\"", cache.missed_blocks),
        ("what=\"joined\"", cache.joined_blocks),
        ("what=\"stored\"", cache.stored_blocks),
        ("what=\"skipped\"", cache.skipped_blocks),
        ("what=\"damaged\"", cache.damaged_blocks),
    ];
    let help = "Blocks: from disk, from the source, shared with another reader; written, not \
                written, thrown away";
    out.counter("extmem_cache_blocks_total", help, &blocks);
    out.counter(
        "extmem_cache_hit_bytes_total",
        "Bytes asked for and there",
        &[("", cache.hit_bytes)],
    );
    let help = "Bytes written to the cache";
    out.counter("extmem_cache_stored_bytes_total", help, &[("", cache.stored_bytes)]);
    let help = "Bytes that left to make room";
    out.counter("extmem_cache_evicted_bytes_total", help, &[("", cache.evicted_bytes)]);
    out.gauge("extmem_cache_used_bytes", "What the cache takes", &[("", used_bytes)]);
    let help = "The most that the cache may take";
    out.gauge("extmem_cache_max_bytes", help, &[("", server.bytes_max)]);

    let help = "Bytes in memory for clients that map them";
    out.gauge("extmem_memory_bytes", help, &[("", server.pieces.bytes())]);
    let help = "The most that there may be";
    out.gauge("extmem_memory_max_bytes", help, &[("", server.pieces.room_bytes())]);

    let requests = [("op=\"read\"", source.gets), ("op=\"stat\"", source.stats)];
    out.counter("extmem_source_requests_total", "Requests to sources: GETs, HEADs", &requests);
    out.counter("extmem_source_bytes_total", "Bytes from sources", &[("", source.bytes)]);
    let help = "Requests to sources that failed";
    out.counter("extmem_source_errors_total", help, &[("", source.errors)]);
    let help = "Requests to sources answered with a demand for fewer";
    out.counter("extmem_source_throttles_total", help, &[("", source.throttles)]);

    let help = "GETs that clients would have made without the cache, by its mean size of one";
    out.counter("extmem_saved_requests_total", help, &[("", saved.requests)]);
    let usd = [("from=\"internet\"", saved.usd_internet), ("from=\"region\"", saved.usd_region)];
    let help = "US dollars saved at the list prices of S3 Standard";
    out.counter("extmem_saved_dollars_total", help, &usd);

    let protocols: Vec<(String, usize)> = clients
        .into_iter()
        .map(|(protocol, count)| (format!("protocol=\"{protocol}\""), count))
        .collect();
    let protocols: Vec<_> = protocols.iter().map(|(label, count)| (&**label, *count)).collect();
    out.gauge("extmem_connections", "Open connections of clients", &protocols);
    let connections = [
        ("what=\"accepted\"", counted(&counts.connections)),
        ("what=\"refused\"", counted(&counts.refused)),
        ("what=\"denied\"", counted(&counts.denied)),
    ];
    out.counter(
        "extmem_connections_total",
        "Connections of clients so far; refused: too many, denied: a wrong token or user",
        &connections,
    );
    let help = "Requests of clients";
    out.counter("extmem_requests_total", help, &[("", counted(&counts.requests))]);
    let help = "Requests of clients that were answered with an error";
    out.counter("extmem_requests_failed_total", help, &[("", counted(&counts.failures))]);
    let help = "Requests of clients that are worked on";
    out.gauge("extmem_requests_under_way", help, &[("", server.seen.under_way())]);
    out.times(server);
    out.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn all(&mut self, name: &str, values: &[(&str, impl Display)]) {
        for (label, value) in values {
            let _ = match label.is_empty() {
                true => writeln!(self.0, "{name} {value}"),
                false => writeln!(self.0, "{name}{{{label}}} {value}"),
            };
        }
    }

    fn counter(&mut self, name: &str, help: &str, values: &[(&str, impl Display)]) {
        self.head(name, "counter", help);
        self.all(name, values);
    }

    fn gauge(&mut self, name: &str, help: &str, values: &[(&str, impl Display)]) {
        self.head(name, "gauge", help);
        self.all(name, values);
    }

    /// A histogram's buckets hold all that took no longer.
    fn times(&mut self, server: &Server) {
        let name = "extmem_request_seconds";
        self.head(name, "histogram", "How long requests of clients took");
        let times = &server.seen.times;
        let mut so_far = 0;
        for (at, bucket) in times.buckets.iter().enumerate() {
            so_far += bucket.load(Relaxed);
            let edge = BUCKETS_US.get(at).map(|&us| (us as f64 / 1e6).to_string());
            let edge = edge.as_deref().unwrap_or("+Inf");
            let _ = writeln!(self.0, "{name}_bucket{{le=\"{edge}\"}} {so_far}");
        }
        let sum = times.sum_us.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(self.0, "{name}_sum {sum}\n{name}_count {so_far}");
    }
}
