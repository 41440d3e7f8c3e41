//! The evaluation engine against one row at a time: shared beginnings, several texts at once.

use burn::tensor::Device;
use fedllm_models::eval::{ContinuationScore, Engine, Job, Pair};
use fedllm_models::generate::{Generator, Sampling};
use fedllm_models::lora::Lora;
use fedllm_models::{Batch, CausalLm, Checkpoint, Tokenizer};
use fedllm_tests::tiny;

use super::golden::Golden;
use super::gpu::gpu;

/// Tokens that the engine may use of each text.
const CONTEXT: usize = 120;

fn tokenizer() -> Tokenizer {
    let directory = tempfile::tempdir().unwrap();
    tiny::write_directory(directory.path(), "llama");
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    checkpoint.tokenizer().unwrap()
}

/// Questions after the same examples, with answers of several lengths; a question without examples,
/// an empty context, an empty continuation, and one text that is too long.
fn texts() -> Vec<(String, String)> {
    let examples = "Question: what is red?\nAnswer: a rose and a fire.\n\n".repeat(2);
    let mut texts = Vec::new();
    for question in ["what is blue?", "what is blue and wet?", "who?"] {
        for answer in [" the sea", " a", " the", " sky, at times", ""] {
            texts.push((
                format!("{examples}Question: {question}\nAnswer:"),
                answer.to_owned(),
            ));
        }
    }
    texts.push(("Short: ".to_owned(), "text".to_owned()));
    texts.push((String::new(), "nothing before".to_owned()));
    texts.push(("long ".repeat(100), "is cut".to_owned()));
    texts
}

/// What one row alone makes of a pair, by the training code's scoring.
fn alone_score(
    model: &CausalLm,
    lora: Option<&Lora>,
    tokenizer: &Tokenizer,
    (context, continuation): &(String, String),
) -> ContinuationScore {
    let context_ids = tokenizer.encode(context.trim_end(), true).unwrap();
    let whole = format!("{context}{continuation}");
    let mut ids = tokenizer.encode(&whole, true).unwrap();
    let mut from = context_ids.len();
    if from == 0 {
        ids.insert(0, tokenizer.bos().or(tokenizer.eos()).unwrap());
        from = 1;
    }
    let cut = ids.len().saturating_sub(CONTEXT);
    let (ids, from) = (&ids[cut..], from - cut);
    let mut batch = Batch::default();
    batch.push(ids, |i| i >= from);
    let scores = model.score(&batch, lora);
    let tops = scores.iter().zip(&batch.targets);
    ContinuationScore {
        log_prob: scores.iter().map(|score| f64::from(score.log_prob)).sum(),
        tokens: batch.targets.len(),
        greedy: tops.into_iter().all(|(score, target)| score.top == *target),
    }
}

fn check_scores(golden: &Golden, tolerance: f64) {
    let tokenizer = tokenizer();
    let texts = texts();
    let pairs: Vec<Pair<'_>> = texts
        .iter()
        .map(|(context, continuation)| Pair {
            context,
            continuation,
        })
        .collect();
    let lora = golden.lora();
    for lora in [None, Some(&lora)] {
        let engine = Engine::new(&golden.model, &tokenizer, lora, CONTEXT);
        let mut scores = vec![None; pairs.len()];
        engine
            .score(&pairs, |number, score| {
                assert_eq!(scores[number].replace(score), None, "told twice");
            })
            .unwrap();
        for (score, text) in scores.into_iter().zip(&texts) {
            let score = score.expect("every pair is scored");
            let expected = alone_score(&golden.model, lora, &tokenizer, text);
            assert_eq!(
                (score.tokens, score.greedy),
                (expected.tokens, expected.greedy),
                "{text:?}"
            );
            let difference = (score.log_prob - expected.log_prob).abs();
            assert!(
                difference < tolerance,
                "{text:?}: {score:?}, alone {expected:?}"
            );
        }
    }
}

fn check_answers(golden: &Golden) {
    let tokenizer = tokenizer();
    let texts = texts();
    // More than are written at once, of different lengths, so that some start while others go on.
    let jobs: Vec<Job<'_>> = texts
        .iter()
        .enumerate()
        .map(|(number, (prompt, _))| Job {
            prompt,
            add_special: true,
            max_tokens: 1 + number * 2,
            stop: &[],
            sampling: match number % 3 {
                2 => Sampling::Nucleus {
                    temperature: 0.7,
                    top_p: 0.9,
                    seed: number as u64,
                },
                _ => Sampling::Greedy,
            },
        })
        .collect();
    let engine = Engine::new(&golden.model, &tokenizer, None, CONTEXT);
    let mut answers = vec![None; jobs.len()];
    let written = engine.write(&jobs, |number, answer| {
        assert!(answers[number].replace(answer).is_none(), "told twice");
    });
    written.unwrap();
    let ends = &tokenizer.special().stop;
    for (answer, job) in answers.into_iter().zip(&jobs) {
        let answer = answer.expect("every job is done");
        let mut prompt = tokenizer.encode(job.prompt, true).unwrap();
        if prompt.is_empty() {
            prompt.extend(tokenizer.bos().or(tokenizer.eos()));
        }
        prompt.drain(..prompt.len().saturating_sub(CONTEXT - job.max_tokens));
        let tokens = Generator::new(&golden.model, None, &prompt, job.sampling);
        let tokens: Vec<u32> = tokens
            .take(job.max_tokens)
            .take_while(|token| !ends.contains(token))
            .collect();
        assert_eq!(
            answer.text,
            tokenizer.decode(&tokens, true).unwrap(),
            "{job:?}"
        );
        assert_eq!(answer.stopped, tokens.len() < job.max_tokens);
    }
}

#[test]
fn rows_score_the_same_alone_and_together() {
    // Gemma has windows and soft caps.
    for name in ["llama", "qwen3", "gemma2", "gemma3"] {
        check_scores(&Golden::load(name, &Device::flex()), 2e-4);
    }
}

#[test]
fn answers_are_the_same_alone_and_together() {
    for name in ["llama", "gemma3"] {
        check_answers(&Golden::load(name, &Device::flex()));
    }
}

#[test]
fn a_long_answer_leaves_half_of_the_text_to_its_prompt() {
    let golden = Golden::load("llama", &Device::flex());
    let tokenizer = tokenizer();
    let engine = Engine::new(&golden.model, &tokenizer, None, CONTEXT);
    let write = |prompt: &str, max_tokens| {
        let job = Job {
            prompt,
            add_special: true,
            max_tokens,
            stop: &[],
            sampling: Sampling::Greedy,
        };
        let mut written = None;
        engine.write(&[job], |_, w| written = Some(w)).unwrap();
        written.unwrap()
    };
    let (long, short) = ("a long tale ".repeat(100), "a tale");
    let room = CONTEXT - tokenizer.encode(short, true).unwrap().len();
    for (prompt, room) in [(long.as_str(), CONTEXT / 2), (short, room)] {
        let whole = write(prompt, 4 * CONTEXT);
        assert_eq!(whole, write(prompt, room), "{prompt}");
        assert!(whole.stopped || whole.tokens == room, "{whole:?}");
    }
}

#[test]
fn a_text_is_read_in_windows() {
    let golden = Golden::load("llama", &Device::flex());
    let tokenizer = tokenizer();
    let text = "the sea and the sky ".repeat(30);
    let engine = Engine::new(&golden.model, &tokenizer, None, CONTEXT);
    let mut whole = None;
    engine
        .read(&[&text], |_, score| whole = Some(score))
        .unwrap();
    let whole = whole.unwrap();
    let ids = tokenizer.encode(&text, false).unwrap();
    assert!(ids.len() > CONTEXT);
    assert_eq!(whole.tokens, ids.len(), "each token is predicted once");
    let ids = [&[tokenizer.bos().or(tokenizer.eos()).unwrap()][..], &ids].concat();
    let mut expected = 0.0;
    for start in (0..ids.len() - 1).step_by(CONTEXT - 1) {
        let mut batch = Batch::default();
        batch.push(&ids[start..ids.len().min(start + CONTEXT)], |_| true);
        let scores = golden.model.score(&batch, None);
        expected += scores
            .iter()
            .map(|score| f64::from(score.log_prob))
            .sum::<f64>();
    }
    assert!(
        (whole.log_prob - expected).abs() < 1e-3,
        "{whole:?}, {expected}"
    );
}

#[test]
fn gpu_scores_and_writes_as_the_cpu() {
    let Some((_turn, gpu)) = gpu() else {
        return;
    };
    let golden = Golden::load("gemma3", &gpu);
    check_scores(&golden, 2e-3);
    check_answers(&golden);
}
