//! Why rows could not be dealt, and what to change.

use std::fmt;

use thiserror::Error;

/// How often a split is drawn until every owner has enough rows.
pub(super) const DRAWS: u64 = 1000;

/// The concentrations that a Dirichlet distribution may have.
pub(super) const ALPHAS: std::ops::RangeInclusive<f64> = 1e-6..=1e9;

/// Why rows could not be dealt.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum SplitError {
    /// No row.
    #[error("there are no rows to split")]
    NoRows,
    /// More rows than can be numbered.
    #[error("{0} rows are too many to split, expected at most 4294967295")]
    TooManyRows(usize),
    /// No client.
    #[error("clients must be at least 1, got 0")]
    NoClients,
    /// A concentration that no Dirichlet distribution has.
    #[error("alpha must be {low} to {high}, got {0}", low = ALPHAS.start(), high = ALPHAS.end())]
    Alpha(f64),
    /// Not even an equal split would do.
    #[error(
        "{rows} rows are too few for {clients} clients of at least {min_rows}: use fewer clients, \
         a lower min_rows, or more data"
    )]
    TooManyClients {
        /// Rows there are.
        rows: usize,
        /// Clients to serve.
        clients: usize,
        /// Rows that each must have.
        min_rows: usize,
    },
    /// Every draw left somebody with too few rows.
    #[error(
        "{owner} is left with {got} of {rows} rows, expected at least {min_rows}, in the best of \
         {DRAWS} draws: use fewer clients than {clients}, an alpha above {alpha}, or a lower \
         min_rows"
    )]
    Starved {
        /// The owner with the fewest rows.
        owner: String,
        /// Rows that it has.
        got: usize,
        /// Rows there are.
        rows: usize,
        /// Rows that each must have.
        min_rows: usize,
        /// Clients to serve.
        clients: usize,
        /// The concentration.
        alpha: f64,
    },
    /// Natural owners have too few rows.
    #[error(
        "{} of {owners} owners have fewer than {min_rows} rows: {}; leave them out with drop_small, \
         or lower min_rows", small.len(), Few(small)
    )]
    SmallOwners {
        /// Who, and how many rows each has; the smallest come first.
        small: Vec<(String, usize)>,
        /// Owners there are.
        owners: usize,
        /// Rows that each must have.
        min_rows: usize,
    },
}

/// The first few owners of a list.
struct Few<'a>(&'a [(String, usize)]);

impl fmt::Display for Few<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 5;
        for (index, (name, rows)) in self.0.iter().take(SHOWN).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{name:?} ({rows})")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
