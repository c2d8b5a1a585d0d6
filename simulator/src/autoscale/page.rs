//! The comparison as one HTML page: the figures, and how sizes and backlogs went.

use std::fmt::Write as _;

use super::{Compared, Plant};
use crate::plot::{self, Axis, Chart, Ink, Line, Scale, escaped, short};

/// Of the policy, then of the thresholds.
const INKS: [Ink; 5] = [Ink::Blue, Ink::Orange, Ink::Violet, Ink::Red, Ink::Olive];
/// Points of a line: more are not seen.
const POINTS_MAX: usize = 600;

/// The page.
#[must_use]
pub fn html(plant: &Plant, compared: &[Compared]) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width,initial-scale=1\"><title>Autoscaling, against KEDA's rule</title>\
         <style>{}{}td,th{{white-space:nowrap}}</style></head><body>\n<h1>Autoscaling, against KEDA's rule</h1>\n\
         <p class=sub>The same work for each. A cell does {} a second and takes {} s to start. KEDA's rule asks for \
         ceil(lag / threshold) cells, looks every 30 s, and goes down when nothing within 300 s wanted as many.</p>\n",
        crate::load::PAGE_STYLE,
        plot::style(),
        short(plant.cell_rate),
        short(plant.start_seconds),
    );
    page.push_str(
        "<h2>What it costs</h2>\n<div class=scroll><table><thead><tr><th>Trace<th>Rule<th class=n>cell-seconds\
         <th class=n>late, s<th class=n>turns<th class=n>cells at most<th class=n>left waiting</thead><tbody>\n",
    );
    for of in compared {
        for played in &of.rules {
            let outcome = &played.outcome;
            // Writing to a String cannot fail.
            let _ = writeln!(
                page,
                "<tr><th>{}<td>{}<td class=n>{:.0}<td class=n>{:.0}<td class=n>{}<td class=n>{}<td class=n>{:.0}",
                escaped(of.trace),
                escaped(&played.rule),
                outcome.cell_seconds,
                outcome.late_seconds,
                outcome.turns.len(),
                outcome.cells_max,
                outcome.backlog_end
            );
        }
    }
    page.push_str(
        "</tbody></table></div>\n<p>Late: seconds in which work was started that had waited longer than the \
         objective of 5 s. Turns: changes of direction, more after fewer or fewer after more.</p>\n",
    );
    for of in compared {
        let _ = writeln!(page, "<h2>{}</h2>", escaped(of.trace));
        page.push_str(&cells(plant, of).figure());
        page.push_str(&backlog(of).figure());
    }
    page.push_str("</body></html>\n");
    page
}

fn minutes(value: f64) -> String {
    format!("{} min", short(value))
}

const TIME: Axis = Axis { scale: Scale::Even, label: minutes, from_zero: true };
const COUNT: Axis = Axis { scale: Scale::Even, label: short, from_zero: true };

/// Second by second, thinned out.
fn line(name: &str, ink: Ink, filled: bool, values: impl ExactSizeIterator<Item = f64>) -> Line {
    let every = values.len().div_ceil(POINTS_MAX).max(1);
    let points = values.enumerate().step_by(every).map(|(second, value)| (second as f64 / 60.0, value)).collect();
    Line { name: name.to_owned(), ink, points, filled }
}

fn chart(title: String, note: &str, lines: Vec<Line>) -> Chart {
    Chart { title, note: note.to_owned(), x: TIME, y: COUNT, lines, marks: Vec::new() }
}

fn cells(plant: &Plant, of: &Compared) -> Chart {
    let seconds = usize::try_from(of.seconds).unwrap_or(usize::MAX);
    let needed = (0..seconds).map(|second| (of.per_second)(second as f64) / plant.cell_rate);
    let mut lines = vec![line("what comes, in cells' worth", Ink::Slate, true, needed)];
    lines.extend(of.rules.iter().zip(INKS).map(|(played, ink)| {
        line(&played.rule, ink, false, played.outcome.cells.iter().map(|cells| f64::from(*cells)))
    }));
    chart(format!("Cells: {}", of.trace), "", lines)
}

fn backlog(of: &Compared) -> Chart {
    let lines = of
        .rules
        .iter()
        .zip(INKS)
        .map(|(played, ink)| line(&played.rule, ink, false, played.outcome.backlog.iter().copied()));
    chart(format!("Waiting: {}", of.trace), "", lines.collect())
}

#[cfg(test)]
mod tests {
    use super::super::{USUAL, compare};
    use super::*;

    #[test]
    fn the_page_has_every_trace_and_rule() {
        let compared = compare(&Plant::default(), &[100.0]);
        let page = html(&Plant::default(), &compared);
        assert!(USUAL.iter().all(|arrivals| page.contains(arrivals.name)));
        assert_eq!((page.matches("<figure>").count(), page.matches("<tr><th>").count()), (8, 9));
        assert!(page.contains("keda lag/100") && page.contains("cellbus"));
    }
}
