//! A federation's folder: its settings, its authority, its record.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fedllm_client::files::{create_private_folder, write_durable};
use fedllm_shared::{ConfigError, Federation};
use thiserror::Error;

use crate::evaluate::find_tasks;
use crate::pki::{Authority, PkiError};

const CONFIG: &str = "federation.toml";

/// Why a federation's folder cannot be made or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FolderError {
    /// There is a federation in it already.
    #[error("{0} has a federation already")]
    Exists(PathBuf),
    /// There is no federation in it.
    #[error("{0} is no federation's folder: it has no federation.toml")]
    NoFederation(PathBuf),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The settings are wrong.
    #[error("{path}: {source}")]
    Config {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and where.
        source: ConfigError,
    },
    /// A setting that was asked for does not exist.
    #[error("{0:?} is no setting; write section.key=value, as in rounds.count=20")]
    Setting(String),
    /// The authority could not be made or read.
    #[error(transparent)]
    Authority(#[from] PkiError),
}

/// What a new federation starts with; everything else has its default.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// What clients are told it is called.
    pub name: Option<String>,
    /// Where the server listens.
    pub listen: Option<String>,
    /// The host and port that clients connect to.
    pub public: Option<String>,
    /// The base model: a name, or a directory or file that exists.
    pub model: Option<String>,
    /// Rounds of the run.
    pub rounds: Option<u64>,
    /// Other settings, each `section.key=value`.
    pub set: Vec<String>,
}

/// A federation's folder.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    federation: Federation,
}

impl Folder {
    /// Makes a federation in `path`.
    ///
    /// # Errors
    ///
    /// [`FolderError::Exists`] if there is one; nothing is changed then. Wrong settings are found
    /// before anything is written.
    pub fn init(path: &Path, options: &InitOptions) -> Result<Self, FolderError> {
        let config = path.join(CONFIG);
        if config.exists() {
            return Err(FolderError::Exists(path.to_owned()));
        }
        let text = settings(options)?;
        let federation = parse(&config, &text)?;
        create_private_folder(path).map_err(|source| file_error(path, source))?;
        let folder = Self {
            path: path.to_owned(),
            federation,
        };
        let (name, hosts) = (&folder.federation.name, folder.hosts());
        Authority::create(&folder.authority_folder(), name, &hosts)?;
        // Last, so that a folder with settings is complete.
        write_durable(&config, text.as_bytes()).map_err(|source| file_error(&config, source))?;
        Ok(folder)
    }

    /// Opens the federation in `path`.
    ///
    /// # Errors
    ///
    /// [`FolderError::NoFederation`], or what is wrong with its settings.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let config = path.join(CONFIG);
        let text = match fs::read_to_string(&config) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FolderError::NoFederation(path.to_owned()));
            }
            Err(source) => return Err(file_error(&config, source)),
        };
        Ok(Self {
            path: path.to_owned(),
            federation: parse(&config, &text)?,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file with the settings.
    pub fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// The settings.
    pub fn federation(&self) -> &Federation {
        &self.federation
    }

    /// The federation's authority.
    pub(crate) fn authority(&self) -> Result<Authority, PkiError> {
        Authority::open(&self.authority_folder())
    }

    /// Where the record, the blobs and the endpoint's keys are; made if need be.
    pub(crate) fn state(&self) -> PathBuf {
        let state = self.path.join("state");
        // Whoever opens a file in it reports a failure better than we could here.
        let _ = create_private_folder(&state);
        state
    }

    /// The hosts that the server's certificate must name.
    pub(crate) fn hosts(&self) -> Vec<String> {
        let address = &self.federation.server.address;
        let host = address
            .rsplit_once(':')
            .map_or(address.as_str(), |(host, _)| host);
        vec![host.trim_matches(['[', ']']).to_owned()]
    }

    fn authority_folder(&self) -> PathBuf {
        self.path.join("authority")
    }
}

fn parse(path: &Path, text: &str) -> Result<Federation, FolderError> {
    let wrong = |source| FolderError::Config {
        path: path.to_owned(),
        source,
    };
    let federation = Federation::parse(text).map_err(wrong)?;
    find_tasks(&federation.evaluation.tasks.names)
        .map_err(|problem| wrong(Federation::error(text, "evaluation.tasks", &problem)))?;
    Ok(federation)
}

/// The commented default settings, with what `options` say.
fn settings(options: &InitOptions) -> Result<String, FolderError> {
    let mut text = Federation::default_toml().to_owned();
    if let Some(name) = &options.name {
        set(&mut text, "federation.name", name)?;
    }
    if let Some(listen) = &options.listen {
        set(&mut text, "server.listen", listen)?;
    }
    match (&options.public, &options.listen) {
        (Some(public), _) => set(&mut text, "server.address", public)?,
        (None, Some(listen)) => {
            let port = listen.rsplit_once(':').map_or("", |(_, port)| port);
            // Port 0 is chosen by the system when the server starts.
            if port != "0" {
                set(&mut text, "server.address", &format!("localhost:{port}"))?;
            }
        }
        (None, None) => {}
    }
    if let Some(rounds) = options.rounds {
        set(&mut text, "rounds.count", &rounds.to_string())?;
    }
    if let Some(model) = &options.model {
        match fs::canonicalize(model) {
            Ok(path) => {
                comment_out(&mut text, "model.name")?;
                set(&mut text, "model.path", &path.to_string_lossy())?;
            }
            Err(_) => set(&mut text, "model.name", model)?,
        }
    }
    for setting in &options.set {
        let unknown = || FolderError::Setting(setting.clone());
        let (key, value) = setting.split_once('=').ok_or_else(unknown)?;
        set(&mut text, key.trim(), value.trim())?;
    }
    Ok(text)
}

/// Changes the value of `section.key`, quoted as the default file quotes it.
fn set(text: &mut String, path: &str, value: &str) -> Result<(), FolderError> {
    edit(text, path, |key, old| {
        let value = match old.starts_with('"') && !value.starts_with('"') {
            // JSON's escapes are TOML's.
            true => serde_json::Value::from(value).to_string(),
            false => value.to_owned(),
        };
        format!("{key} = {value}")
    })
}

fn comment_out(text: &mut String, path: &str) -> Result<(), FolderError> {
    edit(text, path, |key, old| format!("# {key} = {old}"))
}

/// Rewrites the line of `section.key`, which may be commented out.
fn edit(
    text: &mut String,
    path: &str,
    line_for: impl FnOnce(&str, &str) -> String,
) -> Result<(), FolderError> {
    let unknown = || FolderError::Setting(path.to_owned());
    let (section, key) = path.split_once('.').ok_or_else(unknown)?;
    let header = format!("[{section}]");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let start = lines
        .iter()
        .position(|line| *line == header)
        .ok_or_else(unknown)?;
    let line = lines[start + 1..]
        .iter_mut()
        .take_while(|line| !line.starts_with('['))
        .find(|line| {
            let name = line.trim_start_matches("# ").split_once(" = ");
            name.is_some_and(|(name, _)| name == key)
        })
        .ok_or_else(unknown)?;
    let old = line.split_once(" = ").map_or("", |(_, old)| old);
    *line = line_for(key, old);
    *text = lines.join("\n") + "\n";
    Ok(())
}

fn file_error(path: &Path, source: io::Error) -> FolderError {
    FolderError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use fedllm_shared::ModelSource;

    use super::*;

    #[test]
    fn a_new_federation_has_what_was_asked_for_and_keeps_the_comments() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("clinic");
        let options = InitOptions {
            name: Some("three \"clinics\"".into()),
            listen: Some("127.0.0.1:0".into()),
            public: Some("fl.example.org:7000".into()),
            model: Some("smollm2-360m".into()),
            rounds: Some(3),
            set: vec!["wire.codec=int8".into(), "wire.max_norm=2.5".into()],
        };
        Folder::init(&path, &options).unwrap();
        let folder = Folder::open(&path).unwrap();
        let federation = folder.federation();
        assert_eq!(federation.name, "three \"clinics\"");
        assert_eq!(federation.rounds.count, 3);
        assert_eq!(federation.server.listen.port(), 0);
        assert_eq!(federation.wire.max_norm, Some(2.5));
        let source = ModelSource::Name("smollm2-360m".into());
        assert_eq!(federation.model.source, source);
        assert_eq!(folder.hosts(), ["fl.example.org"]);
        let text = fs::read_to_string(folder.config_path()).unwrap();
        assert!(text.contains("# How many rounds the run has.\ncount = 3\n"));
        assert!(folder.authority().is_ok());
        assert!(matches!(
            Folder::init(&path, &options),
            Err(FolderError::Exists(_))
        ));
    }

    #[test]
    fn a_model_that_exists_is_a_path() {
        let parent = tempfile::tempdir().unwrap();
        let options = InitOptions {
            model: Some(parent.path().to_string_lossy().into_owned()),
            ..InitOptions::default()
        };
        let folder = Folder::init(&parent.path().join("f"), &options).unwrap();
        let path = fs::canonicalize(parent.path()).unwrap();
        let source = ModelSource::Path(path.to_string_lossy().into_owned());
        assert_eq!(folder.federation().model.source, source);
    }

    #[test]
    fn wrong_settings_leave_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("f");
        for setting in ["rounds.count", "rounds.cuont=3", "count=3", "round.count=3"] {
            let options = InitOptions {
                set: vec![setting.into()],
                ..InitOptions::default()
            };
            let refused = Folder::init(&path, &options);
            assert!(matches!(refused, Err(FolderError::Setting(_))), "{setting}");
        }
        let options = InitOptions {
            rounds: Some(0),
            ..InitOptions::default()
        };
        assert!(matches!(
            Folder::init(&path, &options),
            Err(FolderError::Config { .. })
        ));
        assert!(!path.exists());
        assert!(matches!(
            Folder::open(&path),
            Err(FolderError::NoFederation(_))
        ));
    }
}
