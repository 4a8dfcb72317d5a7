//! `vecmemo migrate`: has another model take over from the one behind an alias, on a running server.
//!
//! ```text
//! --from A --to B              what is asked of A is embedded under B as well     (--texts FILE: and these, now)
//! --from A --to B --switch     B answers A's alias   (--when-covered 0.99: as soon as B has that share of what is asked)
//! --from A --to A --switch     and back
//! --delete-old A               A's entries leave the disk
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use serde_json::{Value, json};

use super::client::{Client, escaped};
use super::warm::lines::{Format, Line, Reader};
use super::{print, say};

/// How many texts go in one request at most: few, as those who wait for an answer come first.
const BATCH_TEXTS: usize = 64;

/// How many hits `covered` has to be a share of before it is believed.
const HITS_MIN: u64 = 100;

/// How often the server is asked how far it is.
const POLL: Duration = Duration::from_millis(500);

/// How long to wait when a server refuses without saying how long.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The running server, such as http://127.0.0.1:8080
    #[arg(long, value_name = "URL")]
    url: String,

    /// The alias that clients ask for; without it, the migrations that run are shown
    #[arg(long, value_name = "ALIAS", requires = "to")]
    from: Option<String>,

    /// The model that is to answer it: one of the served ones, by its own name
    #[arg(long, value_name = "MODEL", requires = "from")]
    to: Option<String>,

    /// A file of texts to embed under the other model now, one a line; may be given many times, `-` for standard input
    #[arg(long, value_name = "FILE", requires = "from")]
    texts: Vec<PathBuf>,

    /// Each line of --texts is a JSON object; this field of it is the text (`text` for files ending in .jsonl or .ndjson)
    #[arg(long, value_name = "NAME", requires = "texts")]
    field: Option<String>,

    /// The namespace of --texts
    #[arg(long, value_name = "NAME", requires = "texts")]
    namespace: Option<String>,

    /// The prompt put before each of --texts, one of the models'
    #[arg(long, value_name = "NAME", requires = "texts")]
    prompt_name: Option<String>,

    /// Have the model answer the alias from now on, also after a restart
    #[arg(long, requires = "from")]
    switch: bool,

    /// Wait with --switch until the model has this share of what is asked, such as 0.99, over at least 100 hits
    #[arg(long, value_name = "SHARE", requires = "switch", value_parser = share)]
    when_covered: Option<f64>,

    /// Stop the migration; what has been embedded stays
    #[arg(long, requires = "from", conflicts_with_all = ["texts", "switch"])]
    stop: bool,

    /// Remove a model's entries from the disk; no alias and no migration may use it
    #[arg(long, value_name = "MODEL", conflicts_with = "from")]
    delete_old: Option<String>,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share from 0 to 1 is needed".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let client = Client::new(&arguments.url);
    if let Some(model) = &arguments.delete_old {
        return show(&client.delete_json(&format!("/admin/models/{}", escaped(model)))?);
    }
    let (Some(from), Some(to)) = (&arguments.from, &arguments.to) else {
        return show(&client.get_json("/admin/migrations")?);
    };
    if arguments.stop {
        return show(&client.delete_json(&format!("/admin/migrations/{}", escaped(from)))?);
    }
    if !arguments.switch || arguments.when_covered.is_some() || !arguments.texts.is_empty() {
        let state = client.post_json("/admin/migrations", &json!({ "from": from, "to": to }))?;
        if !arguments.switch && arguments.texts.is_empty() {
            return show(&state);
        }
    }
    let mut failed = 0;
    if !arguments.texts.is_empty() {
        failed = feed(arguments, &client, from)?;
    }
    if arguments.switch {
        if let Some(share) = arguments.when_covered {
            wait_for(&client, from, share)?;
        }
        show(&client.put_json(&format!("/admin/aliases/{}", escaped(from)), &json!({ "model": to }))?)?;
    }
    Ok(if failed > 0 { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

fn show(answer: &Value) -> anyhow::Result<ExitCode> {
    print(&serde_json::to_string_pretty(answer)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Gives the server the texts of files. Answers how many could not be embedded.
fn feed(arguments: &Arguments, client: &Client, from: &str) -> anyhow::Result<u64> {
    let path = format!("/admin/migrations/{}/texts", escaped(from));
    let lines = Reader::new(&arguments.texts, arguments.field.as_deref().map(Format::jsonl));
    let (mut counts, mut bad) = ([0; 4], 0_u64);
    let most = client.get_json("/info")?["max_client_batch_size"].as_u64().unwrap_or(u64::MAX).max(1);
    let batch_texts = BATCH_TEXTS.min(usize::try_from(most).unwrap_or(usize::MAX));
    let mut batch: Vec<Line> = Vec::new();
    let mut send = |batch: &mut Vec<Line>| -> anyhow::Result<()> {
        if !batch.is_empty() {
            let answer = embed(arguments, client, &path, batch)?;
            for (count, name) in counts.iter_mut().zip(["texts", "cached", "computed", "failed"]) {
                *count += answer[name].as_u64().unwrap_or(0);
            }
            batch.clear();
        }
        Ok(())
    };
    for line in lines {
        match line {
            Ok(line) => batch.push(line),
            Err(error) if error.is_fatal() => bail!("{error}"),
            Err(error) => {
                bad += 1;
                say(&format!("skipped {error}"));
            }
        }
        if batch.len() == batch_texts {
            send(&mut batch)?;
        }
    }
    send(&mut batch)?;
    let [texts, cached, computed, failed] = counts;
    print(&format!("{texts} texts: {cached} were there, {computed} computed; {bad} bad lines, {failed} texts failed"))?;
    Ok(failed + bad)
}

/// Tries until there is room.
fn embed(arguments: &Arguments, client: &Client, path: &str, batch: &[Line]) -> anyhow::Result<Value> {
    let texts: Vec<&str> = batch.iter().map(|line| line.text.as_str()).collect();
    let body = json!({
        "inputs": texts, "namespace": arguments.namespace, "prompt_name": arguments.prompt_name,
    });
    loop {
        let reply = client.post(path, &[], &body)?;
        match reply.status {
            200 => return Ok(serde_json::from_slice(&reply.body)?),
            429 | 503 => std::thread::sleep(reply.retry_after.unwrap_or(RETRY_AFTER_DEFAULT)),
            status => bail!("{} answered {status}: {}", client.url(), reply.message()),
        }
    }
}

/// Waits until the other model has a share of what is asked.
fn wait_for(client: &Client, alias: &str, share: f64) -> anyhow::Result<()> {
    let mut told = String::new();
    loop {
        let answer = client.get_json("/admin/migrations")?;
        let running = answer["migrations"].as_array().into_iter().flatten().find(|running| running["alias"] == *alias);
        let Some(running) = running else { bail!("the migration of {alias:?} was stopped: nothing was switched") };
        let hits = running["recent_hits"].as_u64().unwrap_or(0);
        let covered = running["covered"].as_f64().unwrap_or(0.0);
        if hits >= HITS_MIN && covered >= share {
            return Ok(());
        }
        let line =
            format!("covered: {:.2} % of the last {hits} hits; {} texts wait", covered * 100.0, running["queued"]);
        if line != told {
            say(&line);
            told = line;
        }
        std::thread::sleep(POLL);
    }
}
