//! Measures models: what they lose on held-out rows, and how they do on the field's benchmarks.

mod held_out;

pub(crate) use held_out::{mean_and_error, score_pairs, score_rows};
