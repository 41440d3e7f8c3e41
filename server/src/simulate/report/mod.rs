//! Reports: one HTML file with its plots, for a browser and for paper.

mod benchmarks;
mod facts;
mod figure;
mod figures;
mod frame;
mod learning;
mod owners;
mod plot;
mod sweep;
mod tables;

pub use sweep::render_sweep;

use figure::{Drawing, Figure};

use super::metrics::{Evaluation, RoundMetrics, RunSummary};
use super::split::SplitTable;
use crate::report::dots::{self, Dot};
use crate::report::html::escape;
use crate::report::page::Page;

/// The report of one run: what it came to, plots of every round, how its data was split, and the
/// configuration that it can be repeated with.
///
/// The page needs no other file and no script, follows the reader's light or dark scheme, and
/// prints on A4. Lines can be told apart without colour. Values that are not finite are left out.
pub fn render_report(
    summary: &RunSummary,
    rounds: &[RoundMetrics],
    split: Option<&SplitTable>,
    config_toml: &str,
) -> String {
    let mut page = Page::new("fedllm simulation", &summary.name, &facts::lead(summary));
    page.facts(&facts::facts(summary));
    if !summary.evaluations.is_empty() {
        page.section("Final models");
        let table = tables::evaluations(summary);
        page.figures(&table, &final_losses(summary));
    }
    if !rounds.is_empty() {
        page.section("Learning");
        page.figures("", &learning::learning(summary, rounds));
        let plots = benchmarks::plots(summary, rounds);
        if !plots.is_empty() {
            page.section("Benchmarks");
            page.figures(&benchmarks::table(summary), &plots);
        }
        page.section("Updates");
        page.figures("", &figures::updates(rounds));
        page.section("Cost");
        page.figures("", &figures::costs(rounds));
    }
    if let Some(split) = split {
        page.section("Data");
        page.facts(&facts::data(split));
        page.figures("", &[owners(split)]);
    }
    if !rounds.is_empty() {
        page.push("<details>\n<summary><h2>Every round in numbers</h2></summary>\n");
        page.push(&tables::numbers(rounds));
        page.push("</details>\n");
    }
    page.push(&format!(
        "<details class=\"config\" open>\n<summary><h2>Configuration</h2></summary>\n<pre>{}</pre>\n\
         </details>\n",
        escape(config_toml)
    ));
    page.finish()
}

/// The final losses side by side, when there is something beside the federation's model.
fn final_losses(summary: &RunSummary) -> Vec<Figure<'static>> {
    let dot = |e: &Evaluation| Dot {
        name: e.arm.clone(),
        value: e.loss,
        error: Some(e.loss_se),
    };
    let dots: Vec<Dot> = summary.evaluations.iter().map(dot).collect();
    if dots.len() < 2 {
        return Vec::new();
    }
    let caption = "Lower is better. Bars are standard errors over rows.";
    vec![Figure {
        title: "Final held-out loss of each model".into(),
        caption: match dots.len() > dots::ROWS {
            true => format!("{caption} The first {} of {}.", dots::ROWS, dots.len()),
            false => caption.into(),
        },
        drawing: Drawing::Dots(summary.loss_unit(), dots),
    }]
}

/// The owners with their rows and labels.
fn owners(split: &SplitTable) -> Figure<'_> {
    let shown = split.owners.len().min(owners::COLUMNS);
    let mut caption = String::from("A column for each owner");
    if shown < split.owners.len() {
        caption.push_str(&format!(", of which {shown} are shown"));
    }
    caption.push_str(match split.labels.is_empty() {
        true => ", the largest first.",
        false => {
            ", ordered by its commonest label. Below, the share of its rows that have each label. \
             The label distance is the mean total variation between an owner’s labels and all \
             labels, from 0 (equal mixtures) to 1 (nothing in common)."
        }
    });
    Figure {
        title: "Rows and labels of each owner".into(),
        caption,
        drawing: Drawing::Owners(split),
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::tests::{round, task};
    use super::super::split::{Categories, Partition, split};
    use super::*;
    use crate::report::testing::{MARKUP, assert_alone, assert_described, assert_nested};

    fn evaluation(arm: &str, loss: f64) -> Evaluation {
        Evaluation {
            arm: arm.into(),
            loss,
            ..round(0).evaluations.remove(0)
        }
    }

    fn rounds(count: u64, clients: u32) -> Vec<RoundMetrics> {
        let of = |index| {
            let mut metrics = round(index);
            let template = metrics.clients.remove(0);
            metrics.clients = (0..clients)
                .map(|client| crate::simulate::ClientRound {
                    client,
                    name: format!("{MARKUP}{client}"),
                    ..template.clone()
                })
                .collect();
            metrics
        };
        (0..count).map(of).collect()
    }

    fn summary(rounds: u64) -> RunSummary {
        RunSummary {
            name: MARKUP.into(),
            strategy: MARKUP.into(),
            rounds,
            clients: 3,
            evaluations: vec![
                evaluation("base", 2.5),
                evaluation("global", 1.5),
                evaluation(MARKUP, 2.0),
            ],
            tasks: vec![task(MARKUP, MARKUP, 0.5)],
            code_version: MARKUP.into(),
            ..RunSummary::default()
        }
    }

    fn table() -> SplitTable {
        let names = [MARKUP, "a", "b"];
        let labels = Categories::intern((0..60).map(|row| names[row % 3]));
        let natural = Partition::Natural { drop_small: false };
        let split = split(&labels, natural, 0, 1, 0).unwrap();
        SplitTable::new(MARKUP, &split, &labels, &[1; 60])
    }

    #[test]
    fn a_page_is_whole_at_any_size() {
        for (count, clients) in [(0, 0), (1, 1), (1, 70), (3, 0), (500, 3)] {
            let html = render_report(
                &summary(count),
                &rounds(count, clients),
                Some(&table()),
                "a = 1",
            );
            assert_nested(&html);
            assert_nested(&render_report(
                &RunSummary::default(),
                &rounds(count, clients),
                None,
                "",
            ));
        }
    }

    #[test]
    fn a_page_needs_nothing_else() {
        let html = render_report(&summary(5), &rounds(5, 3), Some(&table()), "");
        assert_alone(&html);
    }

    #[test]
    fn text_from_outside_is_never_markup() {
        let html = render_report(&summary(5), &rounds(5, 3), Some(&table()), MARKUP);
        assert!(!html.contains("<b a"), "{html}");
        assert!(html.matches("&lt;b a=&quot;1&quot;&gt;&amp;&#39;").count() > 8);
    }

    #[test]
    fn a_run_that_diverged_is_shown_without_its_figures() {
        let mut rounds = rounds(3, 2);
        for round in &mut rounds[1..] {
            round.loss = f64::NAN;
            round.drift = f64::INFINITY;
            round.seconds = f64::NAN;
            round.lr = f32::NAN;
            round.clients[0].loss_mean = f32::NAN;
            round.evaluations[0].loss = f64::NAN;
            round.evaluations[0].accuracy_se = Some(f64::NAN);
        }
        let mut summary = summary(3);
        summary.evaluations[1].loss = f64::NAN;
        summary.evaluations[1].loss_se = f64::INFINITY;
        let html = render_report(&summary, &rounds, None, "");
        assert!(!html.contains("NaN") && !html.contains("inf<") && !html.contains("inf "));
    }

    #[test]
    fn figures_describe_themselves_and_have_ids_of_their_own() {
        let html = render_report(&summary(5), &rounds(5, 3), Some(&table()), "");
        let figures = assert_described(&html);
        assert!(figures > 10, "{figures}");
    }

    #[test]
    fn many_models_are_folded() {
        let many = (0..50)
            .map(|index| evaluation(&format!("owner {index}"), 2.0))
            .collect();
        let summary = RunSummary {
            evaluations: many,
            ..summary(1)
        };
        let html = render_report(&summary, &[], None, "");
        assert!(html.contains("<summary>30 others</summary>") && html.contains("owner 49"));
        assert_nested(&html);
    }
}
