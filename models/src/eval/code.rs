//! Programs that models write: taken out of replies, and made whole.

use super::{Checks, Gold, Item, Language, Metric, Program};

/// The share of programs that pass their checks, one program a row.
pub(super) const PASS: Metric = Metric::mean("pass@1");

/// What a text has before the first of these.
pub(super) fn cut<'a>(text: &'a str, stops: &[&str]) -> &'a str {
    let ends = stops.iter().filter_map(|stop| text.find(stop));
    &text[..ends.min().unwrap_or(text.len())]
}

/// The code in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code<'a> {
    /// It goes on where the prompt ended.
    Rest(&'a str),
    /// It stands in a block of its own, between fences.
    Block(&'a str),
}

/// Finds the code in a reply. A model that goes on with the prompt may close a fence that it takes to
/// be open; one that explains opens a fence first.
pub(super) fn code(reply: &str) -> Code<'_> {
    let mut at = 0;
    let mut fences = Vec::new();
    for line in reply.split_inclusive('\n') {
        if line.trim_start().starts_with(FENCE) {
            fences.push((at, at + line.len(), line.trim().len() > FENCE.len()));
        }
        at += line.len();
    }
    match fences.first() {
        Some(&(start, end, named))
            if named || fences.len() % 2 == 0 || reply[..start].trim().is_empty() =>
        {
            let close = fences.get(1).map_or(reply.len(), |fence| fence.0);
            Code::Block(&reply[end..close])
        }
        _ => Code::Rest(cut(reply, &[FENCE])),
    }
}

const FENCE: &str = "```";

/// The checks of an item; none for any other item.
pub(super) fn checks(item: &Item) -> Checks {
    match &item.gold {
        Gold::Checks(checks) => checks.clone(),
        _ => Checks {
            language: Language::Python,
            before: String::new(),
            after: String::new(),
        },
    }
}

/// A Python program: the code, then its checks. It fails too if it ends before they are through.
pub(super) fn python(code: &str, checks: &str) -> Program {
    let source = format!(
        "import atexit, os\n\
         _passed_all = []\n\
         atexit.register(lambda passed=_passed_all, leave=os._exit: passed or leave(1))\n\
         {code}\n{checks}\n\
         _passed_all.append(True)\n"
    );
    Program {
        language: Language::Python,
        source,
        needs: &[],
    }
}

/// Python code of a reply, put behind what the prompt had of it already. A block that defines
/// functions stands alone, after the prompt's imports.
pub(super) fn python_after(before: &str, reply: &str) -> String {
    match code(reply) {
        Code::Rest(rest) => format!("{before}{rest}"),
        Code::Block(block) if before.is_empty() => block.to_owned(),
        Code::Block(block) if block.contains("def ") => {
            format!("{}\n    pass\n\n{block}", before.trim_end())
        }
        Code::Block(block) => format!("{}\n{block}", before.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found_in_replies() {
        for (reply, expected) in [
            ("    return 1\n", Code::Rest("    return 1\n")),
            ("    return 1\n```\nDone.", Code::Rest("    return 1\n")),
            ("    return 1```", Code::Rest("    return 1")),
            ("```python\nx = 1\n```", Code::Block("x = 1\n")),
            ("Sure:\n```\nx = 1\n```\nSo.", Code::Block("x = 1\n")),
            ("Sure:\r\n ```py\r\nx = 1", Code::Block("x = 1")),
            ("```\nx = 1", Code::Block("x = 1")),
            ("```", Code::Block("")),
            (
                "    return 1\n```\nOr:\n```\ny\n```",
                Code::Rest("    return 1\n"),
            ),
            ("", Code::Rest("")),
            ("ß```é", Code::Rest("ß")),
        ] {
            assert_eq!(code(reply), expected, "{reply:?}");
        }
        assert_eq!(cut("a\ndef b\nclass c", &["\nclass", "\ndef"]), "a");
        assert_eq!(cut("é", &[]), "é");
    }

    #[test]
    fn python_is_joined_to_its_prompt() {
        let before = "import re\ndef f(x):\n    \"\"\"Doubles.\"\"\"\n";
        assert_eq!(
            python_after(before, "    return 2 * x\n"),
            "import re\ndef f(x):\n    \"\"\"Doubles.\"\"\"\n    return 2 * x\n"
        );
        assert_eq!(
            python_after(before, "```python\ndef f(x):\n    return 2 * x\n```"),
            "import re\ndef f(x):\n    \"\"\"Doubles.\"\"\"\n    pass\n\ndef f(x):\n    return 2 * x\n"
        );
        assert_eq!(
            python_after(before, "```\n    return 2 * x\n```"),
            "import re\ndef f(x):\n    \"\"\"Doubles.\"\"\"\n    return 2 * x\n"
        );
        assert_eq!(python_after("", "```\nx = 1\n```"), "x = 1\n");
        let program = python("x = 1", "assert x == 1");
        assert!(
            program
                .source
                .ends_with("\nx = 1\nassert x == 1\n_passed_all.append(True)\n")
        );
    }
}
