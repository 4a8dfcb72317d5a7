//! `vecmemo config`: the effective settings, as a file that would set them.

use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgMatches, Args, Command};

use super::SettingsArguments;
use crate::config::{Settings, Typed};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsArguments,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let layered = arguments.settings.layered(matches)?;
    Settings::new(&layered.typed)?;
    let values = toml::Table::try_from(&layered.typed).context("settings have no TOML form")?;
    for setting in Typed::augment_args(Command::new("settings")).get_arguments() {
        let name = setting.get_id().as_str();
        let help = setting.get_help().map(ToString::to_string).unwrap_or_default();
        super::print(&format!("# {help}"))?;
        let flag = setting.get_long().unwrap_or_default();
        let variable = setting.get_env().unwrap_or_default().to_string_lossy();
        match (values.get(name), layered.origins.get(name)) {
            // Tables come last: what follows one would belong to it.
            (Some(toml::Value::Array(_)), Some(origin)) => {
                super::print(&format!("# --{flag}, {variable}; from: {origin}; see [[{name}]] below\n"))?;
            }
            (Some(value), Some(origin)) => {
                super::print(&format!("# --{flag}, {variable}; from: {origin}\n{name} = {value}\n"))?;
            }
            _ => super::print(&format!("# --{flag}, {variable}; not set\n# {name} =\n"))?,
        }
    }
    if let Some(models @ toml::Value::Array(_)) = values.get("model") {
        let table = toml::Table::from_iter([("model".to_owned(), models.clone())]);
        super::print(&format!("# Models served together\n{table}"))?;
    }
    if let (Some(policies), Some(origin)) = (values.get("policies"), layered.origins.get("policies")) {
        let table = toml::Table::from_iter([("policies".to_owned(), policies.clone())]);
        super::print(&format!("# How long which entries live\n# in the file only; from: {origin}\n{table}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
