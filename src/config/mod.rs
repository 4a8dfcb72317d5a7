//! Settings: as typed, and as meant.
//!
//! A setting exists once, in [`Typed`]: its flag, its variable and its key in the file share name and explanation. What
//! the modules are given are their own parts of [`Settings`], checked and complete.

mod access;
mod layers;
mod models;
mod typed;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use access::access;
pub use layers::{DEFAULT_FILE, Layered, Origin, SECTIONS, layer};
pub use models::{ModelSettings, TypedModel, TypedModels};
pub use typed::{
    DeviceName, DurabilityName, InvalidationModeName, LogFormat, PrecisionName, SearchDeviceName, SearchPathName,
    TokenInputsName, Typed, TypedAuth, TypedEventRule, TypedPage, TypedPolicy, TypedRemote, TypedSearch, TypedTenant,
};

use crate::cache::ReuseTerms;
use crate::cache::policy::{Policies, PolicyError, Rule, Terms};
use crate::cache::{EventRule, EventRuleError, EventRules, InvalidationMode};
use crate::domain::Lane;
use crate::{batch, cache, engine, http, remote, store};

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration file {path} is not valid: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// The same, where a secret stands.
    #[error(
        "the configuration file {path} is not valid: a string in quotes is needed in line {line}, which is not shown: it holds a secret"
    )]
    Secret {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
    },
    /// The settings together do not fit their types.
    #[error("the settings are not valid: {0}")]
    Merged(toml::de::Error),
    /// One setting's value makes no sense.
    #[error("the setting {name} cannot be {value}: {reason}")]
    Value {
        /// Its name in the file.
        name: &'static str,
        /// The value.
        value: String,
        /// What it has to be.
        reason: &'static str,
    },
    /// A policy makes no sense.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The shared tier's address makes no sense.
    #[error("remote.url: {problem}")]
    Remote {
        /// What is wrong with it, without its secrets.
        problem: String,
    },
    /// A rule for events makes no sense.
    #[error(transparent)]
    EventRule(#[from] EventRuleError),
    /// Keys make no sense.
    #[error("{place}: {problem}")]
    Keys {
        /// Where they stand.
        place: String,
        /// What is wrong with them, without their secrets.
        problem: String,
    },
}

/// Settings as meant: complete, checked, in the modules' own terms.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to serve.
    pub listen: SocketAddr,
    /// Where to serve operators alone.
    pub admin_listen: Option<SocketAddr>,
    /// A certificate's file, and that of its key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Where the cached vectors are.
    pub data_dir: PathBuf,
    /// Which models, the default one first; at least one.
    pub models: Vec<ModelSettings>,
    /// The most bytes their weights may take in memory together.
    pub models_memory_bytes_max: Option<u64>,
    /// The cache's part.
    pub cache: cache::Config,
    /// The tier shared with other machines, if there is one.
    pub remote: Option<(remote::Url, remote::Config)>,
    /// The stream of its servers that events come by, if there is one.
    pub events_stream: Option<remote::Stream>,
    /// What events invalidate.
    pub events: EventRules,
    /// The batcher's part.
    pub batch: batch::Config,
    /// The service's part.
    pub http: http::Config,
    /// What is traced, and where it goes.
    pub traces: http::TracesConfig,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log: String,
}

/// Every setting's default, from the modules that own them.
#[must_use]
pub fn defaults() -> Typed {
    let store = store::Config::default();
    let batch = batch::Config::default();
    let reuse = cache::ReuseConfig::default();
    let http = http::Config::default();
    let search = cache::SearchConfig::default();
    let tier = remote::Config::default();
    Typed {
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 8080))),
        admin_listen: None,
        tls_cert: None,
        tls_key: None,
        data_dir: Some("data".into()),
        model: Some("all-MiniLM-L6-v2".into()),
        models_dir: Some("models".into()),
        model_revision: None,
        device: Some(DeviceName::Auto),
        precision: Some(PrecisionName::Auto),
        models_memory_bytes_max: None,
        engine_threads: None,
        engine_pin_threads: Some(false),
        engine_chunk_tokens: None,
        engine_niceness: Some(batch.niceness),
        capacity_entries: Some(store.capacity_entries),
        disk_bytes_max: store.disk_bytes_max,
        memory_bytes_max: store.memory_bytes_max,
        durability: Some(DurabilityName::Process),
        sync_interval_ms: Some(1000),
        sweep_seconds: Some(10),
        scrub_bytes_per_second: Some(16 << 20),
        cache_enabled: Some(true),
        reuse_texts_max: Some(reuse.texts_max),
        reuse_certificate_days: Some(reuse.valid.as_secs() / 86_400),
        reuse_vetoes: Some(reuse.vetoes),
        batch_tokens_max: Some(batch.batch_tokens_max),
        batch_texts_max: Some(batch.batch_texts_max),
        batch_ms_max: Some(batch.batch_time_max.as_millis() as u64),
        queue_texts_max: Some(batch.queue_texts_max),
        auto_truncate: Some(http.auto_truncate),
        token_inputs: Some(TokenInputsName::Reject),
        max_client_batch_size: Some(http.batch_texts_max),
        body_bytes_max: Some(http.body_bytes_max),
        request_memory_bytes_max: Some(http.request_memory_bytes_max),
        answer_memory_bytes_max: Some(http.answer_memory_bytes_max),
        waiting_memory_bytes_max: Some(http.waiting_memory_bytes_max),
        connections_max: Some(http.connections_max),
        header_timeout_seconds: Some(http.header_timeout.as_secs_f64()),
        body_timeout_seconds: Some(http.body_timeout.as_secs_f64()),
        idle_timeout_seconds: Some(http.idle_timeout.as_secs_f64()),
        write_timeout_seconds: Some(http.write_timeout.as_secs_f64()),
        request_timeout_seconds: Some(http.request_timeout.as_secs_f64()),
        drain_timeout_seconds: Some(http.drain_timeout.as_secs_f64()),
        auth: TypedAuth::default(),
        remote: TypedRemote {
            url: None,
            deadline_ms: Some(tier.deadline.as_millis() as u64),
            lease_ms: tier.lease.map(|lease| lease.as_millis() as u64),
            hedge_ms: Some(tier.hedge.map_or(0, |hedge| hedge.as_millis() as u64)),
            ca_file: None,
            cert_file: None,
            key_file: None,
            ttl_max_seconds: Some(tier.ttl_max.as_secs()),
            queue_bytes_max: Some(tier.queue_bytes_max),
            prefix: Some(tier.prefix),
            events_stream: None,
            events_group: Some("vecmemo".to_owned()),
        },
        search: TypedSearch {
            enabled: Some(search.enabled),
            path: Some(SearchPathName::Auto),
            device: Some(SearchDeviceName::Auto),
            cache_bytes: Some(search.cache_bytes),
        },
        page: TypedPage { price_per_million_tokens: None, currency: Some("USD".to_owned()) },
        otlp_endpoint: None,
        otlp_sampling_ratio: None,
        otlp_service_name: None,
        log_format: Some(LogFormat::Text),
        log: Some("info".to_owned()),
        policies: BTreeMap::new(),
        tenants: BTreeMap::new(),
        events: Vec::new(),
    }
}

impl Settings {
    /// Checks typed settings and puts them in the modules' terms. What is not set takes its default.
    ///
    /// # Errors
    /// When a value makes no sense, naming it and what it has to be.
    pub fn new(typed: &Typed) -> Result<Self, ConfigError> {
        let defaults = defaults();
        macro_rules! value {
            ($name:ident) => {
                typed.$name.clone().or(defaults.$name.clone()).expect("every required setting has a default")
            };
        }
        macro_rules! of_search {
            ($name:ident) => {
                typed.search.$name.or(defaults.search.$name).expect("every setting of searches has a default")
            };
        }
        macro_rules! at_least_one {
            ($name:ident) => {
                match value!($name) {
                    0 => return Err(not(stringify!($name), 0, "at least 1")),
                    value => value,
                }
            };
        }
        macro_rules! seconds {
            ($name:ident) => {
                match Duration::try_from_secs_f64(value!($name)) {
                    Ok(duration) if !duration.is_zero() => duration,
                    _ => return Err(not(stringify!($name), value!($name), "a number of seconds above 0")),
                }
            };
        }
        let sync_interval = Duration::from_millis(at_least_one!(sync_interval_ms));
        let durability = value!(durability).with(sync_interval);
        let max_client_batch_size = at_least_one!(max_client_batch_size);
        if max_client_batch_size > http::BATCH_TEXTS_CEILING {
            return Err(not("max_client_batch_size", max_client_batch_size, "at most 65536"));
        }
        let engine_niceness = value!(engine_niceness);
        if engine_niceness > 19 {
            return Err(not("engine_niceness", engine_niceness, "at most 19"));
        }
        let batch = batch::Config {
            batch_tokens_max: at_least_one!(batch_tokens_max),
            batch_texts_max: at_least_one!(batch_texts_max),
            batch_time_max: Duration::from_millis(at_least_one!(batch_ms_max)),
            queue_texts_max: at_least_one!(queue_texts_max),
            niceness: engine_niceness,
        };
        if Lane::ALL.into_iter().any(|lane| batch.lane_texts_max(lane) < max_client_batch_size) {
            let reason =
                "at least 1.6 times max_client_batch_size, or a full request could not be queued in every lane";
            return Err(not("queue_texts_max", batch.queue_texts_max, reason));
        }
        let body_bytes_max = at_least_one!(body_bytes_max);
        let request_memory_bytes_max = at_least_one!(request_memory_bytes_max);
        if http::Config::largest_body_bytes(request_memory_bytes_max) < body_bytes_max {
            let reason = "at least four thirds of body_bytes_max, or the largest body would take more than there is for large ones";
            return Err(not("request_memory_bytes_max", request_memory_bytes_max, reason));
        }
        let common = ModelSettings {
            name: None,
            source: String::new(),
            idle: None,
            sources: engine::Sources { models_dir: value!(models_dir), revision: typed.model_revision.clone() },
            engine: engine::Options {
                device: value!(device).into(),
                precision: value!(precision).into(),
                threads: some_or_none(typed.engine_threads, "engine_threads")?,
                pin_threads: value!(engine_pin_threads),
                niceness: engine_niceness,
                state_dir: Some(value!(data_dir)),
                chunk_tokens: some_or_none(typed.engine_chunk_tokens, "engine_chunk_tokens")?,
            },
            store: store::Config {
                capacity_entries: at_least_one!(capacity_entries),
                disk_bytes_max: some_or_none(typed.disk_bytes_max, "disk_bytes_max")?,
                memory_bytes_max: some_or_none(typed.memory_bytes_max, "memory_bytes_max")?,
                durability,
                upkeep: store::Upkeep {
                    sweep_every: Duration::from_secs(value!(sweep_seconds)),
                    scrub_bytes_per_second: value!(scrub_bytes_per_second),
                },
            },
        };
        Ok(Self {
            listen: value!(listen),
            admin_listen: typed.admin_listen,
            tls: match (typed.tls_cert.clone(), typed.tls_key.clone()) {
                (Some(certificate), Some(key)) => Some((certificate, key)),
                (None, None) => None,
                (Some(file), None) => return Err(not("tls_cert", file.display(), "tls_key is needed too")),
                (None, Some(file)) => return Err(not("tls_key", file.display(), "tls_cert is needed too")),
            },
            data_dir: value!(data_dir),
            models: models::models(&value!(model), &common)?,
            models_memory_bytes_max: some_or_none(typed.models_memory_bytes_max, "models_memory_bytes_max")?,
            cache: cache::Config {
                policies: policies(typed, durability, sync_interval)?,
                enabled: value!(cache_enabled),
                search: cache::SearchConfig {
                    enabled: of_search!(enabled),
                    choice: of_search!(path).into(),
                    device: of_search!(device).into(),
                    cache_bytes: of_search!(cache_bytes),
                },
                tier: None,
                reuse: cache::ReuseConfig {
                    texts_max: at_least_one!(reuse_texts_max),
                    valid: Duration::from_secs(at_least_one!(reuse_certificate_days).saturating_mul(86_400)),
                    vetoes: value!(reuse_vetoes),
                },
            },
            remote: remote(typed)?,
            events_stream: events_stream(typed, &defaults)?,
            events: event_rules(typed)?,
            batch,
            http: http::Config {
                price: price(&typed.page, &defaults.page)?,
                metrics_open: typed.auth.metrics_open,
                auto_truncate: value!(auto_truncate),
                token_inputs: match value!(token_inputs) {
                    TokenInputsName::Reject => http::TokenInputs::Reject,
                    TokenInputsName::Own => http::TokenInputs::Own,
                },
                batch_texts_max: max_client_batch_size,
                body_bytes_max,
                request_memory_bytes_max,
                answer_memory_bytes_max: at_least_one!(answer_memory_bytes_max),
                waiting_memory_bytes_max: at_least_one!(waiting_memory_bytes_max),
                connections_max: at_least_one!(connections_max),
                header_timeout: seconds!(header_timeout_seconds),
                body_timeout: seconds!(body_timeout_seconds),
                idle_timeout: seconds!(idle_timeout_seconds),
                write_timeout: seconds!(write_timeout_seconds),
                request_timeout: seconds!(request_timeout_seconds),
                drain_timeout: seconds!(drain_timeout_seconds),
                ..http::Config::default()
            },
            traces: traces(typed)?,
            log_format: value!(log_format),
            log: value!(log),
        })
    }
}

impl Settings {
    /// The model that is meant where only one can be.
    #[must_use]
    pub fn default_model(&self) -> &ModelSettings {
        &self.models[0]
    }
}

/// A bound that need not be given, and is not 0 when it is.
fn some_or_none<T: PartialEq + From<u8>>(bound: Option<T>, name: &'static str) -> Result<Option<T>, ConfigError> {
    match bound {
        Some(bound) if bound == T::from(0) => Err(not(name, 0, "at least 1, or not set")),
        bound => Ok(bound),
    }
}

/// Where traces go, checked.
fn traces(typed: &Typed) -> Result<http::TracesConfig, ConfigError> {
    let Typed { otlp_endpoint, otlp_sampling_ratio, otlp_service_name, .. } = typed;
    let endpoint = otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty());
    if let Some(endpoint) = &endpoint {
        let rest = endpoint.strip_prefix("http://").or(endpoint.strip_prefix("https://"));
        let host = rest.and_then(|rest| rest.split('/').next()).unwrap_or_default();
        if host.is_empty() || endpoint.contains(char::is_whitespace) {
            return Err(not("otlp_endpoint", endpoint, "an address such as http://127.0.0.1:4318"));
        }
        if host.contains('@') {
            let reason = "an address without user and password: they belong into OTEL_EXPORTER_OTLP_HEADERS";
            return Err(not("otlp_endpoint", "what it is", reason));
        }
    }
    if let Some(ratio) = otlp_sampling_ratio.filter(|ratio| !(0.0..=1.0).contains(ratio)) {
        return Err(not("otlp_sampling_ratio", ratio, "a number from 0 to 1"));
    }
    let service_name = otlp_service_name.clone().filter(|name| !name.is_empty());
    Ok(http::TracesConfig { endpoint, sampling_ratio: *otlp_sampling_ratio, service_name })
}

/// The policies in the cache's terms, checked. `durability` is that of all entries.
fn policies(typed: &Typed, durability: store::Durability, sync_interval: Duration) -> Result<Policies, ConfigError> {
    for (name, policy) in &typed.policies {
        if let Some(asked) = policy.durability
            && asked.with(sync_interval).stronger(durability) != asked.with(sync_interval)
        {
            let problem = "cannot be less than the setting durability, which holds for all entries".to_owned();
            return Err(PolicyError { policy: name.clone(), field: "durability", problem }.into());
        }
    }
    let rule = |policy: &TypedPolicy| Rule {
        namespaces: policy.namespaces.clone(),
        tags: policy.tags.clone(),
        terms: Terms {
            ttl: policy.ttl.map(Duration::from_secs),
            jitter: policy.jitter.unwrap_or(0.0),
            refresh_ahead: policy.refresh_ahead.unwrap_or(0.0),
            pinned: policy.pinned.unwrap_or(false),
            shared: policy.shared.unwrap_or(true),
            durability: policy.durability.map(|durability| durability.with(sync_interval)),
            quota: policy.quota,
            reuse: policy.reuse.map(|reuse| ReuseTerms {
                min_similarity: reuse.min_similarity,
                max_violation: reuse.max_violation.unwrap_or(ReuseTerms::MAX_VIOLATION),
            }),
        },
    };
    let rules = typed.policies.iter().map(|(name, policy)| (name.clone(), rule(policy))).collect();
    Ok(Policies::new(&rules)?)
}

/// The shared tier's settings, if it has an address.
fn remote(typed: &Typed) -> Result<Option<(remote::Url, remote::Config)>, ConfigError> {
    let TypedRemote { url, deadline_ms, lease_ms, hedge_ms, ttl_max_seconds, queue_bytes_max, prefix, .. } =
        &typed.remote;
    let TypedRemote { ca_file, cert_file, key_file, .. } = &typed.remote;
    let Some(url) = url.as_deref().filter(|url| !url.is_empty()) else { return Ok(None) };
    let url: remote::Url =
        url.parse().map_err(|error: remote::UrlError| ConfigError::Remote { problem: error.to_string() })?;
    let usual = remote::Config::default();
    let at_least_one = |name, value: Option<u64>, usual: u64| match value {
        Some(0) => Err(not(name, 0, "at least 1")),
        value => Ok(value.unwrap_or(usual)),
    };
    let ttl_max = at_least_one("remote.ttl_max_seconds", *ttl_max_seconds, usual.ttl_max.as_secs())?;
    let lease = lease_ms.map_or(usual.lease, |ms| (ms > 0).then(|| Duration::from_millis(ms)));
    let deadline_ms = at_least_one("remote.deadline_ms", *deadline_ms, usual.deadline.as_millis() as u64)?;
    let hedge = hedge_ms.map_or(usual.hedge, |ms| (ms > 0).then(|| Duration::from_millis(ms)));
    if hedge.is_some_and(|hedge| hedge >= Duration::from_millis(deadline_ms)) {
        let reason = "less than deadline_ms, after which nobody waits for the second answer either; 0 for never";
        return Err(not("remote.hedge_ms", hedge_ms.unwrap_or_default(), reason));
    }
    let identity = match (cert_file, key_file) {
        (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
        (None, None) => None,
        (Some(file), None) => {
            return Err(not("remote.cert_file", file.display(), "given with key_file: neither is of use alone"));
        }
        (None, Some(file)) => {
            return Err(not("remote.key_file", file.display(), "given with cert_file: neither is of use alone"));
        }
    };
    if !url.has_tls() && (ca_file.is_some() || identity.is_some()) {
        let problem =
            "begins with rediss://, rediss-sentinel:// or rediss-cluster:// where certificates are given".to_owned();
        return Err(ConfigError::Remote { problem });
    }
    let config = remote::Config {
        deadline: Duration::from_millis(deadline_ms),
        queue_bytes_max: queue_bytes_max.unwrap_or(usual.queue_bytes_max),
        ttl_max: Duration::from_secs(ttl_max),
        prefix: prefix.clone().unwrap_or(usual.prefix),
        lease,
        hedge,
        certificates: remote::Certificates { authority: ca_file.clone(), identity },
        state_file: typed.data_dir.as_ref().map(|folder| folder.join("remote.json")),
    };
    Ok(Some((url, config)))
}

/// What computing costs, if that is known.
fn price(typed: &TypedPage, defaults: &TypedPage) -> Result<Option<http::Price>, ConfigError> {
    let currency = typed.currency.as_ref().or(defaults.currency.as_ref()).cloned().unwrap_or_default();
    if currency.len() != 3 || !currency.bytes().all(|letter| letter.is_ascii_uppercase()) {
        return Err(not("page.currency", currency, "three capital letters, as USD or EUR"));
    }
    let Some(per_million_tokens) = typed.price_per_million_tokens else { return Ok(None) };
    if !(0.0..=1e9).contains(&per_million_tokens) {
        return Err(not("page.price_per_million_tokens", per_million_tokens, "a number from 0 to 1000000000"));
    }
    Ok(Some(http::Price { per_million_tokens, currency }))
}

/// The stream that events come by. A consumer is named after what no two that run have in common: the machine and the data folder.
fn events_stream(typed: &Typed, defaults: &Typed) -> Result<Option<remote::Stream>, ConfigError> {
    let Some(name) = typed.remote.events_stream.clone().filter(|name| !name.is_empty()) else { return Ok(None) };
    if typed.remote.url.is_none() {
        return Err(not("remote.events_stream", name, "without it nothing is read: `url` in [remote] is needed"));
    }
    let group = typed.remote.events_group.as_ref().or(defaults.remote.events_group.as_ref());
    let folder = typed.data_dir.as_ref().or(defaults.data_dir.as_ref()).cloned().unwrap_or_default();
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    let machine = rustix::system::uname();
    let consumer = format!("{}:{}", machine.nodename().to_string_lossy(), folder.display());
    Ok(Some(remote::Stream { name, group: group.cloned().unwrap_or_default(), consumer }))
}

/// The rules for events in the cache's terms, checked.
fn event_rules(typed: &Typed) -> Result<EventRules, ConfigError> {
    let rule = |rule: &TypedEventRule| EventRule {
        on: rule.on.clone(),
        tags: rule.tags.clone(),
        tag_glob: rule.tag_glob.clone(),
        namespace: rule.namespace.clone(),
        model: rule.model.clone(),
        older_than: rule.older_than.map(Duration::from_secs),
        mode: match rule.mode {
            None | Some(InvalidationModeName::Hard) => InvalidationMode::Hard,
            Some(InvalidationModeName::Soft) => InvalidationMode::Soft,
        },
    };
    Ok(EventRules::new(&typed.events.iter().map(rule).collect::<Vec<_>>())?)
}

fn not(name: &'static str, value: impl ToString, reason: &'static str) -> ConfigError {
    ConfigError::Value { name, value: value.to_string(), reason }
}
