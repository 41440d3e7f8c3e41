//! Owners' rows and labels as SVG: a bar for each owner, and its labels below.

use std::fmt::Write as _;

use crate::report::html::{escape, name};
use crate::report::scale::Scale;
use crate::report::svg::{CHARACTER, WIDTH, open};
use crate::simulate::split::{OwnerShare, SplitTable};
use crate::simulate::text::{percent, printable};

/// Owners that have a column.
pub(super) const COLUMNS: usize = 400;

/// Owners up to which each column has a name, and the figure is as wide as any other.
const NAMED: usize = 32;

/// The width of the figure of more owners.
const WIDE: f64 = 860.0;

/// The height of the bars.
const BARS: f64 = 120.0;

/// The height of a label's row.
const ROW: f64 = 18.0;

/// Shades of a label's share: `h1` and so on in the style sheet.
const SHADES: usize = 6;

/// Whether the figure of a split is wider than others.
pub(super) fn is_wide(split: &SplitTable) -> bool {
    split.owners.len() > NAMED
}

/// The plot, unless there is no owner. `id` is its number in the page.
pub(super) fn svg(id: usize, title: &str, split: &SplitTable) -> Option<String> {
    let owners = columns(split);
    if owners.is_empty() {
        return None;
    }
    let scale = Scale::new(0.0, split.skew.max_rows.max(1) as f64, 4);
    let labels = split
        .labels
        .iter()
        .map(|label| printable(label, 24).chars().count());
    let widest = labels.max().unwrap_or(0).max(6);
    let left = 10.0 + widest as f64 * CHARACTER;
    let (top, bottom) = (24.0, 24.0 + BARS);
    let right = if is_wide(split) { WIDE } else { WIDTH } - 8.0;
    let width = (right - left) / owners.len() as f64;

    let labels_bottom = bottom + 10.0 + split.labels.len() as f64 * ROW;
    let names = if !is_wide(split) {
        names_height(&owners)
    } else {
        0.0
    };
    let key = if split.labels.is_empty() { 0.0 } else { 26.0 };
    let height = labels_bottom + names + key + 14.0;
    let description = format!(
        "{} owners with {} to {} rows",
        split.owners.len(),
        split.skew.min_rows,
        split.skew.max_rows
    );
    let mut svg = open(id, (right + 8.0, height), title, &description);
    svg.push_str("<text x=\"0\" y=\"12\">rows</text>\n");
    for tick in &scale.ticks {
        let y = bottom - scale.position(*tick) * (bottom - top);
        let _ = writeln!(
            svg,
            "<path class=\"g\" d=\"M{left:.1} {y:.1}H{:.1}\"/><text class=\"e\" x=\"{:.1}\" \
             y=\"{:.1}\">{}</text>",
            right,
            left - 6.0,
            y + 4.0,
            scale.text(*tick)
        );
    }
    let bars = |owner: &&OwnerShare| scale.position(owner.rows as f64) * (bottom - top);
    let bars: Vec<f64> = owners.iter().map(bars).collect();
    svg.push_str(&columns_path("f1", left, width, bottom, &bars));
    let _ = writeln!(
        svg,
        "<path class=\"a\" d=\"M{left:.1} {bottom:.1}H{:.1}\"/>",
        right
    );
    heat(&mut svg, split, &owners, left, width, bottom + 10.0);
    if names > 0.0 {
        for (index, owner) in owners.iter().enumerate() {
            let x = left + (index as f64 + 0.5) * width + 4.0;
            let y = labels_bottom + 6.0;
            let _ = writeln!(
                svg,
                "<text class=\"e\" transform=\"translate({x:.1} {y:.1}) rotate(-90)\">{}</text>",
                name(&owner.name)
            );
        }
    }
    if key > 0.0 {
        shades(&mut svg, left, labels_bottom + names + 14.0);
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

/// The owners in the order of their columns: by their commonest label, the largest first. Of too
/// many, evenly spread ones.
fn columns(split: &SplitTable) -> Vec<&OwnerShare> {
    let mut owners: Vec<&OwnerShare> = split.owners.iter().collect();
    owners.sort_by_key(|owner| {
        let label = owner.commonest_label().map(|(label, _)| label);
        (label, std::cmp::Reverse(owner.rows))
    });
    let count = owners.len();
    if count <= COLUMNS {
        return owners;
    }
    (0..COLUMNS)
        .map(|index| owners[index * count / COLUMNS])
        .collect()
}

/// The room that names below columns take.
fn names_height(owners: &[&OwnerShare]) -> f64 {
    let lengths = owners
        .iter()
        .map(|owner| printable(&owner.name, 24).chars().count());
    10.0 + lengths.max().unwrap_or(0) as f64 * CHARACTER
}

/// Adjoining rectangles that stand on `bottom`, with a little room between wide ones.
fn columns_path(class: &str, left: f64, width: f64, bottom: f64, heights: &[f64]) -> String {
    let gap = if width > 5.0 { width * 0.15 } else { 0.0 };
    let mut path = String::new();
    for (index, height) in heights.iter().enumerate() {
        let x = left + index as f64 * width + gap / 2.0;
        let _ = write!(
            path,
            "M{x:.2} {bottom:.1}v-{height:.1}h{:.2}v{height:.1}z",
            width - gap
        );
    }
    format!("<path class=\"{class}\" d=\"{path}\"/>\n")
}

/// A row for each label: the darker, the larger its share of the owner's rows.
fn heat(
    svg: &mut String,
    split: &SplitTable,
    owners: &[&OwnerShare],
    left: f64,
    width: f64,
    top: f64,
) {
    let mut paths = vec![String::new(); SHADES];
    for (column, owner) in owners.iter().enumerate() {
        for (row, count) in owner
            .labels
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
        {
            let share = *count as f64 / owner.rows as f64;
            let shade = ((share * SHADES as f64).ceil() as usize).clamp(1, SHADES);
            let (x, y) = (left + column as f64 * width, top + row as f64 * ROW);
            let height = ROW - 1.0;
            let _ = write!(
                paths[shade - 1],
                "M{x:.2} {y:.1}h{width:.2}v{height:.1}h-{width:.2}z"
            );
        }
    }
    for (index, path) in paths
        .iter()
        .enumerate()
        .filter(|(_, path)| !path.is_empty())
    {
        let _ = writeln!(svg, "<path class=\"h{}\" d=\"{path}\"/>", index + 1);
    }
    for (row, (label, rows)) in split.labels.iter().zip(split.label_rows()).enumerate() {
        let y = top + row as f64 * ROW;
        let share = percent(rows as f64 / split.rows.max(1) as f64);
        let _ = writeln!(
            svg,
            "<rect class=\"o\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>\
             {}: {share} of all rows</title></rect><text class=\"e\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            width * owners.len() as f64,
            ROW - 1.0,
            escape(&printable(label, 80)),
            left - 6.0,
            y + ROW / 2.0 + 3.5,
            name(label)
        );
    }
}

/// What the shades mean.
fn shades(svg: &mut String, left: f64, y: f64) {
    for shade in 1..=SHADES {
        let x = left + (shade - 1) as f64 * 30.0;
        let _ = write!(
            svg,
            "<path class=\"h{shade}\" d=\"M{x:.1} {y:.1}h30v12h-30z\"/>"
        );
    }
    let _ = writeln!(
        svg,
        "<text class=\"e\" x=\"{:.1}\" y=\"{:.1}\">0%</text><text x=\"{:.1}\" y=\"{:.1}\">100% of the \
         owner’s rows</text>",
        left - 6.0,
        y + 10.5,
        left + SHADES as f64 * 30.0 + 6.0,
        y + 10.5
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::split::{Categories, Partition, split};

    fn table(owners: usize, labels: usize) -> SplitTable {
        let names: Vec<String> = (0..labels)
            .map(|label| format!("<label {label}>"))
            .collect();
        let rows = owners * 4;
        let labels = Categories::intern((0..rows).map(|row| names[row % labels].as_str()));
        let split = split(&labels, Partition::Iid, owners, 1, 0).unwrap();
        SplitTable::new("IID", &split, &labels, &vec![1; rows])
    }

    /// How many bars the plot has.
    fn bars(svg: &str) -> usize {
        let path = svg.split("class=\"f1\" d=\"").nth(1).unwrap();
        path.split('"').next().unwrap().matches('z').count()
    }

    #[test]
    fn every_owner_has_a_bar_and_a_name_while_there_is_room() {
        let svg = svg(1, "Split", &table(12, 3)).unwrap();
        assert_eq!(bars(&svg), 12);
        assert_eq!(svg.matches("client-").count(), 12);
        assert!(!svg.contains("<label") && svg.contains("&lt;label 2&gt;"));
        assert!(
            !super::svg(1, "", &table(100, 3))
                .unwrap()
                .contains("client-")
        );
    }

    #[test]
    fn no_label_is_no_heat_map() {
        let svg = svg(1, "Split", &table(12, 1)).unwrap();
        assert!(!svg.contains("class=\"h"));
    }

    #[test]
    fn thousands_of_owners_are_sampled() {
        let svg = svg(1, "Split", &table(3000, 30)).unwrap();
        assert_eq!(bars(&svg), COLUMNS);
        assert!(svg.len() < 400_000, "{}", svg.len());
    }

    #[test]
    fn owners_of_one_label_stand_together() {
        let table = table(40, 5);
        let labels = columns(&table)
            .into_iter()
            .map(|owner| owner.commonest_label().unwrap().0);
        assert!(labels.collect::<Vec<_>>().is_sorted());
    }
}
