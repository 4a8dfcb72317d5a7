//! A folder held by this process: the lock, the side store, and which of its spaces are open. One store a model; all of
//! them share these.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Files, System};
use super::error::StoreError;
use super::file;
use super::lock::FolderLock;
use super::side::SideFile;
use super::{Config, Store, snapshot};
use crate::domain::ModelVersion;

/// A folder of embeddings, held by this process: no other writes to it meanwhile. Cloning is cheap, and all clones and
/// the stores opened in it are one hold.
#[derive(Clone)]
pub struct Folder {
    shared: Arc<Shared>,
}

// Fields are dropped in this order: the side store is closed before the lock goes.
struct Shared {
    files: Arc<dyn Files>,
    path: PathBuf,
    state: Mutex<State>,
    _lock: FolderLock,
}

#[derive(Default)]
struct State {
    /// `None` until the first store is opened.
    side: Option<Arc<SideFile>>,
    open: Vec<ModelVersion>,
}

/// One model's place in a folder: while it is held nobody else opens that model's space.
pub(super) struct Seat {
    folder: Folder,
    model: ModelVersion,
}

impl Folder {
    /// Holds a folder, making it if need be.
    ///
    /// # Errors
    /// When another process has it, or the system refuses.
    pub fn hold(path: &Path) -> Result<Self, StoreError> {
        Self::hold_on(Arc::new(System), path)
    }

    /// As `hold`, with everything that changes the folder going through `files`.
    pub(super) fn hold_on(files: Arc<dyn Files>, path: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(path).map_err(StoreError::io("create the folder", path))?;
        let lock = FolderLock::take(path)?;
        let (path, state) = (path.to_owned(), Mutex::default());
        Ok(Self { shared: Arc::new(Shared { files, path, state, _lock: lock }) })
    }

    /// Opens a model's store in the folder; as [`Store::open`].
    ///
    /// # Errors
    /// As [`Store::open`]; a model that is open already is in use, too.
    pub fn open(&self, model: &ModelVersion, dims: usize, config: &Config) -> Result<Store, StoreError> {
        Store::open_in(self, model, dims, config)
    }

    /// Removes everything a model has in the folder. Answers how many bytes of disk its space occupied.
    ///
    /// # Errors
    /// When the model's store is open, or the system refuses; what is left can be removed by asking again.
    pub fn delete(&self, model: &ModelVersion) -> Result<u64, StoreError> {
        let _seat = self.take_seat(model)?;
        let (files, name) = (&*self.shared.files, file::short_name(model));
        let space = file::path_of(&self.shared.path, model);
        let bytes = std::fs::metadata(&space).map_or(0, |found| found.blocks() * 512);
        // The rows last: what is beside them is of no use without them, and not found again once they are gone.
        self.side()?.0.forget(&name)?;
        snapshot::remove(files, &space).map_err(StoreError::io("remove the table of", &space))?;
        let derived = file::derived_for(&space);
        match std::fs::remove_dir_all(&derived) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::Io { operation: "remove", path: derived, source });
            }
            _ => {}
        }
        match files.remove(&space) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::Io { operation: "remove", path: space, source: error });
            }
            _ => {}
        }
        file::sync_folder_of(files, &space)?;
        Ok(bytes)
    }

    /// What was kept under a name; `None` if nothing was.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kept(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.shared.path.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { operation: "read", path, source }),
        }
    }

    /// Keeps something small under a name that no space has, in place of what was kept under it. On the medium when this
    /// returns; a crash leaves the one or the other, whole.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let files = &*self.shared.files;
        let path = self.shared.path.join(name);
        let sibling = self.shared.path.join(format!("{name}.new"));
        let disk = files.create(&sibling, 0).map_err(StoreError::io("create", &sibling))?.disk;
        disk.write_all_at(bytes, 0).map_err(StoreError::io("write", &sibling))?;
        disk.sync_data().map_err(StoreError::io("sync", &sibling))?;
        files.rename(&sibling, &path).map_err(StoreError::io("rename", &sibling))?;
        file::sync_folder_of(files, &path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.shared.path
    }

    pub(super) fn files(&self) -> &Arc<dyn Files> {
        &self.shared.files
    }

    /// The side store, opened by whoever asks first, and what was put aside for it then.
    pub(super) fn side(&self) -> Result<(Arc<SideFile>, Option<String>), StoreError> {
        let mut state = self.lock();
        if let Some(side) = &state.side {
            return Ok((Arc::clone(side), None));
        }
        let (side, note) = SideFile::open(&self.shared.files, &self.shared.path)?;
        state.side = Some(Arc::clone(&side));
        Ok((side, note))
    }

    pub(super) fn take_seat(&self, model: &ModelVersion) -> Result<Seat, StoreError> {
        let mut state = self.lock();
        if state.open.contains(model) {
            return Err(StoreError::InUse { folder: self.shared.path.clone() });
        }
        state.open.push(*model);
        Ok(Seat { folder: self.clone(), model: *model })
    }

    /// A panic cannot leave the list half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.folder.lock().open.retain(|model| *model != self.model);
    }
}
