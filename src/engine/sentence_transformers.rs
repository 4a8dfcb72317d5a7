//! A model folder's own description, as sentence-transformers writes it, for models without a manifest.
//!
//! Read are `config.json` (the network's sizes), `modules.json` (the steps), `sentence_bert_config.json` or `tokenizer_config.json`
//! (the length), `1_Pooling/config.json` and `config_sentence_transformers.json` (prompts). Both the names of old versions and those
//! of version 5 and later are understood. What this program could not do faithfully is refused by name.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::EngineError;
use super::families::Family;
use super::load::refused;
use super::manifest::{Manifest, ModelFile};
use crate::domain::{Pooling, TruncationDirection};

/// The files a folder has to have.
pub(super) const REQUIRED: [&str; 3] = ["model.safetensors", "tokenizer.json", "config.json"];

/// The files that are read if they are there.
pub(super) const OPTIONAL: [&str; 5] = [
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
];

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Default, Deserialize)]
struct Prompts {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

/// Describes the model in `folder`, to be served as `name`.
pub(super) fn describe(folder: &Path, name: &str, source: &str) -> Result<Manifest, EngineError> {
    let config: Value = read(folder, "config.json")?.ok_or_else(|| EngineError::Missing {
        folder: folder.to_owned(),
        file: "config.json".into(),
        hint: "",
    })?;
    let outline = Family::of(&config).and_then(|family| family.outline(&config));
    let outline = outline.map_err(|refusal| refused(refusal, folder, &folder.join("config.json"), folder))?;

    let mut pooling = Pooling::Mean;
    // Without modules.json a folder is a bare transformer: sentence-transformers then takes the mean and does not normalise.
    let mut normalize = false;
    for module in read::<Vec<Module>>(folder, "modules.json")?.unwrap_or_default() {
        let kind = module.kind.rsplit('.').next().unwrap_or_default();
        match kind {
            "Transformer" => {}
            "Pooling" => pooling = read_pooling(folder, &format!("{}/config.json", module.path))?,
            "Normalize" => normalize = true,
            other => {
                return Err(EngineError::Unsupported {
                    folder: folder.to_owned(),
                    what: format!("it has the module {other}"),
                    supported: "Transformer, Pooling and Normalize",
                });
            }
        }
    }
    let longest = outline.places;
    // Older versions write the length into the first of these, newer ones into the second. The second may be absurd
    // (1e30 for "none"), which is no u64 and so counts for nothing.
    let mut max_tokens = longest;
    for (file, key) in [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")]
    {
        if let Some(own) = read::<Value>(folder, file)?.and_then(|config| config[key].as_u64()) {
            max_tokens = longest.min(usize::try_from(own).unwrap_or(longest));
            break;
        }
    }
    let truncation_direction = match read::<Value>(folder, "tokenizer_config.json")? {
        Some(config) if config["truncation_side"] == "left" => TruncationDirection::Left,
        _ => TruncationDirection::Right,
    };
    let Prompts { mut prompts, default_prompt_name } =
        read(folder, "config_sentence_transformers.json")?.unwrap_or_default();
    // Recent versions write empty prompts for models that have none. Beside others an empty one says that there is nothing to
    // put before a text of that kind.
    if prompts.values().all(String::is_empty) {
        prompts.retain(|name, _| default_prompt_name.as_ref() == Some(name));
    }

    let file = |path: &&str| ModelFile { path: (*path).to_owned(), bytes: None, sha256: None };
    let manifest = Manifest {
        name: name.to_owned(),
        source: source.to_owned(),
        revision: None,
        licence: None,
        dims: outline.dims,
        max_tokens,
        truncation_direction,
        pooling,
        normalize,
        prompts,
        default_prompt: default_prompt_name,
        matryoshka_dims: Vec::new(),
        files: REQUIRED.iter().map(file).collect(),
        wheel: None,
        upstream: None,
    };
    let text = toml::to_string(&manifest)
        .map_err(|error| EngineError::Invalid { path: folder.to_owned(), reason: error.to_string() })?;
    // What a manifest may not say, a folder may not either.
    Manifest::parse(&text, folder)
}

fn read_pooling(folder: &Path, file: &str) -> Result<Pooling, EngineError> {
    let config: Value = read(folder, file)?.ok_or_else(|| EngineError::Missing {
        folder: folder.to_owned(),
        file: file.to_owned(),
        hint: "",
    })?;
    let mode = match &config["pooling_mode"] {
        Value::String(mode) => vec![mode.clone()],
        Value::Array(modes) => modes.iter().filter_map(|mode| mode.as_str().map(ToOwned::to_owned)).collect(),
        _ => {
            let chosen = |(key, value): (&String, &Value)| {
                let mode = key.strip_prefix("pooling_mode_")?;
                (value == &Value::Bool(true))
                    .then(|| mode.trim_end_matches("_tokens").trim_end_matches("_token").to_owned())
            };
            config.as_object().map(|config| config.iter().filter_map(chosen).collect()).unwrap_or_default()
        }
    };
    match mode.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["mean"] => Ok(Pooling::Mean),
        ["cls"] => Ok(Pooling::Cls),
        ["max"] => Ok(Pooling::Max),
        ["lasttoken"] => Ok(Pooling::LastToken),
        other => Err(EngineError::Unsupported {
            folder: folder.to_owned(),
            what: format!(
                "its pooling is {}",
                if other.is_empty() { "not said".to_owned() } else { other.join(" with ") }
            ),
            supported: "mean, cls, max or lasttoken, one of them",
        }),
    }
}

/// Reads a JSON file of the folder; `None` if it is not there.
fn read<T: DeserializeOwned>(folder: &Path, file: &str) -> Result<Option<T>, EngineError> {
    let path = folder.join(file);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(EngineError::File { operation: "read", path, source }),
    };
    match serde_json::from_str(&text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(EngineError::Invalid { path, reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        std::fs::write(
            folder.path().join("config.json"),
            r#"{"hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 64}"#,
        )
        .unwrap();
        for (file, text) in files {
            std::fs::write(folder.path().join(file), text).unwrap();
        }
        folder
    }

    fn modules(kinds: &[&str]) -> String {
        let module = |kind: &&str| format!(r#"{{"path": "1_{kind}", "type": "sentence_transformers.models.{kind}"}}"#);
        format!("[{}]", kinds.iter().map(module).collect::<Vec<_>>().join(","))
    }

    fn describe(files: &[(&str, &str)]) -> Result<Manifest, EngineError> {
        super::describe(folder(files).path(), "m", "here")
    }

    #[test]
    fn pooling_is_read_in_the_old_form_and_in_the_new() {
        let modules = modules(&["Transformer", "Pooling", "Normalize"]);
        for (config, expected) in [
            (r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#, Pooling::Cls),
            (r#"{"pooling_mode_max_tokens": true}"#, Pooling::Max),
            (r#"{"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false}"#, Pooling::LastToken),
            (r#"{"pooling_mode": "mean", "embedding_dimension": 8}"#, Pooling::Mean),
        ] {
            let manifest = describe(&[("modules.json", &modules), ("1_Pooling/config.json", config)]).unwrap();
            assert_eq!((manifest.pooling, manifest.normalize), (expected, true));
        }
        let both = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#;
        let error = describe(&[("modules.json", &modules), ("1_Pooling/config.json", both)]).unwrap_err();
        assert!(error.to_string().contains("cls with mean"), "{error}");
    }

    #[test]
    fn length_and_prompts_are_read_and_the_network_bounds_the_length() {
        let prompts = r#"{"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": "query"}"#;
        let manifest = describe(&[
            ("sentence_bert_config.json", r#"{"max_seq_length": 512}"#),
            ("config_sentence_transformers.json", prompts),
        ])
        .unwrap();
        assert_eq!((manifest.max_tokens, manifest.normalize), (64, false));
        assert_eq!(manifest.default_prompt.as_deref(), Some("query"));
        let prompts = [("document", ""), ("query", "q: ")].map(|(name, prompt)| (name.to_owned(), prompt.to_owned()));
        assert_eq!(manifest.prompts.into_iter().collect::<Vec<_>>(), prompts);
        let none = r#"{"prompts": {"query": "", "document": ""}, "default_prompt_name": null}"#;
        assert_eq!(describe(&[("config_sentence_transformers.json", none)]).unwrap().prompts.len(), 0);
        let left = r#"{"truncation_side": "left"}"#;
        let manifest = describe(&[("tokenizer_config.json", left)]).unwrap();
        assert_eq!(manifest.truncation_direction, TruncationDirection::Left);
    }

    #[test]
    fn what_cannot_be_done_or_read_is_refused_by_name() {
        let error = describe(&[("modules.json", &modules(&["Transformer", "Dense"]))]).unwrap_err();
        assert!(error.to_string().contains("Dense"), "{error}");
        let error = describe(&[("modules.json", "{")]).unwrap_err();
        assert!(error.to_string().contains("modules.json"), "{error}");
        let error = describe(&[("config.json", r#"{"num_attention_heads": 2}"#)]).unwrap_err();
        assert!(error.to_string().contains("hidden_size"), "{error}");
        let error = describe(&[("config.json", r#"{"num_attention_heads": 2, "hidden_size": 1e9}"#)]).unwrap_err();
        assert!(error.to_string().contains("hidden_size"), "{error}");
    }
}
