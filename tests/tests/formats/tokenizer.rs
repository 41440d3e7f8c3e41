//! Ids and texts against transformers, from `tokenizer.json` and from GGUF metadata.

use std::fs;
use std::path::Path;

use fedllm_models::{ChatTemplate, Gguf, GgufWriter, Message, MetaKind, MetaValue, Tokenizer};
use serde::Deserialize;
use serde_json::Value;

use crate::golden;

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    #[serde(default)]
    decoded: Option<String>,
}

/// SmolLM2's `tokenizer.json`.
fn smollm2() -> String {
    let packed = fs::read(golden("smollm2/tokenizer.json.zst")).unwrap();
    String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap()
}

fn from_json() -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.json"), smollm2()).unwrap();
    for name in ["tokenizer_config.json", "config.json"] {
        fs::copy(golden(&format!("smollm2/{name}")), dir.path().join(name)).unwrap();
    }
    Tokenizer::from_directory(dir.path()).unwrap()
}

/// The same vocabulary and merges as llama.cpp's converter stores them.
fn smollm2_metadata() -> GgufWriter {
    let json: Value = serde_json::from_str(&smollm2()).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    let mut kinds = vec![MetaValue::I32(1); tokens.len()];
    for token in json["added_tokens"].as_array().unwrap() {
        kinds[token["id"].as_u64().unwrap() as usize] = MetaValue::I32(3);
    }
    let merges = json["model"]["merges"].as_array().unwrap();
    let merge = |pair: &Value| {
        let part = |i: usize| pair[i].as_str().unwrap().to_owned();
        format!("{} {}", part(0), part(1))
    };
    let mut writer = GgufWriter::new();
    let mut set = |key: &str, value| writer.set(&format!("tokenizer.ggml.{key}"), value);
    set("model", MetaValue::from("gpt2"));
    set("pre", MetaValue::from("smollm"));
    set("merges", MetaValue::strings(merges.iter().map(merge)));
    set("tokens", MetaValue::strings(tokens));
    set("token_type", MetaValue::Array(MetaKind::I32, kinds));
    set("bos_token_id", MetaValue::U32(1));
    set("eos_token_id", MetaValue::U32(2));
    set("padding_token_id", MetaValue::U32(2));
    set("add_bos_token", MetaValue::Bool(false));
    writer
}

fn from_gguf(writer: &GgufWriter) -> Result<Tokenizer, String> {
    let gguf = Gguf::from_bytes(Path::new("model.gguf"), writer.to_bytes()).unwrap();
    Tokenizer::from_gguf(&gguf).map_err(|e| e.to_string())
}

fn both() -> [Tokenizer; 2] {
    [from_json(), from_gguf(&smollm2_metadata()).unwrap()]
}

#[test]
fn every_golden_string_and_prompt_has_its_ids() {
    let strings = fs::read_to_string(golden("smollm2/strings.json")).unwrap();
    let strings: Vec<Case> = serde_json::from_str(&strings).unwrap();
    let prompts = fs::read_to_string(golden("smollm2/prompts.json")).unwrap();
    let prompts: serde_json::Map<String, Value> = serde_json::from_str(&prompts).unwrap();
    let prompts = prompts
        .into_iter()
        .map(|(_, prompt)| serde_json::from_value(prompt).unwrap());
    let cases: Vec<Case> = strings.into_iter().chain(prompts).collect();
    assert_eq!(cases.len(), 19 + 6);
    for tokenizer in both() {
        for case in &cases {
            let ids = tokenizer.encode(&case.text, false).unwrap();
            assert_eq!(ids, case.ids, "{:?}", case.text);
            assert_eq!(tokenizer.encode(&case.text, true).unwrap(), ids);
            if let Some(decoded) = &case.decoded {
                assert_eq!(&tokenizer.decode(&ids, false).unwrap(), decoded);
            }
        }
    }
}

#[test]
fn both_sources_are_one_tokenizer() {
    let [json, gguf] = both();
    assert_eq!(json.fingerprint(), gguf.fingerprint());
    assert_eq!(json.special(), gguf.special());
    assert_eq!((json.vocab_size(), json.eos()), (49152, Some(2)));
    assert_eq!(json.token(1).as_deref(), Some("<|im_start|>"));
    assert_eq!(json.id("<|im_end|>"), Some(2));
    // Without splitting digits it is another one.
    let mut writer = smollm2_metadata();
    writer.set("tokenizer.ggml.pre", MetaValue::from("gpt-2"));
    assert_ne!(
        from_gguf(&writer).unwrap().fingerprint(),
        json.fingerprint()
    );
}

#[test]
fn streams_give_out_whole_characters() {
    let strings = fs::read_to_string(golden("smollm2/strings.json")).unwrap();
    let strings: Vec<Case> = serde_json::from_str(&strings).unwrap();
    let tokenizer = from_json();
    for case in strings {
        let mut stream = tokenizer.stream(false);
        let mut text = String::new();
        for id in &case.ids {
            let piece = stream.push(*id).unwrap();
            assert!(!piece.contains('\u{fffd}'), "{:?}", case.text);
            text.push_str(&piece);
        }
        text.push_str(&stream.finish().unwrap());
        assert_eq!(text, case.text);
    }
}

#[test]
fn special_tokens_can_be_left_out() {
    let tokenizer = from_json();
    let ids = tokenizer
        .encode("<|im_start|>user\nhi<|im_end|>", false)
        .unwrap();
    assert_eq!(ids.first(), Some(&1));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "user\nhi");
}

#[test]
fn the_chat_template_gives_the_golden_prompt() {
    let source = fs::read_to_string(golden("smollm2/chat_template.jinja")).unwrap();
    let template = ChatTemplate::new(&source, "<|im_start|>", "<|im_end|>").unwrap();
    let text = template
        .render(&[Message::new("user", "What causes the tides?")], true)
        .unwrap();
    let prompts = fs::read_to_string(golden("smollm2/prompts.json")).unwrap();
    let prompts: Value = serde_json::from_str(&prompts).unwrap();
    assert_eq!(text, prompts["chat"]["text"].as_str().unwrap());
    let ids = from_json().encode(&text, false).unwrap();
    assert_eq!(serde_json::json!(ids), prompts["chat"]["ids"]);
}

#[test]
fn beginnings_are_added_where_the_file_says_so() {
    let mut writer = smollm2_metadata();
    writer.set("tokenizer.ggml.add_bos_token", MetaValue::Bool(true));
    let tokenizer = from_gguf(&writer).unwrap();
    assert_eq!(tokenizer.encode("Once", true).unwrap(), [1, 6403]);
    assert_eq!(tokenizer.encode("Once", false).unwrap(), [6403]);
}

#[test]
fn tokenizers_that_we_lack_are_named() {
    for (key, value, word) in [
        ("pre", "tekken", "tekken"),
        ("model", "rwkv", "rwkv"),
        ("merges", "no list", "merges"),
    ] {
        let mut writer = smollm2_metadata();
        writer.set(&format!("tokenizer.ggml.{key}"), MetaValue::from(value));
        let error = from_gguf(&writer).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
    let mut writer = smollm2_metadata();
    writer.set("tokenizer.ggml.eos_token_id", MetaValue::U32(99_999));
    assert!(from_gguf(&writer).unwrap_err().contains("eos_token_id"));
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_directory(dir.path()).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"));
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(Tokenizer::from_directory(dir.path()).is_err());
}

/// A SentencePiece vocabulary: control, byte and plain pieces with scores.
fn sentence_piece(prefix: bool) -> GgufWriter {
    let mut pieces = vec![
        ("<unk>".to_owned(), 2, 0.0),
        ("<s>".to_owned(), 3, 0.0),
        ("</s>".to_owned(), 3, 0.0),
    ];
    pieces.extend((0..256).map(|b| (format!("<0x{b:02X}>"), 6, 0.0)));
    let plain = [
        ("\u{2581}ab", -1.0),
        ("ab", -2.0),
        ("\u{2581}a", -3.0),
        ("bc", -0.5),
        ("\u{2581}", -4.0),
        ("a", -5.0),
        ("b", -6.0),
        ("c", -7.0),
    ];
    pieces.extend(plain.map(|(piece, score)| (piece.to_owned(), 1, score)));
    let kinds = pieces.iter().map(|p| MetaValue::I32(p.1)).collect();
    let scores = pieces.iter().map(|p| MetaValue::F32(p.2)).collect();
    let mut writer = GgufWriter::new();
    let mut set = |key: &str, value| writer.set(&format!("tokenizer.ggml.{key}"), value);
    set("model", MetaValue::from("llama"));
    set(
        "tokens",
        MetaValue::strings(pieces.iter().map(|p| p.0.clone())),
    );
    set("token_type", MetaValue::Array(MetaKind::I32, kinds));
    set("scores", MetaValue::Array(MetaKind::F32, scores));
    set("unknown_token_id", MetaValue::U32(0));
    set("bos_token_id", MetaValue::U32(1));
    set("eos_token_id", MetaValue::U32(2));
    set("add_space_prefix", MetaValue::Bool(prefix));
    writer
}

#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = from_gguf(&sentence_piece(true)).unwrap();
    let piece = |text: &str| tokenizer.id(text).unwrap();
    // "bc" has the best score, so it goes before "ab".
    assert_eq!(
        tokenizer.encode("abc", false).unwrap(),
        [piece("\u{2581}a"), piece("bc")]
    );
    assert_eq!(
        tokenizer.encode("ab ab", true).unwrap(),
        [1, piece("\u{2581}ab"), piece("\u{2581}ab")]
    );
    let ids = tokenizer.encode("a\u{e9}", false).unwrap();
    assert_eq!(ids, [piece("\u{2581}a"), piece("<0xC3>"), piece("<0xA9>")]);
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "a\u{e9}");
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "\u{e9}"]);
    // Gemma's files want no space in front.
    let gemma = from_gguf(&sentence_piece(false)).unwrap();
    let ids = gemma.encode("a a", false).unwrap();
    assert_eq!(ids, [piece("a"), piece("\u{2581}a")]);
    assert_eq!(gemma.decode(&ids, false).unwrap(), "a a");
}

/// Byte-level BPE in which the digits 1 to 4 merge, to see where a text is cut first.
fn digits(pre: &str) -> Tokenizer {
    let mut tokens = fedllm_tests::tiny::vocabulary();
    tokens.extend(["12", "123", "1234"].map(str::to_owned));
    let mut writer = GgufWriter::new();
    let mut set = |key: &str, value| writer.set(&format!("tokenizer.ggml.{key}"), value);
    set("model", MetaValue::from("gpt2"));
    set("pre", MetaValue::from(pre));
    set("tokens", MetaValue::strings(tokens));
    set("merges", MetaValue::strings(["1 2", "12 3", "123 4"]));
    from_gguf(&writer).unwrap()
}

#[test]
fn texts_are_cut_as_the_file_names_it() {
    for (pre, expected) in [
        ("gpt-2", &["1234"][..]),
        ("llama-bpe", &["123", "4"]),
        ("smollm", &["1", "2", "3", "4"]),
        ("qwen2", &["1", "2", "3", "4"]),
    ] {
        let tokenizer = digits(pre);
        let ids = tokenizer.encode("1234", false).unwrap();
        let pieces: Vec<String> = ids.iter().map(|id| tokenizer.token(*id).unwrap()).collect();
        assert_eq!(pieces, expected, "{pre}");
    }
    // Qwen composes accents; the others keep them apart.
    let apart = "e\u{301}";
    let decoded = |pre| {
        let tokenizer = digits(pre);
        let ids = tokenizer.encode(apart, false).unwrap();
        tokenizer.decode(&ids, false).unwrap()
    };
    assert_eq!(decoded("qwen2"), "\u{e9}");
    assert_eq!(decoded("llama-bpe"), apart);
}
