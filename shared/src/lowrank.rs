//! Adapters as pairs of low-rank factors: which tensors belong together, and
//! the layouts that follow from one by another rank or fewer factors.

use std::collections::HashMap;

use crate::adapter::{Layout, LayoutError, TensorSpec};
use crate::wire::Factors;

const A: &str = "lora_A.weight";
const B: &str = "lora_B.weight";

/// The factors of one adapted matrix: its change is `scale · B · A`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FactorPair {
    /// The place of A `[rank, input]` in the layout.
    pub a: usize,
    /// The place of B `[output, rank]` in the layout.
    pub b: usize,
    /// The rank.
    pub rank: usize,
    /// The columns of A.
    pub input: usize,
    /// The rows of B.
    pub output: usize,
}

/// A layout that is not one of low-rank factors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LowRankError {
    /// A tensor that is neither an A nor a B.
    #[error("{0} is no low-rank factor: its name ends neither in {A} nor in {B}")]
    NoFactor(String),
    /// A factor without its other half.
    #[error("{0} has no other factor")]
    Alone(String),
    /// Factors that cannot be multiplied.
    #[error("{name} has rank {b}, its A has rank {a}")]
    Rank {
        /// The name of B.
        name: String,
        /// The rows of A.
        a: u32,
        /// The columns of B.
        b: u32,
    },
    /// What follows from it is no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// The pairs of a layout, in the order of their A.
///
/// # Errors
///
/// [`LowRankError`] if a tensor is no factor or has no other half.
pub fn factor_pairs(layout: &Layout) -> Result<Vec<FactorPair>, LowRankError> {
    let mut bs: HashMap<&str, usize> = HashMap::new();
    for (index, tensor) in layout.tensors().iter().enumerate() {
        match (tensor.name.strip_suffix(A), tensor.name.strip_suffix(B)) {
            (_, Some(stem)) => {
                bs.insert(stem, index);
            }
            (Some(_), _) => {}
            (None, None) => return Err(LowRankError::NoFactor(tensor.name.clone())),
        }
    }
    let mut pairs = Vec::with_capacity(bs.len());
    for (a, tensor) in layout.tensors().iter().enumerate() {
        let Some(stem) = tensor.name.strip_suffix(A) else {
            continue;
        };
        let alone = || LowRankError::Alone(tensor.name.clone());
        let b = bs.remove(stem).ok_or_else(alone)?;
        pairs.push(pair(layout, a, b)?);
    }
    match bs.into_values().min() {
        Some(b) => Err(LowRankError::Alone(layout.tensors()[b].name.clone())),
        None => Ok(pairs),
    }
}

fn pair(layout: &Layout, a: usize, b: usize) -> Result<FactorPair, LowRankError> {
    let (first, second) = (&layout.tensors()[a], &layout.tensors()[b]);
    if first.rows != second.cols {
        let (name, a, b) = (second.name.clone(), first.rows, second.cols);
        return Err(LowRankError::Rank { name, a, b });
    }
    Ok(FactorPair {
        a,
        b,
        rank: first.rows as usize,
        input: first.cols as usize,
        output: second.rows as usize,
    })
}

/// The layout of the same factors with another rank.
///
/// # Errors
///
/// [`LowRankError`] if a tensor is no factor, or the result is no layout.
pub fn with_rank(layout: &Layout, rank: u32) -> Result<Layout, LowRankError> {
    let resized = layout.tensors().iter().map(|tensor| {
        let TensorSpec { name, rows, cols } = tensor.clone();
        match (name.ends_with(A), name.ends_with(B)) {
            (true, _) => Ok(TensorSpec {
                name,
                rows: rank,
                cols,
            }),
            (_, true) => Ok(TensorSpec {
                name,
                rows,
                cols: rank,
            }),
            (false, false) => Err(LowRankError::NoFactor(name)),
        }
    });
    Ok(Layout::new(resized.collect::<Result<_, _>>()?)?)
}

/// The layout of the factors that are trained, in their order.
///
/// # Errors
///
/// [`LowRankError`] if B only is asked for and there is none.
pub fn trained(layout: &Layout, factors: Factors) -> Result<Layout, LowRankError> {
    let tensors = layout.tensors().iter();
    let kept = tensors.filter(|tensor| is_trained(&tensor.name, factors));
    Ok(Layout::new(kept.cloned().collect())?)
}

/// Whether the tensor of this name is trained.
pub fn is_trained(name: &str, factors: Factors) -> bool {
    match factors {
        Factors::Both => true,
        Factors::B => name.ends_with(B),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, rows: u32, cols: u32) -> TensorSpec {
        let name = name.to_owned();
        TensorSpec { name, rows, cols }
    }

    fn layout() -> Layout {
        let tensors = vec![
            spec("q.lora_A.weight", 2, 5),
            spec("v.lora_A.weight", 2, 5),
            spec("q.lora_B.weight", 7, 2),
            spec("v.lora_B.weight", 3, 2),
        ];
        Layout::new(tensors).unwrap()
    }

    #[test]
    fn factors_find_each_other() {
        let pairs = factor_pairs(&layout()).unwrap();
        let v = FactorPair {
            a: 1,
            b: 3,
            rank: 2,
            input: 5,
            output: 3,
        };
        assert_eq!((pairs.len(), pairs[1]), (2, v));
    }

    #[test]
    fn a_rank_changes_and_the_rest_stays() {
        let wider = with_rank(&layout(), 4).unwrap();
        assert_eq!(wider.tensors()[0], spec("q.lora_A.weight", 4, 5));
        assert_eq!(wider.tensors()[3], spec("v.lora_B.weight", 3, 4));
        assert_eq!(with_rank(&wider, 2).unwrap(), layout());
    }

    #[test]
    fn b_travels_alone() {
        let alone = trained(&layout(), Factors::B).unwrap();
        let names: Vec<_> = alone.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["q.lora_B.weight", "v.lora_B.weight"]);
        assert_eq!(trained(&layout(), Factors::Both).unwrap(), layout());
    }

    #[test]
    fn what_is_no_pair_is_named() {
        let of = |tensors| factor_pairs(&Layout::new(tensors).unwrap()).unwrap_err();
        let other = of(vec![spec("q.weight", 1, 1)]);
        assert_eq!(other, LowRankError::NoFactor("q.weight".into()));
        let alone = of(vec![spec("q.lora_A.weight", 1, 1)]);
        assert_eq!(alone, LowRankError::Alone("q.lora_A.weight".into()));
        let alone = of(vec![spec("q.lora_B.weight", 1, 1)]);
        assert_eq!(alone, LowRankError::Alone("q.lora_B.weight".into()));
        let rank = of(vec![
            spec("q.lora_A.weight", 2, 1),
            spec("q.lora_B.weight", 1, 3),
        ]);
        assert!(matches!(rank, LowRankError::Rank { a: 2, b: 3, .. }));
    }
}
