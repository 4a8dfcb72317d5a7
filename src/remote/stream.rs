//! Events from a stream on the servers: the consumers of a group share its entries, and each is handled at least once.
//!
//! ```text
//! XADD ─► NAME ─ XREADGROUP ─► handle ─┬─ Done ──────────────────────────────► XACK
//!                                ▲     ├─ Refused ─► XADD NAME:refused ──────► XACK
//!                      XCLAIM ───┘     └─ Later ───┐          ▲
//!                        ▲                         │          │ after 5 deliveries
//!          its pause is over ◄── pending of this consumer ────┘
//!                                        ▲
//!                XAUTOCLAIM ─────────────┘ pending of another for half a minute: it has died
//! ```
//!
//! Promises:
//! - An entry is acknowledged only after it was handled, or stands in `NAME:refused` with the reason. So it may be handled
//!   twice, after a crash or a lost connection, but is not lost: what was written before the group was there is read as well.
//! - One entry at a time. New ones come in the stream's order; one that is to come again does not hold up those after it.
//! - At the start, what is pending of this consumer comes before anything new.
//! - While servers are away or wrong it connects anew for ever, ever less often. What was wrong is in [`Figures`].
//!
//! Bounds: at most 64 entries are read ahead, and nothing new while 1,024 of this consumer are pending. An entry of more
//! than 1 MiB is refused unhandled. `NAME:refused` keeps about the newest 65,536.
//!
//! Never: a blocking command on a connection that others use, a handler on the tier's thread, an entry deleted from the
//! stream: trimming it is up to who writes it. What was trimmed before it was handled counts as refused.
//!
//! [`Figures`]: super::Figures

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value, cmd};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::core::Core;
use super::figures::add;
use super::link::Fault;
use super::node::{chance, fault, refusal};
use super::servers::Servers;
use super::slots::{list, number, text};

/// The most entries that are read, or taken over, in one go.
const PAGE: usize = 64;
/// Nothing new is read while so many entries of this consumer are pending.
const PENDING_MAX: usize = 1024;
/// After so many deliveries an entry is refused.
const DELIVERIES_MAX: u32 = 5;
/// The most bytes of an entry's names and values.
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// How many refused entries are kept, about.
const REFUSED_MAX: usize = 65_536;
/// How long a read waits for something new.
const BLOCK: Duration = Duration::from_secs(2);
/// How long anything else may take.
const ANSWER: Duration = Duration::from_secs(2);
/// The first and the longest pause before connecting anew, each shortened by chance by up to a half.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A stream of events, and who reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The key of the stream. It is made if it is not there.
    pub name: String,
    /// The group whose consumers share the entries. It is made if it is not there, and begins with the oldest entry.
    pub group: String,
    /// This consumer's name. No two that run at once may have the same; after a restart the same one goes on at once with
    /// what it left.
    pub consumer: String,
}

/// What became of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handled {
    /// It is done, and does not come again.
    Done,
    /// It can never be done, for this reason. It is kept aside in `NAME:refused`.
    Refused(String),
    /// It cannot be done now, for this reason: it comes again after 2, 4, 8 and 15 seconds, and is then refused.
    Later(String),
}

/// Who handles entries: told the names and values of one, in their order. It may block. If it takes longer than half a
/// minute, another consumer is told of the entry as well. A panic is as [`Handled::Later`].
pub type Handler = dyn Fn(&[(String, Vec<u8>)]) -> Handled + Send + Sync;

/// A consumer that runs until this is dropped: an entry that is being handled then is still acknowledged.
#[derive(Debug)]
#[must_use = "the consumer ends when this is dropped"]
pub struct Consumer {
    _owner: watch::Receiver<()>,
}

/// How long entries wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// An entry that has been pending for so long was left by who died.
    pub(super) idle: Duration,
    /// The pause after the first delivery. It doubles with each, up to half of `idle`.
    pub(super) pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { idle: Duration::from_secs(30), pause: Duration::from_secs(2) }
    }
}

impl Pace {
    fn after(&self, deliveries: u32) -> Duration {
        let doubled = self.pause.saturating_mul(1 << deliveries.saturating_sub(1).min(16));
        doubled.min(self.idle / 2)
    }
}

/// Begins to consume, on the tier's thread.
pub(super) fn consume(
    core: &Arc<Core>,
    runtime: &Handle,
    stream: Stream,
    handler: Arc<Handler>,
    pace: Pace,
) -> Consumer {
    let (owner, kept) = watch::channel(());
    match Arc::clone(&core.link).servers() {
        Some(servers) => {
            let reader = Reader {
                core: Arc::clone(core),
                servers,
                refused: format!("{}:refused", stream.name),
                stream,
                handler,
                pace,
                owner,
                due: Instant::now(),
                is_first: true,
                pending: 0,
                cursor: BEGIN.to_owned(),
                failures: 0,
            };
            runtime.spawn(reader.run());
        }
        None => core.counters.failed("a tier in memory has no streams to consume".to_owned()),
    }
    Consumer { _owner: kept }
}

/// Where taking over begins, and what is said when it is through.
const BEGIN: &str = "0-0";

type Fields = Arc<[(String, Vec<u8>)]>;

/// An entry as it was read; an error says why it is not fit for a handler.
#[derive(Debug, PartialEq)]
struct Entry {
    id: String,
    fields: Result<Fields, String>,
}

/// An entry of this consumer that was delivered and not acknowledged.
#[derive(Debug, PartialEq)]
struct Pending {
    id: String,
    idle: Duration,
    deliveries: u32,
}

struct Reader {
    core: Arc<Core>,
    servers: Arc<Servers>,
    stream: Stream,
    refused: String,
    handler: Arc<Handler>,
    pace: Pace,
    /// Closed when the consumer is dropped.
    owner: watch::Sender<()>,
    /// When what is pending is looked through.
    due: Instant,
    /// It was not yet since the start: nothing waits for its pause.
    is_first: bool,
    /// How many entries of this consumer are pending, about.
    pending: usize,
    /// Where taking over goes on.
    cursor: String,
    /// Connections that failed since the last that worked.
    failures: u32,
}

impl Reader {
    async fn run(mut self) {
        while let Err(fault) = self.session().await {
            self.failed(&fault);
            self.servers.redraw();
            let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MAX);
            self.failures += 1;
            tokio::select! {
                () = self.owner.closed() => return,
                () = sleep(pause.mul_f64(1.0 - chance() / 2.0)) => {}
            }
        }
    }

    /// Over one connection, until that fails or the consumer is dropped.
    async fn session(&mut self) -> Result<(), Fault> {
        self.create().await?;
        let dialled = timeout(ANSWER, self.servers.dial(&self.stream.name)).await;
        let mut line = Line(dialled.unwrap_or(Err(Fault::Timeout))?);
        // What was read over the last one and not acknowledged is pending.
        self.due = Instant::now();
        while !self.owner.is_closed() {
            if self.due <= Instant::now() {
                self.look(&mut line).await?;
                continue;
            }
            let entries = tokio::select! {
                () = self.owner.closed() => return Ok(()),
                entries = self.read(&mut line) => entries?,
            };
            self.failures = 0;
            let read = Instant::now();
            for entry in entries {
                if self.owner.is_closed() {
                    return Ok(());
                }
                // Others may soon take over the rest: what is still of this consumer then is found among the pending.
                if read.elapsed() > self.pace.idle / 2 {
                    self.due = Instant::now();
                    break;
                }
                self.settle(&mut line, entry, 1).await?;
            }
        }
        Ok(())
    }

    async fn create(&self) -> Result<(), Fault> {
        let mut command = cmd("XGROUP");
        command.arg("CREATE").arg(&self.stream.name).arg(&self.stream.group).arg("0").arg("MKSTREAM");
        match self.servers.ask(&self.stream.name, command, Instant::now() + ANSWER).await {
            Err(Fault::Refused { code, .. }) if code == "BUSYGROUP" => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    /// What is new, as soon as there is something or what is pending is due.
    async fn read(&self, line: &mut Line) -> Result<Vec<Entry>, Fault> {
        let wait = self.due.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), BLOCK);
        if self.pending >= PENDING_MAX {
            sleep(wait).await;
            return Ok(vec![]);
        }
        let mut command = cmd("XREADGROUP");
        command.arg("GROUP").arg(&self.stream.group).arg(&self.stream.consumer).arg("COUNT").arg(PAGE);
        command.arg("BLOCK").arg(wait.as_millis() as u64).arg("STREAMS").arg(&self.stream.name).arg(">");
        page(line.ask(&command, wait + ANSWER).await?).ok_or(Fault::Garbled)
    }

    /// Takes over what others left, and has handled what is pending of this consumer and due.
    async fn look(&mut self, line: &mut Line) -> Result<(), Fault> {
        let is_over = self.pending >= PENDING_MAX || self.take_over(line).await?;
        let mut command = self.command("XPENDING");
        command.arg("-").arg("+").arg(PENDING_MAX).arg(&self.stream.consumer);
        let found = pending(&line.ask(&command, ANSWER).await?).ok_or(Fault::Garbled)?;
        self.failures = 0;
        self.pending = found.len();
        let listed = Instant::now();
        let mut due = listed + if is_over { self.pace.idle / 2 } else { Duration::ZERO };
        self.due = due;
        for one in found {
            if self.owner.is_closed() {
                return Ok(());
            }
            let left = self.pace.after(one.deliveries).saturating_sub(one.idle + listed.elapsed());
            if !left.is_zero() && !self.is_first {
                due = due.min(Instant::now() + left);
                continue;
            }
            // Not if another has taken it over since.
            match self.claim(line, &one.id, one.idle + listed.elapsed()).await? {
                Some(entry) => {
                    self.pending = self.pending.saturating_sub(1);
                    self.settle(line, entry, one.deliveries.saturating_add(1)).await?;
                }
                None => self.look_for(line, &one.id).await?,
            }
        }
        self.is_first = false;
        self.due = self.due.min(due);
        Ok(())
    }

    /// A page of what others left becomes this consumer's. True once all of the group has been looked through. Does not
    /// count as a delivery.
    async fn take_over(&mut self, line: &mut Line) -> Result<bool, Fault> {
        let mut command = self.command("XAUTOCLAIM");
        command.arg(&self.stream.consumer).arg(self.pace.idle.as_millis() as u64).arg(&self.cursor);
        command.arg("COUNT").arg(PAGE).arg("JUSTID");
        let answer = line.ask(&command, ANSWER).await?;
        // Servers before 7.0 do not say what was trimmed.
        let (cursor, trimmed) = match list(&answer) {
            Some([cursor, _]) => (text(cursor), &[][..]),
            Some([cursor, _, trimmed]) => (text(cursor), list(trimmed).ok_or(Fault::Garbled)?),
            _ => return Err(Fault::Garbled),
        };
        self.cursor = cursor.ok_or(Fault::Garbled)?.to_owned();
        trimmed.iter().filter_map(text).for_each(|id| self.trimmed(id));
        Ok(self.cursor == BEGIN)
    }

    /// Delivers an entry once more, if it has been pending for so long.
    async fn claim(&self, line: &mut Line, id: &str, idle: Duration) -> Result<Option<Entry>, Fault> {
        let mut command = self.command("XCLAIM");
        command.arg(&self.stream.consumer).arg(idle.as_millis() as u64).arg(id);
        Ok(entries(line.ask(&command, ANSWER).await?).ok_or(Fault::Garbled)?.pop())
    }

    /// An entry was not delivered: another has it, or nobody has.
    async fn look_for(&self, line: &mut Line, id: &str) -> Result<(), Fault> {
        let mut command = cmd("XRANGE");
        command.arg(&self.stream.name).arg(id).arg(id);
        if !entries(line.ask(&command, ANSWER).await?).ok_or(Fault::Garbled)?.is_empty() {
            return Ok(());
        }
        self.trimmed(id);
        self.acknowledge(line, id).await
    }

    /// Has an entry handled, and acknowledged unless it is to come again.
    async fn settle(&mut self, line: &mut Line, entry: Entry, deliveries: u32) -> Result<(), Fault> {
        let Entry { id, fields } = entry;
        let handled = match &fields {
            Ok(_) if deliveries > DELIVERIES_MAX => {
                Handled::Refused(format!("it was delivered {} times and never done", deliveries - 1))
            }
            Ok(fields) => self.handle(fields).await,
            Err(why) => Handled::Refused(why.clone()),
        };
        let why = match handled {
            Handled::Done => {
                add(&self.core.counters.stream_handled, 1);
                return self.acknowledge(line, &id).await;
            }
            Handled::Later(why) if deliveries < DELIVERIES_MAX => {
                add(&self.core.counters.stream_retried, 1);
                self.say(&format!("entry {id} comes again: {why}"));
                self.comes_again(deliveries);
                return Ok(());
            }
            Handled::Later(why) => format!("it was delivered {deliveries} times, and the last time: {why}"),
            Handled::Refused(why) => why,
        };
        let fields = fields.as_deref().unwrap_or_default();
        if let Err(fault) = self.keep_aside(&id, fields, &why).await {
            self.failed(&fault);
            self.comes_again(deliveries);
            return Ok(());
        }
        add(&self.core.counters.stream_refused, 1);
        self.say(&format!("entry {id} was refused: {why}"));
        tracing::warn!(stream = self.stream.name, id, why, "an event was refused");
        self.acknowledge(line, &id).await
    }

    async fn handle(&self, fields: &Fields) -> Handled {
        let (handler, fields) = (Arc::clone(&self.handler), Arc::clone(fields));
        let handled = spawn_blocking(move || handler(&fields)).await;
        handled.unwrap_or_else(|_| Handled::Later("its handler panicked".to_owned()))
    }

    async fn acknowledge(&self, line: &mut Line, id: &str) -> Result<(), Fault> {
        line.ask(self.command("XACK").arg(id), ANSWER).await.map(|_| ())
    }

    /// Over the tier's connections: in a cluster it may be another server's.
    async fn keep_aside(&self, id: &str, fields: &[(String, Vec<u8>)], why: &str) -> Result<(), Fault> {
        let mut command = cmd("XADD");
        command.arg(&self.refused).arg("MAXLEN").arg("~").arg(REFUSED_MAX).arg("*");
        command.arg("entry").arg(id).arg("group").arg(&self.stream.group).arg("reason").arg(why);
        for (name, value) in fields {
            command.arg(name).arg(&value[..]);
        }
        self.servers.ask(&self.refused, command, Instant::now() + ANSWER).await.map(|_| ())
    }

    fn comes_again(&mut self, deliveries: u32) {
        self.pending += 1;
        self.due = self.due.min(Instant::now() + self.pace.after(deliveries));
    }

    fn trimmed(&self, id: &str) {
        add(&self.core.counters.stream_refused, 1);
        self.say(&format!("entry {id} was trimmed before it was handled"));
        tracing::warn!(stream = self.stream.name, id, "an event was trimmed from its stream before it was handled");
    }

    fn failed(&self, fault: &Fault) {
        self.core.count(fault);
        if *fault != Fault::Away {
            self.say(&fault.to_string());
        }
    }

    fn say(&self, what: &str) {
        self.core.counters.failed(format!("stream {}: {what}", self.stream.name));
    }

    /// A command that begins with the stream and the group.
    fn command(&self, name: &str) -> Cmd {
        let mut command = cmd(name);
        command.arg(&self.stream.name).arg(&self.stream.group);
        command
    }
}

/// The reader's own connection.
struct Line(MultiplexedConnection);

impl Line {
    async fn ask(&mut self, command: &Cmd, limit: Duration) -> Result<Value, Fault> {
        let answer = timeout(limit, self.0.send_packed_command(command)).await.map_err(|_| Fault::Timeout)?;
        let value = answer.map_err(|error| fault(&error))?;
        refusal(&value).map_or(Ok(value), Err)
    }
}

/// What a read of one stream brought.
fn page(value: Value) -> Option<Vec<Entry>> {
    match value {
        Value::Nil => Some(vec![]),
        Value::Map(streams) => {
            let [(_, found)] = <[_; 1]>::try_from(streams).ok()?;
            entries(found)
        }
        _ => None,
    }
}

/// Entries; servers before 7.0 say nil for one that was trimmed.
fn entries(value: Value) -> Option<Vec<Entry>> {
    let Value::Array(found) = value else { return None };
    found.into_iter().filter(|one| *one != Value::Nil).map(entry).collect()
}

fn entry(value: Value) -> Option<Entry> {
    let Value::Array(parts) = value else { return None };
    let [id, Value::Array(strings)] = <[_; 2]>::try_from(parts).ok()? else { return None };
    let id = text(&id)?.to_owned();
    let strings: Vec<Vec<u8>> = strings
        .into_iter()
        .map(|string| if let Value::BulkString(bytes) = string { Some(bytes) } else { None })
        .collect::<Option<_>>()?;
    if !strings.len().is_multiple_of(2) {
        return None;
    }
    let bytes: usize = strings.iter().map(Vec::len).sum();
    if bytes > ENTRY_BYTES_MAX {
        let why = format!("it has {bytes} bytes, and may have {ENTRY_BYTES_MAX}");
        return Some(Entry { id, fields: Err(why) });
    }
    let mut fields = Vec::with_capacity(strings.len() / 2);
    let mut strings = strings.into_iter();
    while let (Some(name), Some(value)) = (strings.next(), strings.next()) {
        match String::from_utf8(name) {
            Ok(name) => fields.push((name, value)),
            Err(_) => return Some(Entry { id, fields: Err("a field's name is no UTF-8".to_owned()) }),
        }
    }
    Some(Entry { id, fields: Ok(fields.into()) })
}

/// Each entry's id, consumer, milliseconds since it was delivered, and how often it was.
fn pending(value: &Value) -> Option<Vec<Pending>> {
    let one = |value: &Value| {
        let [id, _, idle, deliveries] = list(value)? else { return None };
        Some(Pending {
            id: text(id)?.to_owned(),
            idle: Duration::from_millis(u64::try_from(number(idle)?).ok()?),
            deliveries: u32::try_from(number(deliveries)?).ok()?,
        })
    };
    list(value)?.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn array(values: impl Into<Vec<Value>>) -> Value {
        Value::Array(values.into())
    }

    fn of_strings(id: &str, strings: &[&str]) -> Value {
        array([string(id), array(strings.iter().map(|text| string(text)).collect::<Vec<_>>())])
    }

    fn read(found: Value) -> Value {
        Value::Map(vec![(string("name"), found)])
    }

    #[test]
    fn fields_keep_their_order_and_repetitions() {
        let found = page(read(array([of_strings("1-0", &["b", "1", "a", "2", "b", "3"]), Value::Nil]))).unwrap();
        let fields = [("b", "1"), ("a", "2"), ("b", "3")].map(|(name, value)| (name.to_owned(), value.into()));
        assert_eq!(found, [Entry { id: "1-0".into(), fields: Ok(fields.into()) }]);
        assert_eq!(page(Value::Nil), Some(vec![]));
    }

    #[test]
    fn an_answer_of_another_shape_is_none() {
        let good = || of_strings("1-0", &["a", "1"]);
        for wrong in [
            Value::Okay,
            array([]),
            Value::Map(vec![]),
            Value::Map(vec![(string("a"), array([])), (string("b"), array([]))]),
            read(Value::Nil),
            read(array([good(), Value::Int(1)])),
            read(array([array([string("1-0")])])),
            read(array([array([Value::Nil, array([])])])),
            read(array([array([string("1-0"), Value::Nil])])),
            read(array([array([string("1-0"), array([]), array([])])])),
            read(array([of_strings("1-0", &["a", "1", "b"])])),
            read(array([array([string("1-0"), array([string("a"), Value::Int(1)])])])),
            read(array([array([Value::BulkString(vec![0xff]), array([])])])),
        ] {
            assert_eq!(page(wrong.clone()), None, "{wrong:?}");
        }
        let row = |id, idle: i64, count: i64| array([id, string("me"), Value::Int(idle), Value::Int(count)]);
        for wrong in [
            Value::Nil,
            array([Value::Nil]),
            array([array([])]),
            array([row(Value::Nil, 1, 1)]),
            array([row(string("1-0"), -1, 1)]),
            array([row(string("1-0"), 1, -1)]),
            array([row(string("1-0"), 1, 1 << 40)]),
        ] {
            assert_eq!(pending(&wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_half_the_time_after_which_others_take_over() {
        let pace = Pace::default();
        assert_eq!([0, 1, 2, 3, 4, 5, u32::MAX].map(|count| pace.after(count).as_secs()), [2, 2, 4, 8, 15, 15, 15]);
    }
}
