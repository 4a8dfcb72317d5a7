//! Who is reading right now: how the writer knows that nobody is left in a slot it has taken out of the table.
//!
//! A reader enters, looks keys up, shows rows where they lie, and leaves; it takes no lock and waits for nobody. The
//! writer takes a slot out of the table, calls [`Readers::wait`], and from then on the slot's bytes are its own: whoever
//! entered before has left, and whoever enters later does not find the slot.
//!
//! ```text
//! reader   enter ──── finds slot ──── reads its bytes ──── leave
//! writer        take slot out of the table ── wait ────────────┴─► change its bytes
//! ```
//!
//! It is the scheme of sleepable read-copy-update (McKenney, "Sleepable RCU", 2006): each thread counts itself in on a
//! cache line of its own, under the current one of two phases. The writer turns the phase and waits until the former
//! one is empty, twice: a reader may have read the phase long before it counted itself in. As new readers count
//! themselves in under the other phase, they can't keep the writer waiting for ever.

use super::atomic::{AtomicU64, Ordering, add_one_then_fence, fence, stripes, thread_number, wait_a_moment};

/// Readers, counted by thread and phase.
pub(super) struct Readers {
    phase: AtomicU64,
    stripes: Box<[Stripe]>,
}

/// The readers among some threads, by phase. Two cache lines: processors fetch them in pairs.
#[repr(align(128))]
struct Stripe([AtomicU64; 2]);

/// A reader's stay. What it finds in the table does not change before it ends.
pub(super) struct Stay<'a> {
    counter: &'a AtomicU64,
}

impl Readers {
    pub(super) fn new() -> Self {
        let stripe = |_| Stripe([AtomicU64::new(0), AtomicU64::new(0)]);
        Self { phase: AtomicU64::new(0), stripes: (0..stripes()).map(stripe).collect() }
    }

    /// Begins a stay.
    pub(super) fn enter(&self) -> Stay<'_> {
        // The number of stripes is a power of two.
        let stripe = &self.stripes[thread_number() & (self.stripes.len() - 1)];
        let phase = self.phase.load(Ordering::Relaxed) & 1;
        let counter = &stripe.0[phase as usize];
        // The fence pairs with the one in `wait`: either the writer sees this count, or this reader sees the table
        // as the writer left it.
        add_one_then_fence(counter);
        Stay { counter }
    }

    /// Returns when every stay that began before the call has ended. One caller at a time; never from within a stay.
    pub(super) fn wait(&self) {
        fence(Ordering::SeqCst);
        for _ in 0..2 {
            let former = self.phase.load(Ordering::Relaxed) & 1;
            self.phase.store(former ^ 1, Ordering::SeqCst);
            for stripe in &self.stripes {
                let mut times = 0;
                while stripe.0[former as usize].load(Ordering::Acquire) != 0 {
                    wait_a_moment(times);
                    times += 1;
                }
            }
        }
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        size_of_val(&*self.stripes) as u64
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn the_writer_waits_for_a_stay_that_began_before_and_not_for_later_ones() {
        let readers = Arc::new(Readers::new());
        let before = readers.enter();
        let (sender, receiver) = channel();
        let writer = {
            let readers = Arc::clone(&readers);
            std::thread::spawn(move || {
                readers.wait();
                sender.send(()).unwrap();
            })
        };
        // The writer has begun to wait when the phase has turned.
        while readers.phase.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let later = readers.enter();
        assert!(receiver.try_recv().is_err(), "the first stay has not ended");
        drop(before);
        // The writer turns the phase back and waits for the other one too: `later` may hold that up, never the first.
        drop(later);
        receiver.recv().unwrap();
        writer.join().unwrap();
    }

    #[test]
    fn stays_of_one_thread_may_overlap() {
        let readers = Readers::new();
        let (one, two) = (readers.enter(), readers.enter());
        drop(one);
        drop(two);
        readers.wait();
    }
}
