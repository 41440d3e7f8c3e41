//! Clipping by norm.

use super::DeltaTransform;
use crate::adapter::{AdapterError, Delta};

/// Scales a delta down to a norm, so that no client moves the model further.
///
/// The server cannot trust a client to have done it. It multiplies each
/// delta with [`clip_factor`] while it reduces; a mean of clipped deltas is
/// no longer than they are, so the aggregate needs nothing more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipNorm {
    /// The longest a delta may be (L2 over all tensors together).
    pub max_norm: f32,
}

impl DeltaTransform for ClipNorm {
    fn on_client(&self, delta: &mut Delta) -> Result<(), AdapterError> {
        let factor = clip_factor(delta.l2_norm(), Some(self.max_norm));
        if factor < 1.0 {
            delta.scale(factor as f32)?;
        }
        Ok(())
    }

    fn on_server(&self, _aggregate: &mut Delta) -> Result<(), AdapterError> {
        Ok(())
    }
}

/// What a delta of length `norm` must be multiplied with to be no longer than `max_norm`.
pub fn clip_factor(norm: f64, max_norm: Option<f32>) -> f64 {
    match max_norm {
        Some(max_norm) if norm > f64::from(max_norm) => f64::from(max_norm) / norm,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::adapter::{Layout, TensorSpec};
    use crate::transform::TransformChain;

    fn delta(values: [f32; 3]) -> Delta {
        let spec = TensorSpec {
            name: "a".to_owned(),
            rows: 1,
            cols: 3,
        };
        let layout = Arc::new(Layout::new(vec![spec]).unwrap());
        Delta::new(layout, values.to_vec()).unwrap()
    }

    #[test]
    fn long_deltas_are_scaled_and_short_ones_are_not() {
        let chain = TransformChain::of(Some(1.0));
        let mut long = delta([3.0, 0.0, -4.0]);
        chain.on_client(&mut long).unwrap();
        let off = long.values().iter().zip([0.6, 0.0, -0.8]);
        assert!(off.into_iter().all(|(got, want)| (got - want).abs() < 1e-6));
        let mut short = delta([0.3, 0.0, -0.4]);
        chain.on_client(&mut short).unwrap();
        chain.on_server(&mut short).unwrap();
        assert_eq!(short, delta([0.3, 0.0, -0.4]));
        let mut free = delta([3e9, 0.0, -4e9]);
        TransformChain::of(None).on_client(&mut free).unwrap();
        assert_eq!(free, delta([3e9, 0.0, -4e9]));
    }

    #[test]
    fn one_client_moves_the_mean_by_its_norm_at_most() {
        let (norm, max_norm) = (1e6, 3.801_825_8);
        let moved = norm * clip_factor(norm, Some(max_norm));
        assert!((moved - f64::from(max_norm)).abs() < 1e-9);
        assert_eq!(clip_factor(1.0, Some(2.0)), 1.0);
        assert_eq!(clip_factor(1e30, None), 1.0);
    }
}
