//! The tables of docs/guard.md, as Markdown: of a guard with default limits.

use std::io::{self, Write};

use admin_api::{Burst, Outage, Scenario, Sickness, Slowdown, Spell, Stall, Trip};
use config::Guard;

use super::{Effort, Onsets};

/// What a guard must not trip for, and how much of the effort that is worth.
struct Calm {
    what: &'static str,
    scenario: Scenario,
    sickness: Option<Sickness>,
    part: f64,
}

/// Requests per second of green.
const RATES: [f64; 4] = [0.5, 5.0, 50.0, 500.0];

/// Requests per second of both arms, and green's share of them.
const SPLITS: [(f64, f64); 10] = [
    (50.0, 0.01),
    (50.0, 0.1),
    (50.0, 0.5),
    (50.0, 0.99),
    (500.0, 0.01),
    (500.0, 0.1),
    (500.0, 0.5),
    (500.0, 0.99),
    (5_000.0, 0.01),
    (5_000.0, 0.1),
];

/// Each row as soon as it is known: all of them take three quarters of an hour.
pub(super) fn print(effort: &Effort, out: &mut impl Write) -> io::Result<()> {
    let mut notes = Vec::new();
    false_trips(effort, out, &mut notes)?;
    writeln!(out)?;
    delays_by_split(effort, out, &mut notes)?;
    writeln!(out)?;
    delays_by_sickness(effort, out, &mut notes)?;
    if !notes.is_empty() {
        writeln!(out, "\n{}", notes.join("\n"))?;
    }
    Ok(())
}

fn calms() -> Vec<Calm> {
    let usual = Scenario::default();
    let each = |lasts, every| Spell { lasts, every };
    let stall = |fails| Some(Stall { spell: each(1, 60), fails });
    let at_limit = Sickness { errors: 0.05, ..Sickness::default() };
    let twice_as_slow = Sickness { slower: 2.0, ..Sickness::default() };
    let calm = |what, scenario, sickness, part| Calm { what, scenario, sickness, part };
    vec![
        calm("0.1 % errors", usual, None, 1.0),
        calm("1 % errors", Scenario { error_rate: 0.01, ..usual }, None, 1.0),
        calm(
            "0.5 % errors, each arm stalls for 1 s in each minute and answers late",
            Scenario { error_rate: 0.005, stall: stall(false), ..usual },
            None,
            1.0,
        ),
        calm(
            "0.5 % errors, each arm fails all for 1 s in each minute",
            Scenario { error_rate: 0.005, stall: stall(true), ..usual },
            None,
            1.0,
        ),
        calm("latencies spread far (sigma 1)", Scenario { sigma: 1.0, ..usual }, None, 0.1),
        calm(
            "ten times the traffic for 10 s in each 10 minutes",
            Scenario { burst: Some(Burst { spell: each(10, 600), factor: 10.0 }), ..usual },
            None,
            0.1,
        ),
        calm(
            "no traffic for 10 minutes in each hour",
            Scenario { burst: Some(Burst { spell: each(600, 3_600), factor: 0.0 }), ..usual },
            None,
            0.1,
        ),
        calm(
            "both arms fail half for a minute in each 6 hours",
            Scenario { outage: Some(Outage { spell: each(60, 21_600), error_rate: 0.5 }), ..usual },
            None,
            0.1,
        ),
        calm(
            "both arms fail 20 % for 10 minutes in each 6 hours",
            Scenario { outage: Some(Outage { spell: each(600, 21_600), error_rate: 0.2 }), ..usual },
            None,
            0.1,
        ),
        calm(
            "both arms take three times as long for 10 minutes in each 6 hours",
            Scenario { slowdown: Some(Slowdown { spell: each(600, 21_600), factor: 3.0 }), ..usual },
            None,
            0.1,
        ),
        calm(
            "nine tenths are green's, and both arms fail all for a minute in each 6 hours",
            Scenario { share: 0.9, outage: Some(Outage { spell: each(60, 21_600), error_rate: 1.0 }), ..usual },
            None,
            0.1,
        ),
        calm(
            "nine tenths are green's, and both arms fail 20 % for 10 minutes in each 6 hours",
            Scenario { share: 0.9, outage: Some(Outage { spell: each(600, 21_600), error_rate: 0.2 }), ..usual },
            None,
            0.1,
        ),
        calm("one client breaks its requests, 20 % of green's", Scenario { broken_client: 0.2, ..usual }, None, 0.1),
        calm("a hundredth of all is green's", Scenario { share: 0.01, ..usual }, None, 0.02),
        calm("a hundredth of all is blue's", Scenario { share: 0.99, ..usual }, None, 0.1),
        calm("green exactly on the limit, 5 % errors", usual, Some(at_limit), 0.2),
        calm("green exactly on the limit, twice as slow", usual, Some(twice_as_slow), 0.2),
    ]
}

fn false_trips(effort: &Effort, out: &mut impl Write, notes: &mut Vec<String>) -> io::Result<()> {
    let rates: Vec<String> = RATES.iter().map(|rate| format!("{rate}/s")).collect();
    writeln!(out, "| False trips, at requests of green per second | days each | {} |", rates.join(" | "))?;
    writeln!(out, "|---|---:|{}", "---:|".repeat(RATES.len()))?;
    for Calm { what, scenario, sickness, part } in calms() {
        let effort = Effort { seconds: (effort.seconds as f64 * part) as u64, ..*effort };
        let mut cells = Vec::new();
        let mut days = 0.0;
        for green_rps in RATES {
            let what = format!("{what}, {green_rps}/s");
            let watch = effort.watch(&what, &Guard::default(), &Scenario { green_rps, ..scenario }, sickness);
            days = watch.days();
            cells.push(watch.trips.to_string());
            notes.extend(watch.first_trips.iter().take(NOTES).map(|trip| note(&what, trip)));
        }
        writeln!(out, "| {what} | {} | {} |", (days * 10.0).round() / 10.0, cells.join(" | "))?;
    }
    Ok(())
}

fn delays_by_split(effort: &Effort, out: &mut impl Write, notes: &mut Vec<String>) -> io::Result<()> {
    let shares = [0.1, 0.2, 0.5, 1.0];
    writeln!(out, "| Requests/s of both | green | 10 % bad | 20 % | 50 % | 100 % |")?;
    writeln!(out, "|---:|---:|---:|---:|---:|---:|")?;
    for (rps, share) in SPLITS {
        let scenario = Scenario { green_rps: rps * share, share, ..Scenario::default() };
        let cells = shares.map(|errors| {
            delay(&effort.fall_sick(&Guard::default(), &scenario, Sickness { errors, ..Sickness::default() }), notes)
        });
        writeln!(out, "| {rps} | {} % | {} |", share * 100.0, cells.join(" | "))?;
    }
    Ok(())
}

fn delays_by_sickness(effort: &Effort, out: &mut impl Write, notes: &mut Vec<String>) -> io::Result<()> {
    let healthy = Sickness::default();
    let sicknesses = [
        ("cannot be connected", Sickness { unreachable: 1.0, ..healthy }),
        ("never answers", Sickness { silent: 1.0, ..healthy }),
        ("never answers the half", Sickness { silent: 0.5, ..healthy }),
        ("fails 30 %", Sickness { errors: 0.3, ..healthy }),
        ("3 times slower", Sickness { slower: 3.0, ..healthy }),
        ("5 times slower", Sickness { slower: 5.0, ..healthy }),
        ("grows slower for 10 minutes, up to 5 times", Sickness { slower: 5.0, over: 600, ..healthy }),
        ("grows worse for 10 minutes, up to 50 % errors", Sickness { errors: 0.5, over: 600, ..healthy }),
    ];
    let rates: Vec<String> = RATES.iter().map(|rate| format!("{rate}/s")).collect();
    writeln!(out, "| Green, at requests of green per second | {} |", rates.join(" | "))?;
    writeln!(out, "|---|{}", "---:|".repeat(RATES.len()))?;
    for (what, sickness) in sicknesses {
        let cells = RATES.map(|green_rps| {
            delay(&effort.fall_sick(&Guard::default(), &Scenario { green_rps, ..Scenario::default() }, sickness), notes)
        });
        writeln!(out, "| {what} | {} |", cells.join(" | "))?;
    }
    Ok(())
}

/// Median and 95 %.
fn delay(onsets: &Onsets, notes: &mut Vec<String>) -> String {
    let seconds = |seconds: Option<u64>| seconds.map_or_else(|| "–".to_owned(), |seconds| seconds.to_string());
    notes.extend(onsets.early.iter().take(NOTES).map(|trip| note(&format!("before {}", onsets.sickness), trip)));
    match (onsets.quantile(0.5), onsets.quantile(0.95)) {
        (Some(median), Some(most)) if median == most => median.to_string(),
        (median, most) => format!("{} ({})", seconds(median), seconds(most)),
    }
}

/// Of one cell.
const NOTES: usize = 5;

fn note(what: &str, trip: &Trip) -> String {
    format!("- {what}: seed {}, second {}: {}", trip.seed, trip.second, trip.reason)
}
