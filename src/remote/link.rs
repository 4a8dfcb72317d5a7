//! What the tier asks of whatever keeps the records: servers, or a map in memory.
//!
//! No method waits past its deadline, and none fails as a whole where a part can answer.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::breaker::BreakerState;
use super::notices::{Epoch, Logged};
use super::servers::Servers;
use super::survey::Survey;
use super::url::Address;
use crate::domain::Key;

/// What an operation comes to, later.
pub(super) type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why an operation had no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// There is no connection, or none is tried just now.
    #[error("not connected")]
    Away,
    #[error("no answer within the deadline")]
    Timeout,
    /// The connection is gone, or what came over it made no sense.
    #[error("the connection failed: {0}")]
    Lost(String),
    /// The server answered with an error: its code, and the rest.
    #[error("the server refused: {code} {detail}")]
    Refused { code: String, detail: String },
    #[error("the answer is not of the expected shape")]
    Garbled,
}

impl Fault {
    /// Whether the server cannot take writes, though it can be read.
    pub(super) fn is_of_writes(&self) -> bool {
        const CODES: [&str; 4] = ["OOM", "READONLY", "MISCONF", "NOREPLICAS"];
        matches!(self, Self::Refused { code, .. } if CODES.contains(&code.as_str()))
    }
}

/// What a read came to.
pub(super) struct Read {
    /// One a key; `None` where there is nothing.
    pub(super) values: Vec<Result<Option<Vec<u8>>, Fault>>,
    /// One a key, if leases were asked for: whether somebody holds it.
    pub(super) leased: Vec<bool>,
    /// The newest epoch, read after the operation began.
    pub(super) counter: Result<Epoch, Fault>,
    /// Of the connection that told the counter.
    pub(super) generation: u64,
}

/// One piece of work that nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Keep these bytes for that long; then release the lease, whether they are kept or not.
    Set { key: Key, bytes: Arc<[u8]>, ttl_ms: u64, lease: Option<u64> },
    /// Forget.
    Remove { key: Key },
    /// Release a lease, if its token is this one.
    Release { key: Key, token: u64 },
}

impl Work {
    pub(super) fn key(&self) -> &Key {
        match self {
            Self::Set { key, .. } | Self::Remove { key } | Self::Release { key, .. } => key,
        }
    }

    /// What it is taken to weigh while it waits, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Set { bytes, .. } => bytes.len(),
                Self::Remove { .. } | Self::Release { .. } => 0,
            }
    }
}

/// A page of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    /// The newest epoch given out.
    pub(super) counter: Epoch,
    /// The newest epoch pruned.
    pub(super) floor: Epoch,
    /// The tier's clock, in Unix milliseconds.
    pub(super) now_ms: u64,
    /// Notices after the epoch asked for, by epoch.
    pub(super) notices: Vec<Logged>,
    /// Whether there are more.
    pub(super) more: bool,
}

/// One server as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Where it is.
    pub address: Address,
    /// Whether it is asked.
    pub state: BreakerState,
    /// How often it was given up.
    pub openings: u64,
    /// Why it was last given up or could not be reached.
    pub error: Option<String>,
}

/// See the module's head.
pub(super) trait Link: Send + Sync {
    /// The number of the connection to where the log is, larger for each new one; 0 while there is none.
    fn generation(&self) -> u64;

    /// Reads records, the newest epoch and, if wanted, whether leases are held. A lease seen gone was released before
    /// the record was read, where both are on one server.
    fn read<'a>(&'a self, keys: &'a [Key], leases: bool, deadline: Instant) -> Answer<'a, Read>;

    /// Does work in its order, one answer each.
    fn work<'a>(&'a self, work: &'a [Work], deadline: Instant) -> Answer<'a, Vec<Result<(), Fault>>>;

    /// Takes leases with a token: true where nobody held it.
    fn claim<'a>(
        &'a self,
        keys: &'a [Key],
        token: u64,
        ttl_ms: u64,
        deadline: Instant,
    ) -> Answer<'a, Vec<Result<bool, Fault>>>;

    /// Has leases last for `ttl_ms` from now: true where the token is still the lease's own.
    fn renew<'a>(
        &'a self,
        leases: &'a [(Key, u64)],
        ttl_ms: u64,
        deadline: Instant,
    ) -> Answer<'a, Vec<Result<bool, Fault>>>;

    /// Puts a notice into the log, after `least`, and prunes what is older than `retention_ms`. Answers with its place, and with the
    /// place that the same notice had before; 0 if it was not there.
    fn publish<'a>(
        &'a self,
        text: &'a str,
        retention_ms: u64,
        least: Epoch,
        deadline: Instant,
    ) -> Answer<'a, Result<(Logged, Epoch), Fault>>;

    /// Waits, for `patience` at most, until a replica of who keeps the log has a notice that was published: whether one has, `None` if
    /// there is none.
    fn confirm<'a>(&'a self, _: &'a Logged, _patience: Duration) -> Answer<'a, Option<bool>> {
        Box::pin(async { None })
    }

    /// The log after an epoch.
    fn since(&self, epoch: Epoch, deadline: Instant) -> Answer<'_, Result<Page, Fault>>;

    /// Turns the counter forward to at least `counter`, and puts notices back, each at a new epoch: at its old one,
    /// a node that has come past it would not see it.
    fn restore<'a>(&'a self, notices: &'a [Logged], counter: Epoch, deadline: Instant)
    -> Answer<'a, Result<(), Fault>>;

    /// The servers as they stand, without asking them.
    fn standing(&self) -> Vec<Standing>;

    /// Asks every server what it is.
    fn survey(&self, deadline: Instant) -> Answer<'_, Survey>;

    /// How many questions were asked twice, and how many of the second ones were answered first.
    fn hedged(&self) -> (u64, u64) {
        (0, 0)
    }

    /// The servers, for what only they have.
    fn servers(self: Arc<Self>) -> Option<Arc<Servers>> {
        None
    }
}
