//! What the lock-free parts ([`super::readers`], [`super::table`]) are made of, in one place, so that a model checker
//! can put its own in their stead.

use std::cell::Cell;
pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Adds one, and lets nothing after it happen before it.
pub(super) fn add_one_then_fence(counter: &AtomicU64) {
    if cfg!(any(target_arch = "x86", target_arch = "x86_64")) {
        // An atomic addition is a full barrier on these, and a fence after it would cost twice as much again.
        counter.fetch_add(1, Ordering::SeqCst);
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    } else {
        counter.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

/// A number of this thread's own, given out in order.
pub(super) fn thread_number() -> usize {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    NUMBER.with(|number| {
        if number.get() == usize::MAX {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed) as usize);
        }
        number.get()
    })
}

/// Waits a moment for another thread, longer the more often it was done.
pub(super) fn wait_a_moment(times: u32) {
    if times < 64 {
        std::hint::spin_loop();
    } else {
        // A reader may have lost its processor in the middle of a batch.
        std::thread::yield_now();
    }
}

/// How many threads are counted apart.
pub(super) fn stripes() -> usize {
    let cores = std::thread::available_parallelism().map_or(8, std::num::NonZero::get);
    (4 * cores).next_power_of_two().clamp(16, 256)
}
