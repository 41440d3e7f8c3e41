//! Log-probabilities in the two shapes that OpenAI's clients know.

use fedllm_models::ops::TokenLogProbs;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::text::Pieces;

/// Log-probabilities of a completion: lists with an entry for each token.
#[derive(Debug, Default, Serialize)]
pub(super) struct CompletionLogProbs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Characters of the text before each token.
    text_offset: Vec<usize>,
}

impl CompletionLogProbs {
    /// Adds a token that begins after `offset` characters; the first of a text has nothing before it
    /// that could predict it.
    pub(super) fn push(
        &mut self,
        pieces: &Pieces,
        token: u32,
        said: Option<&TokenLogProbs>,
        offset: usize,
    ) {
        let piece = pieces.piece(token);
        let alternatives = said.map(|said| {
            let mut all = Map::new();
            let top = said
                .top
                .iter()
                .map(|(id, log_prob)| (pieces.piece(*id), *log_prob));
            for (text, log_prob) in top.chain([(piece.clone(), said.log_prob)]) {
                // Two tokens may read the same: the more probable one counts, and it came first.
                let known = all.get(&text).and_then(Value::as_f64);
                let log_prob = f64::from(log_prob);
                if known.is_none_or(|known| log_prob > known) {
                    all.insert(text, json!(log_prob));
                }
            }
            all
        });
        self.tokens.push(piece);
        self.token_logprobs
            .push(said.map(|said| f64::from(said.log_prob)));
        self.top_logprobs.push(alternatives);
        self.text_offset.push(offset);
    }

    /// Adds the entries of tokens that follow.
    pub(super) fn append(&mut self, mut more: Self) {
        self.tokens.append(&mut more.tokens);
        self.token_logprobs.append(&mut more.token_logprobs);
        self.top_logprobs.append(&mut more.top_logprobs);
        self.text_offset.append(&mut more.text_offset);
    }
}

/// A token of a chat, with its alternatives.
pub(super) fn chat_token(
    pieces: &Pieces,
    token: u32,
    said: &TokenLogProbs,
    alternatives: usize,
) -> Value {
    let entry = |token: u32, log_prob: f32| {
        let piece = pieces.piece(token);
        let bytes = piece.as_bytes().to_vec();
        json!({ "token": piece, "logprob": f64::from(log_prob), "bytes": bytes })
    };
    let top = said.top.iter().take(alternatives);
    let top: Vec<Value> = top
        .map(|(token, log_prob)| entry(*token, *log_prob))
        .collect();
    let mut entry = entry(token, said.log_prob);
    entry["top_logprobs"] = top.into();
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing;

    #[test]
    fn tokens_that_read_the_same_keep_the_more_probable() {
        let pieces = Pieces::new(testing::tokenizer());
        // None of these is in the vocabulary, so they all read "".
        let (a, b, c) = (1_000_000, 1_000_001, 1_000_002);
        let said = TokenLogProbs {
            log_prob: -3.25,
            top: vec![(a, -0.5), (b, -1.5)],
        };
        let mut all = CompletionLogProbs::default();
        all.push(&pieces, c, None, 0);
        all.push(&pieces, c, Some(&said), 4);
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!(json["token_logprobs"], json!([null, -3.25]));
        assert_eq!(json["top_logprobs"], json!([null, {"": -0.5}]));
        assert_eq!(json["text_offset"], json!([0, 4]));
    }
}
