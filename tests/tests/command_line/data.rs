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

#[test]
fn preferences_become_pairs() {
    let programs = programs();
    let rows = "{\"prompt\":\"Name a colour.\",\"chosen\":\"Blue.\",\"rejected\":\"No.\"}\n\
        {\"prompt\":\"Name another.\",\"chosen\":\"Red.\",\"rejected\":\"Red.\"}\n\
        {\"prompt\":\"And another.\",\"chosen\":\"Red.\",\"rejected\":\"\"}\n";
    let ended = prepare(&programs, "pairs.jsonl", rows, &["--template", "vicuna"]).ok();
    let report = ended.json();
    assert_eq!(report["kind"], "preferences", "{ended}");
    assert_eq!(report["header"]["kind"], "preferences", "{ended}");
    assert_eq!((&report["units"], &report["rows"]), (&1.into(), &2.into()));
    assert_eq!(report["files"][0]["format"], "preference");
    assert_eq!(report["dropped"]["equal answers"], 1);
    assert_eq!(report["dropped"]["empty answer"], 1);
    assert!(report["median"].as_u64() > report["median_loss"].as_u64());

    let examples = programs.write("examples.jsonl", GOOD);
    let (pairs, out) = (programs.path("pairs.jsonl"), programs.path("mixed.shard"));
    let model = programs.path("model.gguf");
    let mut args = vec!["prepare", "--model", text(&model), "--out", text(&out)];
    args.extend(["--data", text(&examples), text(&pairs)]);
    programs.client(&args).failed_with(7).says(&[
        "pairs.jsonl holds preferences",
        "examples.jsonl before it holds examples",
    ]);
    assert!(!out.exists());
}

#[test]
fn dialogues_are_cut_as_asked() {
    let programs = programs();
    let row = "{\"chosen\":\"\\n\\nHuman: Go?\\n\\nAssistant: I may go.\",\
        \"rejected\":\"\\n\\nHuman: Go?\\n\\nAssistant: I may not.\"}\n";
    let labels = |compat: &str| {
        let more = ["--template", "vicuna", "--compat", compat];
        let ended = prepare(&programs, "hh.jsonl", row, &more).ok();
        assert_eq!(ended.json()["files"][0]["format"], "hh", "{ended}");
        ended.json()["loss_tokens"].as_u64()
    };
    assert!(labels("openfedllm") < labels("paper"), "`I may` is lost");
    let more = ["--compat", "tradition"];
    prepare(&programs, "hh.jsonl", row, &more)
        .failed_with(2)
        .says(&["paper or openfedllm"]);
}

#[test]
fn data_sets_are_read_by_name() {
    let programs = programs();
    let phrases = b"neutral,\"A village , Sepp\xe4 .\"\r\npositive,Profit rose .\r\n";
    let named = ["--dataset", "finance-sentiment"];
    let ended = prepare(&programs, "all-data.csv", phrases, &named).ok();
    assert_eq!(ended.json()["files"][0]["format"], "finance-sentiment");
    assert_eq!(ended.json()["rows"], 2, "{ended}");
    prepare(&programs, "all-data.csv", phrases, &[])
        .failed_with(7)
        .says(&["all-data.csv", "not UTF-8", "hint: "]);
    prepare(
        &programs,
        "all-data.csv",
        phrases,
        &["--dataset", "finance"],
    )
    .failed_with(2)
    .says(&["no data set is called `finance`", "hint: known data sets: "]);
    prepare(&programs, "rows.jsonl", GOOD, &["--split", "train"])
        .failed_with(2)
        .says(&["--dataset"]);

    // Without --data the Hugging Face cache is searched.
    let snapshot = "home/huggingface/hub/datasets--openai--gsm8k/snapshots/abc";
    let snapshot = programs.path(snapshot);
    fs::create_dir_all(&snapshot).unwrap();
    let (model, out) = (programs.path("model.gguf"), programs.path("gsm8k.shard"));
    let mut args = vec!["prepare", "--model", text(&model), "--out", text(&out)];
    args.extend(["--dataset", "gsm8k", "--split", "test", "--json"]);
    programs
        .client(&args)
        .failed_with(7)
        .says(&["the Hugging Face cache has no files of the split `test` of gsm8k"]);
    let row = "{\"question\":\"One and one?\",\"answer\":\"#### 2\"}\n";
    fs::write(snapshot.join("test.jsonl"), row).unwrap();
    let found = programs.client(&args).ok();
    assert_eq!(found.json()["rows"], 1, "{found}");
}
