//! `cargo xtask bench`: runs the benchmarks, and has the statistics that they share.
//!
//! Times on a machine that others use too aren't stable; ratios within one run are. So competitors
//! take turns for many [`Round`]s, each of which measures a floor beside them. The floor is
//! subtracted, and tells in which rounds something else was going on: [`Quiet`] throws those out,
//! and refuses to give any figure when too few are left.

pub mod control;

use crate::{child, setup, workspace};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::Path;

/// A round whose floor is more than this many times the best one is thrown out.
pub const NOISY_FLOOR: f64 = 1.15;

/// Something to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// What each way through the XDP program costs, one frame at a time.
    Path,
    /// How fast 100,000 devices register and refresh, in a lab; figures of one run on this machine.
    Control,
}

impl Suite {
    const fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Control => "control",
        }
    }
}

/// Runs `suites`, or all of them if none is named, and writes their rows to the file `json`.
///
/// # Errors
///
/// When not root, when something doesn't build, when a suite finds the gateway doing the wrong
/// thing, or when the machine is too noisy for a figure. The file then has what could be measured.
pub fn run(suites: &[Suite], json: Option<&Path>) -> Result<()> {
    workspace::require_root("measuring on the real kernel", "bench")?;
    if let Some(path) = json {
        // Before the work, so that it isn't done in vain.
        File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    setup::run()?;
    let suites = if suites.is_empty() {
        Suite::value_variants()
    } else {
        suites
    };
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for suite in suites {
        let (of_suite, succeeded) = match suite {
            Suite::Path => run_suite(suite.name())?,
            Suite::Control => (control::run()?, true),
        };
        rows.extend(of_suite);
        if !succeeded {
            failed.push(suite.name());
        }
    }
    if let Some(path) = json {
        let text = format!("{:#}\n", Value::from(rows));
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !failed.is_empty() {
        bail!("no result for {}; see above", failed.join(", "));
    }
    Ok(())
}

/// The rows that a benchmark of push-ctl has written, and whether it succeeded.
fn run_suite(name: &str) -> Result<(Vec<Value>, bool)> {
    let written = workspace::target().join(format!("bench-{name}.json"));
    if written.exists() {
        fs::remove_file(&written)
            .with_context(|| format!("cannot remove {}", written.display()))?;
    }
    let mut command = workspace::cargo();
    command
        .args(["bench", "-p", "push-ctl", "--bench", name, "--", "--json"])
        .arg(&written);
    let line = child::display(&command);
    println!("bench: {name}: {line}");
    let status = command
        .status()
        .with_context(|| format!("cannot run `{line}`"))?;
    let rows = if written.exists() {
        let text = fs::read_to_string(&written)?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not a list of rows", written.display()))?
    } else {
        Vec::new()
    };
    Ok((rows, status.success()))
}

/// A figure, as the file for programs has it.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// The suite that measured it.
    pub suite: Suite,
    /// What was measured.
    pub name: &'a str,
    /// What of it.
    pub metric: &'a str,
    /// The figure, with its spread if it was measured more than once; none if the machine was too noisy.
    pub value: Option<Figure>,
    /// Unit of the figure.
    pub unit: &'a str,
    /// The row that this one is compared with.
    pub baseline: Option<&'a str>,
    /// How many times the baseline it is.
    pub ratio: Option<f64>,
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

impl Row<'_> {
    /// As an object; `spread` is a list of the lower and the upper quartile.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let (value, spread) = match self.value {
            Some(Figure::Counted(count)) => (json!(count), Value::Null),
            Some(Figure::Measured(figure)) => {
                (json!(figure.median), json!([figure.lower, figure.upper]))
            }
            Some(Figure::Once(figure)) => (json!(figure), Value::Null),
            None => (Value::Null, Value::Null),
        };
        json!({
            "suite": self.suite.name(),
            "name": self.name,
            "metric": self.metric,
            "value": value,
            "unit": self.unit,
            "spread": spread,
            "baseline": self.baseline,
            "ratio": self.ratio,
        })
    }
}

/// What one round has measured, in any one unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// Median of what does as good as nothing.
    pub floor: f64,
    /// Median of each competitor, floor included, in the same order in all rounds.
    pub competitors: Vec<f64>,
}

impl Round {
    fn over_floor(&self, competitor: usize) -> f64 {
        self.competitors[competitor] - self.floor
    }
}

/// The rounds in which nothing else was going on; at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Quiet {
    rounds: Vec<Round>,
}

impl Quiet {
    /// Throws out each round whose floor is more than [`NOISY_FLOOR`] times the best. Tells how many
    /// are left, and gives them unless that is fewer than half of all.
    #[must_use]
    pub fn of(rounds: &[Round]) -> (usize, Option<Self>) {
        let best = rounds.iter().map(|round| round.floor).reduce(f64::min);
        let limit = best.unwrap_or_default() * NOISY_FLOOR;
        let quiet = rounds.iter().filter(|round| round.floor <= limit);
        let quiet: Vec<_> = quiet.cloned().collect();
        let kept = quiet.len();
        let enough = kept > 0 && kept * 2 >= rounds.len();
        (kept, enough.then_some(Self { rounds: quiet }))
    }

    /// The floor over all rounds.
    #[must_use]
    pub fn floor(&self) -> Quartiles {
        self.quartiles(|round| round.floor)
    }

    /// A competitor's median less the round's floor, over all rounds.
    ///
    /// # Panics
    ///
    /// If there is no such competitor.
    #[must_use]
    pub fn over_floor(&self, competitor: usize) -> Quartiles {
        self.quartiles(|round| round.over_floor(competitor))
    }

    /// How many times the `baseline` a competitor takes, the floor subtracted from both: the ratio
    /// within each round, over all rounds. None if the baseline is no slower than the floor.
    ///
    /// # Panics
    ///
    /// If there is no such competitor.
    #[must_use]
    pub fn ratio(&self, competitor: usize, baseline: usize) -> Option<Quartiles> {
        let comparable = |round: &Round| round.over_floor(baseline) > 0.0;
        self.rounds.iter().all(comparable).then(|| {
            self.quartiles(|round| round.over_floor(competitor) / round.over_floor(baseline))
        })
    }

    fn quartiles(&self, figure: impl Fn(&Round) -> f64) -> Quartiles {
        let figures: Vec<_> = self.rounds.iter().map(figure).collect();
        Quartiles::of(&figures).expect("there is at least one round")
    }
}

/// Where some figures are when sorted: in the middle, and a quarter of the way in from both ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quartiles {
    /// A quarter of the figures is below it.
    pub lower: f64,
    /// Half of the figures is below it.
    pub median: f64,
    /// A quarter of the figures is above it.
    pub upper: f64,
}

impl Quartiles {
    /// Of `figures` in any order; what falls between two of them is interpolated. None of none.
    #[must_use]
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |quarters: usize| {
            let position = sorted.len().checked_sub(1)? * quarters;
            let (below, part) = (position / 4, (position % 4) as f64 / 4.0);
            let above = (below + 1).min(sorted.len() - 1);
            Some(sorted[below] + (sorted[above] - sorted[below]) * part)
        };
        Some(Self {
            lower: at(1)?,
            median: at(2)?,
            upper: at(3)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(floor: f64, competitors: &[f64]) -> Round {
        Round {
            floor,
            competitors: competitors.to_vec(),
        }
    }

    fn with_floors(floors: &[f64]) -> Vec<Round> {
        floors.iter().map(|&floor| round(floor, &[])).collect()
    }

    #[test]
    fn quartiles_do_not_depend_on_the_order_and_are_interpolated() {
        let rows: [(&[f64], [f64; 3]); 5] = [
            (&[7.0], [7.0, 7.0, 7.0]),
            (&[4.0, 2.0], [2.5, 3.0, 3.5]),
            (&[3.0, 1.0, 2.0], [1.5, 2.0, 2.5]),
            (&[4.0, 1.0, 3.0, 2.0], [1.75, 2.5, 3.25]),
            (&[50.0, 10.0, 40.0, 20.0, 30.0], [20.0, 30.0, 40.0]),
        ];
        for (figures, [lower, median, upper]) in rows {
            let expected = Quartiles {
                lower,
                median,
                upper,
            };
            assert_eq!(Quartiles::of(figures), Some(expected), "{figures:?}");
        }
        assert_eq!(Quartiles::of(&[]), None);
    }

    #[test]
    fn one_outlier_does_not_move_the_median() {
        let figures = [31.0, 30.0, 90_000.0, 29.0, 30.0];
        assert_eq!(Quartiles::of(&figures).unwrap().median, 30.0);
    }

    #[test]
    fn rounds_with_a_high_floor_are_thrown_out_and_counted() {
        let rounds = with_floors(&[100.0, 116.0, 114.0, 300.0, 104.0]);
        let (kept, quiet) = Quiet::of(&rounds);
        assert_eq!(kept, 3);
        assert_eq!(quiet.unwrap().rounds, with_floors(&[100.0, 114.0, 104.0]));
    }

    #[test]
    fn there_is_no_figure_when_fewer_than_half_of_the_rounds_are_quiet() {
        let rows: [(&[f64], usize, bool); 4] = [
            (&[100.0, 200.0], 1, true),
            (&[100.0, 200.0, 200.0], 1, false),
            (&[200.0, 100.0, 200.0, 100.0, 200.0], 2, false),
            (&[], 0, false),
        ];
        for (floors, left, is_enough) in rows {
            let (kept, quiet) = Quiet::of(&with_floors(floors));
            assert_eq!((kept, quiet.is_some()), (left, is_enough), "{floors:?}");
        }
    }

    #[test]
    fn figures_are_over_the_floor_of_their_own_round() {
        let rounds = [
            round(10.0, &[30.0, 20.0]),
            round(11.0, &[33.0, 22.0]),
            round(10.0, &[30.0, 15.0]),
            round(90.0, &[900.0, 900.0]),
        ];
        let quiet = Quiet::of(&rounds).1.unwrap();
        assert_eq!(quiet.floor().median, 10.0);
        assert_eq!(quiet.over_floor(0).median, 20.0);
        assert_eq!(quiet.over_floor(1).median, 10.0);
        assert_eq!(quiet.ratio(0, 0).unwrap().median, 1.0);
        assert_eq!(quiet.ratio(0, 1).unwrap().median, 2.0);
    }

    #[test]
    fn nothing_is_compared_with_a_baseline_that_is_no_slower_than_the_floor() {
        let quiet = Quiet::of(&[round(10.0, &[10.0, 30.0])]).1.unwrap();
        assert_eq!(quiet.ratio(1, 0), None);
    }

    #[test]
    fn a_row_without_a_figure_says_so() {
        let mut row = Row {
            suite: Suite::Path,
            name: "delivered",
            metric: "time over the floor",
            value: None,
            unit: "ns",
            baseline: Some("refused"),
            ratio: None,
        };
        let without = json!({
            "suite": "path", "name": "delivered", "metric": "time over the floor", "value": null,
            "unit": "ns", "spread": null, "baseline": "refused", "ratio": null,
        });
        assert_eq!(row.to_json(), without);

        row.value = Quartiles::of(&[1.0, 2.0, 3.0]).map(Figure::Measured);
        row.ratio = Some(2.0);
        let object = row.to_json();
        assert_eq!(object["value"], 2.0);
        assert_eq!(object["spread"], json!([1.5, 2.5]));
        assert_eq!(object["ratio"], 2.0);
    }
}
