//! The report of a sweep: one table, and a plot for each metric.

use fedllm_shared::Estimate;

use super::figure::{Drawing, Figure};
use crate::report::dots::Dot;
use crate::report::html::{escape, table};
use crate::report::page::Page;
use crate::simulate::table::SweepTable;
use crate::simulate::text::grouped;

/// The report of a sweep: its table with means and standard errors, and each metric by arm.
///
/// The page is one file, as that of [`render_report`](super::render_report).
pub fn render_sweep(name: &str, sweep: &SweepTable) -> String {
    let runs: usize = sweep.arms.iter().map(|arm| arm.runs.len()).sum();
    let lead = format!(
        "{} arms, {} runs. Means over seeds, ± standard errors: the sample standard deviation over \
         the root of the number of seeds. A single run has none.",
        grouped(sweep.arms.len() as u64),
        grouped(runs as u64)
    );
    let mut page = Page::new("fedllm sweep", name, &lead);
    page.section("Arms");
    page.push(&arms(sweep));
    page.section("Metrics");
    page.figures("", &metrics(sweep));
    page.finish()
}

fn arms(sweep: &SweepTable) -> String {
    let lines = sweep.lines().into_iter();
    let cells = |line: Vec<String>| line.iter().map(|cell| escape(cell)).collect();
    let mut lines: Vec<Vec<String>> = lines.map(cells).collect();
    let header = lines.remove(0);
    let caption = match sweep.differences.is_empty() {
        true => "Each line is a combination of settings.",
        false => {
            "Each line is a combination of settings. Differences are taken seed by seed, and their \
             errors are those of the differences."
        }
    };
    table(caption, &header, &lines)
}

/// A plot of each metric, and of each difference.
fn metrics(sweep: &SweepTable) -> Vec<Figure<'_>> {
    let dots = |estimates: Vec<&Estimate>| -> Vec<Dot> {
        let arms = sweep.arms.iter().zip(estimates);
        arms.map(|(arm, estimate)| Dot {
            name: sweep.label(arm),
            value: estimate.mean.unwrap_or(f64::NAN),
            error: estimate.standard_error,
        })
        .collect()
    };
    let caption = "Bars are standard errors over seeds.";
    let mut figures: Vec<Figure<'_>> = sweep
        .metrics
        .iter()
        .enumerate()
        .map(|(index, metric)| {
            let estimates = sweep.arms.iter().map(|arm| &arm.estimates[index]).collect();
            Figure {
                title: metric.clone(),
                caption: caption.into(),
                drawing: Drawing::Dots(metric, dots(estimates)),
            }
        })
        .collect();
    for difference in &sweep.differences {
        let baseline = sweep.label(&sweep.arms[difference.baseline]);
        let metric = &sweep.metrics[difference.metric];
        figures.push(Figure {
            title: format!("{metric}, difference from {baseline}"),
            caption: format!("Taken seed by seed. {caption}"),
            drawing: Drawing::Dots(metric, dots(difference.estimates.iter().collect())),
        });
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::table::tests::{run, strategies};

    #[test]
    fn a_sweep_has_its_table_and_a_plot_of_each_metric() {
        let mut table = strategies();
        table.compare("loss", "fedavg").unwrap();
        let html = render_sweep("<strategies>", &table);
        assert!(html.contains("<h1>&lt;strategies&gt;</h1>"));
        assert!(html.contains("<td>3.00 ± 0.58</td>"), "{html}");
        assert!(html.contains("<td>-0.333 ± 0.083</td>"));
        assert_eq!(html.matches("<svg").count(), 3);
    }

    #[test]
    fn a_sweep_without_figures_is_still_a_page() {
        let failed = SweepTable::new(&[run(&[("lr", "<1>")], &[("loss", f64::NAN)])]);
        let html = render_sweep("failed", &failed);
        assert!(html.contains("– (0 of 1)") && html.contains("&lt;1&gt;"));
        assert!(!html.contains("<svg") && !html.contains("NaN"));
        assert!(render_sweep("none", &SweepTable::new(&[])).ends_with("</html>\n"));
    }
}
