//! Power lost at every point, and every operation refused once: what was acknowledged is there, what was removed stays
//! gone, nothing wrong is ever served, and the store goes on.
//!
//! A workload of all that a store can do runs on a [`SimulatedDisk`]. After each step it is noted what the store serves
//! and whether that was acknowledged as durable. Then folders are made as a power loss would leave them, and opened.

use std::collections::{BTreeMap, BTreeSet};

use super::simulated_disk::{Failure, Fate, Fault, Medium, Operation, SimulatedDisk};
use super::*;

/// Numbers of the workload's keys: more than fit, so that some are evicted.
const NUMBERS: u32 = 16;
const CAPACITY: u64 = 12;
const NAMESPACES: [&str; 3] = ["", "tenant", "other"];

/// What the store serves under a key.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    /// Which of the entries ever given for the key; it is in the norm.
    edition: u32,
    stale: bool,
    expires: Option<u32>,
    tags: Vec<String>,
    payload: Option<String>,
}

type View = BTreeMap<u32, Seen>;

/// An entry as it was given.
#[derive(Clone, Debug)]
struct Given {
    number: u32,
    edition: u32,
    replace: bool,
    created: u32,
    expires: Option<u32>,
    pinned: bool,
    namespace: &'static str,
    tags: Vec<String>,
    payload: Option<String>,
}

#[derive(Clone, Debug)]
enum Action {
    Put(Vec<Given>),
    Remove(Vec<u32>),
    MarkStale(Vec<u32>),
    Clear,
    WaitAndSweep(u32),
    Sync,
    Reopen,
    Resize(u64),
}

/// One action, with the journal's positions before and after it, and what was served then.
struct Step {
    action: Action,
    from: usize,
    to: usize,
    now: u32,
    capacity: u64,
    before: View,
    after: View,
    /// Whether everything up to its end was acknowledged as on the medium.
    durable: bool,
    failed: bool,
    /// Numbers that a failed step may have left in any of the states they ever had.
    uncertain: BTreeSet<u32>,
}

impl Step {
    /// Entries that were given in this step.
    fn given(&self) -> &[Given] {
        if let Action::Put(given) = &self.action { given } else { &[] }
    }
}

struct Workload {
    disk: SimulatedDisk,
    folder: tempfile::TempDir,
    durability: Durability,
    store: Option<Store>,
    capacity: u64,
    now: u32,
    random: Random,
    /// All ever given, by edition.
    history: Vec<Given>,
    steps: Vec<Step>,
    view: View,
    uncertain: BTreeSet<u32>,
}

impl Workload {
    /// Opens the store and does so many things.
    fn run(seed: u64, actions: usize, durability: Durability, fault: Option<Fault>) -> Self {
        let disk = SimulatedDisk::default();
        disk.state().fault = fault;
        let mut workload = Self {
            disk,
            folder: quick_folder(),
            durability,
            store: None,
            capacity: CAPACITY,
            now: NOW,
            random: Random::new(seed),
            history: Vec::new(),
            steps: Vec::new(),
            view: View::new(),
            uncertain: BTreeSet::new(),
        };
        workload.step(Action::Reopen);
        for _ in 0..actions {
            let action = workload.choose();
            workload.step(action);
        }
        workload
    }

    fn numbers(&mut self, most: usize) -> Vec<u32> {
        (0..=self.random.below(most)).map(|_| self.random.below(NUMBERS as usize) as u32).collect()
    }

    fn choose(&mut self) -> Action {
        match self.random.below(40) {
            0..20 => {
                let numbers = self.numbers(5);
                let given = numbers.into_iter().map(|number| self.give(number)).collect();
                Action::Put(given)
            }
            20..25 => Action::Remove(self.numbers(3)),
            25..29 => Action::MarkStale(self.numbers(4)),
            29 => Action::Clear,
            30..32 => Action::WaitAndSweep(1 + self.random.below(4) as u32),
            32..35 => Action::Sync,
            35..38 => Action::Reopen,
            _ => Action::Resize([CAPACITY, CAPACITY + 3, CAPACITY - 4][self.random.below(3)]),
        }
    }

    fn give(&mut self, number: u32) -> Given {
        let random = &mut self.random;
        let edition = self.history.len() as u32;
        let tags = (0..random.below(6).saturating_sub(3)).map(|_| format!("tag{}", random.below(5))).collect();
        let given = Given {
            number,
            edition,
            replace: random.one_in(2),
            created: self.now,
            expires: random.one_in(4).then(|| self.now + 1 + random.below(9) as u32),
            pinned: random.one_in(9),
            namespace: NAMESPACES[random.below(NAMESPACES.len())],
            tags,
            payload: random.one_in(3).then(|| format!("{{\"edition\":{edition}}}")),
        };
        self.history.push(given.clone());
        given
    }

    fn config(&self, capacity: u64) -> Config {
        Config { capacity_entries: capacity, durability: self.durability, ..Config::default() }
    }

    fn open(&mut self) -> Result<(), StoreError> {
        self.store = None;
        let config = self.config(self.capacity);
        let files = Arc::new(self.disk.clone());
        self.store = Some(Store::open_on(files, self.folder.path(), &version("m"), DIMS, &config)?);
        Ok(())
    }

    fn step(&mut self, action: Action) {
        let from = self.disk.len();
        let result = self.act(&action);
        if let Some(store) = &self.store {
            // Else it is chance what the thread behind has written when the next step begins.
            store.core.aliases.settle();
            self.view = view(store, &self.history, self.now, &format!("while running, after {action:?}"));
        }
        let before = self.steps.last().map(|step| step.after.clone()).unwrap_or_default();
        let durable = result.is_ok()
            && (self.durability == Durability::Always && !self.steps.is_empty() || matches!(action, Action::Sync));
        if result.is_err() {
            let since = self.steps.iter().rposition(|step| step.durable).map_or(0, |at| at + 1);
            for step in &self.steps[since..] {
                self.uncertain.extend(step.given().iter().map(|given| given.number));
                self.uncertain.extend(touched(&step.before, &step.after));
            }
            match &action {
                Action::Put(given) => self.uncertain.extend(given.iter().map(|given| given.number)),
                Action::Remove(numbers) | Action::MarkStale(numbers) => self.uncertain.extend(numbers),
                Action::Clear => self.uncertain.extend(0..NUMBERS),
                Action::WaitAndSweep(_) | Action::Sync | Action::Reopen | Action::Resize(_) => {}
            }
            self.uncertain.extend(touched(&before, &self.view));
        }
        self.steps.push(Step {
            action,
            from,
            to: self.disk.len(),
            now: self.now,
            capacity: self.capacity,
            before,
            after: self.view.clone(),
            durable,
            failed: result.is_err(),
            uncertain: self.uncertain.clone(),
        });
    }

    fn act(&mut self, action: &Action) -> Result<(), StoreError> {
        if let Action::Resize(capacity) = action {
            self.capacity = *capacity;
        }
        if let Action::WaitAndSweep(seconds) = action {
            self.now += seconds;
        }
        if matches!(action, Action::Reopen | Action::Resize(_)) || self.store.is_none() {
            self.open()?;
        }
        let Some(store) = &self.store else { return Ok(()) };
        let keys = |numbers: &[u32]| numbers.iter().map(|&number| key(number)).collect::<Vec<_>>();
        match action {
            Action::Put(given) => put_given(store, given, self.now),
            Action::Remove(numbers) => store.remove_many(&keys(numbers)).map(drop),
            Action::MarkStale(numbers) => store.mark_stale(&keys(numbers), self.now).map(drop),
            Action::Clear => store.clear().map(drop),
            Action::WaitAndSweep(_) => store.sweep_expired(self.now).map(drop),
            Action::Sync => store.sync(),
            Action::Reopen | Action::Resize(_) => Ok(()),
        }
    }

    /// Opens a folder that a power loss at a position of the journal has left, in the given step. Answers whether the
    /// table of a clean close was believed.
    fn check(&self, folder: &Path, position: usize, step: usize, thorough: bool, when: &str) -> bool {
        let current = &self.steps[step];
        let when = format!("{when}; position {position}, step {step}, {:?}", current.action);
        let config = Config { durability: Durability::Process, ..self.config(current.capacity) };
        let store = Store::open(folder, &version("m"), DIMS, &config)
            .unwrap_or_else(|error| panic!("it opens: {error:?} ({:?}); {when}", std::error::Error::source(&error)));
        let found = view(&store, &self.history, current.now, &when);
        let clean = store.info().opened_clean;
        let durable = self.steps[..step].iter().rposition(|step| step.durable);
        // A step that has ended counts by what it has promised, one in flight promises nothing.
        let durable = if current.durable && position >= current.to { Some(step) } else { durable };
        if durable.is_some() && !self.steps[..=step].iter().any(|step| step.failed) {
            assert!(
                store.info().put_aside.is_empty(),
                "nothing is lost wholesale: {:?}; {when}",
                store.info().put_aside
            );
        }
        for number in 0..NUMBERS {
            let valid = |view: &View| {
                view.get(&number).filter(|seen| seen.expires.is_none_or(|expires| expires > current.now)).cloned()
            };
            let mut candidates = vec![durable.and_then(|durable| valid(&self.steps[durable].after))];
            let mut loose = current.uncertain.contains(&number);
            for later in &self.steps[durable.map_or(0, |durable| durable + 1)..=step] {
                candidates.extend([valid(&later.before), valid(&later.after)]);
                loose |= later.given().iter().any(|given| given.number == number);
            }
            let certain = !loose && candidates.iter().all(|candidate| *candidate == candidates[0]);
            let found = found.get(&number);
            if certain {
                assert_eq!(found, candidates[0].as_ref(), "number {number} is as acknowledged; {when}");
            } else if let Some(found) = found {
                let seen = candidates.iter().flatten().find(|seen| seen.edition == found.edition);
                let given = |step: &Step| step.given().iter().any(|given| given.edition == found.edition);
                let recent = self.steps[durable.map_or(0, |durable| durable + 1)..=step].iter().any(given);
                assert!(
                    seen.is_some() || recent || current.uncertain.contains(&number),
                    "number {number}: edition {} is not one of {candidates:?}; {when}",
                    found.edition
                );
                // One that was dropped since and has come back may have lost its tags for good.
                let stays = |view: &View| valid(view).is_some_and(|seen| seen.edition == found.edition);
                if let Some(seen) = seen.filter(|_| stays(&current.before) && stays(&current.after)) {
                    assert!(
                        seen.tags.iter().all(|tag| found.tags.contains(tag)) || current.uncertain.contains(&number),
                        "number {number}: {found:?} has lost tags of {seen:?}; {when}"
                    );
                }
            }
        }
        if thorough {
            self.check_it_goes_on(store, folder, &config, &found, current.now, &when);
        }
        clean
    }

    fn check_it_goes_on(&self, store: Store, folder: &Path, config: &Config, found: &View, now: u32, when: &str) {
        let kept = |view: View| view.into_iter().all(|(number, seen)| found.get(&number) == Some(&seen));
        let new = |store: &Store| served(store, 100..103, now);
        put(&store, 100..103).unwrap();
        assert_eq!(new(&store).len(), 3, "it takes new entries; {when}");
        assert!(new(&store).iter().all(|(n, value)| is_first_edition(*n, value)));
        assert!(kept(view(&store, &self.history, now, when)), "old ones stay as they are; {when}");
        let quarantined = store.info().quarantined;
        drop(store);
        let store = Store::open(folder, &version("m"), DIMS, config).unwrap();
        assert_eq!(new(&store).len(), 3, "they are there after a reopen; {when}");
        assert!(kept(view(&store, &self.history, now, when)), "and the old ones; {when}");
        assert!(quarantined == 0 || store.info().quarantined <= quarantined, "{when}");
        assert_eq!(store.remove_many(&[key(100)]).unwrap(), 1);
        assert!(!new(&store).contains_key(&100));
    }
}

fn touched(before: &View, after: &View) -> Vec<u32> {
    (0..NUMBERS).filter(|number| before.get(number) != after.get(number)).collect()
}

fn put_given(store: &Store, given: &[Given], now: u32) -> Result<(), StoreError> {
    let rows: Vec<_> = given.iter().map(|given| row(given.number, given.edition)).collect();
    let namespaces: Vec<_> = given.iter().map(|given| Namespace::new(given.namespace).unwrap()).collect();
    let entries: Vec<_> = given
        .iter()
        .zip(rows.iter().zip(&namespaces))
        .map(|(given, (row, namespace))| NewEntry {
            tokens: given.edition,
            replace: given.replace,
            expires: given.expires,
            pinned: given.pinned,
            token_key: Some(token_key(given.number)),
            tags: &given.tags,
            payload: given.payload.as_deref(),
            ..NewEntry::new(key(given.number), row, given.edition as f32, namespace)
        })
        .collect();
    match store.put_many(&entries, now) {
        // Everything is pinned: an answer like another.
        Err(StoreError::Full { .. }) => Ok(()),
        result => result,
    }
}

/// What the store serves, after checking that all of it belongs together.
fn view(store: &Store, history: &[Given], now: u32, when: &str) -> View {
    let numbers: Vec<u32> = (0..NUMBERS).collect();
    let keys: Vec<Key> = numbers.iter().map(|&number| key(number)).collect();
    let mut found = Vec::new();
    store.get_many(&keys, now, |index, entry, row| found.push((numbers[index], entry, row.to_vec()))).unwrap();
    let mut view = View::new();
    for (number, entry, found) in found {
        let edition = entry.norm as u32;
        let given = &history[edition as usize];
        assert_eq!(given.number, number, "another key's entry is served; {when}");
        assert_eq!(found, row(number, edition), "number {number} has another row; {when}");
        let facts = (entry.tokens, entry.expires, entry.pinned);
        assert_eq!(facts, (edition, given.expires, given.pinned), "number {number}; {when}");
        assert!(entry.created >= given.created && entry.expires.is_none_or(|expires| expires > now));
        let namespace = store.namespace_name(entry.namespace);
        assert_eq!(namespace.as_deref(), Some(given.namespace), "number {number} has another namespace; {when}");
        let by_tokens = store.find_by_tokens(&token_key(number));
        assert!(by_tokens.is_none_or(|by_tokens| by_tokens == key(number)), "a wrong alias; {when}");
        let tags = store.tags(&key(number));
        let payload = store.payload(&key(number));
        let others = history.iter().filter(|other| other.number == number && other.edition <= edition + 1000);
        for tag in &tags {
            assert!(others.clone().any(|other| other.tags.contains(tag)), "number {number}: whose is {tag}? {when}");
        }
        if let Some(payload) = &payload {
            let whose = others.clone().find(|other| other.payload.as_ref() == Some(payload));
            let whose = whose.unwrap_or_else(|| panic!("number {number}: whose is {payload}? {when}"));
            assert!(
                whose.edition <= edition || !whose.replace || !STRICT_PAYLOADS,
                "number {number}: the payload of edition {} with the row of {edition}; {when}",
                whose.edition
            );
        }
        view.insert(number, Seen { edition, stale: entry.stale, expires: entry.expires, tags, payload });
    }
    view
}

/// Whether the payload of an entry that was to replace another may never be seen with that other's row.
const STRICT_PAYLOADS: bool = false;

/// Some of the bytes: a beginning, an end, or sectors by chance.
fn torn(operation: &Operation, random: &mut Random) -> Fate {
    let Operation::Write { bytes, offset, .. } = operation else { return Fate::Absent };
    let at = random.below(bytes.len() + 1);
    match random.below(3) {
        0 => Fate::torn_to(0..at),
        1 => Fate::torn_to(at..bytes.len()),
        _ => {
            const SECTOR_BYTES: usize = 512;
            let first = SECTOR_BYTES - (*offset as usize % SECTOR_BYTES);
            let ends = (first..bytes.len()).step_by(SECTOR_BYTES).chain([bytes.len()]);
            let mut begin = 0;
            let mut sectors = Vec::new();
            for end in ends {
                sectors.push(begin..end);
                begin = end;
            }
            sectors.retain(|_| random.one_in(2));
            Fate::Torn(sectors)
        }
    }
}

fn by_chance(operation: &Operation, random: &mut Random) -> Fate {
    match random.below(5) {
        0 | 1 => Fate::Whole,
        2 | 3 => Fate::Absent,
        _ => torn(operation, random),
    }
}

/// How many folders were opened, and how many of them as after a clean close.
#[derive(Debug, Default)]
struct Tally {
    opened: usize,
    clean: usize,
}

/// Loses power at every position of a workload's journal.
fn lose_power_everywhere(workload: &Workload, seed: u64, effort: usize, tally: &mut Tally) {
    let state = workload.disk.state();
    let journal = &state.journal;
    let mut random = Random::new(seed ^ 0xd15c);
    let mut medium = Medium::default();
    for (number, step) in workload.steps.iter().enumerate() {
        // The last position belongs to the step that has ended.
        for position in step.from + 1..=step.to {
            medium.advance(journal, position);
            let at_stake = medium.at_stake();
            let mut lose = |as_seen, thorough, what: &str, fate: &mut dyn FnMut(usize) -> Fate| {
                let folder = medium.after_power_loss(journal, as_seen, fate);
                let when = format!("seed {seed}, {what}");
                tally.clean += usize::from(workload.check(folder.path(), position, number, thorough, &when));
                tally.opened += 1;
            };
            let last = position == step.to;
            let synced_next =
                matches!(journal.get(position), Some(Operation::Sync { .. } | Operation::SyncFolder) | None);
            // In between, what differs from the position before is one operation.
            if !(last || synced_next || random.below(10) < effort) {
                continue;
            }
            lose(false, last && random.below(4) < effort, "none of it is there", &mut |_| Fate::Absent);
            lose(true, last && random.below(4) < effort, "all of it is there", &mut |_| Fate::Whole);
            if synced_next || effort > 5 {
                for &one in &at_stake {
                    if at_stake.len() > 6 && random.below(12) >= effort {
                        continue;
                    }
                    lose(true, false, "one is missing", &mut |at| if at == one { Fate::Absent } else { Fate::Whole });
                    lose(false, false, "one is there", &mut |at| if at == one { Fate::Whole } else { Fate::Absent });
                    let fate = torn(&journal[one], &mut random);
                    let what = format!("one is torn: {fate:?}");
                    lose(true, false, &what, &mut |at| if at == one { fate.clone() } else { Fate::Whole });
                }
            }
            if at_stake.len() > 1 {
                for _ in 0..effort {
                    let fates: BTreeMap<usize, Fate> =
                        at_stake.iter().map(|&at| (at, by_chance(&journal[at], &mut random))).collect();
                    let (as_seen, thorough) = (random.one_in(2), random.one_in(16));
                    let what = format!("by chance: {fates:?}");
                    lose(as_seen, thorough, &what, &mut |at| fates[&at].clone());
                }
            }
        }
    }
}

#[test]
fn a_power_loss_at_any_point_takes_nothing_acknowledged_and_leaves_nothing_wrong() {
    let (seeds, actions, effort) = if long() { (1..21, 40, 3) } else { (1..2, 26, 1) };
    let mut tally = Tally::default();
    for seed in seeds {
        for durability in [Durability::Always, Durability::Process] {
            let workload = Workload::run(seed, actions, durability, None);
            assert!(workload.steps.iter().all(|step| !step.failed));
            lose_power_everywhere(&workload, seed, effort, &mut tally);
        }
    }
    println!("power was lost: {tally:?}");
    assert!(tally.opened >= if long() { 100_000 } else { 1_000 } && tally.clean > tally.opened / 100, "{tally:?}");
}

/// A change within the same tick of the clock leaves the space's time of change as it was: then only this order keeps
/// the table of the last close from being believed.
#[test]
fn the_table_of_the_last_close_is_gone_for_good_before_the_first_write() {
    let disk = SimulatedDisk::default();
    let folder = quick_folder();
    let open =
        || Store::open_on(Arc::new(disk.clone()), folder.path(), &version("m"), DIMS, &config(CAPACITY)).unwrap();
    put(&open(), 0..3).unwrap();
    let store = open();
    assert!(store.info().opened_clean);
    let opened = disk.len();
    put(&store, 3..4).unwrap();
    let state = disk.state();
    let [first, second, ..] = &state.journal[opened..] else { panic!("a put writes") };
    assert!(matches!(first, Operation::Remove { name } if name.ends_with(".table")), "{first:?}");
    assert!(matches!(second, Operation::SyncFolder), "{second:?}");
}

/// Once, the removal was taken for done when its sync had failed: the table was not there, so nothing seemed left to do,
/// and the next put wrote. Power lost then brought the table back; in the same tick of the clock it was believed, and an
/// acknowledged entry was not in it.
#[test]
fn a_table_whose_removal_was_not_synced_is_removed_again() {
    let disk = SimulatedDisk::default();
    let folder = quick_folder();
    let open =
        || Store::open_on(Arc::new(disk.clone()), folder.path(), &version("m"), DIMS, &config(CAPACITY)).unwrap();
    put(&open(), 0..3).unwrap();
    let store = open();
    let opened = {
        let mut state = disk.state();
        state.fault = Some(Fault { at: state.tried + 1, failure: Failure::Medium, lasts: false });
        state.journal.len()
    };
    put(&store, 3..4).unwrap_err();
    put(&store, 3..4).unwrap();
    let state = disk.state();
    let wanted = |found: fn(&Operation) -> bool| state.journal[opened..].iter().position(found).unwrap();
    let synced = wanted(|operation| matches!(operation, Operation::SyncFolder));
    assert!(synced < wanted(|operation| matches!(operation, Operation::Write { .. })));
}

/// Once, a sync right after opening did nothing, for this session had written nothing. What the former one had written
/// was not on the medium for all that: it is the file that is to be synced, not the session.
#[test]
fn a_sync_after_a_reopen_covers_what_the_former_session_wrote() {
    let disk = SimulatedDisk::default();
    let folder = quick_folder();
    let open =
        || Store::open_on(Arc::new(disk.clone()), folder.path(), &version("m"), DIMS, &config(CAPACITY)).unwrap();
    let store = open();
    put(&store, 0..3).unwrap();
    store.sync().unwrap();
    // An empty store leaves no table, and so syncs nothing when it closes.
    store.clear().unwrap();
    drop(store);
    open().sync().unwrap();
    let state = disk.state();
    let mut medium = Medium::default();
    medium.advance(&state.journal, state.journal.len());
    let left = medium.after_power_loss(&state.journal, false, |_| Fate::Absent);
    let store = Store::open(left.path(), &version("m"), DIMS, &config(CAPACITY)).unwrap();
    assert!(served(&store, 0..3, NOW).is_empty(), "what was removed stays gone");
}

/// Wherever in a record, a row or a page of the side store a write ends, its entry is there or not, and the rest is.
#[test]
fn a_write_may_tear_at_any_byte() {
    let mut torn = 0;
    for durability in [Durability::Always, Durability::Process] {
        let workload = Workload::run(if long() { 12 } else { 7 }, if long() { 40 } else { 8 }, durability, None);
        let state = workload.disk.state();
        let mut medium = Medium::default();
        for (number, step) in workload.steps.iter().enumerate() {
            for position in step.from + 1..=step.to {
                medium.advance(&state.journal, position);
                let Operation::Write { bytes, offset, .. } = &state.journal[position - 1] else { continue };
                // Records and rows at every byte; redb's pages, and what is as long, at every sector.
                let at_once = if bytes.len() <= 256 { 1 } else { 512 };
                let mut ends: Vec<usize> =
                    (1..bytes.len()).filter(|at| (offset + *at as u64).is_multiple_of(at_once)).collect();
                if at_once > 1 && !long() {
                    ends.retain(|at| at % 2048 == 512);
                }
                for end in ends {
                    for (kept, what) in [(0..end, "the beginning"), (end..bytes.len(), "the end")] {
                        let fate = Fate::torn_to(kept);
                        let of = |at| if at == position - 1 { fate.clone() } else { Fate::Whole };
                        let folder = medium.after_power_loss(&state.journal, true, of);
                        let when = format!("only {what} of a write is there, cut at {end} of {}", bytes.len());
                        workload.check(folder.path(), position, number, false, &when);
                        torn += 1;
                    }
                }
            }
        }
    }
    println!("writes were torn {torn} times");
    assert!(torn >= if long() { 5_000 } else { 500 }, "{torn}");
}

/// Runs a workload with one operation refused. Answers whether it came to that.
fn refuse(seed: u64, actions: usize, durability: Durability, fault: Fault) -> bool {
    let mut workload = Workload::run(seed, actions, durability, Some(fault));
    let tried = {
        let mut state = workload.disk.state();
        state.fault = None;
        state.tried
    };
    if tried <= fault.at {
        return false;
    }
    let (position, last) = (workload.disk.len(), workload.steps.len() - 1);
    let mut random = Random::new(seed ^ fault.at as u64);
    let lose = |what: &str, thorough, fate: &mut dyn FnMut(&Operation) -> Fate| {
        let state = workload.disk.state();
        let mut medium = Medium::default();
        medium.advance(&state.journal, position);
        let folder = medium.after_power_loss(&state.journal, false, |at| fate(&state.journal[at]));
        workload.check(folder.path(), position, last, thorough, &format!("{fault:?}, seed {seed}, {what}"));
    };
    lose("all of it is there", false, &mut |_| Fate::Whole);
    lose("none of it is there", true, &mut |_| Fate::Absent);
    let mut chance = Random::new(seed ^ fault.at as u64 ^ 0xfa);
    lose("by chance", random.one_in(4), &mut |operation| by_chance(operation, &mut chance));

    // The process has not ended: it opens the folder again, and all is well.
    workload.step(Action::Reopen);
    let when = format!("{fault:?}, seed {seed}, opened again");
    assert!(!workload.steps[last + 1].failed, "{when}");
    let store = workload.store.as_ref().unwrap();
    let info = store.info();
    // A side store that was never finished may be begun anew.
    let opened_before = workload.steps[..=last].iter().any(|step| !step.failed);
    assert!(info.degraded.is_none() && (info.put_aside.is_empty() || !opened_before), "{when}: {info:?}");
    put(store, 200..204).unwrap();
    store.sync().unwrap();
    assert_eq!(served(store, 200..204, workload.now).len(), 4, "{when}");
    view(store, &workload.history, workload.now, &when);
    true
}

#[test]
fn any_operation_may_be_refused_once_or_from_then_on() {
    let (seeds, actions) = if long() { (1..4, 16) } else { (3..4, 9) };
    let mut refused = 0;
    for seed in seeds {
        for durability in [Durability::Always, Durability::Process] {
            for at in 0.. {
                let failures = [Failure::Full, Failure::Short, Failure::Medium];
                let chosen = if long() { &failures[..] } else { &failures[at % 3..][..1] };
                let mut reached = false;
                for &failure in chosen {
                    for lasts in [false, true] {
                        if !long() && lasts != (at % 2 == 0) {
                            continue;
                        }
                        reached |= refuse(seed, actions, durability, Fault { at, failure, lasts });
                        refused += 1;
                    }
                }
                if !reached {
                    break;
                }
            }
        }
    }
    println!("operations were refused {refused} times");
    assert!(refused >= if long() { 5_000 } else { 150 }, "{refused}");
}
