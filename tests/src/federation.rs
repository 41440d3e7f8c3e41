//! A whole federation of real processes on loopback, with a tiny model.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fedllm_models::BlockFormat;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Ended, PATIENCE, Process};
use crate::tiny;

/// Rows are cut to this many tokens.
pub const MAX_TOKENS: &str = "96";

/// The programs, and a folder of the test's own for everything they write.
#[derive(Clone)]
pub struct Programs {
    program: PathBuf,
    folder: Arc<TempDir>,
}

impl Programs {
    /// `program` is the `fedllm-under-test` of this crate.
    ///
    /// # Panics
    ///
    /// If the system gives no folder.
    pub fn new(program: &str) -> Self {
        let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        Self {
            program: program.into(),
            folder: Arc::new(folder),
        }
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the test.
    ///
    /// # Panics
    ///
    /// If the disk refuses.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// Starts `fedllm-server`.
    pub fn start_server<S: AsRef<OsStr>>(&self, args: &[S]) -> Process {
        self.start(&[], args)
    }

    /// Starts `fedllm-client`.
    pub fn start_client<S: AsRef<OsStr>>(&self, args: &[S]) -> Process {
        self.start(&["client"], args)
    }

    /// Runs `fedllm-server` to its end.
    pub fn server<S: AsRef<OsStr>>(&self, args: &[S]) -> Ended {
        self.start_server(args).end()
    }

    /// Runs `fedllm-client` to its end.
    pub fn client<S: AsRef<OsStr>>(&self, args: &[S]) -> Ended {
        self.start_client(args).end()
    }

    fn start<S: AsRef<OsStr>>(&self, first: &[&str], args: &[S]) -> Process {
        let mut command = Command::new(&self.program);
        command.args(first).args(args);
        command.current_dir(self.folder.path());
        // The compiler that programs are tested with is found through the home folder.
        let rustup = std::env::home_dir().map(|home| home.join(".rustup"));
        if let (None, Some(rustup)) = (std::env::var_os("RUSTUP_HOME"), rustup) {
            command.env("RUSTUP_HOME", rustup);
        }
        // Nothing else of the user's is read or written.
        for variable in ["HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
            command.env(variable, self.path("home"));
        }
        command
            .env_remove("FEDLLM_STATE")
            .env_remove("FEDLLM_API_KEY")
            .env("FEDLLM_LOG", "debug");
        Process::start(command)
    }
}

/// A federation: its folder, its base model and, once started, its server.
pub struct Federation {
    /// The programs.
    pub programs: Programs,
    /// The base model.
    pub model: PathBuf,
    /// The federation's folder.
    pub folder: PathBuf,
    server: Option<Process>,
    /// Where it listens, from its first start on.
    listen: Option<String>,
    status: Option<SocketAddr>,
}

/// A client: its state and its shard.
#[derive(Clone)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its state directory.
    pub state: PathBuf,
    /// Its shard.
    pub shard: PathBuf,
    /// Its identity, in hex.
    pub id: String,
}

impl Federation {
    /// Makes a federation on `model`, with these settings of `federation.toml`.
    ///
    /// # Panics
    ///
    /// If `init` fails.
    pub fn new(programs: &Programs, settings: &[&str]) -> Self {
        let model = programs.path("model.gguf");
        tiny::write_gguf(&model, "llama", BlockFormat::F32);
        let folder = programs.path("server");
        let mut args = vec!["init", text(&folder), "--model", text(&model)];
        args.extend(["--listen", "127.0.0.1:0", "--public", "127.0.0.1:7433"]);
        let max_tokens = format!("data.max_tokens={MAX_TOKENS}");
        let all = ["server.status_listen=127.0.0.1:0", &max_tokens];
        for setting in all.iter().chain(settings) {
            args.extend(["--set", setting]);
        }
        programs.server(&args).ok();
        Self {
            programs: programs.clone(),
            model,
            folder,
            server: None,
            listen: None,
            status: None,
        }
    }

    /// Starts the server, where it was before if it was started before.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub fn serve(&mut self, more: &[&str]) {
        let mut args = vec!["serve", text(&self.folder), "--json"];
        if let Some(listen) = &self.listen {
            args.extend(["--listen", listen]);
        }
        args.extend(more);
        let server = self.programs.start_server(&args);
        let addresses = server.json(|value| value["listen"].is_string());
        let address = |key: &str| addresses[key].as_str().unwrap_or_default().to_owned();
        self.listen = Some(address("listen"));
        self.status = address("status").parse().ok();
        self.server = Some(server);
    }

    /// The server's process.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn take_server(&mut self) -> Process {
        let server = self.server.take();
        server.unwrap_or_else(|| panic!("no server was started"))
    }

    /// Ends the server as a service manager does.
    ///
    /// # Panics
    ///
    /// If it does not end well.
    pub fn stop(&mut self) -> Ended {
        let server = self.take_server();
        server.signal("TERM");
        server.end().ok()
    }

    /// Makes a client: its rows, its shard, its certificate. The server must run.
    ///
    /// # Panics
    ///
    /// If any of that fails.
    pub fn owner(&self, name: &str, rows: &[Value]) -> Owner {
        let data: String = rows.iter().map(|row| format!("{row}\n")).collect();
        let data = self.programs.write(&format!("{name}.jsonl"), data);
        let shard = self.programs.path(&format!("{name}.shard"));
        let mut args = vec![
            "prepare",
            "--model",
            text(&self.model),
            "--data",
            text(&data),
        ];
        args.extend(["--template", "chat", "--max-tokens", MAX_TOKENS]);
        args.extend(["--out", text(&shard), "--json"]);
        let prepared = self.programs.client(&args).ok();
        assert_eq!(prepared.json()["rows"], rows.len(), "{prepared}");
        let state = self.programs.path(&format!("{name}.state"));
        let joined = self.join(&self.invite(name), &state).ok().json();
        assert_eq!(joined["name"], name);
        Owner {
            name: name.to_owned(),
            state,
            shard,
            id: joined["client"].as_str().unwrap_or_default().to_owned(),
        }
    }

    /// Makes a join token.
    ///
    /// # Panics
    ///
    /// If `invite` fails.
    pub fn invite(&self, name: &str) -> String {
        let args = ["invite", text(&self.folder), "--name", name];
        let invited = self.programs.server(&args).ok();
        invited.stdout.trim().to_owned()
    }

    /// Uses a join token.
    pub fn join(&self, token: &str, state: &Path) -> Ended {
        let args = ["join", token, "--state", text(state), "--json"];
        self.programs.client(&args)
    }

    /// Starts a client's part in the run.
    pub fn run(&self, owner: &Owner, more: &[&str]) -> Process {
        let mut args = vec![
            "run",
            "--shard",
            text(&owner.shard),
            "--state",
            text(&owner.state),
        ];
        args.extend([
            "--model",
            text(&self.model),
            "--device",
            "cpu",
            "--threads",
            "1",
        ]);
        args.push("--json");
        args.extend(more);
        self.programs.start_client(&args)
    }

    /// What `fedllm-server status --json` says.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn status(&self) -> Value {
        let args = ["status", text(&self.folder), "--json"];
        self.programs.server(&args).ok().json()
    }

    /// Writes the last adapter as a PEFT directory.
    ///
    /// # Panics
    ///
    /// If `export` fails.
    pub fn export(&self, name: &str) -> PathBuf {
        let out = self.programs.path(name);
        let args = [
            "export",
            text(&self.folder),
            "--format",
            "peft",
            "--out",
            text(&out),
        ];
        self.programs.server(&args).ok();
        out
    }

    /// The record of the run, as the running server gives it.
    ///
    /// # Panics
    ///
    /// If no server answers.
    pub fn events(&self) -> Vec<Value> {
        let address = self
            .status
            .unwrap_or_else(|| panic!("no server was started"));
        let events = get(address, "/events").unwrap_or_else(|e| panic!("/events: {e}"));
        serde_json::from_str(&events).unwrap_or_else(|e| panic!("{e}: {events}"))
    }

    /// What the running server counts.
    ///
    /// # Panics
    ///
    /// If no server answers.
    pub fn metrics(&self) -> String {
        let address = self
            .status
            .unwrap_or_else(|| panic!("no server was started"));
        get(address, "/metrics").unwrap_or_else(|e| panic!("/metrics: {e}"))
    }

    /// Waits until an event of this name says this.
    ///
    /// # Panics
    ///
    /// If it does not come within [`PATIENCE`].
    pub fn wait_for(&self, event: &str, says: Value) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let events = self.events();
            let found = events.iter().find(|given| {
                let says = says.as_object().into_iter().flatten();
                given["event"] == event && says.into_iter().all(|(key, value)| given[key] == *value)
            });
            if let Some(found) = found {
                return found.clone();
            }
            assert!(
                Instant::now() < until,
                "no {event} with {says} among {events:#?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Who gave an update that counts, and in which round: sorted pairs of round and identity.
    pub fn accepted(&self) -> Vec<(u64, String)> {
        let events = self.events().into_iter();
        let accepted = events.filter(|event| event["event"] == "update_accepted");
        let pair = |event: Value| {
            let client = event["client"].as_str().unwrap_or_default().to_owned();
            (event["round"].as_u64().unwrap_or(u64::MAX), client)
        };
        let mut pairs: Vec<_> = accepted.map(pair).collect();
        pairs.sort();
        pairs
    }

    /// The same federation and clients once more, in another folder. No server may run.
    ///
    /// # Panics
    ///
    /// If the disk refuses.
    pub fn copy(&self, owners: &[Owner], to: &str) -> (Self, Vec<Owner>) {
        let folder = self.programs.path(&format!("{to}.server"));
        copy_folder(&self.folder, &folder);
        let copy = |owner: &Owner| {
            let state = self.programs.path(&format!("{to}.{}.state", owner.name));
            copy_folder(&owner.state, &state);
            let owner = owner.clone();
            Owner { state, ..owner }
        };
        let owners = owners.iter().map(copy).collect();
        let federation = Self {
            programs: self.programs.clone(),
            model: self.model.clone(),
            folder,
            server: None,
            listen: self.listen.clone(),
            status: None,
        };
        (federation, owners)
    }
}

/// A path of a test as text.
///
/// # Panics
///
/// If it is not UTF-8.
pub fn text(path: &Path) -> &str {
    path.to_str()
        .unwrap_or_else(|| panic!("{} is not UTF-8", path.display()))
}

/// Rows that a tiny model can learn; no two owners have the same.
pub fn rows(owner: &str, count: usize) -> Vec<Value> {
    let row = |i: usize| {
        json!({
            "instruction": format!("Where does {owner} keep thing {i}?"),
            "output": format!("{owner} keeps thing {i} on shelf {}.", i % 3),
        })
    };
    (0..count).map(row).collect()
}

/// Every file below `folder`, with its bytes.
///
/// # Panics
///
/// If one cannot be read.
pub fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries {
        let path = entry
            .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
            .path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            found.push((path, bytes));
        }
    }
    found
}

fn copy_folder(from: &Path, to: &Path) {
    for (path, bytes) in files(from) {
        let name = path.strip_prefix(from).unwrap_or(&path);
        let copy = to.join(name);
        let parent = copy.parent().unwrap_or(to);
        let written = fs::create_dir_all(parent).and_then(|()| fs::write(&copy, bytes));
        written.unwrap_or_else(|e| panic!("{}: {e}", copy.display()));
        let mode = fs::metadata(&path).map(|about| about.permissions());
        let kept = mode.and_then(|mode| fs::set_permissions(&copy, mode));
        kept.unwrap_or_else(|e| panic!("{}: {e}", copy.display()));
    }
}

fn get(address: SocketAddr, target: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned());
    body.ok_or_else(|| std::io::Error::other(answer))
}
