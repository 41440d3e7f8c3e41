//! Files written so that a crash leaves either the old one or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Writes `bytes` to `path`: temporary file, fsync, rename, fsync of the folder.
///
/// # Errors
///
/// What the system says; then the old file is untouched, and the temporary one is gone.
pub fn write_durable(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, Care::Durable)
}

/// Like [`write_durable`], readable by the owner alone (mode 0600 on Unix; the profile's own rights
/// on Windows).
///
/// # Errors
///
/// Those of [`write_durable`].
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, Care::Secret)
}

/// Like [`write_durable`], but without waiting for the disk: the file is the old one or the new one
/// however this program ends, but not after a power cut.
///
/// # Errors
///
/// Those of [`write_durable`].
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, bytes, Care::Whole)
}

/// Makes the entries of `folder` durable. Other systems than Unix cannot sync a folder.
///
/// # Errors
///
/// What the system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Creates `folder` and its parents, open to the owner alone on Unix.
///
/// # Errors
///
/// What the system says.
pub fn create_private_folder(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(folder)
}

/// What a file must survive, and who may read it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    Whole,
    Durable,
    Secret,
}

fn replace(path: &Path, bytes: &[u8], care: Care) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut temporary = name.to_owned();
    temporary.push(".tmp");
    let temporary = folder.join(temporary);
    let written = write_new(&temporary, bytes, care).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // The error that matters is the first one; on a full disk the space comes back.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    match care {
        Care::Whole => Ok(()),
        Care::Durable | Care::Secret => sync_folder(folder),
    }
}

fn write_new(path: &Path, bytes: &[u8], care: Care) -> io::Result<()> {
    // A leftover of a crash may have other permissions: start from a new file.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if care == Care::Secret {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    match care {
        Care::Whole => Ok(()),
        Care::Durable | Care::Secret => file.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_private_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        // What a crash left, readable by everyone.
        fs::write(folder.path().join("key.pem.tmp"), b"half a k").unwrap();
        write_secret(&path, b"first, and longer").unwrap();
        write_secret(&path, b"second").unwrap();
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
