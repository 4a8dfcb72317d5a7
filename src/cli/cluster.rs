//! `vecmemo cluster`: the servers of the tier shared with other machines. Asks them itself; no server of ours need run.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{ArgMatches, Subcommand};
use serde_json::{Value, json};

use super::SettingsArguments;
use crate::remote::{Config, Server, Survey, Tier};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,

    #[command(flatten)]
    settings: SettingsArguments,
}

#[derive(Clone, Copy, Subcommand)]
enum What {
    /// Show every server: role, slots, latency, memory, hit rate
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what should be changed, and fail if anything should
    Check,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let settings = arguments.settings.settings(matches)?;
    let Some((url, config)) = settings.remote else {
        bail!(
            "there is no shared tier: name one with --remote-url, VECMEMO_REMOTE_URL or `url` in [remote] of the configuration"
        );
    };
    // To look is not to take part: what a server here has still to tell the others is not touched.
    let tier = Tier::start(&url, Config { state_file: None, ..config })?;
    let survey = tier.survey();
    match arguments.what {
        What::Status { json: true } => super::print(&serde_json::to_string_pretty(&as_json(&survey))?)?,
        What::Status { json: false } => super::print(&table(&survey))?,
        What::Check => {
            for warning in &survey.warnings {
                super::print(warning)?;
            }
            let up = survey.servers.iter().filter(|server| server.up).count();
            if !survey.warnings.is_empty() || up < survey.servers.len() || up == 0 {
                bail!("{up} of {} servers answer; {} things to change", survey.servers.len(), survey.warnings.len());
            }
            super::print(&format!("{up} servers answer; nothing to change"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(survey: &Survey) -> Value {
    let server = |server: &Server| {
        json!({
            "address": server.address,
            "role": server.role,
            "up": server.up,
            "slots": server.slots,
            "latency_ms": server.latency.map(milliseconds),
            "version": server.version,
            "memory_bytes": server.memory_bytes,
            "memory_bytes_max": server.memory_bytes_max,
            "policy": server.policy,
            "hit_rate": server.hit_rate,
            "lag_bytes": server.lag_bytes,
            "error": server.error,
        })
    };
    json!({
        "kind": survey.kind,
        "servers": survey.servers.iter().map(server).collect::<Vec<_>>(),
        "warnings": survey.warnings,
    })
}

fn table(survey: &Survey) -> String {
    let mut text = format!(
        "{:<24} {:<8} {:<4} {:>6} {:>9} {:>10} {:>10} {:>6} {:>9}\n",
        "server", "role", "up", "slots", "latency", "memory", "at most", "hits", "behind"
    );
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    for server in &survey.servers {
        let Server { address, role, up, slots, latency, memory_bytes, memory_bytes_max, hit_rate, lag_bytes, .. } =
            server;
        let most = if *memory_bytes_max == 0 { "no bound".to_owned() } else { megabytes(*memory_bytes_max) };
        let latency = latency.map_or("-".to_owned(), |latency| format!("{:.2} ms", milliseconds(latency)));
        let hits = hit_rate.map_or("-".to_owned(), |rate| format!("{:.0} %", rate * 100.0));
        let behind = lag_bytes.map_or("-".to_owned(), |bytes| format!("{bytes} B"));
        let up = if *up { "yes" } else { "no" };
        writeln!(
            text,
            "{address:<24} {role:<8} {up:<4} {slots:>6} {latency:>9} {:>10} {most:>10} {hits:>6} {behind:>9}",
            megabytes(*memory_bytes)
        )
        .expect("memory can be written to");
        if let Some(error) = &server.error {
            writeln!(text, "  {error}").expect("memory can be written to");
        }
    }
    for warning in &survey.warnings {
        writeln!(text, "! {warning}").expect("memory can be written to");
    }
    text.trim_end().to_owned()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
