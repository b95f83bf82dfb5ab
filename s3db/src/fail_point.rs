//! Places where a crash can cut a protocol, by name.
//!
//! A crash at any call of a service is chance. What lies *between* two steps that belong together is
//! named here, as in PROTOCOL.md, so that a run can crash exactly there, and tell that it did.

use crate::cloud::Cloud;

/// A place between two steps of a protocol: what is done when it is reached, and what is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FailPoint {
    /// 1.2: an epoch is claimed, no earlier one is ended.
    Claimed,
    /// 1.2: one of the older streams is fenced.
    Fencing,
    /// 1.3: the changes have their stamps.
    Stamped,
    /// 1.10: the blobs of a transaction are put, which is not committed.
    PartsPut,
    /// 1.3: the object of a transaction that is too large for a message is put, no message names it.
    LargePut,
    /// 1.3: the transaction is committed. Nobody was told.
    Appended,
    /// 1.4: the records are in their shards, the messages of the whole transactions are there, too.
    Forwarded,
    /// 1.5: a batch is drained.
    Drained,
    /// 1.5: what cannot be decoded is in quarantine.
    PutAside,
    /// 1.8: entries of an index are put, the leaf that they follow is not.
    Implied,
    /// 1.5: one leaf of a batch is put.
    Put,
    /// 1.5, s3-log: one object of those that a batch lets go of is deleted.
    Freed,
    /// 1.6: the right pages of a split are there, and nothing leads to them.
    Created,
    /// 1.6: the page that was split is put, and its parent does not know.
    Split,
    /// 1.6: a page of a split that was refused is taken back.
    Discarded,
    /// 1.6: the catalogue names a collection, its root is not put.
    Named,
    /// 1.6: a root is put, and the catalogue does not say so.
    Planted,
    /// 1.8, and 1.14 of the numbers: a leaf names an index, which has no entries of what was there before.
    Followed,
    /// 1.8, 1.14: an index has all its entries, and neither catalogue nor numbers say so.
    Filled,
    /// 1.5: a log object is emptied, tombstones as old are there.
    Emptied,
    /// Garbage: everything is swept and settled.
    Settled,
    /// Garbage: an empty leaf died.
    Buried,
    /// Garbage: the right neighbour of a dead leaf says that it owns its keys.
    Inherited,
    /// Garbage: the parent of a dead leaf forgot it, its left neighbour leads to it.
    Forgotten,
    /// Garbage: the page is put again that a candidate was split from.
    Touched,
    /// Garbage: one page is deleted.
    Deleted,
    /// 1.10: a blob that nobody names is marked.
    Marked,
    /// 1.10: its parts are deleted, its mark is there.
    Unparted,
    /// Garbage: a client is forgotten, its log objects are there.
    Retired,
    /// 1.12: a proposal is approved, and still waits.
    Approved,
    /// 1.12: it waits no more, and is on no page.
    Decided,
    /// 1.14: what a large transaction writes is put, no commit names it.
    Spilled,
    /// 1.14: transactions have their numbers. Nobody was told.
    Sequenced,
    /// 1.14: one leaf has the versions of the window.
    Versioned,
    /// 1.14: the sequencer says that commits are on their pages.
    Advanced,
}

impl FailPoint {
    /// All of them.
    pub const ALL: [FailPoint; 35] = [
        FailPoint::Claimed,
        FailPoint::Fencing,
        FailPoint::Stamped,
        FailPoint::PartsPut,
        FailPoint::LargePut,
        FailPoint::Appended,
        FailPoint::Forwarded,
        FailPoint::Drained,
        FailPoint::PutAside,
        FailPoint::Implied,
        FailPoint::Put,
        FailPoint::Freed,
        FailPoint::Created,
        FailPoint::Split,
        FailPoint::Discarded,
        FailPoint::Named,
        FailPoint::Planted,
        FailPoint::Followed,
        FailPoint::Filled,
        FailPoint::Emptied,
        FailPoint::Settled,
        FailPoint::Buried,
        FailPoint::Inherited,
        FailPoint::Forgotten,
        FailPoint::Touched,
        FailPoint::Deleted,
        FailPoint::Marked,
        FailPoint::Unparted,
        FailPoint::Retired,
        FailPoint::Approved,
        FailPoint::Decided,
        FailPoint::Spilled,
        FailPoint::Sequenced,
        FailPoint::Versioned,
        FailPoint::Advanced,
    ];

    /// As PROTOCOL.md and traces have it.
    pub fn name(self) -> &'static str {
        match self {
            FailPoint::Claimed => "claimed",
            FailPoint::Fencing => "fencing",
            FailPoint::Stamped => "stamped",
            FailPoint::PartsPut => "parts-put",
            FailPoint::LargePut => "large-put",
            FailPoint::Appended => "appended",
            FailPoint::Forwarded => "forwarded",
            FailPoint::Drained => "drained",
            FailPoint::PutAside => "put-aside",
            FailPoint::Implied => "implied",
            FailPoint::Put => "put",
            FailPoint::Freed => "freed",
            FailPoint::Created => "created",
            FailPoint::Split => "split",
            FailPoint::Discarded => "discarded",
            FailPoint::Named => "named",
            FailPoint::Planted => "planted",
            FailPoint::Followed => "followed",
            FailPoint::Filled => "filled",
            FailPoint::Emptied => "emptied",
            FailPoint::Settled => "settled",
            FailPoint::Buried => "buried",
            FailPoint::Inherited => "inherited",
            FailPoint::Forgotten => "forgotten",
            FailPoint::Touched => "touched",
            FailPoint::Deleted => "deleted",
            FailPoint::Marked => "marked",
            FailPoint::Unparted => "unparted",
            FailPoint::Retired => "retired",
            FailPoint::Approved => "approved",
            FailPoint::Decided => "decided",
            FailPoint::Spilled => "spilled",
            FailPoint::Sequenced => "sequenced",
            FailPoint::Versioned => "versioned",
            FailPoint::Advanced => "advanced",
        }
    }

    /// The fail point of this name.
    pub fn named(name: &str) -> Option<FailPoint> {
        FailPoint::ALL.into_iter().find(|point| point.name() == name)
    }
}

/// A protocol has come to `point`. In builds without the feature `simulation` this does nothing.
pub(crate) async fn reached(cloud: &Cloud, point: FailPoint) {
    #[cfg(feature = "simulation")]
    cloud.clock.reached(point).await;
    #[cfg(not(feature = "simulation"))]
    let _ = (cloud, point);
}
