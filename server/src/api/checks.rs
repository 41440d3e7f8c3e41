//! Whether a request asks for what the model and the limits allow.

use super::error::ApiError;
use super::http::Api;

impl Api {
    /// Refuses more prompts than one request may have, and none.
    pub(super) fn check_count(&self, prompts: usize) -> Result<(), ApiError> {
        let most = self.limits.max_prompts;
        match prompts {
            0 => Err(ApiError::Invalid("`prompt` is an empty list".to_owned())),
            count if count > most => Err(ApiError::Invalid(format!(
                "`prompt` has {count} prompts; one request may have {most}"
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses a prompt that the model cannot take.
    pub(super) fn check_prompt(&self, index: usize, ids: &[u32]) -> Result<(), ApiError> {
        if ids.is_empty() {
            return Err(ApiError::Invalid(format!("prompt {index} has no token")));
        }
        if ids.len() > self.context {
            return Err(ApiError::TooLong {
                index,
                tokens: ids.len(),
                context: self.context,
            });
        }
        self.check_ids(&format!("prompt {index}"), ids)
    }

    /// Refuses ids that are no tokens.
    pub(super) fn check_ids(&self, what: &str, ids: &[u32]) -> Result<(), ApiError> {
        let unknown = ids.iter().position(|id| *id as usize >= self.vocabulary);
        match unknown {
            None => Ok(()),
            Some(place) => Err(ApiError::Invalid(format!(
                "{what} has the id {} at place {place}; the model has {} tokens",
                ids[place], self.vocabulary
            ))),
        }
    }

    /// Refuses more tokens than one request may have.
    pub(super) fn check_tokens(&self, prompts: &[Vec<u32>], write: usize) -> Result<(), ApiError> {
        let most = self.limits.max_tokens_per_request;
        let mut tokens = 0usize;
        for prompt in prompts {
            // What the context has no room for is not written.
            let write = write.min(self.context + 1 - prompt.len());
            tokens = tokens.saturating_add(prompt.len() + write);
        }
        match tokens > most {
            true => Err(ApiError::Invalid(format!(
                "the request has {tokens} tokens with what is to be written; one request may have \
                 {most}"
            ))),
            false => Ok(()),
        }
    }
}
