//! How far a warm-up is: a bar on a terminal, a line a minute elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::target::Tally;

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Progress {
    started: Instant,
    bar: Option<ProgressBar>,
    total_bytes: Option<u64>,
    state: Mutex<State>,
}

struct State {
    bytes: u64,
    tally: Tally,
    line_due: Instant,
}

impl Progress {
    pub(super) fn new(total_bytes: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| match total_bytes {
            Some(total) => ProgressBar::new(total).with_style(style("{percent:>3} % {wide_bar} {msg}, {eta} left")),
            None => ProgressBar::no_length().with_style(style("{spinner} {msg}, {elapsed}")),
        });
        if let Some(bar) = &bar {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let started = Instant::now();
        let state = State { bytes: 0, tally: Tally::default(), line_due: started + LINE_EVERY };
        Self { started, bar, total_bytes, state: Mutex::new(state) }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn advance(&self, bytes: u64, tally: Tally) {
        let mut state = self.state.lock().expect("nothing panics while it holds this lock");
        state.bytes += bytes;
        state.tally += tally;
        let message = self.describe(&state);
        match &self.bar {
            Some(bar) => {
                bar.set_position(state.bytes);
                bar.set_message(message);
            }
            None if Instant::now() >= state.line_due => {
                state.line_due += LINE_EVERY;
                super::super::say(&message);
            }
            None => {}
        }
    }

    fn describe(&self, state: &State) -> String {
        let seconds = self.elapsed().as_secs_f64();
        let Tally { texts, cached, .. } = state.tally;
        let hits = 100.0 * cached as f64 / texts.max(1) as f64;
        let mut message = format!("{texts} texts, {:.0}/s, {hits:.0} % cached", texts as f64 / seconds.max(1e-9));
        if self.bar.is_none()
            && let Some(total) = self.total_bytes
        {
            let left = seconds * total.saturating_sub(state.bytes) as f64 / state.bytes.max(1) as f64;
            message += &format!(", {left:.0} s left");
        }
        message
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is valid")
}
