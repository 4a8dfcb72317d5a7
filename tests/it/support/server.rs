//! The program as a child process, and as a server that tests talk to, starve and kill.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::PATIENCE;
use super::golden::data;

/// The model that the tests run the program with: real, and small.
pub fn tiny() -> PathBuf {
    data("models/tiny-mean")
}

/// The program, without the settings of whoever runs the tests.
pub fn vecmemo(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vecmemo"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("VECMEMO_")) {
        command.env_remove(name);
    }
    command.current_dir(folder);
    command
}

/// A running server, killed when the test is done with it.
pub struct Server {
    child: Child,
    agent: ureq::Agent,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    pub url: String,
}

impl Server {
    pub fn start(folder: &Path) -> Self {
        Self::run(vecmemo(folder))
    }

    /// Starts a command that ends in the program.
    pub fn run(command: Command) -> Self {
        Self::with(command, &["--data-dir", "data", "--capacity-entries", "65536"])
    }

    /// Starts a command that ends in the program, with these settings beside model and address.
    pub fn with(command: Command, settings: &[&str]) -> Self {
        Self::launch(command, settings).unwrap_or_else(|said| panic!("the server does not start: {said}"))
    }

    /// As `with`; the error is all it said before it ended.
    pub fn launch(command: Command, settings: &[&str]) -> Result<Self, String> {
        let (mut child, lines) = spawn(command, settings);
        let log = Arc::new(Mutex::new(String::new()));
        let (ready, when_ready) = std::sync::mpsc::channel();
        let written = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("curl -s ") {
                    let url = rest.split("/embed").next().unwrap_or_default().to_owned();
                    // The test may have failed meanwhile.
                    let _ = ready.send(url);
                }
                let mut log = written.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        let agent = agent();
        match when_ready.recv() {
            Ok(url) => Ok(Self { child, agent, log, reader: Some(reader), url }),
            Err(_) => {
                child.wait().unwrap();
                reader.join().unwrap();
                let said = log.lock().unwrap().clone();
                Err(said)
            }
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to its log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn client(&self) -> Client {
        Client { agent: self.agent.clone(), url: self.url.clone() }
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.client().post(path, body).unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()))
    }

    /// The answer to a GET, which must succeed.
    pub fn get(&self, path: &str) -> String {
        let (status, body) = self.client().get(path).unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()));
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// One number of `/metrics`, or 0 if there is none of that name.
    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics");
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(0.0)
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Polls until something that another process does has happened.
pub fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let started = Instant::now();
    while !happened() {
        assert!(started.elapsed() < PATIENCE, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

type Lines = std::io::Lines<BufReader<std::process::ChildStderr>>;

/// Starts the server without waiting for anything.
pub fn spawn(mut command: Command, settings: &[&str]) -> (Child, Lines) {
    command.arg("serve").args(settings);
    if !settings.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    // A configuration file has models of its own.
    if !settings.contains(&"--config") {
        command.arg("--model").arg(tiny());
    }
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    (child, lines)
}

/// Talks to a server that may be killed at any moment.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    url: String,
}

impl Client {
    /// Of a server that was started in another way.
    pub fn of(url: String) -> Self {
        Self { agent: agent(), url }
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).build().new_agent()
}

type Answer<T> = Result<(u16, T), ureq::Error>;

impl Client {
    pub fn post(&self, path: &str, body: &Value) -> Answer<Value> {
        let mut response = self.agent.post(format!("{}{path}", self.url)).send_json(body)?;
        Ok((response.status().as_u16(), response.body_mut().with_config().limit(1 << 30).read_json()?))
    }

    /// A POST of any text with any headers.
    pub fn send(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer<Value> {
        let mut request = self.agent.post(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body)?;
        Ok((response.status().as_u16(), response.body_mut().read_json()?))
    }

    pub fn get(&self, path: &str) -> Answer<String> {
        let mut response = self.agent.get(format!("{}{path}", self.url)).call()?;
        Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
    }

    /// A GET with headers.
    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer<String> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.call()?;
        Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
    }

    pub fn put(&self, path: &str, body: &Value) -> Answer<Value> {
        let mut response = self.agent.put(format!("{}{path}", self.url)).send_json(body)?;
        Ok((response.status().as_u16(), response.body_mut().read_json()?))
    }

    pub fn delete(&self, path: &str) -> Answer<String> {
        let mut response = self.agent.delete(format!("{}{path}", self.url)).call()?;
        Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
    }
}
