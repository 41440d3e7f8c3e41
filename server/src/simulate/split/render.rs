//! A split as people see it in a terminal, before anything is trained.

use std::fmt::{self, Write as _};

use super::{OwnerShare, SplitTable};
use crate::simulate::text::{aligned, grouped, percent, printable};

/// Owners that have a line each; of more, the largest and the smallest have.
const OWNERS: usize = 40;

/// Characters of a full bar.
const BAR: usize = 16;

/// Bars of the histogram.
const BINS: u64 = 10;

/// Characters that a name may take.
const NAME: usize = 24;

impl fmt::Display for SplitTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, tokens) = (grouped(self.rows), grouped(self.tokens));
        let owners = match self.owners.len() {
            1 => "1 owner".into(),
            owners => format!("{} owners", grouped(owners as u64)),
        };
        let partition = printable(&self.partition, 80);
        writeln!(f, "{partition}: {rows} rows, {tokens} tokens, {owners}\n")?;
        f.write_str(&self.owner_lines())?;
        self.legend(f)?;
        if self.owners.len() > OWNERS {
            writeln!(f)?;
            f.write_str(&self.histogram())?;
        }
        writeln!(f)?;
        self.skew_lines(f)
    }
}

impl SplitTable {
    fn owner_lines(&self) -> String {
        let labelled = !self.labels.is_empty();
        let mut lines = vec![cells(["owner", "rows", "", "tokens"])];
        if labelled {
            lines[0].extend(cells(["commonest label", "labels"]));
        }
        let mut owners: Vec<&OwnerShare> = self.owners.iter().collect();
        if owners.len() <= OWNERS {
            lines.extend(owners.iter().map(|owner| self.owner_line(owner)));
        } else {
            owners.sort_by_key(|owner| std::cmp::Reverse(owner.rows));
            let (largest, rest) = owners.split_at(OWNERS / 2);
            let (middle, smallest) = rest.split_at(rest.len() - OWNERS / 2);
            lines.extend(largest.iter().map(|owner| self.owner_line(owner)));
            lines.push(between(middle));
            lines.extend(smallest.iter().map(|owner| self.owner_line(owner)));
        }
        aligned("<><><<", &lines)
    }

    fn owner_line(&self, owner: &OwnerShare) -> Vec<String> {
        let mut line = vec![
            printable(&owner.name, NAME),
            grouped(owner.rows),
            bar(owner.rows, self.skew.max_rows),
            grouped(owner.tokens),
        ];
        if let Some((label, rows)) = owner.commonest_label() {
            let share = rows as f64 / owner.rows as f64;
            let name = printable(&self.labels[label], NAME);
            line.push(format!("{name} {}", percent(share)));
            line.push(heat(&owner.labels, owner.rows));
        }
        line
    }

    /// What the columns of the labels are.
    fn legend(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.labels.is_empty() {
            return Ok(());
        }
        let shares = self.label_rows().into_iter().zip(&self.labels);
        let mut line = String::from("labels, from the left:");
        for (index, (rows, name)) in shares.enumerate() {
            let share = percent(rows as f64 / self.rows as f64);
            let comma = if index > 0 { "," } else { "" };
            let item = format!(" {} {share}", printable(name, NAME));
            line.push_str(comma);
            if line.chars().count() + item.chars().count() > 98 {
                writeln!(f, "{line}")?;
                line = String::from(" ");
            }
            line.push_str(&item);
        }
        writeln!(f, "{line}")
    }

    /// How many owners have how many rows, in steps of equal width, or of doubling width when
    /// sizes are far apart.
    fn histogram(&self) -> String {
        let (low, high) = (self.skew.min_rows, self.skew.max_rows);
        let doubling = high / low.max(1) > 2 * BINS;
        let step = (high - low + 1).div_ceil(BINS);
        let bin = |rows: u64| match doubling {
            true => rows.max(1).ilog2() - low.max(1).ilog2(),
            false => ((rows - low) / step) as u32,
        };
        let bounds = |index: u32| match doubling {
            true => (
                1 << (index + low.max(1).ilog2()),
                (2 << (index + low.max(1).ilog2())) - 1,
            ),
            false => (
                low + u64::from(index) * step,
                low + (u64::from(index) + 1) * step - 1,
            ),
        };
        let mut counts = vec![0; bin(high) as usize + 1];
        for owner in &self.owners {
            counts[bin(owner.rows) as usize] += 1;
        }
        let most = counts.iter().copied().max().unwrap_or(0);
        let lines = (0..).zip(&counts).map(|(index, count)| {
            let (from, to) = bounds(index);
            let range = match from == to {
                true => grouped(from),
                false => format!("{} to {}", grouped(from), grouped(to)),
            };
            vec![range, grouped(*count), bar(*count, most)]
        });
        let header = cells(["rows", "owners", ""]);
        aligned(
            ">><",
            &[header].into_iter().chain(lines).collect::<Vec<_>>(),
        )
    }

    fn skew_lines(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skew = &self.skew;
        let (low, high) = (grouped(skew.min_rows), grouped(skew.max_rows));
        write!(f, "sizes: {low} to {high} rows an owner")?;
        let ratio = skew.max_rows as f64 / skew.min_rows.max(1) as f64;
        if ratio >= 1.05 {
            write!(f, ", the largest {ratio:.1} times the smallest")?;
        }
        writeln!(f, "; Gini {:.2}", skew.gini)?;
        if let (Some(distance), Some(chance)) = (skew.label_distance, skew.label_distance_iid) {
            writeln!(
                f,
                "labels: an owner's mixture is {distance:.2} from that of all rows (total \
                 variation, 0 to 1); dealt at random it would be {chance:.2}"
            )?;
        }
        if self.dropped_owners > 0 {
            let (owners, rows) = (grouped(self.dropped_owners), grouped(self.dropped_rows));
            writeln!(
                f,
                "left out: {owners} owners with too few rows, {rows} rows in all"
            )?;
        }
        Ok(())
    }
}

fn cells<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(String::from).to_vec()
}

/// The owners that have no line.
fn between(owners: &[&OwnerShare]) -> Vec<String> {
    let rows: u64 = owners.iter().map(|owner| owner.rows).sum();
    let tokens: u64 = owners.iter().map(|owner| owner.tokens).sum();
    vec![
        format!("({} more)", grouped(owners.len() as u64)),
        grouped(rows),
        "in all".into(),
        grouped(tokens),
    ]
}

/// A bar of at most [`BAR`] characters, to an eighth of one. Only nothing has none.
fn bar(value: u64, most: u64) -> String {
    let eighths = (value as f64 / most.max(1) as f64 * (BAR * 8) as f64).round() as usize;
    let eighths = eighths.max(usize::from(value > 0));
    let mut bar = "█".repeat(eighths / 8);
    bar.extend(['▏', '▎', '▍', '▌', '▋', '▊', '▉'].get((eighths % 8).wrapping_sub(1)));
    bar
}

/// A character for each label, as high as its share of the rows; a blank if no row has it.
fn heat(counts: &[u64], rows: u64) -> String {
    let mut heat = String::new();
    for count in counts {
        let level = (count * 8).div_ceil(rows.max(1)) as usize;
        let levels = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        // A share is at most the whole.
        let _ = heat.write_char(levels[level.min(8)]);
    }
    heat
}

#[cfg(test)]
mod tests {
    use super::super::{Categories, Partition, split};
    use super::*;

    fn table(partition: Partition, rows: usize, clients: usize) -> SplitTable {
        let names = ["sport", "politics", "music", "\u{1b}[31mred"];
        let of = |row: usize| names[(row % 7) / 2];
        let labels = Categories::intern((0..rows).map(of));
        let split = split(&labels, partition, clients, 1, 11).unwrap();
        SplitTable::new(partition.to_string(), &split, &labels, &vec![10; rows])
    }

    #[test]
    fn few_owners_have_a_line_each() {
        let text = table(Partition::Natural { drop_small: false }, 70, 0).to_string();
        let expected = "\
natural owners: 70 rows, 700 tokens, 4 owners

owner     rows                    tokens  commonest label  labels
\u{fffd}[31mred    10  ████████             100  \u{fffd}[31mred 100%       █
music       20  ████████████████     200  music 100%         █
politics    20  ████████████████     200  politics 100%     █
sport       20  ████████████████     200  sport 100%       █
labels, from the left: sport 29%, politics 29%, music 29%, \u{fffd}[31mred 14%

sizes: 10 to 20 rows an owner, the largest 2.0 times the smallest; Gini 0.11
labels: an owner's mixture is 0.75 from that of all rows (total variation, 0 to 1); dealt at random it would be 0.12
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn of_many_owners_the_extremes_have_lines() {
        let text = table(Partition::Quantity { alpha: 1.0 }, 20_000, 300).to_string();
        let lines = text.lines().filter(|line| line.starts_with("client-"));
        assert_eq!(lines.count(), OWNERS);
        assert!(text.contains("(260 more)"), "\n{text}");
        assert!(text.lines().all(|line| line.chars().count() < 120));
    }

    #[test]
    fn the_histogram_counts_every_owner() {
        for alpha in [0.9, 3.0, 1e6] {
            let table = table(Partition::Quantity { alpha }, 20_000, 100);
            let text = table.histogram();
            let owners = text.lines().skip(1).map(|line| {
                let mut words = line.split_whitespace().rev();
                words.find_map(|word| word.parse::<u64>().ok()).unwrap()
            });
            assert_eq!(owners.sum::<u64>(), 100, "{alpha}\n{text}");
        }
    }

    #[test]
    fn bars_and_heat_show_little_and_not_nothing() {
        assert_eq!(bar(0, 100), "");
        assert_eq!(bar(1, 100_000), "▏");
        assert_eq!(bar(1, 2), "████████");
        assert_eq!(bar(5, 5).chars().count(), BAR);
        assert_eq!(heat(&[0, 1, 500, 1000], 1000), " ▁▄█");
    }
}
