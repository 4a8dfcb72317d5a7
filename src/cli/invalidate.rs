//! `vecmemo invalidate`: entries removed, or marked stale, by what they are; on a running server, or in the store when
//! none runs.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ArgMatches;
use serde_json::{Value, json};

use super::client::{Client, about};
use super::{SettingsArguments, assemble};
use crate::cache::{Invalidation, InvalidationMode};
use crate::domain::{Key, Namespace, Pattern};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    selector: SelectorArguments,

    /// Mark as stale instead of removing: answered as before, and computed anew when next asked for
    #[arg(long)]
    soft: bool,

    /// Only count
    #[arg(long)]
    dry_run: bool,

    /// Why, for the running server's log
    #[arg(long, value_name = "TEXT", requires = "url")]
    reason: Option<String>,

    /// A running server, such as http://127.0.0.1:8080; without it the store in --data-dir is opened
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    #[command(flatten)]
    settings: SettingsArguments,
}

/// Which entries; several together narrow.
#[derive(clap::Args)]
#[group(required = true, multiple = true)]
struct SelectorArguments {
    /// The entry under this key; may be given many times
    #[arg(long = "key", value_name = "KEY", help_heading = "Which entries")]
    keys: Vec<Key>,

    /// Entries of this text, in --namespace; may be given many times
    #[arg(long = "text", value_name = "TEXT", help_heading = "Which entries")]
    texts: Vec<String>,

    /// Entries with this tag; may be given many times
    #[arg(long = "tag", value_name = "TAG", help_heading = "Which entries")]
    tags: Vec<String>,

    /// Entries with a tag that matches: `*` stands for any characters, `?` for one
    #[arg(long, value_name = "PATTERN", help_heading = "Which entries")]
    tag_glob: Option<String>,

    /// Entries of this namespace; the default one's name is empty
    #[arg(long, value_name = "NAME", help_heading = "Which entries")]
    namespace: Option<String>,

    /// Entries stored more than this many seconds ago
    #[arg(long, value_name = "SECONDS", help_heading = "Which entries")]
    older_than: Option<u64>,

    /// All entries of the model
    #[arg(long, help_heading = "Which entries")]
    all: bool,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let answer = match &arguments.url {
        Some(url) => ask(arguments, url, arguments.settings.named_model(matches).as_deref())?,
        None => invalidate(arguments, matches)?,
    };
    super::print(&answer.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn ask(arguments: &Arguments, url: &str, model: Option<&str>) -> anyhow::Result<Value> {
    let client = Client::new(url);
    let SelectorArguments { keys, texts, tags, tag_glob, namespace, older_than, all } = &arguments.selector;
    let mut body = json!({
        "mode": if arguments.soft { "soft" } else { "hard" },
        "dry_run": arguments.dry_run,
        "tag_glob": tag_glob,
        "namespace": namespace,
        "older_than": older_than,
        "reason": arguments.reason,
    });
    if !keys.is_empty() {
        body["keys"] = keys.iter().map(|key| json!(key.to_string())).collect();
    }
    if !texts.is_empty() {
        body["inputs"] = json!(texts);
    }
    if !tags.is_empty() {
        body["tags"] = json!(tags);
    }
    if *all {
        body["model"] = client.get_json(&about("/info", model))?["fingerprint"].take();
    }
    client.post_json(&about("/invalidate", model), &body)
}

fn invalidate(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<Value> {
    let SelectorArguments { keys, texts, tags, tag_glob, namespace, older_than, all } = &arguments.selector;
    let namespace = namespace.as_deref().map(Namespace::qualified).transpose()?;
    let settings = arguments.settings.settings(matches)?;
    // With a shared tier there is something to say to others where nothing is here.
    let open = if settings.remote.is_some() { assemble::cache } else { assemble::cache_that_is_there };
    let cache = open(&settings)?;
    let started = Instant::now();
    let invalidated = cache.invalidate(&Invalidation {
        keys: (!keys.is_empty()).then(|| keys.clone()),
        texts: (!texts.is_empty()).then(|| texts.clone()),
        tags: (!tags.is_empty()).then(|| tags.clone()),
        tag_glob: tag_glob.as_deref().map(Pattern::new),
        namespace,
        tenant: None,
        older_than: older_than.map(Duration::from_secs),
        all: *all,
        mode: if arguments.soft { InvalidationMode::Soft } else { InvalidationMode::Hard },
        dry_run: arguments.dry_run,
    })?;
    let took_ms = started.elapsed().as_micros() as f64 / 1000.0;
    Ok(json!({ "matched": invalidated.matched, "removed": invalidated.removed, "took_ms": took_ms }))
}
