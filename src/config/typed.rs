//! Settings as typed: every one optional, from a flag, a variable or the file, under one name and one explanation.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::models::TypedModels;
use crate::cache::{PathChoice, SearchDevice};
use crate::engine::{DeviceChoice, Precision};
use crate::store::Durability;

/// One setting per field: `--data-dir`, `VECMEMO_DATA_DIR` and `data_dir` in the file are the same.
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Typed {
    /// Address and port to serve on
    #[arg(long, env = "VECMEMO_LISTEN", value_name = "ADDRESS", help_heading = "Service")]
    pub listen: Option<SocketAddr>,

    /// Address and port for operators: /admin, /stats and /metrics are served there alone; if not set, beside all else
    #[arg(
        long,
        env = "VECMEMO_ADMIN_LISTEN",
        value_name = "ADDRESS",
        help_heading = "Service",
        hide_short_help = true
    )]
    pub admin_listen: Option<SocketAddr>,

    /// Certificate in PEM, with its chain: connections are then by TLS; read again when it changes
    #[arg(long, env = "VECMEMO_TLS_CERT", value_name = "FILE", help_heading = "Access", hide_short_help = true)]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key, in PEM
    #[arg(long, env = "VECMEMO_TLS_KEY", value_name = "FILE", help_heading = "Access", hide_short_help = true)]
    pub tls_key: Option<PathBuf>,

    /// Folder of the cached vectors; made if absent
    #[arg(long, env = "VECMEMO_DATA_DIR", value_name = "FOLDER", help_heading = "Store")]
    pub data_dir: Option<PathBuf>,

    /// The model: a name from `vecmemo models list`, a Hugging Face repository, or a folder; or one of the file's `[[model]]`
    #[arg(long, env = "VECMEMO_MODEL", value_name = "NAME", help_heading = "Model")]
    pub model: Option<TypedModels>,

    /// Folder of model manifests and weights
    #[arg(long, env = "VECMEMO_MODELS_DIR", value_name = "FOLDER", help_heading = "Model")]
    pub models_dir: Option<PathBuf>,

    /// Revision of a model that comes from the Hugging Face Hub: a branch, tag or commit
    #[arg(
        long,
        env = "VECMEMO_MODEL_REVISION",
        value_name = "REVISION",
        help_heading = "Model",
        hide_short_help = true
    )]
    pub model_revision: Option<String>,

    /// What computes: a GPU where there is one, or always the same
    #[arg(long, env = "VECMEMO_DEVICE", value_name = "DEVICE", help_heading = "Model")]
    pub device: Option<DeviceName>,

    /// How exactly vectors are computed
    #[arg(long, env = "VECMEMO_PRECISION", value_name = "PRECISION", help_heading = "Model")]
    pub precision: Option<PrecisionName>,

    /// The most bytes that the weights of all models in memory may have together; the least recently used make room
    #[arg(
        long,
        env = "VECMEMO_MODELS_MEMORY_BYTES_MAX",
        value_name = "BYTES",
        help_heading = "Model",
        hide_short_help = true
    )]
    pub models_memory_bytes_max: Option<u64>,

    /// Threads that compute on the CPU; one for each processor if not set
    #[arg(
        long,
        env = "VECMEMO_ENGINE_THREADS",
        value_name = "THREADS",
        help_heading = "Model",
        hide_short_help = true
    )]
    pub engine_threads: Option<usize>,

    /// Whether each of them stays on one processor
    #[arg(
        long,
        env = "VECMEMO_ENGINE_PIN_THREADS",
        value_name = "BOOL",
        help_heading = "Model",
        hide_short_help = true
    )]
    pub engine_pin_threads: Option<bool>,

    /// Tokens that one of them computes together; measured at the start if not set
    #[arg(
        long,
        env = "VECMEMO_ENGINE_CHUNK_TOKENS",
        value_name = "TOKENS",
        help_heading = "Model",
        hide_short_help = true
    )]
    pub engine_chunk_tokens: Option<usize>,

    /// How far computing stands back for answering from the cache, as nice(1) has it: 0 to 19
    #[arg(
        long,
        env = "VECMEMO_ENGINE_NICENESS",
        value_name = "NICENESS",
        help_heading = "Model",
        hide_short_help = true
    )]
    pub engine_niceness: Option<u8>,

    /// The most entries kept; the least recently useful are evicted past it
    #[arg(long, env = "VECMEMO_CAPACITY_ENTRIES", value_name = "ENTRIES", help_heading = "Store")]
    pub capacity_entries: Option<u64>,

    /// The most bytes of disk for the store's files; lowers the capacity where it is tighter
    #[arg(long, env = "VECMEMO_DISK_BYTES_MAX", value_name = "BYTES", help_heading = "Store")]
    pub disk_bytes_max: Option<u64>,

    /// The most bytes of memory that the store keeps beside the mapped file; lowers the capacity where it is tighter
    #[arg(long, env = "VECMEMO_MEMORY_BYTES_MAX", value_name = "BYTES", help_heading = "Store")]
    pub memory_bytes_max: Option<u64>,

    /// What an answered entry survives: the process being killed, or a power loss after the sync interval, or any
    /// power loss
    #[arg(long, env = "VECMEMO_DURABILITY", value_name = "WHEN", help_heading = "Store")]
    pub durability: Option<DurabilityName>,

    /// Milliseconds between syncs with durability `interval`
    #[arg(long, env = "VECMEMO_SYNC_INTERVAL_MS", value_name = "MS", help_heading = "Store", hide_short_help = true)]
    pub sync_interval_ms: Option<u64>,

    /// Seconds between sweeps that remove expired entries; 0: only when their room is needed
    #[arg(long, env = "VECMEMO_SWEEP_SECONDS", value_name = "SECONDS", help_heading = "Store", hide_short_help = true)]
    pub sweep_seconds: Option<u64>,

    /// How fast stored entries are checked for damage in the background, in bytes a second; 0: only when they are read
    #[arg(
        long,
        env = "VECMEMO_SCRUB_BYTES_PER_SECOND",
        value_name = "BYTES",
        help_heading = "Store",
        hide_short_help = true
    )]
    pub scrub_bytes_per_second: Option<u64>,

    /// Whether the cache is switched on at the start; off, everything is computed and nothing is read or stored
    #[arg(long, env = "VECMEMO_CACHE_ENABLED", value_name = "BOOL", help_heading = "Store", hide_short_help = true)]
    pub cache_enabled: Option<bool>,

    /// The most texts of a namespace that the reuse of near-duplicates is learnt from, the latest ones; about a kilobyte of
    /// memory each, only where reuse is allowed
    #[arg(long, env = "VECMEMO_REUSE_TEXTS_MAX", value_name = "TEXTS", help_heading = "Reuse", hide_short_help = true)]
    pub reuse_texts_max: Option<usize>,

    /// Days that a certificate of reuse counts
    #[arg(
        long,
        env = "VECMEMO_REUSE_CERTIFICATE_DAYS",
        value_name = "DAYS",
        help_heading = "Reuse",
        hide_short_help = true
    )]
    pub reuse_certificate_days: Option<u64>,

    /// Whether texts that differ in a negation, a number or the order of words are never reused
    #[arg(long, env = "VECMEMO_REUSE_VETOES", value_name = "BOOL", help_heading = "Reuse", hide_short_help = true)]
    pub reuse_vetoes: Option<bool>,

    /// The most tokens the model is given at once
    #[arg(
        long,
        env = "VECMEMO_BATCH_TOKENS_MAX",
        value_name = "TOKENS",
        help_heading = "Batching",
        hide_short_help = true
    )]
    pub batch_tokens_max: Option<usize>,

    /// The most texts the model is given at once
    #[arg(
        long,
        env = "VECMEMO_BATCH_TEXTS_MAX",
        value_name = "TEXTS",
        help_heading = "Batching",
        hide_short_help = true
    )]
    pub batch_texts_max: Option<usize>,

    /// Milliseconds that a batch should take at most, by the speed measured: what a query may have to wait for
    #[arg(
        long,
        env = "VECMEMO_BATCH_MS_MAX",
        value_name = "MILLISECONDS",
        help_heading = "Batching",
        hide_short_help = true
    )]
    pub batch_ms_max: Option<u64>,

    /// The most texts that may wait for the model; past it, or past a lane's part of it, requests are answered 429
    #[arg(
        long,
        env = "VECMEMO_QUEUE_TEXTS_MAX",
        value_name = "TEXTS",
        help_heading = "Batching",
        hide_short_help = true
    )]
    pub queue_texts_max: Option<usize>,

    /// Whether texts over the model's length are cut when the request does not say
    #[arg(long, env = "VECMEMO_AUTO_TRUNCATE", value_name = "BOOL", help_heading = "Service", hide_short_help = true)]
    pub auto_truncate: Option<bool>,

    /// What token ids sent to the OpenAI routes are taken for: refused, or the served model's own
    #[arg(long, env = "VECMEMO_TOKEN_INPUTS", value_name = "HOW", help_heading = "Service", hide_short_help = true)]
    pub token_inputs: Option<TokenInputsName>,

    /// The most inputs in one request
    #[arg(
        long,
        env = "VECMEMO_MAX_CLIENT_BATCH_SIZE",
        value_name = "INPUTS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    pub max_client_batch_size: Option<usize>,

    /// The largest request body
    #[arg(long, env = "VECMEMO_BODY_BYTES_MAX", value_name = "BYTES", help_heading = "Limits", hide_short_help = true)]
    pub body_bytes_max: Option<usize>,

    /// Memory for the bodies of all requests being read or served
    #[arg(
        long,
        env = "VECMEMO_REQUEST_MEMORY_BYTES_MAX",
        value_name = "BYTES",
        help_heading = "Limits",
        hide_short_help = true
    )]
    pub request_memory_bytes_max: Option<usize>,

    /// Memory for all answers being made or sent
    #[arg(
        long,
        env = "VECMEMO_ANSWER_MEMORY_BYTES_MAX",
        value_name = "BYTES",
        help_heading = "Limits",
        hide_short_help = true
    )]
    pub answer_memory_bytes_max: Option<usize>,

    /// Memory for bodies and answers of all requests that wait for the model; past it they are answered 429
    #[arg(
        long,
        env = "VECMEMO_WAITING_MEMORY_BYTES_MAX",
        value_name = "BYTES",
        help_heading = "Limits",
        hide_short_help = true
    )]
    pub waiting_memory_bytes_max: Option<usize>,

    /// The most open connections; more wait to be accepted
    #[arg(
        long,
        env = "VECMEMO_CONNECTIONS_MAX",
        value_name = "CONNECTIONS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    pub connections_max: Option<usize>,

    /// Seconds a client may take to send its headers
    #[arg(
        long,
        env = "VECMEMO_HEADER_TIMEOUT_SECONDS",
        value_name = "SECONDS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    pub header_timeout_seconds: Option<f64>,

    /// Seconds a client may take to send its body
    #[arg(
        long,
        env = "VECMEMO_BODY_TIMEOUT_SECONDS",
        value_name = "SECONDS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    pub body_timeout_seconds: Option<f64>,

    /// Seconds without a byte read or written after which a connection is closed
    #[arg(
        long,
        env = "VECMEMO_IDLE_TIMEOUT_SECONDS",
        value_name = "SECONDS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    pub idle_timeout_seconds: Option<f64>,

    /// Seconds a client may take none of an answer's bytes, and, with one more for every 64 KiB, may take for all of it
    #[arg(
        long,
        env = "VECMEMO_WRITE_TIMEOUT_SECONDS",
        value_name = "SECONDS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    pub write_timeout_seconds: Option<f64>,

    /// Seconds after which a request is answered 504, unless it names its own with `x-request-timeout`
    #[arg(
        long,
        env = "VECMEMO_REQUEST_TIMEOUT_SECONDS",
        value_name = "SECONDS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    pub request_timeout_seconds: Option<f64>,

    /// Seconds that accepted requests are given to finish at shutdown
    #[arg(
        long,
        env = "VECMEMO_DRAIN_TIMEOUT_SECONDS",
        value_name = "SECONDS",
        help_heading = "Limits",
        hide_short_help = true
    )]
    pub drain_timeout_seconds: Option<f64>,

    /// Who may do what: the table `[auth]`
    #[command(flatten)]
    #[serde(skip_serializing_if = "TypedAuth::is_empty")]
    pub auth: TypedAuth,

    /// How nearest entries are found: the table `[search]`
    #[command(flatten)]
    #[serde(skip_serializing_if = "TypedSearch::is_empty")]
    pub search: TypedSearch,

    /// The tier that several machines share: the table `[remote]`
    #[command(flatten)]
    #[serde(skip_serializing_if = "TypedRemote::is_empty")]
    pub remote: TypedRemote,

    /// What the page for operators tells: the table `[page]`
    #[command(flatten)]
    #[serde(skip_serializing_if = "TypedPage::is_empty")]
    pub page: TypedPage,

    /// Where traces of requests are sent, by OTLP over HTTP; if not set, where OTEL_EXPORTER_OTLP_ENDPOINT says, else nowhere
    #[arg(long, env = "VECMEMO_OTLP_ENDPOINT", value_name = "URL", help_heading = "Traces")]
    pub otlp_endpoint: Option<String>,

    /// The share of requests that are traced, 0 to 1, where the client's `traceparent` does not decide; if not set, as
    /// OTEL_TRACES_SAMPLER says, else all
    #[arg(
        long,
        env = "VECMEMO_OTLP_SAMPLING_RATIO",
        value_name = "SHARE",
        help_heading = "Traces",
        hide_short_help = true
    )]
    pub otlp_sampling_ratio: Option<f64>,

    /// What traces call this service; if not set, as OTEL_SERVICE_NAME says, else `vecmemo`
    #[arg(
        long,
        env = "VECMEMO_OTLP_SERVICE_NAME",
        value_name = "NAME",
        help_heading = "Traces",
        hide_short_help = true
    )]
    pub otlp_service_name: Option<String>,

    /// Log lines as text or JSON
    #[arg(long, env = "VECMEMO_LOG_FORMAT", value_name = "FORMAT", help_heading = "Logs")]
    pub log_format: Option<LogFormat>,

    /// What is logged: error, warn, info, debug or trace, or a filter such as `info,vecmemo::http=debug`
    #[arg(long, env = "VECMEMO_LOG", value_name = "FILTER", help_heading = "Logs")]
    pub log: Option<String>,

    /// How long which entries live: tables `[policies.NAME]`, in the file only
    #[arg(skip)]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub policies: BTreeMap<String, TypedPolicy>,

    /// What tenants may have: tables `[tenants.NAME]`, in the file only
    #[arg(skip)]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<String, TypedTenant>,

    /// What is invalidated for which events: tables `[[event]]`, in the file only
    #[arg(skip)]
    #[serde(rename = "event", skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<TypedEventRule>,
}

/// The table `[auth]`: `keys_file` there is `--keys-file` and `VECMEMO_KEYS_FILE`.
#[derive(Clone, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedAuth {
    /// File of the API keys' hashes, as `vecmemo keys new` prints them; without keys everybody may do everything
    #[arg(
        id = "auth.keys_file",
        long = "keys-file",
        env = "VECMEMO_KEYS_FILE",
        value_name = "FILE",
        help_heading = "Access"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_file: Option<PathBuf>,

    /// A single API key, good for everything; best given as the variable, which commands with --url send too
    #[arg(
        id = "auth.api_key",
        long = "api-key",
        env = "VECMEMO_API_KEY",
        hide_env_values = true,
        value_name = "KEY",
        help_heading = "Access",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,

    /// Namespaces that every tenant may read and write
    #[arg(
        id = "auth.public_namespaces",
        long = "public-namespaces",
        env = "VECMEMO_PUBLIC_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMES",
        help_heading = "Access",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_namespaces: Option<Vec<String>>,

    /// Whether `/metrics` needs no key; if not set, only on the admin listener
    #[arg(
        id = "auth.metrics_open",
        long = "metrics-open",
        env = "VECMEMO_METRICS_OPEN",
        value_name = "BOOL",
        help_heading = "Access",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_open: Option<bool>,
}

impl TypedAuth {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Debug for TypedAuth {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { keys_file, api_key: _, public_namespaces, metrics_open } = self;
        write!(f, "TypedAuth({keys_file:?}, {public_namespaces:?}, {metrics_open:?})")
    }
}

/// The table `[search]`: `path` there is `--search-path` and `VECMEMO_SEARCH_PATH`.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedSearch {
    /// Whether entries can be searched for
    #[arg(
        id = "search.enabled",
        long = "search-enabled",
        env = "VECMEMO_SEARCH_ENABLED",
        value_name = "BOOL",
        help_heading = "Search",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,

    /// How entries are found: by comparing all, by a graph, or by whichever is quicker
    #[arg(
        id = "search.path",
        long = "search-path",
        env = "VECMEMO_SEARCH_PATH",
        value_name = "PATH",
        help_heading = "Search"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<SearchPathName>,

    /// What searches: `auto`, `cpu`, `cuda`, `metal`, or `cpu-as-gpu` to try out a GPU's way where there is none
    #[arg(
        id = "search.device",
        long = "search-device",
        env = "VECMEMO_SEARCH_DEVICE",
        value_name = "DEVICE",
        help_heading = "Search"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<SearchDeviceName>,

    /// Memory for the answers of searches that are asked again before anything changes; 0: none are kept
    #[arg(
        id = "search.cache_bytes",
        long = "search-cache-bytes",
        env = "VECMEMO_SEARCH_CACHE_BYTES",
        value_name = "BYTES",
        help_heading = "Search",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<usize>,
}

impl TypedSearch {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The table `[remote]`: `url` there is `--remote-url` and `VECMEMO_REMOTE_URL`.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedRemote {
    /// The tier shared with other machines: redis://, rediss:// (TLS), redis-sentinel://, redis-cluster://
    #[arg(
        id = "remote.url",
        long = "remote-url",
        env = "VECMEMO_REMOTE_URL",
        hide_env_values = true,
        value_name = "URL",
        help_heading = "Shared tier"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,

    /// Milliseconds that a look into the shared tier may take
    #[arg(
        id = "remote.deadline_ms",
        long = "remote-deadline-ms",
        env = "VECMEMO_REMOTE_DEADLINE_MS",
        value_name = "MS",
        help_heading = "Shared tier",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,

    /// Milliseconds that the others wait for a node that computes a text and has said nothing more of it; 0: none waits
    #[arg(
        id = "remote.lease_ms",
        long = "remote-lease-ms",
        env = "VECMEMO_REMOTE_LEASE_MS",
        value_name = "MS",
        help_heading = "Shared tier",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,

    /// Milliseconds without an answer after which a look into the shared tier is asked for once more, of a replica or over another
    /// connection; at most one look in ten. 0: never
    #[arg(
        id = "remote.hedge_ms",
        long = "remote-hedge-ms",
        env = "VECMEMO_REMOTE_HEDGE_MS",
        value_name = "MS",
        help_heading = "Shared tier",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge_ms: Option<u64>,

    /// Whose certificates the servers of a tier with TLS may be signed by, in place of those that the system trusts: a file in PEM
    #[arg(
        id = "remote.ca_file",
        long = "remote-ca-file",
        env = "VECMEMO_REMOTE_CA_FILE",
        value_name = "FILE",
        help_heading = "Shared tier",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,

    /// The certificate that servers are shown that ask for one, in PEM; with its key
    #[arg(
        id = "remote.cert_file",
        long = "remote-cert-file",
        env = "VECMEMO_REMOTE_CERT_FILE",
        value_name = "FILE",
        help_heading = "Shared tier",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,

    /// The private key of that certificate, in PEM
    #[arg(
        id = "remote.key_file",
        long = "remote-key-file",
        env = "VECMEMO_REMOTE_KEY_FILE",
        value_name = "FILE",
        help_heading = "Shared tier",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,

    /// Seconds that the shared tier keeps a record at most
    #[arg(
        id = "remote.ttl_max_seconds",
        long = "remote-ttl-max-seconds",
        env = "VECMEMO_REMOTE_TTL_MAX_SECONDS",
        value_name = "SECONDS",
        help_heading = "Shared tier",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_max_seconds: Option<u64>,

    /// Bytes of records that may wait to be written to the shared tier; past it they are dropped
    #[arg(
        id = "remote.queue_bytes_max",
        long = "remote-queue-bytes-max",
        env = "VECMEMO_REMOTE_QUEUE_BYTES_MAX",
        value_name = "BYTES",
        help_heading = "Shared tier",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_bytes_max: Option<usize>,

    /// A stream of the shared tier's servers whose entries are events
    #[arg(
        id = "remote.events_stream",
        long = "remote-events-stream",
        env = "VECMEMO_REMOTE_EVENTS_STREAM",
        value_name = "KEY",
        help_heading = "Shared tier",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_stream: Option<String>,

    /// The consumer group that shares the stream's events
    #[arg(
        id = "remote.events_group",
        long = "remote-events-group",
        env = "VECMEMO_REMOTE_EVENTS_GROUP",
        value_name = "NAME",
        help_heading = "Shared tier",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_group: Option<String>,

    /// What the names of the shared tier's keys begin with
    #[arg(
        id = "remote.prefix",
        long = "remote-prefix",
        env = "VECMEMO_REMOTE_PREFIX",
        value_name = "NAME",
        help_heading = "Shared tier",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

impl TypedRemote {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The table `[page]`: `currency` there is `--page-currency` and `VECMEMO_PAGE_CURRENCY`.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedPage {
    /// What computing a million tokens costs, to tell what the cache saves; not told if not set
    #[arg(
        id = "page.price_per_million_tokens",
        long = "page-price-per-million-tokens",
        env = "VECMEMO_PAGE_PRICE_PER_MILLION_TOKENS",
        value_name = "PRICE",
        help_heading = "Page",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_per_million_tokens: Option<f64>,

    /// The currency of that price, by its three letters
    #[arg(
        id = "page.currency",
        long = "page-currency",
        env = "VECMEMO_PAGE_CURRENCY",
        value_name = "CODE",
        help_heading = "Page",
        hide_short_help = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
}

impl TypedPage {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How entries are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SearchPathName {
    /// By a graph where it is quicker, which finds 99 % of the nearest; else exactly
    Auto,
    /// By comparing all, always
    Exact,
    /// By a graph wherever it can answer, also where that is slower
    Graph,
}

/// What searches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchDeviceName {
    /// The CPU, or a GPU this program was built for and finds, whichever is quicker
    Auto,
    /// The CPU
    Cpu,
    /// An NVIDIA GPU, wherever it can answer
    Cuda,
    /// An Apple GPU, wherever it can answer
    Metal,
    /// The CPU as it would be a GPU: slower, to try it out
    CpuAsGpu,
}

impl From<SearchDeviceName> for SearchDevice {
    fn from(name: SearchDeviceName) -> Self {
        match name {
            SearchDeviceName::Auto => Self::Auto,
            SearchDeviceName::Cpu => Self::Cpu,
            SearchDeviceName::Cuda => Self::Cuda,
            SearchDeviceName::Metal => Self::Metal,
            SearchDeviceName::CpuAsGpu => Self::CpuAsGpu,
        }
    }
}

impl From<SearchPathName> for PathChoice {
    fn from(name: SearchPathName) -> Self {
        match name {
            SearchPathName::Auto => Self::Auto,
            SearchPathName::Exact => Self::Exact,
            SearchPathName::Graph => Self::Graph,
        }
    }
}

/// A rule for events as it stands in the file. Texts are templates, as `doc:{subject}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedEventRule {
    /// A pattern of events' types
    pub on: String,
    /// Entries with one of these tags are meant
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Entries with a tag that matches
    pub tag_glob: Option<String>,
    /// Entries of this namespace
    pub namespace: Option<String>,
    /// Entries of this model: an alias, its source or fingerprint
    pub model: Option<String>,
    /// Entries stored more than this many seconds ago
    pub older_than: Option<u64>,
    /// Removed, or marked as stale
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<InvalidationModeName>,
}

/// What becomes of entries that an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InvalidationModeName {
    /// They are removed
    Hard,
    /// They are answered until they are computed anew
    Soft,
}

/// What a tenant may have, as it stands in the file; without a bound as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedTenant {
    /// Requests a second
    pub requests_per_second: Option<u64>,
    /// Tokens a second that are not answered from the cache
    pub tokens_per_second: Option<u64>,
    /// Entries
    pub entries_max: Option<u64>,
    /// Bytes of entries' records and rows
    pub bytes_max: Option<u64>,
    /// Namespaces
    pub namespaces_max: Option<u64>,
}

/// A policy as it stands in the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedPolicy {
    /// Patterns of the namespaces it is for
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Patterns of the tags it is for
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Seconds that entries live; for ever if not given
    pub ttl: Option<u64>,
    /// The share of the ttl, 0 to 1, by which an entry may live shorter
    pub jitter: Option<f64>,
    /// The last share of an entry's life in which a hit has it computed anew
    pub refresh_ahead: Option<f64>,
    /// Whether entries stay when room is needed
    pub pinned: Option<bool>,
    /// When a near-duplicate's vector will do for a text; never if not given
    pub reuse: Option<TypedReuse>,
    /// Whether the tier shared with other machines may have them; true if not given
    pub shared: Option<bool>,
    /// When an entry is safe, if sooner than the setting `durability` says for all
    pub durability: Option<DurabilityName>,
    /// The most entries of each of its namespaces; the oldest that were not read make room
    pub quota: Option<u64>,
}

/// What reuse is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TypedReuse {
    /// The floor of the cosine between a reused vector and the text's own
    pub min_similarity: f32,
    /// The share of reused vectors that may be below the floor; 0.05 if not given
    pub max_violation: Option<f32>,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceName {
    /// A GPU this program was built for and finds, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// An NVIDIA GPU, or nothing
    Cuda,
    /// An Apple GPU, or nothing
    Metal,
}

impl From<DeviceName> for DeviceChoice {
    fn from(name: DeviceName) -> Self {
        match name {
            DeviceName::Auto => Self::Auto,
            DeviceName::Cpu => Self::Cpu,
            DeviceName::Cuda => Self::Cuda,
            DeviceName::Metal => Self::Metal,
        }
    }
}

/// How exactly vectors are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionName {
    /// The fastest whose vectors are within cosine 0.9999 of f32's, measured at the start
    Auto,
    /// 32-bit floating point
    F32,
    /// 16 bits: fixed point on a CPU, floating point on a GPU
    Half,
    /// 8-bit integers: a cache of its own
    Int8,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::Auto => Self::Auto,
            PrecisionName::F32 => Self::F32,
            PrecisionName::Half => Self::Half,
            PrecisionName::Int8 => Self::Int8,
        }
    }
}

/// When an answered entry is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurabilityName {
    /// Survives the process being killed at any moment
    Process,
    /// Also survives a power loss, but for the last sync interval
    Interval,
    /// Survives a power loss right after the answer
    Always,
}

impl DurabilityName {
    /// In the store's terms.
    pub(super) fn with(self, sync_interval: Duration) -> Durability {
        match self {
            Self::Process => Durability::Process,
            Self::Interval => Durability::Interval(sync_interval),
            Self::Always => Durability::Always,
        }
    }
}

/// What token ids are taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenInputsName {
    /// Refused, with a message that says how to send texts
    Reject,
    /// The served model's own
    Own,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line, for programs
    Json,
}
