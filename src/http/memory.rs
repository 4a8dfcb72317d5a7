//! A bound on memory, shared by all requests: room is reserved before it is used and given back when it is dropped.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One permit.
const GRAIN_BYTES: usize = 1024;

/// So many bytes for all together.
pub(super) struct Memory {
    grains: Arc<Semaphore>,
    grains_max: u32,
}

/// Room reserved; given back on drop.
pub(super) type Room = OwnedSemaphorePermit;

impl Memory {
    pub(super) fn new(bytes_max: usize) -> Self {
        let grains_max = u32::try_from(bytes_max.div_ceil(GRAIN_BYTES)).unwrap_or(u32::MAX).max(1);
        Self { grains: Arc::new(Semaphore::new((grains_max as usize).min(Semaphore::MAX_PERMITS))), grains_max }
    }

    /// Waits for room, first come first served. Who needs more than there is at all gets everything, alone.
    pub(super) async fn reserve(&self, bytes: usize) -> Room {
        let grains = u32::try_from(bytes.div_ceil(GRAIN_BYTES)).unwrap_or(u32::MAX).clamp(1, self.grains_max);
        let grains_of_all = Arc::clone(&self.grains);
        grains_of_all.acquire_many_owned(grains).await.expect("the semaphore is never closed")
    }

    /// How much is reserved.
    pub(super) fn reserved_bytes(&self) -> usize {
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
        let first = memory.reserve(3000).await;
        assert_eq!(memory.reserved_bytes(), 3072);
        assert!(memory.reserve(2000).now_or_never().is_none());
        drop(first);
        let all = memory.reserve(1 << 40).await;
        assert_eq!(memory.reserved_bytes(), 4096);
        drop(all);
        assert_eq!(memory.reserved_bytes(), 0);
    }
}
