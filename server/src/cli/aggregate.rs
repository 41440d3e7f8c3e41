//! `aggregate`: one round from files, for federations whose members exchange nothing else.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;
use fedllm_client::{Code, Explain};
use fedllm_shared::{Compat, Reduction, Strategy, StrategyError, StrategyKind, WeightBy};

use crate::offline::{OfflineReport, OfflineRound};

/// Do one round from files: average the clients' adapters and take the server's step.
///
/// It is the code that `serve` runs, on any set of tensors with equal names. Updates are the
/// clients' adapters, each with its number of rows; in whatever order they are given, the result is
/// the same. Momentum, second moments and control variates stay in the state directory, as
/// safetensors; the first call makes it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:
  fedllm-server aggregate --strategy fedavg --state state --global v0.safetensors \\
      --update alice.safetensors:120 --update bob.safetensors:37 --out v1.safetensors
  fedllm-server aggregate --strategy fedadam --param eta=1e-3 --param tau=1e-3 --state state \\
      --global v1.safetensors --update alice.safetensors --update bob.safetensors --out v2.safetensors")]
pub(crate) struct Args {
    /// The algorithm: fedavg, fedprox, scaffold, fedavgm, fedadagrad, fedyogi or fedadam.
    #[arg(long, value_name = "NAME")]
    strategy: StrategyKind,
    /// Whose formulas: the paper's, or OpenFedLLM's.
    #[arg(long, value_name = "WHOSE", default_value = "paper", value_parser = named(&Compat::NAMES))]
    compat: Compat,
    /// How low-rank factors are averaged: plain, ffa or exact.
    #[arg(long, value_name = "HOW", default_value = "plain", value_parser = named(&Reduction::NAMES))]
    reduce: Reduction,
    /// A parameter of the algorithm, by the name of its paper. Repeat it for others.
    #[arg(long = "param", value_name = "NAME=VALUE")]
    parameters: Vec<Parameter>,
    /// What updates weigh: rows, or uniform [default: as the algorithm's paper says].
    #[arg(long, value_name = "WHAT", value_parser = named(&[("rows", WeightBy::Rows), ("uniform", WeightBy::Uniform)]))]
    weight_by: Option<WeightBy>,
    /// The directory of what the server keeps from round to round.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The present adapter.
    #[arg(long, value_name = "FILE")]
    global: PathBuf,
    /// A client's adapter, with its number of rows (1 if it has none). Repeat it for each client.
    #[arg(long = "update", value_name = "FILE[:ROWS]", required = true)]
    updates: Vec<Update>,
    /// With scaffold: the delta of a client's control variate, in the order of the updates.
    #[arg(long = "variate-delta", value_name = "FILE")]
    variate_deltas: Vec<PathBuf>,
    /// Updates are deltas, not adapters.
    #[arg(long)]
    delta: bool,
    /// With scaffold: how many clients there are [default: the number of updates].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    population: Option<u64>,
    /// Where the next adapter goes.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print what the round did as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug)]
struct Parameter {
    name: String,
    value: f64,
}

impl FromStr for Parameter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("expected NAME=VALUE, as in eta=1e-3, got {text:?}");
        let (name, value) = text.split_once('=').ok_or_else(wrong)?;
        Ok(Self {
            name: name.trim().to_owned(),
            value: value.trim().parse().map_err(|_| wrong())?,
        })
    }
}

#[derive(Clone, Debug)]
struct Update {
    path: PathBuf,
    rows: f64,
}

impl FromStr for Update {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = || Self {
            path: text.into(),
            rows: 1.0,
        };
        // A colon may also be part of the path.
        let Some((path, rows)) = text.rsplit_once(':') else {
            return Ok(whole());
        };
        match rows.parse::<f64>() {
            Ok(rows) if rows > 0.0 && rows.is_finite() => Ok(Self {
                path: path.into(),
                rows,
            }),
            Ok(rows) => Err(format!("an update weighs more than 0, got {rows}")),
            Err(_) => Ok(whole()),
        }
    }
}

/// A value out of a table of names.
fn named<T: Clone + Send + Sync + 'static>(
    names: &'static [(&'static str, T)],
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let found = names.iter().find(|(name, _)| *name == text);
        found.map(|(_, value)| value.clone()).ok_or_else(|| {
            let names: Vec<_> = names.iter().map(|(name, _)| *name).collect();
            format!("expected {}", names.join(" or "))
        })
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let parameters: Vec<_> = args
        .parameters
        .iter()
        .map(|parameter| (parameter.name.as_str(), parameter.value))
        .collect();
    let strategy = Strategy::new(args.strategy, args.compat, args.reduce, &parameters);
    let strategy = strategy.map_err(|error| match error {
        StrategyError::Reduction { .. } => anyhow::Error::from(error),
        error => anyhow::Error::from(error).context("--param"),
    });
    let round = OfflineRound {
        strategy: strategy.code(Code::Config)?,
        reduction: args.reduce,
        weight_by: args.weight_by,
        state: args.state,
        global: args.global,
        updates: args
            .updates
            .into_iter()
            .map(|update| (update.path, update.rows))
            .collect(),
        variate_deltas: args.variate_deltas,
        is_delta: args.delta,
        population: args.population,
        out: args.out,
    };
    anyhow::ensure!(
        args.strategy != StrategyKind::Local,
        "local averages nothing: each owner goes on with its own file"
    );
    let report = round
        .run()
        .code(Code::Data)
        .context("nothing was changed")?;
    match args.json {
        true => super::print_json(&report),
        false => {
            tell(&report, &round);
            Ok(())
        }
    }
}

fn tell(report: &OfflineReport, round: &OfflineRound) {
    let figures = &report.report;
    println!("round {}: {} updates", report.round, figures.updates);
    println!(
        "  delta {:.6}, step {:.6}, drift {:.3}",
        figures.delta_norm, figures.step_norm, figures.drift
    );
    if let Some(gap) = figures.gap {
        println!("  plain averaging is {gap:.3e} from the mean of the products");
    }
    if let Some(discarded) = figures.discarded {
        println!("  {discarded:.3e} of the mean did not fit the rank");
    }
    println!("  {} is {}", round.out.display(), report.digest.short());
}
