//! Waiting for what another node computes: all that is followed is looked at together, ever less often.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout_at;

use super::Asked;
use super::core::Core;
use super::figures::add;
use super::notices::Subject;
use super::record::Record;
use crate::domain::{Key, ModelVersion, Namespace};

/// The first and the longest pause between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// The most looked at in one go.
const AT_ONCE: usize = 512;

/// What is done with what came of it.
pub(super) type Then = Box<dyn FnOnce(Option<Record>) + Send>;

/// One key that another node holds the lease of.
pub(super) struct Followed {
    pub(super) key: Key,
    pub(super) namespace: Namespace,
    pub(super) model: ModelVersion,
    pub(super) dims: usize,
    pub(super) until: Instant,
    pub(super) then: Then,
    pause: Duration,
    due: Instant,
    /// The lease was seen gone, and no record yet.
    ended: bool,
}

impl Followed {
    pub(super) fn new(key: Key, asked: &Asked<'_>, until: Instant, then: Then) -> Self {
        let (namespace, model) = (asked.namespace.clone(), *asked.model);
        let due = Instant::now() + PAUSE_MIN;
        Self { key, namespace, model, dims: asked.dims, until, then, pause: PAUSE_MIN, due, ended: false }
    }
}

/// Looks after everything that comes, for ever.
pub(super) async fn follow(core: Arc<Core>, mut incoming: mpsc::UnboundedReceiver<Followed>) {
    let mut followed: Vec<Followed> = Vec::new();
    loop {
        let next = followed.iter().map(|one| one.due).min();
        let came = match next {
            Some(due) => timeout_at(due.into(), incoming.recv()).await.ok(),
            None => Some(incoming.recv().await),
        };
        match came {
            Some(Some(one)) => {
                followed.push(one);
                continue;
            }
            Some(None) => return,
            None => {}
        }
        let now = Instant::now();
        let (mut due, later): (Vec<_>, Vec<_>) = followed.into_iter().partition(|one| one.due <= now);
        followed = later;
        followed.extend(due.split_off(due.len().min(AT_ONCE)));
        followed.extend(look(&core, due).await);
    }
}

/// Looks once. What is left is to be looked at again.
async fn look(core: &Core, due: Vec<Followed>) -> Vec<Followed> {
    let keys: Vec<Key> = due.iter().map(|one| one.key).collect();
    // Nobody waits for this one look, and many keys may be looked at: the deadline of fetches is not meant.
    let read = core.link.read(&keys, true, Instant::now() + core.patience() / 4).await;
    let applied = *core.applied.borrow();
    let is_current =
        read.counter.is_ok_and(|counter| applied.epoch >= counter && applied.generation == read.generation);
    if !is_current {
        core.bells.change.notify_one();
    }
    let mut left = Vec::new();
    let now = Instant::now();
    for ((mut one, value), leased) in due.into_iter().zip(read.values).zip(read.leased) {
        let subject = Subject { namespace: &one.namespace, model: &one.model, key: &one.key };
        let found = match value {
            Ok(Some(bytes)) if is_current => core.judge(&subject, one.dims, applied.epoch, &bytes),
            Ok(_) => None,
            Err(_) => {
                spawn_blocking(move || (one.then)(None));
                continue;
            }
        };
        let is_over = one.until <= now || !core.is_ready() || (!leased && one.ended && is_current);
        if found.is_some() || is_over {
            if found.is_none() {
                add(&core.counters.leases_expired, 1);
            }
            spawn_blocking(move || (one.then)(found));
            continue;
        }
        // In a cluster lease and record are read side by side: the record may have come just after it was looked for.
        one.ended = !leased;
        one.pause = if leased { (one.pause * 3 / 2).min(PAUSE_MAX) } else { PAUSE_MIN };
        one.due = now + one.pause;
        left.push(one);
    }
    left
}
