//! The bytes of every message of `fedllm/2` and `fedllm-join/1`, field by field.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::Codec;
use crate::id::{Digest, ModelVersion, RoundId, RunId};
use crate::wire::*;

/// A task with another value in every field.
pub(crate) fn task() -> TrainTask {
    TrainTask {
        run: RunId([0x11; 16]),
        round: RoundId(2),
        version: ModelVersion(300),
        base: Digest([0x22; 32]),
        layout: Digest([0x33; 32]),
        adapter: BlobRef {
            digest: Digest([0x44; 32]),
            len: 1000,
        },
        lora: LoraSpec {
            rank: 8,
            alpha: 16.0,
            dropout: 0.25,
            rslora: false,
            targets: [Target::Q, Target::V].into_iter().collect(),
            seed: 6,
            train: Factors::B,
        },
        objective: ObjectiveSpec::Sft,
        local: LocalSpec {
            steps: 10,
            batch: 4,
            max_tokens: 512,
            lr: 0.5,
            beta1: 0.75,
            beta2: 0.875,
            eps: 0.125,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            keep_optimizer: true,
            shuffle: false,
            optimizer: LocalOptimizer::Sgd,
        },
        codec: Codec::Int8Rows,
        rule: LocalRule::Proximal { mu: 2.0 },
        max_norm: Some(10.0),
        seed: 5,
        deadline_ms: 60_000,
    }
}

/// Confirms that `message` is written as these fields, in hex with a name
/// each, and that they are read as `message`.
fn golden<M>(message: M, fields: &[(&str, &str)])
where
    M: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let body: String = fields.iter().map(|(_, hex)| expand(hex)).collect();
    let length = ((body.len() / 2) as u32).to_le_bytes();
    let frame = encode_frame(&message).unwrap();
    assert_eq!(frame[..4], length, "{message:?}");
    assert_eq!(
        data_encoding::HEXLOWER.encode(&frame[4..]),
        body,
        "{message:?}"
    );
    assert_eq!(decode_body::<M>(&frame[4..]).unwrap(), message);
}

/// `aa*3` is short for `aaaaaa`.
fn expand(hex: &str) -> String {
    let pieces = hex.split(' ').map(|piece| match piece.split_once('*') {
        Some((byte, count)) => byte.repeat(count.parse().unwrap()),
        None => piece.to_owned(),
    });
    pieces.collect()
}

fn blob() -> BlobRef {
    BlobRef {
        digest: Digest([0x44; 32]),
        len: 1000,
    }
}

#[test]
fn hello() {
    let hello = Hello {
        protocol: 1,
        client_version: "0.1".to_owned(),
        device: "cpu".to_owned(),
        shard_rows: 200,
        shard_loss_tokens: 70_000,
        tokenizer: Digest([0x55; 32]),
        template: Digest([0x66; 32]),
        base: Digest([0x22; 32]),
        resume: None,
        shard_kind: RowKind::Preferences,
        max_rank: None,
    };
    let mut fields = vec![
        ("message: Hello", "00"),
        ("protocol: 1", "01"),
        ("client_version: 3 bytes", "03"),
        ("0.1", "302e31"),
        ("device: 3 bytes", "03"),
        ("cpu", "637075"),
        ("shard_rows: 200", "c801"),
        ("shard_loss_tokens: 70000", "f0a204"),
        ("tokenizer", "55*32"),
        ("template", "66*32"),
        ("base", "22*32"),
        ("resume: none", "00"),
        ("shard_kind: Preferences", "01"),
        ("max_rank: none", "00"),
    ];
    golden(ClientMessage::Hello(hello.clone()), &fields);
    fields.truncate(11);
    fields.extend([
        ("resume: some", "01"),
        ("round: 2", "02"),
        ("digest", "44*32"),
        ("shard_kind: Examples", "00"),
        ("max_rank: some", "01"),
        ("max_rank: 4", "04"),
    ]);
    let hello = Hello {
        resume: Some((RoundId(2), Digest([0x44; 32]))),
        shard_kind: RowKind::Examples,
        max_rank: Some(4),
        ..hello
    };
    golden(ClientMessage::Hello(hello), &fields);
}

#[test]
fn offer() {
    let offer = UpdateOffer {
        round: RoundId(2),
        base_version: ModelVersion(300),
        blob: blob(),
        rows: 40,
        loss_tokens: 128,
        metrics: UpdateMetrics {
            loss_first: 2.0,
            loss_last: 1.0,
            loss_mean: 1.5,
            grad_norm_mean: 0.5,
            tokens: 300,
            seconds: 1.0,
            preference: None,
        },
        variate: VariateOrigin::Unused,
    };
    let head = [
        ("message: Offer", "04"),
        ("round: 2", "02"),
        ("base_version: 300", "ac02"),
        ("blob.digest", "44*32"),
        ("blob.len: 1000", "e807"),
        ("rows: 40", "28"),
        ("loss_tokens: 128", "8001"),
        ("loss_first: 2.0", "00000040"),
        ("loss_last: 1.0", "0000803f"),
        ("loss_mean: 1.5", "0000c03f"),
        ("grad_norm_mean: 0.5", "0000003f"),
        ("tokens: 300", "ac02"),
        ("seconds: 1.0", "000000000000f03f"),
    ];
    let with = |tail: &[(&'static str, &'static str)]| [&head[..], tail].concat();
    let fields = with(&[("preference: none", "00"), ("variate: Unused", "00")]);
    golden(ClientMessage::Offer(offer.clone()), &fields);
    let pairs = PreferenceMetrics {
        chosen: 1.5,
        rejected: -0.5,
        margin: 2.0,
        accuracy: 0.75,
    };
    for (variate, byte) in [
        (VariateOrigin::Fresh, "01"),
        (VariateOrigin::Kept, "02"),
        (VariateOrigin::Lost, "03"),
    ] {
        let fields = with(&[
            ("preference: some", "01"),
            ("chosen: 1.5", "0000c03f"),
            ("rejected: -0.5", "000000bf"),
            ("margin: 2.0", "00000040"),
            ("accuracy: 0.75", "0000403f"),
            ("variate", byte),
        ]);
        let metrics = UpdateMetrics {
            preference: Some(pairs),
            ..offer.metrics.clone()
        };
        let offer = UpdateOffer {
            metrics,
            variate,
            ..offer.clone()
        };
        golden(ClientMessage::Offer(offer), &fields);
    }
}

#[test]
fn short_client_messages() {
    let round = RoundId(2);
    golden(
        ClientMessage::Accept { round },
        &[("message: Accept", "01"), ("round: 2", "02")],
    );
    let progress = ClientMessage::Progress {
        round,
        step: 3,
        steps: 10,
        loss: 1.5,
    };
    golden(
        progress,
        &[
            ("message: Progress", "03"),
            ("round: 2", "02"),
            ("step: 3", "03"),
            ("steps: 10", "0a"),
            ("loss: 1.5", "0000c03f"),
        ],
    );
    golden(ClientMessage::Leaving, &[("message: Leaving", "06")]);
    let score = HeldOutScore {
        loss: 1.5,
        accuracy: 0.25,
        rows: 300,
    };
    golden(
        ClientMessage::Evaluated { round, score },
        &[
            ("message: Evaluated", "07"),
            ("round: 2", "02"),
            ("loss: 1.5", "0000c03f"),
            ("accuracy: 0.25", "0000803e"),
            ("rows: 300", "ac02"),
        ],
    );
    for (reason, byte) in [
        (DeclineReason::WrongBase, "00"),
        (DeclineReason::WrongLayout, "01"),
        (DeclineReason::OutOfBounds, "02"),
        (DeclineReason::StaleRound, "03"),
        (DeclineReason::Unsupported, "04"),
        (DeclineReason::Paused, "05"),
        (DeclineReason::WrongRows, "06"),
    ] {
        golden(
            ClientMessage::Decline { round, reason },
            &[
                ("message: Decline", "02"),
                ("round: 2", "02"),
                ("reason", byte),
            ],
        );
    }
    for (reason, byte) in [
        (FailReason::NonFinite, "00"),
        (FailReason::OutOfMemory, "01"),
        (FailReason::Device, "02"),
        (FailReason::Shard, "03"),
        (FailReason::Adapter, "04"),
        (FailReason::Stopped, "05"),
        (FailReason::Internal, "06"),
    ] {
        golden(
            ClientMessage::Failed { round, reason },
            &[
                ("message: Failed", "05"),
                ("round: 2", "02"),
                ("reason", byte),
            ],
        );
    }
}

#[test]
fn welcome() {
    let welcome = Welcome {
        protocol: 1,
        run: RunId([0x11; 16]),
        federation: "f".to_owned(),
        round: RoundId(2),
        rounds: 10,
        version: ModelVersion(300),
    };
    golden(
        ServerMessage::Welcome(welcome),
        &[
            ("message: Welcome", "00"),
            ("protocol: 1", "01"),
            ("run", "11*16"),
            ("federation: 1 byte", "01"),
            ("f", "66"),
            ("round: 2", "02"),
            ("rounds: 10", "0a"),
            ("version: 300", "ac02"),
        ],
    );
}

#[test]
fn train_task() {
    let head = [
        ("message: Task", "01"),
        ("run", "11*16"),
        ("round: 2", "02"),
        ("version: 300", "ac02"),
        ("base", "22*32"),
        ("layout", "33*32"),
        ("adapter.digest", "44*32"),
        ("adapter.len: 1000", "e807"),
        ("lora.rank: 8", "08"),
        ("lora.alpha: 16.0", "00008041"),
        ("lora.dropout: 0.25", "0000803e"),
        ("lora.rslora: false", "00"),
        ("lora.targets: q and v", "05"),
        ("lora.seed: 6", "06"),
        ("lora.train: B", "01"),
        ("objective: Sft", "00"),
        ("local.steps: 10", "0a"),
        ("local.batch: 4", "04"),
        ("local.max_tokens: 512", "8004"),
        ("local.lr: 0.5", "0000003f"),
        ("local.beta1: 0.75", "0000403f"),
        ("local.beta2: 0.875", "0000603f"),
        ("local.eps: 0.125", "0000003e"),
        ("local.weight_decay: 0.0", "00000000"),
        ("local.max_grad_norm: 1.0", "0000803f"),
        ("local.keep_optimizer: true", "01"),
        ("local.shuffle: false", "00"),
        ("local.optimizer: Sgd", "01"),
    ];
    let with = |tail: &[(&'static str, &'static str)]| [&head[..], tail].concat();
    let proximal = with(&[
        ("codec: Int8Rows", "02"),
        ("rule: Proximal", "01"),
        ("rule.mu: 2.0", "00000040"),
        ("max_norm: some", "01"),
        ("max_norm: 10.0", "00002041"),
        ("seed: 5", "05"),
        ("deadline_ms: 60000", "e0d403"),
    ]);
    golden(ServerMessage::Task(Box::new(task())), &proximal);

    let plain = TrainTask {
        codec: Codec::F32,
        rule: LocalRule::Plain,
        max_norm: None,
        ..task()
    };
    let fields = with(&[
        ("codec: F32", "00"),
        ("rule: Plain", "00"),
        ("max_norm: none", "00"),
        ("seed: 5", "05"),
        ("deadline_ms: 60000", "e0d403"),
    ]);
    golden(ServerMessage::Task(Box::new(plain.clone())), &fields);

    let variate = TrainTask {
        codec: Codec::Bf16,
        rule: LocalRule::ControlVariate {
            variate: blob(),
            form: VariateForm::AfterStep,
            since: Some(RoundId(1)),
        },
        ..plain.clone()
    };
    let fields = with(&[
        ("codec: Bf16", "01"),
        ("rule: ControlVariate", "02"),
        ("rule.variate.digest", "44*32"),
        ("rule.variate.len: 1000", "e807"),
        ("rule.form: AfterStep", "01"),
        ("rule.since: some", "01"),
        ("rule.since: 1", "01"),
        ("max_norm: none", "00"),
        ("seed: 5", "05"),
        ("deadline_ms: 60000", "e0d403"),
    ]);
    golden(ServerMessage::Task(Box::new(variate.clone())), &fields);

    for (loss, byte) in [
        (PreferenceLoss::Sigmoid, "00"),
        (PreferenceLoss::Hinge, "01"),
        (PreferenceLoss::Ipo, "02"),
        (PreferenceLoss::IpoMean, "03"),
    ] {
        let mut fields = fields.clone();
        let objective = [
            ("objective: Dpo", "01"),
            ("beta: 0.5", "0000003f"),
            ("label_smoothing: 0.25", "0000803e"),
            ("loss", byte),
            ("reference: Adapter", "01"),
            ("reference.digest", "44*32"),
            ("reference.len: 1000", "e807"),
        ];
        let at = head.iter().position(|(name, _)| *name == "objective: Sft");
        fields.splice(at.unwrap()..=at.unwrap(), objective);
        let objective = ObjectiveSpec::Dpo(PreferenceSpec {
            beta: 0.5,
            label_smoothing: 0.25,
            loss,
            reference: Reference::Adapter(blob()),
        });
        let dpo = TrainTask {
            objective,
            ..variate.clone()
        };
        golden(ServerMessage::Task(Box::new(dpo)), &fields);
    }
}

#[test]
fn short_server_messages() {
    let round = RoundId(2);
    for (reason, byte) in [
        (WaitReason::MoreClients, "00"),
        (WaitReason::NotInCohort, "01"),
        (WaitReason::RoundInProgress, "02"),
        (WaitReason::Aggregating, "03"),
    ] {
        let retry_after_ms = 500;
        golden(
            ServerMessage::Wait {
                retry_after_ms,
                reason,
            },
            &[
                ("message: Wait", "02"),
                ("retry_after_ms: 500", "f403"),
                ("reason", byte),
            ],
        );
    }
    golden(
        ServerMessage::Ready {
            round,
            offset: 1 << 20,
        },
        &[
            ("message: Ready", "03"),
            ("round: 2", "02"),
            ("offset: 1048576", "808040"),
        ],
    );
    golden(
        ServerMessage::Receipt {
            round,
            digest: blob().digest,
        },
        &[
            ("message: Receipt", "04"),
            ("round: 2", "02"),
            ("digest", "44*32"),
        ],
    );
    for (reason, byte) in [
        (RefuseReason::RoundNotOpen, "00"),
        (RefuseReason::NotInCohort, "01"),
        (RefuseReason::WrongVersion, "02"),
        (RefuseReason::Conflict, "03"),
        (RefuseReason::TooLarge, "04"),
        (RefuseReason::Malformed, "05"),
        (RefuseReason::NonFinite, "06"),
        (RefuseReason::NormTooLarge, "07"),
        (RefuseReason::NoWeight, "08"),
        (RefuseReason::AlreadyRefused, "09"),
    ] {
        golden(
            ServerMessage::Refused { round, reason },
            &[
                ("message: Refused", "05"),
                ("round: 2", "02"),
                ("reason", byte),
            ],
        );
    }
    for (outcome, byte) in [(RoundOutcome::Complete, "00"), (RoundOutcome::Quorum, "01")] {
        let summary = RoundSummary {
            round,
            version: ModelVersion(300),
            outcome,
            updates: 3,
            loss: 1.5,
        };
        golden(
            ServerMessage::RoundClosed(summary),
            &[
                ("message: RoundClosed", "06"),
                ("round: 2", "02"),
                ("version: 300", "ac02"),
                ("outcome", byte),
                ("updates: 3", "03"),
                ("loss: 1.5", "0000c03f"),
            ],
        );
    }
    golden(
        ServerMessage::Finished {
            version: ModelVersion(300),
            adapter: blob(),
        },
        &[
            ("message: Finished", "07"),
            ("version: 300", "ac02"),
            ("adapter.digest", "44*32"),
            ("adapter.len: 1000", "e807"),
        ],
    );
}

#[test]
fn server_errors() {
    for (code, byte) in [
        (ErrorCode::Protocol, "00"),
        (ErrorCode::Version, "01"),
        (ErrorCode::WrongBase, "02"),
        (ErrorCode::WrongTokenizer, "03"),
        (ErrorCode::WrongTemplate, "04"),
        (ErrorCode::EmptyShard, "05"),
        (ErrorCode::NotAdmitted, "06"),
        (ErrorCode::Replaced, "07"),
        (ErrorCode::Busy, "08"),
        (ErrorCode::Stopping, "09"),
        (ErrorCode::Internal, "0a"),
        (ErrorCode::WrongRows, "0b"),
        (ErrorCode::WrongRank, "0c"),
    ] {
        let message = "no".to_owned();
        golden(
            ServerMessage::Error { code, message },
            &[
                ("message: Error", "08"),
                ("code", byte),
                ("message: 2 bytes", "02"),
                ("no", "6e6f"),
            ],
        );
    }
}

#[test]
fn blob_requests_and_responses() {
    let (digest, len) = (("digest", "44*32"), ("len: 1000", "e807"));
    golden(
        BlobRequest::Get {
            blob: blob(),
            offset: 0,
        },
        &[("request: Get", "00"), digest, len, ("offset: 0", "00")],
    );
    golden(
        BlobRequest::Put {
            round: RoundId(2),
            blob: blob(),
        },
        &[("request: Put", "01"), ("round: 2", "02"), digest, len],
    );
    golden(
        BlobResponse::Have { len: 1000 },
        &[("response: Have", "00"), len],
    );
    golden(
        BlobResponse::From { offset: 1 << 20 },
        &[("response: From", "01"), ("offset: 1048576", "808040")],
    );
    golden(
        BlobResponse::Stored {
            digest: blob().digest,
        },
        &[("response: Stored", "02"), digest],
    );
    for (reason, byte) in [
        (BlobRefusal::NotExpected, "00"),
        (BlobRefusal::BadOffset, "01"),
        (BlobRefusal::Corrupt, "02"),
        (BlobRefusal::Invalid, "03"),
        (BlobRefusal::Busy, "04"),
        (BlobRefusal::Internal, "05"),
    ] {
        golden(
            BlobResponse::Refused { reason },
            &[("response: Refused", "03"), ("reason", byte)],
        );
    }
}

#[test]
fn chunk_header() {
    let header = ChunkHeader {
        len: 1 << 20,
        digest: blob().digest,
    };
    let hex = data_encoding::HEXLOWER.encode(&header.encode());
    assert_eq!(hex, expand("00001000 44*32"));
}

#[test]
fn joining() {
    golden(
        JoinRequest {
            protocol: 1,
            id: TokenId([0x77; 16]),
            secret: TokenSecret([0x88; 16]),
            csr: vec![0x30, 0x82],
        },
        &[
            ("protocol: 1", "01"),
            ("id", "77*16"),
            ("secret", "88*16"),
            ("csr: 2 bytes", "02"),
            ("csr", "3082"),
        ],
    );
    golden(
        JoinResponse::Granted(JoinGrant {
            name: "a".to_owned(),
            federation: "f".to_owned(),
            certificate: vec![0x30],
            authority: vec![0x31, 0x32],
        }),
        &[
            ("response: Granted", "00"),
            ("name: 1 byte", "01"),
            ("a", "61"),
            ("federation: 1 byte", "01"),
            ("f", "66"),
            ("certificate: 1 byte", "01"),
            ("certificate", "30"),
            ("authority: 2 bytes", "02"),
            ("authority", "3132"),
        ],
    );
    for (reason, byte) in [
        (JoinRefusal::Invalid, "00"),
        (JoinRefusal::Used, "01"),
        (JoinRefusal::Expired, "02"),
        (JoinRefusal::BadRequest, "03"),
        (JoinRefusal::Version, "04"),
        (JoinRefusal::Internal, "05"),
    ] {
        golden(
            JoinResponse::Refused { reason },
            &[("response: Refused", "01"), ("reason", byte)],
        );
    }
}
