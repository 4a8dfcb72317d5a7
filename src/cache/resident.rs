//! How much memory the process really has, as the system counts it. Linux only; nothing elsewhere.

/// Where Linux says so, in kibibytes.
const STATUS: &str = "/proc/self/status";

/// Memory of this process that is in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resident {
    /// All of it, with the pages of the store's file that are mapped and the system may take back.
    pub(super) resident_bytes: u64,
    /// Of it, what is not a file's: heap and stacks.
    pub(super) resident_anonymous_bytes: u64,
}

/// Asks the system; `None` where it does not say.
pub(super) fn resident() -> Option<Resident> {
    parse(&std::fs::read_to_string(STATUS).ok()?)
}

fn parse(status: &str) -> Option<Resident> {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kibibytes.checked_mul(1024)
    };
    Some(Resident { resident_bytes: bytes("VmRSS")?, resident_anonymous_bytes: bytes("RssAnon")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kibibytes_are_read_by_name() {
        let status = "Name:\tvecmemo\nVmRSS:\t  12345 kB\nRssAnon:\t    100 kB\nRssFile:\t 12245 kB\n";
        let expected = Resident { resident_bytes: 12_345 * 1024, resident_anonymous_bytes: 102_400 };
        assert_eq!(parse(status), Some(expected));
        assert_eq!(parse("VmRSS:\t1 kB\n"), None);
        assert_eq!(parse("VmRSS:\tmany\nRssAnon:\t1 kB\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_touched_is_resident() {
        let before = resident().unwrap();
        // Much more than what other tests may give back meanwhile, and not for the compiler to leave out.
        let touched = std::hint::black_box(vec![1_u8; 256 << 20]);
        let after = resident().unwrap();
        assert!(
            after.resident_anonymous_bytes >= before.resident_anonymous_bytes + (128 << 20),
            "{before:?} {after:?}"
        );
        assert!(after.resident_bytes >= after.resident_anonymous_bytes && touched.len() == 256 << 20);
    }
}
