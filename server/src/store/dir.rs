//! Blobs as files named by their digest.
//!
//! A blob is written to `partial/`, checked, synced and renamed, so a file under its own name is
//! complete. Partial files stay: an interrupted upload goes on where it stopped, also after a
//! crash of the server.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fedllm_client::files::{create_private_folder, sync_folder};
use fedllm_shared::{BlobCheck, BlobError, BlobRef, ClientId, Digest, resume_offset};

use super::{BlobStore, StoreError};

/// A folder of blobs.
#[derive(Clone, Debug)]
pub(crate) struct DirBlobs {
    folder: PathBuf,
}

/// A blob that is still arriving.
#[derive(Debug)]
pub(crate) struct PartialBlob {
    blob: BlobRef,
    file: File,
    path: PathBuf,
    sealed: PathBuf,
    check: BlobCheck,
}

impl DirBlobs {
    /// Opens `folder`, making it if need be.
    pub(crate) fn open(folder: &Path) -> Result<Self, StoreError> {
        let partial = folder.join("partial");
        create_private_folder(&partial).map_err(|source| StoreError::file(&partial, source))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Whether the blob is here, complete.
    pub(crate) fn has(&self, blob: &BlobRef) -> bool {
        fs::metadata(self.path(blob.digest)).is_ok_and(|file| file.len() == blob.len)
    }

    /// Opens a complete blob for reading.
    pub(crate) fn read(&self, blob: &BlobRef) -> Result<File, StoreError> {
        let path = self.path(blob.digest);
        let file = File::open(&path).map_err(|source| StoreError::file(&path, source))?;
        let len = file
            .metadata()
            .map_err(|source| StoreError::file(&path, source))?
            .len();
        if len != blob.len {
            return Err(StoreError::Length {
                path,
                expected: blob.len,
                got: len,
            });
        }
        Ok(file)
    }

    /// Reads a small blob whole, checking its digest.
    pub(crate) fn load(&self, blob: &BlobRef) -> Result<Vec<u8>, StoreError> {
        let mut bytes = Vec::new();
        self.read(blob)?
            .read_to_end(&mut bytes)
            .map_err(|source| StoreError::file(&self.path(blob.digest), source))?;
        let mut check = BlobCheck::new(*blob);
        check.update(&bytes)?;
        check.finish()?;
        Ok(bytes)
    }

    /// Stores bytes of our own; they are durable when this returns.
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<BlobRef, StoreError> {
        let blob = BlobRef::of(bytes);
        if self.has(&blob) {
            return Ok(blob);
        }
        let path = self
            .folder
            .join("partial")
            .join(format!("own-{}", blob.digest));
        let mut file = File::create(&path).map_err(|source| StoreError::file(&path, source))?;
        file.write_all(bytes)
            .map_err(|source| StoreError::file(&path, source))?;
        seal(file, &path, &self.path(blob.digest))?;
        Ok(blob)
    }

    /// Begins or continues the upload of `blob` by `client`.
    pub(crate) fn resume(
        &self,
        client: ClientId,
        blob: BlobRef,
    ) -> Result<PartialBlob, StoreError> {
        let path = self.partial_path(client, blob.digest);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let open = || -> io::Result<_> {
            let mut file = options.open(&path)?;
            let check = check_prefix(&mut file, blob)?;
            Ok((file, check))
        };
        let (file, check) = open().map_err(|source| StoreError::file(&path, source))?;
        let sealed = self.path(blob.digest);
        Ok(PartialBlob {
            blob,
            file,
            path,
            sealed,
            check,
        })
    }

    /// Deletes a blob; one that is not here is no error.
    pub(crate) fn delete(&self, digest: Digest) -> Result<(), StoreError> {
        remove(&self.path(digest))
    }

    /// How many bytes of an upload are here, as far as it can be resumed.
    pub(crate) fn uploaded(&self, client: ClientId, blob: &BlobRef) -> u64 {
        match fs::metadata(self.partial_path(client, blob.digest)) {
            Ok(file) if file.len() <= blob.len => resume_offset(file.len()),
            _ => 0,
        }
    }

    /// Deletes every blob that `keep` does not name, and every upload by clients that are not in
    /// `uploading`.
    ///
    /// A crash between the commit of a round and the deletion of its updates leaves such files.
    pub(crate) fn sweep(
        &self,
        keep: &HashSet<Digest>,
        uploading: &HashSet<ClientId>,
    ) -> Result<usize, StoreError> {
        let sealed = self.remove_unless(&self.folder, |name| {
            name.parse().is_ok_and(|digest| keep.contains(&digest))
        })?;
        let partial = self.remove_unless(&self.folder.join("partial"), |name| {
            let client = name.split_once('-').map(|(client, _)| client.parse());
            matches!(client, Some(Ok(client)) if uploading.contains(&client))
        })?;
        Ok(sealed + partial)
    }

    fn remove_unless(
        &self,
        folder: &Path,
        keep: impl Fn(&str) -> bool,
    ) -> Result<usize, StoreError> {
        let mut removed = 0;
        let entries = fs::read_dir(folder).map_err(|e| StoreError::file(folder, e))?;
        for entry in entries {
            let path = entry
                .map_err(|source| StoreError::file(folder, source))?
                .path();
            let name = path.file_name().map(|name| name.to_string_lossy());
            if path.is_file() && !name.is_some_and(|name| keep(&name)) {
                remove(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    fn partial_path(&self, client: ClientId, digest: Digest) -> PathBuf {
        self.folder
            .join("partial")
            .join(format!("{client}-{digest}"))
    }
}

impl BlobStore for DirBlobs {
    type File = File;

    fn read(&self, blob: &BlobRef) -> Result<File, StoreError> {
        Self::read(self, blob)
    }

    fn load(&self, blob: &BlobRef) -> Result<Vec<u8>, StoreError> {
        Self::load(self, blob)
    }

    fn put(&self, bytes: &[u8]) -> Result<BlobRef, StoreError> {
        Self::put(self, bytes)
    }
}

impl PartialBlob {
    /// How many bytes are here already.
    pub(crate) fn offset(&self) -> u64 {
        self.blob.len - self.check.missing()
    }

    /// How many bytes are still to come.
    pub(crate) fn missing(&self) -> u64 {
        self.check.missing()
    }

    /// Appends the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.check.update(bytes)?;
        self.file
            .write_all(bytes)
            .map_err(|source| StoreError::file(&self.path, source))
    }

    /// Checks length and digest and makes the blob durable under its own name.
    ///
    /// A blob with another digest is deleted: nothing says which part of it is wrong.
    pub(crate) fn seal(self) -> Result<BlobRef, StoreError> {
        if let Err(error) = self.check.finish() {
            if let BlobError::Digest { .. } = error {
                remove(&self.path)?;
            }
            return Err(error.into());
        }
        seal(self.file, &self.path, &self.sealed)?;
        Ok(self.blob)
    }
}

fn seal(file: File, from: &Path, to: &Path) -> Result<(), StoreError> {
    file.sync_all()
        .map_err(|source| StoreError::sync(from, source))?;
    drop(file);
    fs::rename(from, to).map_err(|source| StoreError::file(to, source))?;
    let folder = to.parent().unwrap_or(Path::new("."));
    sync_folder(folder).map_err(|source| StoreError::sync(folder, source))
}

/// Hashes what is there, cut to whole chunks, and leaves the file at its end.
fn check_prefix(file: &mut File, blob: BlobRef) -> io::Result<BlobCheck> {
    let present = file.metadata()?.len();
    let offset = match present <= blob.len {
        true => resume_offset(present),
        false => 0,
    };
    if offset != present {
        file.set_len(offset)?;
    }
    file.seek(SeekFrom::Start(0))?;
    let mut check = BlobCheck::new(blob);
    let mut prefix = file.take(offset);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = prefix.read(&mut buffer)?;
        if count == 0 {
            return Ok(check);
        }
        check.update(&buffer[..count]).map_err(io::Error::other)?;
    }
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::file(path, source))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use fedllm_shared::CHUNK_BYTES;

    use super::*;

    const ALICE: ClientId = ClientId([1; 32]);
    const BOB: ClientId = ClientId([2; 32]);

    fn blobs() -> (tempfile::TempDir, DirBlobs) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = DirBlobs::open(folder.path()).unwrap();
        (folder, blobs)
    }

    fn sample(len: usize) -> (Vec<u8>, BlobRef) {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
        let blob = BlobRef::of(&bytes);
        (bytes, blob)
    }

    #[test]
    fn an_interrupted_upload_resumes_at_a_chunk() {
        let (_folder, blobs) = blobs();
        let (bytes, blob) = sample(2_500_000);
        let mut partial = blobs.resume(ALICE, blob).unwrap();
        partial.write(&bytes[..1_200_000]).unwrap();
        drop(partial);
        let other = blobs.resume(BOB, blob).unwrap();
        assert_eq!(other.offset(), 0);
        let mut partial = blobs.resume(ALICE, blob).unwrap();
        assert_eq!(partial.offset(), CHUNK_BYTES as u64);
        partial.write(&bytes[CHUNK_BYTES..]).unwrap();
        assert_eq!(partial.seal().unwrap(), blob);
        assert!(blobs.has(&blob));
        assert_eq!(blobs.load(&blob).unwrap(), bytes);
    }

    #[test]
    fn a_wrong_or_long_blob_never_gets_its_name() {
        let (_folder, blobs) = blobs();
        let (bytes, blob) = sample(1000);
        let mut partial = blobs.resume(ALICE, blob).unwrap();
        assert!(matches!(
            partial.write(&[0; 1001]),
            Err(StoreError::Blob(BlobError::TooLong { .. }))
        ));
        partial.write(&bytes[..500]).unwrap();
        partial.write(&[0; 500]).unwrap();
        assert!(matches!(
            partial.seal(),
            Err(StoreError::Blob(BlobError::Digest { .. }))
        ));
        assert!(!blobs.has(&blob));
        assert_eq!(blobs.resume(ALICE, blob).unwrap().offset(), 0);
        let short = blobs.resume(ALICE, blob).unwrap();
        assert!(matches!(
            short.seal(),
            Err(StoreError::Blob(BlobError::TooShort { .. }))
        ));
    }

    #[test]
    fn a_damaged_blob_is_not_loaded() {
        let (folder, blobs) = blobs();
        let blob = blobs.put(b"model").unwrap();
        assert_eq!(blobs.put(b"model").unwrap(), blob);
        fs::write(folder.path().join(blob.digest.to_string()), b"mode1").unwrap();
        assert!(matches!(
            blobs.load(&blob),
            Err(StoreError::Blob(BlobError::Digest { .. }))
        ));
        fs::write(folder.path().join(blob.digest.to_string()), b"mod").unwrap();
        assert!(matches!(blobs.load(&blob), Err(StoreError::Length { .. })));
        assert!(!blobs.has(&blob));
    }

    #[test]
    fn a_sweep_keeps_only_what_is_named() {
        let (_folder, blobs) = blobs();
        let kept = blobs.put(b"keep").unwrap();
        let dropped = blobs.put(b"drop").unwrap();
        let (bytes, partial) = sample(3 * CHUNK_BYTES);
        for client in [ALICE, BOB] {
            let mut upload = blobs.resume(client, partial).unwrap();
            upload.write(&bytes[..CHUNK_BYTES + 5]).unwrap();
        }
        let (keep, uploading) = (HashSet::from([kept.digest]), HashSet::from([BOB]));
        assert_eq!(blobs.sweep(&keep, &uploading).unwrap(), 2);
        assert!(blobs.has(&kept) && !blobs.has(&dropped));
        assert_eq!(blobs.uploaded(ALICE, &partial), 0);
        assert_eq!(blobs.uploaded(BOB, &partial), CHUNK_BYTES as u64);
        blobs.delete(dropped.digest).unwrap();
    }
}
