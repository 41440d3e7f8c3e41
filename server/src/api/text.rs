//! Tokens as text: an answer as it is written, and each token by itself.

use fedllm_models::{StreamDecoder, Tokenizer, TokenizerError};

/// The text of an answer, held back where one of its stops may have begun.
pub(super) struct Answer {
    decoder: StreamDecoder,
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl Answer {
    pub(super) fn new(tokenizer: &Tokenizer, stops: &[String]) -> Self {
        Self {
            decoder: tokenizer.stream(true),
            stops: stops.to_vec(),
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes the next token and returns the text that is sure to stay.
    pub(super) fn push(&mut self, token: u32) -> Result<String, TokenizerError> {
        let text = self.decoder.push(token)?;
        self.take(&text);
        if self.stopped {
            return Ok(std::mem::take(&mut self.held));
        }
        let sure = self.held.len() - self.begun();
        Ok(self.held.drain(..sure).collect())
    }

    /// Whether a stop was written.
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// The text that is still held back, and whether a stop was written.
    pub(super) fn finish(mut self) -> Result<(String, bool), TokenizerError> {
        if !self.stopped {
            let text = self.decoder.clone().finish()?;
            self.take(&text);
        }
        Ok((self.held, self.stopped))
    }

    /// Adds text, up to the first stop.
    fn take(&mut self, text: &str) {
        self.held.push_str(text);
        let stops = self.stops.iter();
        if let Some(at) = stops.filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            self.stopped = true;
        }
    }

    /// Bytes at the end that may be the beginning of a stop.
    fn begun(&self) -> usize {
        let longest = |stop: &String| {
            let mut ends = stop.char_indices().rev().map(|(end, _)| end);
            ends.find(|end| self.held.ends_with(&stop[..*end]))
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

/// What single tokens are as text.
pub(super) struct Pieces {
    tokenizer: Tokenizer,
    /// A token to write others behind, since many tokenizers drop a text's first space.
    before: Option<(u32, String)>,
}

impl Pieces {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        let letter = tokenizer.encode("a", false).ok();
        let before = letter.and_then(|ids| {
            let id = *ids.last()?;
            Some((id, tokenizer.decode(&[id], false).ok()?))
        });
        Self { tokenizer, before }
    }

    /// The text of a token; of one that is only part of a character, its spelling in the vocabulary.
    pub(super) fn piece(&self, id: u32) -> String {
        let behind = self.before.as_ref().and_then(|(before, text)| {
            let both = self.tokenizer.decode(&[*before, id], false).ok()?;
            both.strip_prefix(text.as_str()).map(str::to_owned)
        });
        let whole = behind.filter(|text| !text.is_empty() && !text.contains('\u{fffd}'));
        whole.unwrap_or_else(|| self.tokenizer.token(id).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing;

    fn written(text: &str, stops: &[&str]) -> (Vec<String>, bool) {
        let tokenizer = testing::tokenizer();
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut answer = Answer::new(&tokenizer, &stops);
        let mut parts = Vec::new();
        for id in tokenizer.encode(text, false).unwrap() {
            parts.push(answer.push(id).unwrap());
            if answer.stopped() {
                break;
            }
        }
        let (rest, stopped) = answer.finish().unwrap();
        parts.push(rest);
        parts.retain(|part| !part.is_empty());
        (parts, stopped)
    }

    #[test]
    fn a_stop_is_not_part_of_the_answer_however_it_is_cut_into_tokens() {
        let (parts, stopped) = written("xyENDz", &["END"]);
        assert_eq!((parts.concat().as_str(), stopped), ("xy", true));
        // What only looks like a stop comes a little later.
        let (parts, stopped) = written("xEENzE", &["END"]);
        assert_eq!((parts.concat().as_str(), stopped), ("xEENzE", false));
        assert_eq!(parts, ["x", "E", "ENz", "E"]);
        let (parts, stopped) = written("a\u{e9}\u{e9}b", &["b", "\u{e9}b"]);
        assert_eq!((parts.concat().as_str(), stopped), ("a\u{e9}", true));
        assert_eq!(written("xyz", &[]).0, ["x", "y", "z"]);
    }

    #[test]
    fn pieces_keep_spaces_and_tell_parts_of_characters_apart() {
        let tokenizer = testing::tokenizer();
        let pieces = Pieces::new(tokenizer.clone());
        let piece = |text: &str| -> Vec<String> {
            let ids = tokenizer.encode(text, false).unwrap();
            ids.into_iter().map(|id| pieces.piece(id)).collect()
        };
        assert_eq!(piece("x y"), ["x", " ", "y"]);
        assert_eq!(piece("</s>"), ["</s>"]);
        let parts = piece("\u{e9}");
        assert_eq!(parts.len(), 2);
        assert!(parts[0] != parts[1] && parts.iter().all(|part| !part.is_empty()));
        assert_eq!(pieces.piece(1_000_000), "");
    }
}
