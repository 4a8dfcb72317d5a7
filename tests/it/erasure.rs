//! Erasure that can be shown: what is looked for is found in the files before, and in none of them after.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use half::f16;
use serde_json::{Value, json};

use crate::live;
use crate::support::server::{Server, tiny, until, vecmemo};

/// Entries beside those that are erased: enough for a graph.
const OTHERS: usize = 1200;
const TEXT: &str = "Zarquon Q. Vogon lives at 42 Betelgeuse Lane";
const SPELLING: &str = "ZARQUON q. vogon   LIVES at 42 betelgeuse lane";
const TAG: &str = "person:zarquon-vogon-0815";
const PAYLOAD: &str = "zarquon@betelgeuse.example";
const REASON: &str = "request 7 of the data protection officer";

/// What must not be anywhere, by what it is.
type Traces = BTreeMap<&'static str, Vec<u8>>;

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // Folders and files may go while they are listed.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == wanted[0]) {
        rest = &rest[at..];
        if rest.starts_with(wanted) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// The traces that are in files, each with the names of those.
fn found(folder: &Path, traces: &Traces) -> BTreeMap<&'static str, Vec<String>> {
    let mut found: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for path in files(folder) {
        let Ok(bytes) = std::fs::read(&path) else { continue };
        for (what, _) in traces.iter().filter(|(_, trace)| contains(&bytes, trace)) {
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            found.entry(what).or_default().push(name);
        }
    }
    found
}

fn row_of(item: &Value) -> Vec<f16> {
    item["embedding"].as_array().unwrap().iter().map(|value| f16::from_f64(value.as_f64().unwrap())).collect()
}

/// A row's codes, as the index makes them.
fn codes_of(row: &[f16]) -> Vec<u8> {
    let largest = row.iter().map(|value| value.to_f32().abs()).fold(0.0, f32::max);
    let inverse = 1.0 / (largest / 127.0);
    let code = |value: &f16| (value.to_f32() * inverse).clamp(-127.0, 127.0).round_ties_even() as i8;
    row.iter().map(|value| code(value).cast_unsigned()).collect()
}

fn key_bytes(key: &str) -> Vec<u8> {
    (0..32).map(|at| u8::from_str_radix(&key[2 * at..][..2], 16).unwrap()).collect()
}

/// The bytes of a key's record after the key: checksum, times, norm.
fn record_of(data: &Path, key: &[u8]) -> Vec<u8> {
    let space = files(data).into_iter().find(|path| path.extension().is_some_and(|end| end == "space")).unwrap();
    let bytes = std::fs::read(space).unwrap();
    bytes[4096..].chunks(64).find(|record| record.starts_with(key)).unwrap()[32..].to_vec()
}

fn traces(data: &Path, item: &Value) -> Traces {
    let (row, key) = (row_of(item), item["key"].as_str().unwrap());
    let bytes = key_bytes(key);
    Traces::from([
        ("row", row.iter().flat_map(|value| value.to_le_bytes()).collect()),
        ("codes", codes_of(&row)),
        ("record", record_of(data, &bytes)),
        ("key", bytes),
        ("key in hexadecimal", key.as_bytes().to_vec()),
        ("tag", TAG.as_bytes().to_vec()),
        ("payload", PAYLOAD.as_bytes().to_vec()),
        ("text", TEXT.as_bytes().to_vec()),
    ])
}

fn program(folder: &Path) -> Command {
    let mut command = vecmemo(folder);
    command.env("VECMEMO_SEARCH_PATH", "graph").env("VECMEMO_SEARCH_CACHE_BYTES", "1000000");
    command
}

fn others() -> Vec<String> {
    (0..OTHERS).map(|number| format!("note {number} of {}", number * 31 % 977)).collect()
}

fn post(server: &Server, path: &str, body: &Value) -> Value {
    let (status, answer) = server.post(path, body);
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Stores the person's entries: two spellings, and the one of them again over itself, so that its row lies in a free slot as well.
fn store_person(server: &Server) -> Value {
    let body = json!({ "inputs": [TEXT], "tags": [TAG], "payload": { "mail": PAYLOAD } });
    let answer = post(server, "/embed?details=true", &body);
    let spelling = post(server, "/embed?details=true", &json!({ "inputs": [SPELLING], "tags": [TAG] }));
    assert_eq!(spelling["items"][0]["status"], json!("token_hit"));
    let mut again = body;
    again["cache"] = json!("refresh");
    post(server, "/embed", &again);
    answer["items"][0].clone()
}

fn store_others(server: &Server) {
    for texts in others().chunks(400) {
        post(server, "/embed", &json!({ "inputs": texts, "tags": ["note"], "payload": { "of": "a note" } }));
    }
}

/// Whether the others are all cached, and still have what they were stored with.
fn others_are_there(server: &Server) -> bool {
    let answer = post(server, "/lookup", &json!({ "inputs": others() }));
    let items = answer["items"].as_array().unwrap();
    let facts = parsed(&server.get(&format!("/entries/{}", items[7]["key"].as_str().unwrap())));
    assert_eq!((&facts["tags"], &facts["payload"]), (&json!(["note"]), &json!({ "of": "a note" })));
    items.iter().all(|item| item["cached"] == json!(true))
}

/// Waits until searches go through a graph, which is on disk then.
fn until_graph(server: &Server, data: &Path) {
    let mut asked = 0;
    until("the graph", || {
        // Another question each time: an answer that is kept says how it was found then.
        asked += 1;
        let search = json!({ "inputs": [format!("note {asked}")], "k": 3 });
        let is_graph = post(server, "/search", &search)["path"] == json!("graph");
        is_graph && files(data).iter().any(|path| path.extension().is_some_and(|end| end == "graph"))
    });
}

#[test]
fn nothing_of_an_erased_entry_is_in_any_file_and_all_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut server = Server::run(program(folder.path()));
    store_others(&server);
    let item = store_person(&server);
    until_graph(&server, &data);
    let traces = traces(&data, &item);
    let near = json!({ "inputs": [TEXT], "k": 2 });
    let keys_of = |answer: &Value| -> Vec<Value> {
        answer["results"][0].as_array().unwrap().iter().map(|hit| hit["key"].clone()).collect()
    };
    assert!(keys_of(&post(&server, "/search", &near)).contains(&item["key"]));
    let before = found(&data, &traces);
    for (what, file) in [
        ("row", ".space"),
        ("record", ".space"),
        ("key", ".space"),
        ("key", "side.redb"),
        ("tag", "side.redb"),
        ("payload", "side.redb"),
        ("codes", ".graph"),
    ] {
        let files = before.get(what).unwrap_or_else(|| panic!("{what} is not found: {before:?}"));
        assert!(files.iter().any(|name| name.ends_with(file)), "{what} is not in {file}: {files:?}");
    }

    let receipt = post(&server, "/erase", &json!({ "tags": [TAG], "by": "officer", "reason": REASON }));
    assert_eq!(found(&data, &traces), BTreeMap::new(), "{receipt}");
    assert!(others_are_there(&server));
    let erased = &receipt["erased"];
    assert_eq!((&erased["entries"], &erased["token_keys"]), (&json!(2), &json!(1)), "{receipt}");
    assert!(erased["attachments"].as_u64().unwrap() >= 2, "a list of tags and a payload: {receipt}");
    // Both rows, and that of the one that was replaced.
    assert_eq!(erased["rows"], json!(3), "{receipt}");
    assert!(erased["graph_segments"].as_u64().unwrap() >= 1, "{receipt}");
    assert_eq!((&receipt["keys"]["count"], &receipt["synced"]), (&json!(2), &json!(true)));
    assert_eq!((&receipt["by"], &receipt["reason"]), (&json!("officer"), &json!(REASON)));
    assert_eq!((&receipt["pending"], &receipt["not_erased"]), (&json!([]), &json!([])));
    assert!(!keys_of(&post(&server, "/search", &near)).contains(&item["key"]));
    let id = receipt["id"].as_str().unwrap().to_owned();
    let checked = parsed(&server.get(&format!("/erasures/{id}")));
    assert_eq!((&checked["receipt"], &checked["intact"], &checked["present"]), (&receipt, &json!(true), &json!(0)));
    assert_eq!(server.metric("vecmemo_erasures_total"), 1.0);
    assert_eq!(server.metric("vecmemo_erased_entries_total"), 2.0);
    assert_eq!(server.metric("vecmemo_erasures_pending"), 0.0);
    assert!(!server.log().contains(TAG) && !server.log().contains(TEXT), "{}", server.log());

    // Again: a receipt of nothing. The graph is built again, of what is there.
    let again = post(&server, "/erase", &json!({ "tags": [TAG] }));
    assert_eq!((&again["erased"]["entries"], &again["erased"]["rows"]), (&json!(0), &json!(0)), "{again}");
    assert_eq!(again["previous"], receipt["digest"]);
    until_graph(&server, &data);
    assert_eq!(found(&data, &traces), BTreeMap::new());

    // Beside the server, by id and by file; and after a restart.
    let verify = |what: &str| {
        let mut command = vecmemo(folder.path());
        command.args(["erase", "--data-dir", "data", "--verify", what]);
        command.output().unwrap()
    };
    assert!(verify(&id).status.success(), "{:?}", verify(&id));
    assert!(server.stop().success());
    assert_eq!(found(&data, &traces), BTreeMap::new());
    drop(server);
    let server = Server::run(program(folder.path()));
    assert!(others_are_there(&server));
    std::fs::write(folder.path().join("receipt.json"), receipt.to_string()).unwrap();
    assert!(verify("receipt.json").status.success(), "{:?}", verify("receipt.json"));
    let mut changed = receipt.clone();
    changed["erased"]["entries"] = json!(3);
    std::fs::write(folder.path().join("receipt.json"), changed.to_string()).unwrap();
    assert_eq!(verify("receipt.json").status.code(), Some(1), "a receipt that was changed");
    // Asked for again it is there again, and the check says so.
    post(&server, "/embed", &json!({ "inputs": [TEXT] }));
    assert_eq!(verify(&id).status.code(), Some(1), "{:?}", verify(&id));
    assert_eq!(verify("no-such-receipt").status.code(), Some(2));
}

#[test]
fn an_erasure_that_makes_no_sense_is_refused_and_erases_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::run(vecmemo(folder.path()));
    let key = store_person(&server)["key"].clone();
    for (body, status) in [
        (json!({}), 422),
        (json!({ "tags": [TAG], "keys": [key] }), 422),
        (json!({ "tags": [TAG], "namespace": "n" }), 422),
        (json!({ "tags": [] }), 422),
        (json!({ "keys": ["zz"] }), 422),
        (json!({ "tags": [TAG], "reason": "x".repeat(201) }), 422),
        (json!({ "tags": [TAG], "model": "another" }), 404),
        (json!({ "tags": [TAG], "dry_run": true }), 422),
    ] {
        let (found, answer) = server.post("/erase", &body);
        assert_eq!(found, status, "{body}: {answer}");
    }
    assert_eq!(server.client().get("/erasures/none").unwrap().0, 404);
    assert_eq!(server.client().get("/erasures/a%2Fb").unwrap().0, 400);
    let answer = post(&server, "/lookup", &json!({ "inputs": [TEXT] }));
    assert_eq!(answer["items"][0]["cached"], json!(true));
    assert_eq!(server.metric("vecmemo_erasures_total"), 0.0);
}

#[test]
fn an_erasure_that_was_killed_in_the_middle_is_completed_by_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut server = Server::run(program(folder.path()));
    store_others(&server);
    let is_begun = || files(&data).iter().any(|path| path.extension().is_some_and(|end| end == "intent"));
    // Until a kill has come in the middle, which is as soon as the erasure is written down.
    for round in 0..40 {
        let item = store_person(&server);
        until_graph(&server, &data);
        let traces = traces(&data, &item);
        assert!(found(&data, &traces).contains_key("row"));
        let client = server.client();
        let asking = std::thread::spawn(move || client.post("/erase", &json!({ "tags": [TAG] })).is_ok());
        while !is_begun() && !asking.is_finished() {
            std::hint::spin_loop();
        }
        server.kill();
        let was_answered = asking.join().unwrap();
        let (in_the_middle, left) = (is_begun(), found(&data, &traces));
        server = Server::run(program(folder.path()));
        assert!(others_are_there(&server));
        if !in_the_middle {
            assert!(was_answered || !left.is_empty(), "one that was not written down has done nothing");
            post(&server, "/erase", &json!({ "tags": [TAG] }));
            continue;
        }
        assert_eq!(found(&data, &traces), BTreeMap::new(), "round {round}: {left:?} were left by the kill");
        assert!(!is_begun());
        let receipts = std::fs::read_to_string(data.join("erasures/receipts.jsonl")).unwrap();
        let last = parsed(receipts.lines().last().unwrap());
        assert_eq!((&last["resumed"], &last["keys"]["count"]), (&json!(true), &json!(2)), "{last}");
        // Something was still to be erased, so it was the start that has done it.
        if left.contains_key("tag") {
            return;
        }
    }
    panic!("no kill came in the middle of an erasure");
}

#[test]
fn an_erasure_without_a_server_takes_other_spellings_and_an_old_export_brings_nothing_back() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut server = Server::run(vecmemo(folder.path()));
    let item = store_person(&server);
    post(&server, "/embed", &json!({ "inputs": ["a note"], "tags": ["note"] }));
    assert!(server.stop().success());
    drop(server);
    let run = |arguments: &[&str]| {
        let mut command = vecmemo(folder.path());
        command.args(arguments).args(["--data-dir", "data", "--capacity-entries", "65536", "--model"]).arg(tiny());
        let output = command.output().unwrap();
        let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert!(output.status.success(), "{arguments:?}: {said:?}");
        said
    };
    run(&["export", "vectors"]);
    let traces = traces(&data, &item);
    std::fs::write(folder.path().join("text"), format!("{TEXT}\n")).unwrap();
    let [receipt, _] = run(&["erase", "--text", "text", "--copies"]);
    let receipt = parsed(&receipt);
    assert_eq!(receipt["erased"]["entries"], json!(2), "the other spelling too: {receipt}");
    assert_eq!(found(&data, &traces), BTreeMap::new());
    let export = &receipt["exports"][0];
    assert!(export["path"].as_str().unwrap().ends_with("vectors"), "{receipt}");
    assert_eq!((&export["entries"], &export["holds"], &export["there"]), (&json!(3), &json!(2), &json!(true)));
    let [said, warned] = run(&["import", "vectors"]);
    assert!(said.starts_with("0 entries imported, 1 were cached already"), "{said}");
    assert!(warned.contains("2 entries were left out: they were erased"), "{warned}");
    assert_eq!(found(&data, &traces), BTreeMap::new());
    let server = Server::run(vecmemo(folder.path()));
    let answer = post(&server, "/lookup", &json!({ "inputs": [TEXT, SPELLING, "a note"] }));
    let cached: Vec<&Value> = answer["items"].as_array().unwrap().iter().map(|item| &item["cached"]).collect();
    assert_eq!(cached, [false, false, true]);
}

fn machine(folder: &Path, redis: &live::Server) -> Server {
    let mut command = vecmemo(folder);
    command.env("VECMEMO_REMOTE_URL", redis.url()).env("VECMEMO_REMOTE_DEADLINE_MS", "500");
    let server = Server::run(command);
    until("the tier", || server.metric("vecmemo_remote_ready") == 1.0);
    server
}

/// How many records of the tier have the tag.
fn records(redis: &live::Server) -> usize {
    let count = "local n = 0 for _, k in ipairs(redis.call('KEYS', '*')) do \
        if redis.call('TYPE', k)['ok'] == 'string' and string.find(redis.call('GET', k), ARGV[1], 1, true) then n = n + 1 end \
        end return tostring(n)";
    redis.text(&["EVAL", count, "0", TAG]).trim_matches(|found: char| !found.is_ascii_digit()).parse().unwrap()
}

/// Which of the texts are cached.
fn cached(server: &Server) -> Vec<bool> {
    let answer = post(server, "/lookup", &json!({ "inputs": [TEXT, "Zarquon again", "a note"] }));
    answer["items"].as_array().unwrap().iter().map(|item| item["cached"] == json!(true)).collect()
}

/// An erasure as a machine knows it; nothing as long as it does not.
fn of(server: &Server, id: &str) -> Value {
    let answer = server.client().get(&format!("/erasures/{id}"));
    answer.ok().filter(|(status, _)| *status == 200).map_or(Value::Null, |(_, text)| parsed(&text))
}

#[test]
fn what_is_erased_while_a_machine_is_down_is_erased_there_when_it_starts() {
    if !live::available() {
        return;
    }
    let redis = live::Server::start(&[]);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let data = folders[1].path().join("data");
    let [one, mut other] = folders.each_ref().map(|folder| machine(folder.path(), &redis));
    let item = store_person(&one);
    until("the writes", || one.metric("vecmemo_remote_queue_records") == 0.0);
    post(&other, "/embed", &json!({ "inputs": [TEXT] }));
    assert!(cached(&other)[0] && found(&data, &traces(&folders[0].path().join("data"), &item)).contains_key("row"));
    let traces = traces(&folders[0].path().join("data"), &item);
    other.stop();
    let receipt = post(&one, "/erase", &json!({ "tags": [TAG] }));
    assert_eq!(receipt["tier"]["published"], json!(true), "{receipt}");
    let other = machine(folders[1].path(), &redis);
    until("its receipt", || of(&other, receipt["id"].as_str().unwrap())["present"] == json!(0));
    assert!(!cached(&other)[0]);
    until("the end of all traces", || found(&data, &traces).is_empty());
}

#[test]
fn what_is_erased_on_one_machine_is_erased_in_the_shared_tier_and_on_every_other() {
    if !live::available() {
        return;
    }
    let mut redis = live::Server::start(&[]);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let data = folders.each_ref().map(|folder| folder.path().join("data"));
    let [one, other] = folders.each_ref().map(|folder| machine(folder.path(), &redis));
    let until_written = |server: &Server| until("the writes", || server.metric("vecmemo_remote_queue_records") == 0.0);
    let store = || {
        let item = store_person(&one);
        post(&one, "/embed", &json!({ "inputs": ["a note"], "tags": ["note"] }));
        until_written(&one);
        let answer = post(&other, "/embed?details=true", &json!({ "inputs": [TEXT, "a note"] }));
        assert_eq!(answer["items"][0]["key"], item["key"]);
        // One that only the other machine has, by the same tag.
        post(&other, "/embed", &json!({ "inputs": ["Zarquon again"], "tags": [TAG] }));
        until_written(&other);
        item
    };
    let item = store();
    assert!(records(&redis) >= 2, "{}", records(&redis));
    let traces = traces(&data[0], &item);
    assert!(found(&data[1], &traces).contains_key("row"));
    let receipt = post(&one, "/erase", &json!({ "tags": [TAG] }));
    assert_eq!((&receipt["tier"]["published"], &receipt["tier"]["removed"]), (&json!(true), &json!(true)), "{receipt}");
    assert_eq!(found(&data[0], &traces), BTreeMap::new());
    let id = receipt["id"].as_str().unwrap();
    until("the other's receipt", || !of(&other, id).is_null());
    let theirs = of(&other, id);
    assert_eq!((&theirs["present"], &theirs["receipt"]["by"]), (&json!(0), &json!("another machine")), "{theirs}");
    assert_eq!(theirs["receipt"]["erased"]["entries"], json!(2), "{theirs}");
    // The receipt is written before the last trace of what was to be done is.
    until("the other's end", || found(&data[1], &traces).is_empty());
    until("the other's records", || records(&redis) == 0);
    let log = "local s = '' for _, k in ipairs(redis.call('KEYS', '*')) do \
        if redis.call('TYPE', k)['ok'] == 'zset' then s = s .. table.concat(redis.call('ZRANGE', k, 0, -1)) end end return s";
    let told = redis.text(&["EVAL", log, "0"]);
    assert!(told.contains(id) && !told.contains(TAG), "the log of invalidations: {told}");
    assert_eq!((cached(&one), cached(&other)), (vec![false, false, true], vec![false, false, true]));

    // While the tier is away: done here, and told when it is back.
    store();
    redis.kill();
    until("the tier's end", || {
        // It is seen by whoever asks it for something.
        post(&one, "/embed", &json!({ "inputs": [format!("question {:?}", std::time::Instant::now())] }));
        one.metric("vecmemo_remote_ready") == 0.0
    });
    let receipt = post(&one, "/erase", &json!({ "tags": [TAG] }));
    let pending = receipt["pending"].as_array().unwrap().len();
    assert_eq!((&receipt["tier"]["published"], pending), (&json!(false), 1), "{receipt}");
    assert_eq!((cached(&one)[0], cached(&other)[0]), (false, true));
    assert_eq!(one.metric("vecmemo_erasures_pending"), 1.0);
    redis.run();
    let id = receipt["id"].as_str().unwrap();
    until("the news", || of(&one, id)["receipt"]["pending"] == json!([]));
    until("the other's receipt", || of(&other, id)["present"] == json!(0));
    assert_eq!((cached(&one)[0], cached(&other)[0]), (false, false));
    until("the end of the intent", || one.metric("vecmemo_erasures_pending") == 0.0);
    for data in &data {
        until("the end of all traces", || found(data, &traces).is_empty());
    }
    assert_eq!(records(&redis), 0);
}
