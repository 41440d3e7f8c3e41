//! Finds the answers in what a chat template writes.

use std::ops::Range;

use fedllm_models::template::{ChatTemplate, Message, RenderOptions, Rendered};
use serde_json::Value;

use crate::readers::{RowProblem, is_answer};

/// A conversation to learn from.
pub(super) struct Conversation<'a> {
    pub(super) messages: &'a [Message],
    /// Only answers from this turn on are learned.
    pub(super) learn_from: usize,
    /// Descriptions of tools.
    pub(super) tools: Option<&'a Value>,
}

/// A conversation as text, with the bytes of each answer.
pub(super) struct Text {
    text: String,
    answers: Vec<Range<usize>>,
}

impl Conversation<'_> {
    /// The text of the conversation, and where in it the answers are.
    pub(super) fn render(&self, template: &ChatTemplate) -> Result<Text, RowProblem> {
        if template.marks_generation()
            && let Some(text) = self.render_marked(template)?
        {
            return Ok(text);
        }
        self.render_steps(template)
    }

    /// The answers that the template itself marks; `None` if they are not one for each turn.
    fn render_marked(&self, template: &ChatTemplate) -> Result<Option<Text>, RowProblem> {
        let Rendered { text, generation } = self.written(template, self.messages.len(), false)?;
        let turns: Vec<usize> = (0..self.messages.len())
            .filter(|&turn| self.messages[turn].role == "assistant")
            .collect();
        if generation.len() != turns.len() {
            return Ok(None);
        }
        let answers = turns
            .into_iter()
            .zip(generation)
            .filter(|(turn, _)| self.is_learned(*turn))
            .map(|(_, bytes)| bytes)
            .collect();
        Ok(Some(Text { text, answers }))
    }

    /// The answers that each further turn adds to the text.
    fn render_steps(&self, template: &ChatTemplate) -> Result<Text, RowProblem> {
        let mut text = String::new();
        let mut answers = Vec::new();
        for turn in (0..self.messages.len()).filter(|&turn| self.is_learned(turn)) {
            let before = self.written(template, turn, true)?.text;
            let with = self.written(template, turn + 1, false)?.text;
            if !before.starts_with(&text) || !with.starts_with(&before) {
                return Err(RowProblem::ChatTemplate(
                    "it writes earlier turns differently once later ones follow".to_owned(),
                ));
            }
            answers.push(before.len()..with.len());
            text = with;
        }
        Ok(Text { text, answers })
    }

    fn is_learned(&self, turn: usize) -> bool {
        turn >= self.learn_from && is_answer(&self.messages[turn])
    }

    fn written(
        &self,
        template: &ChatTemplate,
        turns: usize,
        ask: bool,
    ) -> Result<Rendered, RowProblem> {
        let options = RenderOptions {
            add_generation_prompt: ask,
            tools: self.tools.cloned(),
            ..RenderOptions::default()
        };
        template
            .render_with(&self.messages[..turns], &options)
            .map_err(|error| RowProblem::ChatTemplate(error.to_string()))
    }
}

impl Text {
    /// The text before the answer, and the answer, of a conversation with one answer at its end.
    pub(super) fn split(self) -> Result<(String, String), RowProblem> {
        let [answer] = &self.answers[..] else {
            return Err(RowProblem::NoAnswer);
        };
        let (before, said) = self.text.split_at(answer.start);
        Ok((before.to_owned(), said[..answer.len()].to_owned()))
    }

    /// Ids of the text and the tokens of each answer. The text is tokenized at once if answers
    /// begin and end between two tokens, else piece by piece.
    pub(super) fn tokenize(
        &self,
        encode: impl Fn(&str) -> Result<Vec<u32>, RowProblem>,
    ) -> Result<(Vec<u32>, Vec<Range<usize>>), RowProblem> {
        let whole = encode(&self.text)?;
        let mut labels = Vec::with_capacity(self.answers.len());
        for answer in &self.answers {
            let before = encode(&self.text[..answer.start])?;
            let end = match answer.end == self.text.len() {
                true => Some(whole.len()),
                false => prefix(&whole, &encode(&self.text[..answer.end])?),
            };
            let (Some(start), Some(end)) = (prefix(&whole, &before), end) else {
                return self.tokenize_pieces(encode);
            };
            labels.push(start..end);
        }
        Ok((whole, labels))
    }

    fn tokenize_pieces(
        &self,
        encode: impl Fn(&str) -> Result<Vec<u32>, RowProblem>,
    ) -> Result<(Vec<u32>, Vec<Range<usize>>), RowProblem> {
        let (mut ids, mut labels, mut at) = (Vec::new(), Vec::new(), 0);
        for answer in &self.answers {
            ids.extend(encode(&self.text[at..answer.start])?);
            let start = ids.len();
            ids.extend(encode(&self.text[answer.clone()])?);
            labels.push(start..ids.len());
            at = answer.end;
        }
        Ok((ids, labels))
    }
}

/// How long `start` is, if `whole` starts with it.
fn prefix(whole: &[u32], start: &[u32]) -> Option<usize> {
    whole.starts_with(start).then_some(start.len())
}
