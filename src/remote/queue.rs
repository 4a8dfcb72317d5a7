//! Work that nobody waits for: bounded in bytes, done in its order, dropped when there is no room.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::link::Work;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Queue {
    bytes_max: usize,
    waiting: Mutex<Waiting>,
    filled: Notify,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    work: VecDeque<Work>,
    /// Of what waits and of what is being done.
    bytes: usize,
    taken: usize,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, waiting: Mutex::default(), filled: Notify::new(), emptied: Notify::new() }
    }

    /// False if there is no room for it.
    pub(super) fn push(&self, work: Work) -> bool {
        let mut waiting = self.waiting();
        let bytes = waiting.bytes + work.bytes();
        if bytes > self.bytes_max {
            return false;
        }
        waiting.bytes = bytes;
        waiting.work.push_back(work);
        drop(waiting);
        self.filled.notify_one();
        true
    }

    /// The next ones, at most `count`, as soon as there are any. They count as waiting until they are [`done`](Self::done).
    pub(super) async fn take(&self, count: usize) -> Vec<Work> {
        loop {
            {
                let mut waiting = self.waiting();
                let count = count.min(waiting.work.len());
                if count > 0 {
                    waiting.taken += count;
                    return waiting.work.drain(..count).collect();
                }
            }
            self.filled.notified().await;
        }
    }

    /// Makes room: they were done, or given up.
    pub(super) fn done(&self, work: &[Work]) {
        let mut waiting = self.waiting();
        waiting.bytes = waiting.bytes.saturating_sub(work.iter().map(Work::bytes).sum());
        waiting.taken = waiting.taken.saturating_sub(work.len());
        if waiting.taken == 0 && waiting.work.is_empty() {
            drop(waiting);
            self.emptied.notify_waiters();
        }
    }

    /// Returns once nothing waits and nothing is being done.
    pub(super) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.len() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// How many wait or are being done.
    pub(super) fn len(&self) -> usize {
        let waiting = self.waiting();
        waiting.work.len() + waiting.taken
    }

    pub(super) fn bytes(&self) -> usize {
        self.waiting().bytes
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Key;

    fn remove(byte: u8) -> Work {
        Work::Remove { key: Key::from_bytes([byte; 32]) }
    }

    #[tokio::test]
    async fn what_has_no_room_is_refused_until_work_is_done() {
        let queue = Queue::new(2 * remove(0).bytes());
        assert!(queue.push(remove(1)) && queue.push(remove(2)) && !queue.push(remove(3)));
        let taken = queue.take(1).await;
        assert_eq!(taken, [remove(1)]);
        assert!(!queue.push(remove(3)), "what is being done takes room");
        queue.done(&taken);
        assert!(queue.push(remove(4)));
        assert_eq!(queue.take(9).await, [remove(2), remove(4)]);
        assert_eq!(queue.len(), 2);
        queue.done(&[remove(2), remove(4)]);
        queue.empty().await;
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }
}
