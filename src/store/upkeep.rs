//! The thread that sweeps out what has expired and checks what is kept, at a rate that nobody notices.

use std::error::Error;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::config::Upkeep;
use super::core::Core;
use super::error::StoreError;
use super::record::RECORD_BYTES;
use crate::urgency::{BACKGROUND, stand_back};

/// How often the scrubber takes its share.
const SCRUB_EVERY: Duration = Duration::from_millis(250);

/// The thread, until dropped. None is started if there is nothing to do.
pub(super) struct Upkeeper {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Upkeeper {
    pub(super) fn start(core: &Arc<Core>, upkeep: Upkeep) -> Result<Option<Self>, StoreError> {
        let Some(every) = interval(upkeep) else { return Ok(None) };
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (shared, core, path) = (Arc::clone(&stop), Arc::clone(core), core.space.path.clone());
        let run = move || {
            stand_back(BACKGROUND);
            let mut swept = Instant::now();
            let mut scrubbed = Instant::now();
            loop {
                let stopped = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                let (stopped, _) = shared
                    .1
                    .wait_timeout_while(stopped, every, |stopped| !*stopped)
                    .unwrap_or_else(PoisonError::into_inner);
                if *stopped {
                    return;
                }
                drop(stopped);
                if !upkeep.sweep_every.is_zero() && swept.elapsed() >= upkeep.sweep_every {
                    swept = Instant::now();
                    sweep(&core);
                }
                if upkeep.scrub_bytes_per_second > 0 {
                    scrub(&core, upkeep.scrub_bytes_per_second, scrubbed.elapsed());
                    scrubbed = Instant::now();
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("store-upkeep".into())
            .spawn(run)
            .map_err(StoreError::io("start the thread that looks after", &path))?;
        Ok(Some(Self { stop, thread: Some(thread) }))
    }
}

impl Drop for Upkeeper {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that looks after the store had panicked");
        }
    }
}

/// How often there is something to do.
fn interval(upkeep: Upkeep) -> Option<Duration> {
    let sweep = Some(upkeep.sweep_every).filter(|every| !every.is_zero());
    let scrub = (upkeep.scrub_bytes_per_second > 0).then_some(SCRUB_EVERY);
    sweep.into_iter().chain(scrub).min()
}

/// Seconds since 1970: what entries' times are counted in.
#[must_use]
pub fn unix_seconds() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u32::try_from(since.as_secs()).unwrap_or(u32::MAX))
}

fn sweep(core: &Core) {
    match core.sweep_expired(unix_seconds()) {
        Ok(0) => {}
        Ok(swept) => tracing::debug!(swept, "expired entries were erased"),
        Err(error) => {
            let error = &error as &dyn Error;
            tracing::warn!(error, "expired entries could not be erased: they are not served all the same");
        }
    }
}

fn scrub(core: &Core, bytes_per_second: u64, since_last: Duration) {
    let entry_bytes = RECORD_BYTES + core.space.layout.row_bytes() as u64;
    // A thread that was held up does not make up for it at once.
    let share = since_last.min(4 * SCRUB_EVERY).as_secs_f64() * bytes_per_second as f64 / entry_bytes as f64;
    let scrubbed = core.scrub((share as usize).max(1));
    if scrubbed.damaged > 0
        && let Err(error) = core.erase_damaged()
    {
        let error = &error as &dyn Error;
        tracing::warn!(error, "damaged entries could not be erased: they are not served all the same");
    }
}
