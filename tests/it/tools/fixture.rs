//! A small store of format 1, committed as it was written then: whatever this program becomes, it opens it and serves
//! the same vectors, or refuses it by name.
//!
//! `scripts/make-store-fixture` runs [`make`] with today's code. A fixture that is committed is never made anew: a new
//! format gets a folder of its own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vecmemo::domain::{
    ContentHash, Embedding, FingerprintBuilder, Key, ModelVersion, Namespace, Scope, Truncation, TruncationDirection,
};
use vecmemo::store::{Config, NewEntry, Store};

pub const DIMS: usize = 6;
pub const CAPACITY: u64 = 32;
/// When the fixture's entries were written, in Unix seconds.
pub const NOW: u32 = 1_800_000_000;
/// How many texts it was made from.
const TEXTS: u32 = 20;
const REMOVED: u32 = 3;
const REPLACED: u32 = 8;
const DAMAGED: u32 = 11;
const EXPIRED: u32 = 15;

pub fn version() -> ModelVersion {
    FingerprintBuilder::new().field("weights", b"fixture").finish()
}

pub fn config() -> Config {
    Config { capacity_entries: CAPACITY, ..Config::default() }
}

fn namespace(n: u32) -> Namespace {
    Namespace::new(["", "tenant-a", "tenant-b"][n as usize % 3]).unwrap()
}

fn key(n: u32) -> Key {
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: 256 };
    Scope::new(&namespace(n), &version(), "", truncation).key(ContentHash::of(&format!("text {n}")))
}

fn tags(n: u32) -> Vec<String> {
    if n.is_multiple_of(4) { vec![format!("doc-{n}"), "four".to_owned()] } else { Vec::new() }
}

fn embedding(n: u32, edition: u32) -> Embedding {
    let value = |place: u32| ((n * 37 + place * 101 + edition * 53) % 199) as f32 / 10.0 - 9.85;
    Embedding::from_raw(&(0..DIMS as u32).map(value).collect::<Vec<_>>()).unwrap()
}

fn expires(n: u32) -> Option<u32> {
    if n == EXPIRED { Some(NOW - 1000) } else { n.is_multiple_of(5).then_some(NOW + 1000 + n) }
}

/// The second half of the texts is older.
fn created(n: u32) -> u32 {
    if n < TEXTS / 2 { NOW } else { NOW - 5000 }
}

fn put(store: &Store, n: u32, edition: u32) {
    let (embedding, namespace, tags) = (embedding(n, edition), namespace(n), tags(n));
    let entry = NewEntry {
        tokens: 3 + n,
        truncated: n % 7 == 6,
        expires: expires(n),
        tags: &tags,
        replace: edition > 0,
        ..NewEntry::new(key(n), &embedding.unit, embedding.norm, &namespace)
    };
    store.put_many(&[entry], created(n)).unwrap();
}

/// Writes a store and what it has to serve into an empty folder.
pub fn make(folder: &Path) {
    let store = Store::open(folder, &version(), DIMS, &config()).unwrap();
    (TEXTS / 2..TEXTS).chain(0..TEXTS / 2).for_each(|n| put(&store, n, 0));
    put(&store, REPLACED, 1);
    assert_eq!(store.remove_many(&[key(REMOVED)]).unwrap(), 1);
    store.sync().unwrap();
    drop(store);
    flip_row(&space(folder), DAMAGED);
    let expected: Vec<Value> = (0..TEXTS).map(expectation).collect();
    let lines: Vec<String> = expected.iter().map(Value::to_string).collect();
    std::fs::write(folder.join("expected.jsonl"), lines.join("\n") + "\n").unwrap();
}

fn expectation(n: u32) -> Value {
    let embedding = embedding(n, u32::from(n == REPLACED));
    let served = ![REMOVED, DAMAGED, EXPIRED].contains(&n);
    let bits: Vec<u16> = embedding.unit.iter().map(|value| value.to_bits()).collect();
    json!({
        "key": key(n).to_string(), "served": served, "unit_bits": bits, "norm_bits": embedding.norm.to_bits(),
        "tokens": 3 + n, "truncated": n % 7 == 6, "created": created(n), "expires": expires(n),
        "namespace": namespace(n).as_str(), "tags": tags(n),
    })
}

/// The folder's one space.
pub fn space(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder).unwrap().map(|item| item.unwrap().path());
    let mut spaces = files.filter(|path| path.extension().is_some_and(|extension| extension == "space"));
    let space = spaces.next().expect("there is a space");
    assert!(spaces.next().is_none(), "there is one space");
    space
}

/// Changes one bit of the row of a text, wherever its slot is.
fn flip_row(space: &Path, n: u32) {
    let file = File::options().read(true).write(true).open(space).unwrap();
    let mut header = [0; 40];
    file.read_exact_at(&mut header, 0).unwrap();
    let rows_offset = u64::from_le_bytes(header[32..40].try_into().unwrap());
    let slot = (0..CAPACITY).find(|slot| {
        let mut found = [0; 32];
        file.read_exact_at(&mut found, 4096 + slot * 64).unwrap();
        found == *key(n).as_bytes()
    });
    let offset = rows_offset + slot.expect("the text has a slot") * DIMS as u64 * 2 + 5;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 4], offset).unwrap();
}
