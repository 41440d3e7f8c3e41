//! One request on the desk: how far each of its prompts is, and what its client is told.

use fedllm_models::generate::{Next, Sampling, TextId, Writer};
use fedllm_models::ops::TokenLogProbs;
use fedllm_models::scoring::Row;
use fedllm_models::{Tokenizer, TokenizerError};

use super::text::Answer;
use super::worker::{Event, Job, Question};

/// A question that is not answered yet.
pub(super) struct Request {
    id: u64,
    job: Job,
    /// How far each prompt is.
    stages: Vec<Stage>,
    /// When it came, or its last text was begun.
    turn: u64,
    failed: bool,
}

enum Stage {
    /// To be scored, and then, unless that says all, to be continued.
    ToScore,
    /// Being scored.
    Scoring,
    /// To be continued.
    ToWrite,
    /// Being continued.
    Writing(TextId, Answer),
    Done,
}

impl Request {
    /// A request that came at a time which no other one has.
    pub(super) fn new(job: Job, time: u64) -> Self {
        let question = &job.question;
        let is_scored = question.score_prompts || question.is_one_pass();
        let stage = || match is_scored {
            true => Stage::ToScore,
            false => Stage::ToWrite,
        };
        Self {
            id: time,
            stages: question.prompts.iter().map(|_| stage()).collect(),
            job,
            turn: time,
            failed: false,
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn adapter(&self) -> Option<usize> {
        self.job.question.adapter
    }

    /// Whether nobody waits for the rest of the answer.
    pub(super) fn is_unwanted(&self) -> bool {
        self.failed || self.job.events.is_closed()
    }

    pub(super) fn is_done(&self) -> bool {
        let mut stages = self.stages.iter();
        stages.all(|stage| matches!(stage, Stage::Done))
    }

    pub(super) fn is_to_score(&self) -> bool {
        let mut stages = self.stages.iter();
        stages.any(|stage| matches!(stage, Stage::ToScore))
    }

    pub(super) fn is_to_write(&self) -> bool {
        let mut stages = self.stages.iter();
        stages.any(|stage| matches!(stage, Stage::ToWrite))
    }

    /// Texts in progress.
    pub(super) fn texts(&self) -> impl Iterator<Item = TextId> {
        self.stages.iter().filter_map(|stage| match stage {
            Stage::Writing(text, _) => Some(*text),
            _ => None,
        })
    }

    /// What decides whose text is begun next: the least.
    pub(super) fn turn(&self) -> (usize, u64) {
        (self.texts().count(), self.turn)
    }

    /// The prompt that a text continues.
    pub(super) fn index(&self, text: TextId) -> Option<usize> {
        let mut stages = self.stages.iter();
        stages.position(|stage| matches!(stage, Stage::Writing(id, _) if *id == text))
    }

    /// How many of the most probable tokens scoring has to tell.
    pub(super) fn scored_top(&self) -> usize {
        // The most probable one may be what is written.
        self.job.question.top.unwrap_or(0).max(1)
    }

    /// Takes all prompts that are to be scored, with their numbers.
    pub(super) fn take_rows(&mut self) -> Vec<(usize, Row)> {
        let question = &self.job.question;
        let stages = self.stages.iter_mut().enumerate();
        let to_score = stages.filter(|(_, stage)| matches!(stage, Stage::ToScore));
        let taken = to_score.map(|(index, stage)| {
            *stage = Stage::Scoring;
            (index, question.row(index))
        });
        let taken = taken.collect();
        self.give_up_place();
        taken
    }

    /// Puts prompts that were taken to be scored back.
    pub(super) fn score_again(&mut self) {
        for stage in &mut self.stages {
            if matches!(stage, Stage::Scoring) {
                *stage = Stage::ToScore;
            }
        }
    }

    /// Tells what was said of a prompt, and of the token after it if that is all to be written.
    pub(super) fn scored(
        &mut self,
        index: usize,
        mut said: Vec<TokenLogProbs>,
        tokenizer: &Tokenizer,
    ) {
        let question = &self.job.question;
        let top = question.top.unwrap_or(0);
        let next = match question.is_one_pass() && question.max_tokens > 0 {
            true => said.pop(),
            false => None,
        };
        if question.score_prompts {
            for said in &mut said {
                said.top.truncate(top);
            }
            self.send(Event::Prompt { index, said });
        }
        if !self.job.question.is_one_pass() {
            self.stages[index] = Stage::ToWrite;
            return;
        }
        let mut answer = Answer::new(tokenizer, &self.job.question.stops);
        let mut ended = false;
        if let Some(mut next) = next
            && let Some(&(token, log_prob)) = next.top.first()
        {
            next.log_prob = log_prob;
            next.top.truncate(top);
            let said = self.job.question.top.map(|_| next);
            match self.tell(index, &mut answer, token, said, tokenizer) {
                Ok(last) => ended = last,
                Err(error) => return self.fail(&error),
            }
        }
        self.finish(index, answer, ended);
    }

    /// Begins to continue the first prompt that is to be.
    pub(super) fn begin_text(
        &mut self,
        writer: &mut Writer<'_>,
        positions: usize,
        tokenizer: &Tokenizer,
        time: u64,
    ) {
        let question = &mut self.job.question;
        let stages = self.stages.iter_mut().zip(&mut question.prompts);
        let mut to_write = stages.filter(|(stage, _)| matches!(stage, Stage::ToWrite));
        if let Some((stage, prompt)) = to_write.next() {
            // The last token is written after the context is full: nothing need follow it.
            let room = (positions + 1).saturating_sub(prompt.len());
            let text = writer.admit(
                std::mem::take(prompt),
                question.adapter,
                question.sampling,
                question.top,
                question.max_tokens.min(room),
            );
            *stage = Stage::Writing(text, Answer::new(tokenizer, &question.stops));
            self.turn = time;
        }
        self.give_up_place();
    }

    /// Tells what was written after a prompt; whether its text is done.
    pub(super) fn wrote(&mut self, index: usize, next: Next, tokenizer: &Tokenizer) -> bool {
        let stage = std::mem::replace(&mut self.stages[index], Stage::Done);
        let Stage::Writing(text, mut answer) = stage else {
            return true;
        };
        match self.tell(index, &mut answer, next.token, next.said, tokenizer) {
            Ok(ended) if ended || next.is_last => self.finish(index, answer, ended),
            Ok(_) => {
                self.stages[index] = Stage::Writing(text, answer);
                return false;
            }
            Err(error) => self.fail(&error),
        }
        true
    }

    /// Tells a token; whether it is the last one, because it ends a text or completes a stop.
    fn tell(
        &self,
        index: usize,
        answer: &mut Answer,
        token: u32,
        said: Option<TokenLogProbs>,
        tokenizer: &Tokenizer,
    ) -> Result<bool, TokenizerError> {
        let ends = tokenizer.special().stop.contains(&token);
        let text = match ends {
            true => String::new(),
            false => answer.push(token)?,
        };
        self.send(Event::Token {
            index,
            token,
            text,
            said,
        });
        Ok(ends || answer.stopped())
    }

    /// Tells the end of an answer.
    fn finish(&mut self, index: usize, answer: Answer, ended: bool) {
        match answer.finish() {
            Ok((text, stopped)) => {
                let ended = ended || stopped;
                self.send(Event::Done { index, text, ended });
                self.stages[index] = Stage::Done;
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &TokenizerError) {
        self.failed = true;
        self.send(Event::Failed(error.to_string()));
    }

    fn send(&self, event: Event) {
        // If nobody waits for it any more, the desk soon forgets the request.
        let _ = self.job.events.send(event);
    }

    /// Leaves the queue if the model has begun with the last thing to do for every prompt.
    fn give_up_place(&mut self) {
        let is_all_said = self.job.question.is_one_pass();
        let waits = |stage: &Stage| match stage {
            Stage::ToScore | Stage::ToWrite => true,
            Stage::Scoring => !is_all_said,
            Stage::Writing(..) | Stage::Done => false,
        };
        if !self.stages.iter().any(waits) {
            self.job.place = None;
        }
    }
}

impl Question {
    /// Whether the pass that scores the prompts says all that is to be written.
    fn is_one_pass(&self) -> bool {
        self.max_tokens == 0 || self.max_tokens == 1 && self.sampling == Sampling::Greedy
    }

    /// What is to be scored of a prompt.
    fn row(&self, index: usize) -> Row {
        let mut ids = self.prompts[index].clone();
        let from = match self.score_prompts {
            true => 1,
            false => ids.len(),
        };
        if self.is_one_pass() && self.max_tokens > 0 {
            // What follows is not known yet: only the most probable token counts, so any will do.
            ids.push(0);
        }
        Row::new(ids, from)
    }
}
