//! Measures models: what they lose on held-out rows, and how they do on the field's benchmarks.

mod held_out;
mod report;

pub use report::{
    AdapterFacts, DataFile, FORMAT, MeanReport, MetricReport, Model, Outcome, Paired, Part, Report,
    Settings, System, TaskReport, UsedFor,
};

pub(crate) use held_out::{mean_and_error, score_pairs, score_rows};
