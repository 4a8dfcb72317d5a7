//! Real servers for tests: one, one with a replica and sentinels, or a cluster, on free ports of this machine, in a
//! folder that goes with them.
//!
//! The program is `REDIS_SERVER`, or `redis-server` or `valkey-server` on the `PATH`. Without any there is nothing to test
//! with: [`available`] says so, and says it aloud.

#![allow(dead_code, unreachable_pub, clippy::print_stderr, reason = "several binaries use it, each a part")]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use redis::Value;
use tempfile::TempDir;

/// How long a server may take to start, and a cluster to form.
const START: Duration = Duration::from_secs(30);

/// Whether there are servers to test with.
pub fn available() -> bool {
    let found = program().is_some();
    if !found {
        eprintln!("not tested: there is no redis-server on the PATH, and REDIS_SERVER names none");
    }
    found
}

fn program() -> Option<PathBuf> {
    if let Some(named) = env::var_os("REDIS_SERVER") {
        return Some(named.into());
    }
    let path = env::var_os("PATH")?;
    let names = ["redis-server", "valkey-server"];
    env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name))).find(|program| program.is_file())
}

/// A port that nobody listens on, and neither on the one 10,000 above it: a cluster's servers talk there.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 4_000) as u16 * 4;
    loop {
        let port = 20_000 + (first - 20_000 + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}

/// Waits until something is so, and fails if it is not within the limit.
pub fn until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// One server. Killed when dropped.
pub struct Server {
    pub port: u16,
    options: Vec<String>,
    child: Option<Child>,
    folder: TempDir,
    password: Option<String>,
}

impl Server {
    /// One that keeps nothing on disk.
    pub fn start(options: &[&str]) -> Self {
        Self::start_at(free_port(), options)
    }

    fn start_at(port: u16, options: &[&str]) -> Self {
        let password =
            options.iter().position(|option| *option == "--requirepass").map(|at| options[at + 1].to_owned());
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self { port, options, child: None, folder, password };
        server.run();
        server
    }

    /// Starts it again after [`kill`](Self::kill), on the same port.
    pub fn run(&mut self) {
        let mut command = Command::new(program().unwrap());
        let folder = self.folder.path();
        let config = folder.join("sentinel.conf");
        if config.exists() {
            command.arg(&config).arg("--sentinel");
        }
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--dir"]).arg(folder);
        if !config.exists() {
            command.args(["--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
        }
        command.args(&self.options).stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        until("the server answers", START, || self.try_ask(&["PING"]).is_some());
    }

    pub fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{}", self.port),
            None => format!("redis://127.0.0.1:{}", self.port),
        }
    }

    /// The answer to a command; panics if there is none.
    pub fn ask(&self, words: &[&str]) -> Value {
        self.try_ask(words).unwrap_or_else(|| panic!("{words:?} was not answered"))
    }

    pub fn try_ask(&self, words: &[&str]) -> Option<Value> {
        let client = redis::Client::open(self.url()).ok()?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(1)).ok()?;
        connection.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut connection).ok()
    }

    /// An answer's text, or the number as one.
    pub fn text(&self, words: &[&str]) -> String {
        match self.try_ask(words) {
            Some(Value::BulkString(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            Some(Value::SimpleString(text) | Value::VerbatimString { text, .. }) => text,
            Some(Value::Int(number)) => number.to_string(),
            Some(Value::Okay) => "OK".to_owned(),
            other => format!("{other:?}"),
        }
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// It lives, and does nothing.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// It goes on.
    pub fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A master, its replica and three sentinels, which agree after a second without an answer.
pub struct Watched {
    pub servers: Vec<Server>,
    pub sentinels: Vec<Server>,
}

impl Watched {
    pub fn start() -> Self {
        let master = Server::start(&[]);
        let port = master.port.to_string();
        let replica = Server::start(&["--replicaof", "127.0.0.1", &port]);
        until("the replica follows", START, || {
            replica.text(&["INFO", "replication"]).contains("master_link_status:up")
        });
        let sentinels = (0..3).map(|_| sentinel(&port)).collect::<Vec<_>>();
        until("the sentinels know each other and the replica", START, || {
            sentinels.iter().all(|sentinel| {
                let info = sentinel.text(&["INFO", "sentinel"]);
                info.contains("slaves=1") && info.contains("sentinels=3")
            })
        });
        Self { servers: vec![master, replica], sentinels }
    }

    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        format!("redis-sentinel://{}/main", hosts.join(","))
    }
}

fn sentinel(master_port: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "sentinel monitor main 127.0.0.1 {master_port} 2\nsentinel down-after-milliseconds main 1000\n\
         sentinel failover-timeout main 5000\n"
    );
    fs::write(folder.path().join("sentinel.conf"), config).unwrap();
    let mut server = Server { port: free_port(), options: vec![], child: None, folder, password: None };
    server.run();
    server
}

/// Three masters, each with a replica.
pub struct Cluster {
    pub masters: Vec<Server>,
    pub replicas: Vec<Server>,
}

impl Cluster {
    pub fn start() -> Self {
        let options =
            ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--cluster-replica-validity-factor", "0"];
        let start = || Server::start(&options);
        let cluster = Self { masters: (0..3).map(|_| start()).collect(), replicas: (0..3).map(|_| start()).collect() };
        for (index, master) in cluster.masters.iter().enumerate() {
            let (first, last) = (index * 16_384 / 3, (index + 1) * 16_384 / 3 - 1);
            master.ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            master.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        let first = cluster.masters[0].port.to_string();
        for server in cluster.servers().skip(1) {
            server.ask(&["CLUSTER", "MEET", "127.0.0.1", &first]);
        }
        until("all servers know each other", START, || {
            cluster.servers().all(|server| server.text(&["CLUSTER", "INFO"]).contains("cluster_known_nodes:6"))
        });
        for (replica, master) in cluster.replicas.iter().zip(&cluster.masters) {
            let id = master.text(&["CLUSTER", "MYID"]);
            until("a replica knows its master", START, || replica.text(&["CLUSTER", "REPLICATE", &id]) == "OK");
        }
        until("the cluster is whole", START, || {
            cluster.servers().all(|server| server.text(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
                && cluster
                    .replicas
                    .iter()
                    .all(|replica| replica.text(&["INFO", "replication"]).contains("master_link_status:up"))
        });
        cluster
    }

    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        self.masters.iter().chain(&self.replicas)
    }

    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.servers().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }
}
