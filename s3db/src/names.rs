//! What lies where: the names of all objects of a database, and what calls on them somebody may make.
//!
//! ```text
//!   database            what all clients agree upon, once for all; the only one that is never sealed
//!   catalog/NAME        a collection: its roots, its indexes
//!   dropped/TAG         that collections of this tag were dropped
//!   clients/CLIENT      the life that writes as this client
//!   page/PAGE           one node of a tree
//!   blob/...            parts of payloads that are too large for a page
//!   log/CLIENT/EPOCH/N  transactions, where objects are the log
//!   spill/...           transactions that are too large for a message, where queues are
//!   sequencer/...       the order of isolated commits, and what they wrote
//!   proposal/...        changes that wait for a curator
//!   approved/...        changes that a curator approved and that are not on their pages
//!   writers/...         which clients may write to a collection
//!   owners              who checkpoints what
//!   quarantine/...      bytes that cannot be decoded
//! ```

/// The object that says what a database is. It is never sealed.
pub(crate) const DATABASE: &str = "database";
/// What the names of all collections' objects start with.
pub(crate) const CATALOG: &str = "catalog/";
/// What the names start with of objects that say that a collection was dropped.
pub(crate) const DROPPED: &str = "dropped/";
/// What the names of all clients' objects start with.
pub(crate) const CLIENTS: &str = "clients/";
/// What the names of all pages' objects start with.
pub const PAGES: &str = "page/";
/// What the names of all objects of blobs start with.
pub const BLOBS: &str = "blob/";
/// What the names of all log objects start with.
pub(crate) const LOG: &str = "log/";
/// What the names start with of objects that hold transactions too large for a message.
pub(crate) const SPILLED: &str = "spill/";
/// Bytes of one part of the name of a spilled transaction: two numbers and what is between them.
const SPILLED_PART_MAX: usize = 40;

/// Whether this can be the name of a spilled transaction. A message that names anything else is nobody's:
/// what it names would be sent on, and deleted.
pub(crate) fn is_spilled(name: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
    let is_part =
        |part: &str| (1..=SPILLED_PART_MAX).contains(&part.len()) && part.bytes().all(is_digit);
    let parts = name.strip_prefix(SPILLED).map(|rest| rest.split('/'));
    parts.is_some_and(|mut parts| parts.clone().count() == 3 && parts.all(is_part))
}

/// What the name of a spilled transaction says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpilledName {
    pub(crate) client: u64,
    pub(crate) epoch: u64,
    pub(crate) number: u64,
    /// Of its first stamp.
    pub(crate) clock: u64,
}

impl std::fmt::Display for SpilledName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SpilledName { client, epoch, number, clock } = self;
        write!(f, "{SPILLED}{client:016x}/{epoch:016x}/{number:016x}-{clock:016x}")
    }
}

/// What such a name says; `None` if nobody wrote it so.
pub(crate) fn parse_spilled(name: &str) -> Option<SpilledName> {
    let mut parts = name.strip_prefix(SPILLED)?.split(['/', '-']);
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let (client, epoch) = (number()?, number()?);
    let found = SpilledName { client, epoch, number: number()?, clock: number()? };
    (found.to_string() == name).then_some(found)
}

/// What the names start with of the order of isolated commits, and of what they wrote.
pub(crate) const SEQUENCER: &str = "sequencer/";
/// What the names start with of changes that wait for a curator.
pub(crate) const PROPOSALS: &str = "proposal/";
/// What the names start with of changes that a curator approved and that are not on their pages.
pub(crate) const APPROVED: &str = "approved/";
/// What the names start with of lists of the clients that may write to a collection.
pub(crate) const WRITERS: &str = "writers/";
/// The object of all claims to checkpoint a part of the log.
pub(crate) const OWNERS: &str = "owners";
/// What the names start with of objects that hold bytes which cannot be decoded.
pub(crate) const QUARANTINE: &str = "quarantine/";

/// The right that lets somebody do something with an object or a queue, for who is told that he may not.
pub(crate) fn right_for(what: &str, action: &str) -> &'static str {
    let reads = action == "get";
    let folders = [
        PAGES, CATALOG, LOG, CLIENTS, BLOBS, PROPOSALS, APPROVED, QUARANTINE, SPILLED, SEQUENCER,
        WRITERS, DROPPED,
    ];
    let found = folders.into_iter().filter_map(|folder| Some((what.rfind(folder)?, folder))).max();
    match found.map(|(_, folder)| folder) {
        Some(PAGES) if reads => "read",
        Some(PAGES) => "keep, or curate",
        Some(BLOBS) if reads => "read --blobs",
        Some(BLOBS) if action == "put" => "write, or propose",
        Some(CATALOG) if reads => "read",
        Some(LOG | SPILLED) if reads || action == "list" => "read --fresh, write, or keep",
        Some(LOG | SPILLED) if action == "put" => "write",
        Some(LOG | SPILLED) => "keep",
        Some(CLIENTS) if action == "list" => "keep",
        Some(CLIENTS) if action != "delete" => "write, or propose",
        Some(PROPOSALS) if action == "put" => "propose",
        Some(PROPOSALS) if action == "delete" => "curate, or keep",
        Some(PROPOSALS) => "curate",
        Some(APPROVED) if action == "put" => "curate",
        Some(APPROVED) => "curate, or keep",
        Some(WRITERS) if reads => "write, keep, or read --fresh",
        Some(QUARANTINE) if action == "put" => "keep",
        Some(SEQUENCER) if reads => "read, of a collection with isolation",
        Some(SEQUENCER) if action == "put" => "write, or keep, of a collection with isolation",
        Some(_) => "of the owner",
        None if what.ends_with(DATABASE) && reads => "read",
        None if what.ends_with(OWNERS) => "keep",
        None => match action {
            "send" | "create" => "write, or keep",
            "receive" => "read --fresh, or keep",
            "acknowledge" | "depth" => "keep",
            _ => "of the owner",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_spilled_transactions_are_read_as_they_are_written() {
        let name = SpilledName { client: 0xabc, epoch: u64::MAX, number: 0, clock: 7 };
        assert_eq!(parse_spilled(&name.to_string()), Some(name));
        assert!(is_spilled(&name.to_string()));
        let other = name.to_string().to_uppercase().replace("SPILL", "spill");
        for other in [&other[..], "spill/7/2/5", "spill/7/2/5-1", "page/1/2/3-4", ""] {
            assert_eq!(parse_spilled(other), None, "{other}");
        }
    }
}
