//! What the audience sees.

use crate::child;
use anyhow::Result;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::Command;
use std::{env, fmt};

/// Numbered steps, what is typed in each, and whether it turned out as told.
pub(super) struct Stage {
    steps: u32,
    failures: u32,
    coloured: bool,
    /// Shown by its name alone.
    push_ctl: PathBuf,
}

impl Stage {
    pub(super) fn new(push_ctl: PathBuf) -> Self {
        let coloured = io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
        Self {
            steps: 0,
            failures: 0,
            coloured,
            push_ctl,
        }
    }

    /// Begins a step.
    pub(super) fn step(&mut self, title: &str) {
        self.steps += 1;
        let line = format!("{:>2}  {title}", self.steps);
        println!("\n{}", paint(self.coloured, "1", &line));
    }

    /// A command that a person could type.
    pub(super) fn command(&self, command: &Command) {
        self.narrator()(command);
    }

    /// Runs a command that a person could type, and shows what it prints.
    pub(super) fn run(&self, command: &mut Command) -> Result<String> {
        self.command(command);
        let output = child::output(command)?;
        for line in output.lines() {
            self.say(line);
        }
        Ok(output)
    }

    /// Shows commands as [`Stage::command`] does, to whoever hasn't got the stage.
    pub(super) fn narrator(&self) -> impl Fn(&Command) + use<> {
        let (push_ctl, coloured) = (self.push_ctl.display().to_string(), self.coloured);
        move |command| {
            let line = child::display(command).replace(&push_ctl, "push-ctl");
            println!("    {}", paint(coloured, "36", &format!("$ {line}")));
        }
    }

    /// What came of it, or what to know.
    pub(super) fn say(&self, text: impl fmt::Display) {
        println!("    {text}");
    }

    /// Something that has to be so.
    pub(super) fn check(&mut self, is_so: bool, what: impl fmt::Display) {
        if is_so {
            println!("    {} {what}", paint(self.coloured, "32", "✓"));
        } else {
            self.failures += 1;
            println!(
                "    {} {what}",
                paint(self.coloured, "31", "✗ NOT AS TOLD:")
            );
        }
    }

    /// How many things were not as told.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

fn paint(coloured: bool, style: &str, text: &str) -> String {
    if coloured {
        format!("\x1b[{style}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// `1234567` as `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
