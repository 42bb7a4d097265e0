//! Figures, as programs read them.

use super::targets::three_digits;
use super::{Quartiles, Suite};
use serde::{Deserialize, Serialize};

/// A figure, as the file for programs has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The suite that measured it.
    pub suite: Suite,
    /// What was measured.
    pub name: String,
    /// What of it.
    pub metric: String,
    /// The figure; none if the machine was too noisy.
    pub value: Option<f64>,
    /// Unit of the figure.
    pub unit: String,
    /// Lower and upper quartile of what was measured more than once.
    pub spread: Option<[f64; 2]>,
    /// Name of the row that this one is compared with.
    pub baseline: Option<String>,
    /// How many times the baseline it is.
    pub ratio: Option<f64>,
    /// Lower and upper quartile of the ratio, if it was measured more than once.
    pub ratio_spread: Option<[f64; 2]>,
}

/// A figure that has been counted, or measured.
#[derive(Clone, Copy, Debug)]
pub enum Figure {
    /// The same each time.
    Counted(u64),
    /// The median is the figure, the quartiles around it are its spread.
    Measured(Quartiles),
    /// Measured in one long run.
    Once(f64),
}

impl Row {
    /// A row that is compared with no other.
    #[must_use]
    pub fn new(
        suite: Suite,
        name: impl Into<String>,
        metric: &str,
        figure: Option<Figure>,
        unit: &str,
    ) -> Self {
        let (value, spread) = parts(figure);
        Self {
            suite,
            name: name.into(),
            metric: metric.to_owned(),
            value,
            unit: unit.to_owned(),
            spread,
            baseline: None,
            ratio: None,
            ratio_spread: None,
        }
    }

    /// The same, being so many times the row with the name `baseline`; `None` if that can't be said.
    #[must_use]
    pub fn compared(self, baseline: &str, ratio: Option<Figure>) -> Self {
        let (ratio, ratio_spread) = parts(ratio);
        Self {
            baseline: Some(baseline.to_owned()),
            ratio,
            ratio_spread,
            ..self
        }
    }

    /// Takes the figure back: what it was measured among was too noisy.
    pub fn withhold(&mut self) {
        self.value = None;
        self.spread = None;
        self.ratio = None;
        self.ratio_spread = None;
    }

    /// Prints rows as a table.
    pub fn print(rows: &[Self]) {
        for row in rows {
            let ratio = row.ratio.map_or_else(String::new, |ratio| {
                let baseline = row.baseline.as_deref().unwrap_or_default();
                let ratio = with_spread(ratio, row.ratio_spread);
                format!("  {ratio} × {baseline}")
            });
            let Self {
                name, metric, unit, ..
            } = row;
            println!(
                "    {name:<36} {metric:<32} {:>24} {unit:<6}{ratio}",
                row.figure()
            );
        }
    }

    /// The figure with its spread, for people to read.
    pub(super) fn figure(&self) -> String {
        let Some(value) = self.value else {
            return "too noisy".to_owned();
        };
        if self.spread.is_none() && value.fract() == 0.0 {
            return format!("{value}");
        }
        with_spread(value, self.spread)
    }
}

/// A figure, and its spread.
fn parts(figure: Option<Figure>) -> (Option<f64>, Option<[f64; 2]>) {
    match figure {
        Some(Figure::Counted(count)) => (Some(count as f64), None),
        Some(Figure::Measured(Quartiles {
            lower,
            median,
            upper,
        })) => (Some(median), Some([lower, upper])),
        Some(Figure::Once(figure)) => (Some(figure), None),
        None => (None, None),
    }
}

/// For people to read.
pub(super) fn with_spread(figure: f64, spread: Option<[f64; 2]>) -> String {
    three_digits(figure) + &in_brackets(spread)
}

/// What goes behind the figure; nothing without a spread.
pub(super) fn in_brackets(spread: Option<[f64; 2]>) -> String {
    spread.map_or_else(String::new, |[lower, upper]| {
        format!(" ({}–{})", three_digits(lower), three_digits(upper))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_without_a_figure_says_so() {
        let row = |figure| {
            Row::new(
                Suite::Path,
                "delivered",
                "time over the floor",
                figure,
                "ns",
            )
        };
        let without = json!({
            "suite": "path", "name": "delivered", "metric": "time over the floor", "value": null,
            "unit": "ns", "spread": null, "baseline": "refused", "ratio": null, "ratio_spread": null,
        });
        let object = serde_json::to_value(row(None).compared("refused", None)).unwrap();
        assert_eq!(object, without);

        let figure = Quartiles::of(&[1.0, 2.0, 3.0]).map(Figure::Measured);
        let ratio = Quartiles::of(&[1.0, 2.0, 4.0]).map(Figure::Measured);
        let object = serde_json::to_value(row(figure).compared("refused", ratio)).unwrap();
        assert_eq!(object["value"], 2.0);
        assert_eq!(object["spread"], json!([1.5, 2.5]));
        assert_eq!(object["ratio"], 2.0);
        assert_eq!(object["ratio_spread"], json!([1.5, 3.0]));
    }
}
