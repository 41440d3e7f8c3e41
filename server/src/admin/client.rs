//! The operator's side of the admin endpoint: one small HTTP request to loopback.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fedllm_client::files::write_secret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

const FILE: &str = "admin.json";
const TIMEOUT: Duration = Duration::from_secs(10);
/// Status of thousands of clients fits; anything longer is not our server.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// Where a running server listens for its operator, and the secret that proves one.
///
/// It is a file that only the server's owner can read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AdminAddress {
    pub(crate) address: SocketAddr,
    pub(crate) secret: String,
}

/// Why the running server could not be asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdminError {
    /// No server is running on this folder.
    #[error("no server is running on this folder")]
    NotRunning,
    /// The connection broke.
    #[error("asking the running server at {address}: {source}")]
    Connection {
        /// The admin endpoint.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The server refused.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The server's reason.
        message: String,
    },
    /// The answer is not what this version of the server says.
    #[error("the answer of {address} cannot be understood: {reason}")]
    Answer {
        /// The admin endpoint.
        address: SocketAddr,
        /// What is wrong with it.
        reason: String,
    },
}

impl AdminAddress {
    /// Stores the address for the operator's commands.
    pub(crate) fn save(&self, state: &Path) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        write_secret(&path(state), &text)
    }

    /// Reads the address that a server stored, if any.
    pub(crate) fn load(state: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(state)).ok()?).ok()
    }

    /// Removes the stored address when the server stops.
    pub(crate) fn clear(state: &Path) {
        // A leftover does no harm: its port is closed, and the record is free to be opened.
        let _ = fs::remove_file(path(state));
    }

    /// Whether the server that stored this is there. After a crash somebody else may have its port.
    pub(crate) fn is_ours(&self) -> bool {
        let answer: Result<String, _> = self.ask("GET", "/ping", None);
        answer.is_ok_and(|answer| answer == "fedllm")
    }

    /// Sends one request; the answer is JSON.
    pub(crate) fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        target: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<T, AdminError> {
        let answer = self.exchange(method, target, body)?;
        let (status, body) = parse(&answer).ok_or_else(|| self.answer("it is not HTTP"))?;
        if status != 200 {
            let message = String::from_utf8_lossy(body).trim().to_owned();
            return Err(AdminError::Refused { status, message });
        }
        serde_json::from_slice(body).map_err(|error| self.answer(error))
    }

    fn exchange(
        &self,
        method: &str,
        target: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Vec<u8>, AdminError> {
        let mut stream = match TcpStream::connect_timeout(&self.address, TIMEOUT) {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(AdminError::NotRunning);
            }
            Err(source) => return Err(self.connection(source)),
        };
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            self.secret,
            body.len(),
        );
        let mut answer = Vec::new();
        let mut exchange = || -> io::Result<()> {
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            stream.write_all(request.as_bytes())?;
            stream
                .try_clone()?
                .take(MAX_ANSWER_BYTES)
                .read_to_end(&mut answer)?;
            Ok(())
        };
        exchange().map_err(|source| self.connection(source))?;
        Ok(answer)
    }

    fn connection(&self, source: io::Error) -> AdminError {
        AdminError::Connection {
            address: self.address,
            source,
        }
    }

    fn answer(&self, reason: impl ToString) -> AdminError {
        AdminError::Answer {
            address: self.address,
            reason: reason.to_string(),
        }
    }
}

fn path(state: &Path) -> PathBuf {
    state.join(FILE)
}

/// Splits an answer into status and body. The server always sends a length and closes.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, &answer[end + 4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_split_or_refused() {
        let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno";
        assert_eq!(parse(answer), Some((403, b"no".as_slice())));
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(parse(b"SSH-2.0\r\n\r\n"), None);
    }

    #[test]
    fn a_stale_address_means_that_no_server_runs() {
        let folder = tempfile::tempdir().unwrap();
        assert!(AdminAddress::load(folder.path()).is_none());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let stale = AdminAddress {
            address,
            secret: "s".into(),
        };
        stale.save(folder.path()).unwrap();
        let loaded = AdminAddress::load(folder.path()).unwrap();
        assert!(matches!(
            loaded.ask::<serde_json::Value>("GET", "/status", None),
            Err(AdminError::NotRunning)
        ));
        AdminAddress::clear(folder.path());
        assert!(AdminAddress::load(folder.path()).is_none());
    }
}
