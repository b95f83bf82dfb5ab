//! The directory form: one storage per member (FORMAT.md C2).

use std::{collections::HashMap, io};

use super::{Member, Members};
use crate::{error::Error, storage::Storage};

/// Opens members one at a time: `open` gives the storage of a name, or `None` if there is none.
pub(crate) struct Opener<S, F> {
    members: Members<S>,
    open: F,
}

impl<S: Storage, F: FnMut(&str) -> io::Result<Option<S>>> Opener<S, F> {
    pub(crate) fn new(open: F) -> Opener<S, F> {
        Opener { members: Members { stores: Vec::new(), by_name: HashMap::new() }, open }
    }

    /// Opens the member `name`. Returns whether there is one.
    pub(crate) fn add(&mut self, name: &str) -> Result<bool, Error> {
        // None of the members that are there is this one, and where it is `open` alone knows.
        let opened = (self.open)(name).map_err(|source| Error::Storage {
            object: "database".to_owned(),
            member: name.to_owned(),
            range: 0..0,
            source,
        })?;
        let Some(storage) = opened else { return Ok(false) };
        let store = self.members.stores.len() as u32;
        let member = Member { name: name.into(), store, start: 0, len: storage.len() };
        self.members.stores.push(storage);
        self.members.by_name.insert(name.into(), member);
        Ok(true)
    }

    pub(crate) fn members(&self) -> &Members<S> {
        &self.members
    }

    pub(crate) fn finish(self) -> Members<S> {
        self.members
    }
}
