//! One server: its connection, made again whenever it is lost, and its breaker.
//!
//! Promises: a request is answered, or fails, by its deadline; while the breaker is open it fails at once. An answer is
//! always that of the request: a connection whose bytes made no sense is given up as a whole.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use redis::aio::{MultiplexedConnection, SendError};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, Pipeline, ProtocolVersion, PushInfo, PushKind,
    RedisConnectionInfo, RedisError, Value,
};
use tokio::sync::Notify;
use tokio::time::timeout_at;

use super::access::Access;
use super::breaker::{Breaker, BreakerState};
use super::link::{Fault, Standing};
use super::slots::{list, number, text};
use super::url::{Address, Login};

/// How long connecting may take, with everything that is said at the beginning.
const CONNECT: Duration = Duration::from_secs(1);

/// Numbers connections, over all servers, from 1 on.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// Where a server is.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    At(Address),
    /// Wherever the sentinels say that the master is.
    Watched {
        master: String,
        sentinels: Vec<Address>,
    },
}

/// What is woken when something happens on a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Bells {
    /// A notice may have been published.
    pub(super) hint: Arc<Notify>,
    /// A connection was made or lost.
    pub(super) change: Arc<Notify>,
}

/// How a server is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Manner {
    /// It is a replica of a cluster's, and read.
    pub(super) is_replica: bool,
    /// There is a second connection, for what is asked twice.
    pub(super) has_spare: bool,
}

pub(super) struct Node {
    url: Arc<Access>,
    origin: Origin,
    manner: Manner,
    channel: Arc<str>,
    bells: Bells,
    wake: Arc<Notify>,
    state: Mutex<State>,
}

struct State {
    breaker: Breaker,
    wire: Option<Wire>,
    spare: Option<Spare>,
    address: Option<Address>,
    error: Option<String>,
}

#[derive(Clone)]
struct Wire {
    connection: MultiplexedConnection,
    number: u64,
    /// Which process the server is, if that is known.
    run: Option<String>,
}

/// A second connection to the process that the first is to.
struct Spare {
    connection: MultiplexedConnection,
    /// The first one's number.
    of: u64,
}

impl Node {
    /// A server that is being connected to. Has to be called where tasks can be spawned.
    pub(super) fn start(
        url: Arc<Access>,
        origin: Origin,
        manner: Manner,
        channel: Arc<str>,
        bells: Bells,
    ) -> Arc<Self> {
        let address = match &origin {
            Origin::At(address) => Some(address.clone()),
            Origin::Watched { .. } => None,
        };
        let wake = Arc::new(Notify::new());
        let breaker = Breaker::new(Instant::now());
        let state = Mutex::new(State { breaker, wire: None, spare: None, address, error: None });
        let node = Arc::new(Self { url, origin, manner, channel, bells, wake: Arc::clone(&wake), state });
        tokio::spawn(tend(Arc::downgrade(&node), wake));
        node
    }

    /// The number of its connection; 0 while there is none that is used.
    pub(super) fn generation(&self) -> u64 {
        let state = self.state();
        match &state.wire {
            Some(wire) if state.breaker.state() == BreakerState::Closed => wire.number,
            _ => 0,
        }
    }

    /// Where it is, as far as is known.
    pub(super) fn address(&self) -> Address {
        self.state().address.clone().unwrap_or_else(|| match &self.origin {
            Origin::At(address) => address.clone(),
            Origin::Watched { master, .. } => Address { host: master.clone(), port: 0 },
        })
    }

    pub(super) fn standing(&self) -> Standing {
        let address = self.address();
        let state = self.state();
        Standing {
            address,
            state: state.breaker.state(),
            openings: state.breaker.openings(),
            error: state.error.clone(),
        }
    }

    /// Sends commands in one go. One answer each, errors of the server among them; and the connection's number.
    pub(super) async fn call(&self, commands: &Pipeline, deadline: Instant) -> Result<(Vec<Value>, u64), Fault> {
        let begun = Instant::now();
        let mut wire = {
            let state = self.state();
            match &state.wire {
                Some(wire) if state.breaker.state() == BreakerState::Closed => wire.clone(),
                _ => return Err(Fault::Away),
            }
        };
        let sent = wire.connection.send_packed_commands(commands, 0, commands.len());
        let fault = match timeout_at(deadline.into(), sent).await {
            Ok(Ok(values)) if values.len() == commands.len() => {
                let unusable = values.iter().find_map(unusable);
                let mut state = self.state();
                if unusable.is_none() {
                    state.breaker.answered();
                    return Ok((values, wire.number));
                }
                drop(state);
                unusable.unwrap_or(Fault::Garbled)
            }
            Ok(Ok(_)) => Fault::Garbled,
            Ok(Err(error)) => fault(&error),
            Err(_) => Fault::Timeout,
        };
        self.failed(wire.number, begun, &fault);
        Err(fault)
    }

    /// Whether there is a second connection beside the one that is used.
    pub(super) fn has_spare(&self) -> bool {
        let state = self.state();
        let number = state.wire.as_ref().map(|wire| wire.number);
        state.breaker.state() == BreakerState::Closed && state.spare.as_ref().map(|spare| spare.of) == number
    }

    /// As [`call`](Self::call), over the second connection; the number is the first one's. What goes wrong counts against nobody.
    pub(super) async fn call_spare(&self, commands: &Pipeline, deadline: Instant) -> Result<(Vec<Value>, u64), Fault> {
        let (mut connection, number) = {
            let state = self.state();
            match (&state.wire, &state.spare) {
                (Some(wire), Some(spare))
                    if spare.of == wire.number && state.breaker.state() == BreakerState::Closed =>
                {
                    (spare.connection.clone(), wire.number)
                }
                _ => return Err(Fault::Away),
            }
        };
        let sent = connection.send_packed_commands(commands, 0, commands.len());
        let fault = match timeout_at(deadline.into(), sent).await {
            Ok(Ok(values)) if values.len() == commands.len() => match values.iter().find_map(unusable) {
                None => return Ok((values, number)),
                Some(fault) => return Err(fault),
            },
            Ok(Ok(_)) => Fault::Garbled,
            Ok(Err(error)) => fault(&error),
            Err(_) => return Err(Fault::Timeout),
        };
        self.state().spare = None;
        self.wake.notify_one();
        Err(fault)
    }

    /// Makes the second connection if it is wanted and not there. Answers with when to come again; `None` if there is nothing to do until woken.
    async fn keep_spare(&self) -> Option<Instant> {
        if !self.manner.has_spare || self.has_spare() {
            return None;
        }
        let (wire, address) = {
            let state = self.state();
            (state.wire.clone()?, state.address.clone()?)
        };
        let run = wire.run.as_deref()?;
        let opened = timeout_at((Instant::now() + CONNECT / 4).into(), async {
            let config = AsyncConnectionConfig::new();
            let mut connection = connect(&self.url, &address, &self.url.login, self.url.database, config).await.ok()?;
            let info = connection.send_packed_command(redis::cmd("INFO").arg("server")).await.ok()?;
            // Another one: the first connection is to one that is going, or they are behind one address.
            (run_of(&info).as_deref() == Some(run)).then_some(connection)
        });
        match opened.await.ok().flatten() {
            Some(connection) => {
                self.state().spare = Some(Spare { connection, of: wire.number });
                None
            }
            None => Some(Instant::now() + CONNECT),
        }
    }

    /// Gives the connection up, for the server is not what it should be.
    pub(super) fn give_up(&self, generation: u64, fault: &Fault) {
        self.end(generation, |breaker, now| breaker.lost(now, chance()), fault);
    }

    fn failed(&self, number: u64, begun: Instant, fault: &Fault) {
        match fault {
            Fault::Lost(_) | Fault::Garbled => self.give_up(number, fault),
            _ => self.end(number, |breaker, now| breaker.failed(begun, now, chance()), fault),
        }
    }

    fn end(&self, number: u64, tell: impl FnOnce(&mut Breaker, Instant) -> bool, fault: &Fault) {
        let mut state = self.state();
        if state.wire.as_ref().is_none_or(|wire| wire.number != number) {
            return;
        }
        state.error = Some(fault.to_string());
        if tell(&mut state.breaker, Instant::now()) {
            (state.wire, state.spare) = (None, None);
            drop(state);
            self.wake.notify_one();
            self.bells.change.notify_one();
        }
    }

    /// Probes if a probe is due. Answers with when to come again; `None` if there is nothing to do until woken.
    async fn probe(self: &Arc<Self>) -> Option<Instant> {
        {
            let mut state = self.state();
            let due = state.breaker.due()?;
            if due > Instant::now() {
                return Some(due);
            }
            state.breaker.probe();
        }
        let deadline = Instant::now() + CONNECT;
        let opened = match timeout_at(deadline.into(), self.open()).await {
            Ok(opened) => opened,
            Err(_) => Err(Fault::Timeout),
        };
        let mut state = self.state();
        state.breaker.probed(opened.is_ok(), Instant::now(), chance());
        match opened {
            Ok((wire, address)) => {
                state.wire = Some(wire);
                state.address = Some(address);
                drop(state);
                self.bells.change.notify_one();
                None
            }
            Err(fault) => {
                state.error = Some(fault.to_string());
                state.breaker.due()
            }
        }
    }

    async fn open(self: &Arc<Self>) -> Result<(Wire, Address), Fault> {
        let address = match &self.origin {
            Origin::At(address) => address.clone(),
            Origin::Watched { master, sentinels } => self.master(master, sentinels).await?,
        };
        let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed) + 1;
        let (node, hint) = (Arc::downgrade(self), Arc::clone(&self.bells.hint));
        let config = AsyncConnectionConfig::new().set_push_sender(move |push: PushInfo| {
            match push.kind {
                PushKind::Message | PushKind::SMessage => hint.notify_one(),
                PushKind::Disconnection => {
                    if let Some(node) = Weak::upgrade(&node) {
                        node.give_up(number, &Fault::Lost("closed by the server".into()));
                    }
                }
                _ => {}
            }
            Ok::<(), SendError>(())
        });
        let database = self.url.database;
        let mut connection = connect(&self.url, &address, &self.url.login, database, config).await?;
        let mut hello = Pipeline::new();
        hello.cmd("ROLE").cmd("CLIENT").arg("SETNAME").arg("vecmemo");
        if self.manner.has_spare {
            hello.cmd("INFO").arg("server");
        }
        if self.manner.is_replica {
            hello.cmd("READONLY");
        }
        let values = connection.send_packed_commands(&hello, 0, hello.len()).await.map_err(|error| fault(&error))?;
        let role = values.first().and_then(list).and_then(<[Value]>::first).and_then(text);
        if let Some(fault) = values.first().and_then(unusable) {
            return Err(fault);
        }
        if matches!(self.origin, Origin::Watched { .. }) && role != Some("master") {
            return Err(Fault::Lost("the sentinels name a server that is no master".into()));
        }
        // Without it notices are found by asking once a second.
        if !self.manner.is_replica
            && let Err(error) = connection.subscribe(&*self.channel).await
        {
            tracing::debug!(%error, %address, "no subscription to notices");
        }
        let run = values.get(2).filter(|_| self.manner.has_spare).and_then(run_of);
        Ok((Wire { connection, number, run }, address))
    }

    /// Asks the sentinels, one after the other.
    async fn master(&self, master: &str, sentinels: &[Address]) -> Result<Address, Fault> {
        let mut last = Fault::Away;
        for sentinel in sentinels {
            let asked = timeout_at((Instant::now() + CONNECT / 4).into(), self.ask(sentinel, master));
            match asked.await.unwrap_or(Err(Fault::Timeout)) {
                Ok(address) => return Ok(address),
                Err(fault) => last = fault,
            }
        }
        Err(Fault::Lost(format!("no sentinel names a master {master}: {last}")))
    }

    async fn ask(&self, sentinel: &Address, master: &str) -> Result<Address, Fault> {
        let config = AsyncConnectionConfig::new();
        let mut connection = connect(&self.url, sentinel, &self.url.sentinel_login, 0, config).await?;
        let mut command = redis::cmd("SENTINEL");
        command.arg("get-master-addr-by-name").arg(master);
        let value = connection.send_packed_command(&command).await.map_err(|error| fault(&error))?;
        match list(&value) {
            Some([host, port]) => {
                let host = text(host).ok_or(Fault::Garbled)?.to_owned();
                let port = number(port).and_then(|port| u16::try_from(port).ok()).ok_or(Fault::Garbled)?;
                Ok(Address { host, port })
            }
            _ => Err(Fault::Lost(format!("{sentinel} knows no master {master}"))),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

/// Keeps a server connected for as long as somebody has it.
async fn tend(node: Weak<Node>, wake: Arc<Notify>) {
    while let Some(tended) = node.upgrade() {
        let due = match tended.probe().await {
            Some(due) => Some(due),
            None => tended.keep_spare().await,
        };
        drop(tended);
        match due {
            Some(due) => {
                let _ = timeout_at(due.into(), wake.notified()).await;
            }
            None => wake.notified().await,
        }
    }
}

/// A new connection to any server of the tier's.
pub(super) async fn connect(
    url: &Access,
    address: &Address,
    login: &Login,
    database: i64,
    config: AsyncConnectionConfig,
) -> Result<MultiplexedConnection, Fault> {
    let Address { host, port } = address.clone();
    let place = match url.tls {
        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host, port),
    };
    let mut settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_db(database);
    if let Some(user) = &login.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &login.password {
        settings = settings.set_password(password);
    }
    let info = place.into_connection_info().map_err(|error| fault(&error))?.set_redis_settings(settings);
    let client = match url.certificates.clone() {
        Some(certificates) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
    };
    let client = client.map_err(|error| fault(&error))?;
    let config = config.set_connection_timeout(Some(CONNECT)).set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&config).await.map_err(|error| fault(&error))
}

/// Which process a server is, by what it answers to `INFO server`.
fn run_of(info: &Value) -> Option<String> {
    let run = text(info)?.lines().find_map(|line| line.strip_prefix("run_id:"))?.trim();
    (!run.is_empty()).then(|| run.to_owned())
}

/// A failure to talk, as a fault.
pub(super) fn fault(error: &RedisError) -> Fault {
    match error.code() {
        Some(code) => Fault::Refused { code: code.to_owned(), detail: error.detail().unwrap_or_default().to_owned() },
        None => Fault::Lost(explained(error.to_string())),
    }
}

/// What TLS says of certificates, and what can be done about it.
fn explained(problem: String) -> String {
    const UNTRUSTED: &str =
        "the server's certificate is signed by nobody that is trusted here: ca_file in [remote] names who is";
    const ADVICE: [(&str, &str); 5] = [
        ("UnknownIssuer", UNTRUSTED),
        // Another authority of the same name.
        ("BadSignature", UNTRUSTED),
        ("NotValidForName", "the server's certificate is for other names than the address has"),
        ("Expired", "the server's certificate is not valid any more"),
        ("CertificateRequired", "the server wants to be shown a certificate: cert_file and key_file in [remote]"),
    ];
    let advice = ADVICE.iter().find(|(word, _)| problem.contains(word));
    advice.map_or_else(|| problem.clone(), |(_, advice)| format!("{advice} ({problem})"))
}

/// An answer that is an error of the server's, as a fault.
pub(super) fn refusal(value: &Value) -> Option<Fault> {
    match value {
        Value::ServerError(error) => Some(Fault::Refused {
            code: error.code().to_owned(),
            detail: error.details().unwrap_or_default().to_owned(),
        }),
        _ => None,
    }
}

/// An error that any other request would meet as well.
fn unusable(value: &Value) -> Option<Fault> {
    const CODES: [&str; 5] = ["LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH", "BUSY"];
    refusal(value).filter(|fault| matches!(fault, Fault::Refused { code, .. } if CODES.contains(&code.as_str())))
}

/// From 0 to 1, different in every process and call. Only spreads probes in time.
pub(super) fn chance() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX)
}
