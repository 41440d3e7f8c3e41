//! Measures models: what they lose on held-out rows, and how they do on the field's benchmarks.
//!
//! An evaluation does one task after another: it reads the task's rows, puts each question to the
//! base and to every adapter, keeps replies as they come so that none is asked for twice, grades
//! them, and makes figures of grades. The [`Report`] is what that came to. Servers and simulations
//! measure adapters in the same way between their rounds.

mod asked;
mod choice;
mod data;
mod figures;
mod grades;
mod held_out;
mod html;
mod judged;
mod means;
mod options;
mod programs;
mod report;
mod row_log;
mod run;
mod systems;
mod table;
mod tasks;
#[cfg(test)]
mod testing;

pub use report::{
    AdapterFacts, DataFile, FORMAT, MeanReport, MetricReport, Model, Outcome, Paired, Part, Report,
    Settings, System, TaskReport, Test, UsedFor,
};

pub(crate) use asked::Templates;
pub(crate) use choice::Selection;
pub(crate) use data::Data;
pub(crate) use grades::{Graders, Refusal};
pub(crate) use held_out::central_score;
pub(crate) use means::{means, ranks};
pub(crate) use options::{Opened, Options};
pub(crate) use row_log::RowLog;
pub(crate) use run::{EvaluateError, Evaluation, Loaded, loaded_digest};
pub(crate) use systems::{BASE, Named, System as AdapterSystem, SystemError, read as read_systems};
pub use tasks::TasksError;
pub(crate) use tasks::{Tasks, find_tasks};
