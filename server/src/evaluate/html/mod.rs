//! A report as a page: systems over tasks, each figure with its error, and how it came about.

mod figures;
mod provenance;

use fedllm_models::eval::Scale;
use fedllm_shared::Estimate;

use super::report::{MetricReport, Paired, Report, TaskReport};
use crate::report::html::{escape, table};
use crate::report::page::{Fact, Page};
use crate::simulate::text::grouped;

/// Below this, a difference counts as one.
const SIGNIFICANT: f64 = 0.05;

impl Report {
    /// As a page for a browser and for paper.
    ///
    /// It needs no other file and no script, follows the reader's light or dark scheme, and prints
    /// on A4. Values that are not finite are left out.
    pub fn html(&self) -> String {
        let mut page = Page::new("fedllm evaluation", &self.model.name, &self.lead());
        page.facts(&self.facts());
        page.section("Systems side by side");
        page.figures("", &self.overview());
        page.section("Tasks");
        page.push(&self.figures_in_numbers());
        let refused = self.not_done();
        if !refused.is_empty() {
            page.section("Not done");
            page.push(&refused);
        }
        page.section("Tasks in figures");
        page.figures("", &self.bars());
        self.parts(&mut page);
        page.section("How it came about");
        page.facts(&self.provenance());
        page.push(&self.systems_table());
        page.push(
            "<details class=\"config\" open>\n<summary><h2>Prompts and data</h2></summary>\n",
        );
        page.push(&self.prompts_table());
        page.push(&self.files_table());
        page.push("</details>\n");
        page.finish()
    }

    fn done(&self) -> impl Iterator<Item = (&TaskReport, &MetricReport)> {
        let done = |task| Some((task, TaskReport::main(task)?));
        self.tasks.iter().filter_map(done)
    }

    /// What it came to, in a few sentences.
    fn lead(&self) -> String {
        let (all, done) = (self.tasks.len(), self.done().count());
        let mut lead = format!(
            "{} on {}",
            counted(self.systems.len(), "system"),
            counted(done, "task")
        );
        if done < all {
            lead.push_str(&format!(" of the {all} that were asked for"));
        }
        lead.push('.');
        let base = self.systems.first().map_or("", |system| &system.name);
        for (index, system) in self.systems.iter().enumerate().skip(1) {
            let verdicts: Vec<Verdict> = self
                .done()
                .filter_map(|(_, metric)| Some(verdict(metric, comparison(metric, index)?)))
                .collect();
            let count = |wanted| verdicts.iter().filter(|v| **v == wanted).count();
            lead.push_str(&format!(
                " {} is better than {base} on {}, worse on {}, and not told apart from it on {}.",
                system.name,
                counted(count(Verdict::Better), "task"),
                count(Verdict::Worse),
                count(Verdict::Same)
            ));
        }
        lead
    }

    fn facts(&self) -> Vec<Fact> {
        let questions: usize = self.done().map(|(task, _)| task.rows).sum();
        let not_done = self.tasks.len() - self.done().count();
        let remark = match not_done {
            0 => String::new(),
            count => format!("{count} not done"),
        };
        let mut facts = vec![
            ("Systems", grouped(self.systems.len() as u64), String::new()),
            ("Tasks", grouped(self.done().count() as u64), remark),
            (
                "Questions",
                grouped(questions as u64),
                "to each system".into(),
            ),
        ];
        let ranked = self.systems.iter().zip(&self.ranks);
        if let Some((system, rank)) = ranked.min_by(|a, b| a.1.total_cmp(b.1)) {
            let remark = format!("average rank {rank:.2} of {}", self.systems.len());
            facts.push(("First", system.name.clone(), remark));
        }
        facts
    }

    /// All figures, and below them how far systems are from the base.
    fn figures_in_numbers(&self) -> String {
        let (mut values, mut differences) = (self.lines(), Vec::new());
        let first_difference = 3 + self.systems.len();
        for (index, line) in values.iter_mut().enumerate() {
            let difference = line.split_off(first_difference.min(line.len()));
            if index == 0 || difference.iter().any(|cell| !cell.is_empty()) {
                let named = line.iter().take(2).cloned();
                differences.push(named.chain(difference).collect());
            }
        }
        let mut html = as_table("Means, ± standard errors.", values);
        if differences.len() > 1 {
            html.push_str(
                "<p>Differences are between answers to the same questions. p says how likely one \
                 of that size is between systems that are equally good; it is not corrected for the \
                 number of tasks.</p>\n",
            );
            html.push_str(&as_table("Differences, ± standard errors.", differences));
        }
        html
    }

    fn not_done(&self) -> String {
        let rows = self.tasks.iter().filter_map(|task| {
            let (reason, hint) = task.refusal()?;
            Some(
                [task.name.as_str(), reason, hint]
                    .map(str::to_owned)
                    .to_vec(),
            )
        });
        let rows: Vec<Vec<String>> = rows.collect();
        match rows.is_empty() {
            true => String::new(),
            false => words(
                "Tasks without figures.",
                ["task", "why", "what to do"],
                rows,
            ),
        }
    }

    /// The figures of groups and clusters, folded.
    fn parts(&self, page: &mut Page) {
        let metrics = self.tasks.iter().flat_map(|task| {
            let parted = task.metrics.iter().filter(|m| !m.clusters.is_empty());
            parted.map(move |metric| (task, metric))
        });
        for (index, (task, metric)) in metrics.enumerate() {
            if index == 0 {
                page.section("Parts of tasks");
            }
            let title = format!("{}: {}", task.name, metric.name);
            let rows = as_table("Means, ± standard errors.", self.part_lines(metric));
            page.push(&format!(
                "<details><summary>{}, {}</summary>{rows}</details>\n",
                escape(&title),
                counted(metric.clusters.len(), "part")
            ));
        }
    }
}

/// What a comparison says of a system.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    Same,
}

fn verdict(metric: &MetricReport, paired: &Paired) -> Verdict {
    let difference = match metric.scale {
        Scale::Share | Scale::Rating => mean(Some(&paired.difference)),
        Scale::Loss => -mean(Some(&paired.difference)),
    };
    match paired.p_value {
        Some(p) if p < SIGNIFICANT && difference > 0.0 => Verdict::Better,
        Some(p) if p < SIGNIFICANT && difference < 0.0 => Verdict::Worse,
        _ => Verdict::Same,
    }
}

/// How a system compares with the base.
fn comparison(metric: &MetricReport, system: usize) -> Option<&Paired> {
    let mut comparisons = metric.comparisons.iter();
    comparisons.find(|paired| paired.system == system && paired.against == 0)
}

fn mean(value: Option<&Estimate>) -> f64 {
    value.and_then(|value| value.mean).unwrap_or(f64::NAN)
}

/// So many of something.
fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(count as u64))
}

/// Lines of text, the header first, as a table. What is indented stays so.
fn as_table(caption: &str, lines: Vec<Vec<String>>) -> String {
    let cell = |cell: &String| escape(cell).replace("  ", "\u{2003}");
    let mut lines = lines
        .iter()
        .map(|line| line.iter().map(cell).collect::<Vec<_>>());
    let header = lines.next().unwrap_or_default();
    table(&escape(caption), &header, &lines.collect::<Vec<_>>())
}

/// A table whose cells are words.
fn words<const N: usize>(caption: &str, header: [&str; N], rows: Vec<Vec<String>>) -> String {
    let header = header.map(str::to_owned).to_vec();
    let lines = [header].into_iter().chain(rows).collect();
    format!("<div class=\"words\">{}</div>\n", as_table(caption, lines))
}

#[cfg(test)]
mod tests {
    use super::super::report::{DataFile, MeanReport, UsedFor};
    use super::super::table::tests::{done, report};
    use super::figures::BARS;
    use super::*;
    use crate::report::testing::{MARKUP, assert_alone, assert_described, assert_nested};

    /// The report of some systems on some tasks, every text of which tries to be markup.
    pub(super) fn hostile(systems: usize, tasks: usize) -> Report {
        let mut report = report();
        let means = vec![0.5; systems];
        let template = report.systems[1].clone();
        report.systems = vec![template; systems];
        for system in &mut report.systems {
            system.name = MARKUP.into();
        }
        report.ranks = vec![1.0; systems];
        report.model.name = MARKUP.into();
        report.model.device = MARKUP.into();
        report.settings.template = MARKUP.into();
        report.settings.judge = Some(MARKUP.into());
        report.tasks = (0..tasks).map(|_| done(MARKUP, MARKUP, &means)).collect();
        for task in &mut report.tasks {
            (task.about, task.prompt) = (MARKUP.into(), MARKUP.into());
            task.files = vec![DataFile {
                path: MARKUP.into(),
                digest: Default::default(),
                rows: 3,
                used_for: UsedFor::Examples,
            }];
        }
        report
    }

    #[test]
    fn a_page_is_whole_at_any_size() {
        for (systems, tasks) in [(1, 0), (1, 1), (2, 3), (8, 60)] {
            let mut report = hostile(systems, tasks);
            let html = report.html();
            assert_nested(&html);
            assert_alone(&html);
            assert!(!html.contains("<b a"), "{systems} {tasks}");
            // A radar of three tasks and more, the ranks, and bars.
            let bars = tasks.div_ceil((BARS / systems).max(1));
            let figures = usize::from(tasks >= 3) + 1 + bars;
            assert_eq!(assert_described(&html), figures, "{systems} {tasks}");
            report.ranks.clear();
            assert_nested(&report.html());
        }
    }

    #[test]
    fn figures_errors_differences_and_refusals_are_there() {
        let mut report = report();
        report.means = vec![MeanReport {
            name: "medical".into(),
            tasks: vec!["mmlu".into()],
            metric: "acc".into(),
            values: report.tasks[0].metrics[0].values.clone(),
        }];
        let html = report.html();
        for part in [
            "fedavg is better than base on 1 task, worse on 0, and not told apart from it on 0.",
            "2 systems on 1 task of the 2 that were asked for.",
            "<td>0.310 ± 0.020</td>",
            "+0.060 ± 0.020 (p 0.003)",
            "<th scope=\"row\">gsm8k</th><td>no files</td><td>get them</td>",
            "<summary>mmlu: acc, 1 part</summary>",
            "<th scope=\"row\">\u{2003}STEM</th>",
            "<th scope=\"row\">medical</th>",
            "<td>runs/fedavg</td>",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
        assert_nested(&html);
    }

    #[test]
    fn a_verdict_knows_which_way_is_better() {
        let mut report = report();
        let metric = &mut report.tasks[0].metrics[0];
        assert!(verdict(metric, &metric.comparisons[0]) == Verdict::Better);
        metric.scale = Scale::Loss;
        assert!(verdict(metric, &metric.comparisons[0]) == Verdict::Worse);
        metric.comparisons[0].p_value = Some(0.2);
        assert!(verdict(metric, &metric.comparisons[0]) == Verdict::Same);
        metric.comparisons[0].p_value = None;
        assert!(verdict(metric, &metric.comparisons[0]) == Verdict::Same);
    }

    #[test]
    fn what_is_not_finite_is_left_out() {
        let mut report = hostile(2, 4);
        for task in &mut report.tasks[1..] {
            task.metrics[0].values[0].mean = None;
            task.metrics[0].values[1].mean = Some(f64::NAN);
            task.metrics[0].values[1].standard_error = Some(f64::INFINITY);
        }
        let html = report.html();
        assert!(!html.contains("NaN") && !html.contains("inf<") && !html.contains("inf "));
    }
}
