//! The model's vector of each token alone, computed once and kept.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};

use crate::batch::{Computed, Embedder, Job, JobError, Recipient, Ticket};
use crate::domain::{Device, Lane, Tokens};
use crate::reuse::Table;

/// Tokens that are queued at a time: few, so that others who wait are not kept waiting.
const AT_A_TIME: usize = 512;

/// Takes one token's vector.
struct Taker {
    at: usize,
    to: Sender<(usize, Result<Vec<f32>, JobError>)>,
}

impl Recipient for Taker {
    fn wanted(&self) -> bool {
        true
    }

    fn finish(self: Box<Self>, outcome: Result<Computed, JobError>) {
        // Who asked may have been told of a failure already.
        let _ = self.to.send((self.at, outcome.map(|computed| computed.vector)));
    }
}

/// The table of a model's tokens: from its file, or computed, and written there. Blocks for as long as the model takes for all
/// its tokens, behind everybody else who waits.
pub(super) fn table(embedder: &Embedder, path: &Path) -> Result<Table, String> {
    if let Ok(bytes) = std::fs::read(path) {
        match Table::from_bytes(&bytes) {
            Ok(table) if table.tokens() == embedder.vocabulary_size() => return Ok(table),
            Ok(_) => tracing::warn!("the file of token vectors is of another vocabulary; they are computed anew"),
            Err(error) => tracing::warn!(%error, "the file of token vectors cannot be read; they are computed anew"),
        }
    }
    let table = distil(embedder)?;
    if let Err(error) = write(path, &table.to_bytes()) {
        tracing::warn!(%error, path = %path.display(), "the token vectors cannot be kept; the next start computes them anew");
    }
    Ok(table)
}

fn distil(embedder: &Embedder) -> Result<Table, String> {
    if embedder.card().device.get() == Device::Upstream {
        return Err("reuse needs a model that is computed here: each of its tokens has to be embedded once".to_owned());
    }
    let (before, after) = around(embedder)?;
    let tokens = embedder.vocabulary_size();
    let mut vectors: Vec<f32> = Vec::new();
    let mut dims = 0;
    for start in (0..tokens).step_by(AT_A_TIME) {
        let (to, from) = channel();
        let ids = start..tokens.min(start + AT_A_TIME);
        let count = ids.len();
        let jobs = ids.enumerate().map(|(at, id)| {
            let ids: Box<[u32]> = before.iter().copied().chain([id as u32]).chain(after.iter().copied()).collect();
            let tokens = Tokens { count_before_truncation: ids.len(), ids };
            Job { tokens, ticket: Ticket::new(Lane::WarmUp), recipient: Box::new(Taker { at, to: to.clone() }) }
        });
        embedder.submit(jobs.collect()).map_err(|(refusal, _)| refusal.to_string())?;
        drop(to);
        let mut block = vec![Vec::new(); count];
        for (at, outcome) in from {
            block[at] = outcome.map_err(|error| error.to_string())?;
        }
        dims = block[0].len();
        if dims == 0 || block.iter().any(|vector| vector.len() != dims) {
            return Err("a token has no vector".to_owned());
        }
        vectors.extend(block.into_iter().flatten());
    }
    if !vectors.iter().all(|value| value.is_finite()) {
        return Err("a token's vector is not finite".to_owned());
    }
    Ok(Table::distil(&vectors, dims))
}

/// The special tokens that the model's template puts before and after a text.
fn around(embedder: &Embedder) -> Result<(Vec<u32>, Vec<u32>), String> {
    let tokens = embedder.inspect("a", "", true).map_err(|error| error.to_string())?;
    let special = |token: &&crate::batch::Token| token.special;
    let before: Vec<u32> = tokens.iter().take_while(special).map(|token| token.id).collect();
    let mut after: Vec<u32> = tokens[before.len()..].iter().rev().take_while(special).map(|token| token.id).collect();
    after.reverse();
    Ok((before, after))
}

/// A new file, synced, then renamed over the old.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let next = path.with_extension("next");
    let mut file = std::fs::File::create(&next)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    std::fs::rename(&next, path)
}
