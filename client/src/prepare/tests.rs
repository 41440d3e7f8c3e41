//! From files to shards.

use std::fs;

use super::*;

fn tokenizer() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/smollm2_excerpt.json");
    Tokenizer::from_file(&path, Some("<|im_start|>"), Some("<|im_end|>")).unwrap()
}

fn chat() -> ChatTemplate {
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    ChatTemplate::new(source, "", "").unwrap()
}

/// Files in a directory, and the options to prepare them.
fn files(files: &[(&str, &str)]) -> (tempfile::TempDir, PrepareOptions) {
    let dir = tempfile::tempdir().unwrap();
    let paths = files.iter().map(|(name, content)| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    });
    let options = PrepareOptions::new(paths.collect());
    (dir, options)
}

fn prepare(options: &PrepareOptions) -> Result<(Shard, PrepareReport), PrepareError> {
    let tokenizer = tokenizer();
    let vocabulary = Vocabulary {
        tokenizer: &tokenizer,
        chat: None,
    };
    prepare_in_memory(vocabulary, options, &mut |_, _| ())
}

#[test]
fn many_rows_keep_their_order() {
    let lines: Vec<String> = (0..3000)
        .map(|i| format!("{{\"instruction\": \"What is {i}?\", \"output\": \"{i}\"}}"))
        .collect();
    let (_dir, options) = files(&[("a.jsonl", &lines.join("\n"))]);
    let (shard, report) = prepare(&options).unwrap();
    assert_eq!(
        (shard.rows(), report.rows, report.template),
        (3000, 3000, TemplateName::Alpaca)
    );
    let tokenizer = tokenizer();
    for i in [0, 1, 1023, 1024, 2999] {
        let text = tokenizer.decode(shard.row(i).ids, false).unwrap();
        assert!(
            text.ends_with(&format!("### Response: {i}<|im_end|>")),
            "{text}"
        );
    }
    let labels: u64 = (0..shard.rows())
        .flat_map(|i| shard.row(i).loss)
        .map(|&mark| u64::from(mark))
        .sum();
    assert_eq!((shard.loss_tokens(), report.loss_tokens), (labels, labels));
    assert_eq!(shard.tokens(), report.tokens);
}

#[test]
fn file_and_memory_are_the_same_shard_and_hold_no_text() {
    let (dir, options) = files(&[(
        "a.json",
        r#"[{"instruction": "Xylophone?", "output": "Zeppelin."}]"#,
    )]);
    let tokenizer = tokenizer();
    let vocabulary = Vocabulary {
        tokenizer: &tokenizer,
        chat: None,
    };
    let out = dir.path().join("a.shard");
    let mut seen = Vec::new();
    let (facts, _) = prepare_shard(vocabulary, &options, &out, &mut |done, total| {
        seen.push((done, total))
    })
    .unwrap();
    assert_eq!(seen, [(54, 54)]);
    assert_eq!(facts, *prepare(&options).unwrap().0.facts());
    let shard = shard_or_rows(&out, vocabulary, &options, &mut |_, _| ()).unwrap();
    assert_eq!(shard.facts(), &facts);
    let raw = shard_or_rows(&options.files[0], vocabulary, &options, &mut |_, _| ()).unwrap();
    assert_eq!(raw.facts(), &facts);
    let bytes = fs::read(&out).unwrap();
    for word in ["Xylophone", "Zeppelin", "a.json", "Response"] {
        assert!(
            !bytes.windows(word.len()).any(|w| w == word.as_bytes()),
            "{word}"
        );
    }
}

#[test]
fn bad_rows_stop_or_are_counted() {
    let content = "{\"instruction\": \"a\", \"output\": \"b\"}\n{\"instruction\": \"a\"}\nno\n\
        {\"instruction\": \"a\", \"output\": \"\"}\n{\"instruction\": \"a\", \"output\": \"c\"}";
    let (_dir, mut options) = files(&[("a.jsonl", content)]);
    let error = prepare(&options).unwrap_err();
    let message = error.to_string();
    assert!(
        message.ends_with(
            "a.jsonl, line 2, column 1: the field `output` is missing; the row has `instruction`"
        ),
        "{message}"
    );
    assert!(error.hint().unwrap().contains("--skip-bad-rows"));
    options.skip_bad_rows = true;
    let (shard, report) = prepare(&options).unwrap();
    assert_eq!(shard.rows(), 2);
    assert_eq!(
        report.bad,
        BTreeMap::from([("missing field", 1), ("no JSON", 1)])
    );
    assert_eq!(report.dropped, BTreeMap::from([("empty answer", 1)]));
}

#[test]
fn the_first_row_may_be_bad_or_empty() {
    let content = "{\"x\": 1}\n{\"instruction\": \"a\", \"output\": \"\"}\n\
        {\"instruction\": \"a\", \"output\": \"b\"}";
    let (_dir, mut options) = files(&[("a.jsonl", content)]);
    assert!(matches!(prepare(&options), Err(PrepareError::Row { .. })));
    options.skip_bad_rows = true;
    let (_, report) = prepare(&options).unwrap();
    assert_eq!((report.rows, report.bad["missing field"]), (1, 1));
}

#[test]
fn nothing_left_is_an_error_with_its_reasons() {
    let (_dir, mut options) = files(&[(
        "a.jsonl",
        "{\"instruction\": \"a\", \"output\": \"\"}\n{\"instruction\": \"a\", \"output\": \"b\"}",
    )]);
    options.max_tokens = 4;
    let message = prepare(&options).unwrap_err().to_string();
    assert_eq!(
        message,
        "no row is left to learn (1 × empty answer, 1 × prompt too long)"
    );
    let (_dir, options) = files(&[("a.json", "[]")]);
    assert_eq!(
        prepare(&options).unwrap_err().to_string(),
        "no row is left to learn"
    );
}

#[test]
fn templates_follow_the_rows() {
    let tokenizer = tokenizer();
    let chat = chat();
    let with_chat = Vocabulary {
        tokenizer: &tokenizer,
        chat: Some(&chat),
    };
    for (content, expected) in [
        (r#"{"instruction": "a", "output": "b"}"#, TemplateName::Chat),
        (r#"{"prompt": "a", "completion": "b"}"#, TemplateName::Plain),
        (r#"{"text": "a b"}"#, TemplateName::Plain),
        (
            r#"{"prompt": [{"role": "user", "content": "a"}],
                "completion": [{"role": "assistant", "content": "b"}]}"#,
            TemplateName::Chat,
        ),
    ] {
        let (_dir, options) = files(&[("a.json", &format!("[{content}]"))]);
        let (_, report) = prepare_in_memory(with_chat, &options, &mut |_, _| ()).unwrap();
        assert_eq!(report.template, expected, "{content}");
    }
    let (_dir, options) = files(&[
        ("a.jsonl", r#"{"instruction": "a", "output": "b"}"#),
        ("b.jsonl", r#"{"text": "a b"}"#),
    ]);
    let error = prepare_in_memory(with_chat, &options, &mut |_, _| ()).unwrap_err();
    assert!(
        matches!(error, PrepareError::MixedTemplates { .. }),
        "{error}"
    );
}

#[test]
fn files_of_several_formats_make_one_shard() {
    let (_dir, options) = files(&[
        ("a.jsonl", r#"{"instruction": "a", "output": "b"}"#),
        ("b.csv", "id,question,answer\n1,c,d\n2,e,f\n"),
    ]);
    let (shard, report) = prepare(&options).unwrap();
    assert_eq!(shard.rows(), 3);
    let formats: Vec<_> = report.files.iter().map(|f| (f.format, f.rows)).collect();
    assert_eq!(formats, [(Format::Alpaca, 1), (Format::Qa, 2)]);
    assert!(report.files[0].ignored.is_empty());
    assert_eq!(report.files[1].ignored, ["id"]);
}
