//! What is known of a model before any of its files is opened: `models/<name>.toml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{EngineError, Upstream};
use crate::domain::{Pooling, TruncationDirection};

/// A manifest that comes with the program: its file's name and text.
macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        [$((concat!($name, ".toml"), include_str!(concat!("../../models/", $name, ".toml")))),*]
    };
}

/// The manifests that come with the program, the default model's first.
const BUILT_IN: [(&str, &str); 20] = built_in![
    "all-MiniLM-L6-v2",
    "bge-small-en-v1.5",
    "bge-base-en-v1.5",
    "bge-large-en-v1.5",
    "e5-small-v2",
    "e5-base-v2",
    "multilingual-e5-small",
    "multilingual-e5-base",
    "bge-m3",
    "gte-small",
    "gte-base",
    "snowflake-arctic-embed-s",
    "snowflake-arctic-embed-m",
    "all-mpnet-base-v2",
    "multi-qa-mpnet-base-dot-v1",
    "paraphrase-multilingual-MiniLM-L12-v2",
    "nomic-embed-text-v1.5",
    "gte-modernbert-base",
    "jina-embeddings-v2-small-en",
    "Qwen3-Embedding-0.6B",
];

/// A model's description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// The most tokens read of a text, special tokens included; of an upstream model, its `max_characters`.
    #[serde(default)]
    pub max_tokens: usize,
    /// Which end of a longer text is cut when a request does not say.
    #[serde(default)]
    pub truncation_direction: TruncationDirection,
    /// How token vectors become one; not given for an upstream model.
    #[serde(default = "unknown_pooling")]
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
    /// The files needed, weights first; none for an upstream model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<ModelFile>,
    /// Where a Python package registry has the same files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wheel: Option<Wheel>,
    /// The endpoint that computes, in place of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Upstream>,
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

fn unknown_pooling() -> Pooling {
    Pooling::Upstream
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// When it is not valid TOML, has an unknown field, or contradicts itself.
    pub fn parse(text: &str, path: &Path) -> Result<Self, EngineError> {
        let invalid = |reason: String| EngineError::Invalid { path: path.to_owned(), reason };
        let mut manifest: Self = toml::from_str(text).map_err(|error| invalid(error.to_string()))?;
        if let Some(fault) = manifest.check_kind() {
            return Err(invalid(fault));
        }
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

    /// Says what contradicts the manifest's being of files, or of an upstream, and fills in the length of the latter.
    fn check_kind(&mut self) -> Option<String> {
        let Some(upstream) = &self.upstream else {
            return if self.files.is_empty() {
                Some("it has neither [[files]] nor an [upstream]: say where the model is".to_owned())
            } else if self.pooling == Pooling::Upstream {
                Some("pooling is missing: say how token vectors become one".to_owned())
            } else {
                None
            };
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !self.files.is_empty() || self.wheel.is_some() {
            return Some("it has an [upstream] and files: it is one or the other".to_owned());
        }
        if self.pooling != Pooling::Upstream {
            return Some("pooling is the upstream's own: leave it out".to_owned());
        }
        if self.max_tokens != 0 && self.max_tokens != upstream.max_characters {
            return Some("max_tokens is not for an [upstream]: its max_characters bounds a text".to_owned());
        }
        if self.name.starts_with('.') || !self.name.chars().all(allowed) {
            return Some(format!("name {:?} is not made of letters, digits, '-', '_' and '.'", self.name));
        }
        self.max_tokens = upstream.max_characters;
        upstream.fault()
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
            let verified = manifest.files.iter().all(|file| file.sha256.is_some());
            // A digest that is not known is not made up, and whoever reads the manifest is told.
            assert!(verified || text.contains("# Unverified"), "{file}");
            assert!(!verified || !text.contains("# Unverified"), "{file}");
        }
        assert!(Manifest::parse(BUILT_IN[0].1, Path::new("m.toml")).unwrap().files[0].sha256.is_some());
    }

    #[test]
    fn a_prompt_for_queries_comes_with_one_for_documents() {
        let manifests = Manifest::all(Path::new("/nonexistent")).unwrap();
        for manifest in manifests.values() {
            assert_eq!(
                manifest.prompts.contains_key("query"),
                manifest.prompts.contains_key("document"),
                "{}",
                manifest.name
            );
        }
        assert_eq!(manifests["e5-small-v2"].prompts["document"], "passage: ");
        assert_eq!(manifests["nomic-embed-text-v1.5"].matryoshka_dims, [512, 256, 128, 64]);
        assert!(manifests["Qwen3-Embedding-0.6B"].prompts["query"].ends_with("\nQuery:"));
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
    fn a_manifest_is_of_files_or_of_an_upstream() {
        let upstream = "name = \"m\"\nsource = \"o/m\"\ndims = 8\n[upstream]\ndialect = \"tei\"\nbase_url = \"http://h\"\nversion = \"1\"\nmax_characters = 99\n";
        let parse = |text: &str| Manifest::parse(text, Path::new("m.toml"));
        let manifest = parse(upstream).unwrap();
        assert_eq!((manifest.max_tokens, manifest.pooling), (99, Pooling::Upstream));
        assert_eq!(parse(&toml::to_string(&manifest).unwrap()).unwrap(), manifest);
        let refused = |text: String| parse(&text).unwrap_err().to_string();
        assert!(refused(format!("pooling = \"mean\"\n{upstream}")).contains("pooling"));
        assert!(refused(format!("max_tokens = 5\n{upstream}")).contains("max_characters"));
        assert!(refused(format!("{upstream}[[files]]\npath = \"a\"")).contains("one or the other"));
        assert!(refused(upstream.replace("\"m\"", "\"../m\"")).contains("name"));
        assert!(refused(upstream.replace("http://h", "h")).contains("base_url"));
        assert!(refused(upstream.split("[upstream]").next().unwrap().to_owned()).contains("neither"));
        assert!(refused(BUILT_IN[0].1.replace("pooling = \"mean\"", "")).contains("pooling is missing"));
    }

    #[test]
    fn a_manifest_in_the_models_folder_adds_to_those_that_come_with_the_program() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("own.toml"), BUILT_IN[0].1.replace("all-MiniLM-L6-v2\"", "own\"")).unwrap();
        let names: Vec<String> = Manifest::all(folder.path()).unwrap().into_keys().collect();
        assert_eq!(names.len(), BUILT_IN.len() + 1);
        assert!(names.iter().any(|name| name == "all-MiniLM-L6-v2") && names.iter().any(|name| name == "own"));
        assert_eq!(Manifest::all(Path::new("/nonexistent")).unwrap().len(), BUILT_IN.len());
    }
}
