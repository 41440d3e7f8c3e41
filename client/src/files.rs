//! Small files written so that a crash leaves either the old one or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Whoever the system lets.
    Default,
    /// Its owner alone (mode 0600 on Unix; the profile's own rights on Windows).
    Owner,
}

/// Writes `bytes` to `path`: temporary file, fsync, rename, fsync of the folder.
pub(crate) fn write_durable(path: &Path, bytes: &[u8], readers: Readers) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut temporary = name.to_owned();
    temporary.push(".tmp");
    let temporary = folder.join(temporary);
    let written = write_new(&temporary, bytes, readers).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The error that matters is the first one; on a full disk the space comes back.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_folder(folder)
}

/// Makes the entries of `folder` durable. Other systems than Unix cannot sync a folder.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Creates `folder` and its parents, open to the owner alone on Unix.
pub(crate) fn create_private_folder(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(folder)
}

fn write_new(path: &Path, bytes: &[u8], readers: Readers) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    if readers == Readers::Owner {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    #[cfg(not(unix))]
    let _ = readers;
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_and_keeps_secrets_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        write_durable(&path, b"first, and longer", Readers::Owner).unwrap();
        write_durable(&path, b"second", Readers::Owner).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}
