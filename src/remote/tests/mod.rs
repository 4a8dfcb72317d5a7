//! The tier as a whole: in memory with troubles to order, and on real servers where there are any.

mod cluster;
mod live;
mod secured;
mod shared;
mod single;
mod stream;
mod troubled;
mod watched;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use half::f16;

use self::live::until;
use super::*;

/// Long enough for anything that has to happen.
const SOON: Duration = Duration::from_secs(20);
const DIMS: usize = 8;

/// A node: its tier, and what it has heard.
struct Machine {
    tier: Tier,
    heard: Arc<Ear>,
}

#[derive(Default)]
struct Ear(Mutex<Vec<Heard>>);

impl Listener for Ear {
    fn invalidated(&self, heard: &[Heard], _: u32) {
        self.0.lock().unwrap().extend_from_slice(heard);
    }
}

/// A generous deadline: these tests are about what is answered. Those about the deadline set their own.
fn config() -> Config {
    Config { deadline: Duration::from_secs(2), ..Config::default() }
}

impl Machine {
    fn new(tier: Tier) -> Self {
        let heard = Arc::new(Ear::default());
        tier.listen(Arc::clone(&heard) as Arc<dyn Listener>);
        Self { tier, heard }
    }

    fn in_memory(memory: &Memory, config: Config) -> Self {
        let machine = Self::new(Tier::in_memory(memory, config).unwrap());
        machine.wait();
        machine
    }

    fn at(url: &str, config: Config) -> Self {
        let machine = Self::new(Tier::start(&url.parse().unwrap(), config).unwrap());
        machine.wait();
        machine
    }

    fn wait(&self) {
        until("the tier is ready", SOON, || self.tier.figures().ready);
    }

    fn fetch(&self, keys: &[Key]) -> Fetched {
        self.tier.fetch(&asked(keys))
    }

    fn get(&self, key: &Key) -> Option<Record> {
        self.fetch(std::slice::from_ref(key)).records.remove(0)
    }

    /// Keeps a record as one computed now, and waits until it is kept.
    fn put(&self, key: Key, tags: &[&str]) {
        let epoch = self.fetch(&[key]).epoch;
        self.tier.store(key, record(tags), epoch, None);
        assert!(self.tier.flush(SOON));
    }

    fn heard(&self) -> Vec<Notice> {
        self.heard.0.lock().unwrap().iter().map(|heard| heard.notice.clone()).collect()
    }
}

fn asked(keys: &[Key]) -> Asked<'_> {
    static WHO: std::sync::LazyLock<(ModelVersion, Namespace)> =
        std::sync::LazyLock::new(|| (ModelVersion::from_bytes([1; 32]), Namespace::default()));
    Asked { model: &WHO.0, namespace: &WHO.1, dims: DIMS, keys }
}

fn key(number: u64) -> Key {
    Key::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn record(tags: &[&str]) -> Record {
    Record {
        unit: vec![f16::from_f32(0.353_55); DIMS].into(),
        norm: 3.0,
        tokens: 5,
        created: 1_000,
        tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
        ..Record::default()
    }
}

fn of_tag(tag: &str) -> Notice {
    Notice { tags: vec![tag.to_owned()], ..Notice::default() }
}
