//! Simulated federations: virtual clients in virtual time.
//!
//! Whose rows are whose ([`split()`], [`SplitTable`]), what each client's machine and network are
//! like ([`DevicePark`]), and what a run leaves behind: a line of figures for each round
//! ([`RoundMetrics`]), a summary ([`RunSummary`]), TensorBoard event files ([`EventWriter`]), tables
//! ([`SweepTable`]) and a report ([`render_report`]). All of that is pure: the same arguments give
//! the same result, and whatever is random follows from a seed. The engine drives the production's
//! state machines, trainer and codecs.

mod blobs;
mod data;
mod devices;
mod engine;
mod metrics;
mod report;
mod run;
mod seed;
mod split;
pub(crate) mod table;
pub(crate) mod text;
mod tfevents;
mod virtual_client;

pub use data::DataError;
pub use devices::{
    DevicePark, Distribution, DistributionError, ParkError, ParkSpec, SimulatedDevice,
};
pub use engine::SimulationError;
pub use metrics::{
    ClientRound, Evaluation, MetricsError, MetricsLog, PreferenceRound, RoundMetrics, RunSummary,
    TaskEvaluation,
};
pub use report::{render_report, render_sweep};
pub use run::RunError;
pub(crate) use run::{Lab, RunOptions, Watcher, parse_experiment};
pub use split::{
    Categories, OwnerRows, OwnerShare, Partition, Skew, Split, SplitError, SplitTable, split,
};
pub use table::{Differences, SeedRun, SweepArm, SweepError, SweepRun, SweepTable, summary_table};
pub use tfevents::{EventWriter, event_file_name};
