//! Text as it is generated.

use super::{Tokenizer, TokenizerError};

/// Turns ids into text one by one. A character that several tokens make comes out whole.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The last tokens that were given out, for context, then those that were not.
    ids: Vec<u32>,
    /// How many of `ids` were given out.
    given: usize,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self {
            tokenizer,
            skip_special,
            ids: Vec::new(),
            given: 0,
        }
    }

    /// Takes the next id and returns the text that it completes: often nothing.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] with what the tokenizer reports.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.pending()?;
        // The replacement character stands for the first bytes of an unfinished one.
        if text.is_empty() || text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        Ok(text)
    }

    /// The text that is still held back, unfinished characters replaced.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Decode`] with what the tokenizer reports.
    pub fn finish(mut self) -> Result<String, TokenizerError> {
        let text = self.pending()?;
        self.ids.clear();
        Ok(text)
    }

    fn pending(&self) -> Result<String, TokenizerError> {
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, self.skip_special);
        let (before, all) = (decode(&self.ids[..self.given])?, decode(&self.ids)?);
        Ok(match all.strip_prefix(&before) {
            Some(text) => text.to_owned(),
            None => String::new(),
        })
    }
}
