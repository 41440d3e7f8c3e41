//! Questions with choices, in the layouts that data sets write them in.

use serde_json::Value;

use super::choose::LETTERS;
use super::row::{choice, text};
use super::{ItemError, Row};

/// A question and its choices.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// What is asked.
    pub(super) text: String,
    /// What can be answered, two to ten of them.
    pub(super) choices: Vec<String>,
    /// The right choice.
    pub(super) right: usize,
}

impl Question {
    fn new(text: String, choices: Vec<String>, right: usize) -> Self {
        Self {
            text,
            choices,
            right,
        }
    }
}

/// A question of ARC or OpenBookQA: as the hub has it (texts and labels apart, the question in
/// `field`), as its authors have it (an object of `stem` and `choices`), or [rewritten].
pub(super) fn science(row: &Row<'_>, field: &'static str) -> Result<Question, ItemError> {
    if let Some(question) = rewritten(row) {
        return question;
    }
    let (stem, choices, labels) = match row.fields.get("question") {
        Some(Value::Object(_)) => {
            let question = row.within("question")?;
            let part = |name| parts(&question, "choices", name);
            (question.text("stem")?, part("text")?, part("label")?)
        }
        _ => {
            let choices = row.within("choices")?;
            let (texts, labels) = (choices.texts("text")?, choices.texts("label")?);
            (row.text(field)?, texts, labels)
        }
    };
    let key = row.text("answerKey")?;
    let right = labels.iter().position(|label| label == key.trim());
    let right = right
        .filter(|right| *right < choices.len())
        .ok_or(ItemError::Value {
            field: "answerKey",
            got: key,
            expected: "the label of a choice",
        })?;
    Ok(Question::new(stem, checked(choices, "choices")?, right))
}

/// A question as LLM-Adapters (Hu et al. 2023, arXiv 2304.01933) rewrites those of several sets: an
/// instruction with `Answer1:`, `Solution1:` or `Option1:` before the choices, and such a word as
/// `answer`. None if the row is no such thing.
pub(super) fn rewritten(row: &Row<'_>) -> Option<Result<Question, ItemError>> {
    let is_rewritten = row.has("instruction") && row.has("answer");
    is_rewritten.then(|| {
        let instruction = row.text("instruction")?;
        let answer = row.text("answer")?;
        let wrong = |field, got: &str, expected| ItemError::Value {
            field,
            got: got.chars().take(40).collect(),
            expected,
        };
        let expected = "a question, `Answer1:` and so on, and `Answer format:`";
        let instruction_is_wrong = || wrong("instruction", &instruction, expected);
        let kind = answer.trim_end_matches(|c: char| c.is_ascii_digit());
        let (before, _) = instruction
            .rsplit_once("Answer format:")
            .ok_or_else(instruction_is_wrong)?;
        let (_, asked) = before.split_once(": ").ok_or_else(instruction_is_wrong)?;
        let (question, choices) = cut(asked, kind);
        let number = answer[kind.len()..].parse::<usize>().ok();
        let right = number.and_then(|number| number.checked_sub(1));
        let right = right
            .filter(|right| *right < choices.len())
            .ok_or_else(|| wrong("answer", &answer, "a word of the answer format"))?;
        let choices = checked(choices, "instruction")?;
        Ok(Question::new(question, choices, right))
    })
}

/// Cuts a text before `Kind1: `, `Kind2: ` and so on.
fn cut(asked: &str, kind: &str) -> (String, Vec<String>) {
    let mut kind = kind.to_owned();
    if let Some(first) = kind.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let mut parts = Vec::new();
    let mut rest = asked;
    for number in 1..=LETTERS.len() {
        let Some((part, after)) = rest.split_once(&format!("{kind}{number}: ")) else {
            break;
        };
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    // What stands between two parts: an empty line, or a space. White space beyond that is theirs.
    let between = ["\n\n", " "];
    let part = |part: &str| {
        let stripped = between.iter().find_map(|end| part.strip_suffix(end));
        stripped.unwrap_or(part).to_owned()
    };
    let mut parts = parts.into_iter().map(part);
    (parts.next().unwrap_or_default(), parts.collect())
}

/// Choices that are an object of letters, or a list of texts or of objects with a `value`.
pub(super) fn options(row: &Row<'_>, field: &'static str) -> Result<Vec<String>, ItemError> {
    let options = match row.field(field)? {
        Value::Object(_) => {
            let options = row.within(field)?;
            let mut letters: Vec<(&String, &Value)> = options.fields.iter().collect();
            letters.sort_by_key(|(letter, _)| *letter);
            letters
                .iter()
                .map(|(_, value)| text(value, field))
                .collect()
        }
        Value::Array(values) if values.iter().all(Value::is_object) => parts(row, field, "value"),
        _ => row.texts(field),
    };
    checked(options?, field)
}

/// A question whose choices are in these fields.
pub(super) fn fields(
    row: &Row<'_>,
    question: &'static str,
    choices: &[&'static str],
    right: usize,
) -> Result<Question, ItemError> {
    let texts: Result<Vec<String>, _> = choices.iter().map(|field| row.text(field)).collect();
    Ok(Question::new(row.text(question)?, texts?, right))
}

/// A question with `options` and the letter of one in `answer`.
pub(super) fn with_options(
    row: &Row<'_>,
    question: &'static str,
    answer: &'static str,
) -> Result<Question, ItemError> {
    let choices = options(row, "options")?;
    let right = choice(&row.text(answer)?, choices.len(), answer)?;
    Ok(Question::new(row.text(question)?, choices, right))
}

/// What each object of a list has in a field.
fn parts(row: &Row<'_>, list: &'static str, field: &'static str) -> Result<Vec<String>, ItemError> {
    let expected = "a list of objects";
    let wrong = || ItemError::Kind {
        field: list,
        expected,
    };
    let values = row.field(list)?.as_array().ok_or_else(wrong)?;
    let part = |value: &Value| match value {
        Value::Object(fields) => Row { fields, ..*row }.text(field),
        _ => Err(wrong()),
    };
    values.iter().map(part).collect()
}

fn checked(choices: Vec<String>, field: &'static str) -> Result<Vec<String>, ItemError> {
    match choices.len() {
        2..=10 => Ok(choices),
        _ => Err(ItemError::Kind {
            field,
            expected: "two to ten choices",
        }),
    }
}
