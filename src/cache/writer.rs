//! The thread that stores what was computed and then answers who waits: the last step of a miss.
//!
//! Whatever has arrived is stored together, so that one sync serves all of it. A store that cannot write does not fail
//! a request: the vector is answered, and the failure counted and logged.

use std::borrow::Cow;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Shared;
use super::flight::{Attached, Call, Landed, Particulars, Spent};
use super::remote::{self, Passage};
use crate::domain::{Embedding, Key, Status, TokenKey};
use crate::remote::Record;
use crate::store::NewEntry;

/// The most landings that wait for the writer; past it the engine's thread waits.
const WAITING_MAX: usize = 4096;
/// The most landings stored together.
const TOGETHER_MAX: usize = 512;

/// A vector on its way to the store and to those who wait for it.
pub(super) struct Landing {
    pub(super) embedding: Arc<Embedding>,
    pub(super) tokens: u32,
    pub(super) token_key: TokenKey,
    pub(super) spent: Spent,
    pub(super) to: Destination,
    /// What the shared tier has to do with it.
    pub(super) passage: Passage,
}

/// Who gets a landing.
pub(super) enum Destination {
    /// Everyone gathered under the token key; the first with the given status.
    Gathered(Status),
    /// One call outside the maps, stored over what is there, or not at all.
    Alone { call: Arc<Call>, truncated: bool, replace: bool },
}

enum Message {
    Land(Box<Landing>),
    /// Answered when everything sent before has landed.
    Flush(SyncSender<()>),
}

/// A handle to the writer's thread. The thread ends when the last handle is gone.
#[derive(Clone)]
pub(super) struct Writer {
    sender: SyncSender<Message>,
}

impl Writer {
    pub(super) fn start(shared: Arc<Shared>) -> (Self, WriterThread) {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let thread = std::thread::Builder::new()
            .name("vecmemo-writer".to_owned())
            .spawn(move || run(&shared, &receiver))
            .expect("the system can start one more thread at start-up");
        (Self { sender }, WriterThread(Mutex::new(Some(thread))))
    }

    /// Hands a landing over. Waits only when the writer is far behind.
    pub(super) fn land(&self, landing: Landing) {
        self.sender.send(Message::Land(Box::new(landing))).expect("the writer's thread outlives its handles");
    }

    /// Waits until everything handed over before has landed.
    pub(super) fn flush(&self) {
        let (sender, receiver) = sync_channel(1);
        self.sender.send(Message::Flush(sender)).expect("the writer's thread outlives its handles");
        receiver.recv().expect("the writer answers every flush");
    }
}

/// The thread itself, to be waited for when all handles are gone.
pub(super) struct WriterThread(Mutex<Option<JoinHandle<()>>>);

impl WriterThread {
    pub(super) fn join(&self) {
        let thread = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last handle can be dropped by the engine's thread or by the writer's own: nobody waits for itself.
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the writer's thread had panicked");
        }
    }
}

fn run(shared: &Shared, receiver: &Receiver<Message>) {
    while let Ok(first) = receiver.recv() {
        let mut landings = Vec::new();
        let mut flushes = Vec::new();
        for message in std::iter::once(first).chain(receiver.try_iter()).take(TOGETHER_MAX) {
            match message {
                Message::Land(landing) => landings.push(*landing),
                Message::Flush(sender) => flushes.push(sender),
            }
        }
        land(shared, &landings);
        for sender in flushes {
            // Who asked may have given up.
            let _ = sender.send(());
        }
    }
}

/// Stores the landings, and answers their calls and those that gathered while they were stored. Who comes after an answer
/// finds the store, not the landing: a vector that is marked or removed by then is lent to nobody.
fn land(shared: &Shared, landings: &[Landing]) {
    let mut gathering: Vec<&Landing> = Vec::new();
    let mut calls: Vec<Approach<'_>> = Vec::new();
    for landing in landings {
        match &landing.to {
            Destination::Gathered(status) => {
                // The first is the one the vector was made for; the others had the same ids.
                let statuses = std::iter::once(*status).chain(std::iter::repeat(Status::Joined));
                let gathered = shared.flights.gathered(&landing.token_key).into_iter().zip(statuses);
                calls.extend(gathered.map(|(attached, status)| Approach::of(landing, attached, status)));
                gathering.push(landing);
            }
            Destination::Alone { call, truncated, replace } => {
                let attached = Attached { call: Arc::clone(call), truncated: *truncated };
                let approach = Approach::of(landing, attached, Status::Computed);
                calls.push(Approach { stored: *replace, replace: *replace, ..approach });
            }
        }
    }
    let write = store(shared, &mut calls);
    let mut late: Vec<Approach<'_>> = Vec::new();
    for landing in gathering {
        let attached = shared.flights.close(&landing.token_key).into_iter();
        late.extend(attached.map(|attached| Approach::of(landing, attached, Status::Joined)));
    }
    answer(shared, &calls, write);
    let write = store(shared, &mut late);
    answer(shared, &late, write);
}

/// A call about to land.
struct Approach<'a> {
    landing: &'a Landing,
    call: Arc<Call>,
    status: Status,
    truncated: bool,
    stored: bool,
    replace: bool,
}

impl<'a> Approach<'a> {
    fn of(landing: &'a Landing, Attached { call, truncated }: Attached, status: Status) -> Self {
        let replace = call.particulars.refreshes;
        Self { landing, call, status, truncated, stored: true, replace }
    }

    /// What the shared tier has under the call's key, if that is what lands.
    fn brought(&self) -> Option<&'a Record> {
        match (&self.landing.passage, self.status) {
            (Passage::From(record), Status::Remote) => Some(record),
            _ => None,
        }
    }
}

/// What was removed while it was computed anew in the background does not come back by that.
fn leave_out_removed(shared: &Shared, calls: &mut [Approach<'_>]) {
    let mut refreshing: Vec<&mut Approach<'_>> =
        calls.iter_mut().filter(|approach| approach.call.particulars.refreshes).collect();
    if refreshing.is_empty() {
        return;
    }
    let keys: Vec<Key> = refreshing.iter().map(|approach| approach.call.key).collect();
    for (approach, entry) in refreshing.iter_mut().zip(shared.store.contains_many(&keys, shared.now())) {
        approach.stored = entry.is_some();
    }
}

/// Stores what is to be stored. Answers with how long that took.
fn store(shared: &Shared, calls: &mut [Approach<'_>]) -> Duration {
    let started = Instant::now();
    leave_out_removed(shared, calls);
    let to_store: Vec<(&Approach<'_>, Cow<'_, Particulars>)> = calls
        .iter()
        .filter(|approach| approach.stored)
        .map(|approach| (approach, remote::particulars(shared, &approach.call.particulars, approach.brought())))
        .collect();
    let entries: Vec<NewEntry<'_>> = to_store
        .iter()
        .map(|(approach, particulars)| {
            let Approach { landing, call, status, truncated, replace, .. } = approach;
            let embedding = &landing.embedding;
            NewEntry {
                tokens: landing.tokens,
                truncated: *truncated,
                expires: particulars.expires,
                token_key: matches!(status, Status::Computed | Status::Remote).then_some(landing.token_key),
                tags: &particulars.tags,
                payload: particulars.payload.as_deref(),
                pinned: particulars.pinned,
                refresh_ahead: particulars.refresh_ahead,
                durability: particulars.durability,
                quota: particulars.quota,
                replace: *replace,
                copied: approach.brought().map_or(*status != Status::Computed, |record| record.copied),
                stale: approach.brought().is_some_and(|record| record.stale),
                ..NewEntry::new(call.key, &embedding.unit, embedding.norm, &particulars.namespace)
            }
        })
        .collect();
    if !entries.is_empty() {
        let stored = shared.store.put_many(&entries, shared.now());
        shared.metrics.observe_write(stored.is_ok());
        if let Err(error) = stored {
            // With its causes: which file, and what the system said.
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::error!(
                entries = entries.len(),
                error,
                "what was computed could not be stored; it is answered all the same"
            );
        }
    }
    for (entry, (approach, _)) in entries.iter().zip(&to_store) {
        remote::keep(shared, entry, &approach.landing.passage);
    }
    started.elapsed()
}

fn answer(shared: &Shared, calls: &[Approach<'_>], write: Duration) {
    let endings = calls.iter().map(|Approach { landing, call, status, truncated, .. }| {
        let landed = Landed {
            embedding: Arc::clone(&landing.embedding),
            status: *status,
            tokens: landing.tokens,
            truncated: *truncated,
            spent: Spent { write, ..landing.spent },
        };
        (call, Ok(Arc::new(landed)))
    });
    shared.flights.land(endings);
}
