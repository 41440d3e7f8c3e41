//! What is done to a delta on its way: a chain that runs forward on the
//! client and backward on the server.

mod clip;

use std::fmt::Debug;

pub use clip::{ClipNorm, clip_factor};

use crate::adapter::{AdapterError, Delta};

/// One link of the chain.
pub trait DeltaTransform: Debug + Send + Sync {
    /// Changes a client's delta before it is encoded.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if a value would not be finite.
    fn on_client(&self, delta: &mut Delta) -> Result<(), AdapterError>;

    /// Changes the aggregate before the server steps.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if a value would not be finite.
    fn on_server(&self, aggregate: &mut Delta) -> Result<(), AdapterError>;
}

/// The transforms of a task, in the order in which they run on the client.
#[derive(Debug)]
pub struct TransformChain {
    links: Vec<Box<dyn DeltaTransform>>,
}

impl TransformChain {
    /// The chain of a task: clipping if it names a norm.
    pub fn of(max_norm: Option<f32>) -> Self {
        let mut links: Vec<Box<dyn DeltaTransform>> = Vec::new();
        if let Some(max_norm) = max_norm {
            links.push(Box::new(ClipNorm { max_norm }));
        }
        Self { links }
    }

    /// Runs the chain on a client.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if a value would not be finite.
    pub fn on_client(&self, delta: &mut Delta) -> Result<(), AdapterError> {
        self.links.iter().try_for_each(|link| link.on_client(delta))
    }

    /// Runs the chain on the server, last link first.
    ///
    /// # Errors
    ///
    /// [`AdapterError`] if a value would not be finite.
    pub fn on_server(&self, aggregate: &mut Delta) -> Result<(), AdapterError> {
        let mut backward = self.links.iter().rev();
        backward.try_for_each(|link| link.on_server(aggregate))
    }
}
