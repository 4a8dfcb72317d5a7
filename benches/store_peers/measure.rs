//! Clocks and what the system says of memory and disk.

use std::path::Path;
use std::time::{Duration, Instant};

use memmap2::MmapOptions;
use rustix::time::{ClockId, clock_gettime};

use crate::engine::Engine;

/// CPU and wall time of a piece of work, or of one operation in it.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) cpu_ns: f64,
    pub(crate) wall_ns: f64,
}

impl Cost {
    pub(crate) fn of_one(self, operations: u64) -> Self {
        Self { cpu_ns: self.cpu_ns / operations as f64, wall_ns: self.wall_ns / operations as f64 }
    }
}

/// Runs `work`, then lets the engine settle: the wall time is what a caller waited, the CPU time is that of all threads
/// and processes, those in the background included.
pub(crate) fn cost<T>(engine: Option<&dyn Engine>, work: impl FnOnce() -> T) -> (Cost, T) {
    let cpu = || cpu_of_this_process() + engine.map_or(Duration::ZERO, Engine::cpu_elsewhere);
    let (cpu_before, started) = (cpu(), Instant::now());
    let result = work();
    let wall = started.elapsed();
    if let Some(engine) = engine {
        engine.settle();
    }
    let spent = cpu().saturating_sub(cpu_before);
    (Cost { cpu_ns: spent.as_nanos() as f64, wall_ns: wall.as_nanos() as f64 }, result)
}

/// Has the system find memory and gives it back: whoever asks next is given pages that are there. In a virtual machine
/// the host else hands them over at the first touch, for several times what it costs to fill them, to whichever engine
/// comes first.
pub(crate) fn touch_memory(bytes: usize) {
    let mut memory = MmapOptions::new().len(bytes).map_anon().expect("there is memory");
    // Large pages serve for small ones too, but not the other way round.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    memory.fill(1);
    std::hint::black_box(&memory);
}

fn cpu_of_this_process() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.try_into().unwrap_or(0))
}

/// What the threads of another process have spent so far, by the scheduler's count.
pub(crate) fn cpu_of(process: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let line = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        line.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// The resident memory of a process ("self" or its number) that no file stands behind.
pub(crate) fn anonymous_bytes(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// What a folder takes on disk.
pub(crate) fn disk_bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
