//! Which slot a key is in: buckets of one cache line, read by anybody at any time, changed by one writer.
//!
//! ```text
//! bucket, 64 bytes:  entry × 7, overflow × 1          entry: 32 bits of the key's hash, slot + 1 (0: no entry)
//! ```
//!
//! A key's entry is in its home bucket or, if that was full, in the next with room. A bucket's *overflow* says how many
//! keys passed it by: a look-up goes on to the next bucket only if there are any, so a removal leaves no tombstone and
//! moves nothing under a reader. The counts go up before the entry is there and down after it is gone: whoever looks for
//! a key that is there meanwhile never stops short of it. The key itself stands in the slot's record, which a hit needs
//! anyway. A full table takes 12 bytes an entry and never grows.

use std::io;

use super::atomic::{AtomicU64, Ordering};
use super::layout::Slot;
use super::prefetch::prefetch;
use super::words::Words;
use crate::domain::Key;

const BUCKET_WORDS: usize = 8;
const ENTRIES: usize = BUCKET_WORDS - 1;
const OVERFLOW: usize = BUCKET_WORDS - 1;
const NONE: u64 = 0;
/// In a packed bucket's first byte, beside the number of its entries: whether its overflow follows them.
const OVERFLOWS: u8 = 0x80;

/// From key to slot, for at most the capacity it was made for.
pub(super) struct Table {
    words: Words,
    buckets: usize,
    len: AtomicU64,
}

impl Table {
    pub(super) fn new(capacity: u64) -> io::Result<Self> {
        let buckets = Self::buckets_for(capacity);
        Ok(Self { words: Words::zeroed(buckets * BUCKET_WORDS)?, buckets, len: AtomicU64::new(0) })
    }

    /// Four fifths full at capacity: 1.02 buckets a look-up.
    fn buckets_for(capacity: u64) -> usize {
        (capacity * 5 / (4 * ENTRIES as u64) + 2) as usize
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// Bytes of memory for a table of this capacity.
    pub(super) fn memory_bytes_for(capacity: u64) -> u64 {
        (Self::buckets_for(capacity) * BUCKET_WORDS * size_of::<u64>()) as u64
    }

    /// The slot among those with this key's hash for which `is_the_keys` says yes.
    pub(super) fn find(&self, key: &Key, mut is_the_keys: impl FnMut(Slot) -> bool) -> Option<Slot> {
        let (hash, mut bucket) = self.place(key);
        for _ in 0..self.buckets {
            let words = self.bucket(bucket);
            for word in &words[..ENTRIES] {
                let entry = word.load(Ordering::Acquire);
                if let Some(slot) = slot_with_hash(entry, hash)
                    && is_the_keys(slot)
                {
                    return Some(slot);
                }
            }
            if words[OVERFLOW].load(Ordering::Acquire) == 0 {
                return None;
            }
            bucket = self.after(bucket);
        }
        None
    }

    /// The first slot in the key's home bucket that may be the key's.
    #[inline]
    pub(super) fn candidate(&self, key: &Key) -> Option<Slot> {
        let (hash, bucket) = self.place(key);
        self.bucket(bucket)[..ENTRIES].iter().find_map(|word| slot_with_hash(word.load(Ordering::Acquire), hash))
    }

    /// Whether there is nothing of the key in the table, as far as its home bucket tells.
    #[inline]
    pub(super) fn overflows(&self, key: &Key) -> bool {
        let (_, bucket) = self.place(key);
        self.bucket(bucket)[OVERFLOW].load(Ordering::Acquire) != 0
    }

    /// Asks the processor for the key's home bucket.
    #[inline]
    pub(super) fn prefetch(&self, key: &Key) {
        let (_, bucket) = self.place(key);
        prefetch(self.bucket(bucket));
    }

    /// Adds an entry for a key that has none: see [`Self::replace`].
    pub(super) fn insert(&self, key: &Key, slot: Slot) {
        let (hash, home) = self.place(key);
        let mut bucket = home;
        let place = loop {
            let words = self.bucket(bucket);
            if let Some(place) = words[..ENTRIES].iter().find(|word| word.load(Ordering::Relaxed) == NONE) {
                break place;
            }
            bucket = self.after(bucket);
            assert_ne!(bucket, home, "a table is made for its capacity");
        };
        self.count_passing(home, bucket, 1);
        place.store(entry(hash, slot), Ordering::Release);
        self.len.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets the key's entry for one slot name another, in one step: a look-up finds the one or the other. Says whether
    /// there was such an entry.
    pub(super) fn replace(&self, key: &Key, old: Slot, new: Slot) -> bool {
        let found = self.entry(key, old);
        if let Some((place, _)) = found {
            place.store(entry(self.place(key).0, new), Ordering::Release);
        }
        found.is_some()
    }

    /// Removes the key's entry for this slot; says whether there was one.
    pub(super) fn remove(&self, key: &Key, slot: Slot) -> bool {
        let Some((place, bucket)) = self.entry(key, slot) else { return false };
        place.store(NONE, Ordering::Release);
        self.count_passing(self.place(key).1, bucket, u64::MAX);
        self.len.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Where the key's entry for this slot is, and in which bucket. For the writer.
    fn entry(&self, key: &Key, slot: Slot) -> Option<(&AtomicU64, usize)> {
        let (hash, home) = self.place(key);
        let entry = entry(hash, slot);
        let mut bucket = home;
        loop {
            let words = self.bucket(bucket);
            if let Some(place) = words[..ENTRIES].iter().find(|word| word.load(Ordering::Relaxed) == entry) {
                return Some((place, bucket));
            }
            if words[OVERFLOW].load(Ordering::Relaxed) == 0 {
                return None;
            }
            bucket = self.after(bucket);
            if bucket == home {
                return None;
            }
        }
    }

    /// Removes whatever key is in this slot, by looking at every entry: for a record whose key can't be trusted. The
    /// overflow counts stay as they are, for nobody knows the key's home: some look-ups go one bucket too far.
    pub(super) fn remove_slot(&self, slot: Slot) -> bool {
        for bucket in 0..self.buckets {
            for word in &self.bucket(bucket)[..ENTRIES] {
                let entry = word.load(Ordering::Relaxed);
                if entry != NONE && slot_of(entry) == slot {
                    word.store(NONE, Ordering::Release);
                    self.len.fetch_sub(1, Ordering::Relaxed);
                    return true;
                }
            }
        }
        false
    }

    /// The entries as bytes, to be kept across a clean close (`FORMAT.md` draws them). No writer may be at work.
    pub(super) fn pack(&self, capacity: u64) -> Vec<u8> {
        let slot_bytes = slot_bytes(capacity);
        let mut packed = Vec::with_capacity(self.buckets * 2 + self.len() as usize * (size_of::<u32>() + slot_bytes));
        for bucket in 0..self.buckets {
            let words = self.bucket(bucket);
            let entries = words[..ENTRIES].iter().map(|word| word.load(Ordering::Relaxed));
            let overflow = words[OVERFLOW].load(Ordering::Relaxed);
            let taken = entries.filter(|&entry| entry != NONE);
            let count = taken.clone().count() as u8;
            packed.push(count | if overflow == 0 { 0 } else { OVERFLOWS });
            for entry in taken {
                packed.extend_from_slice(&((entry >> 32) as u32).to_le_bytes());
                packed.extend_from_slice(&slot_of(entry).to_le_bytes()[..slot_bytes]);
            }
            if overflow != 0 {
                packed.extend_from_slice(&overflow.to_le_bytes());
            }
        }
        packed
    }

    /// The most bytes that [`Self::pack`] can come to.
    pub(super) fn packed_bytes_max(&self) -> u64 {
        (self.buckets * (1 + ENTRIES * 2 * size_of::<u32>() + size_of::<u64>())) as u64
    }

    /// Takes the entries that [`Self::pack`] has written, before anybody else has the table. `None`, and anything in the
    /// table, if these bytes are none that it could have written.
    pub(super) fn unpack(&mut self, capacity: u64, mut packed: &[u8]) -> Option<()> {
        let entry_bytes = size_of::<u32>() + slot_bytes(capacity);
        let unused_bits = 8 * (size_of::<u64>() - entry_bytes);
        let mut len = 0;
        for bucket in 0..self.buckets {
            let words = self.bucket(bucket);
            let (&[head], rest) = packed.split_first_chunk()?;
            let count = usize::from(head & !OVERFLOWS);
            if count > ENTRIES || rest.len() < count * entry_bytes {
                return None;
            }
            for (place, word) in words[..count].iter().enumerate() {
                let both = first_word(&rest[place * entry_bytes..]) << unused_bits >> unused_bits;
                let (hash, slot) = (both as u32, (both >> 32) as Slot);
                if u64::from(slot) >= capacity {
                    return None;
                }
                word.store(entry(hash, slot), Ordering::Relaxed);
            }
            len += count as u64;
            packed = &rest[count * entry_bytes..];
            if head & OVERFLOWS != 0 {
                let (overflow, rest) = packed.split_first_chunk()?;
                packed = rest;
                words[OVERFLOW].store(u64::from_le_bytes(*overflow), Ordering::Relaxed);
            }
        }
        self.len = AtomicU64::new(len);
        packed.is_empty().then_some(())
    }

    /// Forgets everything, before anybody else has the table.
    pub(super) fn clear(&mut self) {
        self.words.bytes_mut().fill(0);
        self.len = AtomicU64::new(0);
    }

    /// Counts a key in or out at every bucket from its home to where its entry is, the last not included.
    fn count_passing(&self, home: usize, last: usize, change: u64) {
        let mut bucket = home;
        while bucket != last {
            self.bucket(bucket)[OVERFLOW].fetch_add(change, Ordering::AcqRel);
            bucket = self.after(bucket);
        }
    }

    #[inline]
    fn bucket(&self, bucket: usize) -> &[AtomicU64] {
        &self.words[bucket * BUCKET_WORDS..][..BUCKET_WORDS]
    }

    fn after(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets { 0 } else { bucket + 1 }
    }

    /// 32 bits of the key's hash, and its home bucket from 32 others.
    #[inline]
    fn place(&self, key: &Key) -> (u32, usize) {
        // Keys are hashes already; the multiplication is for callers whose keys are not.
        let hash = key.prefix().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = hash ^ hash >> 29;
        (hash as u32, (((hash >> 32) * self.buckets as u64) >> 32) as usize)
    }
}

/// The first eight bytes as a number, zeros after the last.
#[inline]
fn first_word(bytes: &[u8]) -> u64 {
    let word = bytes.first_chunk().copied().unwrap_or_else(|| {
        let mut word = [0; size_of::<u64>()];
        word[..bytes.len()].copy_from_slice(bytes);
        word
    });
    u64::from_le_bytes(word)
}

/// How many bytes a slot's number takes when packed.
fn slot_bytes(capacity: u64) -> usize {
    (64 - capacity.leading_zeros()).div_ceil(8).clamp(1, size_of::<Slot>() as u32) as usize
}

fn entry(hash: u32, slot: Slot) -> u64 {
    u64::from(hash) << 32 | u64::from(slot + 1)
}

#[inline]
fn slot_with_hash(entry: u64, hash: u32) -> Option<Slot> {
    ((entry >> 32) as u32 == hash && entry != NONE).then(|| slot_of(entry))
}

#[inline]
fn slot_of(entry: u64) -> Slot {
    (entry as u32).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_hash_map(operations in prop::collection::vec((any::<bool>(), 0_u8..48), 1..400)) {
            // All keys share four homes: full buckets, overflow and wrap-around are the rule here.
            let key = |n: u8| {
                let mut bytes = [n & 0x03; 32];
                bytes[31] = n;
                Key::from_bytes(bytes)
            };
            let table = Table::new(48).unwrap();
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
            let packed = table.pack(48);
            let mut unpacked = Table::new(48).unwrap();
            prop_assert!(packed.len() as u64 <= table.packed_bytes_max());
            prop_assert!(unpacked.unpack(48, &packed).is_some());
            prop_assert_eq!((unpacked.pack(48), unpacked.len()), (packed.clone(), table.len()));
            for cut in 0..packed.len() {
                prop_assert!(Table::new(48).unwrap().unpack(48, &packed[..cut]).is_none(), "cut");
            }
            prop_assert!(Table::new(48).unwrap().unpack(48, &[&packed[..], &[0]].concat()).is_none(), "longer");
            let last = model.values().max().copied();
            prop_assert!(last.is_none_or(|last| unpacked.unpack(last.into(), &packed).is_none()), "a slot beyond");
            for (n, slot) in model {
                prop_assert!(table.remove(&key(n), slot));
            }
            prop_assert!(table.words.iter().all(|word| word.load(Ordering::Relaxed) == 0), "and leaves nothing behind");
        }
    }

    #[test]
    fn a_slot_is_removed_without_its_key() {
        let table = Table::new(4).unwrap();
        table.insert(&Key::from_bytes([1; 32]), 3);
        assert!(table.remove_slot(3) && !table.remove_slot(3));
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_replaced_slot_is_found_in_place_of_the_old() {
        let table = Table::new(4).unwrap();
        let key = Key::from_bytes([1; 32]);
        assert!(!table.replace(&key, 3, 2));
        table.insert(&key, 3);
        assert!(table.replace(&key, 3, 2));
        assert_eq!((table.find(&key, |_| true), table.len()), (Some(2), 1));
    }
}
