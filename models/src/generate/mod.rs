//! Text generation with a key/value cache: one text with a [`Generator`], many with a [`Writer`].

mod tree;
mod writer;

use crate::arch::{CausalLm, KvCache, RunId};
use crate::lora::{Lora, read_back};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
pub use writer::{Next, TextId, Writer};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most probable token; of equals, the first.
    Greedy,
    /// At random, from the most probable tokens.
    Nucleus {
        /// Divides the logits; below 1 sharpens.
        temperature: f32,
        /// Keeps the fewest tokens whose probabilities sum to this (Holtzman et al.
        /// 2019, arXiv 1904.09751, section 3.1).
        top_p: f32,
        /// Names the random numbers.
        seed: u64,
    },
}

/// Tokens that continue a prompt, one at a time, without end: the caller stops at an
/// end-of-text token or a limit.
pub struct Generator<'a> {
    model: &'a CausalLm,
    lora: Option<&'a Lora>,
    cache: KvCache,
    text: RunId,
    pending: Vec<u32>,
    chooser: Chooser,
}

impl<'a> Generator<'a> {
    /// Continues `prompt`, which has at least one token.
    pub fn new(
        model: &'a CausalLm,
        lora: Option<&'a Lora>,
        prompt: &[u32],
        sampling: Sampling,
    ) -> Self {
        let mut cache = KvCache::default();
        Self {
            model,
            lora,
            text: cache.branch(None),
            cache,
            pending: prompt.to_vec(),
            chooser: Chooser::new(sampling),
        }
    }
}

impl Iterator for Generator<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let last = self.pending.len().checked_sub(1)?;
        let new = [(self.text, &self.pending[..])];
        let logits = self.model.decode(&new, &mut self.cache, self.lora, &[last]);
        let token = self.chooser.choose(&read_back(logits));
        self.pending = vec![token];
        Some(token)
    }
}

/// Chooses the tokens of one text.
struct Chooser {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Chooser {
    fn new(sampling: Sampling) -> Self {
        let seed = match sampling {
            Sampling::Greedy => 0,
            Sampling::Nucleus { seed, .. } => seed,
        };
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self { sampling, random }
    }

    /// The next token, by the logits of all of them.
    fn choose(&mut self, logits: &[f32]) -> u32 {
        match self.sampling {
            Sampling::Greedy => greedy(logits),
            Sampling::Nucleus {
                temperature, top_p, ..
            } => {
                let uniform = f64::from(self.random.next_u32()) / (f64::from(u32::MAX) + 1.0);
                nucleus(logits, temperature, top_p, uniform)
            }
        }
    }
}

fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

fn nucleus(logits: &[f32], temperature: f32, top_p: f32, uniform: f64) -> u32 {
    let largest = f64::from(logits[greedy(logits) as usize]);
    let temperature = f64::from(temperature.max(1e-6));
    let mut tokens: Vec<(u32, f64)> = logits
        .iter()
        .enumerate()
        .map(|(token, logit)| {
            (
                token as u32,
                ((f64::from(*logit) - largest) / temperature).exp(),
            )
        })
        .collect();
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let total: f64 = tokens.iter().map(|(_, p)| p).sum();
    let mass = f64::from(top_p) * total;
    let mut before = 0.0;
    let size = tokens.iter().take_while(|(_, p)| {
        let needed = before < mass;
        before += p;
        needed
    });
    let size = size.count().max(1);
    let kept: f64 = tokens[..size].iter().map(|(_, p)| p).sum();
    let mut left = uniform * kept;
    for (token, p) in &tokens[..size] {
        left -= p;
        if left < 0.0 {
            return *token;
        }
    }
    tokens[size - 1].0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nucleus_holds_the_fewest_tokens_that_reach_its_mass() {
        // Probabilities 0.5, 0.3, 0.2.
        let logits = [0.3f32.ln(), 0.5f32.ln(), 0.2f32.ln()];
        assert_eq!(greedy(&logits), 1);
        assert_eq!(nucleus(&logits, 1.0, 0.5, 0.999), 1);
        assert_eq!(nucleus(&logits, 1.0, 0.6, 0.999), 0);
        assert_eq!(nucleus(&logits, 1.0, 1.0, 0.999), 2);
        assert_eq!(nucleus(&logits, 1.0, 1.0, 0.0), 1);
        assert_eq!(nucleus(&logits, 1.0, 1.0, 0.79), 0);
    }
}
