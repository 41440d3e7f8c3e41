//! The Hugging Face hub, and the cache that its own tools keep on this machine.
//!
//! Reads `HF_ENDPOINT`, `HF_TOKEN` (or the token file), `HF_HUB_OFFLINE`, `HF_HUB_CACHE`,
//! `HUGGINGFACE_HUB_CACHE` and `HF_HOME` as those tools do. Their cache is only read: what this
//! program downloads goes into its own.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;
use ureq::Agent;

use crate::download::{self, Download, DownloadError};
use crate::progress::Progress;

/// Why the hub has not given what was asked for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HubError {
    /// `HF_HUB_OFFLINE` forbids it.
    #[error("HF_HUB_OFFLINE is set, and the model is not in the cache")]
    Offline,
    /// It cannot be reached, or the transfer failed.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// The repository does not exist, or is hidden from those who may not read it.
    #[error("{endpoint} has no repository {repo}, or shows it to its members only")]
    NoRepository {
        /// The hub.
        endpoint: String,
        /// `org/name`.
        repo: String,
    },
    /// The repository wants a login.
    #[error("{repo} is open only to those who were granted access")]
    Gated {
        /// `org/name`.
        repo: String,
    },
    /// The repository's answer is not what a hub answers.
    #[error("{endpoint} gave an answer that is no list of files: {what}")]
    Answer {
        /// The hub.
        endpoint: String,
        /// What is wrong with it.
        what: String,
    },
    /// The repository has no weights that are read here.
    #[error("{repo} has no {missing}")]
    Missing {
        /// `org/name`.
        repo: String,
        /// What it lacks.
        missing: String,
    },
}

impl HubError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Offline => Some("unset HF_HUB_OFFLINE, or give the path of a model directory"),
            Self::Download(_) => Some(
                "check the network and its proxy, or copy the model here and give its path to \
                 `--model`",
            ),
            Self::NoRepository { .. } | Self::Gated { .. } => {
                Some("ask for access on the model's page, then set HF_TOKEN to your token")
            }
            Self::Answer { .. } => Some("check HF_ENDPOINT"),
            Self::Missing { .. } => {
                Some("models are read from safetensors with a tokenizer.json, or from GGUF")
            }
        }
    }
}

/// The hub and its tools' cache.
pub(crate) struct Hub {
    endpoint: String,
    authorization: Option<String>,
    offline: bool,
    cache: Option<PathBuf>,
    agent: Agent,
}

impl Hub {
    pub(crate) fn from_env() -> Self {
        let home = path_var("HF_HOME").or_else(default_home);
        let cache = path_var("HF_HUB_CACHE")
            .or_else(|| path_var("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")));
        let token = text_var("HF_TOKEN").or_else(|| {
            let text = fs::read_to_string(home.as_ref()?.join("token")).ok()?;
            Some(text.trim().to_owned()).filter(|token| !token.is_empty())
        });
        let endpoint =
            text_var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let yes =
            |value: String| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            authorization: token.map(|token| format!("Bearer {token}")),
            offline: text_var("HF_HUB_OFFLINE").is_some_and(yes),
            cache,
            agent: download::agent(),
        }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A file that the hub's own tools have downloaded.
    pub(crate) fn cached_file(&self, repo: &str, revision: &str, file: &str) -> Option<PathBuf> {
        let path = self.cached_repo(repo)?.join("snapshots").join(revision);
        Some(path.join(file)).filter(|path| path.is_file())
    }

    /// A whole model that the hub's own tools have downloaded: the newest commit they know, or
    /// any that is complete.
    fn cached_snapshot(&self, repo: &str) -> Option<PathBuf> {
        let root = self.cached_repo(repo)?;
        let snapshots = root.join("snapshots");
        if let Ok(commit) = fs::read_to_string(root.join("refs").join("main")) {
            let newest = snapshots.join(commit.trim());
            if is_complete(&newest) {
                return Some(newest);
            }
        }
        let others = fs::read_dir(snapshots).ok()?;
        others
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| is_complete(path))
    }

    fn cached_repo(&self, repo: &str) -> Option<PathBuf> {
        let name = format!("models--{}", repo.replace('/', "--"));
        Some(self.cache.as_ref()?.join(name))
    }

    /// Downloads a file whose checksum is known.
    pub(crate) fn file(
        &self,
        repo: &str,
        revision: &str,
        file: &str,
        target: &Path,
        sha256: &str,
        progress: &dyn Progress,
    ) -> Result<(), HubError> {
        let wanted = Sibling {
            name: file.to_owned(),
            size: None,
            lfs: Some(Lfs {
                sha256: sha256.to_owned(),
            }),
        };
        self.download(repo, revision, &wanted, target, progress)
    }

    /// Downloads a file of a repository's newest commit.
    pub(crate) fn latest_file(
        &self,
        repo: &str,
        file: &str,
        target: &Path,
        progress: &dyn Progress,
    ) -> Result<PathBuf, HubError> {
        if let Some(root) = self.cached_repo(repo)
            && let Ok(commit) = fs::read_to_string(root.join("refs").join("main"))
            && let Some(path) = self.cached_file(repo, commit.trim(), file)
        {
            return Ok(path);
        }
        let listing = self.list(repo)?;
        let Some(sibling) = listing.siblings.iter().find(|s| s.name == file) else {
            return Err(HubError::Missing {
                repo: repo.to_owned(),
                missing: format!("file {file}"),
            });
        };
        self.download(repo, &listing.commit, sibling, target, progress)?;
        Ok(target.to_owned())
    }

    /// A directory with the whole model: from the cache of the hub's tools, from `root`, or
    /// downloaded to `root`.
    pub(crate) fn snapshot(
        &self,
        repo: &str,
        root: &Path,
        progress: &dyn Progress,
    ) -> Result<PathBuf, HubError> {
        if let Some(path) = self.cached_snapshot(repo) {
            return Ok(path);
        }
        // Written last, so that what it names is complete.
        let newest = root.join("main");
        if let Ok(commit) = fs::read_to_string(&newest)
            && is_complete(&root.join(commit.trim()))
        {
            return Ok(root.join(commit.trim()));
        }
        let listing = self.list(repo)?;
        let files = listing.model_files(repo)?;
        let directory = root.join(&listing.commit);
        fs::create_dir_all(&directory).map_err(|e| io_error(&directory, e))?;
        for file in files {
            let target = directory.join(&file.name);
            if !target.exists() {
                self.download(repo, &listing.commit, file, &target, progress)?;
            }
        }
        fs::write(&newest, &listing.commit).map_err(|e| io_error(&newest, e))?;
        Ok(directory)
    }

    fn list(&self, repo: &str) -> Result<Listing, HubError> {
        if self.offline {
            return Err(HubError::Offline);
        }
        let url = format!(
            "{}/api/models/{repo}/revision/main?blobs=true",
            self.endpoint
        );
        let mut request = self.agent.get(&url);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let mut response = request
            .call()
            .map_err(|e| DownloadError::from(Box::new(e)))?;
        match response.status().as_u16() {
            200 => {}
            status => return Err(self.refused(repo, status, url)),
        }
        let listing: Listing = response
            .body_mut()
            .read_json()
            .map_err(|error| self.bad_answer(error.to_string()))?;
        // Both become parts of paths on this machine.
        let names = listing.siblings.iter().map(|s| s.name.as_str());
        let is_commit =
            !listing.commit.is_empty() && listing.commit.bytes().all(|b| b.is_ascii_alphanumeric());
        if !is_commit || names.clone().any(str::is_empty) {
            return Err(self.bad_answer("a name in it is impossible".to_owned()));
        }
        Ok(listing)
    }

    fn download(
        &self,
        repo: &str,
        revision: &str,
        file: &Sibling,
        target: &Path,
        progress: &dyn Progress,
    ) -> Result<(), HubError> {
        if self.offline {
            return Err(HubError::Offline);
        }
        let url = format!("{}/{repo}/resolve/{revision}/{}", self.endpoint, file.name);
        let download = Download {
            url: &url,
            target,
            authorization: self.authorization.as_deref(),
            bytes: file.size,
            sha256: file.lfs.as_ref().map(|lfs| lfs.sha256.as_str()),
        };
        download.run(&self.agent, progress).map_err(|e| match e {
            DownloadError::Status { status, url } => self.refused(repo, status, url),
            other => other.into(),
        })
    }

    fn refused(&self, repo: &str, status: u16, url: String) -> HubError {
        match status {
            // The hub answers 401 for what does not exist, too.
            401 | 404 => HubError::NoRepository {
                endpoint: self.endpoint.clone(),
                repo: repo.to_owned(),
            },
            403 => HubError::Gated {
                repo: repo.to_owned(),
            },
            status => DownloadError::Status { status, url }.into(),
        }
    }

    fn bad_answer(&self, what: String) -> HubError {
        HubError::Answer {
            endpoint: self.endpoint.clone(),
            what,
        }
    }
}

/// A commit's files, as the hub lists them.
#[derive(Debug, Deserialize)]
struct Listing {
    #[serde(rename = "sha")]
    commit: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    #[serde(rename = "rfilename")]
    name: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: String,
}

impl Listing {
    /// The files that make up a model, in the order in which they are fetched: small ones first.
    fn model_files(&self, repo: &str) -> Result<Vec<&Sibling>, HubError> {
        let named = |name: &str| self.siblings.iter().find(|s| s.name == name);
        let missing = |what: &str| HubError::Missing {
            repo: repo.to_owned(),
            missing: what.to_owned(),
        };
        let mut files = vec![
            named("config.json").ok_or_else(|| missing("config.json"))?,
            named("tokenizer.json").ok_or_else(|| missing("tokenizer.json"))?,
        ];
        files.extend(OPTIONAL.iter().filter_map(|name| named(name)));
        if let Some(index) = named("model.safetensors.index.json") {
            files.push(index);
            files.extend(self.siblings.iter().filter(|s| is_part(&s.name)));
        } else {
            let weights = named("model.safetensors").ok_or_else(|| missing("safetensors"))?;
            files.push(weights);
        }
        Ok(files)
    }
}

const OPTIONAL: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// `model-00001-of-00003.safetensors`.
fn is_part(name: &str) -> bool {
    name.strip_prefix("model-")
        .and_then(|rest| rest.strip_suffix(".safetensors"))
        .is_some_and(|number| {
            number
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

/// Whether a directory holds a model with all its weights.
fn is_complete(directory: &Path) -> bool {
    let has = |name: &str| directory.join(name).is_file();
    let weights = has("model.safetensors")
        || parts(directory).is_some_and(|parts| parts.iter().all(|part| has(part)));
    has("config.json") && has("tokenizer.json") && weights
}

/// The files that a model's index names.
fn parts(directory: &Path) -> Option<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let text = fs::read_to_string(directory.join("model.safetensors.index.json")).ok()?;
    let index: Index = serde_json::from_str(&text).ok()?;
    Some(index.weight_map.into_values().collect())
}

fn default_home() -> Option<PathBuf> {
    let cache = path_var("XDG_CACHE_HOME").or_else(|| {
        let home = etcetera::home_dir().ok()?;
        Some(home.join(".cache"))
    })?;
    Some(cache.join("huggingface"))
}

fn path_var(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
}

fn text_var(name: &str) -> Option<String> {
    env::var(name).ok().filter(|v| !v.is_empty())
}

fn io_error(path: &Path, source: std::io::Error) -> HubError {
    DownloadError::Io {
        path: path.to_owned(),
        source,
    }
    .into()
}

#[cfg(test)]
mod tests;
