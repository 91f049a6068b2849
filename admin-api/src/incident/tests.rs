use std::path::Path;

use config::Config;
use serde_json::{Value, json};

use super::*;
use crate::{Outcome, PlaceboReport};

const AT: i64 = 1_769_868_182;

fn route(protocol: &str) -> config::Route {
    let text = format!(
        "[[route]]\nname = \"shop\"\nprotocol = \"{protocol}\"\nlisten = \"127.0.0.1:80\"\n\
         [route.blue]\nlabel = \"python\"\nendpoints = [\"a:1\"]\n[route.green]\nlabel = \"go\"\nendpoints = [\"b:1\"]\n"
    );
    Config::parse(&text, Path::new("")).unwrap().routes.remove(0)
}

/// In breach by `bad` of 120 in 8 s, while blue had `blue_bad` of 118.
fn rule(name: &str, limit: f64, bad: u64, blue_bad: u64) -> Evidence {
    Evidence {
        shared_cause: false,
        rule: name.to_owned(),
        verdict: Verdict::Breach,
        reason: "lag is 1200, above 1000 for 5 min".to_owned(),
        evidence: 1.2,
        limit,
        observed: Some(4.0),
        observed_since_raise: None,
        window_seconds: 8,
        bad,
        of: 120,
        blue_bad,
        blue_of: 118,
        keys: 20,
        allowed_share: Some(0.05),
        minimum_green: 20,
        blue_p95_ms: Some(150.0),
        green_p95_ms: Some(600.0),
        threshold_ms: Some(300.0),
    }
}

fn judgement(rules: Vec<Evidence>) -> Judgement {
    Judgement {
        verdict: Verdict::Breach,
        reason: "green failed 37 of 120 (30.8 %) in 8 s; the limit is 5.0 %".to_owned(),
        shared_cause: false,
        pause: None,
        window_seconds: 60,
        rules,
        blue: ArmEvidence::default(),
        green: ArmEvidence::default(),
        baseline: BaselineReport::default(),
        placebo: Some(PlaceboReport::default()),
    }
}

fn at() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(AT).unwrap()
}

fn incident_of(route: &config::Route, judgement: &Judgement, seconds: &[Arc<Second>]) -> Incident {
    incident_at(25.0, route, judgement, seconds)
}

/// With green at `percent` before.
fn incident_at(percent: f64, route: &config::Route, judgement: &Judgement, seconds: &[Arc<Second>]) -> Incident {
    let before = Recorded { split: Split::from_percent(percent).unwrap(), revision: 7, ..Recorded::default() };
    let tripped = Recorded { revision: 8, ..Recorded::default() };
    Incident::of(&Trip { route, judgement, seconds, before: &before, tripped: &tripped, actor: "guard", at: at() })
}

#[test]
fn a_sentence_for_every_rule() {
    let everyone = "Everyone is served by blue (python).";
    let bare = |name: &str, limit: f64| Evidence { window_seconds: 0, bad: 0, of: 0, ..rule(name, limit, 0, 0) };
    for (rule, expected) in [
        (rule("error_rate", 0.05, 37, 0), "37 of 120 requests failed in 8 s (limit 5 %), while blue failed 0 of 118."),
        (
            Evidence { blue_bad: 0, blue_of: 0, ..rule("error_rate", 0.005, 37, 0) },
            "37 of 120 requests failed in 8 s (limit 0.5 %), with nothing on blue to compare it with.",
        ),
        (
            rule("error_increase", 0.5, 37, 2),
            "37 of 120 requests failed in 8 s (limit 50 % more than blue), while blue failed 2 of 118.",
        ),
        (
            rule("connect_failures", 0.01, 9, 0),
            "it could not be reached for 9 of 120 requests in 8 s (limit 1 %), while blue could not be reached for 0 of \
             118.",
        ),
        (
            rule("p95_ratio", 2.0, 37, 3),
            "37 of 120 requests took longer than 300 ms in 8 s, 2 times blue's 95th percentile (limit 5 %), while blue \
             was that slow for 3 of 118.",
        ),
        (
            Evidence { threshold_ms: Some(12_345.6), allowed_share: Some(0.5), ..rule("p50_ratio", 1.5, 99, 3) },
            "99 of 120 requests took longer than 12.3 s in 8 s, 1.5 times blue's median (limit 50 %), while blue was that \
             slow for 3 of 118.",
        ),
        (
            rule("throughput", 0.5, 100, 1),
            "100 of 120 requests in 8 s had no answer within 5 s (at least 50 % of what blue answers is asked), while blue \
             left waiting 1 of 118.",
        ),
        (
            Evidence { allowed_share: Some(0.104), ..rule("cut_off_share", 0.1, 60, 1) },
            "60 of 120 requests were taken and dropped at once in 8 s (at most 10.4 % can be expected), while blue did so to 1 \
             of 118.",
        ),
        (
            rule("match_rate", 0.7, 60, 0),
            "60 of 120 copied requests were not answered as blue answers them in 8 s (at least 70 % must be).",
        ),
        (bare("health", 3.0), "none of its endpoints passed a health check, 4 times in a row (limit 3)."),
        (bare("signal:lag", 1000.0), "lag is 1200, above 1000 for 5 min."),
        (bare("one of tomorrow", 1.0), "lag is 1200, above 1000 for 5 min."),
    ] {
        let name = rule.rule.clone();
        let told = incident_of(&route("http"), &judgement(vec![rule]), &[]);
        assert_eq!(told.summary, format!("At 14:03 UTC green (go) of shop was taken off: {expected} {everyone}"));
        assert_eq!(told.rule, name);
    }
    for protocol in ["mqtt", "tcp"] {
        let summary = incident_of(&route(protocol), &judgement(vec![rule("error_rate", 0.05, 37, 0)]), &[]).summary;
        assert!(summary.contains("37 of 120 connections failed in 8 s"), "{summary}");
        let open = " New connections go to blue (python); those that are open stay with green until they end.";
        assert!(summary.ends_with(open), "{summary}");
    }
    let copies = incident_at(0.0, &route("http"), &judgement(vec![rule("error_rate", 0.05, 37, 0)]), &[]).summary;
    let expected = "At 14:03 UTC green (go) of shop was stopped before it had a share: 37 of 120 copied requests failed in 8 s \
                    (limit 5 %), while blue failed 0 of 118. Everyone is served by blue (python), as before.";
    assert_eq!(copies, expected);
    let shared = judgement(vec![Evidence { shared_cause: true, ..rule("error_rate", 0.05, 37, 40) }]);
    let summary = incident_of(&route("http"), &shared, &[]).summary;
    assert!(summary.contains(" Blue was as bad, and this route is set to roll back all the same."));
    let another = Judgement { shared_cause: true, ..judgement(vec![rule("error_rate", 0.05, 37, 40)]) };
    assert!(!incident_of(&route("http"), &another, &[]).summary.contains("Blue was"), "it is another rule's");
    let nothing = incident_of(&route("http"), &judgement(Vec::new()), &[]);
    assert!(nothing.summary.contains("green failed 37 of 120 (30.8 %)") && nothing.rule.is_empty(), "{nothing:?}");
}

#[test]
fn of_several_rules_in_breach_the_loudest_is_told() {
    let quiet = Evidence { evidence: 9.0, verdict: Verdict::Unknown, ..rule("throughput", 0.5, 1, 0) };
    let first = Evidence { evidence: 1.5, ..rule("error_rate", 0.05, 37, 0) };
    let loud = Evidence { evidence: 2.5, ..rule("p95_ratio", 2.0, 37, 0) };
    let told = |rules: &[&Evidence]| {
        incident_of(&route("http"), &judgement(rules.iter().copied().cloned().collect()), &[]).rule
    };
    assert_eq!(told(&[&quiet, &first, &loud]), "p95_ratio");
    assert_eq!(told(&[&first, &Evidence { evidence: 1.5, ..loud }]), "error_rate", "the first of equals");
    assert_eq!(told(&[&Evidence { evidence: f64::NAN, ..first }]), "error_rate");
}

/// `count` seconds of 20 requests to each arm; from `sick` on green fails half of them.
fn seconds(count: u64, sick: u64) -> Vec<Arc<Second>> {
    let second = |at: u64| {
        let mut second = Second { at, ..Second::default() };
        for n in 0..20 {
            second.blue.record(Outcome::Ok, Some(10_000 + n * 100));
            let failed = at >= sick && n % 2 == 0;
            second.green.record(if failed { Outcome::Refused } else { Outcome::Ok }, Some(20_000 + n * 100));
        }
        (second.blue.dispatched, second.green.dispatched) = (20, 20);
        second.green.sample = (at >= sick).then(|| Sample {
            at: format!("second {at}"),
            outcome: "refused",
            status: Some(502),
            endpoint: Some("127.0.0.1:9002".to_owned()),
            message: "answered 502".to_owned(),
        });
        Arc::new(second)
    };
    (0..count).map(second).collect()
}

#[test]
fn the_minutes_before_are_in_it_second_by_second() {
    let told = incident_of(&route("http"), &judgement(vec![rule("error_rate", 0.05, 40, 0)]), &seconds(400, 390));
    for arm in [&told.seconds.blue, &told.seconds.green] {
        assert_eq!(
            [arm.dispatched.len(), arm.judged.len(), arm.failed.len(), arm.overdue.len(), arm.p95_ms.len()],
            [300; 5]
        );
    }
    assert_eq!(told.seconds.green.failed.iter().sum::<u64>(), 100);
    assert_eq!(told.seconds.green.failed[289..291], [0, 10]);
    assert_eq!(told.seconds.blue.failed.iter().sum::<u64>(), 0);
    assert_eq!((told.seconds.until.as_str(), told.at.as_str()), ("2026-01-31T14:03:02Z", "2026-01-31T14:03:02Z"));
    assert_eq!(told.id, "20260131T140302Z-shop-8");
    // Of the 8 s that the rule is about.
    assert_eq!(told.first_error.unwrap().at, "second 392");
    assert_eq!(told.last_error.unwrap().at, "second 399");
    let Quantiles { window_seconds: 8, blue, green } = told.quantiles else { panic!("{:?}", told.quantiles) };
    assert_eq!((blue.answers, green.answers), (160, 80), "those that failed have no latency");
    let p95 = blue.p95.as_ref().unwrap();
    assert!(p95.at_least_ms.unwrap() < p95.ms && p95.ms <= p95.at_most_ms.unwrap(), "{p95:?}");
    let (p50, p99) = (blue.p50.unwrap(), blue.p99.unwrap());
    assert!((10.8..11.2).contains(&p50.ms) && p50.at_least_ms.unwrap() < p50.ms && p50.ms < p50.at_most_ms.unwrap());
    assert!(p99.at_most_ms.is_none() && p99.at_least_ms.is_some(), "160 are too few to bound it from above: {p99:?}");

    // Whatever happened before there was traffic is not worth a column.
    let mut late: Vec<Arc<Second>> = (0..100).map(|at| Arc::new(Second { at, ..Second::default() })).collect();
    late.extend(seconds(3, 9));
    let told = incident_of(&route("http"), &judgement(vec![rule("error_rate", 0.05, 40, 0)]), &late);
    assert_eq!((told.seconds.green.dispatched.len(), told.first_error, told.last_error), (3, None, None));
}

fn as_json(incident: &Incident) -> Value {
    serde_json::to_value(incident).unwrap()
}

/// Every row of a table has as many cells as its head.
#[track_caller]
fn check_tables(page: &str) {
    let mut cells = None;
    for line in page.lines() {
        if !line.starts_with('|') {
            cells = None;
            continue;
        }
        let count = line.replace("\\|", "").matches('|').count();
        assert_eq!(*cells.get_or_insert(count), count, "{line}\nin\n{page}");
    }
}

#[test]
fn it_is_a_page_that_can_be_read() {
    let told = incident_of(&route("http"), &judgement(vec![rule("error_rate", 0.05, 40, 0)]), &seconds(100, 95));
    let page = page(&as_json(&told));
    check_tables(&page);
    let expected = "# Incident 20260131T140302Z-shop-8\n\nAt 14:03 UTC green (go) of shop was taken off: 40 of 120";
    assert!(page.starts_with(expected), "{page}");
    for line in [
        "| Green's share before | 25 % |",
        "| Taken off by | guard |",
        "| | blue (python) | green (go) |",
        "| error_rate | breach | 1.20 | 0.05 | 4 | 40 | 120 | lag is 1200, above 1000 for 5 min |",
        "| first | second 95 | refused | 502 | 127.0.0.1:9002 | answered 502 |",
        "| last | second 99 | refused | 502 | 127.0.0.1:9002 | answered 502 |",
        "## The last 60 s",
        "| 0 | 20 | 0 | 0 | 11.84 | 20 | 10 | 0 | 22.02 |",
        "| -59 | 20 | 0 | 0 | 11.84 | 20 | 0 | 0 | 21.89 |",
        "Green stays at 0 until somebody lets it be raised again: `crossfade reset shop --reason …`.",
    ] {
        assert!(page.contains(&format!("{line}\n")), "{line} is not in\n{page}");
    }
    assert!(!page.contains("| Plan |"));
    let in_a_plan = Incident { plan_step: Some(PlanStep { step: 3, of: 5 }), ..told };
    assert!(super::page(&as_json(&in_a_plan)).contains("| Plan | step 3 of 5 |\n"));
}

#[test]
fn what_an_older_crossfade_recorded_is_a_page_too() {
    let old = json!({
        "id": "20260131T101502Z-shop-8", "route": "shop", "at": "2026-01-31T10:15:02.123Z", "verdict": "breach",
        "reason": "green failed 100 of 500 (20.0 %) in the last 10 s",
        "rules": [{ "rule": "error_rate", "verdict": "breach", "window_seconds": 10, "limit": 0.05, "observed": 0.2,
                    "bad": 100, "of": 500, "share_at_least": 0.121, "reason": "green failed 100 of 500 (20.0 %)" }],
        "window_seconds": 10,
        "counts": { "blue": { "dispatched": 500, "ok": 500, "error_rate": 0.0 }, "green": { "dispatched": 500, "ok": 400, "refused": 100, "error_rate": 0.2 } },
        "blue_p95_ms": 11.9, "green_p95_ms": 12.1, "split_before": 50, "revision": 8
    });
    let page = page(&old);
    check_tables(&page);
    for line in [
        "green failed 100 of 500 (20.0 %) in the last 10 s",
        "| Rule | – |",
        "| Server errors | – | 100 |",
        "| Failed share | 0 % | 20 % |",
        "| p95 | 11.9 ms | 12.1 ms |",
        "| error_rate | breach | – | 0.05 | 0.20 | 100 | 500 | green failed 100 of 500 (20.0 %) |",
    ] {
        assert!(page.contains(&format!("{line}\n")), "{line} is not in\n{page}");
    }
}

#[test]
fn whatever_is_in_it_the_page_stays_a_page() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let told = incident_of(&route("http"), &judgement(vec![rule("error_rate", 0.05, 40, 0)]), &seconds(20, 15));
    for _ in 0..500 {
        let mut incident = as_json(&told);
        for _ in 0..random.usize(1..8) {
            spoil(&mut incident, &mut random);
        }
        let page = page(&incident);
        check_tables(&page);
        assert!(!page.replace("\\<", "").contains('<'), "{page}");
        assert!(!page.chars().any(|character| character.is_control() && character != '\n'), "{page}");
    }
}

/// Replaces something, somewhere.
fn spoil(value: &mut Value, random: &mut fastrand::Rng) {
    let inner = match value {
        _ if random.u8(..10) == 0 => None,
        Value::Object(fields) => random.choice(fields.values_mut()),
        Value::Array(items) => random.choice(items),
        _ => None,
    };
    match inner {
        Some(inner) => spoil(inner, random),
        None => {
            *value = match random.u8(..6) {
                0 => Value::Null,
                1 => json!("a | b\n| c |\r\u{1b}[31m<script>alert(1)</script> [x](y) `z` \\| \\"),
                2 => json!(-1e300),
                3 => json!([1, "|", null]),
                4 => json!({ "a|b": "|\n" }),
                _ => json!(u64::MAX),
            }
        }
    }
}
