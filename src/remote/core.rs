//! What runs on the tier's thread, and what its callers share with it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{sleep, timeout_at};

use super::figures::{Counters, add};
use super::leases::Held;
use super::link::{Fault, Link, Work};
use super::node::Bells;
use super::notices::{Epoch, Heard, Notices, Subject};
use super::queue::Queue;
use super::record::Record;
use super::{Config, Listener};
use crate::domain::Key;

/// How much work is sent in one go.
const WORK_AT_ONCE: usize = 128;
/// How many keys are asked for in one command.
const KEYS_AT_ONCE: usize = 256;
/// How often work is tried that fails.
const WORK_TRIES: u32 = 4;
/// The first pause of writing after a server has refused a write, and the longest.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long what nobody waits for may take, at least and at most: twenty deadlines in between.
const PATIENCE_MIN: Duration = Duration::from_millis(500);
const PATIENCE_MAX: Duration = Duration::from_secs(2);
/// Not known yet.
const NO_OFFSET: i64 = i64::MIN;

/// How far the log has been taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    /// Over which connection; 0 while nothing is served.
    pub(super) generation: u64,
    pub(super) epoch: Epoch,
}

/// See the module's head.
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) link: Arc<dyn Link>,
    pub(super) bells: Bells,
    pub(super) queue: Queue,
    pub(super) counters: Counters,
    pub(super) held: Held,
    pub(super) applied: watch::Sender<Applied>,
    pub(super) sent: watch::Sender<Sent>,
    /// By how much the tier's clock is ahead of this machine's.
    offset_ms: AtomicI64,
    notices: RwLock<Notices>,
    ears: Mutex<Ears>,
}

/// How sending this node's notices goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    /// The newest ticket of those that were sent.
    pub(super) ticket: u64,
    /// How often one could not be.
    pub(super) failures: u64,
}

/// Who hears what others published; until somebody does, it is kept.
#[derive(Default)]
pub(super) struct Ears {
    pub(super) listener: Option<Arc<dyn Listener>>,
    pub(super) unheard: Vec<Heard>,
}

/// What a fetch brought, not yet read.
pub(super) struct Raw {
    pub(super) values: Vec<Option<Vec<u8>>>,
    pub(super) epoch: Epoch,
}

impl Core {
    pub(super) fn new(config: Config, link: Arc<dyn Link>, bells: Bells, notices: Notices, epoch: Epoch) -> Self {
        Self {
            queue: Queue::new(config.queue_bytes_max),
            config,
            link,
            bells,
            counters: Counters::default(),
            held: Held::default(),
            applied: watch::Sender::new(Applied { generation: 0, epoch }),
            sent: watch::Sender::default(),
            offset_ms: AtomicI64::new(NO_OFFSET),
            notices: RwLock::new(notices),
            ears: Mutex::default(),
        }
    }

    pub(super) fn notices(&self) -> RwLockReadGuard<'_, Notices> {
        self.notices.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn notices_mut(&self) -> RwLockWriteGuard<'_, Notices> {
        self.notices.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether everything that others published was told; no while it is being told.
    pub(super) fn is_all_told(&self) -> bool {
        self.ears.try_lock().is_ok_and(|ears| ears.unheard.is_empty())
    }

    pub(super) fn ears(&self) -> MutexGuard<'_, Ears> {
        self.ears.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.applied.borrow().generation != 0
    }

    /// How long what nobody waits for may take.
    pub(super) fn patience(&self) -> Duration {
        (self.config.deadline * 20).clamp(PATIENCE_MIN, PATIENCE_MAX)
    }

    /// The tier's time in Unix seconds, once it is known.
    pub(super) fn now(&self) -> Option<u32> {
        let offset = self.offset_ms.load(Ordering::Relaxed);
        (offset != NO_OFFSET).then(|| u32::try_from((unix_ms() + offset).max(0) / 1000).unwrap_or(u32::MAX))
    }

    /// The tier's clock showed `now_ms` in the middle between two moments, of which the second is now.
    pub(super) fn set_clock(&self, now_ms: u64, since: Instant) {
        let then = unix_ms() - i64::try_from((since.elapsed() / 2).as_millis()).unwrap_or(0);
        self.offset_ms.store(i64::try_from(now_ms).unwrap_or(i64::MAX / 2) - then, Ordering::Relaxed);
    }

    pub(super) fn count(&self, fault: &Fault) {
        match fault {
            Fault::Away => return,
            Fault::Timeout => add(&self.counters.timeouts, 1),
            _ => add(&self.counters.errors, 1),
        }
        self.counters.failed(fault.to_string());
    }

    /// Everything under the keys that may be read now; `None` if the tier serves nothing.
    pub(super) async fn fetch(&self, keys: &[Key], deadline: Instant) -> Option<Raw> {
        let before = *self.applied.borrow();
        if before.generation == 0 {
            return None;
        }
        // In shares: of more than can be had in time, what came in time is served.
        let reads = join_all(keys.chunks(KEYS_AT_ONCE).map(|keys| self.link.read(keys, false, deadline))).await;
        let mut values = Vec::with_capacity(keys.len());
        let mut newest: Option<(u64, Epoch)> = None;
        for read in reads {
            let fault = read.counter.as_ref().err().or(read.values.iter().find_map(|value| value.as_ref().err()));
            fault.into_iter().for_each(|fault| self.count(fault));
            let counter = read.counter.ok().map(|counter| (read.generation, counter));
            newest = newest.max(counter);
            values.extend(read.values.into_iter().map(|value| value.ok().flatten().filter(|_| counter.is_some())));
        }
        let (generation, counter) = newest?;
        if counter < before.epoch {
            // The servers have forgotten notices that this node knows.
            self.bells.change.notify_one();
            return None;
        }
        let epoch = self.caught_up(generation, counter, deadline).await?;
        Some(Raw { values, epoch })
    }

    /// Waits until the log has been taken in up to an epoch that was read over a connection.
    async fn caught_up(&self, generation: u64, counter: Epoch, deadline: Instant) -> Option<Epoch> {
        let is_there = |applied: &Applied| applied.generation == generation && applied.epoch >= counter;
        let mut applied = self.applied.subscribe();
        if !is_there(&applied.borrow()) {
            self.bells.change.notify_one();
        }
        let there = timeout_at(deadline.into(), applied.wait_for(is_there)).await.ok()?.ok()?;
        Some(there.epoch)
    }

    /// The record that bytes are, if it may be served.
    pub(super) fn judge(&self, subject: &Subject<'_>, dims: usize, epoch: Epoch, bytes: &[u8]) -> Option<Record> {
        let record = Record::decode(subject.key, dims, bytes).inspect_err(|&flaw| self.counters.flaw(flaw)).ok()?;
        let expired = record.expires.is_some_and(|time| self.now().is_none_or(|now| time <= now));
        // One from after what has been taken in may have been invalidated in between.
        if expired || record.epoch > epoch || self.notices().outdate(subject, &record) {
            add(&self.counters.outdated, 1);
            return None;
        }
        Some(record)
    }

    pub(super) fn enqueue(&self, work: Work) {
        if !self.queue.push(work) {
            add(&self.counters.dropped, 1);
        }
    }
}

fn unix_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX / 2)
}

fn is_undone(work: &Work, batch: &[Work]) -> bool {
    let is_removal = |other: &Work| matches!(other, Work::Remove { .. }) && other.key() == work.key();
    matches!(work, Work::Set { .. }) && batch.iter().any(is_removal)
}

/// Does what waits, for ever.
pub(super) async fn work(core: Arc<Core>) {
    let mut ready = core.applied.subscribe();
    let mut pause = REFUSED_PAUSE;
    loop {
        let batch = core.queue.take(WORK_AT_ONCE).await;
        let mut left: Vec<Work> = batch.clone();
        let mut refused = false;
        for attempt in 0..WORK_TRIES {
            if attempt > 0 {
                sleep(REFUSED_PAUSE * attempt).await;
            }
            if ready.wait_for(|applied| applied.generation != 0).await.is_err() {
                return;
            }
            let results = core.link.work(&left, Instant::now() + core.patience()).await;
            let mut again = Vec::new();
            for (work, result) in left.into_iter().zip(results) {
                let is_record = matches!(work, Work::Set { .. });
                match result {
                    Ok(()) => add(&core.counters.stores, usize::from(is_record)),
                    Err(fault) if fault.is_of_writes() && is_record => {
                        core.count(&fault);
                        add(&core.counters.refused, 1);
                        refused = true;
                    }
                    Err(fault) => {
                        core.count(&fault);
                        again.push(work);
                    }
                }
            }
            // What was to be forgotten after it was kept must not come back.
            again.retain(|work| !is_undone(work, &batch));
            left = again;
            if left.is_empty() {
                break;
            }
        }
        add(&core.counters.dropped, left.len());
        core.queue.done(&batch);
        if refused {
            sleep(pause).await;
            pause = (pause * 2).min(REFUSED_PAUSE_MAX);
        } else {
            pause = REFUSED_PAUSE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_later_is_not_tried_again() {
        let [one, other] = [1, 2].map(|byte| Key::from_bytes([byte; 32]));
        let set = |key| Work::Set { key, bytes: [].into(), ttl_ms: 1, lease: None };
        let batch = [set(one), Work::Remove { key: one }, set(other)];
        assert_eq!(batch.each_ref().map(|work| is_undone(work, &batch)), [true, false, false]);
    }
}
