//! `vecmemo warm`: fills the cache from files before anybody asks.
//!
//! It goes down the same path as a request, in this process or through a running server, so a text that is cached costs
//! a look-up: stopped in the middle, it is simply started again, and what was done is passed over at the speed of hits.

pub(super) mod lines;
mod progress;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::ArgMatches;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{SettingsArguments, assemble, start_logging};
use crate::domain::Namespace;
use lines::{Format, Line, Reader};
use progress::Progress;
use target::{Options, Tally, Target};

/// How many bad lines are named; the others are only counted.
const REPORTED_LINES_MAX: usize = 20;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Files of texts, one a line; `-` or none for standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Each line is a JSON object; this field of it is the text (`text` for files ending in .jsonl or .ndjson)
    #[arg(long, value_name = "NAME")]
    field: Option<String>,

    /// A running server, such as http://127.0.0.1:8080; without it the store in --data-dir is opened
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// Stop at the first bad line
    #[arg(long)]
    strict: bool,

    /// The namespace the texts are cached in
    #[arg(long, value_name = "NAME", default_value = "")]
    namespace: String,

    /// The prompt put before each text, one of the model's
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,

    /// Seconds the entries live [default: for ever]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,

    /// Texts in one request
    #[arg(long, value_name = "TEXTS", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    batch: u64,

    /// Requests under way at once
    #[arg(long, value_name = "REQUESTS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=256))]
    concurrency: u64,

    #[command(flatten)]
    settings: SettingsArguments,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let settings = arguments.settings.settings(matches)?;
    start_logging(&settings)?;
    let options = Options {
        namespace: Namespace::qualified(&arguments.namespace)?,
        prompt_name: arguments.prompt_name.clone(),
        ttl_seconds: arguments.ttl,
        model: arguments.settings.named_model(matches),
    };
    let target = match &arguments.url {
        Some(url) => Target::server(url, options)?,
        None => Target::cache(
            assemble::cache(&settings).context(
                "cannot open the cache directly; if a server is using it, warm it through the server with --url",
            )?,
            options,
        ),
    };
    let total = Reader::total_bytes(&arguments.files);
    let progress = Progress::new(total);
    let outcome = assemble::runtime()?.block_on(feed(arguments, Arc::new(target), &progress));
    progress.finish();
    let report = outcome?;
    report.print(&progress)?;
    Ok(if report.failed > 0 || (arguments.strict && report.bad > 0) { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

/// What a run came to.
#[derive(Default)]
struct Report {
    tally: Tally,
    bad: u64,
    failed: u64,
    complaints: Vec<String>,
}

impl Report {
    fn complain(&mut self, complaint: String) {
        if self.complaints.len() < REPORTED_LINES_MAX {
            self.complaints.push(complaint);
        }
    }

    fn print(&self, progress: &Progress) -> anyhow::Result<()> {
        for complaint in &self.complaints {
            super::say(complaint);
        }
        let unnamed = (self.bad + self.failed).saturating_sub(self.complaints.len() as u64);
        if unnamed > 0 {
            super::say(&format!("and {unnamed} more"));
        }
        let Tally { texts, cached, computed } = self.tally;
        super::print(&format!(
            "{texts} texts in {:.1} s: {cached} were cached, {computed} computed; {} bad lines, {} texts failed",
            progress.elapsed().as_secs_f64(),
            self.bad,
            self.failed
        ))
    }
}

/// Reads on a thread of its own, embeds a bounded number of batches at once, and counts.
async fn feed(arguments: &Arguments, target: Arc<Target>, progress: &Progress) -> anyhow::Result<Report> {
    let batch_max = arguments.batch.min(target.batch_max());
    let (sender, mut lines) = mpsc::channel(2 * batch_max as usize);
    let reader = Reader::new(&arguments.files, arguments.field.as_deref().map(Format::jsonl));
    let reading = tokio::task::spawn_blocking(move || {
        for line in reader {
            // The receiver is gone when a strict run has stopped.
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });

    let mut report = Report::default();
    let mut under_way: JoinSet<(Vec<Line>, Result<Tally, target::Failure>)> = JoinSet::new();
    let mut batch: Vec<Line> = Vec::new();
    loop {
        let line = lines.recv().await;
        let ended = line.is_none();
        match line {
            Some(Ok(line)) => batch.push(line),
            Some(Err(error)) if error.is_fatal() || arguments.strict => bail!("{error}"),
            Some(Err(error)) => {
                report.bad += 1;
                report.complain(format!("skipped {error}"));
            }
            None => {}
        }
        if batch.len() as u64 >= batch_max || (ended && !batch.is_empty()) {
            while under_way.len() as u64 >= arguments.concurrency {
                settle(under_way.join_next().await, &mut report, progress, arguments.strict)?;
            }
            let (batch, target) = (std::mem::take(&mut batch), Arc::clone(&target));
            under_way.spawn(async move {
                let outcome = target.embed(&batch).await;
                (batch, outcome)
            });
        }
        while let Some(done) = under_way.try_join_next() {
            settle(Some(done), &mut report, progress, arguments.strict)?;
        }
        if ended {
            break;
        }
    }
    while let Some(done) = under_way.join_next().await {
        settle(Some(done), &mut report, progress, arguments.strict)?;
    }
    reading.await.context("the reader stopped")?;
    target.drain().await?;
    Ok(report)
}

type Done = Result<(Vec<Line>, Result<Tally, target::Failure>), tokio::task::JoinError>;

fn settle(done: Option<Done>, report: &mut Report, progress: &Progress, strict: bool) -> anyhow::Result<()> {
    let Some(done) = done else { return Ok(()) };
    let (batch, outcome) = done.context("a batch was given up")?;
    match outcome {
        Ok(tally) => {
            report.tally += tally;
            progress.advance(batch.iter().map(|line| line.bytes).sum(), tally);
            Ok(())
        }
        Err(target::Failure::Fatal(error)) => Err(error),
        Err(target::Failure::Texts { tally, failed }) => {
            for (index, reason) in &failed {
                report.complain(format!("failed {}: {reason}", batch[*index].place));
            }
            if strict && let Some((index, reason)) = failed.first() {
                bail!("{}: {reason}", batch[*index].place);
            }
            report.failed += failed.len() as u64;
            report.tally += tally;
            progress.advance(batch.iter().map(|line| line.bytes).sum(), tally);
            Ok(())
        }
    }
}
