//! Text that is safe in a page, and quantities as people read them.

use crate::simulate::text::{percent, printable};

/// Characters that a name may take in a figure.
const NAME: usize = 24;

/// Text as HTML: what would be markup is not, and control characters are gone.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A name from a data set as HTML, short enough for a figure.
pub(crate) fn name(text: &str) -> String {
    escape(&printable(text, NAME))
}

/// A table with a caption. Cells are HTML; all but those of the first column end at its right.
pub(crate) fn table(caption: &str, header: &[String], rows: &[Vec<String>]) -> String {
    let cells = |tag: &str, cells: &[String]| -> String {
        cells
            .iter()
            .map(|cell| format!("<{tag}>{cell}</{tag}>"))
            .collect()
    };
    let mut body = String::new();
    for row in rows {
        let Some((first, rest)) = row.split_first() else {
            continue;
        };
        let rest = cells("td", rest);
        body.push_str(&format!("<tr><th scope=\"row\">{first}</th>{rest}</tr>\n"));
    }
    let header: String = header
        .iter()
        .map(|cell| format!("<th scope=\"col\">{cell}</th>"))
        .collect();
    format!(
        "<div class=\"scroll\"><table><caption>{caption}</caption>\n<thead><tr>{header}</tr></thead>\n\
         <tbody>\n{body}</tbody></table></div>\n"
    )
}

/// Bytes in the unit that suits them: `1.23 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let (factor, unit) = byte_unit(bytes as f64);
    let value = bytes as f64 / factor;
    match unit {
        "bytes" => format!("{bytes} bytes"),
        _ if value < 10.0 => format!("{value:.2} {unit}"),
        _ if value < 100.0 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// The unit that suits a number of bytes, and how many bytes it is.
pub(crate) fn byte_unit(bytes: f64) -> (f64, &'static str) {
    match bytes {
        small if small < 1e3 => (1.0, "bytes"),
        kilo if kilo < 1e6 => (1e3, "kB"),
        mega if mega < 1e9 => (1e6, "MB"),
        giga if giga < 1e12 => (1e9, "GB"),
        _ => (1e12, "TB"),
    }
}

/// A part of a whole as a percentage.
pub(crate) fn percent_of(part: f64, whole: f64) -> String {
    match part / whole {
        share if share.is_finite() => percent(share),
        _ => "–".into(),
    }
}

/// A time in its two largest units: `2 h 5 min`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "–".into();
    }
    let whole = seconds.round() as u64;
    match seconds {
        short if short < 9.95 => format!("{short:.1} s"),
        _ if whole < 60 => format!("{whole} s"),
        _ if whole < 3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ if whole < 86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// The unit that suits a time, and how many seconds it is.
pub(crate) fn time_unit(seconds: f64) -> (f64, &'static str) {
    match seconds {
        short if short < 300.0 => (1.0, "seconds"),
        medium if medium < 3.0 * 3600.0 => (60.0, "minutes"),
        long if long < 4.0 * 86_400.0 => (3600.0, "hours"),
        _ => (86_400.0, "days"),
    }
}

/// A power of ten: `10⁻⁴`.
pub(crate) fn power_of_ten(exponent: i32) -> String {
    let digits = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let raise = |character: char| match character.to_digit(10) {
        Some(digit) => digits[digit as usize],
        None => '⁻',
    };
    format!(
        "10{}",
        exponent.to_string().chars().map(raise).collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_becomes_text() {
        let text = escape("<b a='1'>\"&\"</b>\u{0}\n");
        assert_eq!(
            text,
            "&lt;b a=&#39;1&#39;&gt;&quot;&amp;&quot;&lt;/b&gt;\u{fffd}\n"
        );
        assert_eq!(name("a<\u{202e}b"), "a&lt;\u{fffd}b");
        assert_eq!(name(&"&".repeat(30)), "&amp;".repeat(23) + "…");
    }

    #[test]
    fn quantities_have_units() {
        let texts = [0, 999, 1234, 56_789_000, 123_456_000_000].map(bytes);
        assert_eq!(
            texts,
            ["0 bytes", "999 bytes", "1.23 kB", "56.8 MB", "123 GB"]
        );
        let texts = [0.0, 9.96, 59.6, 125.0, 7500.0, 200_000.0].map(duration);
        assert_eq!(
            texts,
            [
                "0.0 s",
                "10 s",
                "1 min 0 s",
                "2 min 5 s",
                "2 h 5 min",
                "2 d 7 h"
            ]
        );
        assert_eq!(duration(f64::NAN), "–");
        assert_eq!([-12, 3].map(power_of_ten), ["10⁻¹²", "10³"]);
    }

    #[test]
    fn a_table_names_its_rows_and_columns() {
        let table = table(
            "All",
            &["model".into(), "loss".into()],
            &[vec!["a".into(), "1".into()]],
        );
        assert!(table.contains("<caption>All</caption>"));
        assert!(table.contains("<th scope=\"col\">loss</th>"));
        assert!(table.contains("<tr><th scope=\"row\">a</th><td>1</td></tr>"));
    }
}
