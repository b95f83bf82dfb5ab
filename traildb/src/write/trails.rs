//! The trails of the events so far, numbered from 0 in the order in which they first occur.

use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;

use crate::item::Uuid;

/// UUIDs looked at together: see `values`.
const GROUP: usize = 16;
const SLOTS_MIN: usize = 1024;

/// UUIDs one after another, and a table that finds them.
#[derive(Debug, Default)]
pub(super) struct Trails {
    /// Tag and number + 1; a power of two of them, at most three quarters taken. 0 is a free slot.
    slots: Vec<u64>,
    uuids: Vec<Uuid>,
    hasher: DefaultHashBuilder,
}

impl Trails {
    /// The numbers of the trails of `uuids`, appended to `numbers`.
    pub(super) fn number_all(&mut self, uuids: &[Uuid], numbers: &mut Vec<u32>) {
        let mut hashes = [0u64; GROUP];
        for group in uuids.chunks(GROUP) {
            for (hash, uuid) in hashes.iter_mut().zip(group) {
                *hash = self.hasher.hash_one(uuid.number());
            }
            if !self.slots.is_empty() {
                let mut found = [0u64; GROUP];
                for (slot, hash) in found.iter_mut().zip(hashes) {
                    *slot = self.slots[hash as usize & (self.slots.len() - 1)];
                }
                let mut touched = 0u8;
                for slot in found {
                    if let Some(uuid) = self.uuids.get((slot as u32).wrapping_sub(1) as usize) {
                        touched ^= uuid.0[0];
                    }
                }
                std::hint::black_box(touched);
            }
            for (&uuid, hash) in group.iter().zip(hashes) {
                numbers.push(self.number_hashed(uuid, hash));
            }
        }
    }

    /// The number of the trail of `uuid`, a new one if it has none.
    pub(super) fn number(&mut self, uuid: Uuid) -> u32 {
        self.number_hashed(uuid, self.hasher.hash_one(uuid.number()))
    }

    fn number_hashed(&mut self, uuid: Uuid, hash: u64) -> u32 {
        if (self.uuids.len() + 1) * 4 > self.slots.len() * 3 {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                let number = self.uuids.len() as u32;
                self.slots[at] = hash >> 32 << 32 | u64::from(number + 1);
                self.uuids.push(uuid);
                return number;
            }
            if slot >> 32 == hash >> 32 {
                let number = slot as u32 - 1;
                if self.uuids[number as usize] == uuid {
                    return number;
                }
            }
            at = (at + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let len = (self.slots.len() * 2).max(SLOTS_MIN);
        self.slots = Vec::new();
        self.slots = vec![0; len];
        for (uuid, number) in self.uuids.iter().zip(1u64..) {
            let hash = self.hasher.hash_one(uuid.number());
            let mut at = hash as usize & (len - 1);
            while self.slots[at] != 0 {
                at = (at + 1) & (len - 1);
            }
            self.slots[at] = hash >> 32 << 32 | number;
        }
    }

    /// Whether numbers may run out within `more` events.
    pub(super) fn is_full(&self, more: usize) -> bool {
        self.uuids.len() + more >= u32::MAX as usize - 1
    }

    /// The UUIDs in the order of their numbers. What comes next is numbered from 0 again.
    pub(super) fn take_uuids(&mut self) -> Vec<Uuid> {
        self.slots = Vec::new();
        std::mem::take(&mut self.uuids)
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.uuids.len() as u64
    }

    /// Bytes of memory taken.
    pub(super) fn memory(&self) -> u64 {
        (self.slots.capacity() * 8 + self.uuids.capacity() * 16) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn trails_are_numbered_as_a_map_would() {
        let mut trails = Trails::default();
        let mut model = HashMap::new();
        let uuids: Vec<Uuid> =
            (0..20_000u128).map(|n| Uuid::from_number(n * n % 7001 << (n % 2 * 64))).collect();
        let mut expected = Vec::new();
        for &uuid in &uuids {
            let next = model.len() as u32;
            expected.push(*model.entry(uuid).or_insert(next));
        }
        let mut got = Vec::new();
        trails.number_all(&uuids, &mut got);
        assert_eq!(got, expected);
        assert_eq!(trails.uuids.len(), model.len());
        let uuids = trails.take_uuids();
        assert_eq!(trails.number(Uuid([7; 16])), 0, "a new start");
        assert!(model.iter().all(|(uuid, &number)| uuids[number as usize] == *uuid));
    }
}
