//! BLEU in the ways that benchmarks have it.

mod tokens;

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use tokens::{spaced_13a, spaced_code};

/// The longest n-grams that count.
const ORDERS: usize = 4;

/// A way to split texts into tokens and to make a score of what they share.
///
/// Source: Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation";
/// each variant names the script whose figures it gives.
///
/// ```
/// use fedllm_shared::Bleu;
///
/// let rows = [("x = [1, 2]", vec!["x = [1, 2]"]), ("y = 3", vec!["y = 4"])];
/// let bleu = Bleu::Conala.corpus(rows.iter().map(|(answer, all)| (*answer, all.as_slice())));
/// assert!(bleu > 60.0 && bleu < 100.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bleu {
    /// sacrebleu's corpus BLEU with its defaults: tokenizer `13a`, case kept, exponential smoothing
    /// (Post 2018, arXiv 1804.08771; signature `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp`).
    Sacrebleu,
    /// The same with `effective_order`, for single sentences.
    SacrebleuSentence,
    /// CoNaLa's: code split at everything but letters, digits and underscores and before capitals,
    /// no smoothing (Yin et al. 2018, arXiv 1805.08949; `conala_eval.py` and `bleu_score.py` of the
    /// official baseline).
    Conala,
    /// CodeXGLUE's for ConCode: tokens between white space, one added to all counts (Lu et al. 2021,
    /// arXiv 2102.04664; `text-to-code/evaluator/bleu.py`). Officially rounded to two decimals.
    Codexglue,
}

/// What answers and references share: enough for a score, and added up over rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BleuCounts {
    /// The n-grams of answers that are in a reference too, by length.
    pub matches: [u64; ORDERS],
    /// The n-grams of answers, by length.
    pub total: [u64; ORDERS],
    /// The tokens of answers.
    pub answer_tokens: u64,
    /// The tokens of references, one for each row.
    pub reference_tokens: u64,
}

impl BleuCounts {
    /// Adds what other rows have.
    pub fn merge(&mut self, other: &Self) {
        for order in 0..ORDERS {
            self.matches[order] += other.matches[order];
            self.total[order] += other.total[order];
        }
        self.answer_tokens += other.answer_tokens;
        self.reference_tokens += other.reference_tokens;
    }

    /// What is lost by being shorter than the references.
    fn brevity(&self) -> f64 {
        match (self.answer_tokens, self.reference_tokens) {
            (0, _) => 0.0,
            (answer, reference) if answer < reference => {
                (1.0 - reference as f64 / answer as f64).exp()
            }
            _ => 1.0,
        }
    }
}

impl Bleu {
    /// Counts what an answer shares with its references.
    pub fn counts<R: AsRef<str>>(self, answer: &str, references: &[R]) -> BleuCounts {
        let answer = self.tokens(answer);
        let references: Vec<Vec<String>> = references
            .iter()
            .map(|reference| self.tokens(reference.as_ref()))
            .collect();
        let mut counts = BleuCounts {
            answer_tokens: answer.len() as u64,
            reference_tokens: self.reference_len(answer.len(), &references) as u64,
            ..BleuCounts::default()
        };
        for order in 0..ORDERS {
            let known: Vec<_> = references
                .iter()
                .map(|tokens| ngrams(tokens, order + 1))
                .collect();
            for (ngram, count) in ngrams(&answer, order + 1) {
                let most = known.iter().filter_map(|of| of.get(ngram)).max();
                counts.matches[order] += count.min(most.copied().unwrap_or(0));
                counts.total[order] += count;
            }
        }
        counts
    }

    /// The score of counts, from 0 to 100; 0 of nothing.
    pub fn score(self, counts: &BleuCounts) -> f64 {
        let precisions = match self {
            Self::Sacrebleu | Self::SacrebleuSentence => exponential(counts),
            Self::Conala => precisions(counts, 0.0),
            Self::Codexglue => precisions(counts, 1.0),
        };
        let orders = match self {
            Self::SacrebleuSentence => counts.total.iter().filter(|total| **total > 0).count(),
            _ => ORDERS,
        };
        let precisions = &precisions[..orders];
        if precisions.is_empty() || precisions.contains(&0.0) {
            return 0.0;
        }
        let logs: f64 = precisions.iter().map(|precision| precision.ln()).sum();
        100.0 * counts.brevity() * (logs / orders as f64).exp()
    }

    /// The score of answers, each with its references; 0 of none.
    pub fn corpus<'a, R: AsRef<str> + 'a>(
        self,
        rows: impl IntoIterator<Item = (&'a str, &'a [R])>,
    ) -> f64 {
        let mut counts = BleuCounts::default();
        for (answer, references) in rows {
            counts.merge(&self.counts(answer, references));
        }
        self.score(&counts)
    }

    fn tokens(self, text: &str) -> Vec<String> {
        let spaced = match self {
            Self::Sacrebleu | Self::SacrebleuSentence => spaced_13a(text),
            Self::Conala => spaced_code(text),
            Self::Codexglue => text.to_owned(),
        };
        spaced.split_whitespace().map(str::to_owned).collect()
    }

    /// sacrebleu takes the reference that is nearest in length, the shorter of two; the others the
    /// shortest.
    fn reference_len(self, answer: usize, references: &[Vec<String>]) -> usize {
        let lens = references.iter().map(Vec::len);
        let len = match self {
            Self::Sacrebleu | Self::SacrebleuSentence => {
                lens.min_by_key(|len| (len.abs_diff(answer), *len))
            }
            Self::Conala | Self::Codexglue => lens.min(),
        };
        len.unwrap_or(0)
    }
}

fn ngrams(tokens: &[String], order: usize) -> HashMap<&[String], u64> {
    let mut counts = HashMap::new();
    for ngram in tokens.windows(order) {
        *counts.entry(ngram).or_default() += 1;
    }
    counts
}

/// The share of n-grams that match, with something added to both counts; 0 of none.
fn precisions(counts: &BleuCounts, added: f64) -> [f64; ORDERS] {
    std::array::from_fn(|order| match counts.total[order] as f64 + added {
        0.0 => 0.0,
        total => (counts.matches[order] as f64 + added) / total,
    })
}

/// Without a match, half of the least share there could be, a quarter the next time, and so on:
/// mteval-v13a's smoothing, method 3 of Chen and Cherry 2014.
fn exponential(counts: &BleuCounts) -> [f64; ORDERS] {
    let mut shares = precisions(counts, 0.0);
    if counts.matches != [0; ORDERS] {
        let mut least = 1.0;
        for (share, total) in shares.iter_mut().zip(counts.total) {
            if *share == 0.0 && total > 0 {
                least /= 2.0;
                *share = least / total as f64;
            }
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWERS: [&str; 4] = [
        "The cat sat on the mat.",
        "It costs $1,200.50 - \"cheap\", isn't it?",
        "A dog & a cat &amp; 3-4 birds...",
        "yes",
    ];
    const REFERENCES: [[&str; 2]; 4] = [
        ["The cat is on the mat.", "There is a cat on the mat."],
        [
            "It cost $1,200.50; 'cheap', isn't it?",
            "It is $1,200.50, which is cheap, isn't it?",
        ],
        [
            "A dog & a cat & 3-4 birds.",
            "A dog and a cat and 3 or 4 birds.",
        ],
        ["No way", "yes, sir"],
    ];

    fn assert_near(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-9, "{got} {expected}");
    }

    fn corpus(bleu: Bleu, rows: &[(&str, &str)]) -> f64 {
        let rows: Vec<_> = rows
            .iter()
            .map(|(answer, reference)| (*answer, [*reference]))
            .collect();
        bleu.corpus(
            rows.iter()
                .map(|(answer, reference)| (*answer, reference.as_slice())),
        )
    }

    // sacrebleu 2.6.0: `BLEU().corpus_score(ANSWERS, [firsts])`, the same with both references, and
    // `BLEU(effective_order=True).sentence_score(answer, [first])`.
    #[test]
    fn sacrebleu_gives_the_same() {
        let of = |references| {
            let rows = ANSWERS.iter().zip(&REFERENCES);
            Bleu::Sacrebleu.corpus(rows.map(|(answer, all)| (*answer, &all[..references])))
        };
        assert_near(of(1), 55.969_766_404_590_81);
        assert_near(of(2), 57.101_040_346_840_8);

        let expected = [
            48.892_302_243_490_086,
            26.202_510_071_732_62,
            82.423_675_026_460_5,
            0.0,
        ];
        for ((answer, all), expected) in ANSWERS.iter().zip(&REFERENCES).zip(expected) {
            let counts = Bleu::SacrebleuSentence.counts(answer, &all[..1]);
            assert_near(Bleu::SacrebleuSentence.score(&counts), expected);
        }
    }

    // The same; the three words have no 4-gram, the five no 3-gram in common.
    #[test]
    fn short_and_smoothed_texts_are_as_in_sacrebleu() {
        let short = [("the cat sat", "the cat sat")];
        assert_near(corpus(Bleu::Sacrebleu, &short), 0.0);
        assert_near(corpus(Bleu::SacrebleuSentence, &short), 100.0);
        let smoothed = [("the cat sat quietly outside", "the dog sat on a mat")];
        assert_near(corpus(Bleu::Sacrebleu, &smoothed), 10.400_597_689_005_304);
    }

    // `compute_bleu` of conala-baseline's bleu_score.py, smooth=False, on `tokenize_for_bleu_eval`
    // of conala_eval.py.
    #[test]
    fn conala_is_the_official_one() {
        let rows = [
            (
                "x = [i for i in range(10) if isEven(i)]",
                "y = [i for i in range(10) if isOdd(i)]",
            ),
            (
                "df.to_csv('out.csv', index=False)",
                "df.to_csv(\"out.csv\")",
            ),
            ("os.path.join(a, \"b\")", "os.path.join(a, 'b', c)"),
        ];
        assert_near(corpus(Bleu::Conala, &rows), 76.393_018_132_082_06);
        assert_near(corpus(Bleu::Conala, &[("a b", "a b")]), 0.0);
    }

    // `compute_bleu` of CodeXGLUE's text-to-code bleu.py, smooth=True, on texts split at white space.
    #[test]
    fn codexglue_is_the_official_one() {
        let rows = [
            (
                "public int size ( ) { return this . count ; }",
                "public int size ( ) { return count ; }",
            ),
            (
                "void add ( T item ) { list . add ( item ) ; }",
                "void add ( T t ) { items . add ( t ) ; count ++ ; }",
            ),
        ];
        assert_near(corpus(Bleu::Codexglue, &rows), 47.896_711_399_979_53);
        let short = [("return y ;", "return x ;")];
        assert_near(corpus(Bleu::Codexglue, &short), 59.460_355_750_136_05);
    }

    #[test]
    fn nothing_scores_nothing() {
        for bleu in [
            Bleu::Sacrebleu,
            Bleu::SacrebleuSentence,
            Bleu::Conala,
            Bleu::Codexglue,
        ] {
            assert_eq!(corpus(bleu, &[]), 0.0);
            assert_eq!(corpus(bleu, &[("", "")]), 0.0);
            assert_eq!(corpus(bleu, &[("", "a")]), 0.0);
            assert_eq!(bleu.counts::<&str>("a", &[]).matches, [0; ORDERS]);
        }
    }
}
