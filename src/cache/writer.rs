//! The thread that stores what was computed and then answers who waits: the last step of a miss.
//!
//! Whatever has arrived is stored together, so that one sync serves all of it. A store that cannot write does not fail
//! a request: the vector is answered, and the failure counted and logged.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::Shared;
use super::flight::{Attached, Call, Landed, Spent};
use crate::domain::{Embedding, Status, TokenKey};
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

/// Stores the landings and answers their calls; again for calls that gathered meanwhile, until none did.
fn land(shared: &Shared, landings: &[Landing]) {
    let mut open: Vec<(&Landing, Status)> = Vec::new();
    let mut calls: Vec<Approach<'_>> = Vec::new();
    for landing in landings {
        match &landing.to {
            Destination::Gathered(status) => open.push((landing, *status)),
            Destination::Alone { call, truncated, replace } => {
                let approach = Approach::new(landing, Arc::clone(call), Status::Computed, *truncated);
                calls.push(Approach { stored: *replace, replace: *replace, ..approach });
            }
        }
    }
    loop {
        open.retain_mut(|(landing, status)| {
            let Some(gathered) = shared.flights.gathered(&landing.token_key) else { return false };
            for Attached { call, truncated } in gathered {
                // The first is the one the vector was made for; the others had the same ids.
                calls.push(Approach::new(landing, call, std::mem::replace(status, Status::Joined), truncated));
            }
            true
        });
        if calls.is_empty() {
            return;
        }
        store_and_answer(shared, std::mem::take(&mut calls));
    }
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
    fn new(landing: &'a Landing, call: Arc<Call>, status: Status, truncated: bool) -> Self {
        Self { landing, call, status, truncated, stored: true, replace: false }
    }
}

fn store_and_answer(shared: &Shared, calls: Vec<Approach<'_>>) {
    let started = Instant::now();
    let entries: Vec<NewEntry<'_>> = calls
        .iter()
        .filter(|approach| approach.stored)
        .map(|Approach { landing, call, status, truncated, replace, .. }| NewEntry {
            key: call.key,
            unit: &landing.embedding.unit,
            norm: landing.embedding.norm,
            tokens: landing.tokens,
            truncated: *truncated,
            namespace: &call.particulars.namespace,
            expires: call.particulars.expires,
            token_key: (*status == Status::Computed).then_some(landing.token_key),
            tags: &call.particulars.tags,
            replace: *replace,
            copied: *status != Status::Computed,
        })
        .collect();
    if !entries.is_empty() {
        let stored = shared.store.put_many(&entries, shared.now());
        shared.metrics.observe_write(stored.is_ok());
        if let Err(error) = stored {
            tracing::error!(entries = entries.len(), %error, "what was computed could not be stored; it is answered all the same");
        }
    }
    let write = started.elapsed();
    let endings: Vec<_> = calls
        .iter()
        .map(|Approach { landing, call, status, truncated, .. }| {
            let landed = Landed {
                embedding: Arc::clone(&landing.embedding),
                status: *status,
                tokens: landing.tokens,
                truncated: *truncated,
                spent: Spent { write, ..landing.spent },
            };
            (call, Ok(Arc::new(landed)))
        })
        .collect();
    shared.flights.land(endings);
}
