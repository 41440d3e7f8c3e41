//! `evaluate`: a model and adapters on it, on the field's benchmarks.

mod grading;
mod list;

use grading::{Grading, Means};

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::ArgGroup;
use fedllm_client::{
    Base, Code, Explain, ModelArgs, TemplateName, files, limit_threads, stop_on_signals,
};
use fedllm_models::device::Selection as Device;
use fedllm_models::eval::{Prompts, TASKS, Task, task};
use fedllm_shared::nearest;

use super::{Global, print_json};
use crate::evaluate::{
    AdapterFacts, AdapterSystem, BASE, Data, EvaluateError, Evaluation, FORMAT, Loaded, Model,
    Named, Opened, Options, Report, RowLog, Selection, Settings, System, SystemError, Templates,
    loaded_digest, means, ranks, read_systems,
};

/// Compare a model and adapters on the field's benchmarks, offline.
///
/// Every task says which published prompt it follows. Replies are kept in DIR/replies as they come:
/// a run that was stopped (or killed) goes on where it was, and a system that is added is asked
/// alone. DIR has the figures as report.json, report.csv, report.md and report.html.
#[derive(Debug, clap::Args)]
#[command(
    mut_arg("model", |arg| arg.required(false).required_unless_present("list")),
    group(ArgGroup::new("what").args(["suite", "task", "list"]).required(true).multiple(true)),
    after_long_help = "Examples:
  fedllm-server evaluate --list
  fedllm-server evaluate --model smollm2-135m-instruct --task mmlu --data ~/data --limit 20
  fedllm-server evaluate --model M --adapter local=runs/a --adapter fedavg=runs/b --suite paper

Data is found in each --data DIR, there in the folder that is called like the task or like its name
on the hub, and then in the Hugging Face cache. `fedllm-server evaluate --list --json` tells both
names, the files, and the licence. A set that is not here is reported as not done, and the exit code
is 7, unless --allow-missing.

Log-likelihood tasks read their prompt as it is; --template is for what the model has to write.

`tasks` in the [evaluation] of a federation.toml or an experiment measures tasks between rounds."
)]
pub(crate) struct Args {
    #[command(flatten)]
    model: Option<ModelArgs>,
    /// A PEFT directory to compare with the base; its last part is its name. Repeat it for others.
    #[arg(long = "adapter", value_name = "[NAME=]DIR")]
    adapters: Vec<Named>,
    /// Do all tasks of a suite, such as `paper`. Repeat it for others.
    #[arg(long, value_name = "SUITE", value_delimiter = ',')]
    suite: Vec<String>,
    /// Do this task. Repeat it for others.
    #[arg(long, value_name = "TASK", value_delimiter = ',')]
    task: Vec<String>,
    /// List the tasks, of the suite if one is named, and do nothing.
    #[arg(long)]
    list: bool,
    /// A folder with data, of one task or in folders of many. Repeat it for others.
    #[arg(long, value_name = "[TASK=]DIR")]
    data: Vec<Data>,
    /// Where replies and reports go.
    #[arg(long, value_name = "DIR", default_value = "evaluation")]
    out: PathBuf,
    /// Leave out rows that cannot be used, and count them.
    #[arg(long)]
    skip_bad_rows: bool,
    /// Call it a success if a task could not be done.
    #[arg(long)]
    allow_missing: bool,
    /// Whose prompts: sound (ours), or reference (OpenFedLLM's and FinGPT's, with their defects).
    #[arg(long, value_name = "WHOSE", default_value = "sound", value_parser = prompts)]
    prompts: Prompts,
    /// The template around what the model has to write: plain, chat, alpaca or vicuna [default:
    /// plain; in conversations the model's own, or vicuna].
    #[arg(long, value_name = "NAME")]
    template: Option<TemplateName>,
    /// Examples before each question [default: as many as the task says].
    #[arg(long, value_name = "N")]
    shots: Option<usize>,
    /// Choose each question's examples at random by this seed, not the first of their split.
    #[arg(long, value_name = "S")]
    shot_seed: Option<u64>,
    /// Only the first N rows of a task, or of each of its subjects.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    limit: Option<usize>,
    /// Only N rows of a task, at random by --seed.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    sample: Option<usize>,
    /// The seed of samples, and of errors that come from drawing rows again.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Tokens of a text at most [default: the model's, up to 8192]. Longer ones lose their beginning.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    context: Option<usize>,
    /// Write each row's reply, answer and grade to rows.jsonl.
    #[arg(long)]
    rows: bool,
    /// Threads of the CPU to use [default: all].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    grading: Grading,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

fn prompts(text: &str) -> Result<Prompts, String> {
    match text {
        "sound" => Ok(Prompts::Sound),
        "reference" => Ok(Prompts::Reference),
        _ => Err("expected sound or reference".to_owned()),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| "expected a whole number from 1 on".to_owned())
}

pub(crate) fn run(args: Args, global: &Global) -> anyhow::Result<()> {
    let tasks = tasks(&args)?;
    let Some(model_args) = args.model.as_ref().filter(|_| !args.list) else {
        return list::list(&tasks, args.json);
    };
    if let Some(threads) = args.threads {
        limit_threads(threads).code(Code::Usage)?;
    }
    // All that can be wrong with the user's files is said before anything slow begins.
    let base = open(&model_args.model, global)?;
    let adapters = read_systems(&args.adapters, base.checkpoint().config());
    let adapters = adapters.map_err(explain_system)?;
    let template = args.template.unwrap_or(TemplateName::Plain);
    let templates = Templates::new(args.template, &base)
        .with_context(|| format!("--template {template}"))
        .code(Code::Usage)?;
    let options = options(&args, &base);
    let opened = read(&tasks, &options)?;

    let selection = fedllm_client::cli::select_device(&model_args.device)?;
    let precision = model_args.base_precision;
    let model = base.load(precision, &selection).code(Code::Data)?;
    let facts = facts(&base, &selection, precision.to_string(), options.context);
    let means = Means::of(&args.grading, &args.out)?;
    let (stop, progress) = (stop_on_signals(), global.counting());
    let evaluation = Evaluation {
        base: Loaded {
            base: &base,
            model: &model,
            digest: loaded_digest(facts.digest, facts.tokenizer, precision),
        },
        asks_base: true,
        adapters: &adapters,
        templates: &templates,
        graders: means.graders(args.prompts),
        options: &options,
        out: &args.out,
        stop: &stop,
        progress: &*progress,
    };
    let report = report(&args, facts, &evaluation, opened)?;
    write(&args.out, &report)?;
    match args.json {
        true => print_json(&report)?,
        false => print!("{}", report.text()),
    }
    tell_refusals(&args, &report)
}

/// The tasks that are asked for, each once.
fn tasks(args: &Args) -> anyhow::Result<Vec<&'static Task>> {
    let mut tasks: Vec<&'static Task> = Vec::new();
    let mut add = |task: &'static Task| {
        if !tasks.iter().any(|known| known.name == task.name) {
            tasks.push(task);
        }
    };
    for suite in &args.suite {
        let of_suite = TASKS
            .iter()
            .filter(|task| task.suites.contains(&suite.as_str()));
        if of_suite.clone().next().is_none() {
            let suites = TASKS.iter().flat_map(|task| task.suites.iter().copied());
            let meant = nearest(suite, suites);
            let unknown = anyhow::anyhow!("no suite is called {suite:?}; is {meant:?} meant?");
            return Err(unknown)
                .code(Code::Usage)
                .hint("`fedllm-server evaluate --list` shows tasks and their suites");
        }
        of_suite.for_each(|task| add(task));
    }
    for name in &args.task {
        let found = task(name)
            .map_err(|meant| anyhow::anyhow!("no task is called {name:?}; is {meant:?} meant?"));
        add(found
            .code(Code::Usage)
            .hint("`fedllm-server evaluate --list` shows all tasks")?);
    }
    match args.list && args.suite.is_empty() && args.task.is_empty() {
        true => Ok(TASKS.to_vec()),
        false => Ok(tasks),
    }
}

fn open(name: &str, global: &Global) -> anyhow::Result<Base> {
    let path = fedllm_client::resolve(name, &*global.progress()).map_err(|error| {
        let code = match error.is_network() {
            true => Code::Network,
            false => Code::Data,
        };
        let hint = error.hint();
        super::explained(error, code, hint)
    })?;
    Base::open(&path).code(Code::Data)
}

fn options(args: &Args, base: &Base) -> Options {
    Options {
        data: args.data.clone(),
        skip_bad_rows: args.skip_bad_rows,
        prompts: args.prompts,
        selection: Selection {
            limit: args.limit,
            sample: args.sample,
            seed: args.seed,
        },
        shots: args.shots,
        shot_seed: args.shot_seed,
        context: Options::context(base, args.context),
    }
}

/// Reads the data that is here, before anything slow begins.
fn read(tasks: &[&'static Task], options: &Options) -> anyhow::Result<Vec<Opened>> {
    for data in &options.data {
        data.path
            .metadata()
            .with_context(|| format!("--data {}", data.path.display()))
            .code(Code::Data)?;
    }
    let opened = tasks.iter().map(|task| options.open(task));
    let opened: Result<_, EvaluateError> = opened.map(|opened| Ok(opened?)).collect();
    opened.map_err(explain)
}

fn facts(base: &Base, device: &Device, precision: String, context: usize) -> Model {
    Model {
        name: base.checkpoint().name().to_owned(),
        digest: base.checkpoint().fingerprint(),
        tokenizer: base.tokenizer().fingerprint(),
        precision,
        device: device.info.to_string(),
        context,
    }
}

/// Does the tasks.
fn report(
    args: &Args,
    model: Model,
    evaluation: &Evaluation<'_>,
    tasks: Vec<Opened>,
) -> anyhow::Result<Report> {
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("--out {}", args.out.display()))
        .code(Code::Data)?;
    let log = args
        .rows
        .then(|| RowLog::create(args.out.join("rows.jsonl")));
    let mut log = log.transpose().map_err(explain)?;
    let mut reports = Vec::new();
    for task in tasks {
        let done = evaluation.task(&task, log.as_mut());
        reports.push(done.map_err(explain)?);
    }
    log.map_or(Ok(()), RowLog::finish).map_err(explain)?;
    let systems = systems(&args.adapters, evaluation.adapters);
    Ok(Report {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model,
        settings: Settings {
            prompts: args.prompts,
            template: evaluation.templates.writing.name().to_string(),
            conversation: evaluation.templates.conversation.name().to_string(),
            shots: args.shots,
            shot_seed: args.shot_seed,
            limit: args.limit,
            sample: args.sample,
            seed: args.seed,
            judge: evaluation.graders.judge.ok().map(|judge| judge.name()),
        },
        means: means(&reports),
        ranks: ranks(&reports, systems.len()),
        systems,
        tasks: reports,
    })
}

fn systems(named: &[Named], adapters: &[AdapterSystem]) -> Vec<System> {
    let base = System {
        name: BASE.to_owned(),
        adapter: None,
    };
    let adapters = named.iter().zip(adapters).map(|(named, adapter)| System {
        name: adapter.name.clone(),
        adapter: Some(AdapterFacts {
            path: named.path.clone(),
            digest: adapter.digest(),
        }),
    });
    [base].into_iter().chain(adapters).collect()
}

fn write(out: &Path, report: &Report) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(report)? + "\n";
    let written = [
        ("report.json", json),
        ("report.csv", report.csv()),
        ("report.md", report.markdown()),
        ("report.html", report.html()),
    ];
    for (name, text) in written {
        let path = out.join(name);
        files::write_whole(&path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The exit code says it when a task was not done.
fn tell_refusals(args: &Args, report: &Report) -> anyhow::Result<()> {
    let refused = report.tasks.iter().filter(|task| task.refusal().is_some());
    let names: Vec<&str> = refused.map(|task| task.name.as_str()).collect();
    if names.is_empty() || args.allow_missing {
        return Ok(());
    }
    let (count, of) = (names.len(), report.tasks.len());
    let failed = anyhow::anyhow!("{count} of {of} tasks not done: {}", names.join(", "));
    Err(failed)
        .code(Code::Data)
        .hint("the report says why and what to do; --allow-missing calls that a success")
}

fn explain(error: EvaluateError) -> anyhow::Error {
    let again = "run the same command again: it goes on from the replies that it has";
    let (code, hint) = match &error {
        EvaluateError::Data(data) => (Code::Data, data.hint()),
        EvaluateError::Stopped { .. } => (Code::Interrupted, Some(again.to_owned())),
        EvaluateError::Grade { .. } => (Code::Failure, Some(again.to_owned())),
        EvaluateError::Ask { .. } => (Code::Data, Some("choose another --template".to_owned())),
        EvaluateError::Adapter(_) => (Code::Incompatible, None),
        EvaluateError::Answers(_) | EvaluateError::Write { .. } => (Code::Failure, None),
    };
    super::explained(error, code, hint)
}

fn explain_system(error: SystemError) -> anyhow::Error {
    let (code, hint) = match &error {
        SystemError::Read { .. } => (Code::Data, None),
        SystemError::OtherModel { .. } => (
            Code::Incompatible,
            Some("an adapter belongs to the model that it was trained on: compare `--model`"),
        ),
        SystemError::SameName(_) => (Code::Usage, Some("name them with --adapter NAME=DIR")),
    };
    super::explained(error, code, hint.map(str::to_owned))
}
