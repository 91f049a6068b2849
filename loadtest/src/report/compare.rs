//! Two reports side by side.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Serialize;

use super::{
    Latencies, Report,
    table::{Colour, Table, grouped},
};
use crate::units;

/// The version of the JSON form, in its field `schema`. Fields are added under the same version, and change their
/// meaning or go only with the next.
pub const SCHEMA: &str = "loadtest-compare/1";

/// Two reports, `a` and `b`, side by side. Times are in microseconds.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub schema: &'static str,
    pub a: Side,
    pub b: Side,
    /// Why the runs should not be compared; empty is good.
    pub warnings: Vec<String>,
    /// Answers a second.
    pub rate: Pair,
    /// The share of requests that failed, were answered with an error or were lost: 0 to 1.
    pub errors: Pair,
    /// Requests by fate. Without those that neither has any of.
    pub account: BTreeMap<String, Pair>,
    /// Latencies by series, arm (all arms: `all`) and measure.
    pub series: BTreeMap<String, BTreeMap<String, BTreeMap<&'static str, Pair>>>,
}

/// Which run it is.
#[derive(Debug, Serialize)]
pub struct Side {
    pub run: String,
    pub protocol: String,
    pub target: String,
}

/// A figure of both runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    pub a: Option<f64>,
    pub b: Option<f64>,
    /// `b - a`, where there are both.
    pub difference: Option<f64>,
    /// `b / a`, where there are both and `a` is not 0.
    pub ratio: Option<f64>,
}

impl Pair {
    fn new(a: Option<f64>, b: Option<f64>) -> Self {
        let both = a.zip(b);
        Self { a, b, difference: both.map(|(a, b)| b - a), ratio: both.filter(|(a, _)| *a != 0.0).map(|(a, b)| b / a) }
    }
}

type Measure = (&'static str, fn(&Latencies) -> f64);
const MEASURES: [Measure; 7] = [
    ("mean", |l| l.mean),
    ("p50", |l| l.p50 as f64),
    ("p90", |l| l.p90 as f64),
    ("p95", |l| l.p95 as f64),
    ("p99", |l| l.p99 as f64),
    ("p99.9", |l| l.p999 as f64),
    ("max", |l| l.max as f64),
];

/// Rates that differ by less than this share are the same.
const SAME_RATE: f64 = 0.01;

/// Puts two reports side by side.
pub fn compare(a: &Report, b: &Report) -> Comparison {
    let side = |report: &Report| Side {
        run: report.run.id.clone(),
        protocol: report.run.protocol.clone(),
        target: report.run.target.clone(),
    };
    let pair = |of: fn(&Report) -> f64| Pair::new(Some(of(a)), Some(of(b)));
    Comparison {
        schema: SCHEMA,
        a: side(a),
        b: side(b),
        warnings: warnings(a, b),
        rate: pair(|report| report.end.rate_achieved),
        errors: pair(|report| report.account.error_share()),
        account: account(a, b),
        series: series(a, b),
    }
}

fn warnings(a: &Report, b: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    if a.run.protocol != b.run.protocol {
        warnings.push(format!("the protocols differ: {} and {}", a.run.protocol, b.run.protocol));
    }
    let rate = |report: &Report| match report.end.rate_asked {
        Some(rate) => format!("{rate:.1}/s"),
        None => "as fast as answers come".to_owned(),
    };
    let same = match (a.end.rate_asked, b.end.rate_asked) {
        (Some(a), Some(b)) => (a - b).abs() <= SAME_RATE * a.max(b),
        (a, b) => a.is_none() && b.is_none(),
    };
    if !same {
        warnings.push(format!("the rates asked for differ: {} and {}", rate(a), rate(b)));
    }
    if a.run.connections != b.run.connections {
        warnings.push(format!("the connections differ: {} and {}", a.run.connections, b.run.connections));
    }
    for (name, report) in [("a", a), ("b", b)] {
        if !report.end.complete {
            let reason = report.end.reason.as_deref().unwrap_or("no reason is known");
            warnings.push(format!("{name} ended early: {reason}"));
        }
        warnings.extend(report.generator.warnings.iter().map(|warning| format!("{name}: {warning}")));
    }
    warnings
}

fn account(a: &Report, b: &Report) -> BTreeMap<String, Pair> {
    let counts = |report: &Report| {
        let account = &report.account;
        let failed = account.failed.iter().map(|(kind, count)| (format!("failed: {kind}"), *count));
        let counts = [
            ("sent", account.sent),
            ("answered", account.answered),
            ("answered with an error", account.error_status),
            ("answered twice", account.answered_twice),
            ("lost", account.lost),
            ("out of order", account.out_of_order),
            ("moved to another arm", account.moved),
            ("not sent any more", account.unsent),
        ];
        let counts = counts.into_iter().map(|(name, count)| (name.to_owned(), count)).chain(failed);
        counts.filter(|(_, count)| *count > 0).collect::<BTreeMap<_, _>>()
    };
    let (a, b) = (counts(a), counts(b));
    let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    // What is not there did not happen.
    let of = |counts: &BTreeMap<String, u64>, name| Some(counts.get(name).copied().unwrap_or_default() as f64);
    names.into_iter().map(|name| (name.clone(), Pair::new(of(&a, name), of(&b, name)))).collect()
}

fn series(a: &Report, b: &Report) -> BTreeMap<String, BTreeMap<String, BTreeMap<&'static str, Pair>>> {
    let latencies = |report: &Report| {
        let mut all = BTreeMap::new();
        for (name, series) in &report.series {
            let arms = series.arms.iter().filter(|(arm, _)| *arm != "-");
            all.extend(arms.map(|(arm, of)| ((name.clone(), arm.clone()), of.clone())));
            all.insert((name.clone(), "all".to_owned()), series.all.clone());
        }
        all.retain(|_, latencies| latencies.count > 0);
        all
    };
    let (a, b) = (latencies(a), latencies(b));
    let mut series: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for place in a.keys().chain(b.keys()) {
        let (in_a, in_b) = (a.get(place), b.get(place));
        let pairs = MEASURES.map(|(name, of)| (name, Pair::new(in_a.map(of), in_b.map(of))));
        series.entry(place.0.clone()).or_default().insert(place.1.clone(), pairs.into());
    }
    series
}

impl Comparison {
    /// As JSON that ends with a newline.
    pub fn json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("maps have text as keys");
        json.push('\n');
        json
    }
}

/// The two runs, warnings, and a table with a row for each figure.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs = Table::new("<<<<");
        for (name, side) in [("a", &self.a), ("b", &self.b)] {
            runs.row([name, &format!("run {}", side.run), &side.protocol, &side.target]);
        }
        writeln!(f, "{}", runs.text(Colour::Off))?;
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        if !self.warnings.is_empty() {
            writeln!(f)?;
        }

        let mut table = Table::new("<>>>>").heading(["", "a", "b", "b - a", "b / a"]);
        let mut row = |name: &str, pair: &Pair, text: fn(f64) -> String| {
            let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), text);
            let difference = pair.difference.map_or_else(
                || "-".to_owned(),
                |difference| format!("{}{}", if difference < 0.0 { "-" } else { "+" }, text(difference.abs())),
            );
            let ratio = pair.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
            table.row([name.to_owned(), figure(pair.a), figure(pair.b), difference, ratio]);
        };
        row("answers a second", &self.rate, |rate| format!("{rate:.1}"));
        row("errors", &self.errors, |share| format!("{:.3} %", share * 100.0));
        for (name, pair) in &self.account {
            row(name, pair, |count| grouped(count as u64));
        }
        for (name, arms) in &self.series {
            for (arm, measures) in arms {
                for (measure, _) in MEASURES {
                    let pair = &measures[measure];
                    row(&format!("{name}, {arm}, {measure}"), pair, units::micros);
                }
            }
        }
        f.write_str(&table.text(Colour::Off))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn a_run_is_the_same_as_itself() {
        let report = sample::report();
        let same = compare(&report, &report);
        assert!(same.warnings.is_empty(), "{:?}", same.warnings);
        let pairs = same.series.values().flat_map(|arms| arms.values().flat_map(|measures| measures.values()));
        let pairs: Vec<_> = pairs.chain(same.account.values()).chain([&same.rate, &same.errors]).collect();
        assert!(pairs.len() > 3 * MEASURES.len());
        assert!(pairs.iter().all(|pair| (pair.difference, pair.ratio) == (Some(0.0), Some(1.0))), "{pairs:?}");
    }

    #[test]
    fn figures_are_put_side_by_side() {
        let (a, mut b) = (sample::report(), sample::report());
        b.series.get_mut("latency").unwrap().all.p99 = 36_665;
        b.series.get_mut("latency").unwrap().arms.remove("green");
        b.account.failed.remove("reset");
        b.account.lost = 3;
        let text = compare(&a, &b).to_string();
        for line in [
            "latency, all, p99      73.3 ms    36.7 ms    -36.7 ms  0.500",
            "latency, green, p99   126.1 ms          -           -      -",
            "failed: reset                2          0          -2  0.000",
            "lost                         0          3          +3      -",
            "sent                    20 003     20 003          +0  1.000",
        ] {
            let words: Vec<_> = line.split_whitespace().collect();
            assert!(text.lines().any(|found| found.split_whitespace().eq(words.iter().copied())), "{line}: {text}");
        }
        assert!(!text.contains("answered twice") && !text.contains("warning"), "{text}");
    }

    #[test]
    fn runs_that_were_asked_for_differently_are_not_compared_without_a_warning() {
        let (a, mut b) = (sample::report(), sample::mqtt());
        b.end.rate_asked = Some(502.0);
        b.run.connections = 8;
        b.end.complete = false;
        b.generator.warnings.push("fell behind".to_owned());
        assert_eq!(
            compare(&a, &b).warnings,
            [
                "the protocols differ: http/1.1 and mqtt/5",
                "the connections differ: 64 and 8",
                "b ended early: no reason is known",
                "b: fell behind",
            ]
        );
        for (asked, told) in [(Some(600.0), "500.0/s and 600.0/s"), (None, "500.0/s and as fast as answers come")] {
            let mut b = sample::report();
            b.end.rate_asked = asked;
            assert_eq!(compare(&a, &b).warnings, [format!("the rates asked for differ: {told}")]);
        }
    }
}
