//! A disk that is full, a file system that becomes read-only: the server goes on answering, never wrongly, and says what
//! is wrong in `/ready`, in `/metrics` and in its log.
//!
//! A real file system of 24 MB is mounted for each test (ext4 on a loop device, or tmpfs where there is none), which needs
//! root. Where nothing can be mounted, the full disk is played by a limit on the size of files, and the test says so.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::server::{Client, Server, tiny, until, vecmemo};

const DISK_BYTES: u64 = 24 << 20;

/// Runs a system command. Answers whether it could and did.
fn did(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Says what a test cannot do here, past the capture of the test's output: it must not pass in silence.
fn announce(what: &str) {
    let text = format!("\nWARNING: {what}\n");
    // The terminal's or the log's own stream; the capture only knows `println!`.
    let written =
        File::options().append(true).open("/dev/stderr").and_then(|mut stream| stream.write_all(text.as_bytes()));
    if written.is_err() {
        println!("{text}");
    }
}

/// A small file system of its own, gone with the test.
struct Mount {
    at: tempfile::TempDir,
    image: Option<tempfile::NamedTempFile>,
}

impl Mount {
    /// ext4 on a loop device.
    fn ext4() -> Option<Self> {
        let (at, image) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        image.as_file().set_len(DISK_BYTES).unwrap();
        let (file, folder) = (image.path().to_str().unwrap().to_owned(), at.path().to_str().unwrap().to_owned());
        let made = did("mkfs.ext4", &["-q", "-F", "-m", "0", &file]) && did("mount", &["-o", "loop", &file, &folder]);
        made.then_some(Self { at, image: Some(image) })
    }

    fn tmpfs() -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        let size = format!("size={DISK_BYTES}");
        did("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", at.path().to_str().unwrap()])
            .then_some(Self { at, image: None })
    }

    fn any() -> Option<Self> {
        Self::ext4().or_else(Self::tmpfs)
    }

    fn name(&self) -> &'static str {
        if self.image.is_some() { "ext4 on a loop device" } else { "tmpfs" }
    }

    fn path(&self) -> &Path {
        self.at.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let folder = self.path().to_str().unwrap().to_owned();
        if !did("umount", &[&folder]) {
            did("umount", &["-l", &folder]);
        }
    }
}

/// How the room for the server's files is taken away and given back.
enum Shortage {
    Disk(Mount),
    /// A limit on the size of the server's files.
    FileSize(tempfile::TempDir),
}

impl Shortage {
    fn new() -> Self {
        match Mount::any() {
            Some(mount) => Self::Disk(mount),
            None => {
                announce(
                    "no file system can be mounted here (root is needed): a full disk is played by a limit on file sizes",
                );
                Self::FileSize(tempfile::tempdir().unwrap())
            }
        }
    }

    fn folder(&self) -> &Path {
        match self {
            Self::Disk(mount) => mount.path(),
            Self::FileSize(folder) => folder.path(),
        }
    }

    fn filler(&self) -> PathBuf {
        self.folder().join("filler")
    }

    fn begin(&self, server: &Server) {
        match self {
            Self::Disk(_) => {
                let mut filler = File::create(self.filler()).unwrap();
                for piece in [1 << 20, 4096, 512] {
                    while filler.write_all(&vec![1; piece]).is_ok() {}
                }
                // The last of it may have been promised, and not be there.
                let _ = filler.sync_all();
            }
            Self::FileSize(_) => limit_file_size(server, "4096:unlimited"),
        }
    }

    fn end(&self, server: &Server) {
        match self {
            Self::Disk(_) => std::fs::remove_file(self.filler()).unwrap(),
            Self::FileSize(_) => limit_file_size(server, "unlimited:unlimited"),
        }
    }
}

fn limit_file_size(server: &Server, limit: &str) {
    assert!(did("prlimit", &["--pid", &server.id().to_string(), &format!("--fsize={limit}")]), "prlimit works");
}

/// A server that takes a file-size limit as an error, not as a signal.
pub(super) fn start(folder: &Path) -> Server {
    let mut command = vecmemo(folder);
    let program = command.get_program().to_owned();
    let mut ignoring = Command::new("bash");
    ignoring.current_dir(folder).args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(program);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => ignoring.env(name, value),
            None => ignoring.env_remove(name),
        };
    }
    command = ignoring;
    Server::with(command, &["--data-dir", "data", "--capacity-entries", "1048576"])
}

pub(super) fn texts(kind: &str, numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| format!("{kind} text {number}")).collect()
}

/// Embeds texts a hundred at a time; every request must be answered.
pub(super) fn embed(server: &Server, texts: &[String]) -> Vec<Value> {
    let chunks = texts.chunks(100).map(|inputs| {
        let (status, vectors) = server.post("/embed", &json!({ "inputs": inputs }));
        assert_eq!(status, 200, "{vectors}");
        vectors
    });
    chunks.flat_map(|vectors| vectors.as_array().unwrap().clone()).collect()
}

pub(super) fn is_cached(client: &Client, texts: &[String]) -> bool {
    client.post("/embed", &json!({ "inputs": texts, "cache": "only" })).unwrap().0 == 200
}

fn failures(server: &Server) -> f64 {
    server.metric("vecmemo_store_write_failures_total")
}

#[test]
fn a_full_disk_costs_no_answer_is_said_and_is_over_when_there_is_room() {
    let shortage = Shortage::new();
    let server = start(shortage.folder());
    let early = texts("early", 0..300);
    let vectors = embed(&server, &early);
    assert!(is_cached(&server.client(), &early[..100]) && server.get("/ready").contains("\"store\":\"ok\""));

    shortage.begin(&server);
    let mut late: Vec<(String, Value)> = Vec::new();
    for hundred in 0..200 {
        let texts = texts("late", hundred * 100..(hundred + 1) * 100);
        let vectors = embed(&server, &texts);
        late.extend(texts.into_iter().zip(vectors));
        if failures(&server) >= 3.0 {
            break;
        }
    }
    assert!(failures(&server) >= 3.0, "the disk is full");
    assert!(server.metric("vecmemo_store_write_errors_total") >= 1.0, "{}", server.get("/metrics"));
    assert!(!server.get("/ready").contains("\"store\":\"ok\""), "{}", server.get("/ready"));
    assert!(server.log().contains("could not be stored"), "{}", server.log());
    assert_eq!(embed(&server, &early), vectors, "what was stored is still answered");
    assert!(is_cached(&server.client(), &early[..100]));

    shortage.end(&server);
    let after = texts("after", 0..100);
    let (vectors_after, started) = (embed(&server, &after), Instant::now());
    assert_eq!(embed(&server, &after), vectors_after);
    assert!(is_cached(&server.client(), &after), "stored again at once, {:?} after there was room", started.elapsed());
    assert!(!server.get("/ready").contains("writes failed"), "{}", server.get("/ready"));

    // Killed, and started again on the same disk: all is there that had been said to be stored, and nothing is wrong.
    let (early_vectors, folder) = (vectors, shortage.folder().to_owned());
    drop(server);
    let server = start(&folder);
    assert!(is_cached(&server.client(), &early[..100]) && is_cached(&server.client(), &after));
    assert_eq!(embed(&server, &early), early_vectors);
    for late in late.chunks(100) {
        let inputs: Vec<String> = late.iter().map(|(text, _)| text.clone()).collect();
        for ((text, before), now) in late.iter().zip(embed(&server, &inputs)) {
            assert!(is_close(before, &now), "{text}");
        }
    }
    let name = if let Shortage::Disk(mount) = &shortage { mount.name() } else { "a limit on file sizes" };
    println!("full disk ({name}): {} texts answered while it was full, 0 failed, 0 wrong", late.len());
}

/// Equal, but for the last bits of f32 that fall on the other side of a step of f16 when computed in another batch.
pub(super) fn is_close(a: &Value, b: &Value) -> bool {
    let pairs = a.as_array().unwrap().iter().zip(b.as_array().unwrap());
    pairs.map(|(a, b)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs()).fold(0.0, f64::max) <= 1e-3
}

/// What a file system does when it finds itself damaged: from one moment to the next nothing can be written.
#[test]
fn a_file_system_that_becomes_read_only_costs_no_answer_and_is_said() {
    let Some(mount) = Mount::ext4() else {
        announce(
            "no ext4 can be mounted here (root and a loop device are needed): a read-only file system is NOT tested",
        );
        return;
    };
    let mut server = start(mount.path());
    let early = texts("early", 0..200);
    let vectors = embed(&server, &early);
    let folder = mount.path().to_str().unwrap().to_owned();
    // Files open for writing keep a polite change away; `abort` is what an error does.
    assert!(did("mount", &["-o", "remount,abort", &folder]), "ext4 takes the word");
    assert!(File::create(mount.path().join("new")).is_err(), "nothing can be written");

    let late = texts("late", 0..200);
    let late_vectors = embed(&server, &late);
    for (before, now) in late_vectors.iter().zip(embed(&server, &late)) {
        assert!(is_close(before, &now));
    }
    assert_eq!(embed(&server, &early), vectors, "what was stored is still answered");
    assert!(is_cached(&server.client(), &early[..100]));
    assert!(failures(&server) >= 1.0);
    assert!(!server.get("/ready").contains("\"store\":\"ok\""), "{}", server.get("/ready"));
    assert!(server.log().contains("could not be stored") && server.log().contains("ead-only"), "{}", server.log());
    server.kill();
    drop(server);

    let refused = Server::launch(vecmemo(mount.path()), &["--data-dir", "data"]);
    let Err(said) = refused else { panic!("a server starts on a folder it cannot write to") };
    for part in ["data", "ead-only file system", "--data-dir"] {
        assert!(said.contains(part), "{part} in: {said}");
    }
}

/// A log goes to a file, on the disk that is full as likely as not. Lines that could not be written were told of on the same stream,
/// and that this failed too was a panic in whichever thread had something to say: requests had no answer.
#[test]
fn a_log_that_cannot_be_written_costs_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let program = vecmemo(folder.path());
    let mut ignoring = Command::new("bash");
    ignoring.current_dir(folder.path()).args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(program.get_program());
    ignoring
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir", "data", "--capacity-entries", "65536", "--model"])
        .arg(tiny());
    ignoring.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).stderr(File::create(&log).unwrap());
    let mut child = Killed(ignoring.spawn().unwrap());
    let url = || {
        std::fs::read_to_string(&log)
            .unwrap()
            .split_once("curl -s ")
            .and_then(|(_, rest)| Some(rest.split_once("/embed")?.0.to_owned()))
    };
    until("the server is ready", || url().is_some());
    let client = Client::of(url().unwrap());

    assert!(did("prlimit", &["--pid", &child.0.id().to_string(), "--fsize=1:unlimited"]), "prlimit works");
    for text in texts("unwritten", 0..50) {
        let (status, body) = client.post("/embed", &json!({ "inputs": text })).unwrap();
        assert_eq!(status, 200, "{body}");
        assert_eq!(client.post("/embed", &json!({ "inputs": 7 })).unwrap().0, 422, "a refusal is a line in the log");
    }
    assert!(child.0.try_wait().unwrap().is_none(), "it runs");
}

/// A child that does not outlive its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
