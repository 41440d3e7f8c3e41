//! Programs that a model wrote, in the sandbox.

use fedllm_models::eval::{Language, Program};

use super::grades::{Fault, Programs, Refusal};
use crate::sandbox::{Limits, Outcome, Program as Confined, Sandbox};

impl Programs for Sandbox {
    fn ready(&self, language: Language, needs: &[&str]) -> Result<(), Refusal> {
        let refusal = |reason: String, hint: &str| Refusal {
            reason,
            hint: hint.to_owned(),
        };
        if let Err(error) = self.check(language) {
            return Err(refusal(
                error.to_string(),
                "install the language's toolchain, or leave the task out",
            ));
        }
        for module in needs {
            let import = Confined::new(language, format!("import {module}\n"));
            match self.run(&import, &Limits::default()) {
                Ok(Outcome::Passed { .. }) => {}
                Ok(_) => {
                    let reason = format!("{language} has no module {module} within the sandbox");
                    let hint = "install it, or name a Python that has it with --python";
                    return Err(refusal(reason, hint));
                }
                Err(error) => return Err(refusal(error.to_string(), "leave the task out")),
            }
        }
        Ok(())
    }

    fn succeeds(&self, program: &Program) -> Result<bool, Fault> {
        let confined = Confined {
            // The published tests of Rust programs are functions marked as tests.
            tests: program.language == Language::Rust,
            ..Confined::new(program.language, program.source.as_str())
        };
        let outcome = self.run(&confined, &Limits::default())?;
        Ok(matches!(outcome, Outcome::Passed { .. }))
    }
}
