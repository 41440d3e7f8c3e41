//! One round's work under way: the task is checked, its blobs fetched, the delta trained.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fedllm_shared::{Layout, RoundId, TrainTask};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

use crate::governor::StopFlag;
use crate::ledger::Meter;
use crate::net::{self, NetError, Transport};
use crate::work::{Update, WorkError, WorkReport, Workshop, adapter_bound, task_blobs};

/// Between two attempts to fetch a blob.
const FETCH_AGAIN: Duration = Duration::from_secs(2);
/// Attempts to fetch blobs over connections that hold; a lost connection does not count.
const FETCHES: u32 = 20;

/// Something that happened beside the control stream.
#[derive(Debug)]
pub(crate) enum Event {
    /// An upload ended.
    Uploaded {
        round: RoundId,
        result: Result<(), NetError>,
    },
    /// A job went on. Reports of jobs that were ended meanwhile come too.
    Job { id: u64, report: Report },
}

/// How a job went on.
#[derive(Debug)]
pub(crate) enum Report {
    /// The task can be done here; its adapter has this layout.
    Fits(Arc<Layout>),
    /// A blob came, or part of it.
    Fetched {
        received: Vec<u8>,
        result: Result<(), NetError>,
    },
    /// The work goes on.
    Work(WorkReport),
    /// The work is over.
    Done(Result<Update, WorkError>),
}

/// One round's work under way.
pub(crate) struct Job {
    id: u64,
    task: Arc<TrainTask>,
    workshop: Workshop,
    layout: Option<Arc<Layout>>,
    /// What the task refers to: the blobs that are complete, in order.
    blobs: Vec<Vec<u8>>,
    /// What is here of the next one, while no fetch is under way.
    partial: Option<Vec<u8>>,
    fetches: u32,
    retry_at: Option<Instant>,
    stop: StopFlag,
    thread: Option<JoinHandle<()>>,
    sender: UnboundedSender<Event>,
}

impl Job {
    /// Begins with the check whether the task can be done here.
    pub(crate) fn start(
        task: TrainTask,
        workshop: Workshop,
        sender: UnboundedSender<Event>,
    ) -> Self {
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let mut job = Self {
            id: LAST_ID.fetch_add(1, Ordering::Relaxed),
            task: Arc::new(task),
            workshop,
            layout: None,
            blobs: Vec::new(),
            partial: Some(Vec::new()),
            fetches: 0,
            retry_at: None,
            stop: StopFlag::new(),
            thread: None,
            sender,
        };
        // The check waits for a trainer that is still in the last step of another round.
        let (workshop, task) = (job.workshop.clone(), Arc::clone(&job.task));
        job.in_background(move |_| match workshop.check(&task) {
            Ok(layout) => Report::Fits(layout),
            Err(error) => Report::Done(Err(error)),
        });
        job
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn task(&self) -> &TrainTask {
        &self.task
    }

    /// When to try to fetch the next blob.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// The check went well: the blobs can be fetched.
    pub(crate) fn fits(&mut self, layout: Arc<Layout>) {
        self.layout = Some(layout);
        self.retry_at = Some(Instant::now());
    }

    /// Fetches what is missing of the next blob, if it is time to, over a connection that is up.
    pub(crate) fn fetch<T: Transport>(&mut self, link: Option<&T>, meter: &Meter) {
        let due = self.retry_at.is_some_and(|at| at <= Instant::now());
        let wanted = task_blobs(&self.task).get(self.blobs.len()).copied();
        let (Some(link), Some(layout), Some(blob), true) = (link, &self.layout, wanted, due) else {
            return;
        };
        self.retry_at = None;
        let max = adapter_bound(layout);
        let mut received = self.partial.take().unwrap_or_default();
        let (streams, meter) = (link.streams(), meter.clone());
        let (id, sender) = (self.id, self.sender.clone());
        tokio::spawn(async move {
            let result = if blob.len > max {
                Err(NetError::TooLarge { len: blob.len, max })
            } else {
                net::get(&streams, blob, &mut received, &meter).await
            };
            let report = Report::Fetched { received, result };
            // The session may have ended meanwhile.
            let _ = sender.send(Event::Job { id, report });
        });
    }

    /// Takes in how a fetch went; says whether training has begun.
    pub(crate) fn fetched(
        &mut self,
        received: Vec<u8>,
        result: Result<(), NetError>,
    ) -> Result<bool, WorkError> {
        match result {
            Ok(()) => {
                self.blobs.push(received);
                if self.blobs.len() < task_blobs(&self.task).len() {
                    self.partial = Some(Vec::new());
                    self.retry_at = Some(Instant::now());
                    return Ok(false);
                }
                self.train();
                Ok(true)
            }
            Err(error) if error.is_transient() && self.fetches < FETCHES => {
                tracing::debug!(%error, "a blob of the task has not come yet");
                self.fetches += u32::from(!matches!(error, NetError::Lost(_)));
                self.partial = Some(received);
                self.retry_at = Some(Instant::now() + FETCH_AGAIN);
                Ok(false)
            }
            Err(error) => Err(WorkError::Fetch(error)),
        }
    }

    /// Stops the work and waits until its thread has ended, after the current step.
    pub(crate) async fn end(mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // It reports failures by itself.
            let _ = thread.await;
        }
    }

    fn train(&mut self) {
        let Some(layout) = self.layout.clone() else {
            return;
        };
        let blobs = std::mem::take(&mut self.blobs);
        let (workshop, task, stop) = (
            self.workshop.clone(),
            Arc::clone(&self.task),
            self.stop.clone(),
        );
        self.in_background(move |report| {
            let mut report = |work| report(Report::Work(work));
            Report::Done(workshop.work(&task, &layout, &blobs, &stop, &mut report))
        });
    }

    /// Runs `work` on a thread where it may take its time, and reports what it returns.
    fn in_background(
        &mut self,
        work: impl FnOnce(&mut dyn FnMut(Report)) -> Report + Send + 'static,
    ) {
        let (id, sender) = (self.id, self.sender.clone());
        self.thread = Some(tokio::spawn(async move {
            let reports = sender.clone();
            let mut report = move |report| {
                // The session may have ended meanwhile.
                let _ = reports.send(Event::Job { id, report });
            };
            let done = spawn_blocking(move || work(&mut report)).await;
            let report = done.unwrap_or(Report::Done(Err(WorkError::Crashed)));
            let _ = sender.send(Event::Job { id, report });
        }));
    }
}
