//! What is told of each step of the way.

use super::in_milliseconds;
use crate::cli::people::{milliseconds, without_error_numbers};
use crate::cli::print;
use serde::Serialize;
use serde_json::json;
use std::time::Duration;

/// One step of the way, as it is told.
#[derive(Serialize)]
struct Told<'a> {
    step: &'a str,
    outcome: Mark,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<f64>,
    text: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mark {
    Ok,
    Failed,
    /// Nobody can tell.
    Unknown,
}

pub(super) struct Steps {
    pub(super) as_json: bool,
}

/// A step that failed.
pub(super) struct Broken {
    pub(super) step: &'static str,
    pub(super) error: String,
    pub(super) hint: String,
}

impl Steps {
    pub(super) fn tell(&self, step: &str, outcome: Mark, took: Option<Duration>, text: &str) {
        let took_ms = took.map(in_milliseconds);
        let text = &without_error_numbers(text);
        let line = if self.as_json {
            let told = Told {
                step,
                outcome,
                took_ms,
                text,
            };
            json!(told).to_string()
        } else {
            let mark = match outcome {
                Mark::Ok => "ok",
                Mark::Failed => "FAILED",
                Mark::Unknown => "?",
            };
            let took = took_ms.map(milliseconds).unwrap_or_default();
            format!("{mark:<7} {step:<13} {took:>9}  {text}")
        };
        let _unread = print(&format!("{line}\n"));
    }

    pub(super) fn ok(&self, step: &str, took: Duration, text: &str) {
        self.tell(step, Mark::Ok, Some(took), text);
    }
}
