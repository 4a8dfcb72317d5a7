//! Keeping up with the log of invalidations, and giving back what it has lost.
//!
//! One task does it, so notices are sent, taken in and told in one order. It looks once a second, at once when a fetch has
//! seen a newer epoch or a connection was made, and soon after the servers have hinted that something was published.
//!
//! ```text
//! connected ─► read the log ── the first time on this connection: all of it ─► give back what it lacks
//!                  │ else what is new                                              │
//!                  ▼                                                               ▼
//!              take it in ─► tell the listener ─► send what waits ─► keep the place on disk ─► records are served
//!                                                     └─► a replica has it, or time is up ─► who published is answered
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::core::{Applied, Core};
use super::figures::add;
use super::link::{Fault, Page};
use super::notices::{Epoch, Heard, Logged, NOTICE_KEYS_MAX, Notice};
use super::state::State;

/// How often the log is looked at when nothing hints at it.
const LOOK: Duration = Duration::from_secs(1);
/// The least time between two looks that hints cause.
const HINTS: Duration = Duration::from_millis(20);
/// When to look again after a failure, while there is a connection.
const AGAIN: Duration = Duration::from_millis(50);
/// The least time between two writings of the place alone: a restart then hears a little twice.
const KEEP: Duration = Duration::from_secs(1);
/// How many notices are taken in before those who judge records get their turn.
const AT_ONCE: usize = 512;

/// How many notices are sent before a replica is waited for.
const CONFIRMED_AT_ONCE: usize = 64;

/// Keeps up, for ever. `known` says whether this node has read the log before it was started.
pub(super) async fn keep_up(core: Arc<Core>, known: bool) {
    let mut follower = Follower { core, first: Some(known), kept: State::default(), kept_at: None };
    loop {
        let mut look = LOOK;
        if let Err(fault) = follower.catch_up().await {
            follower.core.count(&fault);
            let generation = follower.core.link.generation();
            if generation != 0 {
                look = AGAIN;
            }
            // On the same connection each fetch still finds out by itself whether there is something new.
            follower.core.applied.send_if_modified(|applied| {
                let is_gone = applied.generation != 0 && applied.generation != generation;
                if is_gone {
                    applied.generation = 0;
                }
                is_gone
            });
        }
        follower.keep_state().await;
        let bells = follower.core.bells.clone();
        tokio::select! {
            () = bells.change.notified() => {}
            () = sleep(look) => {}
            () = bells.hint.notified() => {
                tokio::select! {
                    () = bells.change.notified() => {}
                    () = sleep(HINTS) => {}
                }
            }
        }
    }
}

struct Follower {
    core: Arc<Core>,
    /// Whether the log was read by an earlier process, until it has been read by this one.
    first: Option<bool>,
    kept: State,
    kept_at: Option<Instant>,
}

impl Follower {
    async fn catch_up(&mut self) -> Result<(), Fault> {
        let core = Arc::clone(&self.core);
        let generation = core.link.generation();
        if generation == 0 {
            return Err(Fault::Away);
        }
        let applied = *core.applied.borrow();
        let is_new = applied.generation != generation;
        let (mut log, mut from) = (None, applied.epoch);
        if !is_new {
            let found = self.read(applied.epoch).await?;
            if found.counter >= applied.epoch {
                log = Some(found);
            }
        }
        let log = match log {
            Some(log) => log,
            None => {
                let (found, lost) = self.reconcile(applied.epoch).await?;
                // A log that has fewer than this node read before its end is another, or was turned back.
                if lost && self.first.is_some() {
                    from = 0;
                }
                found
            }
        };
        self.take_in(&log, from).await;
        let mut epoch = log.counter.max(applied.epoch);
        // Only now: servers that have forgotten the log would put it before what they have forgotten.
        match self.send_pending(epoch).await {
            // What waits outdates records here as it is: it stops nobody from reading.
            Err(fault) if fault.is_of_writes() => core.count(&fault),
            sent => {
                if sent? {
                    let log = self.read(epoch).await?;
                    self.take_in(&log, epoch).await;
                    epoch = log.counter.max(epoch);
                }
            }
        }
        if core.link.generation() != generation {
            core.bells.change.notify_one();
            return Err(Fault::Away);
        }
        let now = Applied { generation, epoch };
        core.applied.send_if_modified(|applied| std::mem::replace(applied, now) != now);
        Ok(())
    }

    /// Sends what this node has published, in its order, after what it has taken in. True if there was anything.
    async fn send_pending(&mut self, taken_in: Epoch) -> Result<bool, Fault> {
        let mut any = false;
        loop {
            let mut sent = Vec::new();
            let more = self.send_some(taken_in, &mut sent).await;
            any |= !sent.is_empty();
            self.confirm(sent);
            if !more? {
                return Ok(any);
            }
        }
    }

    /// Sends some of it. True if there may be more.
    async fn send_some(&mut self, taken_in: Epoch, sent: &mut Vec<(Logged, Option<u64>)>) -> Result<bool, Fault> {
        let core = Arc::clone(&self.core);
        while sent.len() < CONFIRMED_AT_ONCE {
            let Some(text) = core.notices().first_pending() else { return Ok(false) };
            let retention_ms = u64::try_from(core.config.ttl_max.as_millis()).unwrap_or(u64::MAX);
            let published = core.link.publish(&text, retention_ms, taken_in, Instant::now() + core.patience()).await;
            let (logged, before) = published.inspect_err(|_| core.sent.send_modify(|sent| sent.failures += 1))?;
            let known = core.notices().epoch_of_text(&text);
            if before > taken_in.max(known) {
                // Another node has said the same meanwhile, and later than this one did it here.
                let notice = Notice::from_text(&text);
                self.tell(vec![Heard { notice, epoch: logged.epoch, published: logged.time }]).await;
            }
            let ticket = {
                let mut notices = core.notices_mut();
                notices.merge(&logged);
                // Another may have been put in its place meanwhile, which says more.
                match notices.first_pending() == Some(text) {
                    true => notices.pop_pending(),
                    false => None,
                }
            };
            add(&core.counters.notices_sent, 1);
            sent.push((logged, ticket));
        }
        Ok(true)
    }

    /// Tells those who wait that their notices were sent, as soon as a replica has them, or a short time is over. Nothing else waits for that.
    fn confirm(&self, sent: Vec<(Logged, Option<u64>)>) {
        let Some((last, _)) = sent.last().cloned() else { return };
        let core = Arc::clone(&self.core);
        tokio::spawn(async move {
            let patience = core.config.deadline.min(core.patience() / 5);
            // What was published before it is in every replica that has the last.
            if core.link.confirm(&last, patience).await == Some(false) {
                add(&core.counters.notices_unconfirmed, sent.len());
            }
            if let Some(newest) = sent.iter().filter_map(|(_, ticket)| *ticket).max() {
                core.sent.send_modify(|sent| sent.ticket = sent.ticket.max(newest));
            }
        });
    }

    /// The log after an epoch, whole.
    async fn read(&self, from: Epoch) -> Result<Page, Fault> {
        let core = &self.core;
        let mut all = Page::default();
        let mut after = from;
        loop {
            let asked = Instant::now();
            let page = core.link.since(after, asked + core.patience()).await?;
            core.set_clock(page.now_ms, asked);
            let (more, last) = (page.more, page.notices.last().map(|logged| logged.epoch));
            all = Page { notices: [all.notices, page.notices].concat(), ..page };
            match last.filter(|&last| more && last > after) {
                Some(last) => after = last,
                None => return Ok(all),
            }
        }
    }

    /// Reads all of the log and gives back what it lacks. The second is true if the log had forgotten something.
    async fn reconcile(&self, applied: Epoch) -> Result<(Page, bool), Fault> {
        let core = &self.core;
        let page = self.read(0).await?;
        let log: HashMap<Arc<str>, Epoch> =
            page.notices.iter().map(|logged| (Arc::clone(&logged.text), logged.epoch)).collect();
        let mut missing: Vec<Logged> = core.notices().missing_in(&log);
        missing.retain(|logged| logged.epoch > page.floor);
        missing.sort_unstable_by_key(|logged| logged.epoch);
        if missing.is_empty() && page.counter >= applied {
            return Ok((page, false));
        }
        tracing::warn!(
            notices = missing.len(),
            epoch = page.counter,
            known = applied,
            "the shared tier had lost invalidations, and is given them again"
        );
        core.link.restore(&missing, applied, Instant::now() + core.patience()).await?;
        add(&core.counters.notices_restored, missing.len());
        Ok((self.read(0).await?, true))
    }

    /// Takes in what is new, and tells it. `from` is how far the listener has heard.
    async fn take_in(&mut self, log: &Page, from: Epoch) {
        let core = Arc::clone(&self.core);
        let first = self.first.take();
        let mut heard = Vec::new();
        // What was pruned unread may have meant anything.
        if from < log.floor && first != Some(false) {
            heard.push(Heard { notice: Notice::everything(true), epoch: log.floor, published: u32::MAX });
        }
        for some in log.notices.chunks(AT_ONCE) {
            let mut notices = core.notices_mut();
            for logged in some {
                if notices.merge(logged) && (first.is_none() || logged.epoch > from) {
                    let notice = Notice::from_text(&logged.text);
                    heard.push(Heard { notice, epoch: logged.epoch, published: logged.time });
                }
            }
        }
        core.notices_mut().raise_floor(log.floor);
        self.tell(heard).await;
    }

    /// Has the listener carry out what others have published.
    async fn tell(&self, heard: Vec<Heard>) {
        add(&self.core.counters.notices_received, heard.len());
        if heard.is_empty() {
            return;
        }
        let core = Arc::clone(&self.core);
        let told = spawn_blocking(move || tell(&core, heard)).await;
        if let Err(error) = told {
            tracing::error!(%error, "invalidations of other nodes were not carried out here");
        }
    }

    /// Keeps the place and what waits, if either has changed.
    async fn keep_state(&mut self) {
        let Some(path) = self.core.config.state_file.clone() else { return };
        let mut state = State::new(self.core.applied.borrow().epoch, &self.core.notices().pending());
        if !self.core.is_all_told() {
            // What nobody was told yet is heard again by the next start.
            state.epoch = self.kept.epoch;
        }
        let is_recent = self.kept_at.is_some_and(|at| at.elapsed() < KEEP);
        if state == self.kept || (is_recent && state.pending == self.kept.pending) {
            return;
        }
        self.kept_at = Some(Instant::now());
        let written = state.clone();
        match spawn_blocking(move || written.write(&path)).await {
            Ok(Ok(())) => self.kept = state,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the place in the log of invalidations cannot be kept");
                self.core.counters.failed(format!("the state file cannot be written: {error}"));
            }
            Err(error) => tracing::error!(%error, "the place in the log of invalidations was not kept"),
        }
    }
}

/// Tells what others published, or keeps it until somebody listens.
fn tell(core: &Core, heard: Vec<Heard>) {
    // Held while it is told: what comes later is told later.
    let mut ears = core.ears();
    ears.unheard.extend(heard);
    if let Some(listener) = ears.listener.clone() {
        listener.invalidated(&std::mem::take(&mut ears.unheard), core.now().unwrap_or(0));
    }
}

/// A notice cut so that none of its parts has more keys than one may have.
pub(super) fn parts(notice: &Notice) -> Vec<Notice> {
    if notice.keys.len() <= NOTICE_KEYS_MAX {
        return vec![notice.clone()];
    }
    notice.keys.chunks(NOTICE_KEYS_MAX).map(|keys| Notice { keys: keys.to_vec(), ..notice.clone() }).collect()
}
