//! Texts with space between their tokens.

/// mteval-v13a's tokens, apart from each other: entities resolved, and punctuation cut off, but for
/// apostrophes, hyphens not after a digit, and points and commas between digits.
pub(super) fn spaced_13a(text: &str) -> String {
    let text = text
        .trim_end()
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ")
        .replace("&quot;", "\"")
        .replace("&amp;", "&")
        .replace("&lt;", "<")
        .replace("&gt;", ">");
    let mut spaced = vec![' '];
    for c in text.chars() {
        match c {
            '\'' | '-' | '.' | ',' => spaced.push(c),
            _ if c.is_ascii_punctuation() => spaced.extend([' ', c, ' ']),
            _ => spaced.push(c),
        }
    }
    spaced.push(' ');
    let is_stop = |c: char| matches!(c, '.' | ',');
    let digit = |c: char| c.is_ascii_digit();
    spaced = rewrite(
        &spaced,
        |a, b| !digit(a) && is_stop(b),
        |a, b| vec![a, ' ', b, ' '],
    );
    spaced = rewrite(
        &spaced,
        |a, b| is_stop(a) && !digit(b),
        |a, b| vec![' ', a, ' ', b],
    );
    spaced = rewrite(
        &spaced,
        |a, b| digit(a) && b == '-',
        |a, b| vec![a, ' ', b, ' '],
    );
    spaced.into_iter().collect()
}

/// The tokens of code, apart from each other (Ling et al. 2016, arXiv 1603.06744).
pub(super) fn spaced_code(text: &str) -> String {
    let mut spaced = String::new();
    let mut before = ' ';
    for c in text.chars() {
        match c {
            '"' | '\'' => spaced.push_str(" ` "),
            _ if !c.is_ascii_alphanumeric() && c != '_' => spaced.extend([' ', c, ' ']),
            _ if before.is_ascii_lowercase() && c.is_ascii_uppercase() => spaced.extend([' ', c]),
            _ => spaced.push(c),
        }
        before = c;
    }
    spaced
}

/// Rewrites pairs of characters from left to right; a pair begins where the one before has ended, as
/// a regular expression is replaced.
fn rewrite(
    text: &[char],
    is_meant: impl Fn(char, char) -> bool,
    to: impl Fn(char, char) -> Vec<char>,
) -> Vec<char> {
    let mut written = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        match after {
            [second, after @ ..] if is_meant(*first, *second) => {
                written.extend(to(*first, *second));
                rest = after;
            }
            _ => {
                written.push(*first);
                rest = after;
            }
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(spaced: &str) -> String {
        spaced.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    // `BLEU().tokenizer(text)` of sacrebleu 2.6.0.
    #[test]
    fn tokens_are_those_of_13a() {
        let cases = [
            (
                "It costs $1,200.50 - \"cheap\", isn't it?",
                "It costs $ 1,200.50 - \" cheap \" , isn't it ?",
            ),
            (
                "A dog & a cat &amp; 3-4 birds...",
                "A dog & a cat & 3 - 4 birds . . .",
            ),
            (
                "a.,b 1.,2 5-6 -7 3.x x.3 _a_b 'q' <skipped>",
                "a . , b 1 . , 2 5 - 6 -7 3 . x x . 3 _ a _ b 'q'",
            ),
            ("line-\nbreak\nnext", "linebreak next"),
        ];
        for (text, expected) in cases {
            assert_eq!(tokens(&spaced_13a(text)), expected);
        }
    }

    // `tokenize_for_bleu_eval` of conala-baseline's conala_eval.py.
    #[test]
    fn tokens_of_code_are_those_of_conala() {
        let cases = [
            (
                "x = [i for i in range(10) if isEven(i)]",
                "x = [ i for i in range ( 10 ) if is Even ( i ) ]",
            ),
            ("os.path.join(a, \"b\")", "os . path . join ( a , ` b ` )"),
        ];
        for (code, expected) in cases {
            assert_eq!(tokens(&spaced_code(code)), expected);
        }
    }
}
