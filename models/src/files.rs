//! Files that are always whole: written beside their place and renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Puts a file of these bytes at `path`. Two programs that do so at once do not mix: one wins.
///
/// # Errors
///
/// What writing reports; an earlier file is then still there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Some(name) = path.file_name() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut draft = name.to_owned();
    draft.push(format!(".{}.partial", std::process::id()));
    let draft = path.with_file_name(draft);
    let written = File::create(&draft)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&draft, path));
    written.inspect_err(|_| {
        // The first error is the one to report; the leftover is only untidy.
        let _ = fs::remove_file(&draft);
    })
}

/// What a cache file holds. One that cannot be read counts as empty: what it held is found again.
pub(crate) fn read_cache<T: DeserializeOwned + Default>(path: &Path) -> T {
    fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

/// Replaces a cache file, and makes its directory.
///
/// # Errors
///
/// What writing reports.
pub(crate) fn write_cache(path: &Path, value: &impl Serialize) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    replace(path, &serde_json::to_vec_pretty(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        replace(&path, b"first").unwrap();
        replace(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        // A directory in its place cannot be replaced, and no draft is left.
        let taken = directory.path().join("taken");
        fs::create_dir_all(taken.join("inner")).unwrap();
        replace(&taken, b"third").unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        assert!(taken.join("inner").is_dir());
    }

    #[test]
    fn a_cache_that_cannot_be_read_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new").join("cache.json");
        assert!(read_cache::<Vec<u32>>(&path).is_empty());
        write_cache(&path, &[1, 2]).unwrap();
        assert_eq!(read_cache::<Vec<u32>>(&path), [1, 2]);
        fs::write(&path, "[1, 2").unwrap();
        assert!(read_cache::<Vec<u32>>(&path).is_empty());
    }
}
