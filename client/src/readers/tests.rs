//! Files as they are found in the world, and as they are broken.

use std::fs;
use std::io::Write;

use serde_json::json;

use super::*;

/// Opens a file of this name and content.
fn open(name: &str, content: &[u8]) -> Result<RowReader, ReadError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    // The open file outlives its name; where the system forbids that, the directory stays.
    RowReader::open(path)
}

type Fields = Result<Value, String>;

/// The rows of a file, each as its fields or its problem with its place.
fn rows(name: &str, content: &[u8]) -> Vec<Fields> {
    open(name, content)
        .unwrap()
        .map(|row| match row {
            Ok(row) => row.fields().map(Value::Object).map_err(|e| e.to_string()),
            Err(error) => Err(without_path(&error)),
        })
        .collect()
}

fn without_path(error: &ReadError) -> String {
    match error {
        ReadError::Syntax { place, what, .. } => format!("{place}: {what}"),
        ReadError::NotRows { found, .. } => found.clone(),
        other => other.to_string(),
    }
}

fn refused(name: &str, content: &[u8]) -> String {
    without_path(&open(name, content).unwrap_err())
}

#[test]
fn arrays_and_lines_give_the_same_rows() {
    let expected = [
        json!({"text": "a\"]},{"}),
        json!({"text": "b", "n": [1, {"m": 2}]}),
    ];
    let array = br#" [ {"text": "a\"]},{"} ,
        {"text": "b", "n": [1, {"m": 2}]}
    ]
"#;
    let lines = b"{\"text\": \"a\\\"]},{\"}\n\n  {\"text\": \"b\", \"n\": [1, {\"m\": 2}]}";
    for content in [&array[..], lines] {
        let found: Vec<_> = rows("a.json", content)
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(found, expected);
    }
    assert!(rows("a.json", b"[]").is_empty());
    assert!(rows("a.json", b"[ \n ]\n").is_empty());
}

#[test]
fn byte_order_marks_and_carriage_returns_do_not_matter() {
    let lines = rows(
        "a.jsonl",
        b"\xef\xbb\xbf{\"text\": \"a\"}\r\n\r\n{\"text\": \"b\"}\r\n",
    );
    assert_eq!(lines, [Ok(json!({"text": "a"})), Ok(json!({"text": "b"}))]);
    let cells = rows("a.csv", b"\xef\xbb\xbftext,label\r\n\"a\nb\",1\r\nc,2\r\n");
    assert_eq!(
        cells,
        [
            Ok(json!({"text": "a\nb", "label": "1"})),
            Ok(json!({"text": "c", "label": "2"}))
        ]
    );
}

#[test]
fn semicolons_separate_cells_where_no_comma_does() {
    let cells = rows("a.csv", b"text;label\na, b;1\n\"c;d\";2\n");
    assert_eq!(
        cells,
        [
            Ok(json!({"text": "a, b", "label": "1"})),
            Ok(json!({"text": "c;d", "label": "2"}))
        ]
    );
    let commas = rows("a.csv", b"text,la;bel\na;b,1\n");
    assert_eq!(commas, [Ok(json!({"text": "a;b", "la;bel": "1"}))]);
}

#[test]
fn compressed_files_are_read_as_what_is_in_them() {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(b"{\"text\": \"a\"}\n").unwrap();
    let gz = gz.finish().unwrap();
    // Two members, as tools that append write them.
    let twice = [&gz[..], &gz].concat();
    assert_eq!(rows("a.jsonl.gz", &twice).len(), 2);
    let zst = zstd::stream::encode_all(&b"text\na\n"[..], 1).unwrap();
    assert_eq!(rows("a.csv.zst", &zst), [Ok(json!({"text": "a"}))]);
    let cut = open("a.jsonl.gz", &gz[..gz.len() - 4])
        .unwrap()
        .last()
        .unwrap();
    assert!(matches!(cut, Err(ReadError::Io { .. })), "{cut:?}");
}

#[test]
fn text_files_have_a_row_in_each_block() {
    let found = rows("a.txt", b"one\ntwo\n\n \nthree");
    assert_eq!(
        found,
        [
            Ok(json!({"text": "one\ntwo"})),
            Ok(json!({"text": "three"}))
        ]
    );
}

#[test]
fn mistakes_in_a_row_are_placed_and_leave_the_others() {
    let lines =
        b"{\"text\": \"a\"}\n{\"text\": }\n[1]\n{\"text\": \"\xff\"}\n{\"text\": \"b\"}\n{\"te";
    assert_eq!(
        rows("a.jsonl", lines),
        [
            Ok(json!({"text": "a"})),
            Err("line 2, column 10: no JSON: expected value".to_owned()),
            Err("line 3, column 1: a row must be a JSON object, this is a list".to_owned()),
            Err("line 4, column 11: not UTF-8: byte 0xff at offset 39 of the file".to_owned()),
            Ok(json!({"text": "b"})),
            Err("line 6, column 4: incomplete JSON: EOF while parsing a string".to_owned()),
        ]
    );
    let array = b"[\n  {\"text\": 1,\n   2},\n  {\"text\": \"b\"}]";
    assert_eq!(
        rows("a.json", array),
        [
            Err("line 3, column 4: no JSON: key must be a string".to_owned()),
            Ok(json!({"text": "b"})),
        ]
    );
}

#[test]
fn broken_arrays_end_with_an_error() {
    for (content, error) in [
        (
            &b"[{\"text\": 1}"[..],
            "line 1, column 13: the file ends before the array's `]`",
        ),
        (
            b"[\n{\"text\": \"a",
            "line 2, column 1: the file ends inside the row that begins here",
        ),
        (
            b"[{} {}]",
            "line 1, column 5: expected `,` or `]` after a row",
        ),
        (
            b"[{},]",
            "line 1, column 5: a row is missing after the comma",
        ),
        (
            b"[{}] x",
            "line 1, column 6: there is more after the end of the array",
        ),
        (
            b"[",
            "line 1, column 2: the file ends before the array's `]`",
        ),
    ] {
        let found = rows("a.json", content);
        assert_eq!(found.last(), Some(&Err(error.to_owned())), "{content:?}");
    }
    assert_eq!(
        rows("a.json", b"[1, \"x\", null]"),
        [
            Err("line 1, column 2: a row must be a JSON object, this is a number".to_owned()),
            Err("line 1, column 5: a row must be a JSON object, this is a text".to_owned()),
            Err("line 1, column 10: a row must be a JSON object, this is null".to_owned()),
        ]
    );
}

#[test]
fn files_of_other_kinds_are_refused() {
    assert!(matches!(open("a.json", b""), Err(ReadError::Empty(_))));
    assert!(matches!(open("a.json", b" \n\t"), Err(ReadError::Empty(_))));
    let found = refused("a.json", b"\nhello");
    assert_eq!(
        found,
        "it is no JSON: line 2, column 1 begins with the byte 0x68 instead of `[` or `{`"
    );
    assert!(refused("a.json", b"\xff\xfe{\0").contains("UTF-16"));
    assert!(matches!(
        RowReader::open(env!("CARGO_MANIFEST_DIR")),
        Err(ReadError::NotRows { .. })
    ));
    assert!(matches!(
        RowReader::open("no/such.file"),
        Err(ReadError::Io { .. })
    ));
    #[cfg(not(feature = "parquet"))]
    {
        let error = open("a.parquet", b"PAR1....").unwrap_err();
        assert!(error.to_string().contains("feature `parquet`"));
        assert!(error.hint().is_some());
    }
}

#[test]
fn tables_name_the_record_that_does_not_fit() {
    let found = rows("a.csv", b"text,label\na,1\nb\n\"c\n\xc6\",3\nd,4\n");
    assert_eq!(found[0], Ok(json!({"text": "a", "label": "1"})));
    assert_eq!(
        found[1],
        Err("line 3: 1 cells where the header has 2".to_owned())
    );
    assert_eq!(
        found[2],
        Err(
            "line 4: not UTF-8: byte 0xc6 at byte 2 of the cell `text`, in the record that begins \
             at offset 17 of the file"
                .to_owned()
        )
    );
    assert_eq!(found[3], Ok(json!({"text": "d", "label": "4"})));
    let crlf = rows("a.csv", b"\xef\xbb\xbftext,label\r\na,1\r\n\xc6,2\r\n");
    assert_eq!(
        crlf[1],
        Err(
            "line 3: not UTF-8: byte 0xc6 at byte 0 of the cell `text`, in the record that begins \
             at offset 20 of the file"
                .to_owned()
        )
    );
}

#[test]
fn every_cut_of_a_file_is_an_error_or_fewer_rows() {
    let whole = br#"[{"text": "a \u00e9 \" ] }"}, {"text": "b", "x": [{}, []]}, {"text": "c"}]"#;
    for end in 1..whole.len() {
        let found = rows("a.json", &whole[..end]);
        assert!(found.last().is_none_or(Result::is_err), "{end}: {found:?}");
    }
}

fn record(fields: Value) -> Result<(Format, Record), RowProblem> {
    let Value::Object(fields) = fields else {
        panic!("{fields} is no object")
    };
    let format = Format::detect(&fields)?;
    Ok((format, format.record(&fields)?))
}

#[test]
fn formats_are_known_by_their_fields() {
    let instruction = |instruction: &str, input: &str, output: &str| Record::Instruction {
        instruction: instruction.to_owned(),
        input: input.to_owned(),
        output: output.to_owned(),
    };
    for (fields, expected) in [
        (
            json!({"instruction": "i", "input": "in", "output": "o", "text": "ignored"}),
            (Format::Alpaca, instruction("i", "in", "o")),
        ),
        (
            json!({"instruction": "i", "input": null, "response": "r"}),
            (Format::Alpaca, instruction("i", "", "r")),
        ),
        (
            json!({"instruction": "i", "response": "r", "output": "o"}),
            (Format::Alpaca, instruction("i", "", "o")),
        ),
        (
            json!({"question": "q", "answer": "a"}),
            (Format::Qa, instruction("q", "", "a")),
        ),
        (
            json!({"prompt": "p", "completion": "c"}),
            (
                Format::Completion,
                Record::Completion {
                    prompt: "p".to_owned(),
                    completion: "c".to_owned(),
                },
            ),
        ),
        (
            json!({"text": "t", "label": 1}),
            (Format::Text, Record::Text("t".to_owned())),
        ),
    ] {
        assert_eq!(record(fields).unwrap(), expected);
    }
}

#[test]
fn conversations_are_known_by_their_turns() {
    use fedllm_models::template::Message;
    let expected = [Message::new("user", "q"), Message::new("assistant", "a")];
    for (fields, format) in [
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
                                {"role": "assistant", "content": "a"}]}),
            Format::Messages,
        ),
        (
            json!({"conversations": [{"role": "user", "content": "q"},
                                     {"role": "assistant", "content": "a"}]}),
            Format::Messages,
        ),
        (
            json!({"conversations": [{"from": "human", "value": "q"},
                                     {"from": "gpt", "value": "a"}]}),
            Format::ShareGpt,
        ),
    ] {
        let (found, record) = record(fields).unwrap();
        assert_eq!(found, format);
        let Record::Conversation {
            messages,
            learn_from,
            tools,
        } = record
        else {
            panic!()
        };
        assert_eq!(messages, expected);
        assert_eq!((learn_from, tools), (0, None));
    }
    let (_, record) = record(json!({
        "prompt": [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}],
    }))
    .unwrap();
    let Record::Conversation { learn_from, .. } = record else {
        panic!()
    };
    assert_eq!(learn_from, 2);
}

#[test]
fn turns_keep_what_templates_may_read() {
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"name": "clock"}]});
    let (_, record) = record(json!({
        "messages": [{"role": "user", "content": "time?"}, call],
        "tools": [{"name": "clock"}],
    }))
    .unwrap();
    let Record::Conversation {
        messages, tools, ..
    } = record
    else {
        panic!()
    };
    assert_eq!(messages[1].content, "");
    assert_eq!(messages[1].extra["tool_calls"], json!([{"name": "clock"}]));
    assert_eq!(tools, Some(json!([{"name": "clock"}])));
}

#[test]
fn unusable_rows_say_why_and_show_no_text() {
    for (fields, message, harmless) in [
        (
            json!({"instruction": "secret"}),
            "the field `output` is missing; the row has `instruction`",
            false,
        ),
        (
            json!({"instruction": "secret", "output": 5}),
            "the field `output` is a number, it must be a text",
            false,
        ),
        (
            json!({"instruction": "secret", "output": " \n"}),
            "the field `output` is empty, so there is nothing to learn",
            true,
        ),
        (
            json!({"prompt": "secret", "chosen": "secret", "rejected": "secret"}),
            "both answers are the same, so neither can be preferred",
            true,
        ),
        (
            json!({"chosen": "secret", "rejected": "secret too"}),
            "the field `prompt` is missing; the row has `chosen`, `rejected`",
            false,
        ),
        (
            json!({"chosen": "\n\nHuman: secret\n\nAssistant: a", "rejected": "secret"}),
            "the field `rejected` does not begin with `Human:` or `Assistant:` after a blank line",
            false,
        ),
        (
            json!({"result": "secret", "content": "secret"}),
            "no known format has the fields `result`, `content`",
            false,
        ),
        (
            json!({"messages": [{"role": "secret", "content": "secret"}]}),
            "turn 1 has a role that is not system, user, assistant or tool",
            false,
        ),
        (
            json!({"messages": [{"role": "user", "content": "secret"}]}),
            "no turn of the assistant says anything, so there is nothing to learn",
            true,
        ),
        (
            json!({"messages": "secret"}),
            "the field `messages` is a text, it must be a list of turns",
            false,
        ),
        (
            json!({"conversations": [{"from": "human"}]}),
            "the field `value` is missing; the row has `from`",
            false,
        ),
        (json!({}), "no known format has the fields none", false),
    ] {
        let problem = record(fields).unwrap_err();
        assert_eq!(problem.to_string(), message);
        assert_eq!(problem.is_harmless(), harmless, "{message}");
        assert!(!problem.reason().is_empty() && !problem.hint().is_empty());
    }
    let many: Map<String, Value> = (0..20)
        .map(|i| (format!("{i}{}", "x".repeat(99)), Value::Null))
        .collect();
    let message = Format::detect(&many).unwrap_err().to_string();
    assert!(
        message.len() < 400 && message.ends_with("12 more"),
        "{message}"
    );
}

#[test]
fn names_parse_back() {
    for format in Format::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    assert!("xml".parse::<Format>().unwrap_err().contains("sharegpt"));
}
