//! Traces: a span a request, with its stages below it, sent to an OpenTelemetry collector by OTLP over HTTP.
//!
//! A request's spans are made once it is answered, of what was measured in any case: no span is open meanwhile and none goes from
//! thread to thread. Where nothing is to be traced, a request costs one look at an empty option. Spans wait in a bounded
//! queue for a thread of their own; while the collector is away they are dropped, and no request waits.
//!
//! ```text
//! POST /embed ├─ key ─┼─ store ─┼─ tokenize ─┼─ remote ─┼─ queue ─┼─ inference ─┼─ write ─┤
//! ```
//!
//! Stages have the lengths that were measured, of several texts the longest, and are drawn one after the other in the order in
//! which a text meets them. No text is in a span.

mod collector;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{Span, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

use self::collector::Collector;
use super::headers::Summary;
use super::route::Route;
use crate::cache::Timings;

/// How long the last spans may take to be sent when the service ends.
const AT_END: Duration = Duration::from_secs(3);
/// Where a collector takes traces, below its address.
const PATH: &str = "v1/traces";

/// What is traced, and where it goes. What is `None` is as OpenTelemetry's own variables (`OTEL_…`) say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TracesConfig {
    /// The collector's address, such as `http://127.0.0.1:4318`.
    pub endpoint: Option<String>,
    /// The share of requests that are traced where the client does not decide.
    pub sampling_ratio: Option<f64>,
    /// What this service is called.
    pub service_name: Option<String>,
}

/// Why nothing can be traced.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be sent")]
pub struct TracesError(#[from] opentelemetry_otlp::ExporterBuildError);

/// Makes and sends spans. All clones are one.
#[derive(Clone)]
pub struct Traces(Arc<Shared>);

struct Shared {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

impl std::fmt::Debug for Traces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Traces")
    }
}

impl TracesConfig {
    /// Whether there is somewhere to send traces to, by our settings or by OpenTelemetry's variables.
    fn is_on(&self, variable: impl Fn(&str) -> Option<String>) -> bool {
        let is = |name, value: &str| variable(name).is_some_and(|found| found.trim().eq_ignore_ascii_case(value));
        let named = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
        let is_named =
            self.endpoint.is_some() || named.iter().any(|name| variable(name).is_some_and(|url| !url.is_empty()));
        is_named && !is("OTEL_SDK_DISABLED", "true") && !is("OTEL_TRACES_EXPORTER", "none")
    }
}

impl Traces {
    /// Begins, if there is somewhere to send traces to.
    ///
    /// # Errors
    /// When OpenTelemetry's variables contradict themselves, or ask for what is not built in.
    pub fn start(config: &TracesConfig) -> Result<Option<Self>, TracesError> {
        if !config.is_on(|name| std::env::var(name).ok()) {
            return Ok(None);
        }
        let mut exporter = SpanExporter::builder().with_http().with_http_client(Collector::new());
        if let Some(endpoint) = &config.endpoint {
            exporter = exporter.with_endpoint(address(endpoint));
        }
        let mut provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter.build()?).with_resource(resource(config));
        if let Some(ratio) = config.sampling_ratio {
            provider = provider.with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))));
        }
        let provider = provider.build();
        let tracer = provider.tracer("vecmemo");
        Ok(Some(Self(Arc::new(Shared { provider, tracer, propagator: TraceContextPropagator::new() }))))
    }

    /// Sends what waits, within a few seconds.
    pub fn stop(&self) {
        if let Err(error) = self.0.provider.shutdown_with_timeout(AT_END) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }

    /// A request begins: whose trace it belongs to, and when.
    pub(super) fn begin(&self, headers: &HeaderMap) -> Begun {
        let parent = self.0.propagator.extract_with_context(&Context::new(), &HeaderExtractor(headers));
        Begun { traces: self.clone(), parent, at: SystemTime::now() }
    }
}

/// Where a collector takes traces.
fn address(endpoint: &str) -> String {
    let base = endpoint.trim_end_matches('/');
    if base.ends_with(PATH) { base.to_owned() } else { format!("{base}/{PATH}") }
}

fn resource(config: &TracesConfig) -> Resource {
    let of_variables = Resource::builder().build();
    let is_named = of_variables
        .get(&Key::from_static_str("service.name"))
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    match &config.service_name {
        Some(name) => builder.with_service_name(name.clone()).build(),
        None if is_named => builder.build(),
        None => builder.with_service_name("vecmemo").build(),
    }
}

/// A request that will be traced when it is answered.
pub(super) struct Begun {
    traces: Traces,
    parent: Context,
    at: SystemTime,
}

/// What a span says of vectors that were answered.
pub(super) struct Embedding {
    pub(super) model: String,
    pub(super) dims: usize,
    pub(super) summary: Summary,
    pub(super) timings: Timings,
}

/// What a span says of an answer.
pub(super) struct Ended<'a> {
    pub(super) route: Route,
    pub(super) method: &'a Method,
    pub(super) status: StatusCode,
    pub(super) id: &'a HeaderValue,
    pub(super) embedding: Option<Box<Embedding>>,
}

impl Begun {
    /// Makes the request's spans and hands them over.
    pub(super) fn end(self, ended: Ended<'_>) {
        let Self { traces, parent, at } = self;
        let (tracer, now) = (&traces.0.tracer, SystemTime::now());
        let Ended { route, method, status, id, embedding } = ended;
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.as_str().to_owned()),
            KeyValue::new("http.route", route.path()),
            KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
        ];
        attributes.extend(id.to_str().ok().map(|id| KeyValue::new("vecmemo.request_id", id.to_owned())));
        if status.is_client_error() || status.is_server_error() {
            attributes.push(KeyValue::new("error.type", status.as_str().to_owned()));
        }
        if let Some(embedding) = &embedding {
            attributes.extend(of(embedding));
        }
        let builder = SpanBuilder::from_name(format!("{method} {}", route.path()))
            .with_kind(SpanKind::Server)
            .with_start_time(at)
            .with_attributes(attributes);
        let mut span = tracer.build_with_context(builder, &parent);
        if !span.is_recording() {
            return;
        }
        // By the conventions a client's mistake is no error of the server's.
        if status.is_server_error() {
            span.set_status(Status::error(""));
        }
        let within = parent.with_span(span);
        if let Some(embedding) = embedding {
            stages(tracer, &within, &embedding.timings, at, now);
        }
        within.span().end_with_timestamp(now);
    }
}

/// The attributes that OpenTelemetry's conventions for generative AI have for embeddings, and ours.
fn of(embedding: &Embedding) -> Vec<KeyValue> {
    let Embedding { model, dims, summary, .. } = embedding;
    let Summary { items, hits, reused, joined, computed, truncated, tokens, cached_tokens, .. } = *summary;
    let count = |name: &'static str, count: usize| KeyValue::new(name, i64::try_from(count).unwrap_or(i64::MAX));
    vec![
        KeyValue::new("gen_ai.operation.name", "embeddings"),
        KeyValue::new("gen_ai.provider.name", "vecmemo"),
        KeyValue::new("gen_ai.request.model", model.clone()),
        count("gen_ai.usage.input_tokens", usize::try_from(tokens).unwrap_or(usize::MAX)),
        count("gen_ai.embeddings.dimension.count", *dims),
        count("vecmemo.items", items),
        count("vecmemo.hits", hits),
        count("vecmemo.reused", reused),
        count("vecmemo.joined", joined),
        count("vecmemo.computed", computed),
        count("vecmemo.truncated", truncated),
        count("vecmemo.cached_tokens", usize::try_from(cached_tokens).unwrap_or(usize::MAX)),
    ]
}

/// A span for each stage that took any time.
fn stages(tracer: &SdkTracer, within: &Context, timings: &Timings, from: SystemTime, until: SystemTime) {
    let Timings { key, store, tokenize, reuse, remote, queue, inference, write } = *timings;
    let mut at = from;
    for (name, took) in [
        ("key", key),
        ("store", store),
        ("tokenize", tokenize),
        ("reuse", reuse),
        ("remote", remote),
        ("queue", queue),
        ("inference", inference),
        ("write", write),
    ] {
        if took.is_zero() {
            continue;
        }
        // The longest times of several texts may come to more than the request took.
        let end = (at + took).min(until);
        let stage = SpanBuilder::from_name(Cow::Borrowed(name)).with_kind(SpanKind::Internal).with_start_time(at);
        tracer.build_with_context(stage, within).end_with_timestamp(end);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracing_is_off_until_somebody_names_a_collector() {
        let none = TracesConfig::default();
        let ours = TracesConfig { endpoint: Some("http://a".to_owned()), ..none.clone() };
        let with = |set: &'static [(&str, &str)]| {
            move |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        assert!(!none.is_on(with(&[])) && ours.is_on(with(&[])));
        assert!(none.is_on(with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a")])));
        assert!(none.is_on(with(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://a")])));
        assert!(!none.is_on(with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")])));
        assert!(!ours.is_on(with(&[("OTEL_SDK_DISABLED", "true")])));
        assert!(!ours.is_on(with(&[("OTEL_TRACES_EXPORTER", "none")])));
    }

    #[test]
    fn a_collectors_address_gets_the_path_that_it_has_not() {
        for endpoint in ["http://a:4318", "http://a:4318/", "http://a:4318/v1/traces"] {
            assert_eq!(address(endpoint), "http://a:4318/v1/traces");
        }
    }
}
