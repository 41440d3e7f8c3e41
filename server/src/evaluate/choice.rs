//! Which rows are asked, and which examples are shown before them.

use std::collections::HashMap;

use fedllm_models::eval::{Item, Task};
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Which rows of a task are asked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Selection {
    /// Only the first so many; of each part, where a task has parts.
    pub(crate) limit: Option<usize>,
    /// So many, at random.
    pub(crate) sample: Option<usize>,
    /// Chooses them.
    pub(crate) seed: u64,
}

impl Selection {
    /// The rows that are asked, in their order.
    pub(crate) fn of(&self, task: &Task, items: &[Item]) -> Vec<Item> {
        let mut items: Vec<&Item> = items.iter().collect();
        if let Some(limit) = self.limit {
            let mut taken: HashMap<Option<String>, usize> = HashMap::new();
            items.retain(|item| {
                let part = item.cluster.as_deref().filter(|_| task.has_parts());
                let taken = taken.entry(part.map(str::to_owned)).or_default();
                *taken += 1;
                *taken <= limit
            });
        }
        if let Some(count) = self.sample.filter(|count| *count < items.len()) {
            let mut generator = generator(self.seed, &["sample", task.name]);
            let mut chosen = sample(&mut generator, items.len(), count).into_vec();
            chosen.sort_unstable();
            let mut chosen = chosen.into_iter().peekable();
            let mut index = 0..;
            items.retain(|_| chosen.next_if(|next| Some(*next) == index.next()).is_some());
        }
        items.into_iter().cloned().collect()
    }
}

/// The examples of a task.
pub(crate) struct Examples<'a> {
    task: &'static Task,
    /// By cluster, if they have to be of the question's.
    pools: HashMap<Option<&'a str>, Vec<&'a Item>>,
    count: usize,
    seed: Option<u64>,
}

impl<'a> Examples<'a> {
    /// Examples out of a split; out of the questions themselves, if there is no split for that.
    ///
    /// Without a number of them, as many as the task says. Without a seed, the first ones.
    pub(crate) fn new(
        task: &'static Task,
        examples: &'a [Item],
        questions: &'a [Item],
        count: Option<usize>,
        seed: Option<u64>,
    ) -> Self {
        let pool = match (&task.source.examples, task.shots.description) {
            (Some(_), _) => examples,
            // Its description has its examples.
            (None, Some(_)) => &[],
            (None, None) => questions,
        };
        let mut pools: HashMap<_, Vec<&Item>> = HashMap::new();
        for item in pool {
            let cluster = item.cluster.as_deref().filter(|_| task.shots.of_cluster);
            pools.entry(cluster).or_default().push(item);
        }
        Self {
            task,
            pools,
            count: count.unwrap_or(task.shots.count),
            seed,
        }
    }

    /// How many are shown.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// What is said before a question: the task's description, and the examples.
    pub(crate) fn before(&self, item: &Item) -> String {
        let shots = &self.task.shots;
        let cluster = item.cluster.as_deref();
        let chosen = self.chosen(item);
        let count = match self.pools.is_empty() {
            true => self.count,
            false => chosen.len(),
        };
        let mut text = shots
            .description
            .map_or_else(String::new, |describe| describe(cluster, count));
        for example in chosen {
            text.extend([&example.prompt, &example.answer, shots.between]);
        }
        text
    }

    fn chosen(&self, item: &Item) -> Vec<&'a Item> {
        let cluster = item.cluster.as_deref();
        let cluster = cluster.filter(|_| self.task.shots.of_cluster);
        let pool = self.pools.get(&cluster).map_or(&[][..], Vec::as_slice);
        let others = |example: &&&Item| example.prompt != item.prompt;
        let Some(seed) = self.seed else {
            return pool
                .iter()
                .filter(others)
                .take(self.count)
                .copied()
                .collect();
        };
        // One more than needed: the question itself may be among them.
        let mut generator = generator(seed, &["shots", self.task.name, &item.id]);
        let count = (self.count + 1).min(pool.len());
        let drawn = sample(&mut generator, pool.len(), count).into_iter();
        let drawn = drawn.map(|index| pool[index]);
        drawn
            .filter(|example| example.prompt != item.prompt)
            .take(self.count)
            .collect()
    }
}

/// Random numbers of a seed for one purpose.
fn generator(seed: u64, purpose: &[&str]) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new_derive_key("fedllm 1 evaluation seeds");
    hasher.update(&seed.to_le_bytes());
    for part in purpose {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedllm_models::eval::{Ask, Gold, task};

    fn items(subject: &str, count: usize) -> Vec<Item> {
        let item = |i| Item {
            id: format!("{subject}/{i}"),
            cluster: Some(subject.into()),
            prompt: format!("{subject}{i}?"),
            answer: format!(" {i}"),
            ask: Ask::Read,
            gold: Gold::Open,
        };
        (0..count).map(item).collect()
    }

    fn all() -> Vec<Item> {
        [items("law", 8), items("art", 8)].concat()
    }

    fn ids(items: &[Item]) -> Vec<&str> {
        items.iter().map(|item| item.id.as_str()).collect()
    }

    #[test]
    fn a_limit_holds_for_each_part_and_a_sample_is_seeded() {
        let mmlu = task("mmlu").unwrap();
        let select = |limit, sample, seed| {
            let selection = Selection {
                limit,
                sample,
                seed,
            };
            selection.of(mmlu, &all())
        };
        assert_eq!(
            ids(&select(Some(2), None, 0)),
            ["law/0", "law/1", "art/0", "art/1"]
        );
        let first = select(None, Some(5), 1);
        assert_eq!(first.len(), 5);
        assert_eq!(first, select(None, Some(5), 1));
        assert_ne!(first, select(None, Some(5), 2));
        let all = all();
        let mut order = all.iter();
        assert!(first.iter().all(|item| order.any(|other| other == item)));
        assert_eq!(select(None, Some(50), 1).len(), 16);
    }

    #[test]
    fn the_first_examples_of_the_subject_come_first() {
        let mmlu = task("mmlu").unwrap();
        let (pool, question) = (all(), &items("law", 20)[19]);
        let examples = Examples::new(mmlu, &pool, &[], Some(2), None);
        let about = "The following are multiple choice questions (with answers) about law.\n\n";
        let expected = format!("{about}law0? 0\n\nlaw1? 1\n\n");
        assert_eq!(examples.before(question), expected);
        let none = Examples::new(mmlu, &pool, &[], Some(0), None);
        assert_eq!(none.before(question), about);
    }

    #[test]
    fn drawn_examples_differ_by_question_and_are_never_the_question() {
        let mmlu = task("mmlu").unwrap();
        let pool = all();
        let examples = Examples::new(mmlu, &pool, &[], Some(7), Some(3));
        let shown = |item: &Item| -> Vec<&str> {
            let chosen = examples.chosen(item);
            chosen.iter().map(|item| item.id.as_str()).collect()
        };
        for question in &pool[..8] {
            let shown = shown(question);
            assert_eq!(shown.len(), 7);
            assert!(!shown.contains(&question.id.as_str()));
        }
        let [first, second] = [17, 18].map(|i| shown(&items("law", 20)[i]));
        assert_ne!(first, second);
        let again = Examples::new(mmlu, &pool, &[], Some(7), Some(3));
        assert_eq!(
            again.before(&items("law", 20)[17]),
            examples.before(&items("law", 20)[17])
        );
    }
}
