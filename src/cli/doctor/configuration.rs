//! Whether the settings make sense, and whether all that was set is a setting.

use std::collections::BTreeSet;

use clap::{ArgMatches, Args, Command};

use super::finding::{Finding, fail, ok, warn};
use crate::cli::SettingsArguments;
use crate::config::{self, Origin, Settings, Typed};
use crate::http::Tls;

const CHECK: &str = "configuration";

/// The settings, if there are any that the service would start with.
pub(super) fn check(settings: &SettingsArguments, matches: &ArgMatches) -> (Vec<Finding>, Option<Settings>) {
    let advice = "change it; `vecmemo config` prints every setting, what it is for and where its value comes from";
    let layered = match settings.layered(matches) {
        Ok(layered) => layered,
        Err(error) => return (vec![fail(CHECK, one_line(&format!("{error:#}")), advice)], None),
    };
    let checked = match Settings::new(&layered.typed) {
        Ok(checked) => checked,
        Err(error) => return (vec![fail(CHECK, error.to_string(), advice)], None),
    };
    let mut findings = Vec::new();
    if let Err(error) = config::access(&layered.typed) {
        findings.push(fail(CHECK, format!("{error:#}"), advice));
    }
    if let Some(Err(error)) = checked.tls.as_ref().map(|(certificate, key)| Tls::load(certificate, key)) {
        let advice = "name a certificate and its key, as PEM, with --tls-cert and --tls-key";
        findings.push(fail(CHECK, format!("{:#}", anyhow::Error::new(error)), advice));
    }
    let file = layered.origins.values().find_map(|origin| match origin {
        Origin::File(path) => Some(format!("from {}", path.display())),
        _ => None,
    });
    let set = layered.origins.values().filter(|origin| **origin != Origin::Default).count();
    let from = file.unwrap_or_else(|| "no file".to_owned());
    findings.push(ok(CHECK, format!("{from}; {set} settings differ from the defaults or repeat them")));
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&checked.log) {
        let advice = "use error, warn, info, debug, trace, or a filter such as info,vecmemo::http=debug";
        findings.push(fail(CHECK, format!("the setting log cannot be {:?}: {error}", checked.log), advice));
    }
    findings.extend(unknown(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())));
    (findings, Some(checked))
}

/// What a reader of TOML says, without the picture of the line and the list of all names there could be.
fn one_line(text: &str) -> String {
    let is_picture = |line: &&str| line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit()).starts_with('|');
    let lines: Vec<&str> = text.lines().filter(|line| !is_picture(line) && !line.is_empty()).collect();
    let said = lines.join(": ");
    said.split(", expected one of").next().unwrap_or(&said).to_owned()
}

/// Variables that look like ours and are read by nobody.
fn unknown(variables: impl Iterator<Item = String>) -> Vec<Finding> {
    let command = Typed::augment_args(Command::new("settings"));
    let mut known: BTreeSet<String> =
        command.get_arguments().filter_map(|setting| Some(setting.get_env()?.to_string_lossy().into_owned())).collect();
    known.insert("VECMEMO_CONFIG".to_owned());
    variables
        .filter(|name| name.starts_with("VECMEMO_") && !known.contains(name))
        .map(|name| {
            let advice = "correct its name, or unset it; `vecmemo config` names all there are";
            warn(CHECK, format!("the variable {name} is no setting's, and does nothing"), advice)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_variable_is_named() {
        let variables = ["VECMEMO_DATADIR", "VECMEMO_DATA_DIR", "VECMEMO_CONFIG", "PATH"].map(String::from);
        let said = unknown(variables.into_iter());
        assert!(matches!(said.as_slice(), [one] if one.finding.contains("VECMEMO_DATADIR ")), "{said:?}");
    }
}
