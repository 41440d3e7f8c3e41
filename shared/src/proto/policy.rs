//! When a round opens and when it closes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::RoundsConfig;
use crate::wire::RoundOutcome;

/// When a round opens and when it closes. Grows at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoundPolicy {
    /// A cohort is asked at once, and the round waits for all of it until a deadline.
    Synchronous {
        /// Clients asked.
        cohort: u32,
        /// Clients that must be there before the round opens.
        min_clients: u32,
        /// Updates that are enough at the deadline.
        quorum: u32,
        /// How long the round lasts at most.
        deadline: Duration,
    },
}

/// Who is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Presence {
    /// Clients connected, and those gone whose update is in.
    pub clients: u32,
    /// Clients connected that may still be asked.
    pub candidates: u32,
}

/// A round in figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RoundCounts {
    /// Clients asked whose answer is not in.
    pub pending: u32,
    /// Updates that are in.
    pub stored: u32,
}

/// What to do with a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundVerdict {
    /// Let it go on.
    Wait,
    /// Average what is in.
    Close(RoundOutcome),
    /// Ask another cohort: too little is in and the time is over.
    Missed,
}

impl RoundPolicy {
    /// How long an open round lasts at most.
    pub fn deadline(&self) -> Duration {
        let Self::Synchronous { deadline, .. } = self;
        *deadline
    }

    /// Whether enough clients are there to open a round.
    pub fn may_open(&self, presence: Presence, counts: RoundCounts) -> bool {
        let Self::Synchronous {
            min_clients,
            quorum,
            ..
        } = *self;
        presence.clients >= min_clients
            && presence.candidates > 0
            && counts.stored + presence.candidates >= quorum
    }

    /// How many more clients may be asked, when `open_for` has passed since the round opened.
    ///
    /// A client asked in the second half of a round would hardly finish it.
    pub fn free_slots(&self, counts: RoundCounts, open_for: Duration) -> u32 {
        let Self::Synchronous {
            cohort, deadline, ..
        } = *self;
        match open_for * 2 <= deadline {
            true => cohort.saturating_sub(counts.pending + counts.stored),
            false => 0,
        }
    }

    /// What to do with a round whose free slots have been filled.
    pub fn verdict(&self, counts: RoundCounts, overdue: bool) -> RoundVerdict {
        let Self::Synchronous { quorum, .. } = *self;
        let enough = counts.stored >= quorum.max(1);
        match (enough, counts.pending == 0, overdue) {
            (true, true, _) => RoundVerdict::Close(RoundOutcome::Complete),
            (true, false, true) => RoundVerdict::Close(RoundOutcome::Quorum),
            (false, _, true) => RoundVerdict::Missed,
            (_, _, false) => RoundVerdict::Wait,
        }
    }
}

impl From<&RoundsConfig> for RoundPolicy {
    fn from(rounds: &RoundsConfig) -> Self {
        Self::Synchronous {
            cohort: rounds.cohort,
            min_clients: rounds.min_clients,
            quorum: rounds.quorum,
            deadline: rounds.deadline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RoundPolicy = RoundPolicy::Synchronous {
        cohort: 4,
        min_clients: 3,
        quorum: 2,
        deadline: Duration::from_secs(100),
    };

    fn counts(pending: u32, stored: u32) -> RoundCounts {
        RoundCounts { pending, stored }
    }

    #[test]
    fn a_round_opens_when_it_can_succeed() {
        let may_open = |clients, candidates, stored| {
            let presence = Presence {
                clients,
                candidates,
            };
            POLICY.may_open(presence, counts(0, stored))
        };
        assert!(may_open(3, 3, 0));
        assert!(may_open(3, 1, 1));
        assert!(!may_open(2, 2, 0), "too few are there");
        assert!(!may_open(3, 1, 0), "no quorum in sight");
        assert!(!may_open(3, 0, 3), "nobody to ask");
    }

    #[test]
    fn slots_are_filled_in_the_first_half() {
        let counts = counts(2, 1);
        assert_eq!(POLICY.free_slots(counts, Duration::from_secs(50)), 1);
        assert_eq!(POLICY.free_slots(counts, Duration::from_secs(51)), 0);
    }

    #[test]
    fn a_round_closes_complete_or_with_a_quorum_or_is_missed() {
        use RoundVerdict::{Close, Missed, Wait};
        for (pending, stored, overdue, verdict) in [
            (0, 4, false, Close(RoundOutcome::Complete)),
            (0, 2, true, Close(RoundOutcome::Complete)),
            (1, 3, false, Wait),
            (1, 3, true, Close(RoundOutcome::Quorum)),
            (1, 1, false, Wait),
            (1, 1, true, Missed),
            (0, 1, false, Wait),
        ] {
            let counts = counts(pending, stored);
            assert_eq!(POLICY.verdict(counts, overdue), verdict, "{counts:?}");
        }
    }
}
