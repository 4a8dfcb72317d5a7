//! Where each setting's value comes from: a flag before a variable before the file before the default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use clap::parser::ValueSource;
use serde::Deserialize;
use toml::{Table, Value};

use super::{ConfigError, Typed, TypedModel};

/// The file that is read when present and none is named.
pub const DEFAULT_FILE: &str = "vecmemo.toml";

/// What set a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A command-line flag.
    Flag,
    /// A `VECMEMO_*` variable.
    Variable,
    /// The configuration file.
    File(PathBuf),
    /// Nobody: the default.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable => f.write_str("variable"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Every setting's value with its origin.
#[derive(Clone, Debug)]
pub struct Layered {
    /// The values, all present.
    pub typed: Typed,
    /// Where each came from, by its name in the file.
    pub origins: BTreeMap<String, Origin>,
}

/// Lays flags and variables (`arguments`, with `matches` telling them apart) over the file over the defaults.
///
/// # Errors
/// When a named file cannot be read, or a file is not valid TOML or holds an unknown setting or a wrong type.
pub fn layer(arguments: &Typed, matches: &ArgMatches, file: Option<&Path>) -> Result<Layered, ConfigError> {
    let mut values = table_of(&super::defaults());
    let mut origins: BTreeMap<String, Origin> =
        settings_of(values.clone()).into_iter().map(|(name, _)| (name, Origin::Default)).collect();
    if let Some((path, table)) = read(file)? {
        for (name, value) in settings_of(table) {
            origins.insert(name.clone(), Origin::File(path.clone()));
            put(&mut values, &name, value);
        }
    }
    for (name, value) in settings_of(table_of(arguments)) {
        let origin = match matches.value_source(&name) {
            Some(ValueSource::EnvVariable) => Origin::Variable,
            _ => Origin::Flag,
        };
        let value = match (name.as_str(), values.get(&name)) {
            ("model", Some(Value::Array(tables))) => table_named(&value, tables).unwrap_or(value),
            _ => value,
        };
        origins.insert(name.clone(), origin);
        put(&mut values, &name, value);
    }
    let typed = Typed::deserialize_table(values).map_err(ConfigError::Merged)?;
    Ok(Layered { typed, origins })
}

/// Settings whose lines are quoted in no message.
const SECRETS: [&str; 2] = ["api_key", "url"];

/// The tables whose keys are settings of their own, named `table.key`.
pub const SECTIONS: [&str; 4] = ["auth", "search", "remote", "page"];

/// The settings of a table, those of its sections apart.
fn settings_of(table: Table) -> Vec<(String, Value)> {
    let mut settings = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(section) if SECTIONS.contains(&name.as_str()) => {
                settings.extend(section.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
            }
            value => settings.push((name, value)),
        }
    }
    settings
}

fn put(values: &mut Table, name: &str, value: Value) {
    match name.split_once('.') {
        None => drop(values.insert(name.to_owned(), value)),
        Some((section, key)) => {
            let section = values.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                section.insert(key.to_owned(), value);
            }
        }
    }
}

/// The one of the file's `[[model]]` tables that a name on the command line means, with all it says.
fn table_named(name: &Value, tables: &[Value]) -> Option<Value> {
    let name = name.as_str()?;
    let is_named = |table: &&Value| TypedModel::deserialize((*table).clone()).is_ok_and(|model| model.is_named(name));
    Some(Value::Array(vec![tables.iter().find(is_named)?.clone()]))
}

impl Typed {
    fn deserialize_table(table: Table) -> Result<Self, toml::de::Error> {
        Value::Table(table).try_into()
    }
}

fn table_of(typed: &Typed) -> Table {
    Table::try_from(typed).expect("settings are strings, numbers and booleans, all of which TOML has")
}

/// The number of the line at fault, if what stands there is to be in no message.
fn secret_line(text: &str, error: &toml::de::Error) -> Option<usize> {
    let before = text.get(..error.span()?.start)?;
    let number = before.lines().count().max(1);
    // An error at a line's beginning is that line's.
    let number = number + usize::from(before.ends_with('\n'));
    let line = text.lines().nth(number - 1)?;
    SECRETS.iter().any(|name| line.contains(name)).then_some(number)
}

/// Reads the named file, or the default one if it is there.
fn read(file: Option<&Path>) -> Result<Option<(PathBuf, Table)>, ConfigError> {
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
    };
    let invalid = |source: toml::de::Error| match secret_line(&text, &source) {
        Some(line) => ConfigError::Secret { path: path.to_owned(), line },
        None => ConfigError::File { path: path.to_owned(), source },
    };
    // Read as settings first, for an error that names the line; then as a table, to know which are there.
    toml::from_str::<Typed>(&text).map_err(invalid)?;
    let table = toml::from_str(&text).map_err(invalid)?;
    Ok(Some((path.to_owned(), table)))
}
