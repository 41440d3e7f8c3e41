//! Financial sentiment as its sources write it, read alike by who trains on it and by who tests.

use serde_json::{Map, Value};

/// What is good or bad for a company.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sentiment {
    /// Bad.
    Negative,
    /// Neither.
    Neutral,
    /// Good.
    Positive,
}
use Sentiment::{Negative, Neutral, Positive};

impl Sentiment {
    /// What the classes are called, in the order of their numbers.
    pub const NAMES: [&'static str; 3] = ["negative", "neutral", "positive"];
    /// The classes that the numbers of the Financial PhraseBank stand for.
    pub const OF_PHRASES: [Self; 3] = [Negative, Neutral, Positive];
    /// The classes that the numbers of Twitter financial news stand for.
    pub const OF_TWEETS: [Self; 3] = [Negative, Positive, Neutral];

    /// What it is called.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The class of this name.
    pub fn named(name: &str) -> Option<Self> {
        let classes = [Negative, Neutral, Positive].into_iter();
        let name = name.trim();
        classes
            .into_iter()
            .find(|class| class.name().eq_ignore_ascii_case(name))
    }

    /// The class of this name, or of this number.
    pub fn labelled(label: &str, numbered: [Self; 3]) -> Option<Self> {
        let by_number = || numbered.get(label.trim().parse::<usize>().ok()?).copied();
        Self::named(label).or_else(by_number)
    }

    /// The class of a score of FiQA, which its organizers write as a text: below -0.1 negative, from
    /// 0.1 on positive.
    pub fn of_score(score: &Value) -> Option<Self> {
        let score = match score {
            Value::String(score) => score.trim().parse().ok()?,
            score => score.as_f64()?,
        };
        match score {
            score if score < -0.1 => Some(Negative),
            score if score < 0.1 => Some(Neutral),
            score if score >= 0.1 => Some(Positive),
            _ => None,
        }
    }

    /// The class of one of the seven labels of news with GPT instructions: mild ones are neutral.
    pub fn of_mood(label: &str) -> Option<Self> {
        match label.trim().to_lowercase().as_str() {
            "strong negative" | "moderately negative" | "negative" => Some(Negative),
            "mildly negative" | "neutral" | "mildly positive" => Some(Neutral),
            "moderately positive" | "strong positive" | "positive" => Some(Positive),
            _ => None,
        }
    }
}

/// What a text is called in the question about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// News.
    News,
    /// A tweet.
    Tweet,
}

impl Medium {
    /// FinGPT's question (Yang et al. 2023, arXiv 2306.06031).
    pub fn question(self) -> &'static str {
        match self {
            Self::News => {
                "What is the sentiment of this news? Please choose an answer from \
                 {negative/neutral/positive}."
            }
            Self::Tweet => {
                "What is the sentiment of this tweet? Please choose an answer from \
                 {negative/neutral/positive}."
            }
        }
    }

    /// What a sentence of FiQA is, by its `format` or by the name of its file.
    pub fn of_fiqa(format: Option<&str>, file: &str) -> Self {
        let is_post = match format {
            Some(format) => format == "post",
            None => file.to_lowercase().contains("post"),
        };
        if is_post { Self::Tweet } else { Self::News }
    }
}

/// The sentences of a row of FiQA with their scores: one about two companies has two, in `info`, as
/// in the table that FinGPT reads.
pub fn fiqa_scores(row: &Map<String, Value>) -> Vec<Option<&Value>> {
    const FIELD: &str = "sentiment_score";
    match row.get("info") {
        Some(Value::Array(info)) => info.iter().map(|scored| scored.get(FIELD)).collect(),
        _ => vec![row.get(FIELD)],
    }
}

/// Sentence and class of a row of the Financial PhraseBank without named columns: `sentence@class`
/// on a line, or a sentence and its class in either order.
///
/// # Errors
///
/// The cells, where no class is among them.
pub fn phrase(row: &Map<String, Value>) -> Result<(&str, Sentiment), Vec<&str>> {
    let cells: Vec<&str> = row.values().filter_map(Value::as_str).collect();
    let named = Sentiment::named;
    let found = match cells[..] {
        [line] => line
            .rsplit_once('@')
            .and_then(|(text, name)| Some((text, named(name)?))),
        [one, other] => match (named(one), named(other)) {
            (Some(class), None) => Some((other, class)),
            (None, Some(class)) => Some((one, class)),
            _ => None,
        },
        _ => None,
    };
    found.ok_or(cells)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn small_scores_are_neutral() {
        for (score, expected) in [
            (json!(-0.1), Some(Neutral)),
            (json!("0.099"), Some(Neutral)),
            (json!(0.1), Some(Positive)),
            (json!("-0.101"), Some(Negative)),
            (json!("b"), None),
            (json!("NaN"), None),
        ] {
            assert_eq!(Sentiment::of_score(&score), expected, "{score}");
        }
    }

    #[test]
    fn labels_are_names_or_numbers() {
        let of_tweets = |label| Sentiment::labelled(label, Sentiment::OF_TWEETS);
        assert_eq!(of_tweets(" Negative"), Some(Negative));
        assert_eq!(of_tweets("1"), Some(Positive));
        assert_eq!(of_tweets("3"), None);
        assert_eq!(Sentiment::of_mood("Mildly positive"), Some(Neutral));
        assert_eq!(Sentiment::of_mood("good"), None);
    }

    #[test]
    fn phrases_have_their_class_anywhere() {
        let phrase = |row: Value| {
            let found = phrase(row.as_object().unwrap());
            found.map(|(text, class)| (text.to_owned(), class)).ok()
        };
        let expected = Some(("Sales fell @home".to_owned(), Negative));
        assert_eq!(
            phrase(json!({"text": "Sales fell @home@negative"})),
            expected
        );
        let expected = Some(("Sales fell".to_owned(), Negative));
        assert_eq!(
            phrase(json!({"a": "negative", "b": "Sales fell"})),
            expected
        );
        assert_eq!(
            phrase(json!({"a": "Sales fell", "b": "negative"})),
            expected
        );
        assert_eq!(phrase(json!({"a": "neutral", "b": "negative"})), None);
        assert_eq!(phrase(json!({"a": "x"})), None);
    }
}
