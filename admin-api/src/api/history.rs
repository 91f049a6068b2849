//! What the minutes before were like.

use axum::Json;
use config::{Arm, Split};
use http::{StatusCode, Uri, header};
use serde::Serialize;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use utoipa::ToSchema;

use super::{Problem, State, body::Fields};
use crate::{HistoryError, Outcome, Row, Verdict, Wanted, control::with_sources, event::rfc3339, percent};

#[derive(Serialize, ToSchema)]
pub(super) struct Minutes {
    /// Oldest first, blue before green.
    history: Vec<Minute>,
    /// There are older ones within what was asked for: ask again with `until` as the first one's `at`.
    more: bool,
}

/// One arm of a route in one minute.
#[derive(Serialize, ToSchema)]
struct Minute {
    /// When the minute began, RFC 3339.
    at: String,
    route: String,
    #[schema(value_type = String, example = "green")]
    arm: Arm,
    /// This arm's share at the end of the minute; null where that is not known.
    #[serde(serialize_with = "percent::serialize_option")]
    #[schema(value_type = Option<f64>)]
    percentage: Option<Split>,
    /// Of the minute that were counted: 60, or one more or less; fewer where the process started or ended in it.
    seconds: u64,
    dispatched: u64,
    ok: u64,
    declined: u64,
    unreachable: u64,
    refused: u64,
    broken: u64,
    timeout: u64,
    client_gone: u64,
    fallbacks: u64,
    /// What was to be answered in this minute at the latest.
    due: u64,
    /// Of that, what was not.
    overdue: u64,
    /// Failed share of those that say something about the arm, 0 to 1.
    error_rate: Option<f64>,
    p50_ms: Option<f64>,
    p95_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// The guard's at the end of the minute; null for blue, and where nothing was judged.
    verdict: Option<Verdict>,
    /// The strongest of the guard's rules: its evidence as a share of what makes a breach.
    evidence: Option<f64>,
}

impl Minute {
    fn of(row: Row) -> Self {
        let ms = |us: Option<u64>| us.map(|us| us as f64 / 1000.0);
        Self {
            at: OffsetDateTime::from_unix_timestamp(row.at).map(rfc3339).unwrap_or_default(),
            arm: row.arm,
            percentage: row.split,
            seconds: row.seconds,
            dispatched: row.dispatched,
            ok: row.count(Outcome::Ok),
            declined: row.count(Outcome::Declined),
            unreachable: row.count(Outcome::Unreachable),
            refused: row.count(Outcome::Refused),
            broken: row.count(Outcome::Broken),
            timeout: row.count(Outcome::Timeout),
            client_gone: row.count(Outcome::ClientGone),
            fallbacks: row.fallbacks,
            due: row.due,
            overdue: row.overdue,
            error_rate: row.error_rate(),
            p50_ms: ms(row.p50_us),
            p95_ms: ms(row.p95_us),
            p99_ms: ms(row.p99_us),
            verdict: row.verdict,
            evidence: row.evidence,
            route: row.route,
        }
    }
}

/// Rows of an answer: by default a few hours of a route, at most some days.
const LIMIT: usize = 1_000;
const MOST: usize = 10_000;

/// Counts, latencies, split and verdict of each minute
#[utoipa::path(
    get,
    path = "/history",
    params(
        ("route" = Option<String>, Query, description = "Only this one"),
        ("since" = Option<String>, Query, description = "From when on: RFC 3339, or so long ago: -90s, -30m, -2h, -7d; \
                                                         -1h when left out"),
        ("until" = Option<String>, Query, description = "Before when, written in the same way; now when left out"),
        ("limit" = Option<u32>, Query, description = "Rows, up to 10000, 1000 when left out. The newest are taken, and \
                                                      whole minutes, at least one"),
    ),
    responses(
        (status = 200, description = "A row for each minute that is over, route and arm", body = Minutes),
        (status = 404, description = "No such route, now or then", body = Problem,
         content_type = "application/problem+json"),
        (status = 503, description = "The file cannot be read, or not within 2 s", body = Problem,
         content_type = "application/problem+json"),
    )
)]
pub(super) async fn history(state: State, uri: Uri) -> Result<Json<Minutes>, Box<Problem>> {
    let now = OffsetDateTime::now_utc();
    let mut query = Fields::query(&uri)?;
    let (route, limit) = (query.text("route"), query.count("limit", MOST));
    let mut moment = |name: &str, default: OffsetDateTime| {
        let Some(text) = query.text(name) else { return default };
        parse(&text, now).unwrap_or_else(|problem| {
            query.fault(name, problem, "give it a time such as 2026-01-31T10:15:00Z, or so long ago as -2h");
            default
        })
    };
    let (since, until) = (moment("since", now - Duration::HOUR), moment("until", now));
    if since >= until {
        query.fault("since", "is not before until", "give it an earlier time, or until a later one");
    }
    query.finish(&["route", "since", "until", "limit"])?;

    let wanted =
        Wanted { route, since: since.unix_timestamp(), until: until.unix_timestamp(), limit: limit.unwrap_or(LIMIT) };
    let (rows, more) = state.history.read(wanted.clone()).await.map_err(unreadable)?;
    if let Some(route) = wanted.route.filter(|_| rows.is_empty()) {
        state.control.state(&route)?;
    }
    Ok(Json(Minutes { history: rows.into_iter().map(Minute::of).collect(), more }))
}

/// `2026-01-31T10:15:00Z`, or `-2h`: so long before `now`.
fn parse(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, &'static str> {
    let Some(ago) = text.strip_prefix('-') else {
        // The plus of an offset, which a query turns into a space unless it is written as %2B.
        return OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339).map_err(|_| "is not a time");
    };
    let (digits, unit) = ago.split_at(ago.find(|c: char| !c.is_ascii_digit()).unwrap_or(ago.len()));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err("is not a time"),
    };
    let ago = digits.parse::<i64>().map_err(|_| "is not a time")?;
    let ago = ago.checked_mul(seconds).map(Duration::seconds);
    ago.and_then(|ago| now.checked_sub(ago)).ok_or("is before all times")
}

fn unreadable(error: HistoryError) -> Box<Problem> {
    let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "history", with_sources(&error));
    match error {
        HistoryError::TooMuch { .. } => problem.cure("ask for less time at once, with since and until"),
        _ => problem.cure("see the history file's disk and try again").header(header::RETRY_AFTER, "60"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_times_or_so_long_ago() {
        let now = OffsetDateTime::from_unix_timestamp(1_769_854_500).unwrap();
        for (text, expected) in [
            ("2026-01-31T10:15:00Z", Some(1_769_854_500)),
            ("2026-01-31T10:15:00.250Z", Some(1_769_854_500)),
            ("2026-01-31T11:15:00+01:00", Some(1_769_854_500)),
            ("2026-01-31T11:15:00 01:00", Some(1_769_854_500)),
            ("-0s", Some(1_769_854_500)),
            ("-90s", Some(1_769_854_410)),
            ("-30m", Some(1_769_852_700)),
            ("-2h", Some(1_769_847_300)),
            ("-7d", Some(1_769_249_700)),
            ("", None),
            ("-", None),
            ("-h", None),
            ("-2", None),
            ("--2h", None),
            ("-2 h", None),
            ("-1.5h", None),
            ("2h", None),
            ("-2w", None),
            ("-99999999999999999999d", None),
            ("-9223372036854775807d", None),
            ("-9223372036854775807s", None),
            ("-9999999d", None),
            ("2026-01-31", None),
            ("1769854500", None),
            ("2026-02-30T00:00:00Z", None),
            ("yesterday", None),
        ] {
            let moment = parse(text, now).ok();
            assert_eq!(moment.map(OffsetDateTime::unix_timestamp), expected, "{text:?}");
        }
    }
}
