//! Which threads go first where there are fewer processors than threads with work: those that answer.

/// How far work that nobody waits for stands back, as nice(1) has it: writing behind, looking after, learning.
pub const BACKGROUND: u8 = 10;

/// Has this thread work when those that answer do not: its niceness, as nice(1) has it, is from now on at least this.
///
/// Only Linux has one for each thread; elsewhere this does nothing.
#[cfg(target_os = "linux")]
pub fn stand_back(niceness: u8) {
    // Without an id both are about the calling thread.
    let outcome = rustix::process::getpriority_process(None).and_then(|own| match i32::from(niceness) {
        wanted if wanted > own => rustix::process::setpriority_process(None, wanted),
        _ => Ok(()),
    });
    if let Err(error) = outcome {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

/// As on Linux, where threads have priorities.
#[cfg(not(target_os = "linux"))]
pub fn stand_back(_: u8) {}

/// The calling thread's.
#[cfg(all(test, target_os = "linux"))]
pub(crate) fn niceness() -> i32 {
    rustix::process::getpriority_process(None).expect("the thread has a priority")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stands_back_alone_and_stays_where_it_is() {
        let before = niceness();
        let wanted = (before + 3).min(19);
        let back = std::thread::spawn(move || {
            stand_back(wanted as u8);
            let first = niceness();
            // Who was told to stand back further already stays there.
            stand_back(0);
            (first, niceness())
        });
        assert_eq!((back.join().unwrap(), niceness()), ((wanted, wanted), before));
    }
}
