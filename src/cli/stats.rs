//! `vecmemo stats`: of a running server, or of the store when none runs.

use std::process::ExitCode;

use anyhow::Context;
use clap::ArgMatches;

use super::client::{Client, about};
use super::{SettingsArguments, assemble};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A running server, such as http://127.0.0.1:8080; without it the store in --data-dir is opened
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    #[command(flatten)]
    settings: SettingsArguments,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let stats = match &arguments.url {
        Some(url) => {
            let model = arguments.settings.named_model(matches);
            Client::new(url).get_json(&about("/stats?ages=true", model.as_deref()))?
        }
        None => {
            let cache = assemble::cache_that_is_there(&arguments.settings.settings(matches)?)?;
            let mut stats = serde_json::to_value(cache.stats()).context("figures have no JSON form")?;
            stats["ages"] = serde_json::to_value(cache.ages()).context("figures have no JSON form")?;
            stats
        }
    };
    super::print(&serde_json::to_string_pretty(&stats)?)?;
    Ok(ExitCode::SUCCESS)
}
