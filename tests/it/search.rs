//! Searching as users do: over the wire and from the command line, also right after the server was killed.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::server::{Server, tiny, until, vecmemo};

fn texts() -> Vec<String> {
    (0..100).map(|number| format!("document {number} says this and that of {}", number * number)).collect()
}

/// The program, computing a text's vector to the same bits whenever it is started.
fn program(folder: &Path) -> Command {
    let mut command = vecmemo(folder);
    command.env("VECMEMO_PRECISION", "f32");
    command
}

/// What a command prints, a value a line.
fn command(folder: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = program(folder).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn everything_that_was_answered_is_found_right_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::run(program(folder.path()));
    let (status, answer) = server.post("/embed?details=true", &json!({ "inputs": texts(), "tags": ["kept"] }));
    assert_eq!(status, 200, "{answer}");
    let search = json!({ "inputs": ["document 7"], "k": 1000, "tags": ["kept"] });
    let before = server.post("/search", &search);
    assert_eq!(before.1["results"][0].as_array().unwrap().len(), 100);
    server.kill();

    let server = Server::run(program(folder.path()));
    assert_eq!(server.post("/search", &search), before);
    for item in answer["items"].as_array().unwrap().iter().step_by(10) {
        let (status, found) = server.post("/search", &json!({ "keys": item["key"], "k": 1 }));
        assert_eq!((status, &found["results"][0][0]["key"]), (200, &item["key"]));
    }
    // The log arrives by a pipe, behind the answer.
    until("the line", || server.log().contains("made the index of a first search entries=100"));
}

/// The graph's thread is killed with everything else: before it builds, while it does, while it saves, and after.
#[test]
fn a_kill_while_the_graph_is_built_or_saved_costs_no_answer() {
    const TEXTS: usize = 1500;
    let folder = tempfile::tempdir().unwrap();
    let program = || {
        let mut command = program(folder.path());
        command.env("VECMEMO_SEARCH_PATH", "graph");
        command
    };
    let texts: Vec<String> = (0..TEXTS).map(|number| format!("note {number} of {}", number * 31 % 977)).collect();
    let search = json!({ "inputs": ["note 7", "of 81"], "k": 10 });
    let exactly = json!({ "inputs": ["note 7", "of 81"], "k": 10, "exact": true });
    let mut server = Server::run(program());
    for texts in texts.chunks(500) {
        let (status, answer) = server.post("/embed", &json!({ "inputs": texts }));
        assert_eq!(status, 200, "{answer}");
    }
    let (_, expected) = server.post("/search", &exactly);
    assert_eq!((&expected["path"], &expected["device"]), (&json!("exact"), &json!("cpu")));
    server.kill();
    for round in 0..8 {
        let mut server = Server::run(program());
        assert_eq!(server.post("/search", &exactly).1, expected, "{round}");
        // So the kill comes a little later each time.
        for _ in 0..round * round * 4 {
            let (status, answer) = server.post("/search", &search);
            assert_eq!((status, answer["results"][1].as_array().unwrap().len()), (200, 10), "{answer}");
        }
        server.kill();
    }
    // In the end it stands, and is taken from its file by the next.
    let mut server = Server::run(program());
    let deadline = Instant::now() + Duration::from_secs(120);
    while server.post("/search", &search).1["path"] != json!("graph") {
        assert!(Instant::now() < deadline, "{}", server.log());
    }
    assert_eq!(server.post("/search", &exactly).1, expected);
    assert_eq!(server.metric("vecmemo_index_graph_entries"), TEXTS as f64);
    // What is being saved is saved.
    assert!(server.stop().success());
    let is_unfinished =
        |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().ends_with(".new");
    for folder in std::fs::read_dir(folder.path().join("data")).unwrap() {
        let folder = folder.unwrap().path();
        if folder.extension().is_some_and(|end| end == "derived") {
            assert!(!std::fs::read_dir(folder).unwrap().any(is_unfinished));
        }
    }
}

#[test]
fn a_repeated_search_is_answered_from_what_was_kept_until_something_changes() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program(folder.path());
    command.env("VECMEMO_SEARCH_CACHE_BYTES", "1000000");
    let server = Server::run(command);
    server.post("/embed", &json!({ "inputs": texts() }));
    let search = json!({ "inputs": ["document 7"], "k": 3 });
    let first = server.post("/search", &search);
    assert_eq!(server.post("/search", &search), first);
    assert_eq!(server.metric("vecmemo_search_repeated_total"), 1.0);
    // The nearest is another one now, and then is gone.
    let (_, answer) = server.post("/embed?details=true", &json!({ "inputs": ["document 7"] }));
    let key = &answer["items"][0]["key"];
    let with = server.post("/search", &search);
    assert_eq!(&with.1["results"][0][0]["key"], key);
    server.post("/invalidate", &json!({ "keys": [key] }));
    assert_eq!(server.post("/search", &search).1["results"], first.1["results"]);
    assert_eq!(server.metric("vecmemo_search_repeated_total"), 1.0);
}

#[test]
fn a_device_answers_what_the_processor_answers() {
    let folder = tempfile::tempdir().unwrap();
    let on = |device: &str| {
        let mut command = program(folder.path());
        command.env("VECMEMO_SEARCH_DEVICE", device);
        Server::run(command)
    };
    let search = json!({ "inputs": ["document 7", "of many"], "k": 20 });
    let mut answers = Vec::new();
    for device in ["cpu", "cpu-as-gpu"] {
        let server = on(device);
        server.post("/embed", &json!({ "inputs": texts() }));
        let all = server.post("/search", &search);
        let some = server.post("/search", &json!({ "vectors": [vec![1.0; 384]], "min_similarity": 0.01 }));
        // What is gone is gone there too, and what comes is there.
        server.post("/invalidate", &json!({ "inputs": [texts()[7]] }));
        let fewer = server.post("/search", &search);
        server.post("/embed", &json!({ "inputs": [texts()[7]] }));
        assert_eq!(server.post("/search", &search).1["results"], all.1["results"]);
        assert_eq!(server.metric("vecmemo_search_device_faults_total"), 0.0);
        // Cursors count what was written before.
        answers.push([all, some, fewer].map(|(status, answer)| (status, answer["results"].clone())));
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn searches_can_be_switched_off() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("vecmemo.toml"), "[search]\nenabled = false\n").unwrap();
    let server = Server::run(program(folder.path()));
    let (status, answer) = server.post("/search", &json!({ "inputs": ["any"] }));
    assert_eq!(status, 403, "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("[search]"), "{answer}");
}

#[test]
fn the_command_finds_the_same_on_a_server_and_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny();
    let mut server = Server::run(program(folder.path()));
    let (status, answer) = server.post("/embed?details=true", &json!({ "inputs": texts(), "payload": { "page": 3 } }));
    assert_eq!(status, 200, "{answer}");
    let url = server.url.clone();
    let online = command(folder.path(), &["search", "--url", &url, "-k", "5", "document 7", "of 81"]);
    assert_eq!(online.len(), 10);
    assert_eq!((&online[9]["query"], &online[9]["payload"]), (&json!(1), &json!({ "page": 3 })));
    let key = answer["items"][4]["key"].as_str().unwrap();
    let by_key = command(folder.path(), &["search", "--url", &url, "--key", key, "-k", "2", "--min-similarity", "-1"]);
    assert_eq!((by_key.len(), &by_key[0]["key"]), (2, &json!(key)));
    server.stop();

    let of_folder = ["--data-dir", "data", "--capacity-entries", "65536", "--model", tiny.to_str().unwrap()];
    let offline = |arguments: &[&str]| command(folder.path(), &[&["search"], arguments, &of_folder].concat());
    assert_eq!(offline(&["-k", "5", "document 7", "of 81"]), online);
    assert_eq!(offline(&["--key", key, "-k", "2"]), by_key);
    assert!(offline(&["document 7", "--tag", "none"]).is_empty());
    assert!(offline(&["document 7", "--older-than", "3600"]).is_empty());
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Against comparing all pairs; beside the running server.
#[test]
fn near_duplicates_are_those_that_hang_together_by_pairs_that_are_near_enough() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::run(program(folder.path()));
    let mut entries: Vec<(String, Vec<f64>)> = Vec::new();
    // The same texts in two namespaces have the same vectors.
    for namespace in ["", "other"] {
        let body = json!({ "inputs": texts()[..60], "namespace": namespace });
        let (status, answer) = server.post("/embed?details=true", &body);
        assert_eq!(status, 200, "{answer}");
        for item in answer["items"].as_array().unwrap() {
            let vector = item["embedding"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap());
            entries.push((item["key"].as_str().unwrap().to_owned(), vector.collect()));
        }
    }
    // Between two similarities that are far enough apart for f16 not to matter.
    let mut all: Vec<f64> =
        (0..60).flat_map(|a| (0..a).map(move |b| (a, b))).map(|(a, b)| cosine(&entries[a].1, &entries[b].1)).collect();
    all.retain(|similarity| (0.85..0.95).contains(similarity));
    all.sort_by(f64::total_cmp);
    let widest = all.windows(2).max_by(|a, b| (a[1] - a[0]).total_cmp(&(b[1] - b[0]))).unwrap();
    assert!(widest[1] - widest[0] > 5e-4, "{widest:?}");
    let least = (widest[0] + widest[1]) / 2.0;
    let mut cluster_of: Vec<usize> = (0..entries.len()).collect();
    for a in 0..entries.len() {
        for b in 0..a {
            if cosine(&entries[a].1, &entries[b].1) > least {
                let (from, to) = (cluster_of[a], cluster_of[b]);
                cluster_of.iter_mut().filter(|cluster| **cluster == from).for_each(|cluster| *cluster = to);
            }
        }
    }
    let mut expected: Vec<BTreeSet<&str>> = (0..entries.len())
        .map(|cluster| {
            let members = (0..entries.len()).filter(|&entry| cluster_of[entry] == cluster);
            members.map(|entry| entries[entry].0.as_str()).collect()
        })
        .filter(|keys: &BTreeSet<&str>| keys.len() > 1)
        .collect();
    expected.sort();

    let found = command(folder.path(), &["dedupe", "--data-dir", "data", "--min-similarity", &least.to_string()]);
    let keys = |line: &Value| line["keys"].as_array().unwrap().clone();
    let sizes: Vec<usize> = found.iter().map(|line| keys(line).len()).collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes[0] > 2, "{sizes:?}");
    assert!(found.iter().all(|line| line["least_similarity"].as_f64().unwrap() >= least));
    let lists: Vec<Vec<Value>> = found.iter().map(keys).collect();
    let mut clusters: Vec<BTreeSet<&str>> =
        lists.iter().map(|keys| keys.iter().map(|key| key.as_str().unwrap()).collect()).collect();
    clusters.sort();
    assert_eq!(clusters, expected);
}
