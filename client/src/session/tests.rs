//! Sessions against a server that is scripted message by message, with a trainer that only
//! pretends.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use fedllm_shared::{
    BlobRequest, BlobResponse, CHUNK_BYTES, ClientMessage, Codec, Delta, Digest, Factors,
    FailReason, HeldOutScore, LocalOptimizer, LocalRule, LocalSpec, ObjectiveSpec, RoundId,
    RoundOutcome, RoundSummary, RunId, Targets, TensorSpec, TrainTask, UpdateMetrics, VariateForm,
    VariateOrigin, Welcome, decode_delta, encode_adapter, update_layout,
};
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

use super::*;
use crate::ledger::Kind;
use crate::net::{LoopbackServer, LoopbackTransport, loopback};
use crate::shard::{RowSink, ShardBuilder, ShardOrigin};
use crate::train::{FitRequest, LocalUpdate, ScoreRequest, StepReport, TrainError, VariateStep};

const RUN: RunId = RunId([7; 16]);
const STEPS: u32 = 3;

/// Pretends to train: every value moves by one half.
struct Pretender {
    layout: Arc<Layout>,
    /// How often it was asked to train.
    fits: Arc<AtomicU32>,
    /// How long a step takes.
    step: Duration,
    /// What it says instead of an update, in this order, before it begins to succeed.
    failures: Mutex<VecDeque<TrainError>>,
}

impl Trainer for Pretender {
    fn fit(&mut self, request: FitRequest<'_>) -> Result<LocalUpdate, TrainError> {
        self.fits.fetch_add(1, Ordering::SeqCst);
        if let Some(failure) = self.failures.get_mut().unwrap().pop_front() {
            return Err(failure);
        }
        let steps = request.task.local.steps;
        for step in 1..=steps {
            if request.stop.is_stopped() {
                return Err(TrainError::Stopped {
                    step: step - 1,
                    steps,
                });
            }
            std::thread::sleep(self.step);
            (request.on_step)(StepReport {
                step,
                steps,
                loss: 1.0 / step as f32,
                grad_norm: 1.0,
                tokens: 10,
                loss_tokens: 5,
                seconds: self.step.as_secs_f64(),
                preference: None,
            });
        }
        // Values that zstd cannot shorten much, so that large deltas have several chunks.
        let mut values = vec![0.5; self.layout.len()];
        let mut noise = 1_u32;
        for value in values.iter_mut().skip(1) {
            // Xorshift: no pattern that a compressor could find.
            noise ^= noise << 13;
            noise ^= noise >> 17;
            noise ^= noise << 5;
            *value += noise as f32 / u32::MAX as f32;
        }
        // The own variate grows by one each time.
        let variate = request.variates.map(|variates| {
            let delta = Delta::new(self.layout.clone(), vec![1.0; self.layout.len()]).unwrap();
            let mut own = variates.own.clone();
            own.apply(&delta, 1.0).unwrap();
            VariateStep { own, delta }
        });
        Ok(LocalUpdate {
            delta: Delta::new(self.layout.clone(), values).unwrap(),
            variate,
            metrics: UpdateMetrics {
                loss_first: 1.0,
                loss_last: 0.25,
                ..Default::default()
            },
            rows: 2,
            loss_tokens: 3,
        })
    }

    fn score(&mut self, request: ScoreRequest<'_>) -> Result<HeldOutScore, TrainError> {
        Ok(HeldOutScore {
            loss: 1.5,
            accuracy: 0.5,
            rows: request.shard.units() as u32,
        })
    }

    fn base(&self) -> Digest {
        Digest::of(b"base")
    }

    fn device(&self) -> String {
        "pretended".to_owned()
    }

    fn layout(&self, _lora: &LoraSpec) -> Result<Arc<Layout>, TrainError> {
        Ok(self.layout.clone())
    }
}

/// Dials a new loopback each time, and hands its other end to the test.
struct Dialer(UnboundedSender<LoopbackServer>);

impl Dial for Dialer {
    type Transport = LoopbackTransport;

    async fn dial(&mut self) -> Result<LoopbackTransport, NetError> {
        let (client, server) = loopback();
        self.0
            .send(server)
            .map_err(|_| NetError::Lost("the test is over".to_owned()))?;
        Ok(client)
    }
}

/// A client under test, and the server that the test plays.
struct Case {
    folder: tempfile::TempDir,
    layout: Arc<Layout>,
    adapter: Vec<u8>,
    fits: Arc<AtomicU32>,
    meter: Meter,
    notices: Arc<Mutex<Vec<Notice>>>,
    stop: StopFlag,
    max_rounds: Option<u64>,
    held_out: Option<Shard>,
    step: Duration,
    failures: Vec<TrainError>,
}

impl Case {
    /// A layout of `rows` times 64 values.
    fn new(rows: u32) -> Self {
        let spec = TensorSpec {
            name: "a".to_owned(),
            rows,
            cols: 64,
        };
        let layout = Arc::new(Layout::new(vec![spec]).unwrap());
        let adapter = encode_adapter(&Adapter::zeros(layout.clone()), Codec::F32).unwrap();
        Self {
            folder: tempfile::tempdir().unwrap(),
            layout,
            adapter,
            fits: Arc::default(),
            meter: Meter::default(),
            notices: Arc::default(),
            stop: StopFlag::new(),
            max_rounds: None,
            held_out: None,
            step: Duration::from_millis(5),
            failures: Vec::new(),
        }
    }

    fn start(&mut self) -> (JoinHandle<Result<Ending, SessionError>>, Connections) {
        let (sender, connections) = unbounded_channel();
        let trainer = Pretender {
            layout: self.layout.clone(),
            fits: self.fits.clone(),
            step: self.step,
            failures: Mutex::new(std::mem::take(&mut self.failures).into()),
        };
        let notices = self.notices.clone();
        let session = Session::new(SessionParts {
            dialer: Dialer(sender),
            trainer: Box::new(trainer),
            shard: shard(),
            held_out: self.held_out.clone(),
            store: RoundStore::at(self.folder.path()),
            meter: self.meter.clone(),
            notices: Box::new(move |notice| notices.lock().unwrap().push(notice)),
            stop: self.stop.clone(),
            max_rank: None,
            max_rounds: self.max_rounds,
            seed: 1,
        });
        let session = session.unwrap();
        (tokio::spawn(session.run()), Connections(connections))
    }

    fn task(&self, round: u64) -> TrainTask {
        TrainTask {
            run: RUN,
            round: RoundId(round),
            version: ModelVersion(round),
            base: Digest::of(b"base"),
            layout: self.layout.digest(),
            adapter: BlobRef::of(&self.adapter),
            lora: LoraSpec {
                rank: 1,
                alpha: 1.0,
                dropout: 0.0,
                rslora: false,
                targets: Targets::ALL,
                seed: 0,
                train: Factors::Both,
            },
            objective: ObjectiveSpec::Sft,
            local: LocalSpec {
                steps: STEPS,
                batch: 1,
                max_tokens: 8,
                lr: 1e-3,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.0,
                max_grad_norm: 1.0,
                keep_optimizer: false,
                shuffle: false,
                optimizer: LocalOptimizer::AdamW,
            },
            codec: Codec::F32,
            rule: LocalRule::Plain,
            max_norm: None,
            seed: 1,
            deadline_ms: 60_000,
        }
    }

    fn deltas(&self) -> usize {
        deltas(self.folder.path())
    }

    fn fits(&self) -> u32 {
        self.fits.load(Ordering::SeqCst)
    }
}

fn deltas(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().starts_with("delta-"))
        .count()
}

fn shard() -> Shard {
    let mut builder = ShardBuilder::new();
    builder.push(&[1, 2, 3], &[0, 1, 1]).unwrap();
    builder.push(&[4, 5], &[0, 1]).unwrap();
    let (tokenizer, template) = (Digest::of(b"tokenizer"), Digest::of(b"template"));
    builder.finish(ShardOrigin {
        tokenizer,
        template,
        max_tokens: 8,
    })
}

/// The connections that the client makes, one after the other.
struct Connections(UnboundedReceiver<LoopbackServer>);

impl Connections {
    /// The next one, up to the welcome.
    async fn next(&mut self) -> (Server, Hello) {
        let mut server = Server(self.0.recv().await.unwrap());
        let ClientMessage::Hello(hello) = server.hear().await else {
            panic!("no hello")
        };
        server.say(ServerMessage::Welcome(Welcome {
            protocol: PROTOCOL,
            run: RUN,
            federation: "test".to_owned(),
            round: RoundId(0),
            rounds: 9,
            version: ModelVersion(0),
        }));
        (server, hello)
    }
}

struct Server(LoopbackServer);

impl Server {
    fn say(&self, message: ServerMessage) {
        self.0.send(&message).unwrap();
    }

    async fn hear(&mut self) -> ClientMessage {
        self.0.receive().await.unwrap()
    }

    /// The next message that is no progress.
    async fn answer(&mut self) -> ClientMessage {
        loop {
            match self.hear().await {
                ClientMessage::Progress { .. } => {}
                other => return other,
            }
        }
    }

    async fn offer(&mut self) -> UpdateOffer {
        match self.answer().await {
            ClientMessage::Offer(offer) => offer,
            other => panic!("{other:?} is no offer"),
        }
    }

    /// Gives the task, hears that it is accepted, and serves its adapter.
    async fn give(&mut self, case: &Case, round: u64) {
        self.say(ServerMessage::Task(Box::new(case.task(round))));
        assert_eq!(
            self.answer().await,
            ClientMessage::Accept {
                round: RoundId(round)
            }
        );
        self.serve_get(&case.adapter).await;
    }

    async fn serve_get(&mut self, bytes: &[u8]) {
        let mut stream = self.0.accept().await.unwrap();
        let BlobRequest::Get { blob, offset } = request(&mut stream).await else {
            panic!("no get")
        };
        assert_eq!((blob, offset), (BlobRef::of(bytes), 0));
        reply(&mut stream, BlobResponse::Have { len: blob.len }).await;
        net::write_chunks(&mut stream, bytes, |_| {}).await.unwrap();
    }

    /// Takes an upload from `offset` on, after what came `before`, and confirms it.
    async fn serve_put(&mut self, before: &[u8], round: u64) -> Vec<u8> {
        let mut stream = self.0.accept().await.unwrap();
        let BlobRequest::Put { round: got, blob } = request(&mut stream).await else {
            panic!("no put")
        };
        assert_eq!(got, RoundId(round));
        let offset = before.len() as u64;
        reply(&mut stream, BlobResponse::From { offset }).await;
        let mut received = before.to_vec();
        net::read_chunks(&mut stream, blob, &mut received, |_| {})
            .await
            .unwrap();
        reply(
            &mut stream,
            BlobResponse::Stored {
                digest: blob.digest,
            },
        )
        .await;
        received
    }

    /// Takes the offered update and gives a receipt.
    async fn take(&mut self, offer: &UpdateOffer) -> Vec<u8> {
        let (round, digest) = (offer.round, offer.blob.digest);
        self.say(ServerMessage::Ready { round, offset: 0 });
        let bytes = self.serve_put(&[], round.0).await;
        self.say(ServerMessage::Receipt { round, digest });
        bytes
    }
}

async fn request(stream: &mut DuplexStream) -> BlobRequest {
    net::receive_frame(stream).await.unwrap()
}

async fn reply(stream: &mut DuplexStream, response: BlobResponse) {
    net::send_frame(stream, &response).await.unwrap();
}

#[tokio::test]
async fn a_round_goes_from_hello_to_the_final_adapter() {
    let mut case = Case::new(4);
    let (client, mut connections) = case.start();
    let (mut server, hello) = connections.next().await;
    assert_eq!(
        (hello.shard_rows, hello.shard_loss_tokens, hello.resume),
        (2, 3, None)
    );
    assert_eq!(hello.tokenizer, Digest::of(b"tokenizer"));
    assert_eq!(hello.device, "pretended");

    server.give(&case, 0).await;
    let offer = server.offer().await;
    assert_eq!(
        (offer.round, offer.rows, offer.loss_tokens),
        (RoundId(0), 2, 3)
    );
    let bytes = server.take(&offer).await;
    let delta = decode_delta(&bytes, &case.layout, Codec::F32).unwrap();
    assert_eq!(delta.values()[0], 0.5);

    server.say(ServerMessage::RoundClosed(RoundSummary {
        round: RoundId(0),
        version: ModelVersion(1),
        outcome: RoundOutcome::Complete,
        updates: 1,
        loss: 0.5,
    }));
    let adapter = BlobRef::of(&case.adapter);
    server.say(ServerMessage::Finished {
        version: ModelVersion(1),
        adapter,
    });
    server.serve_get(&case.adapter).await;
    let Ending::Finished { version, adapter } = client.await.unwrap().unwrap() else {
        panic!("not finished")
    };
    assert_eq!(version, ModelVersion(1));
    assert_eq!(adapter.unwrap().1, Adapter::zeros(case.layout.clone()));

    let ledger = case.meter.ledger();
    assert_eq!(ledger.rounds_received, 1);
    assert_eq!(ledger.rounds[0].delta_bytes, bytes.len() as u64);
    assert!(ledger.sent(Kind::Delta).bytes >= bytes.len() as u64);
    assert_eq!(ledger.sent(Kind::Request).count, 2);
    assert_eq!(ledger.received_bytes, 2 * case.adapter.len() as u64);
    assert_eq!(case.deltas(), 0);
    let state = RoundStore::at(case.folder.path()).load().unwrap();
    assert_eq!((state.last_round, state.held), (Some(RoundId(0)), None));
    let notices = case.notices.lock().unwrap();
    let steps = notices
        .iter()
        .filter(|notice| matches!(notice, Notice::Step { .. }))
        .count();
    assert_eq!(steps, STEPS as usize);
    assert!(matches!(
        notices.last(),
        Some(Notice::Finished { version: 1 })
    ));
}

/// Two rounds, one of them refused, and one after the variate was lost.
#[tokio::test]
async fn a_control_variate_goes_on_from_the_last_update_that_counts() {
    let mut case = Case::new(4);
    let (_client, mut connections) = case.start();
    let (mut server, _) = connections.next().await;
    let both = Arc::new(update_layout(&case.layout, Factors::Both, true).unwrap());
    let own = |bytes: &[u8]| {
        let values = decode_delta(bytes, &both, Codec::F32).unwrap();
        values.values()[case.layout.len()]
    };
    let store = RoundStore::at(case.folder.path());
    let kept = |round| {
        let variate = store.load_variate(RUN, RoundId(round), &case.layout);
        variate.map(|variate| variate.values()[0])
    };
    for (round, since, origin, variate) in [
        (0, None, VariateOrigin::Fresh, 1.0),
        (1, Some(RoundId(0)), VariateOrigin::Kept, 2.0),
        // Round 1 did not count.
        (2, Some(RoundId(0)), VariateOrigin::Kept, 2.0),
        (3, Some(RoundId(2)), VariateOrigin::Lost, 1.0),
    ] {
        if origin == VariateOrigin::Lost {
            std::fs::remove_file(case.folder.path().join("variate-2.bin")).unwrap();
        }
        let mut task = case.task(round);
        task.rule = LocalRule::ControlVariate {
            variate: BlobRef::of(&case.adapter),
            form: VariateForm::Gradient,
            since,
        };
        server.say(ServerMessage::Task(Box::new(task)));
        server.answer().await;
        // The adapter, then the server's variate: here the same bytes.
        server.serve_get(&case.adapter).await;
        server.serve_get(&case.adapter).await;
        let offer = server.offer().await;
        assert_eq!((offer.round, offer.variate), (RoundId(round), origin));
        assert_eq!(kept(round), Some(variate), "{round}");
        if round == 1 {
            server.say(ServerMessage::Refused {
                round: RoundId(1),
                reason: fedllm_shared::RefuseReason::Malformed,
            });
        } else {
            assert_eq!(own(&server.take(&offer).await), 1.0);
        }
    }
}

#[tokio::test]
async fn training_outlives_a_broken_connection() {
    let mut case = Case::new(4);
    case.step = Duration::from_millis(150);
    case.max_rounds = Some(1);
    let (client, mut connections) = case.start();
    let (mut server, _) = connections.next().await;
    server.give(&case, 0).await;
    drop(server);
    let (mut server, hello) = connections.next().await;
    assert!(hello.resume.is_none() || hello.resume.unwrap().0 == RoundId(0));
    let offer = server.offer().await;
    server.take(&offer).await;
    assert_eq!(server.answer().await, ClientMessage::Leaving);
    assert_eq!(client.await.unwrap().unwrap(), Ending::Left);
    assert_eq!(case.fits(), 1);
}

#[tokio::test]
async fn an_update_outlives_a_crash() {
    let mut case = Case::new(4);
    let (client, mut connections) = case.start();
    let (mut server, _) = connections.next().await;
    server.give(&case, 0).await;
    let before = server.offer().await;
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    assert_eq!(case.deltas(), 1);

    case.max_rounds = Some(1);
    let (client, mut connections) = case.start();
    let (mut server, hello) = connections.next().await;
    assert_eq!(hello.resume, Some((RoundId(0), before.blob.digest)));
    let offer = server.offer().await;
    assert_eq!(offer, before);
    server.take(&offer).await;
    assert_eq!(server.answer().await, ClientMessage::Leaving);
    client.await.unwrap().unwrap();
    assert_eq!((case.fits(), case.deltas()), (1, 0));
    assert_eq!(case.meter.ledger().rounds_received, 1);
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off() {
    let mut case = Case::new(16_384);
    case.max_rounds = Some(1);
    let (client, mut connections) = case.start();
    let (mut server, _) = connections.next().await;
    server.give(&case, 0).await;
    let offer = server.offer().await;
    assert!(offer.blob.len > CHUNK_BYTES as u64);
    server.say(ServerMessage::Ready {
        round: RoundId(0),
        offset: 0,
    });
    let mut stream = server.0.accept().await.unwrap();
    request(&mut stream).await;
    reply(&mut stream, BlobResponse::From { offset: 0 }).await;
    let mut received = Vec::new();
    let first = BlobRef {
        len: CHUNK_BYTES as u64,
        ..offer.blob
    };
    // One whole chunk comes; as a blob it is not the one that was named.
    let mut kept = Vec::new();
    net::read_chunks(&mut stream, first, &mut received, |_| {})
        .await
        .unwrap_err();
    drop((stream, server));

    let (mut server, hello) = connections.next().await;
    assert_eq!(hello.resume, Some((RoundId(0), offer.blob.digest)));
    assert_eq!(server.offer().await, offer);
    let delta = RoundStore::at(case.folder.path())
        .load_delta(offer.blob)
        .unwrap()
        .unwrap();
    kept.extend_from_slice(&delta[..CHUNK_BYTES]);
    let offset = kept.len() as u64;
    server.say(ServerMessage::Ready {
        round: RoundId(0),
        offset,
    });
    assert_eq!(server.serve_put(&kept, 0).await, delta);
    server.say(ServerMessage::Receipt {
        round: RoundId(0),
        digest: offer.blob.digest,
    });
    assert_eq!(server.answer().await, ClientMessage::Leaving);
    client.await.unwrap().unwrap();
    assert_eq!(case.fits(), 1);
}

#[tokio::test]
async fn a_stop_ends_training_after_the_step_and_says_goodbye() {
    let mut case = Case::new(4);
    case.step = Duration::from_millis(400);
    let (client, mut connections) = case.start();
    let (mut server, _) = connections.next().await;
    server.give(&case, 0).await;
    let progress = server.hear().await;
    assert!(matches!(
        progress,
        ClientMessage::Progress {
            step: 1,
            steps: STEPS,
            ..
        }
    ));
    case.stop.stop();
    assert_eq!(server.answer().await, ClientMessage::Leaving);
    assert_eq!(client.await.unwrap().unwrap(), Ending::Left);
    assert_eq!((case.fits(), case.deltas()), (1, 0));
}

#[tokio::test]
async fn enough_rounds_are_enough() {
    let mut case = Case::new(4);
    case.max_rounds = Some(2);
    let (client, mut connections) = case.start();
    let (mut server, _) = connections.next().await;
    for round in 0..2 {
        server.give(&case, round).await;
        let offer = server.offer().await;
        server.take(&offer).await;
    }
    assert_eq!(server.answer().await, ClientMessage::Leaving);
    assert_eq!(client.await.unwrap().unwrap(), Ending::Left);
    assert_eq!(case.meter.ledger().rounds_received, 2);
}

#[tokio::test]
async fn values_that_are_not_finite_are_reported_and_never_sent() {
    let mut case = Case::new(4);
    let failure = |step| TrainError::NotFinite { what: "loss", step };
    case.failures = vec![failure(1), failure(2), failure(3)];
    let (client, mut connections) = case.start();
    let (mut server, _) = connections.next().await;
    for round in 0..3 {
        server.give(&case, round).await;
        let (round, reason) = (RoundId(round), FailReason::NonFinite);
        assert_eq!(
            server.answer().await,
            ClientMessage::Failed { round, reason }
        );
    }
    assert_eq!(server.answer().await, ClientMessage::Leaving);
    let error = client.await.unwrap().unwrap_err();
    assert!(
        matches!(error, SessionError::Training { failures: 3, .. }),
        "{error}"
    );
    let ledger = case.meter.ledger();
    assert_eq!(
        (ledger.sent(Kind::Delta).bytes, ledger.rounds.len()),
        (0, 3)
    );
}

#[tokio::test]
async fn another_layout_is_declined_and_explained() {
    let mut case = Case::new(4);
    let (client, mut connections) = case.start();
    let (mut server, _) = connections.next().await;
    let mut task = case.task(0);
    task.layout = Digest::of(b"another");
    server.say(ServerMessage::Task(Box::new(task)));
    let round = RoundId(0);
    assert_eq!(server.answer().await, ClientMessage::Accept { round });
    let reason = DeclineReason::WrongLayout;
    assert_eq!(
        server.answer().await,
        ClientMessage::Decline { round, reason }
    );
    assert_eq!(server.answer().await, ClientMessage::Leaving);
    let error = client.await.unwrap().unwrap_err();
    assert!(
        matches!(error, SessionError::Unfit(DeclineReason::WrongLayout)),
        "{error}"
    );
    assert_eq!(case.fits(), 0);
}

#[tokio::test]
async fn a_server_that_turns_the_client_away_is_believed() {
    let mut case = Case::new(4);
    let (client, mut connections) = case.start();
    let (server, _) = connections.next().await;
    let (code, message) = (ErrorCode::WrongTokenizer, "yours is\x07 another".to_owned());
    server.say(ServerMessage::Error { code, message });
    let error = client.await.unwrap().unwrap_err();
    let SessionError::Rejected { code, message } = error else {
        panic!("{error}")
    };
    assert_eq!(
        (code, message.as_str()),
        (ErrorCode::WrongTokenizer, "yours is another")
    );
}

#[tokio::test]
async fn an_adapter_of_impossible_size_is_not_fetched() {
    let mut case = Case::new(4);
    let (client, mut connections) = case.start();
    let (mut server, _) = connections.next().await;
    let mut task = case.task(0);
    task.adapter.len = u64::MAX;
    server.say(ServerMessage::Task(Box::new(task)));
    let round = RoundId(0);
    assert_eq!(server.answer().await, ClientMessage::Accept { round });
    let reason = FailReason::Adapter;
    assert_eq!(
        server.answer().await,
        ClientMessage::Failed { round, reason }
    );
    assert_eq!(case.meter.ledger().sent(Kind::Request).count, 0);
    case.stop.stop();
    client.await.unwrap().unwrap();
}

#[tokio::test]
async fn on_a_full_disk_the_update_is_sent_and_the_client_ends_with_an_error() {
    let mut case = Case::new(4);
    case.step = Duration::from_millis(100);
    let (client, mut connections) = case.start();
    let (mut server, _) = connections.next().await;
    server.give(&case, 0).await;
    // Nothing can be written to a folder that is gone, as to a disk that is full.
    std::fs::remove_dir_all(case.folder.path()).unwrap();
    let offer = server.offer().await;
    server.take(&offer).await;
    assert_eq!(server.answer().await, ClientMessage::Leaving);
    let error = client.await.unwrap().unwrap_err();
    assert!(matches!(error, SessionError::State(_)), "{error}");
    assert_eq!(case.meter.ledger().rounds_received, 1);
}

#[tokio::test]
async fn held_out_rows_are_scored_before_training_and_only_means_are_sent() {
    let mut case = Case::new(1);
    case.max_rounds = Some(1);
    case.held_out = Some(shard().subset(&[0, 1, 0, 1, 0]));
    let (session, mut connections) = case.start();
    let (mut server, hello) = connections.next().await;
    assert_eq!(hello.shard_rows, 2, "held-out rows are not among them");
    server.give(&case, 0).await;
    let said = server.hear().await;
    let score = HeldOutScore {
        loss: 1.5,
        accuracy: 0.5,
        rows: 5,
    };
    let round = RoundId(0);
    assert_eq!(said, ClientMessage::Evaluated { round, score });
    server.offer().await;
    assert_eq!(case.fits(), 1);
    case.stop.stop();
    session.await.unwrap().unwrap();
    assert_eq!(case.meter.ledger().sent(Kind::Evaluation).count, 1);
    let notices = case.notices.lock().unwrap();
    let scored = notices
        .iter()
        .any(|notice| matches!(notice, Notice::Scored { rows: 5, .. }));
    assert!(scored, "{notices:?}");
}

#[tokio::test]
async fn a_few_held_out_rows_are_scored_and_not_reported() {
    let mut case = Case::new(1);
    case.held_out = Some(shard());
    let (session, mut connections) = case.start();
    let (mut server, _) = connections.next().await;
    server.give(&case, 0).await;
    server.offer().await;
    case.stop.stop();
    session.await.unwrap().unwrap();
    assert_eq!(case.meter.ledger().sent(Kind::Evaluation).count, 0);
}
