//! What a judge costs.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::Entry;
use crate::simulate::text::grouped;

/// Characters that make a token, about, in English.
const TOKEN_CHARACTERS: u64 = 4;

/// What tokens cost, in dollars per million.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Price {
    /// Tokens that are read.
    pub(crate) input: f64,
    /// Tokens that are written.
    pub(crate) output: f64,
}

/// A text that is no price.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected dollars per million tokens read and written, such as 2.5,10; got {0:?}")]
pub(crate) struct PriceError(String);

impl Price {
    /// What so many tokens cost, in dollars.
    pub(crate) fn dollars(&self, prompt_tokens: u64, completion_tokens: u64) -> f64 {
        (self.input * prompt_tokens as f64 + self.output * completion_tokens as f64) / 1e6
    }
}

impl FromStr for Price {
    type Err = PriceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let amount = |text: &str| {
            let amount: f64 = text.trim().parse().ok()?;
            Some(amount).filter(|amount| amount.is_finite() && *amount >= 0.0)
        };
        text.split_once(',')
            .and_then(|(input, output)| {
                Some(Self {
                    input: amount(input)?,
                    output: amount(output)?,
                })
            })
            .ok_or_else(|| PriceError(text.to_owned()))
    }
}

/// What asking would take.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Estimate {
    /// Questions that have to be asked.
    pub(crate) requests: usize,
    /// Questions whose answers are stored.
    pub(crate) stored: usize,
    /// Tokens of the questions, taking four characters for one.
    pub(crate) prompt_tokens: u64,
    /// Tokens of the answers, at most.
    pub(crate) completion_tokens: u64,
    /// What that costs in dollars: the questions alone, and with answers as long as they may be.
    pub(crate) dollars: Option<(f64, f64)>,
}

impl Estimate {
    pub(super) fn new(
        requests: usize,
        stored: usize,
        characters: impl Iterator<Item = u64>,
        max_tokens: u32,
        price: Option<Price>,
    ) -> Self {
        let prompt_tokens = characters.map(|n| n.div_ceil(TOKEN_CHARACTERS)).sum();
        let completion_tokens = requests as u64 * u64::from(max_tokens);
        let dollars = price.map(|price| {
            let most = price.dollars(prompt_tokens, completion_tokens);
            (price.dollars(prompt_tokens, 0), most)
        });
        Self {
            requests,
            stored,
            prompt_tokens,
            completion_tokens,
            dollars,
        }
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            requests, stored, ..
        } = self;
        write!(f, "{} requests", grouped(*requests as u64))?;
        if *stored > 0 {
            write!(f, " ({} more answers are stored)", grouped(*stored as u64))?;
        }
        if *requests == 0 {
            return Ok(());
        }
        write!(
            f,
            ", about {} tokens to read (a quarter of the characters) and at most {} to write",
            grouped(self.prompt_tokens),
            grouped(self.completion_tokens)
        )?;
        match self.dollars {
            Some((least, most)) => write!(f, ": about ${least:.2} to ${most:.2}"),
            None => Ok(()),
        }
    }
}

/// What was used up, as the endpoint counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Questions that were answered, repetitions included.
    pub(crate) requests: u64,
    /// Tokens that were read.
    pub(crate) prompt_tokens: u64,
    /// Tokens that were written.
    pub(crate) completion_tokens: u64,
    /// Answers that came without a count of tokens.
    pub(crate) uncounted: u64,
}

impl Usage {
    pub(super) fn add(&mut self, entry: &Entry) {
        self.requests += u64::from(entry.requests);
        self.prompt_tokens = self.prompt_tokens.saturating_add(entry.prompt_tokens);
        self.completion_tokens = self
            .completion_tokens
            .saturating_add(entry.completion_tokens);
        self.uncounted += u64::from(entry.uncounted);
    }

    /// What that costs, in dollars.
    pub(crate) fn dollars(&self, price: Price) -> f64 {
        price.dollars(self.prompt_tokens, self.completion_tokens)
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = [self.requests, self.prompt_tokens, self.completion_tokens].map(grouped);
        let [requests, read, written] = numbers;
        write!(
            f,
            "{requests} requests, {read} tokens read, {written} written"
        )?;
        match self.uncounted {
            0 => Ok(()),
            uncounted => write!(f, " ({uncounted} answers came without a count)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_two_amounts() {
        let price: Price = "2.5, 10".parse().unwrap();
        assert_eq!((price.input, price.output), (2.5, 10.0));
        assert_eq!(price.dollars(1_000_000, 200_000), 4.5);
        for bad in ["", "1", "1,2,3", "-1,2", "1,nan", "a,b"] {
            assert!(bad.parse::<Price>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_estimate_says_what_it_rests_on() {
        let price = "10,30".parse().ok();
        let estimate = Estimate::new(2, 3, [400_000, 7].into_iter(), 2048, price);
        assert_eq!(estimate.prompt_tokens, 100_002);
        assert_eq!(
            estimate.to_string(),
            "2 requests (3 more answers are stored), about 100,002 tokens to read (a quarter of the \
             characters) and at most 4,096 to write: about $1.00 to $1.12"
        );
        let nothing = Estimate::new(0, 3, [].into_iter(), 2048, price);
        assert_eq!(
            nothing.to_string(),
            "0 requests (3 more answers are stored)"
        );
    }
}
