//! The clock, by which times to live are counted: whether it can be right.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::finding::{Finding, fail, ok, warn};

const CHECK: &str = "clock";
/// 2026-01-01 UTC: this program is younger.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);
/// File systems and clocks may differ a little.
const AHEAD_MAX: Duration = Duration::from_secs(5);

pub(super) fn check(data_dir: Option<&Path>) -> Finding {
    let files = data_dir.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let newest = files.filter_map(|file| file.metadata().ok()?.modified().ok()).max();
    judge(SystemTime::now(), newest)
}

fn judge(now: SystemTime, newest: Option<SystemTime>) -> Finding {
    let advice = "set it, and have it kept right (timedatectl set-ntp true)";
    if now.duration_since(UNIX_EPOCH).unwrap_or_default() < EARLIEST {
        return fail(CHECK, "it is before 2026: entries would seem to live for ever, or to have expired", advice);
    }
    match newest.and_then(|newest| newest.duration_since(now).ok()).filter(|ahead| *ahead > AHEAD_MAX) {
        Some(ahead) => {
            let found = format!(
                "the data folder was written {} seconds from now: it goes wrong, or went back",
                ahead.as_secs()
            );
            warn(CHECK, found, advice)
        }
        None => ok(CHECK, "it can be right"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn a_clock_that_cannot_be_right_is_told() {
        let now = UNIX_EPOCH + EARLIEST + Duration::from_secs(1000);
        assert_eq!(judge(now, None).level, Level::Ok);
        assert_eq!(judge(now, Some(now - Duration::from_secs(9))).level, Level::Ok);
        assert_eq!(judge(now, Some(now + Duration::from_secs(9))).level, Level::Warn);
        assert_eq!(judge(UNIX_EPOCH, None).level, Level::Fail);
    }
}
