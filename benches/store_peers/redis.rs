//! Redis over loopback, a server for each opening: `MGET` and `MSET`, one command for a batch.
//!
//! A client is lent to whoever asks, so that threads do not wait for each other's answers.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::{Client, Connection};

use crate::data::{Batch, Key, decode_bytes};
use crate::engine::{Engine, Setting};
use crate::measure::{anonymous_bytes, cpu_of};

const PROGRAM: &str = "redis-server";

struct Redis {
    server: Child,
    client: Client,
    idle: Mutex<Vec<Connection>>,
}

/// Whether the server can be started here; if not, why.
pub(crate) fn find() -> Result<(), String> {
    match Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{PROGRAM} does not start: {status}")),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(format!("{PROGRAM} is not installed")),
        Err(error) => Err(format!("{PROGRAM} does not start: {error}")),
    }
}

pub(crate) fn open(folder: &Path, setting: Setting) -> Box<dyn Engine> {
    // Free a moment ago; taken by another now, the server would not start and the bench would say so.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("there is a free port")
        .port()
        .to_string();
    let appended = if setting.durable { "yes" } else { "no" };
    let server = Command::new(PROGRAM)
        .args(["--port", &port, "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", appended, "--appendfsync", "always"])
        .arg("--dir")
        .arg(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it did start for its version");
    let client = Client::open(format!("redis://127.0.0.1:{port}/")).expect("the address is one");
    let started = Instant::now();
    let first = loop {
        match client.get_connection() {
            Ok(connection) => break connection,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(30), "{PROGRAM} does not answer: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Box::new(Redis { server, client, idle: Mutex::new(vec![first]) })
}

impl Redis {
    fn ask<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> T {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = idle.unwrap_or_else(|| self.client.get_connection().expect("the server runs"));
        let answer = command.query(&mut connection).expect("the server answers");
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        answer
    }
}

impl Engine for Redis {
    fn put(&self, batch: &Batch) {
        let mut command = redis::cmd("MSET");
        for (key, value) in batch.values() {
            command.arg(&key[..]).arg(value);
        }
        self.ask::<()>(&command);
    }

    fn get(&self, key: &Key, out: &mut [f32]) -> bool {
        self.get_many(std::slice::from_ref(key), out) == 1
    }

    fn get_many(&self, keys: &[Key], out: &mut [f32]) -> usize {
        let dims = out.len() / keys.len();
        let mut command = redis::cmd("MGET");
        for key in keys {
            command.arg(&key[..]);
        }
        let values: Vec<Option<Vec<u8>>> = self.ask(&command);
        let rows = values.iter().zip(out.chunks_exact_mut(dims));
        rows.filter_map(|(value, out)| value.as_ref().map(|value| decode_bytes(value, out))).count()
    }

    fn cpu_elsewhere(&self) -> Duration {
        cpu_of(self.server.id())
    }

    fn memory_elsewhere(&self) -> u64 {
        anonymous_bytes(&self.server.id().to_string())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Nothing it keeps is wanted; if it has ended by itself, so much the better.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
