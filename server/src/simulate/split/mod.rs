//! Whose rows are whose: a data set dealt to simulated clients.

mod error;
mod render;
mod shares;
mod table;

use std::collections::HashMap;
use std::fmt;

use rand::seq::SliceRandom;

pub use error::SplitError;
use error::{ALPHAS, DRAWS};
use shares::{dirichlet, largest_remainder};
pub use table::{OwnerShare, Skew, SplitTable};

use super::seed::generator;

/// How rows are dealt to clients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Partition {
    /// At random, as many to each client as to any other.
    Iid,
    /// Each category on its own, in proportions drawn from a symmetric Dirichlet distribution over
    /// the clients. A small `alpha` gives a category to few clients; a large one gives every client
    /// the same mixture. Sizes differ too.
    ///
    /// Source: Yurochkin et al. 2019, arXiv 1905.12022, section 4. Hsu et al. 2019, arXiv
    /// 1909.06335, section 3, draw each client's mixture of categories instead, at equal sizes.
    Dirichlet {
        /// The concentration, above 0.
        alpha: f64,
    },
    /// At random, but in numbers drawn from a symmetric Dirichlet distribution.
    ///
    /// Source: Li et al. 2021, arXiv 2102.02079, section 4 ("quantity skew").
    Quantity {
        /// The concentration, above 0.
        alpha: f64,
    },
    /// A category is an owner: a field of the row, a file, or a client of FedLLM-Bench.
    Natural {
        /// Leave out owners with too few rows, instead of refusing.
        drop_small: bool,
    },
}

/// The category of each row: a label, a source, or an owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categories {
    rows: Vec<u32>,
    names: Vec<String>,
}

/// Owners and their rows. Every row has one owner, unless owners were left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Owners in the order of their names, which for simulated ones is that of their numbers.
    pub owners: Vec<OwnerRows>,
    /// Owners that were left out, because they have too few rows, and how many they have.
    pub dropped: Vec<(String, usize)>,
}

/// One owner's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerRows {
    /// The category that is the owner, or `client-` and a number from 0.
    pub name: String,
    /// Indices of its rows, in rising order.
    pub rows: Vec<u32>,
}

impl Categories {
    /// The categories of rows by their names, numbered as they come.
    pub fn intern<'a>(rows: impl IntoIterator<Item = &'a str>) -> Self {
        let mut numbers = HashMap::new();
        let mut categories = Self::default();
        for name in rows {
            let number = *numbers.entry(name).or_insert_with(|| {
                categories.names.push(name.to_owned());
                // `split` refuses rows, and so categories, beyond `u32`.
                (categories.names.len() - 1) as u32
            });
            categories.rows.push(number);
        }
        categories
    }

    /// Each row's category, an index into [`names`](Self::names).
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// What the categories are called.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The rows of each category.
    fn members(&self) -> Vec<Vec<u32>> {
        let mut members = vec![Vec::new(); self.names.len()];
        for (row, category) in (0..).zip(&self.rows) {
            members[*category as usize].push(row);
        }
        members
    }
}

/// Deals rows to owners, each at least `min_rows` and one at the least.
///
/// The same arguments give the same split. A random split that leaves an owner with too few rows
/// is drawn again, up to 1000 times. Proportions become whole rows by the largest remainder.
/// [`Partition::Natural`] has the owners that it has: `clients` and `seed` do not matter to it.
///
/// # Errors
///
/// [`SplitError`], which says what to change.
///
/// # Examples
///
/// ```
/// use fedllm_server::simulate::{Categories, Partition, split};
///
/// let labels = Categories::intern(["sport", "music", "sport", "sport"]);
/// let halves = split(&labels, Partition::Iid, 2, 1, 7)?;
/// assert_eq!(halves.owners[1].name, "client-1");
/// assert_eq!(halves.owners[1].rows.len(), 2);
///
/// let natural = Partition::Natural { drop_small: false };
/// let owners = split(&labels, natural, 0, 1, 7)?.owners;
/// assert_eq!((owners[0].name.as_str(), owners[0].rows.as_slice()), ("music", [1].as_slice()));
/// # Ok::<(), fedllm_server::simulate::SplitError>(())
/// ```
pub fn split(
    categories: &Categories,
    partition: Partition,
    clients: usize,
    min_rows: usize,
    seed: u64,
) -> Result<Split, SplitError> {
    let rows = categories.rows.len();
    let min_rows = min_rows.max(1);
    if rows == 0 {
        return Err(SplitError::NoRows);
    }
    if u32::try_from(rows).is_err() {
        return Err(SplitError::TooManyRows(rows));
    }
    let (pools, alpha) = match partition {
        Partition::Natural { drop_small } => return natural(categories, min_rows, drop_small),
        Partition::Iid => (vec![(0..rows as u32).collect()], None),
        Partition::Quantity { alpha } => (vec![(0..rows as u32).collect()], Some(alpha)),
        Partition::Dirichlet { alpha } => (categories.members(), Some(alpha)),
    };
    if let Some(alpha) = alpha.filter(|alpha| !ALPHAS.contains(alpha)) {
        return Err(SplitError::Alpha(alpha));
    }
    if clients == 0 {
        return Err(SplitError::NoClients);
    }
    if clients.checked_mul(min_rows).is_none_or(|all| all > rows) {
        return Err(SplitError::TooManyClients {
            rows,
            clients,
            min_rows,
        });
    }
    let counts = draw(&pools, alpha, clients, min_rows, seed)?;
    Ok(deal(pools, &counts, clients, seed))
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iid => f.write_str("IID"),
            Self::Dirichlet { alpha } => write!(f, "Dirichlet({alpha})"),
            Self::Quantity { alpha } => write!(f, "quantity skew, Dirichlet({alpha})"),
            Self::Natural { .. } => f.write_str("natural owners"),
        }
    }
}

/// How many rows of each pool go to each client: `[pool][client]`.
fn draw(
    pools: &[Vec<u32>],
    alpha: Option<f64>,
    clients: usize,
    min_rows: usize,
    seed: u64,
) -> Result<Vec<Vec<usize>>, SplitError> {
    let mut best = (0, 0);
    for attempt in 0..DRAWS {
        let mut rng = generator(seed, "split sizes", &[attempt]);
        let mut sizes = vec![0; clients];
        let mut counts = Vec::with_capacity(pools.len());
        for pool in pools {
            let shares = match alpha {
                Some(alpha) => dirichlet(alpha, clients, &mut rng)?,
                None => vec![1.0; clients],
            };
            let dealt = largest_remainder(pool.len(), &shares);
            sizes.iter_mut().zip(&dealt).for_each(|(a, b)| *a += b);
            counts.push(dealt);
        }
        let least = sizes.iter().copied().min().unwrap_or(0);
        if least >= min_rows {
            return Ok(counts);
        }
        if attempt == 0 || least > best.1 {
            let owner = sizes.iter().position(|size| *size == least);
            best = (owner.unwrap_or(0), least);
        }
    }
    Err(SplitError::Starved {
        owner: client_name(best.0, clients),
        got: best.1,
        rows: pools.iter().map(Vec::len).sum(),
        min_rows,
        clients,
        alpha: alpha.unwrap_or(f64::INFINITY),
    })
}

/// Deals shuffled pools in the numbers that were drawn.
fn deal(mut pools: Vec<Vec<u32>>, counts: &[Vec<usize>], clients: usize, seed: u64) -> Split {
    let mut hands = vec![Vec::new(); clients];
    for (index, (pool, counts)) in (0..).zip(pools.iter_mut().zip(counts)) {
        pool.shuffle(&mut generator(seed, "split rows", &[index]));
        let mut rest = pool.as_slice();
        for (hand, count) in hands.iter_mut().zip(counts) {
            let (dealt, remaining) = rest.split_at(*count);
            hand.extend_from_slice(dealt);
            rest = remaining;
        }
    }
    let owner = |(index, mut rows): (usize, Vec<u32>)| {
        rows.sort_unstable();
        let name = client_name(index, clients);
        OwnerRows { name, rows }
    };
    Split {
        owners: hands.into_iter().enumerate().map(owner).collect(),
        dropped: Vec::new(),
    }
}

fn natural(
    categories: &Categories,
    min_rows: usize,
    drop_small: bool,
) -> Result<Split, SplitError> {
    let named = categories.names.iter().cloned().zip(categories.members());
    let (mut owners, small): (Vec<_>, Vec<_>) = named
        .map(|(name, rows)| OwnerRows { name, rows })
        .partition(|owner| owner.rows.len() >= min_rows);
    let mut small: Vec<_> = small
        .into_iter()
        .map(|owner| (owner.name, owner.rows.len()))
        .collect();
    small.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
    if owners.is_empty() || !(drop_small || small.is_empty()) {
        return Err(SplitError::SmallOwners {
            small,
            owners: categories.names.len(),
            min_rows,
        });
    }
    owners.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Split {
        owners,
        dropped: small,
    })
}

/// Numbers have equally many digits, so that the order of names is that of numbers.
fn client_name(index: usize, clients: usize) -> String {
    let width = clients.saturating_sub(1).to_string().len();
    format!("client-{index:0width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: std::ops::Range<u64> = 0..20;

    /// `rows` rows of `labels` labels in turn.
    fn labels(rows: usize, labels: usize) -> Categories {
        let names: Vec<String> = (0..labels).map(|label| format!("label {label}")).collect();
        Categories::intern((0..rows).map(|row| names[row % labels].as_str()))
    }

    fn sizes(split: &Split) -> Vec<usize> {
        split.owners.iter().map(|owner| owner.rows.len()).collect()
    }

    /// The largest share that one owner has of one category, averaged over categories.
    fn concentration(split: &Split, categories: &Categories) -> f64 {
        let members = categories.members();
        let largest = (0..).zip(&members).map(|(category, rows): (u32, _)| {
            let has = |owner: &OwnerRows| {
                let of = |row: &&u32| categories.rows()[**row as usize] == category;
                owner.rows.iter().filter(of).count()
            };
            split.owners.iter().map(has).max().unwrap() as f64 / rows.len() as f64
        });
        largest.sum::<f64>() / members.len() as f64
    }

    #[test]
    fn every_row_has_one_owner_and_every_owner_enough() {
        let categories = labels(997, 7);
        let kinds = [
            Partition::Iid,
            Partition::Dirichlet { alpha: 0.3 },
            Partition::Dirichlet { alpha: 100.0 },
            Partition::Quantity { alpha: 0.8 },
            Partition::Natural { drop_small: false },
        ];
        for (kind, seed) in kinds.iter().flat_map(|kind| SEEDS.map(move |s| (kind, s))) {
            let split = split(&categories, *kind, 13, 3, seed).unwrap();
            let mut rows: Vec<u32> = Vec::new();
            for owner in &split.owners {
                assert!(owner.rows.len() >= 3 && owner.rows.is_sorted());
                rows.extend(&owner.rows);
            }
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..997), "{kind}, seed {seed}");
            assert!(split.owners.is_sorted_by(|a, b| a.name < b.name));
            let natural = matches!(kind, Partition::Natural { .. });
            assert_eq!(split.owners.len(), if natural { 7 } else { 13 });
        }
    }

    #[test]
    fn a_seed_fixes_the_split() {
        let categories = labels(500, 5);
        for kind in [
            Partition::Iid,
            Partition::Dirichlet { alpha: 0.5 },
            Partition::Quantity { alpha: 1.0 },
        ] {
            let of = |seed| split(&categories, kind, 9, 1, seed).unwrap();
            assert_eq!(of(3), of(3), "{kind}");
            assert_ne!(of(3), of(4), "{kind}");
        }
    }

    #[test]
    fn iid_sizes_differ_by_one_at_most() {
        for (rows, clients) in [(100, 7), (100, 100), (3, 1), (1000, 3)] {
            let split = split(&labels(rows, 3), Partition::Iid, clients, 1, 0).unwrap();
            let sizes = sizes(&split);
            let (low, high) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            assert!(high - low <= 1, "{sizes:?}");
        }
    }

    #[test]
    fn alpha_goes_from_one_owner_a_category_to_equal_mixtures() {
        let categories = labels(6000, 6);
        let mean = |alpha| {
            let one = |seed| {
                let split = split(&categories, Partition::Dirichlet { alpha }, 4, 1, seed);
                concentration(&split.unwrap(), &categories)
            };
            SEEDS.map(one).sum::<f64>() / 20.0
        };
        let means = [1e-6, 0.1, 1.0, 10.0, 1e9].map(mean);
        assert!(means[0] > 0.999, "{means:?}");
        assert!(means.is_sorted_by(|a, b| a > b), "{means:?}");
        assert!(means[4] < 0.251, "{means:?}");
    }

    #[test]
    fn a_large_alpha_makes_quantities_equal_too() {
        let of = |alpha| {
            let split = split(&labels(4000, 2), Partition::Quantity { alpha }, 8, 1, 5);
            sizes(&split.unwrap())
        };
        assert!(of(1e9).iter().all(|size| (499..=501).contains(size)));
        let skewed = of(0.5);
        let (low, high) = (skewed.iter().min().unwrap(), skewed.iter().max().unwrap());
        assert!(high - low > 500, "{skewed:?}");
    }

    #[test]
    fn a_split_that_starves_an_owner_says_what_to_change() {
        let categories = labels(100, 2);
        let dirichlet = Partition::Dirichlet { alpha: 0.01 };
        let error = split(&categories, dirichlet, 20, 2, 0).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, SplitError::Starved { got: 0, .. }));
        assert!(text.starts_with("client-00 is left with 0 of 100 rows, expected at least 2"));
        assert!(text.ends_with("fewer clients than 20, an alpha above 0.01, or a lower min_rows"));
        let error = split(&categories, Partition::Iid, 101, 0, 0).unwrap_err();
        let text = "100 rows are too few for 101 clients of at least 1: use fewer clients, a lower \
                    min_rows, or more data";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn bad_arguments_are_refused() {
        let categories = labels(10, 2);
        let none = Categories::default();
        assert_eq!(
            split(&none, Partition::Iid, 1, 1, 0),
            Err(SplitError::NoRows)
        );
        assert_eq!(
            split(&categories, Partition::Iid, 0, 1, 0),
            Err(SplitError::NoClients)
        );
        for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let refused = split(&categories, Partition::Quantity { alpha }, 2, 1, 0);
            assert!(matches!(refused, Err(SplitError::Alpha(_))), "{alpha}");
        }
        let text = SplitError::Alpha(0.0).to_string();
        assert_eq!(text, "alpha must be 0.000001 to 1000000000, got 0");
    }

    #[test]
    fn small_natural_owners_are_named_or_left_out() {
        let rows = ["b", "a", "b", "c", "b", "a", "d"];
        let categories = Categories::intern(rows);
        let natural =
            |drop_small, min| split(&categories, Partition::Natural { drop_small }, 99, min, 0);
        let error = natural(false, 2).unwrap_err().to_string();
        let text = "2 of 4 owners have fewer than 2 rows: \"c\" (1), \"d\" (1); leave them out with \
                    drop_small, or lower min_rows";
        assert_eq!(error, text);
        let split = natural(true, 2).unwrap();
        let names: Vec<&str> = split.owners.iter().map(|o| o.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(split.owners[1].rows, [0, 2, 4]);
        assert_eq!(split.dropped, [("c".into(), 1), ("d".into(), 1)]);
        assert!(natural(true, 4).is_err(), "nobody is left");
    }
}
