//! Files of rows that cannot be read.

use std::fs;

use fedllm_models::BlockFormat;
use fedllm_tests::federation::{Programs, text};
use fedllm_tests::process::Ended;
use fedllm_tests::tiny;

use super::programs;

const GOOD: &str = "{\"instruction\":\"Name a colour.\",\"output\":\"Blue is a colour.\"}\n";

fn prepare(programs: &Programs, name: &str, bytes: impl AsRef<[u8]>, more: &[&str]) -> Ended {
    let model = programs.path("model.gguf");
    if !model.exists() {
        tiny::write_gguf(&model, "llama", BlockFormat::F32);
    }
    let (data, out) = (programs.write(name, bytes), programs.path("out.shard"));
    let mut args = vec!["prepare", "--model", text(&model), "--data", text(&data)];
    args.extend(["--out", text(&out), "--json"]);
    args.extend(more);
    programs.client(&args)
}

#[test]
fn rows_that_cannot_be_read_are_named_by_file_and_line() {
    let programs = programs();
    let broken = format!("{GOOD}{{\"instruction\": oops}}\n");
    let cut_off = format!("[{}", GOOD.trim());
    let other_shape = "{\"colour\":\"blue\",\"number\":3}\n";
    let no_object = format!("{GOOD}[1,2,3]\n");
    let field_missing = format!("{GOOD}{GOOD}{{\"instruction\":\"Name another.\"}}\n");
    let mut not_utf8 = format!("{GOOD}{{\"instruction\":\"Na").into_bytes();
    not_utf8.extend(b"\xff\"}\n");
    let cases: [(&str, &[u8], &[&str]); 8] = [
        (
            "a.jsonl",
            broken.as_bytes(),
            &["a.jsonl, line 2", "no JSON"],
        ),
        (
            "b.json",
            cut_off.as_bytes(),
            &["b.json, line 1", "before the array's `]`"],
        ),
        (
            "c.json",
            other_shape.as_bytes(),
            &["c.json, line 1", "`colour`, `number`"],
        ),
        (
            "d.jsonl",
            no_object.as_bytes(),
            &["d.jsonl, line 2", "must be a JSON object"],
        ),
        ("e.jsonl", b"", &["e.jsonl is empty"]),
        (
            "f.jsonl",
            field_missing.as_bytes(),
            &["f.jsonl, line 3", "`output` is missing"],
        ),
        (
            "g.jsonl",
            &not_utf8,
            &["g.jsonl, line 2", "not UTF-8", "0xff"],
        ),
        (
            "h.bin",
            b"\x00\x01\x02\x03 nothing",
            &["h.bin", "holds no rows"],
        ),
    ];
    for (name, bytes, parts) in cases {
        let ended = prepare(&programs, name, bytes, &[]);
        ended.failed_with(7).says(&["error: "]).says(parts);
        // Nothing is left of a shard.
        let left = fs::read_dir(programs.path("")).unwrap();
        let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<_> = left.filter(|name| name.contains("shard")).collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
    let missing = [
        "prepare",
        "--model",
        "model.gguf",
        "--data",
        "none.jsonl",
        "--out",
        "o",
    ];
    let missing = programs.client(&missing).failed_with(7);
    missing.says(&["none.jsonl", "No such file"]);
}

#[test]
fn bad_rows_are_skipped_and_counted_on_demand() {
    let programs = programs();
    let mut rows = format!("{GOOD}{{\"instruction\": oops}}\n{GOOD}").into_bytes();
    rows.extend(b"{\"instruction\":\"Name another.\"}\n{\"instruction\":\"Na\xff\"}\n");
    let ended = prepare(&programs, "rows.jsonl", rows, &["--skip-bad-rows"]).ok();
    let report = ended.json();
    assert_eq!(report["rows"], 2, "{ended}");
    let bad = report["bad"].as_object().unwrap();
    let bad: u64 = bad.values().filter_map(|count| count.as_u64()).sum();
    assert_eq!(bad, 3, "{ended}");

    let nothing = prepare(
        &programs,
        "nothing.jsonl",
        "{\"a\":1}\n",
        &["--skip-bad-rows"],
    );
    nothing.failed_with(7).says(&["no row is left"]);
}
