//! A disk that keeps a journal of all that is done to it, may refuse any of it, and can show what a power loss would
//! leave.
//!
//! The process sees real files. The journal says what became of them and what was synced; from it, the folder after a
//! power loss at any moment is made: what a successful sync covered is there; of the rest, any write may be there, be
//! absent or be torn, any name may be there or not, in any order. What was written to a space before a failed sync may be
//! missing for ever, whatever is synced later.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use redb::StorageBackend;

use super::super::disk::{Disk, Files, Opened, System};
use super::quick_folder;

/// A file, whatever its name.
pub(super) type FileId = usize;

/// One change of the folder.
#[derive(Debug)]
pub(super) enum Operation {
    Create { file: FileId, name: String },
    SetLen { file: FileId, len: u64, modified: SystemTime },
    Write { file: FileId, offset: u64, bytes: Vec<u8>, modified: SystemTime },
    Sync { file: FileId },
    SyncFailed { file: FileId, forgets: bool },
    Rename { file: FileId, from: String, to: String },
    Remove { name: String },
    SyncFolder,
}

/// How an operation is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No space; nothing is written.
    Full,
    /// No space after half of it.
    Short,
    /// The medium fails; nothing is written.
    Medium,
}

impl Failure {
    fn error(self) -> io::Error {
        match self {
            Self::Full | Self::Short => io::Error::from_raw_os_error(28),
            Self::Medium => io::Error::from_raw_os_error(5),
        }
    }
}

/// Which operation is refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// The number of the attempt, from 0.
    pub(super) at: usize,
    pub(super) failure: Failure,
    /// Whether all later ones are refused too.
    pub(super) lasts: bool,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct SimulatedDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) journal: Vec<Operation>,
    names: BTreeMap<String, FileId>,
    files: usize,
    /// Operations tried so far.
    pub(super) tried: usize,
    pub(super) fault: Option<Fault>,
}

impl State {
    fn fails(&mut self) -> Option<Failure> {
        let at = self.tried;
        self.tried += 1;
        let fault = self.fault?;
        (at == fault.at || at > fault.at && fault.lasts).then_some(fault.failure)
    }

    /// For operations that happen whole or not at all.
    fn attempt(&mut self) -> io::Result<()> {
        self.fails().map_or(Ok(()), |failure| Err(failure.error()))
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

impl SimulatedDisk {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A test that has failed elsewhere must not hide behind this.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// How many operations there were.
    pub(super) fn len(&self) -> usize {
        self.state().journal.len()
    }

    fn opened(&self, id: FileId, file: File) -> io::Result<Opened> {
        let below = SimulatedFile { disk: self.clone(), id, file: file.try_clone()?, sync_failed: Mutex::new(false) };
        Ok(Opened { file, disk: Arc::new(below) })
    }

    fn set_len(&self, id: FileId, file: &File, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.attempt()?;
        file.set_len(len)?;
        state.journal.push(Operation::SetLen { file: id, len, modified: file.metadata()?.modified()? });
        Ok(())
    }

    fn write(&self, id: FileId, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state();
        let failure = state.fails();
        let written = match failure {
            None => bytes,
            Some(Failure::Short) => &bytes[..bytes.len() / 2],
            Some(_) => &[],
        };
        if !written.is_empty() {
            FileExt::write_all_at(file, written, offset)?;
            let modified = file.metadata()?.modified()?;
            state.journal.push(Operation::Write { file: id, offset, bytes: written.to_vec(), modified });
        }
        failure.map_or(Ok(()), |failure| Err(failure.error()))
    }

    fn sync(&self, id: FileId, forgets: bool) -> io::Result<()> {
        let mut state = self.state();
        let result = state.attempt();
        state.journal.push(if result.is_ok() {
            Operation::Sync { file: id }
        } else {
            Operation::SyncFailed { file: id, forgets }
        });
        result
    }

    fn create_at(&self, path: &Path) -> io::Result<(FileId, File)> {
        let mut state = self.state();
        state.attempt()?;
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let id = state.files;
        state.files += 1;
        state.names.insert(name_of(path), id);
        state.journal.push(Operation::Create { file: id, name: name_of(path) });
        Ok((id, file))
    }

    fn id_of(&self, path: &Path) -> io::Result<FileId> {
        self.state().names.get(&name_of(path)).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Files for SimulatedDisk {
    fn open(&self, path: &Path) -> io::Result<Opened> {
        let id = self.id_of(path)?;
        self.opened(id, System.open(path)?.file)
    }

    fn create(&self, path: &Path, len: u64) -> io::Result<Opened> {
        let (id, file) = self.create_at(path)?;
        self.set_len(id, &file, len)?;
        self.opened(id, file)
    }

    fn lengthen(&self, path: &Path, len: u64) -> io::Result<()> {
        self.set_len(self.id_of(path)?, &System.open(path)?.file, len)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.id_of(from)?;
        let mut state = self.state();
        state.attempt()?;
        System.rename(from, to)?;
        let (from, to) = (name_of(from), name_of(to));
        state.names.remove(&from);
        state.names.insert(to.clone(), file);
        state.journal.push(Operation::Rename { file, from, to });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.id_of(path)?;
        let mut state = self.state();
        state.attempt()?;
        System.remove(path)?;
        let name = name_of(path);
        state.names.remove(&name);
        state.journal.push(Operation::Remove { name });
        Ok(())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.attempt()?;
        state.journal.push(Operation::SyncFolder);
        Ok(())
    }

    fn open_database(&self, builder: &redb::Builder, path: &Path) -> Result<redb::Database, redb::DatabaseError> {
        let (id, file) = match self.id_of(path) {
            Ok(id) => (id, System.open(path)?.file),
            Err(_) => self.create_at(path)?,
        };
        builder.create_with_backend(SimulatedFile { disk: self.clone(), id, file, sync_failed: Mutex::new(false) })
    }
}

/// An open file on the disk.
#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    id: FileId,
    file: File,
    sync_failed: Mutex<bool>,
}

impl Disk for SimulatedFile {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.write(self.id, &self.file, bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut failed = self.sync_failed.lock().unwrap();
        assert!(!*failed, "a sync was tried again after one had failed");
        let result = self.disk.sync(self.id, true);
        *failed = result.is_err();
        result
    }
}

impl StorageBackend for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.set_len(self.id, &self.file, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        // redb, opened again after a failed sync, believes what it reads then; there is nothing that we could do for it.
        self.disk.sync(self.id, false)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write(self.id, &self.file, data, offset)
    }
}

/// What becomes of an operation that no sync has covered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Whole,
    Absent,
    /// Only these of its bytes arrive.
    Torn(Vec<Range<usize>>),
}

impl Fate {
    pub(super) fn torn_to(kept: Range<usize>) -> Self {
        Self::Torn(std::iter::once(kept).collect())
    }
}

const PAGE_BYTES: u64 = 4096;

/// A file's bytes; pages that are not there are zero.
#[derive(Clone, Default)]
struct Content {
    len: u64,
    pages: HashMap<u64, Arc<[u8; PAGE_BYTES as usize]>>,
    modified: Option<SystemTime>,
}

impl Content {
    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.retain(|&page, _| page * PAGE_BYTES < len);
            if let Some(page) = self.pages.get_mut(&(len / PAGE_BYTES)) {
                Arc::make_mut(page)[(len % PAGE_BYTES) as usize..].fill(0);
            }
        }
        self.len = len;
    }

    fn write(&mut self, mut bytes: &[u8], mut offset: u64) {
        self.len = self.len.max(offset + bytes.len() as u64);
        while !bytes.is_empty() {
            let within = (offset % PAGE_BYTES) as usize;
            let (now, later) = bytes.split_at(bytes.len().min(PAGE_BYTES as usize - within));
            let page = self.pages.entry(offset / PAGE_BYTES).or_insert_with(|| Arc::new([0; PAGE_BYTES as usize]));
            Arc::make_mut(page)[within..within + now.len()].copy_from_slice(now);
            offset += now.len() as u64;
            bytes = later;
        }
    }

    fn apply(&mut self, operation: &Operation, fate: &Fate) {
        match (operation, fate) {
            (Operation::SetLen { len, modified, .. }, Fate::Whole) => {
                self.set_len(*len);
                self.modified = Some(*modified);
            }
            (Operation::Write { offset, bytes, modified, .. }, Fate::Whole) => {
                self.write(bytes, *offset);
                self.modified = Some(*modified);
            }
            (Operation::Write { offset, bytes, modified, .. }, Fate::Torn(ranges)) => {
                for range in ranges {
                    self.write(&bytes[range.clone()], offset + range.start as u64);
                }
                self.modified = Some(*modified);
            }
            _ => {}
        }
    }

    fn put_at(&self, path: &Path, modified: Option<SystemTime>) {
        let file = File::create(path).unwrap();
        file.set_len(self.len).unwrap();
        for (page, bytes) in &self.pages {
            let offset = page * PAGE_BYTES;
            let len = PAGE_BYTES.min(self.len.saturating_sub(offset)) as usize;
            FileExt::write_all_at(&file, &bytes[..len], offset).unwrap();
        }
        if let Some(modified) = modified.or(self.modified) {
            file.set_modified(modified).unwrap();
        }
    }
}

/// Operations of one kind not yet folded into what is surely on the medium.
#[derive(Clone, Copy, Debug)]
struct Pending {
    at: usize,
    lasts: bool,
    /// A sync that should have covered it failed: no later one does.
    stuck: bool,
}

/// What is on the medium after so many operations of the journal: some of it surely, some of it maybe.
#[derive(Default)]
pub(super) struct Medium {
    done: usize,
    files: Vec<(Content, Vec<Pending>)>,
    names: BTreeMap<String, FileId>,
    names_pending: Vec<Pending>,
}

impl Medium {
    /// Goes on to a position of the journal.
    pub(super) fn advance(&mut self, journal: &[Operation], to: usize) {
        for (at, operation) in journal.iter().enumerate().take(to).skip(self.done) {
            let pending = Pending { at, lasts: false, stuck: false };
            match operation {
                Operation::Create { file, .. } => {
                    assert_eq!(*file, self.files.len());
                    self.files.push(Default::default());
                    self.names_pending.push(pending);
                }
                Operation::Rename { .. } | Operation::Remove { .. } => self.names_pending.push(pending),
                Operation::SetLen { file, .. } | Operation::Write { file, .. } => self.files[*file].1.push(pending),
                Operation::SyncFailed { forgets: false, .. } => {}
                Operation::SyncFailed { file, .. } => {
                    self.files[*file].1.iter_mut().for_each(|pending| pending.stuck |= !pending.lasts);
                }
                Operation::Sync { file } => {
                    let (content, pending) = &mut self.files[*file];
                    pending.iter_mut().for_each(|pending| pending.lasts |= !pending.stuck);
                    let folded = pending.iter().take_while(|pending| pending.lasts).count();
                    pending.drain(..folded).for_each(|pending| content.apply(&journal[pending.at], &Fate::Whole));
                }
                Operation::SyncFolder => {
                    for pending in self.names_pending.drain(..) {
                        apply_name(&mut self.names, &journal[pending.at]);
                    }
                }
            }
        }
        self.done = to;
    }

    /// Operations that a power loss now may take, in order.
    pub(super) fn at_stake(&self) -> Vec<usize> {
        let files = self.files.iter().flat_map(|(_, pending)| pending);
        let mut at_stake: Vec<usize> =
            files.chain(&self.names_pending).filter(|pending| !pending.lasts).map(|pending| pending.at).collect();
        at_stake.sort_unstable();
        at_stake
    }

    /// The folder that a power loss now leaves, if each operation at stake has this fate. With `as_seen`, files keep the
    /// time of change that the process saw last; else that of what is there.
    pub(super) fn after_power_loss(
        &self,
        journal: &[Operation],
        as_seen: bool,
        mut fate: impl FnMut(usize) -> Fate,
    ) -> tempfile::TempDir {
        let mut names = self.names.clone();
        for pending in &self.names_pending {
            if fate(pending.at) != Fate::Absent {
                apply_name(&mut names, &journal[pending.at]);
            }
        }
        let folder = quick_folder();
        for (name, file) in names {
            let (content, pending) = &self.files[file];
            let mut content = content.clone();
            let mut seen = content.modified;
            for pending in pending {
                let fate = if pending.lasts { Fate::Whole } else { fate(pending.at) };
                content.apply(&journal[pending.at], &fate);
                if let Operation::SetLen { modified, .. } | Operation::Write { modified, .. } = journal[pending.at] {
                    seen = Some(modified);
                }
            }
            content.put_at(&folder.path().join(name), seen.filter(|_| as_seen));
        }
        folder
    }
}

fn apply_name(names: &mut BTreeMap<String, FileId>, operation: &Operation) {
    match operation {
        Operation::Create { file, name } => {
            names.insert(name.clone(), *file);
        }
        Operation::Rename { file, from, to } => {
            if names.get(from) == Some(file) {
                names.remove(from);
            }
            names.insert(to.clone(), *file);
        }
        Operation::Remove { name } => {
            names.remove(name);
        }
        _ => {}
    }
}
