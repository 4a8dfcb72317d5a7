//! `vecmemo compact`: gives back what the files occupy and no entry uses.

use std::process::ExitCode;

use anyhow::Context;
use clap::ArgMatches;

use super::assemble::no_cache;
use super::meter::bytes;
use super::{SettingsArguments, print};
use crate::store::{self, ReadOnly};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsArguments,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let folder = arguments.settings.settings(matches)?.data_dir;
    let context = || format!("cannot compact {}", folder.display());
    let spaces = ReadOnly::spaces(&folder).with_context(context)?;
    if spaces.is_empty() {
        return Err(no_cache(&folder));
    }
    let compacted = store::compact(&folder).with_context(context)?;
    for space in &compacted.spaces {
        print(&format!(
            "{}: {} before, {} now, for {} entries",
            space.path.display(),
            bytes(space.bytes_before),
            bytes(space.bytes_after),
            space.entries
        ))?;
        if space.damaged > 0 {
            print(&format!("  {} damaged entries were left behind", space.damaged))?;
        }
    }
    let (before, after) = (bytes(compacted.side_bytes_before), bytes(compacted.side_bytes_after));
    print(&format!("side store: {before} before, {after} now"))?;
    Ok(ExitCode::SUCCESS)
}
