//! `vecmemo lookup`: which texts or keys are cached. Computes nothing.

use std::process::ExitCode;

use clap::ArgMatches;
use serde_json::{Value, json};

use super::{SettingsArguments, assemble, client::Client};
use crate::cache::{Inputs, Request};
use crate::domain::{Key, Namespace};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Texts to look up
    #[arg(value_name = "TEXT", required_unless_present = "keys")]
    texts: Vec<String>,

    /// A key to look up instead, as 64 hexadecimal digits; may be given many times
    #[arg(long = "key", value_name = "KEY", conflicts_with = "texts")]
    keys: Vec<Key>,

    /// The namespace the texts are looked up in
    #[arg(long, value_name = "NAME", default_value = "")]
    namespace: String,

    /// A running server, such as http://127.0.0.1:8080; without it the store in --data-dir is opened
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    #[command(flatten)]
    settings: SettingsArguments,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let items = match &arguments.url {
        Some(url) => ask(arguments, url, arguments.settings.named_model(matches))?,
        None => look(arguments, matches)?,
    };
    let mut all_cached = true;
    for item in items {
        all_cached &= item["cached"] == json!(true);
        super::print(&item.to_string())?;
    }
    Ok(if all_cached { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

fn ask(arguments: &Arguments, url: &str, model: Option<String>) -> anyhow::Result<Vec<Value>> {
    let mut body = if arguments.keys.is_empty() {
        json!({ "inputs": arguments.texts })
    } else {
        json!({ "keys": arguments.keys.iter().map(Key::to_string).collect::<Vec<_>>() })
    };
    if !arguments.namespace.is_empty() {
        body["namespace"] = json!(arguments.namespace);
    }
    if let Some(model) = model {
        body["model"] = json!(model);
    }
    let mut answer = Client::new(url).post_json("/lookup", &body)?;
    Ok(answer["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

fn look(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<Vec<Value>> {
    let namespace = Namespace::qualified(&arguments.namespace)?;
    let cache = assemble::cache_that_is_there(&arguments.settings.settings(matches)?)?;
    let keys = if arguments.keys.is_empty() {
        let texts: Vec<_> = arguments.texts.iter().map(Into::into).collect();
        cache.keys(&Request { namespace, ..Request::new(Inputs::Texts(&texts)) })?
    } else {
        arguments.keys.clone()
    };
    let entries = cache.lookup(&keys);
    let item = |(key, entry): (&Key, &Option<_>)| json!({ "key": key.to_string(), "cached": entry.is_some() });
    Ok(keys.iter().zip(&entries).map(item).collect())
}
