//! RoBERTa and XLM-RoBERTa: BERT whose positions start after the padding's id.

use candle_nn::VarBuilder;
use serde_json::Value;

use super::super::weights::Weights;
use super::{Refusal, bert_config, padding, root};

pub(super) fn load(config: &Value, vb: &VarBuilder<'_>) -> Result<Weights, Refusal> {
    let vb = root(vb, &["", "roberta", "bert"], "embeddings.word_embeddings.weight")?;
    let first = padding(config) + 1;
    let config = bert_config(config)?;
    let mut weights = Weights::bert(&config, &vb)?;
    let places = config.max_position_embeddings.saturating_sub(first);
    weights.positions = weights.positions.narrow(0, first, places)?;
    Ok(weights)
}
