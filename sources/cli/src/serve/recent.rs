//! Things by name that take room, and when each was last used: those that were not for longest leave.

use std::{borrow::Borrow, collections::HashMap, hash::Hash};

/// See the module.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    all: HashMap<K, Entry<V>>,
    bytes: u64,
    clock: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: u64,
    used: u64,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Recent<K, V> {
        Recent { all: HashMap::new(), bytes: 0, clock: 0 }
    }
}

impl<K: Eq + Hash, V> Recent<K, V> {
    /// What all of them take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// What has this name, if anything does.
    pub(super) fn peek<Q: Eq + Hash + ?Sized>(&self, name: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.all.get(name).map(|entry| &entry.value)
    }

    /// The same, which is a use of it.
    pub(super) fn touch<Q: Eq + Hash + ?Sized>(&mut self, name: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.clock += 1;
        let entry = self.all.get_mut(name)?;
        entry.used = self.clock;
        Some(&entry.value)
    }

    /// Takes the place of what had this name.
    pub(super) fn insert(&mut self, name: K, value: V, bytes: u64) {
        self.clock += 1;
        self.bytes += bytes;
        let entry = Entry { value, bytes, used: self.clock };
        if let Some(before) = self.all.insert(name, entry) {
            self.bytes -= before.bytes;
        }
    }

    pub(super) fn remove<Q: Eq + Hash + ?Sized>(&mut self, name: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let entry = self.all.remove(name)?;
        self.bytes -= entry.bytes;
        Some(entry.value)
    }

    /// Those that were not used for longest first, each with what it takes.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = (&K, &V, u64)> {
        let mut all: Vec<_> = self.all.iter().collect();
        all.sort_unstable_by_key(|(_, entry)| entry.used);
        all.into_iter().map(|(name, entry)| (name, &entry.value, entry.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_in_their_order_and_bytes_add_up() {
        let mut recent = Recent::default();
        for (name, bytes) in [("a", 1), ("b", 2), ("c", 4), ("a", 8)] {
            recent.insert(name.to_owned(), name, bytes);
        }
        assert!(recent.touch("b").is_some() && recent.touch("x").is_none());
        assert_eq!(recent.peek("c"), Some(&"c"));
        let order: Vec<_> =
            recent.oldest_first().map(|(name, _, bytes)| (&**name, bytes)).collect();
        assert_eq!(order, [("c", 4), ("a", 8), ("b", 2)]);
        assert_eq!((recent.bytes(), recent.count()), (14, 3));
        assert_eq!((recent.remove("a"), recent.remove("a")), (Some("a"), None));
        assert_eq!((recent.bytes(), recent.count()), (6, 2));
    }
}
