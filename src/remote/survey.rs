//! What the servers are, asked one by one: for people who look after them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redis::{AsyncConnectionConfig, cmd};
use tokio::time::timeout;

use super::access::Access;
use super::link::Fault;
use super::node::{connect, fault};
use super::slots::{SLOTS, text};
use super::url::{Address, Kind, Url};

/// How long one server may take.
const ASK: Duration = Duration::from_secs(1);
/// The oldest version whose commands are used.
const VERSION_MIN: (u32, u32) = (6, 2);

/// All servers of a tier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// `single`, `sentinel`, `cluster` or `memory`.
    pub kind: &'static str,
    /// Masters, then their replicas.
    pub servers: Vec<Server>,
    /// What should be changed, each a sentence.
    pub warnings: Vec<String>,
}

/// One server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Server {
    /// `host:port`.
    pub address: String,
    /// `master`, `slave`, or empty if it did not say.
    pub role: String,
    /// Whether it answered.
    pub up: bool,
    /// How many of a cluster's 16,384 slots it keeps.
    pub slots: u16,
    /// How long one question took on an open connection.
    pub latency: Option<Duration>,
    /// Its own version.
    pub version: String,
    /// Bytes of memory it uses.
    pub memory_bytes: u64,
    /// The most it may; 0 for no bound.
    pub memory_bytes_max: u64,
    /// What it does when it has no more.
    pub policy: String,
    /// The share of looked-up keys that were there, since it was started.
    pub hit_rate: Option<f64>,
    /// Its place in the stream of replication, in bytes.
    pub replication_offset: u64,
    /// How many bytes a replica is behind its master.
    pub lag_bytes: Option<u64>,
    /// Why it did not answer.
    pub error: Option<String>,
    replicas: Vec<Address>,
}

/// Asks the masters, then the replicas that they name.
pub(super) async fn of(url: &Access, masters: &[Address], slots: &HashMap<Address, u16>) -> Survey {
    let mut servers = join_all(masters.iter().map(|address| ask(url, address))).await;
    for (server, address) in servers.iter_mut().zip(masters) {
        server.slots = slots.get(address).copied().unwrap_or(0);
    }
    let behind = servers.iter().flat_map(|master| {
        master.replicas.iter().map(move |address| async move {
            let mut replica = ask(url, address).await;
            replica.lag_bytes =
                replica.up.then(|| master.replication_offset.saturating_sub(replica.replication_offset));
            replica
        })
    });
    let replicas = join_all(behind).await;
    servers.extend(replicas);
    let warnings = warnings(url, &servers);
    Survey { kind: kind(url), servers, warnings }
}

/// When there was no time to ask.
pub(super) fn too_late(url: &Url) -> Survey {
    Survey { kind: kind(url), servers: vec![], warnings: vec!["the servers did not answer in time".into()] }
}

fn kind(url: &Url) -> &'static str {
    match url.kind {
        Kind::Single => "single",
        Kind::Sentinel { .. } => "sentinel",
        Kind::Cluster => "cluster",
    }
}

async fn ask(url: &Access, address: &Address) -> Server {
    let asked = timeout(ASK, async {
        let config = AsyncConnectionConfig::new();
        let mut connection = connect(url, address, &url.login, 0, config).await?;
        let begun = Instant::now();
        connection.send_packed_command(&cmd("PING")).await.map_err(|error| fault(&error))?;
        let latency = begun.elapsed();
        let info = connection.send_packed_command(cmd("INFO").arg("everything")).await;
        let info = info.map_err(|error| fault(&error))?;
        Ok((latency, text(&info).ok_or(Fault::Garbled)?.to_owned()))
    });
    let mut server = match asked.await.unwrap_or(Err(Fault::Timeout)) {
        Ok((latency, info)) => Server { up: true, latency: Some(latency), ..read(&info) },
        Err(fault) => Server { error: Some(fault.to_string()), ..Server::default() },
    };
    server.address = address.to_string();
    server
}

/// The answer to `INFO`.
fn read(info: &str) -> Server {
    let fields: HashMap<&str, &str> = info.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
    let text = |name: &str| fields.get(name).copied().unwrap_or_default().to_owned();
    let number = |name: &str| fields.get(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
    let (hits, misses) = (number("keyspace_hits"), number("keyspace_misses"));
    let replicas = (0..number("connected_slaves"))
        .filter_map(|index| {
            let line = fields.get(format!("slave{index}").as_str())?;
            let part = |name: &str| line.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            Some(Address { host: part("ip")?.to_owned(), port: part("port")?.parse().ok()? })
        })
        .collect();
    Server {
        role: text("role"),
        version: fields.get("valkey_version").map_or_else(|| text("redis_version"), |version| (*version).to_owned()),
        memory_bytes: number("used_memory"),
        memory_bytes_max: number("maxmemory"),
        policy: text("maxmemory_policy"),
        hit_rate: (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64),
        replication_offset: match fields.get("role") {
            Some(&"slave") => number("slave_repl_offset"),
            _ => number("master_repl_offset"),
        },
        replicas,
        ..Server::default()
    }
}

fn warnings(url: &Url, servers: &[Server]) -> Vec<String> {
    let mut warnings = Vec::new();
    for server in servers {
        let address = &server.address;
        if !server.up {
            warnings
                .push(format!("{address} does not answer: {}", server.error.as_deref().unwrap_or("no reason given")));
            continue;
        }
        if server.memory_bytes_max == 0 {
            warnings.push(format!("{address} has no bound of memory: set maxmemory"));
        }
        // Records expire and the log of invalidations does not: only a policy of what expires leaves it alone.
        match server.policy.as_str() {
            policy if policy.starts_with("volatile-") => {}
            policy if policy.starts_with("allkeys-") => warnings.push(format!(
                "{address} may evict the log of invalidations under {policy}: set maxmemory-policy to volatile-lru"
            )),
            policy => warnings.push(format!(
                "{address} takes no more records once its memory is full under {policy}: set maxmemory-policy to \
                 volatile-lru"
            )),
        }
        let mut parts = server.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if version < VERSION_MIN {
            let (major, minor) = VERSION_MIN;
            warnings.push(format!("{address} is version {}: {major}.{minor} is needed", server.version));
        }
    }
    if url.kind == Kind::Cluster {
        let covered: u32 = servers.iter().map(|server| u32::from(server.slots)).sum();
        if covered < u32::from(SLOTS) {
            warnings.push(format!("nobody keeps {} of the {SLOTS} slots", u32::from(SLOTS) - covered));
        }
    } else if let Some(first) = servers.first().filter(|first| first.up && first.role != "master") {
        warnings.push(format!("{} is a replica and takes no writes: name its master, or its sentinels", first.address));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:5.0.7\r\nused_memory:1000\r\nmaxmemory:0\r\n\
        maxmemory_policy:allkeys-lru\r\nkeyspace_hits:3\r\nkeyspace_misses:1\r\nrole:master\r\nconnected_slaves:1\r\n\
        slave0:ip=10.0.0.2,port=6380,state=online,offset=90,lag=0\r\nmaster_repl_offset:100\r\n";

    #[test]
    fn what_a_server_says_of_itself_is_read() {
        let server = read(INFO);
        assert_eq!((server.role.as_str(), server.memory_bytes, server.hit_rate), ("master", 1000, Some(0.75)));
        assert_eq!(server.replicas, [Address { host: "10.0.0.2".into(), port: 6380 }]);
        assert_eq!(server.replication_offset, 100);
    }

    #[test]
    fn what_should_be_changed_is_said() {
        let single: Url = "redis://a".parse().unwrap();
        let cluster: Url = "redis-cluster://a".parse().unwrap();
        let up = Server { up: true, slots: 5, ..read(INFO) };
        let replica = Server { role: "slave".into(), ..up.clone() };
        let down = Server { error: Some("not connected".into()), ..Server::default() };
        let said = |url: &Url, server: &Server, part: &str| {
            let warnings = warnings(url, std::slice::from_ref(server));
            assert!(warnings.iter().any(|warning| warning.contains(part)), "{part}: {warnings:?}");
        };
        said(&single, &up, "set maxmemory");
        said(&single, &up, "may evict the log");
        said(&single, &Server { policy: "noeviction".into(), ..up.clone() }, "takes no more records");
        said(&single, &up, "6.2 is needed");
        said(&single, &replica, "takes no writes");
        said(&single, &down, "not connected");
        said(&cluster, &up, "16379 of the 16384 slots");
        let fine =
            Server { memory_bytes_max: 1, policy: "volatile-ttl".into(), version: "8.0.1".into(), slots: SLOTS, ..up };
        assert_eq!(warnings(&cluster, std::slice::from_ref(&fine)), Vec::<String>::new());
    }
}
