//! What is known of a model before any of its files is opened: `models/<name>.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::EngineError;
use crate::domain::Pooling;

/// The manifests that come with the program.
const BUILT_IN: [(&str, &str); 1] = [("all-MiniLM-L6-v2.toml", include_str!("../../models/all-MiniLM-L6-v2.toml"))];

/// A model's description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The name it is served under.
    pub name: String,
    /// The Hugging Face repository it comes from.
    pub source: String,
    /// The repository's branch, tag or commit; `main` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The SPDX licence of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Length of a vector.
    pub dims: usize,
    /// The most tokens read of a text, special tokens included.
    pub max_tokens: usize,
    /// How token vectors become one.
    pub pooling: Pooling,
    /// Whether vectors are scaled to length one when a request does not say.
    #[serde(default = "yes")]
    pub normalize: bool,
    /// Texts put before the input, by name.
    #[serde(default)]
    pub prompts: BTreeMap<String, String>,
    /// The prompt used when a request names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_prompt: Option<String>,
    /// Shorter lengths the vectors may be cut to (Matryoshka).
    #[serde(default)]
    pub matryoshka_dims: Vec<usize>,
    /// The files needed, weights first.
    pub files: Vec<ModelFile>,
    /// Where a Python package registry has the same files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wheel: Option<Wheel>,
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// Its path inside the repository.
    pub path: String,
    /// Its length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Its digest, in lower-case hex; unverified if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// A package of the Python registry that carries a model's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wheel {
    /// The package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The folder inside it.
    pub folder: String,
}

fn yes() -> bool {
    true
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// When it is not valid TOML, has an unknown field, or contradicts itself.
    pub fn parse(text: &str, path: &Path) -> Result<Self, EngineError> {
        let invalid = |reason: String| EngineError::Invalid { path: path.to_owned(), reason };
        let manifest: Self = toml::from_str(text).map_err(|error| invalid(error.to_string()))?;
        let Self { dims, max_tokens, default_prompt, prompts, matryoshka_dims, files, .. } = &manifest;
        if !(1..=8192).contains(dims) {
            return Err(invalid(format!("dims is {dims}, which is not between 1 and 8192")));
        }
        if *max_tokens < 2 {
            return Err(invalid(format!("max_tokens is {max_tokens}, which leaves no room for a text")));
        }
        if let Some(name) = default_prompt.as_ref().filter(|name| !prompts.contains_key(*name)) {
            return Err(invalid(format!("default_prompt is {name:?}, which is none of the prompts")));
        }
        if let Some(cut) = matryoshka_dims.iter().find(|cut| !(1..*dims).contains(cut)) {
            return Err(invalid(format!("matryoshka_dims has {cut}, which is not between 1 and dims")));
        }
        let outside = |file: &&ModelFile| {
            let path = Path::new(&file.path);
            !path.components().all(|component| matches!(component, std::path::Component::Normal(_)))
        };
        if let Some(file) = files.iter().find(outside) {
            return Err(invalid(format!("the file {:?} is not inside the model's folder", file.path)));
        }
        Ok(manifest)
    }

    /// Every manifest, by name: those that come with the program, and those in a models folder, which win.
    ///
    /// # Errors
    /// When a manifest in the folder cannot be read or is invalid.
    pub fn all(models_dir: &Path) -> Result<BTreeMap<String, Self>, EngineError> {
        let mut manifests = BTreeMap::new();
        for (file, text) in BUILT_IN {
            let manifest = Self::parse(text, Path::new(file))?;
            manifests.insert(manifest.name.clone(), manifest);
        }
        for path in manifests_in(models_dir)? {
            let text = std::fs::read_to_string(&path).map_err(|source| EngineError::File {
                operation: "read",
                path: path.clone(),
                source,
            })?;
            let manifest = Self::parse(&text, &path)?;
            manifests.insert(manifest.name.clone(), manifest);
        }
        Ok(manifests)
    }
}

fn manifests_in(folder: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let unreadable = |source| EngineError::File { operation: "list", path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut paths =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl Fn(&str) -> String) -> String {
        let text = change(BUILT_IN[0].1);
        Manifest::parse(&text, Path::new("m.toml")).unwrap_err().to_string()
    }

    #[test]
    fn the_manifests_that_come_with_the_program_are_valid() {
        for (file, text) in BUILT_IN {
            let manifest = Manifest::parse(text, Path::new(file)).unwrap();
            assert_eq!(format!("{}.toml", manifest.name), file);
            assert!(manifest.files.iter().all(|file| file.sha256.is_some()));
        }
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused_with_the_reason() {
        assert!(refused(|text| text.replace("dims = 384", "dims = 0")).contains("dims is 0"));
        assert!(refused(|text| text.replace("max_tokens = 256", "max_tokens = 1")).contains("no room"));
        assert!(refused(|text| text.replace("\"config.json\"", "\"../config.json\"")).contains("not inside"));
        assert!(refused(|text| format!("default_prompt = \"q\"\n{text}")).contains("none of the prompts"));
        assert!(refused(|text| format!("matryoshka_dims = [384]\n{text}")).contains("384"));
        assert!(refused(|text| format!("colour = 1\n{text}")).contains("colour"));
    }

    #[test]
    fn a_manifest_in_the_models_folder_adds_to_those_that_come_with_the_program() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("own.toml"), BUILT_IN[0].1.replace("all-MiniLM-L6-v2\"", "own\"")).unwrap();
        let names: Vec<String> = Manifest::all(folder.path()).unwrap().into_keys().collect();
        assert_eq!(names, ["all-MiniLM-L6-v2", "own"]);
        assert_eq!(Manifest::all(Path::new("/nonexistent")).unwrap().len(), 1);
    }
}
