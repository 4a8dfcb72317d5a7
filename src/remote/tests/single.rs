//! One real server.

use std::time::Instant;

use redis::Value;

use super::live::{Server, available};
use super::*;

#[test]
fn a_record_goes_round_with_its_time_to_live() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let [a, b] = [0, 1].map(|_| Machine::at(&server.url(), config()));
    let now = a.tier.now().unwrap();
    let expiring = Record { expires: Some(now + 100), ..record(&["x"]) };
    a.tier.store(key(1), expiring.clone(), 0, None);
    a.tier.store(key(2), record(&[]), 0, None);
    assert!(a.tier.flush(SOON));
    assert_eq!(b.fetch(&[key(1), key(2), key(3)]).records, [Some(expiring), Some(record(&[])), None]);
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    let mut ttl = |number: u64| -> i64 {
        let name = [b"vecmemo:".as_slice(), key(number).as_bytes()].concat();
        redis::cmd("PTTL").arg(name).query(&mut connection).unwrap()
    };
    assert!((90_000..=100_000).contains(&ttl(1)), "{}", ttl(1));
    let month = 30 * 24 * 3_600_000;
    assert!((month - 60_000..=month).contains(&ttl(2)), "{}", ttl(2));
    b.tier.remove(&[key(1)]);
    assert!(b.tier.flush(SOON));
    assert_eq!(a.get(&key(1)), None);
}

#[test]
fn an_invalidation_reaches_the_others_without_being_asked_for() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let [a, b] = [0, 1].map(|_| Machine::at(&server.url(), config()));
    a.put(key(1), &["x"]);
    assert!(a.tier.publish(&of_tag("x")));
    assert_eq!(b.get(&key(1)), None);
    for number in 0..200 {
        assert!(a.tier.publish(&of_tag(&number.to_string())));
    }
    until("all are heard", SOON, || b.heard().len() == 201);
    assert_eq!(b.heard()[200], of_tag("199"), "in their order");
    assert_eq!(a.heard(), []);
    assert!(a.tier.publish(&of_tag("0")));
    assert_eq!(server.ask(&["ZCARD", "{vecmemo:log}:notices"]), Value::Int(201), "said again, it is not there twice");
    let late = Machine::at(&server.url(), config());
    assert_eq!(late.heard().len(), 201);
}

/// The log is pruned: what was computed before that, and what a node holds that has not heard it, may be anything.
#[test]
fn what_was_pruned_unheard_may_have_meant_everything() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let short = Config { ttl_max: Duration::from_secs(3600), ..config() };
    let a = Machine::at(&server.url(), short);
    a.put(key(1), &[]);
    assert!(a.tier.publish(&of_tag("old")));
    server.ask(&["HSET", "{vecmemo:log}:times", "1", "1000"]);
    assert!(a.tier.publish(&of_tag("new")));
    assert_eq!(server.text(&["GET", "{vecmemo:log}:floor"]), "1");
    assert_eq!(server.ask(&["ZCARD", "{vecmemo:log}:notices"]), Value::Int(1));
    until("it is outdated", SOON, || a.get(&key(1)).is_none());
    a.put(key(1), &[]);
    assert!(a.get(&key(1)).is_some());
    let behind = |epoch: Epoch| {
        let path = folder.path().join(format!("{epoch}.json"));
        State { epoch, pending: vec![] }.write(&path).unwrap();
        Machine::at(&server.url(), Config { state_file: Some(path), ..config() }).heard()
    };
    assert_eq!(behind(0), [Notice::everything(true), of_tag("new")]);
    assert_eq!(behind(1), [of_tag("new")]);
    assert_eq!(behind(2), []);
    assert_eq!(Machine::at(&server.url(), config()).heard(), [of_tag("new")], "a new node holds nothing yet");
}

#[test]
fn a_counter_that_was_turned_back_is_turned_forward_again() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let [a, b] = [0, 1].map(|_| Machine::at(&server.url(), config()));
    a.put(key(1), &["x"]);
    assert!(a.tier.publish(&of_tag("x")));
    assert!(a.tier.publish(&of_tag("y")));
    assert_eq!(b.get(&key(1)), None);
    server.ask(&["DEL", "{vecmemo:log}:notices", "{vecmemo:log}:epoch", "{vecmemo:log}:times"]);
    until("both are back", SOON, || {
        assert_eq!(b.get(&key(1)), None);
        server.ask(&["ZCARD", "{vecmemo:log}:notices"]) == Value::Int(2)
    });
    a.put(key(1), &["x"]);
    assert!(b.get(&key(1)).is_some());
    assert!(b.tier.publish(&of_tag("x")));
    assert_eq!(a.get(&key(1)), None);
}

#[test]
fn a_server_that_comes_back_empty_is_used_again() {
    if !available() {
        return;
    }
    let mut server = Server::start(&[]);
    let machine = Machine::at(&server.url(), config());
    machine.put(key(1), &["x"]);
    assert!(machine.tier.publish(&of_tag("y")));
    server.kill();
    until("it is noticed", SOON, || !machine.tier.figures().ready);
    let begun = Instant::now();
    assert_eq!(machine.get(&key(1)), None);
    assert!(begun.elapsed() < Duration::from_millis(500));
    assert!(!machine.tier.publish(&of_tag("z")));
    server.run();
    machine.wait();
    until("its log is whole again", SOON, || server.ask(&["ZCARD", "{vecmemo:log}:notices"]) == Value::Int(2));
    assert_eq!(machine.get(&key(1)), None);
    machine.put(key(1), &["x"]);
    assert!(machine.get(&key(1)).is_some());
}

/// As on a machine that is killed: its leases end by themselves; one that lives keeps its own, and takes nobody else's.
#[test]
fn a_lease_is_renewed_on_a_server_until_its_holder_is_gone() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let lease = Duration::from_millis(600);
    let short = Config { lease: Some(lease), ..config() };
    let [a, b] = [0, 1].map(|_| Machine::at(&server.url(), short.clone()));
    let Lead::Ours(ours) = a.tier.lead(&asked(&[key(1)])).remove(0) else { panic!("nobody else leads") };
    until("it is renewed thrice", SOON, || a.tier.figures().leases_renewed >= 3);
    assert!(matches!(b.tier.lead(&asked(&[key(1)]))[..], [Lead::Theirs(_)]));
    // Somebody else has it by now: it is left alone.
    let name = [b"vecmemo:".as_slice(), key(1).as_bytes(), b":l"].concat();
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    redis::cmd("SET").arg(&name).arg("7").exec(&mut connection).unwrap();
    let renewed = a.tier.figures().leases_renewed;
    thread::sleep(lease);
    assert!(a.tier.figures().leases_renewed <= renewed + 1);
    assert_eq!(redis::cmd("PTTL").arg(&name).query::<i64>(&mut connection).unwrap(), -1);
    std::mem::forget(ours);

    let Lead::Ours(dead) = a.tier.lead(&asked(&[key(2)])).remove(0) else { panic!("nobody else leads") };
    std::mem::forget(dead);
    drop(a);
    let begun = Instant::now();
    until("its end", SOON, || matches!(b.tier.lead(&asked(&[key(2)]))[..], [Lead::Ours(_)]));
    assert!(begun.elapsed() < lease * 2, "{:?}", begun.elapsed());
}

/// A failover right after the answer must not forget what was invalidated: the answer waits for a replica, for a while, and nothing else does.
#[test]
fn an_invalidation_is_answered_when_a_replica_has_it() {
    if !available() {
        return;
    }
    let master = Server::start(&[]);
    let config = Config { deadline: Duration::from_millis(300), ..config() };
    let machine = Machine::at(&master.url(), config);
    machine.put(key(1), &[]);
    assert!(machine.tier.publish(&of_tag("without")), "there is none to wait for");
    let replica = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]);
    until("the replica follows", SOON, || replica.text(&["INFO", "replication"]).contains("master_link_status:up"));
    assert!(machine.tier.publish(&of_tag("first")));
    for number in 0..50 {
        let notice = of_tag(&number.to_string());
        assert!(machine.tier.publish(&notice));
        let found = replica.ask(&["ZSCORE", "{vecmemo:log}:notices", &notice.to_text()]);
        assert!(matches!(found, Value::Double(_) | Value::BulkString(_)), "{number}: {found:?}");
    }
    let pause = Duration::from_millis(60);
    replica.pause();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(pause);
            replica.go_on();
        });
        let begun = Instant::now();
        assert!(machine.tier.publish(&of_tag("late")));
        assert!(begun.elapsed() >= pause, "{:?}: nobody had it yet", begun.elapsed());
    });
    assert_eq!(machine.tier.figures().notices_unconfirmed, 0);

    replica.pause();
    thread::scope(|scope| {
        let publisher = scope.spawn(|| (machine.tier.publish(&of_tag("never")), Instant::now()));
        let begun = Instant::now();
        while !publisher.is_finished() {
            assert!(machine.get(&key(1)).is_some(), "others are served meanwhile");
        }
        let (published, then) = publisher.join().unwrap();
        let took = then.saturating_duration_since(begun);
        assert!(published && took < Duration::from_secs(1), "{took:?}");
    });
    assert_eq!(machine.tier.figures().notices_unconfirmed, 1);
    replica.go_on();
}
