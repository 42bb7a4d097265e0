//! What is to be made of many figures that came out differently.

/// A round whose floor is more than this many times the best one is thrown out.
pub(super) const NOISY_FLOOR: f64 = 1.15;

/// One round in so many has the best floor, or a better one: of a thousand, the very best came out so by chance.
const BEST_OF: usize = 31;

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
    /// are left, and gives them unless that is fewer than were `wanted`.
    #[must_use]
    pub fn of<'a>(
        rounds: impl IntoIterator<Item = &'a Round>,
        wanted: usize,
    ) -> (usize, Option<Self>) {
        let rounds: Vec<_> = rounds.into_iter().collect();
        let mut floors: Vec<_> = rounds.iter().map(|round| round.floor).collect();
        floors.sort_by(f64::total_cmp);
        let best = floors.get(floors.len().saturating_sub(1) / BEST_OF);
        let limit = best.copied().unwrap_or_default() * NOISY_FLOOR;
        let quiet = rounds.into_iter().filter(|round| round.floor <= limit);
        let quiet: Vec<_> = quiet.cloned().collect();
        let kept = quiet.len();
        let enough = kept > 0 && kept >= wanted;
        (kept, enough.then_some(Self { rounds: quiet }))
    }

    /// All of them, whatever was going on: for those who work on a benchmark.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[must_use]
    pub fn all(rounds: &[Round]) -> Self {
        assert!(!rounds.is_empty(), "nothing was measured");
        Self {
            rounds: rounds.to_vec(),
        }
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

    /// Of what `figure` makes of each round.
    ///
    /// # Panics
    ///
    /// As `figure` does.
    #[must_use]
    pub fn quartiles(&self, figure: impl Fn(&Round) -> f64) -> Quartiles {
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
        let (kept, quiet) = Quiet::of(&rounds, 3);
        assert_eq!(kept, 3);
        assert_eq!(quiet.unwrap().rounds, with_floors(&[100.0, 114.0, 104.0]));
    }

    #[test]
    fn there_is_no_figure_when_fewer_rounds_than_wanted_are_quiet() {
        let rows: [(&[f64], usize, bool); 5] = [
            (&[100.0, 200.0, 100.0], 2, true),
            (&[100.0, 200.0], 1, false),
            (&[100.0, 200.0, 200.0], 1, false),
            (&[141.0, 100.0, 140.0, 140.0], 1, false),
            (&[], 0, false),
        ];
        for (floors, left, is_enough) in rows {
            let (kept, quiet) = Quiet::of(&with_floors(floors), 2);
            assert_eq!((kept, quiet.is_some()), (left, is_enough), "{floors:?}");
        }
    }

    #[test]
    fn the_best_floor_is_none_that_one_round_in_many_had() {
        let kept = |of_100: usize, count: usize| {
            let floors: Vec<_> = (0..count)
                .map(|round| if round < of_100 { 100.0 } else { 140.0 })
                .collect();
            Quiet::of(&with_floors(&floors), 1).0
        };
        assert_eq!(kept(1, 31), 1);
        assert_eq!(kept(1, 32), 32);
        assert_eq!(kept(6, 187), 187);
        assert_eq!(kept(7, 187), 7);
    }

    #[test]
    fn figures_are_over_the_floor_of_their_own_round() {
        let rounds = [
            round(10.0, &[30.0, 20.0]),
            round(11.0, &[33.0, 22.0]),
            round(10.0, &[30.0, 15.0]),
            round(90.0, &[900.0, 900.0]),
        ];
        let quiet = Quiet::of(&rounds, 3).1.unwrap();
        assert_eq!(quiet.floor().median, 10.0);
        assert_eq!(quiet.over_floor(0).median, 20.0);
        assert_eq!(quiet.over_floor(1).median, 10.0);
        assert_eq!(quiet.ratio(0, 0).unwrap().median, 1.0);
        assert_eq!(quiet.ratio(0, 1).unwrap().median, 2.0);
    }

    #[test]
    fn nothing_is_compared_with_a_baseline_that_is_no_slower_than_the_floor() {
        let quiet = Quiet::of(&[round(10.0, &[10.0, 30.0])], 1).1.unwrap();
        assert_eq!(quiet.ratio(1, 0), None);
    }
}
