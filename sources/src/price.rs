//! List prices, to say what a query cost in dollars.

/// Bytes of a gigabyte as bills count it.
const GB: f64 = (1u64 << 30) as f64;

/// What a store charges, in US dollars.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// For a thousand GET or HEAD requests.
    pub per_1000_requests: f64,
    /// For a gigabyte (2^30 bytes) that leaves the store.
    pub per_gb_out: f64,
}

impl Prices {
    /// What so many requests and bytes cost, in US dollars.
    pub fn cost_usd(&self, requests: u64, bytes: u64) -> f64 {
        requests as f64 / 1000.0 * self.per_1000_requests + bytes as f64 / GB * self.per_gb_out
    }
}

/// S3 Standard, us-east-1, read within the region: $0.0004 per 1,000 requests, bytes free.
pub const S3_STANDARD: Prices = Prices { per_1000_requests: 0.0004, per_gb_out: 0.0 };

/// The same read from the internet: $0.09 per GB, the first tier.
pub const S3_STANDARD_INTERNET: Prices = Prices { per_1000_requests: 0.0004, per_gb_out: 0.09 };

/// Local files and one's own servers.
pub const FREE: Prices = Prices { per_1000_requests: 0.0, per_gb_out: 0.0 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs() {
        let cases = [
            ("a thousand gets", S3_STANDARD, 1000, 1 << 40, 0.0004),
            ("a gigabyte out", S3_STANDARD_INTERNET, 0, 1 << 30, 0.09),
            ("at home", FREE, 1_000_000, 1 << 40, 0.0),
        ];
        for (what, prices, requests, bytes, expected) in cases {
            let cost = prices.cost_usd(requests, bytes);
            assert!((cost - expected).abs() < 1e-9, "{what}: {cost}");
        }
    }
}
