//! The fedllm client: trains a LoRA adapter on private data and sends only its delta.
//!
//! The program is a thin `main` over [`cli::run`]. The library is used by the server's simulation
//! and by the tests: a client is a [`Session`] over a [`Transport`] and a [`Trainer`].

mod base;
mod catalog;
pub mod cli;
mod datasets;
mod download;
mod exit;
pub mod files;
mod governor;
mod held_out;
mod hub;
mod identity;
mod job;
mod ledger;
mod net;
mod notice;
mod prepare;
mod progress;
mod readers;
mod session;
mod shard;
mod state;
mod store;
mod template;
mod train;
mod wheel;
mod work;

pub use base::{Base, ModelArgs};
pub use catalog::{CatalogEntry, HubFile, ModelError, WheelFile, cached, catalog, pull, resolve};
pub use datasets::{DATASETS, Dataset, DatasetError, DatasetRows, RowTags, dataset, find_files};
pub use download::DownloadError;
pub use exit::{Code, Explain, report};
pub use governor::{SleepWatch, StopFlag, limit_threads, lower_priority, stop_on_signals};
pub use held_out::{Rewards, RowScore, ScoreError, UnitScores, hold_out, score_rows, score_units};
pub use hub::HubError;
pub use identity::{CertificateFacts, ClientKey, IdentityError};
pub use ledger::{Kind, Ledger, Meter, Outcome, RoundRecord, Sent};
pub use net::{
    Congestion, Dial, DialOptions, JoinError, LoopbackServer, LoopbackStreams, LoopbackTransport,
    NetError, QuicDialer, QuicStreams, QuicTransport, Streams, Transport, get, join, loopback, put,
};
pub use notice::{Notice, Notices};
pub use prepare::{
    Categories, FileReport, Labelled, PrepareError, PrepareOptions, PrepareProgress, PrepareReport,
    UnitOrigin, Vocabulary, prepare_in_memory, prepare_labelled, prepare_rows, prepare_shard,
    shard_or_rows,
};
pub use progress::{Bars, Progress, Silent};
pub use readers::{
    Format, Place, Prompt, RawRow, ReadError, Record, RowError, RowProblem, RowReader,
};
pub use session::{Ending, Session, SessionError, SessionParts};
pub use shard::{
    Batcher, Row, RowSink, Shard, ShardBuilder, ShardError, ShardFacts, ShardOrigin, ShardWriter,
    sample_units,
};
pub use state::{Enrollment, Lock, Membership, StateDir, StateError};
pub use store::RoundStore;
pub use template::{Pair, Template, TemplateError, TemplateName, Tokens};
pub use train::{
    Fit, FitRequest, LocalUpdate, LoraTrainer, Schedule, ScoreRequest, StepReport, TrainError,
    Trained, Trainer, VariateStep, Variates,
};
pub use wheel::WheelError;
pub use work::{NextVariate, RoundWork, Update, WorkError, WorkReport, check_task, task_blobs};
