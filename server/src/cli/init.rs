//! `init`: a folder with everything a federation needs.

use std::path::PathBuf;

use fedllm_client::{Code, Explain};

use crate::folder::{Folder, FolderError, InitOptions};

/// Make a federation: a private certificate authority, the server's certificate and a commented
/// `federation.toml`.
///
/// Keys are readable by you alone. Edit federation.toml before the first round; every key says
/// what it does.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Example:
  fedllm-server init clinic --name \"three clinics\" --public fl.example.org:7433 --rounds 20
  fedllm-server serve clinic")]
pub(crate) struct Args {
    /// The folder to make.
    dir: PathBuf,
    /// What clients are told the federation is called.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where the server listens (UDP), for example 0.0.0.0:7433.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// The host and port that clients connect to; it goes into join tokens and the certificate.
    #[arg(long, value_name = "HOST:PORT")]
    public: Option<String>,
    /// The base model: a name of the catalog, or a directory or GGUF file.
    #[arg(long, value_name = "NAME_OR_PATH")]
    model: Option<String>,
    /// How many rounds the run has.
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
    /// Set any other key of federation.toml; may be given more than once.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Print what was made as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let options = InitOptions {
        name: args.name,
        listen: args.listen,
        public: args.public,
        model: args.model,
        rounds: args.rounds,
        set: args.set,
    };
    let made = Folder::init(&args.dir, &options);
    let taken = matches!(made, Err(FolderError::Exists(_)));
    let made = made.code(Code::Config);
    let folder = match taken {
        true => made.hint("a federation has one folder of its own; choose one that does not exist"),
        false => made,
    }?;
    if args.json {
        return super::print_json(&serde_json::json!({
            "dir": folder.path(),
            "config": folder.config_path(),
            "federation": folder.federation().name,
            "address": folder.federation().server.address,
        }));
    }
    let (dir, federation) = (args.dir.display(), folder.federation());
    println!("made the federation {:?} in {dir}", federation.name);
    println!("  settings      {}", folder.config_path().display());
    println!("  clients use   {}", federation.server.address);
    println!("next:");
    println!("  fedllm-server serve {dir}");
    println!("  fedllm-server invite {dir} --name alice");
    Ok(())
}
