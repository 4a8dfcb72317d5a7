//! `vecmemo keys`: a new key, of which the server is given the hash alone.

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Subcommand;

use crate::access::{NewKey, Scope};
use crate::store::unix_seconds;

const SECONDS_A_DAY: u64 = 86_400;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a key: prints a table for the server's file of keys, and to the terminal the key itself, which nobody keeps
    New(New),
}

#[derive(clap::Args)]
struct New {
    /// The key's name in the server's log
    #[arg(long, value_name = "ID")]
    id: Option<String>,

    /// Whose namespaces it opens; without one those that are no tenant's, and with the scope admin all
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,

    /// What it is good for: embed, search, invalidate, admin
    #[arg(long, value_name = "SCOPES", value_delimiter = ',', required = true)]
    scope: Vec<Scope>,

    /// In how many days it ends
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..))]
    days: Option<u64>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let Command::New(New { id, tenant, scope, days }) = &arguments.command;
    let now = u64::from(unix_seconds());
    let expires = days.map(|days| now.saturating_add(days.saturating_mul(SECONDS_A_DAY)));
    // Two keys made in one second for one tenant want names.
    let id = id.clone().unwrap_or_else(|| format!("{}-{now}", tenant.as_deref().unwrap_or("key")));
    let key = NewKey::new(&id, tenant.as_deref(), scope, expires).map_err(|problem| anyhow!("{problem}"))?;
    super::print(key.table.trim_end())?;
    // Apart, so that `>> keys.toml` puts the hash into the file and shows the key.
    super::say(&format!("The key, which is shown this once:\n{}", key.token.reveal()));
    Ok(ExitCode::SUCCESS)
}
