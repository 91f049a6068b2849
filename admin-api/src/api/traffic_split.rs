//! Reading and changing splits, rolling back, resetting.

use std::collections::BTreeMap;

use axum::{
    Extension, Json,
    extract::Request,
    response::{IntoResponse, Response},
};
use config::{Arm, Route, Split};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Problem, State, access::Caller, body::Fields};
use crate::{Control, Observation, RouteView, percent};

/// How one route's traffic is split.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TrafficSplit {
    route: String,
    /// Grows with every change; the value of `ETag`.
    revision: u64,
    blue: Share,
    green: Share,
    /// Green may not rise until a reset.
    latched: bool,
    /// What was really dispatched over the last 60 s, in per cent; null without traffic.
    achieved: Option<Achieved>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Share {
    label: String,
    #[serde(serialize_with = "percent::serialize")]
    #[schema(value_type = f64, example = 10)]
    percentage: Split,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub(super) struct Achieved {
    blue: f64,
    green: f64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TrafficSplits {
    routes: Vec<TrafficSplit>,
}

/// One side is enough. By the label of its arm a side is called `LABEL_percentage`, too: `go_percentage`,
/// `python_percentage`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "documents the body, which is read field by field to report every fault")]
struct SplitRequest {
    /// May be left out when there is only one.
    #[schema(nullable = false)]
    route: Option<String>,
    /// 0 to 100 in steps of 0.01.
    #[schema(example = 10, nullable = false, minimum = 0, maximum = 100)]
    green_percentage: Option<f64>,
    #[schema(example = 90, nullable = false, minimum = 0, maximum = 100)]
    blue_percentage: Option<f64>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "documents the body, which is read field by field to report every fault")]
struct RollbackRequest {
    /// May be left out when there is only one.
    #[schema(nullable = false)]
    route: Option<String>,
    /// Its first 500 characters are kept, on one line.
    reason: Option<String>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "documents the body, which is read field by field to report every fault")]
struct ResetRequest {
    /// May be left out when there is only one.
    #[schema(nullable = false)]
    route: Option<String>,
    /// One line, at most 500 characters.
    reason: String,
}

/// Seconds over which the achieved split is counted.
pub(super) const RECENT_SECONDS: usize = 60;

/// Who served over the last minute. What fell back was dispatched to green and then to blue, and blue served it.
pub(super) fn achieved(seen: &Observation) -> Option<Achieved> {
    let recent = &seen.seconds[seen.seconds.len().saturating_sub(RECENT_SECONDS)..];
    let served = |arm: Arm| {
        let tallies = recent.iter().map(|second| second.arm(arm));
        tallies.map(|tally| tally.dispatched.saturating_sub(tally.fallbacks)).sum::<u64>() as f64
    };
    let (blue, green) = (served(Arm::Blue), served(Arm::Green));
    let share = |one: f64| (one / (blue + green) * 10_000.0).round() / 100.0;
    (blue + green > 0.0).then(|| Achieved { blue: share(blue), green: share(green) })
}

/// The splits of all routes, or of one
#[utoipa::path(
    get,
    path = "/traffic-split",
    params(("route" = Option<String>, Query, description = "Answer with this route's object alone")),
    responses(
        (status = 200, description = "Without `route`; with it, one element of `routes`, and an ETag", body = TrafficSplits),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(state: State, uri: Uri) -> Result<Response, Box<Problem>> {
    let mut query = Fields::query(&uri)?;
    let route = query.text("route");
    query.finish(&["route"])?;
    let control = &state.control;
    match route {
        Some(route) => one(control, &control.state(&route)?),
        None => {
            let views = control.states();
            let routes = views.iter().filter_map(|view| describe(control, view)).collect();
            let mut response = Json(TrafficSplits { routes }).into_response();
            if let [only] = views.as_slice() {
                tag(&mut response, only);
            }
            Ok(response)
        }
    }
}

/// Changes a split. Answers when it is on disk and live
#[utoipa::path(
    post,
    path = "/traffic-split",
    params(("if-match" = Option<String>, Header, description = "The ETag that must still be current")),
    request_body = SplitRequest,
    responses(
        (status = 200, description = "On disk and live", body = TrafficSplit),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Latched, and green would rise; or the route was changed meanwhile", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "The route has another revision", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Could not be recorded, or another instance takes over", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn change(
    state: State,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Box<Problem>> {
    let control = &state.control;
    let mut asked = Asked::default();
    let parsed = asked.split(control, request).await;
    let (route, split, if_match) = parsed.map_err(|problem| asked.refused(control, "split", &caller, problem))?;
    let view = control.set_split(&route, split, &caller.actor, if_match).await?;
    one(control, &view)
}

/// Takes green to 0 and latches the route. An If-Match is ignored: an emergency stop does not fail on a stale tag
#[utoipa::path(
    post,
    path = "/rollback",
    request_body = RollbackRequest,
    responses(
        (status = 200, description = "On disk and live", body = TrafficSplit),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Live, but could not be recorded; or another instance takes over", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn rollback(
    state: State,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Box<Problem>> {
    let control = &state.control;
    let mut asked = Asked::default();
    let parsed = asked.reason(control, request, Urgency::Emergency).await;
    let (route, reason, _) = parsed.map_err(|problem| asked.refused(control, "rollback", &caller, problem))?;
    let view = control.rollback(&route, &reason, &caller.actor).await?;
    one(control, &view)
}

/// Clears the latch and the guard's evidence
#[utoipa::path(
    post,
    path = "/reset",
    params(("if-match" = Option<String>, Header, description = "The ETag that must still be current")),
    request_body = ResetRequest,
    responses(
        (status = 200, description = "On disk and live", body = TrafficSplit),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The route was changed meanwhile", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "The route has another revision", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Could not be recorded, or another instance takes over", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn reset(
    state: State,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Box<Problem>> {
    let control = &state.control;
    let mut asked = Asked::default();
    let parsed = asked.reason(control, request, Urgency::Considered).await;
    let (route, reason, if_match) = parsed.map_err(|problem| asked.refused(control, "reset", &caller, problem))?;
    let view = control.reset(&route, &reason, &caller.actor, if_match).await?;
    one(control, &view)
}

/// What a change that has a reason is held up by.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Urgency {
    /// By nothing: neither a reason that is missing or runs on, nor a stale tag.
    Emergency,
    Considered,
}

/// What is known of a request so far, for the audit trail when it is refused.
#[derive(Default)]
pub(super) struct Asked {
    route: Option<String>,
    split: Option<Split>,
}

impl Asked {
    async fn split(
        &mut self,
        control: &Control,
        request: Request,
    ) -> Result<(String, Split, Option<u64>), Box<Problem>> {
        let headers = request.headers().clone();
        let mut fields = Fields::read(request).await?;
        let config = control.config();
        let route = self.route(&config.routes, &mut fields)?;

        let names = side_names(route);
        let mut sides: BTreeMap<Arm, (String, Option<Split>)> = BTreeMap::new();
        for (name, arm) in &names {
            if !fields.has(name) {
                continue;
            }
            let share = fields.percentage(name);
            if let Some((before, _)) = sides.get(arm) {
                let problem = format!("says the same as {before}");
                fields.fault(name, problem, format!("give one of {before} and {name}"));
            }
            sides.entry(*arm).or_insert_with(|| (name.clone(), share));
        }
        let side = |arm: Arm| sides.get(&arm).and_then(|(_, share)| *share);
        let split = match (side(Arm::Blue), side(Arm::Green)) {
            (Some(blue), Some(green)) => {
                let sum = (u32::from(blue.buckets()) + u32::from(green.buckets())) as f64 / 100.0;
                if green.complement() != blue {
                    let name = sides.get(&Arm::Green).map_or("green_percentage", |(name, _)| name.as_str());
                    fields.fault(name, format!("the two sides sum to {sum}, not 100"), "leave one of them out");
                }
                Some(green)
            }
            (Some(blue), None) => Some(blue.complement()),
            (None, green) => green,
        };
        if sides.is_empty() {
            fields.fault("green_percentage", "is missing", "give green a share from 0 to 100");
        }
        self.split = split;
        let allowed: Vec<&str> = ["route"].into_iter().chain(names.iter().map(|(name, _)| name.as_str())).collect();
        fields.finish(&allowed)?;
        let split = split.ok_or_else(|| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "no share given"))?;
        let if_match = if_match(&headers, || revision(control, &route.name))?;
        Ok((route.name.clone(), split, if_match))
    }

    async fn reason(
        &mut self,
        control: &Control,
        request: Request,
        urgency: Urgency,
    ) -> Result<(String, String, Option<u64>), Box<Problem>> {
        let headers = request.headers().clone();
        let mut fields = Fields::read(request).await?;
        let config = control.config();
        let route = self.route(&config.routes, &mut fields)?;
        let given = fields.has("reason");
        let reason = match urgency {
            Urgency::Emergency => fields.line("reason"),
            Urgency::Considered => fields.text("reason"),
        };
        if urgency == Urgency::Considered && !given {
            fields.fault("reason", "is missing", "say why, for whoever reads the audit trail");
        }
        fields.finish(&["route", "reason"])?;
        let reason = reason.unwrap_or_else(|| "no reason given".to_owned());
        let if_match = match urgency {
            Urgency::Emergency => None,
            Urgency::Considered => if_match(&headers, || revision(control, &route.name))?,
        };
        Ok((route.name.clone(), reason, if_match))
    }

    /// The route of a body; the only one where it names none.
    pub(super) fn route<'a>(&mut self, routes: &'a [Route], fields: &mut Fields) -> Result<&'a Route, Box<Problem>> {
        let named = fields.has("route");
        let name = fields.text("route");
        self.route = name.clone();
        let found = match (&name, routes) {
            (Some(name), _) => routes.iter().find(|route| route.name == *name),
            (None, [only]) if !named => Some(only),
            _ => None,
        };
        if let Some(route) = found {
            self.route = Some(route.name.clone());
            return Ok(route);
        }
        let known: Vec<&str> = routes.iter().map(|route| route.name.as_str()).collect();
        let cure = format!("choose one of {}", known.join(", "));
        match name {
            Some(name) => {
                Err(Problem::new(StatusCode::NOT_FOUND, "unknown-route", format!("there is no route {name:?}"))
                    .field("route")
                    .cure(cure))
            }
            None => {
                if !named {
                    fields.fault("route", "is missing, and there are several", cure);
                }
                // Which other fields are known depends on the route.
                Err(std::mem::take(fields).fail())
            }
        }
    }

    pub(super) fn refused(
        &self,
        control: &Control,
        action: &'static str,
        caller: &Caller,
        problem: Box<Problem>,
    ) -> Box<Problem> {
        control.refused(action, self.route.as_deref(), self.split, &caller.actor, &problem.detail);
        problem
    }
}

pub(super) fn revision(control: &Control, route: &str) -> Option<u64> {
    control.state(route).ok().map(|view| view.recorded.revision)
}

/// Every name that a side of this route goes by.
fn side_names(route: &Route) -> Vec<(String, Arm)> {
    let mut names: Vec<(String, Arm)> = Vec::new();
    let by_arm = Arm::BOTH.map(|arm| (format!("{arm}_percentage"), arm));
    let by_label = Arm::BOTH.map(|arm| (format!("{}_percentage", route.arm(arm).label), arm));
    for (name, arm) in by_arm.into_iter().chain(by_label) {
        if names.iter().all(|(before, _)| *before != name) {
            names.push((name, arm));
        }
    }
    names
}

/// RFC 9110, 13.1.1. `current`: the revision now. `None`: no condition, or one that any state meets.
pub(super) fn if_match(
    headers: &HeaderMap,
    current: impl FnOnce() -> Option<u64>,
) -> Result<Option<u64>, Box<Problem>> {
    let malformed = || {
        Problem::new(StatusCode::BAD_REQUEST, "malformed", "if-match is not a list of entity tags")
            .field("if-match")
            .cure("send the ETag of an earlier answer, quotes included")
    };
    let mut revisions = Vec::new();
    let mut conditions = 0;
    for value in headers.get_all(header::IF_MATCH) {
        for tag in value.to_str().map_err(|_| malformed())?.split(',').map(str::trim) {
            conditions += 1;
            if tag == "*" {
                return Ok(None);
            }
            let strong = tag.strip_prefix("W/").unwrap_or(tag);
            let inner = strong.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).ok_or_else(malformed)?;
            // Weak tags never match strongly, and tags that are no revision never were ours.
            revisions.extend(inner.parse::<u64>().ok().filter(|_| strong == tag));
        }
    }
    if conditions == 0 {
        return Ok(None);
    }
    let now = current().filter(|now| revisions.contains(now));
    // No revision is 0: nothing that was sent can match.
    Ok(Some(now.or_else(|| revisions.first().copied()).unwrap_or(0)))
}

fn one(control: &Control, view: &RouteView) -> Result<Response, Box<Problem>> {
    let Some(split) = describe(control, view) else {
        control.state(&view.route)?;
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown-route", "a reload has taken the route away")
            .field("route")
            .cure("see /traffic-split for those there are"));
    };
    let mut response = Json(split).into_response();
    tag(&mut response, view);
    Ok(response)
}

pub(super) fn tag(response: &mut Response, view: &RouteView) {
    if let Ok(tag) = HeaderValue::try_from(format!("\"{}\"", view.recorded.revision)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
}

/// `None`: a reload has taken the route away meanwhile.
fn describe(control: &Control, view: &RouteView) -> Option<TrafficSplit> {
    let config = control.config();
    let route = config.routes.iter().find(|route| route.name == view.route)?;
    let recorded = &view.recorded;
    Some(TrafficSplit {
        route: view.route.clone(),
        revision: recorded.revision,
        blue: Share { label: route.blue.label.clone(), percentage: recorded.split.complement() },
        green: Share { label: route.green.label.clone(), percentage: recorded.split },
        latched: recorded.latch.is_some(),
        achieved: control.plane().observe(&view.route).as_ref().and_then(achieved),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fell_back_was_served_by_blue() {
        let mut second = crate::Second::default();
        (second.blue.dispatched, second.green.dispatched, second.green.fallbacks) = (75, 50, 25);
        let seen = Observation { seconds: vec![std::sync::Arc::new(second)], ..Observation::default() };
        let achieved = achieved(&seen).unwrap();
        assert_eq!((achieved.blue, achieved.green), (75.0, 25.0));
        assert!(super::achieved(&Observation::default()).is_none());
    }

    #[test]
    fn if_match_means_what_rfc_9110_says() {
        for (value, expected) in [
            (None, Ok(None)),
            (Some("*"), Ok(None)),
            (Some("\"7\""), Ok(Some(7))),
            (Some("\"6\""), Ok(Some(6))),
            (Some("\"6\", \"7\""), Ok(Some(7))),
            (Some("W/\"7\""), Ok(Some(0))),
            (Some("\"x\""), Ok(Some(0))),
            (Some("7"), Err(400)),
            (Some(""), Err(400)),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::IF_MATCH, HeaderValue::from_static(value));
            }
            assert_eq!(if_match(&headers, || Some(7)).map_err(|problem| problem.status), expected, "{value:?}");
        }
    }
}
