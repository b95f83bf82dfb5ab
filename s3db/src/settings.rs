//! What can be set, and what may not be: limits, ages, and the rules of the hardened protocol.

use std::time::Duration;

/// How a client works. What all clients of a database must agree upon lies in the database itself
/// (see `catalog`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Bytes of encoded page above which a leaf is split. Default: 100 KB, as in the paper.
    pub leaf_bytes_max: usize,
    /// The same of inner pages. Default: 57 KB, as in the paper.
    pub inner_bytes_max: usize,
    /// How long a cached page is used without asking whether there is a newer one. Default: 100 s.
    pub ttl: Duration,
    /// Age of the last checkpoint from which a commit or a read starts one. Default: 15 s.
    pub checkpoint_interval: Duration,
    /// How long drained records are hidden from other checkpointers. Thrift, not safety: it saves
    /// doing work twice. Default: 30 s.
    pub lease: Duration,
    /// How long a claim to be the one who checkpoints a part of the log counts after it was renewed
    /// ([`Store::own`](crate::Store::own)), by the object store's clock. While one counts, what this client
    /// commits there is left to whoever claims it. Thrift, not safety. Zero: no claim ever counts, and
    /// nobody is asked for any. Default: 30 s.
    pub owner_lease: Duration,
    /// How long anything is left to such a client. Then it is checkpointed here, whatever that one
    /// claims. Default: 60 s.
    pub owner_patience: Duration,
    /// Log records that one checkpoint takes on. Default: 1,000.
    pub records_per_checkpoint_max: usize,
    /// Attempts at one call that fails in passing, or at one page that others change. Default: 10.
    pub attempts_max: u32,
    /// First wait between attempts; doubles each time, with jitter. Default: 50 ms.
    pub backoff: Duration,
    /// How far a stamp may be ahead of the object store's clock. A client that starts again after a
    /// crash begins up to half of this ahead, at most 2 min. Default: 5 min.
    pub clock_ahead_max: Duration,
    /// How old a tombstone is before garbage collection drops it: longer than any log record can
    /// be on its way. Default: 29 days, one more than a message stays in a queue of whole
    /// transactions and, sent on at its last moment, in that of its shard. A blob that no record
    /// names goes when it is half as old again, by the setting of who collects; no client commits one that
    /// is older than half of this, by its own.
    pub tombstone_age: Duration,
    /// The factor `c` of the reader rule (paper, 5.3): a read that finds a page's checkpoint
    /// `x` > interval old starts one with probability min(1, c * interval / x), and so does each leaf of a
    /// scan. In queues that is the page's shard. What belongs to no page, the streams of s3-log (a list) and
    /// whole transactions that nobody sent on (8 receives), is looked at once per interval at most; after each
    /// look that finds nothing the next one is twice as far away, up to 64 intervals. Zero: nothing of that.
    /// Default: 1.
    pub reader_factor: f64,
    /// Bytes of changes that a session remembers until pages show them: its own, and those of others that
    /// it saw in the log. Beyond, a commit first
    /// checkpoints what this client wrote, and forgets what is on its pages. Default: 64 MiB.
    pub own_bytes_max: usize,
    /// Bytes of the log that a fresh read takes on at most; beyond, it fails with
    /// [`StoreError::Backlog`](crate::StoreError). Default: 16 MiB.
    pub look_bytes_max: usize,
    /// Bytes of the longest payload that lies in its page; longer ones become blobs. Default, and
    /// most: [`INLINE_BYTES_MAX`](crate::INLINE_BYTES_MAX).
    pub inline_bytes_max: usize,
    /// Bytes of the largest transaction that goes whole into one message of a queue; a larger one lies in an
    /// object, which its message names. Default, and most: what a message takes
    /// ([`MESSAGE_BYTES_MAX`](crate::cloud::queue::MESSAGE_BYTES_MAX), less what sealing needs).
    pub message_bytes_max: usize,
    /// Bytes of each part of a blob but the last, each an object: 1 to
    /// [`PART_BYTES_MAX`](crate::PART_BYTES_MAX). Default: 8 MiB.
    pub part_bytes: usize,
    /// Commits that the sequencer keeps, for collections with isolation: a transaction that began before
    /// the oldest of them is aborted, and when so many wait for their pages no more are taken. 1 to
    /// 10,000. Default: 256.
    pub window_commits_max: usize,
    /// How long a snapshot can be read at least. What older ones alone see is pruned. Default: 10 min.
    pub snapshot_age: Duration,
    /// Which rules hold. All, outside simulations.
    pub rules: Rules,
}

impl Settings {
    /// How old, in microseconds, anything may be that a transaction says when it is sent: its stamps, and
    /// the blobs that it names. What garbage collection counts on.
    pub(crate) fn commit_age_us(&self) -> u64 {
        self.tombstone_age.as_micros() as u64 / 2
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            leaf_bytes_max: 100_000,
            inner_bytes_max: 57_000,
            ttl: Duration::from_secs(100),
            checkpoint_interval: Duration::from_secs(15),
            lease: Duration::from_secs(30),
            owner_lease: Duration::from_secs(30),
            owner_patience: Duration::from_secs(60),
            records_per_checkpoint_max: 1000,
            attempts_max: 10,
            backoff: Duration::from_millis(50),
            clock_ahead_max: Duration::from_secs(300),
            tombstone_age: Duration::from_secs(29 * 24 * 3600),
            reader_factor: 1.0,
            own_bytes_max: 64 << 20,
            look_bytes_max: 16 << 20,
            inline_bytes_max: crate::record::INLINE_BYTES_MAX,
            message_bytes_max: crate::cloud::queue::MESSAGE_BYTES_MAX,
            part_bytes: 8 << 20,
            window_commits_max: 256,
            snapshot_age: Duration::from_secs(600),
            rules: Rules::HARDENED,
        }
    }
}

/// Declares the rules, and the list of all of them, in one: none can be missing there.
macro_rules! rules {
    ($($(#[$doc:meta])* $rule:ident,)*) => {
        /// One rule of the hardened protocol, named for what it does. The numbers are those of PROTOCOL.md.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Rule {
            $($(#[$doc])* $rule,)*
        }

        impl Rule {
            /// All of them.
            pub const ALL: &'static [Rule] = &[$(Rule::$rule,)*];
        }
    };
}

rules! {
    /// H1: a record is applied only over an older stamp (W4).
    Stamps,
    /// H2: a page is put only over the version that was changed (W1, W2, W3).
    CompareAndSwap,
    /// H3, s3-log: a put that is refused may have been our own, which had no answer: the object is read
    /// (W14).
    ReadBack,
    /// H3, pages: the same.
    OwnPut,
    /// H3, pages: a put without an answer is no success before the object was read (W14).
    Silence,
    /// Records are acknowledged only after a confirmed put of every page they changed.
    AcknowledgeLast,
    /// A record goes to the page that owns its key, not to the one it names (W5).
    Fences,
    /// Own records are laid over fetched pages until these show them (W9).
    Overlay,
    /// A scan is a read of each record that it meets: own records are laid over it, it never goes back, and
    /// what is written after it counts after it.
    ScanReads,
    /// A transaction is one message or object (W11).
    WholeTransaction,
    /// Anyone finishes the work of a client that is gone (W12).
    Adoption,
    /// A client's new life ends its old one before it begins (W13).
    EpochFence,
    /// It writes down that older lives are over when their streams have their fences, not before.
    FenceFirst,
    /// s3-log: a fence ends a stream only if it is the newest object there.
    FenceLast,
    /// s3-log: who reads a stream passes over fences. One that lies in a number which was freed ends nothing.
    PastFences,
    /// A bound of stamps is claimed before the first stamp above the one before is used, not after.
    ClaimFirst,
    /// No stamp is further ahead of the object store's date than may be, whatever the machine's clock says.
    ClockLimit,
    /// One answer alone does not move what is taken for that date by more than minutes, and what is doubted is gone
    /// by for nothing (W16).
    TwoDates,
    /// s3-log: a number is put when the one before is confirmed, not as soon as that had no answer.
    InOrder,
    /// What was stamped long ago is committed no more.
    CommitAge,
    /// A transaction that is too large for a message is there before the message that names it, not after.
    LargeFirst,
    /// Records are sent to their shards before the whole transaction is deleted, not after.
    SendFirst,
    /// What cannot be decoded is put aside (W17).
    Quarantine,
    /// The right pages of a split are there before the page that leads to them is put, not after.
    RightFirst,
    /// The parent learns of them after that, not before.
    ParentLast,
    /// Where that put may have been seen by others they stay, whatever became of it.
    KeepUnclear,
    /// The root of a collection is put before the catalogue says that it was, not after.
    PlantFirst,
    /// s3-log: the newest object of a stream stays, so that no zombie takes its number.
    KeepNewest,
    /// s3-log: what stays is emptied before tombstones of its time go, or they stay, too.
    EmptyFirst,
    /// Who stands behind a dead leaf says that it owns the keys before the parent forgets that leaf, not after.
    HeirFirst,
    /// A page that nothing leads to goes only after the page it was split from was put again.
    TouchOrigin,
    /// A page or a blob that nothing leads to any more stays for as long as caches, scans and readers last.
    Grace,
    /// An entry of an index is believed only if its record says the same (W19).
    Verify,
    /// What changes of a leaf imply is in the indexes before the leaf is put, not after.
    EntriesFirst,
    /// It is worked out again when another version of the leaf is there than it was worked out for.
    FollowSwap,
    /// Who builds an index makes a leaf say that it is followed before reading its records, not after.
    FollowerFirst,
    /// The catalogue says that an index is ready when all entries are there, not before.
    ReadyLast,
    /// The worker of every open database looks at every shard now and then, before messages expire (W6).
    Sweep,
    /// A blob is there before the commit that names it, not after.
    BlobFirst,
    /// A blob that no record names goes only when nothing that is on its way can name it.
    BlobAge,
    /// And only when nothing in the log can name it: half as old, it may be in what is just committed.
    BlobInLog,
    /// And only when no isolated commit that is on no page yet names it, nor one that was put off.
    BlobInWindow,
    /// What had no answer is put again only as long as it is young.
    OpenAge,
    /// A fresh read looks into the log before it reads pages, not after.
    LookFirst,
    /// No record of a curated collection comes to its page by the log.
    Approval,
    /// What a curator approved is put where it counts before it waits no more, not after.
    ApprovedFirst,
    /// And it stays there until it is on its pages.
    ApplyFirst,
    /// A proposal is what its name says, or nothing.
    ShownBytes,
    /// Of two transactions that overlap and write the same record one is aborted.
    WriteCheck,
    /// One that read what another changed meanwhile is aborted, at the serializable level.
    ReadCheck,
    /// One that did not know an index of what it writes is aborted.
    KnownIndexes,
    /// Nothing newer than the snapshot is read.
    SnapshotBound,
    /// A page is read only where it and the window have all commits up to the snapshot between them.
    NoHoles,
    /// A page that is pruned beyond the snapshot is not read.
    Pruned,
    /// What a page is complete to is not added to it again.
    AddOnce,
    /// The sequencer says that commits are on their pages when they are, not before.
    AppliedLast,
    /// And it never says less than it said before.
    AppliedGrows,
    /// A delete stays on its leaf while older versions of the record may be on the next one.
    DeleteStays,
    /// The numbers are put again before what no commit names is deleted: whoever still commits reads them after that.
    NumbersAgain,
    /// What a large transaction writes was put not long before its commit, or it is aborted.
    DataAge,
}

// One bit each.
const _: () = assert!(Rule::ALL.len() <= 64);

/// The rules that hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    off: u64,
}

impl Rules {
    /// All of them.
    pub const HARDENED: Rules = Rules { off: 0 };

    /// All but `rule`, to see what it is there for.
    #[cfg(feature = "simulation")]
    pub const fn without(self, rule: Rule) -> Rules {
        Rules { off: self.off | 1 << rule as u64 }
    }

    /// Whether `rule` holds. Always true in builds without the feature `simulation`.
    pub fn hold(self, rule: Rule) -> bool {
        self.off & 1 << rule as u64 == 0
    }
}
