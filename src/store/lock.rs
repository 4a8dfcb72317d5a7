//! One writer a folder: an advisory lock on a file named `LOCK`, which the system lets go when the process ends.

use std::fs::{File, TryLockError};
use std::path::Path;

use super::error::StoreError;

/// Held as long as it lives.
pub(super) struct FolderLock {
    file: File,
}

impl FolderLock {
    pub(super) fn take(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join("LOCK");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(StoreError::io("open the lock file", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { folder: folder.to_owned() }),
            Err(TryLockError::Error(source)) => Err(StoreError::Io { operation: "lock", path, source }),
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing would do, were it not for a child process just being started, which holds a copy of the descriptor
        // for a moment. If this fails, closing still does.
        let _ = self.file.unlock();
    }
}
