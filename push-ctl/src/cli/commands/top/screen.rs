//! What is drawn.

#[cfg(test)]
mod tests;

use crate::admin::api::{Activity, BusyApp, BusySession, NicStatus};
use crate::cli::Failure;
use crate::cli::people::{amount, bytes_rate, lifetime, plural, rate};
use crate::cli::rates::{NicRates, Rates, VerdictRates};
use push_common::verdict::{Action, Verdict};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Rates that are remembered for the curve.
const HISTORY_LEN: usize = 600;

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
        frame.render_widget(head_line(activity), head);
        frame.render_widget(clock().right_aligned(), head);
        frame.render_widget(Paragraph::new(trouble), warnings);
        frame.render_widget(self.foot_line(), foot);
        self.draw_curve(frame, curve);
        match &self.rates {
            Some(rates) => {
                frame.render_widget(sum_line(rates), sums);
                frame.render_widget(nic_table(&activity.nics, rates), nics);
                frame.render_widget(verdict_table(rates), verdicts);
            }
            None => frame.render_widget("counting …", sums),
        }
        let [sessions, apps] =
            Layout::horizontal([Constraint::Fill(5), Constraint::Fill(3)]).areas(busiest);
        frame.render_widget(self.session_table(&activity.busiest_sessions), sessions);
        frame.render_widget(self.app_table(&activity.busiest_apps), apps);
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

    fn session_table(&self, sessions: &[BusySession]) -> Table<'static> {
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
        let rows = sessions.into_iter().map(|session| {
            let device = session.device;
            Row::new([
                Cell::from(session.id.clone()),
                Cell::from(session.app.clone()),
                Cell::from(device.map_or_else(|| "-".to_owned(), |device| device.to_string())),
                number(rate(session.packets_per_s)),
                number(bytes_rate(session.bytes_per_s)),
                refused(session.refused_per_s),
            ])
        });
        let widths = [
            Constraint::Length(16),
            Constraint::Fill(2),
            Constraint::Fill(3),
            Constraint::Length(9),
            Constraint::Length(10),
            Constraint::Length(9),
        ];
        let head = ["SESSION", "APP", "DEVICE", "/S", "BYTES", "REFUSED/S"];
        table(
            " busiest sessions ",
            head,
            self.sort_column(3),
            rows,
            widths,
        )
    }

    fn app_table(&self, apps: &[BusyApp]) -> Table<'static> {
        let mut apps: Vec<_> = apps.iter().collect();
        let by = |app: &BusyApp| {
            self.sort
                .of(app.packets_per_s, app.bytes_per_s, app.refused_per_s)
        };
        apps.sort_by(|a, b| by(b).total_cmp(&by(a)));
        let rows = apps.into_iter().map(|app| {
            Row::new([
                Cell::from(app.app.clone()),
                number(amount(app.busy_sessions as u64)),
                number(rate(app.packets_per_s)),
                number(bytes_rate(app.bytes_per_s)),
                refused(app.refused_per_s),
            ])
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(8),
            Constraint::Length(9),
            Constraint::Length(10),
            Constraint::Length(9),
        ];
        let head = ["APP", "SESSIONS", "/S", "BYTES", "REFUSED/S"];
        table(
            " busiest applications ",
            head,
            self.sort_column(2),
            rows,
            widths,
        )
    }

    /// The column that is sorted by, if that of packets is `packets`.
    const fn sort_column(&self, packets: usize) -> Option<usize> {
        Some(match self.sort {
            Sort::Packets => packets,
            Sort::Bytes => packets + 1,
            Sort::Refused => packets + 2,
        })
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

fn head_line(activity: &Activity) -> Line<'static> {
    let sessions = &activity.sessions;
    let used = f64::from(sessions.authorised) + f64::from(sessions.requested);
    let percent = 100.0 * used / f64::from(sessions.slots.max(1));
    let bold = Style::new().bold();
    vec![
        Span::styled(format!("push {}", activity.version), bold),
        Span::from(format!(" up {}", lifetime(activity.uptime_s))),
        Span::from(" │ "),
        Span::styled(amount(u64::from(sessions.authorised)), bold),
        Span::from(format!(
            " authorised, {} requested ({percent:.0} % of the slots)",
            amount(u64::from(sessions.requested))
        )),
        Span::from(format!(" │ {}", plural(activity.terminals, "terminal"))),
    ]
    .into()
}

fn clock() -> Line<'static> {
    Line::from(format!(" {:.0}", jiff::Timestamp::now()))
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

fn nic_table(nics: &[NicStatus], rates: &Rates) -> Table<'static> {
    let rows = nics.iter().map(|nic| {
        let of_nic = rates.nics.iter().find(|rates| rates.name == nic.name);
        let sum = |class: Class| {
            let verdicts = of_nic.into_iter().flat_map(|nic| &nic.verdicts);
            verdicts
                .filter(|verdict| Class::of(verdict) == class)
                .map(|verdict| verdict.packets_per_s)
                .sum::<f64>()
        };
        let colored = |class: Class| {
            let per_second = sum(class);
            let style = if per_second > 0.0 {
                Style::new().fg(class.color())
            } else {
                Style::new()
            };
            number(rate(per_second)).style(style)
        };
        let all = |of: fn(&NicRates) -> f64| of_nic.map_or(0.0, of);
        let role = nic.role.map_or("-", |role| role.label());
        let mode = match nic.mode.as_str() {
            "native" | "offloaded" => Style::new(),
            "none" => Style::new().fg(Color::Red).bold(),
            _ => Style::new().fg(Color::Yellow),
        };
        Row::new([
            Cell::from(nic.name.clone()),
            Cell::from(role),
            Cell::from(nic.mode.clone()).style(mode),
            number(rate(all(|nic| nic.packets_per_s))),
            number(bytes_rate(all(|nic| nic.bytes_per_s))),
            colored(Class::Delivered),
            colored(Class::Refused),
            colored(Class::Acknowledged),
            colored(Class::PassedOn),
        ])
    });
    let widths = [
        Constraint::Length(15),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(11),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(10),
    ];
    let head = [
        "NIC",
        "ROLE",
        "MODE",
        "IN/S",
        "BYTES",
        "DELIVERED/S",
        "REFUSED/S",
        "ACKED/S",
        "PASSED/S",
    ];
    table(" NICs ", head, None, rows, widths)
}

/// What happens now first, then what has happened before.
fn verdict_table(rates: &Rates) -> Table<'static> {
    let mut sums: BTreeMap<&str, (f64, f64, u64, &VerdictRates)> = BTreeMap::new();
    for verdict in rates.nics.iter().flat_map(|nic| &nic.verdicts) {
        let sum = sums
            .entry(&verdict.verdict)
            .or_insert((0.0, 0.0, 0, verdict));
        sum.0 += verdict.packets_per_s;
        sum.1 += verdict.bytes_per_s;
        sum.2 += verdict.packets;
    }
    let mut sums: Vec<_> = sums.into_values().filter(|sum| sum.2 > 0).collect();
    sums.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.2.cmp(&a.2)));
    let rows = sums
        .into_iter()
        .map(|(packets_per_s, bytes_per_s, packets, verdict)| {
            let style = if packets_per_s > 0.0 {
                Style::new().fg(Class::of(verdict).color())
            } else {
                Style::new().add_modifier(Modifier::DIM)
            };
            Row::new([
                Cell::from(verdict.verdict.clone()),
                number(rate(packets_per_s)),
                number(bytes_rate(bytes_per_s)),
                number(amount(packets)),
                Cell::from(verdict.meaning.clone()),
            ])
            .style(style)
        });
    let widths = [
        Constraint::Length(24),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(13),
        Constraint::Fill(1),
    ];
    let head = ["VERDICT", "/S", "BYTES", "SO FAR", "MEANING"];
    table(" verdicts ", head, None, rows, widths)
}

/// A section with a head; `sorted` is the column that it is sorted by.
fn table<const COLUMNS: usize>(
    title: &'static str,
    head: [&'static str; COLUMNS],
    sorted: Option<usize>,
    rows: impl Iterator<Item = Row<'static>>,
    widths: [Constraint; COLUMNS],
) -> Table<'static> {
    let head = head.into_iter().enumerate().map(|(column, name)| {
        let style = if sorted == Some(column) {
            Style::new().bold().underlined()
        } else {
            Style::new().bold()
        };
        let is_number = name.ends_with("/S") || NUMBERS.contains(&name);
        let alignment = if is_number {
            Alignment::Right
        } else {
            Alignment::Left
        };
        Cell::from(Text::styled(name, style).alignment(alignment))
    });
    Table::new(rows, widths)
        .header(Row::new(head))
        .column_spacing(1)
        .block(section(title))
}

/// Heads of columns that numbers are in.
const NUMBERS: [&str; 3] = ["BYTES", "SO FAR", "SESSIONS"];

fn section(title: impl Into<Line<'static>>) -> Block<'static> {
    Block::new()
        .borders(Borders::TOP)
        .border_style(Style::new().add_modifier(Modifier::DIM))
        .title(title)
}

fn number(text: String) -> Cell<'static> {
    Cell::from(Text::from(text).alignment(Alignment::Right))
}

fn refused(per_second: f64) -> Cell<'static> {
    let style = if per_second > 0.0 {
        Style::new().fg(Class::Refused.color())
    } else {
        Style::new()
    };
    number(rate(per_second)).style(style)
}
