//! What is to be made of many figures that came out differently.

/// Rounds are alike if the highest floor is at most this many times the lowest.
pub(super) const NOISY_FLOOR: f64 = 1.15;

/// The lowest floor of those that are alike is at most this many times the best one of all. A CPU whose neighbours are
/// busy has a lower clock, which makes each program slower alike: about a third. One that shares its core with them
/// does not just have a lower clock, and is slower than that.
const SLOW_FLOOR: f64 = 1.4;

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

/// The rounds that were measured while the machine was as fast in one as in another; at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Quiet {
    rounds: Vec<Round>,
}

impl Quiet {
    /// The fastest rounds that are alike, of which there are as many as `wanted`: their floors are within
    /// [`NOISY_FLOOR`] of each other, and no slower than [`SLOW_FLOOR`] has it. Tells how many there are; if never
    /// enough, how many there are at most.
    #[must_use]
    pub fn of(rounds: &[Round], wanted: usize) -> (usize, Option<Self>) {
        let mut sorted: Vec<_> = rounds.iter().collect();
        sorted.sort_by(|one, other| one.floor.total_cmp(&other.floor));
        let slow = sorted.first().map_or(0.0, |best| best.floor * SLOW_FLOOR);
        let mut most = 0;
        for (lowest, round) in sorted.iter().enumerate() {
            if round.floor > slow {
                break;
            }
            let limit = round.floor * NOISY_FLOOR;
            let end = sorted.partition_point(|round| round.floor <= limit);
            let alike = &sorted[lowest..end];
            most = most.max(alike.len());
            if alike.len() >= wanted {
                let rounds = alike.iter().map(|&round| round.clone()).collect();
                return (alike.len(), Some(Self { rounds }));
            }
        }
        (most, None)
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

    /// How many rounds count, and the floors of those.
    fn counted(floors: &[f64], wanted: usize) -> (usize, Option<Vec<f64>>) {
        let (kept, quiet) = Quiet::of(&with_floors(floors), wanted);
        let floors = |quiet: Quiet| quiet.rounds.iter().map(|round| round.floor).collect();
        (kept, quiet.map(floors))
    }

    #[test]
    fn rounds_with_a_high_floor_do_not_count() {
        let floors = [100.0, 116.0, 114.0, 300.0, 104.0];
        let quiet = vec![100.0, 104.0, 114.0];
        assert_eq!(counted(&floors, 3), (3, Some(quiet)));
    }

    #[test]
    fn one_lucky_round_does_not_make_all_others_noisy() {
        let floors = [130.0, 100.0, 131.0, 148.0, 129.0, 149.0];
        let alike = vec![129.0, 130.0, 131.0];
        assert_eq!(
            counted(&floors, 3),
            (4, Some([&alike[..], &[148.0]].concat()))
        );
        // With another one like it, the lucky ones are what counts.
        let floors = [130.0, 100.0, 131.0, 101.0, 129.0];
        assert_eq!(counted(&floors, 2), (2, Some(vec![100.0, 101.0])));
        assert_eq!(counted(&floors, 3), (3, Some(alike)));
    }

    #[test]
    fn rounds_on_a_core_that_others_use_do_not_count_however_alike_they_are() {
        let floors = [100.0, 141.0, 141.0, 141.0];
        assert_eq!(counted(&floors, 2), (1, None));
        let floors = [100.0, 140.0, 140.0, 140.0];
        assert_eq!(counted(&floors, 2), (3, Some(vec![140.0; 3])));
    }

    #[test]
    fn there_is_no_figure_when_fewer_rounds_than_wanted_are_alike() {
        assert_eq!(counted(&[100.0, 200.0], 2), (1, None));
        assert_eq!(counted(&[100.0, 200.0, 100.0], 2).0, 2);
        assert_eq!(counted(&[], 1), (0, None));
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
