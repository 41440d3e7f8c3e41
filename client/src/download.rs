//! One file over HTTPS: resumed where it broke off, checked, and only then given its name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use ureq::Agent;
use ureq::http::StatusCode;

use crate::progress::Progress;

/// A broken transfer is taken up again this many times without a byte gained.
const ATTEMPTS: u32 = 5;

const BLOCK_BYTES: usize = 1 << 18;

/// Why a file could not be fetched.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The server cannot be reached, or the transfer broke off for good.
    #[error("{0}")]
    Network(#[from] Box<ureq::Error>),
    /// The server says no.
    #[error("the server answered {status} for {url}")]
    Status {
        /// Its answer.
        status: u16,
        /// What was asked for.
        url: String,
    },
    /// The file that arrived is another.
    #[error("the file's SHA-256 is {found} instead of {expected}")]
    Checksum {
        /// The right one.
        expected: String,
        /// That of the file that arrived.
        found: String,
    },
    /// The file that arrived has another length.
    #[error("the file has {found} bytes instead of {expected}")]
    Length {
        /// The right one.
        expected: u64,
        /// That of the file that arrived.
        found: u64,
    },
    /// The file cannot be written.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A file to fetch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Download<'a> {
    /// Where it is.
    pub(crate) url: &'a str,
    /// Where it shall lie.
    pub(crate) target: &'a Path,
    /// The value of the `Authorization` header; never sent on to another host.
    pub(crate) authorization: Option<&'a str>,
    /// Its length, if known.
    pub(crate) bytes: Option<u64>,
    /// Its SHA-256, if known.
    pub(crate) sha256: Option<&'a str>,
}

/// An HTTP client that gives up soon where nobody answers, and never while data flows.
pub(crate) fn agent() -> Agent {
    Agent::config_builder()
        .user_agent(concat!("fedllm/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .timeout_resolve(Some(Duration::from_secs(5)))
        .timeout_connect(Some(Duration::from_secs(5)))
        .timeout_recv_response(Some(Duration::from_secs(30)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .build()
        .new_agent()
}

impl Download<'_> {
    /// Fetches the file. What arrived stays in a file ending in `.incomplete` until all did.
    pub(crate) fn run(&self, agent: &Agent, progress: &dyn Progress) -> Result<(), DownloadError> {
        let name = self.target.file_name().unwrap_or_default();
        progress.begin(&name.to_string_lossy(), self.bytes.unwrap_or(0));
        let result = self.fetch(agent, progress);
        progress.end();
        result
    }

    fn fetch(&self, agent: &Agent, progress: &dyn Progress) -> Result<(), DownloadError> {
        let mut partial = Partial::open(self.target)?;
        let mut fruitless = 0;
        loop {
            let before = partial.received;
            let error = match self.attempt(agent, &mut partial, progress) {
                Ok(()) => return partial.complete(self),
                Err(error @ DownloadError::Network(_)) => error,
                Err(error) => return Err(error),
            };
            fruitless = if partial.received > before {
                0
            } else {
                fruitless + 1
            };
            // A server that never answered will not answer in a second either.
            if !partial.answered || fruitless >= ATTEMPTS {
                return Err(error);
            }
            tracing::info!("the transfer broke off ({error}) and is taken up again");
            std::thread::sleep(Duration::from_millis(250 << fruitless));
        }
    }

    /// Gets what is missing, or as much of it as comes before the transfer breaks off.
    fn attempt(
        &self,
        agent: &Agent,
        partial: &mut Partial,
        progress: &dyn Progress,
    ) -> Result<(), DownloadError> {
        let mut request = agent.get(self.url);
        if let Some(authorization) = self.authorization {
            request = request.header("Authorization", authorization);
        }
        if partial.bytes > 0 {
            request = request.header("Range", format!("bytes={}-", partial.bytes));
        }
        let response = request.call().map_err(Box::new)?;
        partial.answered = true;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, partial.bytes) => {}
            StatusCode::OK => partial.restart()?,
            // Everything is here already, or what is here is no part of the file.
            StatusCode::RANGE_NOT_SATISFIABLE if self.bytes == Some(partial.bytes) => return Ok(()),
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT => {
                partial.restart()?;
                return Err(broken_off("the server has another file now"));
            }
            status => {
                return Err(DownloadError::Status {
                    status: status.as_u16(),
                    url: self.url.to_owned(),
                });
            }
        }
        partial.receive(&mut response.into_body().into_reader(), progress)?;
        match self.bytes {
            Some(bytes) if partial.bytes < bytes => Err(broken_off("the connection was closed")),
            _ => Ok(()),
        }
    }
}

/// SHA-256 of a file, in hex.
pub(crate) fn file_sha256(path: &Path, progress: &mut dyn FnMut(u64)) -> io::Result<String> {
    let mut hasher = Sha256::new();
    copy_hashed(
        &mut File::open(path)?,
        &mut io::sink(),
        &mut hasher,
        progress,
    )?;
    Ok(HEXLOWER.encode(&hasher.finalize()))
}

/// Copies all of `from`, and hashes what passes.
pub(crate) fn copy_hashed(
    from: &mut dyn Read,
    to: &mut dyn Write,
    hasher: &mut Sha256,
    progress: &mut dyn FnMut(u64),
) -> io::Result<u64> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut done = 0;
    loop {
        let length = match from.read(&mut block) {
            Ok(0) => return Ok(done),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&block[..length]);
        to.write_all(&block[..length])?;
        done += length as u64;
        progress(done);
    }
}

/// The part of a file that is here. Locked, so that two downloads do not mix.
struct Partial {
    path: PathBuf,
    file: File,
    bytes: u64,
    hasher: Sha256,
    /// Whether the server answered, this time.
    answered: bool,
    /// How many bytes came, this time.
    received: u64,
}

impl Drop for Partial {
    /// Keeps what a later download can go on with, and nothing else.
    fn drop(&mut self) {
        if self.bytes == 0 {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Partial {
    fn open(target: &Path) -> Result<Self, DownloadError> {
        let mut name = target.file_name().unwrap_or_default().to_os_string();
        name.push(".incomplete");
        let path = target.with_file_name(name);
        let fail = |source| DownloadError::Io {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(fail)?;
        if file.try_lock().is_err() {
            tracing::info!("another program fetches {}; waiting", target.display());
            file.lock().map_err(fail)?;
        }
        let mut hasher = Sha256::new();
        let bytes =
            copy_hashed(&mut file, &mut io::sink(), &mut hasher, &mut |_| ()).map_err(fail)?;
        Ok(Self {
            path,
            file,
            bytes,
            hasher,
            answered: false,
            received: 0,
        })
    }

    fn restart(&mut self) -> Result<(), DownloadError> {
        self.hasher = Sha256::new();
        self.bytes = 0;
        let emptied = self
            .file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map(|_| ()).map_err(|source| self.error(source))
    }

    fn receive(
        &mut self,
        body: &mut dyn Read,
        progress: &dyn Progress,
    ) -> Result<(), DownloadError> {
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            progress.at(self.bytes);
            let length = match body.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(error) => return Err(Box::new(ureq::Error::from(error)).into()),
            };
            if let Err(source) = self.file.write_all(&block[..length]) {
                return Err(self.error(source));
            }
            self.hasher.update(&block[..length]);
            self.bytes += length as u64;
            self.received += length as u64;
        }
    }

    /// Checks the file and gives it its name. A wrong one is removed.
    fn complete(&self, download: &Download<'_>) -> Result<(), DownloadError> {
        if let Err(error) = self.check(download) {
            // It would only be resumed and be wrong again.
            let _ = fs::remove_file(&self.path);
            return Err(error);
        }
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.path, download.target))
            .map_err(|source| self.error(source))
    }

    fn check(&self, download: &Download<'_>) -> Result<(), DownloadError> {
        if let Some(expected) = download.bytes
            && expected != self.bytes
        {
            return Err(DownloadError::Length {
                expected,
                found: self.bytes,
            });
        }
        let found = HEXLOWER.encode(&self.hasher.clone().finalize());
        match download.sha256 {
            Some(expected) if expected != found => Err(DownloadError::Checksum {
                expected: expected.to_owned(),
                found,
            }),
            _ => Ok(()),
        }
    }

    fn error(&self, source: io::Error) -> DownloadError {
        DownloadError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

fn broken_off(why: &str) -> DownloadError {
    let error = io::Error::new(io::ErrorKind::UnexpectedEof, why);
    Box::new(ureq::Error::from(error)).into()
}

/// Whether a partial answer begins at byte `start`.
fn starts_at(response: &ureq::http::Response<ureq::Body>, start: u64) -> bool {
    response
        .headers()
        .get("content-range")
        .and_then(|range| range.to_str().ok()?.strip_prefix("bytes "))
        .and_then(|range| range.split('-').next()?.parse().ok())
        == Some(start)
}
