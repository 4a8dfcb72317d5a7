//! Three masters with a replica each.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::slots::slot;
use super::live::{Cluster, Server, available};
use super::*;

/// Keeps fetching and storing until told to stop. Answers with how many were served.
fn load(machine: &Machine, keys: &[Key], stop: &AtomicBool, served: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let fetched = machine.fetch(keys);
        for (key, found) in keys.iter().zip(fetched.records) {
            match found {
                Some(found) => {
                    assert_eq!(found.tags, [key.to_string()], "another's record");
                    served.fetch_add(1, Ordering::Relaxed);
                }
                None => machine.tier.store(*key, record(&[&key.to_string()]), fetched.epoch, None),
            }
        }
        let _ = machine.tier.flush(Duration::from_millis(200));
    }
}

fn slot_of(key: &Key) -> u16 {
    slot(&[b"vecmemo:".as_slice(), key.as_bytes()].concat())
}

/// Moves a slot with all it holds from one master to another.
pub(super) fn move_slot(slot: u16, from: &Server, to: &Server, all: &[Server], between: impl FnOnce()) {
    let slot = slot.to_string();
    let (source, target) = (from.text(&["CLUSTER", "MYID"]), to.text(&["CLUSTER", "MYID"]));
    to.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]);
    from.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]);
    let mut connection = redis::Client::open(from.url()).unwrap().get_connection().unwrap();
    loop {
        let names: Vec<Vec<u8>> =
            redis::cmd("CLUSTER").arg("GETKEYSINSLOT").arg(&slot).arg(100).query(&mut connection).unwrap();
        if names.is_empty() {
            break;
        }
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(to.port).arg("").arg(0).arg(5000).arg("REPLACE").arg("KEYS").arg(names);
        migrate.exec(&mut connection).unwrap();
    }
    between();
    for server in [to, from].into_iter().chain(all) {
        server.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
    }
}

#[test]
fn a_cluster_is_served_while_slots_move_and_a_master_dies() {
    if !available() {
        return;
    }
    let mut cluster = Cluster::start();
    let [a, b] = [0, 1].map(|_| Machine::at(&cluster.url(), config()));
    let keys: Vec<Key> = (0..512).map(key).collect();
    keys.iter().for_each(|key| a.tier.store(*key, record(&[&key.to_string()]), 0, None));
    assert!(a.tier.flush(SOON));
    assert!(b.fetch(&keys).records.iter().all(Option::is_some));
    let survey = b.tier.survey();
    assert_eq!((survey.kind, survey.servers.len()), ("cluster", 6));
    assert!(!survey.warnings.iter().any(|warning| warning.contains("slots")), "{survey:?}");
    let fresh = [key(1 << 40)];
    let Lead::Ours(lease) = a.tier.lead(&asked(&fresh)).remove(0) else { panic!("nobody else leads") };
    assert!(matches!(b.tier.lead(&asked(&fresh))[..], [Lead::Theirs(_)]));
    drop(lease);

    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| load(&a, &keys, &stop, &served));
        scope.spawn(|| load(&b, &keys, &stop, &served));
        let [first, second, _] = &cluster.masters[..] else { panic!("three masters") };
        for key in &keys[..40] {
            let slot = slot_of(key);
            if usize::from(slot) < 16_384 / 3 {
                move_slot(slot, first, second, &cluster.masters, || {});
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    until("all is there", SOON, || b.fetch(&keys).records.iter().all(Option::is_some));
    let third = keys.iter().find(|key| usize::from(slot_of(key)) >= 16_384 * 2 / 3).unwrap();
    let [first, _, last] = &cluster.masters[..] else { panic!("three masters") };
    move_slot(slot_of(third), last, first, &cluster.masters, || {
        assert!(b.get(third).is_some(), "it is asked for where it is on its way to");
    });
    assert!(b.get(third).is_some(), "it is asked for where it has gone");
    assert!(served.load(Ordering::Relaxed) > 0);

    // The log's own master: until another has taken over nothing is served, for nobody knows what was invalidated.
    assert!(a.tier.publish(&of_tag(&keys[0].to_string())));
    assert_eq!(b.get(&keys[0]), None);
    let log = slot(b"vecmemo:log");
    let owner = usize::from(log) * 3 / 16_384;
    cluster.masters[owner].kill();
    let limit = Duration::from_secs(40);
    until("another has taken over", limit, || {
        assert_eq!(b.get(&keys[0]), None);
        b.fetch(&keys).records.iter().filter(|found| found.is_some()).count() > 300
    });
    a.wait();
    assert!(a.tier.publish(&of_tag(&keys[1].to_string())));
    assert_eq!(b.get(&keys[1]), None);
    a.put(keys[1], &[]);
    assert!(b.get(&keys[1]).is_some());
}

#[test]
fn a_master_that_stands_still_costs_its_own_keys_only() {
    if !available() {
        return;
    }
    let cluster = Cluster::start();
    let deadline = Duration::from_millis(100);
    let machine = Machine::at(&cluster.url(), Config { deadline, ..config() });
    let keys: Vec<Key> = (0..300).map(key).collect();
    keys.iter().for_each(|key| machine.tier.store(*key, record(&[]), 0, None));
    assert!(machine.tier.flush(SOON));
    until("all are there", SOON, || machine.fetch(&keys).records.iter().all(Option::is_some));
    let log = slot(b"vecmemo:log");
    let other = (usize::from(log) * 3 / 16_384 + 1) % 3;
    cluster.masters[other].pause();
    let mut fetched = machine.fetch(&keys).records;
    until("the others' keys are served", SOON, || {
        fetched = machine.fetch(&keys).records;
        fetched.iter().any(Option::is_some)
    });
    cluster.masters[other].go_on();
    let served = fetched.iter().filter(|found| found.is_some()).count();
    assert!((100..=300).contains(&served), "{served}");
    until("all are there again", Duration::from_secs(40), || machine.fetch(&keys).records.iter().all(Option::is_some));
}

/// A replica is read in its master's place, and what it still has but was invalidated is not served. The log's master alone can say what
/// was: while it is silent nothing is served, though its replica has the very counter.
#[test]
fn a_replica_answers_for_a_master_that_is_late_and_never_for_the_log() {
    if !available() {
        return;
    }
    let cluster = Cluster::start();
    let config = Config { deadline: Duration::from_millis(1500), ..config() };
    let a = Machine::at(&cluster.url(), config.clone());
    let b = Machine::at(&cluster.url(), Config { hedge: Some(Duration::from_millis(50)), ..config });
    let keys: Vec<Key> = (0..200).map(key).collect();
    keys.iter().for_each(|key| a.tier.store(*key, record(&[&key.to_string()]), 0, None));
    assert!(a.tier.flush(SOON));
    until("all are there", SOON, || b.fetch(&keys).records.iter().all(Option::is_some));
    until("the replicas have all", SOON, || {
        cluster.masters.iter().zip(&cluster.replicas).all(|(master, replica)| {
            master.text(&["DBSIZE"]) == replica.text(&["DBSIZE"])
                && replica.text(&["CLIENT", "LIST"]).contains("name=vecmemo")
        })
    });
    let log = usize::from(slot(b"vecmemo:log")) * 3 / 16_384;
    let other = (log + 1) % 3;
    let of_other: Vec<Key> =
        keys.iter().copied().filter(|key| usize::from(slot_of(key)) * 3 / 16_384 == other).collect();
    assert!(of_other.len() > 20, "{}", of_other.len());

    cluster.masters[other].pause();
    assert!(a.tier.publish(&of_tag(&of_other[0].to_string())));
    let served = b.fetch(&of_other).records;
    cluster.masters[other].go_on();
    assert_eq!(served[0], None, "its replica has it still");
    assert!(served[1..].iter().all(Option::is_some), "the others are served by it");
    let figures = b.tier.figures();
    assert!(figures.hedged > 0 && figures.hedge_won > 0, "{figures:?}");

    b.wait();
    cluster.masters[log].pause();
    let served = b.fetch(&keys).records;
    cluster.masters[log].go_on();
    assert!(served.iter().all(Option::is_none), "nobody knows what was invalidated");
}
