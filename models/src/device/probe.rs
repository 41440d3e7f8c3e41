//! Looking at devices from a distance: every driver runs for the first time in a child process.
//!
//! A driver that crashes takes its process with it, and one that hangs cannot be stopped. So the
//! program starts itself again with [`CHILD_VARIABLE`] set; [`child_entry`], the first thing that
//! every `main` calls, does the dangerous part there and prints one line of JSON.
//!
//! Verdicts are kept in a file, by adapter, driver and program version, so that only the first start
//! takes the time of a self-test; in files beside it, by the same, which variants of matrix products
//! are fastest.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::selftest::{self, SelfTest, SelfTestError, StepFn};
use super::tiny::tiny_step;
use super::{Backend, DeviceChoice, DeviceError, DeviceInfo, DeviceKind, list, open};
use crate::files::{read_cache, write_cache};
use crate::ops::keep_in;

/// Set in the child process: `list`, or the index of the device to test.
pub const CHILD_VARIABLE: &str = "FEDLLM_PROBE_DEVICE";

/// Stands before the JSON, as drivers print lines of their own.
const MARKER: &str = "fedllm-probe: ";

/// Of a cache directory: [`Verdicts`].
const VERDICTS_FILE: &str = "devices.json";

/// By [`DeviceInfo::key`].
type Verdicts = BTreeMap<String, ProbeReport>;

/// In a child process that was started to look at devices, does that and returns the exit code with
/// which `main` must end at once; otherwise `None`.
///
/// # Examples
///
/// ```no_run
/// # use std::process::ExitCode;
/// fn main() -> ExitCode {
///     if let Some(code) = fedllm_models::device::probe::child_entry() {
///         return code;
///     }
///     // What the program is for.
///     ExitCode::SUCCESS
/// }
/// ```
pub fn child_entry() -> Option<ExitCode> {
    child_entry_with(&tiny_step)
}

/// Whether this process has called [`child_entry`], so that a child of it will too. A program that
/// does not, such as a test, would run itself again and again.
static LOOKS_FOR_TASKS: AtomicBool = AtomicBool::new(false);

fn child_entry_with(step: &StepFn) -> Option<ExitCode> {
    LOOKS_FOR_TASKS.store(true, Ordering::Relaxed);
    let task = std::env::var(CHILD_VARIABLE).ok()?;
    let answer = match task.parse() {
        Ok(index) => serde_json::to_string(&test_here(index, step)),
        Err(_) => serde_json::to_string(&list()),
    };
    Some(match answer {
        Ok(line) => {
            println!("\n{MARKER}{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    })
}

fn test_here(index: usize, step: &StepFn) -> ProbeReport {
    let devices = list();
    let Some(info) = devices.get(index) else {
        return ProbeReport {
            key: String::new(),
            verdict: Verdict::Failed {
                reason: format!("device {index} is gone"),
            },
            test: None,
        };
    };
    let (verdict, test) = match open(info) {
        Ok(device) => match selftest::run(info, &device, step) {
            Ok(test) => (Verdict::Usable, Some(test)),
            Err(error) => (Verdict::from(error), None),
        },
        Err(error) => (
            Verdict::Failed {
                reason: error.to_string(),
            },
            None,
        ),
    };
    ProbeReport {
        key: info.key(),
        verdict,
        test,
    }
}

/// What became of a device's self-test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// The device, its driver and this program's version, as [`DeviceInfo::key`] gives them.
    pub key: String,
    /// The outcome.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Figures of a self-test that was passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<SelfTest>,
}

/// The outcome of a self-test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// It computes what the CPU computes.
    Usable,
    /// It computes something else.
    Wrong {
        /// What differs, and by how much.
        reason: String,
    },
    /// Its driver ended the process.
    Crashed {
        /// The signal or exit code.
        reason: String,
    },
    /// It did not finish in time.
    TimedOut {
        /// The time it had.
        seconds: u64,
    },
    /// It could not be tried.
    Failed {
        /// Why not.
        reason: String,
    },
}

impl Verdict {
    /// Whether the device may train.
    pub fn is_usable(&self) -> bool {
        *self == Self::Usable
    }

    /// Whether a repetition would give the same, so that it is worth keeping.
    fn lasts(&self) -> bool {
        matches!(
            self,
            Self::Usable | Self::Wrong { .. } | Self::Crashed { .. }
        )
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usable => f.write_str("usable"),
            Self::Wrong { reason } => write!(f, "wrong results: {reason}"),
            Self::Crashed { reason } => write!(f, "its driver crashed: {reason}"),
            Self::TimedOut { seconds } => write!(f, "no answer within {seconds} s"),
            Self::Failed { reason } => f.write_str(reason),
        }
    }
}

impl From<SelfTestError> for Verdict {
    fn from(error: SelfTestError) -> Self {
        let reason = error.to_string();
        match error {
            SelfTestError::Wrong { .. } | SelfTestError::NotFinite { .. } => Self::Wrong { reason },
            _ => Self::Failed { reason },
        }
    }
}

/// The device that was chosen, opened, and why not a better one.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The device.
    pub info: DeviceInfo,
    /// Its handle for tensors.
    pub device: Device,
    /// Its self-test; `None` for the CPU, which is the reference.
    pub report: Option<ProbeReport>,
    /// Better candidates, each with the reason why it was passed over.
    pub skipped: Vec<String>,
}

impl Selection {
    /// Whether the device may train in mixed precision.
    pub fn takes_mixed_precision(&self) -> bool {
        let test = self.report.as_ref().and_then(|report| report.test.as_ref());
        test.is_some_and(SelfTest::takes_mixed_precision)
    }
}

/// Starts this program again to look at devices, and remembers what it saw.
#[derive(Clone, Debug)]
pub struct Prober {
    program: PathBuf,
    args: Vec<OsString>,
    cache: Option<PathBuf>,
    time_limit: Duration,
}

impl Prober {
    /// Probes with another instance of the running program, whose `main` calls [`child_entry`].
    ///
    /// # Errors
    ///
    /// [`DeviceError::Probe`] if the system does not tell where the program is.
    pub fn this_program() -> Result<Self, DeviceError> {
        let program = std::env::current_exe().map_err(|error| DeviceError::Probe {
            reason: format!("the path of this program is unknown: {error}"),
        })?;
        Ok(Self {
            program,
            args: Vec::new(),
            cache: None,
            time_limit: Duration::from_secs(300),
        })
    }

    /// Passes arguments to the child, for programs that reach [`child_entry`] only with them.
    pub fn with_args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// Keeps verdicts in `devices.json` in this directory.
    pub fn with_cache(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cache = Some(directory.into());
        self
    }

    /// Gives a self-test so much time, and four times as much to a software adapter. The default of
    /// five minutes covers compiling every kernel.
    pub fn with_time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// The devices of this machine, as [`list`] gives them, listed in a child process.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Probe`] if a driver crashes or hangs already then.
    pub fn list(&self) -> Result<Vec<DeviceInfo>, DeviceError> {
        self.ask("list", self.time_limit)
            .map_err(|verdict| DeviceError::Probe {
                reason: verdict.to_string(),
            })
    }

    /// Tests a device in a child process now, and remembers the verdict.
    pub fn probe(&self, info: &DeviceInfo) -> ProbeReport {
        // A software adapter compiles and computes on the processor, which takes minutes.
        let limit = match info.kind {
            DeviceKind::Software => 4 * self.time_limit,
            _ => self.time_limit,
        };
        let report = match self.ask::<ProbeReport>(&info.index.to_string(), limit) {
            Ok(report) if report.key == info.key() => report,
            Ok(_) => self.report(
                info,
                Verdict::Failed {
                    reason: "the devices have changed in the meantime".into(),
                },
            ),
            Err(verdict) => self.report(info, verdict),
        };
        self.remember(&report);
        report
    }

    /// The verdict of an earlier test of the same device with the same driver and program, if it lasts.
    pub fn remembered(&self, info: &DeviceInfo) -> Option<ProbeReport> {
        let file = self.cache.as_deref()?.join(VERDICTS_FILE);
        read_cache::<Verdicts>(&file).remove(&info.key())
    }

    /// Opens the first device that answers to the wish and passes its self-test, from memory or now.
    ///
    /// With [`DeviceChoice::Auto`] there is always a result: the CPU at worst. The CPU alone is
    /// opened without looking at any driver.
    ///
    /// # Errors
    ///
    /// As [`DeviceChoice::order`]; [`DeviceError::NoneUsable`] if all candidates fail.
    pub fn select(&self, choice: &DeviceChoice) -> Result<Selection, DeviceError> {
        let mut skipped = Vec::new();
        let devices = match (choice, self.list_unless_cpu(choice)) {
            (_, Ok(devices)) => devices,
            (DeviceChoice::Auto, Err(error)) => {
                skipped.push(error.to_string());
                vec![super::adapters::cpu()]
            }
            (_, Err(error)) => return Err(error),
        };
        for info in choice.order(&devices)? {
            match self.admit(info) {
                Ok((device, report)) => {
                    return Ok(Selection {
                        info: info.clone(),
                        device,
                        report,
                        skipped,
                    });
                }
                Err(reason) => {
                    tracing::warn!(device = %info, %reason, "a device is passed over");
                    skipped.push(format!("{info}: {reason}"));
                }
            }
        }
        Err(DeviceError::NoneUsable {
            choice: choice.clone(),
            reasons: skipped.join("; "),
        })
    }

    fn list_unless_cpu(&self, choice: &DeviceChoice) -> Result<Vec<DeviceInfo>, DeviceError> {
        match choice {
            DeviceChoice::Cpu | DeviceChoice::Index(0) => Ok(vec![super::adapters::cpu()]),
            _ => self.list(),
        }
    }

    fn admit(&self, info: &DeviceInfo) -> Result<(Device, Option<ProbeReport>), String> {
        if info.backend == Backend::Cpu {
            let device = open(info).map_err(|error| error.to_string())?;
            return Ok((device, None));
        }
        let report = self.remembered(info).unwrap_or_else(|| {
            tracing::info!(device = %info, "testing a device for the first time");
            self.probe(info)
        });
        if !report.verdict.is_usable() {
            return Err(report.verdict.to_string());
        }
        let device = open(info).map_err(|error| error.to_string())?;
        if let Some(directory) = &self.cache {
            keep_in(products_file(directory, &report.key), &device);
        }
        Ok((device, Some(report)))
    }

    fn report(&self, info: &DeviceInfo, verdict: Verdict) -> ProbeReport {
        ProbeReport {
            key: info.key(),
            verdict,
            test: None,
        }
    }

    fn remember(&self, report: &ProbeReport) {
        let Some(directory) = &self.cache else {
            return;
        };
        let file = directory.join(VERDICTS_FILE);
        let mut known: Verdicts = read_cache(&file);
        known.remove(&report.key);
        if report.verdict.lasts() {
            known.insert(report.key.clone(), report.clone());
        }
        if let Err(error) = write_cache(&file, &known) {
            tracing::warn!(%error, "the verdict on a device could not be kept");
        }
    }

    /// Runs the child and parses its answer; the verdict says why there is none.
    fn ask<T: DeserializeOwned>(&self, task: &str, limit: Duration) -> Result<T, Verdict> {
        if self.args.is_empty() && !LOOKS_FOR_TASKS.load(Ordering::Relaxed) {
            return Err(Verdict::Failed {
                reason: "this program cannot test devices, as its main does not call the probe"
                    .into(),
            });
        }
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .env(CHILD_VARIABLE, task)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Verdict::Failed {
                reason: format!("the test process could not be started: {error}"),
            })?;
        let output = drain(child.stdout.take());
        let errors = drain(child.stderr.take());
        let status = wait(&mut child, limit)?;
        // Both threads end with the child's side of the pipe; a panic in them loses only text.
        let output = output.join().unwrap_or_default();
        let errors = errors.join().unwrap_or_default();
        parse(&output).ok_or_else(|| crash(status, &errors))
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth parsing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus, Verdict> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                // Both fail only if it has just ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                return Err(Verdict::TimedOut {
                    seconds: limit.as_secs(),
                });
            }
            Err(error) => {
                return Err(Verdict::Failed {
                    reason: format!("the test process was lost: {error}"),
                });
            }
        }
    }
}

fn parse<T: DeserializeOwned>(output: &str) -> Option<T> {
    let start = output.rfind(MARKER)? + MARKER.len();
    let line = output[start..].lines().next()?;
    serde_json::from_str(line).ok()
}

fn crash(status: ExitStatus, errors: &str) -> Verdict {
    let mut reason = status.to_string();
    if let Some(line) = errors.lines().rev().find(|line| !line.trim().is_empty()) {
        reason.push_str(": ");
        reason.push_str(line.trim());
    }
    if status.success() {
        reason = "the test process gave no answer".into();
        return Verdict::Failed { reason };
    }
    Verdict::Crashed { reason }
}

/// Where the variants of matrix products are kept that are fastest on a device.
fn products_file(directory: &Path, key: &str) -> PathBuf {
    let name = blake3::hash(key.as_bytes()).to_hex();
    directory.join(format!("products-{}.json", &name[..16]))
}

#[cfg(test)]
mod tests {
    use super::super::{Features, Memory};
    use super::selftest::TinyStep;
    use super::*;

    const BEHAVIOUR: &str = "FEDLLM_TEST_PROBE_BEHAVIOUR";

    /// Not a test by itself: the child process of the tests below, which are this same program.
    #[test]
    fn child() {
        match std::env::var(BEHAVIOUR).as_deref() {
            Ok("abort") => std::process::abort(),
            Ok("hang") => std::thread::sleep(Duration::from_secs(60)),
            Ok("silent") => {}
            _ if std::env::var_os(CHILD_VARIABLE).is_none() => {}
            _ => {
                let _ = child_entry_with(&|_, _, _| {
                    Ok(TinyStep {
                        loss: 1.0,
                        gradients: vec![1.0; 10],
                        tokens_per_second: 42.0,
                    })
                });
            }
        }
    }

    fn prober(behaviour: &str) -> Prober {
        let mut prober = Prober::this_program().unwrap().with_args([
            "device::probe::tests::child",
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ]);
        if !behaviour.is_empty() {
            // The child inherits no variable from a test that runs beside this one.
            prober.args.splice(
                0..0,
                [format!("{BEHAVIOUR}={behaviour}"), path(&prober.program)].map(OsString::from),
            );
            prober.program = "/usr/bin/env".into();
        }
        prober
    }

    fn path(program: &Path) -> String {
        program.to_str().unwrap().to_owned()
    }

    fn cpu() -> DeviceInfo {
        super::super::adapters::cpu()
    }

    fn card() -> DeviceInfo {
        DeviceInfo {
            index: 1,
            name: "Card".into(),
            vendor: String::new(),
            backend: Backend::Vulkan,
            kind: DeviceKind::Discrete,
            driver: "1.0".into(),
            memory: Memory::default(),
            features: Features::default(),
            adapter: None,
        }
    }

    #[test]
    fn a_device_is_tested_in_a_child_and_the_verdict_kept() {
        let directory = tempfile::tempdir().unwrap();
        let prober = prober("").with_cache(directory.path());
        assert_eq!(prober.remembered(&cpu()), None);
        let report = prober.probe(&cpu());
        assert_eq!(report.verdict, Verdict::Usable);
        assert_eq!(report.test.as_ref().unwrap().tokens_per_second, 42.0);
        assert_eq!(prober.remembered(&cpu()), Some(report));
    }

    #[test]
    fn the_cpu_is_listed_first_from_a_child() {
        assert_eq!(prober("").list().unwrap()[0].backend, Backend::Cpu);
    }

    #[test]
    #[cfg(unix)]
    fn a_crash_is_a_verdict_that_lasts() {
        let directory = tempfile::tempdir().unwrap();
        let prober = prober("abort").with_cache(directory.path());
        let report = prober.probe(&card());
        assert!(
            matches!(report.verdict, Verdict::Crashed { .. }),
            "{report:?}"
        );
        assert_eq!(prober.remembered(&card()), Some(report));
        let mut newer = card();
        newer.driver = "1.1".into();
        assert_eq!(prober.remembered(&newer), None);
    }

    #[test]
    #[cfg(unix)]
    fn a_hang_and_a_silence_are_verdicts_that_do_not_last() {
        let directory = tempfile::tempdir().unwrap();
        let hanging = prober("hang")
            .with_cache(directory.path())
            .with_time_limit(Duration::from_millis(300));
        assert_eq!(
            hanging.probe(&card()).verdict,
            Verdict::TimedOut { seconds: 0 }
        );
        assert_eq!(hanging.remembered(&card()), None);
        let report = prober("silent").probe(&card());
        assert!(
            matches!(report.verdict, Verdict::Failed { .. }),
            "{report:?}"
        );
    }

    #[test]
    #[cfg(unix)]
    fn a_crash_while_listing_leaves_the_cpu_to_auto_only() {
        let prober = prober("abort");
        let selection = prober.select(&DeviceChoice::Auto).unwrap();
        assert_eq!(selection.info.backend, Backend::Cpu);
        assert_eq!(selection.skipped.len(), 1);
        assert!(prober.select(&DeviceChoice::Gpu).is_err());
        assert!(prober.select(&DeviceChoice::Cpu).is_ok());
    }

    #[test]
    fn a_program_that_is_no_prober_falls_back_to_the_cpu() {
        // Tests that play the child run in processes of their own, so nothing has set the flag.
        if std::env::var_os(CHILD_VARIABLE).is_some() {
            return;
        }
        let prober = Prober::this_program().unwrap();
        let selection = prober.select(&DeviceChoice::Auto).unwrap();
        assert_eq!(selection.info.backend, Backend::Cpu);
        assert!(prober.list().is_err());
    }

    #[test]
    fn a_damaged_cache_counts_as_empty() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(VERDICTS_FILE), b"{\"a\":").unwrap();
        let prober = prober("").with_cache(directory.path());
        assert_eq!(prober.remembered(&card()), None);
        prober.remember(&prober.report(
            &card(),
            Verdict::Wrong {
                reason: "loss".into(),
            },
        ));
        assert!(prober.remembered(&card()).is_some());
    }
}
