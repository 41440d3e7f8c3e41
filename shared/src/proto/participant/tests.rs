use super::*;
use crate::wire::golden::task;
use crate::wire::{
    HeldOutScore, LocalRule, ObjectiveSpec, PreferenceLoss, PreferenceSpec, Reference,
    RefuseReason, RoundOutcome, RowKind, UpdateMetrics, VariateOrigin,
};

/// What makes a sound task unsound.
type Spoil = fn(&mut TrainTask);

fn hello() -> Hello {
    Hello {
        protocol: 1,
        client_version: "1".to_owned(),
        device: "cpu".to_owned(),
        shard_rows: 3,
        shard_loss_tokens: 30,
        tokenizer: Digest::default(),
        template: Digest::default(),
        base: task().base,
        resume: None,
        shard_kind: RowKind::Examples,
        max_rank: Some(8),
    }
}

fn plain_task(round: u64) -> TrainTask {
    TrainTask {
        round: RoundId(round),
        rule: LocalRule::Plain,
        ..task()
    }
}

fn welcome() -> ServerMessage {
    ServerMessage::Welcome(Welcome {
        protocol: 1,
        run: task().run,
        federation: "test".to_owned(),
        round: RoundId(2),
        rounds: 9,
        version: task().version,
    })
}

fn offer(round: u64) -> UpdateOffer {
    UpdateOffer {
        round: RoundId(round),
        base_version: task().version,
        blob: BlobRef::of(&[round as u8]),
        rows: 1,
        loss_tokens: 1,
        metrics: UpdateMetrics::default(),
        variate: VariateOrigin::Unused,
    }
}

/// A participant, and what it wanted done since one last looked.
struct Session {
    participant: Participant,
    now: Timestamp,
}

impl Session {
    fn new(state: ParticipantState) -> Self {
        let now = Timestamp(5000);
        let participant = Participant::new(hello(), state, 1, now);
        Self { participant, now }
    }

    fn online() -> Self {
        let mut session = Self::new(ParticipantState::default());
        session.connect();
        session
    }

    fn drain(&mut self) -> Vec<ParticipantAction> {
        std::iter::from_fn(|| self.participant.poll()).collect()
    }

    fn feed(&mut self, input: ParticipantInput) -> Vec<ParticipantAction> {
        self.participant.handle(input, self.now);
        self.drain()
    }

    fn hear(&mut self, message: ServerMessage) -> Vec<ParticipantAction> {
        self.feed(ParticipantInput::Message(message))
    }

    fn tick(&mut self) -> Vec<ParticipantAction> {
        self.now = self.participant.poll_timeout().unwrap().max(self.now);
        self.participant.handle_timeout(self.now);
        self.drain()
    }

    fn connect(&mut self) -> Vec<ParticipantAction> {
        assert_eq!(self.tick(), [ParticipantAction::Connect]);
        let mut actions = self.feed(ParticipantInput::Connected);
        actions.extend(self.hear(welcome()));
        actions
    }

    fn begin(&mut self, round: u64) -> Vec<ParticipantAction> {
        self.hear(ServerMessage::Task(Box::new(plain_task(round))))
    }
}

fn send(message: ClientMessage) -> ParticipantAction {
    ParticipantAction::Send(message)
}

fn receipt(round: u64) -> ServerMessage {
    let digest = offer(round).blob.digest;
    let round = RoundId(round);
    ServerMessage::Receipt { round, digest }
}

#[test]
fn a_task_becomes_an_update_and_the_update_a_receipt() {
    let mut session = Session::online();
    let train = ParticipantAction::Train(Box::new(plain_task(2)));
    let round = RoundId(2);
    assert_eq!(
        session.begin(2),
        [send(ClientMessage::Accept { round }), train]
    );
    assert_eq!(
        session.feed(ParticipantInput::Trained(offer(2))),
        [
            ParticipantAction::Persist,
            send(ClientMessage::Offer(offer(2)))
        ]
    );
    assert_eq!(session.participant.state().held, Some(offer(2)));
    let (offset, offer) = (0, offer(2));
    assert_eq!(
        session.hear(ServerMessage::Ready { round, offset }),
        [ParticipantAction::Upload {
            offer: offer.clone(),
            offset
        }]
    );
    assert_eq!(
        session.hear(receipt(2)),
        [
            ParticipantAction::Persist,
            ParticipantAction::Discard(offer.blob.digest),
            ParticipantAction::Counted { round },
        ]
    );
    assert_eq!(session.participant.state().held, None);
    assert_eq!(session.participant.state().last_round, Some(round));
    // A second receipt, or the same round again, changes nothing.
    assert_eq!(session.hear(receipt(2)), []);
    let reason = DeclineReason::StaleRound;
    assert_eq!(
        session.begin(2),
        [send(ClientMessage::Decline { round, reason })]
    );
}

#[test]
fn training_goes_on_without_a_connection() {
    let mut session = Session::online();
    session.begin(2);
    assert_eq!(session.feed(ParticipantInput::Disconnected), []);
    assert!(session.participant.training().is_some());
    assert_eq!(
        session.feed(ParticipantInput::Trained(offer(2))),
        [ParticipantAction::Persist]
    );
    let actions = session.connect();
    let ParticipantAction::Send(ClientMessage::Hello(hello)) = &actions[0] else {
        panic!("{actions:?}");
    };
    assert_eq!(hello.resume, Some((RoundId(2), offer(2).blob.digest)));
    assert_eq!(actions.last(), Some(&send(ClientMessage::Offer(offer(2)))));
    // The task again is answered with the update, not with more work.
    assert_eq!(session.begin(2), [send(ClientMessage::Offer(offer(2)))]);
}

#[test]
fn an_update_survives_a_restart() {
    let state = ParticipantState {
        run: Some(task().run),
        held: Some(offer(2)),
        ..ParticipantState::default()
    };
    let text = serde_json::to_string(&state).unwrap();
    let mut session = Session::new(serde_json::from_str(&text).unwrap());
    let actions = session.connect();
    assert_eq!(actions.last(), Some(&send(ClientMessage::Offer(offer(2)))));
    let reason = RefuseReason::RoundNotOpen;
    let round = RoundId(2);
    assert_eq!(
        session.hear(ServerMessage::Refused { round, reason }),
        [
            ParticipantAction::Persist,
            ParticipantAction::Discard(offer(2).blob.digest),
        ]
    );
}

#[test]
fn an_update_of_another_run_is_forgotten() {
    let state = ParticipantState {
        run: Some(RunId([9; 16])),
        last_round: Some(RoundId(50)),
        last_version: ModelVersion(500),
        held: Some(offer(2)),
    };
    let mut session = Session::new(state);
    let actions = session.connect();
    assert!(actions.contains(&ParticipantAction::Discard(offer(2).blob.digest)));
    assert!(!actions.contains(&send(ClientMessage::Offer(offer(2)))));
    assert_eq!(
        session.begin(2).len(),
        2,
        "the new run counts from its own beginning"
    );
}

#[test]
fn unfit_tasks_are_declined() {
    let cases: [(Spoil, DeclineReason); 6] = [
        (|t| t.base = Digest::of(b""), DeclineReason::WrongBase),
        (|t| t.local.steps = 0, DeclineReason::OutOfBounds),
        (|t| t.lora.rank = 9, DeclineReason::OutOfBounds),
        (
            |t| {
                t.objective = ObjectiveSpec::Dpo(PreferenceSpec {
                    beta: 0.1,
                    label_smoothing: 0.0,
                    loss: PreferenceLoss::Sigmoid,
                    reference: Reference::Base,
                });
            },
            DeclineReason::WrongRows,
        ),
        (|t| t.run = RunId([9; 16]), DeclineReason::StaleRound),
        (|t| t.version = ModelVersion(0), DeclineReason::StaleRound),
    ];
    for (spoil, reason) in cases {
        let mut session = Session::online();
        session.hear(ServerMessage::RoundClosed(summary(1)));
        let mut task = plain_task(2);
        spoil(&mut task);
        let round = RoundId(2);
        assert_eq!(
            session.hear(ServerMessage::Task(Box::new(task))),
            [send(ClientMessage::Decline { round, reason })]
        );
    }
    let mut session = Session::online();
    session.feed(ParticipantInput::SetPaused(true));
    let (round, reason) = (RoundId(2), DeclineReason::Paused);
    assert_eq!(
        session.begin(2),
        [send(ClientMessage::Decline { round, reason })]
    );
}

fn summary(round: u64) -> RoundSummary {
    RoundSummary {
        round: RoundId(round),
        version: task().version,
        outcome: RoundOutcome::Complete,
        updates: 2,
        loss: 1.0,
    }
}

#[test]
fn a_round_that_ends_ends_the_training_for_it() {
    let mut session = Session::online();
    session.begin(2);
    let round = RoundId(2);
    let actions = session.hear(ServerMessage::RoundClosed(summary(2)));
    assert_eq!(actions[0], ParticipantAction::StopTraining { round });
    // What the trainer still hands in is thrown away.
    assert_eq!(
        session.feed(ParticipantInput::Trained(offer(2))),
        [ParticipantAction::Discard(offer(2).blob.digest)]
    );
    session.begin(3);
    let actions = session.begin(4);
    assert_eq!(
        actions[0],
        ParticipantAction::StopTraining { round: RoundId(3) }
    );
}

#[test]
fn failures_are_told_and_nothing_is_held() {
    let mut session = Session::online();
    session.begin(2);
    let (round, reason) = (RoundId(2), FailReason::NonFinite);
    assert_eq!(
        session.feed(ParticipantInput::TrainFailed { round, reason }),
        [send(ClientMessage::Failed { round, reason })]
    );
    assert_eq!(
        session.feed(ParticipantInput::TrainFailed { round, reason }),
        []
    );
    session.begin(2);
    let reason = DeclineReason::WrongLayout;
    assert_eq!(
        session.feed(ParticipantInput::Unfit { round, reason }),
        [send(ClientMessage::Decline { round, reason })]
    );
    assert_eq!(session.participant.training(), None);
}

#[test]
fn a_failed_upload_is_offered_again_after_a_while() {
    let mut session = Session::online();
    session.begin(2);
    session.feed(ParticipantInput::Trained(offer(2)));
    let (round, offset) = (RoundId(2), 0);
    let ready = ServerMessage::Ready { round, offset };
    assert_eq!(session.hear(ready.clone()).len(), 1);
    assert_eq!(session.hear(ready.clone()), [], "one upload at a time");
    assert_eq!(session.feed(ParticipantInput::UploadFailed { round }), []);
    assert!(session.participant.poll_timeout() >= Some(session.now + Backoff::MIN));
    assert_eq!(session.tick(), [send(ClientMessage::Offer(offer(2)))]);
    assert_eq!(session.hear(ready).len(), 1);
    let reason = FailReason::Internal;
    assert_eq!(
        session.feed(ParticipantInput::HeldLost),
        [
            ParticipantAction::Persist,
            send(ClientMessage::Failed { round, reason })
        ]
    );
}

#[test]
fn lost_connections_are_made_again_with_growing_waits() {
    let mut session = Session::new(ParticipantState::default());
    let mut waits = Vec::new();
    for _ in 0..30 {
        let before = session.now;
        assert_eq!(session.tick(), [ParticipantAction::Connect]);
        waits.push(session.now - before);
        session.feed(ParticipantInput::Disconnected);
    }
    assert_eq!(waits[0], Duration::ZERO);
    assert!(
        waits[1..]
            .iter()
            .all(|wait| (Backoff::MIN..=Backoff::MAX).contains(wait))
    );
    assert!(
        waits[10..]
            .iter()
            .any(|wait| *wait > Duration::from_secs(60))
    );
}

#[test]
fn a_silent_server_is_left() {
    let mut session = Session::new(ParticipantState::default());
    session.tick();
    session.feed(ParticipantInput::Connected);
    let begin = session.now;
    assert_eq!(session.tick(), [ParticipantAction::Disconnect]);
    assert_eq!(session.now, begin + GREETING);
    assert_eq!(session.tick(), [ParticipantAction::Connect]);
}

#[test]
fn errors_end_the_session_or_only_the_connection() {
    let mut session = Session::online();
    session.begin(2);
    let error = |code| ServerMessage::Error {
        code,
        message: "why".to_owned(),
    };
    assert_eq!(
        session.hear(error(ErrorCode::Busy)),
        [ParticipantAction::Disconnect]
    );
    assert!(session.participant.training().is_some());
    session.connect();
    let actions = session.hear(error(ErrorCode::WrongBase));
    let (code, message) = (ErrorCode::WrongBase, "why".to_owned());
    let reason = StopReason::Refused { code, message };
    assert_eq!(actions.last(), Some(&ParticipantAction::Stop(reason)));
    assert_eq!(session.participant.poll_timeout(), None);
    assert_eq!(session.begin(3), []);
}

#[test]
fn leaving_is_said_and_keeps_the_update() {
    let mut session = Session::online();
    session.begin(2);
    session.feed(ParticipantInput::Trained(offer(2)));
    let stop = ParticipantAction::Stop(StopReason::Left);
    let leaving = send(ClientMessage::Leaving);
    assert_eq!(
        session.feed(ParticipantInput::Leave),
        [leaving, ParticipantAction::Disconnect, stop.clone()]
    );
    assert_eq!(session.participant.state().held, Some(offer(2)));
    let mut offline = Session::new(ParticipantState::default());
    assert_eq!(offline.feed(ParticipantInput::Leave), [stop]);
}

#[test]
fn the_end_of_the_run_is_the_end() {
    let mut session = Session::online();
    session.begin(2);
    let (version, adapter) = (ModelVersion(400), BlobRef::of(b"last"));
    let actions = session.hear(ServerMessage::Finished { version, adapter });
    let stop = ParticipantAction::Stop(StopReason::Finished { version, adapter });
    assert_eq!(
        actions,
        [ParticipantAction::StopTraining { round: RoundId(2) }, stop]
    );
}

#[test]
fn a_score_is_said_while_its_round_is_worked_on() {
    let mut session = Session::online();
    let round = RoundId(2);
    let score = HeldOutScore {
        loss: 1.0,
        accuracy: 0.5,
        rows: 9,
    };
    let scored = |round, score| ParticipantInput::Scored { round, score };
    assert_eq!(session.feed(scored(round, score)), [], "there is no task");
    session.hear(ServerMessage::Task(Box::new(plain_task(2))));
    let said = ClientMessage::Evaluated { round, score };
    let said = [ParticipantAction::Send(said)];
    assert_eq!(session.feed(scored(round, score)), said);
    assert_eq!(session.feed(scored(RoundId(1), score)), []);
    let few = HeldOutScore { rows: 1, ..score };
    assert_eq!(session.feed(scored(round, few)), [], "that would be a row");
    session.feed(ParticipantInput::Disconnected);
    assert_eq!(session.feed(scored(round, score)), [], "nobody listens");
}
