//! A trip in words for people who do not know the guard: what was taken off, why, and who serves now.

use config::{Protocol, Route, Split};

use super::Trip;
use crate::Evidence;

/// "At 14:03 UTC green (go) of shop was taken off: 37 of 120 requests failed in 8 s (limit 5 %), while blue failed 0 of
/// 118. Everyone is served by blue (python)."
///
/// `telling`: the rule that decided, if there is one.
pub(super) fn summary(trip: &Trip<'_>, telling: Option<&Evidence>) -> String {
    let Trip { route, judgement, before, at, .. } = trip;
    let (hour, minute) = (at.hour(), at.minute());
    let (green, blue) = (&route.green.label, &route.blue.label);
    // A plan may begin with copies of requests, before green has a share.
    let had_share = before.split > Split::NONE;
    let what = match route.protocol {
        Protocol::Http if had_share => "requests",
        Protocol::Http => "copied requests",
        Protocol::Mqtt | Protocol::Tcp => "connections",
    };
    let done = if had_share { "was taken off" } else { "was stopped before it had a share" };
    let because = telling.map_or_else(|| judgement.reason.clone(), |rule| because(route, what, rule));
    let shared = if telling.is_some_and(|rule| rule.shared_cause) {
        " Blue was as bad, and this route is set to roll back all the same."
    } else {
        ""
    };
    let now = match route.protocol {
        _ if !had_share => format!("Everyone is served by blue ({blue}), as before."),
        Protocol::Http => format!("Everyone is served by blue ({blue})."),
        Protocol::Mqtt | Protocol::Tcp => {
            format!("New connections go to blue ({blue}); those that are open stay with green until they end.")
        }
    };
    format!("At {hour:02}:{minute:02} UTC green ({green}) of {} {done}: {because}.{shared} {now}", route.name)
}

/// What the rule saw of `what`: requests, or connections.
fn because(route: &Route, what: &str, rule: &Evidence) -> String {
    let Evidence { bad, of, blue_bad, blue_of, limit, window_seconds: seconds, .. } = rule;
    let seen = |verb: &str| format!("{bad} of {of} {what} {verb} in {seconds} s");
    let while_blue = |verb: &str| match blue_of {
        // It is bad in another way.
        0 if rule.shared_cause => String::new(),
        0 => ", with nothing on blue to compare it with".to_owned(),
        _ => format!(", while blue {verb} {blue_bad} of {blue_of}"),
    };
    let threshold = milliseconds(rule.threshold_ms.unwrap_or_default());
    match rule.rule.as_str() {
        "error_rate" => format!("{} (limit {}){}", seen("failed"), percent(*limit), while_blue("failed")),
        "error_increase" => {
            let (failed, beside) = (seen("failed"), while_blue("failed"));
            format!("{failed} (limit {} more than blue){beside}", percent(*limit))
        }
        "connect_failures" => {
            let beside = while_blue("could not be reached for");
            format!(
                "it could not be reached for {bad} of {of} {what} in {seconds} s (limit {}){beside}",
                percent(*limit)
            )
        }
        "p50_ratio" | "p95_ratio" | "p99_ratio" => {
            let (name, share) = match rule.rule.as_str() {
                "p50_ratio" => ("median", 0.5),
                "p95_ratio" => ("95th percentile", 0.05),
                _ => ("99th percentile", 0.01),
            };
            let took = format!("took longer than {threshold}");
            let slow = seen(&took);
            let beside = while_blue("was that slow for");
            format!(
                "{slow}, {limit} times blue's {name} (limit {}){beside}",
                percent(rule.allowed_share.unwrap_or(share))
            )
        }
        "throughput" => {
            let within = route.guard.as_ref().map_or(0, |guard| guard.answer_within.as_secs());
            let late = format!("{bad} of {of} {what} in {seconds} s had no answer within {within} s");
            let least = format!("at least {} of what blue answers is asked", percent(*limit));
            format!("{late} ({least}){}", while_blue("left waiting"))
        }
        "cut_off_share" => {
            let expected = percent(rule.allowed_share.unwrap_or_default());
            format!(
                "{} (at most {expected} can be expected){}",
                seen("were taken and dropped at once"),
                while_blue("did so to")
            )
        }
        "match_rate" => {
            let differed =
                format!("{bad} of {of} copied requests were not answered as blue answers them in {seconds} s");
            format!("{differed} (at least {} must be)", percent(*limit))
        }
        "health" => {
            let failed = rule.observed.unwrap_or_default();
            format!("none of its endpoints passed a health check, {failed} times in a row (limit {limit})")
        }
        // A signal names itself.
        _ => rule.reason.clone(),
    }
}

/// `5 %`, `12.5 %`: as many digits as it takes, two at most.
pub(super) fn percent(share: f64) -> String {
    let percent = format!("{:.2}", share * 100.0);
    format!("{} %", percent.trim_end_matches('0').trim_end_matches('.'))
}

/// `3.2 ms`, `812 ms`, `12.5 s`.
pub(super) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 100.0 => format!("{ms:.1} ms"),
        ms if ms < 10_000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}
