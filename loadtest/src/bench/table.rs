//! Results for people, as Markdown that reads well on a terminal too; `docs/performance.md` has it in this form.

use std::fmt::{self, Write};

use super::{
    case::{By, Case},
    goal::{GoalResult, Rule},
    peer::Peer,
    process::Cores,
    result::{CaseResult, LeftOut, Outcome, PeerResult, Ratio, Summary, figure},
};

/// All results, with the machine.
pub(crate) fn markdown(outcome: &Outcome) -> String {
    let machine = &outcome.machine;
    let versions: Vec<String> =
        outcome.versions.iter().map(|(program, version)| format!("{program} {version}")).collect();
    let mut text = format!(
        "{}, {}, {}; {}. {} of {} s, interleaved. {}.\n",
        machine.processor,
        counted(machine.cores, "core"),
        machine.system,
        pinning(machine.pinned),
        counted(outcome.rounds, "round"),
        outcome.seconds,
        versions.join(", "),
    );
    for case in &outcome.cases {
        let _ = write!(text, "\n### {}\n\n{}", case.name, render_case(case));
    }
    if !outcome.goals.is_empty() {
        let _ = write!(text, "\n### goals\n\n{}", render_goals(&outcome.goals));
    }
    if !outcome.complete {
        text.push_str("\nIt was ended early: cases are missing.\n");
    }
    text
}

/// `1 round`, `2 rounds`.
pub(super) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Where peers and load run, for people.
pub(super) fn pinning(cores: Option<Cores>) -> String {
    match cores {
        Some(cores) => format!("proxies on core {}, load and origins on core {}", cores.proxy, cores.load),
        None => "nothing pinned, for want of a second core or of taskset: trust ratios only".to_owned(),
    }
}

/// One case: what it measures, its table, who was left out and what to mind.
pub(crate) fn render_case(case: &CaseResult) -> String {
    let mut text = format!("{}\n", capitalised(case.about));
    let columns = columns(case);
    if case.peers.is_empty() {
        text.push_str("\nNobody takes part.\n");
    } else {
        let head: Vec<String> = columns.iter().map(|column| column.head.clone()).collect();
        let rows = case.peers.iter().map(|peer| columns.iter().map(|column| (column.cell)(peer)).collect());
        let _ = write!(text, "\n{}", table(head, rows.collect()));
    }
    if !case.left_out.is_empty() {
        let _ = writeln!(text, "\nLeft out: {}.", leaving_out(&case.left_out));
    }
    if !case.notes.is_empty() {
        let _ = writeln!(text, "\nMind: {}.", case.notes.join("; "));
    }
    text
}

/// The goals beside what was measured.
pub(crate) fn render_goals(goals: &[GoalResult]) -> String {
    let head = ["goal", "limit", "measured", ""].map(str::to_owned);
    let row = |goal: &GoalResult| {
        let GoalResult { case, peer, measured, limit, .. } = *goal;
        let (what, unit) = named(goal.figure);
        let to = goal.to.unwrap_or_default();
        let bound = Summary { median: limit, min: limit, max: limit };
        let (what, limit, measured) = match goal.rule {
            Rule::RatioAtMost => {
                (format!("{what} to {to}'s"), format!("≤ {limit:.2}"), format!("{:.2}", Ranged(measured)))
            }
            Rule::RatioAtLeast => {
                (format!("{what} to {to}'s"), format!("≥ {limit:.2}"), format!("{:.2}", Ranged(measured)))
            }
            Rule::AtMost if goal.to.is_some() => {
                (format!("{what}, {to}'s at most"), format!("≤ {bound}{unit}"), format!("{measured}{unit}"))
            }
            Rule::AtMost => (what.to_owned(), format!("≤ {bound}{unit}"), format!("{measured}{unit}")),
            Rule::Overlaps => {
                (format!("{what} within noise of {to}'s"), format!("from ≤ {bound}{unit}"), format!("{measured}{unit}"))
            }
        };
        let verdict = if goal.met { "met" } else { "not met" };
        vec![format!("{case}: {peer}, {what}"), limit, measured, verdict.to_owned()]
    };
    table(head.to_vec(), goals.iter().map(row).collect())
}

/// What a figure is called in a goal, and its unit.
fn named(name: &str) -> (&str, &str) {
    match name {
        figure::CPU => ("CPU per request", " µs"),
        figure::RATE => ("requests/s", ""),
        figure::P99 => ("p99", " µs"),
        figure::ADDED => ("p99 added", " µs"),
        figure::MEMORY => ("memory per connection", " bytes"),
        other => (other, ""),
    }
}

/// The cases, who would take part in each, and who not.
pub(super) fn list(cases: &[&'static Case], take_part: impl Fn(&Case) -> (Vec<Peer>, Vec<LeftOut>)) -> String {
    let width = cases.iter().map(|case| case.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for case in cases {
        let (peers, left_out) = take_part(case);
        let peers: Vec<&str> = peers.iter().map(|peer| peer.name()).collect();
        let _ = writeln!(text, "{:width$}  {}", case.name, case.about);
        let _ =
            writeln!(text, "{:width$}  {}", "", if peers.is_empty() { "nobody".to_owned() } else { peers.join(", ") });
        if !left_out.is_empty() {
            let _ = writeln!(text, "{:width$}  left out: {}", "", leaving_out(&left_out));
        }
    }
    text
}

fn leaving_out(left_out: &[LeftOut]) -> String {
    left_out.iter().map(|one| format!("{} ({})", one.peer, one.reason)).collect::<Vec<_>>().join("; ")
}

struct Column {
    head: String,
    cell: Box<dyn Fn(&PeerResult) -> String>,
}

impl Column {
    /// Whose cells are a dash where there is nothing to say.
    fn or_dash(head: String, cell: impl Fn(&PeerResult) -> Option<String> + 'static) -> Self {
        Self { head, cell: Box::new(move |peer| cell(peer).unwrap_or_else(|| "–".to_owned())) }
    }
}

fn columns(case: &CaseResult) -> Vec<Column> {
    let of = |head: &str, name: &'static str| {
        Column::or_dash(head.to_owned(), move |peer| peer.summary.get(name).map(Summary::to_string))
    };
    let mut columns = vec![Column { head: String::new(), cell: Box::new(|peer| peer.peer.to_owned()) }];
    if case.ratio_by == By::Memory {
        columns.push(of("bytes (PSS) per connection", figure::MEMORY));
    } else {
        columns.push(of("requests/s", figure::RATE));
        columns.push(of("p50, µs", figure::P50));
        columns.push(of("p99, µs", figure::P99));
        if case.ratio_by == By::Added {
            columns.push(of("p99.9, µs", figure::P999));
            columns.push(of("p99 added, µs", figure::ADDED));
        }
        columns.push(of("user, µs/request", figure::USER));
        columns.push(of("system, µs/request", figure::SYSTEM));
        columns.push(of("CPU, µs/request", figure::CPU));
    }
    columns.extend(ratio_column(case, |peer| peer.ratio.as_ref()));
    columns.extend(ratio_column(case, |peer| peer.floor.as_ref()));
    columns
}

/// Ratios, with whom they are to in the head when that is the same for all. `None` when there are none.
fn ratio_column(case: &CaseResult, ratio: fn(&PeerResult) -> Option<&Ratio>) -> Option<Column> {
    let what = match case.ratio_by {
        By::Cpu => "CPU",
        By::Rate => "requests/s",
        By::Memory => "bytes",
        By::Added => "p99 added",
    };
    let mut all = case.peers.iter().filter_map(ratio);
    let to = all.next()?.to;
    if all.all(|other| other.to == to) {
        let cell = move |peer: &PeerResult| ratio(peer).map(|ratio| format!("{:.2}", Ranged(ratio.summary)));
        return Some(Column::or_dash(format!("{what} to {to}'s"), cell));
    }
    let cell = move |peer: &PeerResult| ratio(peer).map(|ratio| format!("{:.2} {}", Ranged(ratio.summary), ratio.to));
    Some(Column::or_dash(format!("{what} to that of"), cell))
}

/// A Markdown table whose columns are in line as text too.
fn table(head: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let widths: Vec<usize> = (0..head.len())
        .map(|nth| rows.iter().chain([&head]).map(|row| row[nth].chars().count()).max().unwrap_or_default())
        .collect();
    let line = |row: &[String]| {
        let cells = row.iter().zip(&widths).enumerate().map(|(nth, (cell, width))| match nth {
            0 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule = widths.iter().enumerate().map(|(nth, width)| match nth {
        0 => format!("{}|", "-".repeat(width + 2)),
        _ => format!("{}:|", "-".repeat(width + 1)),
    });
    let rule = format!("|{}\n", rule.collect::<String>());
    let rows = rows.iter().map(|row| line(row)).collect::<String>();
    format!("{}{rule}{rows}", line(&head))
}

/// `17.2 (15.9–18.3)`; to three digits, and those before the point all.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = match self.median {
            median if median < 10.0 => 2,
            median if median < 100.0 => 1,
            _ => 0,
        };
        write!(f, "{:.decimals$}", Ranged(*self))
    }
}

/// The median and, where there is more than one value, the range; with the precision it is formatted with.
struct Ranged(Summary);

impl fmt::Display for Ranged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = f.precision().unwrap_or_default();
        let Summary { median, min, max } = self.0;
        write!(f, "{median:.decimals$}")?;
        if min < max { write!(f, " ({min:.decimals$}–{max:.decimals$})") } else { Ok(()) }
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).chain(['.']).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{
        super::{
            goal,
            result::{Figures, Machine, Measured, SCHEMA, summarise},
        },
        *,
    };

    fn outcome() -> Outcome {
        let round = |cpu: f64| Figures {
            of: BTreeMap::from([(figure::RATE, 40_123.4), (figure::CPU, cpu)]),
            ..Figures::default()
        };
        let direct = Figures { of: BTreeMap::from([(figure::RATE, 90_000.0)]), ..Figures::default() };
        let of = |peer, rounds| Measured { peer, to: "nginx", rounds };
        let measured = vec![
            of("direct", vec![direct.clone(), direct]),
            of("nginx", vec![round(10.0), round(12.0)]),
            of("nginx-stream", vec![round(8.0), round(8.0)]),
            of("crossfade", vec![round(9.0), round(9.6)]),
        ];
        let cases = vec![CaseResult {
            name: "http",
            about: "small responses",
            ratio_by: By::Cpu,
            peers: summarise(measured, By::Cpu, Some("nginx-stream")),
            left_out: vec![LeftOut { peer: "envoy".to_owned(), reason: "not installed".to_owned() }],
            notes: Vec::new(),
        }];
        Outcome {
            schema: SCHEMA,
            started_ms: 0,
            complete: true,
            rounds: 2,
            seconds: 5,
            machine: Machine {
                processor: "Example CPU".to_owned(),
                cores: 2,
                system: "Linux 6.1 x86_64".to_owned(),
                pinned: Some(Cores { proxy: 0, load: 1 }),
            },
            versions: BTreeMap::from([("nginx", "1.22.1".to_owned())]),
            goals: goal::judge(&cases),
            cases,
        }
    }

    #[test]
    fn tables_are_in_line_and_have_medians_ranges_and_ratios() {
        let text = markdown(&outcome());
        assert!(
            text.starts_with("Example CPU, 2 cores, Linux 6.1 x86_64; proxies on core 0, load and origins on core 1.")
        );
        assert!(text.contains("### http\n\nSmall responses.\n\n|"), "{text}");
        let (case, goals) = text.split_once("### goals").unwrap();
        let rows: Vec<&str> = case.lines().filter(|line| line.starts_with('|')).collect();
        let widths: Vec<usize> = rows.iter().map(|row| row.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
        let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        assert_eq!(cells(rows[0])[7..], ["CPU to nginx's", "CPU to nginx-stream's"]);
        assert_eq!(cells(rows[2]), ["direct", "90000", "–", "–", "–", "–", "–", "–", "–"]);
        assert_eq!(cells(rows[3])[6..], ["11.0 (10.0–12.0)", "1.00", "1.38 (1.25–1.50)"]);
        let crossfade = ["9.30 (9.00–9.60)", "0.85 (0.80–0.90)", "1.16 (1.12–1.20)"];
        assert_eq!(cells(rows[5])[6..], crossfade);
        assert!(case.ends_with("Left out: envoy (not installed).\n\n"), "{text}");

        let rows: Vec<&str> = goals.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(
            cells(rows[2]),
            ["http: crossfade, CPU per request to nginx's", "≤ 0.85", "0.85 (0.80–0.90)", "met"]
        );
        assert_eq!(cells(rows[3])[0], "http: crossfade, CPU per request to nginx-stream's");
        assert_eq!(cells(rows[4])[..3], ["http: crossfade, requests/s to nginx's", "≥ 1.00", "1.00"]);
        assert_eq!(rows.len(), 5, "{goals}");
    }

    #[test]
    fn goals_of_other_units_say_what_they_are_held_against() {
        let check = |figure, rule, to, limit, expected: &str| {
            let measured = Summary { median: 950.0, min: 900.0, max: 1000.0 };
            let goal = GoalResult { case: "case", peer: "crossfade", figure, to, measured, rule, limit, met: false };
            let text = render_goals(&[goal]);
            let row: Vec<&str> = text.lines().nth(2).unwrap().split_whitespace().collect();
            assert_eq!(row.join(" "), expected);
        };
        let memory = "| case: crossfade, memory per connection | ≤ 3072 bytes | 950 (900–1000) bytes | not met |";
        check(figure::MEMORY, Rule::AtMost, None, 3072.0, memory);
        let added = "| case: crossfade, p99 added, nginx's at most | ≤ 12.5 µs | 950 (900–1000) µs | not met |";
        check(figure::ADDED, Rule::AtMost, Some("nginx"), 12.5, added);
        let noise = "| case: crossfade, p99 within noise of off's | from ≤ 899 µs | 950 (900–1000) µs | not met |";
        check(figure::P99, Rule::Overlaps, Some("off"), 899.0, noise);
    }

    #[test]
    fn ratios_to_different_peers_say_to_whom() {
        let round = |cpu: f64| vec![Figures { of: BTreeMap::from([(figure::CPU, cpu)]), ..Figures::default() }];
        let measured = vec![
            Measured { peer: "nginx", to: "nginx", rounds: round(10.0) },
            Measured { peer: "crossfade", to: "nginx", rounds: round(8.0) },
            Measured { peer: "crossfade-2", to: "crossfade", rounds: round(8.8) },
        ];
        let case = CaseResult {
            name: "workers",
            about: "two workers",
            ratio_by: By::Cpu,
            peers: summarise(measured, By::Cpu, None),
            left_out: Vec::new(),
            notes: Vec::new(),
        };
        let text = render_case(&case);
        let last: Vec<&str> = text.lines().filter_map(|line| line.trim_end_matches(" |").rsplit("| ").next()).collect();
        assert!(last.contains(&"CPU to that of") && last.contains(&"1.10 crossfade"), "{text}");
    }

    #[test]
    fn the_json_says_what_it_is() {
        let json = serde_json::to_value(outcome()).unwrap();
        assert_eq!(json["schema"], "loadtest-bench/1");
        assert_eq!(json["machine"]["pinned"], serde_json::json!({ "proxy": 0, "load": 1 }));
        let case = &json["cases"][0];
        assert_eq!(case["ratio_by"], "cpu");
        assert_eq!(
            case["peers"][3]["rounds"][0],
            serde_json::json!({ "requests_per_second": 40_123.4, "cpu_us": 9.0 })
        );
        assert_eq!(case["peers"][3]["ratio"]["to"], "nginx");
        assert_eq!(case["peers"][0]["ratio"], serde_json::Value::Null);
        assert_eq!(case["peers"][3]["floor"]["to"], "nginx-stream");
        let goal = &json["goals"][0];
        assert_eq!(
            [&goal["case"], &goal["peer"], &goal["figure"], &goal["to"]],
            ["http", "crossfade", "cpu_us", "nginx"]
        );
        assert_eq!((&goal["rule"], &goal["limit"]), (&"ratio_at_most".into(), &0.85.into()));
        assert_eq!((&goal["measured"]["max"], &goal["met"]), (&0.9.into(), &true.into()));
    }
}
