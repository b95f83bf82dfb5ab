//! What transactions will cost, before the first one: the formulas of the design, section 16.2.

use crate::{catalog::Backend, cloud::Prices, commit::Level};

/// What a transaction does on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Pages read from the object store: those that are not in memory.
    pub page_reads: f64,
    /// Pages changed, each by one record.
    pub page_writes: f64,
    /// Records that one checkpoint of a page applies: the more, the cheaper.
    pub records_per_checkpoint: f64,
    /// Transactions that share a log object, with backend s3-log.
    pub transactions_per_group: f64,
}

/// US dollars for one transaction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Reading pages.
    pub reading: f64,
    /// The commit, and with queues at the atomic level, sending on what it sent.
    pub commit: f64,
    /// Bringing its records to their pages.
    pub checkpoint: f64,
}

impl Estimate {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.reading + self.commit + self.checkpoint
    }
}

impl Workload {
    /// What one transaction costs in requests.
    pub fn estimate(&self, backend: Backend, level: Level, prices: &Prices) -> Estimate {
        let (get, put) = (prices.get / 1e6, prices.put / 1e6);
        let (send, queue) = (prices.send / 1e6, prices.queue / 1e6);
        let (w, b) = (self.page_writes, self.records_per_checkpoint.max(1.0));
        let reading = self.page_reads * get;
        if backend == Backend::S3Log {
            let commit = put / self.transactions_per_group.max(1.0);
            return Estimate { reading, commit, checkpoint: w / b * (get + put) };
        }
        // One receive, and a receive and a delete per ten messages.
        let drain = queue + 2.0 * (b / 10.0).ceil() * queue;
        // The message that is the commit, and its receive and delete when it is sent on.
        let whole = if level == Level::Atomic { send + 2.0 * queue } else { 0.0 };
        let commit = w * send + whole;
        Estimate { reading, commit, checkpoint: w / b * (drain + get + put) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the design, section 16.2: dollars per 1,000 transactions.
    #[test]
    fn the_design_s_table() {
        let cases = [
            (Backend::SqsStandard, Level::Basic, 1.0, 0.051),
            (Backend::SqsStandard, Level::Basic, 10.0, 0.009),
            (Backend::SqsStandard, Level::Atomic, 1.0, 0.052),
            (Backend::SqsStandard, Level::Atomic, 10.0, 0.010),
            (Backend::S3Log, Level::Atomic, 10.0, 0.006),
        ];
        for (backend, level, records_per_checkpoint, expected) in cases {
            let workload = Workload {
                page_reads: 4.0,
                page_writes: 7.0,
                records_per_checkpoint,
                transactions_per_group: 10.0,
            };
            let got = 1000.0 * workload.estimate(backend, level, &Prices::TODAY).total();
            let what = format!("{} {} b = {records_per_checkpoint}", backend.name(), level.name());
            assert!((got - expected).abs() < 0.0006, "{what}: {got}");
        }
    }

    #[test]
    fn sends_have_a_price_of_their_own() {
        let workload = Workload {
            page_reads: 0.0,
            page_writes: 7.0,
            records_per_checkpoint: 10.0,
            transactions_per_group: 10.0,
        };
        let free = Prices { get: 0.0, put: 0.0, send: 100.0, queue: 0.0, gb_in: 0.0, gb_out: 0.0 };
        for (level, sends) in [(Level::Basic, 7.0), (Level::Atomic, 8.0)] {
            let got = workload.estimate(Backend::SqsStandard, level, &free).total();
            assert!((got - sends * 100.0 / 1e6).abs() < 1e-12, "{}: {got}", level.name());
        }
    }
}
