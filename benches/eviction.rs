//! Which entries should make room? Hit rates of eviction policies over the same requests, in slots as the store has them.
//!
//! The store's own policy is `src/store/eviction.rs` itself, included here; the others are what it is held against. The
//! requests are made up with fixed seeds. As in the store, a freed slot is used by the next put, and victims are taken 16
//! at a time: *runs* says in how many pieces these lie, for neighbours are written with one write.
//!
//! ```text
//! cargo bench --bench eviction            # a million requests and more for each number
//! cargo bench --bench eviction -- --quick # a tenth of them
//! ```

#![allow(missing_docs, clippy::print_stdout)]

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use bits::Bits;
use eviction::Eviction;
use layout::Slot;

#[allow(dead_code)]
#[path = "../src/store/bits.rs"]
mod bits;
// With `harness = false` cargo sets `cfg(test)` and leaves the test functions out.
#[allow(dead_code, unused_imports)]
#[path = "../src/store/eviction.rs"]
mod eviction;
mod layout {
    pub(super) type Slot = u32;
}

/// As in the store's writer.
const SWEEP_ENTRIES: usize = 16;
const NONE: u32 = u32::MAX;
const CACHE_PERCENT: [usize; 3] = [1, 10, 30];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let requests = if arguments.iter().any(|argument| argument == "--quick") { 100_000 } else { 1_000_000 };
    let traces = traces(requests);
    let policies: [(&str, NewPolicy); 8] = [
        ("FIFO", |_| Box::new(Fifo::default())),
        ("LRU", |capacity| Box::new(Lru(List::new(capacity)))),
        ("CLOCK", |capacity| Box::new(Clock::new(capacity))),
        ("CLOCK, in slots", |capacity| Box::new(SlotClock { capacity: capacity as Slot, hand: 0 })),
        ("SIEVE", |capacity| Box::new(Sieve { list: List::new(capacity), hand: NONE })),
        ("S3-FIFO, 2 bits", |capacity| Box::new(S3Fifo::new(capacity, 2))),
        ("S3-FIFO, 1 bit", |capacity| Box::new(S3Fifo::new(capacity, 1))),
        ("the store's", |capacity| Box::new(Shipped(Eviction::new(capacity as Slot)))),
    ];

    println!("Hit rate in percent, for caches of 1, 10 and 30 % of the keys; {requests} requests a number.\n");
    print!("| policy |");
    traces.iter().for_each(|trace| print!(" {} |", trace.name));
    println!(" mean | runs of 16 | ns a request | bytes a slot |");
    println!("| --- |{}", " ---: |".repeat(traces.len() + 4));
    for (name, policy) in policies {
        print!("| {name} |");
        let (mut rates, mut runs, mut sweeps, mut ns, mut bytes) = (Vec::new(), 0, 0, 0.0, 0.0);
        for trace in &traces {
            print!(" ");
            for percent in CACHE_PERCENT {
                let capacity = (trace.keys * percent / 100).max(SWEEP_ENTRIES);
                let replayed = replay(trace, capacity, policy(capacity));
                let rate = 100.0 * replayed.hits as f64 / trace.requests.len() as f64;
                print!("{}{rate:.1}", if percent == CACHE_PERCENT[0] { "" } else { " / " });
                rates.push(rate);
                runs += replayed.runs;
                sweeps += replayed.sweeps;
                ns += replayed.ns / trace.requests.len() as f64;
                bytes = replayed.bytes_a_slot;
            }
            print!(" |");
        }
        let count = rates.len() as f64;
        let (mean, runs, ns) = (rates.iter().sum::<f64>() / count, runs as f64 / f64::from(sweeps.max(1)), ns / count);
        println!(" **{mean:.2}** | {runs:.1} | {ns:.0} | {bytes:.2} |");
    }
    println!("\nBytes a slot: beside the one bit that readers set, at the largest cache; what only the order needs.");
}

// ---- The replay: a store without rows.

struct Replayed {
    hits: usize,
    sweeps: u32,
    runs: u32,
    ns: f64,
    bytes_a_slot: f64,
}

fn replay(trace: &Trace, capacity: usize, mut policy: Box<dyn Policy>) -> Replayed {
    let visited = Bits::new(capacity as u64);
    let mut slot_of = vec![NONE; trace.keys];
    let mut key_of = vec![NONE; capacity];
    let (mut fresh, mut freed, mut victims) = (0, Vec::new(), Vec::new());
    let mut replayed = Replayed { hits: 0, sweeps: 0, runs: 0, ns: 0.0, bytes_a_slot: 0.0 };
    let started = Instant::now();
    for &key in &trace.requests {
        let slot = slot_of[key as usize];
        if slot != NONE {
            replayed.hits += 1;
            policy.read(slot, &visited);
            continue;
        }
        if fresh == capacity as Slot && freed.is_empty() {
            // As in the store: at most a sixteenth of a small one.
            let sweep = SWEEP_ENTRIES.min(capacity.div_ceil(SWEEP_ENTRIES));
            policy.choose(sweep, &visited, &key_of, &mut victims);
            assert_eq!(victims.len(), sweep);
            for &slot in &victims {
                slot_of[std::mem::replace(&mut key_of[slot as usize], NONE) as usize] = NONE;
            }
            victims.sort_unstable();
            if sweep == SWEEP_ENTRIES {
                replayed.sweeps += 1;
                replayed.runs += 1 + victims.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count() as u32;
            }
            freed.extend(victims.drain(..).rev());
        }
        let slot = freed.pop().unwrap_or_else(|| {
            fresh += 1;
            fresh - 1
        });
        visited.clear(slot);
        slot_of[key as usize] = slot;
        key_of[slot as usize] = key;
        policy.inserted(slot, hash(key));
    }
    replayed.ns = started.elapsed().as_nanos() as f64;
    replayed.bytes_a_slot = policy.memory_bytes() as f64 / capacity as f64;
    replayed
}

/// Makes a policy for a capacity.
type NewPolicy = fn(usize) -> Box<dyn Policy>;

trait Policy {
    fn read(&mut self, slot: Slot, visited: &Bits) {
        visited.set(slot);
    }
    fn inserted(&mut self, slot: Slot, hash: u64);
    fn choose(&mut self, count: usize, visited: &Bits, key_of: &[u32], victims: &mut Vec<Slot>);
    fn memory_bytes(&self) -> usize;
}

struct Shipped(Eviction);

impl Policy for Shipped {
    fn inserted(&mut self, slot: Slot, hash: u64) {
        self.0.inserted(slot, hash);
    }

    fn choose(&mut self, count: usize, visited: &Bits, key_of: &[u32], victims: &mut Vec<Slot>) {
        self.0.choose(count, |slot| visited.clear(slot), |slot| hash(key_of[slot as usize]), victims);
    }

    fn memory_bytes(&self) -> usize {
        self.0.memory_bytes() as usize
    }
}

// ---- What it is held against.

#[derive(Default)]
struct Fifo(VecDeque<Slot>);

impl Policy for Fifo {
    fn read(&mut self, _: Slot, _: &Bits) {}

    fn inserted(&mut self, slot: Slot, _: u64) {
        self.0.push_back(slot);
    }

    fn choose(&mut self, count: usize, _: &Bits, _: &[u32], victims: &mut Vec<Slot>) {
        victims.extend(self.0.drain(..count));
    }

    fn memory_bytes(&self) -> usize {
        self.0.len() * size_of::<Slot>()
    }
}

/// The least recently used goes.
struct Lru(List);

impl Policy for Lru {
    fn read(&mut self, slot: Slot, _: &Bits) {
        self.0.unlink(slot);
        self.0.push_newest(slot);
    }

    fn inserted(&mut self, slot: Slot, _: u64) {
        self.0.push_newest(slot);
    }

    fn choose(&mut self, count: usize, _: &Bits, _: &[u32], victims: &mut Vec<Slot>) {
        for _ in 0..count {
            let slot = self.0.oldest;
            self.0.unlink(slot);
            victims.push(slot);
        }
    }

    fn memory_bytes(&self) -> usize {
        self.0.memory_bytes()
    }
}

/// In the order of insertion: whoever was read goes to the back, unread.
struct Clock(VecDeque<Slot>);

impl Clock {
    fn new(capacity: usize) -> Self {
        Self(VecDeque::with_capacity(capacity))
    }
}

impl Policy for Clock {
    fn inserted(&mut self, slot: Slot, _: u64) {
        self.0.push_back(slot);
    }

    fn choose(&mut self, count: usize, visited: &Bits, _: &[u32], victims: &mut Vec<Slot>) {
        while victims.len() < count
            && let Some(slot) = self.0.pop_front()
        {
            if visited.clear(slot) { self.0.push_back(slot) } else { victims.push(slot) }
        }
    }

    fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<Slot>()
    }
}

/// In the order of the slots: what the store had before.
struct SlotClock {
    capacity: Slot,
    hand: Slot,
}

impl Policy for SlotClock {
    fn inserted(&mut self, _: Slot, _: u64) {}

    fn choose(&mut self, count: usize, visited: &Bits, key_of: &[u32], victims: &mut Vec<Slot>) {
        while victims.len() < count {
            let slot = self.hand;
            self.hand = (slot + 1) % self.capacity;
            if key_of[slot as usize] != NONE && !visited.clear(slot) && !victims.contains(&slot) {
                victims.push(slot);
            }
        }
    }

    fn memory_bytes(&self) -> usize {
        size_of_val(self)
    }
}

/// Zhang et al., "SIEVE is simpler than LRU", NSDI 2024: as CLOCK, but whoever was read stays in its place.
struct Sieve {
    list: List,
    hand: Slot,
}

impl Policy for Sieve {
    fn inserted(&mut self, slot: Slot, _: u64) {
        self.list.push_newest(slot);
    }

    fn choose(&mut self, count: usize, visited: &Bits, _: &[u32], victims: &mut Vec<Slot>) {
        while victims.len() < count {
            let slot = if self.hand == NONE { self.list.oldest } else { self.hand };
            self.hand = self.list.newer[slot as usize];
            if !visited.clear(slot) {
                self.list.unlink(slot);
                victims.push(slot);
            }
        }
    }

    fn memory_bytes(&self) -> usize {
        self.list.memory_bytes()
    }
}

/// Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, as in the paper: three queues, reads counted
/// up to three. With one bit: whoever was read once while new is kept.
struct S3Fifo {
    capacity: usize,
    bits: u32,
    reads: Vec<u8>,
    small: VecDeque<Slot>,
    main: VecDeque<Slot>,
    ghost: VecDeque<u64>,
    /// How often a key is in `ghost`.
    ghosts: HashMap<u64, u32>,
}

impl S3Fifo {
    fn new(capacity: usize, bits: u32) -> Self {
        let (small, main, ghost, ghosts) = Default::default();
        Self { capacity, bits, reads: vec![0; capacity], small, main, ghost, ghosts }
    }
}

impl Policy for S3Fifo {
    fn read(&mut self, slot: Slot, _: &Bits) {
        let reads = &mut self.reads[slot as usize];
        *reads = (*reads + 1).min((1 << self.bits) - 1);
    }

    fn inserted(&mut self, slot: Slot, hash: u64) {
        self.reads[slot as usize] = 0;
        let queue = if self.ghosts.contains_key(&hash) { &mut self.main } else { &mut self.small };
        queue.push_back(slot);
    }

    fn choose(&mut self, count: usize, _: &Bits, key_of: &[u32], victims: &mut Vec<Slot>) {
        while victims.len() < count {
            if self.small.len() > self.capacity / 10 || self.main.is_empty() {
                let Some(slot) = self.small.pop_front() else { break };
                // More than once in the paper, which counts to three.
                if self.reads[slot as usize] >= self.bits as u8 {
                    self.reads[slot as usize] = 0;
                    self.main.push_back(slot);
                    continue;
                }
                let hash = hash(key_of[slot as usize]);
                self.ghost.push_back(hash);
                *self.ghosts.entry(hash).or_default() += 1;
                if self.ghost.len() > self.capacity * 9 / 10
                    && let Some(forgotten) = self.ghost.pop_front()
                    && let Some(times) = self.ghosts.get_mut(&forgotten)
                {
                    *times -= 1;
                    if *times == 0 {
                        self.ghosts.remove(&forgotten);
                    }
                }
                victims.push(slot);
            } else if let Some(slot) = self.main.pop_front() {
                let reads = &mut self.reads[slot as usize];
                if *reads > 0 {
                    *reads -= 1;
                    self.main.push_back(slot);
                } else {
                    victims.push(slot);
                }
            }
        }
    }

    fn memory_bytes(&self) -> usize {
        // A hash table of 8 + 4 bytes at 7/8, beside the queues.
        self.reads.len() + (self.small.len() + self.main.len()) * 4 + self.ghost.len() * 8 + self.ghosts.len() * 16
    }
}

/// Slots from the oldest to the newest.
struct List {
    newer: Vec<Slot>,
    older: Vec<Slot>,
    oldest: Slot,
    newest: Slot,
}

impl List {
    fn new(capacity: usize) -> Self {
        Self { newer: vec![NONE; capacity], older: vec![NONE; capacity], oldest: NONE, newest: NONE }
    }

    fn push_newest(&mut self, slot: Slot) {
        self.older[slot as usize] = self.newest;
        self.newer[slot as usize] = NONE;
        match self.newest {
            NONE => self.oldest = slot,
            newest => self.newer[newest as usize] = slot,
        }
        self.newest = slot;
    }

    fn unlink(&mut self, slot: Slot) {
        let (older, newer) = (self.older[slot as usize], self.newer[slot as usize]);
        match older {
            NONE => self.oldest = newer,
            older => self.newer[older as usize] = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.older[newer as usize] = older,
        }
    }

    fn memory_bytes(&self) -> usize {
        (self.newer.len() + self.older.len()) * size_of::<Slot>()
    }
}

// ---- The requests.

struct Trace {
    name: &'static str,
    /// Keys are numbers below this.
    keys: usize,
    requests: Vec<u32>,
}

const KEYS: usize = 100_000;

fn traces(requests: usize) -> Vec<Trace> {
    let zipf = |name, skew| {
        let (mut random, zipf) = (Random(1), Zipf::new(KEYS, skew));
        Trace { name, keys: KEYS, requests: (0..requests).map(|_| zipf.draw(&mut random)).collect() }
    };
    let looped = 110 * KEYS / 1000;
    vec![
        zipf("Zipf 0.7", 0.7),
        zipf("Zipf 0.9", 0.9),
        zipf("Zipf 1.1", 1.1),
        scans(requests),
        // A tenth more than the middle cache: all others see a loop far too large, or one that fits.
        Trace { name: "loop", keys: KEYS, requests: (0..requests as u32).map(|n| n % looped as u32).collect() },
        ingestion(requests),
    ]
}

/// Zipf 0.9 over half of the keys, interrupted by runs over 2,000 consecutive others: a third of all requests.
fn scans(requests: usize) -> Trace {
    let (mut random, zipf) = (Random(2), Zipf::new(KEYS / 2, 0.9));
    let (mut list, mut scanned) = (Vec::new(), 0);
    while list.len() < requests {
        list.extend((0..4000).map(|_| zipf.draw(&mut random)));
        list.extend((0..2000).map(|n| (KEYS / 2 + (scanned + n) % (KEYS / 2)) as u32));
        scanned += 2000;
    }
    Trace { name: "Zipf and scans", keys: KEYS, requests: list }
}

/// Documents of 25 chunks are ingested anew in jobs of 32, mostly those that changed lately, each time with 4 % of the
/// chunks changed; one job in ten is retried. In between, questions: Zipf 0.9 over 20,000 texts.
fn ingestion(requests: usize) -> Trace {
    const DOCUMENTS: usize = 2000;
    const CHUNKS: usize = 25;
    const QUESTIONS: usize = 20_000;
    let mut random = Random(3);
    let (questions, ages) = (Zipf::new(QUESTIONS, 0.9), Zipf::new(DOCUMENTS, 0.9));
    let mut keys = QUESTIONS as u32;
    let mut new_key = || {
        keys += 1;
        keys - 1
    };
    let mut documents: Vec<[u32; CHUNKS]> = (0..DOCUMENTS).map(|_| [0; CHUNKS].map(|_| new_key())).collect();
    let mut latest: Vec<usize> = (0..DOCUMENTS).collect();
    let (mut list, mut crawler) = (Vec::new(), 0);
    while list.len() < requests {
        let mut job = Vec::new();
        for _ in 0..32 {
            let document = if random.below(10) < 7 {
                latest[DOCUMENTS - 1 - ages.draw(&mut random) as usize]
            } else {
                crawler = (crawler + 1) % DOCUMENTS;
                crawler
            };
            for chunk in &mut documents[document] {
                if random.below(100) < 4 {
                    *chunk = new_key();
                }
            }
            job.extend(documents[document]);
            if let Some(place) = latest.iter().rposition(|&other| other == document) {
                latest[place..].rotate_left(1);
            }
        }
        let times = if random.below(10) == 0 { 2 } else { 1 };
        (0..times).for_each(|_| list.extend(&job));
        list.extend((0..500).map(|_| questions.draw(&mut random)));
    }
    Trace { name: "ingestion", keys: keys as usize, requests: list }
}

/// Ranks, of which the first are the likeliest: rank r with weight 1 / (r + 1)^skew. Each rank is the key itself: no
/// policy looks at keys' order.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(count: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        Self(
            (1..=count)
                .map(|rank| {
                    sum += (rank as f64).powf(-skew);
                    sum
                })
                .collect(),
        )
    }

    fn draw(&self, random: &mut Random) -> u32 {
        let sum = self.0.last().copied().unwrap_or_default();
        let point = sum * (random.next() >> 11) as f64 / (1_u64 << 53) as f64;
        self.0.partition_point(|&until| until <= point).min(self.0.len() - 1) as u32
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash64(self.0)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn hash64(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hash(key: u32) -> u64 {
    hash64(u64::from(key) + 1)
}
