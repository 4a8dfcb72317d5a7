//! Memory and disk of each engine, filled in a process of its own: beside others, their memory could not be told apart.

use std::process::Command;

use crate::data::{Random, Rows};
use crate::engine::{self, Setting};
use crate::measure::{anonymous_bytes, disk_bytes};
use crate::{DIMS, ENTRIES_VARIABLE, PUT_BATCH, fresh_folder};

/// Says which engine a process is to fill, measure and print; set by this bench for its own children.
const VARIABLE: &str = "VECMEMO_BENCH_USAGE_OF";

/// Bytes of memory that no file stands behind, and of disk.
pub(crate) struct Usage {
    pub(crate) memory: u64,
    pub(crate) disk: u64,
}

pub(crate) fn is_wanted_of_this_process() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// The child's part: fills the engine that the variable names, and prints two numbers.
pub(crate) fn print(entries: u64) {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    let (peers, _) = engine::all();
    let peer = peers.iter().find(|peer| peer.name == name).expect("the parent names one that it has");
    let folder = fresh_folder();
    let rows = Rows::new(DIMS);
    let mut out = vec![0.0; DIMS];
    let before = anonymous_bytes("self");
    let engine = (peer.open)(folder.path(), Setting { dims: DIMS, entries, durable: false });
    for start in (0..entries).step_by(PUT_BATCH as usize) {
        engine.put(&rows.batch(start..entries.min(start + PUT_BATCH)));
    }
    let mut random = Random(1);
    for _ in 0..10_000 {
        assert!(engine.get(&random.key(entries), &mut out), "{name} has lost an entry");
    }
    engine.settle();
    let memory = anonymous_bytes("self").saturating_sub(before) + engine.memory_elsewhere();
    drop(engine);
    println!("{memory} {}", disk_bytes(folder.path()));
}

/// The parent's part.
pub(crate) fn of(name: &str, entries: u64) -> Usage {
    let program = std::env::current_exe().expect("a running program has a path");
    let output = Command::new(program)
        .env(VARIABLE, name)
        .env(ENTRIES_VARIABLE, entries.to_string())
        .output()
        .expect("this program can be started again");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(|word| word.parse().expect("the child prints numbers"));
    let mut next = || numbers.next().expect("the child prints two numbers");
    Usage { memory: next(), disk: next() }
}
