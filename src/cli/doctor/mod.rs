//! `vecmemo doctor`: whether this machine, these settings and this folder are what the service needs.
//!
//! Changes nothing: no folder is made, no lock taken, nothing fetched, and what is written to measure the disk has no name and
//! is gone with its descriptor. So it works beside a running service, whose limits it reads then instead of its own. Asks
//! no upstream for a vector, which would cost money.

mod address;
mod clock;
mod configuration;
mod disk;
mod finding;
mod folder;
mod holder;
mod limits;
mod memory;
mod model;
mod processor;
mod tier;

use std::process::ExitCode;

use clap::ArgMatches;
use serde_json::json;

use super::SettingsArguments;
use finding::{Finding, Level};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    settings: SettingsArguments,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let findings = look(&arguments.settings, matches);
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    if arguments.json {
        let report = json!({ "level": worst, "findings": findings });
        super::print(&serde_json::to_string_pretty(&report)?)?;
    } else {
        for Finding { check, level, finding, advice } in &findings {
            super::print(&format!("{:<5} {check:<14} {finding}", level.as_str()))?;
            if let Some(advice) = advice {
                super::print(&format!("{:20} -> {advice}", ""))?;
            }
        }
    }
    Ok(if worst == Level::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Everything there is to find, in the order of what depends on what.
fn look(settings: &SettingsArguments, matches: &ArgMatches) -> Vec<Finding> {
    let (mut findings, settings) = configuration::check(settings, matches);
    // Without settings there is no folder, model or address to look at.
    let Some(settings) = settings else {
        findings.extend(processor::check(None));
        findings.push(clock::check(None));
        return findings;
    };
    let holder = holder::of(&settings.data_dir);
    let (models, needs) = model::check(&settings);
    findings.extend(processor::check(Some(&settings)));
    findings.extend(limits::check(&settings, holder.as_ref(), &needs));
    findings.extend(memory::check(&needs, holder.as_ref()));
    findings.extend(disk::check(&settings, &needs));
    findings.extend(folder::check(&settings, holder.as_ref()));
    findings.extend(models);
    findings.extend(tier::check(&settings));
    findings.push(clock::check(Some(&settings.data_dir)));
    findings.extend(address::check(&settings, holder.as_ref()));
    findings
}
