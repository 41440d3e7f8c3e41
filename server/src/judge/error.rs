//! Why a judge could not be asked.

use thiserror::Error;

use crate::answers::AnswersError;

/// Why a judge could not be asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum JudgeError {
    /// A setting has a value that it cannot have.
    #[error("the judge's {name} is {got}, expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it is.
        got: String,
        /// What it could be.
        expected: &'static str,
    },
    /// The endpoint is none.
    #[error("the judge's endpoint {endpoint:?} cannot be used: {reason}")]
    Endpoint {
        /// The endpoint.
        endpoint: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The endpoint is elsewhere, and not encrypted.
    #[error("the judge's endpoint {endpoint:?} is on another machine and not encrypted")]
    PlainHttp {
        /// The endpoint.
        endpoint: String,
    },
    /// The key cannot be read, or is none.
    #[error("the judge's key cannot be had from {from}: {reason}")]
    Key {
        /// Where it should be.
        from: String,
        /// What is wrong.
        reason: String,
    },
    /// What the judge said cannot be kept.
    #[error(transparent)]
    Kept(#[from] AnswersError),
    /// The endpoint cannot be reached, or an exchange with it broke off.
    #[error("{url} cannot be asked: {source}")]
    Network {
        /// The endpoint.
        url: String,
        /// What happened.
        source: Box<ureq::Error>,
    },
    /// The endpoint says no.
    #[error("{url} answered {status}: {message}")]
    Status {
        /// The endpoint.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What it said, shortened.
        message: String,
    },
    /// The endpoint wants to be left alone for longer than anybody would wait here.
    #[error("{url} answered {status} and wants to be asked again in {seconds} s: {message}")]
    Later {
        /// The endpoint.
        url: String,
        /// The HTTP status.
        status: u16,
        /// How long it wants to be left alone.
        seconds: u64,
        /// What it said, shortened.
        message: String,
    },
    /// What the endpoint answers is no chat completion.
    #[error("{url} gave an answer that is no chat completion: {reason}")]
    Answer {
        /// The endpoint.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl JudgeError {
    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        const AGAIN: &str = "run it again later: what was answered is stored and not asked again";
        Some(match self {
            Self::Setting { .. } => return None,
            Self::Endpoint { .. } => "give a base such as https://api.openai.com/v1",
            Self::PlainHttp { .. } => {
                "use https, or a tunnel to this machine: over http, whoever is in between reads the \
                 key"
            }
            Self::Key { .. } => "put the key into that variable or file, alone",
            Self::Kept(AnswersError::Io { .. }) => "check the disk and the folder's rights",
            Self::Kept(AnswersError::InUse(_)) => {
                "wait for that evaluation, or use another output folder"
            }
            Self::Kept(AnswersError::Line { .. }) => {
                "remove the line; its question is then asked again"
            }
            Self::Network { source, .. } => match **source {
                ureq::Error::HostNotFound => "check the endpoint's name and the network",
                _ => AGAIN,
            },
            Self::Status { status, .. } => match status {
                300..=399 => "the endpoint has moved: give its new address",
                400 | 413 | 422 => "check the judge's temperature, tokens and context",
                401 | 403 => "check the judge's key, and that it may use this model",
                402 => "check what is left on the account",
                404 | 405 => "check the endpoint's path and the judge model's name",
                _ => AGAIN,
            },
            Self::Later { .. } => AGAIN,
            Self::Answer { .. } => "check that the endpoint is OpenAI-compatible",
        })
    }

    /// Whether a question may be what the endpoint minds, rather than how it is asked.
    pub(super) fn is_about_the_question(&self) -> bool {
        matches!(
            self,
            Self::Status {
                status: 400 | 413 | 422,
                ..
            }
        )
    }
}
