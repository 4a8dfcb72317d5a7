//! `vecmemo calibrate`: certifies, from a namespace's texts in the order in which they come, within which error the vectors of
//! near-duplicates can be reused.
//!
//! A running server calibrates by itself, from what it computes; this is for a first certificate before it serves, and to see
//! what can be had.

use std::borrow::Cow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::ArgMatches;

use super::warm::lines::{Format, Reader};
use super::{SettingsArguments, assemble, print, say, start_logging};
use crate::cache::{Cache, FieldFigures, Inputs, Request};
use crate::domain::{Lane, Namespace};

/// Texts that are embedded at a time.
const BATCH_TEXTS: usize = 256;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Files of texts, one a line, in the order in which they come to be embedded; `-` for standard input; without any, what
    /// was learnt before is calibrated
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Each line is a JSON object; this field of it is the text (`text` for files ending in .jsonl or .ndjson)
    #[arg(long, value_name = "NAME")]
    field: Option<String>,

    /// The namespace that is calibrated
    #[arg(long, value_name = "NAME", default_value = "")]
    namespace: String,

    /// The prompt put before each text, one of the model's
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,

    #[command(flatten)]
    settings: SettingsArguments,
}

/// Prints a line a certificate.
pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let settings = arguments.settings.settings(matches)?;
    start_logging(&settings)?;
    let namespace = Namespace::qualified(&arguments.namespace)?;
    let cache = assemble::cache(&settings)
        .context("cannot open the cache; a server that is using it calibrates by itself, from what it is asked for")?;
    let runtime = assemble::runtime()?;
    if !arguments.files.is_empty() {
        let texts = runtime.block_on(learn(&cache, arguments, &namespace))?;
        say(&format!("{texts} texts are embedded; calibrating"));
    }
    let field = cache.calibrate(&namespace, arguments.prompt_name.as_deref())?;
    runtime.block_on(cache.drain())?;
    report(&field)?;
    Ok(ExitCode::SUCCESS)
}

async fn learn(cache: &Cache, arguments: &Arguments, namespace: &Namespace) -> anyhow::Result<usize> {
    let mut texts = 0;
    let mut batch: Vec<Cow<'_, str>> = Vec::with_capacity(BATCH_TEXTS);
    let mut lines = Reader::new(&arguments.files, arguments.field.as_deref().map(Format::jsonl));
    loop {
        let line = lines.next();
        let ended = line.is_none();
        match line.transpose() {
            Ok(line) => batch.extend(line.map(|line| Cow::Owned(line.text))),
            Err(error) => bail!("{error}"),
        }
        if batch.len() == BATCH_TEXTS || (ended && !batch.is_empty()) {
            let request = Request {
                namespace: namespace.clone(),
                prompt_name: arguments.prompt_name.as_deref(),
                lane: Lane::WarmUp,
                ..Request::new(Inputs::Texts(&batch))
            };
            cache.learn(request).await?;
            texts += batch.len();
            batch.clear();
        }
        if ended {
            return Ok(texts);
        }
    }
}

fn report(field: &FieldFigures) -> anyhow::Result<()> {
    for figures in &field.certificates {
        let one = &figures.certificate;
        print(&serde_json::to_string(one).context("a certificate cannot be written as JSON")?)?;
    }
    let tokens = crate::reuse::TOKENS_MIN;
    say(&format!("{} texts of {tokens} tokens and more; {} certificates", field.texts, field.certificates.len()));
    Ok(())
}
