//! The hub against a small server of our own, with every way of breaking off.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use data_encoding::HEXLOWER;
use sha2::Digest as _;

use super::*;
use crate::progress::Silent;

/// A web server of a few files.
struct Site {
    files: HashMap<String, Vec<u8>>,
    /// Break the connection after this many bytes of a body; 0 never.
    break_after: AtomicU64,
    /// Whether ranges are honoured.
    ranges: bool,
    requests: Mutex<Vec<String>>,
}

impl Site {
    fn start(
        files: HashMap<String, Vec<u8>>,
        break_after: u64,
        ranges: bool,
    ) -> (Arc<Self>, String) {
        let site = Arc::new(Self {
            files,
            break_after: AtomicU64::new(break_after),
            ranges,
            requests: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = Arc::clone(&site);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is none of the server's troubles.
                let _ = server.answer(stream.unwrap());
            }
        });
        (site, endpoint)
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().unwrap_or(Ok(String::new()))?;
        let mut start = 0;
        let mut login = String::new();
        for line in lines {
            let line = line?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(range) = line.strip_prefix("range: bytes=") {
                start = range.trim_end_matches('-').parse().unwrap_or(0);
            }
            if line.starts_with("authorization:") {
                login = line;
            }
        }
        let path = request.split(' ').nth(1).unwrap_or("").to_owned();
        self.requests
            .lock()
            .unwrap()
            .push(format!("{path} from {start} {login}"));
        let Some(file) = self.files.get(&path) else {
            return stream
                .write_all(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        };
        let (status, body) = match self.ranges && start > 0 {
            true => (
                format!(
                    "206 Part\r\ncontent-range: bytes {start}-{}/{}",
                    file.len() - 1,
                    file.len()
                ),
                &file[start..],
            ),
            false => ("200 OK".to_owned(), &file[..]),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        let limit = self.break_after.swap(0, Ordering::SeqCst) as usize;
        match limit {
            0 => stream.write_all(body),
            limit => stream.write_all(&body[..limit.min(body.len())]),
        }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn hub(endpoint: &str, cache: Option<&Path>) -> Hub {
    Hub {
        endpoint: endpoint.to_owned(),
        authorization: Some("Bearer hf_token".to_owned()),
        offline: false,
        cache: cache.map(Path::to_owned),
        agent: download::agent(),
    }
}

fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(&sha2::Sha256::digest(bytes))
}

fn weights() -> Vec<u8> {
    (0..100_000u32).flat_map(u32::to_le_bytes).collect()
}

const FILE: &str = "/org/name/resolve/c0ffee/model.gguf";

#[test]
fn a_broken_transfer_goes_on_where_it_broke_off() {
    for ranges in [true, false] {
        let files = HashMap::from([(FILE.to_owned(), weights())]);
        let (site, endpoint) = Site::start(files, 150_000, ranges);
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model.gguf");
        hub(&endpoint, None)
            .file(
                "org/name",
                "c0ffee",
                "model.gguf",
                &target,
                &sha256(&weights()),
                &Silent,
            )
            .unwrap();
        assert_eq!(fs::read(&target).unwrap(), weights());
        let requests = site.requests();
        assert_eq!(requests.len(), 2);
        assert_eq!(
            requests[1],
            format!("{FILE} from 150000 authorization: bearer hf_token")
        );
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no part is left"
        );
    }
}

#[test]
fn another_file_is_refused_and_not_kept() {
    let files = HashMap::from([(FILE.to_owned(), weights())]);
    let (_, endpoint) = Site::start(files, 0, true);
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("model.gguf");
    let error = hub(&endpoint, None)
        .file(
            "org/name",
            "c0ffee",
            "model.gguf",
            &target,
            &sha256(b"other"),
            &Silent,
        )
        .unwrap_err();
    assert!(
        matches!(error, HubError::Download(DownloadError::Checksum { .. })),
        "{error}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_hub_that_is_not_there_is_given_up_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("model.gguf");
    // What an earlier run left must not make this one wait for a host that is not there.
    fs::write(dir.path().join("model.gguf.incomplete"), b"begun").unwrap();
    let started = std::time::Instant::now();
    let error = hub("http://127.0.0.1:9", None)
        .file("org/name", "c0ffee", "model.gguf", &target, "00", &Silent)
        .unwrap_err();
    assert!(
        matches!(error, HubError::Download(DownloadError::Network(_))),
        "{error}"
    );
    assert!(started.elapsed().as_secs() < 10);
    assert!(
        dir.path().join("model.gguf.incomplete").exists(),
        "it may go on another day"
    );
}

fn model_site() -> HashMap<String, Vec<u8>> {
    let weights = weights();
    let listing = serde_json::json!({
        "sha": "c0ffee",
        "siblings": [
            {"rfilename": "README.md", "size": 3},
            {"rfilename": "config.json", "size": 2},
            {"rfilename": "tokenizer.json", "size": 2},
            {"rfilename": "model-00001-of-00001.safetensors", "size": weights.len(),
             "lfs": {"sha256": sha256(&weights), "size": weights.len()}},
            {"rfilename": "model.safetensors.index.json", "size": 56},
            {"rfilename": "pytorch_model.bin", "size": 9},
        ],
    });
    let index = r#"{"weight_map":{"a":"model-00001-of-00001.safetensors"}}"#;
    let file = |name: &str| format!("/org/name/resolve/c0ffee/{name}");
    HashMap::from([
        (
            "/api/models/org/name/revision/main?blobs=true".to_owned(),
            listing.to_string().into_bytes(),
        ),
        (file("config.json"), b"{}".to_vec()),
        (file("tokenizer.json"), b"{}".to_vec()),
        (file("model-00001-of-00001.safetensors"), weights),
        (
            file("model.safetensors.index.json"),
            format!("{index} ").into_bytes(),
        ),
    ])
}

#[test]
fn a_model_is_fetched_once() {
    let (site, endpoint) = Site::start(model_site(), 0, true);
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(&endpoint, None);
    let path = hub.snapshot("org/name", dir.path(), &Silent).unwrap();
    assert_eq!(path, dir.path().join("c0ffee"));
    assert!(is_complete(&path));
    assert!(!path.join("README.md").exists() && !path.join("pytorch_model.bin").exists());
    let asked = site.requests().len();
    assert_eq!(hub.snapshot("org/name", dir.path(), &Silent).unwrap(), path);
    assert_eq!(
        site.requests().len(),
        asked,
        "the second time nobody is asked"
    );
}

#[test]
fn the_cache_of_the_hubs_own_tools_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models--org--name");
    let snapshot = root.join("snapshots").join("abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs").join("main"), "abc\n").unwrap();
    for name in ["config.json", "tokenizer.json", "x.gguf"] {
        fs::write(snapshot.join(name), "{}").unwrap();
    }
    let hub = hub("http://127.0.0.1:9", Some(dir.path()));
    assert_eq!(
        hub.cached_snapshot("org/name"),
        None,
        "the weights are missing"
    );
    fs::write(snapshot.join("model.safetensors"), "").unwrap();
    let target = dir.path().join("own");
    assert_eq!(
        hub.snapshot("org/name", &target, &Silent).unwrap(),
        snapshot
    );
    let file = hub
        .latest_file("org/name", "x.gguf", &target, &Silent)
        .unwrap();
    assert_eq!(file, snapshot.join("x.gguf"));
    assert_eq!(hub.cached_file("org/name", "abc", "y.gguf"), None);
}

#[test]
fn refusals_say_what_to_do() {
    let (_, endpoint) = Site::start(HashMap::new(), 0, true);
    let dir = tempfile::tempdir().unwrap();
    let mut hub = hub(&endpoint, None);
    let error = hub.snapshot("org/name", dir.path(), &Silent).unwrap_err();
    assert!(matches!(error, HubError::NoRepository { .. }), "{error}");
    assert!(error.hint().unwrap().contains("HF_TOKEN"));
    hub.offline = true;
    let error = hub.snapshot("org/name", dir.path(), &Silent).unwrap_err();
    assert!(matches!(error, HubError::Offline), "{error}");
}

#[test]
fn impossible_names_are_refused() {
    let evil = serde_json::json!({"sha": "../../etc", "siblings": []}).to_string();
    let files = HashMap::from([(
        "/api/models/org/name/revision/main?blobs=true".to_owned(),
        evil.into_bytes(),
    )]);
    let (_, endpoint) = Site::start(files, 0, true);
    let dir = tempfile::tempdir().unwrap();
    let error = hub(&endpoint, None)
        .snapshot("org/name", dir.path(), &Silent)
        .unwrap_err();
    assert!(matches!(error, HubError::Answer { .. }), "{error}");
    assert!(is_part("model-00001-of-00002.safetensors"));
    assert!(!is_part("model-/../../x.safetensors") && !is_part("model.safetensors"));
}
