//! `crossfade simulate`: a route's own guard against synthetic arms.

mod tables;
mod work;

use std::{io, path::PathBuf};

use super::{print, unless_unread};
use admin_api::{
    Burst, Forecast, Onset, Outage, SECONDS_A_DAY, Scenario, Sickness, Slowdown, Spell, Stall, Trip, Watch,
};
use anyhow::{Result, bail};
use clap::{Args, value_parser};
use config::{Config, Guard};
use loadtest::units;
use serde_json::{Value, json};
use work::work;

#[derive(Debug, Args)]
pub(super) struct Simulate {
    /// Take the guard of a route of this configuration file; without it, one with default limits
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which route; needed where the file has several
    #[arg(long, requires = "config")]
    route: Option<String>,
    /// Requests per second that green gets
    #[arg(long, value_name = "RATE", default_value = "50", value_parser = rate, allow_negative_numbers = true)]
    green_rps: f64,
    /// What part of all requests that is
    #[arg(long, value_name = "SHARE", default_value = "50%", value_parser = split_share, allow_negative_numbers = true)]
    share: f64,
    /// What both arms fail when nothing is wrong
    #[arg(long, value_name = "SHARE", default_value = "0.1%", value_parser = units::share, allow_negative_numbers = true)]
    error_rate: f64,
    /// Median of both arms' latency
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = latency)]
    latency: f64,
    /// How far latencies are spread: 0.5 is a p95 of 2.3 times the median, 1 one of 5 times
    #[arg(long, default_value = "0.5", value_parser = sigma, allow_negative_numbers = true)]
    sigma: f64,
    /// Different keys
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000, value_parser = value_parser!(u64).range(1..=1_000_000_000))]
    clients: u64,
    /// Each arm answers nothing for a while, at moments of its own, and then all of it: for 1 s in each minute
    #[arg(long, value_name = "1s/1m", value_parser = spell)]
    stall: Option<Spell>,
    /// What comes during a stall is failed at once
    #[arg(long, requires = "stall")]
    stall_fails: bool,
    /// So many times the traffic for a while, less than once for a lull: for 10 s in each 10 minutes
    #[arg(long, value_name = "5x10s/10m", value_parser = burst)]
    burst: Option<Burst>,
    /// Both arms fail so much at the same time, for a while: for a minute in each 6 hours
    #[arg(long, value_name = "50%x1m/6h", value_parser = outage)]
    outage: Option<Outage>,
    /// Both arms are so many times slower at the same time, for a while: for a minute in each 6 hours
    #[arg(long, value_name = "3x1m/6h", value_parser = slowdown)]
    slowdown: Option<Slowdown>,
    /// What part of green's requests one client sends that breaks every one of them
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = units::share, allow_negative_numbers = true)]
    broken_client: f64,
    #[command(flatten)]
    sick: Sick,
    /// How long a healthy green is watched, with each seed
    #[arg(long, default_value = "1", value_parser = days, allow_negative_numbers = true)]
    days: f64,
    /// How many seeds it is watched with
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// The first seed; the same one brings the same again
    #[arg(long, value_name = "SEED", default_value_t = 1, value_parser = value_parser!(u64).range(..=1_000_000_000_000))]
    first_seed: u64,
    /// How often green falls sick, each time with a seed of its own
    #[arg(long, value_name = "NUMBER", default_value_t = 200, value_parser = value_parser!(u64).range(1..=100_000))]
    runs: u64,
    /// Print the tables of docs/guard.md; of the options above only --days, --seeds, --first-seed and --runs count
    #[arg(long, conflicts_with_all = ["config", "json"])]
    tables: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What is wrong with green when it falls sick. Without any of these, it is tried what the guard is there for.
#[derive(Debug, Args)]
struct Sick {
    /// Green falls sick: what it answers with errors
    #[arg(long, value_name = "SHARE", value_parser = units::share, allow_negative_numbers = true)]
    sick_errors: Option<f64>,
    /// Green falls sick: what cannot be connected
    #[arg(long, value_name = "SHARE", value_parser = units::share, allow_negative_numbers = true)]
    sick_unreachable: Option<f64>,
    /// Green falls sick: what it never answers
    #[arg(long, value_name = "SHARE", value_parser = units::share, allow_negative_numbers = true)]
    sick_silent: Option<f64>,
    /// Green falls sick: how many times as long it takes
    #[arg(long, value_name = "TIMES", value_parser = factor, allow_negative_numbers = true)]
    sick_slower: Option<f64>,
    /// How long it takes until it is as sick as that
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    sick_over: Option<u64>,
}

/// How long a sick green is waited for, seconds.
const PATIENCE: u64 = 2 * 3_600;

impl Simulate {
    pub(super) fn run(self) -> Result<()> {
        if self.tables {
            return unless_unread(tables::print(&self.effort(), &mut io::stdout()));
        }
        let (route, policy) = self.policy()?;
        let (scenario, effort) = (self.scenario(), self.effort());
        let healthy = effort.watch("watching a healthy green", &policy, &scenario, None);
        let mut onsets = Vec::new();
        for sickness in self.sick.sicknesses() {
            onsets.push(effort.fall_sick(&policy, &scenario, sickness));
        }
        let result = Simulated { route, policy, scenario, healthy, onsets };
        if self.json { print(&result.json()) } else { print(&result.text()) }
    }

    /// The route's name and its guard.
    fn policy(&self) -> Result<(Option<String>, Guard)> {
        let Some(path) = &self.config else { return Ok((None, Guard::default())) };
        let config = Config::load(path)?;
        let file = path.display();
        let names: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
        let route = match (&self.route, config.routes.as_slice()) {
            (None, [only]) => only,
            (None, _) => bail!("{file} has several routes; give --route, one of {}", names.join(", ")),
            (Some(name), routes) => match routes.iter().find(|route| route.name == *name) {
                Some(route) => route,
                None => bail!("{file} has no route {name}; give --route, one of {}", names.join(", ")),
            },
        };
        match route.guard {
            Some(guard) => Ok((Some(route.name.clone()), guard)),
            None => bail!("the guard of route {} is off; take mode = \"off\" out of [route.guard]", route.name),
        }
    }

    fn scenario(&self) -> Scenario {
        Scenario {
            green_rps: self.green_rps,
            share: self.share,
            clients: self.clients,
            error_rate: self.error_rate,
            latency_us: self.latency,
            sigma: self.sigma,
            broken_client: self.broken_client,
            stall: self.stall.map(|spell| Stall { spell, fails: self.stall_fails }),
            burst: self.burst,
            outage: self.outage,
            slowdown: self.slowdown,
            ..Scenario::default()
        }
    }

    fn effort(&self) -> Effort {
        Effort {
            seconds: (self.days * SECONDS_A_DAY as f64) as u64,
            seeds: self.seeds,
            first_seed: self.first_seed,
            runs: self.runs,
        }
    }
}

impl Sick {
    fn sicknesses(&self) -> Vec<Sickness> {
        let Self { sick_errors, sick_unreachable, sick_silent, sick_slower, sick_over } = *self;
        let healthy = Sickness::default();
        if [sick_errors, sick_unreachable, sick_silent, sick_slower].iter().any(Option::is_some) {
            return vec![Sickness {
                errors: sick_errors.unwrap_or_default(),
                unreachable: sick_unreachable.unwrap_or_default(),
                silent: sick_silent.unwrap_or_default(),
                slower: sick_slower.unwrap_or(1.0),
                over: sick_over.unwrap_or_default(),
            }];
        }
        let errors = [0.1, 0.2, 0.5, 1.0].map(|errors| Sickness { errors, ..healthy });
        let others = [
            Sickness { unreachable: 1.0, ..healthy },
            Sickness { silent: 1.0, ..healthy },
            Sickness { slower: 3.0, ..healthy },
        ];
        let over = sick_over.unwrap_or_default();
        errors.into_iter().chain(others).map(|sickness| Sickness { over, ..sickness }).collect()
    }
}

/// How much is tried.
struct Effort {
    /// For which a green is watched with each seed.
    seconds: u64,
    seeds: u64,
    first_seed: u64,
    /// How often a green falls sick.
    runs: u64,
}

impl Effort {
    /// One guard a seed watches.
    fn watch(&self, what: &str, policy: &Guard, scenario: &Scenario, sickness: Option<Sickness>) -> Watch {
        let seeds = self.first_seed..self.first_seed.saturating_add(self.seeds);
        let mut sum = Watch::default();
        for watch in work(what, seeds, self.seconds, |seed, passed| {
            admin_api::watch(policy, scenario, sickness, seed, self.seconds, passed)
        }) {
            sum.add(watch);
        }
        sum
    }

    fn fall_sick(&self, policy: &Guard, scenario: &Scenario, sickness: Sickness) -> Onsets {
        let seeds = self.first_seed..self.first_seed.saturating_add(self.runs);
        let what = format!("green with {sickness}");
        let onsets =
            work(&what, seeds, 1, |seed, _| admin_api::time_to_trip(policy, scenario, sickness, seed, PATIENCE));
        Onsets::new(sickness, onsets)
    }
}

/// What came of the same sickness time after time.
struct Onsets {
    sickness: Sickness,
    /// Seconds to the trip, sorted.
    seconds: Vec<u64>,
    missed: u64,
    early: Vec<Trip>,
}

impl Onsets {
    fn new(sickness: Sickness, onsets: Vec<Onset>) -> Self {
        let mut sum = Self { sickness, seconds: Vec::new(), missed: 0, early: Vec::new() };
        for onset in onsets {
            match onset {
                Onset::Tripped(trip) => sum.seconds.push(trip.second),
                Onset::TrippedEarly(trip) => sum.early.push(trip),
                Onset::Missed => sum.missed += 1,
            }
        }
        sum.seconds.sort_unstable();
        sum
    }

    /// Of all that fell sick; `None` when it was missed.
    fn quantile(&self, quantile: f64) -> Option<u64> {
        let all = self.seconds.len() as u64 + self.missed;
        let rank = (quantile * all as f64).ceil().max(1.0) as usize;
        self.seconds.get(rank - 1).copied()
    }

    fn json(&self) -> Value {
        json!({
            "sickness": self.sickness,
            "runs": self.seconds.len() as u64 + self.missed,
            "missed": self.missed,
            "tripped_early": self.early,
            "seconds": {
                "least": self.seconds.first(),
                "median": self.quantile(0.5),
                "p95": self.quantile(0.95),
                "most": self.quantile(1.0),
            },
        })
    }
}

struct Simulated {
    route: Option<String>,
    policy: Guard,
    scenario: Scenario,
    healthy: Watch,
    onsets: Vec<Onsets>,
}

impl Simulated {
    fn json(&self) -> Value {
        let Watch { asked, pass, unknown, shared_cause, pause, trips, .. } = self.healthy;
        json!({
            "route": self.route,
            "scenario": self.scenario,
            "healthy": {
                "days": self.healthy.days(),
                "false_trips": trips,
                "false_trips_per_day": trips as f64 / self.healthy.days(),
                "first_trips": self.healthy.first_trips,
                "asked": asked,
                "pass": pass,
                "unknown": unknown,
                "shared_cause": shared_cause,
                "pause": pause,
            },
            "time_to_trip": self.onsets.iter().map(Onsets::json).collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let Self { scenario, healthy, .. } = self;
        let guard =
            self.route.as_ref().map_or_else(|| "the default guard".to_owned(), |route| format!("the guard of {route}"));
        let percent = |part: u64| format!("{:.3} %", part as f64 / healthy.asked.max(1) as f64 * 100.0);
        let mut lines = vec![
            format!(
                "{guard}: {} requests/s to green, {} % of all; {} % of them fail where nothing is wrong",
                scenario.green_rps,
                scenario.share * 100.0,
                scenario.error_rate * 100.0
            ),
            String::new(),
            format!("{:<24} {}", "false trips", trips(healthy)),
        ];
        let said =
            |trip: &Trip, when: &str| format!("  seed {}, second {}{when}: {}", trip.seed, trip.second, trip.reason);
        lines.extend(healthy.first_trips.iter().map(|trip| said(trip, "")));
        let (pass, unknown, shared) = (percent(healthy.pass), percent(healthy.unknown), percent(healthy.shared_cause));
        lines.extend([
            format!("{:<24} {pass}", "pass"),
            format!("{:<24} {unknown}, because both arms were bad {shared}", "unknown"),
            String::new(),
            format!(
                "{:<24} {:>9} {:>9} {:>9} {:>9}  {}",
                "SECONDS TO TRIP", "MEDIAN", "P95", "WORST", "MISSED", "EXPECTED"
            ),
        ]);
        let seconds = |seconds: Option<u64>| seconds.map_or_else(|| "-".to_owned(), |seconds| seconds.to_string());
        for onsets in &self.onsets {
            // It is forecast for a green that falls sick from one moment to the next.
            let expected = Forecast::new(self.policy.max_error_rate)
                .time_to_trip(onsets.sickness.errors.max(onsets.sickness.unreachable), scenario.green_rps)
                .filter(|_| onsets.sickness.over == 0);
            lines.push(format!(
                "{:<24} {:>9} {:>9} {:>9} {:>9}  {}",
                onsets.sickness.to_string(),
                seconds(onsets.quantile(0.5)),
                seconds(onsets.quantile(0.95)),
                seconds(onsets.quantile(1.0)),
                onsets.missed,
                expected.map_or_else(|| "-".to_owned(), |expected| format!("{:.0}", expected.as_secs_f64())),
            ));
            lines.extend(onsets.early.iter().take(5).map(|trip| said(trip, ", before it fell sick")));
        }
        lines.join("\n")
    }
}

/// How many, and what that says of how rare they are: with 95 % certainty not more than three more than were seen, where none
/// were.
fn trips(watch: &Watch) -> String {
    let days = watch.days();
    match watch.trips {
        0 => format!("0 in {}: all but surely less than one in {}", span(days), span(days / 3.0)),
        trips => format!("{trips} in {}: one in {}", span(days), span(days / trips as f64)),
    }
}

fn span(days: f64) -> String {
    match days * 24.0 {
        hours if hours >= 24.0 => format!("{days:.1} days"),
        hours if hours >= 1.0 => format!("{hours:.1} hours"),
        hours => format!("{:.1} minutes", hours * 60.0),
    }
}

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{text:?} is out of range; give a number from {least} to {most}"))
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, 0.0001, 1_000_000.0)
}

fn sigma(text: &str) -> Result<f64, String> {
    number(text, 0.0, 3.0)
}

fn factor(text: &str) -> Result<f64, String> {
    number(text, 0.0, 1_000.0)
}

fn days(text: &str) -> Result<f64, String> {
    number(text, 0.001, 10_000.0)
}

fn split_share(text: &str) -> Result<f64, String> {
    units::share(text).and_then(|share| match share {
        0.0 => Err("green gets nothing; give a share above 0".to_owned()),
        share => Ok(share),
    })
}

/// Microseconds.
fn latency(text: &str) -> Result<f64, String> {
    let us = units::duration(text)?.as_secs_f64() * 1e6;
    if (1.0..=60e6).contains(&us) { Ok(us) } else { Err(format!("{text:?} is out of range; give 1us to 60s")) }
}

fn seconds(text: &str) -> Result<u64, String> {
    let duration = units::duration(text)?;
    match (duration.as_secs(), duration.subsec_nanos()) {
        (1..=31_536_000, 0) => Ok(duration.as_secs()),
        _ => Err(format!("{text:?} is out of range; give whole seconds, from 1s to 8760h")),
    }
}

/// `1s/1m`.
fn spell(text: &str) -> Result<Spell, String> {
    let (lasts, every) = text.split_once('/').ok_or_else(|| format!("{text:?} has no period; give 1s/1m"))?;
    let (lasts, every) = (seconds(lasts)?, seconds(every)?);
    if lasts >= every {
        return Err(format!("{text:?} never ends; give a time shorter than its period, as in 1s/1m"));
    }
    Ok(Spell { lasts, every })
}

/// `5x10s/10m`.
fn burst(text: &str) -> Result<Burst, String> {
    let (times, during) = text.split_once('x').ok_or_else(|| format!("{text:?} is no burst; give 5x10s/10m"))?;
    Ok(Burst { factor: factor(times)?, spell: spell(during)? })
}

/// `3x1m/6h`.
fn slowdown(text: &str) -> Result<Slowdown, String> {
    let (times, during) = text.split_once('x').ok_or_else(|| format!("{text:?} is no slowdown; give 3x1m/6h"))?;
    Ok(Slowdown { factor: factor(times)?, spell: spell(during)? })
}

/// `50%x1m/6h`.
fn outage(text: &str) -> Result<Outage, String> {
    let (share, during) = text.split_once('x').ok_or_else(|| format!("{text:?} is no outage; give 50%x1m/6h"))?;
    Ok(Outage { error_rate: units::share(share)?, spell: spell(during)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_have_a_length_and_a_period() {
        assert_eq!(spell("1s/1m"), Ok(Spell { lasts: 1, every: 60 }));
        for faulty in ["", "1s", "1s/", "60s/1m", "0s/1m", "1.5s/1m", "1s/9000h", "-1s/1m"] {
            assert!(spell(faulty).is_err(), "{faulty}");
        }
        assert_eq!(burst("0x10s/10m"), Ok(Burst { factor: 0.0, spell: Spell { lasts: 10, every: 600 } }));
        assert_eq!(outage("50%x1m/6h"), Ok(Outage { error_rate: 0.5, spell: Spell { lasts: 60, every: 21_600 } }));
        for faulty in ["10s/10m", "-1x10s/10m", "nanx10s/10m", "infx10s/10m"] {
            assert!(burst(faulty).is_err(), "{faulty}");
        }
        assert!(outage("2x1m/6h").is_err());
    }

    #[test]
    fn a_quantile_counts_those_that_were_missed() {
        let trip = |second| Onset::Tripped(Trip { seed: 1, second, reason: String::new() });
        let onsets = Onsets::new(Sickness::default(), vec![trip(9), trip(5), Onset::Missed, trip(7)]);
        assert_eq!([0.25, 0.5, 0.75, 1.0].map(|q| onsets.quantile(q)), [Some(5), Some(7), Some(9), None]);
        assert_eq!(Onsets::new(Sickness::default(), Vec::new()).quantile(0.5), None);
    }
}
