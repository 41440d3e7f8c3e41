//! What a model is asked, as it reads it, and the key of its reply.

use fedllm_client::{Base, RowProblem, Template, TemplateError, TemplateName};
use fedllm_models::Message;
use fedllm_models::eval::{
    Ask, ContinuationScore, Engine, Item, Job, Pair, Reply, Writing, Written,
};
use fedllm_models::generate::Sampling;
use fedllm_shared::Digest;
use thiserror::Error;

/// A question with all that stands before it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Asked {
    /// How probable is each continuation of its beginning?
    Probable {
        /// Beginnings, one or as many as continuations.
        beginnings: Vec<String>,
        /// Continuations, one or as many as beginnings.
        continuations: Vec<String>,
    },
    /// How probable is all of this?
    Read(String),
    /// Continue this.
    Continue {
        /// The text.
        prompt: String,
        /// Whether the tokenizer begins it.
        add_special: bool,
        /// How.
        writing: Writing,
    },
    /// Answer each of the user's turns.
    Converse {
        /// The turns.
        turns: Vec<String>,
        /// The template around them.
        template: Digest,
        /// How.
        writing: Writing,
    },
}

/// The templates that questions are put in.
pub(crate) struct Templates<'a> {
    /// Around what is asked in writing.
    pub(crate) writing: Template<'a>,
    /// Around conversations.
    pub(crate) conversation: Template<'a>,
}

/// Why a question cannot be put.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum AskError {
    /// The template refuses it.
    #[error("the template {template} cannot write {id}: {problem}")]
    Template {
        /// The template.
        template: TemplateName,
        /// The question.
        id: String,
        /// Why.
        problem: RowProblem,
    },
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] fedllm_models::TokenizerError),
}

impl<'a> Templates<'a> {
    /// The template that is asked for, or none around writing; around conversations one that has
    /// turns, the model's own if it has one.
    pub(crate) fn new(name: Option<TemplateName>, base: &'a Base) -> Result<Self, TemplateError> {
        let bind = |name| Template::new(name, base.tokenizer(), base.chat());
        let conversation = match (name, base.chat()) {
            (Some(TemplateName::Plain) | None, Some(_)) => TemplateName::Chat,
            (Some(TemplateName::Plain) | None, None) => TemplateName::Vicuna,
            (Some(name), _) => name,
        };
        Ok(Self {
            writing: bind(name.unwrap_or(TemplateName::Plain))?,
            conversation: bind(conversation)?,
        })
    }
}

impl Asked {
    /// A question as a model reads it, `before` in front of it.
    pub(crate) fn new(
        item: &Item,
        before: &str,
        templates: &Templates<'_>,
    ) -> Result<Self, AskError> {
        let prompt = format!("{before}{}", item.prompt);
        Ok(match &item.ask {
            Ask::Choose(choices) => Self::Probable {
                beginnings: vec![prompt],
                continuations: choices.clone(),
            },
            Ask::Fill { beginnings, rest } => Self::Probable {
                beginnings: beginnings.iter().map(|b| format!("{before}{b}")).collect(),
                continuations: vec![rest.clone()],
            },
            Ask::Read => Self::Read(prompt),
            Ask::Write(writing) => Self::Continue {
                prompt: write(
                    &templates.writing,
                    &item.id,
                    &[Message::new("user", prompt)],
                )?,
                add_special: templates.writing.name() != TemplateName::Chat,
                writing: *writing,
            },
            Ask::Converse { turns, writing } => Self::Converse {
                turns: [prompt].into_iter().chain(turns.iter().cloned()).collect(),
                template: templates.conversation.digest(),
                writing: *writing,
            },
        })
    }

    /// Names the reply of a system to this question: the same key is the same reply. `system` names
    /// the model with all that its replies depend on.
    pub(crate) fn key(&self, system: &Digest) -> Digest {
        let mut key = Key::new(system);
        match self {
            Self::Probable {
                beginnings,
                continuations,
            } => {
                key.part("probable");
                key.parts(beginnings);
                key.parts(continuations);
            }
            Self::Read(text) => {
                key.part("read");
                key.part(text);
            }
            Self::Continue {
                prompt,
                add_special,
                writing,
            } => {
                key.part("continue");
                key.part(prompt);
                key.part(&add_special.to_string());
                key.writing(writing);
            }
            Self::Converse {
                turns,
                template,
                writing,
            } => {
                key.part("converse");
                key.part(&template.to_string());
                key.parts(turns);
                key.writing(writing);
            }
        }
        Digest(key.0.finalize().into())
    }

    fn pairs(&self) -> impl Iterator<Item = Pair<'_>> {
        let (beginnings, continuations) = match self {
            Self::Probable {
                beginnings,
                continuations,
            } => (&beginnings[..], &continuations[..]),
            _ => (&[][..], &[][..]),
        };
        let count = match beginnings.is_empty() || continuations.is_empty() {
            true => 0,
            false => beginnings.len().max(continuations.len()),
        };
        (0..count).map(move |i| Pair {
            context: &beginnings[i.min(beginnings.len() - 1)],
            continuation: &continuations[i.min(continuations.len() - 1)],
        })
    }
}

/// Asks all of these; `done` is told each reply with its number as soon as it is known.
pub(crate) fn ask(
    engine: &Engine<'_>,
    templates: &Templates<'_>,
    asked: &[(&str, &Asked)],
    mut done: impl FnMut(usize, Reply),
) -> Result<(), AskError> {
    score(engine, asked, &mut done)?;
    read(engine, asked, &mut done)?;
    continue_all(engine, asked, &mut done)?;
    converse(engine, templates, asked, &mut done)
}

type Done<'a> = &'a mut dyn FnMut(usize, Reply);

fn score(engine: &Engine<'_>, asked: &[(&str, &Asked)], done: Done<'_>) -> Result<(), AskError> {
    let (mut pairs, mut owners, mut replies) = (Vec::new(), Vec::new(), Vec::new());
    for (number, (_, asked)) in asked.iter().enumerate() {
        let first = pairs.len();
        pairs.extend(asked.pairs());
        owners.extend((first..pairs.len()).map(|pair| (number, pair - first)));
        replies.push(vec![None; pairs.len() - first]);
    }
    engine.score(&pairs, |pair, score| {
        let (number, place) = owners[pair];
        let scores: &mut Vec<Option<ContinuationScore>> = &mut replies[number];
        scores[place] = Some(score);
        if let Some(scores) = scores.iter().copied().collect() {
            done(number, Reply::Scores(scores));
        }
    })?;
    Ok(())
}

fn read(engine: &Engine<'_>, asked: &[(&str, &Asked)], done: Done<'_>) -> Result<(), AskError> {
    let texts = asked.iter().enumerate().filter_map(|(i, (_, asked))| {
        let Asked::Read(text) = asked else {
            return None;
        };
        Some((i, text.as_str()))
    });
    let (numbers, texts): (Vec<usize>, Vec<&str>) = texts.unzip();
    engine.read(&texts, |i, score| {
        done(numbers[i], Reply::Scores(vec![score]));
    })?;
    Ok(())
}

fn continue_all(
    engine: &Engine<'_>,
    asked: &[(&str, &Asked)],
    done: Done<'_>,
) -> Result<(), AskError> {
    let jobs = asked.iter().enumerate().filter_map(|(i, (_, asked))| {
        let Asked::Continue {
            prompt,
            add_special,
            writing,
        } = asked
        else {
            return None;
        };
        Some((i, job(prompt, *add_special, writing)))
    });
    let (numbers, jobs): (Vec<usize>, Vec<Job<'_>>) = jobs.unzip();
    engine.write(&jobs, |i, written| {
        done(numbers[i], Reply::Texts(vec![written.text]));
    })?;
    Ok(())
}

/// Turn by turn, all conversations at once.
fn converse(
    engine: &Engine<'_>,
    templates: &Templates<'_>,
    asked: &[(&str, &Asked)],
    done: Done<'_>,
) -> Result<(), AskError> {
    let mut open: Vec<Conversation<'_>> = Vec::new();
    for (number, (id, asked)) in asked.iter().enumerate() {
        if let Asked::Converse { turns, writing, .. } = asked {
            open.push(Conversation {
                number,
                id,
                turns,
                writing,
                said: Vec::new(),
                replies: Vec::new(),
            });
        }
    }
    while !open.is_empty() {
        let mut prompts = Vec::new();
        for conversation in &mut open {
            let turn = &conversation.turns[conversation.replies.len()];
            conversation.said.push(Message::new("user", turn));
            let (id, said) = (conversation.id, &conversation.said);
            prompts.push(write(&templates.conversation, id, said)?);
        }
        let add_special = templates.conversation.name() != TemplateName::Chat;
        let jobs: Vec<Job<'_>> = open
            .iter()
            .zip(&prompts)
            .map(|(conversation, prompt)| job(prompt, add_special, conversation.writing))
            .collect();
        let mut answers: Vec<(usize, Written)> = Vec::new();
        engine.write(&jobs, |i, written| answers.push((i, written)))?;
        for (i, written) in answers {
            let conversation = &mut open[i];
            let text = written.text.trim().to_owned();
            conversation.said.push(Message::new("assistant", &text));
            conversation.replies.push(text);
        }
        open.retain_mut(|conversation| {
            let is_over = conversation.replies.len() == conversation.turns.len();
            if is_over {
                let replies = std::mem::take(&mut conversation.replies);
                done(conversation.number, Reply::Texts(replies));
            }
            !is_over
        });
    }
    Ok(())
}

struct Conversation<'a> {
    number: usize,
    id: &'a str,
    turns: &'a [String],
    writing: &'a Writing,
    said: Vec<Message>,
    replies: Vec<String>,
}

fn write(template: &Template<'_>, id: &str, turns: &[Message]) -> Result<String, AskError> {
    template
        .prompt(turns)
        .map_err(|problem| AskError::Template {
            template: template.name(),
            id: id.to_owned(),
            problem,
        })
}

fn job<'a>(prompt: &'a str, add_special: bool, writing: &'a Writing) -> Job<'a> {
    Job {
        prompt,
        add_special,
        max_tokens: writing.max_tokens,
        stop: writing.stop,
        sampling: writing.sampling,
    }
}

/// A hash of parts that cannot run into each other.
struct Key(blake3::Hasher);

impl Key {
    fn new(system: &Digest) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("fedllm 1 evaluation replies");
        hasher.update(&system.0);
        Self(hasher)
    }

    fn part(&mut self, part: &str) {
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part.as_bytes());
    }

    fn parts<S: AsRef<str>>(&mut self, parts: &[S]) {
        self.0.update(&(parts.len() as u64).to_le_bytes());
        parts.iter().for_each(|part| self.part(part.as_ref()));
    }

    fn writing(&mut self, writing: &Writing) {
        self.part(&writing.max_tokens.to_string());
        self.parts(writing.stop);
        self.part(&match writing.sampling {
            Sampling::Greedy => "greedy".to_owned(),
            Sampling::Nucleus {
                temperature,
                top_p,
                seed,
            } => format!("nucleus {temperature} {top_p} {seed}"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn probable(beginnings: &[&str], continuations: &[&str]) -> Asked {
        Asked::Probable {
            beginnings: texts(beginnings),
            continuations: texts(continuations),
        }
    }

    #[test]
    fn what_all_have_in_common_is_in_every_pair() {
        let pairs = |asked: &Asked| -> Vec<String> {
            let pairs = asked.pairs();
            pairs
                .map(|pair| format!("{}|{}", pair.context, pair.continuation))
                .collect()
        };
        assert_eq!(pairs(&probable(&["q"], &[" a", " b"])), ["q| a", "q| b"]);
        assert_eq!(
            pairs(&probable(&["he", "she"], &[" is"])),
            ["he| is", "she| is"]
        );
        assert!(pairs(&probable(&["q"], &[])).is_empty());
        assert!(pairs(&Asked::Read("q".to_owned())).is_empty());
    }

    #[test]
    fn a_key_changes_with_all_that_a_reply_depends_on() {
        let (system, other) = (Digest::of(b"base"), Digest::of(b"adapter"));
        let greedy = Writing::greedy(8, &["\n"]);
        let sampled = Writing {
            sampling: Sampling::Nucleus {
                temperature: 0.7,
                top_p: 1.0,
                seed: 1,
            },
            ..greedy
        };
        let written = |prompt: &str, add_special, writing| Asked::Continue {
            prompt: prompt.to_owned(),
            add_special,
            writing,
        };
        let converse = |turns: &[&str], template| Asked::Converse {
            turns: texts(turns),
            template,
            writing: greedy,
        };
        let asked = [
            probable(&["q"], &[" a", " b"]),
            probable(&["q"], &[" a b"]),
            probable(&["q", " a"], &[" b"]),
            probable(&["q a"], &[" b"]),
            Asked::Read("q".to_owned()),
            written("q", true, greedy),
            written("q", false, greedy),
            written("q", true, sampled),
            written("q", true, Writing::greedy(9, &["\n"])),
            written("q", true, Writing::greedy(8, &["\n", "Q:"])),
            converse(&["q"], system),
            converse(&["q"], other),
            converse(&["q", "r"], system),
        ];
        let keys = asked.iter().flat_map(|a| [a.key(&system), a.key(&other)]);
        let keys: std::collections::BTreeSet<Digest> = keys.collect();
        assert_eq!(keys.len(), 2 * asked.len());
        assert_eq!(asked[0].key(&system), asked[0].clone().key(&system));
    }
}
