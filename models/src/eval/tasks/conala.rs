//! CoNaLa (Yin et al. 2018, arXiv 1805.08949): one line of Python for what somebody asked; and
//! ConCode (Iyer et al. 2018, arXiv 1808.09588), one line of Java, as CodeXGLUE has it.

use fedllm_shared::{Bleu, Files};
use serde_json::Value;

use crate::eval::code::{Code, code};
use crate::eval::written::{EXACT, exact, first_line, split, task, text};
use crate::eval::{Ask, Gold, Grade, Grader, Item, ItemError, Metric, Prompts, Reply, Row};
use crate::eval::{Shots, Source, Task, Writing};

pub(super) static CONALA: Task = Task {
    about: "one line of Python for what somebody asked",
    prompt: "bigcode-evaluation-harness conala: 2 examples",
    suites: &["paper", "code"],
    source: Source {
        hub: &["neulab/conala"],
        test: split(
            "test",
            Files::FirstOf(&[
                &["**/conala-test.json"],
                &["**/conala-paired-test.json"],
                &["curated/test-*.parquet"],
            ]),
        ),
        licence: "MIT",
        ..CONALA_BASE.source
    },
    shots: Shots {
        description: Some(|_, count| PYTHON.shown(count)),
        ..Shots::of(2)
    },
    metrics: &[Metric::bleu(Bleu::Conala), EXACT],
    ..CONALA_BASE
};

pub(super) static CONCODE: Task = Task {
    about: "one line of Java for a method's description",
    prompt: "bigcode-evaluation-harness concode: 2 examples, the description alone",
    suites: &["paper", "code"],
    source: Source {
        hub: &[
            "google/code_x_glue_tc_text_to_code",
            "code_x_glue_tc_text_to_code",
        ],
        // The answers of the test split are not published.
        test: split(
            "validation",
            Files::FirstOf(&[
                &["**/concode/dev.json"],
                &["dev.json"],
                &["**/validation-*.parquet"],
            ]),
        ),
        licence: "C-UDA",
        ..CONCODE_BASE.source
    },
    shots: Shots {
        description: Some(|_, count| JAVA.shown(count)),
        ..Shots::of(2)
    },
    metrics: &[Metric::bleu(Bleu::Codexglue), EXACT],
    ..CONCODE_BASE
};

const CONALA_BASE: Task = task("conala", python, Grader::Direct(grade));
const CONCODE_BASE: Task = task("concode", java, Grader::Direct(grade));

const WRITING: Writing = Writing::greedy(128, &["\n"]);

/// What is said before a question.
struct Examples {
    entry: &'static str,
    examples: [(&'static str, &'static str); 2],
}

const PYTHON: Examples = Examples {
    entry: "Answer the following instructions in one line of Python code:\n",
    examples: [
        (
            "convert a list of integers into a single integer",
            "r = int(''.join(map(str, x)))",
        ),
        (
            "how to convert a datetime string back to datetime object?",
            "datetime.datetime.strptime(str, '%m/%d/%Y')",
        ),
    ],
};

const JAVA: Examples = Examples {
    entry: "Answer the following instructions in a one line of Java code:\n",
    examples: [
        (
            "get the distance of map coordinates to the center ",
            "float function ( int arg0 , int arg1 ) { int loc0 = arg0 - cx ; int loc1 = arg1 - cy ; \
             return getSquaredDistance ( loc0 , loc1 ) ; }",
        ),
        (
            "check if details are parsed",
            "boolean function ( ) { return isParsed ; }",
        ),
    ],
};

/// The blanks before each line break: the harness indents its source, and its prompt with it.
const INDENT: &str = "                   ";

impl Examples {
    fn shown(&self, count: usize) -> String {
        let shown = self.examples.iter().take(count);
        let examples =
            shown.map(|(asked, solution)| format!("{}{solution}{INDENT}", instruction(asked)));
        format!("{}{}", self.entry, examples.collect::<String>())
    }
}

fn instruction(asked: &str) -> String {
    format!("\nInstruction:\n{asked}{INDENT}\nSolution:\n")
}

fn python(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let rewritten = row.fields.get("rewritten_intent").and_then(Value::as_str);
    let rewritten = rewritten.filter(|intent| !intent.is_empty());
    let asked = rewritten.map_or_else(|| row.text("intent"), |intent| Ok(intent.to_owned()))?;
    let id = format!("{}/{}", row.text("question_id")?, row.id());
    Ok(vec![item(id, asked.trim(), row.text("snippet")?)])
}

fn java(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let described = row.text("nl")?;
    let asked = described
        .split("concode_field_sep")
        .next()
        .unwrap_or_default();
    let asked = asked.trim();
    let asked = asked.strip_suffix('.').unwrap_or(asked).trim();
    Ok(vec![item(row.id(), asked, row.text("code")?)])
}

fn item(id: String, asked: &str, solution: String) -> Item {
    Item {
        id,
        cluster: None,
        prompt: instruction(asked),
        answer: format!("{solution}{INDENT}"),
        ask: Ask::Write(WRITING),
        gold: Gold::Text(solution),
    }
}

fn grade(item: &Item, reply: &Reply, _: Prompts) -> Grade {
    let said = match code(text(reply)) {
        Code::Rest(rest) => first_line(rest),
        Code::Block(block) => first_line(block),
    };
    exact(
        said,
        matches!(&item.gold, Gold::Text(gold) if gold.trim() == said),
    )
}

#[cfg(test)]
mod tests {
    use crate::eval::testing::{figures, graded, one};
    use crate::eval::{Prompts, task};
    use serde_json::json;

    #[test]
    fn what_was_asked_is_taken_rewritten_if_it_was() {
        let mut row = json!({
            "intent": "how to sum?", "rewritten_intent": " sum a list `x` ", "snippet": "sum(x)",
            "question_id": 41,
        });
        let item = one("conala", "conala-test.json", &row);
        let prompt = "\nInstruction:\nsum a list `x`                   \nSolution:\n";
        assert_eq!(item.prompt, prompt);
        assert_eq!(item.id, "41/7");
        row["rewritten_intent"] = json!(null);
        let plain = one("conala", "data/conala-paired-test.json", &row);
        assert!(plain.prompt.contains("\nhow to sum?  "));
        let shown = task("conala").unwrap().shots.description.unwrap()(None, 1);
        let expected = "Answer the following instructions in one line of Python code:\n\n\
                        Instruction:\nconvert a list of integers into a single integer           \
                        \u{20}       \nSolution:\nr = int(''.join(map(str, x)))                   ";
        assert_eq!(shown, expected);
        for (reply, right) in [
            ("sum(x)", 1.0),
            ("```python\nsum(x)\n```", 1.0),
            (" sum( x )", 0.0),
            ("", 0.0),
        ] {
            assert_eq!(figures("conala", &item, reply), [right], "{reply}");
        }
        let grade = graded("conala", &item, "sum(x) \nmore", Prompts::Sound);
        assert_eq!(grade.answer.as_deref(), Some("sum(x)"));
    }

    #[test]
    fn the_class_around_a_method_is_left_out() {
        let row = json!({
            "nl": "check if it is read . concode_field_sep Container parent concode_elem_sep int n",
            "code": "boolean function ( ) { return isRead ; }",
        });
        let item = one("concode", "concode/dev.json", &row);
        assert!(
            item.prompt
                .starts_with("\nInstruction:\ncheck if it is read     ")
        );
        assert_eq!(
            figures(
                "concode",
                &item,
                " boolean function ( ) { return isRead ; }"
            ),
            [1.0]
        );
    }
}
