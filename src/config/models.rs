//! Which models: one by name, or several as `[[model]]` tables in the file, each with settings of its own.

use std::time::Duration;

use serde::de::{self, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, DeviceName, PrecisionName, not, some_or_none};
use crate::{engine, store};

/// How long a model of several keeps its weights in memory without being asked, if its table does not say.
const IDLE_SECONDS: u64 = 600;

/// The setting `model`: a name, or tables.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TypedModels {
    /// One model, by what `--model` takes.
    One(String),
    /// Those of the file.
    Several(Vec<TypedModel>),
}

impl From<&str> for TypedModels {
    fn from(name: &str) -> Self {
        Self::One(name.to_owned())
    }
}

impl<'de> Deserialize<'de> for TypedModels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = TypedModels;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a model's name, or tables [[model]]")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<TypedModels, E> {
                Ok(TypedModels::One(name.to_owned()))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, tables: A) -> Result<TypedModels, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(tables)).map(TypedModels::Several)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A `[[model]]` as it stands in the file. What it does not say is as for a single model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypedModel {
    /// What clients ask for it by; the source's short name if not given
    pub name: Option<String>,
    /// A name from `vecmemo models list`, a Hugging Face repository, or a folder
    pub source: String,
    /// Whether it answers those who name none; else the first does
    pub default: Option<bool>,
    /// Revision, if it comes from the Hugging Face Hub
    pub revision: Option<String>,
    /// What computes
    pub device: Option<DeviceName>,
    /// How exactly vectors are computed
    pub precision: Option<PrecisionName>,
    /// The most entries kept
    pub capacity_entries: Option<u64>,
    /// The most bytes of disk for its entries
    pub disk_bytes_max: Option<u64>,
    /// The most bytes of memory that its store keeps beside the mapped file
    pub memory_bytes_max: Option<u64>,
    /// Seconds without a computation after which its weights leave memory; 0: never
    pub idle_seconds: Option<u64>,
}

impl TypedModel {
    /// Whether a name on the command line means this one.
    pub(super) fn is_named(&self, name: &str) -> bool {
        let short = self.source.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        match &self.name {
            Some(own) => own == name || self.source == name,
            None => self.source == name || short == name,
        }
    }
}

/// One model to serve, as meant.
#[derive(Clone, Debug)]
pub struct ModelSettings {
    /// What clients ask for it by; its own name if `None`.
    pub name: Option<String>,
    /// What it is found by.
    pub source: String,
    /// Where it comes from.
    pub sources: engine::Sources,
    /// How it is computed.
    pub engine: engine::Options,
    /// How its entries are kept.
    pub store: store::Config,
    /// How long its weights stay in memory without being asked; for ever if `None`.
    pub idle: Option<Duration>,
}

/// The models in the order they are served, the default one first. `common` is what a table's silence means.
pub(super) fn models(typed: &TypedModels, common: &ModelSettings) -> Result<Vec<ModelSettings>, ConfigError> {
    let tables = match typed {
        TypedModels::One(source) => {
            return Ok(vec![ModelSettings { source: source_of(source)?, ..common.clone() }]);
        }
        TypedModels::Several(tables) => tables,
    };
    if tables.is_empty() {
        return Err(not("model", "an empty list", "a name, or at least one table [[model]]"));
    }
    let defaults: Vec<usize> =
        tables.iter().enumerate().filter(|(_, table)| table.default == Some(true)).map(|(place, _)| place).collect();
    if defaults.len() > 1 {
        return Err(not(
            "model.default",
            "true more than once",
            "true for one model: that which answers who names none",
        ));
    }
    let first = defaults.first().copied().unwrap_or(0);
    for (place, table) in tables.iter().enumerate() {
        let other = |other: &&TypedModel| other.name.is_some() && other.name == table.name;
        if let (Some(name), Some(_)) = (&table.name, tables[..place].iter().find(other)) {
            return Err(not("model.name", name, "another one: two models have it"));
        }
    }
    let order = std::iter::once(first).chain((0..tables.len()).filter(|place| *place != first));
    order.map(|place| model(&tables[place], place == first, common)).collect()
}

fn model(table: &TypedModel, is_default: bool, common: &ModelSettings) -> Result<ModelSettings, ConfigError> {
    if let Some(name) = &table.name
        && (name.is_empty() || name.len() > 200 || name.chars().any(char::is_control))
    {
        return Err(not("model.name", name, "1 to 200 characters that can be seen"));
    }
    let mut settings = ModelSettings { name: table.name.clone(), source: source_of(&table.source)?, ..common.clone() };
    if table.revision.is_some() {
        settings.sources.revision.clone_from(&table.revision);
    }
    if let Some(device) = table.device {
        settings.engine.device = device.into();
    }
    if let Some(precision) = table.precision {
        settings.engine.precision = precision.into();
    }
    if let Some(entries) = some_or_none(table.capacity_entries, "model.capacity_entries")? {
        settings.store.capacity_entries = entries;
    }
    if let Some(bytes) = some_or_none(table.disk_bytes_max, "model.disk_bytes_max")? {
        settings.store.disk_bytes_max = Some(bytes);
    }
    if let Some(bytes) = some_or_none(table.memory_bytes_max, "model.memory_bytes_max")? {
        settings.store.memory_bytes_max = Some(bytes);
    }
    settings.idle = match table.idle_seconds {
        Some(0) => None,
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None if is_default => None,
        None => Some(Duration::from_secs(IDLE_SECONDS)),
    };
    Ok(settings)
}

fn source_of(source: &str) -> Result<String, ConfigError> {
    if source.trim().is_empty() {
        return Err(not("model", "empty", "a name, a repository or a folder"));
    }
    Ok(source.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{Settings, Typed};
    use super::*;

    fn settings(file: &str) -> Result<Settings, String> {
        let typed: Typed = toml::from_str(file).map_err(|error| error.to_string())?;
        Settings::new(&typed).map_err(|error| error.to_string())
    }

    #[test]
    fn a_table_says_what_differs_and_the_rest_is_common() {
        let file = r#"
            precision = "f32"
            capacity_entries = 1000
            [[model]]
            source = "org/a"
            [[model]]
            name = "b"
            source = "./b"
            default = true
            precision = "int8"
            capacity_entries = 7
            idle_seconds = 5
        "#;
        let models = settings(file).unwrap().models;
        let names: Vec<_> = models.iter().map(|model| (model.name.as_deref(), model.source.as_str())).collect();
        assert_eq!(names, [(Some("b"), "./b"), (None, "org/a")]);
        let [b, a] = models.as_slice() else { panic!() };
        assert_eq!((b.engine.precision, a.engine.precision), (engine::Precision::Int8, engine::Precision::F32));
        assert_eq!((b.store.capacity_entries, a.store.capacity_entries), (7, 1000));
        assert_eq!((b.idle, a.idle), (Some(Duration::from_secs(5)), Some(Duration::from_secs(600))));
    }

    #[test]
    fn a_name_alone_is_one_model_that_stays_in_memory() {
        let models = settings("model = \"org/a\"").unwrap().models;
        assert_eq!((models.len(), models[0].source.as_str(), models[0].idle), (1, "org/a", None));
        assert_eq!(settings("").unwrap().models[0].source, "all-MiniLM-L6-v2");
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_the_reason() {
        let table = |fields: &str| format!("[[model]]\nsource = \"a\"\n{fields}\n");
        for (file, reason) in [
            ("model = \"\"".to_owned(), "a name, a repository or a folder"),
            ("model = []".to_owned(), "at least one table"),
            ("model = 7".to_owned(), "a model's name, or tables [[model]]"),
            ("[[model]]\nname = \"x\"".to_owned(), "a name, a repository or a folder"),
            (table("colour = 1"), "colour"),
            (table("capacity_entries = 0"), "model.capacity_entries cannot be 0"),
            (table("name = \"\""), "model.name"),
            (table("default = true") + &table("default = true"), "true for one model"),
            (table("name = \"x\"") + &table("name = \"x\""), "two models have it"),
        ] {
            let error = settings(&file).unwrap_err();
            assert!(error.contains(reason), "{file}: {error}");
        }
    }
}
