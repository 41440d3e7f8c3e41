//! Preferences: one prompt, two answers, two rows.

use std::borrow::Cow;

use fedllm_models::template::Message;

use super::chat::Conversation;
use super::{ALPACA, Template, TemplateName, Tokens, VICUNA};
use crate::readers::{Prompt, Record, RowProblem};

/// A preference as a model learns it: two rows that begin with the same prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The prompt and the better answer.
    pub chosen: Tokens,
    /// The prompt and the other answer.
    pub rejected: Tokens,
}

impl Pair {
    /// Whether the prompt or an answer was cut.
    pub fn is_truncated(&self) -> bool {
        self.chosen.truncated || self.rejected.truncated
    }
}

/// The texts of a preference.
struct Texts<'a> {
    prompt: String,
    chosen: Cow<'a, str>,
    rejected: Cow<'a, str>,
}

impl Template<'_> {
    /// The tokens and labels of a preference, `max_tokens` at most in each row.
    ///
    /// Prompt and answers are tokenized apart, as OpenFedLLM and every model that continues a
    /// prompt do; the labels are the answer and EOS (for `chat`, what the template writes to end
    /// the turn). Where a row is too long, the answers keep what the prompt leaves and at least
    /// half of `max_tokens`, cut at their end; the prompt loses its oldest tokens, but never BOS.
    /// So a preference never loses an answer, and both rows have one prompt.
    ///
    /// TRL's `DPOTrainer`, which OpenFedLLM leaves at its defaults, does otherwise: only where a
    /// row has more than 512 tokens it cuts the prompt to its last 128, then the answers to 384.
    ///
    /// # Errors
    ///
    /// [`RowProblem`] if the template cannot write this record, or `max_tokens` is below 2.
    pub fn apply_pair(&self, record: &Record, max_tokens: usize) -> Result<Pair, RowProblem> {
        let Record::Preference {
            prompt,
            chosen,
            rejected,
            verbatim,
        } = record
        else {
            return Err(self.cannot_write("a row without two answers"));
        };
        let texts = self.texts(prompt, chosen, rejected, *verbatim)?;
        let chat = self.name == TemplateName::Chat;
        let mut ids = match chat {
            true => Vec::new(),
            false => self.lead.clone(),
        };
        ids.extend(self.encode(&texts.prompt, false)?);
        let answer = |text: &str| -> Result<Vec<u32>, RowProblem> {
            let mut ids = self.encode(text, false)?;
            match chat.then(|| ids.iter().rposition(|&id| id == self.eos)) {
                None => self.end(&mut ids),
                // What a template writes after the end of a turn is nothing that a model says.
                Some(Some(end)) => ids.truncate(end + 1),
                Some(None) => {}
            }
            Ok(ids)
        };
        let (chosen, rejected) = (answer(&texts.chosen)?, answer(&texts.rejected)?);
        let pair = fit(
            &ids,
            self.bos_tokens(&ids),
            [&chosen, &rejected],
            max_tokens,
        )?;
        match pair.chosen.ids == pair.rejected.ids && !verbatim {
            true => Err(RowProblem::SameAnswers),
            false => Ok(pair),
        }
    }

    fn texts<'r>(
        &self,
        prompt: &Prompt,
        chosen: &'r str,
        rejected: &'r str,
        verbatim: bool,
    ) -> Result<Texts<'r>, RowProblem> {
        let prompt = match (self.name, prompt) {
            (TemplateName::Chat | TemplateName::Plain, _) if verbatim => {
                return Err(self.cannot_write("answers as OpenFedLLM cuts them"));
            }
            (TemplateName::Chat, prompt) => return self.chat_texts(prompt, chosen, rejected),
            (TemplateName::Plain, Prompt::Text(text)) => {
                return Ok(Texts {
                    prompt: text.clone(),
                    chosen: chosen.into(),
                    rejected: rejected.into(),
                });
            }
            (TemplateName::Plain, _) => return Err(self.cannot_write("a conversation")),
            (TemplateName::Alpaca, prompt) => ALPACA.prompt(self.question(prompt)?),
            (TemplateName::Vicuna, Prompt::Text(question)) => VICUNA.prompt(question),
            (TemplateName::Vicuna, Prompt::Messages(turns)) => self.vicuna(turns, verbatim)?,
        };
        let spaced = |answer: &'r str| match verbatim {
            true => Cow::from(answer),
            false => Cow::from(format!(" {answer}")),
        };
        Ok(Texts {
            prompt,
            chosen: spaced(chosen),
            rejected: spaced(rejected),
        })
    }

    /// The only question of a prompt.
    pub(super) fn question<'p>(&self, prompt: &'p Prompt) -> Result<&'p str, RowProblem> {
        match prompt {
            Prompt::Text(question) => Ok(question),
            Prompt::Messages(turns) => match &turns[..] {
                [only] if only.role == "user" => Ok(&only.content),
                _ => Err(self.cannot_write("a conversation of more than one question")),
            },
        }
    }

    /// A conversation up to the assistant's next turn, as FastChat's `vicuna_v1.1` writes it.
    ///
    /// OpenFedLLM ends the assistant's turns with `</s>` whatever the tokenizer calls EOS; here
    /// that is so only for a `verbatim` row.
    pub(super) fn vicuna(&self, turns: &[Message], verbatim: bool) -> Result<String, RowProblem> {
        let eos = match verbatim {
            true => None,
            false => self.tokenizer.token(self.eos),
        };
        let eos = eos.as_deref().unwrap_or("</s>");
        let mut text = VICUNA_SYSTEM.to_owned();
        for (i, turn) in turns.iter().enumerate() {
            let (speaker, end) = match (i % 2, turn.role.as_str()) {
                (0, "user") => ("USER", " "),
                (1, "assistant") => ("ASSISTANT", eos),
                _ => return Err(self.cannot_write("speakers who do not take turns")),
            };
            text.push_str(speaker);
            text.push(':');
            if !turn.content.is_empty() {
                text.push(' ');
                text.push_str(&turn.content);
                text.push_str(end);
            }
        }
        text.push_str("ASSISTANT:");
        Ok(text)
    }

    fn chat_texts(
        &self,
        prompt: &Prompt,
        chosen: &str,
        rejected: &str,
    ) -> Result<Texts<'static>, RowProblem> {
        let Some(template) = self.chat else {
            return Err(RowProblem::ChatTemplate("the model has none".to_owned()));
        };
        let mut turns = match prompt {
            Prompt::Text(question) => vec![Message::new("user", question)],
            Prompt::Messages(turns) => turns.clone(),
        };
        let before = turns.len();
        let mut written = |answer: &str| {
            turns.truncate(before);
            turns.push(Message::new("assistant", answer));
            let conversation = Conversation {
                messages: &turns,
                learn_from: before,
                tools: None,
            };
            conversation.render(template)?.split()
        };
        let (chosen, rejected) = (written(chosen)?, written(rejected)?);
        if chosen.0 != rejected.0 {
            return Err(RowProblem::ChatTemplate(
                "it writes the prompt differently before different answers".to_owned(),
            ));
        }
        Ok(Texts {
            prompt: chosen.0,
            chosen: chosen.1.into(),
            rejected: rejected.1.into(),
        })
    }

    /// How many tokens begin the prompt that must stay there: BOS, or none.
    fn bos_tokens(&self, prompt: &[u32]) -> usize {
        match prompt.split_first() {
            // Some models begin each turn with their BOS; only a single one begins the text.
            Some((first, rest)) if Some(*first) == self.tokenizer.bos() => {
                usize::from(!rest.contains(first))
            }
            _ => 0,
        }
    }
}

/// What `vicuna` says before the first turn.
const VICUNA_SYSTEM: &str = VICUNA
    .before
    .split_at(VICUNA.before.len() - "USER: {}".len())
    .0;

/// Puts the prompt before each answer, `max_tokens` in all. The first `fixed` tokens of the prompt
/// stay.
fn fit(
    prompt: &[u32],
    fixed: usize,
    answers: [&[u32]; 2],
    max_tokens: usize,
) -> Result<Pair, RowProblem> {
    let longest = answers[0].len().max(answers[1].len());
    let half = max_tokens - max_tokens / 2;
    let room = longest.min(half.max(max_tokens.saturating_sub(prompt.len())));
    let kept = prompt.len().min(max_tokens - room);
    if kept < prompt.len().min(fixed + 1) {
        return Err(RowProblem::PromptTooLong {
            prompt: prompt.len(),
            max_tokens,
        });
    }
    let (fixed, movable) = prompt.split_at(fixed.min(kept));
    let movable = &movable[movable.len() - (kept - fixed.len())..];
    let row = |answer: &[u32]| {
        let answer = &answer[..answer.len().min(room)];
        let mut loss = vec![0; kept];
        loss.resize(kept + answer.len(), 1);
        if let Some(first) = loss.first_mut() {
            *first = 0; // Nothing comes before it that could predict it.
        }
        Tokens {
            ids: [fixed, movable, answer].concat(),
            loss,
            truncated: kept < prompt.len(),
        }
    };
    let [chosen, rejected] = answers.map(|answer| {
        let mut tokens = row(answer);
        tokens.truncated |= answer.len() > room;
        tokens
    });
    match chosen.loss.contains(&1) && rejected.loss.contains(&1) {
        true => Ok(Pair { chosen, rejected }),
        false => Err(RowProblem::NoAnswer),
    }
}

#[cfg(test)]
mod tests;
