//! Where the Hugging Face libraries keep what they downloaded.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The directory of the Hugging Face hub cache.
///
/// `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE`, else `hub` in `HF_HOME`, else
/// `huggingface/hub` in `XDG_CACHE_HOME`, else in `.cache` of the home directory.
pub fn hub_cache() -> Option<PathBuf> {
    let var = |name| {
        env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    var("HF_HUB_CACHE")
        .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(var("HF_HOME")?.join("hub")))
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("huggingface").join("hub")))
        .or_else(|| {
            let home = var("HOME").or_else(|| var("USERPROFILE"))?;
            Some(home.join(".cache").join("huggingface").join("hub"))
        })
}

/// The cached snapshot of `org/name` at `revision`, if it is there.
pub fn hub_snapshot(repository: &str, revision: &str) -> Option<PathBuf> {
    let (organisation, name) = repository.split_once('/')?;
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    if !plain(organisation) || !plain(name) {
        return None;
    }
    let directory = format!("models--{organisation}--{name}");
    snapshot_in(&hub_cache()?.join(directory), revision)
}

/// The snapshot of `revision` inside a `models--org--name` directory.
pub(super) fn snapshot_in(model: &Path, revision: &str) -> Option<PathBuf> {
    let commit = fs::read_to_string(model.join("refs").join(revision));
    let commit = commit.as_deref().map_or(revision, str::trim);
    let snapshot = model.join("snapshots").join(commit);
    snapshot.join("config.json").is_file().then_some(snapshot)
}

/// `org/name`, if `path` is a snapshot in a hub cache.
pub(super) fn repository_of(path: &Path) -> Option<String> {
    let snapshots = path.parent()?;
    let model = snapshots.parent()?.file_name()?.to_str()?;
    if snapshots.file_name()? != "snapshots" {
        return None;
    }
    Some(model.strip_prefix("models--")?.replacen("--", "/", 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_know_their_repository() {
        let path = Path::new("/c/hub/models--HuggingFaceTB--SmolLM2-135M/snapshots/abc");
        assert_eq!(
            repository_of(path).as_deref(),
            Some("HuggingFaceTB/SmolLM2-135M")
        );
        assert_eq!(repository_of(Path::new("/models/SmolLM2")), None);
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        assert_eq!(hub_snapshot("../../etc", "main"), None);
        assert_eq!(hub_snapshot("a/b/c", "main"), None);
        assert_eq!(hub_snapshot("model", "main"), None);
    }
}
