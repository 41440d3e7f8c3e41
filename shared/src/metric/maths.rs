//! Answers to mathematical problems: boxed, written in LaTeX, or plain numbers.

/// What replaces what, in this order, before an answer is looked at more closely.
const SIMPLER: [(&str, &str); 10] = [
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
];

/// How far apart two numbers may be and count as equal.
const TOLERANCE: f64 = 1e-3;

/// What the last `\boxed{}` of a text holds, or else the last `\fbox{}`; None if there is none, or
/// it is not closed. `\boxed 5$` holds what comes before the dollar or the end of the line.
///
/// Source: Hendrycks et al. 2021, arXiv 2103.03874, `last_boxed_only_string`; boxes without braces
/// as in EleutherAI's lm-evaluation-harness, `hendrycks_math`.
///
/// ```
/// let solution = r"First \boxed{1}, so that $x = \boxed{\frac{1}{2}}$.";
/// assert_eq!(fedllm_shared::last_boxed(solution), Some(r"\frac{1}{2}"));
/// ```
pub fn last_boxed(text: &str) -> Option<&str> {
    let after = |command: &str| text.rfind(command).map(|at| &text[at + command.len()..]);
    let rest = after("\\boxed").or_else(|| after("\\fbox"))?.trim_start();
    let Some(inside) = rest.strip_prefix('{') else {
        return rest.split(['$', '\n']).next().map(str::trim_end);
    };
    let mut open = 1;
    for (at, c) in inside.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(&inside[..at]);
        }
    }
    None
}

/// Whether two answers are the same in what MATH takes for the same: up to spaces, units, degrees,
/// dollars and percents, `\left` and `\right`, ways to write fractions and roots, `0.5` and `x =`.
/// Their values are not computed.
///
/// Source: Hendrycks et al. 2021, arXiv 2103.03874, `is_equiv`; what makes that script fail, such
/// as a fraction of nothing, is compared as it is here too.
///
/// ```
/// assert!(fedllm_shared::maths_equal(r"\tfrac12", "1/2"));
/// assert!(!fedllm_shared::maths_equal("0.25", r"\frac14"));
/// ```
pub fn maths_equal(answer: &str, expected: &str) -> bool {
    match (simplified(answer), simplified(expected)) {
        (Some(answer), Some(expected)) => answer == expected,
        _ => answer == expected,
    }
}

/// The number after the first `####`, on the same line: how GSM8K marks answers.
///
/// Source: Cobbe et al. 2021, arXiv 2110.14168; here `$` may stand before the number.
///
/// ```
/// assert_eq!(fedllm_shared::marked_number("2 * 617 = 1234\n#### 1,234"), Some(1234.0));
/// ```
pub fn marked_number(text: &str) -> Option<f64> {
    let (_, after) = text.split_once("####")?;
    numbers(after.lines().next()?).first().copied()
}

/// The last number of a text. Thousands may have commas, `$` may stand before it, and a minus sign
/// counts unless it stands between two terms; a dot that ends a sentence does not belong to it.
///
/// ```
/// assert_eq!(fedllm_shared::last_number("They owe -$1,200.50."), Some(-1200.5));
/// assert_eq!(fedllm_shared::last_number("No idea."), None);
/// ```
pub fn last_number(text: &str) -> Option<f64> {
    numbers(text).last().copied()
}

/// Whether two numbers are less than a thousandth apart, as PAL (Gao et al. 2022, arXiv 2211.10435)
/// compares answers to GSM8K and SVAMP.
pub fn numbers_equal(answer: f64, expected: f64) -> bool {
    (answer - expected).abs() < TOLERANCE
}

/// An answer as `_strip_string` of MATH leaves it; None where that fails.
fn simplified(answer: &str) -> Option<String> {
    let replace = |text: String, (from, to): &(&str, &str)| text.replace(from, to);
    let mut text = SIMPLER.iter().fold(answer.to_owned(), replace);

    let mut units = text.split("\\text{ ");
    let value = units.next()?.to_owned();
    if units.count() > 1 {
        return None;
    }
    text = value
        .replace("\\%", "")
        .replace(" .", " 0.")
        .replace("{.", "{0.");
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    if let [name, value] = text.split('=').collect::<Vec<_>>()[..]
        && name.chars().count() <= 2
    {
        text = value.to_owned();
    }
    text = braced_roots(&text)?.replace(' ', "");
    text = braced_fractions(&text)?;
    if text == "0.5" {
        text = "\\frac{1}{2}".to_owned();
    }
    Some(slashed_fraction(&text).unwrap_or(text))
}

/// `\sqrt3` as `\sqrt{3}`; None of a root of nothing.
fn braced_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut braced = parts.next()?.to_owned();
    for part in parts {
        let first = part.chars().next()?;
        braced.push_str("\\sqrt");
        match first {
            '{' => braced.push_str(part),
            _ => braced.push_str(&format!("{{{first}}}{}", &part[first.len_utf8()..])),
        }
    }
    Some(braced)
}

/// `\frac12` and `\frac1{2}` as `\frac{1}{2}`; None of a fraction of nothing. The text as it is if
/// a fraction has only half of what it needs.
fn braced_fractions(text: &str) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut braced = parts.next()?.to_owned();
    for part in parts {
        braced.push_str("\\frac");
        let mut chars = part.chars();
        match (chars.next()?, chars.next()) {
            ('{', _) => braced.push_str(part),
            (_, None) => return Some(text.to_owned()),
            (above, Some('{')) => braced.push_str(&format!("{{{above}}}{{{}", chars.as_str())),
            (above, Some(below)) => {
                braced.push_str(&format!("{{{above}}}{{{below}}}{}", chars.as_str()));
            }
        }
    }
    Some(braced)
}

/// `3/4` as `\frac{3}{4}`, if that is all, of whole numbers as Python prints them.
fn slashed_fraction(text: &str) -> Option<String> {
    let (above, below) = text.split_once('/')?;
    let is_printed = |number: &str| {
        let digits = number.strip_prefix('-').unwrap_or(number);
        let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
        number == "0" || (plain && !digits.is_empty())
    };
    (is_printed(above) && is_printed(below)).then(|| format!("\\frac{{{above}}}{{{below}}}"))
}

/// The finite numbers of a text, in order.
fn numbers(text: &str) -> Vec<f64> {
    let chars: Vec<char> = text.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let end = number_end(&chars, at);
        if end == at {
            at += 1;
            continue;
        }
        let digits: String = chars[at..end].iter().filter(|c| **c != ',').collect();
        // Digits with at most one dot always parse.
        let size: f64 = digits.parse().unwrap_or(f64::INFINITY);
        if size.is_finite() {
            found.push(if is_negative(&chars[..at]) {
                -size
            } else {
                size
            });
        }
        at = end;
    }
    found
}

/// Where the number that begins at `start` ends; `start` if none begins there.
fn number_end(chars: &[char], start: usize) -> usize {
    let digits = |from: usize| {
        let rest = chars.get(from..).unwrap_or_default();
        rest.iter().take_while(|c| c.is_ascii_digit()).count()
    };
    let mut end = start + digits(start);
    if (1..=3).contains(&(end - start)) {
        while chars.get(end) == Some(&',') && digits(end + 1) == 3 {
            end += 4;
        }
    }
    let after_digit = start > 0 && chars[start - 1].is_ascii_digit();
    let decimals = digits(end + 1);
    if chars.get(end) == Some(&'.') && decimals > 0 && (end > start || !after_digit) {
        end += 1 + decimals;
    }
    end
}

/// Whether what stands before a number is a sign and not a subtraction, a range or a hyphen.
fn is_negative(before: &[char]) -> bool {
    let before = before.strip_suffix(&['$']).unwrap_or(before);
    match before {
        [.., term, '-' | '−'] => {
            !term.is_alphanumeric() && !matches!(term, ')' | ']' | '}' | '%')
        }
        ['-' | '−'] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_read(parts in prop::collection::vec(
            prop_oneof![
                r"\\boxed|\\fbox|\\frac|\\sqrt|\\text\{ |####|[-{}$.,/=0-9]",
                any::<String>(),
            ],
            0..8,
        )) {
            let text = parts.concat();
            prop_assert!(maths_equal(&text, &text));
            prop_assert!(last_number(&text).is_none_or(f64::is_finite));
            prop_assert!(last_boxed(&text).is_none_or(|inside| text.contains(inside)));
            let has_digit = text.contains(|c: char| c.is_ascii_digit());
            prop_assert!(marked_number(&text).is_none() || has_digit);
        }
    }

    #[test]
    fn the_last_box_holds_the_answer() {
        let cases = [
            (r"\boxed{1} and \boxed{\frac{1}{2}}.", Some(r"\frac{1}{2}")),
            (r"\boxed{\{1, \sqrt{2}\}}", Some(r"\{1, \sqrt{2}\}")),
            (r"\fbox{3} then \boxed {4}", Some("4")),
            (r"\fbox{3}", Some("3")),
            (r"so $\boxed 5$ it is", Some("5")),
            (r"\boxed{}", Some("")),
            (r"\boxed{1} and \boxed{2", None),
            (r"\boxed", Some("")),
            ("5", None),
        ];
        for (text, expected) in cases {
            assert_eq!(last_boxed(text), expected, "{text}");
        }
    }

    // The cases of `math_equivalence_test.py` of hendrycks/math.
    #[test]
    fn answers_are_equal_where_math_says_so() {
        let cases = [
            (r"\tfrac{1}{2} + \frac1{72}", r"\\frac{1}{2} + 2/3", false),
            ("10, 4, -2", "4, 10, -2", false),
            ("10, 4, 2", "4, 12, 2", false),
            (
                r"\tfrac{1}{2} +\! \frac1{72}",
                r"\\dfrac{1}{2} +\frac{1}{72}",
                true,
            ),
            (r"10\text{ units}", "10 ", true),
            (r"10\text{ units}", "100 ", false),
            ("10", r"\$10", true),
            (r"\left(x-2\right)\left(x+2\right)", "(x-2)(x+2)", true),
            ("0.1, 4, 2", "4, .1, 2", false),
            ("0.1", ".1", true),
            (r"10\%", "10", true),
            (r"10\sqrt{3} + \sqrt4", r"10\sqrt3 + \sqrt{4}", true),
            (r"\frac34i", r"\frac{3}{4}i", true),
            (r"\tfrac83", r"\frac{8}{3}", true),
            ("5x - 7y + 11z + 4 = 0", "x + y - z + 2 = 0", false),
            ("1/2", r"\frac{1}{2}", true),
        ];
        for (answer, expected, equal) in cases {
            assert_eq!(maths_equal(answer, expected), equal, "{answer} {expected}");
            assert_eq!(maths_equal(expected, answer), equal, "{expected} {answer}");
        }
    }

    // `is_equiv` of hendrycks/math, whose exceptions compare the answers as they are.
    #[test]
    fn answers_that_make_the_script_fail_are_compared_as_they_are() {
        let cases = [
            (r"\frac", r"\frac", true),
            (r"\frac ", r"\frac", false),
            (r"\frac1", r"\frac 1", true),
            (r"2\sqrt", r"2 \sqrt", false),
            (r"1\text{ m}\text{ s}", "1", false),
            ("x=0.5", r"\frac12", true),
            ("xyz=1", "1", false),
            ("-3/4", r"\frac{-3}{4}", true),
            ("03/4", r"\frac{03}{4}", false),
            (r"90^\circ", "90", true),
            ("", " ", true),
        ];
        for (answer, expected, equal) in cases {
            assert_eq!(maths_equal(answer, expected), equal, "{answer} {expected}");
        }
    }

    #[test]
    fn marks_come_before_gsm8k_answers() {
        assert_eq!(marked_number("a\n#### 1,234\nQ: 5\n#### 6"), Some(1234.0));
        assert_eq!(marked_number("#### -7"), Some(-7.0));
        assert_eq!(marked_number("#### $18."), Some(18.0));
        assert_eq!(marked_number("####\n18"), None);
        assert_eq!(marked_number("18 ####"), None);
        assert_eq!(marked_number("18"), None);
    }

    #[test]
    fn the_last_number_is_found_as_it_is_meant() {
        let cases = [
            ("He has 3 apples and 1,234,567.5 pears.", Some(1_234_567.5)),
            ("That makes $70,000.", Some(70_000.0)),
            ("It is -5 or $-6 or -$7", Some(-7.0)),
            ("x = −4", Some(-4.0)),
            ("10-20", Some(20.0)),
            ("(2)-3", Some(3.0)),
            ("1, 2,3", Some(3.0)),
            ("1234,567", Some(567.0)),
            ("12,34", Some(34.0)),
            (".5", Some(0.5)),
            ("version 1.2.3", Some(3.0)),
            ("3. 4...", Some(4.0)),
            ("18€", Some(18.0)),
            ("... - , $", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(last_number(text), expected, "{text}");
        }
        assert_eq!(
            last_number(&format!("2 and {}", "9".repeat(400))),
            Some(2.0)
        );
    }

    #[test]
    fn numbers_are_equal_up_to_a_thousandth() {
        assert!(numbers_equal(8.0, 8.0) && numbers_equal(0.3333, 1.0 / 3.0));
        assert!(!numbers_equal(8.0, 8.01) && !numbers_equal(f64::NAN, f64::NAN));
    }
}
