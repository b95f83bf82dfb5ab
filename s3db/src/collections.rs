//! Collections and their indexes: created, found, changed.
//!
//! The catalogue names a collection before its root is put, so that no root is ever an orphan; whoever finds one
//! without a root puts it, and says so before anything is committed that an empty root would hide.

use crate::{
    catalog::{self, Collection, Index, Isolation},
    cloud::{ETag, Fault, PutIf},
    error::StoreError,
    fail_point::{FailPoint, reached},
    names::CATALOG,
    page::{INDEXES_MAX, Page, PageId},
    retry::Attempts,
    search_by::SearchBy,
    sequence,
    settings::Rule,
    store::Store,
    tag::Tag,
    tree::{Freshness, Nodes},
};

/// Entries of the catalogue that are looked at for one that opens.
const KEYS_CHECKED_BY: usize = 3;

impl Store {
    /// Creates a collection, or finds that it is there: both are success.
    ///
    /// # Errors
    /// A name that is none, keys that do not open what else the catalogue of an encrypted database has, and
    /// whatever the object store says.
    pub async fn create_collection(&self, name: &str) -> Result<Collection, StoreError> {
        self.create_collection_as(name, false, None).await
    }

    /// The same, of a curated collection: changes of it are proposed by whoever commits them, and nobody sees
    /// them before a curator approves ([`Store::approve`]).
    ///
    /// # Errors
    /// As [`Store::create_collection`]; [`StoreError::Exists`] when it is there and not curated, and
    /// [`StoreError::Invalid`] when the database was made before there were any.
    pub async fn create_curated(&self, name: &str) -> Result<Collection, StoreError> {
        if !self.database().has_tags {
            let what =
                "this database was made before there were curated collections: make a new one";
            return Err(StoreError::Invalid(what.into()));
        }
        let of = self.create_collection_as(name, true, None).await?;
        match of.is_curated() {
            true => Ok(of),
            false => Err(StoreError::Exists(format!("collection {name}, which is not curated,"))),
        }
    }

    /// The same, of a collection whose transactions are isolated from each other, if that is given: they
    /// are at that level, or a higher one.
    ///
    /// # Errors
    /// As [`Store::create_collection`]; [`StoreError::Exists`] when there is one that was created for
    /// something else, and, for an isolated one, when the name has a list of writers
    /// ([`Store::create_for_writers`]), of one that was dropped.
    pub async fn create_collection_for(
        &self,
        name: &str,
        isolation: Option<Isolation>,
    ) -> Result<Collection, StoreError> {
        if isolation.is_some() {
            catalog::check_name(name)?;
            // It stays when a collection is dropped, and is for what comes by the log: nobody who commits
            // by the sequencer asks for it.
            if self.has_list_of_writers(name).await? {
                return Err(StoreError::Exists(format!(
                    "a list of the clients that alone may write to {name}, which isolated transactions do not \
                     heed,"
                )));
            }
            sequence::plant(self).await?;
        }
        self.create_collection_as(name, false, isolation).await
    }

    async fn create_collection_as(
        &self,
        name: &str,
        is_curated: bool,
        isolation: Option<Isolation>,
    ) -> Result<Collection, StoreError> {
        if self.database().is_encrypted {
            self.check_keys(name).await?;
        }
        let (mut root, indexes) = (self.pages.fresh_id(), Vec::new());
        if self.database().has_tags {
            root = Tag::of(name, is_curated).page(root);
        }
        let name_owned = name.to_owned();
        let collection = Collection { name: name_owned, root, indexes, has_root: false, isolation };
        let (cloud, settings) = (&self.cloud, &self.settings);
        let is_new = catalog::write_collection(cloud, settings, &collection, PutIf::Absent).await?;
        if is_new && self.database().has_tags {
            self.forget_dropped(Tag::of_page(root)).await;
        }
        reached(&self.cloud, FailPoint::Named).await;
        let there = self.collection(name).await?;
        if there.isolation != isolation {
            let level = there.isolation.map_or("levels without isolation", Isolation::name);
            return Err(StoreError::Exists(format!("collection {name}, for {level},")));
        }
        Ok(there)
    }

    /// Whether other entries of the catalogue open. What is created under a key that is not the database's opens
    /// to nobody else: the first thing that a client with a wrong key does may be this.
    async fn check_keys(&self, name: &str) -> Result<(), StoreError> {
        let mut refused = None;
        let listed = self.list_after(CATALOG, None).await?.names;
        let names = listed.iter().filter_map(|object| object.strip_prefix(CATALOG));
        for other in names.filter(|other| *other != name).take(KEYS_CHECKED_BY) {
            match catalog::read_collection(&self.cloud, &self.settings, other).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => {}
                Err(error) if error.is_of_another_key() => refused = Some(error),
                // It says nothing of keys.
                Err(StoreError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// A collection as the catalogue has it, whether its roots are there or not.
    pub(crate) async fn peek_collection(&self, name: &str) -> Result<Collection, StoreError> {
        Ok(self.find_collection(name).await?.0)
    }

    pub(crate) async fn find_collection(
        &self,
        name: &str,
    ) -> Result<(Collection, ETag), StoreError> {
        let found = catalog::read_collection(&self.cloud, &self.settings, name).await?;
        let found = found.ok_or_else(|| StoreError::NotFound(format!("collection {name}")))?;
        match found.0.foreign_page().filter(|_| self.database().has_tags) {
            // Whoever may write this entry may not write, or have others write, what is not of its name.
            Some(page) => Err(StoreError::Misled { object: format!("{CATALOG}{name}"), page }),
            None => Ok(found),
        }
    }

    /// Finds a collection.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also when it is dropped meanwhile; [`StoreError::Lost`] when its root was put
    /// once and is not there; and whatever the object store says.
    pub async fn collection(&self, name: &str) -> Result<Collection, StoreError> {
        let mut collection = self.peek_collection(name).await?;
        if collection.has_root {
            if self.pages.node(collection.root, Freshness::Cached).await?.is_none() {
                return Err(StoreError::Lost { object: collection.root.object() });
            }
        } else {
            let plants_first = self.settings.rules.hold(Rule::PlantFirst);
            if !plants_first {
                self.declare_root(name, collection.root).await?;
            }
            self.plant(collection.root, collection.isolation.is_some()).await?;
            // Before anything is committed that an empty root in its place would hide.
            if plants_first {
                self.declare_root(name, collection.root).await?;
            }
            collection.has_root = true;
        }
        for index in collection.indexes.iter().filter(|index| !index.is_ready) {
            // That of one that is ready was there. If it is not, it is lost, and an empty one in its
            // place would say that no record is to be found.
            self.plant(index.root, collection.isolation.is_some()).await?;
        }
        Ok(collection)
    }

    /// Makes sure that a root is there. The catalogue names it first, so that no root is ever an
    /// orphan: whoever created the collection may have stopped in between.
    async fn plant(&self, root: PageId, has_versions: bool) -> Result<(), StoreError> {
        if self.pages.node(root, Freshness::Cached).await?.is_none() {
            let mut page = Page::root(root);
            if has_versions {
                sequence::make_versioned(&mut page);
            }
            self.pages.create(page).await?;
            reached(&self.cloud, FailPoint::Planted).await;
        }
        Ok(())
    }

    /// Writes down that the root of a collection was put, if it is that one still. Another one of its name has
    /// a root of its own, which nobody may have put yet.
    async fn declare_root(&self, name: &str, root: PageId) -> Result<(), StoreError> {
        let declare = |of: &mut Collection| match of.root == root {
            true => Ok(!std::mem::replace(&mut of.has_root, true)),
            false => Err(StoreError::NotFound(format!("collection {name}: it was dropped"))),
        };
        match self.change_collection(name, declare).await {
            // Who may only read leaves that to those who write.
            Err(
                StoreError::Denied { .. } | StoreError::Cloud { source: Fault::Denied { .. }, .. },
            ) => Ok(()),
            declared => declared,
        }
    }

    /// Whether the catalogue has a collection or an index with this root.
    pub(crate) async fn has_tree(&self, root: PageId) -> Result<bool, StoreError> {
        for name in self.collections().await? {
            let of = match self.peek_collection(&name).await {
                // Dropped since it was listed.
                Err(StoreError::NotFound(_)) => continue,
                of => of?,
            };
            if of.root == root || of.indexes.iter().any(|index| index.root == root) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Names of all collections.
    ///
    /// # Errors
    /// Whatever the object store says.
    pub async fn collections(&self) -> Result<Vec<String>, StoreError> {
        let names = self.list(CATALOG).await?;
        Ok(names.iter().filter_map(|name| Some(name.strip_prefix(CATALOG)?.to_owned())).collect())
    }

    /// Adds a secondary index to a collection, or finds that it is there. It starts empty and not
    /// ready: [`Store::build_index`] makes the pages of the collection say that it follows them.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Exists`] when there is another one of this name, a
    /// rule that nobody could read again, too many indexes, and whatever the object store says.
    pub async fn create_index(
        &self,
        name: &str,
        index: &str,
        by: &SearchBy,
    ) -> Result<Collection, StoreError> {
        catalog::check_name(index)?;
        by.check()?;
        let name_of_root = self.pages.fresh_id();
        let has_tags = self.database().has_tags;
        self.change_collection(name, |collection| {
            let root = match has_tags {
                true => Tag::of_page(collection.root).page(name_of_root),
                false => name_of_root,
            };
            if let Some(there) = collection.indexes.iter().find(|there| there.name == index) {
                return match &there.by {
                    Some(same) if same == by => Ok(false),
                    Some(other) => Err(StoreError::Exists(format!("index {index} by {other}"))),
                    None => Err(StoreError::Exists(format!("index {index} without a rule"))),
                };
            }
            if collection.indexes.len() == INDEXES_MAX {
                let what =
                    format!("{name} has {INDEXES_MAX} indexes, which is the most there can be");
                return Err(StoreError::Invalid(what));
            }
            let (name, by) = (index.to_owned(), Some(by.clone()));
            collection.indexes.push(Index { name, root, is_ready: false, by });
            Ok(true)
        })
        .await?;
        self.collection(name).await
    }

    /// Declares that an index holds all records: it can be probed.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Invalid`] when the collection was created for isolation, whose indexes
    /// [`Store::build_index`] fills; and whatever the object store says.
    pub async fn finish_index(&self, name: &str, index: &str) -> Result<Collection, StoreError> {
        // Makes sure that its root is there.
        let of = self.collection(name).await?;
        if of.isolation.is_some() {
            let what =
                "an index of a collection that was created for isolation is filled by building it";
            return Err(StoreError::Invalid(what.to_owned()));
        }
        let there = of.indexes.iter().find(|there| there.name == index);
        let there =
            there.ok_or_else(|| StoreError::NotFound(format!("index {index} of {name}")))?;
        self.declare_ready(name, there).await?;
        self.collection(name).await
    }

    /// [`Store::finish_index`] for an index whose root is there: that very one. Another may have its name by
    /// now, which nobody filled.
    pub(crate) async fn declare_ready(&self, name: &str, index: &Index) -> Result<(), StoreError> {
        self.change_collection(name, |collection| {
            let there = collection.indexes.iter_mut().find(|there| there.root == index.root);
            let gone = || StoreError::NotFound(format!("index {} of {name}", index.name));
            Ok(!std::mem::replace(&mut there.ok_or_else(gone)?.is_ready, true))
        })
        .await
    }

    pub(crate) async fn change_collection(
        &self,
        name: &str,
        change: impl Fn(&mut Collection) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut attempts = Attempts::new(&self.cloud, &self.settings);
        loop {
            let (mut collection, etag) = self.find_collection(name).await?;
            if !change(&mut collection)? {
                return Ok(());
            }
            let condition = PutIf::Matches(etag);
            if catalog::write_collection(&self.cloud, &self.settings, &collection, condition)
                .await?
            {
                return Ok(());
            }
            attempts.after_loss(name).await?;
        }
    }
}
