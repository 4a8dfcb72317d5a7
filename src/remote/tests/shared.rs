//! Several nodes over one map in memory: what they are served, and what they are not.

use std::sync::mpsc;
use std::time::Instant;

use super::*;

#[test]
fn what_one_node_stores_another_is_served() {
    let memory = Memory::default();
    let [a, b] = [0, 1].map(|_| Machine::in_memory(&memory, config()));
    a.put(key(1), &["x"]);
    assert_eq!(b.get(&key(1)), Some(Record { epoch: 0, ..record(&["x"]) }));
    assert_eq!(b.get(&key(2)), None);
    let figures = b.tier.figures();
    assert_eq!((figures.hits, figures.misses), (1, 1));
    b.tier.remove(&[key(1)]);
    assert!(b.tier.flush(SOON));
    assert_eq!(a.get(&key(1)), None);
}

#[test]
fn what_is_invalidated_on_one_node_is_gone_on_all() {
    let memory = Memory::default();
    let [a, b] = [0, 1].map(|_| Machine::in_memory(&memory, config()));
    a.put(key(1), &["x"]);
    a.put(key(2), &["y"]);
    assert!(a.tier.publish(&of_tag("x")));
    // At once: the fetch itself finds that there is something new.
    assert_eq!(b.get(&key(1)), None);
    assert!(b.get(&key(2)).is_some());
    assert_eq!((b.heard(), a.heard()), (vec![of_tag("x")], vec![]));
    a.put(key(1), &["x"]);
    assert!(b.get(&key(1)).is_some(), "computed since");
}

/// What was being computed while it was invalidated carries the epoch from before.
#[test]
fn what_was_begun_before_an_invalidation_is_not_served_after_it() {
    let memory = Memory::default();
    let [a, b] = [0, 1].map(|_| Machine::in_memory(&memory, config()));
    let begun = a.fetch(&[key(1)]).epoch;
    assert!(b.tier.publish(&of_tag("x")));
    a.tier.store(key(1), record(&["x"]), begun, None);
    assert!(a.tier.flush(SOON));
    assert_eq!((a.get(&key(1)), b.get(&key(1))), (None, None));
    assert!(a.tier.figures().outdated > 0);
}

#[test]
fn a_node_that_was_away_hears_what_it_missed_before_it_is_served() {
    let memory = Memory::default();
    let folder = tempfile::tempdir().unwrap();
    let kept = Config { state_file: Some(folder.path().join("remote.json")), ..config() };
    let a = Machine::in_memory(&memory, config());
    let b = Machine::in_memory(&memory, kept.clone());
    assert!(a.tier.publish(&of_tag("before")));
    until("the place is kept", SOON, || {
        State::read(&folder.path().join("remote.json")).unwrap().is_some_and(|state| state.epoch == 1)
    });
    drop(b);
    a.put(key(1), &["x"]);
    assert!(a.tier.publish(&of_tag("x")));
    let b = Machine::in_memory(&memory, kept);
    assert_eq!(b.heard(), [of_tag("x")], "not what it had heard before its end");
    assert_eq!(b.get(&key(1)), None);
}

#[test]
fn what_cannot_be_sent_is_sent_after_a_restart_and_not_served_meanwhile() {
    let memory = Memory::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("remote.json");
    let kept = Config { state_file: Some(path.clone()), ..config() };
    let [a, b] = [kept.clone(), config()].map(|config| Machine::in_memory(&memory, config));
    a.put(key(1), &["x"]);
    memory.set_trouble(Trouble::Failing);
    until("the tier is away", SOON, || !a.tier.figures().ready);
    assert!(!a.tier.publish(&of_tag("x")));
    until("it is kept", SOON, || State::read(&path).unwrap().is_some_and(|state| state.pending.len() == 1));
    drop(a);
    memory.set_trouble(Trouble::None);
    b.wait();
    let a = Machine::in_memory(&memory, kept);
    assert_eq!((a.get(&key(1)), b.get(&key(1))), (None, None));
    assert_eq!(b.heard(), [of_tag("x")]);
    until("it is forgotten", SOON, || State::read(&path).unwrap().is_some_and(|state| state.pending.is_empty()));
}

#[test]
fn what_the_servers_forget_is_given_back() {
    let memory = Memory::default();
    let [a, b] = [0, 1].map(|_| Machine::in_memory(&memory, config()));
    a.put(key(1), &["x"]);
    assert!(a.tier.publish(&of_tag("x")));
    assert_eq!(b.get(&key(1)), None);
    memory.lose_notices_after(0);
    until("it is back", SOON, || {
        assert_eq!(b.get(&key(1)), None);
        b.tier.figures().notices_restored + a.tier.figures().notices_restored > 0
    });
    let c = Machine::in_memory(&memory, config());
    assert_eq!(c.get(&key(1)), None);
    assert_eq!(c.heard(), [of_tag("x")]);
}

#[test]
fn every_damaged_record_is_a_miss_and_counted() {
    let memory = Memory::default();
    let machine = Machine::in_memory(&memory, config());
    let keys: Vec<Key> = (0..10_000).map(key).collect();
    for &key in &keys {
        machine.tier.store(key, record(&[]), 0, None);
    }
    assert!(machine.tier.flush(SOON));
    for (index, key) in keys.iter().enumerate() {
        memory.change(key, |bytes| match index % 4 {
            0 => bytes[index % 40] ^= 1 << (index % 8),
            1 => bytes.truncate(index % bytes.len()),
            2 => *bytes = b"somebody else's".to_vec(),
            _ => bytes.extend([0; 3]),
        });
    }
    for keys in keys.chunks(500) {
        assert!(machine.fetch(keys).records.iter().all(Option::is_none));
    }
    let figures = machine.tier.figures();
    assert_eq!((figures.flawed.iter().sum::<u64>(), figures.misses, figures.hits), (10_000, 10_000, 0));
}

#[test]
fn a_record_under_another_key_is_not_served() {
    let memory = Memory::default();
    let machine = Machine::in_memory(&memory, config());
    machine.put(key(1), &[]);
    machine.put(key(2), &[]);
    let mut other = Vec::new();
    memory.change(&key(1), |bytes| other.clone_from(bytes));
    memory.change(&key(2), |bytes| bytes.clone_from(&other));
    assert_eq!(machine.get(&key(2)), None);
    assert!(machine.get(&key(1)).is_some());
}

/// Its notices may have been lost with the servers' memory, and others given out under the same epochs.
#[test]
fn a_record_from_after_what_was_taken_in_is_not_served() {
    let memory = Memory::default();
    let machine = Machine::in_memory(&memory, config());
    machine.tier.store(key(1), record(&[]), 9, None);
    assert!(machine.tier.flush(SOON));
    assert_eq!((machine.get(&key(1)), machine.tier.figures().outdated), (None, 1));
}

#[test]
fn a_silent_tier_costs_its_deadline_five_times_and_then_nothing() {
    let memory = Memory::default();
    let deadline = Duration::from_millis(20);
    let machine = Machine::in_memory(&memory, Config { deadline, ..config() });
    memory.set_trouble(Trouble::Silent);
    until("the breaker opens", SOON, || {
        let begun = Instant::now();
        assert_eq!(machine.get(&key(1)), None);
        // Generous, for other tests run beside this one; without a deadline it would never end.
        assert!(begun.elapsed() < deadline * 20, "{:?}", begun.elapsed());
        !machine.tier.figures().ready
    });
    assert!(machine.tier.figures().servers[0].openings > 0);
    let begun = Instant::now();
    for _ in 0..1000 {
        assert_eq!(machine.get(&key(1)), None);
    }
    assert!(begun.elapsed() < deadline * 50, "{:?}", begun.elapsed());
    memory.set_trouble(Trouble::None);
    machine.wait();
    machine.put(key(1), &[]);
    assert!(machine.get(&key(1)).is_some());
}

#[test]
fn a_full_tier_is_still_read() {
    let memory = Memory::default();
    let machine = Machine::in_memory(&memory, config());
    machine.put(key(1), &[]);
    memory.set_trouble(Trouble::Full);
    machine.put(key(2), &[]);
    assert!(machine.get(&key(1)).is_some());
    let figures = machine.tier.figures();
    assert_eq!((figures.refused, figures.servers[0].openings), (1, 0));
    memory.set_trouble(Trouble::None);
    machine.put(key(2), &[]);
    assert!(machine.get(&key(2)).is_some());
}

#[test]
fn writes_without_room_are_dropped_and_counted() {
    let memory = Memory::default();
    memory.set_trouble(Trouble::Failing);
    let tier = Tier::in_memory(&memory, Config { queue_bytes_max: 4096, ..config() }).unwrap();
    (0..1000).for_each(|number| tier.store(key(number), record(&[]), 0, None));
    let figures = tier.figures();
    assert!(figures.queue_bytes <= 4096 && figures.dropped > 900, "{figures:?}");
    assert!(!tier.flush(Duration::from_millis(1)));
    memory.set_trouble(Trouble::None);
    assert!(tier.flush(SOON));
    assert_eq!(tier.figures().queue_bytes, 0);
    assert_eq!(memory.records() as u64, tier.figures().stores);
}

#[test]
fn of_four_nodes_one_leads_and_the_others_get_its_record() {
    let memory = Memory::default();
    let machines = [0, 1, 2, 3].map(|_| Machine::in_memory(&memory, config()));
    let mut ours = None;
    let (sender, receiver) = mpsc::channel();
    for (index, machine) in machines.iter().enumerate() {
        match machine.tier.lead(&asked(&[key(1)])).remove(0) {
            Lead::Ours(lease) => assert!(ours.replace((index, lease)).is_none(), "two lead"),
            Lead::Theirs(follow) => {
                let sender = sender.clone();
                machine.tier.follow(follow, &asked(&[]), Box::new(move |record| sender.send(record).unwrap()));
            }
            Lead::Done(_) => panic!("nobody has computed it"),
            Lead::Unknown => panic!("the tier is there"),
        }
    }
    let (index, lease) = ours.unwrap();
    machines[index].tier.store(key(1), record(&[]), 0, Some(lease));
    for _ in 0..3 {
        assert_eq!(receiver.recv_timeout(SOON).unwrap(), Some(record(&[])));
    }
    let again = machines[0].tier.lead(&asked(&[key(1)])).remove(0);
    assert!(matches!(again, Lead::Done(found) if found == record(&[])), "the lease has ended, and the record is there");
    assert_eq!(machines[0].tier.figures().leases_ours, u64::from(index == 0));
}

#[test]
fn a_lease_that_is_dropped_frees_those_who_wait() {
    let memory = Memory::default();
    let long = Config { lease: Some(Duration::from_secs(3600)), ..config() };
    let [a, b] = [0, 1].map(|_| Machine::in_memory(&memory, long.clone()));
    let Lead::Ours(lease) = a.tier.lead(&asked(&[key(1)])).remove(0) else { panic!("nobody else leads") };
    let Lead::Theirs(follow) = b.tier.lead(&asked(&[key(1)])).remove(0) else { panic!("the other leads") };
    let (sender, receiver) = mpsc::channel();
    b.tier.follow(follow, &asked(&[]), Box::new(move |record| sender.send(record).unwrap()));
    drop(lease);
    assert_eq!(receiver.recv_timeout(SOON).unwrap(), None);
    assert_eq!(b.tier.figures().leases_expired, 1);
}

#[test]
fn a_leader_that_dies_costs_its_lease_at_most() {
    let memory = Memory::default();
    let short = Config { lease: Some(Duration::from_millis(300)), ..config() };
    let [a, b] = [0, 1].map(|_| Machine::in_memory(&memory, short.clone()));
    let Lead::Ours(lease) = a.tier.lead(&asked(&[key(1)])).remove(0) else { panic!("nobody else leads") };
    // Dead: nothing of it runs any more.
    std::mem::forget(lease);
    drop(a);
    let Lead::Theirs(follow) = b.tier.lead(&asked(&[key(1)])).remove(0) else { panic!("the other leads") };
    let (sender, receiver) = mpsc::channel();
    b.tier.follow(follow, &asked(&[]), Box::new(move |record| sender.send(record).unwrap()));
    assert_eq!(receiver.recv_timeout(SOON).unwrap(), None);
}

/// A model slower than the lease: whoever computes keeps it for as long as it takes.
#[test]
fn a_lease_lasts_for_as_long_as_its_text_is_computed() {
    let memory = Memory::default();
    let lease = Duration::from_millis(300);
    let short = Config { lease: Some(lease), ..config() };
    let [a, b, c] = [0, 1, 2].map(|_| Machine::in_memory(&memory, short.clone()));
    let Lead::Ours(ours) = a.tier.lead(&asked(&[key(1)])).remove(0) else { panic!("nobody else leads") };
    let Lead::Theirs(follow) = b.tier.lead(&asked(&[key(1)])).remove(0) else { panic!("the other leads") };
    let (sender, receiver) = mpsc::channel();
    b.tier.follow(follow, &asked(&[]), Box::new(move |record| sender.send(record).unwrap()));
    assert!(receiver.recv_timeout(lease * 4).is_err(), "it is let go while the other computes");
    assert!(matches!(c.tier.lead(&asked(&[key(1)]))[..], [Lead::Theirs(_)]));
    assert!(a.tier.figures().leases_renewed >= 4, "{:?}", a.tier.figures());
    a.tier.store(key(1), record(&[]), 0, Some(ours));
    assert_eq!(receiver.recv_timeout(SOON).unwrap(), Some(record(&[])));
    assert_eq!(b.tier.figures().leases_expired, 0);
}

/// A leader that hangs for ever is not waited for for ever.
#[test]
fn a_lease_is_renewed_ten_times_its_length_at_most() {
    let memory = Memory::default();
    let short = Config { lease: Some(Duration::from_millis(60)), ..config() };
    let [a, b] = [0, 1].map(|_| Machine::in_memory(&memory, short.clone()));
    let Lead::Ours(_hung) = a.tier.lead(&asked(&[key(1)])).remove(0) else { panic!("nobody else leads") };
    let Lead::Theirs(follow) = b.tier.lead(&asked(&[key(1)])).remove(0) else { panic!("the other leads") };
    let (sender, receiver) = mpsc::channel();
    b.tier.follow(follow, &asked(&[]), Box::new(move |record| sender.send(record).unwrap()));
    assert_eq!(receiver.recv_timeout(SOON).unwrap(), None);
    assert!(a.tier.figures().leases_renewed > 10);
}

#[test]
fn who_follows_is_let_go_when_the_tier_goes_away() {
    let memory = Memory::default();
    let long = Config { lease: Some(Duration::from_secs(3600)), ..config() };
    let [a, b] = [0, 1].map(|_| Machine::in_memory(&memory, long.clone()));
    let _lease = a.tier.lead(&asked(&[key(1)]));
    let Lead::Theirs(follow) = b.tier.lead(&asked(&[key(1)])).remove(0) else { panic!("the other leads") };
    let (sender, receiver) = mpsc::channel();
    b.tier.follow(follow, &asked(&[]), Box::new(move |record| sender.send(record).unwrap()));
    memory.set_trouble(Trouble::Failing);
    assert_eq!(receiver.recv_timeout(SOON).unwrap(), None);
    assert!(matches!(b.tier.lead(&asked(&[key(2)])).remove(0), Lead::Unknown));
}

#[test]
fn times_are_the_tiers_however_far_the_clocks_are_apart() {
    let memory = Memory::default();
    memory.set_clock_ahead(3_600_000);
    let machine = Machine::in_memory(&memory, config());
    let now = machine.tier.now().unwrap();
    let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as u32;
    assert!(now.abs_diff(here + 3600) <= 2, "{now} {here}");
    let expiring = |expires: u32| Record { expires: Some(expires), ..record(&[]) };
    machine.tier.store(key(1), expiring(now + 100), 0, None);
    machine.tier.store(key(2), expiring(now - 1), 0, None);
    assert!(machine.tier.flush(SOON));
    assert!(machine.get(&key(1)).is_some());
    assert_eq!((machine.get(&key(2)), memory.records()), (None, 1));
    memory.set_clock_ahead(3_600_000 + 200_000);
    until("the clock is read again", SOON, || machine.get(&key(1)).is_none());
}

#[test]
fn a_configuration_that_cannot_be_used_is_refused() {
    let memory = Memory::default();
    for prefix in ["", "a{b}", "a b", &"x".repeat(65)] {
        let refused = Tier::in_memory(&memory, Config { prefix: prefix.to_owned(), ..config() });
        assert!(matches!(refused, Err(StartError::Prefix(_))), "{prefix}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("remote.json");
    std::fs::write(&path, "[").unwrap();
    let refused = Tier::in_memory(&memory, Config { state_file: Some(path), ..config() });
    assert!(matches!(refused, Err(StartError::State { .. })));
}
