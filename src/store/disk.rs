//! What the store asks of the disk below it: the seam where tests put one that fails, or forgets what was not synced.
//!
//! Everything that changes the folder goes through here: the space's file by [`Disk`], files as a whole by [`Files`].
//! Reading does not: it is the map's, and of files just opened.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Writes and syncs of one file.
///
/// After `write_all_at` has returned, readers of the same file see the bytes; after `sync_data`, power loss does not
/// take them, nor the file's length. When `sync_data` fails, nothing is known about any byte written since the last that
/// succeeded.
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

/// An open file: to be read and mapped, and to be changed through the disk alone.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) disk: Arc<dyn Disk>,
}

impl Opened {
    fn on_disk(file: File) -> io::Result<Self> {
        Ok(Self { disk: Arc::new(file.try_clone()?), file })
    }
}

/// Making, renaming and removing files. What the methods do by themselves is what the system does.
///
/// A name that was made, changed or removed is so for readers at once; after power loss only if the folder was synced
/// since.
pub(super) trait Files: Send + Sync {
    /// Opens a file that is there.
    fn open(&self, path: &Path) -> io::Result<Opened> {
        Opened::on_disk(File::options().read(true).write(true).open(path)?)
    }

    /// Makes a file of zeros, in place of whatever has its name.
    fn create(&self, path: &Path, len: u64) -> io::Result<Opened> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(len)?;
        Opened::on_disk(file)
    }

    /// Adds zeros to the end of a file.
    fn lengthen(&self, path: &Path, len: u64) -> io::Result<()> {
        File::options().write(true).open(path)?.set_len(len)
    }

    /// Gives a file another name, in place of whatever has that.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    /// Makes the names in a folder last.
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    /// Opens a redb database, making one if there is none.
    fn open_database(&self, builder: &redb::Builder, path: &Path) -> Result<redb::Database, redb::DatabaseError> {
        builder.create(path)
    }
}

/// The system's own.
pub(super) struct System;

impl Files for System {}
