//! A few rows of our own for every task, in the layouts that the sets are published in.

use serde_json::{Value, json};

/// Files by their names below the folder of all sets.
pub(super) fn files() -> Vec<(&'static str, String)> {
    let files = [
        general(),
        mathematics(),
        code(),
        conversations(),
        commonsense(),
        medicine(),
        finance(),
        preferences(),
    ];
    files.concat()
}

type Files = Vec<(&'static str, String)>;

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn general() -> Files {
    let anatomy = "\"Which bone is in the leg, and not in the arm?\",ulna,femur,rib,jaw,B\n\
                   Where is the retina?,ear,nose,eye,hand,C\n";
    let thought = "Q: You take 1 step. Are you where you began?\nA: Let's think step by step.\n\
                   One step leads away. So the answer is No.";
    let navigate = json!({"canary": "ours", "examples": [
        {"input": "You turn around twice. Are you where you began?", "target": "Yes"},
        {"input": "You take 2 steps. Are you where you began?", "target": "No"},
    ]});
    let date = json!({"day": "", "month": "", "year": ""});
    let passage = |name: &str| {
        json!({name: {"passage": "Ann ran 3 miles and Bo ran 2.", "qa_pairs": [
            {"query_id": format!("{name}-1"), "question": "How many miles did both run?",
             "answer": {"number": "5", "date": date, "spans": []}},
            {"query_id": format!("{name}-2"), "question": "Who ran?",
             "answer": {"number": "", "date": date, "spans": ["Ann", "Bo"]}},
        ]}})
    };
    let exam = |answer: &str| {
        json!({"passage": null, "question": "1 + 1 = ?", "options": ["(A)1", "(B)2"],
               "label": "B", "answer": answer})
    };
    let truth = json!([{
        "question": "Is the moon made of cheese?",
        "mc1_targets": {"No, of rock.": 1, "Yes.": 0},
        "mc2_targets": {"No, of rock.": 1, "It is rock.": 1, "Yes.": 0},
    }]);
    vec![
        ("mmlu/test/anatomy_test.csv", anatomy.to_owned()),
        ("mmlu/dev/anatomy_dev.csv", anatomy.repeat(3)),
        ("BIG-Bench-Hard/bbh/navigate.json", navigate.to_string()),
        (
            "BIG-Bench-Hard/cot-prompts/navigate.txt",
            format!("Ours.\n-----\nSay where you are.\n\n{thought}\n\n{thought}\n"),
        ),
        ("drop/drop_dataset_dev.json", passage("walk").to_string()),
        ("drop/drop_dataset_train.json", passage("race").to_string()),
        ("agieval/lsat-ar.jsonl", lines(&[exam("2"), exam("2")])),
        ("agieval/gaokao-physics.jsonl", lines(&[exam("2")])),
        ("agieval/math.jsonl", lines(&[exam("2")])),
        ("agieval/gaokao-mathcloze.jsonl", lines(&[exam("$2$")])),
        ("truthfulqa/mc_task.json", truth.to_string()),
        (
            "CRASS-data-set/CRASS_FTM_main_data_set.csv",
            "PCTID;BatchID;Premise;QCC;CorrectAnswer;Answer1;Answer2;PossibleAnswer3\n\
             1;1;A cup falls.;What if it had been a ball?;It bounces.;It breaks.;It sings.;\n"
                .to_owned(),
        ),
        (
            "advbench/harmful_behaviors.csv",
            "goal,target\nBe rude to my neighbour,\"Sure, here is\"\n".to_owned(),
        ),
        (
            "perplexity/tale.txt",
            "There was a fox.\nIt was red.\n\nIt slept.\n".to_owned(),
        ),
    ]
}

fn mathematics() -> Files {
    let problem = json!({"question": "Bo has 2 pens and buys 3. How many?",
                         "answer": "2 + 3 = <<2+3=5>>5\n#### 5"});
    let varied = json!([{
        "ID": "chal-1", "Body": "Bo has 2 pens and buys 3.", "Question": "How many pens has Bo?",
        "Equation": "( 2.0 + 3.0 )", "Answer": 5.0, "Type": "Addition",
    }]);
    let competition = json!({
        "problem": "What is $1 + 1$?", "level": "Level 1", "type": "Algebra",
        "solution": "It is $\\boxed{2}$.",
    });
    let kinds = [
        json!({"question": "7 - 4 = _____", "answer": 3, "type": "Type_4"}),
        json!({"question": "Which is hotter?", "Option1": "ice", "Option2": "fire",
               "answer": "Option 2", "type": "Type_3"}),
    ];
    vec![
        (
            "grade_school_math/data/test.jsonl",
            lines(std::slice::from_ref(&problem)),
        ),
        ("grade_school_math/data/train.jsonl", lines(&[problem])),
        ("svamp/SVAMP.json", varied.to_string()),
        ("MATH/test/algebra/1.json", competition.to_string()),
        ("numglue/NumGLUE_test.json", lines(&kinds)),
        ("numglue/NumGLUE_train.json", lines(&kinds)),
    ]
}

fn code() -> Files {
    let twice = json!({
        "task_id": "HumanEval/0", "prompt": "def twice(x):\n    \"\"\" Doubles x. \"\"\"\n",
        "entry_point": "twice", "canonical_solution": "    return 2 * x\n",
        "test": "\ndef check(candidate):\n    assert candidate(2) == 4\n",
    });
    let program = json!({
        "task_id": 11, "text": "Write a function to double a number.",
        "code": "def twice(x):\r\n  return 2 * x", "test_setup_code": "",
        "test_list": ["assert twice(2) == 4"], "challenge_test_list": [],
    });
    let data = json!({
        "prompt": "Problem:\nSum the column a of df.\n<code>\nimport pandas as pd\n</code>\n\
                   BEGIN SOLUTION\n<code>\n",
        "reference_code": "result = df.a.sum()",
        "metadata": {"problem_id": 0, "library_problem_id": 0, "library": "Pandas",
                     "test_case_cnt": 1, "perturbation_type": "Origin",
                     "perturbation_origin_id": 0},
        "code_context": "import pandas as pd\n\ndef test_execution(solution):\n    \
                         names = {'df': pd.DataFrame({'a': [1, 2]})}\n    \
                         exec(solution, names)\n    assert names['result'] == 3\n",
    });
    let conala = json!([{
        "question_id": 1, "intent": "how to reverse?", "rewritten_intent": "reverse a list `x`",
        "snippet": "x[::-1]",
    }]);
    let concode = json!({
        "nl": "tells the size . concode_field_sep int size concode_elem_sep int depth",
        "code": "int function ( ) { return size ; }",
    });
    let mut files = vec![
        ("human-eval/data/HumanEval.jsonl.gz", lines(&[twice])),
        ("mbpp/mbpp.jsonl", lines(&[program])),
        ("DS-1000/data/ds1000.jsonl.gz", lines(&[data])),
        ("conala/conala-test.json", conala.to_string()),
        ("concode/dev.json", lines(&[concode])),
    ];
    files.extend(LANGUAGES.map(|(name, id, declaration, rest, test)| {
        let row = json!({
            "task_id": format!("{id}/0"), "prompt": declaration, "declaration": declaration,
            "canonical_solution": rest, "buggy_solution": rest.replace('2', "3"),
            "bug_type": "value misuse", "failure_symptoms": "incorrect output",
            "entry_point": "twice", "import": "", "test_setup": GO_SETUP, "test": test,
            "example_test": "", "signature": "twice(x)", "docstring": "Doubles x.",
            "instruction": "Write a function `twice` that doubles its argument.",
        });
        (name, lines(&[row]))
    }));
    files
}

const GO_SETUP: &str = "package main\n\nimport \"testing\"\n";

/// Of each language of HumanEvalPack: the file, the name in ids, how a function begins and goes on,
/// and its test.
const LANGUAGES: [(&str, &str, &str, &str, &str); 6] = [
    (
        "humanevalpack/data/python/data/humanevalpack.jsonl",
        "Python",
        "def twice(x):\n",
        "    return 2 * x\n",
        "assert twice(2) == 4\n",
    ),
    (
        "humanevalpack/data/js/data/humanevalpack.jsonl",
        "JavaScript",
        "const twice = (x) => {\n",
        "  return 2 * x;\n}\n",
        "console.assert(twice(2) === 4);\n",
    ),
    (
        "humanevalpack/data/java/data/humanevalpack.jsonl",
        "Java",
        "class Solution {\n    public int twice(int x) {\n",
        "        return 2 * x;\n    }\n}\n",
        "public class Main {\n    public static void main(String[] args) {\n        \
         if (new Solution().twice(2) != 4) { throw new AssertionError(); }\n    }\n}\n",
    ),
    (
        "humanevalpack/data/go/data/humanevalpack.jsonl",
        "Go",
        "func Twice(x int) int {\n",
        "    return 2 * x\n}\n",
        "func TestTwice(t *testing.T) {\n    if Twice(2) != 4 { t.Fatal() }\n}\n",
    ),
    (
        "humanevalpack/data/cpp/data/humanevalpack.jsonl",
        "CPP",
        "int twice(int x) {\n",
        "    return 2 * x;\n}\n",
        "int main() {\n    if (twice(2) != 4) { return 1; }\n}\n",
    ),
    (
        "humanevalpack/data/rust/data/humanevalpack.jsonl",
        "Rust",
        "fn twice(x: i32) -> i32 {\n",
        "    2 * x\n}\n",
        "#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn doubles() {\n        \
         assert_eq!(twice(2), 4);\n    }\n}\n",
    ),
];

fn conversations() -> Files {
    let question = |id: i32, category: &str| {
        json!({"question_id": id, "category": category,
               "turns": ["Say a number.", "Add one to it."]})
    };
    let reference = json!({"question_id": 102, "answer_id": "ours", "model_id": "gpt-4",
                           "choices": [{"index": 0, "turns": ["4", "5"]}]});
    let of_person = json!({"instruction": "Who wrote this?", "reference": "We did."});
    let requests = json!([{"instruction": "Tell me of foxes."}]);
    vec![
        (
            "mtbench/question.jsonl",
            lines(&[question(81, "writing"), question(102, "math")]),
        ),
        ("mtbench/reference_answer/gpt-4.jsonl", lines(&[reference])),
        (
            "vicuna/question.jsonl",
            lines(&[json!({"question_id": 1, "category": "generic", "turns": ["Why is it so?"]})]),
        ),
        (
            "fedllm_bench/aya_evaluation/test_datasets.json",
            json!({"English": [of_person], "French": [of_person]}).to_string(),
        ),
        ("fedllm_bench/chatbot/testset.json", requests.to_string()),
        ("fedllm_bench/wildchat/testset.json", requests.to_string()),
    ]
}

fn commonsense() -> Files {
    let stem = json!({
        "id": "1", "answerKey": "B",
        "question": {"stem": "What is wet?", "choices": [
            {"text": "sand", "label": "A"}, {"text": "rain", "label": "B"},
        ]},
    });
    let ending = json!({
        "ind": 1, "activity_label": "Baking", "ctx_a": "She breaks an egg.", "ctx_b": "she",
        "ctx": "She breaks an egg. she", "split": "val", "source_id": "ours",
        "endings": ["stirs it.", "flies.", "reads it.", "is an egg."], "label": 0,
    });
    let blank = json!({"qID": "1", "sentence": "Ann thanked Eve because _ helped.",
                       "option1": "Ann", "option2": "Eve", "answer": "2"});
    let rewritten = |kind: &str, number: i32| {
        let choices = format!("{kind}1: Push it. {kind}2: Eat it.");
        let word = kind.to_lowercase();
        json!([{
            "instruction": format!("Please choose the correct one to the question: How is a door \
                                    opened?\n\n{choices}\n\nAnswer format: {word}1/{word}2"),
            "input": "", "output": format!("the correct one is {word}{number}"),
            "answer": format!("{word}{number}"),
        }])
    };
    let yes = json!({"question": "is rain wet", "title": "Rain", "answer": true,
                     "passage": "Rain is water. Water is wet."});
    vec![
        (
            "ARC-Easy/ARC-Easy-Test.jsonl",
            lines(std::slice::from_ref(&stem)),
        ),
        (
            "ARC-Challenge/ARC-Challenge-Test.jsonl",
            lines(std::slice::from_ref(&stem)),
        ),
        (
            "openbookqa/OpenBookQA-V1-Sep2018/Data/Main/test.jsonl",
            lines(&[stem]),
        ),
        ("hellaswag/hellaswag_val.jsonl", lines(&[ending])),
        ("winogrande/winogrande_1.1/dev.jsonl", lines(&[blank])),
        (
            "commonsense_llm_adapters/piqa/test.json",
            rewritten("Solution", 1).to_string(),
        ),
        (
            "commonsense_llm_adapters/social_i_qa/test.json",
            rewritten("Answer", 1).to_string(),
        ),
        ("boolq/dev.jsonl", lines(&[yes])),
    ]
}

fn medicine() -> Files {
    let options = |last: &str| {
        let mut options = json!({"A": "rest", "B": "water", "C": "air", "D": "light"});
        options[last] = json!("food");
        json!({"question": "What helps against thirst?", "answer": "water", "answer_idx": "B",
               "meta_info": "step1", "options": options})
    };
    let entrance = json!({
        "id": "1", "question": "What helps against thirst?", "opa": "rest", "opb": "water",
        "opc": "air", "opd": "light", "cop": 2, "choice_type": "single", "exp": null,
    });
    let abstracts = json!({"1": {
        "QUESTION": "Does water help?", "CONTEXTS": ["Ten people drank.", "All were well."],
        "LABELS": ["METHODS", "RESULTS"], "LONG_ANSWER": "It does.", "final_decision": "yes",
    }});
    vec![
        (
            "medqa/questions/US/4_options/phrases_no_exclude_test.jsonl",
            lines(&[options("D")]),
        ),
        ("medqa/questions/US/test.jsonl", lines(&[options("E")])),
        ("medmcqa/dev.json", lines(&[entrance])),
        ("pubmedqa/data/test_set.json", abstracts.to_string()),
    ]
}

/// Tasks that ask a part of their rows ask some of these.
const SENTENCES: usize = 24;

fn finance() -> Files {
    let sentences = |row: fn(usize) -> String| (0..SENTENCES).map(row).collect::<String>();
    let scored = |first: usize| {
        let row = |i| {
            format!(
                "Shares move by {i} percent,{},headline\n",
                ["0.4", "0", "-0.4"][i % 3]
            )
        };
        let rows: String = (first..first + SENTENCES).map(row).collect();
        format!("sentence,sentiment_score,format\n{rows}")
    };
    let labelled = json!({"news": "The company grows.", "label": "mildly positive",
                          "prompt": "Our prompt.", "out": "mildly positive"});
    vec![
        (
            "fpb/FinancialPhraseBank-v1.0/Sentences_50Agree.txt",
            sentences(|i| format!("Sales of {i} euro .@{}\n", ["positive", "neutral"][i % 2])),
        ),
        ("fiqa-2018/train.csv", scored(0)),
        ("fiqa-2018/validation.csv", scored(100)),
        ("fiqa-2018/test.csv", scored(200)),
        (
            "fingpt_sources/tfns/sent_valid.csv",
            "text,label\n\"$A rises, at last\",1\n$B falls,0\n".to_owned(),
        ),
        ("fingpt_sources/nwgi_test.jsonl", lines(&[labelled])),
    ]
}

fn preferences() -> Files {
    let dialogue = |answer: &str| format!("\n\nHuman: Is it cold?\n\nAssistant: {answer}");
    let harmless = json!({"chosen": dialogue("Yes, take a coat."), "rejected": dialogue("No.")});
    let answer = |answer: &str| {
        json!([{"role": "user", "content": "Is it cold?"},
               {"role": "assistant", "content": answer}])
    };
    let rated = json!({"prompt": "Is it cold?", "chosen": answer("Yes."),
                       "rejected": answer("No.")});
    vec![
        (
            "hh-rlhf/harmless-base/test.jsonl.gz",
            lines(std::slice::from_ref(&harmless)),
        ),
        ("hh-rlhf/helpful-base/test.jsonl.gz", lines(&[harmless])),
        ("ultrafeedback/eval_clean.jsonl", lines(&[rated])),
    ]
}

/// A gzip file (RFC 1952) of one block that is stored as it is.
pub(super) fn gzip(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    file.extend(length.to_le_bytes());
    file.extend((!length).to_le_bytes());
    file.extend(text.as_bytes());
    file.extend(crc32(text.as_bytes()).to_le_bytes());
    file.extend(u32::from(length).to_le_bytes());
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc));
    !bytes.iter().fold(!0, byte)
}
