//! What a federated algorithm changes in the local steps, so that clients with different data drift
//! apart less.

use crate::lora::{Lora, read_back};
use crate::ops::{combine, pull, sum_of_squares, tensor_on};
use burn::tensor::Tensor;
use fedllm_shared::VariateForm;

/// What corrects the local steps of one fit. Control variates lie over [`Lora::trained`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Correction<'a> {
    /// Nothing.
    #[default]
    Plain,
    /// FedProx (Li et al. 2018, arXiv 1812.06127, eq. 2): the objective has the term
    /// `mu/2·‖w - w₀‖²` more, where `w₀` is the adapter that the fit begins with. Its gradient
    /// `mu·(w - w₀)` is clipped along with the rest.
    Proximal {
        /// The strength of the pull.
        mu: f32,
    },
    /// SCAFFOLD (Karimireddy et al. 2020, arXiv 1910.06378, Algorithm 1).
    ControlVariate {
        /// The server's control variate: c.
        server: &'a [f32],
        /// The client's own: c_i.
        client: &'a [f32],
        /// Where the correction enters, and what the client's next variate is.
        ///
        /// - `Gradient`, the paper's: the clipped gradient g becomes `g - c_i + c` before the
        ///   optimizer sees it. The next variate is the mean of the clipped gradients before
        ///   the correction. With SGD without weight decay that is option II,
        ///   `c_i - c + (x - y)/(K·lr)`; it stays a gradient where the optimizer is adaptive
        ///   and `(x - y)/(K·lr)` is none.
        /// - `AfterStep`, OpenFedLLM's: each step is followed by `w ← w - lr·(c - c_i)`, and the
        ///   next variate is option II whatever the optimizer.
        form: VariateForm,
    },
}

/// A control variate of another adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a control variate has {got} values, the adapter trains {expected}")]
pub struct VariateError {
    /// Values of the variate.
    pub got: usize,
    /// Values that are trained.
    pub expected: usize,
}

/// A correction under way.
pub(super) enum Rule {
    Plain,
    Proximal {
        mu: f32,
        anchor: Tensor<1>,
    },
    /// `offset` is `c - c_i`; `sum` that of the gradients so far.
    OfGradient {
        offset: Tensor<1>,
        sum: Option<Tensor<1>>,
        steps: u32,
    },
    /// `rates` is the sum of the learning rates so far: `K·lr` if that is constant.
    OfStep {
        offset: Tensor<1>,
        anchor: Tensor<1>,
        rates: f64,
    },
}

impl Rule {
    /// Begins a fit at the adapter as it stands.
    pub(super) fn new(correction: Correction<'_>, lora: &Lora) -> Result<Self, VariateError> {
        // Keeping a second handle costs a copy of the values at the first step, no more.
        let anchor = || lora.values().clone();
        Ok(match correction {
            Correction::Plain => Self::Plain,
            Correction::Proximal { mu } => Self::Proximal {
                mu,
                anchor: anchor(),
            },
            Correction::ControlVariate {
                server,
                client,
                form,
            } => {
                let offset = offset(server, client, lora)?;
                match form {
                    VariateForm::Gradient => Self::OfGradient {
                        offset,
                        sum: None,
                        steps: 0,
                    },
                    VariateForm::AfterStep => Self::OfStep {
                        offset,
                        anchor: anchor(),
                        rates: 0.0,
                    },
                }
            }
        })
    }

    /// The gradient of the whole objective before clipping, and what the step reads of it: the
    /// squared norm and, with a proximal term, the squared distance to the anchor.
    pub(super) fn pull(&self, gradient: Tensor<1>, values: &Tensor<1>) -> (Tensor<1>, Tensor<1>) {
        match self {
            Self::Proximal { mu, anchor } => pull(gradient, values, anchor, *mu),
            _ => {
                let squares = sum_of_squares(&gradient);
                (gradient, squares)
            }
        }
    }

    /// What the objective has more than the loss, given the squared distance to the anchor.
    pub(super) fn penalty(&self, distance_squared: f32) -> f32 {
        match self {
            Self::Proximal { mu, .. } => 0.5 * mu * distance_squared,
            _ => 0.0,
        }
    }

    /// The gradient that the optimizer is given, and the factor that is still to be applied to
    /// it; `scale` is that of clipping.
    pub(super) fn shift(&mut self, gradient: Tensor<1>, scale: f32) -> (Tensor<1>, f32) {
        let Self::OfGradient { offset, sum, steps } = self else {
            return (gradient, scale);
        };
        *steps += 1;
        *sum = Some(match sum.take() {
            None => gradient.clone().mul_scalar(scale),
            Some(sum) => combine(sum, 1.0, &gradient, scale),
        });
        (combine(gradient, scale, offset, 1.0), 1.0)
    }

    /// The parameters after a step with learning rate `lr`.
    pub(super) fn follow(&mut self, values: Tensor<1>, lr: f32) -> Tensor<1> {
        let Self::OfStep { offset, rates, .. } = self else {
            return values;
        };
        *rates += f64::from(lr);
        combine(values, 1.0, offset, -lr)
    }

    /// The client's next control variate. There is none without a step, or where the learning
    /// rate was 0 and the form divides by it.
    pub(super) fn variate(self, lora: &Lora) -> Option<Vec<f32>> {
        let variate = match self {
            Self::OfGradient { sum, steps, .. } => sum?.div_scalar(steps as f32),
            Self::OfStep {
                offset,
                anchor,
                rates,
            } if rates > 0.0 => {
                let moved = combine(anchor, 1.0, lora.values(), -1.0);
                combine(moved, (1.0 / rates) as f32, &offset, -1.0)
            }
            _ => return None,
        };
        Some(read_back(variate))
    }
}

/// `c - c_i`, on the adapter's device.
fn offset(server: &[f32], client: &[f32], lora: &Lora) -> Result<Tensor<1>, VariateError> {
    let expected = lora.trained().len();
    for got in [server.len(), client.len()] {
        if got != expected {
            return Err(VariateError { got, expected });
        }
    }
    let offset = server.iter().zip(client).map(|(c, c_i)| c - c_i).collect();
    Ok(tensor_on(offset, [expected], &lora.values().device()))
}
