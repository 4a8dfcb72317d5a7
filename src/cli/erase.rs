//! `vecmemo erase`: entries and every trace of them are made to go, on a running server or in the folder when none runs; and
//! receipts of that are checked, also beside a running server.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::ArgMatches;
use serde_json::{Value, json};

use super::client::Client;
use super::{SettingsArguments, assemble, print, say, start_logging};
use crate::cache::{Erasure, Ledger, Named, Receipt};
use crate::domain::{Key, Namespace};
use crate::store::ReadOnly;

/// Exit codes of a check: something is there, or was changed; it could not be looked for.
const FOUND: u8 = 1;
const FAILED: u8 = 2;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    named: NamedArguments,

    /// Whose texts are meant; alone: all entries of this namespace
    #[arg(long, value_name = "NAME", help_heading = "Which entries")]
    namespace: Option<String>,

    /// Also other spellings of the same texts, which have the same vector
    #[arg(long)]
    copies: bool,

    /// Who asks, for the receipt
    #[arg(long, value_name = "NAME")]
    by: Option<String>,

    /// Why, for the receipt
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// A running server, such as http://127.0.0.1:8080; without it the folder in --data-dir is opened
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    #[command(flatten)]
    settings: SettingsArguments,
}

/// Which entries: by one of these.
#[derive(clap::Args)]
#[group(required = false, multiple = false)]
struct NamedArguments {
    /// The entry under this key; may be given many times
    #[arg(long = "key", value_name = "KEY", help_heading = "Which entries")]
    keys: Vec<Key>,

    /// Entries of the text in this file, with whatever prompt, in --namespace; `-` is the standard input, so that the text is in no list of
    /// processes and no history
    #[arg(long = "text", value_name = "FILE", help_heading = "Which entries")]
    text: Option<String>,

    /// Entries with this tag; may be given many times
    #[arg(long = "tag", value_name = "TAG", help_heading = "Which entries")]
    tags: Vec<String>,

    /// Erase nothing: check a receipt, by its id or a file that has it; 0: none of it is there
    #[arg(long, value_name = "RECEIPT")]
    verify: Option<String>,
}

pub(super) fn run(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    if let Some(receipt) = &arguments.named.verify {
        return match verify(receipt, arguments, matches) {
            Ok(true) => Ok(ExitCode::SUCCESS),
            Ok(false) => Ok(ExitCode::from(FOUND)),
            Err(error) if super::is_closed_pipe(&error) => Err(error),
            Err(error) => {
                say(&format!("error: {error:#}"));
                Ok(ExitCode::from(FAILED))
            }
        };
    }
    let answer = match &arguments.url {
        Some(url) => ask(arguments, url, arguments.settings.named_model(matches).as_deref())?,
        None => serde_json::to_value(erase(arguments, matches)?).context("a receipt is JSON")?,
    };
    print(&answer.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn ask(arguments: &Arguments, url: &str, model: Option<&str>) -> anyhow::Result<Value> {
    let mut body = json!({
        "copies": arguments.copies,
        "by": arguments.by,
        "reason": arguments.reason,
        "namespace": arguments.namespace,
        "model": model,
    });
    let NamedArguments { keys, text, tags, .. } = &arguments.named;
    if !keys.is_empty() {
        body["keys"] = keys.iter().map(|key| json!(key.to_string())).collect();
    }
    if let Some(text) = text {
        body["inputs"] = json!([read(text)?]);
    }
    if !tags.is_empty() {
        body["tags"] = json!(tags);
    }
    Client::new(url).post_json("/erase", &body)
}

fn erase(arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<Receipt> {
    let settings = arguments.settings.settings(matches)?;
    start_logging(&settings)?;
    let NamedArguments { keys, text, tags, .. } = &arguments.named;
    let namespace = arguments.namespace.as_deref().map(Namespace::qualified).transpose()?;
    let named = match (text, namespace) {
        (Some(text), namespace) => Named::Texts(vec![read(text)?], namespace.unwrap_or_default()),
        (None, None) if !keys.is_empty() => Named::Keys(keys.clone()),
        (None, None) if !tags.is_empty() => Named::Tags(tags.clone()),
        (None, Some(namespace)) if keys.is_empty() && tags.is_empty() => Named::Namespace(namespace),
        (None, Some(_)) => bail!("--namespace says whose text is meant, or which entries all by itself"),
        (None, None) => bail!("nothing says which entries are meant: --key, --text, --tag or --namespace"),
    };
    let (copies, by, reason) = (arguments.copies, arguments.by.clone(), arguments.reason.clone());
    let catalogue = assemble::unloaded_catalogue(&settings)?;
    // Of the model that the command names, which is the default one then; of all if it names none.
    let model = arguments.settings.named_model(matches).map(|_| catalogue.default().cache.card().version);
    Ok(catalogue.erase(&Erasure { named, model, copies, by, reason })?)
}

/// A text, whole: the end of a line is a part of it only if there are two.
fn read(from: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    match from {
        "-" => std::io::stdin().read_to_string(&mut text).context("cannot read the standard input")?,
        path => {
            let mut file = std::fs::File::open(path).with_context(|| format!("cannot open {path}"))?;
            file.read_to_string(&mut text).with_context(|| format!("cannot read {path}"))?
        }
    };
    let without_end = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text));
    Ok(without_end.unwrap_or(&text).to_owned())
}

/// Checks a receipt, against the folder itself or a running server. Answers whether all is as it says and nothing of it is there.
fn verify(receipt: &str, arguments: &Arguments, matches: &ArgMatches) -> anyhow::Result<bool> {
    let given: Option<Receipt> = match std::fs::read_to_string(receipt) {
        Ok(text) => Some(serde_json::from_str(&text).with_context(|| format!("{receipt} has no receipt"))?),
        Err(_) => None,
    };
    let id = given.as_ref().map_or(receipt, |given| given.id.as_str());
    let (kept, is_chained, present): (Receipt, bool, u64) = match &arguments.url {
        Some(url) => {
            let mut answer = Client::new(url).get_json(&format!("/erasures/{}", super::client::escaped(id)))?;
            let present = answer["present"].as_u64().context("the server does not say what is there")?;
            let is_whole = answer["intact"] == json!(true);
            (serde_json::from_value(answer["receipt"].take())?, is_whole, present)
        }
        None => look(id, &arguments.settings.settings(matches)?.data_dir)?,
    };
    // A later receipt of the same erasure says more; the one that was given must be the one or the other.
    let is_same = given
        .as_ref()
        .is_none_or(|given| given.is_intact() && (given.keys == kept.keys || given.digest == kept.digest));
    let intact = kept.is_intact() && is_chained && is_same;
    let report = json!({
        "id": kept.id,
        "intact": intact,
        "keys": kept.keys.count,
        "present": present,
        "pending": kept.pending,
        "not_erased": kept.not_erased,
    });
    print(&report.to_string())?;
    Ok(intact && present == 0 && kept.pending.is_empty())
}

/// An erasure's receipt, whether the receipts are a chain, and how many records there are under its keys: live, superseded and
/// of every model, whether or not anybody serves it.
fn look(id: &str, folder: &Path) -> anyhow::Result<(Receipt, bool, u64)> {
    let ledger = Ledger::of(folder);
    let receipts = ledger.receipts().context("the receipts cannot be read")?;
    let mut before = None;
    let mut is_chained = true;
    for receipt in &receipts {
        is_chained &= receipt.is_intact() && receipt.previous == before;
        before = Some(receipt.digest.clone());
    }
    let receipt = receipts.into_iter().rfind(|receipt| receipt.id == id);
    let receipt = receipt.with_context(|| format!("there is no receipt of an erasure {id} in {}", folder.display()))?;
    let veiled = ledger.keys_of(&receipt).context("the keys of the erasure cannot be read")?;
    let mut present = 0;
    for path in ReadOnly::spaces(folder)? {
        let space = ReadOnly::open(&path)?;
        present += space.keys().iter().filter(|key| veiled.has(key)).count() as u64;
    }
    Ok((receipt, is_chained, present))
}
