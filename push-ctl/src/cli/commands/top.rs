//! What goes on, live, on a terminal.

mod screen;

use super::stats::interval;
use crate::admin::api::Activity;
use crate::cli::{Failure, Output, client, live};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use screen::{Screen, Sort};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// How soon a key has an effect.
const LOOK_AT_KEYS_EVERY: Duration = Duration::from_millis(100);

/// How often the screen is drawn if nothing is new: it has a clock.
const DRAW_EVERY: Duration = Duration::from_secs(1);

/// How often it looks.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Top {
    /// How often to look
    #[arg(long, value_name = "INTERVAL", default_value = "1s", value_parser = interval)]
    every: Duration,
    /// What to sort sessions and applications by
    #[arg(long, value_enum, default_value_t = Sort::Packets)]
    sort: Sort,
}

/// An answer of the daemon, and when it came.
type Answer = (Instant, Result<Activity, Failure>);

impl Top {
    /// Draws until a key ends it.
    pub(in crate::cli) fn dispatch(&self, socket: &Path, as_json: bool) -> Result<Output, Failure> {
        if as_json || !io::stdout().is_terminal() {
            return Err(Failure::with_hint(
                "`top` draws on a terminal",
                "`push-ctl stats --watch`, with -j for programs, goes anywhere",
            ));
        }
        let socket = socket.to_owned();
        let ask = move || client::get(&socket, "/v1/activity", client::TIMEOUT);
        // What is wrong from the start is said as by other commands.
        let first = ask()?;
        let mut screen = Screen::new(self.every, self.sort);
        screen.take(Instant::now(), Ok(first));
        let (sender, answers) = sync_channel(1);
        let every = self.every;
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(every);
                let answer = ask();
                if sender.send((Instant::now(), answer)).is_err() {
                    return;
                }
            }
        });
        std::thread::spawn(end_with_terminal);
        let failed = |error: io::Error| Failure::new(format!("can't draw: {error}"));
        let mut terminal = ratatui::try_init().map_err(failed)?;
        let drawn = draw(&mut terminal, &mut screen, &answers);
        ratatui::restore();
        drawn.map_err(failed).map(|()| Output::nothing())
    }
}

/// Ends the process when its terminal goes away, for who doesn't get, or ignores, the signal of that (`nohup`). Only
/// another thread can: if the one that draws just reads a key then, crossterm reads nothing, again and again, and
/// doesn't come back.
fn end_with_terminal() {
    while live::is_read() {
        std::thread::sleep(live::LOOK_EVERY);
    }
    std::process::exit(1);
}

fn draw(
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    answers: &Receiver<Answer>,
) -> io::Result<()> {
    let mut drawn: Option<Instant> = None;
    loop {
        match answers.try_recv() {
            Ok((at, answer)) => {
                screen.take(at, answer);
                drawn = None;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err(io::Error::other("nobody asks the daemon any more"));
            }
        }
        if drawn.is_none_or(|at| at.elapsed() >= DRAW_EVERY) {
            terminal.draw(|frame| screen.draw(frame, Instant::now()))?;
            drawn = Some(Instant::now());
        }
        if !event::poll(LOOK_AT_KEYS_EVERY)? {
            continue;
        }
        // A key, or another size of the terminal.
        drawn = None;
        let Event::Key(key) = event::read()? else {
            continue;
        };
        if key.kind != KeyEventKind::Press {
            continue;
        }
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
            KeyCode::Char('c') if is_control => return Ok(()),
            KeyCode::Char('s') => screen.sort_by_next(),
            KeyCode::Char('p' | ' ') => screen.pause_or_go_on(),
            _ => {}
        }
    }
}
