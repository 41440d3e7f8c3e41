//! The connection of a session: made, used, lost.

use std::time::Duration;

use fedllm_shared::{ClientMessage, DeclineReason, ParticipantInput, ServerMessage};

use super::{Session, SessionError};
use crate::ledger::Kind;
use crate::net::{Dial, NetError, Transport};
use crate::notice::Notice;

impl<D: Dial> Session<D> {
    pub(super) async fn connect(&mut self) -> Result<(), SessionError> {
        let dialed = tokio::select! {
            biased;
            () = self.stop.stopped(), if !self.leaving => None,
            dialed = self.dialer.dial() => Some(dialed),
        };
        match dialed {
            Some(Ok(link)) => {
                self.link = Some(link);
                self.input(ParticipantInput::Connected);
            }
            Some(Err(error)) => self.lost(error)?,
            // The owner stops, which the loop sees next.
            None => self.input(ParticipantInput::Disconnected),
        }
        Ok(())
    }

    pub(super) fn disconnect(&mut self) {
        if let Some(link) = self.link.take() {
            // A goodbye takes a moment, and nothing waits for it; at the end `run` does.
            tokio::spawn(link.close());
        }
    }

    pub(super) async fn send(&mut self, message: ClientMessage) -> Result<(), SessionError> {
        self.note_sent(&message);
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        match link.send(&message).await {
            Ok(bytes) => self.meter.count(kind(&message), bytes),
            Err(error) => self.lost(error)?,
        }
        if message == ClientMessage::Leaving {
            // The goodbye itself must arrive before the program ends.
            if let Some(link) = self.link.take() {
                link.close().await;
            }
        }
        Ok(())
    }

    /// Tells the owner of a task that is not done here.
    pub(super) fn note_sent(&mut self, message: &ClientMessage) {
        let ClientMessage::Decline { round, reason } = message else {
            return;
        };
        (self.notices)(Notice::Failed {
            round: round.0,
            reason: reason.to_string(),
        });
        let lasting = match reason {
            DeclineReason::StaleRound | DeclineReason::Paused => false,
            DeclineReason::WrongBase
            | DeclineReason::WrongLayout
            | DeclineReason::OutOfBounds
            | DeclineReason::Unsupported
            | DeclineReason::WrongRows => true,
        };
        if lasting {
            self.give_up(SessionError::Unfit(*reason));
        }
    }

    /// The connection is gone, or could not be made.
    pub(super) fn lost(&mut self, error: NetError) -> Result<(), SessionError> {
        self.disconnect();
        if !error.is_transient() {
            return Err(error.into());
        }
        self.input(ParticipantInput::Disconnected);
        let now = self.now();
        let retry = self
            .participant
            .poll_timeout()
            .map_or(Duration::ZERO, |at| at.since(now));
        (self.notices)(Notice::Disconnected {
            reason: error.to_string(),
            retry_seconds: retry.as_secs_f64(),
        });
        Ok(())
    }

    pub(super) fn message(&mut self, message: ServerMessage) {
        match &message {
            ServerMessage::Wait { reason, .. } => {
                (self.notices)(Notice::Waiting {
                    reason: reason.to_string(),
                });
            }
            ServerMessage::Refused { round, reason } => self.refused(*round, *reason),
            _ => {}
        }
        self.input(ParticipantInput::Message(message));
    }
}

fn kind(message: &ClientMessage) -> Kind {
    match message {
        ClientMessage::Hello(_) => Kind::Hello,
        ClientMessage::Progress { .. } => Kind::Progress,
        ClientMessage::Offer(_) => Kind::Offer,
        ClientMessage::Evaluated { .. } => Kind::Evaluation,
        ClientMessage::Accept { .. }
        | ClientMessage::Decline { .. }
        | ClientMessage::Failed { .. }
        | ClientMessage::Leaving => Kind::Answer,
    }
}
