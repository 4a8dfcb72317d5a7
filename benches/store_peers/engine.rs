//! What is asked of each engine, and which there are.

use std::path::Path;
use std::time::Duration;

use crate::data::{Batch, Key};
use crate::{fjall, lmdb, memory, ours, redb, redis};

/// A key-value store under comparison. Shared by the threads that ask it.
pub(crate) trait Engine: Send + Sync {
    /// Keeps entries; if the engine was opened durable, they are on the medium when this returns.
    fn put(&self, batch: &Batch);

    /// Decodes a key's row into `out`, and says whether there was one.
    fn get(&self, key: &Key, out: &mut [f32]) -> bool;

    /// As `get` for several keys in the engine's best way, their rows one behind the other. Answers how many there were.
    fn get_many(&self, keys: &[Key], out: &mut [f32]) -> usize {
        let dims = out.len() / keys.len();
        keys.iter().zip(out.chunks_exact_mut(dims)).map(|(key, out)| usize::from(self.get(key, out))).sum()
    }

    /// Waits until work in the background is done, so that no other engine's round pays for it.
    fn settle(&self) {}

    /// The CPU time that another process has spent for this engine.
    fn cpu_elsewhere(&self) -> Duration {
        Duration::ZERO
    }

    /// The resident anonymous memory of another process that works for this engine.
    fn memory_elsewhere(&self) -> u64 {
        0
    }
}

/// What an engine is opened for.
#[derive(Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) dims: usize,
    /// The most entries there will be.
    pub(crate) entries: u64,
    /// Whether each put survives power loss.
    pub(crate) durable: bool,
}

/// An engine's name and how to open it.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// Opens what is in the folder, or makes it.
    pub(crate) open: fn(&Path, Setting) -> Box<dyn Engine>,
    /// Whether there is anything to open again after the process has ended.
    pub(crate) is_kept: bool,
    /// Whether it promises that a put survives power loss.
    pub(crate) can_be_durable: bool,
}

/// The one this is about: first, because the rest are compared with it.
pub(crate) const OURS: &str = "vecmemo";

/// Every engine that this machine has, ours first; and those left out, with the reason.
pub(crate) fn all() -> (Vec<Peer>, Vec<(&'static str, String)>) {
    let disk = |name, open| Peer { name, open, is_kept: true, can_be_durable: true };
    let memory = |name, open| Peer { name, open, is_kept: false, can_be_durable: false };
    let mut peers = vec![
        disk(OURS, ours::open),
        disk("lmdb", lmdb::open),
        disk("redb", redb::open),
        disk("fjall", fjall::open),
        memory("moka", memory::open_moka),
        memory("hashmap", memory::open_map),
    ];
    let mut left_out = Vec::new();
    match redis::find() {
        Ok(()) => peers.push(Peer { name: "redis", open: redis::open, is_kept: false, can_be_durable: true }),
        Err(reason) => left_out.push(("redis", reason)),
    }
    (peers, left_out)
}
