//! Chat templates: conversations to the text that a model was trained on.

mod clock;
mod json;

use std::ops::Range;
use std::time::SystemTime;

use fedllm_shared::Digest;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Anything else that the template may read, such as `tool_calls`.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A turn of `role`, saying `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            extra: serde_json::Map::new(),
        }
    }
}

/// What a template may be given besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// End with the beginning of the assistant's next turn.
    pub add_generation_prompt: bool,
    /// Descriptions of tools, as JSON schemas.
    pub tools: Option<serde_json::Value>,
    /// Further variables, such as `enable_thinking`.
    pub variables: serde_json::Map<String, serde_json::Value>,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text. Templates write the beginning of the text themselves, so encode it
    /// without adding special tokens.
    pub text: String,
    /// Bytes of the text inside `{% generation %}` blocks; empty if there are none.
    pub generation: Vec<Range<usize>>,
}

/// A model's chat template, in the dialect of Jinja that transformers uses.
///
/// A template comes with a model and so from strangers: it can do nothing but compute
/// text, and only so much of it.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    bos: String,
    eos: String,
    environment: Environment<'static>,
}

/// A template that cannot be used, or refuses what it was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is no Jinja that we understand.
    #[error("the chat template cannot be parsed: {0}")]
    Syntax(String),
    /// The template itself rejects the conversation.
    #[error("the chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template fails.
    #[error("the chat template fails: {0}")]
    Failed(String),
    /// The template computes for too long.
    #[error("the chat template does more than {FUEL} steps of work")]
    TooExpensive,
}

const NAME: &str = "chat_template";
const MARK: &str = "generation_mark";
/// About a second of work; a long conversation takes a hundredth of it.
const FUEL: u64 = 20_000_000;

impl ChatTemplate {
    /// Parses `source`; `bos` and `eos` are what it prints as beginning and end of text.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Syntax`] with the line.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let mut environment = environment();
        environment
            .add_template_owned(NAME, generation_as_filter(source))
            .map_err(|e| TemplateError::Syntax(message(&e)))?;
        let mut template = Self {
            source: source.to_owned(),
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            environment,
        };
        template.set_clock(SystemTime::now);
        Ok(template)
    }

    /// The template's text, as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template says which parts the assistant generates.
    pub fn marks_generation(&self) -> bool {
        tags(&self.source).any(|tag| tag.word == "generation")
    }

    /// Makes `strftime_now` read `clock`, in UTC, instead of the system's.
    pub fn set_clock(&mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) {
        self.environment
            .add_function("strftime_now", move |format: String| {
                clock::format(clock(), &format)
            });
    }

    /// The text of `messages`.
    ///
    /// # Errors
    ///
    /// [`TemplateError`] if the template refuses or fails.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let options = RenderOptions {
            add_generation_prompt,
            ..RenderOptions::default()
        };
        self.render_with(messages, &options).map(|r| r.text)
    }

    /// The text of `messages`, and which of it the assistant generates.
    ///
    /// # Errors
    ///
    /// [`TemplateError`] if the template refuses or fails.
    pub fn render_with(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<Rendered, TemplateError> {
        let (begin, end) = unused_marks(messages, options)?;
        let mut environment = self.environment.clone();
        environment.add_filter(MARK, move |text: String| format!("{begin}{text}{end}"));
        let template = environment.get_template(NAME).map_err(failed)?;
        let variables = Value::from(Serde(&options.variables));
        let context = context! {
            messages => Value::from(Serde(messages)),
            tools => Value::from(Serde(&options.tools)),
            documents => (),
            add_generation_prompt => options.add_generation_prompt,
            bos_token => self.bos.clone(),
            eos_token => self.eos.clone(),
            ..variables
        };
        let marked = template.render(context).map_err(failed)?;
        Ok(unmark(&marked, begin, end))
    }

    /// Names this template: a BLAKE3 hash of its text and of the two tokens it prints.
    pub fn fingerprint(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"fedllm chat template 1\n");
        for part in [&self.source, &self.bos, &self.eos] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Digest(hasher.finalize().into())
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    // Jinja's own delimiters are always a valid syntax.
    if let Ok(syntax) = syntax {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, state, value| {
        match value.is_none().then_some("None").or(truth(value)) {
            Some(word) => out.write_str(word).map_err(Error::from),
            None => minijinja::escape_formatter(out, state, value),
        }
    });
    environment.set_fuel(Some(FUEL));
    environment.add_function("raise_exception", raise);
    environment.add_filter(MARK, |text: String| text);
    environment.add_filter("tojson", |value: Value, options: Kwargs| {
        json::python(&value, &options)
    });
    environment
}

/// How Python prints a truth value.
fn truth(value: &Value) -> Option<&'static str> {
    if value.kind() != minijinja::value::ValueKind::Bool {
        return None;
    }
    Some(if value.is_true() { "True" } else { "False" })
}

/// What a template says when it refuses.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

fn failed(error: Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return TemplateError::Refused(message.clone());
        }
        if let Some(inner) = inner.downcast_ref::<Error>()
            && inner.kind() == ErrorKind::OutOfFuel
        {
            return TemplateError::TooExpensive;
        }
        cause = inner.source();
    }
    TemplateError::Failed(message(&error))
}

fn message(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// `{% generation %}` is no Jinja. A filter block captures its content just so.
fn generation_as_filter(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut copied = 0;
    for tag in tags(source) {
        let replacement = match tag.word {
            "generation" => format!("filter {MARK}"),
            "endgeneration" => "endfilter".to_owned(),
            _ => continue,
        };
        out.push_str(&source[copied..tag.at]);
        out.push_str(&replacement);
        copied = tag.at + tag.word.len();
    }
    out.push_str(&source[copied..]);
    out
}

/// A block tag of a single word.
struct Tag<'a> {
    word: &'a str,
    at: usize,
}

fn tags(source: &str) -> impl Iterator<Item = Tag<'_>> {
    source.match_indices("{%").filter_map(|(open, _)| {
        let inside = &source[open + 2..];
        let inside = &inside[..inside.find("%}")?];
        let word = inside
            .trim_start_matches(['-', '+'])
            .trim_end_matches(['-', '+'])
            .trim();
        let at = open + 2 + inside.find(word)?;
        Some(Tag { word, at })
    })
}

/// Two characters that are no text and that nothing here contains.
fn unused_marks(
    messages: &[Message],
    options: &RenderOptions,
) -> Result<(char, char), TemplateError> {
    let given = serde_json::to_string(&(messages, &options.tools, &options.variables))
        .map_err(|e| TemplateError::Failed(e.to_string()))?;
    let mut free = ('\u{fdd0}'..='\u{fdef}').filter(|mark| !given.contains(*mark));
    match (free.next(), free.next()) {
        (Some(begin), Some(end)) => Ok((begin, end)),
        _ => Err(TemplateError::Failed(
            "the conversation uses every character that Unicode sets aside".to_owned(),
        )),
    }
}

fn unmark(marked: &str, begin: char, end: char) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let mut generation = Vec::new();
    let mut start = 0;
    for c in marked.chars() {
        if c == begin {
            start = text.len();
        } else if c == end {
            generation.push(start..text.len());
        } else {
            text.push(c);
        }
    }
    Rendered { text, generation }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
        ChatTemplate::new(source, "<s>", "</s>")?.render(messages, false)
    }

    #[test]
    fn blocks_leave_no_lines_of_their_own() {
        let source = "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n{{ eos_token }}";
        let messages = [Message::new("user", "a"), Message::new("user", "b")];
        assert_eq!(render(source, &messages).unwrap(), "a\nb\n</s>");
    }

    #[test]
    fn python_methods_values_and_json_work() {
        let source = "{{ messages[0].content.strip().split(' ')[1].upper() }} {{ none }} {{ true }} \
                      {{ {'b': 1, 'a': [1.5, none, 'é\"<']}|tojson }}";
        let messages = [Message::new("user", " x yz ")];
        assert_eq!(
            render(source, &messages).unwrap(),
            "YZ None True {\"b\": 1, \"a\": [1.5, null, \"é\\\"<\"]}"
        );
    }

    #[test]
    fn generation_blocks_become_ranges() {
        let source = "{% for m in messages %}{% if m.role == 'assistant' %}A:\
                      {%- generation -%} {{ m.content }}{{ eos_token }}{% endgeneration %}\
                      {% else %}U:{{ m.content }}{% endif %}\n{% endfor %}";
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        assert!(template.marks_generation());
        let messages = [
            Message::new("user", "q\u{fdd0}"),
            Message::new("assistant", "r"),
            Message::new("assistant", "é"),
        ];
        let rendered = template
            .render_with(&messages, &RenderOptions::default())
            .unwrap();
        let generated: Vec<&str> = rendered
            .generation
            .iter()
            .map(|range| &rendered.text[range.clone()])
            .collect();
        assert_eq!(generated, ["r</s>", "é</s>"]);
        assert!(rendered.text.starts_with("U:q\u{fdd0}"));
    }

    #[test]
    fn refusals_and_endless_work_are_told_apart() {
        let refusal = "{{ raise_exception('roles must alternate') }}";
        assert!(matches!(
            render(refusal, &[]),
            Err(TemplateError::Refused(why)) if why == "roles must alternate"
        ));
        let endless =
            "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(matches!(
            render(endless, &[]),
            Err(TemplateError::TooExpensive)
        ));
        assert!(matches!(
            render("{% if %}", &[]),
            Err(TemplateError::Syntax(_))
        ));
        assert!(matches!(
            render("{{ 1 + 'a' }}", &[]),
            Err(TemplateError::Failed(_))
        ));
    }

    #[test]
    fn the_clock_can_be_set() {
        let mut template = ChatTemplate::new("{{ strftime_now('%d %b %Y') }}", "", "").unwrap();
        template.set_clock(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_709_164_800));
        assert_eq!(template.render(&[], false).unwrap(), "29 Feb 2024");
    }

    #[test]
    fn variables_reach_the_template() {
        let source = "{% if tools %}{{ tools|tojson(indent=2) }}{% endif %}{{ enable_thinking }}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        let mut options = RenderOptions {
            tools: Some(serde_json::json!([{"name": "f", "a": {}}])),
            ..RenderOptions::default()
        };
        options
            .variables
            .insert("enable_thinking".to_owned(), false.into());
        let text = template.render_with(&[], &options).unwrap().text;
        assert_eq!(
            text,
            "[\n  {\n    \"name\": \"f\",\n    \"a\": {}\n  }\n]False"
        );
    }
}
