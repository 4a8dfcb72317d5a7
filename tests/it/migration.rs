//! One model taking over from another while both are served.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use vecmemo::batch::{self, Embedder};
use vecmemo::cache::{Cache, Catalogue, Inputs, Invalidation, Migration, Request};
use vecmemo::domain::FingerprintBuilder;
use vecmemo::engine::{Engine, EngineError, Model, fake};
use vecmemo::store::{Config, Folder};

use crate::models::{configure, embed, json_of, run, serve};
use crate::support::golden::cosine;
use crate::support::server::{Server, until, vecmemo};
use crate::support::{DIMS, vectors_of};

const TEXTS: usize = 5_000;

/// Texts of one request of a client.
const BATCH: usize = 20;

/// What may answer while a request runs.
const A_ONLY: usize = 0;
const SWITCHING: usize = 1;
const B_ONLY: usize = 2;
const SWITCHING_BACK: usize = 3;
const A_AGAIN: usize = 4;

fn all(server: &Server, texts: &[String], body: &Value) -> Vec<Vec<f32>> {
    let rows = texts.chunks(500).flat_map(|texts| {
        let mut body = body.clone();
        body["inputs"] = json!(texts);
        body["normalize"] = json!(true);
        let (status, rows) = server.post("/embed", &body);
        assert_eq!(status, 200, "{rows}");
        serde_json::from_value::<Vec<Vec<f32>>>(rows).unwrap()
    });
    rows.collect()
}

fn spaces(folder: &Path) -> usize {
    let files = std::fs::read_dir(folder.join("data")).unwrap();
    files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|ending| ending == "space")).count()
}

/// What each client finds, by phase.
struct Watch {
    phase: AtomicUsize,
    /// Requests that ran in one phase from beginning to end.
    answered: [AtomicUsize; 5],
    done: AtomicBool,
}

impl Watch {
    /// A new phase, seen by enough requests before this returns.
    fn enter(&self, phase: usize) {
        self.phase.store(phase, SeqCst);
        let before = self.answered[phase].load(SeqCst);
        until("enough requests", || self.answered[phase].load(SeqCst) >= before + 30 || self.done.load(SeqCst));
    }

    /// Asks for texts by chance until all is done. Every answer is wholly one model's, and the right one's.
    fn client(&self, server: &Server, seed: usize, texts: &[String], of_a: &[Vec<f32>], of_b: &[Vec<f32>]) {
        let mut chance = seed * 7919 + 1;
        while !self.done.load(SeqCst) {
            let picked: Vec<usize> = (0..BATCH)
                .map(|_| {
                    chance = (chance * 1_103_515_245 + 12_345) % (1 << 31);
                    (chance >> 8) % TEXTS
                })
                .collect();
            let before = self.phase.load(SeqCst);
            let inputs: Vec<&str> = picked.iter().map(|&text| texts[text].as_str()).collect();
            let rows = embed(server, "mean", &inputs);
            let after = self.phase.load(SeqCst);
            let is_a = cosine(&rows[0], &of_a[picked[0]]) > 0.9999;
            let expected = if is_a { of_a } else { of_b };
            for (row, &text) in rows.iter().zip(&picked) {
                assert!(cosine(row, &expected[text]) > 0.9999, "{}: neither", texts[text]);
            }
            if before == after {
                match before {
                    A_ONLY | A_AGAIN => assert!(is_a, "the other model has answered in phase {before}"),
                    B_ONLY => assert!(!is_a, "the old model has answered after the switch"),
                    _ => {}
                }
                self.answered[before].fetch_add(1, SeqCst);
            }
        }
    }
}

/// Ends the clients whatever becomes of the rest, or nobody would see why it failed.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn a_model_takes_over_five_thousand_texts_and_gives_them_back_while_requests_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(folder.path(), "", "");
    let texts: Vec<String> = (0..TEXTS).map(|n| format!("move {n}")).collect();
    let of_b = all(&server, &texts, &json!({ "model": "cls", "cache": "bypass" }));
    let of_a = all(&server, &texts, &json!({ "model": "mean" }));
    assert!(of_a.iter().zip(&of_b).all(|(a, b)| cosine(a, b) < 0.999), "the models cannot be told apart");
    let (_, with_more) = server.post(
        "/embed",
        &json!({ "inputs": ["with more"], "tags": ["doc:1"], "namespace": "n", "ttl": 5000, "payload": { "n": 1 }, "pinned": true }),
    );
    assert!(with_more.is_array(), "{with_more}");
    std::fs::write(folder.path().join("half.txt"), texts[..TEXTS / 2].join("\n")).unwrap();

    let url = server.url.clone();
    let migrate = |rest: &[&str]| run(vecmemo(folder.path()).args(["migrate", "--url", &url]).args(rest));
    let refused = |rest: &[&str]| {
        let output = vecmemo(folder.path()).args(["migrate", "--url", &url]).args(rest).output().unwrap();
        assert!(!output.status.success(), "{rest:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let watch = Watch { phase: AtomicUsize::new(A_ONLY), answered: Default::default(), done: AtomicBool::new(false) };
    std::thread::scope(|scope| {
        let _end = End(&watch.done);
        for seed in 0..3 {
            let (server, watch, texts, of_a, of_b) = (&server, &watch, &texts, &of_a, &of_b);
            scope.spawn(move || {
                let _end = End(&watch.done);
                watch.client(server, seed, texts, of_a, of_b);
            });
        }
        watch.enter(A_ONLY);
        let given = migrate(&["--from", "mean", "--to", "cls", "--texts", "half.txt"]);
        assert!(given.starts_with("2500 texts: ") && given.contains("0 bad lines, 0 texts failed"), "{given}");
        embed(&server, "mean", &["with more"]);
        let (status, _) = server.post("/embed", &json!({ "inputs": ["with more"], "namespace": "n" }));
        assert_eq!(status, 200);
        assert!(refused(&["--delete-old", "mean"]).contains("is used by the alias"));
        watch.phase.store(SWITCHING, SeqCst);
        let switched = migrate(&["--from", "mean", "--to", "cls", "--switch", "--when-covered", "0.9"]);
        watch.enter(B_ONLY);
        assert_eq!(json_of(&switched)["model"], "cls");

        watch.phase.store(SWITCHING_BACK, SeqCst);
        assert_eq!(json_of(&migrate(&["--from", "mean", "--to", "mean", "--switch"]))["model"], "mean");
        watch.enter(A_AGAIN);
        assert!(!watch.done.load(SeqCst), "a client has ended before its time");
    });
    for phase in [A_ONLY, B_ONLY, A_AGAIN] {
        assert!(watch.answered[phase].load(SeqCst) >= 30, "phase {phase}");
    }

    let progress = json_of(&migrate(&[]));
    let state = &progress["migrations"][0];
    assert_eq!((&state["alias"], &state["from"], &state["to"]), (&json!("mean"), &json!("mean"), &json!("cls")));
    assert_eq!((&state["failed"], &state["failure"]), (&json!(0), &Value::Null), "{state}");
    assert!(state["done"].as_u64().unwrap() >= 2500 && state["covered"].as_f64().unwrap() >= 0.9, "{state}");
    let (_, found) = server.post("/lookup", &json!({ "inputs": ["with more"], "namespace": "n", "model": "cls" }));
    let key = found["items"][0]["key"].as_str().unwrap().to_owned();
    until("the text's migration", || server.client().get(&format!("/entries/{key}")).unwrap().0 == 200);
    let entry = json_of(&server.get(&format!("/entries/{key}")));
    assert_eq!((&entry["model"], &entry["tags"]), (&json!("cls"), &json!(["doc:1"])));
    assert_eq!(
        (&entry["namespace"], &entry["payload"], &entry["pinned"]),
        (&json!("n"), &json!({ "n": 1 }), &json!(true))
    );
    assert!((1..=5000).contains(&entry["ttl"].as_u64().unwrap()), "{entry}");

    // To stay.
    assert!(refused(&["--delete-old", "cls"]).contains("is used by"));
    migrate(&["--from", "mean", "--to", "cls", "--switch"]);
    assert!(refused(&["--delete-old", "mean"]).contains("is used by the migration of"));
    assert!(server.stop().success());
    let server = serve(folder.path(), "", "");
    let url = server.url.clone();
    let migrate = |rest: &[&str]| run(vecmemo(folder.path()).args(["migrate", "--url", &url]).args(rest));
    let first: Vec<&str> = texts[..BATCH].iter().map(String::as_str).collect();
    let are_of_b = |rows: Vec<Vec<f32>>| rows.iter().zip(&of_b).all(|(row, b)| cosine(row, b) > 0.9999);
    assert!(are_of_b(embed(&server, "mean", &first)), "the restart has undone the switch");
    assert!(are_of_b(all(&server, &texts[..BATCH], &json!({}))), "the default alias is another");
    assert_eq!(spaces(folder.path()), 2);
    let deleted = json_of(&migrate(&["--delete-old", "mean"]));
    assert!(deleted["deleted"] == true && deleted["bytes"].as_u64().unwrap() > 500_000, "{deleted}");
    assert_eq!(spaces(folder.path()), 1);
    assert!(are_of_b(embed(&server, "mean", &first)));
    assert!(!server.get("/metrics").contains("vecmemo_store_entries{model=\"mean\"}"));
    let ids = json_of(&server.get("/v1/models"));
    assert_eq!((&ids["data"][0]["id"], &ids["data"][1]["id"]), (&json!("cls"), &json!("mean")));
}

#[test]
fn an_alias_outlives_the_model_that_it_was_named_after_and_one_without_its_model_is_no_other_models() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(folder.path(), "", "");
    let of_cls = embed(&server, "cls", &["a text"]);
    let (status, switched) = server.client().put("/admin/aliases/mean", &json!({ "model": "cls" })).unwrap();
    assert_eq!((status, &switched["model"]), (200, &json!("cls")));
    assert!(server.stop().success());

    let config = configure(folder.path(), "", "");
    let both = std::fs::read_to_string(&config).unwrap();
    let (head, of_mean, of_cls_table) = {
        let mut parts = both.split("[[model]]");
        (parts.next().unwrap().to_owned(), parts.next().unwrap().to_owned(), parts.next().unwrap().to_owned())
    };
    let only = |table: &str| std::fs::write(&config, format!("{head}[[model]]{table}")).unwrap();
    only(&of_cls_table);
    let mut server = Server::with(vecmemo(folder.path()), &["--config", &config]);
    assert_eq!(embed(&server, "mean", &["a text"]), of_cls);
    assert!(server.stop().success());

    only(&of_mean);
    let Err(said) = Server::launch(vecmemo(folder.path()), &["--config", &config]) else { panic!("it starts") };
    assert!(said.contains("\"mean\" was switched to a model (fingerprint ") && said.contains("aliases.json"), "{said}");
}

#[test]
fn what_cannot_be_migrated_switched_or_deleted_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), "", "");
    let client = server.client();
    let reason = |(status, answer): (u16, Value)| (status, answer["detail"].as_str().unwrap().to_owned());
    let start = |from: &str, to: &str| server.post("/admin/migrations", &json!({ "from": from, "to": to }));
    assert_eq!(reason(start("mean", "x")), (404, "there is no model \"x\"; there is mean, cls".to_owned()));
    assert_eq!(reason(start("x", "cls")), (404, "there is no alias \"x\"; there is cls, mean".to_owned()));
    assert_eq!(reason(start("mean", "mean")), (409, "\"mean\" is answered by \"mean\" already".to_owned()));
    let switch = |alias: &str, model: &str| client.put(&format!("/admin/aliases/{alias}"), &json!({ "model": model }));
    assert_eq!(switch("x", "cls").unwrap().0, 404);
    assert_eq!(switch("mean", "x").unwrap().0, 404);
    assert_eq!(server.post("/admin/migrations/mean/texts", &json!({ "inputs": ["a"] })).0, 404);
    assert_eq!(client.delete("/admin/migrations/mean").unwrap().0, 404);
    assert_eq!(client.delete("/admin/models/x").unwrap().0, 404);
    assert_eq!(start("mean", "cls").0, 200);
    assert_eq!(start("mean", "cls").0, 200);
    switch("mean", "cls").unwrap();
    let (status, refused) = reason(start("mean", "mean"));
    assert_eq!((status, refused.as_str()), (409, "a migration of \"mean\" to \"cls\" is running: stop it first"));
    let (status, ended) = client.delete("/admin/migrations/mean").unwrap();
    assert_eq!((status, ended.as_str()), (200, "{\"migrations\":[]}"));
    assert_eq!(json_of(&server.get("/admin/aliases/mean"))["model"], "cls");
}

/// An engine that does what the test says, for a model of its own.
struct Doing<F>(F);

impl<F: FnMut(&[&[u32]]) + Send> Engine for Doing<F> {
    fn embed(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>, EngineError> {
        (self.0)(batch);
        Ok(vectors_of(batch))
    }
}

fn cache(folder: &Folder, name: &str, before: impl FnMut(&[&[u32]]) + Send + 'static) -> Cache {
    let mut model = Model { engine: Box::new(Doing(before)), ..fake::model(DIMS) };
    model.card.name = name.to_owned();
    model.card.version = FingerprintBuilder::new().field("name", name.as_bytes()).finish();
    let config = Config { capacity_entries: 4096, ..Config::default() };
    let store = folder.open(&model.card.version, DIMS, &config).unwrap();
    Cache::new(store, Embedder::start(model, batch::Config::default()))
}

/// Asks the model that answers for each text, one after the other.
async fn ask_for(catalogue: &Catalogue, migration: &Migration, texts: &[String]) {
    for (count, text) in texts.iter().enumerate() {
        let served = catalogue.resolve(None).unwrap();
        let inputs = [text.into()];
        let request = Request::new(Inputs::Texts(&inputs));
        let answer = served.cache.embed(request.clone()).await.unwrap();
        served.migration.unwrap().observe(&request, &answer);
        // In the order of asking, which their threads do not keep by themselves.
        until("the observation", || migration.progress().observed == count as u64 + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_while_it_waits_is_not_brought_back_under_the_other_model() {
    let folder = tempfile::tempdir().unwrap();
    let held = Folder::hold(folder.path()).unwrap();
    let (open, opened) = channel::<()>();
    // Closed for good at the end: everything passes.
    let gated = move |_: &[&[u32]]| _ = opened.recv();
    let catalogue =
        Catalogue::kept_in(held.clone(), vec![cache(&held, "a", |_| {}), cache(&held, "b", gated)]).unwrap();
    let migration = catalogue.migrate("a", "b").unwrap();
    let texts: Vec<String> = (0..200).map(|n| format!("word{n}")).collect();
    ask_for(&catalogue, &migration, &texts).await;
    // What the other model has begun with is among the first.
    let gone = 120..130;
    let of = |cache: &Cache| {
        let inputs: Vec<_> = texts.iter().map(Into::into).collect();
        cache.keys(&Request::new(Inputs::Texts(&inputs))).unwrap()
    };
    let here = catalogue.default().cache;
    let keys = Some(of(&here)[gone.clone()].to_vec());
    assert_eq!(here.invalidate(&Invalidation { keys, ..Invalidation::default() }).unwrap().removed, 10);
    drop(open);
    until("the migration", || migration.progress().done == 190 && migration.progress().queued == 0);
    let there = catalogue.resolve(Some("b")).unwrap().cache;
    for (number, found) in there.lookup(&of(&there)).iter().enumerate() {
        assert_eq!(found.is_some(), !gone.contains(&number), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_do_not_wait_for_the_other_model_and_what_was_asked_last_is_embedded_first() {
    let folder = tempfile::tempdir().unwrap();
    let held = Folder::hold(folder.path()).unwrap();
    let (open, opened) = channel::<()>();
    let computed = Arc::new(Mutex::new(Vec::<Vec<u32>>::new()));
    let seen = Arc::clone(&computed);
    let gated = move |batch: &[&[u32]]| {
        // Closed for good at the end: everything passes.
        let _ = opened.recv();
        seen.lock().unwrap().extend(batch.iter().map(|ids| ids.to_vec()));
    };
    let catalogue =
        Catalogue::kept_in(held.clone(), vec![cache(&held, "a", |_| {}), cache(&held, "b", gated)]).unwrap();
    let migration = catalogue.migrate("a", "b").unwrap();
    let texts: Vec<String> = (0..300).map(|n| format!("word{n}")).collect();
    ask_for(&catalogue, &migration, &texts).await;
    assert_eq!((migration.progress().done, migration.progress().dropped), (0, 0));
    assert!(migration.progress().queued >= 300 - 64, "{:?}", migration.progress());
    drop(open);
    until("the migration", || migration.progress().done == 300);
    let order: Vec<Vec<u32>> = computed.lock().unwrap().clone();
    let ids = |text: &String| {
        let inspected = catalogue.default().cache.inspect(text, "", true).unwrap();
        inspected.iter().map(|token| token.id).collect::<Vec<u32>>()
    };
    let places: Vec<usize> =
        order.iter().map(|computed| texts.iter().position(|text| ids(text) == *computed).unwrap()).collect();
    // What was taken before all were asked comes first; then by batches from the newest on.
    let newest = places.iter().position(|&place| place == 299).unwrap();
    assert!(newest <= 64 + 64, "{places:?}");
    let batches: Vec<usize> =
        places[newest - newest % 64..].chunks(64).filter_map(|batch| batch.iter().max().copied()).collect();
    assert!(batches.is_sorted_by(|earlier, later| earlier > later), "{batches:?}");
    assert_eq!(catalogue.default().cache.stats().store.entries, 300);
}
