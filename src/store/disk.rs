//! The few things the store asks of a disk after opening: the seam where tests put a failing one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Writes and syncs of one file.
///
/// After `write_all_at` has returned, readers of the same file see the bytes; after `sync_data`, power loss does not
/// take them. When `sync_data` fails, nothing is known about any byte written since the last that succeeded.
pub(super) trait Disk: Send + Sync {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
}

impl Disk for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }
}
