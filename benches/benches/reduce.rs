//! Reducing a round's updates: wall and CPU seconds and memory, beside reference programs.
//!
//! Each measurement runs in a process of its own, because peak memory is a process's. Inputs are
//! made before the clock starts; what is counted is one warm-up and then `--iterations` times the
//! same work. With `--reference` the programs take turns, so that all see the same machine.

use std::convert::Infallible;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use burn::tensor::Device;
use clap::Parser;
use fedllm_benches::{cpu_seconds, forget_peak, peak_rss_kib, rss_kib, run_json};
use fedllm_models::measure::median;
use fedllm_server::{
    Held, RankedSource, Source, exact_mean, product_gap, weighted_sum, weighted_sum_held,
};
use fedllm_shared::{
    Adapter, ClientId, Codec, Compat, Delta, Layout, SecondMoment, ServerOptimizer, ServerState,
    TensorSpec, encode_delta,
};
use serde::{Deserialize, Serialize};

/// Measures how a round's updates become one.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// Updates of a round.
    #[arg(long, default_value_t = 32)]
    clients: u8,
    /// Values of an update; made even for the layouts that need it.
    #[arg(long, default_value_t = 10_000_000)]
    values: usize,
    /// Rank of the low-rank updates.
    #[arg(long, default_value_t = 8)]
    rank: u32,
    /// Times each work is done in a process, after one to warm up.
    #[arg(long, default_value_t = 5)]
    iterations: usize,
    /// Processes of each kind.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// A few clients of a few values, once: whether it works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// Only these works.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Work>,
    /// NAME=COMMAND of a program that prints JSON with `median_s`, `cpu_s` and `extra_peak_mib`
    /// last. The first one given is what ours is compared with.
    #[arg(long)]
    reference: Vec<String>,
    /// Measure here, in this process.
    #[arg(long, hide = true)]
    child: Option<Work>,
    /// Cargo passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Work {
    /// The mean of updates in memory.
    Memory,
    /// The mean of encoded updates, f32.
    F32,
    /// The mean of encoded updates, bf16.
    Bf16,
    /// The mean of encoded updates, int8.
    Int8,
    /// A FedAdam step along a mean.
    Fedadam,
    /// The mean of the products of low-rank updates in bf16, and what averaging apart loses.
    Exact,
    /// What averaging apart loses, alone.
    Gap,
}

impl Work {
    const ALL: [Self; 7] = [
        Self::Memory,
        Self::F32,
        Self::Bf16,
        Self::Int8,
        Self::Fedadam,
        Self::Exact,
        Self::Gap,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Fedadam => "fedadam",
            Self::Exact => "exact",
            Self::Gap => "gap",
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Measured {
    #[serde(rename = "median_s")]
    seconds: f64,
    #[serde(rename = "cpu_s")]
    cpu_seconds: f64,
    extra_peak_mib: f64,
    /// The values of one update: layouts round it.
    #[serde(default, alias = "params")]
    values: usize,
}

fn main() -> anyhow::Result<()> {
    let mut args = Args::parse();
    if args.quick {
        (args.clients, args.values) = (args.clients.min(4), args.values.min(400_000));
        (args.iterations, args.runs) = (1, 1);
    }
    if let Some(work) = args.child {
        println!("{}", serde_json::to_string(&measure(&args, work)?)?);
        return Ok(());
    }
    let works = match args.only.is_empty() {
        true => Work::ALL.to_vec(),
        false => args.only.clone(),
    };
    let references = args.reference.iter().map(|given| {
        let parts = given.split_once('=');
        parts.with_context(|| format!("--reference {given}: expected NAME=COMMAND"))
    });
    let references = references.collect::<Result<Vec<_>, _>>()?;
    let mut rows: Vec<(&str, Vec<Measured>)> = references
        .iter()
        .map(|(name, _)| *name)
        .chain(works.iter().map(|work| work.name()))
        .map(|name| (name, Vec::new()))
        .collect();
    for _ in 0..args.runs {
        for (row, (_, command)) in rows.iter_mut().zip(&references) {
            row.1.push(serde_json::from_value(run_json(command)?)?);
        }
        for (row, work) in rows[references.len()..].iter_mut().zip(&works) {
            row.1.push(in_child(*work)?);
        }
    }
    print(args.clients, &rows, !references.is_empty());
    Ok(())
}

fn print(clients: u8, rows: &[(&str, Vec<Measured>)], compared: bool) {
    println!(
        "{clients} clients\n{:<14} {:>10} {:>9} {:>9} {:>15} {:>8}",
        "what", "values", "wall s", "CPU s", "extra peak MiB", "CPU"
    );
    let of =
        |row: &[Measured], f: fn(&Measured) -> f64| median(&row.iter().map(f).collect::<Vec<_>>());
    let base = rows
        .first()
        .map_or(0.0, |(_, row)| of(row, |m| m.cpu_seconds));
    for (name, row) in rows {
        let cpu = of(row, |m| m.cpu_seconds);
        let ratio = match compared {
            true => format!("{:.2}x", base / cpu),
            false => "-".to_owned(),
        };
        println!(
            "{name:<14} {:>10} {:>9.3} {:>9.3} {:>15.1} {:>8}",
            row[0].values,
            of(row, |m| m.seconds),
            cpu,
            of(row, |m| m.extra_peak_mib),
            ratio
        );
    }
}

fn in_child(work: Work) -> anyhow::Result<Measured> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(std::env::args_os().skip(1))
        .args(["--child", work.name()]);
    let output = command.output()?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("the measurement of {} failed: {errors}", work.name());
    }
    serde_json::from_slice(&output.stdout).context("the measurement printed no result")
}

fn measure(args: &Args, work: Work) -> anyhow::Result<Measured> {
    match work {
        Work::Memory => memory(args),
        Work::F32 => encoded(args, Codec::F32),
        Work::Bf16 => encoded(args, Codec::Bf16),
        Work::Int8 => encoded(args, Codec::Int8Rows),
        Work::Fedadam => fedadam(args),
        Work::Exact | Work::Gap => low_rank(args, work),
    }
}

/// Does `work` again and again, and says how long that took and what it needed beyond its input.
fn timed<T, E>(
    args: &Args,
    values: usize,
    mut work: impl FnMut() -> Result<T, E>,
) -> anyhow::Result<Measured>
where
    E: std::error::Error + Send + Sync + 'static,
{
    forget_peak();
    let before = rss_kib();
    work()?;
    let (mut walls, mut cpus) = (Vec::new(), Vec::new());
    for _ in 0..args.iterations {
        let (wall, cpu) = (Instant::now(), cpu_seconds());
        work()?;
        walls.push(wall.elapsed().as_secs_f64());
        cpus.push(cpu_seconds() - cpu);
    }
    Ok(Measured {
        seconds: median(&walls),
        cpu_seconds: median(&cpus),
        extra_peak_mib: peak_rss_kib().saturating_sub(before) as f64 / 1024.0,
        values,
    })
}

fn memory(args: &Args) -> anyhow::Result<Measured> {
    let layout = rows(args.values)?;
    let deltas = (0..args.clients).map(|client| delta(&layout, client));
    let deltas = deltas.collect::<Result<Vec<_>, _>>()?;
    let shares = shares(args.clients);
    let held = deltas.iter().zip(0..).map(|(delta, client)| Held {
        client: ClientId([client; 32]),
        shares: [shares[usize::from(client)]; 2],
        values: delta.values(),
    });
    let held: Vec<_> = held.collect();
    timed(args, layout.len(), || {
        weighted_sum_held(&layout, layout.len(), &held)
    })
}

fn encoded(args: &Args, codec: Codec) -> anyhow::Result<Measured> {
    let layout = rows(args.values)?;
    let blobs = blobs(args, &layout, codec)?;
    let shares = shares(args.clients);
    let device = Device::flex();
    timed(args, layout.len(), || {
        let sources = blobs.iter().zip(0..).map(|(blob, client)| Source {
            client: ClientId([client; 32]),
            shares: [shares[usize::from(client)]; 2],
            open: || Ok::<_, Infallible>(blob.as_slice()),
        });
        let sources = sources.collect();
        weighted_sum(&layout, layout.len(), codec, sources, &device)
    })
}

fn fedadam(args: &Args) -> anyhow::Result<Measured> {
    let layout = rows(args.values)?;
    let optimizer = ServerOptimizer::Adaptive {
        rule: SecondMoment::Adam,
        eta: 1e-3,
        tau: 1e-3,
        beta1: 0.9,
        beta2: 0.99,
        compat: Compat::Paper,
    };
    let delta = delta(&layout, 0)?;
    let (mut adapter, mut state) = (Adapter::zeros(layout.clone()), ServerState::default());
    timed(args, layout.len(), || {
        optimizer.step(&mut adapter, &delta, &mut state)
    })
}

fn low_rank(args: &Args, work: Work) -> anyhow::Result<Measured> {
    let layout = projections(args.values, args.rank)?;
    let blobs = blobs(args, &layout, Codec::Bf16)?;
    let start = Adapter::new(layout.clone(), delta(&layout, u8::MAX)?.into_values())?;
    let sources = || {
        let sources = blobs.iter().zip(0..).map(|(blob, client)| RankedSource {
            client: ClientId([client; 32]),
            weight: f64::from(client) + 1.0,
            scale: 1.0,
            start: &start,
            layout: &layout,
            open: || Ok::<_, Infallible>(blob.as_slice()),
        });
        sources.collect::<Vec<_>>()
    };
    match work {
        Work::Exact => timed(args, layout.len(), || {
            exact_mean(&layout, Codec::Bf16, sources())
        }),
        _ => timed(args, layout.len(), || product_gap(Codec::Bf16, sources())),
    }
}

/// About `values` values in rows of a thousand.
fn rows(values: usize) -> anyhow::Result<Arc<Layout>> {
    let spec = TensorSpec {
        name: "values".to_owned(),
        rows: u32::try_from(values.div_ceil(1000))?,
        cols: 1000,
    };
    Ok(Arc::new(Layout::new(vec![spec])?))
}

/// The factors of all seven projections of layers as SmolLM2-135M has them, as many layers as have
/// about `values` values.
fn projections(values: usize, rank: u32) -> anyhow::Result<Arc<Layout>> {
    const HIDDEN: u32 = 576;
    const KEYS: u32 = 192;
    const FFN: u32 = 1536;
    const GROUPS: [&[(&str, u32, u32)]; 4] = [
        &[
            ("q", HIDDEN, HIDDEN),
            ("k", KEYS, HIDDEN),
            ("v", KEYS, HIDDEN),
        ],
        &[("o", HIDDEN, HIDDEN)],
        &[("gate", FFN, HIDDEN), ("up", FFN, HIDDEN)],
        &[("down", HIDDEN, FFN)],
    ];
    let sides = GROUPS.iter().flat_map(|group| group.iter());
    let layer: u32 = sides
        .map(|(_, output, input)| rank * (output + input))
        .sum();
    let layers = (values as f64 / f64::from(layer)).round().max(1.0) as usize;
    let mut tensors = Vec::new();
    for layer in 0..layers {
        for group in GROUPS {
            tensors.extend(group.iter().map(|(name, _, input)| TensorSpec {
                name: format!("layers.{layer}.{name}_proj.lora_A.weight"),
                rows: rank,
                cols: *input,
            }));
            tensors.extend(group.iter().map(|(name, output, _)| TensorSpec {
                name: format!("layers.{layer}.{name}_proj.lora_B.weight"),
                rows: *output,
                cols: rank,
            }));
        }
    }
    Ok(Arc::new(Layout::new(tensors)?))
}

fn blobs(args: &Args, layout: &Arc<Layout>, codec: Codec) -> anyhow::Result<Vec<Vec<u8>>> {
    let blob = |client| Ok(encode_delta(&delta(layout, client)?, codec)?);
    (0..args.clients).map(blob).collect()
}

/// Values that are as hard to compress as a delta's.
fn delta(layout: &Arc<Layout>, client: u8) -> anyhow::Result<Delta> {
    let mut state = u64::from(client) + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let values = (0..layout.len()).map(|_| 1e-2 * next()).collect();
    Ok(Delta::new(layout.clone(), values)?)
}

fn shares(clients: u8) -> Vec<f64> {
    let total = f64::from(clients) * (f64::from(clients) + 1.0) / 2.0;
    (1..=clients)
        .map(|weight| f64::from(weight) / total)
        .collect()
}
