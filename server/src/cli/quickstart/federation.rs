//! The federation of the quickstart: the server in this process, each client in one of its own.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use fedllm_client::{Code, Explain};
use tokio::process::{Child, Command};

use super::view::View;
use super::{Args, OWNERS, Plan};
use crate::{Base, ClosedRound, Folder, InitOptions, Server, ServerOptions, Status};

/// How often the view is brought up to date.
const LOOK: Duration = Duration::from_millis(200);
/// How long clients may take to leave when the run is over.
const LEAVE: Duration = Duration::from_secs(20);

/// How long the owners have to use their tokens.
const INVITATION: Duration = Duration::from_secs(600);

/// Makes the federation's folder: as `fedllm-server init` does, for loopback only.
pub(super) fn found(args: &Args, model: &Path, path: &Path) -> anyhow::Result<Folder> {
    let owners = OWNERS.len();
    let (rounds, steps) = args.extent();
    let settings = [
        format!("server.status_listen={}:0", Ipv4Addr::LOCALHOST),
        format!("rounds.cohort={owners}"),
        format!("rounds.min_clients={owners}"),
        format!("rounds.quorum={owners}"),
        format!("local.steps={steps}"),
        format!("local.batch={}", args.batch),
        format!("local.lr={:e}", args.lr),
        "local.schedule=cosine".to_owned(),
        // The last of few rounds should still learn.
        format!("local.lr_min={:e}", args.lr / 4.0),
        format!("strategy.name={}", args.strategy),
    ];
    let options = InitOptions {
        name: Some("quickstart".to_owned()),
        // The system chooses the port when the server starts, and tokens then carry that one.
        listen: Some(format!("{}:0", Ipv4Addr::LOCALHOST)),
        public: Some(format!("{}:7433", Ipv4Addr::LOCALHOST)),
        model: Some(model.to_string_lossy().into_owned()),
        rounds: Some(rounds.into()),
        set: settings.into(),
    };
    Folder::init(path, &options).code(Code::Config)
}

/// Serves the federation until its rounds are done, with one client process an owner.
pub(super) fn serve(
    plan: &Plan,
    folder: &Folder,
    runtime: &tokio::runtime::Runtime,
    view: &mut View,
) -> anyhow::Result<Vec<ClosedRound>> {
    let base = Base::open(folder.federation(), &fedllm_client::Silent)?;
    let options = ServerOptions::new(folder.clone(), base);
    runtime.block_on(async {
        let server = Server::start(options).await.code(Code::Network)?;
        let mut clients = Vec::new();
        for (owner, shard) in OWNERS.iter().zip(&plan.shards) {
            let token = server.invite(owner.name, INVITATION)?.token;
            clients.push(Client::start(plan, owner.name, shard, &token).await?);
        }
        tokio::select! {
            ended = server.wait() => ended?,
            failed = watch(&server, &mut clients, view) => failed?,
            () = plan.stop.stopped() => return Err(anyhow!("stopped")).code(Code::Interrupted),
        }
        for client in clients {
            client.leave().await?;
        }
        anyhow::Ok(())
    })?;
    let json = operator([
        "status".as_ref(),
        folder.path().as_os_str(),
        "--json".as_ref(),
    ])?;
    let status: Status = serde_json::from_slice(&json).context("the server's record")?;
    view.show(&status);
    Ok(status.history)
}

/// Writes the last adapter, or a client's own, as a PEFT directory, as `fedllm-server export` does.
pub(super) fn export(folder: &Folder, client: Option<&str>, out: &Path) -> anyhow::Result<()> {
    let mut args = vec!["export".as_ref(), folder.path().as_os_str()];
    args.extend(["--format", "peft", "--out"].map(OsStr::new));
    args.push(out.as_os_str());
    if let Some(client) = client {
        args.extend(["--client", client].map(OsStr::new));
    }
    operator(args)?;
    Ok(())
}

/// Keeps the view up to date; ends when a client has failed.
async fn watch(server: &Server, clients: &mut [Client], view: &mut View) -> anyhow::Result<()> {
    loop {
        for client in clients.iter_mut() {
            client.check()?;
        }
        if let Some(status) = server.status().await {
            view.show(&status);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Runs this program again, as an operator would, and gives its output.
fn operator<'a>(args: impl IntoIterator<Item = &'a OsStr>) -> anyhow::Result<Vec<u8>> {
    let program = std::env::current_exe().context("where is this program?")?;
    let output = std::process::Command::new(program).args(args).output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

/// A client process; it is killed when this is dropped.
struct Client {
    owner: &'static str,
    process: Child,
    log: PathBuf,
}

impl Client {
    /// Joins with the token and goes on as `fedllm-client run`.
    async fn start(
        plan: &Plan,
        owner: &'static str,
        shard: &Path,
        token: &str,
    ) -> anyhow::Result<Self> {
        let state = plan.out.join("clients").join(owner);
        let log = plan.out.join("clients").join(format!("{owner}.log"));
        std::fs::create_dir_all(&state)?;
        let mut client = Self {
            owner,
            process: command(&state, &log)?.arg("join").arg(token).spawn()?,
            log,
        };
        let joined = client.process.wait().await?;
        if !joined.success() {
            return Err(client.failed(joined));
        }
        let mut run = command(&state, &client.log)?;
        run.arg("--threads").arg(threads().to_string());
        run.arg("run").arg("--shard").arg(shard);
        run.arg("--model").arg(&plan.model);
        run.arg("--device").arg(plan.device.to_string());
        client.process = run.spawn()?;
        Ok(client)
    }

    /// Fails if the process has ended with an error.
    fn check(&mut self) -> anyhow::Result<()> {
        match self.process.try_wait()? {
            Some(status) if !status.success() => Err(self.failed(status)),
            _ => Ok(()),
        }
    }

    /// Waits for the process to end by itself, as it does when the run is over.
    async fn leave(mut self) -> anyhow::Result<()> {
        match tokio::time::timeout(LEAVE, self.process.wait()).await {
            Ok(status) => match status? {
                status if status.success() => Ok(()),
                status => Err(self.failed(status)),
            },
            Err(_) => bail!("the client of {} does not end", self.owner),
        }
    }

    fn failed(&self, status: ExitStatus) -> anyhow::Error {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(10)..].join("\n");
        anyhow::anyhow!("the client of {} ended with {status}\n{last}", self.owner)
    }
}

/// `fedllm-client` as a process: this program has it inside.
fn command(state: &Path, log: &Path) -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("where is this program?")?;
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    let mut command = Command::new(program);
    command.arg("client").arg("--state").arg(state);
    command.stdin(Stdio::null());
    command.stdout(log.try_clone()?).stderr(log);
    command.kill_on_drop(true);
    Ok(command)
}

/// The clients share this machine's cores.
fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.div_ceil(OWNERS.len())
}
