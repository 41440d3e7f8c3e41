//! Many texts at once: each pass moves several on by a token.

use super::tree::Tree;
use super::{Chooser, Sampling};
use crate::arch::{CausalLm, RunId};
use crate::lora::{Lora, read_back};
use crate::ops::TokenLogProbs;
use crate::scoring::PASS_TOKENS;
use rayon::prelude::*;

/// Texts in progress, each with its adapter.
///
/// New ones may join, and any may end, between two passes. Prompts that begin alike, or like a text
/// that ended a while ago, share their beginning. What a text becomes depends on no other one.
pub struct Writer<'a> {
    model: &'a CausalLm,
    adapters: &'a [Lora],
    /// Tokens that the cache may hold.
    room: usize,
    tree: Tree,
    /// In the order in which they were admitted.
    texts: Vec<Text>,
    admitted: u64,
    /// Which adapter had the last pass.
    turn: Option<usize>,
}

/// Names a text of a [`Writer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TextId(u64);

/// What a pass wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// Where.
    pub text: TextId,
    /// The token.
    pub token: u32,
    /// What the model said of it and of the most probable ones, if that was asked, whatever the
    /// sampling made of it.
    pub said: Option<TokenLogProbs>,
    /// Whether the text has all of its tokens, and is forgotten.
    pub is_last: bool,
}

struct Text {
    id: TextId,
    adapter: Option<usize>,
    place: Place,
    chooser: Chooser,
    top: Option<usize>,
    /// Tokens that may still be written.
    left: usize,
}

enum Place {
    /// Its tokens, until there is room for them.
    Waiting(Vec<u32>),
    /// Its end.
    Open(RunId),
}

impl<'a> Writer<'a> {
    /// How many texts are best written at once: products of so many rows read the weights once.
    pub const TEXTS: usize = 8;

    /// A writer whose keys and values are `cache_bytes` at most, or what one text needs if that is
    /// more. Where they grow in place, memory is taken ahead: up to as much again.
    pub fn new(model: &'a CausalLm, adapters: &'a [Lora], cache_bytes: usize) -> Self {
        Self {
            model,
            adapters,
            room: cache_bytes / token_bytes(model),
            tree: Tree::default(),
            texts: Vec::new(),
            admitted: 0,
            turn: None,
        }
    }

    /// Adds a text that continues `prompt`, which has at least one token, by `max_tokens`, at least
    /// one. `adapter` is a place in the list of [`new`](Self::new); none is the base. With `top` come
    /// log-probabilities, with so many of the most probable tokens.
    pub fn admit(
        &mut self,
        prompt: Vec<u32>,
        adapter: Option<usize>,
        sampling: Sampling,
        top: Option<usize>,
        max_tokens: usize,
    ) -> TextId {
        self.admitted += 1;
        let id = TextId(self.admitted);
        self.texts.push(Text {
            id,
            adapter,
            place: Place::Waiting(prompt),
            chooser: Chooser::new(sampling),
            top,
            left: max_tokens,
        });
        id
    }

    /// Texts in progress.
    pub fn texts(&self) -> usize {
        self.texts.len()
    }

    /// Bytes of all keys and values.
    pub fn cache_bytes(&self) -> usize {
        self.tree.tokens() * token_bytes(self.model)
    }

    /// Ends a text, if it has not ended.
    pub fn end(&mut self, text: TextId) {
        let Some(place) = self.texts.iter().position(|other| other.id == text) else {
            return;
        };
        if let Place::Open(end) = self.texts.remove(place).place {
            self.tree.close(end);
        }
    }

    /// One pass over the texts of an adapter, each adapter in its turn: those whose tokens were all
    /// read go on by one, others read on.
    pub fn advance(&mut self) -> Vec<Next> {
        self.make_room();
        let Some(adapter) = self.next_adapter() else {
            return Vec::new();
        };
        self.turn = Some(number(adapter));
        let of_adapter = self.texts.iter().filter(|text| text.adapter == adapter);
        let ends: Vec<RunId> = of_adapter.filter_map(Text::end).collect();
        let parts = self.tree.share_out(&ends, PASS_TOKENS);
        let new: usize = parts.iter().map(|(_, tokens)| tokens).sum();
        while self.tree.tokens() + new > self.room && self.tree.evict() {}
        let (model, tree) = (self.model, &mut self.tree);
        let lora = adapter.and_then(|adapter| self.adapters.get(adapter));
        let places = places(tree, &ends, &parts);
        let logits = tree.read(&parts, |new, cache| {
            if places.is_empty() {
                model.score_cached(new, cache, lora, &[], &[], 0);
                return Vec::new();
            }
            let places: Vec<usize> = places.iter().map(|(_, place)| *place).collect();
            read_back(model.decode(new, cache, lora, &places))
        });
        let next = self.choose(&places, &logits);
        for next in &next {
            if next.is_last {
                self.end(next.text);
            }
        }
        next
    }

    /// Chooses the tokens after the ends of some texts.
    fn choose(&mut self, places: &[(RunId, usize)], logits: &[f32]) -> Vec<Next> {
        let rows = logits.chunks_exact(self.model.config().vocab);
        let mut of_text = Vec::with_capacity(places.len());
        let mut texts: Vec<&mut Text> = self.texts.iter_mut().collect();
        for ((end, _), logits) in places.iter().zip(rows) {
            let place = texts.iter().position(|text| text.end() == Some(*end));
            of_text.extend(place.map(|place| (texts.swap_remove(place), *end, logits)));
        }
        let choose = |(text, end, logits): (&mut Text, RunId, &[f32])| {
            let token = text.chooser.choose(logits);
            let said = text
                .top
                .map(|top| TokenLogProbs::of_row(logits, token, top));
            text.left = text.left.saturating_sub(1);
            let next = Next {
                text: text.id,
                token,
                said,
                is_last: text.left == 0,
            };
            (end, next)
        };
        let chosen: Vec<(RunId, Next)> = of_text.into_par_iter().map(choose).collect();
        let push = |(end, next): (RunId, Next)| {
            self.tree.push(end, next.token);
            next
        };
        chosen.into_iter().map(push).collect()
    }

    /// Opens the texts that there is room for, the oldest first, and puts off the youngest ones where
    /// the others have grown.
    fn make_room(&mut self) {
        let (tree, room) = (&mut self.tree, self.room);
        let mut open = self
            .texts
            .iter()
            .filter(|text| text.end().is_some())
            .count();
        for text in self.texts.iter_mut().rev() {
            if open <= 1 || tree.open_tokens() <= room {
                break;
            }
            if let Place::Open(end) = text.place {
                text.place = Place::Waiting(tree.text(end));
                tree.close(end);
                open -= 1;
            }
        }
        for text in &mut self.texts {
            let Place::Waiting(ids) = &text.place else {
                continue;
            };
            let end = tree.open(text.adapter, ids);
            if open > 0 && tree.open_tokens() > room {
                // Nor may a younger one pass it.
                tree.close(end);
                break;
            }
            text.place = Place::Open(end);
            open += 1;
        }
    }

    /// The adapter whose turn it is of those that have open texts.
    fn next_adapter(&self) -> Option<Option<usize>> {
        let open = self.texts.iter().filter(|text| text.end().is_some());
        let open = open.map(|text| text.adapter);
        let after = |adapter: &Option<usize>| {
            let number = number(*adapter);
            (self.turn.is_some_and(|turn| number <= turn), number)
        };
        open.min_by_key(after)
    }
}

impl Text {
    /// Its end, if it is open.
    fn end(&self) -> Option<RunId> {
        match self.place {
            Place::Open(end) => Some(end),
            Place::Waiting(_) => None,
        }
    }
}

/// An adapter's place in the turns; the base is the first.
fn number(adapter: Option<usize>) -> usize {
    adapter.map_or(0, |adapter| adapter + 1)
}

/// The ends whose last token is among the parts of a pass, and where it is there.
fn places(tree: &Tree, ends: &[RunId], parts: &[(RunId, usize)]) -> Vec<(RunId, usize)> {
    let mut after = 0;
    let mut places = Vec::new();
    for (run, tokens) in parts {
        after += tokens;
        if ends.contains(run) && tree.unread(*run) == *tokens {
            places.push((*run, after - 1));
        }
    }
    places
}

/// Bytes of one token's keys and values.
fn token_bytes(model: &CausalLm) -> usize {
    let config = model.config();
    config.layers * 2 * config.kv_dim() * size_of::<f32>()
}
