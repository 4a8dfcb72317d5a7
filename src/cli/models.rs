//! `vecmemo models`: which models there are, where their files are, and whether they are right.

use std::process::ExitCode;

use clap::{ArgMatches, Subcommand};

use super::{SettingsArguments, print, say};
use crate::engine::{self, Manifest, Origin, Sources};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the models that have a manifest, and whether their files are on this machine
    List(Options),
    /// Bring a model's files to this machine, if they are not there already
    Fetch(Named),
    /// Show a model's manifest, or what its own files say of it
    Show(Named),
    /// Check every file of a model that is on this machine
    Verify(Named),
}

#[derive(clap::Args)]
struct Named {
    /// The model [default: the setting `model`]
    name: Option<String>,

    #[command(flatten)]
    options: Options,
}

#[derive(clap::Args)]
struct Options {
    #[command(flatten)]
    settings: SettingsArguments,
}

impl Named {
    fn resolve(&self, matches: &ArgMatches) -> anyhow::Result<(String, Sources)> {
        let settings = self.options.settings.settings(matches)?;
        let model = settings.default_model();
        Ok((self.name.clone().unwrap_or_else(|| model.source.clone()), model.sources.clone()))
    }
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (_, matches) = matches.subcommand().expect("a command is required");
    match &arguments.command {
        Command::List(options) => list(&options.settings.settings(matches)?.default_model().sources),
        Command::Fetch(named) => fetch(named, matches),
        Command::Show(named) => show(named, matches),
        Command::Verify(named) => verify(named, matches),
    }
}

fn list(sources: &Sources) -> anyhow::Result<ExitCode> {
    for (name, manifest) in Manifest::all(&sources.models_dir)? {
        let place = match engine::find(&name, sources) {
            Ok(located) => located.place(),
            Err(_) => "not on this machine".to_owned(),
        };
        let Manifest { dims, max_tokens, source, upstream, .. } = manifest;
        let unit = if upstream.is_some() { "characters" } else { "tokens" };
        print(&format!("{name}\t{dims} dims\t{max_tokens} {unit}\t{source}\t{place}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn fetch(named: &Named, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (name, sources) = named.resolve(matches)?;
    let (located, was_there) = match engine::find(&name, &sources) {
        Ok(located) => (located, true),
        Err(_) => (engine::locate(&name, &sources)?, false),
    };
    engine::verify(&located)?;
    let verb = match (located.origin, was_there) {
        (Origin::Upstream, _) => "has no files to fetch",
        (_, true) => "was there already",
        (_, false) => "has been fetched",
    };
    print(&format!("{} {verb}: {}", located.manifest.name, located.place()))?;
    Ok(ExitCode::SUCCESS)
}

fn show(named: &Named, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (name, sources) = named.resolve(matches)?;
    let manifest = match engine::find(&name, &sources) {
        Ok(located) => {
            say(&located.place());
            located.manifest
        }
        Err(error) => match Manifest::all(&sources.models_dir)?.remove(&name) {
            Some(manifest) => {
                say("not on this machine");
                manifest
            }
            None => return Err(error.into()),
        },
    };
    print(toml::to_string(&manifest)?.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn verify(named: &Named, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let (name, sources) = named.resolve(matches)?;
    let located = engine::find(&name, &sources)?;
    if located.origin == Origin::Upstream {
        print(&format!("{} has no files to verify: {}", located.manifest.name, located.place()))?;
    }
    for (file, bytes) in engine::verify(&located)? {
        let digest = file.sha256.unwrap_or_default();
        print(&format!("{digest}  {} ({bytes} bytes)", located.folder.join(file.path).display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
