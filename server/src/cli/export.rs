//! `export`: an adapter for other programs.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use data_encoding::HEXLOWER;
use fedllm_client::{Code, Explain};
use fedllm_models::{PeftAdapter, PeftConfig, PeftTensor, Projection, write_gguf_lora};
use fedllm_shared::{Adapter, Target, decode_adapter};

use super::{DirArg, Global, Operator, ask, open_folder};
use crate::base::checkpoint;
use crate::record::{StoredAdapter, own_adapter, stored_adapter};
use crate::store::DirBlobs;

/// Write the adapter in a format that other programs read.
///
/// A round's adapter is the one it made: round 0 makes the first trained one. It works while the
/// server runs and while it does not.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  fedllm-server export clinic --format peft --out adapter
  fedllm-server export clinic --format gguf-lora --out adapter.gguf --round 4")]
pub(crate) struct Args {
    #[command(flatten)]
    folder: DirArg,
    /// The format.
    #[arg(long, value_enum)]
    format: Format,
    /// The directory (peft) or file (gguf-lora) to write.
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// The round whose adapter is wanted [default: the last].
    #[arg(long, value_name = "N")]
    round: Option<u64>,
    /// The client whose own adapter is wanted, where strategy.name is "local".
    #[arg(long, value_name = "NAME", conflicts_with = "round")]
    client: Option<String>,
    /// Print what was written as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A directory for Hugging Face PEFT.
    Peft,
    /// A file for llama.cpp's --lora.
    GgufLora,
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let folder = open_folder(&args.folder.dir)?;
    let stored: StoredAdapter = match Operator::find(&folder)? {
        Operator::Running(address) => {
            let which = match (&args.client, args.round) {
                // In hex, since a name may have any character.
                (Some(client), _) => format!("?client={}", HEXLOWER.encode(client.as_bytes())),
                (None, Some(round)) => format!("?round={round}"),
                (None, None) => String::new(),
            };
            ask(&address, "GET", &format!("/adapter{which}"), None::<&()>)?
        }
        Operator::Stopped(store) => match &args.client {
            Some(client) => own_adapter(&store, client),
            None => stored_adapter(&store, args.round),
        }
        .hint("fedllm-server status shows the clients, and which rounds have closed")?,
    };
    let blobs = DirBlobs::open(&folder.state().join("blobs"))?;
    let bytes = blobs
        .load(&stored.blob)
        .code(Code::Data)
        .hint("adapters are kept in the folder's state/blobs; was it copied whole?")?;
    let adapter = decode_adapter(&bytes, &Arc::new(stored.facts.layout.clone()))
        .code(Code::Data)
        .context("the stored adapter")?;
    let adapter = to_peft(&adapter, &stored)?;
    match args.format {
        Format::Peft => adapter.write(&args.out).code(Code::Failure)?,
        Format::GgufLora => {
            let checkpoint = checkpoint(folder.federation(), &*global.progress())
                .code(Code::Data)
                .context("the base model, whose shapes a GGUF adapter depends on")?;
            let name = format!("{} round {}", folder.federation().name, stored.version.0);
            write_gguf_lora(&adapter, checkpoint.config(), &name, &args.out).code(Code::Failure)?;
        }
    }
    if args.json {
        return super::print_json(&serde_json::json!({
            "out": args.out,
            "version": stored.version,
            "model": stored.facts.model,
        }));
    }
    println!(
        "wrote version {} to {}",
        stored.version.0,
        args.out.display()
    );
    Ok(())
}

fn to_peft(adapter: &Adapter, stored: &StoredAdapter) -> anyhow::Result<PeftAdapter> {
    let lora = &stored.facts.lora;
    let projection = |target: Target| {
        let mut all = Projection::ALL.into_iter();
        all.find(|projection| projection.target() == target.module())
    };
    let config = PeftConfig {
        base_model: Some(stored.facts.model.clone()),
        rank: lora.rank as usize,
        alpha: lora.alpha,
        dropout: lora.dropout,
        rslora: lora.rslora,
        targets: lora.targets.iter().filter_map(projection).collect(),
    };
    let tensors = adapter.layout().tensors().iter().enumerate();
    let tensors = tensors.map(|(index, tensor)| PeftTensor {
        name: tensor.name.clone(),
        rows: tensor.rows as usize,
        cols: tensor.cols as usize,
        values: adapter.tensor(index).to_vec(),
    });
    Ok(PeftAdapter::new(config, tensors.collect())?)
}
