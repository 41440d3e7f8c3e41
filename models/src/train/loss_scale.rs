//! Dynamic loss scaling (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2), with the constants
//! of PyTorch's `GradScaler`.
//!
//! Gradients are often smaller than half precision can hold. Multiplied by a factor while they pass
//! through the model they are not, until one of them is too large: then the step is not finite, and is
//! done again with half the factor.

/// The factor of the first step.
const FIRST: f32 = 65_536.0;
/// The largest factor; beyond it nothing is gained.
const LARGEST: f32 = 16_777_216.0;
/// Steps in a row that must go well before the factor is doubled.
const PATIENCE: u32 = 2_000;

/// The factor, and how long it has held: a power of two, so that scaling rounds nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LossScale {
    factor: f32,
    went_well: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        Self {
            factor: FIRST,
            went_well: 0,
        }
    }
}

impl LossScale {
    /// What gradients are multiplied with.
    pub(super) fn factor(&self) -> f32 {
        self.factor
    }

    /// Halves the factor after a step that was not finite; says no where that is not the reason.
    pub(super) fn back_off(&mut self) -> bool {
        self.went_well = 0;
        let can = self.factor > 1.0;
        if can {
            self.factor /= 2.0;
        }
        can
    }

    /// After a step that was finite.
    pub(super) fn went_well(&mut self) {
        self.went_well += 1;
        if self.went_well == PATIENCE {
            self.went_well = 0;
            self.factor = (self.factor * 2.0).min(LARGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_doubles_after_many_good_steps_and_halves_after_a_bad_one() {
        let mut scale = LossScale::default();
        (1..PATIENCE).for_each(|_| scale.went_well());
        assert_eq!(scale.factor(), FIRST);
        scale.went_well();
        assert_eq!(scale.factor(), 2.0 * FIRST);
        (1..PATIENCE).for_each(|_| scale.went_well());
        assert!(scale.back_off());
        assert_eq!(scale.factor(), FIRST);
        // The good steps before it do not count.
        scale.went_well();
        assert_eq!(scale.factor(), FIRST);
    }

    #[test]
    fn the_factor_stays_between_one_and_the_largest() {
        let mut scale = LossScale::default();
        (0..20 * PATIENCE).for_each(|_| scale.went_well());
        assert_eq!(scale.factor(), LARGEST);
        let halvings = (0..100).filter(|_| scale.back_off()).count();
        assert_eq!((halvings, scale.factor()), (24, 1.0));
    }
}
