//! What grading needs besides replies: leave to run programs, a judge.

use std::path::{Path, PathBuf};

use fedllm_client::{Code, Explain};
use fedllm_models::eval::Prompts;

use crate::evaluate::{Graders, Refusal};
use crate::judge::{Judge, JudgeConfig, JudgeError, Price, Secret};
use crate::sandbox::{self, Sandbox};

/// The variable that has the judge's key.
const KEY: &str = "FEDLLM_JUDGE_KEY";

/// How replies are graded.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Grading")]
pub(super) struct Grading {
    /// Run the programs that the model writes, in a sandbox without network, files or other processes.
    #[arg(long)]
    allow_code_execution: bool,
    /// The Python that runs them, such as one of a virtual environment with numpy and pandas.
    #[arg(long, value_name = "PATH", requires = "allow_code_execution")]
    python: Option<PathBuf>,
    /// Let a model at this OpenAI-compatible endpoint rate answers: a base such as https://host/v1. Its
    /// key is read from FEDLLM_JUDGE_KEY, if it needs one.
    #[arg(long, value_name = "URL", requires = "judge_model")]
    judge_endpoint: Option<String>,
    /// What the endpoint calls the model.
    #[arg(long, value_name = "NAME", requires = "judge_endpoint")]
    judge_model: Option<String>,
    /// Read the key from this file instead.
    #[arg(long, value_name = "FILE", requires = "judge_endpoint")]
    judge_key_file: Option<PathBuf>,
    /// Dollars per million tokens read and written, to show what it costs before it starts.
    #[arg(long, value_name = "IN,OUT", requires = "judge_endpoint")]
    judge_price: Option<Price>,
    /// Questions that the judge is asked at once.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4,
        requires = "judge_endpoint"
    )]
    judge_parallel: usize,
    /// Ask an endpoint on another machine without encryption: whoever is in between reads the key.
    #[arg(long, requires = "judge_endpoint")]
    danger_judge_http: bool,
}

/// What there is for grading, or why it is not there.
pub(super) struct Means {
    sandbox: Result<Sandbox, Refusal>,
    judge: Result<Judge, Refusal>,
}

impl Means {
    /// What the user allows, and what this machine can do. What a judge says is kept below `out`.
    pub(super) fn of(grading: &Grading, out: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            sandbox: sandbox(grading),
            judge: judge(grading, out)?,
        })
    }

    pub(super) fn graders(&self, prompts: Prompts) -> Graders<'_> {
        Graders {
            programs: self.sandbox.as_ref().map(|sandbox| sandbox as _),
            judge: self.judge.as_ref().map(|judge| judge as _),
            prompts,
        }
    }
}

fn sandbox(grading: &Grading) -> Result<Sandbox, Refusal> {
    if !grading.allow_code_execution {
        return Err(refusal(
            "it runs programs that the model wrote",
            "--allow-code-execution runs them in a sandbox",
        ));
    }
    let options = sandbox::Options {
        python: grading.python.clone(),
    };
    Sandbox::find(options).map_err(|error| refusal(&error.to_string(), "leave the task out"))
}

fn judge(grading: &Grading, out: &Path) -> anyhow::Result<Result<Judge, Refusal>> {
    let (Some(endpoint), Some(model)) = (&grading.judge_endpoint, &grading.judge_model) else {
        return Ok(Err(refusal(
            "a judge has to read its answers",
            "name one with --judge-endpoint and --judge-model",
        )));
    };
    let key = match &grading.judge_key_file {
        Some(file) => Some(Secret::from_file(file).map_err(explain)?),
        None if std::env::var_os(KEY).is_some() => Some(Secret::from_env(KEY).map_err(explain)?),
        None => None,
    };
    let config = JudgeConfig {
        key,
        parallel: grading.judge_parallel,
        danger_allow_http: grading.danger_judge_http,
        price: grading.judge_price,
        ..JudgeConfig::new(endpoint, model)
    };
    std::fs::create_dir_all(out).code(Code::Data)?;
    let judge = Judge::open(config, &out.join("judgements.jsonl")).map_err(explain)?;
    Ok(Ok(judge))
}

fn refusal(reason: &str, hint: &str) -> Refusal {
    Refusal {
        reason: reason.to_owned(),
        hint: hint.to_owned(),
    }
}

fn explain(error: JudgeError) -> anyhow::Error {
    let hint = error.hint().map(str::to_owned);
    super::super::explained(error, Code::Usage, hint)
}
