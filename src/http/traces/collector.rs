//! The collector, spoken to by the HTTP client that the rest of the program uses. Blocks: the exporter has a thread of its own.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};

/// How long a collector may take, unless OpenTelemetry's variables say otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What is read of its answer.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug)]
pub(super) struct Collector {
    agent: ureq::Agent,
    /// Whether it did not take the last batch.
    is_away: AtomicBool,
}

impl Collector {
    pub(super) fn new() -> Self {
        let variables = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
        let ms = variables.iter().find_map(|name| std::env::var(name).ok()?.trim().parse().ok());
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(ms.map_or(TIMEOUT, Duration::from_millis)))
            .http_status_as_error(false)
            .max_redirects(0)
            .build()
            .new_agent();
        Self { agent, is_away: AtomicBool::new(false) }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (head, body) = self.agent.run(request.map(|body| body.to_vec()))?.into_parts();
        let body = body.into_with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }

    /// Says once that the collector is away, and once that it is back.
    fn tell(&self, problem: Option<String>) {
        if self.is_away.swap(problem.is_some(), Ordering::Relaxed) == problem.is_some() {
            return;
        }
        match problem {
            Some(problem) => {
                tracing::warn!(problem, "the collector does not take traces: they are dropped until it does")
            }
            None => tracing::info!("the collector takes traces again"),
        }
    }
}

impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let answer = self.send(request);
            self.tell(match &answer {
                Ok(response) if response.status().is_success() => None,
                Ok(response) => Some(response.status().to_string()),
                Err(error) => Some(error.to_string()),
            });
            answer
        })
    }
}
