//! What the system allows the service's process: open files, address space, huge pages.

use std::path::Path;

use super::finding::{Finding, fail, ok, warn};
use super::holder::Holder;
use super::model::Needs;
use crate::cli::meter::bytes;
use crate::config::Settings;

/// Files that are open beside connections: spaces, side store, log, the tier's connections, the runtime's own.
const FILES_BESIDE_CONNECTIONS: u64 = 256;
/// Without so many not even the parts of the service can be opened.
const FILES_MIN: u64 = 64;
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

pub(super) fn check(settings: &Settings, holder: Option<&Holder>, needs: &Needs) -> Vec<Finding> {
    let process = holder.map_or_else(|| "self".to_owned(), |holder| holder.process.to_string());
    let mut findings = Vec::new();
    match std::fs::read_to_string(Path::new("/proc").join(process).join("limits")) {
        Ok(limits) => {
            findings.push(files(soft(&limits, "Max open files"), settings.http.connections_max as u64));
            findings.push(address_space(soft(&limits, "Max address space"), needs));
        }
        Err(error) => findings.push(ok("limits", format!("the system does not say them here: {error}"))),
    }
    findings.extend(std::fs::read_to_string(HUGE_PAGES).ok().map(|mode| huge_pages(&mode)));
    findings
}

/// The soft limit of a name; `None` if there is none.
fn soft(limits: &str, name: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

fn files(limit: Option<u64>, connections_max: u64) -> Finding {
    let needed = connections_max + FILES_BESIDE_CONNECTIONS;
    match limit {
        None => ok("open files", "no limit"),
        Some(limit) if limit >= needed => ok("open files", format!("{limit}, for {connections_max} connections")),
        Some(limit) => {
            let finding =
                format!("{limit} files may be open, connections_max is {connections_max}: past that none is accepted");
            let advice =
                format!("LimitNOFILE={needed} in the unit, ulimit -n {needed} in a shell, or a lower connections_max");
            if limit < FILES_MIN { fail("open files", finding, advice) } else { warn("open files", finding, advice) }
        }
    }
}

fn address_space(limit: Option<u64>, needs: &Needs) -> Finding {
    let needed = needs.mapped_bytes + needs.memory_bytes();
    match limit {
        None => ok("address space", "no limit"),
        Some(limit) if limit > needed => ok("address space", format!("{}, {} are needed", bytes(limit), bytes(needed))),
        Some(limit) => fail(
            "address space",
            format!("{} are allowed, and the store's map and memory take {}", bytes(limit), bytes(needed)),
            "lift the limit (ulimit -v unlimited), or lower capacity_entries",
        ),
    }
}

/// Costs speed alone, and only where the store's file is mapped by huge pages.
fn huge_pages(mode: &str) -> Finding {
    if mode.contains("[never]") {
        let advice = format!("echo madvise > {HUGE_PAGES}");
        return warn("huge pages", "switched off: a hit takes about a fifth longer", advice);
    }
    let chosen = mode.split(['[', ']']).nth(1).unwrap_or("unknown");
    ok("huge pages", chosen)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
        Max address space         1000000              unlimited            bytes     \n\
        Max open files            1024                 1048576              files     \n\
        Max pending signals       unlimited            95123                signals   \n";

    #[test]
    fn soft_limits_are_read() {
        assert_eq!(soft(LIMITS, "Max open files"), Some(1024));
        assert_eq!(soft(LIMITS, "Max address space"), Some(1_000_000));
        assert_eq!(soft(LIMITS, "Max pending signals"), None);
    }

    #[test]
    fn what_is_allowed_is_held_against_what_is_needed() {
        let needs = Needs { mapped_bytes: 600, store_bytes: 300, weights_bytes: 50, ..Needs::default() };
        assert_eq!(files(Some(4096), 1000).level, Level::Ok);
        assert_eq!(files(Some(1024), 4096).level, Level::Warn);
        assert_eq!(files(Some(16), 4096).level, Level::Fail);
        assert_eq!(address_space(Some(1200), &needs).level, Level::Ok);
        assert_eq!(address_space(Some(900), &needs).level, Level::Fail);
        assert_eq!(huge_pages("always [madvise] never\n").level, Level::Ok);
        assert_eq!(huge_pages("always madvise [never]\n").level, Level::Warn);
    }
}
