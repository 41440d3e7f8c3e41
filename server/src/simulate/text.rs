//! Figures and names as people read them, and tables of them for a terminal.

/// A number with its thousands apart: `12,345`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A share as a whole percentage: `8%`, and `<1%` rather than a `0%` that is not nothing.
pub(crate) fn percent(share: f64) -> String {
    match share * 100.0 {
        small if small > 0.0 && small < 1.0 => "<1%".into(),
        percent => format!("{percent:.0}%"),
    }
}

/// A mean and its standard error, to two digits of the error: `1.234 ± 0.012`. Without an error, or
/// with one of 0, the mean has four digits. There are six decimals at most.
pub(crate) fn estimate(mean: f64, error: Option<f64>) -> String {
    let decimals = |digits: i32, number: f64| {
        let leading = number.abs().log10().floor().clamp(-300.0, 300.0) as i32;
        (digits - 1 - leading).clamp(0, 6) as usize
    };
    match error.filter(|error| error.is_finite()) {
        _ if !mean.is_finite() => "–".into(),
        None | Some(0.0) if mean == 0.0 => "0".into(),
        Some(error) if error > 0.0 => {
            let decimals = decimals(2, error);
            format!("{mean:.decimals$} ± {error:.decimals$}")
        }
        Some(error) => format!("{mean:.0$} ± {error:.0$}", decimals(4, mean)),
        None if mean.abs() < 1e-3 => format!("{mean:.3e}"),
        None => format!("{mean:.0$}", decimals(4, mean)),
    }
}

/// A name from a data set, safe in a terminal: no control or direction characters, and at most
/// `width` characters.
pub(crate) fn printable(name: &str, width: usize) -> String {
    let clean = |character: char| match character {
        '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        character if character.is_control() => '\u{fffd}',
        character => character,
    };
    if name.chars().count() <= width {
        return name.chars().map(clean).collect();
    }
    let kept = name.chars().take(width.saturating_sub(1)).map(clean);
    kept.chain(['…']).collect()
}

/// Rows of cells in columns two spaces apart. `columns` has `<` for each column that starts at its
/// left, and `>` for each that ends at its right.
pub(crate) fn aligned(columns: &str, rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let widths = rows.iter().filter_map(|row| row.get(column));
        widths.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, side), width) in row.iter().zip(columns.chars()).zip(&widths) {
            let padding = " ".repeat(width - cell.chars().count());
            match side {
                '>' => line.extend([&padding, cell.as_str()]),
                _ => line.extend([cell.as_str(), &padding]),
            }
            line.push_str("  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        let texts = [0, 999, 1000, 1_234_567, u64::MAX].map(grouped);
        let expected = [
            "0",
            "999",
            "1,000",
            "1,234,567",
            "18,446,744,073,709,551,615",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn little_is_not_nothing() {
        assert_eq!(
            [0.0, 0.004, 0.01, 0.086, 1.0].map(percent),
            ["0%", "<1%", "1%", "9%", "100%"]
        );
    }

    #[test]
    fn an_estimate_has_two_digits_of_its_error() {
        let text = |mean, error| estimate(mean, Some(error));
        assert_eq!(text(1.23456, 0.01234), "1.235 ± 0.012");
        assert_eq!(text(-1.2, 0.25), "-1.20 ± 0.25");
        assert_eq!(text(1234.5, 21.0), "1234 ± 21");
        assert_eq!(text(0.0, 1e-9), "0.000000 ± 0.000000");
        assert_eq!(text(1e-9, 1e-10), "0.000000 ± 0.000000");
        assert_eq!(text(0.5, 0.0), "0.5000 ± 0.0000");
        assert_eq!(text(0.0, 0.0), "0");
        assert_eq!(text(2.0, f64::NAN), "2.000");
        assert_eq!(estimate(12.3456, None), "12.35");
        assert_eq!(estimate(0.001234, None), "0.001234");
        assert_eq!(estimate(-2e-5, None), "-2.000e-5");
        assert_eq!(estimate(0.0, None), "0");
        assert_eq!(estimate(f64::NAN, Some(1.0)), "–");
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        assert_eq!(
            printable("a\x1b[2Jb\u{202e}c\n", 20),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}"
        );
        assert_eq!(printable("größenordnung", 6), "größe…");
        assert_eq!(printable("größe", 5), "größe");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".into(), "1".into()],
            vec!["größer".into(), "100".into()],
        ];
        assert_eq!(aligned("<>", &rows), "a         1\ngrößer  100\n");
    }
}
