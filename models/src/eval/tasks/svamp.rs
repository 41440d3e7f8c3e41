//! SVAMP (Patel et al. 2021, arXiv 2103.07191): word problems of one step that need reading.

use fedllm_shared::{Files, last_number, numbers_equal};

use crate::eval::written::{after, exact, fixed, split, task, text};
use crate::eval::{Ask, Gold, Grade, Grader, Item, ItemError, Prompts, Reply, Row, Shots};
use crate::eval::{Source, Task, Writing};

pub(super) static TASK: Task = Task {
    about: "word problems of one step, varied so that they have to be read",
    prompt: "Wei et al. 2022, arXiv 2201.11903, Table 20: 8 examples with a chain of thought",
    suites: &["math"],
    source: Source {
        hub: &["ChilleD/SVAMP"],
        test: split(
            "test",
            Files::FirstOf(&[
                &["data/test-*.parquet"],
                &["**/svamp/test.jsonl"],
                &["**/SVAMP.json"],
                &["test.jsonl"],
                &["test.json"],
            ]),
        ),
        licence: "MIT",
        ..BASE.source
    },
    shots: Shots {
        description: Some(|_, count| fixed(&EXAMPLES, count)),
        ..Shots::of(EXAMPLES.len())
    },
    ..BASE
};

const BASE: Task = task("svamp", items, Grader::Direct(grade));

const WRITING: Writing = Writing::greedy(256, &["Q:", "</s>", "<|im_end|>"]);

/// The examples of the paper.
const EXAMPLES: [&str; 8] = [
    "Q: There are 15 trees in the grove. Grove workers will plant trees in the grove today. After \
     they are done, there will be 21 trees. How many trees did the grove workers plant today?\n\
     A: There are 15 trees originally. Then there were 21 trees after some more were planted. So \
     there must have been 21 - 15 = 6. The answer is 6.",
    "Q: If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the \
     parking lot?\n\
     A: There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5.",
    "Q: Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have \
     left in total?\n\
     A: Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. \
     After eating 35, they had 74 - 35 = 39. The answer is 39.",
    "Q: Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many \
     lollipops did Jason give to Denny?\n\
     A: Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave \
     Denny 20 - 12 = 8. The answer is 8.",
    "Q: Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many \
     toys does he have now?\n\
     A: Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more \
     toys. 5 + 4 = 9. The answer is 9.",
    "Q: There were nine computers in the server room. Five more computers were installed each day, \
     from monday to thursday. How many computers are now in the server room?\n\
     A: There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * \
     4 = 20 computers were added. 9 + 20 is 29. The answer is 29.",
    "Q: Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. \
     How many golf balls did he have at the end of wednesday?\n\
     A: Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After \
     losing 2 more, he had 35 - 2 = 33 golf balls. The answer is 33.",
    "Q: Olivia has $23. She bought five bagels for $3 each. How much money does she have left?\n\
     A: Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has \
     23 - 15 dollars left. 23 - 15 is 8. The answer is 8.",
];

fn items(row: &Row<'_>, _: Prompts) -> Result<Vec<Item>, ItemError> {
    let body = row.text("Body")?;
    let question = row.text_of(&["Question", "sQuestion"])?;
    let number = row.text_of(&["Answer", "lSolutions"])?;
    let stop = match body.trim_end().ends_with(['.', '?', '!', ',']) {
        true => "",
        false => ".", // Some copies have lost it.
    };
    let asked = format!("{}{stop} {}", body.trim(), question.trim());
    Ok(vec![Item {
        id: row.text_of(&["ID", "idx"]).unwrap_or_else(|_| row.id()),
        cluster: None,
        prompt: format!("Q: {asked}\nA:"),
        answer: format!(" The answer is {}.", number.trim_end_matches(".0")),
        ask: Ask::Write(WRITING),
        gold: Gold::Text(number),
    }])
}

/// The answer is the last number of the line that says `answer is`, or else of everything.
fn grade(item: &Item, reply: &Reply, _: Prompts) -> Grade {
    let Gold::Text(gold) = &item.gold else {
        return Grade::default();
    };
    let said = after(text(reply), "answer is").and_then(last_number);
    let answer = said.or_else(|| last_number(text(reply)));
    let gold = gold.trim().parse::<f64>().ok();
    let right = answer.zip(gold).is_some_and(|(a, g)| numbers_equal(a, g));
    exact(&answer.map(|a| a.to_string()).unwrap_or_default(), right)
}

#[cfg(test)]
mod tests {
    use crate::eval::Gold;
    use crate::eval::task;
    use crate::eval::testing::{figures, one};
    use serde_json::json;

    #[test]
    fn both_layouts_ask_alike() {
        let original = json!({
            "ID": "chal-7", "Body": "Ann has 3 pens.", "Question": "How many pens?",
            "Equation": "3", "Answer": 3.0, "Type": "Addition",
        });
        let copy = json!({
            "ID": "chal-7", "Body": "Ann has 3 pens", "sQuestion": " How many pens?",
            "Equation": "3", "lSolutions": 3.0, "Type": "Addition",
        });
        let item = one("svamp", "svamp/test.jsonl", &original);
        assert_eq!(item.prompt, "Q: Ann has 3 pens. How many pens?\nA:");
        assert_eq!(item.answer, " The answer is 3.");
        assert_eq!(item.gold, Gold::Text("3.0".to_owned()));
        assert_eq!(one("svamp", "SVAMP.json", &copy), item);
        let shots = &task("svamp").unwrap().shots;
        let shown = shots.description.unwrap()(None, 2);
        assert!(shown.starts_with("Q: There are 15 trees"));
        assert!(shown.ends_with("3 + 2 = 5. The answer is 5.\n\n"));
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        let row = json!({"ID": "1", "Body": "", "Question": "", "Answer": 1200.0});
        let item = one("svamp", "test.jsonl", &row);
        for (reply, right) in [
            (" 600 * 2 = 1200. The answer is 1,200.", 1.0),
            (" The answer is $1200.00.\nQ: 5", 1.0),
            (" It is 1200", 1.0),
            (" The answer is 12. Or 1200.\nThe answer is 5.", 0.0),
            (" The answer is -1200.", 0.0),
            (" Nobody knows.", 0.0),
        ] {
            assert_eq!(figures("svamp", &item, reply), [right], "{reply}");
        }
    }
}
