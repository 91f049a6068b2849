//! A report for tests: 40 s of two arms, one of which falls sick for a while.

use std::{collections::BTreeMap, f64::consts::PI};

use hdrhistogram::Histogram;

use super::{
    Account, Arm, Connections, End, Generator, Latencies, Report, Run, SCHEMA, Second, Series, SloResult, StageAsked,
};

const SECONDS: u64 = 40;
const RATE: u64 = 500;

pub(crate) fn report() -> Report {
    let mut rng = fastrand::Rng::with_seed(7);
    let histogram = || Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3).unwrap();
    let mut total: BTreeMap<&str, Histogram<u64>> = ["blue", "green"].map(|arm| (arm, histogram())).into();
    let mut seconds = Vec::new();
    let mut failed = 0;
    for at in 0..SECONDS {
        let mut second = Second { at, sent: RATE, ..Second::default() };
        let share = (at / 10 * 10).min(25);
        for (arm, count) in [("blue", RATE * (100 - share) / 100), ("green", RATE * share / 100)] {
            let sick = arm == "green" && (22..28).contains(&at);
            let mut here = histogram();
            for _ in 0..count {
                // Box and Muller's normal distribution, as the logarithm.
                let normal = (-2.0 * rng.f64().max(1e-12).ln()).sqrt() * (2.0 * PI * rng.f64()).cos();
                let micros = (normal * 0.4).exp() * if sick { 60_000.0 } else { 900.0 };
                here.record(micros as u64 + 1).unwrap();
            }
            if sick {
                second.errors += 7;
                failed += 7;
            }
            if count > 0 {
                second.arms.insert(arm.to_owned(), Latencies::summary(&here));
            }
            total.get_mut(arm).unwrap().add(&here).unwrap();
        }
        seconds.push(second);
    }

    let mut all = histogram();
    total.values().for_each(|arm| all.add(arm).unwrap());
    let answered = all.len();
    let arm = |label: &str| Arm {
        answered: total[label].len(),
        error_status: if label == "green" { failed } else { 0 },
        share: total[label].len() as f64 / answered as f64,
        keys: if label == "green" { 251 } else { 749 },
        statuses: [(200, total[label].len() - 1), (503, 1)].into(),
    };
    let arms = ["blue", "green"].map(|label| (label.to_owned(), arm(label))).into();
    let series = Series {
        all: Latencies::of(&all),
        arms: total.iter().map(|(label, arm)| ((*label).to_owned(), Latencies::of(arm))).collect(),
    };
    Report {
        schema: SCHEMA.to_owned(),
        run: Run {
            protocol: "http/1.1".to_owned(),
            target: "http://127.0.0.1:8080/".to_owned(),
            id: "1a2b3c4d".to_owned(),
            started_ms: 1_763_723_531_000,
            stages: vec![StageAsked { seconds: SECONDS as f64, from: RATE as f64, to: RATE as f64 }],
            connections: 64,
            threads: 1,
            keys: 1000,
        },
        end: End {
            complete: true,
            reason: None,
            seconds: SECONDS as f64,
            rate_asked: Some(RATE as f64),
            rate_achieved: answered as f64 / SECONDS as f64,
        },
        account: Account {
            sent: answered + 3,
            answered,
            failed: [("reset".to_owned(), 2), ("timeout".to_owned(), 1)].into(),
            error_status: failed,
            moved: 250,
            ..Account::default()
        },
        series: [("latency".to_owned(), series)].into(),
        arms,
        seconds,
        generator: Generator { cpu: 0.21, lateness: Latencies::summary(&all), warnings: Vec::new() },
        slos: vec![
            SloResult { slo: "p99<100ms".to_owned(), met: true, measured: "93.2 ms".to_owned() },
            SloResult { slo: "errors<0.1%".to_owned(), met: false, measured: "0.225 %".to_owned() },
        ],
    }
}

/// The same over MQTT, with its three series.
pub(crate) fn mqtt() -> Report {
    let mut report = report();
    let latency = report.series.remove("latency").unwrap();
    report.series = ["ack", "connect", "delivery"].map(|name| (name.to_owned(), latency.clone())).into();
    report.run.protocol = "mqtt/5".to_owned();
    report.account.lost = 4;
    report.account.out_of_order = 2;
    report.account.connections = Connections {
        attempted: 1200,
        failed: [("refused".to_owned(), 3)].into(),
        lost: [("closed".to_owned(), 2), ("reset".to_owned(), 1)].into(),
    };
    report
}
