//! Exit codes, and how an error is shown: what went wrong, why, and what to do about it.

use std::error::Error as StdError;
use std::fmt;
use std::process::ExitCode;

/// Why a program of fedllm ended. The numbers are the same in client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// It did what was asked.
    Ok = 0,
    /// It failed for a reason that no other code names.
    Failure = 1,
    /// The command line was wrong.
    Usage = 2,
    /// A configuration file was wrong.
    Config = 3,
    /// No device could be used, or the chosen one failed its self-test.
    Device = 4,
    /// The network failed, or a peer refused to authenticate.
    Network = 5,
    /// Protocol, model, tokenizer or template do not fit the peer's.
    Incompatible = 6,
    /// A file of the user's could not be read or used.
    Data = 7,
    /// Stopped at once by a second signal.
    Interrupted = 130,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// Adds an exit code or a hint to an error on its way up to the user.
pub trait Explain<T> {
    /// Ends the program with `code` if this error reaches the top. The innermost code wins.
    ///
    /// # Errors
    ///
    /// The same error as before.
    fn code(self, code: Code) -> anyhow::Result<T>;

    /// Shows `hint` below the error: one thing that the user can do.
    ///
    /// # Errors
    ///
    /// The same error as before.
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Explain<T> for Result<T, E> {
    fn code(self, code: Code) -> anyhow::Result<T> {
        self.map_err(|error| {
            let mut explained = Explained::from(error.into());
            explained.code.get_or_insert(code);
            explained.into()
        })
    }

    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| {
            let mut explained = Explained::from(error.into());
            explained.hints.push(hint.into());
            explained.into()
        })
    }
}

/// Prints `error` on standard error (message, causes, hints) and gives the code to end with.
pub fn report(error: &anyhow::Error) -> Code {
    eprint!("{}", describe(error));
    code_of(error)
}

/// An error with what the user needs to know beside it; it looks like the error it wraps.
#[derive(Debug)]
struct Explained {
    code: Option<Code>,
    hints: Vec<String>,
    inner: anyhow::Error,
}

impl From<anyhow::Error> for Explained {
    fn from(error: anyhow::Error) -> Self {
        // A context put around an explained error must stay visible, so only a bare one is merged.
        if error.chain().next().is_some_and(|top| top.is::<Self>()) {
            match error.downcast::<Self>() {
                Ok(explained) => return explained,
                Err(inner) => {
                    return Self {
                        code: None,
                        hints: Vec::new(),
                        inner,
                    };
                }
            }
        }
        Self {
            code: None,
            hints: Vec::new(),
            inner: error,
        }
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl StdError for Explained {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source()
    }
}

fn describe(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut shown = error.to_string();
    for cause in error.chain().skip(1) {
        let line = cause.to_string();
        // Many errors end with their cause, or are nothing but a name for it.
        if !shown.ends_with(&line) {
            text.push_str(&format!("  because: {line}\n"));
        }
        shown = line;
    }
    for explained in error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<Explained>())
    {
        for hint in &explained.hints {
            text.push_str(&format!("hint: {hint}\n"));
        }
    }
    text
}

/// The innermost code that was given; without one, what the kind of error says.
fn code_of(error: &anyhow::Error) -> Code {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<Explained>()?.code)
        .last()
        .unwrap_or(Code::Failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    fn failure() -> anyhow::Result<()> {
        Err(std::io::Error::other("disk on fire")).context("cannot read the shard")
    }

    #[test]
    fn shows_message_causes_and_hints() {
        let error = failure()
            .code(Code::Data)
            .hint("use another disk")
            .context("training stopped")
            .hint("or none")
            .unwrap_err();
        assert_eq!(
            describe(&error),
            "error: training stopped\n  because: cannot read the shard\n  because: disk on fire\n\
             hint: or none\nhint: use another disk\n"
        );
        assert_eq!(code_of(&error), Code::Data);
    }

    #[test]
    fn a_cause_is_shown_once() {
        let error = failure().context("training: cannot read the shard");
        let shown = describe(&error.unwrap_err());
        assert_eq!(
            shown,
            "error: training: cannot read the shard\n  because: disk on fire\n"
        );
    }

    #[test]
    fn innermost_code_wins() {
        let error = failure()
            .code(Code::Data)
            .context("outer")
            .code(Code::Network)
            .unwrap_err();
        assert_eq!(code_of(&error), Code::Data);
        assert_eq!(code_of(&failure().unwrap_err()), Code::Failure);
    }
}
