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
    assert_eq!(formats, [("alpaca", 1), ("qa", 2)]);
    assert!(report.files[0].ignored.is_empty());
    assert_eq!(report.files[1].ignored, ["id"]);
}

fn with_chat(options: &PrepareOptions) -> Result<(Shard, PrepareReport), PrepareError> {
    let (tokenizer, chat) = (tokenizer(), chat());
    let vocabulary = Vocabulary {
        tokenizer: &tokenizer,
        chat: Some(&chat),
    };
    prepare_in_memory(vocabulary, options, &mut |_, _| ())
}

const DIALOGUES: &str = r#"
{"chosen": "\n\nHuman: Hi\n\nAssistant: I hear you.", "rejected": "\n\nHuman: Hi\n\nAssistant: I do not."}
{"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: a"}
{"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: "}
{"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"}
"#;

#[test]
fn preferences_become_pairs() {
    let (_dir, mut options) = files(&[("a.jsonl", DIALOGUES)]);
    let tokenizer = tokenizer();
    for prepare in [prepare, with_chat] {
        let (shard, report) = prepare(&options).unwrap();
        assert_eq!(shard.kind(), RowKind::Preferences);
        assert_eq!((shard.units(), shard.rows()), (1, 2));
        assert_eq!(
            (report.kind, report.units, report.rows),
            (shard.kind(), 1, 2)
        );
        assert_eq!((report.files[0].format, report.files[0].units), ("hh", 1));
        let dropped = [
            ("empty answer", 1),
            ("equal answers", 1),
            ("no shared prompt", 1),
        ];
        assert_eq!(report.dropped, BTreeMap::from(dropped));
        assert_eq!(report.tokens, shard.tokens());
        assert!(report.median <= report.longest && report.median_loss > 2);
        let text = tokenizer.decode(shard.row(0).ids, false).unwrap();
        assert!(text.ends_with("I hear you.<|im_end|>"), "{text}");
    }
    let (_, report) = prepare(&options).unwrap();
    assert_eq!(report.template, TemplateName::Vicuna);
    assert_eq!(with_chat(&options).unwrap().1.template, TemplateName::Chat);

    // OpenFedLLM drops no row and cuts where characters differ.
    options.compat = Compat::OpenFedLlm;
    let (shard, report) = with_chat(&options).unwrap();
    assert_eq!((report.template, shard.units()), (TemplateName::Vicuna, 4));
    assert!(report.dropped.is_empty());
    let text = tokenizer.decode(shard.row(0).ids, false).unwrap();
    assert!(
        text.ends_with("USER: Hi ASSISTANT: hear you.<|im_end|>"),
        "{text}"
    );
}

#[test]
fn cut_pairs_are_counted_once() {
    let (_dir, mut options) = files(&[("a.jsonl", DIALOGUES)]);
    options.max_tokens = 16;
    let (shard, report) = prepare(&options).unwrap();
    assert_eq!((report.truncated, report.units), (1, 1));
    assert_eq!(report.longest, 16);
    let [chosen, rejected] = [shard.row(0), shard.row(1)];
    let prompt = chosen.loss.iter().take_while(|&&mark| mark == 0).count();
    assert_eq!(chosen.ids[..prompt], rejected.ids[..prompt]);
}

#[test]
fn one_shard_holds_one_kind() {
    let (_dir, options) = files(&[
        ("a.jsonl", r#"{"instruction": "a", "output": "b"}"#),
        (
            "b.jsonl",
            r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#,
        ),
    ]);
    let error = prepare(&options).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("b.jsonl holds preferences") && message.ends_with("holds examples"),
        "{message}"
    );
    assert!(message.contains("a.jsonl before it"), "{message}");
    assert!(error.hint().is_some());
}

#[test]
fn data_sets_are_prepared_by_name() {
    let math = r#"[{"source": "CoT", "instruction": "1+1?", "output": "2"},
        {"source": "PoT", "instruction": "1+1?", "output": "3"},
        {"source": "PoT", "instruction": "1+2?", "output": "3"}]"#;
    let (dir, mut options) = files(&[("MathInstruct.json", math)]);
    options.dataset = Some(crate::dataset("math-instruct").unwrap());
    let (shard, report) = prepare(&options).unwrap();
    assert_eq!((shard.rows(), report.files[0].format), (2, "math-instruct"));
    assert_eq!(report.dropped, BTreeMap::from([("duplicate", 1)]));
    options.files = vec![dir.path().to_owned()];
    assert_eq!(prepare(&options).unwrap().0.facts(), shard.facts());
    options.split = Some("dev".to_owned());
    let error = prepare(&options).unwrap_err().to_string();
    assert_eq!(error, "math-instruct has no split `dev`, but train");
    options.dataset = Some(crate::dataset("gsm8k").unwrap());
    options.split = None;
    let error = prepare(&options).unwrap_err();
    assert!(matches!(error, PrepareError::Dataset(_)), "{error}");
    assert!(error.hint().unwrap().contains("openai/gsm8k"));
}

#[test]
fn only_the_wanted_split_of_a_shared_file_is_prepared() {
    let lines: String = (0..40)
        .map(|i| format!("neutral,Sentence {i} .\n"))
        .collect();
    let (dir, mut options) = files(&[("all-data.csv", &lines)]);
    options.dataset = Some(crate::dataset("finance-sentiment").unwrap());
    assert_eq!(
        prepare(&options).unwrap().1.units,
        40,
        "a file is taken whole"
    );
    options.files = vec![dir.path().to_owned()];
    let train = prepare(&options).unwrap().1;
    options.split = Some("test".to_owned());
    let test = prepare(&options).unwrap().1;
    assert_eq!(train.units + test.units, 40);
    assert_eq!(test.dropped["of another split"], train.units);
}

#[test]
fn labelled_units_know_their_row_and_category() {
    let rows: Vec<String> = (0..1500)
        .map(|i| match i {
            3 => r#"{"instruction": "a", "output": "", "topic": "lost"}"#.to_owned(),
            _ => format!(
                r#"{{"instruction": "{i}", "output": "b", "topic": {}}}"#,
                ["\"x\"", "7", "null"][i % 3]
            ),
        })
        .collect();
    let (_dir, options) = files(&[
        ("a.jsonl", &rows.join("\n")),
        (
            "b.jsonl",
            r#"{"question": "a", "answer": "b", "topic": "y"}"#,
        ),
    ]);
    let tokenizer = tokenizer();
    let vocabulary = Vocabulary {
        tokenizer: &tokenizer,
        chat: None,
    };
    let labelled = |field| prepare_labelled(vocabulary, &options, field, &mut |_, _| ());
    let found = labelled("topic").unwrap();
    assert_eq!(found.shard.units(), 1500);
    assert_eq!(found.categories.names, ["x", "7", "", "y"]);
    let origin = |file, row| UnitOrigin { file, row };
    for (unit, expected, category) in [
        (0, origin(0, 0), 0),
        (2, origin(0, 2), 2),
        (3, origin(0, 4), 1),
        (1023, origin(0, 1024), 1),
        (1498, origin(0, 1499), 2),
        (1499, origin(1, 0), 3),
    ] {
        assert_eq!(found.origins[unit], expected);
        assert_eq!(found.categories.of[unit], category);
    }
    let plain = prepare_in_memory(vocabulary, &options, &mut |_, _| ()).unwrap();
    assert_eq!(found.shard.facts(), plain.0.facts());
    let error = labelled("topics").unwrap_err();
    assert_eq!(error.to_string(), "no row has the field `topics`");
}

#[test]
fn the_tags_of_data_sets_are_categories() {
    let fiqa = r#"{"1": {"sentence": "A up, B down", "info": [
        {"sentiment_score": "0.5"}, {"sentiment_score": "-0.5"}]}}"#;
    let (_dir, mut options) = files(&[
        ("task1_post_ABSA_train.json", fiqa),
        ("sent_train.csv", "text,label\nC flat,2\nD up,1\n"),
    ]);
    options.dataset = Some(crate::dataset("finance-sentiment").unwrap());
    let tokenizer = tokenizer();
    let vocabulary = Vocabulary {
        tokenizer: &tokenizer,
        chat: None,
    };
    let labelled = |field| prepare_labelled(vocabulary, &options, field, &mut |_, _| ()).unwrap();
    let by_label = labelled("label");
    assert_eq!(
        by_label.categories.names,
        ["positive", "negative", "neutral"]
    );
    assert_eq!(by_label.categories.of, [0, 1, 2, 0]);
    let rows: Vec<_> = by_label.origins.iter().map(|o| (o.file, o.row)).collect();
    assert_eq!(rows, [(0, 0), (0, 0), (1, 0), (1, 1)]);
    let by_source = labelled("source");
    assert_eq!(by_source.categories.names, ["fiqa-post", "tfns"]);
}
