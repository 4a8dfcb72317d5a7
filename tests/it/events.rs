//! What has happened elsewhere, over HTTP, and what the rules in the configuration make of it.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::server::{Server, until};

const RULES: &str = r#"
[[event]]
on = "document.*"
tags = ["doc:{subject}"]

[[event]]
on = "source.changed"
tag_glob = "{data.source}/*"
mode = "soft"

[[event]]
on = "model.replaced"
model = "{data.model}"
"#;

type Headers<'a> = &'a [(&'a str, &'a str)];

struct Served {
    server: Server,
    folder: tempfile::TempDir,
}

fn served() -> Served {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("vecmemo.toml"), RULES).unwrap();
    Served { server: Server::start(folder.path()), folder }
}

impl Served {
    fn keep(&self, text: &str, tag: &str) {
        let (status, answer) = self.server.post("/embed", &json!({ "inputs": text, "tags": [tag] }));
        assert_eq!(status, 200, "{answer}");
    }

    fn is_cached(&self, text: &str) -> bool {
        let (_, answer) = self.server.post("/lookup", &json!({ "inputs": [text] }));
        answer["items"][0]["cached"].as_bool().unwrap()
    }

    fn send(&self, headers: Headers<'_>, body: &str) -> (u16, Value) {
        self.server.client().send("/events", headers, body).unwrap()
    }
}

#[test]
fn an_event_invalidates_what_its_rules_say_in_each_form_that_it_can_have() {
    let served = served();
    let cloud = |subject: &str| {
        json!({ "specversion": "1.0", "type": "document.updated", "id": "1", "source": "wiki", "subject": subject,
                "time": "2024-01-01T00:00:00Z", "extension": 1 })
    };
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-type", "document.deleted"),
        ("ce-id", "1"),
        ("ce-source", "wiki"),
        ("ce-subject", "d%C3%A9j%C3%A0"),
        ("content-type", "text/plain"),
    ];
    let own = [("content-type", "application/json")];
    let structured = [("content-type", "application/cloudevents+json; charset=utf-8")];
    let batch = [("content-type", "application/cloudevents-batch+json")];
    let two = json!([cloud("3"), cloud("4")]).to_string();
    let cases: [(Headers<'_>, String, &[&str]); 4] = [
        (&own, json!({ "type": "document.updated", "subject": "1" }).to_string(), &["1"]),
        (&structured, cloud("2").to_string(), &["2"]),
        (&batch, two, &["3", "4"]),
        (&binary, "no JSON".to_owned(), &["déjà"]),
    ];
    for subject in ["1", "2", "3", "4", "déjà", "5"] {
        served.keep(&format!("text {subject}"), &format!("doc:{subject}"));
    }
    for (headers, body, subjects) in cases {
        assert!(subjects.iter().all(|subject| served.is_cached(&format!("text {subject}"))));
        let (status, answer) = served.send(headers, &body);
        assert_eq!(status, 200, "{answer}");
        let count = subjects.len();
        let counts = ["events", "rules", "matched", "removed"].map(|name| answer[name].as_u64().unwrap() as usize);
        assert_eq!(counts, [count; 4], "{answer}");
        assert!(!subjects.iter().any(|subject| served.is_cached(&format!("text {subject}"))));
        // Again: nothing is left to be done.
        assert_eq!(served.send(headers, &body).1["matched"], 0);
    }
    assert!(served.is_cached("text 5"));
    assert!(served.server.log().contains("react"), "{}", served.server.log());
}

#[test]
fn rules_mark_as_stale_name_models_and_leave_other_events_alone() {
    let served = served();
    served.keep("one", "wiki/a");
    served.keep("two", "blog/a");
    let event = |kind: &str, data: Value| served.server.post("/events", &json!({ "type": kind, "data": data })).1;
    let answer = event("source.changed", json!({ "source": "wiki" }));
    assert_eq!((&answer["matched"], &answer["removed"]), (&json!(1), &json!(0)));
    assert!(served.is_cached("one") && served.is_cached("two"));
    assert_eq!(event("nobody.asked", json!({}))["rules"], 0);
    assert_eq!(event("model.replaced", json!({ "model": "of-others" }))["matched"], 0);
    let models: Value = serde_json::from_str(&served.server.get("/v1/models")).unwrap();
    assert_eq!(event("model.replaced", json!({ "model": models["data"][0]["id"] }))["removed"], 2);
}

#[test]
fn an_event_that_cannot_be_handled_is_refused_by_name_and_nothing_is_done() {
    let served = served();
    served.keep("one", "doc:1");
    let own = [("content-type", "application/json")];
    let batch = [("content-type", "application/cloudevents-batch+json")];
    let good = json!({ "specversion": "1.0", "type": "document.updated", "id": "1", "source": "wiki", "subject": "1" });
    let mut bad = good.clone();
    bad["subject"] = Value::Null;
    let cases: [(Headers<'_>, String, &str); 7] = [
        (&batch, json!([good, bad]).to_string(), "{subject}"),
        (&batch, json!([]).to_string(), "1 to 1000"),
        (&batch, json!([good, { "specversion": "0.3", "type": "a", "id": "1", "source": "s" }]).to_string(), "1.0"),
        (&own, json!({ "type": "source.changed", "data": { "source": "*" } }).to_string(), "pattern"),
        (&own, json!({ "type": "document.updated", "subjct": "1" }).to_string(), "subjct"),
        (&own, json!({ "subject": "1" }).to_string(), "type"),
        (&[("ce-specversion", "1.0"), ("ce-id", "1")], String::new(), "ce-type"),
    ];
    for (headers, body, says) in cases {
        let (status, answer) = served.send(headers, &body);
        assert!((400..500).contains(&status) && answer["detail"].as_str().unwrap().contains(says), "{answer}");
    }
    assert!(served.is_cached("one"));
}

#[test]
fn rules_and_policies_are_read_again_while_requests_run() {
    let mut served = served();
    let file = served.folder.path().join("vecmemo.toml");
    let event = json!({ "type": "page.gone", "subject": "1" });
    let reload = |served: &Served| served.server.client().send("/admin/reload", &[], "").unwrap();
    assert_eq!(served.server.post("/events", &event).1["rules"], 0);
    assert_eq!(reload(&served), (200, json!({ "applied": [], "restart_needed": [] })));

    let rules = "[[event]]\non = \"page.*\"\ntags = [\"doc:{subject}\"]\n";
    std::fs::write(&file, format!("sweep_seconds = 7\n{rules}[policies.default]\nttl = 100\n")).unwrap();
    let asking = std::thread::scope(|scope| {
        // Requests that run meanwhile are answered.
        let client = served.server.client();
        let asking = scope.spawn(move || {
            (0..200).all(|number| client.post("/embed", &json!({ "inputs": format!("n {number}") })).unwrap().0 == 200)
        });
        let expected = json!({ "applied": ["event", "policies"], "restart_needed": ["sweep_seconds"] });
        assert_eq!(reload(&served), (200, expected));
        asking.join().unwrap()
    });
    assert!(asking);
    assert_eq!(served.server.post("/events", &event).1["rules"], 1);
    served.keep("kept a while", "doc:2");
    let ttl = |text: &str| served.server.post("/lookup", &json!({ "inputs": [text] })).1["items"][0]["ttl"].as_u64();
    assert!(ttl("kept a while").is_some_and(|seconds| seconds <= 100));

    std::fs::write(&file, "[[event]]\non = \"page.*\"\ntags = [\"doc:{subjekt}\"]\n").unwrap();
    let (status, answer) = reload(&served);
    assert!(status == 422 && answer["detail"].as_str().unwrap().contains("{subjekt}"), "{answer}");
    assert_eq!(served.server.post("/events", &event).1["rules"], 1);

    std::fs::write(&file, "").unwrap();
    let pid = served.server.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    until("the reading", || served.server.post("/events", &event).1["rules"] == 0);
    assert!(served.server.stop().success());
}
