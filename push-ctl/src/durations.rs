//! Lengths of time as people read and write them.

use std::time::Duration;

/// Units of one second and more, in seconds. A year has 365 days here, as certificates and limits have them.
const UNITS: [(&str, u64); 5] = [
    ("y", 365 * 24 * 60 * 60),
    ("d", 24 * 60 * 60),
    ("h", 60 * 60),
    ("m", 60),
    ("s", 1),
];

/// `59m 58s`, `1d`, `2069y 24d`, `250ms`: the two largest units that there are, if it is a second or more.
pub(crate) fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds == 0 || (seconds < 60 && time.subsec_nanos() > 0) {
        return humantime::format_duration(time).to_string();
    }
    let mut left = seconds;
    let mut parts = Vec::new();
    for (unit, length) in UNITS {
        let number = left / length;
        left %= length;
        if number > 0 {
            parts.push(format!("{number}{unit}"));
        } else if !parts.is_empty() {
            // What follows is less than the precision of what is there.
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_units_say_enough() {
        let cases = [
            (Duration::ZERO, "0s"),
            (Duration::from_millis(250), "250ms"),
            (Duration::from_millis(1_500), "1s 500ms"),
            (Duration::from_secs(1), "1s"),
            (Duration::from_secs(3_598), "59m 58s"),
            (Duration::from_secs(3_600), "1h"),
            (Duration::from_secs(3_605), "1h"),
            (Duration::from_hours(24), "1d"),
            (Duration::from_hours(25), "1d 1h"),
            (Duration::from_hours(365 * 24), "1y"),
            (Duration::from_secs(65_293_430_400), "2070y 161d"),
        ];
        for (time, text) in cases {
            assert_eq!(short(time), text);
            let read = humantime::parse_duration(text);
            assert!(read.is_ok(), "{text} can't be written");
        }
    }
}
