//! Text to token ids and back.

mod gguf;
mod hugging_face;
mod stream;

pub use stream::StreamDecoder;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use fedllm_shared::Digest;

use crate::GgufError;

/// A model's tokenizer. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    model: tokenizers::Tokenizer,
    special: SpecialTokens,
    /// Ids that `add_special` puts around the text, where the model has no step for it.
    before: Vec<u32>,
    after: Vec<u32>,
    fingerprint: OnceLock<Digest>,
}

/// The ids of tokens with a meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text or a turn.
    pub eos: Option<u32>,
    /// Fills a batch; often the same as `eos`.
    pub pad: Option<u32>,
    /// Every token that ends generation, `eos` included.
    pub stop: Vec<u32>,
}

impl Tokenizer {
    /// The ids of `text`.
    ///
    /// Special tokens that are written in the text are recognised. With `add_special` the
    /// model's own beginning and end are added, as its tokenizer configuration says;
    /// leave it off for texts from a chat template, which writes them itself.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Encode`] with what the tokenizer reports.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .inner
            .model
            .encode_fast(text, add_special)
            .map_err(|e| TokenizerError::Encode(e.to_string()))?;
        let ids = encoding.get_ids();
        if !add_special {
            return Ok(ids.to_vec());
        }
        Ok([&self.inner.before, ids, &self.inner.after].concat())
    }

    /// The text of `ids`; with `skip_special` without the special tokens.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] with what the tokenizer reports.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        self.inner
            .model
            .decode(ids, skip_special)
            .map_err(|e| TokenizerError::Decode(e.to_string()))
    }

    /// Decodes ids one at a time, giving out whole characters only.
    pub fn stream(&self, skip_special: bool) -> StreamDecoder {
        StreamDecoder::new(self.clone(), skip_special)
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.inner.special.bos
    }

    /// The token that ends a text or a turn.
    pub fn eos(&self) -> Option<u32> {
        self.inner.special.eos
    }

    /// All tokens with a meaning.
    pub fn special(&self) -> &SpecialTokens {
        &self.inner.special
    }

    /// Ids in use, added tokens included. A model may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.inner.model.get_vocab_size(true)
    }

    /// How token `id` is spelt in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.model.id_to_token(id)
    }

    /// The id of the token spelt `token` in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.model.token_to_id(token)
    }

    /// Names what this tokenizer does, whatever file it came from.
    ///
    /// A BLAKE3 hash of the vocabulary, by id, and of the ids of fixed texts. So a
    /// `tokenizer.json` and a GGUF of the same model have one fingerprint, and a new
    /// release of a library that only writes its file another way changes nothing.
    pub fn fingerprint(&self) -> Digest {
        *self.inner.fingerprint.get_or_init(|| self.digest())
    }

    fn new(model: tokenizers::Tokenizer, special: SpecialTokens) -> Self {
        Self::with_ends(model, special, Vec::new(), Vec::new())
    }

    fn with_ends(
        model: tokenizers::Tokenizer,
        special: SpecialTokens,
        before: Vec<u32>,
        after: Vec<u32>,
    ) -> Self {
        let inner = Inner {
            model,
            special,
            before,
            after,
            fingerprint: OnceLock::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"fedllm tokenizer 1\n");
        let mut vocab: Vec<(u32, String)> = self
            .inner
            .model
            .get_vocab(true)
            .into_iter()
            .map(|(token, id)| (id, token))
            .collect();
        vocab.sort_unstable();
        for (id, token) in &vocab {
            hasher.update(&id.to_le_bytes());
            hasher.update(&(token.len() as u64).to_le_bytes());
            hasher.update(token.as_bytes());
        }
        for probe in PROBES {
            // A text that cannot be encoded differs from any that can.
            let ids = self.encode(probe, true).unwrap_or(vec![u32::MAX]);
            hasher.update(&(ids.len() as u64).to_le_bytes());
            hasher.update(bytemuck::cast_slice(&ids));
        }
        let SpecialTokens { bos, eos, .. } = self.special();
        for id in [bos, eos] {
            hasher.update(&id.map_or(u64::MAX, u64::from).to_le_bytes());
        }
        Digest(hasher.finalize().into())
    }
}

/// Texts that tokenizers with one vocabulary still cut differently.
const PROBES: [&str; 8] = [
    "",
    "Hello, world! It's 2026; don't panic.",
    " leading, trailing and  double spaces ",
    "12345 3.14159e-10 0x1F \u{663}\u{664}",
    "tabs\t\tand\n\n\nlines\r\n",
    "na\u{ef}ve cafe\u{301} \u{4eac}\u{90fd} \u{1f6b2}\u{1f3d4}\u{fe0f}",
    "def f(a, b):\n    return a*b  # ok\n",
    "I'LL we've CamelCase snake_case <b>tag</b>",
];

/// A tokenizer that cannot be built or used, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What reading reported.
        error: std::io::Error,
    },
    /// A file cannot be understood.
    #[error("{} is no tokenizer that we understand: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no `tokenizer.json`.
    #[error(
        "{} has no tokenizer.json{}",
        path.display(),
        if *sentencepiece { "; save the model's fast tokenizer with transformers to get one" } else { "" }
    )]
    NoTokenizer {
        /// The directory.
        path: PathBuf,
        /// Whether there is a SentencePiece `tokenizer.model` instead.
        sentencepiece: bool,
    },
    /// A GGUF file lacks something.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A GGUF file has a tokenizer that we do not have.
    #[error(
        "{} has a tokenizer of {what} {got:?}, which is not supported; {supported} are",
        path.display()
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The setting.
        what: &'static str,
        /// Its value.
        got: String,
        /// The values that we have.
        supported: &'static str,
    },
    /// A text cannot be encoded.
    #[error("a text cannot be tokenized: {0}")]
    Encode(String),
    /// Ids cannot be decoded.
    #[error("token ids cannot be turned into text: {0}")]
    Decode(String),
}
