//! Who makes room: S3-FIFO, kept where the slots are.
//!
//! Most texts of a batch are never asked for again, so a new entry has to earn its place (Yang et al., "FIFO queues are
//! all you need for cache eviction", SOSP 2023). It is first on *probation*, a queue for a quarter of the slots; if it was
//! read when its turn comes, it is *kept*; if not, it goes, and only 16 bits of its key are remembered. A key that comes
//! back while it is remembered is kept at once. Among those kept a hand goes round the slots as in CLOCK (Corbató, 1968):
//! an entry read since it last came by gets another round, the others go.
//!
//! ```text
//! new ───────► probation ──read──► kept ◄──┐
//!                  │                │ └read┘
//!                not read        not read
//!                  ▼                ▼
//!             remembered ──back──► kept    gone
//! ```
//!
//! No entry is ever moved: where it stands is two bits a slot. What it takes in all is under 4 bytes a slot. Whether an entry
//! was read is not known here: lock-free readers mark that in [`super::bits::Bits`] of their own. A slot that was not
//! told of by [`Eviction::inserted`] or [`Eviction::adopted`], as that of a pinned entry, is never chosen.

use std::collections::VecDeque;

use super::bits::Bits;
use super::layout::Slot;

/// One slot in so many is for probation. The paper takes a tenth; documents that are ingested again want longer to come
/// back, and a quarter serves them as well as CLOCK does (`benches/eviction.rs`).
const PROBATION_SHARE: u64 = 4;
/// As many more may be on probation for a while, for entries come many at a time.
const PROBATION_EXTRA: u64 = 4096;
/// Keys remembered together: what fits 16 bytes, and so one cache line.
const MEMORY_WAYS: usize = 8;

/// Which slots may be chosen, and in what order.
pub(super) struct Eviction {
    capacity: Slot,
    /// In the order of their coming. A slot that was removed stays until its turn; used anew meanwhile, it has two turns,
    /// of which the first counts.
    queue: VecDeque<Slot>,
    queue_len_max: usize,
    on_probation: Bits,
    probation_count: u64,
    kept: Bits,
    kept_count: u64,
    /// Where the hand stands.
    hand: Slot,
    gone: Gone,
}

impl Eviction {
    /// For slots below `capacity`, none of which may be chosen yet.
    pub(super) fn new(capacity: Slot) -> Self {
        let queue_len_max = queue_len_max(capacity);
        Self {
            capacity,
            queue: VecDeque::with_capacity(queue_len_max),
            queue_len_max,
            on_probation: Bits::new(capacity.into()),
            probation_count: 0,
            kept: Bits::new(capacity.into()),
            kept_count: 0,
            hand: 0,
            gone: Gone::new(capacity),
        }
    }

    /// A new entry is in the slot. `key_prefix` is any 64 bits of a hash of its key, always the same.
    pub(super) fn inserted(&mut self, slot: Slot, key_prefix: u64) {
        self.removed(slot);
        if self.gone.take(key_prefix) {
            return self.keep(slot);
        }
        if self.queue.len() == self.queue_len_max
            && let Some(first) = self.queue.pop_front()
            && self.end_probation(first)
        {
            // Nothing has to go yet: whether it was read is looked at when the hand comes by.
            self.keep(first);
        }
        self.queue.push_back(slot);
        self.on_probation.set(slot);
        self.probation_count += 1;
    }

    /// An entry of a former session is in the slot: it is kept until the hand comes by.
    pub(super) fn adopted(&mut self, slot: Slot) {
        self.removed(slot);
        self.keep(slot);
    }

    /// As [`Self::adopted`] for all slots at once, before any other is told.
    pub(super) fn adopted_all(&mut self, slots: &Bits) {
        self.kept.copy_from(slots);
        self.kept_count = slots.count();
    }

    /// The slot's entry is gone, for whatever reason; does nothing for a slot that was just chosen.
    pub(super) fn removed(&mut self, slot: Slot) {
        self.end_probation(slot);
        self.end_keep(slot);
    }

    /// Adds up to `count` slots to `victims`, and counts them as removed; fewer only if no more may be chosen. `was_read`
    /// says whether a slot's entry was read since this was last asked, and forgets it; `key_prefix` is what
    /// [`Self::inserted`] was told. Ends whatever readers do: who was read too often goes too.
    pub(super) fn choose(
        &mut self,
        count: usize,
        mut was_read: impl FnMut(Slot) -> bool,
        key_prefix: impl Fn(Slot) -> u64,
        victims: &mut Vec<Slot>,
    ) {
        let enough = victims.len() + count;
        let probation_max = u64::from(self.capacity) / PROBATION_SHARE;
        // Twice round finds everything: the first round clears every mark. Readers may set some again meanwhile, so the
        // third takes what comes.
        let round = u64::from(self.capacity);
        let mut steps = 0;
        while victims.len() < enough {
            let whatever = steps >= 2 * round;
            if self.probation_count > 0 && (self.probation_count > probation_max || self.kept_count == 0) {
                let Some(slot) = self.queue.pop_front() else { break };
                if !self.end_probation(slot) {
                    continue;
                }
                if was_read(slot) && !whatever {
                    self.keep(slot);
                } else {
                    self.gone.add(key_prefix(slot));
                    victims.push(slot);
                }
            } else if self.kept_count > 0 && steps < 3 * round {
                let slot = self.hand;
                self.hand = (slot + 1) % self.capacity;
                steps += 1;
                if self.kept.get(slot) && (!was_read(slot) || whatever) {
                    self.end_keep(slot);
                    victims.push(slot);
                }
            } else {
                break;
            }
        }
    }

    /// Bytes of memory for a capacity.
    pub(super) fn memory_bytes_for(capacity: Slot) -> u64 {
        let queue = queue_len_max(capacity) * size_of::<Slot>();
        let bits = u64::from(capacity).div_ceil(64) * 8;
        queue as u64 + 2 * bits + (Gone::groups_for(capacity) * size_of::<Group>()) as u64
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        Self::memory_bytes_for(self.capacity)
    }

    fn keep(&mut self, slot: Slot) {
        self.kept_count += u64::from(self.kept.set(slot));
    }

    /// Says whether it was kept.
    fn end_keep(&mut self, slot: Slot) -> bool {
        let was = self.kept.clear(slot);
        self.kept_count -= u64::from(was);
        was
    }

    /// Says whether it was on probation.
    fn end_probation(&mut self, slot: Slot) -> bool {
        let was = self.on_probation.clear(slot);
        self.probation_count -= u64::from(was);
        was
    }
}

fn queue_len_max(capacity: Slot) -> usize {
    let probation = u64::from(capacity) / PROBATION_SHARE;
    (probation + PROBATION_EXTRA).min(capacity.into()) as usize
}

type Group = [u16; MEMORY_WAYS];

/// The keys that went last, as many as there are slots, 16 bits each: in groups by hash, in each the latest first. A key
/// taken for another is kept for nothing, one time in 8,000.
struct Gone(Box<[Group]>);

impl Gone {
    fn new(capacity: Slot) -> Self {
        Self(vec![[0; MEMORY_WAYS]; Self::groups_for(capacity)].into())
    }

    fn groups_for(capacity: Slot) -> usize {
        (capacity as usize).div_ceil(MEMORY_WAYS)
    }

    fn add(&mut self, key_prefix: u64) {
        let (group, mark) = self.place(key_prefix);
        group.rotate_right(1);
        group[0] = mark;
    }

    /// Says whether the key is remembered, and forgets it.
    fn take(&mut self, key_prefix: u64) -> bool {
        let (group, mark) = self.place(key_prefix);
        let Some(place) = group.iter().position(|&other| other == mark) else { return false };
        group[place..].rotate_left(1);
        group[MEMORY_WAYS - 1] = 0;
        true
    }

    fn place(&mut self, key_prefix: u64) -> (&mut Group, u16) {
        // Keys are hashes already; the multiplication is for callers whose keys are not.
        let hash = key_prefix.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let group = (((hash >> 32) * self.0.len() as u64) >> 32) as usize;
        // Zero stands for none.
        (&mut self.0[group], ((hash >> 16) as u16).max(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const CAPACITY: Slot = 40;

    fn choose(eviction: &mut Eviction, count: usize, read: &mut HashSet<Slot>) -> Vec<Slot> {
        let mut victims = Vec::new();
        eviction.choose(count, |slot| read.remove(&slot), u64::from, &mut victims);
        victims
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Insert(Slot, u64),
        Adopt(Slot),
        Remove(Slot),
        Read(Slot),
        Choose(usize),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let slot = || 0..CAPACITY;
        prop_oneof![
            4 => (slot(), 0_u64..100).prop_map(|(slot, key)| Operation::Insert(slot, key)),
            1 => slot().prop_map(Operation::Adopt),
            1 => slot().prop_map(Operation::Remove),
            2 => slot().prop_map(Operation::Read),
            1 => (0_usize..50).prop_map(Operation::Choose),
        ]
    }

    proptest! {
        #[test]
        fn it_chooses_what_is_there_once_and_as_much_as_it_can(
            operations in prop::collection::vec(operation(), 1..400),
            always_read: bool,
        ) {
            let mut eviction = Eviction::new(CAPACITY);
            let (mut present, mut read) = (HashSet::new(), HashSet::new());
            for operation in operations {
                match operation {
                    Operation::Insert(slot, key) => {
                        eviction.inserted(slot, key);
                        present.insert(slot);
                    }
                    Operation::Adopt(slot) => {
                        eviction.adopted(slot);
                        present.insert(slot);
                    }
                    Operation::Remove(slot) => {
                        eviction.removed(slot);
                        present.remove(&slot);
                    }
                    Operation::Read(slot) => {
                        read.insert(slot);
                    }
                    Operation::Choose(count) => {
                        let mut victims = Vec::new();
                        let was_read = |slot| read.remove(&slot) || always_read;
                        eviction.choose(count, was_read, u64::from, &mut victims);
                        prop_assert_eq!(victims.len(), count.min(present.len()), "as many as it can");
                        for slot in victims {
                            prop_assert!(present.remove(&slot), "slot {} is chosen twice, or was never there", slot);
                        }
                    }
                }
                prop_assert_eq!(eviction.probation_count + eviction.kept_count, present.len() as u64);
                prop_assert!(eviction.queue.len() <= eviction.queue_len_max);
            }
        }
    }

    #[test]
    fn of_new_entries_those_read_are_kept_and_the_others_go_in_order() {
        let mut eviction = Eviction::new(CAPACITY);
        (0..CAPACITY).for_each(|slot| eviction.inserted(slot, slot.into()));
        let mut read = HashSet::from([1, 3]);
        assert_eq!(choose(&mut eviction, 4, &mut read), [0, 2, 4, 5]);
    }

    #[test]
    fn a_flood_of_new_entries_leaves_those_alone_that_are_read() {
        let mut eviction = Eviction::new(CAPACITY);
        (0..CAPACITY).for_each(|slot| eviction.adopted(slot));
        let mut flooded = HashSet::new();
        for key in 1000..2000 {
            let mut read = (0..20).collect();
            let [victim] = choose(&mut eviction, 1, &mut read)[..] else { panic!("one is chosen") };
            flooded.insert(victim);
            eviction.inserted(victim, key);
        }
        // It takes those not read first, then has its own quarter and goes through no more than that.
        assert!((0..20).all(|slot| !flooded.contains(&slot)), "{flooded:?}");
    }

    #[test]
    fn a_key_that_comes_back_soon_is_kept_and_a_late_one_is_not() {
        let mut eviction = Eviction::new(CAPACITY);
        (0..CAPACITY).for_each(|slot| eviction.inserted(slot, slot.into()));
        assert_eq!(choose(&mut eviction, 1, &mut HashSet::new()), [0]);
        eviction.inserted(0, 0);
        assert!(eviction.kept.get(0), "key 0 is remembered");
        // Once: the next time it has to earn its place again.
        eviction.removed(0);
        eviction.inserted(0, 0);
        assert!(eviction.on_probation.get(0));

        let mut gone = Gone::new(CAPACITY);
        gone.add(7);
        (100..500).for_each(|key| gone.add(key));
        assert!(!gone.take(7), "forgotten by now");
    }

    #[test]
    fn it_ends_when_nothing_may_be_chosen_or_everything_is_read_all_the_time() {
        let mut eviction = Eviction::new(CAPACITY);
        let mut victims = Vec::new();
        eviction.choose(16, |_| true, u64::from, &mut victims);
        assert!(victims.is_empty(), "nothing is there, as if all were pinned");
        (0..CAPACITY).for_each(|slot| eviction.inserted(slot, slot.into()));
        eviction.choose(16, |_| true, u64::from, &mut victims);
        assert_eq!(victims.len(), 16);
    }

    #[test]
    fn it_takes_under_four_bytes_a_slot() {
        let capacity = 10_000_000;
        let eviction = Eviction::new(capacity);
        assert!(eviction.memory_bytes() < 4 * u64::from(capacity), "{}", eviction.memory_bytes());
        let allocated = eviction.queue.capacity() * size_of::<Slot>() + size_of_val(&*eviction.gone.0);
        let bits =
            [&eviction.on_probation, &eviction.kept].map(|bits| size_of_val(bits.words()) as u64).iter().sum::<u64>();
        assert_eq!(eviction.memory_bytes(), allocated as u64 + bits);
    }
}
