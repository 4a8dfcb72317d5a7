//! An endpoint that does as it is told, over real sockets: one request a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};

/// What was sent.
#[derive(Clone)]
pub struct Received {
    pub path: String,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The texts, in either dialect.
    pub fn texts(&self) -> Vec<String> {
        let texts = self.body.get("input").or(self.body.get("inputs")).unwrap();
        texts.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    }
}

/// What is answered.
pub enum Reply {
    /// A status, headers and a body.
    Whole(u16, Vec<(&'static str, String)>, String),
    /// The beginning of a body that was announced to be longer.
    Half(String),
    /// `[`, and then digits without an end.
    Endless,
    /// Nothing, for as long as the endpoint lives.
    Silence,
}

impl Reply {
    pub fn status(status: u16, body: impl ToString) -> Self {
        Self::Whole(status, Vec::new(), body.to_string())
    }

    /// A right answer in OpenAI's dialect.
    pub fn vectors(received: &Received, vector: impl Fn(&str) -> Vec<f32>) -> Self {
        let item = |(index, text): (usize, &String)| json!({"index": index, "embedding": vector(text)});
        let data: Vec<Value> = received.texts().iter().enumerate().map(item).collect();
        Self::status(200, json!({"data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}}))
    }
}

type Behaviour = Box<dyn FnMut(&Received) -> Reply + Send>;

pub struct Fake {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    received: Mutex<Vec<Received>>,
    silent: Mutex<Vec<TcpStream>>,
    ended: AtomicBool,
}

impl Fake {
    pub fn start(behaviour: impl FnMut(&Received) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(Box::new(behaviour)),
            received: Mutex::default(),
            silent: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, serving) = (stream.unwrap(), Arc::clone(&serving));
                std::thread::spawn(move || serving.answer(stream));
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    pub fn received(&self) -> Vec<Received> {
        self.shared.received.lock().unwrap().clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.silent.lock().unwrap().clear();
        // Wakes it up to see that.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A client that goes away ends its own connection only.
    fn answer(&self, mut stream: TcpStream) {
        let Some(received) = read(&stream) else { return };
        self.received.lock().unwrap().push(received.clone());
        let reply = (self.behaviour.lock().unwrap())(&received);
        let head =
            |status: u16| format!("HTTP/1.1 {status} Said\r\nconnection: close\r\ncontent-type: application/json\r\n");
        let _ = match reply {
            Reply::Whole(status, headers, body) => {
                let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let length = body.len();
                stream.write_all(format!("{}content-length: {length}\r\n{headers}\r\n{body}", head(status)).as_bytes())
            }
            Reply::Half(body) => {
                let length = body.len() * 2;
                stream.write_all(format!("{}content-length: {length}\r\n\r\n{body}", head(200)).as_bytes())
            }
            Reply::Endless => {
                let mut sent = stream.write_all(format!("{}\r\n[", head(200)).as_bytes());
                while sent.is_ok() && !self.ended.load(Ordering::SeqCst) {
                    sent = stream.write_all(&[b'1'; 1 << 16]);
                }
                sent
            }
            Reply::Silence => {
                self.silent.lock().unwrap().push(stream);
                Ok(())
            }
        };
    }
}

fn read(stream: &TcpStream) -> Option<Received> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let mut received = Received { path, headers, body: Value::Null };
    let mut body = vec![0; received.header("content-length")?.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    received.body = serde_json::from_slice(&body).ok()?;
    Some(received)
}
