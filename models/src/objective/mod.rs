//! What local training minimizes besides the mean cross-entropy of labelled tokens.

mod preference;

pub use preference::{
    PairError, PairReference, PairScore, PreferenceSettings, PreferenceStats, pair_scores,
};
pub(crate) use preference::{PairTally, check_pairs};
