//! What the cache spares its clients.

use sources::price;

use super::Server;

/// What the cache has saved its clients.
pub(super) struct Saved {
    /// GETs, each as large as those that were made.
    pub(super) requests: u64,
    pub(super) bytes: u64,
    /// What that costs at S3's list prices, in US dollars: read from the internet, and from within
    /// the region.
    pub(super) usd_internet: f64,
    pub(super) usd_region: f64,
}

impl Saved {
    pub(super) fn of(server: &Server) -> Saved {
        let traffic = server.objects.traffic().count();
        let bytes = server.objects.cache().count().hit_bytes;
        let each = traffic.bytes.checked_div(traffic.gets).unwrap_or(0).max(server.extent_bytes);
        let requests = bytes.div_ceil(each);
        Saved {
            requests,
            bytes,
            usd_internet: price::S3_STANDARD_INTERNET.cost_usd(requests, bytes),
            usd_region: price::S3_STANDARD.cost_usd(requests, bytes),
        }
    }
}
