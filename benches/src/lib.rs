//! Benchmarks of fedllm: what they share. The programs are in `benches/`, the notes in `README.md`.

mod reference;
mod resources;

pub use reference::{Reference, run_json, run_reference};
pub use resources::{cpu_seconds, forget_peak, peak_rss_kib, peak_rss_mib, rss_kib};
