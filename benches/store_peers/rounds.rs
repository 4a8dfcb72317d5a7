//! The same asked of every engine in turn, round after round. What is kept are the medians of the rounds.

use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::data::{ABSENT, Batch, Key, NOW, Random, Rows, decode, key};
use crate::engine::{self, Engine, OURS, Peer, Setting};
use crate::measure::{self, Cost, cost, median};
use crate::raw::{RawFile, RawRows};
use crate::{DIMS, ENTRIES_MEANT, GET_BATCH, PUT_BATCH, fresh_folder, usage};

/// Rounds of loading: what a put costs in a store that is empty, half full and full.
const LOAD_ROUNDS: u64 = 10;
/// The bytes of an entry's record, which our store writes beside its row.
const RECORD_BYTES: usize = 64;
/// Memory that an engine may take for an entry that is put, the file system's for it included, with room to spare.
const MEMORY_AN_ENTRY: usize = 4096;
/// Redis answers some ten thousand single questions a second: fewer of them give as good a median.
const SLOW: &str = "redis";

/// How much is asked.
struct Plan {
    entries: u64,
    rounds: usize,
    /// Single gets in a round.
    gets: u64,
    /// Durable puts in a round, of `PUT_BATCH` entries each.
    durable_puts: u64,
}

impl Plan {
    fn gets_of(&self, name: &str) -> u64 {
        if name == SLOW { self.gets / 8 } else { self.gets }
    }
}

/// An engine that is open, filled, and answers.
struct Opened {
    peer: Peer,
    folder: TempDir,
    engine: Box<dyn Engine>,
}

/// Measure, engine, figure.
#[derive(Default)]
struct Report(Map<String, Value>);

impl Report {
    fn set(&mut self, measure: &str, engine: &str, figures: Value) {
        let measures = self.0.entry(measure).or_insert_with(|| json!({}));
        measures[engine] = figures;
    }

    /// The medians of what one operation cost in each round.
    fn costs(&mut self, measure: &str, engine: &str, costs: &[Cost]) {
        let cpu_ns = median(costs.iter().map(|cost| cost.cpu_ns).collect());
        let wall_ns = median(costs.iter().map(|cost| cost.wall_ns).collect());
        println!(
            "{measure}/{engine}: {:.0} ops/s ({wall_ns:.0} ns; CPU {cpu_ns:.0} ns; {} rounds)",
            1e9 / wall_ns,
            costs.len()
        );
        let rounds: Vec<_> = costs.iter().map(|cost| json!([cost.cpu_ns, cost.wall_ns])).collect();
        let figures = json!({ "cpu_ns": cpu_ns, "wall_ns": wall_ns, "rounds_cpu_wall_ns": rounds });
        self.set(measure, engine, figures);
    }

    fn value(&mut self, measure: &str, engine: &str, value: f64, unit: &str) {
        println!("{measure}/{engine}: {value:.1} {unit}");
        self.set(measure, engine, json!({ "value": value }));
    }
}

pub(crate) fn run(entries: u64, folder: &Path) {
    let is_quick = entries < ENTRIES_MEANT;
    let plan = Plan {
        entries: entries / (LOAD_ROUNDS * PUT_BATCH) * (LOAD_ROUNDS * PUT_BATCH),
        rounds: if is_quick { 3 } else { 7 },
        gets: if is_quick { 8_000 } else { 100_000 },
        durable_puts: if is_quick { 3 } else { 15 },
    };
    let (peers, left_out) = engine::all();
    left_out.iter().for_each(|(name, reason)| println!("{name} is left out: {reason}"));
    let names: Vec<_> = peers.iter().map(|peer| peer.name).collect();
    let rows = Rows::new(DIMS);
    let mut report = Report::default();

    // First, while nothing else fills the memory.
    for name in &names {
        let usage = usage::of(name, plan.entries);
        let million = ENTRIES_MEANT as f64 / plan.entries as f64;
        report.value("memory_usage/memory", name, usage.memory as f64 / 1e6 * million, "MB per million entries");
        if usage.disk > 0 {
            report.value("memory_usage/disk", name, usage.disk as f64 / plan.entries as f64, "bytes per entry");
        }
    }
    let setting = Setting { dims: DIMS, entries: plan.entries, durable: false };
    let mut opened: Vec<Opened> = peers
        .into_iter()
        .map(|peer| {
            let folder = fresh_folder();
            let engine = (peer.open)(folder.path(), setting);
            Opened { peer, folder, engine }
        })
        .collect();
    put(&plan, &rows, &opened, &mut report);
    warm(&plan, &rows, &opened);
    get(&plan, &rows, &opened, &mut report);
    durable_put(&plan, &rows, &opened, &mut report);
    plain(&rows, &mut report);
    reopen(&plan, setting, &mut opened, &mut report);

    let figures = json!({
        "entries": plan.entries,
        "entries_meant": ENTRIES_MEANT,
        "dims": DIMS,
        "rounds": plan.rounds,
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "left_out": left_out.into_iter().map(|(name, why)| (name.to_owned(), json!(why))).collect::<Map<_, _>>(),
        "measures": report.0,
    });
    std::fs::create_dir_all(folder).expect("criterion's folder can be made");
    let path = folder.join("store_peers.json");
    std::fs::write(&path, format!("{figures:#}\n")).expect("criterion's folder can be written");
    println!("figures: {}", path.display());
}

/// Fills every engine, without a sync.
fn put(plan: &Plan, rows: &Rows, opened: &[Opened], report: &mut Report) {
    let share = plan.entries / LOAD_ROUNDS;
    let mut costs = vec![Vec::new(); opened.len()];
    for round in 0..LOAD_ROUNDS {
        let start = round * share;
        let batches: Vec<Batch> = (start..start + share)
            .step_by(PUT_BATCH as usize)
            .map(|start| rows.batch(start..start + PUT_BATCH))
            .collect();
        for (opened, costs) in opened.iter().zip(&mut costs) {
            let engine = &*opened.engine;
            measure::touch_memory(share as usize * MEMORY_AN_ENTRY);
            let (cost, ()) = cost(Some(engine), || batches.iter().for_each(|batch| engine.put(batch)));
            costs.push(cost.of_one(share));
        }
    }
    opened.iter().zip(&costs).for_each(|(opened, costs)| report.costs("put", opened.peer.name, costs));
}

/// Reads everything once, so that later reads find pages mapped and caches filled, and checks that it is what was put.
fn warm(plan: &Plan, rows: &Rows, opened: &[Opened]) {
    let (mut out, mut expected) = (vec![0.0; DIMS * GET_BATCH], vec![0.0; DIMS]);
    for Opened { peer, engine, .. } in opened {
        for start in (0..plan.entries).step_by(GET_BATCH) {
            let keys: Vec<Key> = (start..plan.entries.min(start + GET_BATCH as u64)).map(key).collect();
            let out = &mut out[..DIMS * keys.len()];
            let found = engine.get_many(&keys, out);
            assert_eq!(found, keys.len(), "{} has lost an entry of those from {start} on", peer.name);
            decode(rows.row(start), &mut expected);
            assert_eq!(out[..DIMS], expected, "{} gives another row for entry {start}", peer.name);
        }
    }
}

/// Asks for each key by itself; answers how many there were.
fn get_each(engine: &dyn Engine, keys: &[Key]) -> usize {
    let mut out = vec![0.0; DIMS];
    keys.iter().filter(|key| engine.get(key, &mut out)).count()
}

fn get(plan: &Plan, rows: &Rows, opened: &[Opened], report: &mut Report) {
    const MEASURES: [&str; 5] = ["get_hit", "get_batch_32", "get_miss", "read_1_thread", "read_2_threads"];
    let mut costs = vec![[const { Vec::new() }; MEASURES.len()]; opened.len()];
    let raw = RawRows::new(rows, plan.entries);
    let mut raw_costs = Vec::new();
    let mut out = vec![0.0; DIMS * GET_BATCH];
    let mut random = Random(u64::from(NOW));
    for _ in 0..plan.rounds {
        let present: Vec<Key> = (0..2 * plan.gets).map(|_| random.key(plan.entries)).collect();
        let absent: Vec<Key> = (0..plan.gets).map(|_| key(ABSENT + random.below(plan.entries))).collect();
        for (opened, costs) in opened.iter().zip(&mut costs) {
            let (engine, name) = (&*opened.engine, opened.peer.name);
            let gets = plan.gets_of(name) as usize;
            let (hit, found) = cost(Some(engine), || get_each(engine, &present[..gets]));
            assert_eq!(found, gets, "{name} has lost an entry");
            let (batch, _) = cost(Some(engine), || {
                present[..gets].chunks_exact(GET_BATCH).for_each(|keys| {
                    engine.get_many(keys, &mut out);
                });
            });
            let (miss, found) = cost(Some(engine), || get_each(engine, &absent[..gets]));
            assert_eq!(found, 0, "{name} has an entry that nobody put");
            let threads = |count: usize| cost(Some(engine), || read_with_threads(engine, &present, gets, count)).0;
            let (one, two) = (threads(1), threads(2));
            costs[0].push(hit.of_one(gets as u64));
            costs[1].push(batch.of_one((gets / GET_BATCH * GET_BATCH) as u64));
            costs[2].push(miss.of_one(gets as u64));
            costs[3].push(one.of_one(gets as u64));
            costs[4].push(two.of_one(2 * gets as u64));
        }
        let mut numbers = [0; GET_BATCH];
        let batches = plan.gets / GET_BATCH as u64;
        let (cost, ()) = cost(None, || (0..batches).for_each(|_| raw.read(&mut random, &mut numbers, &mut out)));
        raw_costs.push(cost.of_one(batches * GET_BATCH as u64));
    }
    for (place, measure) in MEASURES.into_iter().enumerate() {
        opened.iter().zip(&costs).for_each(|(opened, costs)| report.costs(measure, opened.peer.name, &costs[place]));
    }
    report.costs("get_batch_32", "raw", &raw_costs);
}

/// Each thread reads `gets` keys of its own.
fn read_with_threads(engine: &dyn Engine, keys: &[Key], gets: usize, threads: usize) {
    std::thread::scope(|scope| {
        keys.chunks(gets).take(threads).for_each(|keys| {
            scope.spawn(move || get_each(engine, keys));
        });
    });
}

/// Puts that are on the medium when they return, with the bare write and sync of as many bytes beside them.
fn durable_put(plan: &Plan, rows: &Rows, opened: &[Opened], report: &mut Report) {
    let puts = plan.durable_puts;
    let entries = (plan.rounds as u64 + 1) * puts * PUT_BATCH;
    let setting = Setting { dims: DIMS, entries, durable: true };
    let folders: Vec<TempDir> = (0..=opened.len()).map(|_| fresh_folder()).collect();
    let engines: Vec<_> = opened
        .iter()
        .zip(&folders)
        .filter(|(opened, _)| opened.peer.can_be_durable)
        .map(|(opened, folder)| (opened.peer.name, (opened.peer.open)(folder.path(), setting), Vec::new()))
        .collect();
    let mut engines = engines;
    let bytes = PUT_BATCH as usize * (RECORD_BYTES + 2 * DIMS);
    let mut raw = RawFile::new(folders[opened.len()].path(), bytes, entries / PUT_BATCH);
    let mut raw_costs = Vec::new();
    for round in 0..=plan.rounds as u64 {
        // Batch by batch in turn: how long a sync takes changes from second to second.
        let mut sums = vec![Cost { cpu_ns: 0.0, wall_ns: 0.0 }; engines.len() + 1];
        for put in 0..puts {
            let start = (round * puts + put) * PUT_BATCH;
            let batch = rows.batch(start..start + PUT_BATCH);
            for ((_, engine, _), sum) in engines.iter().zip(&mut sums) {
                measure::touch_memory(PUT_BATCH as usize * MEMORY_AN_ENTRY);
                let (cost, ()) = cost(Some(&**engine), || engine.put(&batch));
                sum.cpu_ns += cost.cpu_ns;
                sum.wall_ns += cost.wall_ns;
            }
            measure::touch_memory(PUT_BATCH as usize * MEMORY_AN_ENTRY);
            let (cost, ()) = cost(None, || raw.write_and_sync());
            sums[engines.len()].cpu_ns += cost.cpu_ns;
            sums[engines.len()].wall_ns += cost.wall_ns;
        }
        // The first round makes files grow and trees sprout.
        if round > 0 {
            let of_one = |sum: &Cost| sum.of_one(puts * PUT_BATCH);
            engines.iter_mut().zip(&sums).for_each(|((_, _, costs), sum)| costs.push(of_one(sum)));
            raw_costs.push(of_one(&sums[engines.len()]));
        }
    }
    engines.iter().for_each(|(name, _, costs)| report.costs("durable_put", name, costs));
    report.costs("durable_put", "raw", &raw_costs);
}

/// What anybody would ask first: one entry at a time, by a clock on the wall.
fn plain(rows: &Rows, report: &mut Report) {
    const PUTS: u64 = 10_000;
    const GETS: usize = 1000;
    let folder = fresh_folder();
    let engine = crate::ours::open(folder.path(), Setting { dims: DIMS, entries: PUTS, durable: false });
    let batches: Vec<Batch> = (0..PUTS).map(|index| rows.batch(index..index + 1)).collect();
    let (puts, ()) = cost(None, || batches.iter().for_each(|batch| engine.put(batch)));
    report.costs("plain/put", OURS, &[puts.of_one(PUTS)]);
    report.value("plain/put_10k", OURS, puts.wall_ns / 1e9, "s");

    let mut random = Random(7);
    let keys: Vec<Key> = (0..GETS).map(|_| random.key(PUTS)).collect();
    let (gets, found) = cost(None, || get_each(&*engine, &keys));
    assert_eq!(found, GETS, "an entry is lost");
    report.costs("plain/get", OURS, &[gets.of_one(GETS as u64)]);
    report.value("plain/get_1k", OURS, gets.wall_ns / 1e6, "ms");
    let slowest = keys.iter().map(|key| cost(None, || get_each(&*engine, &[*key])).0.wall_ns).fold(0.0, f64::max);
    report.value("plain/get_slowest_of_1k", OURS, slowest / 1e6, "ms");
}

/// Opening what is full: as the end of a process leaves it, and as a close does.
fn reopen(plan: &Plan, setting: Setting, opened: &mut Vec<Opened>, report: &mut Report) {
    let Some(ours) = opened.iter().find(|opened| opened.peer.name == OURS) else { return };
    let crashed = Crashed::of(ours.folder.path());
    let mut costs = Vec::new();
    for _ in 0..plan.rounds {
        let folder = crashed.again();
        costs.push(cost(None, || (ours.peer.open)(folder, setting)).0);
    }
    report.costs("reopen/crash", OURS, &costs);

    let closed: Vec<_> = opened.drain(..).filter(|opened| opened.peer.is_kept).collect();
    let mut closed: Vec<_> = closed.into_iter().map(|Opened { peer, folder, .. }| (peer, folder, Vec::new())).collect();
    for _ in 0..plan.rounds {
        for (peer, folder, costs) in &mut closed {
            let (cost, engine) = cost(None, || (peer.open)(folder.path(), setting));
            costs.push(cost);
            let mut out = vec![0.0; DIMS];
            assert!(engine.get(&key(plan.entries / 2), &mut out), "{} has lost an entry", peer.name);
        }
    }
    closed.iter().for_each(|(peer, _, costs)| report.costs("reopen/clean", peer.name, costs));
}

/// A store's files as they were while it was open: what is left when its process is killed.
pub(crate) struct Crashed {
    image: TempDir,
    folder: TempDir,
}

impl Crashed {
    /// Copies the files of a store that is open and has been written to.
    pub(crate) fn of(open: &Path) -> Self {
        let crashed = Self { image: fresh_folder(), folder: fresh_folder() };
        copy_files(open, crashed.image.path());
        crashed
    }

    /// A folder in that state, whatever was done there since.
    pub(crate) fn again(&self) -> &Path {
        let folder = self.folder.path();
        for file in std::fs::read_dir(folder).expect("the folder is ours").flatten() {
            std::fs::remove_file(file.path()).expect("the folder is ours");
        }
        copy_files(self.image.path(), folder);
        folder
    }
}

fn copy_files(from: &Path, to: &Path) {
    for file in std::fs::read_dir(from).expect("the folder is ours").flatten() {
        std::fs::copy(file.path(), to.join(file.file_name())).expect("the disk has room");
    }
}
