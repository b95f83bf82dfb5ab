//! Letting go of a collection or of an index, for good.
//!
//! ```text
//!   0  a collection: its tag is written down, so that what is gone from the catalogue is not taken for lost
//!   1  the catalogue forgets it         from here on it is gone, and its name is free
//!   2  its roots go                     who has it open is told, when copies are old
//!   3  an index: each leaf forgets it   records bring it no more entries
//!   4  garbage collection               the other pages, and what was cut between 1 and 3
//! ```
//!
//! Garbage collection takes no page of a tag that is neither in the catalogue nor written down here: an entry of the
//! catalogue that is lost may be restored, and with it all that it led to. Who creates a collection takes away what was
//! written down for its name.
//!
//! Names of roots are random and used once: a tree whose root the catalogue, read now, does not name, and which
//! somebody knows of, is gone for good. What waits in the log for it belongs nowhere, and is put aside.
//! Entries of an index for it are nobody's, and are not put. So none of these steps has to wait for anyone, and
//! whoever goes on with what is gone, after any stall, does no harm: he makes pages that nothing leads to, or
//! names on leaves that the next collection of garbage takes out.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    catalog::Collection,
    cloud::{Delete, Put, PutIf},
    error::StoreError,
    names::{APPROVED, CATALOG, DROPPED, PAGES, PROPOSALS},
    page::{Page, PageId},
    retry::Attempts,
    sequence,
    store::Store,
    tag::Tag,
    tree::update::update,
};

/// The object that says that collections of this tag were dropped.
fn dropped(tag: Tag) -> String {
    format!("{DROPPED}{tag}")
}

impl Store {
    /// Drops a collection with its indexes and all of its records: there is no way back. What others commit to
    /// it meanwhile, or have committed and not yet brought to its pages, is dropped with it, or put aside in
    /// quarantine and counted by who drains it; records of other collections in the same transactions are not
    /// touched. A collection that is created under its name later begins empty.
    ///
    /// Its pages, but for the roots, go with garbage collection, and blobs too.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], unless there are pages of it, whose entry in the catalogue was lost: then garbage
    /// collection takes them; [`StoreError::Invalid`] when its transactions are isolated, since what the
    /// sequencer has of it would wait for its pages for ever, or when something waits for its curator; and
    /// whatever the object store says. After any other error call it again: the collection may be gone.
    pub async fn drop_collection(&self, name: &str) -> Result<(), StoreError> {
        let object = format!("{CATALOG}{name}");
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        // What an attempt without an answer was for.
        let mut unclear: Option<Collection> = None;
        let gone = loop {
            let (of, etag) = match (self.find_collection(name).await, unclear.take()) {
                (Err(StoreError::NotFound(_)), Some(before)) => break before,
                // Its entry was lost: then this says that nobody will restore it.
                (Err(StoreError::NotFound(_)), None) if self.give_up(name).await? => return Ok(()),
                // It went, and there is another one by now.
                (Ok((of, _)), Some(before)) if of.root != before.root => break before,
                (found, _) => found?,
            };
            self.check_droppable(&of).await?;
            if self.database().has_tags {
                self.declare_dropped(Tag::of_page(of.root)).await?;
            }
            match self.cloud.objects.delete(&object, Some(&etag)).await {
                Delete::Gone => break of,
                Delete::Refused | Delete::Conflict => attempts.after_loss(&object).await?,
                Delete::Failed(fault) => attempts.after(fault).await?,
                Delete::Unknown(fault) => {
                    unclear = Some(of);
                    attempts.after(fault).await?;
                }
            }
        };
        // The records before their indexes: no record comes to a leaf whose index cannot be told to be gone.
        let mut roots = vec![gone.root];
        roots.extend(gone.indexes.iter().map(|index| index.root));
        self.let_go_roots(&roots).await
    }

    /// Writes down that what has this tag was dropped. Whether it was not written down before.
    async fn declare_dropped(&self, tag: Tag) -> Result<bool, StoreError> {
        let object = dropped(tag);
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            let bytes = Bytes::from_static(b"dropped");
            match self.cloud.objects.put(&object, bytes, PutIf::Absent).await {
                Put::Stored(_) => return Ok(true),
                Put::Refused => return Ok(false),
                Put::Conflict | Put::Missing => attempts.after_loss(&object).await?,
                Put::Unknown(fault) | Put::Failed(fault) => attempts.after(fault).await?,
            }
        }
    }

    /// The same for all that ever had this name, of which no entry is there, if there are pages of it. Whether there
    /// are, and it was not written down before.
    async fn give_up(&self, name: &str) -> Result<bool, StoreError> {
        let mut is_news = false;
        if !self.database().has_tags {
            return Ok(is_news);
        }
        for is_curated in [false, true] {
            let tag = Tag::of(name, is_curated);
            if !self.list_after(&tag.pages(), None).await?.names.is_empty() {
                is_news |= self.declare_dropped(tag).await?;
            }
        }
        Ok(is_news)
    }

    /// Takes away what was written down of a collection that is there again. Where that fails, the next one of its
    /// name is dropped as if its entry had never been lost: no more than that.
    pub(crate) async fn forget_dropped(&self, tag: Tag) {
        let _ = self.let_go(&dropped(tag)).await;
    }

    /// Of some pages that no walk has met, those of collections that the catalogue does not name and that nobody
    /// dropped: by tags, one of each. `trees` are all that it names, read after the pages were listed.
    pub(crate) async fn lost_collections(
        &self,
        unmet: impl Iterator<Item = PageId>,
        trees: impl Iterator<Item = PageId>,
    ) -> Result<BTreeMap<Tag, PageId>, StoreError> {
        let mut lost = BTreeMap::new();
        if !self.database().has_tags {
            return Ok(lost);
        }
        let known: BTreeSet<Tag> = trees.map(Tag::of_page).collect();
        for page in unmet {
            let tag = Tag::of_page(page);
            if !known.contains(&tag) {
                lost.entry(tag).or_insert(page);
            }
        }
        if !lost.is_empty() {
            let parse = |name: &str| Tag::parse(name.strip_prefix(DROPPED)?);
            self.each_name(DROPPED, |name| {
                if let Some(tag) = parse(&name) {
                    lost.remove(&tag);
                }
            })
            .await?;
        }
        Ok(lost)
    }

    async fn check_droppable(&self, of: &Collection) -> Result<(), StoreError> {
        if let Some(isolation) = of.isolation {
            return Err(StoreError::Invalid(format!(
                "collection {} was created for level {}, and cannot be dropped: delete its records",
                of.name,
                isolation.name()
            )));
        }
        if !of.is_curated() {
            return Ok(());
        }
        let tag = Tag::of_page(of.root);
        for prefix in [PROPOSALS, APPROVED] {
            if !self.list_after(&format!("{prefix}{tag}/"), None).await?.names.is_empty() {
                return Err(StoreError::Invalid(format!(
                    "something waits for the curator of collection {}: approve it, or reject it, before it is \
                     dropped",
                    of.name
                )));
            }
        }
        Ok(())
    }

    /// Drops an index: there is no way back but to create it again. Whoever has probed it before is told at the
    /// latest when copies of its pages are as old as [`Settings::ttl`](crate::Settings); until then it may miss
    /// what is written meanwhile, as any copy of that age does.
    ///
    /// Puts each leaf of the collection again, without it; of one that was created for isolation it is taken out of
    /// the sequencer instead. If that is cut, garbage collection goes on with it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], and whatever the object store says. After any other error call it again, or
    /// collect garbage: the index may be gone.
    pub async fn drop_index(&self, name: &str, index: &str) -> Result<(), StoreError> {
        let of = self.peek_collection(name).await?;
        let there = of.indexes.iter().find(|there| there.name == index);
        let not_found = || StoreError::NotFound(format!("index {index} of {name}"));
        let root = there.ok_or_else(not_found)?.root;
        self.change_collection(name, |collection| {
            let had = collection.indexes.len();
            collection.indexes.retain(|there| there.root != root);
            Ok(collection.indexes.len() < had)
        })
        .await?;
        if of.isolation.is_some() {
            // From here on nobody commits entries of it; what is committed comes to its pages before they go.
            sequence::forget(self, &[root]).await?;
            // What cannot be brought there, since a page of it is damaged, is put aside, and then into quarantine.
            match sequence::apply(self).await {
                Err(error) if error.is_passing() => return Err(error),
                _ => {}
            }
            return self.let_go_roots(&[root]).await;
        }
        self.let_go_roots(&[root]).await?;
        let mut next = Some(Bytes::new());
        while let Some(key) = next {
            let mut forget = |page: &mut Page| page.forget_followers(|of| of == root);
            let leaf = update(&self.pages, of.root, 0, &key, &mut forget).await?;
            next = leaf.ok_or(StoreError::Tree { page: of.root, what: "has no leaves" })?.high;
        }
        Ok(())
    }

    /// Deletes the roots of trees that the catalogue does not name any more, and forgets all copies of pages.
    async fn let_go_roots(&self, roots: &[PageId]) -> Result<(), StoreError> {
        for root in roots {
            self.let_go(&root.object()).await?;
        }
        self.pages.expire_all();
        Ok(())
    }

    /// Whether `error`, which somebody met in this tree, is of one that is gone for good: nothing names it any
    /// more, and nothing ever will. Its root is not there; or it is there still, or again, and other pages went
    /// before it.
    pub(crate) async fn is_dropped(
        &self,
        root: PageId,
        error: &StoreError,
    ) -> Result<bool, StoreError> {
        match error {
            StoreError::Lost { object } if *object == root.object() => {
                Ok(!self.has_tree(root).await?)
            }
            StoreError::Lost { object } | StoreError::Damaged { object, .. }
                if !object.starts_with(PAGES) =>
            {
                Ok(false)
            }
            StoreError::Lost { .. } | StoreError::Damaged { .. } | StoreError::Tree { .. } => {
                match self.has_tree(root).await {
                    // Whoever may not read the catalogue, or not all of it, is told what he met.
                    Err(error) if !error.is_passing() => Ok(false),
                    is_there => is_there.map(|is_there| !is_there),
                }
            }
            _ => Ok(false),
        }
    }
}
