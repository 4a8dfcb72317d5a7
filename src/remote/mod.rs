//! The tier that several machines share: Redis or Valkey, one server, one watched by sentinels, or a cluster.
//!
//! ```text
//! fetch ──► one round trip: records and the newest epoch ──► anything published since? catch up, or nothing
//!                                                        └─► each record proves its key, its age and its epoch
//!    └ late? once more, another way: see `hedge.rs`
//! store ──► a queue, bounded in bytes ──► SET … PX, many in one write
//! publish ─► the log of invalidations ──► every other node takes it in before it is served anything more
//! ```
//!
//! Promises:
//! - The tier can only help. No call waits longer than its deadline or fails; while servers are away, slow or wrong, the
//!   answer is that there is nothing. What was wrong is counted ([`Figures`]).
//! - A record that is damaged, of another format, under another key, expired, or invalidated before the fetch began, by
//!   whatever node, is never served. A node that was away catches up before it is served anything.
//! - An invalidation that cannot be sent is kept, also on disk, and sent before anything else once the servers are back.
//! - Values are immutable: a record is only ever replaced by an equal one or a newer epoch's.
//!
//! Limits: with asynchronous replication a server that takes over may lack the newest invalidations. Who publishes one is answered when a
//! replica has it, or after a deadline at most; nodes that knew of what was lost put it back as soon as they connect, and one that connects
//! before any of those may be served what it meant.
//!
//! One thread, `vecmemo-remote`, owns all connections. Callers are ordinary threads: every function here may block, for at
//! most what it says. Must not be called from async code.
//!
//! All times in records and notices are the tier's ([`Tier::now`]): clocks of nodes may be apart. The bytes are described
//! in `FORMAT.md`.

mod access;
mod breaker;
mod core;
mod figures;
mod follow;
mod hedge;
mod leases;
mod link;
mod log;
mod memory;
mod node;
mod notices;
mod queue;
mod record;
mod scripts;
mod servers;
mod slots;
mod state;
mod stream;
mod survey;
#[cfg(test)]
mod tests;
mod url;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io, thread};

use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};

use self::access::Access;
use self::core::Core;
use self::figures::add;
use self::follow::Followed;
use self::link::{Link, Work};
use self::node::Bells;
use self::notices::Notices;
use self::servers::{Names, Servers};
use self::state::State;
use self::stream::Pace;
use crate::domain::{Key, ModelVersion, Namespace};

pub use self::access::Certificates;
pub use self::breaker::BreakerState;
pub use self::figures::{Figures, LATENCY_BOUNDS_US};
pub use self::leases::Lease;
pub use self::link::Standing;
pub use self::memory::{Memory, Trouble};
pub use self::notices::{Epoch, Erasure, Heard, NOTICE_KEYS_MAX, Notice, Subject};
pub use self::record::{Flaw, RECORD_BYTES_MAX, Record};
pub use self::stream::{Consumer, Handled, Handler, Stream};
pub use self::survey::{Server, Survey};
pub use self::url::{Address, Url, UrlError};

/// The most notices kept for servers that are away; past it those of each tenant become one, and the others one that means everything
/// if they alone are half as many.
const PENDING_MAX: usize = 4096;
/// How many records are forgotten at a time.
const WORK_AT_ONCE: usize = 128;
/// The longest prefix of names.
const PREFIX_BYTES_MAX: usize = 64;

/// How the tier is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The longest that a fetch or a lease is waited for.
    pub deadline: Duration,
    /// The most bytes of writes that wait. What comes then is dropped.
    pub queue_bytes_max: usize,
    /// The longest that a record is kept, and how long invalidations are.
    pub ttl_max: Duration,
    /// What all names on the servers begin with: letters, digits and `. _ -`.
    pub prefix: String,
    /// How long others wait for a node that has said it computes a text, and does not say so again: it does three times in that
    /// time. `None` for no leases.
    pub lease: Option<Duration>,
    /// After how long without an answer a fetch is asked for once more, over another connection or of a replica; `None` for never. One in
    /// ten is at most.
    pub hedge: Option<Duration>,
    /// What connections over TLS take, where the system's own trust is not enough.
    pub certificates: Certificates,
    /// Where this node keeps how far it has read the log, and what it could not send.
    pub state_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            deadline: Duration::from_millis(5),
            queue_bytes_max: 64 << 20,
            ttl_max: Duration::from_secs(30 * 24 * 60 * 60),
            prefix: "vecmemo".to_owned(),
            lease: Some(Duration::from_secs(3)),
            hedge: None,
            certificates: Certificates::default(),
            state_file: None,
        }
    }
}

/// Why the tier cannot be started. That servers are away is none: they are connected to in the background.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The prefix is empty, too long, or has a character that names may not have.
    #[error("the prefix is 1 to {PREFIX_BYTES_MAX} ASCII letters, digits and . _ -, not {0:?}")]
    Prefix(String),
    /// Certificates are given for an address without TLS.
    #[error(
        "certificates are of no use without TLS: the address has to begin with rediss://, rediss-sentinel:// or rediss-cluster://"
    )]
    NotTls,
    /// A file of certificates cannot be read.
    #[error("the file {path} cannot be read")]
    Certificate {
        /// Where it is.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file has nothing of what it should have.
    #[error("the file {path} has no {kind} in PEM")]
    NotPem {
        /// Where it is.
        path: PathBuf,
        /// What is missing.
        kind: &'static str,
    },
    /// The thread could not be started.
    #[error("the thread for the shared tier could not be started")]
    Thread(#[source] io::Error),
    /// The state file is there and cannot be read.
    #[error("the state file {path} cannot be read: repair it, or delete it to have every invalidation told again")]
    State {
        /// Where it is.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// Which records are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The model that computed them.
    pub model: &'a ModelVersion,
    /// Whose they are.
    pub namespace: &'a Namespace,
    /// How long its vectors are.
    pub dims: usize,
    /// Their keys.
    pub keys: &'a [Key],
}

/// What a fetch brought.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetched {
    /// One a key; `None` where there is nothing to be served.
    pub records: Vec<Option<Record>>,
    /// What is computed from now on is stored with this epoch.
    pub epoch: Epoch,
}

/// Who computes a text that no node has.
#[derive(Debug)]
pub enum Lead {
    /// This node. The lease goes with the record into [`Tier::store`]; dropped, it is given back.
    Ours(Lease),
    /// Another, which can be waited for.
    Theirs(Follow),
    /// Nobody: another has, since the fetch.
    Done(Record),
    /// The tier cannot say: compute.
    Unknown,
}

/// A text that another node computes.
#[derive(Clone, Debug)]
pub struct Follow {
    key: Key,
    until: Instant,
}

/// Who carries out what other nodes invalidate.
pub trait Listener: Send + Sync {
    /// Called with what is new, in its order, and the tier's clock, in Unix seconds. The tier serves nothing newer until it has
    /// returned; it may block.
    fn invalidated(&self, heard: &[Heard], now: u32);
}

/// A handle to the tier. All copies are one; the tier ends with the last of them.
#[derive(Clone)]
pub struct Tier(Arc<Inner>);

struct Inner {
    core: Arc<Core>,
    handle: Handle,
    follow: mpsc::UnboundedSender<Followed>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
}

impl Tier {
    /// Begins to connect, in the background.
    ///
    /// # Errors
    /// When the configuration cannot be used, the state file cannot be read, or the thread cannot be started.
    pub fn start(url: &Url, config: Config) -> Result<Self, StartError> {
        let names = Names::new(&config.prefix);
        let (access, hedge) = (Access::new(url, &config.certificates)?, config.hedge);
        Self::begin(config, |bells| Servers::start(access, names, hedge, bells.clone()))
    }

    /// A tier in memory, which other nodes of the same process share. For tests.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn in_memory(memory: &Memory, config: Config) -> Result<Self, StartError> {
        Self::begin(config, |bells| memory.link(bells))
    }

    fn begin(config: Config, connect: impl FnOnce(&Bells) -> Arc<dyn Link>) -> Result<Self, StartError> {
        let usual = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let prefix = &config.prefix;
        if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !prefix.chars().all(usual) {
            return Err(StartError::Prefix(prefix.clone()));
        }
        let state = match &config.state_file {
            Some(path) => State::read(path).map_err(|source| StartError::State { path: path.clone(), source })?,
            None => None,
        };
        let known = state.is_some();
        let state = state.unwrap_or_default();
        let mut notices = Notices::default();
        for text in state.pending {
            notices.push_pending(text.into());
        }
        let runtime = Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let (handle, bells) = (runtime.handle().clone(), Bells::default());
        let link = {
            let _entered = runtime.enter();
            connect(&bells)
        };
        let core = Arc::new(Core::new(config, link, bells, notices, state.epoch));
        let (follow, incoming) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        runtime.spawn(log::keep_up(Arc::clone(&core), known));
        runtime.spawn(core::work(Arc::clone(&core)));
        runtime.spawn(follow::follow(Arc::clone(&core), incoming));
        runtime.spawn(leases::renew(Arc::clone(&core)));
        let run = move || {
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        };
        thread::Builder::new().name("vecmemo-remote".into()).spawn(run).map_err(StartError::Thread)?;
        Ok(Self(Arc::new(Inner { core, handle, follow, stop: Mutex::new(Some(stop)) })))
    }

    /// The records under keys, within the deadline. Nothing at once while the tier is away.
    #[must_use]
    pub fn fetch(&self, asked: &Asked<'_>) -> Fetched {
        let core = &self.0.core;
        let begun = Instant::now();
        let none = || vec![None; asked.keys.len()];
        if asked.keys.is_empty() || !core.is_ready() {
            add(&core.counters.misses, asked.keys.len());
            add(&core.counters.skipped, usize::from(!asked.keys.is_empty()));
            return Fetched { records: none(), epoch: core.applied.borrow().epoch };
        }
        let deadline = begun + core.config.deadline;
        let (task, keys) = (Arc::clone(core), asked.keys.to_vec());
        let raw = self.wait(deadline, async move { task.fetch(&keys, deadline).await }).flatten();
        let fetched = match raw {
            Some(raw) => {
                let records: Vec<Option<Record>> = asked
                    .keys
                    .iter()
                    .zip(raw.values)
                    .map(|(key, bytes)| {
                        let subject = Subject { namespace: asked.namespace, model: asked.model, key };
                        core.judge(&subject, asked.dims, raw.epoch, &bytes?)
                    })
                    .collect();
                Fetched { records, epoch: raw.epoch }
            }
            None => {
                add(&core.counters.skipped, 1);
                Fetched { records: none(), epoch: core.applied.borrow().epoch }
            }
        };
        let hits = fetched.records.iter().flatten().count();
        add(&core.counters.hits, hits);
        add(&core.counters.misses, asked.keys.len() - hits);
        core.counters.took(begun.elapsed());
        fetched
    }

    /// Who computes each of these keys, within the deadline. A key whose lease was ended between the fetch and this has a record: it is looked
    /// for once more.
    #[must_use]
    pub fn lead(&self, asked: &Asked<'_>) -> Vec<Lead> {
        let (core, keys) = (&self.0.core, asked.keys);
        let unknown = || keys.iter().map(|_| Lead::Unknown).collect();
        let Some(lease) = core.config.lease.filter(|_| core.is_ready() && !keys.is_empty()) else { return unknown() };
        let ttl_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).max(1);
        let token = uuid::Uuid::new_v4().as_u64_pair().0;
        let deadline = Instant::now() + core.config.deadline;
        let until = Instant::now() + leases::longest(lease);
        let (task, owned) = (Arc::clone(core), keys.to_vec());
        // Not cut off: leases that come too late are given back.
        let led = self.wait_for(deadline, async move {
            let claimed = task.link.claim(&owned, token, ttl_ms, deadline).await;
            let claimed = owned.iter().zip(claimed).map(|(&key, claimed)| {
                let ours = || Lease::new(key, token, &task);
                match claimed {
                    Ok(true) => Lead::Ours(ours()),
                    Ok(false) => Lead::Theirs(Follow { key, until }),
                    Err(fault) => {
                        task.count(&fault);
                        // It may have been taken all the same, and is given back.
                        drop(ours());
                        Lead::Unknown
                    }
                }
            });
            // Leases, so that whoever gives up waiting for this gives them back.
            let leads: Vec<Lead> = claimed.collect();
            let ours =
                leads.iter().filter_map(|lead| if let Lead::Ours(lease) = lead { Some(lease.key()) } else { None });
            let ours: Vec<Key> = ours.collect();
            let again = if ours.is_empty() { None } else { task.fetch(&ours, deadline).await };
            (leads, again)
        });
        let Some((leads, again)) = led else { return unknown() };
        let (mut values, epoch) = again.map(|raw| (raw.values.into_iter(), raw.epoch)).unwrap_or_default();
        let settled = leads.into_iter().map(|lead| {
            let Lead::Ours(lease) = &lead else {
                add(&core.counters.leases_theirs, usize::from(matches!(lead, Lead::Theirs(_))));
                return lead;
            };
            let subject = Subject { namespace: asked.namespace, model: asked.model, key: &lease.key() };
            let bytes = values.next().flatten();
            match bytes.and_then(|bytes| core.judge(&subject, asked.dims, epoch, &bytes)) {
                Some(record) => {
                    add(&core.counters.hits, 1);
                    Lead::Done(record)
                }
                None => {
                    add(&core.counters.leases_ours, 1);
                    lead
                }
            }
        });
        settled.collect()
    }

    /// Waits in the background for what another node computes, and calls `then` on a thread of its own: with the record,
    /// or with `None` as soon as the lease has ended without one or the tier is away. The keys of `asked` do not matter.
    pub fn follow(&self, follow: Follow, asked: &Asked<'_>, then: Box<dyn FnOnce(Option<Record>) + Send>) {
        let followed = Followed::new(follow.key, asked, follow.until, then);
        if let Err(mpsc::error::SendError(followed)) = self.0.follow.send(followed) {
            (followed.then)(None);
        }
    }

    /// Keeps a record, in the background: until it expires, or for the longest time there is. `epoch` is that of the fetch
    /// after which it was computed. The lease ends once the record stands.
    pub fn store(&self, key: Key, record: Record, epoch: Epoch, lease: Option<Lease>) {
        let core = &self.0.core;
        let lease = lease.filter(|lease| lease.key() == key);
        let record = Record { epoch, ..record };
        let ttl_max = u64::try_from(core.config.ttl_max.as_millis()).unwrap_or(u64::MAX).max(1);
        let ttl_ms = match (record.expires, core.now()) {
            (None, _) => ttl_max,
            (Some(expires), Some(now)) => (u64::from(expires.saturating_sub(now)) * 1000).min(ttl_max),
            // Without the tier's clock nobody can say how long that is.
            (Some(_), None) => 0,
        };
        match record.encode(&key).filter(|_| ttl_ms > 0) {
            Some(bytes) => {
                let token = lease.map(Lease::into_token);
                core.enqueue(Work::Set { key, bytes: bytes.into(), ttl_ms, lease: token });
            }
            None => add(&core.counters.dropped, 1),
        }
    }

    /// Forgets records, in the background. Other nodes keep what they have: see [`publish`](Self::publish).
    pub fn remove(&self, keys: &[Key]) {
        keys.iter().for_each(|&key| self.0.core.enqueue(Work::Remove { key }));
    }

    /// Forgets records, and waits for it. True once the servers have done it; false if they have not within half a second or so.
    #[must_use]
    pub fn erase(&self, keys: &[Key]) -> bool {
        let core = &self.0.core;
        // What waits to be written is undone when its turn comes.
        self.remove(keys);
        if !core.is_ready() {
            return false;
        }
        keys.chunks(WORK_AT_ONCE).all(|keys| {
            let deadline = Instant::now() + core.patience();
            let core = Arc::clone(core);
            let work: Vec<Work> = keys.iter().map(|&key| Work::Remove { key }).collect();
            let done = self.wait(deadline, async move { core.link.work(&work, deadline).await });
            done.is_some_and(|done| done.iter().all(Result::is_ok))
        })
    }

    /// Invalidates on every node. True once the servers have taken it, and from then on nobody is served what it means. Where there are replicas, one
    /// is given a deadline to have it too, and [`Figures::notices_unconfirmed`] counts if none has.
    /// False if they have not within half a second or so: it is kept, and sent before anything is read when they can be
    /// reached; this node is served nothing that it means meanwhile. A notice of more than [`NOTICE_KEYS_MAX`] keys is
    /// sent as several; an empty one is not sent.
    pub fn publish(&self, notice: &Notice) -> bool {
        if notice.is_empty() {
            return true;
        }
        let core = &self.0.core;
        let failures = core.sent.borrow().failures;
        let ticket = {
            let mut notices = core.notices_mut();
            let parts = log::parts(notice);
            if notices.pending_len() + parts.len() > PENDING_MAX {
                parts.iter().for_each(|part| _ = notices.push_pending(part.to_text().into()));
                notices.collapse_pending(PENDING_MAX / 2)
            } else {
                parts.iter().map(|part| notices.push_pending(part.to_text().into())).max().unwrap_or(0)
            }
        };
        core.bells.change.notify_one();
        if !core.is_ready() {
            return false;
        }
        let mut sent = core.sent.subscribe();
        let deadline = Instant::now() + core.patience();
        let settled = self.wait(deadline, async move {
            let settled = sent.wait_for(|sent| sent.ticket >= ticket || sent.failures > failures).await;
            settled.is_ok_and(|sent| sent.ticket >= ticket)
        });
        settled.unwrap_or(false)
    }

    /// Tells from now on what other nodes publish, and at once what they published before. `listener` must not call this.
    pub fn listen(&self, listener: Arc<dyn Listener>) {
        let mut ears = self.0.core.ears();
        let unheard = std::mem::take(&mut ears.unheard);
        if !unheard.is_empty() {
            listener.invalidated(&unheard, self.now().unwrap_or(0));
        }
        ears.listener = Some(listener);
    }

    /// Has the entries of a stream handled in the background, until the consumer is dropped: each at least once by one of
    /// the group. They are events of others, in a stream of the servers' under its own name, without the tier's prefix.
    /// A tier in memory has no streams: nothing is handled, and [`Figures::error`] says so.
    pub fn consume(&self, stream: Stream, handler: Arc<Handler>) -> Consumer {
        self.consume_at(stream, handler, Pace::default())
    }

    fn consume_at(&self, stream: Stream, handler: Arc<Handler>, pace: Pace) -> Consumer {
        stream::consume(&self.0.core, &self.0.handle, stream, handler, pace)
    }

    /// The newest invalidation that this node has taken in: what is computed from now on is stored with it.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.0.core.applied.borrow().epoch
    }

    /// The tier's clock, in Unix seconds; `None` until it was first reached.
    #[must_use]
    pub fn now(&self) -> Option<u32> {
        self.0.core.now()
    }

    /// Waits until everything that was to be written is, or the time is over. True if it is.
    #[must_use]
    pub fn flush(&self, timeout: Duration) -> bool {
        let core = Arc::clone(&self.0.core);
        self.wait(Instant::now() + timeout, async move { core.queue.empty().await }).is_some()
    }

    /// What it has done so far, and how it stands.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let core = &self.0.core;
        let applied = *core.applied.borrow();
        let (notices, notices_pending) = {
            let notices = core.notices();
            (notices.len(), notices.pending_len())
        };
        let (hedged, hedge_won) = core.link.hedged();
        Figures {
            hedged,
            hedge_won,
            ready: applied.generation != 0,
            epoch: applied.epoch,
            notices,
            notices_pending,
            queue: core.queue.len(),
            queue_bytes: core.queue.bytes(),
            servers: core.link.standing(),
            ..core.counters.read()
        }
    }

    /// Asks every server what it is, for at most a few seconds.
    #[must_use]
    pub fn survey(&self) -> Survey {
        const SURVEY: Duration = Duration::from_secs(3);
        let (core, deadline) = (Arc::clone(&self.0.core), Instant::now() + SURVEY);
        let asked = self.wait(deadline + SURVEY, async move { core.link.survey(deadline).await });
        asked.unwrap_or_default()
    }

    /// Waits for something that the tier's thread does. `None` if it was not done in time.
    fn wait<T: Send + 'static>(&self, deadline: Instant, task: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let timely = self.wait_for(deadline, async move { tokio::time::timeout_at(deadline.into(), task).await.ok() });
        timely.flatten()
    }

    /// The same for what ends by itself, and is to end though nobody waits for it any more.
    fn wait_for<T: Send + 'static>(
        &self,
        deadline: Instant,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.0.handle.spawn(async move {
            // Whoever waited may have gone.
            let _ = sender.send(task.await);
        });
        // A little more, so that who is late on the tier's thread can still say so.
        let limit = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        receiver.recv_timeout(limit).ok()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let stop = self.stop.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stop) = stop {
            let _ = stop.send(());
        }
    }
}

impl fmt::Debug for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tier({})", self.0.core.config.prefix)
    }
}
