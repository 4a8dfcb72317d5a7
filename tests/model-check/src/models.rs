//! A store of a few slots, as `src/store/space.rs` and `src/store/writer.rs` use the table and the readers: the writer
//! writes a row and its record, publishes; takes out of the table, waits, and changes the bytes. Records and rows are
//! plain memory: loom fails a run in which one thread changes them while another may still be reading.
#![expect(unsafe_code, reason = "loom's cells give out pointers; that nobody else uses them is what is checked")]

use std::ops::Deref;

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};

use super::atomic::number_thread;
use super::domain::Key;
use super::layout::Slot;
use super::readers::Readers;
use super::table::Table;

/// One to be caught between reading the phase and counting oneself in, one for the writer to be caught between two waits,
/// one to be caught in a slot.
const PREEMPTIONS_MAX: usize = 3;
/// Entries of a bucket.
const BUCKET_ENTRIES: u64 = 7;

struct Space {
    table: Table,
    readers: Readers,
    records: Vec<UnsafeCell<Key>>,
    rows: Vec<UnsafeCell<u64>>,
}

impl Space {
    fn new(slots: u64) -> Self {
        Self {
            table: Table::new(slots).expect("memory for a small table"),
            readers: Readers::new(),
            records: (0..slots).map(|_| UnsafeCell::new(FREE)).collect(),
            rows: (0..slots).map(|_| UnsafeCell::new(0)).collect(),
        }
    }

    fn key_in(&self, slot: Slot) -> Key {
        // SAFETY: loom panics first if somebody may be at it meanwhile.
        self.records[slot as usize].with(|record| unsafe { *record })
    }

    fn find(&self, key: Key) -> Option<Slot> {
        self.table.find(&key, |slot| self.key_in(slot) == key)
    }

    /// A reader's look-up, one key at a time. The row is that of the key.
    fn get(&self, key: Key) -> Option<u64> {
        let _stay = self.readers.enter();
        self.find(key).map(|slot| self.row(slot, key))
    }

    /// A reader's look-up in two steps, as a batch does it.
    fn get_in_steps(&self, key: Key) -> Option<u64> {
        let _stay = self.readers.enter();
        let slot = match self.table.candidate(&key) {
            None if !self.table.overflows(&key) => return None,
            Some(slot) if self.key_in(slot) == key => slot,
            _ => self.find(key)?,
        };
        Some(self.row(slot, key))
    }

    fn row(&self, slot: Slot, key: Key) -> u64 {
        // SAFETY: loom panics first if somebody may be at it meanwhile.
        let row = self.rows[slot as usize].with(|row| unsafe { *row });
        assert_eq!(row & !0xff, row_of(key, 0), "the row of another key");
        row & 0xff
    }

    fn write(&self, slot: Slot, key: Key, version: u64) {
        // SAFETY: loom panics first if somebody may be at it meanwhile.
        self.rows[slot as usize].with_mut(|row| unsafe { *row = row_of(key, version) });
        self.records[slot as usize].with_mut(|record| unsafe { *record = key });
    }

    fn put(&self, slot: Slot, key: Key, version: u64) {
        self.write(slot, key, version);
        match self.find(key) {
            None => self.table.insert(&key, slot),
            Some(old) => {
                self.table.replace(&key, old, slot);
                self.free(old);
            }
        }
    }

    fn remove(&self, slot: Slot) {
        assert!(self.table.remove(&self.key_in(slot), slot));
        self.free(slot);
    }

    fn free(&self, slot: Slot) {
        self.readers.wait();
        // SAFETY: loom panics first if somebody may still be reading.
        self.records[slot as usize].with_mut(|record| unsafe { *record = FREE });
    }
}

const FREE: Key = Key(u64::MAX);

fn row_of(key: Key, version: u64) -> u64 {
    key.0.rotate_left(32) << 8 | version
}

/// The n-th key of a home bucket; a table of a few slots has two.
fn key(bucket: u64, n: u64) -> Key {
    // The table multiplies by a constant and takes the home from the upper bits: this is undone here. What is made of it
    // is asserted in `full_bucket`.
    const INVERSE: u64 = inverse(0x9e37_79b9_7f4a_7c15);
    Key((bucket << 63 | (n + 1)).wrapping_mul(INVERSE))
}

/// Of an odd number, modulo 2^64: Newton's iteration doubles the right bits.
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut round = 0;
    while round < 6 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.max_branches = 20_000;
    builder.check(model);
}

fn reader(space: &Arc<Space>, number: usize, read: impl FnOnce(&Space) + 'static) -> JoinHandle<()> {
    let space = Arc::clone(space);
    thread::spawn(move || {
        number_thread(number);
        read(space.deref());
    })
}

fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("a reader's assertions hold");
    }
}

/// Who finds a slot reads a whole row of its key.
pub fn publish() {
    check(|| {
        let space = Arc::new(Space::new(2));
        let reader = reader(&space, 1, |space| {
            let _ = space.get(key(0, 0));
            let _ = space.get_in_steps(key(0, 0));
        });
        space.put(0, key(0, 0), 1);
        assert_eq!(space.get(key(0, 0)), Some(1), "the writer sees its own");
        join([reader]);
    });
}

/// When the writer has waited, nobody is left in the slot.
pub fn unpublish() {
    check(|| {
        let space = Arc::new(Space::new(2));
        space.put(0, key(0, 0), 1);
        let reader = reader(&space, 1, |space| {
            let _ = space.get(key(0, 0));
            let _ = space.get_in_steps(key(0, 0));
        });
        space.remove(0);
        assert_eq!(space.get(key(0, 0)), None);
        join([reader]);
    });
}

/// A slot is evicted and used for another key: the old key's reader never sees the new row, nor the other way round.
pub fn reuse() {
    check(|| {
        let space = Arc::new(Space::new(1));
        space.put(0, key(0, 0), 1);
        let reader = reader(&space, 1, |space| {
            let old = space.get(key(0, 0));
            let new = space.get(key(0, 1));
            assert!(old.is_none_or(|version| version == 1) && new.is_none_or(|version| version == 2));
        });
        space.remove(0);
        space.put(0, key(0, 1), 2);
        join([reader]);
    });
}

/// Two readers, one of them on the writer's own stripe, while a slot changes hands.
pub fn two_readers() {
    check(|| {
        let space = Arc::new(Space::new(1));
        space.put(0, key(0, 0), 1);
        let readers = [0, 1].map(|number| {
            reader(&space, number, move |space| {
                let _ = space.get(key(0, number as u64));
            })
        });
        space.remove(0);
        space.put(0, key(0, 1), 2);
        join(readers);
    });
}

/// Two readers counted together: that one leaves does not look as if both had.
pub fn two_readers_of_one_stripe() {
    check(|| {
        let space = Arc::new(Space::new(1));
        space.put(0, key(0, 0), 1);
        let readers = [1, 1].map(|number| {
            reader(&space, number, |space| {
                let _ = space.get(key(0, 0));
            })
        });
        space.remove(0);
        space.put(0, key(0, 1), 2);
        join(readers);
    });
}

/// A reader may have read the phase long before it counts itself in: one whole wait has passed by the time of the next.
pub fn two_waits() {
    check(|| {
        let space = Arc::new(Space::new(2));
        space.put(0, key(0, 0), 1);
        space.put(1, key(0, 1), 1);
        let reader = reader(&space, 1, |space| {
            let _ = space.get(key(0, 1));
        });
        space.remove(0);
        space.remove(1);
        join([reader]);
    });
}

/// A key that is replaced is there all the time, in its old or its new version, and never goes back.
pub fn replace() {
    check(|| {
        let space = Arc::new(Space::new(3));
        // The place before the key's is free: where a second entry would go, behind the back of who has passed it.
        space.put(0, key(0, 1), 9);
        space.put(1, key(0, 0), 1);
        space.remove(0);
        let reader = reader(&space, 1, |space| {
            let first = space.get(key(0, 0)).expect("a replaced key is never missed");
            let second = space.get_in_steps(key(0, 0)).expect("a replaced key is never missed");
            assert!(first <= second, "version {second} after {first}");
        });
        space.put(2, key(0, 0), 2);
        assert_eq!(space.get(key(0, 0)), Some(2));
        join([reader]);
    });
}

/// A bucket full of keys, with two more that had to go to the next one.
fn full_bucket() -> Arc<Space> {
    let space = Arc::new(Space::new(BUCKET_ENTRIES + 4));
    for n in 0..BUCKET_ENTRIES + 2 {
        assert_eq!(space.table.overflows(&key(0, 0)), n > BUCKET_ENTRIES, "all have one home, key {n} too");
        space.put(n as Slot, key(0, n), 1);
    }
    space
}

/// The last key of a full bucket is not missed while the first goes and yet another takes its place.
pub fn full_home() {
    check(|| {
        let space = full_bucket();
        let reader = reader(&space, 1, |space| {
            assert_eq!(space.get(key(0, BUCKET_ENTRIES - 1)), Some(1), "at home");
        });
        space.remove(0);
        space.put(0, key(0, 20), 1);
        join([reader]);
    });
}

/// A key in the next bucket is not missed while another one leaves that bucket, and its home.
pub fn overflow_and_removals() {
    check(|| {
        let space = full_bucket();
        let reader = reader(&space, 1, |space| {
            assert_eq!(space.get(key(0, BUCKET_ENTRIES)), Some(1), "in the next bucket");
        });
        space.remove(BUCKET_ENTRIES as Slot + 1);
        space.remove(0);
        join([reader]);
    });
}

/// Nor while others come: one to its home, which has room again, and one that passes it by.
pub fn overflow_and_insertions() {
    check(|| {
        let space = full_bucket();
        space.remove(0);
        let reader = reader(&space, 1, |space| {
            assert_eq!(space.get_in_steps(key(0, BUCKET_ENTRIES)), Some(1), "in the next bucket");
        });
        space.put(0, key(0, 20), 1);
        space.put(BUCKET_ENTRIES as Slot + 2, key(0, 21), 1);
        join([reader]);
    });
}

/// Once its insertion has returned, a key is found, though it had to pass a full bucket by.
pub fn overflow_is_counted_before_the_entry_is_there() {
    use super::atomic::{AtomicU64, Ordering};

    check(|| {
        let space = Arc::new(Space::new(BUCKET_ENTRIES + 1));
        for n in 0..BUCKET_ENTRIES {
            space.put(n as Slot, key(0, n), 1);
        }
        let told = Arc::new(AtomicU64::new(0));
        let reader = {
            let told = Arc::clone(&told);
            reader(&space, 1, move |space| {
                if told.load(Ordering::Acquire) == 1 {
                    assert_eq!(space.get(key(0, BUCKET_ENTRIES)), Some(1));
                } else {
                    let _ = space.get(key(0, BUCKET_ENTRIES));
                }
            })
        };
        space.put(BUCKET_ENTRIES as Slot, key(0, BUCKET_ENTRIES), 1);
        told.store(1, Ordering::Release);
        join([reader]);
    });
}
