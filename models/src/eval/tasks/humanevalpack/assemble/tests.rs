use crate::eval::testing::{asked, one, program};
use crate::eval::{Ask, Item, Program};
use serde_json::{Value, json};

const C: &str = "const twice = (x) => {\n";

fn row(language: &str, declaration: &str, solution: &str, test: &str) -> Value {
    json!({
        "task_id": format!("{language}/5"), "entry_point": "twice", "declaration": declaration,
        "prompt": format!("// Doubles x.\n{declaration}"), "canonical_solution": solution,
        "buggy_solution": "  x;\n}\n", "test": test, "import": "",
        "test_setup": "package main\n\nimport (\n    \"testing\"\n    \"x/assert\"\n)\n",
        "instruction": "Write a function `twice`.\n",
    })
}

fn of(kind: &str, row: &Value) -> Item {
    let language = row["task_id"].as_str().unwrap().split('/').next().unwrap();
    let name = format!("humaneval{kind}-{}", language.to_lowercase());
    one(&name, "data/js/data/humanevalpack.jsonl", row)
}

fn made(row: &Value, reply: &str) -> Program {
    let language = row["task_id"].as_str().unwrap().split('/').next().unwrap();
    let name = format!("humanevalfix-{}", language.to_lowercase());
    program(&name, &of("fix", row), reply)
}

#[test]
fn prompts_are_those_of_the_harness() {
    let row = row("JavaScript", C, "  return 2 * x;\n}\n", "check();\n");
    let item = of("fix", &row);
    let expected = "const twice = (x) => {\n  x;\n}\n\ncheck();\n\nFix bugs in twice.\n\n\
                    const twice = (x) => {";
    assert_eq!(item.prompt, expected);
    let expected = "Write a function `twice`.\n\n// Doubles x.\nconst twice = (x) => {";
    assert_eq!(of("synthesize", &row).prompt, expected);
    assert!(matches!(item.ask, Ask::Write(writing) if writing.stop == ["<|endoftext|>"]));
    let error = asked("humanevalfix-rust", "", &json!({"task_id": "Perl/1"})).unwrap_err();
    assert!(error.to_string().contains("`Rust/5`"), "{error}");
}

#[test]
fn an_answer_ends_with_its_function() {
    let row = row("JavaScript", C, "", "check();\n");
    let reply = "\n  if (x) { return 2 * x; }\n  return 0;\n}\n\nconsole.log(twice(2));\n";
    let source = made(&row, reply).source;
    let expected = "const twice = (x) => {\n  if (x) { return 2 * x; }\n  return 0;\n}\ncheck();\n\n\
                    passedAllChecks = true;\n";
    assert!(source.ends_with(expected), "{source}");
    let block = "Fixed:\n```js\nconst twice = (x)=>{\n  return 2 * x;\n}\n```\nDone.";
    let source = made(&row, block).source;
    assert!(
        source.contains("const twice = (x) => {\n  return 2 * x;\n}\ncheck();"),
        "{source}"
    );
    let row = super::tests::row("Python", "def twice(x):\n", "", "assert twice(2) == 4");
    let source = made(&row, "\n    return 2 * x\nprint(twice(2))\n").source;
    assert!(
        source.contains("def twice(x):\n    return 2 * x\nassert"),
        "{source}"
    );
}

#[test]
fn java_closes_its_class() {
    let declaration = "class Solution {\n    public int twice(int x) {\n";
    let test = "public class Main { public static void main(String[] args) {} }";
    let row = row("Java", declaration, "", test);
    for reply in [
        "\n return 2 * x;\n }\n}\n\nclass More {}",
        "\n return 2 * x;\n }",
    ] {
        let source = made(&row, reply).source;
        let expected = "class Solution {\n    public int twice(int x) {\n return 2 * x;\n }\n}\n\
                        public class Main";
        assert!(source.starts_with(expected), "{source}");
    }
}

#[test]
fn cpp_has_its_includes_and_one_main() {
    let row = row(
        "CPP",
        "#include<math.h>\nint twice(int x){\n",
        "",
        "int main(){}",
    );
    let source = made(&row, "\n    return 2 * x;\n}\nint main() { return 1; }").source;
    assert!(source.starts_with("#include<stdlib.h>"));
    assert!(
        source.ends_with("int twice(int x){\n    return 2 * x;\n}\nint main(){}\n"),
        "{source}"
    );
}

#[test]
fn go_imports_what_it_uses() {
    let test = "func TestTwice(t *testing.T) {\n    assert := assert.New(t)\n    \
                assert.Equal(4, Twice(2))\n}\n";
    let row = row(
        "Go",
        "import (\n    \"math\"\n)\nfunc Twice(x int) int {\n",
        "",
        test,
    );
    let reply = "\n    // fmt.Println, strconv\n    return int(math.Pow(float64(x), 1)) * 2\n}";
    let source = made(&row, reply).source;
    let expected = "package main\n\nimport \"math\"\nimport \"reflect\"\nimport \"testing\"\n\n\
                    func Twice(x int) int {\n";
    assert!(source.starts_with(expected), "{source}");
    assert!(
        source.ends_with("func main() {\n\tTestTwice(nil)\n}\n"),
        "{source}"
    );
    assert!(
        !source.contains("x/assert") && !source.contains("import ("),
        "{source}"
    );
    assert!(super::uses("x := sort.Ints", "sort") && !super::uses("resort.Ints", "sort"));
}

#[test]
fn rust_keeps_the_imports_that_it_needs() {
    let declaration = "\nuse std::cmp::max;\nuse rand::Rng;\nuse regex::Regex;\nuse md5;\n\n\
                       fn twice(x: i32) -> i32 {\n";
    let test = "\n#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn t() {}\n}\n";
    let row = row("Rust", declaration, "", test);
    let source = made(&row, "\n    max(x, 0) + x\n}\nfn main() { twice(1); }").source;
    assert!(
        source.contains("use std::cmp::max;") && source.contains("mod tests"),
        "{source}"
    );
    assert!(!source.contains("Regex") && !source.contains("md5") && !source.contains("rand"));
    assert_eq!(source.matches("fn main()").count(), 1);
    let source = made(&row, "\n    Regex::new(\"a\").unwrap(); x\n}").source;
    assert!(source.contains("use regex::Regex;"), "{source}");
}
