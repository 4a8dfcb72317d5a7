//! `vecmemo search`: the cached entries nearest to texts or to other entries; on a running server, or in the store when
//! none runs.

use std::process::ExitCode;
use std::time::Duration;

use clap::ArgMatches;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::client::{Client, about};
use super::{SettingsArguments, assemble};
use crate::cache::{Found, HITS_MAX, Inputs, PathChoice, Request, Search, SearchConfig, SearchDevice};
use crate::domain::{Key, Namespace, Reach};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Texts to find the nearest entries of
    #[arg(value_name = "TEXT", required_unless_present = "keys")]
    texts: Vec<String>,

    /// The key of an entry to find the nearest of instead; may be given many times
    #[arg(long = "key", value_name = "KEY", conflicts_with = "texts")]
    keys: Vec<Key>,

    /// How many entries a query finds at most
    #[arg(short, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=HITS_MAX as u64))]
    k: u64,

    /// Only entries at least so similar, -1 to 1
    #[arg(long, value_name = "COSINE", allow_negative_numbers = true)]
    min_similarity: Option<f32>,

    /// Only entries of this namespace; the default one's name is empty
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,

    /// Only entries with this tag; may be given many times, and one of them is enough
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,

    /// Only entries stored more than this many seconds ago
    #[arg(long, value_name = "SECONDS")]
    older_than: Option<u64>,

    /// Only entries stored at most this many seconds ago
    #[arg(long, value_name = "SECONDS")]
    newer_than: Option<u64>,

    /// Which of the model's prompts stands before each text
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,

    /// A running server, such as http://127.0.0.1:8080; without it the store in --data-dir is opened
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    #[command(flatten)]
    settings: SettingsArguments,
}

/// Prints a line an entry that was found; with several queries each names its own.
pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let results = match &arguments.url {
        Some(url) => ask(arguments, url, arguments.settings.named_model(matches).as_deref())?,
        None => search(arguments, matches)?,
    };
    let queries = arguments.texts.len().max(arguments.keys.len());
    for (query, found) in results.into_iter().enumerate() {
        for mut entry in found {
            if queries > 1 {
                entry["query"] = json!(query);
            }
            super::print(&entry.to_string())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A number whose decimals are no more than tell it from other f32, as the server writes them.
pub(super) fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

fn ask(arguments: &Arguments, url: &str, model: Option<&str>) -> anyhow::Result<Vec<Vec<Value>>> {
    let Arguments { texts, keys, tags, .. } = arguments;
    let given = [
        ("inputs", (!texts.is_empty()).then(|| json!(texts))),
        ("keys", (!keys.is_empty()).then(|| keys.iter().map(|key| json!(key.to_string())).collect())),
        ("k", Some(json!(arguments.k))),
        ("min_similarity", arguments.min_similarity.map(|least| json!(least))),
        ("namespace", arguments.namespace.as_ref().map(|name| json!(name))),
        ("tags", (!tags.is_empty()).then(|| json!(tags))),
        ("older_than", arguments.older_than.map(|seconds| json!(seconds))),
        ("newer_than", arguments.newer_than.map(|seconds| json!(seconds))),
        ("prompt_name", arguments.prompt_name.as_ref().map(|name| json!(name))),
    ];
    let body = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    let mut answer = Client::new(url).post_json(&about("/search", model), &Value::Object(body))?;
    Ok(serde_json::from_value(answer["results"].take())?)
}

fn search(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<Vec<Vec<Value>>> {
    let Arguments { texts, keys, tags, .. } = arguments;
    let namespace = arguments.namespace.as_deref().map(Namespace::qualified).transpose()?;
    let mut settings = arguments.settings.settings(matches)?;
    // One search is over before a graph would be built, or a GPU had the rows.
    let (choice, device) = (PathChoice::Exact, SearchDevice::Cpu);
    settings.cache.search = SearchConfig { choice, device, ..SearchConfig::default() };
    let cache = assemble::cache_that_is_there(&settings)?;
    let vectors = if texts.is_empty() {
        cache.stored_vectors(keys)?
    } else {
        let texts: Vec<_> = texts.iter().map(Into::into).collect();
        let request = Request {
            namespace: namespace.clone().unwrap_or_default(),
            prompt_name: arguments.prompt_name.as_deref(),
            ..Request::new(Inputs::Texts(&texts))
        };
        assemble::runtime()?.block_on(cache.query_vectors(request))?.vectors
    };
    let wanted = Search {
        k: arguments.k as usize,
        min_similarity: arguments.min_similarity,
        namespace,
        within: Reach::everything(),
        tags: (!tags.is_empty()).then(|| tags.clone()),
        older_than: arguments.older_than.map(Duration::from_secs),
        newer_than: arguments.newer_than.map(Duration::from_secs),
        after: None,
        exact: true,
    };
    let entry = |found: Found| {
        let mut entry =
            json!({ "key": found.key.to_string(), "similarity": decimal(found.similarity), "tags": found.tags });
        if let Some(payload) = found.payload.and_then(|payload| RawValue::from_string(payload).ok()) {
            entry["payload"] = json!(payload);
        }
        entry
    };
    let searched = cache.search(&vectors, &wanted)?;
    Ok(searched.results.into_iter().map(|found| found.into_iter().map(entry).collect()).collect())
}
