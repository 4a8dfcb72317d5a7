//! Which process has the data folder, by the system's list of locks: asking for the lock itself would keep out a server that
//! starts in this moment.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The process that holds a folder.
pub(super) struct Holder {
    pub(super) process: u32,
    /// What its program is called, if this may be known.
    pub(super) name: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {}", self.process)?;
        if self.name.is_empty() { Ok(()) } else { write!(f, " ({})", self.name) }
    }
}

/// Who holds the folder; `None` if nobody does, or the system does not say (other than Linux; another container's process).
pub(super) fn of(folder: &Path) -> Option<Holder> {
    let inode = fs::metadata(folder.join("LOCK")).ok()?.ino();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let process = holders(&locks, inode).find(|process| has_open(*process, &folder.join("LOCK")))?;
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default().trim().to_owned();
    Some(Holder { process, name })
}

/// The processes with a lock on a file of this inode, on whatever device: the devices that the list names are not always those
/// that files say they are on (btrfs).
fn holders(locks: &str, inode: u64) -> impl Iterator<Item = u32> {
    // 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
    locks.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let at = fields.iter().position(|field| *field == "FLOCK")?;
        // A waiting one has an arrow before its kind.
        let (process, file) = (fields.get(at + 3)?, fields.get(at + 4)?);
        let is_ours = !fields.contains(&"->") && file.rsplit(':').next()?.parse() == Ok(inode);
        is_ours.then(|| process.parse().ok())?
    })
}

/// Whether a process has a file open; true if its files may not be seen.
fn has_open(process: u32, file: &Path) -> bool {
    let (Ok(files), Ok(wanted)) = (fs::read_dir(format!("/proc/{process}/fd")), fs::canonicalize(file)) else {
        return true;
    };
    files.flatten().any(|open| fs::read_link(open.path()).is_ok_and(|target| target == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_locks_is_read() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fe:00:7 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 fe:00:7 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 13 fe:00:7 0 EOF\n3: FLOCK  ADVISORY  WRITE 14 fe:00:8 0 EOF\nnonsense\n";
        assert_eq!(holders(locks, 7).collect::<Vec<_>>(), [12]);
        assert_eq!(holders(locks, 9).count(), 0);
    }

    #[test]
    fn a_lock_of_this_process_is_found_and_gone_when_it_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        assert!(of(folder.path()).is_none());
        let lock = fs::File::create(folder.path().join("LOCK")).unwrap();
        assert!(of(folder.path()).is_none());
        lock.lock().unwrap();
        assert_eq!(of(folder.path()).map(|holder| holder.process), Some(std::process::id()));
        lock.unlock().unwrap();
        assert!(of(folder.path()).is_none());
    }
}
