//! The results of `bench`, for people.

use std::fmt::Write;

use super::report::{GenerationReport, MemoryReport, OperationReport, StepReport, Subject};

/// A training step.
pub(super) fn of_step(report: &StepReport) -> String {
    let mut text = subject(&report.subject);
    let rows = match report.objective {
        "dpo" => "pairs of rows",
        _ => "rows",
    };
    let memory = if report.low_memory {
        ", low memory"
    } else {
        ""
    };
    let mixed = if report.mixed_precision {
        ", mixed precision"
    } else {
        ""
    };
    line(
        &mut text,
        "step",
        format!(
            "{} {rows} of {} tokens, rank {}, {}{memory}{mixed}",
            report.batch, report.seq, report.rank, report.objective
        ),
    );
    line(
        &mut text,
        "speed",
        format!("{:.1} tokens/s", report.tokens_per_second),
    );
    line(
        &mut text,
        "time",
        format!(
            "{} s a step ({} to {}, {} steps)",
            seconds(report.step_seconds),
            seconds(report.step_seconds_min),
            seconds(report.step_seconds_max),
            report.steps
        ),
    );
    line(
        &mut text,
        "arithmetic",
        format!(
            "{} GFLOP/s, {} GFLOP a step",
            giga(report.flops_per_second),
            giga(report.flops_per_step as f64)
        ),
    );
    memory_lines(&mut text, &report.memory);
    if let Some(dispatches) = report.dispatches {
        line(&mut text, "dispatches", format!("{dispatches} a step"));
    }
    if let Some(roofline) = &report.roofline {
        let half = roofline.peak_f16_flops_per_second;
        let half = half.map_or(String::new(), |peak| format!(" ({} in f16)", giga(peak)));
        line(
            &mut text,
            "best",
            format!(
                "{} GFLOP/s{half}, {} GB/s; the step reaches {:.0} % of the first, {:.0} % of its roof",
                giga(roofline.peak_f32_flops_per_second),
                giga(roofline.peak_bytes_per_second),
                roofline.percent_of_f32_peak,
                roofline.percent_of_roof,
            ),
        );
    }
    text.push('\n');
    operations(&mut text, report);
    text
}

/// Greedy generation.
pub(super) fn of_generation(report: &GenerationReport) -> String {
    let mut text = subject(&report.subject);
    line(
        &mut text,
        "prompt",
        format!(
            "{} tokens in {} s: {:.1} tokens/s",
            report.prompt_tokens,
            seconds(report.prefill_seconds),
            report.prefill_tokens_per_second
        ),
    );
    let of_peak = report
        .decode_percent_of_peak
        .zip(report.peak_bytes_per_second);
    let of_peak = of_peak.map_or(String::new(), |(percent, peak)| {
        format!(", {percent:.0} % of {}", giga(peak))
    });
    line(
        &mut text,
        "writing",
        format!(
            "{} tokens in {} s: {:.1} tokens/s, {} GB/s of weights{of_peak}",
            report.new_tokens,
            seconds(report.decode_seconds),
            report.decode_tokens_per_second,
            giga(report.decode_bytes_per_second)
        ),
    );
    memory_lines(&mut text, &report.memory);
    text
}

/// Bytes in GiB.
pub(super) fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

fn subject(subject: &Subject) -> String {
    let mut text = String::new();
    line(
        &mut text,
        "model",
        format!(
            "{}, base {}: {:.0} MiB",
            subject.model, subject.base_precision, subject.base_mib
        ),
    );
    let threads = subject
        .threads
        .map_or(String::new(), |threads| format!(", {threads} threads"));
    line(&mut text, "device", format!("{}{threads}", subject.device));
    text
}

fn memory_lines(text: &mut String, memory: &MemoryReport) {
    if let Some(mib) = memory.peak_rss_mib {
        line(text, "memory", format!("{mib:.0} MiB at most"));
    }
    if let Some(mib) = memory.device_memory_mib {
        line(text, "on the device", format!("{mib:.0} MiB reserved"));
    }
}

fn operations(text: &mut String, report: &StepReport) {
    let roof = report.roofline.is_some();
    let mut head = ["operation", "runs", "ms", "share", "GFLOP/s", "GB/s"]
        .map(str::to_owned)
        .to_vec();
    if roof {
        head.push("of roof".into());
    }
    row(text, &head);
    for operation in &report.operations {
        row(text, &cells(operation));
    }
    let (seconds, share) = (report.other_seconds, report.other_share);
    row(
        text,
        &[
            "other".into(),
            String::new(),
            format!("{seconds:.4}"),
            percent(share),
        ],
    );
}

fn cells(operation: &OperationReport) -> Vec<String> {
    let mut cells = vec![
        operation.name.into(),
        operation.runs.to_string(),
        milliseconds(operation.seconds),
        percent(operation.share),
        giga(operation.flops_per_second),
        giga(operation.bytes_per_second),
    ];
    if let Some(roof) = &operation.roof {
        cells.push(format!("{:.0} % {}", roof.percent, roof.bound));
    }
    cells
}

fn row(text: &mut String, cells: &[String]) {
    const WIDTHS: [usize; 7] = [18, 6, 9, 8, 9, 8, 14];
    let mut line = String::new();
    for (column, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
        // Writing to a text never fails.
        let _ = match column {
            0 => write!(line, "{cell:<width$}"),
            _ => write!(line, " {cell:>width$}"),
        };
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

fn line(text: &mut String, name: &str, value: String) {
    text.push_str(&format!("{name:<14} {value}\n"));
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.2}", 1e3 * seconds)
}

fn giga(value: f64) -> String {
    format!("{:.1}", value / 1e9)
}

/// Three digits of what may be a millisecond.
fn seconds(value: f64) -> String {
    if value < 0.1 {
        format!("{value:.4}")
    } else {
        format!("{value:.3}")
    }
}
