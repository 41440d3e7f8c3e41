//! The server over real QUIC on loopback.

use std::fs;

use fedllm_shared::{
    ALPN, BlobRef, BlobRefusal, BlobResponse, ClientMessage, ClientsScore, ErrorCode, HeldOutScore,
    JoinRefusal, JoinResponse, JoinToken, ModelVersion, RefuseReason, RoundId, ServerMessage,
    decode_adapter,
};
use rcgen::{CertificateParams, KeyPair};
use tokio::time::timeout;

use super::*;
use crate::admin::RunState;
use crate::record::stored_adapter;
use crate::testing::{
    Member, PATIENCE, Peer, base, dial, federation, hello, serve, unauthenticated,
};

async fn two(server: &Server) -> (Member, Member) {
    let alice = Member::join(server, "alice").await;
    let bob = Member::join(server, "bob").await;
    (alice, bob)
}

async fn closed_code(peer: &Peer) -> String {
    let reason = timeout(PATIENCE, peer.connection.closed()).await.unwrap();
    reason.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_rounds_from_invitation_to_the_last_adapter() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    let server = serve(&folder, None).await;
    let (alice, bob) = two(&server).await;
    let mut alice = alice.connect(server.addr()).await;
    let mut bob = bob.connect(server.addr()).await;
    let welcome = alice.hear().await.unwrap();
    assert!(matches!(welcome, ServerMessage::Welcome(_)), "{welcome:?}");
    let status = server.status().await.unwrap();
    assert_eq!(
        (status.version, status.rounds, status.clients.len()),
        (0, 2, 2)
    );

    for _ in 0..2 {
        tokio::join!(alice.work(1.0), bob.work(3.0));
    }
    let finished = |message| match message {
        ServerMessage::Finished { version, adapter } => Some((version, adapter)),
        _ => None,
    };
    let (version, adapter) = alice.wait_for(finished).await;
    assert_eq!(version, ModelVersion(2));
    let bytes = alice.get(adapter, 0).await.unwrap();
    let adapter = decode_adapter(&bytes, &base().layout).unwrap();
    assert!(adapter.values().iter().all(|value| *value == 4.0));

    drop((alice, bob));
    timeout(PATIENCE, server.wait()).await.unwrap().unwrap();
    drop(server);
    let state = folder.state();
    let blobs = fs::read_dir(state.join("blobs")).unwrap().count();
    // Three versions of the adapter and the folder of partial uploads: no update is kept.
    assert_eq!(blobs, 4);
    assert!(!state.join("admin.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_update_survives_the_server_and_counts_once() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &["rounds.count=1"]);
    let server = serve(&folder, None).await;
    let at = server.addr();
    let (alice, bob) = two(&server).await;
    let mut first = alice.connect(at).await;
    let second = bob.connect(at).await;
    let task = first.task().await;
    let (blob, bytes) = first.offer(&task, 1.0).await;
    first.ready().await;
    first.put(task.round, blob, &bytes).await;
    first.receipt().await;
    // Nothing is told to anyone, and what was not in the record is gone.
    drop(server);
    drop((first, second));
    let server = restart(&folder, at).await;

    let mut alice = alice.connect(at).await;
    alice.offer(&task, 1.0).await;
    assert_eq!(alice.receipt().await, blob.digest);
    alice.offer(&task, 7.0).await;
    let refused = |message| match message {
        ServerMessage::Refused { reason, .. } => Some(reason),
        _ => None,
    };
    assert_eq!(alice.wait_for(refused).await, RefuseReason::Conflict);
    let mut bob = bob.connect(at).await;
    bob.work(5.0).await;
    let finished = |message| match message {
        ServerMessage::Finished { adapter, .. } => Some(adapter),
        _ => None,
    };
    let adapter = bob.wait_for(finished).await;
    let bytes = bob.get(adapter, 0).await.unwrap();
    let adapter = decode_adapter(&bytes, &base().layout).unwrap();
    assert!(adapter.values().iter().all(|value| *value == 3.0));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_heard_once_on_the_adapter_and_only_if_it_makes_sense() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    let server = serve(&folder, None).await;
    let (alice, bob) = two(&server).await;
    let mut alice = alice.connect(server.addr()).await;
    let _bob = bob.connect(server.addr()).await;
    let task = alice.task().await;
    let score = HeldOutScore {
        loss: 2.0,
        accuracy: 0.5,
        rows: 10,
    };
    let unsound = [
        HeldOutScore {
            loss: f32::NAN,
            ..score
        },
        HeldOutScore { rows: 1, ..score },
        HeldOutScore {
            rows: u32::MAX,
            ..score
        },
    ];
    let later = RoundId(task.round.0 + 1);
    let reports = unsound.map(|score| (task.round, score)).into_iter();
    let lower = HeldOutScore { loss: 1.0, ..score };
    let more = [(later, lower), (task.round, score), (task.round, lower)];
    for (round, score) in reports.chain(more) {
        alice.say(ClientMessage::Evaluated { round, score }).await;
    }
    // Its update counts all the same.
    let (blob, bytes) = alice.offer(&task, 1.0).await;
    alice.ready().await;
    alice.put(task.round, blob, &bytes).await;
    assert_eq!(alice.receipt().await, blob.digest);
    let scores = server.status().await.unwrap().scores;
    let clients: Vec<_> = scores.iter().map(|score| score.clients).collect();
    assert_eq!(clients, [ClientsScore::of([&score])]);
    server.shutdown().await.unwrap();
}

/// The old thread lets go of the record a moment after its server is dropped.
async fn restart(folder: &Folder, at: SocketAddr) -> Server {
    for _ in 0..100 {
        let mut options = ServerOptions::new(folder.clone(), base());
        options.listen = Some(at);
        match Server::start(options).await {
            Ok(server) => return server,
            Err(ServerError::Store(StoreError::InUse { .. }) | ServerError::Endpoint(_)) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the record stays in use");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_goes_on() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    let server = serve(&folder, None).await;
    let (alice, bob) = two(&server).await;
    let mut first = alice.connect(server.addr()).await;
    let _bob = bob.connect(server.addr()).await;
    let task = first.task().await;
    let (blob, bytes) = first.offer(&task, 1.0).await;
    first.ready().await;
    // A wrong byte: the chunk's digest tells.
    let mut wrong = bytes.clone();
    wrong[60] ^= 1;
    let refused = first.put(task.round, BlobRef { ..blob }, &wrong).await;
    let corrupt = BlobResponse::Refused {
        reason: BlobRefusal::Corrupt,
    };
    assert_eq!(refused, corrupt);
    first.connection.close(0u32.into(), b"");
    let mut again = alice.connect(server.addr()).await;
    again.offer(&task, 1.0).await;
    again.ready().await;
    let stored = BlobResponse::Stored {
        digest: blob.digest,
    };
    assert_eq!(again.put(task.round, blob, &bytes).await, stored);
    server.shutdown().await.unwrap();
}

/// Linux has a file that is always full.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_puts_an_upload_off_and_loses_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    let server = serve(&folder, None).await;
    let (alice, bob) = two(&server).await;
    let mut alice = alice.connect(server.addr()).await;
    let _bob = bob.connect(server.addr()).await;
    let task = alice.task().await;
    let (blob, bytes) = alice.offer(&task, 1.0).await;
    alice.ready().await;
    let name = format!("blobs/partial/{}-{}", alice.id, blob.digest);
    let partial = folder.state().join(name);
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let busy = BlobResponse::Refused {
        reason: BlobRefusal::Busy,
    };
    assert_eq!(alice.put(task.round, blob, &bytes).await, busy);
    let status = server.status().await.unwrap();
    assert_eq!(status.round.map(|round| round.updates), Some(0));
    fs::remove_file(&partial).unwrap();
    let stored = BlobResponse::Stored {
        digest: blob.digest,
    };
    assert_eq!(alice.put(task.round, blob, &bytes).await, stored);
    assert_eq!(alice.receipt().await, blob.digest);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_update_are_refused_and_forgotten() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    let server = serve(&folder, None).await;
    let (alice, bob) = two(&server).await;
    let mut alice = alice.connect(server.addr()).await;
    let bob = bob.connect(server.addr()).await;
    let task = alice.task().await;
    let bytes = b"an update of a kind that nobody has agreed on".to_vec();
    let blob = BlobRef::of(&bytes);
    // Nobody asked for it yet.
    let not_expected = BlobResponse::Refused {
        reason: BlobRefusal::NotExpected,
    };
    assert_eq!(alice.put(task.round, blob, &bytes).await, not_expected);
    alice.offer_blob(&task, blob).await;
    alice.ready().await;
    assert_eq!(bob.put(task.round, blob, &bytes).await, not_expected);
    assert_eq!(alice.put(RoundId(9), blob, &bytes).await, not_expected);
    let invalid = BlobResponse::Refused {
        reason: BlobRefusal::Invalid,
    };
    assert_eq!(alice.put(task.round, blob, &bytes).await, invalid);
    let refused = |message| match message {
        ServerMessage::Refused { reason, .. } => Some(reason),
        _ => None,
    };
    assert_eq!(alice.wait_for(refused).await, RefuseReason::Malformed);
    let path = folder.state().join("blobs").join(blob.digest.to_string());
    assert!(!path.exists());
    // Only the adapter of the task may be fetched, from the start of a chunk.
    assert_eq!(alice.get(blob, 0).await, Err(not_expected));
    let bad_offset = BlobResponse::Refused {
        reason: BlobRefusal::BadOffset,
    };
    assert_eq!(alice.get(task.adapter, 1).await, Err(bad_offset));
    assert!(alice.get(task.adapter, 0).await.is_ok());
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_used_once() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    let server = serve(&folder, None).await;
    let invited = server.invite("alice", Duration::from_secs(60)).unwrap();
    let token: JoinToken = invited.token.parse().unwrap();
    assert_eq!(token.address, format!("127.0.0.1:{}", server.addr().port()));
    let refused = |reason| JoinResponse::Refused { reason };
    let mut forged = token.clone();
    forged.secret.0[0] ^= 1;
    let answer = Member::use_token(server.addr(), &forged).await.err();
    assert_eq!(answer, Some(refused(JoinRefusal::Invalid)));
    assert!(Member::use_token(server.addr(), &token).await.is_ok());
    let answer = Member::use_token(server.addr(), &token).await.err();
    assert_eq!(answer, Some(refused(JoinRefusal::Used)));
    assert!(matches!(
        server.invite("alice", Duration::from_secs(60)),
        Err(OperatorError::NameTaken(_))
    ));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_stay_outside() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    let server = serve(&folder, None).await;
    // No certificate.
    let connection = dial(server.addr(), unauthenticated(ALPN)).await.unwrap();
    let reason = timeout(PATIENCE, connection.closed()).await.unwrap();
    assert!(
        reason.to_string().contains("certificate is required"),
        "{reason}"
    );
    // Another version of the protocol.
    let other = dial(server.addr(), unauthenticated(b"fedllm/1")).await;
    assert!(other.unwrap_err().to_string().contains("120"));
    // A certificate of another federation, of the same name.
    let elsewhere = federation(&parent.path().join("g"), &[]);
    let foreign = serve(&elsewhere, None).await;
    let mallory = Member::join(&foreign, "alice").await;
    let peer = mallory.try_connect_trusting(server.addr()).await;
    let reason = timeout(PATIENCE, peer.closed()).await.unwrap();
    assert!(reason.to_string().contains("peer"), "{reason}");
    assert!(server.status().await.unwrap().clients.is_empty());
    foreign.shutdown().await.unwrap();
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_valid_client_certificate_is_one() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    let server = serve(&folder, None).await;
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let authority = folder.authority().unwrap();
    let issue = |life| {
        authority
            .issue_client(request.der(), "old", life)
            .unwrap()
            .der
    };
    let expired = issue(Duration::ZERO);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let itself = CertificateParams::default().self_signed(&key).unwrap();
    let text = fs::read_to_string(folder.path().join("authority/server.pem")).unwrap();
    let server_key = KeyPair::from_pem(&text[text.find("-----BEGIN PRIVATE").unwrap()..]).unwrap();
    let server_certificate = authority
        .server_identity(&folder.hosts())
        .unwrap()
        .certificate;
    // The TLS alerts: certificate_expired, unknown_ca, and for a wrong purpose.
    for (member, alerts) in [
        (Member::forged(&key, &expired), [45, 45]),
        (Member::forged(&key, itself.der()), [48, 42]),
        (Member::forged(&server_key, &server_certificate), [43, 42]),
    ] {
        let connection = member.try_connect_trusting(server.addr()).await;
        let reason = timeout(PATIENCE, connection.closed()).await.unwrap();
        let quinn::ConnectionError::ConnectionClosed(close) = reason else {
            panic!("{reason}");
        };
        let code = u64::from(close.error_code);
        assert!(
            alerts.map(|alert| 0x100 + alert).contains(&code),
            "{code:#x} {close}"
        );
    }
    // A sound certificate that the record does not know is refused as well.
    let unknown = Member::forged(&key, &issue(Duration::from_secs(60)));
    let connection = unknown.try_connect_trusting(server.addr()).await;
    let mut peer = Peer::open(connection, unknown.id).await;
    peer.say(ClientMessage::Hello(hello())).await;
    let message = peer.hear().await.unwrap();
    let ServerMessage::Error { code, .. } = message else {
        panic!("{message:?}");
    };
    assert_eq!(code, ErrorCode::NotAdmitted);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_told_so() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    let server = serve(&folder, None).await;
    let alice = Member::join(&server, "alice").await;
    let mut wrong_base = hello();
    wrong_base.base = BlobRef::of(b"another").digest;
    let mut wrong_version = hello();
    wrong_version.protocol = 99;
    let mut empty = hello();
    empty.shard_rows = 0;
    for (hello, expected) in [
        (wrong_base, ErrorCode::WrongBase),
        (wrong_version, ErrorCode::Version),
        (empty, ErrorCode::EmptyShard),
    ] {
        let mut peer = alice.connect_with(server.addr(), hello).await;
        let Some(ServerMessage::Error { code, .. }) = peer.hear().await else {
            panic!("no error was told");
        };
        assert_eq!(code, expected);
        assert!(closed_code(&peer).await.contains(&expected.to_string()));
    }
    // Bytes that are no message end the connection.
    let mut peer = alice.connect(server.addr()).await;
    peer.hear().await.unwrap();
    crate::net::stream::write_all(&mut peer.send, &[4, 0, 0, 0, 99, 1, 2, 3])
        .await
        .unwrap();
    let code = peer.wait_for(|message| match message {
        ServerMessage::Error { code, .. } => Some(code),
        _ => None,
    });
    assert_eq!(code.await, ErrorCode::Protocol);
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_closes_the_connection_and_the_update_does_not_count() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    let server = serve(&folder, None).await;
    let (member, bob) = two(&server).await;
    let mut alice = member.connect(server.addr()).await;
    let _bob = bob.connect(server.addr()).await;
    let task = alice.task().await;
    alice.offer(&task, 1.0).await;
    alice.ready().await;
    let revoked = tokio::task::block_in_place(|| server.revoke("alice")).unwrap();
    assert_eq!(revoked.clients, [alice.id]);
    assert!(closed_code(&alice).await.contains("not admitted"));
    let mut again = member.connect(server.addr()).await;
    let message = again.hear().await.unwrap();
    assert!(matches!(
        message,
        ServerMessage::Error {
            code: ErrorCode::NotAdmitted,
            ..
        }
    ));
    let status = server.status().await.unwrap();
    assert_eq!(status.round.map(|round| round.updates), Some(0));
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_connection_of_a_client_wins() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    let server = serve(&folder, None).await;
    let (alice, bob) = two(&server).await;
    let mut older = alice.connect(server.addr()).await;
    let _bob = bob.connect(server.addr()).await;
    let task = older.task().await;
    let mut newer = alice.connect(server.addr()).await;
    assert_eq!(newer.task().await.seed, task.seed);
    assert!(closed_code(&older).await.contains("newer connection"));
    newer.say(ClientMessage::Leaving).await;
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_can_ask_and_only_the_operator_can_change() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    let server = serve(&folder, None).await;
    let mut address = AdminAddress::load(&folder.state()).unwrap();
    assert_eq!(address.address, server.admin_addr());
    let asked = tokio::task::spawn_blocking(move || {
        let status: Status = address.ask("GET", "/status", None).unwrap();
        let body = serde_json::json!({ "name": "alice", "ttl_seconds": 60 });
        let invited: Invited = address.ask("POST", "/invite", Some(&body)).unwrap();
        let events: Vec<serde_json::Value> = address.ask("GET", "/events?after=0", None).unwrap();
        let ours = address.is_ours();
        address.secret = "guess".into();
        let theirs = address.is_ours();
        let refused = address.ask::<Invited>("POST", "/invite", Some(&body));
        (status, invited, events, refused, ours, theirs)
    });
    let (status, invited, events, refused, ours, theirs) = asked.await.unwrap();
    assert_eq!(
        (status.federation.as_str(), status.state),
        ("test", RunState::Waiting)
    );
    assert!(invited.token.starts_with("fj1."));
    assert!(events.is_empty(), "{events:?}");
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("not the operator's secret"), "{refused}");
    assert!((ours, theirs) == (true, false));
    assert_eq!(
        stored_adapter(&server.store, None).unwrap().version,
        ModelVersion(0)
    );
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_belongs_to_one_model() {
    let parent = tempfile::tempdir().unwrap();
    let folder = federation(&parent.path().join("f"), &[]);
    serve(&folder, None).await.shutdown().await.unwrap();
    let mut other = base();
    other.digest = BlobRef::of(b"other").digest;
    for _ in 0..100 {
        let options = ServerOptions::new(folder.clone(), other.clone());
        match Server::start(options).await {
            Err(ServerError::Host(HostError::OtherRun { what, .. })) => {
                return assert_eq!(what, "base model");
            }
            Err(ServerError::Store(StoreError::InUse { .. })) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => panic!("{:?}", other.err()),
        }
    }
    panic!("the record stays in use");
}
