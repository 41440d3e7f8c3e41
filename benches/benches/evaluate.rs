//! Scoring a benchmark: rows a CPU second, beside a reference program.
//!
//! Both run as processes of their own, one after the other, each once for every run asked for; what
//! they use is what the system says of ended children. Loading counts, so give them enough rows.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;
use fedllm_benches::peak_rss_mib;
use serde_json::Value;

/// Measures `fedllm-server evaluate` on a task.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// A model: name, directory or GGUF file.
    #[arg(long, default_value = "smollm2-135m-instruct")]
    model: String,
    /// The task.
    #[arg(long, default_value = "mmlu")]
    task: String,
    /// The folder with its data.
    #[arg(long)]
    data: PathBuf,
    /// Rows of each subject, or in all.
    #[arg(long)]
    limit: Option<usize>,
    /// Processes of each kind.
    #[arg(long, default_value_t = 2)]
    runs: usize,
    /// A command line that scores the same rows.
    #[arg(long)]
    reference: Option<String>,
    /// Evaluate here, in this process.
    #[arg(long, hide = true)]
    child: Option<PathBuf>,
    /// Cargo passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a child used.
struct Used {
    cpu: f64,
    wall: f64,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if let Some(out) = &args.child {
        let code = fedllm_server::cli::run(evaluation(&args, out).map(Into::into));
        fs::write(out.join("peak"), peak_rss_mib().to_string())?;
        return Ok(code);
    }
    println!(
        "{:<10} {:>6} {:>10} {:>10} {:>12} {:>10}",
        "who", "rows", "CPU s", "wall s", "rows/CPU s", "peak MiB"
    );
    let mut best: [f64; 2] = [0.0; 2];
    for _ in 0..args.runs {
        let (used, rows, peak) = ours()?;
        best[0] = best[0].max(line("fedllm", rows, &used, Some(peak)));
        if let Some(command) = &args.reference {
            let used = child(Command::new("sh").args(["-c", command]))?;
            best[1] = best[1].max(line("reference", rows, &used, None));
        }
    }
    if best[1] > 0.0 {
        println!("ratio of the best: {:.2}x", best[0] / best[1]);
    }
    Ok(ExitCode::SUCCESS)
}

fn line(who: &str, rows: u64, used: &Used, peak: Option<u64>) -> f64 {
    let rate = rows as f64 / used.cpu;
    let peak = peak.map_or_else(String::new, |peak| peak.to_string());
    println!(
        "{who:<10} {rows:>6} {:>10.2} {:>10.2} {rate:>12.2} {peak:>10}",
        used.cpu, used.wall
    );
    rate
}

/// The arguments of an evaluation into a fresh folder, so that nothing is known before.
fn evaluation(args: &Args, out: &std::path::Path) -> impl Iterator<Item = String> {
    let path = |path: &std::path::Path| path.display().to_string();
    let mut words = vec!["fedllm-server".into(), "evaluate".into(), "--quiet".into()];
    let fixed = [
        ("--model", args.model.clone()),
        ("--task", args.task.clone()),
        ("--data", path(&args.data)),
        ("--device", "cpu".to_owned()),
        ("--out", path(out)),
    ];
    words.extend(
        fixed
            .into_iter()
            .flat_map(|(name, value)| [name.into(), value]),
    );
    words.extend(
        args.limit
            .into_iter()
            .flat_map(|n| ["--limit".into(), n.to_string()]),
    );
    words.into_iter()
}

fn ours() -> anyhow::Result<(Used, u64, u64)> {
    let out = std::env::temp_dir().join(format!("fedllm-evaluate-{}", std::process::id()));
    fs::create_dir_all(&out)?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(std::env::args_os().skip(1))
        .arg("--child")
        .arg(&out);
    let used = child(&mut command)?;
    let report = fs::read(out.join("report.json")).context("there is no report")?;
    let report: Value = serde_json::from_slice(&report)?;
    let rows = report["tasks"][0]["rows"].as_u64().unwrap_or(0);
    let peak = fs::read_to_string(out.join("peak"))?.parse()?;
    fs::remove_dir_all(&out)?;
    Ok((used, rows, peak))
}

fn child(command: &mut Command) -> anyhow::Result<Used> {
    let (before, began) = (children_cpu_seconds(), Instant::now());
    let output = command.output()?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(Used {
        cpu: children_cpu_seconds() - before,
        wall: began.elapsed().as_secs_f64(),
    })
}

/// CPU seconds of all children that have ended and been waited for, theirs included; 0 where the
/// system does not say.
fn children_cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in parentheses, may hold anything; user and system time are fields 16 and 17.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(13).take(2);
    ticks
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}
