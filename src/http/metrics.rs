//! What the service tells Prometheus about its requests and connections. Every series exists from the first scrape,
//! and counting one request looks nothing up: each route holds its own counters.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use hyper::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::route::Route;
use crate::access::{Access, Figures};
use crate::cache::Catalogue;

/// Registers what the caches count: one model's as it is, of several each with the label `model`.
pub(super) fn register_models(catalogue: &Catalogue, registry: &mut Registry) {
    catalogue.register_tier(registry);
    catalogue.register_erasures(registry);
    let models = catalogue.models();
    if let [only] = models.as_slice() {
        return only.cache.register(registry);
    }
    for model in models {
        let label = (Cow::Borrowed("model"), Cow::Owned(model.alias.to_string()));
        model.cache.register(registry.sub_registry_with_label(label));
    }
}

/// Brings the lines of a family together and says once what it is, as the format wants it: of several models each writes
/// its own.
pub(super) fn gathered(text: &str) -> String {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut families: Vec<Vec<&str>> = Vec::new();
    let mut family = 0;
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let name = rest.split(' ').next().unwrap_or_default();
            family = *places.entry(name).or_insert(families.len());
            if family == families.len() {
                families.push(Vec::new());
            }
        } else if families.is_empty() {
            families.push(Vec::new());
        }
        let lines = &mut families[family];
        if !(line.starts_with("# ") && lines.contains(&line)) {
            lines.push(line);
        }
    }
    let mut gathered = String::with_capacity(text.len());
    for line in families.into_iter().flatten().chain(["# EOF"]) {
        gathered.push_str(line);
        gathered.push('\n');
    }
    gathered
}

/// One of a tenant's figures.
type Count = fn(&Figures) -> u64;

/// Reads tenants' accounts at each scrape.
#[derive(Debug)]
struct TenantCollector(Access);

impl Collector for TenantCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let accounts = self.0.accounts();
        let counters: [(&str, &str, Count); 6] = [
            ("tenant_requests", "Requests let in, by tenant", |figures| figures.requests),
            ("tenant_refused", "Requests over a limit, by tenant", |figures| figures.refused),
            ("tenant_items", "Inputs answered, by tenant", |figures| figures.items),
            ("tenant_hits", "Inputs answered from the cache, by tenant", |figures| figures.hits),
            ("tenant_tokens", "Tokens of all inputs, by tenant", |figures| figures.tokens),
            ("tenant_tokens_computed", "Tokens not answered from the cache, by tenant", |figures| {
                figures.tokens_computed
            }),
        ];
        for (name, help, count) in counters {
            if accounts.is_empty() {
                continue;
            }
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for account in &accounts {
                let label = [("tenant", account.tenant())];
                ConstCounter::new(count(&account.figures())).encode(family.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}

/// By the first digit of the status: 2xx to 5xx.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: &'static str,
}

struct OfRoute {
    requests: [Counter; CLASSES.len()],
    seconds: Histogram,
}

/// All of the service's own metrics.
pub(super) struct Metrics {
    routes: Vec<OfRoute>,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram>,
    pub(super) in_flight: Gauge,
    pub(super) connections: Gauge,
    pub(super) accepted: Counter,
    pub(super) request_bytes: Counter,
    pub(super) response_bytes: Counter,
    request_memory_bytes: Gauge,
    answer_memory_bytes: Gauge,
    waiting_memory_bytes: Gauge,
}

/// 100 µs to 105 s, in steps of four.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 4.0, 11))
}

impl Metrics {
    pub(super) fn new() -> Self {
        let requests = Family::<RequestLabels, Counter>::default();
        let seconds = Family::<RouteLabels, Histogram>::new_with_constructor(latency);
        let routes = Route::ALL
            .into_iter()
            .map(|route| {
                let route = route.path();
                let counter = |status| requests.get_or_create(&RequestLabels { route, status }).clone();
                let seconds = seconds.get_or_create(&RouteLabels { route }).clone();
                OfRoute { requests: CLASSES.map(counter), seconds }
            })
            .collect();
        Self {
            routes,
            requests,
            seconds,
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            accepted: Counter::default(),
            request_bytes: Counter::default(),
            response_bytes: Counter::default(),
            request_memory_bytes: Gauge::default(),
            answer_memory_bytes: Gauge::default(),
            waiting_memory_bytes: Gauge::default(),
        }
    }

    /// Counts an answered request.
    pub(super) fn observe(&self, route: Route, status: StatusCode, took: Duration, body_bytes: Option<u64>) {
        let of_route = &self.routes[route as usize];
        let class = usize::from(status.as_u16() / 100).clamp(2, 5) - 2;
        of_route.requests[class].inc();
        of_route.seconds.observe(took.as_secs_f64());
        if let Some(bytes) = body_bytes {
            self.response_bytes.inc_by(bytes);
        }
    }

    /// Sets what is read off other parts at each scrape.
    pub(super) fn set_memory(&self, [request_bytes, answer_bytes, waiting_bytes]: [usize; 3]) {
        self.request_memory_bytes.set(request_bytes as i64);
        self.answer_memory_bytes.set(answer_bytes as i64);
        self.waiting_memory_bytes.set(waiting_bytes as i64);
    }

    pub(super) fn register(&self, registry: &mut Registry, access: &Access) {
        registry.register_collector(Box::new(TenantCollector(access.clone())));
        let http = registry.sub_registry_with_prefix("http");
        http.register("requests", "Requests answered, by route and class of status", self.requests.clone());
        let seconds = "Time from a request's headers to its answer, by route";
        http.register_with_unit("request_duration", seconds, Unit::Seconds, self.seconds.clone());
        http.register("requests_in_flight", "Requests being answered", self.in_flight.clone());
        http.register("connections", "Open connections", self.connections.clone());
        http.register("connections_accepted", "Connections accepted", self.accepted.clone());
        let bytes = "Bytes of requests' bodies";
        http.register_with_unit("request_body", bytes, Unit::Bytes, self.request_bytes.clone());
        let bytes = "Bytes of answers' bodies";
        http.register_with_unit("response_body", bytes, Unit::Bytes, self.response_bytes.clone());
        let memory = "Memory reserved for requests' bodies";
        http.register_with_unit("request_memory", memory, Unit::Bytes, self.request_memory_bytes.clone());
        let memory = "Memory reserved for answers being built and sent";
        http.register_with_unit("answer_memory", memory, Unit::Bytes, self.answer_memory_bytes.clone());
        let memory = "Memory reserved for requests that wait for the model, bodies and answers";
        http.register_with_unit("waiting_memory", memory, Unit::Bytes, self.waiting_memory_bytes.clone());
    }
}

/// Adds one while it lives.
pub(super) struct Held(Gauge<i64, std::sync::atomic::AtomicI64>);

impl Held {
    pub(super) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}
