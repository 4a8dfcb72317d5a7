//! What is on its way right now, so that nothing is computed twice at once.
//!
//! A *call* is one text key being answered. The first to ask for a key leads its call; everyone after joins it. Calls
//! whose texts turn out to have the same token ids gather under one token key, which is computed once. One lock guards
//! both maps, so "is it on its way?" and "then I lead it" are one step.
//!
//! ```text
//!            join                    attach                     wanted? ── nobody waits ─► abandoned
//!  (nothing) ────► text call ───────────────► token key ──────────┤
//!                    ▲  joined by others        ▲ more calls      └─ computed ─► written ─► landed (all waiters answered)
//!                                                                     or failed ──────────► landed with the failure
//! ```
//!
//! A call is as urgent as the most urgent of those who ask for it: who joins from a lane that goes before the call's raises
//! the ticket of the job that computes it, and gets that ticket back to tell the queue, whose lock is never taken here.
//!
//! A key leaves the maps only after its vector stands in the store: who finds neither a call nor an entry may lead.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::batch::{JobError, Ticket};
use crate::domain::{Embedding, Key, Lane, Namespace, Status, TokenKey, UnusableVector};
use crate::store::Durability;

/// How a call ended.
pub(super) type Outcome = Result<Arc<Landed>, Failure>;

/// An answered call.
#[derive(Debug)]
pub(super) struct Landed {
    pub(super) embedding: Arc<Embedding>,
    pub(super) status: Status,
    pub(super) tokens: u32,
    pub(super) truncated: bool,
    pub(super) spent: Spent,
}

/// Where the time of a call went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) tokenize: Duration,
    pub(super) remote: Duration,
    pub(super) queue: Duration,
    pub(super) inference: Duration,
    pub(super) write: Duration,
}

/// Why a call has no vector.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Job(JobError),
    Unusable(UnusableVector),
    Tokenizer(String),
    /// Nobody waited any more, or whoever led it is gone.
    Abandoned,
}

/// What is stored beside a vector when it lands.
#[derive(Clone, Debug, Default)]
pub(super) struct Particulars {
    pub(super) namespace: Namespace,
    pub(super) expires: Option<u32>,
    pub(super) tags: Vec<String>,
    pub(super) payload: Option<String>,
    pub(super) pinned: bool,
    pub(super) refresh_ahead: bool,
    /// Stored over the entry that is there, and only if one still is.
    pub(super) refreshes: bool,
    /// Whether the shared tier may have it.
    pub(super) is_shared: bool,
    /// What it survives, if more than the store promises.
    pub(super) durability: Option<Durability>,
    /// The most entries of its namespace.
    pub(super) quota: Option<u64>,
}

/// One text key being answered.
pub(super) struct Call {
    pub(super) key: Key,
    pub(super) particulars: Particulars,
    /// Of the job that computes it, unless it rides with another call of the same token ids.
    ticket: Ticket,
    rides: OnceLock<Ticket>,
    outcome: OnceLock<Outcome>,
    landed: Notify,
    waiters: AtomicUsize,
}

impl Call {
    fn new(key: Key, lane: Lane, particulars: Particulars) -> Arc<Self> {
        Arc::new(Self {
            key,
            particulars,
            ticket: Ticket::new(lane),
            rides: OnceLock::new(),
            outcome: OnceLock::new(),
            landed: Notify::new(),
            waiters: AtomicUsize::new(0),
        })
    }

    /// For the job that computes it, if it is to have one.
    pub(super) fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// Raises what computes it. Answers with its ticket if that was behind the lane.
    fn raise(&self, lane: Lane) -> Option<Ticket> {
        let ticket = self.rides.get().unwrap_or(&self.ticket);
        ticket.raise(lane).then(|| ticket.clone())
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.waiters.load(Ordering::Acquire) > 0
    }

    /// Ends the call; the first ending stands.
    pub(super) fn resolve(&self, outcome: Outcome) {
        if self.outcome.set(outcome).is_ok() {
            self.landed.notify_waiters();
        }
    }
}

/// Somebody's interest in a call. While one lives, the call is wanted.
pub(super) struct Waiter {
    call: Arc<Call>,
}

impl Waiter {
    fn new(call: &Arc<Call>) -> Self {
        call.waiters.fetch_add(1, Ordering::AcqRel);
        Self { call: Arc::clone(call) }
    }

    /// A call of its own, outside the maps, that nobody else can join.
    pub(super) fn alone(key: Key, lane: Lane, particulars: Particulars) -> Self {
        Self::new(&Call::new(key, lane, particulars))
    }

    pub(super) fn call(&self) -> &Arc<Call> {
        &self.call
    }

    /// Another interest in the same call.
    pub(super) fn another(&self) -> Self {
        Self::new(&self.call)
    }

    pub(super) async fn outcome(&self) -> Outcome {
        loop {
            // Registered before the check: an ending between the two is not missed.
            let landed = self.call.landed.notified();
            if let Some(outcome) = self.call.outcome.get() {
                return outcome.clone();
            }
            landed.await;
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.call.waiters.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether a call was there already.
pub(super) enum Place {
    /// It was not: whoever asked has to see that it is answered.
    Leader(Waiter),
    /// It was. The ticket is there if it was raised by this: the queue is to be told.
    Follower(Waiter, Option<Ticket>),
}

/// What a call is to its token key.
pub(super) enum Attachment {
    /// The first there: it has to be computed or found.
    First,
    /// One of those that ride with the first. The ticket is there if it was raised by this: the queue is to be told.
    Rides(Option<Ticket>),
}

/// A call under a token key, with what is its own among texts of the same ids.
pub(super) struct Attached {
    pub(super) call: Arc<Call>,
    pub(super) truncated: bool,
}

#[derive(Default)]
pub(super) struct Flights {
    maps: Mutex<Maps>,
}

#[derive(Default)]
struct Maps {
    texts: HashMap<Key, Arc<Call>>,
    tokens: HashMap<TokenKey, Gathering>,
}

/// The calls under a token key, and the ticket of the job that computes them.
struct Gathering {
    ticket: Ticket,
    calls: Vec<Attached>,
}

impl Flights {
    /// Each method leaves the maps whole before anything that can panic, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many calls are on their way.
    pub(super) fn len(&self) -> usize {
        self.lock().texts.len()
    }

    /// Joins the call for a key, or starts one.
    pub(super) fn join(&self, key: Key, lane: Lane, particulars: impl FnOnce() -> Particulars) -> Place {
        match self.lock().texts.entry(key) {
            Entry::Occupied(call) => Place::Follower(Waiter::new(call.get()), call.get().raise(lane)),
            Entry::Vacant(place) => Place::Leader(Waiter::new(place.insert(Call::new(key, lane, particulars())))),
        }
    }

    /// Puts a call under its token key.
    pub(super) fn attach(&self, token_key: TokenKey, call: Arc<Call>, truncated: bool) -> Attachment {
        let mut maps = self.lock();
        match maps.tokens.entry(token_key) {
            Entry::Occupied(mut gathering) => {
                let Gathering { ticket, calls } = gathering.get_mut();
                let raised = ticket.raise(call.ticket.lane()).then(|| ticket.clone());
                // A call is attached once.
                let _ = call.rides.set(ticket.clone());
                calls.push(Attached { call, truncated });
                Attachment::Rides(raised)
            }
            Entry::Vacant(place) => {
                let ticket = call.ticket.clone();
                place.insert(Gathering { ticket, calls: vec![Attached { call, truncated }] });
                Attachment::First
            }
        }
    }

    /// Whether anybody waits for a token key; calls that nobody waits for are taken off it, and it is forgotten when
    /// none is left.
    pub(super) fn wanted(&self, token_key: &TokenKey) -> bool {
        let mut maps = self.lock();
        let Some(Gathering { calls, .. }) = maps.tokens.get_mut(token_key) else { return false };
        let (wanted, unwanted): (Vec<_>, Vec<_>) =
            std::mem::take(calls).into_iter().partition(|attached| attached.call.is_wanted());
        let is_wanted = !wanted.is_empty();
        *calls = wanted;
        if !is_wanted {
            maps.tokens.remove(token_key);
        }
        for attached in unwanted {
            maps.texts.remove(&attached.call.key);
            attached.call.resolve(Err(Failure::Abandoned));
        }
        is_wanted
    }

    /// Takes the calls gathered under a token key. Late-comers still gather, until it is closed.
    pub(super) fn gathered(&self, token_key: &TokenKey) -> Vec<Attached> {
        self.lock().tokens.get_mut(token_key).map(|gathering| std::mem::take(&mut gathering.calls)).unwrap_or_default()
    }

    /// Takes the calls that came since, and forgets the token key.
    pub(super) fn close(&self, token_key: &TokenKey) -> Vec<Attached> {
        self.lock().tokens.remove(token_key).map(|gathering| gathering.calls).unwrap_or_default()
    }

    /// Ends calls that stand in the store, or never will.
    pub(super) fn land<'a>(&self, endings: impl IntoIterator<Item = (&'a Arc<Call>, Outcome)>) {
        let endings: Vec<_> = endings.into_iter().collect();
        let mut maps = self.lock();
        for (call, _) in &endings {
            maps.texts.remove(&call.key);
        }
        drop(maps);
        for (call, outcome) in endings {
            call.resolve(outcome);
        }
    }

    /// Ends everything gathered under a token key with a failure. Who asks after that asks anew, and does not share it.
    pub(super) fn fail(&self, token_key: &TokenKey, failure: &Failure) {
        let mut maps = self.lock();
        let calls = maps.tokens.remove(token_key).map(|gathering| gathering.calls).unwrap_or_default();
        for attached in &calls {
            maps.texts.remove(&attached.call.key);
        }
        drop(maps);
        for attached in calls {
            attached.call.resolve(Err(failure.clone()));
        }
    }

    /// Of the given calls, those that somebody waits for; the others are abandoned.
    pub(super) fn keep_wanted<T>(&self, mut leaders: Vec<T>, call: impl Fn(&T) -> &Arc<Call>) -> Vec<T> {
        let mut maps = self.lock();
        leaders.retain(|leader| {
            let call = call(leader);
            let wanted = call.is_wanted();
            if !wanted {
                maps.texts.remove(&call.key);
                call.resolve(Err(Failure::Abandoned));
            }
            wanted
        });
        leaders
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ContentHash, FingerprintBuilder, Scope, Truncation, TruncationDirection};

    fn scope() -> Scope {
        let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 8 };
        Scope::new(&Namespace::default(), &FingerprintBuilder::new().finish(), "", truncation)
    }

    fn key(text: &str) -> Key {
        scope().key(ContentHash::of(text))
    }

    fn lead(flights: &Flights, text: &str) -> Waiter {
        match flights.join(key(text), Lane::WarmUp, Particulars::default) {
            Place::Leader(waiter) => waiter,
            Place::Follower(..) => panic!("{text} was on its way already"),
        }
    }

    fn is_first(flights: &Flights, token_key: TokenKey, call: &Arc<Call>) -> bool {
        matches!(flights.attach(token_key, Arc::clone(call), false), Attachment::First)
    }

    fn landed() -> Outcome {
        let embedding = Arc::new(Embedding::from_raw(&[1.0]).unwrap());
        let status = Status::Computed;
        Ok(Arc::new(Landed { embedding, status, tokens: 1, truncated: false, spent: Spent::default() }))
    }

    #[tokio::test]
    async fn the_second_to_ask_joins_the_first_and_both_are_answered() {
        let flights = Flights::default();
        let leader = lead(&flights, "a");
        let Place::Follower(follower, None) = flights.join(key("a"), Lane::WarmUp, Particulars::default) else {
            panic!("not joined")
        };
        flights.land([(leader.call(), landed())]);
        assert!(leader.outcome().await.is_ok() && follower.outcome().await.is_ok());
        assert_eq!(flights.len(), 0);
        drop(lead(&flights, "a"));
    }

    #[tokio::test]
    async fn a_call_that_everyone_left_is_abandoned_and_can_be_led_anew() {
        let flights = Flights::default();
        let token_key = scope().token_key(&[1]);
        let (left, stays) = (lead(&flights, "a"), lead(&flights, "b"));
        let call = Arc::clone(left.call());
        assert!(is_first(&flights, token_key, &call));
        assert!(!is_first(&flights, token_key, stays.call()));
        drop(left);
        assert!(flights.wanted(&token_key));
        assert!(matches!(call.outcome.get(), Some(Err(Failure::Abandoned))));
        drop(lead(&flights, "a"));
        drop(stays);
        assert!(!flights.wanted(&token_key));
        assert!(flights.close(&token_key).is_empty());
    }

    #[tokio::test]
    async fn late_comers_under_a_token_key_gather_until_it_is_closed() {
        let flights = Flights::default();
        let token_key = scope().token_key(&[1]);
        let (first, second) = (lead(&flights, "a"), lead(&flights, "b"));
        assert!(is_first(&flights, token_key, first.call()));
        assert_eq!(flights.gathered(&token_key).len(), 1);
        assert!(!is_first(&flights, token_key, second.call()));
        assert_eq!(flights.close(&token_key).len(), 1);
        assert!(flights.gathered(&token_key).is_empty() && flights.close(&token_key).is_empty());
        assert!(is_first(&flights, token_key, first.call()));
    }

    #[tokio::test]
    async fn a_failure_reaches_everyone_gathered() {
        let flights = Flights::default();
        let token_key = scope().token_key(&[1]);
        let (first, second) = (lead(&flights, "a"), lead(&flights, "b"));
        flights.attach(token_key, Arc::clone(first.call()), false);
        flights.attach(token_key, Arc::clone(second.call()), false);
        flights.fail(&token_key, &Failure::Unusable(UnusableVector::NoDirection));
        for waiter in [&first, &second] {
            assert!(matches!(waiter.outcome().await, Err(Failure::Unusable(_))));
        }
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn a_more_urgent_asker_raises_the_job_whether_it_joins_the_text_or_brings_another_spelling() {
        let flights = Flights::default();
        let token_key = scope().token_key(&[1]);
        let (first, rides) = (lead(&flights, "a"), lead(&flights, "b"));
        let raised = |text: &str, lane| match flights.join(key(text), lane, Particulars::default) {
            Place::Leader(_) => panic!("{text} was not on its way"),
            Place::Follower(_, raised) => raised.map(|ticket| ticket.lane()),
        };
        assert_eq!(raised("b", Lane::WarmUp), None);
        // Before it has a job, too: what is attached later takes it along.
        assert_eq!(raised("b", Lane::Ingest), Some(Lane::Ingest));
        assert!(is_first(&flights, token_key, first.call()));
        let Attachment::Rides(Some(ticket)) = flights.attach(token_key, Arc::clone(rides.call()), false) else {
            panic!("not raised")
        };
        assert_eq!((ticket.lane(), first.call().ticket().lane()), (Lane::Ingest, Lane::Ingest));
        assert_eq!(raised("b", Lane::Query), Some(Lane::Query));
        assert_eq!((raised("a", Lane::Query), first.call().ticket().lane()), (None, Lane::Query));
    }
}
