//! What is drawn.

mod columns;
#[cfg(test)]
mod tests;

use crate::admin::api::{Activity, BusyApp, BusySession, NicStatus};
use crate::cli::Failure;
use crate::cli::people::{amount, bytes_rate, lifetime, plural, rate};
use crate::cli::rates::{NicRates, Rates, VerdictRates};
use columns::{Column, number, rows, section, table, with_head};
use push_common::verdict::{Action, Verdict};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Sparkline, Table};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Rates that are remembered for the curve.
const HISTORY_LEN: usize = 600;

/// Columns of a screen that has room for everything.
const WIDE: u16 = 110;

/// Without an answer for this many intervals, and this long, the figures are called old.
const OLD_AFTER_INTERVALS: u32 = 3;
const OLD_AFTER: Duration = Duration::from_secs(3);

/// What the busiest are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Sort {
    /// Triggers delivered
    Packets,
    /// Bytes delivered
    Bytes,
    /// Triggers that the policy refused
    Refused,
}

impl Sort {
    const fn next(self) -> Self {
        match self {
            Self::Packets => Self::Bytes,
            Self::Bytes => Self::Refused,
            Self::Refused => Self::Packets,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Bytes => "bytes",
            Self::Refused => "refused",
        }
    }

    const fn of(self, packets: f64, bytes: f64, refused: f64) -> f64 {
        match self {
            Self::Packets => packets,
            Self::Bytes => bytes,
            Self::Refused => refused,
        }
    }
}

/// What a verdict is to an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Delivered,
    Acknowledged,
    Absorbed,
    Refused,
    PassedOn,
    Bug,
}

impl Class {
    fn of(rates: &VerdictRates) -> Self {
        let known = Verdict::ALL
            .iter()
            .find(|verdict| verdict.label() == rates.verdict);
        match known {
            Some(verdict) if verdict.is_delivery() => Self::Delivered,
            Some(Verdict::AckReturned | Verdict::AckCounted) => Self::Acknowledged,
            Some(Verdict::Coalesced) => Self::Absorbed,
            Some(Verdict::MissingConfiguration) => Self::Bug,
            Some(verdict) => match verdict.action() {
                Action::Drop => Self::Refused,
                Action::Pass | Action::Transmit | Action::Redirect => Self::PassedOn,
            },
            // Of a newer daemon.
            None if rates.action == "drop" => Self::Refused,
            None => Self::PassedOn,
        }
    }

    const fn color(self) -> Color {
        match self {
            Self::Delivered => Color::Green,
            Self::Acknowledged => Color::Cyan,
            Self::Absorbed | Self::PassedOn => Color::Reset,
            Self::Refused => Color::Yellow,
            Self::Bug => Color::Red,
        }
    }
}

/// All that is known to whoever draws.
pub(super) struct Screen {
    every: Duration,
    sort: Sort,
    is_paused: bool,
    /// The last answer, and when it came.
    latest: Option<(Instant, Activity)>,
    rates: Option<Rates>,
    /// Deliveries per second, the oldest first.
    delivered: VecDeque<u64>,
    /// Why the last question has no answer.
    problem: Option<String>,
}

impl Screen {
    pub(super) const fn new(every: Duration, sort: Sort) -> Self {
        Self {
            every,
            sort,
            is_paused: false,
            latest: None,
            rates: None,
            delivered: VecDeque::new(),
            problem: None,
        }
    }

    pub(super) const fn sort_by_next(&mut self) {
        self.sort = self.sort.next();
    }

    pub(super) const fn pause_or_go_on(&mut self) {
        self.is_paused = !self.is_paused;
    }

    /// Takes up an answer, but for while it pauses.
    pub(super) fn take(&mut self, at: Instant, answer: Result<Activity, Failure>) {
        if self.is_paused {
            return;
        }
        let activity = match answer {
            Ok(activity) => activity,
            Err(failure) => {
                self.problem = Some(failure.error);
                return;
            }
        };
        self.problem = None;
        if let Some((before_at, before)) = &self.latest {
            let rates = Rates::between(&before.stats, &activity.stats, at - *before_at);
            let delivered = totals(&rates).get(&Class::Delivered).copied();
            self.delivered
                .push_back(delivered.unwrap_or_default().round() as u64);
            if self.delivered.len() > HISTORY_LEN {
                self.delivered.pop_front();
            }
            self.rates = Some(rates);
        }
        self.latest = Some((at, activity));
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>, now: Instant) {
        let Some((at, activity)) = &self.latest else {
            frame.render_widget("waiting for the daemon", frame.area());
            return;
        };
        let trouble = self.trouble(activity, now.saturating_duration_since(*at));
        let nic_rows = u16::try_from(activity.nics.len()).unwrap_or(u16::MAX);
        let [head, sums, warnings, curve, nics, verdicts, busiest, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(u16::try_from(trouble.len()).unwrap_or(u16::MAX).min(3)),
            Constraint::Length(if frame.area().height >= 30 { 5 } else { 3 }),
            Constraint::Length(nic_rows.min(8) + 2),
            Constraint::Fill(1),
            Constraint::Fill(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let is_wide = frame.area().width >= WIDE;
        let time = clock(is_wide);
        let [head, time_area] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Length(time.width() as u16)])
                .spacing(1)
                .areas(head);
        frame.render_widget(head_line(activity, is_wide), head);
        frame.render_widget(time, time_area);
        frame.render_widget(Paragraph::new(trouble), warnings);
        frame.render_widget(self.foot_line(), foot);
        self.draw_curve(frame, curve);
        match &self.rates {
            Some(rates) => {
                frame.render_widget(sum_line(rates), sums);
                frame.render_widget(nic_table(&activity.nics, rates, is_wide), nics);
                frame.render_widget(verdict_table(rates), verdicts);
            }
            None => frame.render_widget("counting …", sums),
        }
        let [sessions, apps] = Layout::horizontal([
            Constraint::Fill(5),
            Constraint::Fill(if is_wide { 3 } else { 4 }),
        ])
        .spacing(2)
        .areas(busiest);
        let busiest = self.session_table(&activity.busiest_sessions, is_wide);
        frame.render_widget(busiest, sessions);
        frame.render_widget(self.app_table(&activity.busiest_apps, is_wide), apps);
    }

    /// What is wrong, the worst first.
    fn trouble(&self, activity: &Activity, age: Duration) -> Vec<Line<'static>> {
        let bad = |text: String| Line::styled(text, Style::new().fg(Color::Red).bold());
        let mut lines = Vec::new();
        let old_after = OLD_AFTER.max(self.every * OLD_AFTER_INTERVALS);
        if let Some(problem) = &self.problem {
            lines.push(bad(format!(
                "{problem}; these figures are {} s old",
                age.as_secs()
            )));
        } else if !self.is_paused && age > old_after {
            let old = format!("no answer from the daemon for {} s", age.as_secs());
            lines.push(bad(old));
        }
        for nic in activity.nics.iter().filter(|nic| nic.mode == "none") {
            lines.push(bad(format!("the program is not on {}", nic.name)));
        }
        for warning in &activity.warnings {
            let warning = format!("warning: {warning}");
            lines.push(Line::styled(warning, Style::new().fg(Color::Yellow)));
        }
        if lines.len() > 3 {
            let more = lines.split_off(2).len();
            lines.push(Line::from(format!("and {more} more: push-ctl status")));
        }
        lines
    }

    fn draw_curve(&self, frame: &mut Frame<'_>, area: Rect) {
        let width = usize::from(area.width);
        let shown = self.delivered.len().min(width);
        let skipped = self.delivered.len() - shown;
        let points: Vec<u64> = self.delivered.iter().skip(skipped).copied().collect();
        let peak = points.iter().copied().max().unwrap_or_default();
        let seconds = self.every.as_secs_f64() * shown as f64;
        let title = format!(
            " delivered per second, last {}; peak {} ",
            lifetime(seconds.round() as u64),
            amount(peak)
        );
        // New ones come in at the right.
        let mut padded = vec![0; width - shown];
        padded.extend(points);
        let curve = Sparkline::default()
            .block(section(title))
            .data(padded)
            .style(Style::new().fg(Class::Delivered.color()));
        frame.render_widget(curve, area);
    }

    fn session_table(&self, sessions: &[BusySession], is_wide: bool) -> Table<'static> {
        let mut sessions: Vec<_> = sessions.iter().collect();
        let by = |session: &BusySession| {
            let BusySession {
                packets_per_s,
                bytes_per_s,
                refused_per_s,
                ..
            } = session;
            self.sort.of(*packets_per_s, *bytes_per_s, *refused_per_s)
        };
        sessions.sort_by(|a, b| by(b).total_cmp(&by(a)));
        let device = |session: &BusySession| {
            let device = session.device.map(|device| device.to_string());
            Cell::from(device.unwrap_or_else(|| "-".to_owned()))
        };
        let columns = [
            Column::<BusySession>::text("SESSION", Constraint::Length(16), |session| {
                Cell::from(session.id.clone())
            }),
            Column::<BusySession>::text("APP", Constraint::Fill(2), |session| {
                Cell::from(session.app.clone())
            }),
            Column::<BusySession>::text("DEVICE", Constraint::Fill(3), device).if_wide(),
            Column::<BusySession>::number("/S", 8, |session| number(rate(session.packets_per_s)))
                .sorted(self.sort == Sort::Packets),
            Column::<BusySession>::number("BYTES", 10, |session| {
                number(bytes_rate(session.bytes_per_s))
            })
            .sorted(self.sort == Sort::Bytes)
            .if_wide(),
            Column::<BusySession>::number("REFUSED/S", 9, |session| refused(session.refused_per_s))
                .sorted(self.sort == Sort::Refused),
        ];
        table(" busiest sessions ", columns, is_wide, sessions)
    }

    fn app_table(&self, apps: &[BusyApp], is_wide: bool) -> Table<'static> {
        let mut apps: Vec<_> = apps.iter().collect();
        let by = |app: &BusyApp| {
            self.sort
                .of(app.packets_per_s, app.bytes_per_s, app.refused_per_s)
        };
        apps.sort_by(|a, b| by(b).total_cmp(&by(a)));
        let columns = [
            Column::<BusyApp>::text("APP", Constraint::Fill(1), |app| {
                Cell::from(app.app.clone())
            }),
            Column::<BusyApp>::number("SESSIONS", 8, |app| {
                number(amount(app.busy_sessions as u64))
            })
            .if_wide(),
            Column::<BusyApp>::number("/S", 8, |app| number(rate(app.packets_per_s)))
                .sorted(self.sort == Sort::Packets),
            Column::<BusyApp>::number("BYTES", 10, |app| number(bytes_rate(app.bytes_per_s)))
                .sorted(self.sort == Sort::Bytes)
                .if_wide(),
            Column::<BusyApp>::number("REFUSED/S", 9, |app| refused(app.refused_per_s))
                .sorted(self.sort == Sort::Refused),
        ];
        table(" busiest applications ", columns, is_wide, apps)
    }

    fn foot_line(&self) -> Line<'static> {
        let key = |name: &'static str| Span::styled(name, Style::new().reversed());
        let mut line = vec![
            key(" q "),
            Span::from(" quit  "),
            key(" s "),
            Span::from(format!(" sorted by {}  ", self.sort.label())),
            key(" p "),
            Span::from(if self.is_paused {
                " go on  "
            } else {
                " pause  "
            }),
            Span::from(format!("every {}", humantime::format_duration(self.every))),
        ];
        if self.is_paused {
            let paused = Style::new().bg(Color::Yellow).fg(Color::Black).bold();
            line.push(Span::from("  "));
            line.push(Span::styled(" PAUSED ", paused));
        }
        line.into()
    }
}

/// Per second, by class, over all NICs.
fn totals(rates: &Rates) -> BTreeMap<Class, f64> {
    let mut totals = BTreeMap::new();
    for verdict in rates.nics.iter().flat_map(|nic| &nic.verdicts) {
        *totals.entry(Class::of(verdict)).or_default() += verdict.packets_per_s;
    }
    totals
}

fn head_line(activity: &Activity, is_wide: bool) -> Line<'static> {
    let sessions = &activity.sessions;
    let used = f64::from(sessions.authorised) + f64::from(sessions.requested);
    let percent = 100.0 * used / f64::from(sessions.slots.max(1));
    // A number whose meaning is cut off says nothing.
    let used = if is_wide {
        format!(" │ {percent:.0} % of slots used")
    } else {
        String::new()
    };
    let bold = Style::new().bold();
    vec![
        Span::styled(format!("push {}", activity.version), bold),
        Span::from(format!(" up {} │ ", lifetime(activity.uptime_s))),
        Span::styled(amount(u64::from(sessions.authorised)), bold),
        Span::from(format!(
            " authorised, {} requested │ {}{used}",
            amount(u64::from(sessions.requested)),
            plural(activity.terminals, "terminal"),
        )),
    ]
    .into()
}

/// UTC, as in logs.
fn clock(is_wide: bool) -> Line<'static> {
    let now = jiff::Timestamp::now();
    Line::from(if is_wide {
        format!("{now:.0}")
    } else {
        now.strftime("%H:%M:%SZ").to_string()
    })
}

/// What comes to pass, in one line.
fn sum_line(rates: &Rates) -> Line<'static> {
    let totals = totals(rates);
    let of = |class: Class| totals.get(&class).copied().unwrap_or_default();
    let mut line = Vec::new();
    for (name, class) in [
        ("delivered", Class::Delivered),
        ("refused", Class::Refused),
        ("acknowledged", Class::Acknowledged),
        ("absorbed", Class::Absorbed),
        ("passed on", Class::PassedOn),
        ("BUG", Class::Bug),
    ] {
        let per_second = of(class);
        let is_always_shown = matches!(class, Class::Delivered | Class::Refused);
        if per_second <= 0.0 && !is_always_shown {
            continue;
        }
        let style = if per_second > 0.0 {
            Style::new().fg(class.color()).bold()
        } else {
            Style::new()
        };
        line.push(Span::styled(format!("{}/s", rate(per_second)), style));
        line.push(Span::from(format!(" {name}   ")));
    }
    if rates.events_lost_per_s > 0.0 {
        let lost = format!("{}/s events lost", rate(rates.events_lost_per_s));
        line.push(Span::styled(lost, Style::new().fg(Color::Yellow)));
    }
    line.into()
}

fn nic_table(nics: &[NicStatus], rates: &Rates, is_wide: bool) -> Table<'static> {
    let of_nic = |nic: &NicStatus| rates.nics.iter().find(|rates| rates.name == nic.name);
    let all = |nic: &NicStatus, of: fn(&NicRates) -> f64| of_nic(nic).map_or(0.0, of);
    let colored = |nic: &NicStatus, class: Class| {
        let verdicts = of_nic(nic).into_iter().flat_map(|nic| &nic.verdicts);
        let per_second = verdicts
            .filter(|verdict| Class::of(verdict) == class)
            .map(|verdict| verdict.packets_per_s)
            .sum::<f64>();
        let style = if per_second > 0.0 {
            Style::new().fg(class.color())
        } else {
            Style::new()
        };
        number(rate(per_second)).style(style)
    };
    let mode = |nic: &NicStatus| {
        let style = match nic.mode.as_str() {
            "native" | "offloaded" => Style::new(),
            "none" => Style::new().fg(Color::Red).bold(),
            _ => Style::new().fg(Color::Yellow),
        };
        Cell::from(nic.mode.clone()).style(style)
    };
    let columns = [
        Column::<NicStatus>::text("NIC", Constraint::Length(15), |nic| {
            Cell::from(nic.name.clone())
        }),
        Column::<NicStatus>::text("ROLE", Constraint::Length(8), |nic| {
            Cell::from(nic.role.map_or("-", |role| role.label()))
        })
        .if_wide(),
        Column::<NicStatus>::text("MODE", Constraint::Length(9), mode),
        Column::<NicStatus>::number("IN/S", 10, |nic| {
            number(rate(all(nic, |nic| nic.packets_per_s)))
        }),
        Column::<NicStatus>::number("BYTES", 10, |nic| {
            number(bytes_rate(all(nic, |nic| nic.bytes_per_s)))
        })
        .if_wide(),
        Column::<NicStatus>::number("DELIVERED/S", 11, |nic| colored(nic, Class::Delivered)),
        Column::<NicStatus>::number("REFUSED/S", 10, |nic| colored(nic, Class::Refused)),
        Column::<NicStatus>::number("ACKED/S", 8, |nic| colored(nic, Class::Acknowledged)),
        Column::<NicStatus>::number("PASSED/S", 9, |nic| colored(nic, Class::PassedOn)),
    ];
    table(" NICs ", columns, is_wide, nics)
}

/// What happens now first, then what has happened before.
fn verdict_table(rates: &Rates) -> Table<'static> {
    let mut sums: BTreeMap<&str, Sum<'_>> = BTreeMap::new();
    for verdict in rates.nics.iter().flat_map(|nic| &nic.verdicts) {
        let sum = sums.entry(&verdict.verdict).or_insert(Sum {
            packets_per_s: 0.0,
            bytes_per_s: 0.0,
            packets: 0,
            verdict,
        });
        sum.packets_per_s += verdict.packets_per_s;
        sum.bytes_per_s += verdict.bytes_per_s;
        sum.packets += verdict.packets;
    }
    let mut sums: Vec<_> = sums.into_values().filter(|sum| sum.packets > 0).collect();
    sums.sort_by(|a, b| {
        let by_rate = b.packets_per_s.total_cmp(&a.packets_per_s);
        by_rate.then(b.packets.cmp(&a.packets))
    });
    let columns = [
        Column::<Sum<'_>>::text("VERDICT", Constraint::Length(24), |sum| {
            Cell::from(sum.verdict.verdict.clone())
        }),
        Column::<Sum<'_>>::number("/S", 9, |sum| number(rate(sum.packets_per_s))),
        Column::<Sum<'_>>::number("BYTES", 10, |sum| number(bytes_rate(sum.bytes_per_s))),
        Column::<Sum<'_>>::number("SO FAR", 13, |sum| number(amount(sum.packets))),
        Column::<Sum<'_>>::text("MEANING", Constraint::Fill(1), |sum| {
            Cell::from(sum.verdict.meaning.clone())
        }),
    ];
    let styles: Vec<_> = sums.iter().map(Sum::style).collect();
    let rows = rows(&columns, true, &sums);
    let styled = rows.zip(styles).map(|(row, style)| row.style(style));
    with_head(" verdicts ", &columns, true).rows(styled)
}

/// A verdict over all NICs.
struct Sum<'a> {
    packets_per_s: f64,
    bytes_per_s: f64,
    packets: u64,
    verdict: &'a VerdictRates,
}

impl Sum<'_> {
    fn style(&self) -> Style {
        if self.packets_per_s > 0.0 {
            Style::new().fg(Class::of(self.verdict).color())
        } else {
            Style::new().add_modifier(Modifier::DIM)
        }
    }
}

fn refused(per_second: f64) -> Cell<'static> {
    let style = if per_second > 0.0 {
        Style::new().fg(Class::Refused.color())
    } else {
        Style::new()
    };
    number(rate(per_second)).style(style)
}
