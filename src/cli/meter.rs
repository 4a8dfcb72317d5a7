//! How far a tool is that goes through entries: a bar on a terminal, a line a minute elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Meter {
    /// What is done to the entries, as in "12 of 40 exported".
    verb: &'static str,
    bar: Option<ProgressBar>,
    done: u64,
    total: u64,
    line_due: Instant,
}

impl Meter {
    pub(super) fn new(verb: &'static str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{percent:>3} % {wide_bar} {human_pos} {msg}, {per_sec}, {eta} left");
            ProgressBar::new(total).with_style(style.expect("the template is valid")).with_message(verb)
        });
        Self { verb, bar, done: 0, total, line_due: Instant::now() + LINE_EVERY }
    }

    pub(super) fn advance(&mut self, entries: u64) {
        self.done += entries;
        match &self.bar {
            Some(bar) => bar.set_position(self.done),
            None if Instant::now() >= self.line_due => {
                self.line_due += LINE_EVERY;
                super::say(&format!("{} of {} {}", self.done, self.total, self.verb));
            }
            None => {}
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Bytes for people.
pub(super) fn bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
