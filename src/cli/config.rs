//! `vecmemo config`: the effective settings, as a file that would set them.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgMatches, Args, Command};

use super::SettingsArguments;
use crate::config::{self, Origin, SECTIONS, Settings, Typed};
use crate::remote::Url;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsArguments,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let layered = arguments.settings.layered(matches)?;
    Settings::new(&layered.typed)?;
    config::access(&layered.typed)?;
    let values = toml::Table::try_from(&layered.typed).context("settings have no TOML form")?;
    let command = Typed::augment_args(Command::new("settings"));
    let is_of_section = |setting: &&Arg| setting.get_id().as_str().contains('.');
    for setting in command.get_arguments().filter(|setting| !is_of_section(setting)) {
        let name = setting.get_id().as_str();
        say(setting, name, values.get(name), layered.origins.get(name))?;
    }
    // Tables come last: what follows one would belong to it.
    for section in SECTIONS {
        super::print(&format!("[{section}]"))?;
        for setting in command.get_arguments().filter(is_of_section) {
            let name = setting.get_id().as_str();
            if let Some(key) = name.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')) {
                let value = values.get(section).and_then(|section| section.get(key));
                say(setting, key, value, layered.origins.get(name))?;
            }
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
    if let (Some(tenants), Some(origin)) = (values.get("tenants"), layered.origins.get("tenants")) {
        let table = toml::Table::from_iter([("tenants".to_owned(), tenants.clone())]);
        super::print(&format!("# What tenants may have\n# in the file only; from: {origin}\n{table}"))?;
    }
    if let (Some(events), Some(origin)) = (values.get("event"), layered.origins.get("event")) {
        let table = toml::Table::from_iter([("event".to_owned(), events.clone())]);
        super::print(&format!("# What is invalidated for which events\n# in the file only; from: {origin}\n{table}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One setting: what it is, where its value comes from, its value.
fn say(setting: &Arg, name: &str, value: Option<&toml::Value>, origin: Option<&Origin>) -> anyhow::Result<()> {
    let help = setting.get_help().map(ToString::to_string).unwrap_or_default();
    super::print(&format!("# {help}"))?;
    let flag = setting.get_long().unwrap_or_default();
    let variable = setting.get_env().unwrap_or_default().to_string_lossy();
    match (value, origin) {
        (Some(_), Some(origin)) if is_secret(setting) => {
            super::print(&format!("# --{flag}, {variable}; from: {origin}; not shown\n# {name} =\n"))
        }
        (Some(toml::Value::Array(_)), Some(origin)) if name == "model" => {
            super::print(&format!("# --{flag}, {variable}; from: {origin}; see [[{name}]] below\n"))
        }
        (Some(value), Some(origin)) => {
            let value = without_secrets(setting, value);
            super::print(&format!("# --{flag}, {variable}; from: {origin}\n{name} = {value}\n"))
        }
        _ => super::print(&format!("# --{flag}, {variable}; not set\n# {name} =\n")),
    }
}

/// Whether its value is nobody's business.
fn is_secret(setting: &Arg) -> bool {
    setting.get_id() == "auth.api_key"
}

/// The value, an address without user and password.
fn without_secrets(setting: &Arg, value: &toml::Value) -> toml::Value {
    match (setting.get_id().as_str(), value.as_str().and_then(|text| text.parse::<Url>().ok())) {
        ("remote.url", Some(url)) => toml::Value::String(url.to_string()),
        _ => value.clone(),
    }
}
