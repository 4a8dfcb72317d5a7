//! Bounds on memory, shared by all requests: room is reserved before it is used and given back when it is dropped.
//!
//! A quarter of each bound is kept for small reservations. What is large may last (a body that comes by drops, an answer that
//! nobody reads) and then keeps only others that are large waiting.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One permit.
const GRAIN_BYTES: usize = 1024;

/// Of the whole, one part in so many is kept for small reservations.
const KEPT_ONE_IN: usize = 4;

/// The largest small reservation: a body of some dozen texts, or as many vectors of an answer. Less where the whole is small.
const SMALL_BYTES_MAX: usize = 64 << 10;
const SMALL_ONE_IN: usize = 16;

/// So many bytes for all together.
pub(super) struct Memory {
    small: Part,
    large: Part,
    small_bytes_max: usize,
}

/// Room reserved; given back on drop.
pub(super) type Room = OwnedSemaphorePermit;

impl Memory {
    pub(super) fn new(bytes_max: usize) -> Self {
        let small = bytes_max / KEPT_ONE_IN;
        Self {
            small: Part::new(small),
            large: Part::new(bytes_max - small),
            small_bytes_max: SMALL_BYTES_MAX.min(bytes_max / SMALL_ONE_IN),
        }
    }

    /// What is there for a reservation that is not small, of a bound of so many bytes.
    pub(super) fn large_bytes(bytes_max: usize) -> usize {
        bytes_max - bytes_max / KEPT_ONE_IN
    }

    /// Waits for room, first come first served. Who needs more than there is at all gets everything, alone.
    pub(super) async fn reserve(&self, bytes: usize) -> Room {
        self.part(bytes).reserve(bytes).await
    }

    /// Room, if there is some now.
    pub(super) fn try_reserve(&self, bytes: usize) -> Option<Room> {
        self.part(bytes).try_reserve(bytes)
    }

    /// How much is reserved.
    pub(super) fn reserved_bytes(&self) -> usize {
        self.small.reserved_bytes() + self.large.reserved_bytes()
    }

    fn part(&self, bytes: usize) -> &Part {
        if bytes <= self.small_bytes_max { &self.small } else { &self.large }
    }
}

struct Part {
    grains: Arc<Semaphore>,
    grains_max: u32,
}

impl Part {
    fn new(bytes_max: usize) -> Self {
        let grains_max = u32::try_from(bytes_max.div_ceil(GRAIN_BYTES)).unwrap_or(u32::MAX).max(1);
        Self { grains: Arc::new(Semaphore::new((grains_max as usize).min(Semaphore::MAX_PERMITS))), grains_max }
    }

    fn grains(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(GRAIN_BYTES)).unwrap_or(u32::MAX).clamp(1, self.grains_max)
    }

    async fn reserve(&self, bytes: usize) -> Room {
        let reserving = Arc::clone(&self.grains).acquire_many_owned(self.grains(bytes));
        reserving.await.expect("the semaphore is never closed")
    }

    fn try_reserve(&self, bytes: usize) -> Option<Room> {
        Arc::clone(&self.grains).try_acquire_many_owned(self.grains(bytes)).ok()
    }

    fn reserved_bytes(&self) -> usize {
        (self.grains_max as usize).saturating_sub(self.grains.available_permits()) * GRAIN_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn reservations_never_exceed_the_bound_and_come_back() {
        let memory = Memory::new(4096);
        let first = memory.reserve(2000).await;
        assert_eq!(memory.reserved_bytes(), 2048);
        assert!(memory.reserve(2000).now_or_never().is_none());
        drop(first);
        let all = memory.reserve(1 << 40).await;
        assert_eq!(memory.reserved_bytes(), Memory::large_bytes(4096));
        drop(all);
        assert_eq!(memory.reserved_bytes(), 0);
    }

    #[tokio::test]
    async fn large_reservations_leave_room_for_small_ones_which_are_bounded_too() {
        let memory = Memory::new(64 << 10);
        let _large = memory.reserve(1 << 40).await;
        assert!(memory.try_reserve(8 << 10).is_none());
        let small: Vec<Room> = std::iter::from_fn(|| memory.try_reserve(4 << 10)).collect();
        assert_eq!((small.len(), memory.reserved_bytes()), (4, 64 << 10));
        assert!(memory.reserve(100).now_or_never().is_none());
    }
}
