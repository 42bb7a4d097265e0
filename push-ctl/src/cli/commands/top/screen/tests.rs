use super::*;
use crate::admin::api::{NicStats, SessionCounts, Stats, VerdictStats};
use crate::config::Role;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

fn verdicts(counts: &[(Verdict, u64)]) -> Vec<VerdictStats> {
    let of = |verdict: &Verdict| {
        let count = counts.iter().find(|(counted, _)| counted == verdict);
        let packets = count.map_or(0, |&(_, packets)| packets);
        VerdictStats {
            verdict: verdict.label().to_owned(),
            action: verdict.action().label().to_owned(),
            packets,
            bytes: packets * 100,
            meaning: verdict.meaning().to_owned(),
        }
    };
    Verdict::ALL.iter().map(of).collect()
}

fn activity(delivered: u64, forged: u64) -> Activity {
    let verdicts = verdicts(&[
        (Verdict::Redirected, delivered),
        (Verdict::BadTag, forged),
        (Verdict::Expired, 7),
        (Verdict::NotTrigger, delivered / 10),
    ]);
    let busy = |id: &str, packets_per_s, bytes_per_s, refused_per_s| BusySession {
        id: id.to_owned(),
        app: "mail".to_owned(),
        device: Some("10.64.0.2:7000".parse().unwrap()),
        packets_per_s,
        bytes_per_s,
        refused_per_s,
        packets: 1,
    };
    Activity {
        version: "1.2.3".to_owned(),
        uptime_s: 7380,
        sessions: SessionCounts {
            requested: 10,
            authorised: 1234,
            slots: 65_536,
        },
        terminals: 1300,
        nics: vec![NicStatus {
            name: "eth1".to_owned(),
            index: 2,
            role: Some(Role::External),
            configured: true,
            trigger_addresses: Vec::new(),
            mode: "native".to_owned(),
            program_id: 1,
            link_id: 1,
            adopted: false,
        }],
        stats: Stats {
            nics: vec![NicStats {
                name: "eth1".to_owned(),
                packets: 0,
                bytes: 0,
                verdicts,
                round_trips: Vec::new(),
            }],
            events_lost: 0,
        },
        interval_ms: 1000,
        busiest_sessions: vec![
            busy("deadbeef00000001", 900.0, 1.0, 0.0),
            busy("deadbeef00000002", 100.0, 2e6, 0.0),
            busy("deadbeef00000003", 1.0, 2.0, 55.0),
        ],
        busiest_apps: vec![BusyApp {
            app: "mail".to_owned(),
            busy_sessions: 3,
            packets_per_s: 1001.0,
            bytes_per_s: 2e6,
            refused_per_s: 55.0,
        }],
        warnings: Vec::new(),
    }
}

/// After two answers, a second apart.
fn screen(second: Activity) -> (Screen, Instant) {
    let mut screen = Screen::new(Duration::from_secs(1), Sort::Packets);
    let begun = Instant::now();
    let now = begun + Duration::from_secs(1);
    screen.take(begun, Ok(activity(0, 0)));
    screen.take(now, Ok(second));
    (screen, now)
}

fn drawn(screen: &Screen, now: Instant, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame, now)).unwrap();
    terminal.backend().to_string()
}

fn line<'a>(text: &'a str, with: &str) -> &'a str {
    let mut lines = text.lines();
    lines
        .find(|line| line.contains(with))
        .unwrap_or_else(|| panic!("no {with} in\n{text}"))
}

fn at(text: &str, what: &str) -> usize {
    text.find(what)
        .unwrap_or_else(|| panic!("no {what} in\n{text}"))
}

#[test]
fn an_operator_sees_what_goes_on() {
    let (screen, now) = screen(activity(1000, 20));
    for (width, height) in [(80, 24), (100, 30), (160, 50)] {
        let text = drawn(&screen, now, width, height);
        assert!(line(&text, "push 1.2.3").contains("up 2h 3m"), "{text}");
        assert!(
            line(&text, "push 1.2.3").contains("1,234 authorised"),
            "{text}"
        );
        let sums = line(&text, " delivered ");
        assert!(sums.contains("1,000/s delivered"), "{text}");
        assert!(sums.contains("20/s refused"), "{text}");
        assert!(line(&text, "eth1").contains("native"), "{text}");
        assert!(line(&text, "redirected").contains("1,000"), "{text}");
        assert!(at(&text, "redirected") < at(&text, "bad_tag"), "{text}");
        assert!(line(&text, "deadbeef00000001").contains("900"), "{text}");
        assert!(
            line(&text, " quit ").contains("sorted by packets"),
            "{text}"
        );
    }
    // What doesn't happen now comes after what does, and what never did not at all.
    let text = drawn(&screen, now, 160, 50);
    assert!(at(&text, "bad_tag") < at(&text, "expired"), "{text}");
    assert!(!text.contains("missing_configuration"), "{text}");
    assert!(
        line(&text, "deadbeef00000001").contains("10.64.0.2:7000"),
        "{text}"
    );
}

#[test]
fn the_busiest_are_sorted_by_what_is_asked_for() {
    let (mut screen, now) = screen(activity(1000, 20));
    for (label, first) in [
        ("packets", "deadbeef00000001"),
        ("bytes", "deadbeef00000002"),
        ("refused", "deadbeef00000003"),
    ] {
        let text = drawn(&screen, now, 120, 40);
        assert!(text.contains(&format!("sorted by {label}")), "{text}");
        assert!(
            text.lines()
                .find(|line| line.contains("deadbeef"))
                .is_some_and(|line| line.contains(first)),
            "{text}"
        );
        screen.sort_by_next();
    }
}

#[test]
fn nothing_moves_while_it_pauses() {
    let (mut screen, now) = screen(activity(1000, 20));
    screen.pause_or_go_on();
    let later = now + Duration::from_secs(60);
    screen.take(later, Ok(activity(90_000, 20)));
    let text = drawn(&screen, later, 120, 40);
    assert!(
        text.contains("1,000/s delivered") && text.contains("PAUSED"),
        "{text}"
    );
    assert!(!text.contains("no answer"), "{text}");
    screen.pause_or_go_on();
    screen.take(later + Duration::from_secs(1), Ok(activity(90_000, 20)));
    let text = drawn(&screen, later, 120, 40);
    assert!(!text.contains("PAUSED"), "{text}");
}

#[test]
fn what_is_wrong_stands_at_the_top() {
    let mut wrong = activity(0, 0);
    wrong.nics[0].mode = "none".to_owned();
    wrong.warnings = vec!["forwarding is off".to_owned()];
    let (mut screen, now) = screen(wrong);
    let text = drawn(&screen, now, 100, 30);
    assert!(text.contains("the program is not on eth1"), "{text}");
    assert!(text.contains("warning: forwarding is off"), "{text}");
    let late = now + Duration::from_secs(9);
    assert!(drawn(&screen, late, 100, 30).contains("no answer from the daemon for 9 s"));
    screen.take(
        late,
        Err(Failure::new("no daemon listens on /run/push/admin.sock")),
    );
    let text = drawn(&screen, late, 100, 30);
    assert!(
        text.contains("no daemon listens on /run/push/admin.sock; these figures are 9 s old"),
        "{text}"
    );
}
