//! Plots of figures, as SVG.

use super::targets::three_digits;
use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{IntoSegmentedCoord as _, SegmentValue, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::path::Path;

const WIDTH: u32 = 900;
const INK: RGBColor = RGBColor(0x1B, 0x26, 0x31);
const FAINT: RGBColor = RGBColor(0xD5, 0xDB, 0xE1);
/// Told apart by people who don't tell red from green, too (Okabe and Ito).
const COLOURS: [RGBColor; 4] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
];

/// A figure with a name.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) figure: f64,
    /// Lower and upper quartile.
    pub(super) spread: Option<[f64; 2]>,
}

/// Figures that belong together.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    /// x and y, in the order of x.
    pub(super) points: Vec<(f64, f64)>,
}

/// How a plot is labelled.
pub(super) struct Labels<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
}

/// Draws bars, one below the other, each with its figure and spread.
///
/// # Errors
///
/// When the file can't be written.
pub(super) fn bars(path: &Path, title: &str, unit: &str, bars: &[Bar]) -> Result<()> {
    const NAMES: u32 = 300;
    let rows = bars.len();
    let height = 110 + 30 * u32::try_from(rows)?;
    let ends = bars
        .iter()
        .map(|bar| bar.spread.map_or(bar.figure, |[_, upper]| upper));
    let most = ends.fold(0.0, f64::max).max(f64::MIN_POSITIVE);

    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE).map_err(said)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20, &INK))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(NAMES)
        // Room for figures to the right of the longest bar.
        .build_cartesian_2d(0.0..most * 1.25, (0..rows).into_segmented())
        .map_err(said)?;
    // The first one is at the top.
    let place = |index: usize| rows - 1 - index;
    let name = |value: &SegmentValue<usize>| match value {
        SegmentValue::CenterOf(row) if *row < rows => bars[place(*row)].name.clone(),
        SegmentValue::CenterOf(_) | SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(FAINT)
        .x_desc(unit)
        .y_labels(rows + 1)
        .y_label_formatter(&name)
        .label_style(("sans-serif", 14, &INK))
        .draw()
        .map_err(said)?;
    for (index, bar) in bars.iter().enumerate() {
        let row = place(index);
        let (low, high) = (SegmentValue::Exact(row), SegmentValue::Exact(row + 1));
        let mut shape = Rectangle::new([(0.0, low), (bar.figure, high)], COLOURS[0].filled());
        shape.set_margin(6, 6, 0, 0);
        chart.draw_series([shape]).map_err(said)?;
        let middle = SegmentValue::CenterOf(row);
        let mut end = bar.figure;
        if let Some([lower, upper]) = bar.spread {
            let whisker = [(lower, middle.clone()), (upper, middle.clone())];
            chart
                .draw_series([PathElement::new(whisker, INK.stroke_width(2))])
                .map_err(said)?;
            end = end.max(upper);
        }
        let text = three_digits(bar.figure);
        let label = EmptyElement::at((end, middle))
            + Text::new(text, (6, -7), ("sans-serif", 14).into_font().color(&INK));
        chart.draw_series([label]).map_err(said)?;
    }
    area.present().map_err(said)
}

/// Draws lines with points over x, from zero up; x is logarithmic if it goes over more than two powers of ten.
///
/// # Errors
///
/// When the file can't be written.
pub(super) fn lines(path: &Path, labels: &Labels<'_>, lines: &[Line]) -> Result<()> {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let from = points().map(|(x, _)| x).fold(f64::INFINITY, f64::min);
    let to = points().map(|(x, _)| x).fold(f64::MIN_POSITIVE, f64::max);
    let most = points().map(|(_, y)| y).fold(f64::MIN_POSITIVE, f64::max);

    let area = SVGBackend::new(path, (WIDTH, 420)).into_drawing_area();
    area.fill(&WHITE).map_err(said)?;
    let mut builder = ChartBuilder::on(&area);
    builder
        .caption(labels.title, ("sans-serif", 20, &INK))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(70);
    let y = 0.0..most * 1.1;
    if to > from * 100.0 {
        let x = (from..to * 1.2).log_scale();
        draw_lines(
            builder.build_cartesian_2d(x, y).map_err(said)?,
            labels,
            lines,
        )?;
    } else {
        let x = 0.0..to * 1.1;
        draw_lines(
            builder.build_cartesian_2d(x, y).map_err(said)?,
            labels,
            lines,
        )?;
    }
    area.present().map_err(said)
}

fn draw_lines<'a, X: Ranged<ValueType = f64> + ValueFormatter<f64>>(
    mut chart: ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, RangedCoordf64>>,
    labels: &Labels<'_>,
    lines: &[Line],
) -> Result<()> {
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(FAINT)
        .x_desc(labels.x)
        .y_desc(labels.y)
        .x_label_formatter(&|x| grouped(*x))
        .label_style(("sans-serif", 14, &INK))
        .draw()
        .map_err(said)?;
    for (line, colour) in lines.iter().zip(COLOURS.into_iter().cycle()) {
        chart
            .draw_series(LineSeries::new(
                line.points.iter().copied(),
                colour.stroke_width(2),
            ))
            .map_err(said)?
            .label(line.name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        let dots = line
            .points
            .iter()
            .map(|&at| Circle::new(at, 4, colour.filled()));
        chart.draw_series(dots).map_err(said)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(FAINT)
        .label_font(("sans-serif", 14, &INK))
        .draw()
        .map_err(said)
}

/// Such as `100 k`, and `1 M`.
fn grouped(count: f64) -> String {
    match count {
        millions if millions >= 1e6 => format!("{:.0} M", millions / 1e6),
        thousands if thousands >= 1e3 => format!("{:.0} k", thousands / 1e3),
        few => format!("{few:.0}"),
    }
}

/// What the library says refers to what was to be drawn.
fn said(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn each_bar_has_its_name_and_figure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bars.svg");
        let bar = |name: &str, figure, spread| Bar {
            name: name.to_owned(),
            figure,
            spread,
        };
        let two = [
            bar("parse", 3.25, Some([3.0, 4.0])),
            bar("session", 41.5, None),
        ];
        bars(&path, "What it costs", "ns", &two).unwrap();
        let drawn = fs::read_to_string(&path).unwrap();
        for text in ["What it costs", "parse", "session", "3.25", "41.5", "ns"] {
            let text = format!("\n{text}\n");
            assert!(drawn.contains(&text), "{text} is not in {drawn}");
        }
    }

    #[test]
    fn each_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.svg");
        let labels = Labels {
            title: "Many",
            x: "sessions",
            y: "ns",
        };
        let line = Line {
            name: "array".to_owned(),
            points: vec![(1.0, 50.0), (65_536.0, 60.0), (1e7, 300.0)],
        };
        lines(&path, &labels, &[line]).unwrap();
        let drawn = fs::read_to_string(&path).unwrap();
        for text in ["Many", "sessions", "array", "10 M"] {
            assert!(drawn.contains(&format!("\n{text}\n")), "{text}: {drawn}");
        }
    }
}
