//! `vecmemo man`: the manual pages, made of what `--help` says.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Command;
use clap_mangen::Man;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Write a page for every command into this folder; made if absent [default: the main page to standard output]
    folder: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, command: Command) -> anyhow::Result<ExitCode> {
    // `help` has nothing to say that the other pages do not.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    match &arguments.folder {
        None => super::print(String::from_utf8(page(&command)?).context("the page is not text")?.trim_end())?,
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
            write(&command, folder)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the pages of a command and of those below it.
fn write(command: &Command, folder: &Path) -> anyhow::Result<()> {
    let path = folder.join(format!("{}.1", command.get_display_name().unwrap_or(command.get_name())));
    std::fs::write(&path, page(command)?).with_context(|| format!("cannot write {}", path.display()))?;
    command.get_subcommands().try_for_each(|below| write(below, folder))
}

fn page(command: &Command) -> anyhow::Result<Vec<u8>> {
    let page = Man::new(command.clone()).source(concat!("vecmemo ", env!("CARGO_PKG_VERSION"))).manual("vecmemo");
    let mut text = Vec::new();
    page.render(&mut text)?;
    Ok(text)
}
