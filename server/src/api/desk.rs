//! What the thread that has the model does: it scores prompts and writes texts, a pass of one after a
//! pass of the other, for all requests together.

use fedllm_models::generate::Writer;
use fedllm_models::scoring::{Row, Scorer};
use tokio::sync::mpsc::UnboundedReceiver;

use super::request::Request;
use super::worker::{Job, Model};

/// Tokens of prompts that are taken together to be scored.
const SCORED_TOKENS: usize = 4096;

/// Requests that are not answered yet.
pub(super) struct Desk<'a> {
    model: &'a Model,
    writer: Writer<'a>,
    scoring: Option<Scoring<'a>>,
    /// In the order in which they came.
    requests: Vec<Request>,
    /// Counts requests and the texts that were begun.
    clock: u64,
}

/// Prompts of one adapter that are being scored.
struct Scoring<'a> {
    scorer: Scorer<'a>,
    /// The request and the number of each prompt.
    prompts: Vec<(u64, usize)>,
}

impl<'a> Desk<'a> {
    pub(super) fn new(model: &'a Model, cache_bytes: usize) -> Self {
        Self {
            model,
            writer: Writer::new(&model.base, &model.adapters, cache_bytes),
            scoring: None,
            requests: Vec::new(),
            clock: 0,
        }
    }

    /// Answers what comes, until nothing more can.
    pub(super) fn work(mut self, mut queue: UnboundedReceiver<Job>) {
        while self.take(&mut queue) {
            self.forget_unwanted();
            self.score();
            self.begin_texts();
            self.write();
            self.requests.retain(|request| !request.is_done());
        }
    }

    /// Takes what is in the queue, and waits for something if there is nothing to do; whether there
    /// is.
    fn take(&mut self, queue: &mut UnboundedReceiver<Job>) -> bool {
        let first = match self.requests.is_empty() {
            true => queue.blocking_recv(),
            false => None,
        };
        let more = std::iter::from_fn(|| queue.try_recv().ok());
        for job in first.into_iter().chain(more) {
            self.clock += 1;
            self.requests.push(Request::new(job, self.clock));
        }
        !self.requests.is_empty()
    }

    /// Ends the work on requests whose clients are gone, or that failed.
    fn forget_unwanted(&mut self) {
        let unwanted = self
            .requests
            .extract_if(.., |request| request.is_unwanted());
        let unwanted: Vec<Request> = unwanted.collect();
        for text in unwanted.iter().flat_map(Request::texts) {
            self.writer.end(text);
        }
        let is_unwanted = |id: &u64| unwanted.iter().any(|request| request.id() == *id);
        let scoring = self.scoring.as_ref();
        if scoring.is_some_and(|scoring| scoring.prompts.iter().any(|(id, _)| is_unwanted(id))) {
            // The rest is planned again, without them.
            self.scoring = None;
            self.requests.iter_mut().for_each(Request::score_again);
        }
    }

    /// One pass over prompts that are to be scored.
    fn score(&mut self) {
        if self.scoring.is_none() {
            self.scoring = self.begin_scoring();
        }
        let Some(scoring) = &mut self.scoring else {
            return;
        };
        let Some(scored) = scoring.scorer.advance() else {
            self.scoring = None;
            return;
        };
        for (row, said) in scored {
            let (id, index) = scoring.prompts[row];
            let request = self.requests.iter_mut().find(|request| request.id() == id);
            if let Some(request) = request {
                request.scored(index, said, &self.model.tokenizer);
            }
        }
    }

    /// Takes prompts that are to be scored: those of the adapter that has waited the longest.
    fn begin_scoring(&mut self) -> Option<Scoring<'a>> {
        let mut first = self.requests.iter().filter(|request| request.is_to_score());
        let adapter = first.next()?.adapter();
        let of_adapter = self.requests.iter_mut();
        let of_adapter = of_adapter.filter(|request| request.adapter() == adapter);
        let (mut rows, mut prompts) = (Vec::new(), Vec::new());
        let (mut tokens, mut top) = (0, 0);
        for request in of_adapter {
            if tokens >= SCORED_TOKENS {
                break;
            }
            let id = request.id();
            let taken: Vec<(usize, Row)> = request.take_rows();
            if !taken.is_empty() {
                top = top.max(request.scored_top());
            }
            for (index, row) in taken {
                tokens += row.tokens();
                prompts.push((id, index));
                rows.push(row);
            }
        }
        let lora = adapter.and_then(|adapter| self.model.adapters.get(adapter));
        let scorer = Scorer::new(&self.model.base, lora, rows, top);
        Some(Scoring { scorer, prompts })
    }

    /// Begins texts while there is room for them, each for the request that has the fewest in
    /// progress; of several, for the one that has waited the longest.
    fn begin_texts(&mut self) {
        while self.writer.texts() < Writer::TEXTS {
            let waiting = self.requests.iter_mut();
            let waiting = waiting.filter(|request| request.is_to_write());
            let Some(request) = waiting.min_by_key(|request| request.turn()) else {
                return;
            };
            self.clock += 1;
            let positions = self.model.base.config().max_positions;
            request.begin_text(
                &mut self.writer,
                positions,
                &self.model.tokenizer,
                self.clock,
            );
        }
    }

    /// One pass over texts.
    fn write(&mut self) {
        let writer = &mut self.writer;
        for next in writer.advance() {
            let text = next.text;
            let mut requests = self.requests.iter_mut();
            let found = requests.find_map(|request| {
                let index = request.index(text)?;
                Some((request, index))
            });
            if let Some((request, index)) = found
                && request.wrote(index, next, &self.model.tokenizer)
            {
                writer.end(text);
            }
        }
    }
}
