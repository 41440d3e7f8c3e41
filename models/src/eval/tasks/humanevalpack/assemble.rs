//! Makes programs of answers: the function alone, what comes before it, its tests.

use std::collections::BTreeSet;

use super::stops;
use crate::eval::code::{Code, checks, code, cut, python, python_after};
use crate::eval::{Item, Language, Program};

/// The program of an answer, as bigcode-evaluation-harness makes it, but without libraries that a
/// language does not bring along itself.
pub(super) fn program(item: &Item, reply: &str) -> Program {
    let checks = checks(item);
    let language = checks.language;
    let function = match code(reply) {
        Code::Block(_) if language == Language::Python => python_after(&checks.before, reply),
        Code::Block(block) => after_declaration(&checks.before, block, language),
        Code::Rest(rest) => {
            let rest = cut(rest.trim_end(), stops(language));
            format!("{}{}", checks.before, only_function(rest, language))
        }
    };
    let tests = checks.after.as_str();
    let source = match language {
        Language::Python => return python(&format!("{PYTHON_IMPORTS}\n{function}"), tests),
        Language::JavaScript => format!("{JAVASCRIPT_BEGIN}{function}\n{tests}\n{JAVASCRIPT_END}"),
        Language::Java => {
            let empty = "public class Main {\n    }";
            format!("{}\n{tests}\n", function.replace(empty, "").trim())
        }
        Language::Cpp => {
            let function = cut(&function, &["int main"]);
            format!("{CPP_INCLUDES}{}\n{tests}\n", function.trim())
        }
        Language::Go => go(&function, tests),
        Language::Rust => rust(&function, tests),
    };
    Program {
        language,
        source,
        needs: &[],
    }
}

/// The answer up to the end of the function that the prompt began.
fn only_function(rest: &str, language: Language) -> String {
    let (function, open) = function_of(rest, language);
    match (language, open) {
        (Language::Java, 1) => format!("{function}\n}}"), // The class that the prompt began, too.
        _ => function.to_owned(),
    }
}

/// The same, and how many braces it leaves open.
fn function_of(rest: &str, language: Language) -> (&str, usize) {
    if language == Language::Python {
        let mut lines = rest.split_inclusive('\n');
        let mut end = 0;
        // The answer's first line is the rest of the prompt's last one.
        end += lines.next().map_or(0, str::len);
        for line in lines {
            if !line.trim().is_empty() && !line.starts_with([' ', '\t']) {
                return (&rest[..end], 0);
            }
            end += line.len();
        }
        return (rest, 0);
    }
    let mut open = match language {
        Language::Java => 2,
        _ => 1,
    };
    for (at, byte) in rest.bytes().enumerate() {
        match byte {
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => continue,
        }
        if open == 0 {
            return (&rest[..=at], 0);
        }
    }
    // It never ends: what was complete of it.
    let complete = rest.rfind('}').map_or(rest, |last| &rest[..=last]);
    (complete, open)
}

/// A block of code, put behind what the prompt had of it already: it usually has that again.
fn after_declaration(before: &str, block: &str, language: Language) -> String {
    let declaration = before.trim_end().lines().next_back().unwrap_or_default();
    let same = |line: &str| without_space(line).starts_with(&without_space(declaration));
    let mut at = 0;
    for line in block.split_inclusive('\n') {
        at += line.len();
        if same(line) {
            let rest = only_function(&block[at..], language);
            return format!("{}\n{rest}", before.trim_end());
        }
    }
    block.to_owned()
}

fn without_space(line: &str) -> String {
    line.chars().filter(|c| !c.is_whitespace()).collect()
}

const PYTHON_IMPORTS: &str = "\
import math, re, sys, copy, datetime, itertools, collections, heapq, statistics, functools
import hashlib, string
from typing import *
from collections import *";

/// Node takes a failed assertion for a remark, and a program that ends early for one that is done.
const JAVASCRIPT_BEGIN: &str = "\
let passedAllChecks = false;
process.on('exit', () => { if (!passedAllChecks) process.exitCode = 1; });
console.assert = (holds) => { if (!holds) throw new Error('assertion failed'); };
";
const JAVASCRIPT_END: &str = "passedAllChecks = true;\n";

const CPP_INCLUDES: &str = "\
#include<stdlib.h>
#include<algorithm>
#include<cmath>
#include<math.h>
#include<numeric>
#include<stdio.h>
#include<vector>
#include<set>
#include<map>
#include<queue>
#include<stack>
#include<list>
#include<deque>
#if __has_include(<boost/any.hpp>)
#include<boost/any.hpp>
#endif
#include<string>
#include<climits>
#include<cstring>
#include<iostream>
#include<sstream>
#include<fstream>
using namespace std;
";

/// What the tests use of testify, and the packages of Go's own library that answers use.
const GO_ASSERT: &str = "
type checks struct{}

var assert checks

func (checks) New(_ *testing.T) checks { return checks{} }

func (checks) Equal(expected, actual any) {
	if !reflect.DeepEqual(expected, actual) {
		panic(\"not equal\")
	}
}
";
const GO_PACKAGES: [&str; 16] = [
    "bytes",
    "container/heap",
    "crypto/md5",
    "errors",
    "fmt",
    "math",
    "math/bits",
    "math/rand",
    "reflect",
    "regexp",
    "sort",
    "strconv",
    "strings",
    "testing",
    "time",
    "unicode",
];

/// A Go program whose main function calls the tests. Its imports are those that it uses: Go does not
/// take others.
fn go(function: &str, tests: &str) -> String {
    let body = format!(
        "{}{}{GO_ASSERT}",
        without_imports(function),
        without_imports(tests)
    );
    let code: Vec<&str> = body
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect();
    let used = |package: &&&str| {
        let name = package.rsplit('/').next().unwrap_or(package);
        code.iter().any(|line| uses(line, name))
    };
    let imports: String = GO_PACKAGES
        .iter()
        .filter(used)
        .map(|package| format!("import \"{package}\"\n"))
        .collect();
    let calls: String = named_after(tests, "func Test")
        .iter()
        .map(|name| format!("\tTest{name}(nil)\n"))
        .collect();
    format!("package main\n\n{imports}\n{body}\nfunc main() {{\n{calls}}}\n")
}

/// Whether a line of Go has `name.` as a word.
fn uses(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let is_word = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '.');
        is_word && line[at + name.len()..].starts_with('.')
    })
}

fn without_imports(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut within = false;
    for line in code.lines() {
        let trimmed = line.trim();
        if within {
            within = !trimmed.starts_with(')');
        } else if trimmed.starts_with("import (") || trimmed.starts_with("import(") {
            within = !trimmed.ends_with(')');
        } else if !trimmed.starts_with("import \"") && !trimmed.starts_with("package ") {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// The names that follow a text, each once.
fn named_after<'a>(code: &'a str, text: &str) -> BTreeSet<&'a str> {
    let names = code.match_indices(text).map(|(at, _)| {
        let rest = &code[at + text.len()..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    });
    names.collect()
}

/// A Rust program with the declaration's imports where the answer lacks them, and the tests. Imports
/// of other crates are left out where nothing uses them.
fn rust(function: &str, after: &str) -> String {
    let (declaration, tests) = match after.find("#[cfg(test)]") {
        Some(at) => after.split_at(at),
        None => ("", after),
    };
    let has_main = function.contains("fn main()");
    let mut source = String::from(if has_main { "" } else { "fn main(){}\n" });
    for line in declaration.lines().map(str::trim) {
        if line.starts_with("use ") && !function.contains(line) {
            source.push_str(line);
            source.push('\n');
        }
    }
    // What comes after a second main function are tests of the model's own.
    let ends = function.match_indices("fn main()").nth(1);
    source.push_str(ends.map_or(function, |(at, _)| &function[..at]));
    for (import, uses) in [
        ("use rand::Rng;", ["rand::", "gen_range"]),
        ("use regex::Regex;", ["Regex::", "regex::"]),
        ("use md5;", ["md5::", "md5::compute"]),
    ] {
        let without = source.replace(import, "");
        if !uses.iter().any(|used| without.contains(used)) {
            source = without;
        }
    }
    format!("{source}\n{tests}\n")
}

#[cfg(test)]
mod tests;
