//! Against a judge of our own over HTTP that answers as judges do, and as they should not.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::*;

const KEY: &str = "sk-very-secret-0123456789";

/// What the judge does with a request.
enum Act {
    /// Answers with these words.
    Say(String),
    /// Answers with a status, further header lines and a body.
    Answer(u16, &'static str, Vec<u8>),
    /// Sends a body without end.
    Endless,
    /// Says nothing.
    Silence,
    /// Closes the connection.
    HangUp,
}

struct Request {
    number: usize,
    authorization: String,
    body: Value,
}

impl Request {
    fn prompt(&self) -> &str {
        let messages = self.body["messages"].as_array().unwrap();
        messages.last().unwrap()["content"].as_str().unwrap()
    }
}

/// A judge on a port of this machine.
struct TestJudge {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
    most_at_once: Arc<AtomicUsize>,
}

impl TestJudge {
    fn new(act: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let judge = Self {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            asked: Arc::default(),
            most_at_once: Arc::default(),
        };
        let (asked, most) = (judge.asked.clone(), judge.most_at_once.clone());
        let (act, at_once) = (Arc::new(act), Arc::new(AtomicUsize::new(0)));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (asked, most) = (asked.clone(), most.clone());
                let (act, at_once) = (act.clone(), at_once.clone());
                thread::spawn(move || {
                    let stream = stream.unwrap();
                    let Some(mut request) = read(&stream) else {
                        return;
                    };
                    most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let mut all = asked.lock().unwrap();
                    request.number = all.len();
                    all.push(request.prompt().to_owned());
                    drop(all);
                    let act = act(&request);
                    at_once.fetch_sub(1, Ordering::SeqCst);
                    perform(act, stream);
                });
            }
        });
        judge
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn config(&self) -> JudgeConfig {
        JudgeConfig {
            key: Some(key()),
            parallel: 1,
            retries: 1,
            timeout: Duration::from_secs(10),
            ..JudgeConfig::new(&self.endpoint, "judge-1")
        }
    }
}

fn key() -> Secret {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, KEY).unwrap();
    Secret::from_file(&path).unwrap()
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let (mut length, mut authorization) = (0, String::new());
    for number in 0.. {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let (name, value) = line.trim().split_once(": ").unwrap_or_default();
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "authorization" => authorization = value.to_owned(),
            _ if line == "\r\n" => break,
            _ => assert!(number > 0 || line.starts_with("POST /v1/chat/completions ")),
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request {
        number: 0,
        authorization,
        body: serde_json::from_slice(&body).unwrap(),
    })
}

/// Whoever asks may be gone: that is what some tests are about.
fn perform(act: Act, mut stream: TcpStream) {
    let (status, headers, body) = match act {
        Act::Say(words) => (200, "", completion(&words)),
        Act::Answer(status, headers, body) => (status, headers, body),
        Act::Endless => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
            while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
            return;
        }
        Act::Silence => {
            let _ = stream.read(&mut [0]);
            return;
        }
        Act::HangUp => return,
    };
    let head = format!(
        "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body);
}

fn completion(words: &str) -> Vec<u8> {
    let body = json!({
        "model": "judge-1-0613",
        "choices": [{"message": {"role": "assistant", "content": words}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20},
    });
    body.to_string().into_bytes()
}

fn error(message: &str) -> Vec<u8> {
    let body = json!({"error": {"message": message, "type": "some_error"}});
    body.to_string().into_bytes()
}

fn rate(prompt: &str) -> Act {
    Act::Say(format!("It is fine. Rating: [[{}]]", prompt.len()))
}

/// A question whose rating is its length.
fn question(prompt: impl Into<String>) -> Judgement {
    Judgement {
        metric: "turn 1",
        system: "Be fair.".into(),
        prompt: prompt.into(),
        temperature: 0.5,
        figure: |answer| {
            let (_, rest) = answer.split_once("[[")?;
            rest.split_once("]]")?.0.parse().ok()
        },
    }
}

fn questions(count: usize) -> Vec<Judgement> {
    (1..=count).map(|n| question("?".repeat(n))).collect()
}

fn ask(config: JudgeConfig, folder: &Path, asked: &[Judgement]) -> Result<Judged, JudgeError> {
    Judge::open(config, &folder.join("judgements.jsonl"))?.ask(asked, &|_| ())
}

#[test]
fn questions_are_answered_in_order_and_once() {
    let judge = TestJudge::new(|request| {
        assert_eq!(request.authorization, format!("Bearer {KEY}"));
        assert_eq!(request.body["model"], "judge-1");
        assert_eq!(request.body["max_tokens"], 2048);
        assert_eq!(request.body["temperature"], 0.5);
        assert_eq!(request.body["messages"][0]["content"], "Be fair.");
        // The first ones take longest.
        let wait = 40 / (request.number as u64 + 1);
        thread::sleep(Duration::from_millis(wait));
        rate(request.prompt())
    });
    let folder = tempfile::tempdir().unwrap();
    let config = JudgeConfig {
        parallel: 3,
        price: "10,30".parse().ok(),
        ..judge.config()
    };
    let path = folder.path().join("judgements.jsonl");
    let mut asked = questions(8);
    asked.push(question("???"));
    let judge_of_ours = Judge::open(config, &path).unwrap();
    let estimate = judge_of_ours.estimate(&asked);
    assert_eq!((estimate.requests, estimate.stored), (8, 0));
    // Eight characters of system prompt and 1 to 8 of question each.
    assert_eq!(estimate.prompt_tokens, 4 * 3 + 4 * 4);
    assert_eq!(estimate.completion_tokens, 8 * 2048);
    assert!(estimate.dollars.is_some_and(|(least, most)| least < most));

    let heard = RefCell::new(Vec::new());
    let judged = judge_of_ours.ask(&asked, &|done| heard.borrow_mut().push(done));
    let judged = judged.unwrap();
    let expected = [1, 2, 3, 4, 5, 6, 7, 8, 3].map(|n| Some(f64::from(n)));
    assert_eq!(judged.ratings, expected);
    assert_eq!((judged.unrated, judged.refused), (0, 0));
    assert_eq!(judged.answered_by, [("judge-1-0613".into(), 9)].into());
    let Usage {
        requests,
        prompt_tokens,
        completion_tokens,
        uncounted,
    } = judged.usage;
    assert_eq!((requests, prompt_tokens), (8, 800));
    assert_eq!((completion_tokens, uncounted), (160, 0));
    assert_eq!(heard.into_inner(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(judge.most_at_once.load(Ordering::SeqCst) <= 3);
    drop(judge_of_ours);
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(text.lines().count(), 8);
    assert!(text.contains("It is fine.") && !text.contains(KEY));
}

#[test]
fn an_endpoint_that_fails_half_way_is_asked_the_rest() {
    let judge = TestJudge::new(|request| match request.number {
        4 => Act::Answer(401, "", error(&format!("Incorrect API key: {KEY}"))),
        _ => rate(request.prompt()),
    });
    let folder = tempfile::tempdir().unwrap();
    let asked = questions(7);
    let error = ask(judge.config(), folder.path(), &asked).unwrap_err();
    assert!(matches!(error, JudgeError::Status { status: 401, .. }));
    assert!(!format!("{error} {error:?}").contains(KEY), "{error}");
    assert!(error.hint().unwrap().contains("key"));

    let path = folder.path().join("judgements.jsonl");
    let again = Judge::open(judge.config(), &path).unwrap();
    let estimate = again.estimate(&asked);
    assert_eq!((estimate.requests, estimate.stored), (3, 4));
    let judged = again.ask(&asked, &|_| ()).unwrap();
    assert_eq!(judged.ratings[6], Some(7.0));
    assert_eq!(judged.usage.requests, 3);
    assert_eq!(judge.asked().len(), 5 + 3);
    assert_eq!(
        judge.asked()[5..],
        ["?".repeat(5), "?".repeat(6), "?".repeat(7)]
    );
    // Whatever else is asked for is another question; the endpoint's address is not part of it.
    let other = JudgeConfig {
        max_tokens: 10,
        ..judge.config()
    };
    drop(again);
    let estimate = Judge::open(other, &path).unwrap().estimate(&asked);
    assert_eq!(estimate.requests, 7);
    let elsewhere = JudgeConfig {
        endpoint: "https://example.org/v1".into(),
        ..judge.config()
    };
    let estimate = Judge::open(elsewhere, &path).unwrap().estimate(&asked);
    assert_eq!(estimate.requests, 0);
}

#[test]
fn a_busy_endpoint_is_left_alone_for_as_long_as_it_asks() {
    let judge = TestJudge::new(|request| match request.number {
        0 => Act::Answer(429, "retry-after: 3\r\n", error("slow down")),
        _ => rate(request.prompt()),
    });
    let folder = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    let judged = ask(judge.config(), folder.path(), &questions(1)).unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(3));
    assert_eq!(judged.ratings, [Some(1.0)]);

    let judge = TestJudge::new(|_| Act::Answer(503, "retry-after: 7200\r\n", error("closed")));
    let error = ask(judge.config(), folder.path(), &questions(2)).unwrap_err();
    assert!(matches!(error, JudgeError::Later { seconds: 7200, .. }));
    assert_eq!(judge.asked().len(), 1);
}

#[test]
fn what_passes_is_tried_again_and_not_for_ever() {
    let judge = TestJudge::new(|request| match request.number {
        0 => Act::HangUp,
        2 => Act::Answer(200, "", b"<html>Bad Gateway</html>".to_vec()),
        4 => Act::Answer(200, "", error("upstream is overloaded")),
        6 => Act::Answer(502, "", Vec::new()),
        _ => rate(request.prompt()),
    });
    let folder = tempfile::tempdir().unwrap();
    let judged = ask(judge.config(), folder.path(), &questions(4)).unwrap();
    assert_eq!(
        judged.ratings.len(),
        judged.ratings.iter().flatten().count()
    );
    assert_eq!(judge.asked().len(), 8);

    let judge = TestJudge::new(|_| Act::Answer(500, "", error("out of order")));
    let error = ask(judge.config(), folder.path(), &[question("new")]).unwrap_err();
    assert!(
        error.to_string().ends_with("answered 500: out of order"),
        "{error}"
    );
    assert_eq!(judge.asked().len(), 2);
    let judge = TestJudge::new(|_| Act::Answer(200, "", b"no".to_vec()));
    let error = ask(judge.config(), folder.path(), &[question("new")]).unwrap_err();
    assert!(matches!(error, JudgeError::Answer { .. }), "{error}");
}

#[test]
fn an_endpoint_that_never_answers_or_never_ends_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let judge = TestJudge::new(|_| Act::Silence);
    let config = JudgeConfig {
        timeout: Duration::from_millis(200),
        retries: 0,
        ..judge.config()
    };
    let error = ask(config, folder.path(), &questions(1)).unwrap_err();
    assert!(matches!(&error, JudgeError::Network { source, .. }
        if matches!(**source, ureq::Error::Timeout(_))));

    let judge = TestJudge::new(|_| Act::Endless);
    let error = ask(judge.config(), folder.path(), &questions(1)).unwrap_err();
    assert!(error.to_string().contains("longer than 4 MiB"), "{error}");
    assert_eq!(judge.asked().len(), 1);
}

#[test]
fn an_answer_without_a_rating_is_counted_and_not_a_zero() {
    let judge = TestJudge::new(|request| match (request.prompt(), request.number) {
        ("??", _) => Act::Say("I would rather not.".into()),
        ("???", ..6) => Act::Answer(
            200,
            "",
            br#"{"choices": [{"message": {"content": null}}], "usage": null}"#.to_vec(),
        ),
        (prompt, _) => rate(prompt),
    });
    let folder = tempfile::tempdir().unwrap();
    let asked = questions(3);
    let judged = ask(judge.config(), folder.path(), &asked).unwrap();
    assert_eq!(judged.ratings, [Some(1.0), None, Some(3.0)]);
    assert_eq!((judged.unrated, judged.refused), (1, 0));
    // One for the first, three for the second, and two of nothing before the third's.
    assert_eq!(judge.asked().len(), 7);
    assert_eq!((judged.usage.requests, judged.usage.uncounted), (7, 2));
    // It is not asked for ever.
    let judged = ask(judge.config(), folder.path(), &asked).unwrap();
    assert_eq!((judged.unrated, judged.usage.requests), (1, 0));
    // Ratings are read from the words that are stored.
    let mut mended = asked;
    mended[1].figure = |answer| answer.contains("rather not").then_some(1.0);
    let judged = ask(judge.config(), folder.path(), &mended).unwrap();
    assert_eq!(judged.ratings[1], Some(1.0));
}

#[test]
fn a_question_that_the_endpoint_minds_does_not_end_the_run() {
    let judge = TestJudge::new(|request| match request.prompt() {
        "??" => Act::Answer(400, "", error("the context is too long")),
        prompt => rate(prompt),
    });
    let folder = tempfile::tempdir().unwrap();
    let judged = ask(judge.config(), folder.path(), &questions(3)).unwrap();
    assert_eq!(judged.ratings, [Some(1.0), None, Some(3.0)]);
    assert_eq!((judged.unrated, judged.refused), (0, 1));
    // Where nothing was answered yet, it is how questions are asked that it minds.
    let judge = TestJudge::new(|_| Act::Answer(400, "", error("temperature has to be 1")));
    let error = ask(
        judge.config(),
        folder.path(),
        &[question("one"), question("two"), question("one")],
    );
    let error = error.unwrap_err();
    assert!(
        error.to_string().contains("temperature has to be 1"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("temperature"));
    assert_eq!(judge.asked().len(), 1);
}

#[test]
fn a_model_that_wants_max_completion_tokens_gets_them() {
    let judge = TestJudge::new(|request| {
        let message = "Unsupported parameter: use 'max_completion_tokens' instead.";
        match request.body.get("max_completion_tokens") {
            Some(tokens) if request.body.get("max_tokens").is_none() => {
                assert_eq!(tokens, 2048);
                rate(request.prompt())
            }
            _ => Act::Answer(400, "", error(message)),
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let judged = ask(judge.config(), folder.path(), &questions(3)).unwrap();
    assert_eq!(judged.ratings.iter().flatten().count(), 3);
    assert_eq!(judge.asked().len(), 4);
}

#[test]
fn a_key_goes_to_the_endpoint_and_nowhere_else() {
    let other = TestJudge::new(|request| rate(request.prompt()));
    let location: &'static str =
        Box::leak(format!("location: {}/v1/chat/completions\r\n", other.endpoint).into());
    let judge = TestJudge::new(move |_| Act::Answer(307, location, Vec::new()));
    let folder = tempfile::tempdir().unwrap();
    let error = ask(judge.config(), folder.path(), &questions(1)).unwrap_err();
    assert!(
        matches!(error, JudgeError::Status { status: 307, .. }),
        "{error}"
    );
    assert!(other.asked().is_empty());
    // Not even an endpoint that repeats it gets it into the file.
    let echo = TestJudge::new(|request| Act::Say(format!("{} [[7]]", request.authorization)));
    let judged = ask(echo.config(), folder.path(), &questions(1)).unwrap();
    assert_eq!(judged.ratings, [Some(7.0)]);
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(text.contains("[[7]]") && !text.contains(KEY));
    }
    assert!(!format!("{:?}", echo.config()).contains(KEY));
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("judgements.jsonl");
    let config = || JudgeConfig::new("https://example.org", "judge-1");
    let wrong: [fn(&mut JudgeConfig); 4] = [
        |config| config.model = " ".into(),
        |config| config.max_tokens = 0,
        |config| config.parallel = 0,
        |config| config.timeout = Duration::ZERO,
    ];
    for change in wrong {
        let mut config = config();
        change(&mut config);
        let error = Judge::open(config, &path).unwrap_err();
        assert!(matches!(error, JudgeError::Setting { .. }), "{error}");
    }
    Judge::open(config(), &path).unwrap();
}
