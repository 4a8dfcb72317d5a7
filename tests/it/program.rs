//! The program as its users run it: commands, settings, signals. `endurance` has what it survives.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use vecmemo::cache::{Inputs, Request};
use vecmemo::domain::{Embedding, Status, Truncation, TruncationDirection};
use vecmemo::{batch, cache, engine, store};

use crate::support::golden::data;
use crate::support::server::{Server, tiny, until, vecmemo};

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {status}\n{}{}", text(&stdout), text(&stderr));
    text(&stdout)
}

fn fail(command: &mut Command) -> String {
    let Output { status, stderr, stdout } = command.output().unwrap();
    assert!(!status.success(), "{command:?} succeeded: {}", text(&stdout));
    text(&stderr)
}

#[test]
fn a_command_that_only_looks_makes_no_cache() {
    let folder = tempfile::tempdir().unwrap();
    for command in
        [&["lookup", "a"][..], &["search", "a"], &["stats"], &["invalidate", "--tag", "a"], &["verify"], &["compact"]]
    {
        let said = fail(vecmemo(folder.path()).args(command).args(["--data-dir", "typo"]));
        assert!(said.contains("typo"), "{command:?}: {said}");
        assert!(!folder.path().join("typo").exists(), "{command:?}");
    }
}

#[test]
fn every_command_explains_itself() {
    let folder = tempfile::tempdir().unwrap();
    let help = succeed(vecmemo(folder.path()).arg("--help"));
    let commands = [
        "serve",
        "warm",
        "stats",
        "models",
        "lookup",
        "invalidate",
        "erase",
        "cache",
        "migrate",
        "verify",
        "export",
        "import",
        "compact",
        "doctor",
        "config",
        "completions",
        "man",
        "version",
    ];
    for command in commands {
        assert!(help.contains(&format!("  {command} ")), "{help}");
        assert!(succeed(vecmemo(folder.path()).args([command, "--help"])).contains("Usage:"));
    }
    assert!(succeed(vecmemo(folder.path()).arg("version")).starts_with("vecmemo "));
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("vecmemo.toml"), "data_dir = \"f\"\nmodel = \"f\"\nlog = \"f\"\n").unwrap();
    let mut command = vecmemo(folder.path());
    command.args(["config", "--data-dir", "flag"]).env("VECMEMO_DATA_DIR", "variable").env("VECMEMO_MODEL", "variable");
    let settings = succeed(&mut command);
    for (line, origin) in [
        ("data_dir = \"flag\"", "from: flag"),
        ("model = \"variable\"", "from: variable"),
        ("log = \"f\"", "from: vecmemo.toml"),
        ("listen = \"127.0.0.1:8080\"", "from: default"),
    ] {
        let lines: Vec<&str> = settings.lines().collect();
        let at = lines.iter().position(|found| *found == line).unwrap_or_else(|| panic!("{line} in {settings}"));
        assert!(lines[at - 1].ends_with(origin), "{}", lines[at - 1]);
    }
    let again = folder.path().join("again.toml");
    std::fs::write(&again, &settings).unwrap();
    let file = again.to_str().unwrap();
    assert!(succeed(vecmemo(folder.path()).args(["config", "--config", file])).contains("data_dir = \"flag\""));
}

#[test]
fn a_section_s_settings_are_laid_one_over_another() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("vecmemo.toml"), "[search]\npath = \"graph\"\ncache_bytes = 7\n").unwrap();
    let mut command = vecmemo(folder.path());
    command.args(["config", "--search-path", "exact"]).env("VECMEMO_SEARCH_CACHE_BYTES", "9");
    let settings = succeed(&mut command);
    let section = &settings[settings.find("\n[search]\n").unwrap()..];
    for line in [
        "# --search-enabled, VECMEMO_SEARCH_ENABLED; from: default\nenabled = true",
        "# --search-path, VECMEMO_SEARCH_PATH; from: flag\npath = \"exact\"",
        "# --search-cache-bytes, VECMEMO_SEARCH_CACHE_BYTES; from: variable\ncache_bytes = 9",
    ] {
        assert!(section.contains(line), "{line} in {settings}");
    }
    let again = folder.path().join("again.toml");
    std::fs::write(&again, &settings).unwrap();
    let again = succeed(vecmemo(folder.path()).args(["config", "--config", again.to_str().unwrap()]));
    assert!(
        again.contains("from: again.toml\npath = \"exact\"") || again.contains("again.toml\npath = \"exact\""),
        "{again}"
    );
    std::fs::write(folder.path().join("vecmemo.toml"), "[search]\npaht = \"graph\"\n").unwrap();
    assert!(fail(vecmemo(folder.path()).arg("config")).contains("paht"));
}

#[test]
fn a_search_device_that_is_not_there_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let message = fail(vecmemo(folder.path()).args(["serve", "--listen", "127.0.0.1:0", "--search-device", "metal"]));
    assert!(message.contains("--search-device") && message.contains("metal"), "{message}");
}

#[test]
fn a_setting_that_makes_no_sense_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.toml");
    let refused = |content: &str| {
        std::fs::write(&file, content).unwrap();
        fail(vecmemo(folder.path()).args(["config", "--config", file.to_str().unwrap()]))
    };
    assert!(refused("listen = \"127.0.0.1:1\"\ndata_dri = \"x\"").contains("data_dri"));
    assert!(refused("capacity_entries = \"many\"").contains("capacity_entries"));
    assert!(refused("capacity_entries = 0").contains("capacity_entries cannot be 0: at least 1"));
    assert!(refused("queue_texts_max = 1").contains("max_client_batch_size"));
    assert!(refused("request_timeout_seconds = -1.0").contains("request_timeout_seconds"));
    assert!(refused("disk_bytes_max = 0").contains("disk_bytes_max cannot be 0: at least 1, or not set"));
    assert!(refused("[policies.docs]\ntags = [\"a\"]\nttl = 0").contains("the policy docs: ttl cannot be 0"));
    assert!(refused("[policies.docs]\ntgas = [\"a\"]").contains("tgas"));
    assert!(refused("[policies.docs]\nttl = 5").contains("the policy docs: namespaces or tags is needed"));
    let twice = "[policies.a]\ntags = [\"t\"]\n[policies.b]\ntags = [\"t\"]";
    assert!(refused(twice).contains("the policy b: tags cannot have \"t\": the policy a has it already"));
    assert!(refused("[page]\ncurrency = \"euro\"").contains("page.currency cannot be euro: three capital letters"));
    assert!(refused("[page]\nprice_per_million_tokens = -1").contains("page.price_per_million_tokens cannot be -1"));
    let quota = "[policies.docs]\ntags = [\"a\"]\nquota = 5";
    assert!(refused(quota).contains("the policy docs: quota needs namespaces"));
    let weaker = "durability = \"always\"\n[policies.docs]\ntags = [\"a\"]\ndurability = \"process\"";
    assert!(refused(weaker).contains("the policy docs: durability cannot be less than the setting durability"));
    let tier = |url: &str, more: &str| refused(&format!("[remote]\nurl = \"{url}\"\n{more}"));
    assert!(
        tier("redis://a", "deadline_ms = 5\nhedge_ms = 5")
            .contains("remote.hedge_ms cannot be 5: less than deadline_ms")
    );
    assert!(tier("redis://a", "ca_file = \"ca.pem\"").contains("remote.url: begins with rediss://"));
    assert!(
        tier("rediss://a", "key_file = \"key.pem\"")
            .contains("remote.key_file cannot be key.pem: given with cert_file")
    );
    assert!(fail(vecmemo(folder.path()).args(["config", "--config", "absent.toml"])).contains("absent.toml"));
}

#[test]
fn policies_are_printed_as_a_file_that_would_set_them() {
    let folder = tempfile::tempdir().unwrap();
    let policies = "sweep_seconds = 3\n[policies.docs]\nnamespaces = [\"docs.*\"]\ntags = [\"doc:*\"]\nttl = 60\njitter = 0.1\n\
                    refresh_ahead = 0.2\npinned = true\n[policies.default]\nttl = 5\n";
    std::fs::write(folder.path().join("vecmemo.toml"), policies).unwrap();
    let printed = succeed(vecmemo(folder.path()).arg("config"));
    for line in ["sweep_seconds = 3", "[policies.docs]", "refresh_ahead = 0.2", "pinned = true", "[policies.default]"] {
        assert!(printed.lines().any(|found| found == line), "{line} in {printed}");
    }
    let again = folder.path().join("again.toml");
    std::fs::write(&again, &printed).unwrap();
    let reprinted = succeed(vecmemo(folder.path()).args(["config", "--config", again.to_str().unwrap()]));
    let tables = |text: &str| text[text.find("[policies").unwrap()..].to_owned();
    assert_eq!(tables(&reprinted), tables(&printed));
}

#[test]
fn entries_are_invalidated_on_a_running_server_and_in_the_folder_and_the_server_can_be_switched() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.post("/embed", &json!({ "inputs": ["one", "two"], "tags": ["doc:1"] }));
    server.post("/embed", &json!({ "inputs": ["three"], "tags": ["doc:2"] }));
    server.post("/embed", &json!({ "inputs": ["four"] }));
    let invalidate = |arguments: &[&str]| -> Value {
        let printed = succeed(vecmemo(folder.path()).arg("invalidate").args(arguments));
        serde_json::from_str(&printed).unwrap()
    };
    let counts = |answer: &Value| (answer["matched"].as_u64().unwrap(), answer["removed"].as_u64().unwrap());
    let url = ["--url", &server.url];
    assert_eq!(counts(&invalidate(&[&url[..], &["--all", "--dry-run"]].concat())), (4, 0));
    assert_eq!(
        counts(&invalidate(&[&url[..], &["--tag-glob", "doc:*", "--soft", "--reason", "reports moved"]].concat())),
        (3, 0)
    );
    assert_eq!(counts(&invalidate(&[&url[..], &["--tag", "doc:1", "--text", "one"]].concat())), (1, 1));
    assert!(fail(vecmemo(folder.path()).args(["invalidate", "--url", &server.url])).contains("--tag"));

    let switch = |what: &str| succeed(vecmemo(folder.path()).args(["cache", what, "--url", &server.url]));
    assert_eq!((switch("status").trim(), switch("off").trim(), switch("status").trim()), ("on", "off", "off"));
    assert_eq!(server.post("/embed", &json!({ "inputs": "four", "cache": "only" })).0, 404);
    assert_eq!(switch("on").trim(), "on");
    assert_eq!(server.post("/embed", &json!({ "inputs": "four", "cache": "only" })).0, 200);
    assert!(server.stop().success());

    let model = tiny();
    let local = ["--data-dir", "data", "--capacity-entries", "65536", "--model", model.to_str().unwrap()];
    assert_eq!(counts(&invalidate(&[&local[..], &["--tag", "doc:1"]].concat())), (1, 1));
    assert_eq!(counts(&invalidate(&[&local[..], &["--namespace", "", "--text", "four"]].concat())), (1, 1));
    assert_eq!(counts(&invalidate(&[&local[..], &["--all"]].concat())), (1, 1));
}

#[test]
fn the_readme_has_every_setting() {
    let folder = tempfile::tempdir().unwrap();
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let settings = succeed(vecmemo(folder.path()).arg("config"));
    let names: Vec<&str> = settings
        .lines()
        .filter_map(|line| line.trim_start_matches("# ").split_once(" =").map(|(name, _)| name))
        .collect();
    assert!(names.len() > 20, "{settings}");
    let missing: Vec<_> = names.iter().filter(|name| !readme.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "not in README.md: {missing:?}");
}

#[test]
fn a_model_that_is_nowhere_is_an_error_that_says_what_was_tried_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = vecmemo(folder.path());
    command.args(["serve", "--listen", "127.0.0.1:0"]).env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.path());
    let error = fail(&mut command);
    for part in ["the folder models/all-MiniLM-L6-v2: not there", "HF_HUB_OFFLINE", "scripts/fetch-model"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn models_are_listed_shown_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let models = |command: &str| {
        let mut models = vecmemo(folder.path());
        models.args(["models", command]).env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.path());
        models
    };
    let list = succeed(models("list").arg("--models-dir").arg(&root));
    assert!(list.contains("all-MiniLM-L6-v2\t384 dims\t256 tokens") && list.contains("local folder"), "{list}");
    assert!(succeed(&mut models("list")).contains("not on this machine"));
    assert!(succeed(models("show").arg("all-MiniLM-L6-v2")).contains("pooling = \"mean\""));
    let verified = succeed(models("verify").arg("--models-dir").arg(&root));
    assert!(verified.contains("53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"), "{verified}");
    assert!(succeed(models("fetch").arg("--models-dir").arg(&root)).contains("was there already"));

    let damaged = folder.path().join("models/all-MiniLM-L6-v2");
    std::fs::create_dir_all(&damaged).unwrap();
    for file in ["model.safetensors", "tokenizer.json", "config.json"] {
        std::fs::write(damaged.join(file), "not it").unwrap();
    }
    assert!(fail(&mut models("verify")).contains("has sha256"));
}

#[test]
fn a_second_process_on_one_folder_is_refused_and_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let file = folder.path().join("texts.txt");
    std::fs::write(&file, "one\ntwo\n").unwrap();
    let warm = |arguments: &[&str]| {
        let mut warm = vecmemo(folder.path());
        warm.args(["warm", "--data-dir", "data", "--model"]).arg(tiny()).args(arguments).arg(&file);
        warm
    };
    assert!(fail(&mut warm(&[])).contains("--url"));
    assert!(succeed(&mut warm(&["--url", &server.url])).contains("2 texts"));
    let again = succeed(&mut warm(&["--url", &server.url]));
    assert!(again.contains("2 were cached, 0 computed"), "{again}");
    assert_eq!(server.metric(r#"vecmemo_queue_seconds_count{lane="warm-up"}"#), 2.0);
    let stats = succeed(vecmemo(folder.path()).args(["stats", "--url", &server.url]));
    assert_eq!(serde_json::from_str::<Value>(&stats).unwrap()["store"]["entries"], 2);
    let found = succeed(vecmemo(folder.path()).args(["lookup", "one", "--url", &server.url]));
    assert!(found.contains("\"cached\":true"), "{found}");
    let absent = vecmemo(folder.path()).args(["lookup", "absent", "--url", &server.url]).output().unwrap();
    assert_eq!(absent.status.code(), Some(2));
}

#[test]
fn a_warm_up_counts_bad_lines_and_goes_on_unless_it_is_strict() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("texts.jsonl");
    std::fs::write(&file, "{\"t\":\"a\"}\n{\n{\"t\":\"b\"}\n{\"t\":7}\n").unwrap();
    let warm = |arguments: &[&str]| {
        let mut warm = vecmemo(folder.path());
        warm.args(["warm", "--field", "t", "--capacity-entries", "100", "--model"])
            .arg(tiny())
            .args(arguments)
            .arg(&file);
        warm.output().unwrap()
    };
    let lenient = warm(&[]);
    assert!(lenient.status.success());
    assert!(text(&lenient.stdout).contains("2 texts") && text(&lenient.stdout).contains("2 bad lines"));
    let complaints = text(&lenient.stderr);
    assert!(complaints.contains("texts.jsonl:2: not valid JSON") && complaints.contains("texts.jsonl:4: no string"));
    let strict = warm(&["--strict"]);
    assert!(!strict.status.success() && text(&strict.stderr).contains("texts.jsonl:2"));
}

/// The 10,000 lines of the fixture.
fn ten_thousand_texts() -> Vec<String> {
    let unpacked = text(&Command::new("gzip").arg("-dc").arg(data("short-10k.txt.gz")).output().unwrap().stdout);
    unpacked.lines().map(ToOwned::to_owned).collect()
}

fn allocated_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).map(|entries| entries.flatten().collect()).unwrap_or_else(|_| Vec::new());
    let spaces = entries.iter().filter(|entry| entry.path().extension().is_some_and(|extension| extension == "space"));
    spaces.map(|entry| entry.metadata().map_or(0, |metadata| metadata.blocks() * 512)).sum()
}

/// A warm-up of 10,000 texts is killed in the middle and run again: only the rest is computed, and every vector is right.
#[test]
fn a_killed_warm_up_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let texts = ten_thousand_texts();
    assert_eq!(texts.len(), 10_000);
    let file = folder.path().join("texts.txt");
    std::fs::write(&file, texts.join("\n")).unwrap();
    let warm = |input: &str| {
        let mut warm = vecmemo(folder.path());
        warm.args(["warm", "--data-dir", "data", "--capacity-entries", "16384", "--batch", "64", input, "--model"])
            .arg(tiny());
        warm
    };

    // It is given half of the texts and then nothing, so that it is in the middle whenever it is killed.
    let mut first = warm("-").stdin(Stdio::piped()).spawn().unwrap();
    let mut input = first.stdin.take().unwrap();
    input.write_all((texts[..5000].join("\n") + "\n").as_bytes()).unwrap();
    until("the first texts are stored", || allocated_bytes(&folder.path().join("data")) > 256 << 10);
    first.kill().unwrap();
    first.wait().unwrap();

    let counts = |report: &str| -> (u64, u64) {
        let number = |before: &str| {
            let end = report.find(before).unwrap_or_else(|| panic!("{report}"));
            report[..end].trim_end().rsplit(' ').next().unwrap().parse().unwrap()
        };
        (number("were cached"), number("computed"))
    };
    let (cached, computed) = counts(&succeed(&mut warm(file.to_str().unwrap())));
    assert!(cached > 1000 && computed >= 5000 && cached + computed == 10_000, "{cached} cached, {computed} computed");
    assert_eq!(counts(&succeed(&mut warm(file.to_str().unwrap()))), (10_000, 0));

    let mut model =
        engine::open(tiny().to_str().unwrap(), &engine::Sources::default(), &engine::Options::default()).unwrap();
    let truncation = Truncation { direction: TruncationDirection::Right, max_tokens: model.card.max_tokens };
    let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
    let tokens = model.tokenizer.tokenize(&borrowed, "", truncation).unwrap();
    let expected: Vec<Embedding> = tokens
        .iter()
        .map(|tokens| Embedding::from_raw(&model.engine.embed(&[&tokens.ids]).unwrap()[0]).unwrap())
        .collect();
    let config = store::Config { capacity_entries: 16_384, ..store::Config::default() };
    let store = store::Store::open(&folder.path().join("data"), &model.card.version, model.card.dims, &config).unwrap();
    let cache = cache::Cache::new(store, batch::Embedder::start(model, batch::Config::default()));
    let inputs: Vec<_> = texts.iter().map(|text| text.as_str().into()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(cache.embed(Request::new(Inputs::Texts(&inputs)))).unwrap();
    assert_eq!(answer.count(Status::Hit), 10_000);
    for (index, expected) in expected.iter().enumerate() {
        let difference = answer.unit(index).iter().zip(&expected.unit).map(|(a, b)| (a.to_f32() - b.to_f32()).abs());
        // Computed in another batch: the last bits of f32 may fall on the other side of a step of f16.
        assert!(difference.fold(0.0, f32::max) <= 1e-3, "{}", texts[index]);
    }
}

/// The system lets the file grow no further, as a full disk would: nothing can be stored, and everything is answered.
#[test]
fn a_store_that_cannot_write_costs_no_answer_and_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Server::start(folder.path()).stop().success());
    let mut limited = Command::new("bash");
    limited.current_dir(folder.path());
    limited.args(["-c", "trap '' XFSZ; ulimit -f 1024; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_vecmemo")]);
    let server = Server::run(limited);
    let inputs = json!({ "inputs": ["a text", "another"] });
    let (first, second) = (server.post("/embed", &inputs), server.post("/embed", &inputs));
    assert_eq!((first.0, second.0), (200, 200));
    assert_eq!(first.1, second.1);
    assert!(server.get("/metrics").contains("vecmemo_items_total{status=\"computed\"} 4"));
    assert!(server.get("/ready").contains("writes failed"), "{}", server.get("/ready"));
}

#[test]
fn sigterm_ends_the_server_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    let (status, _) = server.post("/embed", &json!({ "inputs": "a text" }));
    assert_eq!(status, 200);
    assert!(server.stop().success());
}
