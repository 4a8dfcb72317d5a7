//! Events consumed from streams of real servers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use redis::Value;

use super::super::slots::{list, number, slot, text};
use super::live::{Cluster, Server, Watched, available};
use super::troubled::{CUT, GARBLE, Line, PASS, SWALLOW};
use super::*;

/// Long enough for another server to take over.
const FAILOVER: Duration = Duration::from_secs(40);

fn of(consumer: &str) -> Stream {
    Stream { name: "events".into(), group: "g".into(), consumer: consumer.into() }
}

/// Nothing is taken over, and what comes again does so soon.
fn quick() -> Pace {
    Pace { idle: Duration::from_secs(60), pause: Duration::from_millis(10) }
}

/// What dies is soon noticed.
fn taking_over() -> Pace {
    Pace { idle: Duration::from_millis(300), ..quick() }
}

fn tier(url: &str) -> Tier {
    Tier::start(&url.parse().unwrap(), config()).unwrap()
}

/// What was handled, by the value of each entry's first field.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    /// Notes each entry, and says of it what `answer` does.
    fn handler(&self, answer: impl Fn(&str) -> Handled + Send + Sync + 'static) -> Arc<Handler> {
        let told = self.clone();
        Arc::new(move |fields: &[(String, Vec<u8>)]| {
            let value = String::from_utf8(fields[0].1.clone()).unwrap();
            told.0.lock().unwrap().push(value.clone());
            answer(&value)
        })
    }

    fn done(&self) -> Arc<Handler> {
        self.handler(|_| Handled::Done)
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    fn sorted(&self) -> Vec<usize> {
        let mut numbers: Vec<usize> = self.all().iter().map(|value| value.parse().unwrap()).collect();
        numbers.sort_unstable();
        numbers
    }

    /// Whether all of these were handled, be it more than once.
    fn has(&self, mut numbers: std::ops::Range<usize>) -> bool {
        let all = self.sorted();
        numbers.all(|number| all.binary_search(&number).is_ok())
    }
}

fn add(server: &Server, value: impl ToString) -> String {
    server.text(&["XADD", "events", "*", "n", &value.to_string()])
}

/// Adds an entry on whichever of these takes it.
fn add_to_any(servers: &[&Server], value: usize) {
    let value = value.to_string();
    let is_added = |server: &&Server| server.try_ask(&["XADD", "events", "*", "n", &value]).is_some();
    until("somebody takes it", FAILOVER, || servers.iter().any(is_added));
}

/// How many entries are delivered and not acknowledged.
fn pending(server: &Server) -> Option<i64> {
    number(list(&server.try_ask(&["XPENDING", "events", "g"])?)?.first()?)
}

fn read_by(server: &Server, consumer: &str) {
    server.ask(&["XREADGROUP", "GROUP", "g", consumer, "STREAMS", "events", ">"]);
}

/// The strings of each refused entry.
fn refused(server: &Server) -> Vec<Vec<String>> {
    let Some(found) = server.try_ask(&["XRANGE", "events:refused", "-", "+"]) else { return vec![] };
    let strings = |entry: &Value| -> Vec<String> {
        list(&list(entry).unwrap()[1]).unwrap().iter().map(|string| text(string).unwrap().to_owned()).collect()
    };
    list(&found).unwrap().iter().map(strings).collect()
}

/// A handler that says when it begins, and waits to be told to go on.
struct Gate {
    begun: Receiver<()>,
    go_on: Sender<()>,
}

fn gate(told: &Told) -> (Gate, Arc<Handler>) {
    let ((begin, begun), (go_on, gone_on)) = (channel(), channel());
    let inner = Mutex::new((begin, gone_on));
    let handler = told.handler(move |_| {
        let inner = inner.lock().unwrap();
        let _ = inner.0.send(());
        let _ = inner.1.recv_timeout(FAILOVER);
        Handled::Done
    });
    (Gate { begun, go_on }, handler)
}

#[test]
fn two_consumers_of_a_group_share_the_entries() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    (0..100).for_each(|number| _ = add(&server, number));
    let told = Told::default();
    let tiers = [0, 1].map(|_| tier(&server.url()));
    // The first of each waits for the other, so that both have some.
    let both = Arc::new(std::sync::Barrier::new(2));
    let consumers: Vec<Consumer> = tiers
        .iter()
        .zip(["a", "b"])
        .map(|(tier, name)| {
            let (both, is_first) = (Arc::clone(&both), AtomicBool::new(true));
            let handler = told.handler(move |_| {
                if is_first.swap(false, Ordering::SeqCst) {
                    both.wait();
                }
                Handled::Done
            });
            tier.consume(of(name), handler)
        })
        .collect();
    (100..500).for_each(|number| _ = add(&server, number));
    until("all are acknowledged", SOON, || told.all().len() >= 500 && pending(&server) == Some(0));
    assert_eq!(told.sorted(), (0..500).collect::<Vec<_>>(), "each once, and those from before the group was there");
    let [a, b] = tiers.each_ref().map(|tier| tier.figures());
    assert_eq!((a.stream_handled + b.stream_handled, a.stream_refused, a.stream_retried), (500, 0, 0));
    assert!(a.stream_handled > 0 && b.stream_handled > 0, "{a:?} {b:?}");
    drop(consumers);
}

#[test]
fn one_consumer_is_told_in_the_streams_order() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let (tier, told) = (tier(&server.url()), Told::default());
    (0..300).for_each(|number| _ = add(&server, number));
    let consumer = tier.consume(of("a"), told.done());
    until("all are handled", SOON, || told.all().len() == 300);
    assert_eq!(told.all(), (0..300).map(|number| number.to_string()).collect::<Vec<_>>());
    drop(consumer);
}

#[test]
fn what_a_dead_consumer_left_is_taken_over() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    (0..150).for_each(|number| _ = add(&server, number));
    server.ask(&["XGROUP", "CREATE", "events", "g", "0"]);
    read_by(&server, "dead");
    add(&server, 150);
    let [patient, quick] = [0, 1].map(|_| (tier(&server.url()), Told::default()));
    let waiting = patient.0.consume(of("patient"), patient.1.done());
    until("what is new is handled", SOON, || patient.1.all().len() == 1);
    let taking = quick.0.consume_at(of("quick"), quick.1.done(), taking_over());
    until("all are acknowledged", SOON, || quick.1.all().len() >= 150 && pending(&server) == Some(0));
    assert_eq!(quick.1.sorted(), (0..150).collect::<Vec<_>>(), "each once");
    assert_eq!(patient.1.all(), ["150"], "half a minute is not over");
    drop((waiting, taking));
}

#[test]
fn a_consumer_begins_with_what_it_left() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    (0..3).for_each(|number| _ = add(&server, number));
    server.ask(&["XGROUP", "CREATE", "events", "g", "0"]);
    read_by(&server, "a");
    (3..5).for_each(|number| _ = add(&server, number));
    let (tier, told) = (tier(&server.url()), Told::default());
    let begun = Instant::now();
    let consumer = tier.consume(of("a"), told.done());
    until("all are handled", SOON, || told.all().len() == 5);
    assert!(begun.elapsed() < Duration::from_secs(10), "it does not wait until it would be taken over");
    assert_eq!(told.all(), ["0", "1", "2", "3", "4"]);
    drop(consumer);
}

#[test]
fn what_cannot_be_done_now_comes_again_and_holds_nothing_up() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let (tier, told, tries) = (tier(&server.url()), Told::default(), AtomicUsize::new(0));
    ["later", "next", "last"].iter().for_each(|value| _ = add(&server, value));
    let handler = told.handler(move |value| match value {
        "later" if tries.fetch_add(1, Ordering::SeqCst) < 3 => Handled::Later("the disk is full".into()),
        _ => Handled::Done,
    });
    let consumer = tier.consume_at(of("a"), handler, quick());
    until("all are acknowledged", SOON, || told.all().len() >= 6 && pending(&server) == Some(0));
    assert_eq!(told.all(), ["later", "next", "last", "later", "later", "later"]);
    let figures = tier.figures();
    assert_eq!((figures.stream_handled, figures.stream_refused, figures.stream_retried), (3, 0, 3));
    assert!(figures.error.unwrap().contains("the disk is full"));
    drop(consumer);
}

#[test]
fn what_can_never_be_done_is_kept_aside() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let (tier, told) = (tier(&server.url()), Told::default());
    let handler = told.handler(|value| match value {
        "never" => Handled::Refused("no such event".into()),
        "later" => Handled::Later("not yet".into()),
        "panics" => panic!("as ordered"),
        _ => Handled::Done,
    });
    let ids = ["never", "later", "panics"].map(|value| add(&server, value));
    let long = "x".repeat((1 << 20) + 1);
    let [long_id, plain] = [long.as_str(), "fine"].map(|value| server.text(&["XADD", "events", "*", "", value]));
    let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let odd: String =
        redis::cmd("XADD").arg("events").arg("*").arg(&[0xff_u8][..]).arg("1").query(&mut connection).unwrap();
    let consumer = tier.consume_at(of("a"), handler, quick());
    until("nothing is left", SOON, || refused(&server).len() >= 5 && pending(&server) == Some(0));
    let mut found = refused(&server);
    found.sort();
    let aside = |id: &str, why: &str, rest: &[&str]| -> Vec<String> {
        ["entry", id, "group", "g", "reason", why].iter().chain(rest).map(|&part| part.to_owned()).collect()
    };
    let expected = [
        aside(&ids[0], "no such event", &["n", "never"]),
        aside(&ids[1], "it was delivered 5 times, and the last time: not yet", &["n", "later"]),
        aside(&ids[2], "it was delivered 5 times, and the last time: its handler panicked", &["n", "panics"]),
        aside(&long_id, "it has 1048577 bytes, and may have 1048576", &[]),
        aside(&odd, "a field's name is no UTF-8", &[]),
    ];
    assert_eq!(found, expected);
    let count = |value: &str| told.all().iter().filter(|told| *told == value).count();
    assert_eq!(["never", "later", "panics", "fine"].map(count), [1, 5, 5, 1]);
    assert_eq!(told.all().len(), 12, "those that are not fit for it were not handled");
    let figures = tier.figures();
    assert_eq!((figures.stream_handled, figures.stream_refused, figures.stream_retried), (1, 5, 8));
    assert_eq!(server.ask(&["XLEN", "events"]), Value::Int(6), "the stream itself is left alone: {plain}");
    drop(consumer);
}

/// An entry that ends every process that handles it is delivered, and nobody says what became of it.
#[test]
fn what_is_delivered_again_and_again_without_an_end_is_kept_aside() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let [deadly, fine, left] = ["deadly", "fine", "left"].map(|value| add(&server, value));
    server.ask(&["XGROUP", "CREATE", "events", "g", "0"]);
    read_by(&server, "a");
    server.ask(&["XCLAIM", "events", "g", "a", "0", &deadly, "RETRYCOUNT", "5"]);
    server.ask(&["XCLAIM", "events", "g", "a", "0", &fine, "RETRYCOUNT", "4"]);
    server.ask(&["XCLAIM", "events", "g", "dead", "0", &left, "RETRYCOUNT", "4"]);
    let (tier, told) = (tier(&server.url()), Told::default());
    let consumer = tier.consume_at(of("a"), told.done(), taking_over());
    until("nothing is left", SOON, || pending(&server) == Some(0));
    assert_eq!(told.all(), ["fine", "left"], "to be taken over is no delivery");
    let found = refused(&server);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0][5], "it was delivered 5 times and never done");
    drop(consumer);
}

#[test]
fn what_was_trimmed_before_it_was_handled_is_counted() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    (0..4).for_each(|number| _ = add(&server, number));
    server.ask(&["XGROUP", "CREATE", "events", "g", "0"]);
    server.ask(&["XREADGROUP", "GROUP", "g", "a", "COUNT", "1", "STREAMS", "events", ">"]);
    server.ask(&["XREADGROUP", "GROUP", "g", "dead", "COUNT", "1", "STREAMS", "events", ">"]);
    server.ask(&["XTRIM", "events", "MAXLEN", "2"]);
    let (tier, told) = (tier(&server.url()), Told::default());
    let consumer = tier.consume_at(of("a"), told.done(), taking_over());
    until("both are noticed", SOON, || tier.figures().stream_refused == 2);
    until("nothing is left", SOON, || told.all().len() == 2 && pending(&server) == Some(0));
    assert_eq!(told.all(), ["2", "3"]);
    assert!(tier.figures().error.unwrap().contains("trimmed"));
    drop(consumer);
}

/// Two entries are pending: one that another takes over while the first is handled is not taken back.
#[test]
fn what_another_has_taken_over_meanwhile_is_left_to_it() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let ids = [0, 1].map(|number| add(&server, number));
    server.ask(&["XGROUP", "CREATE", "events", "g", "0"]);
    read_by(&server, "a");
    let (tier, told) = (tier(&server.url()), Told::default());
    let (gate, handler) = gate(&told);
    let consumer = tier.consume_at(of("a"), handler, quick());
    gate.begun.recv_timeout(SOON).unwrap();
    server.ask(&["XCLAIM", "events", "g", "other", "0", &ids[1]]);
    gate.go_on.send(()).unwrap();
    add(&server, 2);
    gate.begun.recv_timeout(SOON).unwrap();
    gate.go_on.send(()).unwrap();
    until("only the other's is left", SOON, || pending(&server) == Some(1));
    assert_eq!(told.all(), ["0", "2"]);
    assert_eq!(tier.figures().stream_refused, 0);
    drop(consumer);
}

/// The first of a page takes so long that others may soon take over the rest: what they have is left to them.
#[test]
fn what_waits_behind_a_slow_one_is_told_only_if_it_is_still_this_consumers() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let ids = [0, 1].map(|number| add(&server, number));
    let (tier, told) = (tier(&server.url()), Told::default());
    let (gate, handler) = gate(&told);
    let pace = Pace { idle: Duration::from_secs(4), ..quick() };
    let consumer = tier.consume_at(of("a"), handler, pace);
    gate.begun.recv_timeout(SOON).unwrap();
    let read = Instant::now();
    until("half of the time is over", SOON, || read.elapsed() > pace.idle / 2);
    server.ask(&["XCLAIM", "events", "g", "other", "0", &ids[1]]);
    add(&server, 2);
    gate.go_on.send(()).unwrap();
    gate.begun.recv_timeout(SOON).unwrap();
    assert_eq!(told.all(), ["0", "2"]);
    drop(gate);
    until("it is taken over in its turn", SOON, || pending(&server) == Some(0));
    assert_eq!(told.all(), ["0", "2", "1"]);
    drop(consumer);
}

#[test]
fn a_consumer_that_is_dropped_acknowledges_what_it_handles_and_no_more() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    (0..3).for_each(|number| _ = add(&server, number));
    let (tier, told) = (tier(&server.url()), Told::default());
    let (gate, handler) = gate(&told);
    let consumer = tier.consume(of("a"), handler);
    gate.begun.recv_timeout(SOON).unwrap();
    assert_eq!(pending(&server), Some(3), "not before it was handled");
    drop(consumer);
    gate.go_on.send(()).unwrap();
    until("the first is acknowledged", SOON, || pending(&server) == Some(2));
    until("its connection is closed", SOON, || !server.text(&["CLIENT", "LIST"]).contains("cmd=xack"));
    assert_eq!(told.all(), ["0"], "no more is handled");
    let again = tier.consume(of("a"), told.done());
    until("the rest is handled", SOON, || pending(&server) == Some(0));
    assert_eq!(told.all(), ["0", "1", "2"]);
    drop(again);
    until("the blocked read ends as well", SOON, || !server.text(&["CLIENT", "LIST"]).contains("cmd=xread"));
    add(&server, 3);
    assert_eq!(server.ask(&["XLEN", "events"]), Value::Int(4));
    assert_eq!(pending(&server), Some(0), "nobody reads it");
}

#[test]
fn reading_and_handling_hold_up_no_fetch() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let (machine, told) = (Machine::at(&server.url(), config()), Told::default());
    let (gate, handler) = gate(&told);
    let consumer = machine.tier.consume(of("a"), handler);
    machine.put(key(1), &[]);
    let fetches = || {
        let begun = Instant::now();
        (0..20).for_each(|_| assert!(machine.get(&key(1)).is_some()));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    };
    until("a read blocks", SOON, || server.text(&["INFO", "clients"]).contains("blocked_clients:1"));
    fetches();
    add(&server, 0);
    gate.begun.recv_timeout(SOON).unwrap();
    fetches();
    gate.go_on.send(()).unwrap();
    until("it is acknowledged", SOON, || pending(&server) == Some(0));
    drop(consumer);
}

#[test]
fn nothing_is_lost_when_the_server_is_killed_and_started_again() {
    if !available() {
        return;
    }
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (tier, told) = (tier(&server.url()), Told::default());
    let (gate, handler) = gate(&told);
    (0..10).for_each(|number| _ = add(&server, number));
    let consumer = tier.consume_at(of("a"), handler, quick());
    gate.begun.recv_timeout(SOON).unwrap();
    server.kill();
    gate.go_on.send(()).unwrap();
    until("it is noticed", SOON, || {
        let figures = tier.figures();
        figures.stream_handled == 1 && figures.error.is_some_and(|error| error.starts_with("stream events: "))
    });
    server.run();
    (10..20).for_each(|number| _ = add(&server, number));
    drop(gate);
    until("all are acknowledged", SOON, || told.has(0..20) && pending(&server) == Some(0));
    assert_eq!(told.all()[0], "0");
    let twice = told.all().len() - 20;
    assert!((1..=2).contains(&twice), "the first was handled, but could not be acknowledged: {:?}", told.all());

    // It comes back without the stream and its group: both are made anew.
    server.ask(&["FLUSHALL"]);
    (20..30).for_each(|number| _ = add(&server, number));
    until("all are acknowledged", SOON, || told.has(20..30) && pending(&server) == Some(0));
    drop(consumer);
}

#[test]
fn a_line_that_cuts_garbles_and_swallows_loses_nothing() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let line = Line::to(server.port);
    let (tier, told) = (tier(&line.url()), Told::default());
    let consumer = tier.consume_at(of("a"), told.done(), taking_over());
    let mut added = 0;
    for mode in [GARBLE, CUT, SWALLOW, GARBLE, CUT] {
        until("what was there is handled", SOON, || told.has(0..added));
        line.set(mode);
        let before = line.spoilt.load(Ordering::SeqCst);
        until("answers are spoilt", SOON, || {
            add(&server, added);
            added += 1;
            line.spoilt.load(Ordering::SeqCst) > before + 2
        });
        line.set(PASS);
    }
    until("all are acknowledged", FAILOVER, || told.has(0..added) && pending(&server) == Some(0));
    assert_eq!(refused(&server), Vec::<Vec<String>>::new());
    drop(consumer);
}

#[test]
fn a_key_that_is_no_stream_is_named_until_it_is_one() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    server.ask(&["SET", "events", "1"]);
    let (tier, told) = (tier(&server.url()), Told::default());
    let consumer = tier.consume_at(of("a"), told.done(), quick());
    until("it is named", SOON, || tier.figures().error.is_some_and(|error| error.contains("WRONGTYPE")));
    server.ask(&["DEL", "events"]);
    add(&server, 0);
    until("it is handled", SOON, || told.all() == ["0"]);
    drop(consumer);
}

/// While there is no room for what is to be kept aside, it stays pending and holds nothing up.
#[test]
fn what_cannot_be_kept_aside_now_is_later() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    server.ask(&["SET", "events:refused", "no stream"]);
    let (tier, told) = (tier(&server.url()), Told::default());
    ["never", "fine"].iter().for_each(|value| _ = add(&server, value));
    let handler = told.handler(|value| match value {
        "never" => Handled::Refused("no such event".into()),
        _ => Handled::Done,
    });
    let consumer = tier.consume_at(of("a"), handler, quick());
    until("the other is handled", SOON, || told.all().contains(&"fine".to_owned()));
    until("it is named", SOON, || tier.figures().error.is_some_and(|error| error.contains("WRONGTYPE")));
    until("the other is acknowledged", SOON, || pending(&server) == Some(1));
    assert_eq!(tier.figures().stream_refused, 0);
    server.ask(&["DEL", "events:refused"]);
    until("it is kept aside", SOON, || refused(&server).len() == 1 && pending(&server) == Some(0));
    drop(consumer);
}

/// While very many are to come again, nothing new is read.
#[test]
fn what_comes_again_is_bounded() {
    if !available() {
        return;
    }
    let server = Server::start(&[]);
    let fill = |count: u32| {
        let script = "for n = 1, ARGV[1] do redis.call('XADD', 'events', '*', 'n', n) end";
        server.ask(&["EVAL", script, "0", &count.to_string()]);
    };
    fill(3000);
    let (tier, told) = (tier(&server.url()), Told::default());
    let is_open = Arc::new(AtomicBool::new(false));
    let open = Arc::clone(&is_open);
    let handler = told.handler(move |_| match open.load(Ordering::SeqCst) {
        true => Handled::Done,
        false => Handled::Later("closed".into()),
    });
    let pace = Pace { pause: Duration::from_millis(1500), ..quick() };
    let consumer = tier.consume_at(of("a"), handler, pace);
    until("some come again", SOON, || tier.figures().stream_retried > 1500);
    let waiting = pending(&server).unwrap();
    assert!((1024..1024 + 64).contains(&waiting), "{waiting}");
    is_open.store(true, Ordering::SeqCst);
    until("all are acknowledged", FAILOVER, || told.has(1..3001) && pending(&server) == Some(0));
    drop(consumer);
}

#[test]
fn a_tier_in_memory_says_that_it_has_no_streams() {
    let (machine, told) = (Machine::in_memory(&Memory::default(), config()), Told::default());
    let consumer = machine.tier.consume(of("a"), told.done());
    assert!(machine.tier.figures().error.unwrap().contains("no streams"));
    drop(consumer);
}

#[test]
fn when_the_master_dies_its_replicas_stream_is_read() {
    if !available() {
        return;
    }
    let mut watched = Watched::start();
    let (tier, told) = (tier(&watched.url()), Told::default());
    let consumer = tier.consume_at(of("a"), told.done(), taking_over());
    (0..20).for_each(|number| add_to_any(&[&watched.servers[0]], number));
    until("all are handled", SOON, || told.has(0..20) && pending(&watched.servers[1]) == Some(0));
    watched.servers[0].kill();
    (20..40).for_each(|number| add_to_any(&[&watched.servers[1]], number));
    until("all are acknowledged", FAILOVER, || told.has(20..40) && pending(&watched.servers[1]) == Some(0));
    drop(consumer);
}

#[test]
fn in_a_cluster_the_stream_is_followed_to_where_it_goes() {
    if !available() {
        return;
    }
    let mut cluster = Cluster::start();
    let owner = |name: &str| usize::from(slot(name.as_bytes())) * 3 / 16_384;
    let (home, other) = (owner("events"), (owner("events") + 1) % 3);
    let (tier, told) = (tier(&cluster.url()), Told::default());
    let handler = told.handler(|value| match value {
        "3" => Handled::Refused("ordered".into()),
        _ => Handled::Done,
    });
    let consumer = tier.consume_at(of("a"), handler, taking_over());
    (0..20).for_each(|number| add_to_any(&[&cluster.masters[home]], number));
    until("all are handled", SOON, || told.has(0..20) && pending(&cluster.masters[home]) == Some(0));
    assert_ne!(owner("events"), owner("events:refused"), "they are on different servers");
    assert_eq!(refused(&cluster.masters[owner("events:refused")]).len(), 1);

    let slot = slot(b"events");
    let masters = &cluster.masters;
    super::cluster::move_slot(slot, &masters[home], &masters[other], masters, || {});
    (20..40).for_each(|number| add_to_any(&[&masters[other]], number));
    until("it is read where it has gone", FAILOVER, || told.has(20..40) && pending(&masters[other]) == Some(0));

    cluster.masters[other].kill();
    (40..60).for_each(|number| add_to_any(&[&cluster.replicas[other]], number));
    let is_all = || told.has(40..60) && pending(&cluster.replicas[other]) == Some(0);
    until("it is read from who took over", FAILOVER, is_all);
    drop(consumer);
}
