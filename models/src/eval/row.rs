//! What a row's fields say.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{Beside, ItemError, Row};

impl Row<'_> {
    /// Whether the row has a field.
    pub fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// A field that has to be there.
    ///
    /// # Errors
    ///
    /// [`ItemError::Missing`].
    pub fn field(&self, field: &'static str) -> Result<&Value, ItemError> {
        let missing = || ItemError::Missing {
            field,
            has: self.fields.keys().take(20).cloned().collect(),
        };
        self.fields.get(field).ok_or_else(missing)
    }

    /// A text; numbers and truth values are texts too.
    ///
    /// # Errors
    ///
    /// [`ItemError::Missing`], [`ItemError::Kind`].
    pub fn text(&self, field: &'static str) -> Result<String, ItemError> {
        text(self.field(field)?, field)
    }

    /// The first of these fields that is there, as a text: the same thing is called differently in
    /// copies of a data set.
    ///
    /// # Errors
    ///
    /// [`ItemError::Missing`] names the first; [`ItemError::Kind`].
    pub fn text_of(&self, fields: &[&'static str]) -> Result<String, ItemError> {
        let found = fields.iter().find(|field| self.has(field));
        self.text(found.or(fields.first()).copied().unwrap_or_default())
    }

    /// A list of texts.
    ///
    /// # Errors
    ///
    /// [`ItemError::Missing`], [`ItemError::Kind`].
    pub fn texts(&self, field: &'static str) -> Result<Vec<String>, ItemError> {
        let Value::Array(values) = self.field(field)? else {
            let expected = "a list of texts";
            return Err(ItemError::Kind { field, expected });
        };
        values.iter().map(|value| text(value, field)).collect()
    }

    /// A whole number, written as a number or as a text.
    ///
    /// # Errors
    ///
    /// [`ItemError::Missing`], [`ItemError::Kind`].
    pub fn number(&self, field: &'static str) -> Result<usize, ItemError> {
        let expected = "a whole number";
        let number = self.text(field)?.trim().parse();
        number.map_err(|_| ItemError::Kind { field, expected })
    }

    /// The object in a field, as a row.
    ///
    /// # Errors
    ///
    /// [`ItemError::Missing`], [`ItemError::Kind`].
    pub fn within(&self, field: &'static str) -> Result<Row<'_>, ItemError> {
        let Value::Object(fields) = self.field(field)? else {
            let expected = "an object";
            return Err(ItemError::Kind { field, expected });
        };
        Ok(Row { fields, ..*self })
    }

    /// Names the row in its file: what the file's object calls it, or else its number.
    pub fn id(&self) -> String {
        let number = || self.index.to_string();
        self.key.map_or_else(number, str::to_owned)
    }

    /// The file's name without its ending: `astronomy_test` of `mmlu/test/astronomy_test.csv`.
    pub fn stem(&self) -> &str {
        let name = self.path.file_name().and_then(|name| name.to_str());
        let name = name.unwrap_or_default();
        name.split('.').next().unwrap_or_default()
    }

    /// The directory that holds the file.
    pub fn folder(&self) -> &str {
        let folder = self.path.parent().and_then(|parent| parent.file_name());
        folder.and_then(|name| name.to_str()).unwrap_or_default()
    }
}

impl Beside {
    /// Gives a row the fields that it lacks, from that one of `others` whose field
    /// [`by`](Self::by) is the same.
    ///
    /// ```
    /// use fedllm_models::eval::Beside;
    /// use fedllm_shared::Files;
    /// # use serde_json::{Map, Value, json};
    /// # fn fields(value: Value) -> Map<String, Value> { value.as_object().unwrap().clone() }
    ///
    /// let files = Files::AnyOf(&["answers.jsonl"]);
    /// let beside = Beside { files, by: "question_id" };
    /// let answers = [json!({"question_id": 101, "choices": []}), json!({"question_id": 102})];
    /// let answers = beside.named(answers.map(fields));
    /// let mut question = fields(json!({"question_id": 101, "turns": []}));
    /// beside.complete(&mut question, &answers);
    /// assert!(question.contains_key("choices"));
    /// ```
    pub fn complete(
        &self,
        row: &mut Map<String, Value>,
        others: &HashMap<String, Map<String, Value>>,
    ) {
        let name = row.get(self.by).map(Value::to_string);
        let Some(other) = name.and_then(|name| others.get(&name)) else {
            return;
        };
        for (field, value) in other {
            if !row.contains_key(field) {
                row.insert(field.clone(), value.clone());
            }
        }
    }

    /// Rows by what [`complete`](Self::complete) finds them by.
    pub fn named(
        &self,
        rows: impl IntoIterator<Item = Map<String, Value>>,
    ) -> HashMap<String, Map<String, Value>> {
        let rows = rows.into_iter();
        rows.filter_map(|row| Some((row.get(self.by)?.to_string(), row)))
            .collect()
    }
}

/// A value as a text.
///
/// # Errors
///
/// [`ItemError::Kind`] of anything but texts, numbers and truth values.
pub(super) fn text(value: &Value, field: &'static str) -> Result<String, ItemError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        _ => Err(ItemError::Kind {
            field,
            expected: "a text",
        }),
    }
}

/// The number of a choice: a letter from `A` on, or a number from 0 on.
///
/// # Errors
///
/// [`ItemError::Value`] of anything else, or if there are not so many choices.
pub(super) fn choice(got: &str, choices: usize, field: &'static str) -> Result<usize, ItemError> {
    let got = got.trim();
    let number = match got.as_bytes() {
        [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
        [letter @ b'a'..=b'z'] => Some(usize::from(letter - b'a')),
        _ => got.parse().ok(),
    };
    number
        .filter(|number| *number < choices)
        .ok_or_else(|| ItemError::Value {
            field,
            got: got.chars().take(40).collect(),
            expected: "the letter or the number of a choice",
        })
}
