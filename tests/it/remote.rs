//! One cache for several machines: servers of ours around servers of Redis.

use std::path::Path;
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::live;
use crate::support::server::{Server, until, vecmemo};

/// A machine: a server with a folder of its own.
struct Machine {
    server: Server,
    folder: tempfile::TempDir,
}

fn command(folder: &Path, url: &str) -> Command {
    let mut command = vecmemo(folder);
    command.env("VECMEMO_REMOTE_URL", url);
    // Two processors carry everything here: a deadline for a machine of its own would be missed now and then.
    command.env("VECMEMO_REMOTE_DEADLINE_MS", "500");
    command
}

impl Machine {
    fn new(url: &str) -> Self {
        Self::with(url, &[])
    }

    fn with(url: &str, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = command(folder.path(), url);
        command.envs(settings.iter().copied());
        let machine = Self { server: Server::run(command), folder };
        machine.until_ready(true);
        machine
    }

    fn until_ready(&self, ready: bool) {
        until("the tier", || self.server.metric("vecmemo_remote_ready") == f64::from(u8::from(ready)));
    }

    fn embed(&self, body: &Value) -> Value {
        let (status, answer) = self.server.post("/embed?details=true", body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    fn statuses(&self, texts: &[String]) -> Vec<String> {
        let answer = self.embed(&json!({ "inputs": texts }));
        let items = answer["items"].as_array().unwrap();
        items.iter().map(|item| item["status"].as_str().unwrap().to_owned()).collect()
    }

    fn cached(&self, texts: &[&str]) -> Vec<bool> {
        let (_, answer) = self.server.post("/lookup", &json!({ "inputs": texts }));
        answer["items"].as_array().unwrap().iter().map(|item| item["cached"].as_bool().unwrap()).collect()
    }

    fn computed(&self) -> f64 {
        self.server.metric("vecmemo_items_total{status=\"computed\"}")
    }

    /// Waits until what was computed here is there for the others.
    fn until_written(&self) {
        until("the writes", || self.server.metric("vecmemo_remote_queue_records") == 0.0);
    }
}

fn texts(count: usize, of: &str) -> Vec<String> {
    (0..count).map(|number| format!("text {number} of {of}")).collect()
}

#[test]
fn what_one_machine_has_computed_the_others_take_with_all_that_belongs_to_it() {
    if !live::available() {
        return;
    }
    let redis = live::Server::start(&[]);
    let (one, other) = (Machine::new(&redis.url()), Machine::new(&redis.url()));
    let body = json!({ "inputs": texts(40, "one"), "tags": ["doc:1"], "ttl": 1000, "payload": { "id": 7 } });
    let first = one.embed(&body);
    one.until_written();
    let second = other.embed(&json!({ "inputs": texts(40, "one") }));
    let of = |answer: &Value, field: &str| -> Vec<Value> {
        answer["items"].as_array().unwrap().iter().map(|item| item[field].clone()).collect()
    };
    assert!(of(&first, "status").iter().all(|status| status == "computed"));
    assert!(of(&second, "status").iter().all(|status| status == "remote"), "{:?}", of(&second, "status"));
    for field in ["embedding", "key", "tokens", "truncated"] {
        assert_eq!(of(&second, field), of(&first, field), "{field}");
    }
    // From now on it is there, with what it was stored with.
    assert!(other.statuses(&texts(40, "one")).iter().all(|status| status == "hit"));
    let key = second["items"][0]["key"].as_str().unwrap().to_owned();
    let entry: Value = serde_json::from_str(&other.server.get(&format!("/entries/{key}"))).unwrap();
    assert_eq!((&entry["tags"], &entry["payload"]), (&json!(["doc:1"]), &json!({ "id": 7 })));
    assert!((900..=1000).contains(&entry["ttl"].as_u64().unwrap()), "{entry}");
    let stats: Value = serde_json::from_str(&other.server.get("/stats")).unwrap();
    assert_eq!((&stats["tiers"]["remote"]["hits"], &stats["remote"]["hits"]), (&json!(40), &json!(40)));
    assert_eq!(other.computed(), 0.0);
}

#[test]
fn a_look_up_says_what_the_tier_has_and_brings_nothing() {
    if !live::available() {
        return;
    }
    let redis = live::Server::start(&[]);
    let (one, other) = (Machine::new(&redis.url()), Machine::new(&redis.url()));
    let body = json!({ "inputs": ["kept"], "tags": ["t"], "ttl": 1000, "namespace": "docs" });
    let key = one.embed(&body)["items"][0]["key"].clone();
    one.until_written();
    let look = |body: &Value| -> Vec<Value> {
        let (status, answer) = other.server.post("/lookup", body);
        assert_eq!(status, 200, "{answer}");
        answer["items"].as_array().unwrap().clone()
    };
    for asked in [
        json!({ "inputs": ["kept", "unknown"], "namespace": "docs", "remote": true }),
        json!({ "keys": [key, "00".repeat(32)], "namespace": "docs", "remote": true }),
    ] {
        let items = look(&asked);
        assert_eq!((&items[0]["cached"], &items[0]["tier"]), (&json!(true), &json!("remote")), "{items:?}");
        assert!((900..=1000).contains(&items[0]["ttl"].as_u64().unwrap()), "{items:?}");
        assert!(items[0]["age"].as_u64().unwrap() < 100, "{items:?}");
        assert_eq!((&items[1]["cached"], items[1].get("tier")), (&json!(false), None));
    }
    // Only where asked for, and it stays where it is.
    assert_eq!(look(&json!({ "inputs": ["kept"], "namespace": "docs" }))[0]["cached"], json!(false));
    let stats: Value = serde_json::from_str(&other.server.get("/stats")).unwrap();
    assert_eq!(stats["store"]["entries"], json!(0));
    let headers = [("content-type", "application/json"), ("accept", "application/octet-stream")];
    let binary = json!({ "inputs": ["kept"], "remote": true }).to_string();
    assert_eq!(other.server.client().send("/lookup", &headers, &binary).unwrap().0, 422);
    // Invalidated is gone there too; what is here is told as here.
    other.embed(&json!({ "inputs": ["kept"], "namespace": "docs" }));
    assert_eq!(look(&json!({ "inputs": ["kept"], "namespace": "docs", "remote": true }))[0]["tier"], json!("local"));
    one.server.post("/invalidate", &json!({ "tags": ["t"] }));
    let asked = json!({ "inputs": ["kept"], "namespace": "docs", "remote": true });
    until("its end", || look(&asked)[0]["cached"] == json!(false));
}

#[test]
fn what_is_imported_on_one_machine_is_there_for_all_but_what_is_not_shared() {
    if !live::available() {
        return;
    }
    let redis = live::Server::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let texts = texts(300, "an export");
    {
        let mut server = Server::start(folder.path());
        for (name, tags) in [("docs", json!(["doc:1"])), ("private", json!([]))] {
            let body = json!({ "inputs": texts, "namespace": name, "tags": tags });
            assert_eq!(server.post("/embed", &body).0, 200);
        }
        assert!(server.stop().success());
    }
    let tool = |folder: &Path, arguments: &[&str]| {
        let mut command = command(folder, &redis.url());
        command.args(arguments).args(["--data-dir", "data", "--model"]).arg(crate::support::server::tiny());
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        assert!(output.status.success(), "{said}");
        said
    };
    let out = folder.path().join("out.npy");
    tool(folder.path(), &["export", out.to_str().unwrap(), "--format", "npy"]);
    let target = tempfile::tempdir().unwrap();
    let policies = "[policies.private]\nnamespaces = [\"private\"]\nshared = false\n";
    std::fs::write(target.path().join("vecmemo.toml"), policies).unwrap();
    let said = tool(target.path(), &["import", out.to_str().unwrap()]);
    assert!(said.contains("600 entries imported") && said.contains("300 of them are in the shared tier"), "{said}");
    let other = Machine::new(&redis.url());
    let statuses = |name: &str| -> Vec<Value> {
        let answer = other.embed(&json!({ "inputs": texts, "namespace": name }));
        answer["items"].as_array().unwrap().iter().map(|item| item["status"].clone()).collect()
    };
    assert!(statuses("docs").iter().all(|status| status == "remote"));
    assert!(statuses("private").iter().all(|status| status == "computed"));
    // With what belongs to them, on the machine that took them from there.
    let (_, answer) = other.server.post("/invalidate", &json!({ "tags": ["doc:1"] }));
    assert_eq!(answer["removed"], json!(300), "{answer}");
}

#[test]
fn what_is_invalidated_on_one_machine_is_gone_on_all() {
    if !live::available() {
        return;
    }
    let redis = live::Server::start(&[]);
    let machines = [Machine::new(&redis.url()), Machine::new(&redis.url()), Machine::new(&redis.url())];
    let there = ["by tag", "by glob", "by key", "by text", "by event", "stays"];
    for (text, tag) in there.iter().zip(["t:1", "g:1", "k:1", "x:1", "doc:9", "s:1"]) {
        machines[0].embed(&json!({ "inputs": text, "tags": [tag] }));
    }
    machines[0].until_written();
    let all: Vec<String> = there.iter().map(ToString::to_string).collect();
    for machine in &machines[1..] {
        assert!(machine.statuses(&all).iter().all(|status| status == "remote"));
    }
    let key = machines[1].embed(&json!({ "inputs": "by key" }))["items"][0]["key"].clone();
    let wanted = [
        json!({ "tags": ["t:1"] }),
        json!({ "tag_glob": "g:*" }),
        json!({ "keys": [key] }),
        json!({ "inputs": ["by text"] }),
        json!({ "tags": ["doc:9"] }),
    ];
    for (at, wanted) in wanted.iter().enumerate() {
        let from = &machines[at % machines.len()];
        let (status, answer) = from.server.post("/invalidate", wanted);
        assert_eq!((status, &answer["published"], &answer["removed"]), (200, &json!(true), &json!(1)), "{answer}");
        let told = Instant::now();
        for machine in &machines {
            // Gone from each one's own store, and not to be had from the tier either.
            until("the end everywhere", || machine.cached(&[there[at]]) == [false]);
        }
        assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
        assert_eq!(machines[(at + 1) % 3].statuses(&[all[at].clone()]), ["computed"]);
    }
    for machine in &machines {
        assert_eq!(machine.cached(&["stays"]), [true]);
    }
    // An empty selector says nothing to anybody.
    assert_eq!(machines[0].server.post("/invalidate", &json!({})).0, 422);
    assert_eq!(machines[1].cached(&["stays"]), [true]);
}

#[test]
fn a_tier_that_goes_away_costs_no_answer_and_is_used_again_when_it_is_back() {
    if !live::available() {
        return;
    }
    let mut redis = live::Server::start(&[]);
    let (one, other) = (Machine::new(&redis.url()), Machine::new(&redis.url()));
    one.statuses(&texts(5, "before"));
    one.until_written();
    redis.kill();
    assert!(one.statuses(&texts(5, "while")).iter().all(|status| status == "computed"));
    assert!(other.statuses(&texts(5, "while")).iter().all(|status| status == "computed"));
    one.until_ready(false);
    // Invalidated while nobody can be told: told later, also after a restart.
    other.embed(&json!({ "inputs": "kept apart", "tags": ["apart"] }));
    one.embed(&json!({ "inputs": "kept apart", "tags": ["apart"] }));
    let (_, answer) = one.server.post("/invalidate", &json!({ "tags": ["apart"] }));
    assert_eq!((&answer["removed"], &answer["published"]), (&json!(1), &json!(false)));
    assert_eq!(other.cached(&["kept apart"]), [true]);
    redis.run();
    one.until_ready(true);
    until("the news", || other.cached(&["kept apart"]) == [false]);
    other.until_ready(true);
    one.statuses(&texts(5, "after"));
    one.until_written();
    assert!(other.statuses(&texts(5, "after")).iter().all(|status| status == "remote"));
}

#[test]
fn a_machine_that_was_away_hears_of_everything_before_it_is_served() {
    if !live::available() {
        return;
    }
    let redis = live::Server::start(&[]);
    let one = Machine::new(&redis.url());
    let mut other = Machine::new(&redis.url());
    one.embed(&json!({ "inputs": "old news", "tags": ["news"] }));
    one.until_written();
    assert_eq!(other.statuses(&["old news".to_owned()]), ["remote"]);
    assert!(other.server.stop().success());
    one.server.post("/invalidate", &json!({ "tags": ["news"] }));
    let Machine { server, folder } = other;
    drop(server);
    let server = Server::run(command(folder.path(), &redis.url()));
    let other = Machine { server, folder };
    other.until_ready(true);
    assert_eq!(other.cached(&["old news"]), [false]);
    assert_eq!(other.statuses(&["old news".to_owned()]), ["computed"]);
}

#[test]
fn four_machines_and_many_clients_compute_each_text_once() {
    if !live::available() {
        return;
    }
    let redis = live::Server::start(&[]);
    let machines: Vec<Machine> = (0..4).map(|_| Machine::new(&redis.url())).collect();
    let all = texts(24, "a stampede");
    std::thread::scope(|scope| {
        for client in 0..100 {
            let (machine, all) = (&machines[client % machines.len()], &all);
            scope.spawn(move || {
                // Each begins elsewhere, so that every text has leaders on several machines.
                for at in 0..4 {
                    let text = all[(client * 7 + at * 5) % all.len()].clone();
                    let (status, answer) = machine.server.post("/embed", &json!({ "inputs": text }));
                    assert_eq!(status, 200, "{answer}");
                }
            });
        }
    });
    for machine in &machines {
        machine.statuses(&all);
    }
    let computed: Vec<f64> = machines.iter().map(Machine::computed).collect();
    assert_eq!(computed.iter().sum::<f64>(), all.len() as f64, "{computed:?}");
}

#[test]
fn one_cold_text_that_five_hundred_clients_of_four_machines_ask_for_is_computed_once() {
    if !live::available() {
        return;
    }
    let redis = live::Server::start(&[]);
    let machines: Vec<Machine> = (0..4).map(|_| Machine::new(&redis.url())).collect();
    let (asked, gate) = (json!({ "inputs": "the text of the day" }), Barrier::new(500));
    std::thread::scope(|scope| {
        for client in 0..500 {
            let (client, asked, gate) = (machines[client % machines.len()].server.client(), &asked, &gate);
            scope.spawn(move || {
                gate.wait();
                let (status, answer) = client.post("/embed", asked).unwrap();
                assert_eq!(status, 200, "{answer}");
            });
        }
    });
    let computed: Vec<f64> = machines.iter().map(Machine::computed).collect();
    assert_eq!(computed.iter().sum::<f64>(), 1.0, "{computed:?}");
}

#[test]
fn a_machine_that_dies_with_a_lease_costs_the_others_no_more_than_the_lease() {
    if !live::available() {
        return;
    }
    let redis = live::Server::start(&[]);
    let settings = [("VECMEMO_REMOTE_LEASE_MS", "700")];
    let (mut one, other) = (Machine::with(&redis.url(), &settings), Machine::with(&redis.url(), &settings));
    // A batch that takes a while, given up in the middle.
    let all: Vec<String> = (0..64).map(|number| format!("{number} {}", "a long text ".repeat(400))).collect();
    let client = one.server.client();
    let asked = json!({ "inputs": all });
    let asking = std::thread::spawn(move || client.post("/embed", &asked).is_ok());
    until("the leases", || one.server.metric("vecmemo_remote_leases_ours_total") > 0.0);
    one.server.kill();
    let began = Instant::now();
    assert!(other.statuses(&all[..2]).iter().all(|status| status == "computed" || status == "remote"));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // Whether it was killed in time is not ours to say.
    let _ = asking.join().unwrap();
}

#[test]
fn events_of_a_stream_are_handled_by_one_machine_and_carried_out_on_all() {
    if !live::available() {
        return;
    }
    let redis = live::Server::start(&[]);
    let add = |fields: &[&str]| redis.text(&[&["XADD", "events", "*"], fields].concat());
    // One that was written before anybody listened.
    add(&["type", "document.updated", "subject", "early"]);
    let machine = || {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("vecmemo.toml"),
            "[[event]]\non = \"document.*\"\ntags = [\"doc:{subject}\"]\n",
        )
        .unwrap();
        let mut command = command(folder.path(), &redis.url());
        command.env("VECMEMO_REMOTE_EVENTS_STREAM", "events");
        let machine = Machine { server: Server::run(command), folder };
        machine.until_ready(true);
        machine
    };
    let machines = [machine(), machine()];
    let handled = |name: &str| -> f64 {
        let name = format!("vecmemo_remote_stream_{name}_total");
        machines.iter().map(|machine| machine.server.metric(&name)).sum()
    };
    until("the early one", || handled("handled") == 1.0);
    for subject in ["1", "2"] {
        machines[0].embed(&json!({ "inputs": format!("page {subject}"), "tags": [format!("doc:{subject}")] }));
    }
    machines[0].until_written();
    let pages = ["page 1".to_owned(), "page 2".to_owned()];
    assert_eq!(machines[1].statuses(&pages), ["remote", "remote"]);
    add(&["event", r#"{"type": "document.updated", "subject": "1"}"#]);
    add(&["type", "document.updated"]);
    for machine in &machines {
        until("the end everywhere", || machine.cached(&["page 1", "page 2"]) == [false, true]);
    }
    until("the refusal", || handled("refused") == 1.0);
    assert_eq!(handled("handled"), 2.0);
    assert!(redis.text(&["XRANGE", "events:refused", "-", "+"]).contains("subject"));
}

#[test]
fn the_servers_are_shown_and_what_is_wrong_with_them_is_said() {
    if !live::available() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], url: Option<&str>| {
        let mut command = vecmemo(folder.path());
        command.args(arguments);
        command.envs(url.map(|url| ("VECMEMO_REMOTE_URL", url)));
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.success(), said.concat())
    };
    let (ok, said) = run(&["cluster", "status"], None);
    assert!(!ok && said.contains("--remote-url"), "{said}");
    let (ok, said) = run(&["cluster", "check"], Some("redis://:secret@127.0.0.1:1"));
    assert!(!ok && !said.contains("secret"), "{said}");
    let bounded = live::Server::start(&["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lfu"]);
    let (ok, said) = run(&["cluster", "check"], Some(&bounded.url()));
    assert!(ok, "{said}");
    let unbounded = live::Server::start(&[]);
    let (ok, said) = run(&["cluster", "check"], Some(&unbounded.url()));
    assert!(!ok && said.contains("maxmemory"), "{said}");
    let (ok, said) = run(&["cluster", "status"], Some(&unbounded.url()));
    assert!(ok && said.contains("master") && said.contains("no bound"), "{said}");
    let (ok, said) = run(&["cluster", "status", "--json"], Some(&unbounded.url()));
    let status: Value = serde_json::from_str(&said).unwrap();
    assert!(ok && status["servers"][0]["up"] == json!(true), "{said}");
    let (ok, said) = run(&["config", "--remote-url", "redis://user:secret@there"], None);
    assert!(ok && !said.contains("secret"), "{said}");
    let (ok, said) = run(&["cluster", "status"], Some("http://there"));
    assert!(!ok && said.contains("remote.url"), "{said}");
}
