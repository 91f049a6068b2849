//! A report as tables for a terminal.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    io::{self, IsTerminal},
};

use super::{
    Account, Arm, Connections, Latencies, Report, Run,
    condensed::{self, Stretch},
    table::{Cell, Colour, Style, Table, grouped},
};
use crate::units;

/// Rows for the course of a run.
const ROWS: usize = 20;
/// Columns left for arms beside the course of the whole run.
const ROOM: usize = 37;
/// Statuses named for an arm.
const STATUSES: usize = 4;

/// The tables, 100 columns wide as long as labels are short. Coloured if standard output is a terminal and `NO_COLOR` is
/// not set.
pub fn table(report: &Report) -> String {
    let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || !io::stdout().is_terminal();
    in_colour(report, if plain { Colour::Off } else { Colour::On })
}

fn in_colour(report: &Report, colour: Colour) -> String {
    let parts = [
        head(report, colour),
        series(report, colour),
        arms(report, colour),
        course(report, colour),
        generator(report, colour),
        slos(report, colour),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

/// What ran, how fast, and what became of it.
fn head(report: &Report, colour: Colour) -> String {
    let (run, end) = (&report.run, &report.end);
    let mut table = Table::new("<<");
    table.row(["target", &format!("{} over {}", run.target, run.protocol)]);
    table.row(["load", &asked(run)]);
    let ended = match &end.reason {
        _ if end.complete => (format!("{:.1} s, complete", end.seconds), Style::Plain),
        Some(reason) => (format!("{:.1} s, ended early: {reason}", end.seconds), Style::Bad),
        None => (format!("{:.1} s, ended early", end.seconds), Style::Bad),
    };
    table.styled([("ran".to_owned(), Style::Plain), ended]);
    table.row(["rate", &rate(report)]);
    for (name, text, style) in account(&report.account) {
        table.styled([(name.to_owned(), Style::Plain), (text, style)]);
    }
    table.text(colour)
}

/// What was asked for: connections, threads, keys and the schedule.
pub(super) fn asked(run: &Run) -> String {
    let counted = |count: u64, what: &str| format!("{} {what}{}", grouped(count), if count == 1 { "" } else { "s" });
    let mut text = [
        counted(run.connections as u64, "connection"),
        counted(run.threads as u64, "thread"),
        counted(run.keys, "key"),
    ]
    .join(", ");
    let stages: Vec<_> = run
        .stages
        .iter()
        .map(|stage| {
            let (from, to) = (stage.from, stage.to);
            let rate = if from == to { format!("{from}") } else { format!("{from}..{to}") };
            format!("{rate}/s for {} s", (stage.seconds * 1e3).round() / 1e3)
        })
        .collect();
    let _ = match stages.len() {
        0 => write!(text, "; as fast as answers come"),
        1..=4 => write!(text, "; {}", stages.join(", then ")),
        more => write!(text, "; {more} stages from {} to {}", stages[0], stages[more - 1]),
    };
    text
}

/// The rate achieved, and how that compares with what was asked for.
pub(super) fn rate(report: &Report) -> String {
    let achieved = format!("{:.1} answers/s", report.end.rate_achieved);
    match report.end.rate_asked {
        Some(asked) if asked > 0.0 => {
            format!("{achieved}, {:.1} % of {asked:.1}/s asked for", report.end.rate_achieved / asked * 100.0)
        }
        _ => achieved,
    }
}

/// Requests by fate: lines with their names.
fn account(account: &Account) -> Vec<(&'static str, String, Style)> {
    let text = |(count, what): (u64, &str)| (count > 0).then(|| format!("{} {what}", grouped(count)));
    let faults = [
        (account.error_status, "answered with an error"),
        (account.answered_twice, "answered twice"),
        (account.lost, "lost"),
        (account.out_of_order, "out of order"),
    ];
    let failed = account.failed.iter().map(|(kind, count)| (*count, kind.as_str()));
    let faults: Vec<_> = failed.chain(faults).filter_map(text).collect();
    let others = [(account.moved, "moved to another arm"), (account.unsent, "not sent any more")];
    let others: Vec<_> = others.into_iter().filter_map(text).collect();

    let sent = format!("{} sent, {} answered", grouped(account.sent), grouped(account.answered));
    let Connections { attempted, failed, lost } = &account.connections;
    let kinds = |counts: &BTreeMap<String, u64>, what: &str| {
        let counts = counts.iter().map(|(kind, count)| format!("{} {kind}", grouped(*count)));
        let counts = counts.collect::<Vec<_>>().join(", ");
        if counts.is_empty() { counts } else { format!("; {what}: {counts}") }
    };
    let mut connections = kinds(failed, "failed") + &kinds(lost, "lost");
    if !connections.is_empty() {
        connections.insert_str(0, &format!("{} attempted", grouped(*attempted)));
    }
    let lines = [
        ("account", sent, if faults.is_empty() { Style::Good } else { Style::Plain }),
        ("faults", faults.join(", "), Style::Bad),
        ("connects", connections, Style::Bad),
        ("besides", others.join(", "), Style::Plain),
    ];
    lines.into_iter().filter(|(_, text, _)| !text.is_empty()).collect()
}

/// Latencies by series and arm.
fn series(report: &Report, colour: Colour) -> String {
    let heading = ["", "count", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"];
    let mut table = Table::new("<>>>>>>>>").heading(heading);
    for (name, series) in &report.series {
        let mut row = |name: String, of: &Latencies| {
            let mut cells = vec![name, grouped(of.count)];
            let times =
                [of.mean, of.p50 as f64, of.p90 as f64, of.p95 as f64, of.p99 as f64, of.p999 as f64, of.max as f64];
            cells.extend(times.map(|time| if of.count > 0 { units::micros(time) } else { "-".to_owned() }));
            table.row(cells);
        };
        row(name.clone(), &series.all);
        if series.arms.len() > 1 || series.arms.keys().any(|arm| arm != "-") {
            series.arms.iter().for_each(|(arm, latencies)| row(format!("  {arm}"), latencies));
        }
    }
    if report.series.is_empty() { String::new() } else { table.text(colour) }
}

fn arms(report: &Report, colour: Colour) -> String {
    let heading = ["arm", "answered", "share", "keys", "errors", "statuses"];
    let mut table = Table::new("<>>>><").heading(heading);
    for (label, arm) in &report.arms {
        let share = format!("{:.2} %", arm.share * 100.0);
        let row = [label.clone(), grouped(arm.answered), share, grouped(arm.keys)];
        let errors = (grouped(arm.error_status), if arm.error_status > 0 { Style::Bad } else { Style::Plain });
        let row = row.map(|cell| (cell, Style::Plain)).into_iter().chain([errors, (statuses(arm), Style::Plain)]);
        table.styled(row);
    }
    if report.arms.is_empty() { String::new() } else { table.text(colour) }
}

/// The most frequent statuses.
pub(super) fn statuses(arm: &Arm) -> String {
    let mut statuses: Vec<_> = arm.statuses.iter().collect();
    statuses.sort_by_key(|(status, count)| (std::cmp::Reverse(**count), **status));
    let more = statuses.len().saturating_sub(STATUSES);
    let named = statuses.iter().take(STATUSES).map(|(status, count)| format!("{status}: {}", grouped(**count)));
    let more = (more > 0).then(|| format!("{more} more"));
    named.chain(more).collect::<Vec<_>>().join(", ")
}

/// The course of the run: a row for each second, or for several.
fn course(report: &Report, colour: Colour) -> String {
    let stretches = condensed::stretches(&report.seconds, ROWS);
    let Some(seconds) = stretches.first().map(|stretch| stretch.seconds) else { return String::new() };
    let arms = condensed::arms(&report.seconds);
    // An arm's rate and p99, and the gaps before them.
    let wide = arms.iter().map(|arm| arm.chars().count() + 14).sum::<usize>();
    let told_apart = arms.len() > 1 && wide <= ROOM;

    let mut heading: Vec<_> =
        ["second", "sent/s", "answers/s", "errors", "p50", "p99", "max"].map(str::to_owned).into();
    if told_apart {
        heading.extend(arms.iter().flat_map(|arm| [format!("{arm}/s"), "p99".to_owned()]));
    }
    let mut table = Table::new("<>>>>>>>>>>").heading(heading);
    for stretch in &stretches {
        table.styled(row(stretch, if told_apart { &arms } else { &[] }));
    }
    let mut text = table.text(colour);
    let _ = match (seconds, arms.len()) {
        (1, 0 | 1) => Ok(()),
        (1, _) => writeln!(text, "p50, p99 and max are those of the worst arm."),
        (_, 0 | 1) => writeln!(text, "Each row is {seconds} s; p50, p99 and max are those of its worst second."),
        _ => writeln!(text, "Each row is {seconds} s; p50, p99 and max are those of its worst second and arm."),
    };
    text
}

fn row(stretch: &Stretch<'_>, arms: &[&str]) -> Vec<Cell> {
    let time = |micros: Option<u64>| micros.map_or_else(|| "-".to_owned(), |micros| units::micros(micros as f64));
    let worst = |of: fn(&Latencies) -> u64| time(stretch.worst(None, of));
    let mut cells: Vec<_> = [
        stretch.at.to_string(),
        format!("{:.0}", stretch.a_second(stretch.sent)),
        format!("{:.0}", stretch.a_second(stretch.answers(None))),
    ]
    .map(|cell| (cell, Style::Plain))
    .into();
    cells.push((grouped(stretch.errors), if stretch.errors > 0 { Style::Bad } else { Style::Plain }));
    cells.extend([worst(|l| l.p50), worst(|l| l.p99), worst(|l| l.max)].map(|cell| (cell, Style::Plain)));
    for arm in arms {
        let answers = format!("{:.0}", stretch.a_second(stretch.answers(Some(arm))));
        cells.extend([answers, time(stretch.worst(Some(arm), |l| l.p99))].map(|cell| (cell, Style::Plain)));
    }
    cells
}

/// How far the figures can be believed.
fn generator(report: &Report, colour: Colour) -> String {
    let generator = &report.generator;
    let mut text = format!("generator  {}\n", lateness(report));
    for warning in &generator.warnings {
        let _ = writeln!(text, "{}", Style::Bad.paint(&format!("warning: {warning}"), colour));
    }
    text
}

/// What the generator used, and how late it was.
pub(super) fn lateness(report: &Report) -> String {
    let generator = &report.generator;
    let used = format!("{:.2} cores used", generator.cpu);
    let Latencies { count, p50, p99, max, .. } = generator.lateness;
    if count == 0 {
        return used;
    }
    let [p50, p99, max] = [p50, p99, max].map(|late| units::micros(late as f64));
    format!("{used}; left late by p50 {p50}, p99 {p99}, max {max}")
}

fn slos(report: &Report, colour: Colour) -> String {
    let mut table = Table::new("<<<");
    for slo in &report.slos {
        let judged = if slo.met { ("✓ met", Style::Good) } else { ("✗ missed", Style::Bad) };
        let measured = format!("measured {}", slo.measured);
        let row = [(judged.0.to_owned(), judged.1), (slo.slo.clone(), Style::Plain), (measured, Style::Plain)];
        table.styled(row);
    }
    table.text(colour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    /// Shows a report and checks that it has these lines.
    fn check(report: &Report, expected: &[&str]) -> String {
        let text = in_colour(report, Colour::Off);
        for line in expected {
            assert!(text.lines().any(|found| found == *line), "{line:?} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(!text.contains('\x1b') && text.ends_with('\n'), "{text}");
        text
    }

    #[test]
    fn everything_of_a_report_is_shown_in_100_columns() {
        check(
            &sample::report(),
            &[
                "target   http://127.0.0.1:8080/ over http/1.1",
                "load     64 connections, 1 thread, 1 000 keys; 500/s for 40 s",
                "ran      40.0 s, complete",
                "rate     500.0 answers/s, 100.0 % of 500.0/s asked for",
                "account  20 003 sent, 20 000 answered",
                "faults   2 reset, 1 timeout, 42 answered with an error",
                "besides  250 moved to another arm",
                "          count     mean      p50      p90      p95       p99     p99.9       max",
                "latency  20 000  2.96 ms   916 µs  1.60 ms  2.03 ms   73.3 ms  131.8 ms  231.3 ms",
                "  green   2 750  15.4 ms  1.06 ms  64.4 ms  82.9 ms  126.1 ms  171.0 ms  231.3 ms",
                "blue     17 250  86.25 %   749       0  200: 17 249, 503: 1",
                "second  sent/s  answers/s  errors      p50       p99       max  blue/s      p99  green/s       p99",
                "22         500        500      14  65.9 ms  171.0 ms  231.3 ms     400  2.44 ms      100  171.0 ms",
                "Each row is 2 s; p50, p99 and max are those of its worst second and arm.",
                "generator  0.21 cores used; left late by p50 916 µs, p99 73.3 ms, max 231.3 ms",
                "✓ met     p99<100ms    measured 93.2 ms",
                "✗ missed  errors<0.1%  measured 0.225 %",
            ],
        );
        check(
            &sample::mqtt(),
            &[
                "faults    2 reset, 1 timeout, 42 answered with an error, 4 lost, 2 out of order",
                "connects  1 200 attempted; failed: 3 refused; lost: 2 closed, 1 reset",
            ],
        );
    }

    #[test]
    fn a_long_run_is_told_in_few_rows_and_a_short_one_by_the_second() {
        let mut report = sample::report();
        report.seconds.truncate(5);
        let text = check(&report, &[]);
        assert!(text.contains("\n4          500        500       0 ") && !text.contains("Each row"), "{text}");
        report.seconds.iter_mut().for_each(|second| second.at *= 1000);
        assert!(check(&report, &[]).contains("Each row is 201 s; p50, p99 and max are those of its worst second.\n"));
    }

    #[test]
    fn what_did_not_happen_is_left_out_and_bad_ends_are_told() {
        let mut report = Report {
            series: [].into(),
            arms: [].into(),
            seconds: Vec::new(),
            slos: Vec::new(),
            account: Account::default(),
            ..sample::report()
        };
        report.run.stages.clear();
        report.end.complete = false;
        report.end.rate_asked = None;
        report.end.reason = Some("nobody listens on 127.0.0.1:8080".to_owned());
        report.generator.warnings.push("fell behind its schedule".to_owned());
        report.generator.lateness = Latencies::default();
        let expected = [
            "load     64 connections, 1 thread, 1 000 keys; as fast as answers come",
            "ran      40.0 s, ended early: nobody listens on 127.0.0.1:8080",
            "rate     500.0 answers/s",
            "account  0 sent, 0 answered",
            "",
            "generator  0.21 cores used",
            "warning: fell behind its schedule",
        ];
        assert_eq!(check(&report, &expected).lines().count(), 8);
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let report = sample::report();
        let mut coloured = in_colour(&report, Colour::On);
        assert!(coloured.contains("\x1b[31m✗ missed\x1b[0m"));
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m"] {
            coloured = coloured.replace(code, "");
        }
        assert_eq!(coloured, in_colour(&report, Colour::Off));
    }
}
