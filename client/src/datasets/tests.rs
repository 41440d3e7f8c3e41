//! Small files of our own in the real layouts.

use std::fs;
use std::io::Write;

use super::*;

/// Files in a directory.
fn files(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

type Rows = Vec<Result<(Record, RowTags), String>>;

/// The rows of a data set's split in a directory; of an error its reason.
fn rows(name: &str, dir: &Path, split: Option<&str>) -> Rows {
    let dataset = dataset(name).unwrap();
    let files = dataset.locate(Some(dir), split).unwrap();
    let split = Some(dataset.split(split).unwrap());
    dataset
        .open(files, split, Compat::Paper)
        .map(|row| row.map_err(reason))
        .collect()
}

fn reason(error: DatasetError) -> String {
    match error {
        DatasetError::Row { error, .. } => error.problem.reason().to_owned(),
        other => other.to_string(),
    }
}

fn good(rows: Rows) -> Vec<(Record, RowTags)> {
    rows.into_iter().map(Result::unwrap).collect()
}

fn instruction(instruction: &str, input: &str, output: &str) -> Record {
    Record::Instruction {
        instruction: instruction.to_owned(),
        input: input.to_owned(),
        output: output.to_owned(),
    }
}

fn tags(label: Option<&str>, source: Option<&str>, owner: Option<&str>) -> RowTags {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    RowTags {
        label: owned(label),
        source: owned(source),
        owner: owned(owner),
    }
}

fn gzip(text: &str) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(text.as_bytes()).unwrap();
    gz.finish().unwrap()
}

#[test]
fn every_data_set_is_complete_and_its_names_are_its_own() {
    let mut names: Vec<&str> = DATASETS.iter().flat_map(Dataset::names).collect();
    let count = names.len();
    names.sort_unstable_by_key(|name| name.to_lowercase());
    names.dedup_by_key(|name| name.to_lowercase());
    // A data set may be called on the hub as it is called here.
    let same = DATASETS.iter().filter(|set| set.hub.contains(&set.name));
    assert_eq!(names.len(), count - same.count());
    for set in DATASETS {
        assert!(
            !set.about.is_empty() && !set.licence.is_empty(),
            "{}",
            set.name
        );
        assert!(set.about.len() <= 70, "{} fits no line of help", set.name);
        assert!(!set.splits.is_empty(), "{}", set.name);
        assert_eq!(set.split(None).unwrap().name, set.splits[0].name);
        for name in set.names() {
            assert_eq!(dataset(name).unwrap().name, set.name);
        }
    }
    // What OpenFedLLM's get_dataset and process_*_dataset name.
    for name in [
        "tatsu-lab/alpaca",
        "vicgalle/alpaca-gpt4",
        "yahma/alpaca-cleaned",
        "FinGPT/fingpt-sentiment-train",
        "medalpaca/medical_meadow_medical_flashcards",
        "lucasmccabe-lmi/CodeAlpaca-20k",
        "TIGER-Lab/MathInstruct",
        "WizardLM/WizardLM_evol_instruct_70k",
        "gbharti/finance-alpaca",
        "lighteval/MATH",
        "gsm8k",
        "HuggingFaceH4/ultrafeedback_binarized",
        "Anthropic/hh-rlhf",
    ] {
        assert!(dataset(name).unwrap().hub.contains(&name), "{name}");
    }
}

#[test]
fn unknown_names_meet_their_nearest() {
    let error = dataset("Antropic/hh-rlfh").unwrap_err();
    assert_eq!(
        error.to_string(),
        "no data set is called `Antropic/hh-rlfh`; is `Anthropic/hh-rlhf` meant?"
    );
    assert!(error.hint().unwrap().contains("finance-sentiment"));
}

#[test]
fn the_alpaca_family_reads_its_files() {
    let row = r#"[{"instruction": "Add.\n", "input": "1 2", "output": " 3", "text": "unread"},
        {"instruction": "Name one.", "input": "", "output": ""}]"#;
    for (name, file) in [
        ("alpaca", "alpaca_data.json"),
        ("alpaca-gpt4", "data/alpaca_gpt4_data.json"),
        ("alpaca-cleaned", "alpaca_data_cleaned.json"),
        ("code-alpaca", "code_alpaca_20k.json"),
        ("evol-instruct", "alpaca_evol_instruct_70k.json"),
        ("finance-alpaca", "Cleaned_date.json"),
    ] {
        let dir = files(&[(file, row.as_bytes())]);
        let found = rows(name, dir.path(), None);
        let expected = [
            Ok((instruction("Add.\n", "1 2", " 3"), RowTags::default())),
            Err("empty answer".to_owned()),
        ];
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn flashcards_drop_their_instruction() {
    let dir = files(&[(
        "medical_meadow_wikidoc_medical_flashcards.json",
        br#"[{"instruction": "Answer this question truthfully", "input": "What is a cold?",
             "output": "A virus."}, {"instruction": "a", "input": "b", "output": " "}]"#,
    )]);
    let found = rows("medical-flashcards", dir.path(), None);
    let expected = [
        Ok((
            instruction("What is a cold?", "", "A virus."),
            RowTags::default(),
        )),
        Err("empty answer".to_owned()),
    ];
    assert_eq!(found, expected);
}

#[test]
fn mathinstruct_keeps_the_first_of_each_instruction() {
    let dir = files(&[(
        "MathInstruct.json",
        br#"[{"source": "CoT", "output": "2", "instruction": "1+1?"},
             {"source": "PoT", "output": "print(1+1)", "instruction": "1+1?"},
             {"source": "PoT", "output": "3", "instruction": "1+2?"}]"#,
    )]);
    let found = rows("TIGER-Lab/MathInstruct", dir.path(), None);
    let expected = [
        Ok((instruction("1+1?", "", "2"), tags(None, Some("CoT"), None))),
        Err("duplicate".to_owned()),
        Ok((instruction("1+2?", "", "3"), tags(None, Some("PoT"), None))),
    ];
    assert_eq!(found, expected);
}

#[test]
fn problems_lie_one_in_a_file_or_one_on_a_line() {
    let problem = "{\n    \"problem\": \"$1+1$?\",\n    \"level\": \"Level 1\",\n    \"type\": \
        \"Algebra\",\n    \"solution\": \"$\\\\boxed{2}$\"\n}\n";
    let expected = [(
        instruction("$1+1$?", "", "$\\boxed{2}$"),
        tags(Some("Algebra"), None, None),
    )];
    let dir = files(&[
        ("MATH/train/algebra/1.json", problem.as_bytes()),
        ("MATH/test/algebra/1.json", b"{"),
    ]);
    assert_eq!(good(rows("math", dir.path(), None)), expected);
    let line = problem.replace('\n', "");
    let lines = format!("{line}\n{line}\n");
    let dir = files(&[("train.jsonl", lines.as_bytes())]);
    assert_eq!(good(rows("math", dir.path(), None)).len(), 2);
}

#[test]
fn gsm8k_reads_questions_and_answers() {
    let dir = files(&[(
        "train.jsonl",
        b"{\"question\": \"How many?\", \"answer\": \"Two.\\n#### 2\"}\n",
    )]);
    assert_eq!(
        good(rows("gsm8k", dir.path(), Some("train"))),
        [(
            instruction("How many?", "", "Two.\n#### 2"),
            RowTags::default()
        )]
    );
}

#[test]
fn hh_rlhf_is_read_from_its_parts() {
    let row = r#"{"chosen": "\n\nHuman: a?\n\nAssistant: b", "rejected": "\n\nHuman: a?\n\nAssistant: c"}"#;
    let dir = files(&[
        ("helpful-base/train.jsonl.gz", &gzip(row)),
        ("harmless-base/train.jsonl.gz", &gzip(row)),
    ]);
    let found = good(rows("hh-rlhf", dir.path(), Some("helpful-base")));
    let [(Record::Preference { chosen, .. }, found)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(chosen, "b");
    assert_eq!(found.source.as_deref(), Some("helpful-base"));
}

const NEWS: &str =
    "What is the sentiment of this news? Please choose an answer from {negative/neutral/positive}.";
const TWEET: &str = "What is the sentiment of this tweet? Please choose an answer from {negative/neutral/positive}.";

fn sentiments(name: &str, content: &[u8]) -> Vec<Result<(String, String, String), String>> {
    let dir = files(&[(name, content)]);
    let dataset = dataset("finance-sentiment").unwrap();
    dataset
        .open(vec![dir.path().join(name)], None, Compat::Paper)
        .map(|row| {
            let (record, tags) = row.map_err(reason)?;
            let Record::Instruction {
                instruction,
                input,
                output,
            } = record
            else {
                panic!("{record:?}")
            };
            assert_eq!(tags.label.as_ref(), Some(&output));
            let medium = match &instruction[..] {
                NEWS => "news",
                TWEET => "tweet",
                other => panic!("{other}"),
            };
            let source = tags.source.unwrap();
            Ok((input, output, format!("{source} {medium}")))
        })
        .collect()
}

fn sentiment(text: &str, class: &str, from: &str) -> Result<(String, String, String), String> {
    Ok((text.to_owned(), class.to_owned(), from.to_owned()))
}

#[test]
fn phrases_are_read_in_latin1_with_and_without_a_header() {
    let rows = b"neutral,\"Sepp\xe4l\xe4 , a village .\"\r\npositive,Profit rose .\r\n";
    let expected = [
        sentiment("Seppälä , a village .", "neutral", "fpb news"),
        sentiment("Profit rose .", "positive", "fpb news"),
    ];
    assert_eq!(sentiments("all-data.csv", rows), expected);
    let with_header = [b"result,content\r\n", &rows[..]].concat();
    assert_eq!(sentiments("all-data.csv", &with_header), expected);
    // The same, as the authors' own file has it.
    let lines = b"Sepp\xe4l\xe4 , a village .@neutral\r\nProfit rose .@positive\r\n";
    assert_eq!(sentiments("Sentences_50Agree.txt", lines), expected);
    // Mail addresses in a sentence do not end it; UTF-8 stays UTF-8.
    let utf8 = "Write to a@b.c \u{2013} now@negative\n";
    assert_eq!(
        sentiments("Sentences_50Agree.txt", utf8.as_bytes()),
        [sentiment(
            "Write to a@b.c \u{2013} now",
            "negative",
            "fpb news"
        )]
    );
    assert_eq!(
        sentiments("all-data.csv", b"neutral,a\nunsure,b\n")[1],
        Err("unknown class".to_owned())
    );
}

#[test]
fn a_phrase_is_in_one_split_only() {
    let lines: String = (0..400)
        .map(|i| format!("neutral,Sentence {i} .\n"))
        .collect();
    let dir = files(&[("all-data.csv", lines.as_bytes())]);
    let side = |split| -> Vec<bool> {
        let found = rows("finance-sentiment", dir.path(), Some(split));
        assert_eq!(found.len(), 400);
        found.into_iter().map(|row| row.is_ok()).collect()
    };
    let (train, test) = (side("train"), side("test"));
    assert!(std::iter::zip(&train, &test).all(|(a, b)| a != b));
    let held_out = test.iter().filter(|&&held| held).count();
    assert!((60..140).contains(&held_out), "{held_out}");
}

#[test]
fn fiqa_has_an_example_for_each_score() {
    let file = br#"{
      "31": {"sentence": "A up, B down", "info": [
        {"snippets": "['up']", "target": "A", "sentiment_score": "0.1", "aspects": "[]"},
        {"snippets": "['down']", "target": "B", "sentiment_score": "-0.101", "aspects": "[]"}]},
      "x": {"info": [{"sentiment_score": "-0.1"}], "sentence": "Quiet day"},
      "y": {"sentence": "No score", "info": [{"sentiment_score": "none"}]},
      "z": {"sentence": "Nothing", "info": []}
    }"#;
    let expected = |from: &str| {
        [
            sentiment("A up, B down", "positive", from),
            sentiment("A up, B down", "negative", from),
            sentiment("Quiet day", "neutral", from),
            Err("unknown class".to_owned()),
            Err("no answer".to_owned()),
        ]
    };
    assert_eq!(
        sentiments("task1_headline_ABSA_train.json", file),
        expected("fiqa-headline news")
    );
    assert_eq!(
        sentiments("task1_post_ABSA_train.json", file),
        expected("fiqa-post tweet")
    );
    // The hub's table has a row for each score.
    let lines = b"{\"sentence\": \"Up\", \"sentiment_score\": 0.5, \"format\": \"post\"}\n";
    assert_eq!(
        sentiments("fiqa.jsonl", lines),
        [sentiment("Up", "positive", "fiqa-post tweet")]
    );
}

#[test]
fn tweets_and_news_have_classes_of_their_own() {
    let csv = b"text,label\r\n\"$A cut\nto hold\",0\r\nB buys C,1\r\nD says E,2\r\nF,3\r\n";
    assert_eq!(
        sentiments("sent_train.csv", csv),
        [
            sentiment("$A cut\nto hold", "negative", "tfns tweet"),
            sentiment("B buys C", "positive", "tfns tweet"),
            sentiment("D says E", "neutral", "tfns tweet"),
            Err("unknown class".to_owned()),
        ]
    );
    let lines = b"{\"news\": \"A\", \"label\": \"mildly positive\"}\n\
        {\"news\": \"B\", \"label\": \"strong negative\"}\n\
        {\"news\": \"C\", \"label\": \"moderately positive\"}\n";
    assert_eq!(
        sentiments("nwgi_train.jsonl", lines),
        [
            sentiment("A", "neutral", "nwgi news"),
            sentiment("B", "negative", "nwgi news"),
            sentiment("C", "positive", "nwgi news"),
        ]
    );
}

#[test]
fn owners_are_the_names_of_their_lists() {
    let file = r#"{"anna": [{"instruction": "a", "response": "b"},
                            {"conversations": [{"from": "human", "value": "c"},
                                               {"from": "gpt", "value": "d"}]}],
                   "b\"c": [], "ça": [{"instruction": "e", "reference": "f"}]}"#;
    let dir = files(&[("fed_test.json", file.as_bytes())]);
    let found = good(rows("fedllm-bench", dir.path(), None));
    let owners: Vec<_> = found
        .iter()
        .map(|(_, tags)| tags.owner.as_deref())
        .collect();
    assert_eq!(owners, [Some("anna"), Some("anna"), Some("ça")]);
    assert_eq!(found[0].0, instruction("a", "", "b"));
    assert!(matches!(found[1].0, Record::Conversation { .. }));
    assert_eq!(found[2].0, instruction("e", "", "f"));
}

#[test]
fn broken_objects_are_placed() {
    for (content, error) in [
        (
            &b"{\"a\": [{\"instruction\": \"b\", \"output\": \"c\"} 1]}"[..],
            "line 1, column 44: expected a comma or the end of the list or object",
        ),
        (
            b"{\"a\": [{\"x\": 1}",
            "line 1, column 16: the file ends inside the object",
        ),
        (b"{\"a\" 1}", "line 1, column 6: expected `:` after a name"),
        (
            b"{\"a\": [],}",
            "line 1, column 10: a row is missing after the comma",
        ),
        (
            b"{\"a\": [1,]}",
            "line 1, column 10: a row is missing after the comma",
        ),
        (
            b"{1: []}",
            "line 1, column 2: expected a name in double quotes",
        ),
        (
            b"{} {}",
            "line 1, column 4: there is more after the end of the object",
        ),
    ] {
        let dir = files(&[("a.json", content)]);
        let rows = rows("fedllm-bench", dir.path(), None);
        let last = rows.last().unwrap().as_ref().unwrap_err();
        assert!(last.ends_with(error), "{last}");
    }
}

#[test]
fn errors_name_the_file_and_the_line() {
    let dir = files(&[(
        "alpaca_data.json",
        b"[{\"instruction\": \"a\", \"output\": \"b\"},\n{\"instruction\": \"a\"}]",
    )]);
    let dataset = dataset("alpaca").unwrap();
    let files = dataset.locate(Some(dir.path()), None).unwrap();
    let error = dataset
        .open(files, None, Compat::Paper)
        .last()
        .unwrap()
        .unwrap_err();
    let message = error.to_string();
    assert!(
        message.ends_with(
            "alpaca_data.json, line 2, column 1: the field `output` is missing; the row has \
             `instruction`"
        ),
        "{message}"
    );
    assert!(error.hint().is_some());
}
