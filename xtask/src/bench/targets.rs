//! What must be reached, and whether it was.

use super::row::{in_brackets, with_spread};
use super::{Row, Suite};
use std::fmt::Write as _;

/// What must hold of a row.
struct Target {
    /// What is promised.
    promise: &'static str,
    suite: Suite,
    name: &'static str,
    metric: &'static str,
    bound: Bound,
    /// What bounds it on this machine, and the name and metric of the row that tells how near that comes: what even
    /// that misses, is out of reach.
    bounded_by: &'static [(&'static str, &'static str, &'static str)],
}

/// Where a row's figure has to be: that of a ratio is a multiple of its baseline's.
#[derive(Clone, Copy, Debug)]
enum Bound {
    RatioAtMost(f64),
    RatioAtLeast(f64),
    ValueAtMost(f64),
}

/// A figure isn't quoted if its quartiles are further apart than this part of it: another run could say something else.
const WIDEST_SPREAD: f64 = 0.25;

/// Of `push-ebpf/src/bench/least.rs`.
const LEAST: &str = "the least";

const TARGETS: [Target; 13] = [
    Target {
        promise: "instructions that the verifier goes through, for a NIC of triggers",
        suite: Suite::Path,
        name: "ext",
        metric: "verified",
        bound: Bound::ValueAtMost(3000.0),
        bounded_by: &[
            ("each of its own once", "ext", "translated"),
            (LEAST, "the least", "verified"),
        ],
    },
    Target {
        promise: "all of a trigger's way but its tag, against the tag",
        suite: Suite::Path,
        name: "all but the tag",
        metric: "in tags",
        bound: Bound::RatioAtMost(0.6),
        bounded_by: &[(LEAST, "all but the tag, of the least", "in tags")],
    },
    Target {
        promise: "a forged trigger, against a good one",
        suite: Suite::Path,
        name: "refused, bad_tag",
        metric: "time over the floor",
        bound: Bound::RatioAtMost(1.0),
        bounded_by: &[],
    },
    Target {
        promise: "10 M sessions at random, against 1 M",
        suite: Suite::Scale,
        name: "array at 10000000",
        metric: "time over that of 1 M",
        bound: Bound::RatioAtMost(1.4),
        bounded_by: &[],
    },
    Target {
        promise: "1 M sessions at random, against a hash map",
        suite: Suite::Scale,
        name: "array at 1000000",
        metric: "time over that of a hash map",
        bound: Bound::RatioAtMost(0.5),
        bounded_by: &[(
            LEAST,
            "the least, array at 1000000",
            "time over that of a hash map",
        )],
    },
    Target {
        promise: "kernel memory per session",
        suite: Suite::Scale,
        name: "kernel memory",
        metric: "per session",
        bound: Bound::ValueAtMost(128.0),
        bounded_by: &[("each one more", "each session more", "per session")],
    },
    Target {
        promise: "NIC to NIC, against a program that only redirects",
        suite: Suite::Wire,
        name: "push, redirected",
        metric: "delivered",
        bound: Bound::RatioAtLeast(0.75),
        bounded_by: &[(LEAST, "the least, redirected", "delivered")],
    },
    Target {
        promise: "NIC to NIC, all checks, against stateful DNAT by nftables",
        suite: Suite::Peers,
        name: "push, against nftables, stateful, no checks",
        metric: "as many",
        bound: Bound::RatioAtLeast(3.5),
        bounded_by: &[(
            LEAST,
            "the least, against nftables, stateful, no checks",
            "as many",
        )],
    },
    Target {
        promise: "NIC to NIC, all checks, against a relay by sendmmsg",
        suite: Suite::Peers,
        name: "push, against relay, recvmmsg and sendmmsg",
        metric: "as many",
        bound: Bound::RatioAtLeast(6.0),
        bounded_by: &[(
            LEAST,
            "the least, against relay, recvmmsg and sendmmsg",
            "as many",
        )],
    },
    Target {
        promise: "NIC to NIC, all checks, against a relay by tokio",
        suite: Suite::Peers,
        name: "push, against relay, tokio",
        metric: "as many",
        bound: Bound::RatioAtLeast(15.0),
        bounded_by: &[(LEAST, "the least, against relay, tokio", "as many")],
    },
    Target {
        promise: "two CPUs, sessions of their own, against one CPU",
        suite: Suite::Multi,
        name: "two CPUs, sessions of their own",
        metric: "delivered",
        bound: Bound::RatioAtLeast(1.9),
        bounded_by: &[
            ("bare redirect", "two CPUs, bare redirect", "delivered"),
            ("arithmetic", "two CPUs, arithmetic alone", "words absorbed"),
        ],
    },
    Target {
        promise: "sessions loaded in mapped memory, against one by one",
        suite: Suite::Control,
        name: "in mapped memory",
        metric: "sessions loaded",
        bound: Bound::RatioAtLeast(3.0),
        bounded_by: &[],
    },
    Target {
        promise: "1 M sessions from the store, against a bare load in batches",
        suite: Suite::Control,
        name: "from the store",
        metric: "sessions loaded",
        bound: Bound::RatioAtLeast(1.0 / 3.0),
        bounded_by: &[("reading the store alone", "reading the store", "took")],
    },
];

/// How a run did by one target.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fared {
    pub(super) promise: &'static str,
    /// With its bound, such as `≥ 3.5 ×`.
    pub(super) wanted: String,
    pub(super) got: Option<String>,
    pub(super) is_met: Option<bool>,
    /// Whether it, or what bounds it, was measured, but in too few rounds or with too wide a spread to be quoted.
    pub(super) is_too_noisy: bool,
    /// What bounds it, and what that got; empty if nothing is known to.
    pub(super) bounded_by: String,
}

/// What is promised, by all targets in their order.
pub(super) fn promises() -> impl Iterator<Item = &'static str> {
    TARGETS.iter().map(|target| target.promise)
}

/// How these rows did by the targets of their suites.
pub(super) fn fared(rows: &[Row]) -> Vec<Fared> {
    let of_suites = TARGETS
        .iter()
        .filter(|target| rows.iter().any(|row| row.suite == target.suite));
    of_suites.map(|target| target.fared(rows)).collect()
}

impl Target {
    fn fared(&self, rows: &[Row]) -> Fared {
        let row = |name, metric| {
            let mut of_suite = rows.iter().filter(|row| row.suite == self.suite);
            of_suite.find(|row| row.name == name && row.metric == metric)
        };
        let mut is_too_noisy = false;
        let mut with_its_spread = |row: &Row| {
            let (figure, spread) = match self.bound {
                Bound::RatioAtMost(_) | Bound::RatioAtLeast(_) => (row.ratio, row.ratio_spread),
                Bound::ValueAtMost(_) => (row.value, row.spread),
            };
            let quotable = figure.filter(|figure| {
                spread.is_none_or(|[lower, upper]| upper - lower <= figure * WIDEST_SPREAD)
            });
            is_too_noisy |= quotable.is_none();
            Some((quotable?, spread))
        };
        let unit = match self.bound {
            Bound::RatioAtMost(_) | Bound::RatioAtLeast(_) => "×",
            Bound::ValueAtMost(_) => row(self.name, self.metric).map_or("", |row| &row.unit),
        };
        let bounds = self.bounded_by.iter().filter_map(|&(what, name, metric)| {
            let (figure, spread) = with_its_spread(row(name, metric)?)?;
            Some(format!("{what}: {} {unit}", with_spread(figure, spread)))
        });
        let bounds: Vec<_> = bounds.collect();
        let measured = row(self.name, self.metric).and_then(with_its_spread);
        let figure = measured.map(|(figure, _)| figure);
        let (sign, bound, is_met) = match self.bound {
            Bound::RatioAtMost(bound) | Bound::ValueAtMost(bound) => {
                ('≤', bound, figure.map(|figure| figure <= bound))
            }
            Bound::RatioAtLeast(bound) => ('≥', bound, figure.map(|figure| figure >= bound)),
        };
        Fared {
            promise: self.promise,
            wanted: format!("{sign} {} {unit}", three_digits(bound)),
            got: measured.map(|(figure, spread)| {
                let got = match three_digits(figure) {
                    // A miss has to look like one.
                    got if is_met == Some(false) && got == three_digits(bound) => {
                        format!("{figure:.4}")
                    }
                    got => got,
                };
                format!("{got}{} {unit}", in_brackets(spread))
            }),
            is_met,
            is_too_noisy,
            bounded_by: bounds.join("; "),
        }
    }
}

impl Fared {
    pub(super) fn verdict(&self) -> &'static str {
        match self.is_met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None if self.is_too_noisy => "too noisy",
            None => "not measured",
        }
    }
}

/// For people to read; empty without targets.
pub(super) fn table(fared: &[Fared]) -> String {
    let mut text = String::new();
    for one in fared {
        let got = one.got.as_deref().unwrap_or("–");
        let bounds = match one.bounded_by.as_str() {
            "" => String::new(),
            bounds => format!("; {bounds}"),
        };
        let _ = writeln!(
            text,
            "{:<64} {:>12} {:>24}  {}{bounds}",
            one.promise,
            one.wanted,
            got,
            one.verdict(),
        );
    }
    text
}

/// With as many digits after the point as three digits in all need.
pub(super) fn three_digits(figure: f64) -> String {
    let digits = match figure.abs() {
        big if big >= 99.95 => 0,
        middle if middle >= 9.995 => 1,
        _small => 2,
    };
    format!("{figure:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::super::{Figure, Quartiles};
    use super::*;

    fn row(value: Option<f64>, ratio: Option<f64>) -> Row {
        let figure = value.map(Figure::Once);
        let ratio = ratio.map(Figure::Once);
        Row::new(Suite::Path, "tag", "time", figure, "ns").compared("all", ratio)
    }

    const fn target(bound: Bound) -> Target {
        Target {
            promise: "quick",
            suite: Suite::Path,
            name: "tag",
            metric: "time",
            bound,
            bounded_by: &[("itself", "tag", "time")],
        }
    }

    #[test]
    fn what_spreads_too_wide_is_not_quoted() {
        let cases = [
            ([0.9, 1.0, 1.4], Some("1.00 (0.95–1.20) ×")),
            ([0.9, 1.0, 1.5], None),
        ];
        for (figures, expected) in cases {
            let ratio = Quartiles::of(&figures).map(Figure::Measured);
            let rows = [row(Some(9.0), None).compared("all", ratio)];
            let fared = target(Bound::RatioAtMost(1.2)).fared(&rows);
            assert_eq!(fared.got.as_deref(), expected);
            assert_eq!(fared.is_too_noisy, expected.is_none());
            let (verdict, bound) = match expected {
                Some(figure) => ("met", format!("itself: {figure}")),
                None => ("too noisy", String::new()),
            };
            assert_eq!((fared.verdict(), fared.bounded_by), (verdict, bound));
        }
    }

    #[test]
    fn a_miss_looks_like_one() {
        let ratio = Quartiles::of(&[0.5, 0.502, 0.504]).map(Figure::Measured);
        let rows = [row(None, None).compared("all", ratio)];
        let fared = target(Bound::RatioAtMost(0.5)).fared(&rows);
        assert_eq!(fared.got.as_deref(), Some("0.5020 (0.50–0.50) ×"));
        let fared = target(Bound::RatioAtMost(0.6)).fared(&rows);
        assert_eq!(fared.got.as_deref(), Some("0.50 (0.50–0.50) ×"));
    }

    #[test]
    fn a_target_is_met_up_to_its_bound_and_never_by_what_was_not_measured() {
        let cases = [
            (Bound::RatioAtMost(0.6), Some(9.0), Some(0.6), Some(true)),
            (Bound::RatioAtMost(0.6), Some(0.1), Some(0.61), Some(false)),
            (Bound::RatioAtLeast(3.5), Some(9.0), Some(3.5), Some(true)),
            (Bound::RatioAtLeast(3.5), Some(9.0), Some(3.4), Some(false)),
            (Bound::RatioAtLeast(3.5), Some(9.0), None, None),
            (Bound::ValueAtMost(128.0), Some(128.0), None, Some(true)),
            (Bound::ValueAtMost(128.0), None, Some(1.0), None),
        ];
        for (bound, value, ratio, expected) in cases {
            let target = target(bound);
            let fared = target.fared(&[row(value, ratio)]);
            assert_eq!(fared.is_met, expected, "{bound:?} {value:?} {ratio:?}");
            assert_eq!(fared.is_too_noisy, expected.is_none());
            assert_eq!(target.fared(&[]).verdict(), "not measured");
            let tells = |figure: f64| target.fared(&[row(Some(figure), None)]).got;
            if let Bound::ValueAtMost(_) = bound {
                assert_eq!(tells(128.0).as_deref(), Some("128 ns"));
                assert_eq!(tells(128.000_244).as_deref(), Some("128.0002 ns"));
            }
        }
    }

    #[test]
    fn figures_have_three_digits() {
        let cases = [
            (0.5, "0.50"),
            (9.994, "9.99"),
            (9.996, "10.0"),
            (99.96, "100"),
            (12_345.6, "12346"),
        ];
        for (figure, expected) in cases {
            assert_eq!(three_digits(figure), expected);
        }
    }
}
