//! Replies become grades: by the task itself, by running programs, or by a judge.

use std::collections::BTreeSet;

use fedllm_models::eval::{
    Grade, Grader, Item, Judgement, Language, Program, Prompts, Reply, Task,
};
use fedllm_shared::Estimate;
use rayon::prelude::*;

/// Why a program could not be run, or a judge not be asked.
pub(crate) type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Why something cannot be done, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Why.
    pub(crate) reason: String,
    /// What to do.
    pub(crate) hint: String,
}

/// Runs programs that a model wrote.
pub(crate) trait Programs: Sync {
    /// Whether programs in this language that import these libraries can be run.
    fn ready(&self, language: Language, needs: &[&str]) -> Result<(), Refusal>;
    /// Whether a program succeeds.
    fn succeeds(&self, program: &Program) -> Result<bool, Fault>;
}

/// Judges answers.
pub(crate) trait Judge {
    /// What is reported as the judge.
    fn name(&self) -> String;
    /// The figure of each judgement, none where the judge gave none. `done` is told how many are.
    fn figures(
        &self,
        judgements: &[Judgement],
        done: &dyn Fn(usize),
    ) -> Result<Vec<Option<f64>>, Fault>;
}

/// What grading needs besides replies.
#[derive(Clone, Copy)]
pub(crate) struct Graders<'a> {
    /// What runs programs, or why nothing does.
    pub(crate) programs: Result<&'a dyn Programs, &'a Refusal>,
    /// The judge, or why there is none.
    pub(crate) judge: Result<&'a dyn Judge, &'a Refusal>,
    /// Whose prompts were used.
    pub(crate) prompts: Prompts,
}

/// What a system replied to the questions of a task.
#[derive(Clone, Copy)]
pub(crate) struct Replied<'a> {
    /// The task.
    pub(crate) task: &'static Task,
    /// Its questions.
    pub(crate) questions: &'a [Item],
    /// The reply to each.
    pub(crate) replies: &'a [Reply],
    /// What the base replied, if this is another system.
    pub(crate) base: Option<&'a [Reply]>,
}

impl Graders<'_> {
    /// Whether the replies to a task's questions can be graded at all.
    pub(crate) fn ready(&self, task: &Task, questions: &[Item]) -> Result<(), Refusal> {
        match task.grader {
            Grader::Direct(_) | Grader::Relative(_) => Ok(()),
            Grader::Judge(_) => self.judge.map(drop).map_err(Refusal::clone),
            Grader::Program(program) => {
                let programs = self.programs.map_err(Refusal::clone)?;
                let needed = questions.iter().map(|item| {
                    let program = program(item, "");
                    (program.language, program.needs)
                });
                let needed: BTreeSet<(Language, &[&str])> = needed.collect();
                let mut needed = needed.into_iter();
                needed.try_for_each(|(language, needs)| programs.ready(language, needs))
            }
        }
    }

    /// Grades every reply. `done` is told how much of the work is.
    pub(crate) fn grade(
        &self,
        replied: Replied<'_>,
        done: &dyn Fn(usize),
    ) -> Result<Vec<Grade>, Fault> {
        let pairs = replied.questions.iter().zip(replied.replies);
        match replied.task.grader {
            Grader::Direct(grade) => {
                let graded = pairs.map(|(item, reply)| grade(item, reply, self.prompts));
                Ok(graded.collect())
            }
            Grader::Relative(grade) => {
                let base = |row: usize| replied.base.map(|base| &base[row]);
                let graded = pairs.enumerate();
                let graded = graded.map(|(row, (item, reply))| grade(item, reply, base(row)));
                Ok(graded.collect())
            }
            Grader::Program(program) => self.run(replied, program, done),
            Grader::Judge(judge) => self.judge(replied, judge, done),
        }
    }

    /// Runs as many programs at once as there are threads.
    fn run(
        &self,
        replied: Replied<'_>,
        program: fn(&Item, &str) -> Program,
        done: &dyn Fn(usize),
    ) -> Result<Vec<Grade>, Fault> {
        let programs = self.programs.map_err(|refusal| refusal.reason.clone())?;
        let metric = replied.task.metrics[0].name;
        let pairs: Vec<(&Item, &Reply)> = replied.questions.iter().zip(replied.replies).collect();
        let mut grades: Vec<Grade> = Vec::with_capacity(pairs.len());
        for some in pairs.chunks(rayon::current_num_threads()) {
            let run = some.par_iter().map(|(item, reply)| {
                let text = text(reply);
                let passed = programs.succeeds(&program(item, text))?;
                Ok(Grade::of(metric, f64::from(u8::from(passed))).answering(text))
            });
            grades.extend(run.collect::<Result<Vec<Grade>, Fault>>()?);
            done(grades.len());
        }
        Ok(grades)
    }

    /// A metric that several judgements of a row name is their mean.
    fn judge(
        &self,
        replied: Replied<'_>,
        judgements: fn(&Item, &[String]) -> Vec<Judgement>,
        done: &dyn Fn(usize),
    ) -> Result<Vec<Grade>, Fault> {
        let judge = self.judge.map_err(|refusal| refusal.reason.clone())?;
        let (mut asked, mut ends) = (Vec::new(), Vec::new());
        for (item, reply) in replied.questions.iter().zip(replied.replies) {
            asked.extend(judgements(item, texts(reply)));
            ends.push(asked.len());
        }
        let mut figures = judge.figures(&asked, done)?;
        figures.resize(asked.len(), None);
        let mut start = 0;
        let rows = ends.into_iter().map(|end| {
            let row = std::mem::replace(&mut start, end)..end;
            let figures = asked[row.clone()].iter().zip(&figures[row]);
            let figures = figures.map(|(asked, figure)| (asked.metric, *figure));
            rated(replied.task, &figures.collect::<Vec<_>>())
        });
        Ok(rows.collect())
    }
}

fn rated(task: &Task, figures: &[(&str, Option<f64>)]) -> Grade {
    let mut grade = Grade::default();
    for metric in task.metrics {
        let of_metric = figures.iter().filter(|(name, _)| *name == metric.name);
        if let Some(mean) = Estimate::of(of_metric.filter_map(|(_, figure)| *figure)).mean {
            grade = grade.and(metric.name, mean);
        }
    }
    grade
}

/// What was written first.
fn text(reply: &Reply) -> &str {
    texts(reply).first().map_or("", String::as_str)
}

fn texts(reply: &Reply) -> &[String] {
    match reply {
        Reply::Texts(texts) => texts,
        Reply::Scores(_) => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{CODE, MEASURES, program, said};
    use super::*;
    use std::cell::Cell;

    use fedllm_models::eval::{Measure, Metric, Scale};

    /// Runs Python: a program succeeds if it says so.
    struct Python;

    impl Programs for Python {
        fn ready(&self, language: Language, _: &[&str]) -> Result<(), Refusal> {
            match language {
                Language::Python => Ok(()),
                _ => Err(refusal("no toolchain")),
            }
        }

        fn succeeds(&self, program: &Program) -> Result<bool, Fault> {
            match program.source.as_str() {
                "broken sandbox" => Err("it did not start".into()),
                source => Ok(source == "good"),
            }
        }
    }

    /// Gives a figure to every question that it can read.
    struct Figures;

    impl Judge for Figures {
        fn name(&self) -> String {
            "figures".to_owned()
        }

        fn figures(
            &self,
            judgements: &[Judgement],
            done: &dyn Fn(usize),
        ) -> Result<Vec<Option<f64>>, Fault> {
            done(judgements.len());
            let figure = |judgement: &Judgement| (judgement.figure)(&judgement.prompt);
            Ok(judgements.iter().map(figure).collect())
        }
    }

    fn refusal(reason: &str) -> Refusal {
        Refusal {
            reason: reason.to_owned(),
            hint: String::new(),
        }
    }

    fn graders<'a>(
        programs: Result<&'a dyn Programs, &'a Refusal>,
        judge: Result<&'a dyn Judge, &'a Refusal>,
    ) -> Graders<'a> {
        Graders {
            programs,
            judge,
            prompts: Prompts::Sound,
        }
    }

    fn replied<'a>(
        task: &'static Task,
        questions: &'a [Item],
        replies: &'a [Reply],
    ) -> Replied<'a> {
        Replied {
            task,
            questions,
            replies,
            base: None,
        }
    }

    #[test]
    fn programs_run_only_with_leave_and_a_toolchain() {
        let none = refusal("not allowed");
        let questions = [program("a", Language::Python), program("b", Language::Go)];
        let refused = graders(Err(&none), Err(&none));
        assert_eq!(refused.ready(&CODE, &questions), Err(none.clone()));
        let python = graders(Ok(&Python), Err(&none));
        let ready = python.ready(&CODE, &questions);
        assert_eq!(ready, Err(refusal("no toolchain")));
        assert_eq!(python.ready(&CODE, &questions[..1]), Ok(()));

        let questions = ["good", "bad"].map(|id| program(id, Language::Python));
        let own = [said("good"), said("bad")];
        let done = Cell::new(0);
        let grades = python.grade(replied(&CODE, &questions, &own), &|now| done.set(now));
        let passed: Vec<_> = grades.unwrap().iter().map(|g| g.value("pass")).collect();
        assert_eq!((passed, done.get()), (vec![Some(1.0), Some(0.0)], 2));
        let broken = [said("broken sandbox")];
        let grades = python.grade(replied(&CODE, &questions[..1], &broken), &|_| {});
        assert_eq!(grades.unwrap_err().to_string(), "it did not start");
    }

    #[test]
    fn a_relative_grade_sees_the_bases_reply() {
        let none = refusal("none");
        let graders = graders(Err(&none), Err(&none));
        let questions = [program("a", Language::Python)];
        let (base, own) = ([said("12")], [said("1234")]);
        let grade = |own: &[Reply], base| {
            let replied = replied(&MEASURES, &questions, own);
            let grades = graders.grade(Replied { base, ..replied }, &|_| {});
            grades.unwrap()[0].value("acc")
        };
        assert_eq!(grade(&base, None), Some(0.0));
        assert_eq!(grade(&own, Some(&base[..])), Some(2.0));
    }

    #[test]
    fn figures_of_a_judge_are_means_of_those_that_it_gave() {
        static JUDGED: Task = Task {
            name: "judged",
            grader: Grader::Judge(|_, texts| {
                let turns = ["turn 1", "turn 2"].into_iter().zip(texts);
                turns
                    .map(|(metric, text)| Judgement {
                        metric,
                        system: String::new(),
                        prompt: text.clone(),
                        temperature: 0.0,
                        figure: |text| text.parse().ok(),
                    })
                    .collect()
            }),
            metrics: &[rating("turn 1"), rating("turn 2")],
            ..CODE
        };
        const fn rating(name: &'static str) -> Metric {
            Metric {
                name,
                measure: Measure::Mean,
                scale: Scale::Rating,
            }
        }
        let none = refusal("none");
        let graders = graders(Err(&none), Ok(&Figures));
        assert_eq!(
            graders.judge.map(Judge::name).ok().as_deref(),
            Some("figures")
        );
        let questions = [
            program("a", Language::Python),
            program("b", Language::Python),
        ];
        let texts = |a: &str, b: &str| Reply::Texts(vec![a.to_owned(), b.to_owned()]);
        let own = [texts("4", "7"), texts("8", "I cannot say")];
        let grades = graders.grade(replied(&JUDGED, &questions, &own), &|_| {});
        let values: Vec<Vec<Option<f64>>> = grades
            .unwrap()
            .iter()
            .map(|grade| ["turn 1", "turn 2"].map(|m| grade.value(m)).to_vec())
            .collect();
        assert_eq!(values[0], [Some(4.0), Some(7.0)]);
        assert_eq!(values[1], [Some(8.0), None]);
    }
}
