//! Benchmarks of fedllm: what they share. The programs are in `benches/`, the notes in `README.md`.

mod reference;
mod resources;

pub use reference::{Reference, run_reference};
pub use resources::{median, peak_rss_mib};
