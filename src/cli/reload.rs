//! The configuration, read again while the server runs.

use std::sync::Mutex;

use clap::ArgMatches;
use toml::Table;

use super::SettingsArguments;
use crate::access::{Access, Rules};
use crate::cache::Catalogue;
use crate::config::{self, Settings};
use crate::http::{Reload, Reloaded, Tls};

/// What takes effect at once: tables of the file, and what they name.
const AT_ONCE: [&str; 4] = ["policies", "event", "auth", "tenants"];

/// Reads the configuration as the start did, and has the catalogue go by what it says now.
pub(super) fn reload(
    arguments: SettingsArguments,
    matches: ArgMatches,
    catalogue: Catalogue,
    access: Access,
    tls: Option<Tls>,
) -> anyhow::Result<Reload> {
    let known = Mutex::new(Table::try_from(arguments.layered(&matches)?.typed)?);
    Ok(Reload::new(move || {
        let mut known = known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let read = || -> anyhow::Result<(Table, Settings, Rules)> {
            let typed = arguments.layered(&matches)?.typed;
            Ok((Table::try_from(&typed)?, Settings::new(&typed)?, config::access(&typed)?))
        };
        let (table, settings, rules) = read().map_err(|error| format!("{error:#}"))?;
        // The last that can fail: from here on all is taken over.
        let certificate = tls.as_ref().map_or(Ok(false), Tls::reload);
        let certificate = certificate.map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        for model in catalogue.models() {
            model.cache.set_policies(settings.cache.policies.clone());
        }
        catalogue.set_event_rules(settings.events);
        let (mut applied, restart_needed): (Vec<String>, _) =
            changes(&known, &table).into_iter().partition(|name| AT_ONCE.contains(&name.as_str()));
        if certificate {
            applied.push("tls_cert".to_owned());
        }
        // The file of keys may say something else though the settings do not.
        if access.replace(rules) && !applied.iter().any(|name| name == "auth") {
            applied.push("auth".to_owned());
        }
        for name in AT_ONCE {
            match table.get(name) {
                Some(value) => drop(known.insert(name.to_owned(), value.clone())),
                None => drop(known.remove(name)),
            }
        }
        Ok(Reloaded { applied, restart_needed })
    }))
}

/// The names of what is not the same in both.
fn changes(before: &Table, after: &Table) -> Vec<String> {
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
}
