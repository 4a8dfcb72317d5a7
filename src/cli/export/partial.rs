//! A file or folder that gets its name when it is whole: written beside its place, synced, renamed, the folder synced.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// What is being written. Dropped before it is published, it is removed.
pub(super) struct Partial {
    place: PathBuf,
    /// Where it is written.
    pub(super) path: PathBuf,
    published: bool,
}

impl Partial {
    /// Chooses where to write. What an attempt that was killed has left there is removed; what stands at the place
    /// itself is not.
    pub(super) fn new(place: &Path) -> anyhow::Result<Self> {
        if place.symlink_metadata().is_ok() {
            bail!("{} is there already: remove it, or choose another name", place.display());
        }
        let name = place.file_name().with_context(|| format!("{} is not a name for a file", place.display()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".vecmemo-partial");
        let partial = Self { place: place.to_owned(), path: place.with_file_name(hidden), published: false };
        partial.remove().with_context(|| format!("cannot remove {}", partial.path.display()))?;
        Ok(partial)
    }

    pub(super) fn create_file(&self) -> anyhow::Result<File> {
        create(&self.path)
    }

    pub(super) fn create_folder(&self) -> anyhow::Result<()> {
        std::fs::create_dir(&self.path).with_context(|| format!("cannot create {}", self.path.display()))
    }

    /// A file beside it, gone when it is closed.
    pub(super) fn scratch(&self, name: &str) -> anyhow::Result<File> {
        let path = self.path.with_extension(format!("vecmemo-partial-{name}"));
        let file = create(&path)?;
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        Ok(file)
    }

    /// Gives it its name. Its files must be synced; a folder is synced here.
    pub(super) fn publish(mut self) -> anyhow::Result<()> {
        if self.path.is_dir() {
            sync_folder(&self.path)?;
        }
        std::fs::rename(&self.path, &self.place)
            .with_context(|| format!("cannot rename {} to {}", self.path.display(), self.place.display()))?;
        self.published = true;
        let folder = self.place.parent().filter(|folder| !folder.as_os_str().is_empty());
        sync_folder(folder.unwrap_or(Path::new(".")))
    }

    fn remove(&self) -> io::Result<()> {
        let removed = match self.path.symlink_metadata() {
            Ok(found) if found.is_dir() => std::fs::remove_dir_all(&self.path),
            Ok(_) => std::fs::remove_file(&self.path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published {
            // The next attempt removes it too.
            let _ = self.remove();
        }
    }
}

pub(super) fn create(path: &Path) -> anyhow::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    file.with_context(|| format!("cannot create {}", path.display()))
}

fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("cannot sync {}", folder.display()))
}
