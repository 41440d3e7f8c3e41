//! Both machines together, in a world where everything goes wrong.
//!
//! Connections drop, messages are late or come twice, clients and the server
//! are killed at any moment and go on from what they had made durable.
//! Whatever happens, every client counts at most once a round, an update with
//! a receipt is in the mean, and once the trouble is over the run ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::adapter::{Layout, TensorSpec};
use crate::config::Federation;
use crate::event::Event;
use crate::id::{ClientId, Digest, ModelVersion, RoundId, RunId};
use crate::strategy::RoundReport;
use crate::time::Timestamp;
use crate::wire::{
    BlobRef, ClientMessage, FailReason, HeldOutScore, Hello, PROTOCOL, RefuseReason, RowKind,
    ServerMessage, TrainTask, UpdateMetrics, UpdateOffer, VariateOrigin,
};

const CLIENTS: usize = 4;
const ROUNDS: u64 = 3;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// The server hears the client's oldest message.
    ToServer(usize),
    /// The client hears the server's oldest message.
    ToClient(usize),
    /// The client says its last message once more.
    Repeat(usize),
    /// The client has scored the adapter on rows that it holds out.
    Score(usize),
    /// The client's training ends.
    Train(usize),
    /// The client's training fails.
    Fail(usize),
    /// The client's upload is complete and durable.
    Upload(usize),
    /// The client's upload breaks off.
    BreakUpload(usize),
    /// The client's upload is found to be unsound.
    Reject(usize),
    /// The connection breaks.
    Drop(usize),
    /// The client dies and starts again.
    KillClient(usize),
    /// The client says good-bye and starts again.
    Leave(usize),
    /// The server dies and starts again.
    KillServer,
    /// The average is done.
    Aggregate,
    /// Time passes.
    Advance(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let who = 0..CLIENTS;
    prop_oneof![
        8 => who.clone().prop_map(Op::ToServer),
        8 => who.clone().prop_map(Op::ToClient),
        1 => who.clone().prop_map(Op::Repeat),
        3 => who.clone().prop_map(Op::Score),
        5 => who.clone().prop_map(Op::Train),
        1 => who.clone().prop_map(Op::Fail),
        5 => who.clone().prop_map(Op::Upload),
        1 => who.clone().prop_map(Op::BreakUpload),
        1 => who.clone().prop_map(Op::Reject),
        1 => who.clone().prop_map(Op::Drop),
        1 => who.clone().prop_map(Op::KillClient),
        1 => who.prop_map(Op::Leave),
        1 => Just(Op::KillServer),
        3 => Just(Op::Aggregate),
        3 => (1u64..40_000).prop_map(Op::Advance),
    ]
}

/// A client, what survives its death, and what is on its connection.
struct Client {
    id: ClientId,
    participant: Participant,
    durable: ParticipantState,
    training: Option<TrainTask>,
    upload: Option<UpdateOffer>,
    starts: u64,
    to_server: VecDeque<ClientMessage>,
    to_client: VecDeque<ServerMessage>,
    last_said: Option<ClientMessage>,
    linked: bool,
}

struct World {
    now: Timestamp,
    server: Coordinator,
    durable: Vec<u8>,
    /// The complete blobs on the server's disk.
    blobs: BTreeSet<Digest>,
    averaging: Option<(RoundId, Vec<WeightedUpdate>)>,
    clients: Vec<Client>,
    /// What clients have made for each round.
    made: BTreeMap<(RoundId, ClientId), BTreeSet<Digest>>,
    receipts: BTreeSet<(RoundId, ClientId, Digest)>,
    /// Who has said how good a round's adapter is.
    scores: BTreeSet<(RoundId, ClientId)>,
    closed: BTreeMap<RoundId, Vec<(ClientId, Digest)>>,
    crash_always: bool,
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL,
        client_version: "1".to_owned(),
        device: "cpu".to_owned(),
        shard_rows: 5,
        shard_loss_tokens: 50,
        tokenizer: Digest::default(),
        template: Digest::default(),
        base: Digest::of(b"base"),
        resume: None,
        shard_kind: RowKind::Examples,
        max_rank: None,
    }
}

fn plan() -> RunPlan {
    let spec = TensorSpec {
        name: "a".to_owned(),
        rows: 4,
        cols: 8,
    };
    let layout = Layout::new(vec![spec]).unwrap();
    let text = format!(
        "[rounds]\ncount = {ROUNDS}\ncohort = 3\nmin_clients = 2\nquorum = 2\ndeadline_seconds = 60"
    );
    let federation = Federation::parse(&text).unwrap();
    let base = Digest::of(b"base");
    let models = Models::shared(BlobRef::of(b"0"));
    RunPlan::new(&federation, RunId([7; 16]), base, &layout, models).unwrap()
}

impl World {
    fn new(crash_always: bool) -> Self {
        let now = Timestamp(0);
        let client = |index| Client {
            id: ClientId([index as u8 + 1; 32]),
            participant: Participant::new(hello(), ParticipantState::default(), index, now),
            durable: ParticipantState::default(),
            training: None,
            upload: None,
            starts: 0,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            last_said: None,
            linked: false,
        };
        let server = Coordinator::new(plan(), now);
        let mut world = Self {
            now,
            durable: server.snapshot(),
            server,
            blobs: BTreeSet::new(),
            averaging: None,
            clients: (0..CLIENTS as u64).map(client).collect(),
            made: BTreeMap::new(),
            receipts: BTreeSet::new(),
            scores: BTreeSet::new(),
            closed: BTreeMap::new(),
            crash_always,
        };
        world.idle();
        world
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::ToServer(index) => self.server_hears(index),
            Op::ToClient(index) => self.client_hears(index),
            Op::Repeat(index) => {
                let client = &mut self.clients[index];
                if let Some(message) = client.last_said.clone().filter(|_| client.linked) {
                    client.to_server.push_back(message);
                }
            }
            Op::Score(index) => self.score(index),
            Op::Train(index) => self.train(index),
            Op::Fail(index) => self.fail(index),
            Op::Upload(index) => self.upload(index),
            Op::BreakUpload(index) => {
                if let Some(offer) = self.clients[index].upload.take() {
                    let round = offer.round;
                    self.tell_client(index, ParticipantInput::UploadFailed { round });
                }
            }
            Op::Reject(index) => self.reject(index),
            Op::Drop(index) => self.drop_link(index),
            Op::KillClient(index) => {
                self.drop_link(index);
                self.restart(index);
            }
            Op::Leave(index) => {
                self.tell_client(index, ParticipantInput::Leave);
                self.idle();
                self.restart(index);
            }
            Op::KillServer => self.kill_server(),
            Op::Aggregate => self.aggregate(),
            Op::Advance(ms) => self.advance(Duration::from_millis(ms)),
        }
        self.idle();
        if self.crash_always {
            self.kill_server();
            self.reconnect();
        }
    }

    fn server_hears(&mut self, index: usize) {
        let Some(message) = self.clients[index].to_server.pop_front() else {
            return;
        };
        let client = self.clients[index].id;
        use CoordinatorInput as Input;
        let input = match message {
            ClientMessage::Hello(hello) => {
                let facts = self.server.plan().admit(&hello).unwrap();
                Input::Join { client, facts }
            }
            ClientMessage::Accept { round } => Input::Accepted { client, round },
            ClientMessage::Decline { round, reason } => Input::Declined {
                client,
                round,
                reason,
            },
            ClientMessage::Offer(offer) => Input::Offered { client, offer },
            ClientMessage::Failed { round, reason } => Input::Failed {
                client,
                round,
                reason,
            },
            ClientMessage::Leaving => Input::Leave { client },
            ClientMessage::Evaluated { round, score } => Input::Evaluated {
                client,
                round,
                score,
            },
            ClientMessage::Progress { .. } => return,
        };
        self.server.handle(input, self.now);
    }

    fn client_hears(&mut self, index: usize) {
        if let Some(message) = self.clients[index].to_client.pop_front() {
            self.tell_client(index, ParticipantInput::Message(message));
        }
    }

    fn tell_client(&mut self, index: usize, input: ParticipantInput) {
        self.clients[index].participant.handle(input, self.now);
    }

    fn score(&mut self, index: usize) {
        let Some(task) = &self.clients[index].training else {
            return;
        };
        let round = task.round;
        let score = HeldOutScore {
            loss: 1.0,
            accuracy: 0.5,
            rows: 10,
        };
        self.tell_client(index, ParticipantInput::Scored { round, score });
    }

    fn train(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(task) = client.training.take() else {
            return;
        };
        // Training is a function of the task, but for what a restart changes.
        let content = format!(
            "{} {} {} {}",
            client.id, task.round, task.seed, client.starts
        );
        let blob = BlobRef::of(content.as_bytes());
        let key = (task.round, client.id);
        self.made.entry(key).or_default().insert(blob.digest);
        let offer = UpdateOffer {
            round: task.round,
            base_version: task.version,
            blob: BlobRef { len: 64, ..blob },
            rows: 1,
            loss_tokens: 1,
            metrics: UpdateMetrics::default(),
            variate: VariateOrigin::Unused,
        };
        self.tell_client(index, ParticipantInput::Trained(offer));
    }

    fn fail(&mut self, index: usize) {
        if let Some(task) = self.clients[index].training.take() {
            let (round, reason) = (task.round, FailReason::Device);
            self.tell_client(index, ParticipantInput::TrainFailed { round, reason });
        }
    }

    fn upload(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let (id, Some(offer)) = (client.id, client.upload.take()) else {
            return;
        };
        self.blobs.insert(offer.blob.digest);
        self.store(id, offer.round, offer.blob.digest);
    }

    fn store(&mut self, client: ClientId, round: RoundId, digest: Digest) {
        let norm = 1.0;
        let input = CoordinatorInput::Stored {
            client,
            round,
            digest,
            norm,
        };
        self.server.handle(input, self.now);
    }

    fn reject(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if let Some(offer) = client.upload.take() {
            let input = CoordinatorInput::Rejected {
                client: client.id,
                round: offer.round,
                reason: RefuseReason::NonFinite,
            };
            self.server.handle(input, self.now);
        }
    }

    fn drop_link(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if !std::mem::take(&mut client.linked) {
            return;
        }
        client.to_server.clear();
        client.to_client.clear();
        client.upload = None;
        client
            .participant
            .handle(ParticipantInput::Disconnected, self.now);
        let client = client.id;
        self.server
            .handle(CoordinatorInput::Lost { client }, self.now);
    }

    fn restart(&mut self, index: usize) {
        let now = self.now;
        let client = &mut self.clients[index];
        client.starts += 1;
        client.training = None;
        client.upload = None;
        let seed = 100 * client.starts + index as u64;
        client.participant = Participant::new(hello(), client.durable.clone(), seed, now);
    }

    /// Nothing is left but what was persisted.
    fn kill_server(&mut self) {
        self.averaging = None;
        self.server = Coordinator::restore(&self.durable, self.now).unwrap();
        for client in &mut self.clients {
            if std::mem::take(&mut client.linked) {
                client.to_server.clear();
                client.to_client.clear();
                client.upload = None;
                client
                    .participant
                    .handle(ParticipantInput::Disconnected, self.now);
            }
        }
    }

    /// Everyone comes back at once and hears all there is to hear.
    fn reconnect(&mut self) {
        for client in &mut self.clients {
            if let Some(at) = client.participant.poll_timeout().filter(|_| !client.linked) {
                client.participant.handle_timeout(at);
            }
        }
        self.idle();
        for index in (0..CLIENTS).cycle().take(8 * CLIENTS) {
            self.server_hears(index);
            self.idle();
            self.client_hears(index);
            self.idle();
        }
    }

    fn aggregate(&mut self) {
        let Some((round, updates)) = self.averaging.take() else {
            return;
        };
        let updates: Vec<_> = updates.iter().map(|u| (u.client, u.blob.digest)).collect();
        self.closed.insert(round, updates);
        let input = CoordinatorInput::Aggregated {
            round,
            models: Models::shared(BlobRef::of(&round.0.to_le_bytes())),
            report: RoundReport::default(),
        };
        self.server.handle(input, self.now);
    }

    fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
        if self.server.poll_timeout().is_some_and(|at| at <= self.now) {
            self.server.handle_timeout(self.now);
        }
        for client in &mut self.clients {
            if client
                .participant
                .poll_timeout()
                .is_some_and(|at| at <= self.now)
            {
                client.participant.handle_timeout(self.now);
            }
        }
    }

    /// Carries out all actions of both sides.
    fn idle(&mut self) {
        loop {
            if let Some(action) = self.server.poll() {
                self.serve(action);
                continue;
            }
            let polled = self
                .clients
                .iter_mut()
                .map(|client| client.participant.poll());
            let Some((index, action)) = polled.enumerate().find_map(|(i, a)| Some((i, a?))) else {
                return;
            };
            self.act(index, action);
        }
    }

    fn serve(&mut self, action: CoordinatorAction) {
        match action {
            CoordinatorAction::Persist => self.durable = self.server.snapshot(),
            CoordinatorAction::Send { client, message } => {
                if let ServerMessage::Receipt { round, digest } = message {
                    self.receipts.insert((round, client, digest));
                }
                self.say(client, message);
            }
            CoordinatorAction::Await {
                client,
                round,
                blob,
            } => {
                if self.blobs.contains(&blob.digest) {
                    self.store(client, round, blob.digest);
                    return;
                }
                self.say(client, ServerMessage::Ready { round, offset: 0 });
            }
            CoordinatorAction::Aggregate(closed) => {
                self.check_updates(closed.round, &closed.updates);
                self.averaging = Some((closed.round, closed.updates));
            }
            CoordinatorAction::Record(record) => {
                if let Event::ClientEvaluated { round, client, .. } = record.event {
                    let first = self.scores.insert((round, client));
                    assert!(first, "a client is heard once a round");
                }
            }
            CoordinatorAction::Finish { .. } => {}
        }
    }

    fn say(&mut self, client: ClientId, message: ServerMessage) {
        let mut clients = self.clients.iter_mut();
        if let Some(client) = clients.find(|other| other.id == client && other.linked) {
            client.to_client.push_back(message);
        }
    }

    fn act(&mut self, index: usize, action: ParticipantAction) {
        if action == ParticipantAction::Disconnect {
            // What was sent before closing still arrives.
            while !self.clients[index].to_server.is_empty() {
                self.server_hears(index);
            }
        }
        let client = &mut self.clients[index];
        match action {
            ParticipantAction::Connect => {
                client.linked = true;
                client
                    .participant
                    .handle(ParticipantInput::Connected, self.now);
            }
            ParticipantAction::Disconnect => {
                client.linked = false;
                client.upload = None;
                let client = client.id;
                self.server
                    .handle(CoordinatorInput::Lost { client }, self.now);
            }
            ParticipantAction::Send(message) => {
                client.last_said = Some(message.clone());
                client.to_server.push_back(message);
            }
            ParticipantAction::Persist => client.durable = client.participant.state().clone(),
            ParticipantAction::Train(task) => client.training = Some(*task),
            ParticipantAction::StopTraining { .. } => client.training = None,
            ParticipantAction::Upload { offer, .. } => client.upload = Some(offer),
            ParticipantAction::Discard(_)
            | ParticipantAction::Welcomed(_)
            | ParticipantAction::Counted { .. }
            | ParticipantAction::RoundClosed(_)
            | ParticipantAction::Stop(_) => {}
        }
    }

    fn check_updates(&self, round: RoundId, updates: &[WeightedUpdate]) {
        assert!(updates.len() >= 2, "a quorum is two");
        assert!(
            updates
                .windows(2)
                .all(|pair| pair[0].client < pair[1].client),
            "each client once, in order"
        );
        for update in updates {
            let made = &self.made[&(round, update.client)];
            assert!(
                made.contains(&update.blob.digest),
                "an update of another round"
            );
            assert_eq!(update.weight, 5.0);
        }
    }

    fn check(&self) {
        for (round, client, digest) in &self.receipts {
            if let Some(updates) = self.closed.get(round) {
                assert!(
                    updates.contains(&(*client, *digest)),
                    "a receipt without an update"
                );
            }
        }
        assert!(self.server.status().version.0 <= ROUNDS);
        let rounds: Vec<_> = self.closed.keys().map(|round| round.0).collect();
        assert_eq!(rounds, (0..rounds.len() as u64).collect::<Vec<_>>());
    }

    /// From here on all goes well; the run must come to its end.
    fn calm(&mut self) {
        self.crash_always = false;
        for _ in 0..600 {
            if self.server.status().phase == CoordinatorPhase::Finished {
                return;
            }
            for index in 0..CLIENTS {
                for op in [Op::ToServer, Op::ToClient, Op::Train, Op::Upload] {
                    self.apply(op(index));
                }
            }
            self.apply(Op::Aggregate);
            self.apply(Op::Advance(2_000));
            self.check();
        }
        panic!(
            "no progress: {:?} {:?}",
            self.server.status(),
            self.server.members()
        );
    }
}

fn run(ops: Vec<Op>, crash_always: bool) {
    let mut world = World::new(crash_always);
    for op in ops {
        world.apply(op);
        world.check();
    }
    world.calm();
    assert_eq!(world.server.status().version, ModelVersion(ROUNDS));
    assert_eq!(world.closed.len() as u64, ROUNDS);
}

#[test]
fn a_run_without_trouble_ends() {
    run(Vec::new(), false);
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_trouble_breaks_a_run(ops in proptest::collection::vec(op(), 0..400)) {
        run(ops, false);
    }

    #[test]
    fn a_server_that_dies_after_every_step_breaks_nothing(
        ops in proptest::collection::vec(op(), 0..200),
    ) {
        run(ops, true);
    }
}
