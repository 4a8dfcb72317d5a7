//! Which slot a key is in: open addressing with linear probing, eight bytes a bucket, one cache line a look-up.
//!
//! A bucket holds 32 bits of the key's hash and the slot's number. The key itself stands in the slot's record, which
//! a hit needs anyway; so the table takes 16 bytes an entry at most, never grows, and never moves under a reader.
//! A removal shifts the following buckets back, so there are no tombstones and a full table stays as fast as a new one.

use super::layout::Slot;
use crate::domain::Key;

const EMPTY: u64 = 0;

/// From key to slot, for at most the capacity it was made for.
pub(super) struct Table {
    buckets: Box<[u64]>,
    /// Home bucket = hash >> shift.
    shift: u32,
    len: u64,
}

impl Table {
    pub(super) fn new(capacity: u64) -> Self {
        let buckets = (capacity + capacity / 3 + 1).next_power_of_two().max(16);
        Self { buckets: vec![EMPTY; buckets as usize].into(), shift: 32 - buckets.ilog2(), len: 0 }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        size_of_val(&*self.buckets) as u64
    }

    fn mask(&self) -> usize {
        self.buckets.len() - 1
    }

    /// The slot among those with this key's hash for which `is_the_keys` says yes.
    pub(super) fn find(&self, key: &Key, mut is_the_keys: impl FnMut(Slot) -> bool) -> Option<Slot> {
        let hash = hash(key);
        let mut at = self.home(hash);
        loop {
            match self.buckets[at] {
                EMPTY => return None,
                bucket if hash_of(bucket) == hash && is_the_keys(slot_of(bucket)) => return Some(slot_of(bucket)),
                _ => at = (at + 1) & self.mask(),
            }
        }
    }

    /// Adds a key that is not in the table.
    pub(super) fn insert(&mut self, key: &Key, slot: Slot) {
        debug_assert!(self.len < self.buckets.len() as u64 - 1, "a table is made for its capacity");
        let hash = hash(key);
        let mut at = self.home(hash);
        while self.buckets[at] != EMPTY {
            at = (at + 1) & self.mask();
        }
        self.buckets[at] = u64::from(hash) << 32 | u64::from(slot + 1);
        self.len += 1;
    }

    /// Removes the key if it is in this slot; says whether it was.
    pub(super) fn remove(&mut self, key: &Key, slot: Slot) -> bool {
        let bucket = u64::from(hash(key)) << 32 | u64::from(slot + 1);
        let mut at = self.home(hash(key));
        while self.buckets[at] != bucket {
            if self.buckets[at] == EMPTY {
                return false;
            }
            at = (at + 1) & self.mask();
        }
        self.close_gap(at);
        true
    }

    /// Removes whatever key is in this slot, by looking at every bucket: for a record whose key can't be trusted.
    pub(super) fn remove_slot(&mut self, slot: Slot) -> bool {
        let found = self.buckets.iter().position(|&bucket| bucket != EMPTY && slot_of(bucket) == slot);
        found.map(|at| self.close_gap(at)).is_some()
    }

    /// Empties a bucket and moves later ones of the cluster back, so that none is cut off from its home.
    fn close_gap(&mut self, mut gap: usize) {
        let mask = self.mask();
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let bucket = self.buckets[at];
            if bucket == EMPTY {
                break;
            }
            let from_home = at.wrapping_sub(self.home(hash_of(bucket))) & mask;
            if from_home >= at.wrapping_sub(gap) & mask {
                self.buckets[gap] = bucket;
                gap = at;
            }
        }
        self.buckets[gap] = EMPTY;
        self.len -= 1;
    }

    fn home(&self, hash: u32) -> usize {
        (hash >> self.shift) as usize
    }
}

/// Keys are hashes already; the multiplication is for callers whose keys are not.
fn hash(key: &Key) -> u32 {
    (key.prefix().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

fn hash_of(bucket: u64) -> u32 {
    (bucket >> 32) as u32
}

fn slot_of(bucket: u64) -> Slot {
    bucket as u32 - 1
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_hash_map(operations in prop::collection::vec((any::<bool>(), 0_u8..48), 1..400)) {
            // All keys of equal low bits share few homes: clusters, wrap-around and gaps are the rule here.
            let key = |n: u8| {
                let mut bytes = [n & 0x83; 32];
                bytes[31] = n;
                Key::from_bytes(bytes)
            };
            let mut table = Table::new(48);
            let mut model = HashMap::new();
            for (insert, n) in operations {
                let slot = Slot::from(n);
                if insert && !model.contains_key(&n) {
                    table.insert(&key(n), slot);
                    model.insert(n, slot);
                } else if !insert {
                    prop_assert_eq!(table.remove(&key(n), slot), model.remove(&n).is_some());
                }
                prop_assert_eq!(table.len(), model.len() as u64);
                for n in 0..48 {
                    prop_assert_eq!(table.find(&key(n), |slot| slot == Slot::from(n)), model.get(&n).copied());
                }
            }
        }
    }

    #[test]
    fn a_slot_is_removed_without_its_key() {
        let mut table = Table::new(4);
        table.insert(&Key::from_bytes([1; 32]), 3);
        assert!(table.remove_slot(3) && !table.remove_slot(3));
        assert_eq!(table.len(), 0);
    }
}
