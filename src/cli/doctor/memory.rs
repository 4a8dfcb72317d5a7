//! Whether there is the memory that the store and the weights take, by the machine and by the control group.

use std::fs;
use std::path::{Path, PathBuf};

use super::finding::{Finding, fail, ok, warn};
use super::holder::Holder;
use super::model::Needs;
use crate::cli::meter::bytes;

const CHECK: &str = "memory";
const GROUPS: &str = "/sys/fs/cgroup";

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Memory {
    total_bytes: u64,
    available_bytes: u64,
}

pub(super) fn check(needs: &Needs, holder: Option<&Holder>) -> Vec<Finding> {
    let Some(machine) = fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_machine(&text)) else {
        return vec![];
    };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let memory = groups(&own).into_iter().filter_map(|folder| of_group(&folder)).fold(machine, tighter);
    vec![judge(needs, memory, holder)]
}

fn judge(needs: &Needs, memory: Memory, holder: Option<&Holder>) -> Finding {
    let needed = needs.memory_bytes();
    let (store, weights) = (bytes(needs.store_bytes), bytes(needs.weights_bytes));
    let of = format!("{} of {} are free", bytes(memory.available_bytes), bytes(memory.total_bytes));
    let takes = format!("a full store takes {store}, weights {weights}");
    let advice = "lower capacity_entries, or set memory_bytes_max and models_memory_bytes_max";
    if needed > memory.total_bytes {
        return fail(CHECK, format!("{takes}; {of}"), advice);
    }
    match holder {
        // What is free lacks what the server has taken already.
        Some(holder) => ok(CHECK, format!("{of} beside the server, {holder}; {takes}")),
        None if needed > memory.available_bytes => warn(CHECK, format!("{takes}; {of}"), advice),
        None => ok(CHECK, format!("{of}; {takes}")),
    }
}

fn tighter(a: Memory, b: Memory) -> Memory {
    Memory { total_bytes: a.total_bytes.min(b.total_bytes), available_bytes: a.available_bytes.min(b.available_bytes) }
}

fn of_machine(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    };
    Some(Memory { total_bytes: field("MemTotal")?, available_bytes: field("MemAvailable")? })
}

/// The folders of this process' control group (version 2) and of those it is in.
fn groups(own: &str) -> Vec<PathBuf> {
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::")) else { return vec![] };
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors().map(|group| Path::new(GROUPS).join(group)).collect()
}

/// What a group allows; `None` if it has no bound.
fn of_group(folder: &Path) -> Option<Memory> {
    let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    let total_bytes = number("memory.max")?;
    Some(Memory { total_bytes, available_bytes: total_bytes.saturating_sub(number("memory.current").unwrap_or(0)) })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn what_the_system_says_is_read() {
        let text = "MemTotal:       24000 kB\nMemFree:  1 kB\nMemAvailable:   12000 kB\n";
        let memory = Memory { total_bytes: 24_576_000, available_bytes: 12_288_000 };
        assert_eq!(of_machine(text), Some(memory));
        let folders = groups("0::/system.slice/vecmemo.service\n");
        assert_eq!(folders[0], Path::new("/sys/fs/cgroup/system.slice/vecmemo.service"));
        assert_eq!(folders.len(), 3);
        let group = tempfile::tempdir().unwrap();
        assert_eq!(of_group(group.path()), None);
        fs::write(group.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(of_group(group.path()), None);
        fs::write(group.path().join("memory.max"), "1000\n").unwrap();
        fs::write(group.path().join("memory.current"), "400\n").unwrap();
        let allowed = Memory { total_bytes: 1000, available_bytes: 600 };
        assert_eq!(of_group(group.path()), Some(allowed));
        assert_eq!(tighter(memory, allowed), allowed);
    }

    #[test]
    fn too_little_in_all_fails_and_too_little_left_warns() {
        let needs = Needs { store_bytes: 500, weights_bytes: 300, ..Needs::default() };
        let memory = |total_bytes, available_bytes| Memory { total_bytes, available_bytes };
        assert_eq!(judge(&needs, memory(700, 700), None).level, Level::Fail);
        assert_eq!(judge(&needs, memory(1000, 700), None).level, Level::Warn);
        assert_eq!(judge(&needs, memory(1000, 900), None).level, Level::Ok);
        let holder = Holder { process: 1, name: String::new() };
        assert_eq!(judge(&needs, memory(1000, 100), Some(&holder)).level, Level::Ok);
    }
}
