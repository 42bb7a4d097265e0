//! Tables, and numbers as people read them.

use comfy_table::{CellAlignment, ContentArrangement, presets};
use std::fmt;
use std::time::Duration;

/// Columns under a head, or facts.
pub(super) struct Table(comfy_table::Table);

impl Table {
    /// With a head.
    pub(super) fn new(head: &[&str]) -> Self {
        let mut table = Self::facts();
        table.0.set_header(head.iter().copied());
        for column in table.0.column_iter_mut() {
            if matches!(
                head.get(column.index),
                Some(
                    &("PACKETS"
                        | "PACKETS/S"
                        | "BYTES"
                        | "BYTES/S"
                        | "DELIVERED"
                        | "REFUSED"
                        | "ACKED"
                        | "SENT"
                        | "PASSED"
                        | "DROPPED"
                        | "SESSIONS"
                        | "TERMINALS"
                        | "ANSWERED"
                        | "LOST"
                        | "REPEATED"
                        | "PER SECOND"
                        | "P50"
                        | "P99"
                        | "P99.9"
                        | "MAX")
                )
            ) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    /// Without a head, for facts.
    pub(super) fn facts() -> Self {
        let mut table = comfy_table::Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic);
        Self(table)
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.add_row(cells);
    }

    pub(super) fn fact(&mut self, name: &str, value: impl fmt::Display) {
        self.0.add_row([name.to_owned(), value.to_string()]);
    }

    /// The table, or `sentence` if it has no rows.
    pub(super) fn or_say(&self, sentence: &str) -> String {
        if self.0.is_empty() {
            format!("{sentence}\n")
        } else {
            self.to_string()
        }
    }
}

/// Without the blanks that columns begin and end with.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.0.lines() {
            writeln!(f, "{}", line.strip_prefix(' ').unwrap_or(&line).trim_end())?;
        }
        Ok(())
    }
}

/// `1,234,567`
pub(super) fn amount(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `0`, `0.4`, `12`, `1,234`: of something per second.
pub(super) fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 9.95 {
        format!("{per_second:.1}")
    } else {
        amount(per_second.round() as u64)
    }
}

/// `980 B/s`, `1.5 MB/s`
pub(super) fn bytes_rate(per_second: f64) -> String {
    let (scaled, unit) = match per_second {
        ..1e3 => return format!("{per_second:.0} B/s"),
        ..1e6 => (per_second / 1e3, "kB/s"),
        ..1e9 => (per_second / 1e6, "MB/s"),
        _ => (per_second / 1e9, "GB/s"),
    };
    format!("{scaled:.1} {unit}")
}

/// `1 session`, `2 sessions`
pub(super) fn plural<N: TryInto<u64>>(number: N, thing: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    format!(
        "{} {thing}{}",
        amount(number),
        if number == 1 { "" } else { "s" }
    )
}

/// `750 µs`, `1.5 ms`, `2.0 s`
pub(super) fn microseconds(number: u64) -> String {
    match number {
        0..1_000 => format!("{number} µs"),
        1_000..1_000_000 => format!("{:.1} ms", number as f64 / 1e3),
        1_000_000.. => format!("{:.1} s", number as f64 / 1e6),
    }
}

/// The same of milliseconds.
pub(super) fn milliseconds(number: f64) -> String {
    microseconds((number * 1e3).round() as u64)
}

/// `1h 5m`
pub(super) fn lifetime(seconds: u64) -> String {
    crate::durations::short(Duration::from_secs(seconds))
}

/// What the operating system said, in its words alone: its number tells people nothing more.
pub(super) fn without_error_numbers(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some((before, after)) = rest.split_once(" (os error ") {
        kept += before;
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    kept + rest
}

/// `5m ago`
pub(super) fn ago(seconds: u64) -> String {
    if seconds == 0 {
        "just now".to_owned()
    } else {
        format!("{} ago", lifetime(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ];
        for (number, text) in cases {
            assert_eq!(amount(number), text);
        }
        for (per_second, text, bytes) in [
            (0.0, "0", "0 B/s"),
            (0.42, "0.4", "0 B/s"),
            (12.3, "12", "12 B/s"),
            (1_234.0, "1,234", "1.2 kB/s"),
            (12_345_678.0, "12,345,678", "12.3 MB/s"),
        ] {
            assert_eq!(
                (rate(per_second).as_str(), bytes_rate(per_second).as_str()),
                (text, bytes)
            );
        }
        for (number, text) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1_500, "1.5 ms"),
            (2_000_000, "2.0 s"),
        ] {
            assert_eq!(microseconds(number), text);
            assert_eq!(milliseconds(number as f64 / 1e3), text);
        }
        assert_eq!(
            (plural(1_u64, "session"), plural(0_u64, "session")),
            ("1 session".into(), "0 sessions".into())
        );
    }

    #[test]
    fn the_number_of_an_error_is_left_out() {
        let cases = [
            (
                "can't read x: No such file or directory (os error 2)",
                "can't read x: No such file or directory",
            ),
            ("a (os error 1); b (os error 22): c", "a; b: c"),
            ("nothing of the kind", "nothing of the kind"),
        ];
        for (text, expected) in cases {
            assert_eq!(without_error_numbers(text), expected);
        }
    }

    #[test]
    fn a_table_has_no_blanks_around_it() {
        let mut table = Table::new(&["NAME", "BYTES"]);
        table.row(["a".to_owned(), "1,000".to_owned()]);
        table.row(["long name".to_owned(), "1".to_owned()]);
        assert_eq!(
            table.to_string(),
            "NAME       BYTES\na          1,000\nlong name      1\n"
        );
        assert_eq!(Table::new(&["NAME"]).or_say("None."), "None.\n");
    }
}
