//! `vecmemo import`: entries from an export of ours, or vectors made elsewhere with the texts they belong to.
//!
//! Every row is looked at before it is stored: finite, of length one, unchanged since it was exported, and of this very
//! model, by fingerprint. What is cached already stays, unless it is to be replaced. Stopped in the middle, it is simply
//! started again.

mod entries;
mod foreign;
mod share;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::ArgMatches;

use super::{SettingsArguments, print, say, start_logging};
use crate::config::Settings;
use crate::domain::ModelCard;
use crate::engine;
use crate::store::Store;

/// How many refused rows are named; the others are only counted.
const REPORTED_ROWS_MAX: usize = 20;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// What `vecmemo export` wrote; or, with --texts, a .npy file of one vector a text
    #[arg(value_name = "FROM")]
    from: PathBuf,

    /// The texts that the vectors of a .npy file belong to, one a line, in the same order
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,

    /// Each line of --texts is a JSON object; this field of it is the text (`text` for files ending in .jsonl or .ndjson)
    #[arg(long, value_name = "NAME", requires = "texts")]
    field: Option<String>,

    /// The namespace that the texts are put into
    #[arg(long, value_name = "NAME", requires = "texts")]
    namespace: Option<String>,

    /// The model's prompt that was before each text when its vector was made
    #[arg(long, value_name = "NAME", requires = "texts")]
    prompt_name: Option<String>,

    /// Replace what is cached already
    #[arg(long)]
    replace: bool,

    #[command(flatten)]
    settings: SettingsArguments,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let settings = arguments.settings.settings(matches)?;
    start_logging(&settings)?;
    let outcome = match &arguments.texts {
        Some(texts) => foreign::import(arguments, texts, &settings)?,
        None => entries::import(arguments, &settings)?,
    };
    for complaint in &outcome.complaints {
        say(complaint);
    }
    let unnamed = outcome.refused - outcome.complaints.len() as u64;
    if unnamed > 0 {
        say(&format!("and {unnamed} more"));
    }
    let Outcome { imported, kept, expired, refused, erased, evicted, over_quota, shared, .. } = outcome;
    print(&format!(
        "{imported} entries imported, {kept} were cached already and stay, {expired} have expired, {refused} refused"
    ))?;
    if shared > 0 {
        print(&format!("{shared} of them are in the shared tier"))?;
    }
    if erased > 0 {
        say(&format!("{erased} entries were left out: they were erased here since they were exported"));
    }
    if over_quota > 0 {
        say(&format!(
            "{over_quota} entries were dropped, for their namespace may not have more: the policies' quota says how many"
        ));
    }
    if evicted > 0 {
        say(&format!("{evicted} entries were evicted to make room: raise --capacity-entries to keep all"));
    }
    Ok(if refused > 0 { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

/// What an import came to, in entries.
#[derive(Debug, Default)]
struct Outcome {
    imported: u64,
    kept: u64,
    expired: u64,
    refused: u64,
    /// Erased here since they were exported.
    erased: u64,
    evicted: u64,
    over_quota: u64,
    /// Those that the shared tier has taken.
    shared: u64,
    /// Why rows were refused, of the first ones.
    complaints: Vec<String>,
}

impl Outcome {
    fn refuse(&mut self, row: u64, name: impl std::fmt::Display, reason: impl std::fmt::Display) {
        self.refused += 1;
        if self.complaints.len() < REPORTED_ROWS_MAX {
            self.complaints.push(format!("refused row {row} ({name}): {reason}"));
        }
    }
}

/// The configured model's facts, and the store of its vectors in --data-dir.
fn open(settings: &Settings) -> anyhow::Result<(ModelCard, impl FnOnce() -> anyhow::Result<Store>)> {
    let model = settings.default_model();
    let card = engine::describe(&model.source, &model.sources, &model.engine)?.card;
    let (folder, config) = (settings.data_dir.clone(), model.store);
    let (version, dims) = (card.version, card.dims);
    let open = move || {
        Store::open(&folder, &version, dims, &config).with_context(|| {
            format!("cannot open the store in {}: a server that has it must be stopped for an import", folder.display())
        })
    };
    Ok((card, open))
}
