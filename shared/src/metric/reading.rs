//! Exact match and F1 of answers that are spans of a text: SQuAD's and DROP's.

use std::collections::{BTreeMap, BTreeSet};

use super::assignment::best_assignment;

/// How near an answer is to the best of the expected ones.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct ReadingScore {
    /// Whether it is the same once normalised.
    pub exact: bool,
    /// The F1 of its words, from 0 to 1.
    pub f1: f64,
}

impl ReadingScore {
    /// The better of both in each figure.
    fn max(self, other: Self) -> Self {
        Self {
            exact: self.exact || other.exact,
            f1: self.f1.max(other.f1),
        }
    }
}

/// SQuAD's exact match and F1: without case, punctuation, articles and spare white space, the best
/// over all expected answers; nothing if there are none.
///
/// Source: Rajpurkar et al. 2016, arXiv 1606.05250; the official `evaluate-v1.1.py`.
///
/// ```
/// let score = fedllm_shared::squad_score("The Eiffel tower.", &["Eiffel Tower"]);
/// assert!(score.exact && score.f1 == 1.0);
/// ```
pub fn squad_score<G: AsRef<str>>(answer: &str, expected: &[G]) -> ReadingScore {
    let normal = |text: &str| without_articles(&without_punctuation(&text.to_lowercase()));
    let answer = normal(answer);
    let score = |expected: &G| {
        let expected = normal(expected.as_ref());
        ReadingScore {
            exact: answer == expected,
            f1: squad_f1(&answer, &expected),
        }
    };
    expected
        .iter()
        .map(score)
        .fold(Default::default(), ReadingScore::max)
}

/// DROP's exact match and F1 of an answer of one or more spans, the best over all expected answers;
/// nothing if there are none.
///
/// Spans are paired so that the sum of their F1s is greatest, and numbers have to agree. F1 is
/// rounded to two decimals, as officially. An expected answer whose first span is blank does not
/// count.
///
/// Source: Dua et al. 2019, arXiv 1903.00161; the official `drop_eval.py`.
///
/// ```
/// let score = fedllm_shared::drop_score(&["78"], &[vec!["78-yard"], vec!["78.0"]]);
/// assert!(score.exact && score.f1 == 1.0);
/// ```
pub fn drop_score<A: AsRef<str>, G: AsRef<str>>(answer: &[A], expected: &[Vec<G>]) -> ReadingScore {
    let answer = Spans::new(answer);
    expected
        .iter()
        .filter(|spans| {
            spans
                .first()
                .is_some_and(|span| !span.as_ref().trim().is_empty())
        })
        .map(|spans| answer.score(&Spans::new(spans)))
        .fold(Default::default(), ReadingScore::max)
}

fn squad_f1(answer: &str, expected: &str) -> f64 {
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for word in expected.split_whitespace() {
        *left.entry(word).or_default() += 1;
    }
    let mut same = 0.0;
    for word in answer.split_whitespace() {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            same += 1.0;
        }
    }
    let words = |text: &str| text.split_whitespace().count() as f64;
    match words(answer) + words(expected) {
        0.0 => 0.0,
        both => 2.0 * same / both,
    }
}

/// The spans of an answer, normalised, and the words of each.
struct Spans {
    texts: Vec<String>,
    bags: Vec<BTreeSet<String>>,
}

impl Spans {
    fn new<S: AsRef<str>>(spans: &[S]) -> Self {
        let texts: Vec<String> = spans
            .iter()
            .map(|span| drop_normal(span.as_ref()))
            .collect();
        let words = |text: &String| text.split_whitespace().map(str::to_owned).collect();
        let bags = texts.iter().map(words).collect();
        Self { texts, bags }
    }

    fn score(&self, expected: &Self) -> ReadingScore {
        let distinct = |texts: &[String]| texts.iter().cloned().collect::<BTreeSet<_>>();
        let same_number = self.texts.len() == expected.texts.len();
        let row = |bag| self.bags.iter().map(|answer| bag_f1(answer, bag)).collect();
        let table: Vec<Vec<f64>> = expected.bags.iter().map(row).collect();
        let spans = self.bags.len().max(expected.bags.len());
        let f1 = best_assignment(&table) / spans as f64;
        ReadingScore {
            exact: same_number && distinct(&self.texts) == distinct(&expected.texts),
            f1: (f1 * 100.0).round_ties_even() / 100.0,
        }
    }
}

/// The F1 of a span's words; 0 if the expected span has numbers and none of them is in the answer.
fn bag_f1(answer: &BTreeSet<String>, expected: &BTreeSet<String>) -> f64 {
    let mut numbers = expected
        .iter()
        .filter(|word| python_float(word).is_some())
        .peekable();
    if numbers.peek().is_some() && !numbers.any(|number| answer.contains(number)) {
        return 0.0;
    }
    let same = answer.intersection(expected).count() as f64;
    let share = |bag: &BTreeSet<String>| match bag.len() {
        0 => 1.0,
        len => same / len as f64,
    };
    let (precision, recall) = (share(answer), share(expected));
    match precision + recall {
        0.0 => 0.0,
        sum => 2.0 * precision * recall / sum,
    }
}

fn drop_normal(text: &str) -> String {
    let token = |token: &str| {
        let token = token.to_lowercase();
        let bare = match python_float(&token) {
            Some(_) => token,
            None => without_punctuation(&token),
        };
        // Equal numbers have to look equal, and like numbers; which way does not matter.
        without_articles(&python_float(&bare).map_or(bare, |number| format!("{number:?}")))
    };
    let tokens: Vec<String> = text
        .split([' ', '-'])
        .map(token)
        .filter(|token| !token.is_empty())
        .collect();
    tokens.join(" ")
}

/// What Python's `float` makes of ASCII text: white space around it and single underscores between
/// digits are allowed.
fn python_float(text: &str) -> Option<f64> {
    let text = text.trim();
    let parts: Vec<&str> = text.split('_').collect();
    let joined = parts.windows(2).all(|pair| {
        pair[0].ends_with(|c: char| c.is_ascii_digit())
            && pair[1].starts_with(|c: char| c.is_ascii_digit())
    });
    joined.then(|| parts.concat().parse().ok()).flatten()
}

fn without_punctuation(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_punctuation()).collect()
}

/// The words of a text, one space between them, without the words `a`, `an` and `the`. What is no
/// letter, digit or underscore ends an article, but not a word.
fn without_articles(text: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut kept = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let inside = is_word(first);
        let end = rest.find(|c| is_word(c) != inside).unwrap_or(rest.len());
        match &rest[..end] {
            "a" | "an" | "the" => kept.push(' '),
            part => kept.push_str(part),
        }
        rest = &rest[end..];
    }
    kept.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    // `exact_match_score` and `f1_score` of the official evaluate-v1.1.py.
    #[test]
    fn squad_is_the_official_one() {
        let cases = [
            ("The Eiffel Tower!", "eiffel  tower", true, 1.0),
            ("in the year 1889", "1889", false, 0.5),
            ("a cat, a dog", "cat cat dog", false, 0.8),
            ("", "the", true, 0.0),
            ("x", "y", false, 0.0),
        ];
        for (answer, expected, exact, f1) in cases {
            let score = squad_score(answer, &[expected]);
            assert_eq!(score.exact, exact, "{answer}");
            assert!((score.f1 - f1).abs() < 1e-12, "{answer}: {score:?}");
        }
        let best = squad_score("in 1889", &["1890", "1889", "In 1889."]);
        assert_eq!(
            best,
            ReadingScore {
                exact: true,
                f1: 1.0
            }
        );
        assert_eq!(squad_score::<&str>("x", &[]), ReadingScore::default());
    }

    fn drop_case(answer: &[&str], expected: &[&str], exact: bool, f1: f64) {
        let score = drop_score(answer, &[expected.to_vec()]);
        assert_eq!(score, ReadingScore { exact, f1 }, "{answer:?} {expected:?}");
    }

    // The cases of the official evaluator's own test, `drop_eval_test.py`.
    #[test]
    fn drop_is_the_official_one() {
        let cats = ["the", "fat", "cat", "the fat", "fat cat", "the fat cat"];
        let drives = ["78-yard", "56", "28", "40", "44", "touchdown"];

        drop_case(&["12.0"], &["12.0  "], true, 1.0);
        drop_case(&["12.0"], &["12.000"], true, 1.0);
        drop_case(&["12.0"], &["12"], true, 1.0);
        drop_case(&["12.0"], &["  1.2e1  "], true, 1.0);
        drop_case(&["S.K. Singh"], &["sk singh"], true, 1.0);
        drop_case(&["78"], &["78.0"], true, 1.0);

        drop_case(&["td"], &["td", "td"], false, 0.5);
        drop_case(&["td", "td"], &["td"], false, 0.5);
        drop_case(&cats, &["cat"], false, 0.17);
        drop_case(&["cat"], &cats, false, 0.17);
        drop_case(&cats, &["cat", "cat dog"], false, 0.25);

        drop_case(&["td"], &["the td"], true, 1.0);
        drop_case(
            &["the a NOT an ARTICLE the an a"],
            &["NOT ARTICLE"],
            true,
            1.0,
        );
        drop_case(&["John Elton"], &["Elton John"], false, 1.0);
        drop_case(&["50 yard"], &["yard 50"], false, 1.0);
        drop_case(&["Per.i.o.d...."], &[".P....e.r,,i;;;o...d,,"], true, 1.0);
        drop_case(
            &["Spa     c  e   s     "],
            &["    Spa c     e s"],
            true,
            1.0,
        );
        drop_case(&["78-yard"], &["78 yard"], true, 1.0);
        drop_case(&["78"], &["78-yard"], false, 0.67);
        drop_case(&["78-yard"], &["78"], false, 0.67);
        drop_case(&["This was a triumph"], &["tHIS Was A TRIUMPH"], true, 1.0);
        drop_case(
            &["Green bay", "packers"],
            &["Green bay", "packers"],
            true,
            1.0,
        );

        drop_case(&[""], &["army"], false, 0.0);
        drop_case(&["packers"], &["Green bay packers"], false, 0.5);
        drop_case(&["packers"], &["Green bay"], false, 0.0);
        drop_case(&["yard"], &["36 yard td"], false, 0.0);
        drop_case(&["23 yards"], &["43 yards"], false, 0.0);
        drop_case(&["56 yards"], &["56 yd"], false, 0.5);
        drop_case(&["26"], &["26 yard td"], false, 0.5);

        drop_case(
            &drives,
            &["78-yard", "56 yard", "1 yard touchdown"],
            false,
            0.28,
        );
        drop_case(&["23", "23 yard"], &["23-yard", "56 yards"], false, 0.5);
        drop_case(
            &["John Karman", "Joe Hardy"],
            &["Joe Karman", "John Hardy"],
            false,
            0.5,
        );
        let armies = ["ottoman", "army of Kantakouzenous"];
        drop_case(&["ottoman", "Kantakouzenous"], &armies, false, 0.75);
        drop_case(&["a"], &["a", "b"], false, 0.5);
        drop_case(&["b"], &["b", "a"], false, 0.5);
    }

    // `get_metrics` of the official evaluator.
    #[test]
    fn numbers_are_what_python_takes_for_numbers() {
        drop_case(&["1_000", "nan"], &["1000"], false, 0.5);
        drop_case(&["1,000 yards"], &["1000 yard"], false, 0.5);
        drop_case(&["$1,000"], &["1e3"], true, 1.0);
        assert_eq!(python_float("1__0"), None);
        assert_eq!(python_float("_1"), None);
        assert_eq!(python_float("+1.\n"), Some(1.0));
    }

    // `evaluate_json` takes the best answer in each figure and passes over blank ones.
    #[test]
    fn the_best_expected_answer_counts() {
        let spans = drop_score(&["span1"], &[vec!["span1", "span2"], vec!["span2"]]);
        assert_eq!(
            spans,
            ReadingScore {
                exact: false,
                f1: 0.5
            }
        );
        let number = drop_score(&["1"], &[vec!["0"], vec!["1"], vec!["2"]]);
        assert_eq!(
            number,
            ReadingScore {
                exact: true,
                f1: 1.0
            }
        );
        assert_eq!(drop_score(&[""], &[vec![" "]]), ReadingScore::default());
        assert_eq!(
            drop_score::<&str, &str>(&[], &[vec!["1"]]),
            ReadingScore::default()
        );
        assert_eq!(
            drop_score::<_, &str>(&["1"], &[vec![]]),
            ReadingScore::default()
        );
    }
}
