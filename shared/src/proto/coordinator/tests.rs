use std::time::Duration;

use super::*;
use crate::adapter::{Layout, TensorSpec};
use crate::config::Federation;
use crate::id::RunId;
use crate::proto::{RoundPolicy, WeightedUpdate};
use crate::wire::{
    BlobRef, ClientsScore, ErrorCode, HeldOutScore, Hello, LocalRule, PROTOCOL, RowKind, TrainTask,
    UpdateMetrics, VariateForm, WaitReason,
};

/// What makes a sound value unsound.
type Spoil<T> = fn(&mut T);

const DEADLINE: Duration = Duration::from_secs(100);

fn plan(cohort: u32, min_clients: u32, quorum: u32) -> RunPlan {
    plan_of("", (cohort, min_clients, quorum))
}

fn plan_of(settings: &str, (cohort, min_clients, quorum): (u32, u32, u32)) -> RunPlan {
    let spec = |name: &str, rows, cols| TensorSpec {
        name: name.to_owned(),
        rows,
        cols,
    };
    let a = spec("a.lora_A.weight", 8, 4);
    let layout = Layout::new(vec![a, spec("a.lora_B.weight", 6, 8)]).unwrap();
    let federation = Federation::parse(&format!("[rounds]\ncount = 2\n{settings}")).unwrap();
    let base = Digest::of(b"base");
    let mut models = Models::shared(BlobRef::of(b"adapter 0"));
    models.variate = Some(BlobRef::of(b"variate 0"));
    models.ranked.insert(4, BlobRef::of(b"rank 4"));
    let plan = RunPlan::new(&federation, RunId([7; 16]), base, &layout, models);
    let mut plan = plan.unwrap();
    plan.policy = RoundPolicy::Synchronous {
        cohort,
        min_clients,
        quorum,
        deadline: DEADLINE,
    };
    plan
}

fn client(index: u8) -> ClientId {
    ClientId([index; 32])
}

fn facts(rows: u64) -> ShardFacts {
    ShardFacts {
        rows,
        loss_tokens: 10 * rows,
        resume: None,
        rank: None,
    }
}

fn offer(index: u8, round: u64) -> UpdateOffer {
    UpdateOffer {
        round: RoundId(round),
        base_version: ModelVersion(round),
        blob: BlobRef::of(&[index, round as u8]),
        rows: 40,
        loss_tokens: 400,
        metrics: UpdateMetrics {
            loss_mean: index.into(),
            ..UpdateMetrics::default()
        },
        variate: VariateOrigin::Unused,
    }
}

/// A coordinator, and what it wanted done since one last looked.
struct Host {
    coordinator: Coordinator,
    now: Timestamp,
    actions: Vec<CoordinatorAction>,
}

impl Host {
    fn new(plan: RunPlan) -> Self {
        let mut host = Self {
            coordinator: Coordinator::new(plan, Timestamp(0)),
            now: Timestamp(0),
            actions: Vec::new(),
        };
        host.drain();
        host
    }

    fn drain(&mut self) {
        while let Some(action) = self.coordinator.poll() {
            self.actions.push(action);
        }
    }

    fn feed(&mut self, input: CoordinatorInput) -> Vec<CoordinatorAction> {
        self.coordinator.handle(input, self.now);
        self.drain();
        std::mem::take(&mut self.actions)
    }

    fn join(&mut self, index: u8) -> Vec<CoordinatorAction> {
        let (client, facts) = (client(index), facts(u64::from(index) * 100));
        self.feed(CoordinatorInput::Join { client, facts })
    }

    fn offer(&mut self, index: u8, offer: UpdateOffer) -> Vec<CoordinatorAction> {
        let client = client(index);
        self.feed(CoordinatorInput::Offered { client, offer })
    }

    fn store(&mut self, index: u8, round: u64) -> Vec<CoordinatorAction> {
        self.feed(CoordinatorInput::Stored {
            client: client(index),
            round: RoundId(round),
            digest: offer(index, round).blob.digest,
            norm: 1.0,
        })
    }

    fn deliver(&mut self, index: u8, round: u64) -> Vec<CoordinatorAction> {
        let mut actions = self.offer(index, offer(index, round));
        actions.extend(self.store(index, round));
        actions
    }

    fn aggregated(&mut self, round: u64) -> Vec<CoordinatorAction> {
        self.feed(CoordinatorInput::Aggregated {
            round: RoundId(round),
            models: Models::shared(BlobRef::of(format!("adapter {}", round + 1).as_bytes())),
            report: RoundReport::default(),
        })
    }

    fn wait(&mut self, duration: Duration) -> Vec<CoordinatorAction> {
        self.now = self.now + duration;
        self.coordinator.handle_timeout(self.now);
        self.drain();
        std::mem::take(&mut self.actions)
    }

    fn crash(&mut self) -> Vec<CoordinatorAction> {
        let snapshot = self.coordinator.snapshot();
        self.coordinator = Coordinator::restore(&snapshot, self.now).unwrap();
        self.drain();
        std::mem::take(&mut self.actions)
    }

    fn phase(&self) -> CoordinatorPhase {
        self.coordinator.status().phase
    }
}

fn messages(actions: &[CoordinatorAction], index: u8) -> Vec<&ServerMessage> {
    let to = client(index);
    let messages = actions.iter().filter_map(|action| match action {
        CoordinatorAction::Send { client, message } if *client == to => Some(message),
        _ => None,
    });
    messages.collect()
}

fn task(actions: &[CoordinatorAction], index: u8) -> Option<&TrainTask> {
    messages(actions, index)
        .into_iter()
        .find_map(|message| match message {
            ServerMessage::Task(task) => Some(&**task),
            _ => None,
        })
}

fn refusal(actions: &[CoordinatorAction], index: u8) -> Option<RefuseReason> {
    messages(actions, index)
        .into_iter()
        .find_map(|message| match message {
            ServerMessage::Refused { reason, .. } => Some(*reason),
            _ => None,
        })
}

fn has_receipt(actions: &[CoordinatorAction], index: u8) -> bool {
    let mut messages = messages(actions, index).into_iter();
    messages.any(|message| matches!(message, ServerMessage::Receipt { .. }))
}

fn averaged(actions: &[CoordinatorAction]) -> Option<Vec<WeightedUpdate>> {
    actions.iter().find_map(|action| match action {
        CoordinatorAction::Aggregate(round) => Some(round.updates.clone()),
        _ => None,
    })
}

#[test]
fn a_run_goes_from_its_first_round_to_its_last() {
    let mut host = Host::new(plan(3, 2, 2));
    let actions = host.join(1);
    assert!(matches!(
        messages(&actions, 1)[..],
        [
            ServerMessage::Welcome(_),
            ServerMessage::Wait {
                reason: WaitReason::MoreClients,
                ..
            }
        ]
    ));
    let actions = host.join(2);
    for index in [1, 2] {
        let task = task(&actions, index).unwrap();
        assert_eq!((task.round, task.version), (RoundId(0), ModelVersion(0)));
        assert_eq!(task.deadline_ms, 100_000);
        assert_eq!(task.check(), Ok(()));
    }

    assert!(has_receipt(&host.deliver(2, 0), 2));
    let updates = averaged(&host.deliver(1, 0)).unwrap();
    let expected = [(client(1), 100.0), (client(2), 200.0)];
    let got: Vec<_> = updates
        .iter()
        .map(|update| (update.client, update.weight))
        .collect();
    assert_eq!(got, expected);

    let actions = host.aggregated(0);
    let ServerMessage::RoundClosed(summary) = messages(&actions, 1)[0] else {
        panic!("{actions:?}");
    };
    assert_eq!((summary.version, summary.updates), (ModelVersion(1), 2));
    // (100 * 1 + 200 * 2) / 300.
    assert!((summary.loss - 5.0 / 3.0).abs() < 1e-6);
    let task = task(&actions, 2).unwrap();
    assert_eq!((task.round, task.version), (RoundId(1), ModelVersion(1)));
    assert_eq!(task.adapter, BlobRef::of(b"adapter 1"));

    host.deliver(1, 1);
    host.deliver(2, 1);
    let actions = host.aggregated(1);
    assert_eq!(host.phase(), CoordinatorPhase::Finished);
    assert!(matches!(
        actions.last(),
        Some(CoordinatorAction::Finish { .. })
    ));
    assert!(matches!(
        messages(&actions, 1)[1],
        ServerMessage::Finished { .. }
    ));
    assert!(matches!(
        messages(&host.join(3), 3)[1],
        ServerMessage::Finished { .. }
    ));
}

/// An update is durable before its client hears of it.
#[test]
fn a_receipt_comes_after_persisting() {
    let mut host = Host::new(plan(2, 2, 2));
    host.join(1);
    host.join(2);
    let actions = host.deliver(1, 0);
    let place = |wanted: fn(&CoordinatorAction) -> bool| actions.iter().position(wanted).unwrap();
    let recorded = place(|action| matches!(action, CoordinatorAction::Record(_)));
    let persisted = place(|action| *action == CoordinatorAction::Persist);
    let sent = place(|action| matches!(action, CoordinatorAction::Send { .. }));
    assert!(recorded < persisted && persisted < sent);
}

#[test]
fn the_same_update_gets_the_same_receipt_and_counts_once() {
    let mut host = Host::new(plan(2, 2, 2));
    host.join(1);
    host.join(2);
    host.deliver(1, 0);
    assert!(has_receipt(&host.offer(1, offer(1, 0)), 1));
    assert!(has_receipt(&host.store(1, 0), 1));
    let mut other = offer(1, 0);
    other.blob = BlobRef::of(b"another");
    let refused = host.offer(1, other);
    assert_eq!(refusal(&refused, 1), Some(RefuseReason::Conflict));
    assert_eq!(averaged(&host.deliver(2, 0)).unwrap().len(), 2);

    // The round after, the receipt is still known; two rounds after, it is not.
    host.aggregated(0);
    assert!(has_receipt(&host.offer(1, offer(1, 0)), 1));
    host.deliver(1, 1);
    host.deliver(2, 1);
    host.aggregated(1);
    let refused = host.offer(1, offer(1, 0));
    assert_eq!(refusal(&refused, 1), Some(RefuseReason::RoundNotOpen));
}

#[test]
fn unfit_updates_are_refused_by_their_offer() {
    let cases: [(Spoil<UpdateOffer>, RefuseReason); 5] = [
        (
            |o| o.base_version = ModelVersion(9),
            RefuseReason::WrongVersion,
        ),
        (|o| o.blob.len = 1 << 40, RefuseReason::TooLarge),
        (|o| o.metrics.loss_last = f32::NAN, RefuseReason::NonFinite),
        (|o| o.loss_tokens = 0, RefuseReason::NoWeight),
        (|o| o.round = RoundId(1), RefuseReason::RoundNotOpen),
    ];
    for (spoil, reason) in cases {
        let mut host = Host::new(plan(2, 2, 1));
        host.join(1);
        host.join(2);
        let mut bad = offer(1, 0);
        spoil(&mut bad);
        assert_eq!(refusal(&host.offer(1, bad), 1), Some(reason));
        assert_eq!(host.coordinator.awaited(client(1)), None);
    }
    let mut host = Host::new(plan(1, 2, 1));
    host.join(1);
    host.join(2);
    let outsider = if host.coordinator.members().contains_key(&client(1)) {
        2
    } else {
        1
    };
    let refused = host.offer(outsider, offer(outsider, 0));
    assert_eq!(refusal(&refused, outsider), Some(RefuseReason::NotInCohort));
}

#[test]
fn a_refused_client_gets_no_second_try_in_its_cohort() {
    let mut host = Host::new(plan(2, 2, 2));
    host.join(1);
    host.join(2);
    host.offer(1, offer(1, 0));
    let actions = host.feed(CoordinatorInput::Rejected {
        client: client(1),
        round: RoundId(0),
        reason: RefuseReason::NonFinite,
    });
    assert_eq!(refusal(&actions, 1), Some(RefuseReason::NonFinite));
    let again = host.offer(1, offer(1, 0));
    assert_eq!(refusal(&again, 1), Some(RefuseReason::AlreadyRefused));
    // With the next cohort it may. What is stored cannot be rejected.
    host.deliver(2, 0);
    let actions = host.feed(CoordinatorInput::Rejected {
        client: client(2),
        round: RoundId(0),
        reason: RefuseReason::NonFinite,
    });
    assert_eq!(actions, []);
    let actions = host.wait(DEADLINE);
    let task = task(&actions, 1).unwrap();
    assert_eq!(task.round, RoundId(0));
    assert_eq!(averaged(&host.deliver(1, 0)).unwrap().len(), 2);
}

#[test]
fn a_client_that_comes_back_gets_the_same_task() {
    let mut host = Host::new(plan(2, 2, 2));
    host.join(1);
    let first = host.join(2);
    let first = task(&first, 1).unwrap();
    host.feed(CoordinatorInput::Lost { client: client(1) });
    host.wait(Duration::from_secs(30));
    let again = host.join(1);
    let again = task(&again, 1).unwrap();
    assert_eq!(again.deadline_ms, 70_000);
    let deadline_ms = first.deadline_ms;
    assert_eq!(
        *first,
        TrainTask {
            deadline_ms,
            ..again.clone()
        }
    );

    // One that has its update already is left to offer it.
    host.feed(CoordinatorInput::Lost { client: client(1) });
    let held = offer(1, 0);
    let facts = ShardFacts {
        resume: Some((held.round, held.blob.digest)),
        ..facts(100)
    };
    let client = client(1);
    let actions = host.feed(CoordinatorInput::Join { client, facts });
    assert_eq!(task(&actions, 1), None);
    let actions = host.offer(1, held);
    assert!(matches!(actions[..], [CoordinatorAction::Await { .. }]));
}

#[test]
fn a_latecomer_fills_a_free_place_in_the_first_half() {
    let mut host = Host::new(plan(3, 2, 2));
    host.join(1);
    host.join(2);
    host.wait(DEADLINE / 2);
    assert!(task(&host.join(3), 3).is_some());
    assert!(task(&host.join(4), 4).is_none(), "the cohort is complete");
    host.feed(CoordinatorInput::Declined {
        client: client(3),
        round: RoundId(0),
        reason: DeclineReason::Paused,
    });
    assert_eq!(
        host.coordinator.status().pending,
        3,
        "client 4 takes the place"
    );

    let mut host = Host::new(plan(3, 2, 2));
    host.join(1);
    host.join(2);
    host.wait(DEADLINE / 2 + Duration::from_millis(1));
    let actions = host.join(3);
    assert!(matches!(
        messages(&actions, 3)[1],
        ServerMessage::Wait {
            reason: WaitReason::NotInCohort,
            ..
        }
    ));
}

#[test]
fn a_quorum_is_enough_at_the_deadline_only() {
    let mut host = Host::new(plan(3, 3, 2));
    for index in [1, 2, 3] {
        host.join(index);
    }
    host.deliver(1, 0);
    assert_eq!(averaged(&host.deliver(2, 0)), None);
    assert_eq!(host.coordinator.poll_timeout(), Some(Timestamp(100_000)));
    let updates = averaged(&host.wait(DEADLINE)).unwrap();
    assert_eq!(updates.len(), 2);
    let late = host.offer(3, offer(3, 0));
    assert_eq!(refusal(&late, 3), Some(RefuseReason::RoundNotOpen));
}

#[test]
fn a_missed_round_keeps_its_updates_and_asks_again() {
    let mut host = Host::new(plan(3, 3, 3));
    for index in [1, 2, 3] {
        host.join(index);
    }
    host.deliver(1, 0);
    host.feed(CoordinatorInput::Lost { client: client(3) });
    let actions = host.wait(DEADLINE);
    // Two are connected and one update is in: too few for three.
    assert_eq!(host.phase(), CoordinatorPhase::Gathering);
    assert_eq!(task(&actions, 2), None);
    // The missed client's update still counts, and so does the newcomer's.
    assert!(has_receipt(&host.deliver(2, 0), 2));
    let actions = host.join(4);
    assert_eq!(task(&actions, 4).unwrap().round, RoundId(0));
    let clients: Vec<_> = averaged(&host.deliver(4, 0)).unwrap();
    let clients: Vec<_> = clients.into_iter().map(|update| update.client).collect();
    assert_eq!(clients, [client(1), client(2), client(4)]);
}

#[test]
fn a_crash_in_any_phase_goes_on_where_it_was() {
    let mut host = Host::new(plan(2, 2, 2));
    host.crash();
    host.join(1);
    host.join(2);
    host.deliver(1, 0);
    host.wait(Duration::from_secs(90));
    host.crash();
    // The whole time again, for those who come back.
    assert_eq!(host.coordinator.poll_timeout(), Some(Timestamp(190_000)));
    assert!(task(&host.join(2), 2).is_some());
    assert!(task(&host.join(1), 1).is_none());
    assert!(has_receipt(&host.offer(1, offer(1, 0)), 1));
    let before = averaged(&host.deliver(2, 0));
    assert_eq!(averaged(&host.crash()), before);
    host.aggregated(0);
    assert_eq!(host.coordinator.status().version, ModelVersion(1));
}

#[test]
fn a_damaged_update_is_left_out_or_asked_for_again() {
    let damaged = |index| CoordinatorInput::Damaged {
        client: client(index),
        round: RoundId(0),
    };
    let mut host = Host::new(plan(3, 3, 2));
    for index in [1, 2, 3] {
        host.join(index);
    }
    for index in [1, 2, 3] {
        host.deliver(index, 0);
    }
    let clients = averaged(&host.feed(damaged(2))).unwrap();
    assert_eq!(clients.len(), 2);
    let actions = host.feed(damaged(3));
    assert_eq!(host.phase(), CoordinatorPhase::Open);
    assert!(task(&actions, 3).is_some(), "the next cohort may have it");
}

#[test]
fn the_norm_bounds_what_one_client_can_do() {
    let mut plan = plan(1, 1, 1);
    plan.max_norm = Some(10.0);
    let mut host = Host::new(plan);
    host.join(1);
    host.offer(1, offer(1, 0));
    let actions = host.feed(CoordinatorInput::Stored {
        client: client(1),
        round: RoundId(0),
        digest: offer(1, 0).blob.digest,
        norm: 1000.0,
    });
    assert_eq!(averaged(&actions).unwrap()[0].scale, 0.01);
}

#[test]
fn hello_is_checked_against_the_plan() {
    let mut plan = plan(1, 1, 1);
    plan.tokenizer = Some(Digest::of(b"tokenizer"));
    plan.template = Some(Digest::of(b"template"));
    let hello = Hello {
        protocol: PROTOCOL,
        client_version: "1".to_owned(),
        device: "cpu".to_owned(),
        shard_rows: 3,
        shard_loss_tokens: 30,
        tokenizer: Digest::of(b"tokenizer"),
        template: Digest::of(b"template"),
        base: Digest::of(b"base"),
        resume: None,
        shard_kind: RowKind::Examples,
        max_rank: None,
    };
    assert_eq!(plan.admit(&hello), Ok(facts(3)));
    let cases: [(Spoil<Hello>, ErrorCode); 6] = [
        (|h| h.protocol = PROTOCOL + 1, ErrorCode::Version),
        (|h| h.base = Digest::of(b""), ErrorCode::WrongBase),
        (|h| h.tokenizer = Digest::of(b""), ErrorCode::WrongTokenizer),
        (|h| h.template = Digest::of(b""), ErrorCode::WrongTemplate),
        (|h| h.shard_rows = 0, ErrorCode::EmptyShard),
        (|h| h.shard_loss_tokens = 0, ErrorCode::EmptyShard),
    ];
    for (spoil, code) in cases {
        let mut hello = hello.clone();
        spoil(&mut hello);
        assert_eq!(plan.admit(&hello), Err(code));
    }
}

#[test]
fn a_damaged_snapshot_is_an_error() {
    let host = Host::new(plan(1, 1, 1));
    let snapshot = host.coordinator.snapshot();
    for cut in 0..snapshot.len() {
        assert!(Coordinator::restore(&snapshot[..cut], Timestamp(0)).is_err());
    }
    let longer = [&snapshot[..], &[0]].concat();
    assert!(Coordinator::restore(&longer, Timestamp(0)).is_err());
}

/// A large round costs little: names of blobs travel, not tensors.
#[test]
fn two_thousand_clients_take_part_in_a_round() {
    let clients = 2000;
    let id = |index: u32| {
        let mut id = ClientId::default();
        id.0[..4].copy_from_slice(&index.to_be_bytes());
        id
    };
    let mut host = Host::new(plan(clients, clients, clients));
    for index in 0..clients {
        let (client, facts) = (id(index), facts(1));
        host.feed(CoordinatorInput::Join { client, facts });
    }
    assert_eq!(host.coordinator.status().pending, clients);
    let mut last = Vec::new();
    for index in (0..clients).rev() {
        let (client, offer) = (id(index), offer(1, 0));
        let (round, digest, norm) = (offer.round, offer.blob.digest, 1.0);
        host.feed(CoordinatorInput::Offered { client, offer });
        last = host.feed(CoordinatorInput::Stored {
            client,
            round,
            digest,
            norm,
        });
    }
    let updates = averaged(&last).unwrap();
    assert!(
        updates
            .iter()
            .map(|update| update.client)
            .eq((0..clients).map(id))
    );
}

/// The task among these actions.
fn task_of(actions: &[CoordinatorAction]) -> TrainTask {
    let task = actions.iter().find_map(|action| match action {
        CoordinatorAction::Send {
            message: ServerMessage::Task(task),
            ..
        } => Some(task.as_ref().clone()),
        _ => None,
    });
    task.unwrap()
}

#[test]
fn control_variates_are_named_by_the_last_update_that_counts() {
    let settings = "[strategy]\nname = \"scaffold\"\npopulation = 7";
    let mut host = Host::new(plan_of(settings, (1, 1, 1)));
    let task = task_of(&host.join(1));
    let rule = |variate: &str, since| LocalRule::ControlVariate {
        variate: BlobRef::of(variate.as_bytes()),
        form: VariateForm::Gradient,
        since,
    };
    assert_eq!(task.rule, rule("variate 0", None));
    let without = host.offer(1, offer(1, 0));
    let refused = RefuseReason::Malformed;
    assert!(without.iter().any(|action| matches!(
        action,
        CoordinatorAction::Send { message: ServerMessage::Refused { reason, .. }, .. }
            if *reason == refused
    )));

    let mut host = Host::new(plan_of(settings, (1, 1, 1)));
    host.join(1);
    host.offer(
        1,
        UpdateOffer {
            variate: VariateOrigin::Fresh,
            ..offer(1, 0)
        },
    );
    let stored = host.store(1, 0);
    let population = stored.iter().find_map(|action| match action {
        CoordinatorAction::Aggregate(round) => Some(round.population),
        _ => None,
    });
    assert_eq!(population, Some(7));
    let mut models = Models::shared(BlobRef::of(b"adapter 1"));
    models.variate = Some(BlobRef::of(b"variate 1"));
    let next = host.feed(CoordinatorInput::Aggregated {
        round: RoundId(0),
        models,
        report: RoundReport::default(),
    });
    assert_eq!(task_of(&next).rule, rule("variate 1", Some(RoundId(0))));
    let snapshot = host.coordinator.snapshot();
    let restored = Coordinator::restore(&snapshot, host.now).unwrap();
    assert_eq!(restored.known, host.coordinator.known);
}

#[test]
fn a_client_gets_the_highest_rank_that_it_can_train() {
    let settings = "[adapter]\nranks = [2, 4]\n[strategy]\nreduce = \"exact\"";
    let plan = plan_of(settings, (2, 1, 1));
    let hello = |max_rank| Hello {
        protocol: PROTOCOL,
        client_version: "1".to_owned(),
        device: "cpu".to_owned(),
        shard_rows: 1,
        shard_loss_tokens: 1,
        tokenizer: Digest::default(),
        template: Digest::default(),
        base: Digest::of(b"base"),
        resume: None,
        shard_kind: RowKind::Examples,
        max_rank,
    };
    let rank = |max_rank| plan.admit(&hello(max_rank)).map(|facts| facts.rank);
    assert_eq!(rank(None), Ok(None));
    assert_eq!(rank(Some(8)), Ok(None));
    assert_eq!(rank(Some(7)), Ok(Some(4)));
    assert_eq!(rank(Some(3)), Ok(Some(2)));
    assert_eq!(rank(Some(1)), Err(ErrorCode::WrongRank));
    let other = Hello {
        shard_kind: RowKind::Preferences,
        ..hello(None)
    };
    assert_eq!(plan.admit(&other), Err(ErrorCode::WrongRows));

    let mut host = Host::new(plan.clone());
    let facts = plan.admit(&hello(Some(5))).unwrap();
    let task = task_of(&host.feed(CoordinatorInput::Join {
        client: client(1),
        facts,
    }));
    assert_eq!((task.lora.rank, task.lora.scale()), (4, plan.lora.scale()));
    assert_eq!(task.adapter, BlobRef::of(b"rank 4"));
    assert_eq!(task.layout, plan.adapter_of(Some(4)).layout);
    assert_ne!(task.layout, plan.layout);
    let mut long = offer(1, 0);
    long.blob.len = plan.adapter_of(Some(4)).max_update_bytes + 1;
    assert!(long.blob.len < plan.max_update_bytes);
    let refused = host.offer(1, long);
    assert!(format!("{refused:?}").contains("TooLarge"));
}

#[test]
fn alone_each_client_goes_on_from_its_own_adapter() {
    let settings = "[strategy]\nname = \"local\"";
    let mut host = Host::new(plan_of(settings, (2, 2, 2)));
    host.join(1);
    let first = task_of(&host.join(2));
    assert_eq!(first.adapter, BlobRef::of(b"adapter 0"));
    host.deliver(1, 0);
    host.deliver(2, 0);
    let mut models = Models::shared(BlobRef::of(b"adapter 0"));
    for index in [1, 2] {
        models.own.insert(client(index), BlobRef::of(&[index]));
    }
    let actions = host.feed(CoordinatorInput::Aggregated {
        round: RoundId(0),
        models,
        report: RoundReport::default(),
    });
    for index in [1, 2] {
        let own: Vec<_> = actions
            .iter()
            .filter(|action| {
                matches!(action, CoordinatorAction::Send { client: to, .. } if *to == client(index))
            })
            .cloned()
            .collect();
        assert_eq!(task_of(&own).adapter, BlobRef::of(&[index]));
    }
}

fn score(loss: f32) -> HeldOutScore {
    HeldOutScore {
        loss,
        accuracy: 0.5,
        rows: 20,
    }
}

fn scored(actions: &[CoordinatorAction]) -> Option<(ClientId, ModelVersion, HeldOutScore)> {
    actions.iter().find_map(|action| match action {
        CoordinatorAction::Record(record) => match record.event {
            Event::ClientEvaluated {
                client,
                version,
                score,
                ..
            } => Some((client, version, score)),
            _ => None,
        },
        _ => None,
    })
}

impl Host {
    fn evaluate(&mut self, index: u8, round: u64, score: HeldOutScore) -> Vec<CoordinatorAction> {
        self.feed(CoordinatorInput::Evaluated {
            client: client(index),
            round: RoundId(round),
            score,
        })
    }
}

#[test]
fn a_member_is_heard_once_on_the_adapter_it_was_sent() {
    let mut host = Host::new(plan(2, 2, 2));
    host.join(1);
    host.join(2);
    let actions = host.evaluate(1, 0, score(2.0));
    assert_eq!(
        scored(&actions),
        Some((client(1), ModelVersion(0), score(2.0)))
    );
    assert!(actions.contains(&CoordinatorAction::Persist));
    // Not again, also after a crash.
    assert_eq!(host.evaluate(1, 0, score(1.0)), []);
    host.crash();
    host.join(1);
    assert_eq!(host.evaluate(1, 0, score(1.0)), []);
    assert!(scored(&host.evaluate(2, 0, score(4.0))).is_some());
    let scores = host
        .coordinator
        .members()
        .values()
        .filter_map(|m| m.score.as_ref());
    assert_eq!(ClientsScore::of(scores).unwrap().loss, 3.0);

    host.join(2);
    host.deliver(1, 0);
    host.deliver(2, 0);
    host.aggregated(0);
    let actions = host.evaluate(1, 1, score(1.0));
    assert_eq!(
        scored(&actions),
        Some((client(1), ModelVersion(1), score(1.0)))
    );
}

#[test]
fn other_scores_are_not_heard_and_cost_nothing_else() {
    let mut host = Host::new(plan(1, 2, 1));
    host.join(1);
    host.join(2);
    let (member, other) = match host.coordinator.members().contains_key(&client(1)) {
        true => (1, 2),
        false => (2, 1),
    };
    assert_eq!(host.evaluate(other, 0, score(1.0)), [], "not in the cohort");
    assert_eq!(host.evaluate(member, 1, score(1.0)), [], "another round");
    assert_eq!(host.evaluate(member, 0, score(f32::NAN)), []);
    let few = HeldOutScore {
        rows: 4,
        ..score(1.0)
    };
    assert_eq!(host.evaluate(member, 0, few), []);
    assert!(has_receipt(&host.deliver(member, 0), member));
    assert_eq!(host.evaluate(member, 0, score(1.0)), [], "its work is done");
}
