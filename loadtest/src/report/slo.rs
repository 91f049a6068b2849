//! Service level objectives: `p99<100ms`, `errors<0.1%`, `delivery.p99@go<250ms`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Latencies, Report};
use crate::units;

/// An objective: `[SERIES.]METRIC[@ARM] < VALUE` or `>`.
///
/// - latencies: `p50 p90 p95 p99 p99.9 max mean`, with a duration (`100ms`, `1.5s`, `800us`). `SERIES` is `latency` when
///   left out; for MQTT `ack`, or `delivery` with QoS 0; `ARM` is a label;
/// - `errors`: the share of requests that failed, were answered with a failure, or were lost (`0.1%`, `0.001`);
/// - `lost`, `twice`, `moved`, `out-of-order`: counts;
/// - `rate`: the share of the rate asked for that was achieved (`99%`), or answers a second when closed-loop (`50000`).
#[derive(Clone, Debug, PartialEq)]
pub struct Slo {
    text: String,
    metric: Metric,
    arm: Option<String>,
    below: bool,
    /// Microseconds, a share, or a count.
    limit: f64,
}

#[derive(Clone, Debug, PartialEq)]
enum Metric {
    Latency { series: Option<String>, of: &'static str },
    Errors,
    Count(&'static str),
    Rate,
}

/// Why a text is no objective.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write 'p99<100ms', 'errors<0.1%', 'lost<1', 'rate>99%' or 'delivery.p99@go<250ms'")]
pub struct SloFault(String);

/// An objective and what was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SloResult {
    /// The objective as given.
    pub slo: String,
    /// Whether it was met. An objective about something that was not measured is missed.
    pub met: bool,
    /// The measured value for people: `93.2 ms`, `0.02 %`.
    pub measured: String,
}

const LATENCIES: [&str; 7] = ["p50", "p90", "p95", "p99", "p99.9", "max", "mean"];
const COUNTS: [&str; 4] = ["lost", "twice", "moved", "out-of-order"];

impl FromStr for Slo {
    type Err = SloFault;

    fn from_str(text: &str) -> Result<Self, SloFault> {
        let fault = |problem: &str| SloFault(format!("{text:?}: {problem}"));
        let (left, right, below) = match (text.split_once('<'), text.split_once('>')) {
            (Some((left, right)), None) => (left, right, true),
            (None, Some((left, right))) => (left, right, false),
            _ => return Err(fault("there must be one '<' or '>'")),
        };
        let (name, arm) = match left.trim().split_once('@') {
            Some((name, arm)) if !arm.is_empty() => (name, Some(arm.to_owned())),
            Some(_) => return Err(fault("no label behind '@'")),
            None => (left.trim(), None),
        };
        // `p99.9` has a dot of its own.
        let (series, name) = match name.split_once('.') {
            Some((series, of)) if !series.starts_with('p') => (Some(series.to_owned()), of),
            _ => (None, name),
        };

        let right = right.trim();
        let share = || units::share(right).map_err(|problem| fault(&problem));
        let count = || {
            let number = right.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
            number.ok_or_else(|| fault("the limit is no count"))
        };
        let (metric, limit) = if let Some(of) = LATENCIES.into_iter().find(|of| *of == name) {
            let limit = units::duration(right).map_err(|problem| fault(&problem))?;
            (Metric::Latency { series, of }, limit.as_secs_f64() * 1e6)
        } else if series.is_some() {
            return Err(fault("only latencies have a series"));
        } else if name == "errors" {
            (Metric::Errors, share()?)
        } else if name == "rate" {
            (Metric::Rate, if right.ends_with('%') { share()? } else { count()? })
        } else if let Some(of) = COUNTS.into_iter().find(|of| *of == name) {
            (Metric::Count(of), count()?)
        } else {
            return Err(fault(&format!("no metric {name:?}")));
        };
        if arm.is_some() && !matches!(metric, Metric::Latency { .. } | Metric::Errors) {
            return Err(fault("only latencies and errors can be asked of one arm"));
        }
        Ok(Self { text: text.to_owned(), metric, arm, below, limit })
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Slo {
    /// Holds the objective against a report.
    pub fn judge(&self, report: &Report) -> SloResult {
        let (value, measured) = match &self.metric {
            Metric::Latency { series, of } => match self.latency(report, series.as_deref(), of) {
                Some(micros) => (Some(micros), units::micros(micros)),
                None => (None, "not measured".to_owned()),
            },
            Metric::Errors => match self.errors(report) {
                Some(share) => (Some(share), format!("{:.3} %", share * 100.0)),
                None => (None, "not measured".to_owned()),
            },
            Metric::Count(of) => {
                let account = &report.account;
                let count = match *of {
                    "lost" => account.lost,
                    "twice" => account.answered_twice,
                    "moved" => account.moved,
                    _ => account.out_of_order,
                };
                (Some(count as f64), count.to_string())
            }
            Metric::Rate => match report.end.rate_asked {
                Some(asked) if asked > 0.0 && self.text.trim_end().ends_with('%') => {
                    let share = report.end.rate_achieved / asked;
                    (Some(share), format!("{:.1} %", share * 100.0))
                }
                None if self.text.trim_end().ends_with('%') => (None, "no rate was asked for".to_owned()),
                _ => (Some(report.end.rate_achieved), format!("{:.0}/s", report.end.rate_achieved)),
            },
        };
        let met = value.is_some_and(|value| if self.below { value < self.limit } else { value > self.limit });
        SloResult { slo: self.text.clone(), met, measured }
    }

    fn latency(&self, report: &Report, series: Option<&str>, of: &str) -> Option<f64> {
        let series = match series {
            Some(name) => report.series.get(name),
            None => ["latency", "ack", "delivery"].into_iter().find_map(|name| report.series.get(name)),
        }?;
        let latencies: &Latencies = match &self.arm {
            Some(arm) => series.arms.get(arm)?,
            None => &series.all,
        };
        (latencies.count > 0).then_some(match of {
            "p50" => latencies.p50 as f64,
            "p90" => latencies.p90 as f64,
            "p95" => latencies.p95 as f64,
            "p99" => latencies.p99 as f64,
            "p99.9" => latencies.p999 as f64,
            "max" => latencies.max as f64,
            _ => latencies.mean,
        })
    }

    /// What failed without an answer belongs to no arm.
    fn errors(&self, report: &Report) -> Option<f64> {
        match &self.arm {
            None => (report.account.sent > 0).then(|| report.account.error_share()),
            Some(arm) => {
                let arm = report.arms.get(arm).filter(|arm| arm.answered > 0)?;
                Some(arm.error_status as f64 / arm.answered as f64)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn objectives_are_read() {
        for text in [
            "p99<100ms",
            "p99.9 < 1.5s",
            "errors<0.1%",
            "errors@go<0.001",
            "delivery.p99@go<250ms",
            "lost<1",
            "rate>99%",
            "rate>50000",
            "max<2s",
            "out-of-order<1",
        ] {
            assert!(text.parse::<Slo>().is_ok(), "{text}: {:?}", text.parse::<Slo>());
        }
    }

    #[test]
    fn what_is_no_objective_is_named_with_its_cure() {
        for text in [
            "",
            "p99",
            "p99<",
            "p99<100",
            "p98<1ms",
            "p99<1ms<2ms",
            "errors<x",
            "errors<-1%",
            "errors<101%",
            "lost<NaN",
            "x.errors<1%",
            "p99@<1ms",
            "lost@go<1",
            "rate>fast",
        ] {
            let fault = text.parse::<Slo>().expect_err(text).to_string();
            assert!(fault.contains("write 'p99<100ms'") && !fault.contains('\n'), "{fault}");
        }
    }

    /// Judges objectives, written with their verdicts and what was measured, against a report.
    fn check(report: &Report, expected: &[(&str, bool, &str)]) {
        for (text, met, measured) in expected {
            let result = text.parse::<Slo>().unwrap().judge(report);
            assert_eq!((result.slo.as_str(), result.met, result.measured.as_str()), (*text, *met, *measured));
        }
    }

    #[test]
    fn objectives_are_held_against_what_was_measured() {
        let mut report = sample::report();
        let latency = report.series.get_mut("latency").unwrap();
        latency.all =
            Latencies { p50: 900, p99: 50_000, p999: 90_000, mean: 1_200.5, max: 100_000, ..latency.all.clone() };
        latency.arms.get_mut("green").unwrap().p99 = 95_000;
        report.account.sent = 10_000;
        report.account.error_status = 7;
        report.account.failed = [("reset".to_owned(), 2)].into();
        report.account.lost = 1;
        let green = report.arms.get_mut("green").unwrap();
        (green.answered, green.error_status) = (1_000, 7);
        report.end.rate_asked = Some(500.0);
        report.end.rate_achieved = 495.0;
        check(
            &report,
            &[
                ("p99<50.001ms", true, "50.0 ms"),
                // At the limit is not below it.
                ("p99<50ms", false, "50.0 ms"),
                ("p99>40ms", true, "50.0 ms"),
                ("p50<1ms", true, "900 µs"),
                ("p99.9 < 80ms", false, "90.0 ms"),
                ("latency.p99.9<100ms", true, "90.0 ms"),
                ("mean<1201us", true, "1.20 ms"),
                ("max<1s", true, "100.0 ms"),
                ("p99@green<90ms", false, "95.0 ms"),
                ("p99@blue<90ms", true, "2.29 ms"),
                ("errors<0.2%", true, "0.100 %"),
                ("errors<0.001", false, "0.100 %"),
                // What was not answered belongs to no arm.
                ("errors@green<1%", true, "0.700 %"),
                ("errors@blue<0.1%", true, "0.000 %"),
                ("lost<1", false, "1"),
                ("lost<2", true, "1"),
                ("twice<1", true, "0"),
                ("moved<250", false, "250"),
                ("out-of-order<1", true, "0"),
                ("rate>98%", true, "99.0 %"),
                ("rate>99.5%", false, "99.0 %"),
                ("rate>490", true, "495/s"),
                ("rate<400", false, "495/s"),
            ],
        );
    }

    #[test]
    fn mqtt_has_series_of_its_own() {
        let mut report = sample::mqtt();
        report.series.get_mut("ack").unwrap().all.p99 = 1_000;
        report.series.get_mut("delivery").unwrap().arms.get_mut("green").unwrap().p999 = 2_000;
        let expected =
            [("p99<2ms", true, "1.00 ms"), ("delivery.p99.9@green<1ms", false, "2.00 ms"), ("lost<5", true, "4")];
        check(&report, &expected);
    }

    #[test]
    fn what_was_not_measured_is_missed() {
        let mut report = sample::report();
        report.end.rate_asked = None;
        report.account.sent = 0;
        report.series.get_mut("latency").unwrap().all = Latencies::default();
        check(
            &report,
            &[
                ("p99<1h", false, "not measured"),
                ("p99>0s", false, "not measured"),
                ("delivery.p99<1h", false, "not measured"),
                ("p99@purple<1h", false, "not measured"),
                ("errors<100%", false, "not measured"),
                ("errors@purple<100%", false, "not measured"),
                ("rate>1%", false, "no rate was asked for"),
            ],
        );
    }
}
