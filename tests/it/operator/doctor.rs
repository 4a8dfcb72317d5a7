//! The doctor in set-ups that are broken one by one: each finding is seen to appear, and nothing to change.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::live;
use crate::support::server::{Server, tiny, vecmemo};

/// A set-up without fault (a small model, a small store, a free port) but for the flags that are given.
fn with(folder: &Path, flags: &[(&str, &str)]) -> Command {
    let tiny = tiny();
    let sound = [
        ("--data-dir", "data"),
        ("--capacity-entries", "1000"),
        ("--connections-max", "10"),
        ("--listen", "127.0.0.1:0"),
        ("--model", tiny.to_str().unwrap()),
    ];
    let mut command = vecmemo(folder);
    command.args(["doctor", "--json"]);
    let kept = sound.iter().filter(|(name, _)| !flags.iter().any(|(other, _)| other == name));
    for (name, value) in kept.chain(flags) {
        command.args([name, value]);
    }
    command
}

fn sound(folder: &Path) -> Command {
    with(folder, &[])
}

/// The exit status, and the findings.
fn examine(command: &mut Command) -> (i32, Vec<Value>) {
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)));
    let findings = report["findings"].as_array().unwrap().clone();
    let worst = ["fail", "warn", "ok"].into_iter().find(|level| findings.iter().any(|found| found["level"] == **level));
    assert_eq!(report["level"].as_str(), worst);
    let status = output.status.code().unwrap();
    assert_eq!(status == 1, worst == Some("fail"), "{report}");
    for finding in &findings {
        assert_eq!(finding["level"] == "ok", finding["advice"].is_null(), "{finding}");
        assert!(!finding["finding"].as_str().unwrap().contains('\n'), "{finding}");
    }
    (status, findings)
}

/// Whether a check said so, with these words.
fn said(findings: &[Value], check: &str, level: &str, words: &str) -> bool {
    findings.iter().any(|found| {
        found["check"] == check && found["level"] == level && found["finding"].as_str().unwrap().contains(words)
    })
}

#[track_caller]
fn finds(command: &mut Command, check: &str, level: &str, words: &str) {
    let (_, findings) = examine(command);
    assert!(said(&findings, check, level, words), "no {level} of {check} with {words:?}: {findings:#?}");
}

/// Every file below a folder, with its bytes.
fn contents(folder: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            all.insert(entry.path(), Vec::new());
            all.extend(contents(&entry.path()));
        } else {
            all.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
    all
}

#[test]
fn a_sound_set_up_fails_nothing_and_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (status, findings) = examine(&mut sound(folder.path()));
    assert_eq!(status, 0, "{findings:#?}");
    for check in [
        "configuration",
        "processor",
        "gpu",
        "open files",
        "memory",
        "room",
        "data folder",
        "store",
        "model",
        "clock",
        "address",
    ] {
        assert!(findings.iter().any(|found| found["check"] == check), "{check}: {findings:#?}");
    }
    assert!(said(&findings, "model", "ok", "loaded in") && said(&findings, "data folder", "ok", "will be made"));
    assert_eq!(contents(folder.path()), BTreeMap::new());
    let shown = sound(folder.path()).args(["--log", "info"]).output().unwrap();
    assert!(shown.status.success());
    let plain = vecmemo(folder.path()).args(["doctor", "--log", "a=b=c"]).output().unwrap();
    let plain = String::from_utf8(plain.stdout).unwrap();
    assert!(plain.lines().any(|line| line.starts_with("fail  configuration  the setting log cannot be")), "{plain}");
    assert!(plain.lines().any(|line| line.trim_start().starts_with("-> use error, warn")), "{plain}");
}

#[test]
fn beside_a_running_service_nothing_is_wrong_and_nothing_changes() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path());
    server.post("/embed", &serde_json::json!({ "inputs": "a text" }));
    let listen = server.url.trim_start_matches("http://").to_owned();
    let (status, findings) =
        examine(&mut with(folder.path(), &[("--capacity-entries", "65536"), ("--listen", &listen)]));
    assert_eq!(status, 0, "{findings:#?}");
    assert!(
        said(&findings, "data folder", "ok", &format!("in use by process {} (vecmemo)", server.id())),
        "{findings:#?}"
    );
    assert!(said(&findings, "address", "ok", "served by vecmemo") && said(&findings, "space", "ok", "65536 slots"));
    assert!(server.stop().success());

    let before = contents(&folder.path().join("data"));
    let (_, findings) = examine(&mut sound(folder.path()));
    assert!(said(&findings, "data folder", "ok", "in use by nobody"));
    assert_eq!(contents(&folder.path().join("data")), before);
}

#[test]
fn settings_that_make_no_sense_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let of = |content: &str| {
        let file = folder.path().join("own.toml");
        std::fs::write(&file, content).unwrap();
        let mut command = sound(folder.path());
        command.arg("--config").arg(file);
        command
    };
    finds(&mut of("data_dri = 1"), "configuration", "fail", "data_dri");
    finds(&mut of("request_timeout_seconds = -1.0"), "configuration", "fail", "request_timeout_seconds");
    finds(&mut of("[policies.a]\nttl = 5"), "configuration", "fail", "the policy a");
    finds(&mut of("log = \"a=b=c\""), "configuration", "fail", "the setting log");
    finds(&mut of("disk_bytes_max = 5"), "store", "fail", "disk_bytes_max of 5 bytes leaves no room");
    finds(sound(folder.path()).env("VECMEMO_DATADIR", "x"), "configuration", "warn", "VECMEMO_DATADIR");
    finds(&mut with(folder.path(), &[("--config", "absent.toml")]), "configuration", "fail", "absent.toml");
}

#[test]
fn limits_that_are_too_low_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let limited = |limit: &str, flags: &[(&str, &str)]| {
        let doctor = with(folder.path(), flags);
        let mut command = Command::new("bash");
        command.current_dir(folder.path()).args(["-c", &format!("{limit}; exec \"$0\" \"$@\"")]);
        command.arg(doctor.get_program()).args(doctor.get_args());
        command
    };
    let connections = [("--connections-max", "4096")];
    finds(&mut limited("ulimit -n 300", &connections), "open files", "warn", "300 files may be open");
    finds(&mut limited("ulimit -n 40", &[]), "open files", "fail", "40 files may be open");
    let many = [("--capacity-entries", "100000000")];
    finds(&mut limited("ulimit -v 8000000", &many), "address space", "fail", "are allowed");
}

#[test]
fn a_store_that_outgrows_memory_or_disk_is_told() {
    let folder = tempfile::tempdir().unwrap();
    // As many stores of two thousand million entries as no machine has memory for.
    let tiny = tiny();
    let model = |at: usize| format!("[[model]]\nname = \"m{at}\"\nsource = \"{}\"\n", tiny.display());
    let file = (0..20).map(model).collect::<String>();
    std::fs::write(folder.path().join("many.toml"), format!("capacity_entries = 2000000000\n{file}")).unwrap();
    let mut many = vecmemo(folder.path());
    many.args(["doctor", "--json", "--config", "many.toml", "--data-dir", "data", "--listen", "127.0.0.1:0"]);
    finds(&mut many, "memory", "fail", "a full store takes");
    finds(&mut many, "room", "warn", "when it is full");
}

#[test]
fn a_model_that_is_absent_or_damaged_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut nowhere = with(folder.path(), &[("--model", "all-MiniLM-L6-v2")]);
    nowhere.env("HF_HOME", folder.path()).env("HF_HUB_OFFLINE", "1");
    finds(&mut nowhere, "model", "fail", "was not found");
    assert_eq!(contents(folder.path()), BTreeMap::new());

    let damaged = folder.path().join("damaged");
    assert!(Command::new("cp").arg("-r").arg(tiny()).arg(&damaged).status().unwrap().success());
    std::fs::write(damaged.join("model.safetensors"), "not weights").unwrap();
    finds(&mut with(folder.path(), &[("--model", "./damaged")]), "model", "fail", "damaged");

    std::fs::create_dir(folder.path().join("models")).unwrap();
    let upstream = "name = \"far\"\nsource = \"a/far\"\ndims = 8\n[upstream]\ndialect = \"openai\"\n\
        base_url = \"http://127.0.0.1:9/v1\"\nmodel = \"far\"\nversion = \"1\"\nmax_characters = 100\nkey_variable = \"FAR_KEY\"\n";
    std::fs::write(folder.path().join("models/far.toml"), upstream).unwrap();
    finds(&mut with(folder.path(), &[("--model", "far")]), "model", "fail", "FAR_KEY is not set");
    finds(with(folder.path(), &[("--model", "far")]).env("FAR_KEY", "x"), "model", "ok", "not asked");
}

#[test]
fn a_gpu_that_is_asked_for_and_not_there_is_told() {
    let folder = tempfile::tempdir().unwrap();
    finds(&mut with(folder.path(), &[("--device", "metal")]), "gpu", "fail", "metal");
    finds(&mut with(folder.path(), &[("--search-device", "metal")]), "gpu", "fail", "cannot search");
}

#[test]
fn a_data_folder_that_cannot_be_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    finds(&mut with(folder.path(), &[("--data-dir", "file")]), "data folder", "fail", "is not a folder");
    finds(&mut with(folder.path(), &[("--data-dir", "file/below")]), "data folder", "fail", "cannot be made");
    finds(&mut with(folder.path(), &[("--data-dir", "/proc/vecmemo")]), "sync", "warn", "was not measured");
    finds(&mut with(folder.path(), &[("--data-dir", "/dev/shm")]), "disk", "warn", "in memory");
}

#[test]
fn a_read_only_file_system_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let doctor = sound(folder.path());
    let mut apart = Command::new("unshare");
    apart.current_dir(folder.path()).args(["--mount", "--map-root-user", "sh", "-c"]);
    apart.arg("mount -t tmpfs -o ro none data && exec \"$0\" \"$@\"").arg(doctor.get_program()).args(doctor.get_args());
    // Not every system lets a process have mounts of its own.
    let may =
        Command::new("unshare").args(["--mount", "--map-root-user", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if may.is_ok_and(|output| output.status.success()) {
        finds(&mut apart, "disk", "fail", "is on a read-only file system");
        finds(&mut apart, "disk", "warn", "in memory");
        finds(&mut apart, "data folder", "fail", "cannot be written");
    }
}

#[test]
fn files_of_another_owner_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let foreign = folder.path().join("data/aliases.json");
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(&foreign, "{}").unwrap();
    // Only root can give a file away.
    if std::os::unix::fs::chown(&foreign, Some(12_345), None).is_ok() {
        finds(&mut sound(folder.path()), "data folder", "fail", "aliases.json belongs to user 12345");
    }
}

#[test]
fn spaces_that_are_damaged_cut_or_misnamed_are_told() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Server::start(folder.path()).stop().success());
    let data = folder.path().join("data");
    let space = std::fs::read_dir(&data).unwrap().flatten().map(|entry| entry.path());
    let space = space.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "space")).unwrap();
    let whole = std::fs::metadata(&space).unwrap().len();

    let file = std::fs::File::options().write(true).open(&space).unwrap();
    file.set_len(whole - 7).unwrap();
    finds(&mut sound(folder.path()), "space", "fail", "7 bytes are missing");
    file.set_len(whole).unwrap();
    finds(&mut sound(folder.path()), "space", "ok", "slots of");

    let other = data.join("0123456789abcdef.space");
    std::fs::rename(&space, &other).unwrap();
    finds(&mut sound(folder.path()), "space", "fail", "it is the space of model");
    std::fs::write(&other, "not a space").unwrap();
    finds(&mut sound(folder.path()), "space", "fail", "does not begin as a vecmemo file");
}

#[test]
fn a_file_of_the_future_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let file = std::fs::File::create(folder.path().join("data/aliases.json")).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(3600)).unwrap();
    finds(&mut sound(folder.path()), "clock", "warn", "seconds from now");
}

#[test]
fn a_tier_that_does_not_answer_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("redis://{free}");
    finds(&mut with(folder.path(), &[("--remote-url", &url)]), "shared tier", "fail", "no server answers");
    assert_eq!(contents(folder.path()), BTreeMap::new());
}

#[test]
fn what_a_tiers_servers_should_have_is_told() {
    if !live::available() {
        return;
    }
    let (folder, redis) = (tempfile::tempdir().unwrap(), live::Server::start(&[]));
    let url = redis.url();
    let flags = [("--remote-url", url.as_str()), ("--remote-deadline-ms", "500")];
    finds(&mut with(folder.path(), &flags), "shared tier", "warn", "has no bound of memory");
    redis.ask(&["CONFIG", "SET", "maxmemory", "100mb"]);
    redis.ask(&["CONFIG", "SET", "maxmemory-policy", "volatile-lfu"]);
    finds(&mut with(folder.path(), &flags), "shared tier", "ok", "1 servers answer");
}

#[test]
fn an_address_that_is_taken_or_not_of_this_machine_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    finds(&mut with(folder.path(), &[("--listen", &address)]), "address", "fail", "cannot listen");
    finds(&mut with(folder.path(), &[("--listen", "203.0.113.1:80")]), "address", "fail", "cannot listen");
}
