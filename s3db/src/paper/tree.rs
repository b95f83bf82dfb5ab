//! B-trees of 2008: inserts and deletes go to the PU queue of the tree, and whoever checkpoints it splits
//! its leaves.
//!
//! ```text
//!   insert, delete --> PU(tree) --5.2, under LOCK(tree)--> leaves
//!   update         --> PU(leaf) --5.1, under LOCK(leaf)--> the same leaves          W3
//! ```
//!
//! Splits are those of section 2.3 of the paper: the queues of the new page, the new page, the old one,
//! and some time later the parent. All puts are without a condition. An empty leaf stays what it is.

use bytes::Bytes;

use super::{
    Change, ChangeKind, PaperClient, Variant, accepted, create_page, put_on as apply, stored,
};
use crate::{
    blob::Value,
    cloud::{Cloud, Message, PutIf, QueueSettings, ToSend},
    error::StoreError,
    log::{Entry, Transaction, transaction},
    page::{Page, PageId},
    record::{Key, Payload},
    stamp::Stamp,
    tree::split::split,
};

/// Pages that one way down may meet.
const HOPS_MAX: u32 = 1000;

/// The PU queue of a tree.
pub(super) fn pu(root: PageId) -> String {
    format!("pu-tree-{root}")
}

fn lock_queue(root: PageId) -> String {
    format!("lock-tree-{root}")
}

/// Creates a tree, whose root is `page`, with its queues and its token.
///
/// # Errors
/// Whatever the services say.
pub async fn create_tree(cloud: &Cloud, page: &Page) -> Result<(), StoreError> {
    let settings =
        QueueSettings { fifo: false, retention: std::time::Duration::from_secs(14 * 24 * 3600) };
    for queue in [pu(page.id), lock_queue(page.id)] {
        let created = cloud.queue.create(&queue, settings).await;
        created.map_err(|source| StoreError::Cloud { attempts: 1, source })?;
    }
    let token = [ToSend { body: Bytes::from_static(b"token"), ..ToSend::default() }];
    cloud.queue.send(&lock_queue(page.id), &token).await.into_iter().try_for_each(accepted)?;
    create_page(cloud, page).await
}

/// A record that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// The data page that owns its key.
    pub page: PageId,
    /// What it holds, if there is such a record.
    pub payload: Option<Payload>,
}

impl Looked {
    /// A new payload for the record that was looked for, or a first one.
    pub fn put(&self, tree: PageId, key: Key, payload: Payload) -> Change {
        let kind = match self.payload {
            Some(_) => ChangeKind::Update(payload),
            None => ChangeKind::Insert(payload),
        };
        Change { tree, page: self.page, key, kind }
    }

    /// The record is gone.
    pub fn delete(&self, tree: PageId, key: Key) -> Change {
        Change { tree, page: self.page, key, kind: ChangeKind::Delete }
    }
}

impl PaperClient {
    /// Looks for a record, in pages as old as the cache allows.
    ///
    /// # Errors
    /// Whatever the services say, and that a page of the tree is not there.
    pub async fn look(&self, root: PageId, key: &Key) -> Result<Looked, StoreError> {
        let leaf = self.descend(&self.front, root, key.as_bytes(), 0, false).await?;
        let slot = leaf.slot(key.as_bytes());
        let payload = match slot.and_then(|slot| slot.payload.as_ref()).and_then(Value::here) {
            Some(bytes) => Some(Payload::new(bytes)?),
            None => None,
        };
        Ok(Looked { page: leaf.id, payload })
    }

    /// The page of `level` that owns `key`; as the object store has it if `now`.
    async fn descend(
        &self,
        cloud: &Cloud,
        root: PageId,
        key: &[u8],
        level: u8,
        now: bool,
    ) -> Result<Page, StoreError> {
        let mut id = root;
        for _ in 0..HOPS_MAX {
            let mut page = self.fetch(cloud, id, false).await?;
            if now && page.level == level {
                page = self.fetch(cloud, id, true).await?;
            }
            let next = match page.right {
                Some(right) if !page.ends_after(key) => Some(right),
                _ if page.level > level => page.child(key),
                _ => return Ok(page),
            };
            id = next.ok_or(StoreError::Tree { page: id, what: "leads nowhere" })?;
        }
        Err(StoreError::Tree { page: root, what: "a way down does not end" })
    }

    /// Section 5.2: from the PU queue of a tree to its leaves. Returns how many records it applied.
    ///
    /// # Errors
    /// Whatever the services say.
    pub async fn checkpoint_tree(&self, root: PageId) -> Result<usize, StoreError> {
        let (timeout, padding) = (self.settings.lock_timeout, self.settings.padding);
        // 1
        let began_us = self.back.clock.monotonic_us();
        if self.receive(&lock_queue(root), timeout).await?.is_empty() {
            return Ok(0);
        }
        let left = |padding: std::time::Duration| {
            let used_us = self.back.clock.monotonic_us() - began_us;
            used_us + (padding.as_micros() as u64) < timeout.as_micros() as u64
        };
        // 2, hidden for as long as the token, as in 5.1.
        let mut records: Vec<(Bytes, Entry, Message)> = Vec::new();
        for message in self.receive(&pu(root), timeout).await? {
            if let Ok(transaction::Body::Here(part)) = Transaction::decode(&message.body) {
                let entries = part.entries.into_iter();
                records.extend(entries.map(|entry| (entry.leaf_key(), entry, message.clone())));
            }
        }
        // 3, and by counters within a key from Monotonicity on (8.2).
        let is_ordered = self.settings.variant >= Variant::Monotonicity;
        records.sort_by(|(a, one, _), (b, other, _)| {
            let counter = |entry: &Entry| {
                let Stamp { clock, client, sequence } = entry.record.stamp;
                is_ordered.then_some((client, sequence, clock))
            };
            a.cmp(b).then_with(|| counter(one).cmp(&counter(other)))
        });
        let (mut rest, mut applied) = (&records[..], 0);
        while let Some((key, ..)) = rest.first() {
            // 4
            let mut leaf = self.descend(&self.back, root, key, 0, true).await?;
            // 5
            let count = rest.iter().take_while(|(key, ..)| leaf.ends_after(key)).count().max(1);
            rest[..count].iter().for_each(|(_, entry, _)| apply(&mut leaf, entry));
            // 6
            if !left(padding) {
                return Ok(applied);
            }
            self.put_or_split(leaf, Some(root)).await?;
            applied += count;
            // 7
            if !left(std::time::Duration::ZERO) {
                return Ok(applied);
            }
            let done = rest[..count].iter().map(|(.., message)| message.clone()).collect();
            self.delete(&pu(root), done).await?;
            // 8
            rest = &rest[count..];
        }
        Ok(applied)
    }

    /// Puts a page, in pieces if it has grown too large. `root` is that of its tree, if it is known: then
    /// the parent learns of the pieces.
    pub(super) async fn put_or_split(
        &self,
        page: Page,
        root: Option<PageId>,
    ) -> Result<(), StoreError> {
        let fresh = || PageId(self.back.chance.next_u128());
        let is_root = root == Some(page.id);
        // Whether a page without a tree is a root nobody knows: it keeps its size.
        let most = if root.is_some() { self.settings.page_bytes_max } else { usize::MAX };
        let Some(pieces) = split(&page, is_root, most, fresh) else {
            return self.put(page).await;
        };
        let mut links = Vec::new();
        for mut new in pieces.created {
            new.checkpoint_ms = self.back.clock.wall_us() / 1000;
            links.push((new.low.clone(), new.id));
            create_page(&self.back, &new).await?;
        }
        let level = page.level;
        self.put(pieces.head).await?;
        if let (Some(root), false) = (root, is_root) {
            for (low, id) in links {
                let mut parent = self.descend(&self.back, root, &low, level + 1, true).await?;
                if parent.level == level + 1 && parent.link(&low, id) {
                    Box::pin(self.put_or_split(parent, Some(root))).await?;
                }
            }
        }
        Ok(())
    }

    /// Puts a page, whatever is there.
    async fn put(&self, mut page: Page) -> Result<(), StoreError> {
        page.version += 1;
        page.checkpoint_ms = self.back.clock.wall_us() / 1000;
        let at_us = self.back.clock.monotonic_us();
        let object = page.id.object();
        let put = self.back.objects.put(&object, page.encode(), PutIf::Always).await;
        self.keep(page, stored(put)?, at_us);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{
        cloud::model::{Executor, Faults, Latency, Process, World},
        paper::PaperSettings,
    };

    /// Inserts, deletes and updates reach their leaves, through splits of leaves and of the root.
    #[test]
    fn a_tree_grows_and_holds_what_was_committed() {
        let world = World::new(1, Faults::NONE, Latency::ROUGH);
        world.receive_many();
        let cloud = world.cloud(Process(0));
        let is_done: Arc<Mutex<bool>> = Arc::default();
        let done = is_done.clone();
        world.time.spawn(Process(0), async move {
            let root = PageId(7);
            create_tree(&cloud, &Page::root(root)).await.unwrap();
            let settings = PaperSettings {
                page_bytes_max: 600,
                ttl: std::time::Duration::ZERO,
                ..PaperSettings::new(Variant::Basic)
            };
            let client = PaperClient::new(settings, 1, cloud.clone(), cloud.clone()).await.unwrap();
            let key = |n: u32| Key::new(format!("{n:04}")).unwrap();
            let payload = |text: &str| Payload::new(text).unwrap();
            let settle = async || {
                for _ in 0..60 {
                    client.checkpoint_tree(root).await.unwrap();
                    cloud.clock.sleep(std::time::Duration::from_secs(3)).await;
                }
            };
            for n in 0..100 {
                let there = client.look(root, &key(n)).await.unwrap();
                assert_eq!(there.payload, None);
                client.commit_all(vec![there.put(root, key(n), payload("one"))]).await.unwrap();
            }
            settle().await;
            for n in 0..100 {
                let there = client.look(root, &key(n)).await.unwrap();
                assert_eq!(there.payload, Some(payload("one")), "{n}");
                let change = match n % 3 {
                    0 => there.delete(root, key(n)),
                    _ => there.put(root, key(n), payload("two")),
                };
                client.commit_all(vec![change]).await.unwrap();
                if !n.is_multiple_of(3) {
                    client.checkpoint(there.page).await.unwrap();
                    cloud.clock.sleep(std::time::Duration::from_secs(3)).await;
                }
            }
            settle().await;
            for n in 0..100 {
                let there = client.look(root, &key(n)).await.unwrap();
                let expected = (!n.is_multiple_of(3)).then(|| payload("two"));
                assert_eq!(there.payload, expected, "{n}");
            }
            let top = client.read(root).await.unwrap();
            assert!(top.level >= 1 && top.links().len() > 2, "{top:?}");
            *done.lock().unwrap() = true;
        });
        Executor::new(world.time.clone(), 1).run(u64::MAX, 10_000_000);
        assert!(*is_done.lock().unwrap());
    }
}
