//! `api`: a model and its adapters for programs that speak OpenAI's protocol.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use fedllm_client::cli::{load_adapter, select_device};
use fedllm_client::{Base, Code, Explain, ModelArgs, resolve};
use tokio::net::TcpListener;

use super::Global;
use super::serve::signals;
use crate::api::{Api, Key, Limits, Model, Worker, serve};

const KEY_VARIABLE: &str = "FEDLLM_API_KEY";

/// Serve a model and its adapters as OpenAI does, for evaluation harnesses and chat programs.
///
/// POST /v1/completions (with `echo` and `logprobs` for texts and token ids), POST
/// /v1/chat/completions, GET /v1/models, POST /tokenize and /detokenize, GET /tokenizer_info and
/// /health. A request's `model` is the base's name or an adapter's. Requests are answered together: a
/// new one joins those in progress.
///
/// It listens on this machine only. Any other address needs a key: the first line of
/// --api-key-file, or the environment variable FEDLLM_API_KEY. What passes over a network is not
/// encrypted: put a proxy with TLS before it. Ctrl-C ends it when running requests are answered, a
/// second one at once. The log holds no prompt and no answer.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  fedllm-server api --model smollm2-135m-instruct --adapter clinic=adapter
  lm_eval --model local-completions --tasks arc_easy,hellaswag,piqa,winogrande \\
    --model_args model=clinic,base_url=http://127.0.0.1:8080/v1/completions,num_concurrent=4,max_length=2048
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What causes the tides?\"}]}'")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter and what it is called: a PEFT directory, as `export --format peft` writes it.
    #[arg(long, value_name = "NAME=DIR", value_parser = named)]
    adapter: Vec<(String, PathBuf)>,
    /// Listen here (TCP).
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Answer only who shows the key in this file.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Print the address and the models' names as one line of JSON when requests can come.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    limits: Limits,
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let key = key(args.api_key_file.as_deref())?;
    if key.is_none() && !args.listen.ip().is_loopback() {
        let refused: anyhow::Result<()> = Err(anyhow::anyhow!(
            "{} can be reached from other machines, so a key is needed",
            args.listen
        ));
        return refused.code(Code::Usage).hint(format!(
            "write one with `openssl rand -hex 32 > key` and pass --api-key-file key, or set \
             {KEY_VARIABLE}"
        ));
    }
    let names = names(&args)?;
    let runtime = tokio::runtime::Runtime::new().context("the network cannot be used")?;
    // Before the model is loaded, which takes a while.
    let listener = runtime
        .block_on(TcpListener::bind(args.listen))
        .with_context(|| format!("cannot listen on {}", args.listen))
        .code(Code::Network)
        .hint("is another server using the address? --listen changes it")?;
    let (api, thread) = load(&args, names, key, global)?;
    let api = Arc::new(api);
    let served = runtime.block_on(answer(&args, &api, listener));
    // Idle threads of the runtime hold nothing; requests are over.
    drop(runtime);
    drop(api);
    // A panic of the thread is the failure that `served` reports.
    let _ = thread.join();
    served
}

/// Serves until a signal comes or the model fails.
async fn answer(args: &Args, api: &Arc<Api>, listener: TcpListener) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    let names = api.names();
    match args.json {
        true => super::print_json(&serde_json::json!({ "listen": address, "models": names }))?,
        false => {
            println!("listening on http://{address}/v1");
            println!("models: {}", names.join(", "));
        }
    }
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let stopping = async move {
        // An error means that we are gone, which is a stop as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let mut served = std::pin::pin!(serve(api.clone(), listener, stopping));
    tokio::select! {
        ended = &mut served => return ended.map_err(anyhow::Error::from),
        () = api.failed() => bail!("the model has failed; what it reported is above"),
        signal = signals() => signal?,
    }
    tracing::info!("stopping; a second signal stops at once");
    stop.send_replace(true);
    tokio::select! {
        ended = served => ended.map_err(anyhow::Error::from),
        () = api.failed() => bail!("the model has failed; what it reported is above"),
        second = signals() => {
            second?;
            std::process::exit(Code::Interrupted as i32);
        }
    }
}

/// Loads the model and its adapters, and starts the thread that has them.
fn load(
    args: &Args,
    names: Vec<String>,
    key: Option<Key>,
    global: &Global,
) -> anyhow::Result<(Api, std::thread::JoinHandle<()>)> {
    let path = resolve(&args.model.model, &*global.progress()).map_err(|error| {
        let code = match error.is_network() {
            true => Code::Network,
            false => Code::Data,
        };
        let hint = error.hint();
        super::explained(error, code, hint)
    })?;
    let base = Base::open(&path).code(Code::Data)?;
    let selection = select_device(&args.model.device)?;
    let model = base
        .load(args.model.base_precision, &selection)
        .code(Code::Data)?;
    let adapters = args.adapter.iter().map(|(name, directory)| {
        load_adapter(directory, &model).with_context(|| format!("--adapter {name}"))
    });
    let adapters = adapters.collect::<anyhow::Result<Vec<_>>>()?;
    let tokenizer = base.tokenizer().clone();
    let config = model.config().clone();
    let model = Model {
        base: model,
        adapters,
        tokenizer: tokenizer.clone(),
    };
    let cache_bytes = args.limits.max_cache_mib.saturating_mul(1 << 20);
    let (worker, thread) = Worker::start(model, args.limits.max_queue, cache_bytes)?;
    let chat = base.chat().cloned();
    let api = Api::new(names, worker, tokenizer, chat, &config, args.limits, key);
    Ok((api, thread))
}

/// The key that clients must show, if there is one.
fn key(file: Option<&Path>) -> anyhow::Result<Option<Key>> {
    let variable = std::env::var(KEY_VARIABLE).ok();
    let key = match (file, variable.filter(|text| !text.is_empty())) {
        (Some(file), _) => Key::read(file),
        (None, Some(text)) => Key::new(&text, KEY_VARIABLE),
        (None, None) => return Ok(None),
    };
    key.map(Some)
        .code(Code::Config)
        .hint("`openssl rand -hex 32 > key` writes a good one")
}

/// What the base and the adapters are called.
fn names(args: &Args) -> anyhow::Result<Vec<String>> {
    let base = &args.model.model;
    let path = Path::new(base);
    let base = match path.file_stem().filter(|_| path.exists()) {
        // A dot in a directory's name begins no extension.
        Some(_) if path.is_dir() => path.file_name().map(|name| name.to_string_lossy().into()),
        Some(stem) => Some(stem.to_string_lossy().into_owned()),
        None => None,
    };
    let mut names = vec![base.unwrap_or_else(|| args.model.model.clone())];
    for (name, _) in &args.adapter {
        if names.contains(name) {
            let twice: anyhow::Result<()> = Err(anyhow::anyhow!("two models are called {name}"));
            twice
                .code(Code::Usage)
                .hint("give the adapter another name: --adapter NAME=DIR")?;
        }
        names.push(name.clone());
    }
    Ok(names)
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, directory)) if !name.is_empty() && !directory.is_empty() => {
            Ok((name.to_owned(), directory.into()))
        }
        _ => Err("must be NAME=DIR".to_owned()),
    }
}
