//! Files whose bytes are to go: overwritten, brought to the medium, and only then removed; and files that are written anew so
//! that nothing that was left out stays behind in unused parts of them.
//!
//! ```text
//! NAME ──copied, without what goes──► NAME.new ──► NAME is NAME.old ──► NAME.new is NAME ──► NAME.old overwritten, removed
//! ```
//!
//! Promises: a crash at any moment leaves a whole file under the name, after [`recover`] at the latest, and what was to be
//! overwritten is, by then, too. What the file system or the medium below keeps of bytes that were overwritten (snapshots,
//! journals, blocks that a flash disk has put elsewhere) is out of reach here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::file::used;

/// How many bytes are overwritten at a time.
const BYTES_AT_ONCE: usize = 1 << 20;

/// Overwrites a file, syncs it, removes it and syncs its folder. One that is not there is gone already.
///
/// # Errors
/// When the system refuses; the file may be overwritten then, and still be there.
pub(crate) fn shred(path: &Path) -> io::Result<()> {
    let file = match File::options().write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let len = file.metadata()?.len();
    let zeros = vec![0; BYTES_AT_ONCE.min(len as usize)];
    // Holes have nothing to overwrite, and the disk may have no room for them. The last block is one that `used` does not count.
    let blocks = len.next_multiple_of(BYTES_AT_ONCE as u64);
    for block in used(&file, 0..blocks, BYTES_AT_ONCE as u64).into_iter().flatten() {
        let at = u64::from(block) * BYTES_AT_ONCE as u64;
        let count = len.saturating_sub(at).min(BYTES_AT_ONCE as u64);
        file.write_all_at(&zeros[..count as usize], at)?;
    }
    file.sync_all()?;
    std::fs::remove_file(path)?;
    sync_folder_of(path)
}

/// Where a file that is to take another's place is written. Nothing is there when this returns.
pub(crate) fn begin(path: &Path) -> io::Result<PathBuf> {
    let new = sibling(path, "new");
    shred(&new)?;
    Ok(new)
}

/// Puts the new file in the place of the old one; what was open of the old one has to be closed before [`finish`].
pub(crate) fn exchange(path: &Path) -> io::Result<()> {
    let old = sibling(path, "old");
    shred(&old)?;
    std::fs::rename(path, &old)?;
    if let Err(error) = std::fs::rename(sibling(path, "new"), path) {
        // Whoever opens the name next has to find something.
        std::fs::rename(&old, path)?;
        return Err(error);
    }
    sync_folder_of(path)
}

/// Overwrites and removes the old file.
pub(crate) fn finish(path: &Path) -> io::Result<()> {
    shred(&sibling(path, "old"))
}

/// Ends what a crash has left in the middle. To be called before the file is opened.
pub(crate) fn recover(path: &Path) -> io::Result<()> {
    let old = sibling(path, "old");
    if old.exists() && !path.exists() {
        std::fs::rename(&old, path)?;
        sync_folder_of(path)?;
    }
    shred(&old)?;
    shred(&sibling(path, "new"))
}

fn sibling(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    PathBuf::from(name)
}

/// Brings what a folder says of a file to the medium.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_shredded_file_is_overwritten_before_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("secret"), folder.path().join("link"));
        fs::write(&path, vec![7; BYTES_AT_ONCE + 5]).unwrap();
        // What a name is taken from can be looked at by another.
        fs::hard_link(&path, &link).unwrap();
        shred(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read(&link).unwrap(), vec![0; BYTES_AT_ONCE + 5]);
        shred(&path).unwrap();
    }

    #[test]
    fn a_crash_at_any_step_of_an_exchange_leaves_the_old_file_or_the_new_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let (new, old) = (sibling(&path, "new"), sibling(&path, "old"));
        let states: [(&[(&Path, &str)], &str); 4] = [
            (&[(&path, "a"), (&new, "half")], "a"),
            (&[(&old, "a"), (&new, "b")], "a"),
            (&[(&path, "b"), (&old, "a")], "b"),
            (&[(&path, "b")], "b"),
        ];
        for (files, expected) in states {
            files.iter().for_each(|(path, text)| fs::write(path, text).unwrap());
            recover(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), expected, "{files:?}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{files:?}");
        }
        assert_eq!(begin(&path).unwrap(), new);
        fs::write(&new, "c").unwrap();
        exchange(&path).unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap(), fs::read_to_string(&old).unwrap()), ("c".into(), "b".into()));
        finish(&path).unwrap();
        assert!(!old.exists());
    }
}
