//! Where a warm-up's texts go: into the cache in this process, or to a running server.

use std::borrow::Cow;
use std::ops::AddAssign;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::json;

use super::super::client::{Client, Reply};
use super::lines::Line;
use crate::cache::{self, Cache, Inputs, Request};
use crate::domain::{Lane, Namespace, Status};

/// How long to wait when a server refuses without saying how long.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// What all texts have in common.
pub(super) struct Options {
    pub(super) namespace: Namespace,
    pub(super) prompt_name: Option<String>,
    pub(super) ttl_seconds: Option<u64>,
    /// One of a running server's models; its default if `None`.
    pub(super) model: Option<String>,
}

pub(super) struct Target {
    way: Way,
    options: Options,
}

enum Way {
    Cache(Cache),
    Server { client: Client, batch_max: u64 },
}

/// How many texts were answered how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) texts: u64,
    /// Without the model: hits, and duplicates of others.
    pub(super) cached: u64,
    pub(super) computed: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.texts += other.texts;
        self.cached += other.cached;
        self.computed += other.computed;
    }
}

impl Tally {
    fn new(texts: u64, computed: u64) -> Self {
        Self { texts, cached: texts.saturating_sub(computed), computed }
    }
}

/// Why a batch was not embedded.
pub(super) enum Failure {
    /// Nothing more can be done.
    Fatal(anyhow::Error),
    /// Some of its texts could not be; the others were.
    Texts { tally: Tally, failed: Vec<(usize, String)> },
}

/// The outcome of one attempt at some texts.
enum Attempt {
    Done(Tally),
    Later(Duration),
    Failed(String),
}

impl Target {
    pub(super) fn cache(cache: Cache, options: Options) -> Self {
        Self { way: Way::Cache(cache), options }
    }

    /// Asks the server whether it is there at all.
    pub(super) fn server(url: &str, options: Options) -> anyhow::Result<Self> {
        let client = Client::new(url);
        let info = client.get_json("/info")?;
        let batch_max = info["max_client_batch_size"].as_u64().unwrap_or(u64::MAX).max(1);
        Ok(Self { way: Way::Server { client, batch_max }, options })
    }

    /// The most texts a batch may have.
    pub(super) fn batch_max(&self) -> u64 {
        match &self.way {
            Way::Cache(_) => u64::MAX,
            Way::Server { batch_max, .. } => *batch_max,
        }
    }

    /// Embeds a batch. When it fails as a whole, its texts are tried one by one, so that one bad text costs only itself.
    pub(super) async fn embed(&self, batch: &[Line]) -> Result<Tally, Failure> {
        match self.persist(batch).await? {
            Ok(tally) => return Ok(tally),
            Err(reason) if batch.len() == 1 => {
                return Err(Failure::Texts { tally: Tally::default(), failed: vec![(0, reason)] });
            }
            Err(_) => {}
        }
        let mut tally = Tally::default();
        let mut failed = Vec::new();
        for index in 0..batch.len() {
            match self.persist(&batch[index..=index]).await? {
                Ok(one) => tally += one,
                Err(reason) => failed.push((index, reason)),
            }
        }
        if failed.is_empty() { Ok(tally) } else { Err(Failure::Texts { tally, failed }) }
    }

    /// Tries until there is room.
    async fn persist(&self, batch: &[Line]) -> Result<Result<Tally, String>, Failure> {
        loop {
            let attempt = match &self.way {
                Way::Cache(cache) => self.embed_here(cache, batch).await,
                Way::Server { client, .. } => self.embed_there(client, batch).await.map_err(Failure::Fatal)?,
            };
            match attempt {
                Attempt::Done(tally) => return Ok(Ok(tally)),
                Attempt::Failed(reason) => return Ok(Err(reason)),
                Attempt::Later(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    async fn embed_here(&self, cache: &Cache, batch: &[Line]) -> Attempt {
        let texts: Vec<Cow<'_, str>> = batch.iter().map(|line| Cow::from(line.text.as_str())).collect();
        let request = Request {
            namespace: self.options.namespace.clone(),
            prompt_name: self.options.prompt_name.as_deref(),
            ttl: self.options.ttl_seconds.map(Duration::from_secs),
            lane: Lane::WarmUp,
            ..Request::new(Inputs::Texts(&texts))
        };
        match cache.embed(request).await {
            Ok(answer) => Attempt::Done(Tally::new(batch.len() as u64, answer.count(Status::Computed) as u64)),
            Err(cache::Error::QueueFull { retry_after, .. }) => Attempt::Later(retry_after),
            Err(error) => Attempt::Failed(error.to_string()),
        }
    }

    async fn embed_there(&self, client: &Client, batch: &[Line]) -> anyhow::Result<Attempt> {
        let texts: Vec<&str> = batch.iter().map(|line| line.text.as_str()).collect();
        let mut body = json!({ "inputs": texts });
        if !self.options.namespace.as_str().is_empty() {
            body["namespace"] = json!(self.options.namespace.as_str());
        }
        if let Some(model) = &self.options.model {
            body["model"] = json!(model);
        }
        if let Some(name) = &self.options.prompt_name {
            body["prompt_name"] = json!(name);
        }
        if let Some(seconds) = self.options.ttl_seconds {
            body["ttl"] = json!(seconds);
        }
        let asked = client.clone();
        let headers = [("accept", "application/octet-stream"), ("x-priority", Lane::WarmUp.as_str())];
        let posted = tokio::task::spawn_blocking(move || asked.post("/embed", &headers, &body));
        let reply: Reply = posted.await.context("a request was given up")??;
        Ok(match reply.status {
            200 => Attempt::Done(Tally::new(batch.len() as u64, reply.count("computed"))),
            429 | 503 => Attempt::Later(reply.retry_after.unwrap_or(RETRY_AFTER_DEFAULT)),
            401 | 403 | 404 => return Err(anyhow!("{} answered {}: {}", client.url(), reply.status, reply.message())),
            status => Attempt::Failed(format!("{status}: {}", reply.message())),
        })
    }

    /// Sees to it that everything stands in the store.
    pub(super) async fn drain(&self) -> anyhow::Result<()> {
        match &self.way {
            Way::Cache(cache) => cache.drain().await.context("the store could not be synced"),
            Way::Server { .. } => Ok(()),
        }
    }
}
