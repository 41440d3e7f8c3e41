//! Model files, tokenizers, templates and adapters against golden values.

#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod adapter;
mod checkpoint;
mod quant;
mod tokenizer;

use std::path::PathBuf;

/// A file under `golden`.
fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(path)
}
