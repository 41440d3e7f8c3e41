//! The fields of a request, for completions and chats alike, and what they ask for.

use fedllm_models::generate::Sampling;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::chat::ChatMessage;
use super::error::ApiError;
use super::prompts::Prompts;

/// Alternatives to each token at most.
const MOST_ALTERNATIVES: usize = 20;
/// Texts that end an answer, at most, and their length.
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 1024;

/// What a client may send. Fields that are not here are ignored.
#[derive(Deserialize)]
pub(super) struct Fields {
    pub(super) model: Option<String>,
    pub(super) prompt: Option<Prompts>,
    pub(super) messages: Option<Vec<ChatMessage>>,
    pub(super) chat_template_kwargs: Option<Map<String, Value>>,
    pub(super) echo: Option<bool>,
    logprobs: Option<LogProbs>,
    top_logprobs: Option<usize>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<Stop>,
    pub(super) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    // Refused where they ask for anything.
    n: Option<u64>,
    best_of: Option<u64>,
    suffix: Option<String>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logit_bias: Option<Value>,
    tools: Option<Value>,
    functions: Option<Value>,
    response_format: Option<Value>,
}

#[derive(Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// A number for completions, a switch for chats.
#[derive(Clone, Copy, Deserialize)]
#[serde(
    untagged,
    expecting = "`logprobs` is a number for completions, true or false for chats"
)]
enum LogProbs {
    Switch(bool),
    Alternatives(usize),
}

#[derive(Clone, Deserialize)]
#[serde(untagged, expecting = "`stop` is a text or a list of texts")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

impl Fields {
    /// Refuses what cannot be honoured rather than ignore it.
    pub(super) fn check_supported(&self) -> Result<(), ApiError> {
        let asks = |value: &Option<Value>| match value {
            None | Some(Value::Null) => false,
            Some(Value::Object(map)) => !map.is_empty(),
            Some(Value::Array(list)) => !list.is_empty(),
            Some(_) => true,
        };
        let structured = |format: &Value| format["type"] != "text";
        let one = "there is one answer to each prompt";
        let refused = [
            ("n", self.n.is_some_and(|n| n != 1), one),
            ("best_of", self.best_of.is_some_and(|n| n != 1), one),
            (
                "suffix",
                self.suffix.as_ref().is_some_and(|text| !text.is_empty()),
                "the model only writes forwards",
            ),
            (
                "presence_penalty",
                self.presence_penalty.is_some_and(|p| p != 0.0),
                "use temperature and top_p",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty.is_some_and(|p| p != 0.0),
                "use temperature and top_p",
            ),
            (
                "logit_bias",
                asks(&self.logit_bias),
                "the model's own probabilities are used",
            ),
            ("tools", asks(&self.tools), "no tool can be called"),
            (
                "functions",
                asks(&self.functions),
                "no function can be called",
            ),
            (
                "response_format",
                self.response_format.as_ref().is_some_and(structured),
                "answers are plain text",
            ),
        ];
        match refused.into_iter().find(|(_, asked, _)| *asked) {
            Some((field, _, reason)) => Err(ApiError::Unsupported { field, reason }),
            None => Ok(()),
        }
    }

    /// Whether an answer in parts ends with how many tokens were read and written.
    pub(super) fn streams_usage(&self) -> bool {
        let options = self.stream_options.as_ref();
        options
            .and_then(|options| options.include_usage)
            .unwrap_or(false)
    }

    /// How many tokens may be written, if the request says so.
    pub(super) fn max_tokens(&self) -> Option<usize> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// How tokens are chosen: as OpenAI does where nothing is said.
    pub(super) fn sampling(&self) -> Result<Sampling, ApiError> {
        let temperature = self.temperature.unwrap_or(1.0);
        if !(0.0..=2.0).contains(&temperature) {
            let said = format!("`temperature` is {temperature}; it goes from 0 to 2");
            return Err(ApiError::Invalid(said));
        }
        let top_p = self.top_p.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&top_p) {
            let said = format!("`top_p` is {top_p}; it goes from 0 to 1");
            return Err(ApiError::Invalid(said));
        }
        if temperature == 0.0 {
            return Ok(Sampling::Greedy);
        }
        let seed = match self.seed {
            Some(seed) => seed as u64,
            None => getrandom::u64().map_err(|error| ApiError::Internal(error.to_string()))?,
        };
        Ok(Sampling::Nucleus {
            temperature,
            top_p,
            seed,
        })
    }

    /// Texts before which an answer ends.
    pub(super) fn stops(&self) -> Result<Vec<String>, ApiError> {
        let mut stops = match self.stop.clone() {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Many(stops)) => stops,
        };
        // Whatever comes, nothing comes before it.
        stops.retain(|stop| !stop.is_empty());
        if stops.len() > MOST_STOPS || stops.iter().any(|stop| stop.len() > LONGEST_STOP) {
            let said = format!(
                "`stop` has {} texts; at most {MOST_STOPS} of at most {LONGEST_STOP} bytes each \
                 are possible",
                stops.len()
            );
            return Err(ApiError::Invalid(said));
        }
        Ok(stops)
    }

    /// How many alternatives to each token of a completion are wanted, if log-probabilities are.
    pub(super) fn completion_alternatives(&self) -> Result<Option<usize>, ApiError> {
        match self.logprobs {
            None | Some(LogProbs::Switch(false)) => Ok(None),
            Some(LogProbs::Alternatives(count)) => alternatives("logprobs", count).map(Some),
            Some(LogProbs::Switch(true)) => Err(ApiError::Invalid(
                "`logprobs` of a completion is the number of alternatives".to_owned(),
            )),
        }
    }

    /// The same of a chat.
    pub(super) fn chat_alternatives(&self) -> Result<Option<usize>, ApiError> {
        match (self.logprobs, self.top_logprobs) {
            (Some(LogProbs::Switch(true)), count) => {
                alternatives("top_logprobs", count.unwrap_or(0)).map(Some)
            }
            (None | Some(LogProbs::Switch(false)), None) => Ok(None),
            (None | Some(LogProbs::Switch(false)), Some(_)) => Err(ApiError::Invalid(
                "`top_logprobs` needs `logprobs: true`".to_owned(),
            )),
            (Some(LogProbs::Alternatives(_)), _) => Err(ApiError::Invalid(
                "`logprobs` of a chat is true or false; `top_logprobs` is the number".to_owned(),
            )),
        }
    }
}

fn alternatives(field: &str, count: usize) -> Result<usize, ApiError> {
    match count <= MOST_ALTERNATIVES {
        true => Ok(count),
        false => Err(ApiError::Invalid(format!(
            "`{field}` is {count}; at most {MOST_ALTERNATIVES} are given"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (field, value) in [
            ("n", json!(2)),
            ("best_of", json!(3)),
            ("suffix", json!("end")),
            ("presence_penalty", json!(0.5)),
            ("frequency_penalty", json!(-1)),
            ("logit_bias", json!({"5": 1})),
            ("tools", json!([{"type": "function"}])),
            ("functions", json!([{}])),
            ("response_format", json!({"type": "json_object"})),
        ] {
            let asked = fields(json!({ field: value }));
            let refused = asked.check_supported().unwrap_err().to_string();
            assert!(refused.contains(&format!("`{field}`")), "{refused}");
        }
        let nothing = json!({
            "n": 1, "best_of": 1, "suffix": null, "presence_penalty": 0, "frequency_penalty": 0.0,
            "logit_bias": {}, "tools": [], "functions": null, "response_format": {"type": "text"},
            "user": "me", "anything": {"else": [1]},
        });
        fields(nothing).check_supported().unwrap();
    }

    #[test]
    fn sampling_is_openais_where_nothing_is_said() {
        let nothing = fields(json!({})).sampling().unwrap();
        assert!(matches!(
            nothing,
            Sampling::Nucleus {
                temperature: 1.0,
                top_p: 1.0,
                ..
            }
        ));
        let greedy = fields(json!({"temperature": 0, "top_p": 0.3, "seed": 7}));
        assert_eq!(greedy.sampling().unwrap(), Sampling::Greedy);
        let seeded = fields(json!({"temperature": 0.5, "top_p": 0.9, "seed": -1}));
        let expected = Sampling::Nucleus {
            temperature: 0.5,
            top_p: 0.9,
            seed: u64::MAX,
        };
        assert_eq!(seeded.sampling().unwrap(), expected);
        for wrong in [
            json!({"temperature": -0.1}),
            json!({"temperature": 3}),
            json!({"top_p": 1.5}),
        ] {
            assert!(fields(wrong).sampling().is_err());
        }
    }

    #[test]
    fn alternatives_are_a_number_or_a_switch() {
        let completion = |value| fields(json!({"logprobs": value})).completion_alternatives();
        assert_eq!(completion(json!(null)).unwrap(), None);
        assert_eq!(completion(json!(0)).unwrap(), Some(0));
        assert!(completion(json!(21)).is_err());
        assert!(completion(json!(true)).is_err());
        let chat = |value| fields(value).chat_alternatives();
        assert_eq!(
            chat(json!({"logprobs": true, "top_logprobs": 3})).unwrap(),
            Some(3)
        );
        assert_eq!(chat(json!({"logprobs": false})).unwrap(), None);
        assert!(chat(json!({"top_logprobs": 3})).is_err());
        assert!(chat(json!({"logprobs": 3})).is_err());
    }

    #[test]
    fn stops_are_one_or_many_and_bounded() {
        assert_eq!(fields(json!({"stop": "a"})).stops().unwrap(), ["a"]);
        assert_eq!(fields(json!({"stop": ["", "b"]})).stops().unwrap(), ["b"]);
        assert!(fields(json!({"stop": null})).stops().unwrap().is_empty());
        assert!(fields(json!({"stop": vec!["x"; 17]})).stops().is_err());
        assert!(fields(json!({"stop": "x".repeat(1025)})).stops().is_err());
    }
}
