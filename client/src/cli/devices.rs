//! `fedllm-client devices`: what can train here, and how the other commands choose among it.

use std::path::PathBuf;

use etcetera::BaseStrategy;
use serde::Serialize;

use fedllm_models::device::{
    Backend, DeviceChoice, DeviceInfo, DeviceKind, Mixed, ProbeReport, Prober, Selection, SelfTest,
};

use super::Global;
use crate::exit::{Code, Explain};

const EXAMPLES: &str = "Examples:
  fedllm-client devices
  fedllm-client devices --json | jq '.devices[] | {index, name, verdict: .report.verdict}'
  fedllm-client train --device radeon ...   # or auto, cpu, gpu, or a number of this list";

const LONG_HELP: &str = "\
Every device trains one step of a tiny model, in a process of its own, and its loss and gradients are
compared with those of the processor: `passed` shows the largest relative difference, and the one in
mixed precision of a GPU with matrix units that this program can use. A device that
computes something else, crashes or hangs is not used. The verdicts are kept until the driver or this
program changes; this command tests again.

tok/s is the speed of that tiny model, good for comparing devices, not for guessing how long a real
model takes.

Without `--device` the other commands take the first usable of: discrete GPU, integrated GPU,
processor. Software adapters, which imitate a GPU on the processor, are slow; they are listed, but
tested only with `--software` and used only when named.

Exit code 4 means that no device is usable.

Examples:
  fedllm-client devices
  fedllm-client devices --json | jq '.devices[] | {index, name, verdict: .report.verdict}'
  fedllm-client train --device radeon ...   # or auto, cpu, gpu, or a number of this list";

/// Arguments of `devices`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = LONG_HELP)]
pub(crate) struct Args {
    /// Show what is known from earlier tests, and test nothing.
    #[arg(long)]
    no_test: bool,
    /// Test software adapters too; this can take minutes.
    #[arg(long)]
    software: bool,
}

/// Runs `devices`.
pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let prober = prober()?;
    let devices = prober
        .list()
        .code(Code::Device)
        .hint("`--device cpu` works without any graphics driver")?;
    let rows: Vec<Row> = devices
        .into_iter()
        .map(|info| Row {
            report: report(&prober, &info, &args, global),
            info,
        })
        .collect();
    let automatic = automatic(&rows);
    if global.json {
        global.print_json(&Listing {
            devices: &rows,
            automatic: automatic.map(|row| row.info.index),
        })?;
    } else {
        print!("{}", table(&rows));
        if let Some(row) = automatic {
            println!(
                "\n`--device auto` takes {}: {}.",
                row.info.index, row.info.name
            );
        }
    }
    if rows.iter().all(|row| row.failed()) {
        return Err(anyhow::anyhow!("no device passed its self-test"))
            .code(Code::Device)
            .hint("if even the processor fails, the memory of this computer may be faulty");
    }
    Ok(())
}

/// Opens the device that the user wishes, after its self-test, and says in the log which it is.
///
/// # Errors
///
/// No such device, or it failed its self-test; the error carries its exit code and a hint.
pub fn select(choice: &DeviceChoice) -> anyhow::Result<Selection> {
    let selection = prober()?.select(choice).code(Code::Device).hint(
        "`fedllm-client devices` lists the devices and tests them; `--device cpu` always works",
    )?;
    tracing::info!(device = %selection.info, "device chosen");
    Ok(selection)
}

fn prober() -> anyhow::Result<Prober> {
    let prober = Prober::this_program().code(Code::Device)?;
    Ok(match cache_directory() {
        Some(directory) => prober.with_cache(directory),
        None => prober,
    })
}

/// `FEDLLM_CACHE`, else the system's place for what can be made again. Without a home directory
/// nothing is kept.
fn cache_directory() -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os("FEDLLM_CACHE").filter(|dir| !dir.is_empty()) {
        return Some(directory.into());
    }
    let strategy = etcetera::choose_base_strategy().ok()?;
    Some(strategy.cache_dir().join("fedllm"))
}

/// A device with its verdict, if it has one.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    info: DeviceInfo,
    report: Option<ProbeReport>,
}

#[derive(Serialize)]
struct Listing<'a> {
    devices: &'a [Row],
    /// Index of the device that `auto` takes.
    automatic: Option<usize>,
}

impl Row {
    fn failed(&self) -> bool {
        self.report
            .as_ref()
            .is_some_and(|report| !report.verdict.is_usable())
    }

    /// What the self-test measured, if it came so far.
    fn test(&self) -> Option<&SelfTest> {
        self.report.as_ref()?.test.as_ref()
    }

    /// What the tables of the user show, from left to right.
    fn cells(&self) -> [String; 7] {
        let test = self.test();
        [
            self.info.index.to_string(),
            self.info.name.clone(),
            self.info.backend.to_string(),
            self.info.kind.to_string(),
            memory(&self.info),
            match &self.report {
                None => "not tested".into(),
                Some(report) if report.verdict.is_usable() => match test {
                    Some(test) if self.info.backend != Backend::Cpu => passed(test),
                    _ => "passed".into(),
                },
                Some(_) => "FAILED".into(),
            },
            test.map_or_else(
                || "-".into(),
                |test| format!("{:.0}", test.tokens_per_second),
            ),
        ]
    }
}

fn report(prober: &Prober, info: &DeviceInfo, args: &Args, global: &Global) -> Option<ProbeReport> {
    if args.no_test || info.kind == DeviceKind::Software && !args.software {
        return prober.remembered(info);
    }
    let spinner = global.spinner(format!("testing {info}"));
    let report = prober.probe(info);
    spinner.finish_and_clear();
    Some(report)
}

/// How near to the processor a device was; behind it, in mixed precision.
fn passed(test: &SelfTest) -> String {
    match test.mixed {
        Some(Mixed::Passed { gradient_error, .. }) => {
            format!(
                "passed ({:.0e}, mixed {gradient_error:.0e})",
                test.gradient_error
            )
        }
        _ => format!("passed ({:.0e})", test.gradient_error),
    }
}

/// The device that `auto` would take, as far as tests are known.
fn automatic(rows: &[Row]) -> Option<&Row> {
    let infos: Vec<_> = rows.iter().map(|row| row.info.clone()).collect();
    let order = DeviceChoice::Auto.order(&infos).ok()?;
    order
        .iter()
        .filter_map(|info| rows.iter().find(|row| row.info.index == info.index))
        .find(|row| !row.failed())
}

fn memory(info: &DeviceInfo) -> String {
    const GIB: f64 = (1u64 << 30) as f64;
    match info.memory.total_bytes {
        None => "unknown".into(),
        Some(bytes) if info.memory.shared => format!("{:.1} GiB shared", bytes as f64 / GIB),
        Some(bytes) => format!("{:.1} GiB", bytes as f64 / GIB),
    }
}

/// Columns as wide as their widest cell, and below them the reason of every failure.
fn table(rows: &[Row]) -> String {
    const HEADS: [&str; 7] = [
        "#",
        "device",
        "backend",
        "kind",
        "memory",
        "self-test",
        "tok/s",
    ];
    let lines: Vec<[String; 7]> = std::iter::once(HEADS.map(str::to_owned))
        .chain(rows.iter().map(Row::cells))
        .collect();
    let widths: [usize; 7] = std::array::from_fn(|column| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    });
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> = line
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                0 | 6 => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    for row in rows {
        if let Some(Mixed::Refused { reason }) = row.test().and_then(|test| test.mixed.as_ref()) {
            let index = row.info.index;
            text.push_str(&format!("\n{index}: no mixed precision: {reason}\n"));
        }
    }
    for row in rows.iter().filter(|row| row.failed()) {
        if let Some(report) = &row.report {
            text.push_str(&format!("\n{}: {}\n", row.info.index, report.verdict));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedllm_models::device::{Features, Memory, Verdict};

    fn row(index: usize, name: &str, verdict: Option<Verdict>) -> Row {
        let (backend, kind) = if index == 0 {
            (Backend::Cpu, DeviceKind::Processor)
        } else {
            (Backend::Vulkan, DeviceKind::Discrete)
        };
        Row {
            info: DeviceInfo {
                index,
                name: name.into(),
                vendor: String::new(),
                backend,
                kind,
                driver: String::new(),
                memory: Memory {
                    total_bytes: Some(8 << 30),
                    shared: index == 0,
                    largest_buffer_bytes: 1 << 30,
                },
                features: Features::default(),
                adapter: None,
            },
            report: verdict.map(|verdict| ProbeReport {
                key: String::new(),
                test: verdict.is_usable().then_some(SelfTest {
                    loss_error: 1e-6,
                    gradient_error: 2e-5,
                    tokens_per_second: 1234.4,
                    seconds: 1.0,
                    mixed: None,
                }),
                verdict,
            }),
        }
    }

    #[test]
    fn table_is_aligned_and_explains_failures() {
        let wrong = Verdict::Wrong {
            reason: "the loss differs".into(),
        };
        let rows = [
            row(0, "Processor", Some(Verdict::Usable)),
            row(1, "Card", Some(Verdict::Usable)),
            row(2, "Old", Some(wrong)),
            row(3, "New", None),
        ];
        assert_eq!(
            table(&rows),
            "#  device     backend  kind       memory          self-test      tok/s\n\
             0  Processor  cpu      processor  8.0 GiB shared  passed          1234\n\
             1  Card       vulkan   discrete   8.0 GiB         passed (2e-5)   1234\n\
             2  Old        vulkan   discrete   8.0 GiB         FAILED             -\n\
             3  New        vulkan   discrete   8.0 GiB         not tested         -\n\
             \n2: wrong results: the loss differs\n"
        );
        assert_eq!(automatic(&rows).map(|row| row.info.index), Some(1));
    }

    #[test]
    fn json_keeps_every_fact() {
        let rows = [row(1, "Card", Some(Verdict::Usable))];
        let listing = Listing {
            devices: &rows,
            automatic: Some(1),
        };
        let value = serde_json::to_value(&listing).unwrap();
        assert_eq!(value["devices"][0]["backend"], "vulkan");
        assert_eq!(value["devices"][0]["report"]["verdict"], "usable");
        assert_eq!(value["devices"][0]["memory"]["total_bytes"], 8u64 << 30);
        assert_eq!(value["automatic"], 1);
    }
}
