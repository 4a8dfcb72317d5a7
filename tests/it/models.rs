//! Several models in one process, as their users see them: over HTTP and on the command line.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::golden::{cosine, data, npy_rows, texts};
use crate::support::server::{Server, tiny, until, vecmemo};
use crate::support::upstream::{Fake, Reply};

/// The size of the weights of tiny-mean, and of tiny-cls.
const WEIGHTS_BYTES: u64 = 162_096;

/// A configuration of the models `mean` (the default) and `cls`, with more at its head and in the table of `cls`.
pub(crate) fn configure(folder: &Path, head: &str, of_cls: &str) -> String {
    let (mean, cls) = (tiny(), data("models/tiny-cls"));
    let file = format!(
        "data_dir = \"data\"\ncapacity_entries = 16384\n{head}\n\
         [[model]]\nname = \"mean\"\nsource = {mean:?}\n\
         [[model]]\nname = \"cls\"\nsource = {cls:?}\n{of_cls}\n"
    );
    let path = folder.join("models.toml");
    std::fs::write(&path, file).unwrap();
    path.to_str().unwrap().to_owned()
}

pub(crate) fn serve(folder: &Path, head: &str, of_cls: &str) -> Server {
    let config = configure(folder, head, of_cls);
    Server::with(vecmemo(folder), &["--config", &config])
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn embed(server: &Server, model: &str, inputs: &[&str]) -> Vec<Vec<f32>> {
    let (status, body) = server.post("/embed", &json!({ "inputs": inputs, "model": model, "normalize": true }));
    assert_eq!(status, 200, "{body}");
    serde_json::from_value(body).unwrap()
}

fn of_model(name: &str, model: &str) -> String {
    format!("{name}{{model=\"{model}\"}}")
}

fn is_loaded(server: &Server, model: &str) -> bool {
    server.metric(&of_model("vecmemo_model_loaded", model)) == 1.0
}

pub(crate) fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn two_models_answer_in_one_process_each_with_its_own_vectors_whoever_asks_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), "", "");
    let fixtures = texts(&data("models/texts.jsonl"));
    std::thread::scope(|scope| {
        for round in 0..8 {
            let (server, fixtures) = (&server, &fixtures);
            scope.spawn(move || {
                let model = ["mean", "cls"][round % 2];
                let golden = npy_rows(&data(&format!("models/tiny-{model}/golden.npy")));
                let inputs: Vec<&str> = fixtures.iter().map(|fixture| fixture.text.as_str()).collect();
                for (row, expected) in embed(server, model, &inputs).iter().zip(&golden) {
                    assert!(cosine(row, expected) > 0.9999, "{model}");
                }
            });
        }
    });
    let stats = json_of(&server.get("/stats"));
    for model in ["mean", "cls"] {
        let of_it = &stats["models"][model];
        let entries = of_it["store"]["entries"].as_u64().unwrap();
        assert_eq!((entries, &of_it["model"]), (fixtures.len() as u64, &json!(model)), "{of_it}");
        assert_eq!(json_of(&server.get(&format!("/stats?model={model}")))["store"]["entries"], entries);
    }
    assert_eq!(stats["model"], "mean");
}

#[test]
fn a_model_is_named_by_alias_source_or_fingerprint_in_the_body_or_the_address_and_the_default_answers_else() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), "", "default = true");
    let info = |query: &str| json_of(&server.get(&format!("/info{query}")));
    let (mean, cls) = (info("?model=mean"), info(""));
    assert_eq!((&mean["served_model_name"], &cls["served_model_name"]), (&json!("mean"), &json!("cls")));
    let names: Vec<&Value> = cls["models"].as_array().unwrap().iter().map(|model| &model["name"]).collect();
    assert_eq!(names, [&json!("cls"), &json!("mean")]);
    let ids = json_of(&server.get("/v1/models"));
    assert_eq!(ids["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect::<Vec<_>>(), names);

    let fingerprint = |model: Option<&Value>, query: &str| {
        let mut body = json!({ "inputs": ["a text"] });
        if let Some(model) = model {
            body["model"] = model.clone();
        }
        let (status, body) = server.post(&format!("/embed?details=true{query}"), &body);
        assert_eq!(status, 200, "{body}");
        body["fingerprint"].clone()
    };
    for named in [json!("mean"), mean["model_id"].clone(), mean["fingerprint"].clone()] {
        assert_eq!(fingerprint(Some(&named), ""), mean["fingerprint"], "{named}");
    }
    assert_eq!(fingerprint(None, "&model=mean"), mean["fingerprint"]);
    assert_eq!(fingerprint(Some(&json!("cls")), "&model=mean"), cls["fingerprint"]);
    assert_eq!(fingerprint(None, ""), cls["fingerprint"]);
    let (_, answer) = server.post("/v1/embeddings", &json!({ "input": "a text", "model": "mean" }));
    assert_eq!(answer["model"], "mean");
}

#[test]
fn two_models_and_an_endpoint_answer_in_one_process_whoever_asks_at_once() {
    const DIMS: usize = 8;
    let vector = |text: &str| (0..DIMS).map(|dim| ((text.len() * 7 + dim * 3) % 11) as f32 - 4.5).collect::<Vec<f32>>();
    let endpoint = Fake::start(move |received| Reply::vectors(received, vector));
    let folder = tempfile::tempdir().unwrap();
    let manifest = format!(
        "name = \"remote\"\nsource = \"somebody/remote\"\ndims = {DIMS}\n[upstream]\ndialect = \"openai\"\n\
         base_url = \"http://{}/v1\"\nmodel = \"theirs\"\nversion = \"1\"\nmax_characters = 100000\n",
        endpoint.address
    );
    std::fs::create_dir(folder.path().join("manifests")).unwrap();
    std::fs::write(folder.path().join("manifests/remote.toml"), manifest).unwrap();
    let remote = "[[model]]\nname = \"remote\"\nsource = \"remote\"";
    let server = serve(folder.path(), "models_dir = \"manifests\"", remote);

    let fixtures = texts(&data("models/texts.jsonl"));
    let inputs: Vec<&str> = fixtures.iter().map(|fixture| fixture.text.as_str()).collect();
    std::thread::scope(|scope| {
        for round in 0..6 {
            let (server, inputs) = (&server, &inputs);
            scope.spawn(move || {
                let model = ["mean", "cls", "remote"][round % 3];
                let expected: Vec<Vec<f32>> = match model {
                    "remote" => inputs.iter().map(|text| vector(text)).collect(),
                    of_files => npy_rows(&data(&format!("models/tiny-{of_files}/golden.npy"))),
                };
                for (row, expected) in embed(server, model, inputs).iter().zip(&expected) {
                    assert!(cosine(row, expected) > 0.9999, "{model}");
                }
            });
        }
    });
    let stats = json_of(&server.get("/stats"));
    for model in ["mean", "cls", "remote"] {
        assert_eq!(stats["models"][model]["store"]["entries"], json!(inputs.len()), "{model}");
    }
    let asked: usize = endpoint.received().iter().map(|received| received.texts().len()).sum();
    assert_eq!(asked, inputs.len(), "each text is paid for once");
    let (status, refused) = server.post("/embed", &json!({ "inputs": "a", "model": "gone" }));
    assert_eq!(
        (status, &refused["error"]),
        (404, &json!("the model \"gone\" is not served here; \"cls\", \"mean\", \"remote\" are"))
    );
}

#[test]
fn an_unknown_model_is_refused_in_each_dialect_with_the_names_of_those_that_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), "", "");
    let message = "the model \"gone\" is not served here; \"cls\", \"mean\" are";
    let (status, tei) = server.post("/embed", &json!({ "inputs": "a", "model": "gone" }));
    assert_eq!((status, &tei["error"], &tei["error_type"]), (404, &json!(message), &json!("Validation")));
    let (status, openai) = server.post("/v1/embeddings", &json!({ "input": "a", "model": "gone" }));
    assert_eq!((status, &openai["error"]["message"]), (404, &json!(message)));
    assert_eq!((&openai["error"]["code"], &openai["error"]["param"]), (&json!("model_not_found"), &json!("model")));
    for (path, body) in [
        ("/lookup", json!({ "inputs": ["a"], "model": "gone" })),
        ("/invalidate", json!({ "tags": ["a"], "model": "gone" })),
    ] {
        let (status, own) = server.post(path, &body);
        assert_eq!((status, &own["detail"]), (404, &json!(message)), "{path}");
    }
    for path in ["/stats?model=gone", "/info?model=gone"] {
        assert_eq!(server.client().get(path).unwrap().0, 404, "{path}");
    }
    assert_eq!(server.post("/tokenize", &json!({ "inputs": "a", "model": "gone" })).0, 404);
}

#[test]
fn weights_come_at_the_first_miss_and_go_when_idle_and_hits_need_none() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), "", "idle_seconds = 1");
    assert!(is_loaded(&server, "mean") && !is_loaded(&server, "cls"));
    let first = embed(&server, "cls", &["a text", "another"]);
    until("the unloading", || !is_loaded(&server, "cls"));
    assert_eq!(embed(&server, "cls", &["a text", "another"]), first);
    assert!(!is_loaded(&server, "cls"), "a hit has loaded the weights");
    let loads = of_model("vecmemo_model_loads_total", "cls");
    assert_eq!(server.metric(&loads), 1.0);
    let (status, again) = server.post(
        "/embed",
        &json!({ "inputs": ["a text", "another"], "model": "cls", "cache": "bypass", "normalize": true }),
    );
    assert_eq!((status, serde_json::from_value::<Vec<Vec<f32>>>(again).unwrap()), (200, first));
    assert_eq!(server.metric(&loads), 2.0);
    assert!(is_loaded(&server, "mean"));
    for line in ["a model's weights were loaded", "a model's weights were dropped", "took_ms="] {
        assert!(server.log().contains(line), "{}", server.log());
    }
}

#[test]
fn models_that_do_not_fit_in_memory_together_take_turns_and_every_request_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let bound = format!("models_memory_bytes_max = {}", 2 * WEIGHTS_BYTES - 1);
    let server = serve(folder.path(), &bound, "");
    std::thread::scope(|scope| {
        for client in 0..4 {
            let server = &server;
            scope.spawn(move || {
                for text in 0..10 {
                    embed(server, ["mean", "cls"][(client + text) % 2], &[&format!("text {text} of {client}")]);
                }
            });
        }
    });
    assert!(server.metric(&of_model("vecmemo_model_unloads_total", "mean")) >= 1.0);
    assert_eq!([is_loaded(&server, "mean"), is_loaded(&server, "cls")].iter().filter(|loaded| **loaded).count(), 1);
    drop(server);

    let config = configure(folder.path(), &format!("models_memory_bytes_max = {}", WEIGHTS_BYTES - 1), "");
    let Err(said) = Server::launch(vecmemo(folder.path()), &["--config", &config]) else { panic!("it starts") };
    assert!(said.contains("the weights of mean are 162096 bytes, models_memory_bytes_max allows 162095"), "{said}");
}

#[test]
fn a_key_is_found_and_an_invalidation_works_whichever_model_the_entry_is_of() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), "", "");
    let key_under = |model: &str| {
        let body = json!({ "inputs": ["a text"], "model": model, "tags": ["doc:1"] });
        let (status, body) = server.post("/embed?details=true", &body);
        assert_eq!(status, 200, "{body}");
        body["items"][0]["key"].as_str().unwrap().to_owned()
    };
    let keys = [key_under("mean"), key_under("cls")];
    for (key, model) in keys.iter().zip(["mean", "cls"]) {
        assert_eq!(json_of(&server.get(&format!("/entries/{key}")))["model"], model);
    }
    assert_eq!(server.client().get(&format!("/entries/{}?model=mean", keys[1])).unwrap().0, 404);
    let cached = |model: Value| {
        let (_, found) = server.post("/lookup", &json!({ "keys": keys, "model": model }));
        found["items"].as_array().unwrap().iter().map(|item| item["cached"] == true).collect::<Vec<_>>()
    };
    assert_eq!((cached(Value::Null), cached(json!("cls"))), (vec![true, true], vec![false, true]));
    let (_, counted) = server.post("/invalidate", &json!({ "tags": ["doc:1"], "dry_run": true, "model": "mean" }));
    assert_eq!(counted["matched"], 1);
    let (_, removed) = server.post("/invalidate", &json!({ "tags": ["doc:1"] }));
    assert_eq!((&removed["matched"], &removed["removed"]), (&json!(2), &json!(2)));
    assert_eq!(cached(Value::Null), [false, false]);
}

#[test]
fn metrics_of_several_models_have_a_label_and_each_family_stands_together() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve(folder.path(), "", "");
    let metrics = server.get("/metrics");
    for name in [
        "vecmemo_items_total{model=\"mean\",status=\"hit\"}",
        "vecmemo_items_total{model=\"cls\",status=\"hit\"}",
        "vecmemo_store_entries{model=\"cls\"}",
        "vecmemo_model_weights_bytes{model=\"cls\"} 162096",
        "vecmemo_http_connections ",
    ] {
        assert!(metrics.contains(name), "{name} is not in {metrics}");
    }
    let mut helped: Vec<&str> = metrics.lines().filter(|line| line.starts_with("# HELP")).collect();
    let count = helped.len();
    helped.sort_unstable();
    helped.dedup();
    assert_eq!((helped.len(), metrics.matches("# EOF").count()), (count, 1));
    assert!(metrics.ends_with("# EOF\n"));
    let ready = json!({ "status": "ready", "store": "ok", "cache": "on", "model": "ok" });
    assert_eq!(json_of(&server.get("/ready")), ready);
}

#[test]
fn a_folder_that_one_model_filled_is_opened_as_it_is_beside_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let mut alone = Server::with(vecmemo(folder.path()), &["--data-dir", "data", "--capacity-entries", "4096"]);
    let (_, before) = alone.post("/embed", &json!({ "inputs": ["a text"], "tags": ["t"], "namespace": "n" }));
    assert!(alone.stop().success());
    let mut both = serve(folder.path(), "", "");
    let asked = json!({ "inputs": ["a text"], "namespace": "n", "cache": "only" });
    assert_eq!(both.post("/embed", &asked), (200, before.clone()));
    embed(&both, "cls", &["a text"]);
    assert!(both.stop().success());
    let alone = Server::with(vecmemo(folder.path()), &["--data-dir", "data", "--capacity-entries", "4096"]);
    assert_eq!(alone.post("/embed", &asked), (200, before));
    assert_eq!(alone.post("/invalidate", &json!({ "tags": ["t"], "dry_run": true })).1["matched"], 1);
    assert!(!alone.get("/metrics").contains("model=\""));
}

#[test]
fn commands_choose_one_of_the_models_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = configure(folder.path(), "", "capacity_entries = 1234");
    std::fs::write(folder.path().join("texts.txt"), "one\ntwo\n").unwrap();
    let command = |name: &str, rest: &[&str]| run(vecmemo(folder.path()).args([name, "--config", &config]).args(rest));
    let stats = |rest: &[&str]| json_of(&command("stats", rest));
    assert!(command("warm", &["texts.txt", "--model", "cls"]).contains("2 computed"));
    let of_cls = stats(&["--model", "cls"]);
    assert_eq!((&of_cls["store"]["entries"], &of_cls["store"]["capacity_entries"]), (&json!(2), &json!(1234)));
    assert_eq!((&of_cls["model"], &of_cls["weights"]["loaded"]), (&json!("cls"), &json!(false)));
    let of_mean = stats(&[]);
    assert_eq!((&of_mean["store"]["entries"], &of_mean["model"]), (&json!(0), &json!("mean")));
    assert!(command("lookup", &["one", "--model", "cls"]).contains("\"cached\":true"));
    assert!(command("export", &["out", "--model", "cls"]).contains("2 entries"));

    let mut server = Server::with(vecmemo(folder.path()), &["--config", &config]);
    let url = ["--url", server.url.as_str()];
    let ask = |name: &str, rest: &[&str]| run(vecmemo(folder.path()).arg(name).args(url).args(rest));
    assert!(ask("warm", &["texts.txt", "--model", "cls"]).contains("2 were cached"));
    assert!(ask("warm", &["texts.txt"]).contains("2 computed"));
    assert_eq!(json_of(&ask("stats", &["--model", "cls"]))["model"], "cls");
    assert!(ask("lookup", &["one", "--model", "cls"]).contains("\"cached\":true"));
    assert_eq!(json_of(&ask("invalidate", &["--all", "--model", "cls"]))["removed"], 2);
    assert_eq!(json_of(&ask("stats", &[]))["models"]["mean"]["store"]["entries"], 2);
    assert!(server.stop().success());

    let verified = command("verify", &["--json"]);
    assert_eq!(json_of(&verified)["spaces"].as_array().unwrap().len(), 2);
    let printed = command("config", &[]);
    let again = folder.path().join("again.toml");
    std::fs::write(&again, &printed).unwrap();
    let reprinted = run(vecmemo(folder.path()).args(["config", "--config", again.to_str().unwrap()]));
    let tables = |text: &str| text[text.find("\n[[model]]").unwrap()..].to_owned();
    assert_eq!(tables(&reprinted), tables(&printed));
}

#[test]
fn one_model_under_two_names_and_one_name_for_two_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = |tables: &str| {
        let path = folder.path().join("refused.toml");
        std::fs::write(&path, tables).unwrap();
        let Err(said) = Server::launch(vecmemo(folder.path()), &["--config", path.to_str().unwrap()]) else {
            panic!("it starts")
        };
        said
    };
    let table = |name: &str, source: &str| {
        format!("[[model]]\nname = {name:?}\nsource = {:?}\n", data(&format!("models/{source}")))
    };
    let same = refusal(&(table("a", "tiny-mean") + &table("b", "tiny-mean")));
    assert!(same.contains("\"a\" and \"b\" are the same model (fingerprint "), "{same}");
    let unnamed = format!("[[model]]\nsource = {:?}\n", data("models/tiny-cls"));
    let named = refusal(&(unnamed + &table("tiny-cls", "tiny-mean")));
    assert!(named.contains("two models are named \"tiny-cls\""), "{named}");
}
