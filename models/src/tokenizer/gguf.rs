//! A tokenizer from GGUF metadata.

use std::collections::HashMap;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::{SpecialTokens, Tokenizer, TokenizerError};
use crate::{Gguf, GgufFault, MetaValue};

type Pairs = Vec<(String, String)>;

impl Tokenizer {
    /// Builds the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    ///
    /// [`TokenizerError`] with the metadata key at fault, or the tokenizer that we lack.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let file = File::read(gguf)?;
        let mut model = match file.model {
            "gpt2" => byte_level(&file)?,
            "llama" => sentence_piece(&file)?,
            other => {
                return Err(TokenizerError::Unsupported {
                    path: gguf.path().to_owned(),
                    what: "model",
                    got: other.to_owned(),
                    supported: "gpt2 and llama",
                });
            }
        };
        let added = file.added_tokens();
        model
            .add_tokens(added)
            .map_err(|e| file.malformed(e.to_string()))?;
        let special = file.special()?;
        let before = special
            .bos
            .filter(|_| file.adds_bos())
            .into_iter()
            .collect();
        let after = special.eos.filter(|_| file.flag("add_eos_token", false));
        let after = after.into_iter().collect();
        Ok(Self::with_ends(model, special, before, after))
    }
}

/// Kinds of tokens, as `tokenizer.ggml.token_type` numbers them.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

struct File<'a> {
    gguf: &'a Gguf,
    model: &'a str,
    tokens: Vec<&'a str>,
    kinds: Vec<u64>,
}

impl<'a> File<'a> {
    fn read(gguf: &'a Gguf) -> Result<Self, TokenizerError> {
        let tokens = texts(gguf, "tokenizer.ggml.tokens")?;
        let kinds = match gguf.get("tokenizer.ggml.token_type") {
            Some(value) => value.as_array().unwrap_or_default(),
            None => &[],
        };
        Ok(Self {
            gguf,
            model: gguf.text("tokenizer.ggml.model")?,
            kinds: kinds.iter().map(|k| k.as_u64().unwrap_or(0)).collect(),
            tokens,
        })
    }

    fn vocab(&self) -> Vocab {
        let ids = 0u32..;
        let tokens = self.tokens.iter().map(|t| (*t).to_owned());
        tokens.zip(ids).collect()
    }

    /// Tokens that are found in a text before anything else is done to it.
    fn added_tokens(&self) -> Vec<AddedToken> {
        let kinds = self.tokens.iter().zip(&self.kinds);
        kinds
            .filter(|(token, kind)| !token.is_empty() && matches!(**kind, CONTROL | USER_DEFINED))
            .map(|(token, kind)| AddedToken::from(*token, *kind == CONTROL).normalized(false))
            .collect()
    }

    fn special(&self) -> Result<SpecialTokens, TokenizerError> {
        let eos = self.id("eos_token_id")?;
        let turn = self.id("eot_token_id")?.filter(|id| Some(*id) != eos);
        Ok(SpecialTokens {
            bos: self.id("bos_token_id")?,
            eos,
            pad: self.id("padding_token_id")?,
            stop: eos.into_iter().chain(turn).collect(),
        })
    }

    fn id(&self, key: &str) -> Result<Option<u32>, TokenizerError> {
        let key = format!("tokenizer.ggml.{key}");
        let Some(value) = self.gguf.get(&key) else {
            return Ok(None);
        };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        match id.filter(|id| (*id as usize) < self.tokens.len()) {
            Some(id) => Ok(Some(id)),
            None => Err(self.malformed(format!(
                "{key} is no token of the {} in its vocabulary",
                self.tokens.len()
            ))),
        }
    }

    fn adds_bos(&self) -> bool {
        // Where the file does not say, llama.cpp goes by the kind of tokenizer.
        let by_kind = self.model == "llama" || matches!(self.pre(), "llama-bpe" | "llama3");
        self.flag("add_bos_token", by_kind)
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        let value = self.gguf.get(&format!("tokenizer.ggml.{key}"));
        value.and_then(MetaValue::as_bool).unwrap_or(default)
    }

    fn pre(&self) -> &'a str {
        let value = self.gguf.get("tokenizer.ggml.pre");
        value.and_then(MetaValue::as_str).unwrap_or("default")
    }

    fn malformed(&self, reason: String) -> TokenizerError {
        TokenizerError::Malformed {
            path: self.gguf.path().to_owned(),
            reason,
        }
    }
}

/// Byte-level BPE, as GPT-2 has it, with one of several ways to cut a text first.
fn byte_level(file: &File<'_>) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let merges = texts(file.gguf, "tokenizer.ggml.merges")?
        .into_iter()
        .map(|merge| {
            let (left, right) = merge
                .split_once(' ')
                .ok_or_else(|| file.malformed(format!("merge {merge:?} has no two parts")))?;
            Ok((left.to_owned(), right.to_owned()))
        })
        .collect::<Result<Pairs, TokenizerError>>()?;
    let cut = Cut::named(file)?;
    let model = BPE::builder()
        .vocab_and_merges(file.vocab(), merges)
        .ignore_merges(matches!(cut, Cut::Llama3))
        .build()
        .map_err(|e| file.malformed(e.to_string()))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    cut.install(&mut tokenizer)
        .map_err(|e| file.malformed(e.to_string()))?;
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// How a text is cut into words before merges.
enum Cut {
    Gpt2,
    /// Digits one by one.
    SmolLm,
    /// Digits in threes.
    Llama3,
    /// Digits one by one, after canonical composition.
    Qwen2,
}

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

impl Cut {
    fn named(file: &File<'_>) -> Result<Self, TokenizerError> {
        Ok(match file.pre() {
            "gpt-2" | "default" => Self::Gpt2,
            "smollm" => Self::SmolLm,
            "llama-bpe" | "llama3" => Self::Llama3,
            "qwen2" => Self::Qwen2,
            other => {
                return Err(TokenizerError::Unsupported {
                    path: file.gguf.path().to_owned(),
                    what: "pre-tokenizer",
                    got: other.to_owned(),
                    supported: "gpt-2, smollm, llama-bpe and qwen2",
                });
            }
        })
    }

    fn install(self, tokenizer: &mut tokenizers::Tokenizer) -> tokenizers::Result<()> {
        let whole = ByteLevel::new(false, true, true);
        let after_split = ByteLevel::new(false, true, false);
        let split = |pattern: &str| {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        };
        let steps = match self {
            Self::Gpt2 => vec![whole.into()],
            Self::SmolLm => vec![Digits::new(true).into(), whole.into()],
            Self::Llama3 => vec![split(LLAMA3)?.into(), after_split.into()],
            Self::Qwen2 => {
                tokenizer.with_normalizer(Some(NFC))?;
                vec![split(QWEN2)?.into(), after_split.into()]
            }
        };
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
        Ok(())
    }
}

/// What stands for a space in SentencePiece vocabularies.
const SPACE: &str = "\u{2581}";

/// SentencePiece BPE: the vocabulary's scores say which pieces merge first.
fn sentence_piece(file: &File<'_>) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let unknown = file.id("unknown_token_id")?.unwrap_or(0);
    let unknown = file.tokens.get(unknown as usize).copied();
    let unknown = unknown.ok_or_else(|| file.malformed("its vocabulary is empty".to_owned()))?;
    let model = BPE::builder()
        .vocab_and_merges(file.vocab(), merges_by_score(file)?)
        .unk_token(unknown.to_owned())
        .fuse_unk(true)
        .byte_fallback(true)
        .build()
        .map_err(|e| file.malformed(e.to_string()))?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    with_spaces(&mut tokenizer, file.flag("add_space_prefix", true))
        .map_err(|e| file.malformed(e.to_string()))?;
    Ok(tokenizer)
}

fn with_spaces(tokenizer: &mut tokenizers::Tokenizer, prefix: bool) -> tokenizers::Result<()> {
    let mut normalize = vec![Replace::new(" ", SPACE)?.into()];
    let mut decode = vec![
        Replace::new(SPACE, " ")?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if prefix {
        normalize.insert(0, Prepend::new(SPACE.to_owned()).into());
        decode.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_normalizer(Some(Normalizers::new(normalize)))?;
    tokenizer.with_decoder(Some(Decoders::new(decode)));
    Ok(())
}

/// Every way to make a piece of two others, best score first.
fn merges_by_score(file: &File<'_>) -> Result<Pairs, TokenizerError> {
    let key = "tokenizer.ggml.scores";
    let scores = file.gguf.get(key).and_then(MetaValue::as_array);
    let scores = scores.ok_or_else(|| file.gguf.fault(GgufFault::MissingKey(key.to_owned())))?;
    if scores.len() != file.tokens.len() {
        return Err(file.malformed(format!(
            "it has {} scores for {} tokens",
            scores.len(),
            file.tokens.len()
        )));
    }
    let ids: HashMap<&str, usize> = file.tokens.iter().copied().zip(0..).collect();
    let mut merges = Vec::new();
    for (token, score) in file.tokens.iter().zip(scores) {
        let score = score.as_f64().unwrap_or(f64::NEG_INFINITY);
        let mut splits: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at))
            .filter(|(left, right)| ids.contains_key(left) && ids.contains_key(right))
            .map(|(left, right)| Merge { score, left, right })
            .collect();
        splits.sort_by_key(|merge| (ids[merge.left], ids[merge.right]));
        merges.extend(splits);
    }
    merges.sort_by(|a, b| {
        b.rank()
            .partial_cmp(&a.rank())
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    Ok(merges
        .into_iter()
        .map(|merge| (merge.left.to_owned(), merge.right.to_owned()))
        .collect())
}

struct Merge<'a> {
    score: f64,
    left: &'a str,
    right: &'a str,
}

impl Merge<'_> {
    /// Equal scores go to the longer left part, then to the longer right part.
    fn rank(&self) -> (f64, usize, usize) {
        let len = |text: &str| text.chars().count();
        (self.score, len(self.left), len(self.right))
    }
}

fn texts<'a>(gguf: &'a Gguf, key: &str) -> Result<Vec<&'a str>, TokenizerError> {
    let value = gguf
        .get(key)
        .ok_or_else(|| gguf.fault(GgufFault::MissingKey(key.to_owned())))?;
    value.texts().ok_or_else(|| {
        gguf.fault(GgufFault::WrongKind {
            key: key.to_owned(),
            expected: "an array of text",
            got: value.kind(),
        })
        .into()
    })
}
