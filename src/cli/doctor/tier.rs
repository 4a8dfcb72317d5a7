//! The tier shared with other machines, if there is one: what `vecmemo cluster check` says.

use super::finding::{Finding, fail, ok, warn};
use super::model::time;
use crate::config::Settings;
use crate::remote::{Config, Survey, Tier};

const CHECK: &str = "shared tier";

pub(super) fn check(settings: &Settings) -> Vec<Finding> {
    let Some((url, config)) = &settings.remote else { return vec![ok(CHECK, "none is set")] };
    // To look is not to take part: what a server here has still to tell the others is not touched.
    match Tier::start(url, Config { state_file: None, ..config.clone() }) {
        Ok(tier) => judge(&tier.survey(), config),
        Err(error) => vec![fail(CHECK, error.to_string(), "correct `url` in [remote]")],
    }
}

fn judge(survey: &Survey, config: &Config) -> Vec<Finding> {
    let up = survey.servers.iter().filter(|server| server.up).count();
    let mut findings: Vec<Finding> = Vec::new();
    if up == 0 {
        let reason = survey.warnings.first().map(|warning| format!(": {warning}")).unwrap_or_default();
        let advice = "start it, or correct `url` in [remote]; the service starts without it, and computes what it would have found";
        return vec![fail(CHECK, format!("no server answers{reason}"), advice)];
    }
    for warning in &survey.warnings {
        let (found, advice) = warning.split_once(": ").unwrap_or((warning, "see vecmemo cluster status"));
        findings.push(warn(CHECK, found, advice));
    }
    for server in &survey.servers {
        if let Some(latency) = server.latency.filter(|latency| *latency * 2 > config.deadline) {
            let found =
                format!("{} answers in {}, a look may take {}", server.address, time(latency), time(config.deadline));
            findings.push(warn(CHECK, found, "raise deadline_ms in [remote], or move the servers closer"));
        }
    }
    if findings.is_empty() {
        let slowest = survey.servers.iter().filter_map(|server| server.latency).max().unwrap_or_default();
        findings.push(ok(CHECK, format!("{up} servers answer, the slowest in {}", time(slowest))));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::finding::Level;
    use super::*;
    use crate::remote::Server;

    fn survey(latency_ms: u64, warnings: &[&str]) -> Survey {
        let mut server = Server::default();
        server.address.push_str("10.0.0.1:6379");
        (server.up, server.latency) = (true, Some(Duration::from_millis(latency_ms)));
        Survey { kind: "single", servers: vec![server], warnings: warnings.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn slow_servers_and_their_warnings_are_told() {
        let config = Config { deadline: Duration::from_millis(5), ..Config::default() };
        assert_eq!(judge(&survey(1, &[]), &config)[0].level, Level::Ok);
        let slow = judge(&survey(3, &[]), &config);
        assert!(slow[0].level == Level::Warn && slow[0].finding.contains("3.0 ms"), "{slow:?}");
        let warned = judge(&survey(1, &["10.0.0.1:6379 has no bound of memory: set maxmemory"]), &config);
        assert_eq!(warned[0].advice.as_deref(), Some("set maxmemory"));
        assert_eq!(judge(&Survey::default(), &config)[0].level, Level::Fail);
    }
}
