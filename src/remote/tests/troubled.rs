//! A real server that refuses, falls silent, or is reached over a line that cuts and garbles.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Instant;

use super::live::{Server, available};
use super::*;

pub(super) const PASS: u8 = 0;
pub(super) const GARBLE: u8 = 1;
pub(super) const CUT: u8 = 2;
pub(super) const SWALLOW: u8 = 3;
/// Every so often an answer is late, and what comes after it on its connection.
pub(super) const STALL: u8 = 4;
const STALL_EVERY: usize = 60;
const STALL_FOR: Duration = Duration::from_millis(120);

/// A line to a server, of which what comes back can be spoilt.
pub(super) struct Line {
    port: u16,
    mode: Arc<AtomicU8>,
    pub(super) spoilt: Arc<AtomicUsize>,
}

impl Line {
    pub(super) fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Self { port: listener.local_addr().unwrap().port(), mode: Arc::default(), spoilt: Arc::default() };
        let (mode, spoilt) = (Arc::clone(&line.mode), Arc::clone(&line.spoilt));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let (mode, spoilt) = (Arc::clone(&mode), Arc::clone(&spoilt));
                thread::spawn(move || back(server, client, &mode, &spoilt));
            }
        });
        line
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(super) fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }
}

fn back(mut server: TcpStream, mut client: TcpStream, mode: &AtomicU8, spoilt: &AtomicUsize) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = server.read(&mut bytes) {
        let mode = mode.load(Ordering::SeqCst);
        let number = spoilt.fetch_add(usize::from(mode != PASS), Ordering::SeqCst);
        let sent = match mode {
            GARBLE => {
                let noise = *blake3::hash(&bytes[..count]).as_bytes();
                bytes[..count].iter_mut().zip(noise.iter().cycle()).for_each(|(byte, noise)| *byte ^= noise);
                client.write_all(&bytes[..count])
            }
            CUT => client.write_all(&bytes[..count / 2]).and_then(|()| client.shutdown(Shutdown::Both)),
            SWALLOW => Ok(()),
            STALL => {
                if number % STALL_EVERY == STALL_EVERY - 1 {
                    thread::sleep(STALL_FOR);
                }
                client.write_all(&bytes[..count])
            }
            _ => client.write_all(&bytes[..count]),
        };
        if sent.is_err() || mode == CUT {
            break;
        }
    }
    let _ = (server.shutdown(Shutdown::Both), client.shutdown(Shutdown::Both));
}

/// Whatever comes back, what is served is what was stored, and nothing waits past its deadline.
#[test]
fn a_line_that_cuts_garbles_and_swallows_costs_misses_only() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let line = Line::to(server.port);
    let deadline = Duration::from_millis(250);
    let machine = Machine::at(&line.url(), Config { deadline, ..config() });
    let keys: Vec<Key> = (0..64).map(key).collect();
    keys.iter().for_each(|&key| machine.tier.store(key, record(&["x"]), 0, None));
    assert!(machine.tier.flush(SOON));
    for mode in [GARBLE, CUT, SWALLOW, GARBLE, CUT] {
        machine.wait();
        line.set(mode);
        let before = line.spoilt.load(Ordering::SeqCst);
        until("answers are spoilt", SOON, || {
            let begun = Instant::now();
            for served in machine.fetch(&keys).records.into_iter().flatten() {
                assert_eq!(served, record(&["x"]));
            }
            assert!(begun.elapsed() < deadline * 4, "mode {mode}: {:?}", begun.elapsed());
            line.spoilt.load(Ordering::SeqCst) > before + 2 || !machine.tier.figures().ready
        });
        line.set(PASS);
    }
    machine.wait();
    until("all is served again", SOON, || machine.fetch(&keys).records.iter().all(Option::is_some));
    let figures = machine.tier.figures();
    assert!(figures.timeouts + figures.errors > 0 && figures.servers[0].openings > 0, "{figures:?}");
}

#[test]
fn a_server_that_never_answers_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let tier = Tier::start(&url.parse().unwrap(), config()).unwrap();
    let begun = Instant::now();
    assert_eq!(tier.fetch(&asked(&[key(1)])).records, [None]);
    assert!(matches!(tier.lead(&asked(&[key(1)]))[..], [Lead::Unknown]));
    assert!(!tier.publish(&of_tag("x")));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!((tier.now(), tier.figures().skipped), (None, 1));
}

#[test]
fn a_server_that_stands_still_is_given_up_and_taken_up_again() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let deadline = Duration::from_millis(50);
    let machine = Machine::at(&server.url(), Config { deadline, ..config() });
    machine.tier.store(key(1), record(&[]), 0, None);
    assert!(machine.tier.flush(SOON));
    server.pause();
    until("it is given up", SOON, || {
        let begun = Instant::now();
        assert_eq!(machine.get(&key(1)), None);
        assert!(begun.elapsed() < deadline * 10, "{:?}", begun.elapsed());
        !machine.tier.figures().ready
    });
    server.go_on();
    until("it is served again", SOON, || machine.get(&key(1)).is_some());
}

#[test]
fn a_wrong_password_is_named_and_not_shown() {
    if !available() {
        return;
    }
    let server = Server::start(&["--requirepass", "right-one"]);
    for (login, expected) in [("", "NOAUTH"), (":wrong-one@", "WRONGPASS")] {
        let url = format!("redis://{login}127.0.0.1:{}", server.port);
        let tier = Tier::start(&url.parse().unwrap(), config()).unwrap();
        until("it is refused", SOON, || tier.figures().servers[0].error.is_some());
        let error = tier.figures().servers[0].error.clone().unwrap();
        assert!(!error.contains("wrong-one") && !error.contains("right-one"), "{error}");
        assert!(error.contains(expected) || error.to_lowercase().contains("authentication"), "{error}");
        assert!(!tier.figures().ready);
    }
    let machine = Machine::at(&server.url(), config());
    machine.put(key(1), &[]);
    assert!(machine.get(&key(1)).is_some());
}

#[test]
fn a_server_that_takes_no_writes_is_still_read() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let [a, b] = [0, 1].map(|_| Machine::at(&server.url(), config()));
    a.put(key(1), &["x"]);
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    a.put(key(2), &[]);
    let figures = a.tier.figures();
    assert!(figures.refused == 1 && figures.error.as_deref().is_some_and(|error| error.contains("OOM")), "{figures:?}");
    assert!(b.get(&key(1)).is_some());
    assert!(!a.tier.publish(&of_tag("x")), "it could not be told to the others");
    assert_eq!(a.get(&key(1)), None, "and is not served here");
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    until("it is told", SOON, || b.get(&key(1)).is_none());

    b.put(key(3), &[]);
    server.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    b.put(key(4), &[]);
    let figures = b.tier.figures();
    assert!(figures.error.as_deref().is_some_and(|error| error.contains("READONLY")), "{figures:?}");
    assert!(b.get(&key(3)).is_some());
    assert!(b.tier.survey().warnings.iter().any(|warning| warning.contains("takes no writes")));
    server.ask(&["REPLICAOF", "NO", "ONE"]);
    until("writes are taken again", SOON, || {
        b.put(key(4), &[]);
        b.get(&key(4)).is_some()
    });
}

/// Keys of another kind, and values that are too long, under names of ours.
#[test]
fn what_others_put_under_our_names_is_a_miss() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let machine = Machine::at(&server.url(), config());
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let name = |number: u64| [b"vecmemo:".as_slice(), key(number).as_bytes()].concat();
    machine.put(key(3), &[]);
    redis::cmd("RPUSH").arg(name(1)).arg("x").exec(&mut connection).unwrap();
    let mut long = record(&[]).encode(&key(2)).unwrap();
    long.resize(RECORD_BYTES_MAX + 1, 0);
    redis::cmd("SET").arg(name(2)).arg(long).exec(&mut connection).unwrap();
    let served = machine.fetch(&[key(1), key(2), key(3)]).records;
    assert_eq!(served.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(machine.tier.figures().flawed.iter().sum::<u64>(), 1);
    redis::cmd("ZADD").arg("{vecmemo:log}:notices").arg(7).arg("nonsense").exec(&mut connection).unwrap();
    redis::cmd("SET").arg("{vecmemo:log}:epoch").arg(7).exec(&mut connection).unwrap();
    assert_eq!(machine.get(&key(3)), None, "nobody knows what it means");
    assert_eq!(machine.heard(), [Notice::everything(true)]);
}

/// How many of some hundred fetches take as long as a stall, and that all are answered rightly.
fn stalled(machine: &Machine, line: &Line, keys: &[Key]) -> usize {
    line.set(STALL);
    let took = (0..400).map(|_| {
        let begun = Instant::now();
        assert_eq!(machine.fetch(keys).records, [Some(record(&["x"]))]);
        begun.elapsed()
    });
    let slow = took.filter(|took| *took >= STALL_FOR).count();
    line.set(PASS);
    slow
}

#[test]
fn what_is_late_is_asked_for_once_more_and_the_first_answer_counts() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let line = Line::to(server.port);
    let plain = Machine::at(&line.url(), config());
    plain.put(key(1), &["x"]);
    let slow = stalled(&plain, &line, &[key(1)]);
    assert!(slow >= 3, "{slow}: without it the stalls are felt");
    assert_eq!(plain.tier.figures().hedged, 0);
    drop(plain);

    let hedging = Machine::at(&line.url(), Config { hedge: Some(Duration::from_millis(40)), ..config() });
    assert!(hedging.get(&key(1)).is_some());
    // It is made behind the first; the third asks.
    until("the second connection", SOON, || server.text(&["INFO", "clients"]).contains("connected_clients:3"));
    let still_slow = stalled(&hedging, &line, &[key(1)]);
    let figures = hedging.tier.figures();
    println!("of 400 fetches {slow} were late, and {still_slow} with {} asked twice", figures.hedged);
    assert!(still_slow <= 1 && slow >= 3, "{still_slow} of {slow} are slow still: {figures:?}");
    assert!((3..=40).contains(&figures.hedged) && figures.hedge_won > 0, "{figures:?}");
    assert!(figures.hedge_won <= figures.hedged);
    // What is invalidated is not served, whoever answers first.
    line.set(STALL);
    assert!(hedging.tier.publish(&of_tag("x")));
    for _ in 0..200 {
        assert_eq!(hedging.get(&key(1)), None);
    }
}
