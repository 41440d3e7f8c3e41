//! The two state machines of a run: what the server and the client decide.
//!
//! They do no I/O. A host feeds them inputs and the time, and carries out the
//! actions it polls from them. Production, tests and simulations drive the
//! same machines.

mod backoff;
mod coordinator;
mod mersenne;
mod models;
mod participant;
mod plan;
mod policy;
mod round;
mod seed;
#[cfg(test)]
mod simulation;

pub use backoff::Backoff;
pub use coordinator::{
    Contributions, Coordinator, CoordinatorAction, CoordinatorInput, CoordinatorPhase,
    CoordinatorStatus, SnapshotError,
};
pub use models::Models;
pub use participant::{
    Participant, ParticipantAction, ParticipantInput, ParticipantState, StopReason,
};
pub use plan::{RankPlan, RunPlan, ShardFacts};
pub use policy::{Presence, RoundCounts, RoundPolicy, RoundVerdict};
pub use round::{Member, MemberState, UpdateRecord, WeightedUpdate};
