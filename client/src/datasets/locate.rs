//! Finds the files of a data set on this machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fedllm_shared::{Files, Split};

use super::{Dataset, DatasetError};

/// How many directories below the given one are searched.
const DEPTH: usize = 5;

/// The files of a split in a place, or in the cache of the hub's tools.
pub(super) fn files(
    dataset: &Dataset,
    place: Option<&Path>,
    split: &'static Split,
) -> Result<Vec<PathBuf>, DatasetError> {
    let files = find_files(dataset.hub, &split.files, place);
    match files.is_empty() {
        false => Ok(files),
        true => Err(DatasetError::NotFound {
            dataset: dataset.name,
            split: split.name,
            place: match place {
                Some(place) => place.display().to_string(),
                None => "the Hugging Face cache".to_owned(),
            },
            wanted: split.files.to_string(),
            hub: dataset.hub,
        }),
    }
}

/// The files that `files` describes, in order; none if they are not there.
///
/// `place` is a file, which is taken as it is, or a directory with the hub's layout or with the files
/// alone; without it the cache of the hub's own tools is searched for the repositories `hub`.
pub fn find_files(hub: &[&str], files: &Files, place: Option<&Path>) -> Vec<PathBuf> {
    if let Some(file) = place.filter(|place| !place.is_dir()) {
        return vec![file.to_owned()]; // If it is not there, opening it says so.
    }
    let roots = match place {
        Some(directory) => vec![directory.to_owned()],
        None => snapshots(hub, fedllm_models::hub_cache().as_deref()),
    };
    let found: Vec<Vec<PathBuf>> = roots.iter().map(|root| find(root, files)).collect();
    let mut found = found.into_iter().filter(|files| !files.is_empty());
    match files {
        Files::FirstOf(_) => found.next().unwrap_or_default(),
        Files::AnyOf(_) => found.flatten().collect(),
    }
}

/// The newest known snapshot of each repository in a hub cache.
fn snapshots(hub: &[&str], cache: Option<&Path>) -> Vec<PathBuf> {
    let Some(cache) = cache else {
        return Vec::new();
    };
    let snapshot = |repository: &&str| {
        let root = cache.join(format!("datasets--{}", repository.replace('/', "--")));
        let snapshots = root.join("snapshots");
        let newest = fs::read_to_string(root.join("refs").join("main"))
            .map(|commit| snapshots.join(commit.trim()))
            .ok()
            .filter(|newest| newest.is_dir());
        newest.or_else(|| {
            let any = fs::read_dir(snapshots).ok()?;
            any.filter_map(|entry| Some(entry.ok()?.path())).min()
        })
    };
    hub.iter().filter_map(snapshot).collect()
}

/// The files below `root` that the patterns ask for, in the order of the patterns, then of paths.
fn find(root: &Path, files: &Files) -> Vec<PathBuf> {
    let mut paths = BTreeSet::new();
    list(root, "", DEPTH, &mut paths);
    let matching = |pattern: &str| -> Vec<PathBuf> {
        let matching = paths.iter().filter(|path| matches(pattern, path));
        matching.map(|path| root.join(path)).collect()
    };
    match files {
        Files::AnyOf(patterns) => {
            let mut found: Vec<PathBuf> = patterns.iter().flat_map(|p| matching(p)).collect();
            let mut seen = BTreeSet::new();
            found.retain(|path| seen.insert(path.clone()));
            found
        }
        Files::FirstOf(lists) => lists
            .iter()
            .map(|list| list.iter().map(|p| matching(p)).collect::<Vec<_>>())
            .find(|found| found.iter().all(|files| !files.is_empty()))
            .unwrap_or_default()
            .concat(),
    }
}

/// Paths of the files below a directory, relative to the root, with `/` between names.
fn list(directory: &Path, prefix: &str, depth: usize, paths: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
            continue;
        };
        let path = entry.path(); // Files of a hub cache are links, so that they are followed.
        if path.is_dir() {
            if depth > 0 {
                list(&path, &format!("{prefix}{name}/"), depth - 1, paths);
            }
        } else {
            paths.insert(format!("{prefix}{name}"));
        }
    }
}

/// Whether a path fits a pattern: `*` is any part of a name, `**/` any directories.
fn matches(pattern: &str, path: &str) -> bool {
    if let Some(rest) = pattern.strip_prefix("**/") {
        let below = path.match_indices('/').map(|(at, _)| &path[at + 1..]);
        return std::iter::once(path)
            .chain(below)
            .any(|path| matches(rest, path));
    }
    match pattern.split_once('*') {
        None => pattern == path,
        Some((start, rest)) => path.strip_prefix(start).is_some_and(|path| {
            let name = path.split_once('/').map_or(path, |(name, _)| name);
            name.char_indices()
                .map(|(at, _)| at)
                .chain([name.len()])
                .any(|at| matches(rest, &path[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datasets::dataset;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{}").unwrap();
        }
        dir
    }

    fn located(dataset: &str, dir: &Path, split: Option<&str>) -> Result<Vec<String>, String> {
        let files = super::super::dataset(dataset)
            .unwrap()
            .locate(Some(dir), split)
            .map_err(|error| error.to_string())?;
        let relative = |path: PathBuf| {
            let path = path.strip_prefix(dir).unwrap();
            path.to_str().unwrap().replace('\\', "/")
        };
        Ok(files.into_iter().map(relative).collect())
    }

    #[test]
    fn patterns_match_names_and_directories() {
        for (pattern, path, expected) in [
            ("a.json", "a.json", true),
            ("a.json", "b/a.json", false),
            ("**/a.json", "a.json", true),
            ("**/a.json", "b/c/a.json", true),
            ("**/a.json", "ba.json", false),
            (
                "data/train-*.parquet",
                "data/train-00000-of-00001.parquet",
                true,
            ),
            ("data/train-*.parquet", "data/x/train-0.parquet", false),
            ("data/train-*.parquet", "data/train-/0.parquet", false),
            ("*-base/*.gz", "harmless-base/train.jsonl.gz", true),
            ("*", "é", true),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn layouts_of_the_hub_and_files_alone_are_found() {
        let parquet = "train-00000-of-00001-a09b74b3ef9c3b56.parquet";
        let dir = tree(&[&format!("data/{parquet}"), "data/test-0.parquet"]);
        assert_eq!(
            located("tatsu-lab/alpaca", dir.path(), None),
            Ok(vec![format!("data/{parquet}")])
        );
        let dir = tree(&["main/train-0.parquet", "socratic/train-0.parquet"]);
        assert_eq!(
            located("gsm8k", dir.path(), None),
            Ok(vec!["main/train-0.parquet".to_owned()])
        );
        let dir = tree(&["train.jsonl", "test.jsonl"]);
        assert_eq!(
            located("openai/gsm8k", dir.path(), Some("test")),
            Ok(vec!["test.jsonl".to_owned()])
        );
        let error = located("gsm8k", dir.path(), Some("dev")).unwrap_err();
        assert_eq!(error, "gsm8k has no split `dev`, but train, test");
        let error = located("ultrafeedback-binarized", dir.path(), None).unwrap_err();
        assert!(
            error.contains("no files of the split `train_prefs`")
                && error.contains("train_prefs-*.parquet"),
            "{error}"
        );
    }

    #[test]
    fn splits_of_parts_want_all_of_them_or_any() {
        let all = [
            "harmless-base",
            "helpful-base",
            "helpful-online",
            "helpful-rejection-sampled",
        ];
        let all = all.map(|part| format!("{part}/train.jsonl.gz"));
        let dir = tree(&all.each_ref().map(String::as_str));
        assert_eq!(located("hh-rlhf", dir.path(), None), Ok(all.to_vec()));
        fs::remove_file(dir.path().join(&all[1])).unwrap();
        assert!(
            located("hh-rlhf", dir.path(), None).is_err(),
            "a part is missing"
        );
        assert_eq!(
            located("hh-rlhf", dir.path(), Some("harmless-base")),
            Ok(vec![all[0].clone()])
        );

        let dir = tree(&[
            "fiqa/task1_post_ABSA_train.json",
            "fiqa/task1_post_ABSA_test.json",
            "fpb/all-data.csv",
            "tfns/sent_train.csv",
            "README.md",
        ]);
        assert_eq!(
            located("finance-sentiment", dir.path(), None),
            Ok(vec![
                "fpb/all-data.csv".to_owned(),
                "fiqa/task1_post_ABSA_train.json".to_owned(),
                "tfns/sent_train.csv".to_owned(),
            ])
        );
    }

    #[test]
    fn the_cache_of_the_hub_is_searched() {
        let file = "snapshots/abc/data/train-0.parquet";
        let dir = tree(&[
            &format!("datasets--vicgalle--alpaca-gpt4/{file}"),
            "datasets--vicgalle--alpaca-gpt4/refs/main",
        ]);
        let root = dir.path().join("datasets--vicgalle--alpaca-gpt4");
        fs::write(root.join("refs/main"), "abc\n").unwrap();
        let dataset = dataset("alpaca-gpt4").unwrap();
        assert_eq!(
            snapshots(dataset.hub, Some(dir.path())),
            [root.join("snapshots/abc")]
        );
        fs::write(root.join("refs/main"), "gone").unwrap();
        assert_eq!(
            snapshots(dataset.hub, Some(dir.path())),
            [root.join("snapshots/abc")]
        );
        assert!(snapshots(dataset.hub, None).is_empty());
    }

    #[test]
    fn a_file_is_taken_as_it_is() {
        let dataset = dataset("alpaca").unwrap();
        let file = Path::new("anything.json");
        assert_eq!(dataset.locate(Some(file), None).unwrap(), [file]);
    }
}
