//! Prompts that a model answers.

use fedllm_models::template::Message;

use super::{ALPACA, Template, TemplateName};
use crate::readers::{Prompt, RowProblem};

impl Template<'_> {
    /// The text of a conversation up to where the assistant answers: a row of this conversation and
    /// its answer begins like that. `chat` writes the special tokens that begin a text itself, and
    /// the others leave them to the tokenizer.
    ///
    /// # Errors
    ///
    /// [`RowProblem`] if the template cannot write this conversation.
    pub fn prompt(&self, turns: &[Message]) -> Result<String, RowProblem> {
        let prompt = || Prompt::Messages(turns.to_vec());
        match (self.name, self.chat) {
            (TemplateName::Alpaca, _) => Ok(ALPACA.prompt(self.question(&prompt())?)),
            (TemplateName::Vicuna, _) => self.vicuna(turns, false),
            (TemplateName::Plain, _) => Ok(self.question(&prompt())?.to_owned()),
            (TemplateName::Chat, Some(chat)) => chat
                .render(turns, true)
                .map_err(|error| RowProblem::ChatTemplate(error.to_string())),
            (TemplateName::Chat, None) => {
                Err(RowProblem::ChatTemplate("the model has none".to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::tests::{CHATML, tokenizer};
    use fedllm_models::template::ChatTemplate;

    #[test]
    fn a_prompt_is_what_learned_rows_begin_with() {
        let tokenizer = tokenizer();
        let chat = ChatTemplate::new(CHATML, "<|im_start|>", "<|im_end|>").unwrap();
        let turns = |count| {
            let all = [("user", "a"), ("assistant", "b"), ("user", "c")];
            let turns = all[..count].iter();
            turns
                .map(|(role, text)| Message::new(*role, *text))
                .collect::<Vec<_>>()
        };
        let prompt = |name, count: usize| {
            let template = Template::new(name, &tokenizer, Some(&chat)).unwrap();
            template.prompt(&turns(count))
        };
        assert_eq!(prompt(TemplateName::Plain, 1).unwrap(), "a");
        assert!(
            prompt(TemplateName::Alpaca, 1)
                .unwrap()
                .ends_with("### Instruction:\na \n\n### Response:")
        );
        let vicuna = prompt(TemplateName::Vicuna, 3).unwrap();
        assert!(
            vicuna.ends_with("USER: a ASSISTANT: b<|im_end|>USER: c ASSISTANT:"),
            "{vicuna}"
        );
        let text = prompt(TemplateName::Chat, 3).unwrap();
        assert!(
            text.ends_with("b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"),
            "{text}"
        );
        let refused = prompt(TemplateName::Alpaca, 3).unwrap_err();
        assert!(matches!(refused, RowProblem::NotForTemplate { .. }));
    }
}
