//! The store's lock-free parts, as they are, on loom's atomics: [`models`] runs them in every order that a bounded
//! number of preemptions and the memory model allow. This file stands where `src/store/mod.rs` stands for them.
//!
//! Not checked: `add_one_then_fence` of x86, where one instruction does what a relaxed addition and a fence do elsewhere
//! (the latter is checked); huge pages; the kernel's part of the map.

#[allow(dead_code)]
#[path = "../../../src/store/readers.rs"]
mod readers;
#[allow(dead_code)]
#[path = "../../../src/store/table.rs"]
mod table;

pub mod models;

/// In place of `src/store/atomic.rs`.
mod atomic {
    use std::cell::Cell;

    pub(super) use loom::sync::atomic::{AtomicU64, Ordering, fence};

    loom::thread_local! {
        static NUMBER: Cell<usize> = Cell::new(0);
    }

    pub(super) fn add_one_then_fence(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// What [`number_thread`] said.
    pub(super) fn thread_number() -> usize {
        NUMBER.with(Cell::get)
    }

    pub(super) fn number_thread(number: usize) {
        NUMBER.with(|cell| cell.set(number));
    }

    pub(super) fn wait_a_moment(_: u32) {
        loom::thread::yield_now();
    }

    pub(super) fn stripes() -> usize {
        2
    }
}

/// In place of `src/store/words.rs`.
mod words {
    use std::io;
    use std::ops::Deref;

    use super::atomic::AtomicU64;

    pub(super) struct Words(Vec<AtomicU64>);

    #[allow(dead_code)]
    impl Words {
        pub(super) fn zeroed(len: usize) -> io::Result<Self> {
            Ok(Self((0..len).map(|_| AtomicU64::new(0)).collect()))
        }

        pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
            unimplemented!("a snapshot is taken and restored by one thread")
        }

        pub(super) fn to_bytes(&self) -> Vec<u8> {
            unimplemented!("a snapshot is taken and restored by one thread")
        }
    }

    impl Deref for Words {
        type Target = [AtomicU64];

        fn deref(&self) -> &[AtomicU64] {
            &self.0
        }
    }
}

/// In place of `src/store/prefetch.rs`.
mod prefetch {
    pub(super) fn prefetch<T>(_: &[T]) {}
}

/// In place of `src/store/layout.rs`.
mod layout {
    pub(super) type Slot = u32;
}

/// In place of `src/domain`.
mod domain {
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct Key(pub(super) u64);

    impl Key {
        pub(super) fn prefix(&self) -> u64 {
            self.0
        }
    }
}
