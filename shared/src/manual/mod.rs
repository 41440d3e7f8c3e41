//! The manual: what the code cannot say itself.
//!
//! - [`design`]: the parts, and why they are as they are.
//! - [`training`]: what a step computes, and where it differs from what one would expect.
//! - [`algorithms`]: what each algorithm computes, and where OpenFedLLM computes something else.
//! - [`evaluation`]: how models are measured, and what the figures mean.
//! - [`protocol`]: what client and server say to each other.
//! - [`privacy`]: whom one has to trust with what, and what is not covered.

#[doc = include_str!("design.md")]
pub mod design {}

#[doc = include_str!("training.md")]
pub mod training {}

#[doc = include_str!("algorithms.md")]
pub mod algorithms {}

#[doc = include_str!("evaluation.md")]
pub mod evaluation {}

#[doc = include_str!("protocol.md")]
pub mod protocol {}

#[doc = include_str!("privacy.md")]
pub mod privacy {}
