//! What transactions will cost, before the first one.
//!
//! ```text
//!   a workload --> requests of each kind, per transaction --> dollars
//! ```
//!
//! The design's formulas (section 16.2) with what the protocol does since: messages go ten in a call, also when
//! whole transactions are sent on; the log of an own stream is not read; and a page that nobody else puts is put
//! without a get. `n` transactions wait for each checkpoint, as each page has one record of each:
//!
//! ```text
//!                     commit                     sent on, per checkpoint               checkpoint, per page
//!   s3-log            1 put / group              -                                     1 put, 1 get if shared
//!   queues            1 send per queue           -                                     the same, and per queue
//!   queues, atomic    1 send                     n/10 + 1 receives, n/10 deletes       m/10 + 1 receives and
//!                                                m/10 sends per queue                  m/10 deletes of m messages
//!   isolated          1 get, 1 put / group       -                                     1 put, 1 get if shared, and
//!                     (1 more put if large)                                            2 gets, 1 put for all pages
//! ```
//!
//! What does not depend on transactions is not in it: a client that goes on writing puts its own object once in a
//! minute, sweeps look everywhere, and what waits for more than one batch is received in several.

use crate::{
    catalog::Backend,
    cloud::{CallKind, Prices},
    commit::Level,
};

/// What a transaction does on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Pages read from the object store: those that are not in memory.
    pub page_reads: f64,
    /// Pages changed, each by one record.
    pub page_writes: f64,
    /// Records that one checkpoint of a page applies: the more, the cheaper.
    pub records_per_checkpoint: f64,
    /// Transactions that share a log object, with backend s3-log, or a swap, at levels with isolation.
    pub transactions_per_group: f64,
    /// Queues that these pages belong to, where the log is queues ([`Workload::queues_of`]).
    pub queues: f64,
    /// The part of checkpoints that find that somebody else put their page since, 0 to 1: these have to read it.
    pub shared: f64,
    /// At levels with isolation: it writes more than 2 KiB, which then lie in an object of their own.
    pub is_large: bool,
}

/// Requests for one transaction, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Requests {
    /// Objects read.
    pub gets: f64,
    /// Objects put.
    pub puts: f64,
    /// Objects deleted, which costs nothing.
    pub deletes: f64,
    /// Calls that send messages.
    pub sends: f64,
    /// Calls that receive messages.
    pub receives: f64,
    /// Calls that delete messages.
    pub message_deletes: f64,
}

impl Requests {
    /// Those of one kind.
    pub fn of(&self, kind: CallKind) -> f64 {
        match kind {
            CallKind::Get => self.gets,
            CallKind::Put => self.puts,
            CallKind::Delete => self.deletes,
            CallKind::Send => self.sends,
            CallKind::Receive => self.receives,
            CallKind::DeleteMessage => self.message_deletes,
            _ => 0.0,
        }
    }

    /// US dollars.
    pub fn dollars(&self, prices: &Prices) -> f64 {
        let objects = self.gets * prices.get + self.puts * prices.put;
        let queues =
            self.sends * prices.send + (self.receives + self.message_deletes) * prices.queue;
        (objects + queues) / 1e6
    }
}

/// Of one transaction: its reads, its commit, and its part of what follows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Phases {
    /// Reading pages.
    pub reading: Requests,
    /// The commit, and with queues at the atomic level, sending on what it sent.
    pub commit: Requests,
    /// Bringing its records to their pages.
    pub checkpoint: Requests,
}

impl Phases {
    /// Those of one kind, of all three.
    pub fn of(&self, kind: CallKind) -> f64 {
        [self.reading, self.commit, self.checkpoint].iter().map(|phase| phase.of(kind)).sum()
    }
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

/// Calls for so many messages.
fn batches(messages: f64) -> f64 {
    (messages / 10.0 - 1e-9).ceil().max(1.0)
}

impl Workload {
    /// Queues that so many pages belong to on average, of so many that there are.
    pub fn queues_of(pages: f64, shards: u32) -> f64 {
        let shards = f64::from(shards.max(1));
        shards * (1.0 - (1.0 - 1.0 / shards).powf(pages))
    }

    /// What one transaction asks for.
    pub fn requests(&self, backend: Backend, level: Level) -> Phases {
        let (w, n) = (self.page_writes, self.records_per_checkpoint.max(1.0));
        let group = self.transactions_per_group.max(1.0);
        let reading = Requests { gets: self.page_reads, ..Requests::default() };
        let pages = Requests { gets: self.shared * w / n, puts: w / n, ..Requests::default() };
        if level.isolation().is_some() {
            let large = f64::from(u8::from(self.is_large));
            let commit = Requests { gets: 1.0, puts: 1.0 / group + large, ..Requests::default() };
            let (gets, puts) = (pages.gets + 2.0 / n, pages.puts + 1.0 / n);
            return Phases { reading, commit, checkpoint: Requests { gets, puts, ..pages } };
        }
        if backend == Backend::S3Log {
            let commit = Requests { puts: 1.0 / group, ..Requests::default() };
            // The newest object of a stream stays.
            return Phases {
                reading,
                commit,
                checkpoint: Requests { deletes: 1.0 / group, ..pages },
            };
        }
        let queues = self.queues.clamp(1.0_f64.min(w), w);
        // Of a transaction an ordered queue has a message for each page, and others have one.
        let each = if backend == Backend::SqsFifo { w / queues.max(1e-9) } else { 1.0 };
        let drained = batches(n * each);
        let checkpoint = Requests {
            receives: queues / n * (drained + 1.0),
            message_deletes: queues / n * drained,
            ..pages
        };
        let is_one_message = queues * each <= 1.0;
        let commit = match level {
            Level::Atomic if !is_one_message => Requests {
                sends: 1.0 + queues / n * batches(n * each),
                receives: (batches(n) + 1.0) / n,
                message_deletes: batches(n) / n,
                ..Requests::default()
            },
            _ => Requests { sends: queues * batches(each), ..Requests::default() },
        };
        Phases { reading, commit, checkpoint }
    }

    /// What one transaction costs in requests.
    pub fn estimate(&self, backend: Backend, level: Level, prices: &Prices) -> Estimate {
        let Phases { reading, commit, checkpoint } = self.requests(backend, level);
        let [reading, commit, checkpoint] =
            [reading, commit, checkpoint].map(|phase| phase.dollars(prices));
        Estimate { reading, commit, checkpoint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(records_per_checkpoint: f64) -> Workload {
        Workload {
            page_reads: 4.0,
            page_writes: 7.0,
            records_per_checkpoint,
            transactions_per_group: 10.0,
            // As the design has it: each page in a queue of its own, and read before it is put.
            queues: 7.0,
            shared: 1.0,
            is_large: false,
        }
    }

    /// The table of the design, section 16.2: dollars per 1,000 transactions. It sends the records of whole
    /// transactions on one by one; ten in a call are less.
    #[test]
    fn the_design_s_table() {
        let cases = [
            (Backend::SqsStandard, Level::Basic, 1.0, 0.051, 0.051),
            (Backend::SqsStandard, Level::Basic, 10.0, 0.009, 0.009),
            (Backend::SqsStandard, Level::Atomic, 1.0, 0.052, 0.052),
            (Backend::SqsStandard, Level::Atomic, 10.0, 0.007, 0.010),
            (Backend::S3Log, Level::Atomic, 10.0, 0.006, 0.006),
        ];
        for (backend, level, b, least, most) in cases {
            let got = 1000.0 * workload(b).estimate(backend, level, &Prices::TODAY).total();
            let what = format!("{} {} b = {b}: {got}", backend.name(), level.name());
            assert!(least - 0.0006 < got && got < most + 0.0006, "{what}");
        }
    }

    #[test]
    fn sends_have_a_price_of_their_own() {
        let workload = Workload { page_reads: 0.0, ..workload(10.0) };
        let free = Prices { get: 0.0, put: 0.0, send: 100.0, queue: 0.0, gb_in: 0.0, gb_out: 0.0 };
        // A send for each queue; or the commit, and for ten of these one for each queue.
        for (level, sends) in [(Level::Basic, 7.0), (Level::Atomic, 1.7)] {
            let got = workload.estimate(Backend::SqsStandard, level, &free).total();
            assert!((got - sends * 100.0 / 1e6).abs() < 1e-12, "{}: {got}", level.name());
        }
        // What is one message anyway is sent where it belongs.
        let small = Workload { page_writes: 1.0, queues: 1.0, ..workload };
        let got = small.requests(Backend::SqsStandard, Level::Atomic);
        assert_eq!((got.commit.sends, got.commit.receives), (1.0, 0.0));
    }

    #[test]
    fn pages_hash_to_as_many_queues_as_there_are() {
        assert!((Workload::queues_of(1.0, 16) - 1.0).abs() < 1e-9);
        assert!((5.0..7.0).contains(&Workload::queues_of(7.0, 16)));
        assert!((Workload::queues_of(1000.0, 16) - 16.0).abs() < 1e-3);
        assert!((Workload::queues_of(7.0, 1) - 1.0).abs() < 1e-9);
    }

    /// Isolation costs a swap, and another put where much is written; whoever shares swaps pays a part.
    #[test]
    fn isolated_transactions_pass_one_object() {
        let price = |workload: Workload| {
            let level = Level::Serializable;
            1000.0 * workload.estimate(Backend::S3Log, level, &Prices::TODAY).total()
        };
        let small = workload(10.0);
        let large = Workload { is_large: true, ..small };
        assert!((price(large) - price(small) - 0.005).abs() < 1e-9);
        let alone = Workload { transactions_per_group: 1.0, ..small };
        assert!((price(alone) - price(small) - 0.0045).abs() < 1e-9);
    }
}
