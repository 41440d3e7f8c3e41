//! How sure a figure is, and whether two differ.

mod bootstrap;
mod comparison;
mod estimate;
mod rank;

pub use bootstrap::Bootstrap;
pub use comparison::{Comparison, PairedTest};
pub use estimate::Estimate;
pub use rank::average_ranks;
