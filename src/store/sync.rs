//! Syncs shared by everyone who waits at the same time, and the latch that a failed one leaves.
//!
//! A sync that fails may have dropped the very pages it was to write and cleared their marks, so a second one may
//! succeed without them (the fsync study at ATC '20). Hence: the first failure is latched, no sync is tried after it,
//! and whoever asks for durability is told.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::disk::Disk;
use super::error::StoreError;
use super::info::Counter;

/// The syncs of one file.
pub(super) struct Syncer {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    progress: Mutex<Progress>,
    done: Condvar,
    failure: OnceLock<String>,
    pub(super) syncs: Counter,
}

/// Writes are numbered; a sync that begins after write `n` covers it.
#[derive(Default)]
struct Progress {
    written: u64,
    synced: u64,
    running: bool,
}

impl Syncer {
    pub(super) fn new(disk: Arc<dyn Disk>, path: &Path) -> Self {
        Self {
            disk,
            path: path.to_owned(),
            // What a former session wrote may not be on the medium either.
            progress: Mutex::new(Progress { written: 1, ..Progress::default() }),
            done: Condvar::new(),
            failure: OnceLock::new(),
            syncs: Counter::default(),
        }
    }

    /// Notes that something was written.
    pub(super) fn wrote(&self) {
        self.progress().written += 1;
    }

    /// Returns when everything noted before is on the medium. One of those waiting syncs for all.
    pub(super) fn settle(&self) -> Result<(), StoreError> {
        let mut progress = self.progress();
        let wanted = progress.written;
        loop {
            self.check()?;
            if progress.synced >= wanted {
                return Ok(());
            }
            if progress.running {
                progress = self.done.wait(progress).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            progress.running = true;
            let covers = progress.written;
            drop(progress);
            let result = self.disk.sync_data();
            progress = self.progress();
            progress.running = false;
            match result {
                Ok(()) => {
                    progress.synced = covers;
                    self.syncs.add(1);
                }
                Err(error) => {
                    tracing::error!(path = %self.path.display(), %error, "a sync failed: the store is degraded");
                    // Only the one that set `running` gets here, so the latch is still open.
                    let _ = self.failure.set(error.to_string());
                }
            }
            self.done.notify_all();
        }
    }

    /// The error of the sync that failed, if one has.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.failure
            .get()
            .map_or(Ok(()), |reason| Err(StoreError::SyncFailed { path: self.path.clone(), reason: reason.clone() }))
    }

    /// Why syncs are no longer tried.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.get().map(|reason| format!("a sync of {} failed: {reason}", self.path.display()))
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Nothing under this lock panics; if it did, the counts would still be right.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that syncs every so often, until dropped; then once more.
pub(super) struct IntervalSync {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl IntervalSync {
    pub(super) fn start(syncer: Arc<Syncer>, interval: Duration) -> Result<Self, StoreError> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let shared = Arc::clone(&stop);
        let path = syncer.path.clone();
        let run = move || {
            loop {
                let stopped = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                let (stopped, _) = shared
                    .1
                    .wait_timeout_while(stopped, interval, |stopped| !*stopped)
                    .unwrap_or_else(PoisonError::into_inner);
                let last = *stopped;
                drop(stopped);
                // A failure has been latched and logged; later rounds find the latch and do nothing.
                let _ = syncer.settle();
                if last {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("store-sync".into())
            .spawn(run)
            .map_err(StoreError::io("start the thread that syncs", &path))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for IntervalSync {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that syncs the store had panicked");
        }
    }
}
