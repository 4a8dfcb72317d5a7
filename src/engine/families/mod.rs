//! The kinds of network this program computes, and how each is recognised and loaded.
//!
//! ```text
//! config.json ─► Family::of ─► Outline (dims, places)          must agree with the manifest
//! weights     ─► load       ─► Weights  (BERT-shaped)          computed by the packed encoder
//!                            └► Network  (all others)           computed one text at a time, see `one_by_one`
//! ```
//!
//! A configuration that asks for anything the loader does not compute is refused by name: a vector that is nearly right is
//! worse than none.

mod distilbert;
mod gate;
mod jina;
mod modernbert;
mod mpnet;
mod nomic;
mod one_by_one;
mod parts;
mod qwen3;
mod roberta;

use candle_nn::VarBuilder;
use candle_transformers::models::bert::{Config as BertConfig, PositionEmbeddingType};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::weights::Weights;
pub(super) use one_by_one::{NUMERICS_VERSION, Network, OneByOne};

/// What the error for any other network says.
pub(super) const SUPPORTED: &str = "BERT (model_type bert), RoBERTa and XLM-RoBERTa (roberta, xlm-roberta, camembert), DistilBERT \
    (distilbert), MPNet (mpnet), NomicBERT (nomic_bert), ModernBERT (modernbert), JinaBERT v2 (bert with alibi positions) and Qwen3 \
    (qwen3), in safetensors";

/// A kind of network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Bert,
    Roberta,
    DistilBert,
    Mpnet,
    Nomic,
    ModernBert,
    Jina,
    Qwen3,
}

/// Each family by its `model_type`, and by how the names of its `architectures` begin where a configuration has no type.
const BY_TYPE: [(&str, &str, Family); 9] = [
    ("bert", "Bert", Family::Bert),
    ("roberta", "Roberta", Family::Roberta),
    ("xlm-roberta", "XLMRoberta", Family::Roberta),
    ("camembert", "Camembert", Family::Roberta),
    ("distilbert", "DistilBert", Family::DistilBert),
    ("mpnet", "MPNet", Family::Mpnet),
    ("nomic_bert", "NomicBert", Family::Nomic),
    ("modernbert", "ModernBert", Family::ModernBert),
    ("qwen3", "Qwen3", Family::Qwen3),
];

/// Why a network cannot be loaded.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Its configuration contradicts itself or cannot be read.
    Config(String),
    /// It is, or has, something that is not computed here.
    Unsupported(String),
    /// Its weights are not those its configuration tells of.
    Weights(candle_core::Error),
}

impl From<candle_core::Error> for Refusal {
    fn from(error: candle_core::Error) -> Self {
        Self::Weights(error)
    }
}

/// What is known of a network from its configuration alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outline {
    /// Length of a token's vector.
    pub(super) dims: usize,
    /// The most tokens it reads.
    pub(super) places: usize,
}

/// A network with its weights.
pub(super) enum Loaded {
    /// BERT-shaped.
    Encoder(Weights),
    /// Any other.
    Network(Box<dyn Network>),
}

impl Family {
    /// Recognises a configuration.
    pub(super) fn of(config: &Value) -> Result<Self, Refusal> {
        let named = config["architectures"][0].as_str();
        let family = match config["model_type"].as_str() {
            Some(own) => BY_TYPE.iter().find(|(model_type, ..)| *model_type == own),
            None => BY_TYPE.iter().find(|(_, prefix, _)| named.unwrap_or("Bert").starts_with(prefix)),
        };
        let own = || match config["model_type"].as_str() {
            Some(own) => format!("its model_type is {own}"),
            None => format!("its architecture is {}", named.unwrap_or_default()),
        };
        match family {
            None => Err(Refusal::Unsupported(own())),
            Some((.., Self::Bert)) if config["position_embedding_type"] == "alibi" => Ok(Self::Jina),
            Some((.., family)) => Ok(*family),
        }
    }

    /// Whether it is BERT-shaped, and so computed by the packed encoder.
    pub(super) fn is_encoder(self) -> bool {
        matches!(self, Self::Bert | Self::Roberta | Self::DistilBert | Self::Mpnet)
    }

    /// Reads the sizes that a manifest has to agree with.
    pub(super) fn outline(self, config: &Value) -> Result<Outline, Refusal> {
        let number = |keys: &[&str]| {
            let found = keys.iter().find_map(|key| config[key].as_u64());
            found.map(|value| value as usize).ok_or_else(|| Refusal::Config(format!("it has no {}", keys[0])))
        };
        let heads = number(&["num_attention_heads", "n_head", "n_heads"])?;
        let dims = number(&["hidden_size", "n_embd", "dim"])?;
        if heads == 0 || (config["head_dim"].is_null() && !dims.is_multiple_of(heads)) {
            return Err(Refusal::Config(format!("hidden_size {dims} cannot be split over {heads} heads")));
        }
        let places = number(&["max_position_embeddings", "n_positions"]).unwrap_or(512);
        let places = match self {
            // The padding's place and those before it are in the table too.
            Self::Roberta | Self::Mpnet => places.saturating_sub(padding(config) + 1),
            _ => places,
        };
        Ok(Outline { dims, places })
    }

    /// Takes the network's weights out of its checkpoint, for texts of at most `max_tokens`.
    pub(super) fn load(self, config: &Value, vb: &VarBuilder<'_>, max_tokens: usize) -> Result<Loaded, Refusal> {
        match self {
            Self::Bert => {
                let config = bert_config(config)?;
                let vb = root(vb, &["", "bert"], "embeddings.word_embeddings.weight")?;
                Ok(Loaded::Encoder(Weights::bert(&config, &vb)?))
            }
            Self::Roberta => roberta::load(config, vb).map(Loaded::Encoder),
            Self::DistilBert => distilbert::load(config, vb).map(Loaded::Encoder),
            Self::Mpnet => mpnet::load(config, vb).map(Loaded::Encoder),
            Self::Nomic => nomic::load(config, vb, max_tokens).map(Loaded::Network),
            Self::ModernBert => modernbert::load(config, vb, max_tokens).map(Loaded::Network),
            Self::Jina => jina::load(config, vb).map(Loaded::Network),
            Self::Qwen3 => qwen3::load(config, vb, max_tokens).map(Loaded::Network),
        }
    }
}

/// The id of the padding token: positions of some families start after it.
fn padding(config: &Value) -> usize {
    config["pad_token_id"].as_u64().unwrap_or(1) as usize
}

/// Where in a checkpoint the network stands: some hold it inside a larger one.
fn root<'a>(vb: &VarBuilder<'a>, prefixes: &[&str], tensor: &str) -> Result<VarBuilder<'a>, Refusal> {
    let candidates = prefixes.iter().map(|prefix| if prefix.is_empty() { vb.clone() } else { vb.pp(prefix) });
    let mut found = candidates.filter(|vb| vb.contains_tensor(tensor));
    found.next().ok_or_else(|| Refusal::Unsupported(format!("no tensor of it is named {tensor}")))
}

fn parse<T: DeserializeOwned>(config: &Value) -> Result<T, Refusal> {
    serde_json::from_value(config.clone()).map_err(|error| Refusal::Config(error.to_string()))
}

/// A configuration of BERT's form, with what later families leave out.
fn bert_config(config: &Value) -> Result<BertConfig, Refusal> {
    let mut config = config.clone();
    for (key, usual) in [("type_vocab_size", 2.into()), ("pad_token_id", 0.into()), ("layer_norm_eps", 1e-12.into())] {
        if config[key].is_null() {
            config[key] = usual;
        }
    }
    // Of training only.
    for key in ["hidden_dropout_prob", "initializer_range"] {
        config[key] = 0.0.into();
    }
    config["classifier_dropout"] = Value::Null;
    if matches!(config["hidden_act"].as_str(), Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh")) {
        config["hidden_act"] = "geluapproximate".into();
    }
    if config.get("position_embedding_type").is_some_and(|positions| positions.is_null()) {
        config["position_embedding_type"] = "absolute".into();
    }
    if let Some(other) = config["position_embedding_type"].as_str().filter(|positions| *positions != "absolute") {
        return Err(Refusal::Unsupported(format!("its positions are {other}, not absolute")));
    }
    let config: BertConfig = parse(&config)?;
    assert_eq!(config.position_embedding_type, PositionEmbeddingType::Absolute);
    Ok(config)
}

/// Refuses a configuration that has something else than what is computed here; absent counts as that.
fn demand(config: &Value, expected: &[(&str, Value)]) -> Result<(), Refusal> {
    for (key, expected) in expected {
        let found = &config[key];
        let same = found == expected || matches!((found.as_f64(), expected.as_f64()), (Some(a), Some(b)) if a == b);
        if !found.is_null() && !same {
            return Err(Refusal::Unsupported(format!("its {key} is {found}, not {expected}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(config: Value) -> String {
        match Family::of(&config) {
            Ok(family) => panic!("{config} was taken for {family:?}"),
            Err(refusal) => format!("{refusal:?}"),
        }
    }

    #[test]
    fn families_are_recognised_by_type_or_architecture_and_jina_by_its_positions() {
        let of = |config: Value| Family::of(&config).unwrap();
        assert_eq!(of(json!({"model_type": "bert"})), Family::Bert);
        assert_eq!(of(json!({})), Family::Bert);
        assert_eq!(of(json!({"model_type": "xlm-roberta"})), Family::Roberta);
        assert_eq!(of(json!({"architectures": ["MPNetForMaskedLM"]})), Family::Mpnet);
        assert_eq!(of(json!({"model_type": "bert", "position_embedding_type": "alibi"})), Family::Jina);
        assert_eq!(of(json!({"model_type": "nomic_bert"})), Family::Nomic);
        assert!(refused(json!({"model_type": "t5"})).contains("model_type is t5"));
        assert!(refused(json!({"architectures": ["T5Model"]})).contains("T5Model"));
    }

    #[test]
    fn the_sizes_are_read_under_every_familys_names() {
        let outline = |config: Value| Family::of(&config).unwrap().outline(&config).unwrap();
        let roberta = json!({"model_type": "xlm-roberta", "hidden_size": 384, "num_attention_heads": 12,
            "max_position_embeddings": 514, "pad_token_id": 1});
        assert_eq!(outline(roberta), Outline { dims: 384, places: 512 });
        let nomic = json!({"model_type": "nomic_bert", "n_embd": 768, "n_head": 12, "n_positions": 8192});
        assert_eq!(outline(nomic), Outline { dims: 768, places: 8192 });
        let distilbert = json!({"model_type": "distilbert", "dim": 768, "n_heads": 12, "max_position_embeddings": 512});
        assert_eq!(outline(distilbert), Outline { dims: 768, places: 512 });
    }
}
