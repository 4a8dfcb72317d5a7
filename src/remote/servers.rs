//! The tier on real servers: one, one that sentinels watch, or a cluster. To the rest they are the same: nodes, each with
//! its connection and breaker, and which of them keeps which key.
//!
//! A request goes to every server it concerns at once, all its commands in one write. A server that is away costs its own
//! keys only. What a cluster redirects is asked once more where it says, within the deadline.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, Pipeline, Value, cmd};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout, timeout_at};

use super::access::Access;
use super::breaker::BreakerState;
use super::hedge::Hedge;
use super::link::{Answer, Fault, Link, Page, Read, Standing, Work};
use super::node::{self, Bells, Manner, Node, Origin, refusal};
use super::notices::{Epoch, Logged};
use super::scripts;
use super::slots::{SLOTS, list, masters, number, replicas, slot, text};
use super::survey::{self, Survey};
use super::url::{Address, Kind};
use crate::domain::Key;

/// How often the map of a cluster is drawn anew when nothing asks for it.
const REDRAW: Duration = Duration::from_secs(10);
/// And while a node is away.
const REDRAW_SOON: Duration = Duration::from_millis(500);
/// The least time between two drawings.
const REDRAW_PAUSE: Duration = Duration::from_millis(100);
/// How long one server may take to say how the cluster is made up.
const REDRAW_ASK: Duration = Duration::from_millis(500);
/// How much longer than it may wait for its replicas a server has to say that none has answered.
const CONFIRM_GRACE: Duration = Duration::from_millis(5);
/// How many notices a page of the log has at most.
const PAGE: usize = 2048;

/// The names that things have on the servers.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
    epoch: String,
    notices: String,
    times: String,
    floor: String,
    channel: Arc<str>,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        // The braces keep the log in one slot, so that a script may use all of it.
        let log = |part: &str| format!("{{{prefix}:log}}:{part}");
        Self {
            prefix: format!("{prefix}:"),
            epoch: log("epoch"),
            notices: log("notices"),
            times: log("times"),
            floor: log("floor"),
            channel: log("published").into(),
        }
    }

    fn record(&self, key: &Key) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    fn lease(&self, key: &Key) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes(), b":l"].concat()
    }

    fn script(&self, source: &str) -> Cmd {
        let mut command = cmd("EVAL");
        command.arg(source).arg(4).arg(&self.epoch).arg(&self.notices).arg(&self.times).arg(&self.floor);
        command
    }
}

/// See the module's head.
pub(super) struct Servers {
    url: Arc<Access>,
    names: Names,
    bells: Bells,
    log_slot: u16,
    redraw: Arc<Notify>,
    hedge: Option<Hedge>,
    /// Held while a replica is waited for.
    scribe: tokio::sync::Mutex<Option<Scribe>>,
    map: RwLock<Arc<Map>>,
}

/// A connection of its own to who keeps the log: a server that waits for its replicas answers nothing else on it meanwhile.
struct Scribe {
    connection: MultiplexedConnection,
    /// The number of the connection that the log is read over.
    of: u64,
}

/// Who keeps what.
struct Map {
    nodes: Vec<Arc<Node>>,
    /// Of each node those that may be read in its place. None where nothing is asked twice.
    replicas: Vec<Vec<Arc<Node>>>,
    /// The number of a slot's node; `NOBODY` for one that has none. Empty where there is but one node.
    slots: Vec<u16>,
}

const NOBODY: u16 = u16::MAX;

impl Map {
    fn node_of(&self, slot: u16) -> Option<usize> {
        match self.slots.get(usize::from(slot)) {
            Some(&node) => (node != NOBODY).then_some(usize::from(node)),
            None => self.slots.is_empty().then_some(0),
        }
    }
}

/// A command and the slot it belongs to.
struct Op {
    slot: u16,
    command: Cmd,
    /// Whether it does not matter that who answers is behind.
    is_of_records: bool,
}

impl Op {
    fn new(slot: u16, command: Cmd) -> Self {
        Self { slot, command, is_of_records: false }
    }

    fn of_records(slot: u16, command: Cmd) -> Self {
        Self { slot, command, is_of_records: true }
    }
}

impl Servers {
    /// Begins to connect. Has to be called where tasks can be spawned.
    pub(super) fn start(access: Access, names: Names, hedge: Option<Duration>, bells: Bells) -> Arc<Self> {
        let url = Arc::new(access);
        let manner = Manner { is_replica: false, has_spare: hedge.is_some() };
        let start = |origin| Node::start(Arc::clone(&url), origin, manner, Arc::clone(&names.channel), bells.clone());
        let map = match &url.kind {
            Kind::Single => Map {
                nodes: url.addresses.iter().cloned().map(Origin::At).map(start).collect(),
                replicas: vec![],
                slots: vec![],
            },
            Kind::Sentinel { master } => {
                let origin = Origin::Watched { master: master.clone(), sentinels: url.addresses.clone() };
                Map { nodes: vec![start(origin)], replicas: vec![], slots: vec![] }
            }
            Kind::Cluster => Map { nodes: vec![], replicas: vec![], slots: vec![NOBODY; SLOTS.into()] },
        };
        let redraw = Arc::new(Notify::new());
        let servers = Arc::new(Self {
            log_slot: slot(names.epoch.as_bytes()),
            names,
            bells,
            redraw: Arc::clone(&redraw),
            hedge: hedge.map(Hedge::new),
            scribe: tokio::sync::Mutex::default(),
            map: RwLock::new(Arc::new(map)),
            url,
        });
        if servers.is_cluster() {
            tokio::spawn(watch(Arc::downgrade(&servers), redraw));
        }
        servers
    }

    fn is_cluster(&self) -> bool {
        self.url.kind == Kind::Cluster
    }

    fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn log_node(&self) -> Option<Arc<Node>> {
        let map = self.map();
        map.node_of(self.log_slot).and_then(|index| map.nodes.get(index).cloned())
    }

    /// Only a cluster cares.
    fn slot_of(&self, name: &[u8]) -> u16 {
        if self.is_cluster() { slot(name) } else { 0 }
    }

    /// Sends each command to whom it belongs, all at once. One answer each, and the connection's number. An error of the
    /// server's is a fault.
    async fn route(&self, ops: &[Op], deadline: Instant) -> Vec<Result<(Value, u64), Fault>> {
        self.route_by(ops, None, deadline).await
    }

    /// The same, asking twice whom `hedge` allows to be.
    async fn route_by(&self, ops: &[Op], hedge: Option<&Hedge>, deadline: Instant) -> Vec<Result<(Value, u64), Fault>> {
        let map = self.map();
        let mut answers: Vec<Result<(Value, u64), Fault>> = vec![Err(Fault::Away); ops.len()];
        let mut shares: Vec<Vec<usize>> = vec![Vec::new(); map.nodes.len()];
        for (index, op) in ops.iter().enumerate() {
            if let Some(share) = map.node_of(op.slot).and_then(|node| shares.get_mut(node)) {
                share.push(index);
            }
        }
        let asked = shares.iter().enumerate().filter(|(_, share)| !share.is_empty());
        let nodes = &*map;
        let sent = asked.map(|(index, share)| async move {
            let (node, share) = (&nodes.nodes[index], &share[..]);
            let Some(hedge) = hedge else { return send(node, ops, share, false, deadline).await };
            let is_of_records = share.iter().all(|&op| ops[op].is_of_records);
            let replicas = nodes.replicas.get(index).filter(|_| is_of_records).map_or(&[][..], Vec::as_slice);
            (share, hedge.call(node, replicas, share_of(ops, share, false), deadline).await)
        });
        for (share, result) in join_all(sent).await {
            scatter(share, result, &mut answers);
        }
        if !self.is_cluster() {
            self.look_for_the_master(&map, &answers);
            return answers;
        }
        let mut astray = false;
        let mut again: HashMap<(usize, bool), Vec<usize>> = HashMap::new();
        for (index, answer) in answers.iter().enumerate() {
            match answer {
                Err(Fault::Refused { code, detail }) if code == "MOVED" || code == "ASK" => {
                    astray |= code == "MOVED";
                    let target = detail.split(' ').nth(1).and_then(redirect);
                    let node = map.nodes.iter().position(|node| Some(node.address()) == target);
                    if let Some(node) = node {
                        again.entry((node, code == "ASK")).or_default().push(index);
                    }
                }
                Err(Fault::Refused { code, .. }) => astray |= code == "READONLY" || code == "CLUSTERDOWN",
                Err(_) => astray = true,
                Ok(_) => {}
            }
        }
        if astray {
            self.redraw.notify_one();
        }
        let sent = again.iter().map(|((node, ask), share)| send(&map.nodes[*node], ops, share, *ask, deadline));
        for (share, result) in join_all(sent).await {
            scatter(share, result, &mut answers);
        }
        answers
    }

    /// A master that has become a replica is left for the one that the sentinels name now.
    fn look_for_the_master(&self, map: &Map, answers: &[Result<(Value, u64), Fault>]) {
        let is_watched = matches!(self.url.kind, Kind::Sentinel { .. });
        let refused = answers.iter().find_map(|answer| match answer {
            Err(fault @ Fault::Refused { code, .. }) if code == "READONLY" => Some(fault),
            _ => None,
        });
        if let (true, Some(fault), Some(node)) = (is_watched, refused, map.nodes.first()) {
            node.give_up(node.generation(), fault);
        }
    }

    async fn one(&self, slot: u16, command: Cmd, deadline: Instant) -> Result<Value, Fault> {
        let mut answers = self.route(&[Op::new(slot, command)], deadline).await;
        answers.pop().unwrap_or(Err(Fault::Garbled)).map(|(value, _)| value)
    }

    /// Sends one command to the server that keeps a name.
    pub(super) async fn ask(&self, name: &str, command: Cmd, deadline: Instant) -> Result<Value, Fault> {
        self.one(self.slot_of(name.as_bytes()), command, deadline).await
    }

    /// A connection of its own to the server that keeps a name, for commands that block.
    pub(super) async fn dial(&self, name: &str) -> Result<MultiplexedConnection, Fault> {
        let map = self.map();
        let node = map.node_of(self.slot_of(name.as_bytes())).and_then(|index| map.nodes.get(index));
        let node = node.filter(|node| node.generation() != 0).ok_or(Fault::Away)?;
        let config = AsyncConnectionConfig::new();
        node::connect(&self.url, &node.address(), &self.url.login, self.url.database, config).await
    }

    /// See [`Link::confirm`]. A fault is no confirmation.
    async fn confirmed(&self, logged: &Logged, wait_ms: u64) -> Result<Option<bool>, Fault> {
        let mut scribe = self.scribe.lock().await;
        let generation = self.generation();
        let mut connection = match scribe.take().filter(|scribe| scribe.of == generation) {
            Some(scribe) => scribe.connection,
            None => self.dial(&self.names.epoch).await?,
        };
        let ask = |error| node::fault(&error);
        let role = connection.send_packed_command(&cmd("ROLE")).await.map_err(ask)?;
        let has_replicas = match list(&role) {
            Some([_, _, replicas, ..]) => !list(replicas).unwrap_or_default().is_empty(),
            _ => return Err(refusal(&role).unwrap_or(Fault::Garbled)),
        };
        let mut confirmed = None;
        if has_replicas {
            // A server waits for what was written over the very connection: its time is written once more.
            let mut commands = Pipeline::with_capacity(2);
            commands.cmd("HSET").arg(&self.names.times).arg(logged.epoch).arg(logged.time);
            commands.cmd("WAIT").arg(1).arg(wait_ms);
            let values = connection.send_packed_commands(&commands, 0, 2).await.map_err(ask)?;
            if let Some(fault) = values.iter().find_map(refusal) {
                return Err(fault);
            }
            confirmed = Some(values.get(1).and_then(number).is_some_and(|replicas| replicas > 0));
        }
        // Kept only if nothing is left to be read on it.
        *scribe = Some(Scribe { connection, of: generation });
        Ok(confirmed)
    }

    /// Has the map of a cluster drawn anew, for it may be wrong.
    pub(super) fn redraw(&self) {
        self.redraw.notify_one();
    }

    fn reads(&self, keys: &[Key], leases: bool) -> Vec<Op> {
        let mut ops = Vec::new();
        if leases {
            for key in keys {
                let name = self.names.lease(key);
                let mut command = cmd("EXISTS");
                command.arg(&name[..]);
                ops.push(Op::new(self.slot_of(&name), command));
            }
        }
        if self.is_cluster() {
            for key in keys {
                let name = self.names.record(key);
                let mut command = cmd("GET");
                command.arg(&name[..]);
                ops.push(Op::of_records(slot(&name), command));
            }
        } else if !keys.is_empty() {
            let mut command = cmd("MGET");
            for key in keys {
                command.arg(self.names.record(key));
            }
            ops.push(Op::of_records(0, command));
        }
        // Last: it is then no older than any record that was read on the same server.
        let mut counter = cmd("GET");
        counter.arg(&self.names.epoch);
        ops.push(Op::new(self.log_slot, counter));
        ops
    }

    /// Draws the map of a cluster. False if nobody could be asked.
    async fn draw(&self) -> bool {
        let map = self.map();
        for node in &map.nodes {
            let mut ask = Pipeline::new();
            ask.cmd("CLUSTER").arg("SLOTS");
            let answer = node.call(&ask, Instant::now() + REDRAW_ASK).await;
            if let Ok((values, _)) = answer
                && values.first().is_some_and(|value| self.drawn(&map, value, &node.address()))
            {
                return true;
            }
        }
        for seed in &self.url.addresses {
            let ask = async {
                let config = AsyncConnectionConfig::new();
                let mut connection = node::connect(&self.url, seed, &self.url.login, 0, config).await.ok()?;
                connection.send_packed_command(cmd("CLUSTER").arg("SLOTS")).await.ok()
            };
            if let Ok(Some(value)) = timeout(REDRAW_ASK, ask).await
                && self.drawn(&map, &value, seed)
            {
                return true;
            }
        }
        false
    }

    fn drawn(&self, old: &Map, value: &Value, asked: &Address) -> bool {
        let Some(masters) = masters(value, asked).filter(|masters| !masters.is_empty()) else { return false };
        let mut map = Map { nodes: vec![], replicas: vec![], slots: vec![NOBODY; SLOTS.into()] };
        let mut replicas = self.hedge.as_ref().map(|_| replicas(value, asked)).unwrap_or_default();
        let node_at = |known: &[Arc<Node>], address: Address, manner: Manner| {
            known.iter().find(|node| node.address() == address).cloned().unwrap_or_else(|| {
                let channel = Arc::clone(&self.names.channel);
                Node::start(Arc::clone(&self.url), Origin::At(address), manner, channel, self.bells.clone())
            })
        };
        let known_replicas = old.replicas.concat();
        for (address, ranges) in masters {
            let of_it = replicas.remove(&address).unwrap_or_default().into_iter();
            let replica = Manner { is_replica: true, has_spare: false };
            map.replicas.push(of_it.map(|address| node_at(&known_replicas, address, replica)).collect());
            let master = Manner { is_replica: false, has_spare: self.hedge.is_some() };
            let node = node_at(&old.nodes, address, master);
            for (first, last) in ranges {
                map.slots[usize::from(first)..=usize::from(last)].fill(map.nodes.len() as u16);
            }
            map.nodes.push(node);
        }
        let before = self.generation();
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(map);
        if self.generation() != before {
            self.bells.change.notify_one();
        }
        true
    }
}

/// Draws the map whenever it is asked for, and now and then.
async fn watch(servers: Weak<Servers>, redraw: Arc<Notify>) {
    while let Some(watched) = servers.upgrade() {
        let drawn = watched.draw().await;
        // A node that is away may have lost its slots to another.
        let is_whole = watched.standing().iter().all(|node| node.state == BreakerState::Closed);
        drop(watched);
        sleep(REDRAW_PAUSE).await;
        if drawn {
            let _ = timeout(if is_whole { REDRAW } else { REDRAW_SOON }, redraw.notified()).await;
        }
    }
}

fn share_of(ops: &[Op], share: &[usize], asking: bool) -> Pipeline {
    let mut commands = Pipeline::with_capacity(share.len());
    for &index in share {
        if asking {
            commands.cmd("ASKING");
        }
        commands.add_command(ops[index].command.clone());
    }
    commands
}

async fn send<'a>(
    node: &Node,
    ops: &[Op],
    share: &'a [usize],
    asking: bool,
    deadline: Instant,
) -> (&'a [usize], Result<(Vec<Value>, u64), Fault>) {
    let commands = share_of(ops, share, asking);
    let result = node.call(&commands, deadline).await;
    let result = result.map(|(values, generation)| match asking {
        true => (values.into_iter().skip(1).step_by(2).collect(), generation),
        false => (values, generation),
    });
    (share, result)
}

fn scatter(share: &[usize], result: Result<(Vec<Value>, u64), Fault>, answers: &mut [Result<(Value, u64), Fault>]) {
    match result {
        Ok((values, generation)) => {
            for (&index, value) in share.iter().zip(values) {
                answers[index] = refusal(&value).map_or(Ok((value, generation)), Err);
            }
        }
        Err(fault) => share.iter().for_each(|&index| answers[index] = Err(fault.clone())),
    }
}

/// `host:port` as a redirection writes it: an IPv6 host has no brackets there.
fn redirect(text: &str) -> Option<Address> {
    let (host, port) = text.rsplit_once(':')?;
    Some(Address { host: host.to_owned(), port: port.parse().ok()? })
}

fn found(answer: Result<(Value, u64), Fault>) -> Result<Option<Vec<u8>>, Fault> {
    value_found(answer?.0)
}

fn value_found(value: Value) -> Result<Option<Vec<u8>>, Fault> {
    match value {
        Value::BulkString(bytes) => Ok(Some(bytes)),
        Value::Nil => Ok(None),
        value => Err(refusal(&value).unwrap_or(Fault::Garbled)),
    }
}

fn done(answer: Result<(Value, u64), Fault>) -> Result<(), Fault> {
    answer.map(|_| ())
}

impl Link for Servers {
    fn generation(&self) -> u64 {
        self.log_node().map_or(0, |node| node.generation())
    }

    fn read<'a>(&'a self, keys: &'a [Key], leases: bool, deadline: Instant) -> Answer<'a, Read> {
        Box::pin(async move {
            let ops = self.reads(keys, leases);
            // Who looks for leases comes again anyway, and replicas may not know of them.
            let hedge = self.hedge.as_ref().filter(|_| !leases);
            let mut answers = self.route_by(&ops, hedge, deadline).await;
            let counter = answers.pop().unwrap_or(Err(Fault::Garbled));
            let leased = match leases {
                true => answers
                    .drain(..keys.len())
                    .map(|answer| answer.is_ok_and(|(value, _)| number(&value) == Some(1)))
                    .collect(),
                false => Vec::new(),
            };
            let values = if self.is_cluster() {
                answers.into_iter().map(found).collect()
            } else {
                match answers.pop() {
                    Some(Ok((Value::Array(values), _))) if values.len() == keys.len() => {
                        values.into_iter().map(value_found).collect()
                    }
                    Some(Err(fault)) => vec![Err(fault); keys.len()],
                    _ => vec![Err(Fault::Garbled); keys.len()],
                }
            };
            let (counter, generation) = match counter {
                Ok((Value::Nil, generation)) => (Ok(0), generation),
                Ok((value, generation)) => {
                    let counter = number(&value).and_then(|epoch| Epoch::try_from(epoch).ok());
                    (counter.ok_or(Fault::Garbled), generation)
                }
                Err(fault) => (Err(fault), 0),
            };
            Read { values, leased, counter, generation }
        })
    }

    fn work<'a>(&'a self, work: &'a [Work], deadline: Instant) -> Answer<'a, Vec<Result<(), Fault>>> {
        Box::pin(async move {
            let mut ops = Vec::with_capacity(work.len());
            let mut releases = Vec::new();
            let release = |key: &Key, token: u64| {
                let name = self.names.lease(key);
                let mut command = cmd("EVAL");
                command.arg(scripts::RELEASE).arg(1).arg(&name[..]).arg(token);
                Op::new(self.slot_of(&name), command)
            };
            for work in work {
                let name = self.names.record(work.key());
                let slot = self.slot_of(&name);
                ops.push(match work {
                    Work::Set { key, bytes, ttl_ms, lease } => {
                        if let Some(token) = lease {
                            releases.push(release(key, *token));
                        }
                        let mut command = cmd("SET");
                        command.arg(&name[..]).arg(&bytes[..]).arg("PX").arg(*ttl_ms);
                        Op::new(slot, command)
                    }
                    Work::Remove { .. } => {
                        let mut command = cmd("UNLINK");
                        command.arg(&name[..]);
                        Op::new(slot, command)
                    }
                    Work::Release { key, token } => release(key, *token),
                });
            }
            // In a cluster record and lease are on different servers: there the lease goes once the record stands.
            let count = work.len();
            if !self.is_cluster() {
                ops.append(&mut releases);
            }
            let mut answers = self.route(&ops, deadline).await;
            answers.truncate(count);
            if !releases.is_empty() {
                self.route(&releases, deadline).await;
            }
            answers.into_iter().map(done).collect()
        })
    }

    fn claim<'a>(
        &'a self,
        keys: &'a [Key],
        token: u64,
        ttl_ms: u64,
        deadline: Instant,
    ) -> Answer<'a, Vec<Result<bool, Fault>>> {
        Box::pin(async move {
            let ops: Vec<Op> = keys
                .iter()
                .map(|key| {
                    let name = self.names.lease(key);
                    let mut command = cmd("SET");
                    command.arg(&name[..]).arg(token).arg("NX").arg("PX").arg(ttl_ms);
                    Op::new(self.slot_of(&name), command)
                })
                .collect();
            let answers = self.route(&ops, deadline).await;
            answers
                .into_iter()
                .map(|answer| match answer?.0 {
                    Value::Okay => Ok(true),
                    Value::Nil => Ok(false),
                    _ => Err(Fault::Garbled),
                })
                .collect()
        })
    }

    fn renew<'a>(
        &'a self,
        leases: &'a [(Key, u64)],
        ttl_ms: u64,
        deadline: Instant,
    ) -> Answer<'a, Vec<Result<bool, Fault>>> {
        Box::pin(async move {
            let ops: Vec<Op> = leases
                .iter()
                .map(|(key, token)| {
                    let name = self.names.lease(key);
                    let mut command = cmd("EVAL");
                    command.arg(scripts::RENEW).arg(1).arg(&name[..]).arg(token).arg(ttl_ms);
                    Op::new(self.slot_of(&name), command)
                })
                .collect();
            let answers = self.route(&ops, deadline).await;
            answers.into_iter().map(|answer| answer.map(|(value, _)| number(&value) == Some(1))).collect()
        })
    }

    fn publish<'a>(
        &'a self,
        notice: &'a str,
        retention_ms: u64,
        least: Epoch,
        deadline: Instant,
    ) -> Answer<'a, Result<(Logged, Epoch), Fault>> {
        Box::pin(async move {
            let mut command = self.names.script(scripts::PUBLISH);
            command.arg(notice).arg(retention_ms / 1000).arg(scripts::NOTICES_MAX).arg(&*self.names.channel).arg(least);
            let value = self.one(self.log_slot, command, deadline).await?;
            let place = |value| number(value).and_then(|epoch| u64::try_from(epoch).ok()).ok_or(Fault::Garbled);
            match list(&value) {
                Some([epoch, time, before]) => {
                    let time = number(time).and_then(|time| u32::try_from(time).ok()).ok_or(Fault::Garbled)?;
                    Ok((Logged { text: notice.into(), epoch: place(epoch)?, time }, place(before)?))
                }
                _ => Err(Fault::Garbled),
            }
        })
    }

    fn confirm<'a>(&'a self, logged: &'a Logged, patience: Duration) -> Answer<'a, Option<bool>> {
        Box::pin(async move {
            let wait_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).max(1);
            // Idle servers look at the clock ten times a second: what comes later than it was asked for is not waited for.
            let confirmed = timeout(patience + CONFIRM_GRACE, self.confirmed(logged, wait_ms)).await;
            confirmed.unwrap_or(Err(Fault::Timeout)).unwrap_or(Some(false))
        })
    }

    fn since(&self, epoch: Epoch, deadline: Instant) -> Answer<'_, Result<Page, Fault>> {
        Box::pin(async move {
            let mut command = self.names.script(scripts::SINCE);
            command.arg(epoch).arg(PAGE);
            let value = self.one(self.log_slot, command, deadline).await?;
            page(&value).ok_or(Fault::Garbled)
        })
    }

    fn restore<'a>(
        &'a self,
        notices: &'a [Logged],
        counter: Epoch,
        deadline: Instant,
    ) -> Answer<'a, Result<(), Fault>> {
        Box::pin(async move {
            let mut rest = notices;
            loop {
                let (now, later) = rest.split_at(rest.len().min(PAGE));
                rest = later;
                let mut command = self.names.script(scripts::RESTORE);
                command.arg(&*self.names.channel).arg(counter);
                for Logged { text, epoch, time } in now {
                    command.arg(&**text).arg(*epoch).arg(*time);
                }
                self.one(self.log_slot, command, deadline).await?;
                if rest.is_empty() {
                    return Ok(());
                }
            }
        })
    }

    fn standing(&self) -> Vec<Standing> {
        self.map().nodes.iter().map(|node| node.standing()).collect()
    }

    fn survey(&self, deadline: Instant) -> Answer<'_, Survey> {
        Box::pin(async move {
            let map = self.map();
            let mut slots: HashMap<Address, u16> = HashMap::new();
            for (index, node) in map.nodes.iter().enumerate() {
                let count = map.slots.iter().filter(|&&owner| usize::from(owner) == index).count();
                slots.insert(node.address(), count as u16);
            }
            let masters: Vec<Address> = map.nodes.iter().map(|node| node.address()).collect();
            let survey = survey::of(&self.url, &masters, &slots);
            timeout_at(deadline.into(), survey).await.unwrap_or_else(|_| survey::too_late(&self.url))
        })
    }

    fn servers(self: Arc<Self>) -> Option<Arc<Servers>> {
        Some(self)
    }

    fn hedged(&self) -> (u64, u64) {
        self.hedge.as_ref().map_or((0, 0), Hedge::counts)
    }
}

/// Counter, floor, seconds, microseconds, then text, epoch and time of each notice.
fn page(value: &Value) -> Option<Page> {
    let [counter, floor, seconds, microseconds, notices @ ..] = list(value)? else { return None };
    let whole = |value: &Value| number(value).and_then(|number| u64::try_from(number).ok());
    let notices: Vec<Logged> = notices
        .chunks(3)
        .map(|notice| match notice {
            // A text that is no UTF-8 is none of ours and cannot be understood: it means everything.
            [said, epoch, time] => Some(Logged {
                text: text(said).unwrap_or_default().into(),
                epoch: whole(epoch)?,
                time: u32::try_from(whole(time)?).ok()?,
            }),
            _ => None,
        })
        .collect::<Option<_>>()?;
    Some(Page {
        counter: whole(counter)?,
        floor: whole(floor)?,
        now_ms: whole(seconds)? * 1000 + whole(microseconds)? / 1000,
        more: notices.len() >= PAGE,
        notices,
    })
}
