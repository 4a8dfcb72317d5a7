//! The offline tools as their users run them: verify, export, import, compact; and a store of every format there was.

mod fixture;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use half::f16;
use serde_json::{Value, json};
use vecmemo::domain::{ContentHash, Embedding, Key, ModelCard, Namespace, Scope, Truncation, TruncationDirection};
use vecmemo::engine;
use vecmemo::store::{self, Attachments, Config, Entry, Found, NewEntry, ReadOnly, Store};

use crate::support::golden::data;
use crate::support::server::{Server, tiny, vecmemo};

const FORMATS: [&str; 3] = ["npy", "parquet", "safetensors"];
/// Room for everything the tests put.
const CAPACITY: &str = "1024";

static CARD: LazyLock<ModelCard> = LazyLock::new(|| {
    engine::open(tiny().to_str().unwrap(), &engine::Sources::default(), &engine::Options::default()).unwrap().card
});

/// What a command came to: exit code, output, errors.
fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("it is not killed"), text(stdout), text(stderr))
}

/// A command on the folder `data` beneath `folder`, for the tiny model.
fn tool(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = vecmemo(folder);
    command.args(arguments).args(["--data-dir", "data", "--capacity-entries", CAPACITY, "--model"]).arg(tiny());
    command
}

fn open(folder: &Path) -> Store {
    let config = Config { capacity_entries: CAPACITY.parse().unwrap(), ..Config::default() };
    Store::open(&folder.join("data"), &CARD.version, CARD.dims, &config).unwrap()
}

fn now() -> u32 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as u32
}

fn scope(namespace: &Namespace) -> Scope {
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: CARD.max_tokens };
    Scope::new(namespace, &CARD.version, "", truncation)
}

fn raw(n: u32) -> Vec<f32> {
    (0..CARD.dims as u32).map(|place| ((n * 31 + place * 17) % 97) as f32 / 7.0 - 6.5).collect()
}

fn key(n: u32) -> Key {
    scope(&Namespace::default()).key(ContentHash::of(&format!("text {n}")))
}

/// Forty entries that have, between them, everything an entry can have.
fn fill(folder: &Path) {
    let store = open(folder);
    for n in 0..40 {
        let embedding = Embedding::from_raw(&raw(n)).unwrap();
        let namespace = Namespace::new(if n % 4 == 1 { "tenant" } else { "" }).unwrap();
        let tags = if n % 5 == 2 { vec!["five".to_owned(), format!("n:{n} \"é\"")] } else { Vec::new() };
        let payload = format!("{{\"n\": {n}}}");
        let entry = NewEntry {
            tokens: n,
            truncated: n % 7 == 3,
            expires: (n % 6 == 4).then(|| now() + 10_000 + n),
            tags: &tags,
            copied: n % 8 == 5,
            pinned: n % 9 == 6,
            refresh_ahead: n % 10 == 4,
            stale: n % 11 == 7,
            payload: (n % 3 == 0).then_some(&payload),
            ..NewEntry::new(key(n), &embedding.unit, embedding.norm, &namespace)
        };
        // Two entries a second, the last ones first.
        store.put_many(&[entry], now() - 500 + n / 2).unwrap();
    }
    // A hole, so that slots and order of writes differ.
    store.remove_many(&[key(0), key(11)]).unwrap();
    let embedding = Embedding::from_raw(&raw(0)).unwrap();
    store.put_many(&[NewEntry::new(key(0), &embedding.unit, embedding.norm, &Namespace::default())], now()).unwrap();
}

#[derive(Debug, PartialEq)]
struct Whole {
    key: Key,
    entry: Entry,
    row: Vec<f16>,
    namespace: String,
    tags: Vec<String>,
    payload: Option<String>,
}

/// Everything a folder holds, in the order of writes.
fn everything(folder: &Path) -> Vec<Whole> {
    let folder = folder.join("data");
    let space = ReadOnly::open(&fixture::space(&folder)).unwrap();
    let attachments = Attachments::open(&folder, &space.model()).unwrap();
    let mut all = Vec::new();
    let Ok(scanned) = space.scan(&space.survey(), now(), |Found { key, entry, row, .. }| {
        all.push(Whole {
            key,
            // What has to be the same in another folder: the order is, the numbers are not.
            entry: Entry { sequence: 0, namespace: 0, ..entry },
            row: row.to_vec(),
            namespace: attachments.namespace(entry.namespace).unwrap().to_owned(),
            tags: attachments.tags(&key).unwrap(),
            payload: attachments.payload(&key).unwrap(),
        });
        Ok::<(), Infallible>(())
    });
    assert_eq!((scanned.damaged, scanned.changed), (0, 0));
    all
}

/// Where a format's export is.
fn out(folder: &Path, format: &str) -> PathBuf {
    folder.join(format!("out.{format}"))
}

fn export(folder: &Path, format: &str, arguments: &[&str]) -> PathBuf {
    let out = out(folder, format);
    let (code, said, errors) =
        run(tool(folder, &["export", out.to_str().unwrap(), "--format", format]).args(arguments));
    assert_eq!(code, 0, "{said}{errors}");
    out
}

fn import(folder: &Path, from: &Path, arguments: &[&str]) -> (i32, String, String) {
    run(tool(folder, &["import", from.to_str().unwrap()]).args(arguments))
}

/// Flips one bit of a file.
fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

/// Where the row of the entry `at` that many slots from the first is.
fn row_offset(space: &Path, at: u64) -> u64 {
    let mut header = [0; 40];
    File::open(space).unwrap().read_exact_at(&mut header, 0).unwrap();
    u64::from_le_bytes(header[32..].try_into().unwrap()) + at * CARD.dims as u64 * 2
}

#[test]
fn what_was_exported_and_imported_elsewhere_is_the_same_down_to_the_last_bit() {
    let source = tempfile::tempdir().unwrap();
    fill(source.path());
    let expected = everything(source.path());
    assert_eq!(expected.len(), 39);
    for format in FORMATS {
        let out = export(source.path(), format, &[]);
        let target = tempfile::tempdir().unwrap();
        let (code, said, errors) = import(target.path(), &out, &[]);
        assert_eq!(code, 0, "{said}{errors}");
        assert!(said.starts_with("39 entries imported, 0 were cached"), "{said}");
        assert_eq!(everything(target.path()), expected, "{format}");
        let (code, said, _) = import(target.path(), &out, &[]);
        assert!(code == 0 && said.starts_with("0 entries imported, 39 were cached"), "{said}");

        let refused = run(&mut tool(source.path(), &["export", out.to_str().unwrap(), "--format", format]));
        assert!(refused.0 == 1 && refused.2.contains("is there already"), "{refused:?}");
    }
    assert_eq!(everything(source.path()), expected, "an export changes nothing");
}

#[test]
fn only_the_entries_of_a_namespace_or_tag_are_exported_where_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let all = everything(folder.path());
    let tenants = all.iter().filter(|whole| whole.namespace == "tenant").count();
    let fives = all.iter().filter(|whole| whole.tags.contains(&"five".to_owned())).count();
    let both =
        all.iter().filter(|whole| whole.namespace == "tenant" && whole.tags.contains(&"five".to_owned())).count();
    for (name, count, arguments) in [
        ("a", tenants, vec!["--namespace", "tenant"]),
        ("b", all.len() - tenants, vec!["--namespace", ""]),
        ("c", fives, vec!["--tag", "five"]),
        ("d", both, vec!["--namespace", "tenant", "--tag", "five"]),
        ("e", 0, vec!["--tag", "unheard of"]),
    ] {
        let (code, said, errors) = run(tool(folder.path(), &["export", name]).args(arguments));
        assert_eq!((code, said.split(' ').next().unwrap()), (0, count.to_string().as_str()), "{said}{errors}");
    }
}

#[test]
fn an_import_replaces_what_is_cached_only_when_told_to() {
    let source = tempfile::tempdir().unwrap();
    fill(source.path());
    let out = export(source.path(), "safetensors", &[]);
    let target = tempfile::tempdir().unwrap();
    let (other, namespace) = (Embedding::from_raw(&raw(77)).unwrap(), Namespace::default());
    open(target.path()).put_many(&[NewEntry::new(key(2), &other.unit, 5.0, &namespace)], now()).unwrap();
    let row = |folder: &Path| everything(folder).into_iter().find(|whole| whole.key == key(2)).unwrap().row;
    let (_, said, _) = import(target.path(), &out, &[]);
    assert!(said.starts_with("38 entries imported, 1 were cached"), "{said}");
    assert_eq!(row(target.path()), *other.unit);
    let (_, said, _) = import(target.path(), &out, &["--replace"]);
    assert!(said.starts_with("39 entries imported, 0 were cached"), "{said}");
    assert_eq!(row(target.path()), row(source.path()));
}

#[test]
fn rows_that_are_not_what_was_exported_are_refused_one_by_one_and_the_others_imported() {
    let source = tempfile::tempdir().unwrap();
    fill(source.path());
    let out = export(source.path(), "safetensors", &[]);
    // The header's room, then row after row.
    flip(&out, 4096 + 3 * CARD.dims as u64 * 2);
    let target = tempfile::tempdir().unwrap();
    let (code, said, errors) = import(target.path(), &out, &[]);
    assert_eq!(code, 2);
    assert!(said.starts_with("38 entries imported") && said.contains("1 refused"), "{said}");
    assert!(errors.contains("refused row 3 (") && errors.contains("has changed since it was exported"), "{errors}");

    let folder = export(source.path(), "npy", &[]);
    flip(&folder.join("vectors.npy"), 200);
    let (code, _, errors) = import(target.path(), &folder, &[]);
    assert!(code == 1 && errors.contains("vectors.npy has SHA-256"), "{errors}");
}

#[test]
fn an_export_of_another_model_is_refused_by_name() {
    let source = tempfile::tempdir().unwrap();
    fill(source.path());
    for format in FORMATS {
        let out = export(source.path(), format, &[]);
        let mut command = vecmemo(source.path());
        command.args(["import", out.to_str().unwrap(), "--data-dir", "other", "--model"]).arg(data("models/tiny-cls"));
        let (code, _, errors) = run(&mut command);
        assert_eq!(code, 1);
        assert!(errors.contains("holds vectors of tiny-mean") && errors.contains("is tiny-cls"), "{errors}");
        assert!(!source.path().join("other").exists(), "nothing is made");
    }
    let nothing = run(&mut tool(source.path(), &["import", source.path().to_str().unwrap()]));
    assert!(nothing.0 == 1 && nothing.2.contains("not exported by vecmemo"), "{nothing:?}");
}

#[test]
fn beside_a_running_server_vectors_are_exported_and_what_could_not_be_read_is_marked() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["--data-dir", "data", "--capacity-entries", CAPACITY];
    let mut server = Server::with(vecmemo(folder.path()), &settings);
    let embed = |body: Value| assert_eq!(server.post("/embed", &body).0, 200);
    embed(json!({ "inputs": ["one", "two", "three"] }));
    embed(json!({ "inputs": ["four"], "namespace": "tenant" }));
    embed(json!({ "inputs": ["five"], "tags": ["tagged"] }));
    let out = folder.path().join("beside.parquet");
    let (code, said, errors) = run(&mut tool(folder.path(), &["export", out.to_str().unwrap()]));
    assert_eq!((code, said.as_str()), (0, format!("5 entries are in {}\n", out.display()).as_str()), "{errors}");
    assert!(errors.contains("a server has this folder"), "{errors}");
    let (code, _, errors) = run(&mut tool(folder.path(), &["export", "filtered", "--tag", "tagged"]));
    assert!(code == 1 && errors.contains("namespaces and tags are its own to read"), "{errors}");
    let (code, said, _) = run(&mut tool(folder.path(), &["verify"]));
    assert!(code == 0 && said.contains("5 live") && said.contains("in use by a running server"), "{said}");
    for command in [["verify", "--repair"].as_slice(), &["compact"], &["import", out.to_str().unwrap()]] {
        let (code, _, errors) = run(&mut tool(folder.path(), command));
        assert!(code > 0 && errors.contains("in use by another process"), "{command:?}: {errors}");
    }
    assert!(server.stop().success());

    let target = tempfile::tempdir().unwrap();
    let (code, said, errors) = import(target.path(), &out, &[]);
    assert!(code == 2 && said.starts_with("3 entries imported") && said.contains("2 refused"), "{said}");
    assert!(errors.contains("without its namespace, tags or payload"), "{errors}");
    let cached = run(&mut tool(target.path(), &["lookup", "one", "two", "three"]));
    assert_eq!(cached.0, 0, "{cached:?}");
    let mine = everything(folder.path());
    assert!(everything(target.path()).iter().all(|whole| mine.contains(whole)), "as the server had them");
}

fn npy(path: &Path, descr: &str, rows: usize, dims: usize, bytes: &[u8]) {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows}, {dims}), }}\n");
    let len = (header.len() as u16).to_le_bytes();
    std::fs::write(path, [b"\x93NUMPY\x01\x00".as_slice(), &len, header.as_bytes(), bytes].concat()).unwrap();
}

#[test]
fn vectors_made_elsewhere_are_found_under_their_texts_and_normalised_as_ours_are() {
    let folder = tempfile::tempdir().unwrap();
    let (vectors, texts) = (folder.path().join("v.npy"), folder.path().join("texts.jsonl"));
    let dims = CARD.dims;
    let lines = |count: usize| {
        let lines: Vec<String> = (0..count).map(|n| json!({ "words": format!("text {n}") }).to_string()).collect();
        std::fs::write(&texts, lines.join("\n")).unwrap();
    };
    lines(5);
    let with_texts = ["--texts", "texts.jsonl", "--field", "words"];
    let values: Vec<f32> = (0..5).flat_map(raw).collect();
    let bytes = |width: usize| -> Vec<u8> {
        values
            .iter()
            .flat_map(|&value| match width {
                2 => f16::from_f32(value).to_le_bytes().to_vec(),
                4 => value.to_le_bytes().to_vec(),
                _ => f64::from(value).to_le_bytes().to_vec(),
            })
            .collect()
    };
    for (descr, width) in [("<f4", 4), ("<f8", 8), ("<f2", 2)] {
        npy(&vectors, descr, 5, dims, &bytes(width));
        let (code, said, errors) = import(folder.path(), &vectors, &with_texts);
        assert!(code == 0 && said.starts_with("5 entries imported"), "{said}{errors}");
        let all = everything(folder.path());
        for (n, whole) in all.iter().enumerate() {
            let expected = Embedding::from_raw(&raw(n as u32)).unwrap();
            assert_eq!(whole.key, key(n as u32));
            let near = whole.row.iter().zip(&expected.unit).all(|(a, b)| (a.to_f32() - b.to_f32()).abs() < 2e-3);
            assert!(near && (whole.row == *expected.unit || width == 2), "{descr}");
            assert!((whole.entry.norm / expected.norm - 1.0).abs() < 1e-3, "{descr}");
        }
        assert_eq!(run(&mut tool(folder.path(), &["lookup", "text 0", "text 4"])).0, 0);
        std::fs::remove_dir_all(folder.path().join("data")).unwrap();
    }
    let mut spoilt = values.clone();
    spoilt[dims] = f32::NAN;
    spoilt[3 * dims..4 * dims].fill(0.0);
    let spoilt: Vec<u8> = spoilt.iter().flat_map(|value| value.to_le_bytes()).collect();
    npy(&vectors, "<f4", 5, dims, &spoilt);
    let (code, said, errors) = import(folder.path(), &vectors, &[&with_texts[..], &["--namespace", "tenant"]].concat());
    assert!(code == 2 && said.starts_with("3 entries imported") && said.contains("2 refused"), "{said}");
    assert!(errors.contains("texts.jsonl:2): the model's vector has a value that is not finite"), "{errors}");
    assert!(errors.contains("texts.jsonl:4): the model's vector has no direction"), "{errors}");
    let found = run(&mut tool(folder.path(), &["lookup", "text 0", "--namespace", "tenant"]));
    assert_eq!(found.0, 0, "{found:?}");

    lines(4);
    let (code, _, errors) = import(folder.path(), &vectors, &with_texts);
    assert!(code == 1 && errors.contains("has 4 texts") && errors.contains("has 5 vectors"), "{errors}");
    lines(5);
    npy(&vectors, "<f4", 5, dims - 1, &bytes(4)[..5 * (dims - 1) * 4]);
    let (code, _, errors) = import(folder.path(), &vectors, &with_texts);
    assert!(code == 1 && errors.contains(&format!("makes {dims}")), "{errors}");
}

#[test]
fn verify_tells_sound_from_damaged_by_its_exit_code_and_a_repaired_store_is_sound() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let verify = |arguments: &[&str]| run(tool(folder.path(), &["verify"]).args(arguments));
    let (code, said, _) = verify(&[]);
    assert!(
        code == 0 && said.contains(": sound") && said.contains("39 intact") && said.contains("side store: sound"),
        "{said}"
    );
    let space = fixture::space(&folder.path().join("data"));
    let before = std::fs::read(&space).unwrap();
    flip(&space, row_offset(&space, 3));
    flip(&space, row_offset(&space, 5));
    let (code, said, _) = verify(&[]);
    assert!(code == 1 && said.contains("DAMAGED") && said.contains("2 entries damaged"), "{said}");
    let (code, said, _) = verify(&["--json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    let found = &report["spaces"][0];
    assert_eq!((code, &report["sound"]), (1, &json!(false)));
    assert_eq!((&found["damaged"], &found["intact"], &found["live"]), (&json!(2), &json!(37), &json!(39)));
    let (code, said, _) = verify(&["--sample", "39"]);
    assert!(code == 1 && said.contains("39 of the live checked"), "{said}");
    let (code, said, _) = verify(&["--repair"]);
    assert!(code == 0 && said.contains("2 damaged entries are in quarantine"), "{said}");
    let quarantine = std::fs::read(space.with_extension("quarantine")).unwrap();
    let item = 16 + 64 + CARD.dims * 2;
    assert_eq!(quarantine.len(), 2 * item);
    let (slot, damaged_row) = (3, &quarantine[80..item]);
    assert_eq!(quarantine[..8], u64::to_le_bytes(slot));
    let at = row_offset(&space, slot) as usize;
    let differing = damaged_row.iter().zip(&before[at..]).filter(|(kept, was)| kept != was).count();
    assert_eq!(differing, 1, "the flipped byte");
    let (code, said, _) = verify(&[]);
    assert!(code == 0 && said.contains("37 intact"), "{said}");

    for nowhere in ["nowhere", "."] {
        let (code, _, errors) = run(vecmemo(folder.path()).args(["verify", "--data-dir", nowhere]));
        assert_eq!(code, 2, "{errors}");
    }
}

#[test]
fn compact_gives_space_back_and_says_how_much() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let expected = everything(folder.path());
    let (code, said, errors) = run(&mut tool(folder.path(), &["compact"]));
    assert!(code == 0 && said.contains("for 39 entries") && said.contains("side store:"), "{said}{errors}");
    assert_eq!(everything(folder.path()), expected);
    assert_eq!(open(folder.path()).info().entries, 39);
    let (code, _, errors) = run(vecmemo(folder.path()).args(["compact", "--data-dir", "nowhere"]));
    assert!(code == 1 && errors.contains("nowhere"), "{errors}");
}

/// A copy of the committed store of a format.
fn unpacked(format: &str) -> (tempfile::TempDir, Vec<Value>) {
    let folder = tempfile::tempdir().unwrap();
    for item in std::fs::read_dir(data(&format!("store/{format}"))).unwrap() {
        let path = item.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "gz") {
            let unpacked = Command::new("gzip").arg("-dc").arg(&path).output().unwrap();
            assert!(unpacked.status.success(), "{unpacked:?}");
            std::fs::write(folder.path().join(path.file_stem().unwrap()), unpacked.stdout).unwrap();
        }
    }
    let expected = std::fs::read_to_string(data(&format!("store/{format}/expected.jsonl"))).unwrap();
    let expected = expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (folder, expected)
}

/// What a store holds, in the words of `expected.jsonl`.
fn facts(key: &str, entry: &Entry, row: &[f16], namespace: &str, tags: &[String]) -> Value {
    let bits: Vec<u16> = row.iter().map(|value| value.to_bits()).collect();
    json!({
        "key": key, "served": true, "unit_bits": bits, "norm_bits": entry.norm.to_bits(), "tokens": entry.tokens,
        "truncated": entry.truncated, "created": entry.created, "expires": entry.expires, "namespace": namespace,
        "tags": tags,
    })
}

#[test]
fn a_store_of_format_1_opens_and_serves_the_same_vectors_for_ever() {
    let (folder, expected) = unpacked("format-1");
    let store = Store::open(folder.path(), &fixture::version(), fixture::DIMS, &fixture::config()).unwrap();
    for expected in &expected {
        let key: Key = expected["key"].as_str().unwrap().parse().unwrap();
        let mut found = None;
        store.get_many(&[key], fixture::NOW, |_, entry, row| found = Some((entry, row.to_vec()))).unwrap();
        let Some((entry, row)) = found else {
            assert_eq!(expected["served"], false, "{expected} is lost");
            continue;
        };
        let namespace = store.namespace_name(entry.namespace).unwrap();
        assert_eq!(facts(&key.to_string(), &entry, &row, &namespace, &store.tags(&key)), *expected);
    }
    let info = store.info();
    assert_eq!((info.quarantined, info.put_aside.len()), (1, 0), "the damaged entry is found");
    // It is a store like any other.
    let (embedding, namespace) = (Embedding::from_raw(&[1.0; fixture::DIMS]).unwrap(), Namespace::default());
    let entry = NewEntry::new(key(99), &embedding.unit, embedding.norm, &namespace);
    store.put_many(&[entry], fixture::NOW).unwrap();
    assert!(store.contains_many(&[key(99)], fixture::NOW)[0].is_some());
}

#[test]
fn the_tools_read_a_store_of_format_1_and_find_what_is_wrong_with_it() {
    let (folder, expected) = unpacked("format-1");
    let path = fixture::space(folder.path());
    let space = ReadOnly::open(&path).unwrap();
    assert_eq!((space.model(), space.dims(), space.capacity()), (fixture::version(), fixture::DIMS, fixture::CAPACITY));
    let attachments = Attachments::open(folder.path(), &space.model()).unwrap();
    let expected: BTreeMap<&str, &Value> =
        expected.iter().map(|expected| (expected["key"].as_str().unwrap(), expected)).collect();
    let Ok(scanned) = space.scan(&space.survey(), fixture::NOW, |found| {
        let namespace = attachments.namespace(found.entry.namespace).unwrap();
        let (key, tags) = (found.key.to_string(), attachments.tags(&found.key).unwrap());
        assert_eq!(facts(&key, &found.entry, found.row, namespace, &tags), *expected[key.as_str()]);
        Ok::<(), Infallible>(())
    });
    assert_eq!((scanned.shown, scanned.expired, scanned.damaged), (17, 1, 1));
    drop(attachments);
    assert!(!store::verify(folder.path(), None, fixture::NOW, |_, _, _| {}).unwrap().is_sound());
    assert_eq!(store::repair(folder.path(), |_, _, _| {}).unwrap().quarantined, 1);
    assert!(store::verify(folder.path(), None, fixture::NOW, |_, _, _| {}).unwrap().is_sound());
}

/// What makes the fixture makes one that passes the same test; and writes it where it is told to.
#[test]
fn a_store_that_todays_code_makes_is_as_the_committed_one() {
    let folder = match std::env::var_os("VECMEMO_STORE_FIXTURE") {
        Some(folder) => PathBuf::from(folder),
        None => tempfile::tempdir().unwrap().keep(),
    };
    fixture::make(&folder);
    let made = std::fs::read_to_string(folder.join("expected.jsonl")).unwrap();
    let committed = std::fs::read_to_string(data("store/format-1/expected.jsonl")).unwrap();
    assert_eq!(made, committed, "keys, vectors and norms are computed as they were");
    let space = ReadOnly::open(&fixture::space(&folder)).unwrap();
    let scanned = space.scan(&space.survey(), fixture::NOW, |_| Ok::<(), Infallible>(()));
    assert_eq!(scanned.map(|scanned| (scanned.shown, scanned.expired, scanned.damaged)), Ok((17, 1, 1)));
    if std::env::var_os("VECMEMO_STORE_FIXTURE").is_none() {
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
