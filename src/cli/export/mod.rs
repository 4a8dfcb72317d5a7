//! `vecmemo export`: a model's entries in a format that other programs read, also beside a running server.
//!
//! One file a format, and each both ways, so that what is written and what is read cannot drift apart. Rows go from the
//! store's file to the export in batches; memory does not grow with them, but for 24 bytes an entry to put them in the
//! order they were written.

pub(super) mod facts;
pub(super) mod npy;
mod parquet;
mod partial;
mod safetensors;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{ArgMatches, ValueEnum};

use super::assemble::no_cache;
use super::meter::Meter;
use super::{SettingsArguments, print, say};
use crate::cache::{ExportLine, Ledger};
use crate::config::Settings;
use crate::domain::ModelVersion;
use crate::engine;
use crate::store::{Attachments, Found, ReadOnly, StoreError, unix_seconds};
use facts::{Facts, Manifest, Sink, Source};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Where to write: a new file, or for npy a new folder
    #[arg(value_name = "OUT")]
    out: PathBuf,

    /// The format [default: by the ending of OUT: .parquet, .safetensors, else npy]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Only the entries of this namespace; "" is the default one
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,

    /// Only the entries with this tag
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,

    /// The model whose entries are meant, by the first digits of its fingerprint [default: the setting `model`, or the only
    /// one there is]
    #[arg(long, value_name = "DIGITS")]
    fingerprint: Option<String>,

    #[command(flatten)]
    settings: SettingsArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A folder: vectors.npy (f16), entries.jsonl, manifest.json
    Npy,
    /// One file with a row an entry; vectors as lists of f32
    Parquet,
    /// One file with the tensors embeddings (F16), keys, norms and entries
    Safetensors,
}

impl Format {
    fn of(out: &Path) -> Self {
        match out.extension().and_then(|extension| extension.to_str()) {
            Some("parquet") => Self::Parquet,
            Some("safetensors") => Self::Safetensors,
            _ => Self::Npy,
        }
    }

    fn sink(self, out: &Path, dims: usize) -> anyhow::Result<Box<dyn Sink>> {
        Ok(match self {
            Self::Npy => Box::new(npy::NpySink::new(out)?),
            Self::Parquet => Box::new(parquet::ParquetSink::new(out, dims)?),
            Self::Safetensors => Box::new(safetensors::SafetensorsSink::new(out)?),
        })
    }
}

/// Opens an export, whichever format it is in.
pub(super) fn open(from: &Path) -> anyhow::Result<Box<dyn Source>> {
    let context = || format!("cannot import {}", from.display());
    if from.is_dir() {
        if !npy::is_export(from) {
            bail!("{} is a folder without a manifest.json: it was not exported by vecmemo", from.display());
        }
        return Ok(Box::new(npy::NpySource::open(from).with_context(context)?));
    }
    let mut beginning = Vec::new();
    let read = File::open(from).and_then(|file| file.take(4).read_to_end(&mut beginning));
    read.with_context(|| format!("cannot read {}", from.display()))?;
    Ok(if parquet::is_parquet(&beginning) {
        Box::new(parquet::ParquetSource::open(from).with_context(context)?)
    } else {
        Box::new(safetensors::SafetensorsSource::open(from).with_context(context)?)
    })
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let settings = arguments.settings.settings(matches)?;
    let known = known_model(&settings);
    let space = choose(&settings.data_dir, arguments.fingerprint.as_deref(), known.as_ref())?;
    let attachments = match Attachments::open(&settings.data_dir, &space.model()) {
        Ok(attachments) => Some(attachments),
        Err(StoreError::InUse { .. }) => None,
        Err(error) => return Err(error).context("cannot read the names of namespaces and tags"),
    };
    let filter = Filter::new(arguments, attachments.as_ref())?;
    if attachments.is_none() {
        say(
            "a server has this folder: names of namespaces, tags and payloads are its own to read. Entries that have any \
             are exported without them, and marked; they cannot be imported again",
        );
    }

    let model = known.filter(|(version, _)| *version == space.model()).map(|(_, name)| name);
    let manifest = Manifest::new(space.model().to_string(), model, space.dims(), unix_seconds());
    let mut sink = arguments.format.unwrap_or_else(|| Format::of(&arguments.out)).sink(&arguments.out, space.dims())?;
    let survey = space.survey();
    let mut meter = Meter::new("exported", survey.entries());
    let mut exported = 0_u64;
    let scanned = space.scan(&survey, unix_seconds(), |found| {
        meter.advance(1);
        let facts = facts_of(&found, attachments.as_ref())?;
        if filter.takes(&facts) {
            exported += 1;
            sink.add(facts.sealed(found.row), found.row)?;
        }
        anyhow::Ok(())
    });
    meter.finish();
    let scanned = scanned?;
    sink.finish(manifest).with_context(|| format!("cannot complete {}", arguments.out.display()))?;
    note(&settings.data_dir, &arguments.out, &space, exported);
    print(&format!("{exported} entries are in {}", arguments.out.display()))?;
    for (count, what) in [
        (scanned.expired, "had expired"),
        (scanned.changed, "were changed by the running server meanwhile"),
        (scanned.damaged, "are damaged: `vecmemo verify` says more"),
    ] {
        if count > 0 {
            say(&format!("{count} entries were left out: they {what}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Leaves a line in the data folder that says where the export is, so that an erasure can name it.
fn note(data_dir: &Path, out: &Path, space: &ReadOnly, entries: u64) {
    let path = std::path::absolute(out).unwrap_or_else(|_| out.to_owned()).display().to_string();
    let line = ExportLine { path, fingerprint: space.model().to_string(), made: unix_seconds(), entries };
    if let Err(error) = Ledger::of(data_dir).note_export(&line) {
        say(&format!(
            "an erasure will not know of this export: it cannot be noted in {} ({error})",
            data_dir.display()
        ));
    }
}

/// The configured model's version and name, if it is on this machine.
pub(super) fn known_model(settings: &Settings) -> Option<(ModelVersion, String)> {
    let model = settings.default_model();
    engine::find(&model.source, &model.sources).ok()?;
    match engine::describe(&model.source, &model.sources, &model.engine) {
        Ok(model) => Some((model.card.version, model.card.name)),
        Err(error) => {
            tracing::debug!(%error, "the configured model cannot be opened: its name is not known");
            None
        }
    }
}

/// The one space that is meant.
pub(super) fn choose(
    folder: &Path,
    fingerprint: Option<&str>,
    known: Option<&(ModelVersion, String)>,
) -> anyhow::Result<ReadOnly> {
    let mut spaces = Vec::new();
    for path in ReadOnly::spaces(folder)? {
        match ReadOnly::open(&path) {
            Ok(space) => spaces.push(space),
            Err(error) => say(&format!("passed over: {error}")),
        }
    }
    let listed = || spaces.iter().map(|space| space.model().to_string()).collect::<Vec<_>>().join(", ");
    let is_meant = |space: &ReadOnly| match (fingerprint, known) {
        (Some(digits), _) => space.model().to_string().starts_with(digits),
        (None, Some((version, _))) => space.model() == *version,
        (None, None) => true,
    };
    let meant = spaces.iter().filter(|space| is_meant(space)).count();
    let only = fingerprint.is_none() && spaces.len() == 1;
    if spaces.is_empty() {
        return Err(no_cache(folder));
    } else if meant != 1 && !only {
        bail!("{meant} of the models in {} are meant: choose one with --fingerprint: {}", folder.display(), listed());
    }
    let chosen = spaces.into_iter().find(|space| only || is_meant(space));
    chosen.context("there is no cache")
}

/// Which entries are taken.
struct Filter<'a> {
    namespace: Option<&'a str>,
    tag: Option<&'a str>,
}

impl<'a> Filter<'a> {
    fn new(arguments: &'a Arguments, attachments: Option<&Attachments>) -> anyhow::Result<Self> {
        let Arguments { namespace, tag, .. } = arguments;
        if attachments.is_none() && (namespace.is_some() || tag.is_some()) {
            bail!("a server has this folder: namespaces and tags are its own to read. Stop it, or export everything");
        }
        Ok(Self { namespace: namespace.as_deref(), tag: tag.as_deref() })
    }

    fn takes(&self, facts: &Facts) -> bool {
        // A namespace whose name is lost is none that can be asked for.
        self.namespace.is_none_or(|namespace| facts.namespace == namespace && !facts.incomplete)
            && self.tag.is_none_or(|tag| facts.tags.iter().any(|found| found == tag))
    }
}

fn facts_of(found: &Found<'_>, attachments: Option<&Attachments>) -> anyhow::Result<Facts> {
    let Found { key, entry, tagged, has_payload, .. } = *found;
    let namespace = match attachments {
        Some(attachments) => attachments.namespace(entry.namespace),
        None => (entry.namespace == 0).then_some(""),
    };
    let (mut tags, mut payload) = (Vec::new(), None);
    if let Some(attachments) = attachments {
        if tagged {
            tags = attachments.tags(&key)?;
        }
        if has_payload {
            payload = attachments.payload(&key)?;
        }
    }
    Ok(Facts {
        key,
        norm: entry.norm,
        tokens: entry.tokens,
        truncated: entry.truncated,
        copied: entry.copied,
        pinned: entry.pinned,
        refresh_ahead: entry.refresh_ahead,
        stale: entry.stale,
        created: entry.created,
        expires: entry.expires,
        incomplete: namespace.is_none() || (attachments.is_none() && (tagged || has_payload)),
        namespace: namespace.unwrap_or_default().to_owned(),
        tags,
        payload,
        checksum: String::new(),
    })
}
