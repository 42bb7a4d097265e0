//! What came of a run, to look at: a page with plots, and the table in the README.

use super::machine::Machine;
use super::plot::{self, Bar, Labels, Line};
use super::row::with_spread;
use super::targets::{Fared, promises};
use super::{Row, Suite};
use crate::workspace;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What encloses the table in the README.
const BEGIN: &str = "<!-- cargo xtask bench --readme -->\n";
const END: &str = "<!-- end -->\n";

/// A plot of rows that are of one suite and metric.
struct Picture {
    file: &'static str,
    suite: Suite,
    metric: &'static str,
    title: &'static str,
    form: Form,
}

enum Form {
    Bars,
    /// The rows' names end in what is on the x axis, after `at`: `array at 1024`.
    Lines {
        x: &'static str,
    },
}

const PICTURES: [Picture; 9] = [
    Picture {
        file: "ladder.svg",
        suite: Suite::Path,
        metric: "time of the step",
        title: "What each step of a trigger's way costs",
        form: Form::Bars,
    },
    Picture {
        file: "verdicts.svg",
        suite: Suite::Path,
        metric: "time over the floor",
        title: "What each way through the program costs",
        form: Form::Bars,
    },
    Picture {
        file: "scale.svg",
        suite: Suite::Scale,
        metric: "time over the floor",
        title: "A trigger for a session at random",
        form: Form::Lines { x: "sessions" },
    },
    Picture {
        file: "wire.svg",
        suite: Suite::Wire,
        metric: "delivered",
        title: "Live frames through one CPU, generator and sink included",
        form: Form::Bars,
    },
    Picture {
        file: "latency-p50.svg",
        suite: Suite::Wire,
        metric: "latency, p50",
        title: "Half of all frames took longer, from when a frame was due",
        form: Form::Lines {
            x: "% of as many as possible",
        },
    },
    Picture {
        file: "latency-p99.svg",
        suite: Suite::Wire,
        metric: "latency, p99",
        title: "1 % of all frames took longer, from when a frame was due",
        form: Form::Lines {
            x: "% of as many as possible",
        },
    },
    Picture {
        file: "latency-p99.9.svg",
        suite: Suite::Wire,
        metric: "latency, p99.9",
        title: "0.1 % of all frames took longer, from when a frame was due",
        form: Form::Lines {
            x: "% of as many as possible",
        },
    },
    Picture {
        file: "peers.svg",
        suite: Suite::Peers,
        metric: "delivered",
        title: "What others would take for the job, on one CPU",
        form: Form::Bars,
    },
    Picture {
        file: "multi.svg",
        suite: Suite::Multi,
        metric: "delivered",
        title: "Two CPUs",
        form: Form::Bars,
    },
];

/// Writes the page into a folder that is there; gives its path.
pub(super) fn write(
    folder: &Path,
    machine: &Machine,
    rows: &[Row],
    fared: &[Fared],
) -> Result<PathBuf> {
    let mut page = String::from(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>push: benchmarks</title>\n<style>\nbody { font: 16px/1.5 sans-serif; color: #1b2631; max-width: 960px; margin: 2em auto; padding: 0 1em }\ntable { border-collapse: collapse; font-size: 14px }\ntd, th { padding: 2px 12px 2px 0; text-align: left; border-bottom: 1px solid #d5dbe1 }\ntd.figure { text-align: right; font-variant-numeric: tabular-nums }\nimg { max-width: 100% }\n.missed { color: #d55e00; font-weight: bold }\n</style>\n<h1>push: benchmarks</h1>\n<table>\n",
    );
    for (what, is) in machine.facts() {
        writeln!(page, "<tr><th>{}<td>{}", escaped(what), escaped(is))?;
    }
    page += "</table>\n";
    if !fared.is_empty() {
        page += "<h2>Targets</h2>\n<table>\n<tr><th>what<th>wanted<th>got<th>what bounds it<th>\n";
        for one in fared {
            let class = if one.is_met == Some(true) {
                ""
            } else {
                " class=\"missed\""
            };
            writeln!(
                page,
                "<tr><td>{}<td class=\"figure\">{}<td class=\"figure\">{}<td class=\"figure\">{}<td{class}>{}",
                escaped(one.promise),
                escaped(&one.wanted),
                one.got.as_deref().unwrap_or("–"),
                one.bounded_by,
                one.verdict()
            )?;
        }
        page += "</table>\n";
    }
    for picture in &PICTURES {
        if picture.draw(folder, rows)? {
            let Picture { file, title, .. } = picture;
            writeln!(page, "<p><img src=\"{file}\" alt=\"{}\">", escaped(title))?;
        }
    }
    page += "<h2>All figures</h2>\n<p>Medians; in brackets the quartiles. A ratio is to the row named beside it, within each round.\n";
    let mut suite = None;
    for row in rows {
        if suite != Some(row.suite) {
            if suite.is_some() {
                page += "</table>\n";
            }
            suite = Some(row.suite);
            writeln!(
                page,
                "<h3>{}</h3>\n<table>\n<tr><th>name<th>metric<th>figure<th>unit<th>ratio<th>to",
                row.suite.name()
            )?;
        }
        writeln!(
            page,
            "<tr><td>{}<td>{}<td class=\"figure\">{}<td>{}<td class=\"figure\">{}<td>{}",
            escaped(&row.name),
            escaped(&row.metric),
            row.figure(),
            escaped(&row.unit),
            row.ratio
                .map_or_else(String::new, |ratio| with_spread(ratio, row.ratio_spread)),
            escaped(row.baseline.as_deref().unwrap_or_default()),
        )?;
    }
    page += "</table>\n</html>\n";
    let path = folder.join("report.html");
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

impl Picture {
    /// Unless there is nothing to draw.
    fn draw(&self, folder: &Path, rows: &[Row]) -> Result<bool> {
        let rows = rows
            .iter()
            .filter(|row| row.suite == self.suite && row.metric == self.metric);
        let measured: Vec<_> = rows.filter_map(|row| Some((row, row.value?))).collect();
        let Some(&(first, _)) = measured.first() else {
            return Ok(false);
        };
        let path = folder.join(self.file);
        match self.form {
            Form::Bars => {
                let bars = measured.iter().map(|&(row, figure)| Bar {
                    name: row.name.clone(),
                    figure,
                    spread: row.spread,
                });
                plot::bars(&path, self.title, &first.unit, &bars.collect::<Vec<_>>())?;
            }
            Form::Lines { x } => {
                let mut lines: Vec<Line> = Vec::new();
                for (row, figure) in measured {
                    let Some((name, at)) = row.name.rsplit_once(" at ") else {
                        continue;
                    };
                    let at = at
                        .parse()
                        .with_context(|| format!("{:?} is at no number", row.name))?;
                    let line = match lines.iter_mut().find(|line| line.name == name) {
                        Some(line) => line,
                        None => lines.push_mut(Line {
                            name: name.to_owned(),
                            points: Vec::new(),
                        }),
                    };
                    line.points.push((at, figure));
                }
                let labels = Labels {
                    title: self.title,
                    x,
                    y: &first.unit,
                };
                plot::lines(&path, &labels, &lines)?;
            }
        }
        Ok(true)
    }
}

/// Puts how the targets of the suites that were run fared into the README, in place of what is there of them.
///
/// # Errors
///
/// When one of these targets has not been measured, or the README has no place for it.
pub(super) fn into_readme(machine: &Machine, fared: &[Fared]) -> Result<()> {
    let path = workspace::root().join("README.md");
    let before = fs::read_to_string(&path)?;
    let facts = machine
        .facts()
        .iter()
        .filter(|(what, _)| ["kernel", "processor", "JIT"].contains(what));
    let facts: Vec<_> = facts.map(|(what, is)| format!("{what} {is}")).collect();
    fs::write(&path, with_table(&before, &facts.join("; "), fared)?)?;
    Ok(())
}

/// A text with these targets in its table.
fn with_table(text: &str, machine: &str, fared: &[Fared]) -> Result<String> {
    let (head, rest) = text
        .split_once(BEGIN)
        .with_context(|| format!("README.md has no line {BEGIN:?}"))?;
    let (old, tail) = rest
        .split_once(END)
        .with_context(|| format!("README.md has no line {END:?} after {BEGIN:?}"))?;
    let mut table = String::from(
        "| what | wanted | measured | | what bounds it |\n| --- | ---: | ---: | --- | --- |\n",
    );
    for promise in promises() {
        let Some(one) = fared.iter().find(|one| one.promise == promise) else {
            // Of a suite that was not run now.
            let start = format!("| {promise} |");
            for line in old.lines().filter(|line| line.starts_with(&start)) {
                writeln!(table, "{line}")?;
            }
            continue;
        };
        let got = one.got.as_deref().with_context(|| {
            format!("the README stays as it is: there is no figure for {promise:?}")
        })?;
        writeln!(
            table,
            "| {promise} | {} | {got} | {} | {} |",
            one.wanted,
            one.verdict(),
            one.bounded_by
        )?;
    }
    Ok(format!(
        "{head}{BEGIN}{table}\nMedians, and in brackets their quartiles, those of a suite of one run: {machine}.\n{END}{tail}"
    ))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fared(promise: &'static str, got: Option<&str>) -> Fared {
        Fared {
            promise,
            wanted: "≤ 1 ×".to_owned(),
            got: got.map(str::to_owned),
            is_met: got.map(|_| true),
            is_too_noisy: false,
            bounded_by: String::new(),
        }
    }

    #[test]
    fn the_table_has_what_was_measured_now_and_what_it_had_of_other_suites() {
        let promises: Vec<_> = promises().collect();
        let (first, last) = (promises[0], promises[promises.len() - 1]);
        let empty = format!("before\n{BEGIN}{END}after\n");
        let once = with_table(&empty, "kernel 1", &[fared(last, Some("0.9 ×"))]).unwrap();
        let twice = with_table(&once, "kernel 2", &[fared(first, Some("0.8 ×"))]).unwrap();
        let again = with_table(&twice, "kernel 2", &[fared(last, Some("0.7 ×"))]).unwrap();
        assert_eq!(
            again,
            format!(
                "before\n{BEGIN}| what | wanted | measured | | what bounds it |\n| --- | ---: | ---: | --- | --- |\n| {first} | ≤ 1 × | 0.8 × | met |  |\n| {last} | ≤ 1 × | 0.7 × | met |  |\n\nMedians, and in brackets their quartiles, those of a suite of one run: kernel 2.\n{END}after\n"
            )
        );
        let error = with_table(&again, "kernel 2", &[fared(first, None)]).unwrap_err();
        assert!(error.to_string().contains(first), "{error}");
        assert!(with_table("no table", "", &[]).is_err());
    }
}
