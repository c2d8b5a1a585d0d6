//! Charts for reports: SVG that follows the page's colours, in light and in dark.
//!
//! A [`Chart`] is drawn by the `plotters` crate. Each [`Ink`] has a colour of its own that a chart on
//! a page of its own shows as it is; [`STYLE`] has the page's rules that give the same inks other
//! colours in the dark. [`Chart::figure`] draws twice, for wide and for narrow screens, as letters that are
//! scaled with a picture cannot be read on a telephone; the page shows one of the two.

use std::fmt::Write as _;

use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

/// What something is drawn with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "names of colours")]
pub enum Ink {
    Blue,
    Green,
    Orange,
    Red,
    Violet,
    Teal,
    Pink,
    Olive,
    Brown,
    Sky,
    Slate,
    Gold,
}

impl Ink {
    /// All, in the order in which they are best told apart.
    pub const ALL: [Self; 12] = [
        Self::Blue,
        Self::Orange,
        Self::Green,
        Self::Violet,
        Self::Red,
        Self::Teal,
        Self::Pink,
        Self::Olive,
        Self::Sky,
        Self::Brown,
        Self::Gold,
        Self::Slate,
    ];
    /// As it is on white, and on black.
    const fn colours(self) -> (u32, u32) {
        match self {
            Self::Blue => (0x2563eb, 0x6ea8fe),
            Self::Green => (0x15803d, 0x5fd08a),
            Self::Orange => (0xd97706, 0xfbb24d),
            Self::Red => (0xc62828, 0xff7b72),
            Self::Violet => (0x7c3aed, 0xb794f6),
            Self::Teal => (0x0f8b8d, 0x4fd1c5),
            Self::Pink => (0xc2257b, 0xf687b8),
            Self::Olive => (0x6b7a0f, 0xc3d04a),
            Self::Brown => (0x8b5a2b, 0xd2a679),
            Self::Sky => (0x0284c7, 0x7dd3fc),
            Self::Slate => (0x546070, 0xa9b4c2),
            Self::Gold => (0xa8841a, 0xe9cf6a),
        }
    }
    fn rgb(self) -> RGBColor {
        rgb(self.colours().0)
    }
}

const GRID: (u32, u32) = (0xe4e8ee, 0x2a323c);
const AXIS: (u32, u32) = (0x9aa5b4, 0x55606e);
const LABEL: (u32, u32) = (0x556070, 0x9fabb9);
const MARK: (u32, u32) = (0xb91c5c, 0xff8fb8);

fn rgb(colour: u32) -> RGBColor {
    let [_, red, green, blue] = colour.to_be_bytes();
    RGBColor(red, green, blue)
}

/// The rules of a page that holds figures.
#[must_use]
pub fn style() -> String {
    let mut style = String::from(
        "figure{margin:1.75rem 0}figcaption{font-weight:600}figure p{margin:.1rem 0 .4rem;color:var(--soft)}\
         .legend{display:flex;flex-wrap:wrap;gap:.15rem 1rem;margin:.2rem 0 .3rem;padding:0;list-style:none;font-size:.85rem}\
         .legend i{display:inline-block;width:.9rem;height:.2rem;margin-right:.4rem;vertical-align:middle;border-radius:1px}\
         figure svg{display:block;width:100%;height:auto;overflow:visible}figure svg.narrow{display:none}\
         figure svg text{font-family:inherit}\
         @media(max-width:40rem){figure svg.wide{display:none}figure svg.narrow{display:block}}",
    );
    let others = [GRID, AXIS, LABEL, MARK];
    let (mut light, mut dark) = (String::new(), String::new());
    let inks = Ink::ALL.iter().map(|ink| ink.colours()).chain(others);
    // Writing to a String cannot fail.
    for (number, (on_white, on_black)) in inks.enumerate() {
        let _ = write!(light, "--ink-{number}:#{on_white:06x};");
        let _ = write!(dark, "--ink-{number}:#{on_black:06x};");
        let _ = write!(
            style,
            "svg [stroke=\"#{on_white:06X}\"]{{stroke:var(--ink-{number})}}svg [fill=\"#{on_white:06X}\"]{{fill:var(--ink-{number})}}"
        );
    }
    for (number, _) in Ink::ALL.iter().enumerate() {
        let _ = write!(style, ".ink-{number}{{background:var(--ink-{number})}}");
    }
    let _ = write!(style, ":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}");
    style
}

/// How an axis is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Evenly.
    Even,
    /// Each tenfold is as long as the next. What is not above 0 is not drawn.
    Log,
}

/// An axis.
#[derive(Clone, Copy)]
pub struct Axis {
    /// How it is divided.
    pub scale: Scale,
    /// What stands along it.
    pub label: fn(f64) -> String,
    /// Whether it begins at 0, whatever is drawn (where it is even).
    pub from_zero: bool,
}

/// A line of a chart.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// Its colour.
    pub ink: Ink,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
    /// Whether the space below it is coloured.
    pub filled: bool,
}

/// A chart of one or more lines.
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// How to read it: a sentence, or nothing.
    pub note: String,
    /// Along the bottom.
    pub x: Axis,
    /// Along the left side.
    pub y: Axis,
    /// Drawn in this order.
    pub lines: Vec<Line>,
    /// Numbered places along the bottom at which something happened.
    pub marks: Vec<(f64, usize)>,
}

const WIDE: (u32, u32) = (880, 270);
const NARROW: (u32, u32) = (400, 260);
/// More marks than this are lines without numbers, which would stand on each other.
const NUMBERED_MAX: usize = 24;

impl Chart {
    /// The chart as a part of a page: title, legend, and the picture in two sizes. Nothing where there is
    /// nothing to draw.
    #[must_use]
    pub fn figure(&self) -> String {
        let Some(bounds) = self.bounds() else { return String::new() };
        let mut out = format!("<figure><figcaption>{}</figcaption>", escaped(&self.title));
        // Writing to a String cannot fail.
        if !self.note.is_empty() {
            let _ = write!(out, "<p>{}</p>", escaped(&self.note));
        }
        if self.lines.len() > 1 {
            out.push_str("<ul class=legend>");
            for line in &self.lines {
                let ink = Ink::ALL.iter().position(|ink| *ink == line.ink).unwrap_or_default();
                let _ = write!(out, "<li><i class=ink-{ink}></i>{}</li>", escaped(&line.name));
            }
            out.push_str("</ul>");
        }
        for (class, size) in [("wide", WIDE), ("narrow", NARROW)] {
            let svg = self.svg(size, &bounds);
            let label = escaped(&self.title);
            out.push_str(&svg.replacen("<svg ", &format!("<svg class={class} role=img aria-label=\"{label}\" "), 1));
        }
        out.push_str("</figure>\n");
        out
    }

    /// The least and the largest of what can be drawn.
    fn bounds(&self) -> Option<[(f64, f64); 2]> {
        // A line that touches the top is cut in half; to the right there is nothing to make room for.
        let axis = |axis: Axis, of: fn(&(f64, f64)) -> f64, room: f64| {
            let drawn = |value: &f64| value.is_finite() && (axis.scale == Scale::Even || *value > 0.0);
            let values = self.lines.iter().flat_map(|line| line.points.iter().map(of)).filter(drawn);
            let (least, most) = values
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)));
            if least > most {
                return None;
            }
            Some(match axis.scale {
                // Whole tenfolds would leave half of it empty: to the next of 1, 2 and 5.
                Scale::Log => (below(least), above(most.max(least * 1.01))),
                Scale::Even if axis.from_zero => (0.0, if most > 0.0 { most * room } else { 1.0 }),
                Scale::Even => (least, if most > least { most } else { least + 1.0 }),
            })
        };
        Some([axis(self.x, |point| point.0, 1.0)?, axis(self.y, |point| point.1, 1.06)?])
    }

    fn svg(&self, size: (u32, u32), bounds: &[(f64, f64); 2]) -> String {
        let [x, y] = [bounds[0].0..bounds[0].1, bounds[1].0..bounds[1].1];
        let mut svg = String::new();
        match (self.x.scale, self.y.scale) {
            (Scale::Even, Scale::Even) => self.draw(&mut svg, size, bounds, x, y),
            (Scale::Even, Scale::Log) => {
                self.draw(&mut svg, size, bounds, x, y.log_scale().with_key_points(ticks(bounds[1])))
            }
            (Scale::Log, Scale::Even) => {
                self.draw(&mut svg, size, bounds, x.log_scale().with_key_points(ticks(bounds[0])), y);
            }
            (Scale::Log, Scale::Log) => {
                let [x, y] =
                    [(x, bounds[0]), (y, bounds[1])].map(|(axis, of)| axis.log_scale().with_key_points(ticks(of)));
                self.draw(&mut svg, size, bounds, x, y);
            }
        }
        svg
    }

    fn draw<X, Y>(&self, svg: &mut String, size: (u32, u32), bounds: &[(f64, f64); 2], x: X, y: Y)
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        const FAILS: &str = "drawing into a String cannot fail";
        let area = SVGBackend::with_string(svg, size).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin_top(14)
            .margin_right(14)
            .x_label_area_size(24)
            .y_label_area_size(52)
            .build_cartesian_2d(x, y)
            .expect(FAILS);
        let narrow = size.0 < WIDE.0;
        let text = ("sans-serif", 12).into_font().color(&rgb(LABEL.0));
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(rgb(GRID.0))
            .axis_style(rgb(AXIS.0))
            .x_labels(if narrow { 5 } else { 10 })
            .y_labels(6)
            .x_label_formatter(&|value| (self.x.label)(*value))
            .y_label_formatter(&|value| (self.y.label)(*value))
            .x_label_style(text.clone())
            .y_label_style(text)
            .draw()
            .expect(FAILS);
        let [(left, right), (bottom, top)] = *bounds;
        let numbered = self.marks.len() <= NUMBERED_MAX;
        for (at, number) in self.marks.iter().filter(|(at, _)| (left..=right).contains(at)) {
            let line = [(*at, bottom), (*at, top)];
            chart.draw_series([PathElement::new(line, rgb(MARK.0).mix(0.55))]).expect(FAILS);
            if numbered {
                let place = plotters::style::text_anchor::Pos::new(
                    plotters::style::text_anchor::HPos::Center,
                    plotters::style::text_anchor::VPos::Bottom,
                );
                let style = ("sans-serif", 11).into_font().color(&rgb(MARK.0)).pos(place);
                chart.draw_series([Text::new(number.to_string(), (*at, top), style)]).expect(FAILS);
            }
        }
        for line in &self.lines {
            for piece in self.pieces(line) {
                if line.filled {
                    let area = AreaSeries::new(piece.iter().copied(), bottom, line.ink.rgb().mix(0.14));
                    chart.draw_series(area).expect(FAILS);
                }
                match piece[..] {
                    // A line of one point would not be seen.
                    [only] => chart.draw_series([Circle::new(only, 2, line.ink.rgb().filled())]).map(|_| ()),
                    _ => chart.draw_series(LineSeries::new(piece, line.ink.rgb().stroke_width(2))).map(|_| ()),
                }
                .expect(FAILS);
            }
        }
        drop(chart);
        area.present().expect(FAILS);
    }

    /// What is not there (NaN, or 0 on an axis that has none) interrupts a line.
    fn pieces(&self, line: &Line) -> Vec<Vec<(f64, f64)>> {
        let there = |(x, y): &(f64, f64)| {
            let fits = |axis: Axis, value: f64| value.is_finite() && (axis.scale == Scale::Even || value > 0.0);
            fits(self.x, *x) && fits(self.y, *y)
        };
        line.points.split(|point| !there(point)).filter(|piece| !piece.is_empty()).map(<[_]>::to_vec).collect()
    }
}

/// The next of 1, 2 and 5 times a power of ten that is not above.
fn below(value: f64) -> f64 {
    let ten = 10_f64.powf(value.log10().floor());
    [5.0, 2.0, 1.0].map(|times| times * ten).into_iter().find(|round| *round <= value).unwrap_or(ten)
}
/// The same, not below.
fn above(value: f64) -> f64 {
    let ten = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|times| times * ten).into_iter().find(|round| *round >= value).unwrap_or(ten * 10.0)
}

/// Where an axis of powers has lines: at each 1, 2 and 5, or at each 1 where there are many.
fn ticks((least, most): (f64, f64)) -> Vec<f64> {
    let digits: &[f64] = if most / least > 2_000.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let tens = least.log10().floor() as i32..=most.log10().ceil() as i32;
    let all = tens.flat_map(|ten| digits.iter().map(move |digit| digit * 10_f64.powi(ten)));
    all.filter(|tick| (least * 0.999..=most * 1.001).contains(tick)).collect()
}

/// A number in few letters: `950`, `1.5k`, `20M`.
#[must_use]
pub fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        size if size >= 1e9 => (value / 1e9, "G"),
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = if scaled.abs() >= 100.0 {
        0
    } else if scaled.abs() >= 1.0 {
        1
    } else {
        3
    };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// Text that is safe within a page.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVEN: Axis = Axis { scale: Scale::Even, label: short, from_zero: true };
    const LOG: Axis = Axis { scale: Scale::Log, ..EVEN };

    fn line(points: &[(f64, f64)]) -> Line {
        Line { name: "<one>".to_owned(), ink: Ink::Red, points: points.to_vec(), filled: true }
    }
    fn chart(y: Axis, lines: Vec<Line>) -> Chart {
        Chart { title: "a & b".to_owned(), note: String::new(), x: EVEN, y, lines, marks: vec![(2.0, 1)] }
    }

    #[test]
    fn every_ink_of_a_figure_has_a_colour_in_the_dark() {
        let points = [(0.0, 1.0), (1.0, 5.0), (2.0, 100.0), (3.0, 7.0)];
        let lines = Ink::ALL.iter().map(|ink| Line { ink: *ink, ..line(&points) }).collect();
        let (figure, style) = (chart(LOG, lines).figure(), style());
        let mut inks = std::collections::BTreeSet::new();
        for attribute in ["stroke=\"#", "fill=\"#"] {
            inks.extend(figure.match_indices(attribute).map(|(at, found)| figure[at..at + found.len() + 7].to_owned()));
        }
        assert!(inks.len() > Ink::ALL.len(), "{inks:?}");
        for ink in inks {
            assert!(style.contains(&format!("svg [{ink}]")), "{ink} has no rule");
        }
        assert!(figure.contains("&lt;one&gt;") && figure.contains("a &amp; b") && !figure.contains("<one>"));
        assert_eq!(figure.matches("<svg ").count(), 2);
    }

    #[test]
    fn what_is_not_there_interrupts_a_line() {
        let holes = line(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0), (3.0, 0.0), (4.0, 5.0), (5.0, 6.0)]);
        assert_eq!(chart(EVEN, Vec::new()).pieces(&holes).len(), 2);
        assert_eq!(chart(LOG, Vec::new()).pieces(&holes).len(), 3, "0 has no place among powers");
        // None of it makes a drawing fail.
        for y in [EVEN, LOG] {
            assert_eq!(chart(y, Vec::new()).figure(), "");
            assert_eq!(chart(y, vec![line(&[(0.0, f64::NAN)])]).figure(), "");
            for points in
                [&[(1.0, 7.0)][..], &[(0.0, 3.0), (1.0, 3.0)], &[(0.0, 1e-9), (1.0, 1e12)], &[(0.0, 0.0), (1.0, 1.0)]]
            {
                assert!(chart(y, vec![line(points)]).figure().contains("</svg>"), "{points:?}");
            }
        }
    }

    #[test]
    fn numbers_are_short() {
        let said = [0.0, 0.25, 1.5, 950.0, 9_999.0, 15_000.0, 2e7, -3.0].map(short);
        assert_eq!(said, ["0", "0.25", "1.5", "950", "9999", "15k", "20M", "-3"]);
        assert_eq!(ticks((5.0, 200.0)), [5.0, 10.0, 20.0, 50.0, 100.0, 200.0]);
        assert_eq!(ticks((2.0, 50_000.0)), [10.0, 100.0, 1_000.0, 10_000.0]);
        assert_eq!((below(0.7), below(30.0), above(30.0), above(0.7)), (0.5, 20.0, 50.0, 1.0));
    }
}
