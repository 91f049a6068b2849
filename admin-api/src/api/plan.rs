//! Plans: how far they are, and steering them.

use axum::{
    Extension, Json,
    extract::Request,
    response::{IntoResponse, Response},
};
use config::{Config, Faults, Plan, Split};
use http::{StatusCode, Uri};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Problem, State,
    access::Caller,
    action,
    body::{Fields, kind},
    traffic_split::{Asked, if_match, revision, tag},
};
use crate::{
    Control, PlanChange, RouteView, percent,
    plan::{self, Run, Stamp, Wait},
};

/// The plan of one route.
#[derive(Serialize, ToSchema)]
pub(super) struct PlanStatus {
    route: String,
    /// Grows with every change of split, latch or plan; the value of `ETag`.
    revision: u64,
    #[serde(serialize_with = "percent::serialize")]
    #[schema(value_type = f64)]
    green_percentage: Split,
    /// The configuration has a plan for this route.
    configured: bool,
    /// The plan that was started last; null before the first.
    run: Option<RunStatus>,
}

#[derive(Serialize, ToSchema)]
struct RunStatus {
    state: plan::State,
    /// The step that bakes, or is to begin, counted from 1; one more than there are when all are done.
    step: usize,
    steps: Vec<StepStatus>,
    /// The share of the step is live; else what it waits for comes first.
    entered: bool,
    /// What it waits for: a sentence, new every second. Null where it waits for nothing but time, runs no more, or has not been
    /// looked at since the plan was changed.
    waits_for: Option<String>,
    /// The name to approve by.
    approval_wanted: Option<String>,
    approved: Option<Stamp>,
    /// Of this step: seconds whose verdict was `pass`.
    healthy_seconds: u64,
    /// Of this step: outcomes of green; compared copies, while green has no share.
    outcomes: u64,
    /// Of this step: seconds in which it did not get on.
    held_seconds: u64,
    /// Above this the plan pauses.
    max_hold_seconds: u64,
    /// For how long blue was a hot standby after the last step, and for how long it is to be.
    observed_seconds: u64,
    observe_seconds: u64,
    /// Over this step, as its requirements ask for it.
    measured: MeasuredStatus,
    started: Stamp,
    /// The last change of state or step.
    changed: Stamp,
}

#[derive(Serialize, ToSchema)]
struct StepStatus {
    #[serde(serialize_with = "percent::serialize")]
    #[schema(value_type = f64)]
    green_percentage: Split,
    bake_seconds: u64,
    approval: Option<String>,
    signal: Option<String>,
    /// Without its path, which may be a secret.
    webhook: Option<String>,
    after: Vec<String>,
    #[schema(value_type = Object)]
    require: config::Require,
    #[schema(value_type = String, example = "pause")]
    otherwise: config::Otherwise,
}

#[derive(Serialize, ToSchema)]
struct MeasuredStatus {
    throughput: Option<f64>,
    p95_ratio: Option<f64>,
    match_rate: Option<f64>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Plans {
    plans: Vec<PlanStatus>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "documents the body, which is read field by field to report every fault")]
struct PlanStartRequest {
    /// May be left out when there is only one.
    #[schema(nullable = false)]
    route: Option<String>,
    /// In the form of `[route.plan]`, in place of the configured one.
    #[schema(nullable = false, value_type = Option<Object>)]
    plan: Option<Value>,
    /// One line, at most 500 characters.
    #[schema(nullable = false)]
    reason: Option<String>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "documents the body, which is read field by field to report every fault")]
struct PlanRequest {
    /// May be left out when there is only one.
    #[schema(nullable = false)]
    route: Option<String>,
    /// One line, at most 500 characters.
    #[schema(nullable = false)]
    reason: Option<String>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "documents the body, which is read field by field to report every fault")]
struct PlanApproveRequest {
    /// May be left out when there is only one.
    #[schema(nullable = false)]
    route: Option<String>,
    /// The name that the step asks for.
    approval: String,
    /// One line, at most 500 characters.
    #[schema(nullable = false)]
    reason: Option<String>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "documents the body, which is read field by field to report every fault")]
struct PlanSkipRequest {
    /// May be left out when there is only one.
    #[schema(nullable = false)]
    route: Option<String>,
    /// One line, at most 500 characters.
    reason: String,
}

/// How far plans are, of all routes or of one
#[utoipa::path(
    get,
    path = "/plan",
    params(("route" = Option<String>, Query, description = "Answer with this route's object alone")),
    responses(
        (status = 200, description = "Without `route`; with it, one element of `plans`, and an ETag", body = Plans),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn read(state: State, uri: Uri) -> Result<Response, Box<Problem>> {
    let mut query = Fields::query(&uri)?;
    let route = query.text("route");
    query.finish(&["route"])?;
    let control = &state.control;
    let config = control.config();
    match route {
        Some(route) => Ok(one(&config, control.state(&route)?)),
        None => {
            let plans = control.states().into_iter().map(|view| PlanStatus::of(&config, view)).collect();
            Ok(Json(Plans { plans }).into_response())
        }
    }
}

/// Starts a route's plan: the configured one, or one that is sent. It begins with the first step that is not below
/// green's share
#[utoipa::path(
    post,
    path = "/plan/start",
    params(("if-match" = Option<String>, Header, description = "The ETag that must still be current")),
    request_body = PlanStartRequest,
    responses(
        (status = 200, description = "On disk; green's share follows within a second", body = PlanStatus),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Latched; or a plan is not over yet; or green has more than it ends with; or the route was changed meanwhile", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "The route has another revision", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Could not be recorded, or another instance takes over", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn start(
    state: State,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Box<Problem>> {
    steer(&state, &caller, request, Wanted::Start).await
}

/// Pauses a route's plan. Green keeps its share
#[utoipa::path(
    post,
    path = "/plan/pause",
    params(("if-match" = Option<String>, Header, description = "The ETag that must still be current")),
    request_body = PlanRequest,
    responses(
        (status = 200, description = "On disk", body = PlanStatus),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "No plan goes on", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "The route has another revision", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Live, but could not be recorded; or another instance takes over", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn pause(
    state: State,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Box<Problem>> {
    steer(&state, &caller, request, Wanted::Pause).await
}

/// Resumes a route's plan, with what it had collected. Where somebody gave green another share meanwhile, it gets back
/// that of the step, which begins anew
#[utoipa::path(
    post,
    path = "/plan/resume",
    params(("if-match" = Option<String>, Header, description = "The ETag that must still be current")),
    request_body = PlanRequest,
    responses(
        (status = 200, description = "On disk; green's share follows within a second", body = PlanStatus),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "No plan goes on, or the route's guard is off; or the route was changed meanwhile", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "The route has another revision", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Could not be recorded, or another instance takes over", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn resume(
    state: State,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Box<Problem>> {
    steer(&state, &caller, request, Wanted::Resume).await
}

/// Approves of the step that a route's plan is to begin
#[utoipa::path(
    post,
    path = "/plan/approve",
    params(("if-match" = Option<String>, Header, description = "The ETag that must still be current")),
    request_body = PlanApproveRequest,
    responses(
        (status = 200, description = "On disk; green's share follows within a second", body = PlanStatus),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "No plan goes on, or it asks for another approval, or for none now; or the route was changed meanwhile", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "The route has another revision", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Could not be recorded, or another instance takes over", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn approve(
    state: State,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Box<Problem>> {
    steer(&state, &caller, request, Wanted::Approve).await
}

/// Says that what a route's plan waits for now does not matter: the gates of the step that is to begin, or else what
/// its step lacks to be done. The guard goes on guarding
#[utoipa::path(
    post,
    path = "/plan/skip",
    params(("if-match" = Option<String>, Header, description = "The ETag that must still be current")),
    request_body = PlanSkipRequest,
    responses(
        (status = 200, description = "On disk; green's share follows within a second", body = PlanStatus),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "No plan goes on, or the route's guard is off; or somebody has changed the split; or the route was changed meanwhile", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "The route has another revision", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Could not be recorded, or another instance takes over", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn skip(
    state: State,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Box<Problem>> {
    steer(&state, &caller, request, Wanted::Skip).await
}

/// Ends a route's plan. Green keeps its share
#[utoipa::path(
    post,
    path = "/plan/abort",
    params(("if-match" = Option<String>, Header, description = "The ETag that must still be current")),
    request_body = PlanRequest,
    responses(
        (status = 200, description = "On disk", body = PlanStatus),
        (status = 404, description = "No such route", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "No plan goes on", body = Problem, content_type = "application/problem+json"),
        (status = 412, description = "The route has another revision", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Live, but could not be recorded; or another instance takes over", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn abort(
    state: State,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Box<Problem>> {
    steer(&state, &caller, request, Wanted::Abort).await
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Wanted {
    Start,
    Pause,
    Resume,
    Approve,
    Skip,
    Abort,
}

/// What was asked for, and what for.
struct Steering {
    route: String,
    change: PlanChange,
    reason: String,
    if_match: Option<u64>,
}

async fn steer(state: &State, caller: &Caller, request: Request, wanted: Wanted) -> Result<Response, Box<Problem>> {
    let control = &state.control;
    let (mut asked, action) = (Asked::default(), action(request.uri().path()));
    let parsed = parse(&mut asked, control, request, wanted).await;
    let Steering { route, change, reason, if_match } =
        parsed.map_err(|problem| asked.refused(control, action, caller, problem))?;
    let view = control.change_plan(&route, change, &reason, &caller.actor, if_match).await?;
    Ok(one(&control.config(), view))
}

async fn parse(
    asked: &mut Asked,
    control: &Control,
    request: Request,
    wanted: Wanted,
) -> Result<Steering, Box<Problem>> {
    let headers = request.headers().clone();
    let mut fields = Fields::read(request).await?;
    let config = control.config();
    let route = asked.route(&config.routes, &mut fields)?;
    let given = fields.has("reason");
    let reason = fields.text("reason");
    if wanted == Wanted::Skip && !given {
        fields.fault("reason", "is missing", "say why, for whoever reads the audit trail");
    }
    let mut known = vec!["route", "reason"];
    let change = match wanted {
        Wanted::Start => {
            known.push("plan");
            let plan = match fields.take("plan") {
                Some(written) if !is_plan(&mut fields, &written) => None,
                Some(mut written) => {
                    leave_out_nulls(&mut written);
                    Plan::lift(&written, route, &config.routes).map_err(|faults| report(&mut fields, faults)).ok()
                }
                None if route.plan.is_none() => {
                    let cure = "send one, or add a [route.plan] to the configuration";
                    fields.fault("plan", format!("is missing, and route {} has none configured", route.name), cure);
                    None
                }
                None => route.plan.clone(),
            };
            plan.map(|plan| PlanChange::Start(Box::new(plan)))
        }
        Wanted::Approve => {
            known.push("approval");
            if !fields.has("approval") {
                fields.fault("approval", "is missing", "give it the name that the step asks for: see /plan");
            }
            fields.text("approval").map(PlanChange::Approve)
        }
        Wanted::Pause => Some(PlanChange::Pause),
        Wanted::Resume => Some(PlanChange::Resume),
        Wanted::Skip => Some(PlanChange::Skip),
        Wanted::Abort => Some(PlanChange::Abort),
    };
    fields.finish(&known)?;
    // Whatever is missing here is a fault that was reported.
    let change = change.ok_or_else(|| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "no plan given"))?;
    let if_match = if_match(&headers, || revision(control, &route.name))?;
    let reason = reason.unwrap_or_else(|| "no reason given".to_owned());
    Ok(Steering { route: route.name.clone(), change, reason, if_match })
}

/// Whether it has the shape of a plan in JSON: beyond that it is read like one of the file.
fn is_plan(fields: &mut Fields, written: &Value) -> bool {
    let mut fault = |field: &str, problem: &str| {
        fields.fault(field, problem, r#"send an object such as {"step":[{"green":1,"bake":"10m"}]}"#);
        false
    };
    let Some(plan) = written.as_object() else {
        return fault("plan", &format!("is {}, not an object", kind(written)));
    };
    let steps = match plan.get("step") {
        None => return fault("plan.step", "is missing"),
        Some(Value::Array(steps)) if steps.is_empty() => return fault("plan.step", "is empty"),
        Some(Value::Array(steps)) => steps,
        Some(other) => return fault("plan.step", &format!("is {}, not a list", kind(other))),
    };
    match steps.iter().enumerate().find(|(_, step)| !step.is_object()) {
        Some((index, step)) => fault(&format!("plan.step[{index}]"), &format!("is {}, not an object", kind(step))),
        None => true,
    }
}

/// What is null is as if it were not there: TOML, in whose form a plan is, has no such value. Nor is what holds nothing else.
fn leave_out_nulls(written: &mut Value) {
    match written {
        Value::Object(members) if !members.is_empty() => {
            members.values_mut().for_each(leave_out_nulls);
            members.retain(|_, value| !value.is_null());
            if members.is_empty() {
                *written = Value::Null;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(leave_out_nulls),
        _ => {}
    }
}

fn report(fields: &mut Fields, Faults(faults): Faults) {
    for fault in faults {
        let field = if fault.place == "plan" { fault.place } else { format!("plan.{}", fault.place) };
        fields.fault(&field, fault.problem, fault.cure);
    }
}

fn one(config: &Config, view: RouteView) -> Response {
    let tagged = view.clone();
    let mut response = Json(PlanStatus::of(config, view)).into_response();
    tag(&mut response, &tagged);
    response
}

impl PlanStatus {
    fn of(config: &Config, view: RouteView) -> Self {
        let configured = config.routes.iter().any(|route| route.name == view.route && route.plan.is_some());
        Self {
            route: view.route,
            revision: view.recorded.revision,
            green_percentage: view.recorded.split,
            configured,
            run: view.recorded.plan.map(|run| RunStatus::of(run, view.wait)),
        }
    }
}

impl RunStatus {
    fn of(run: Run, wait: Option<Wait>) -> Self {
        let wait = wait.filter(|wait| run.state == plan::State::Running && *wait != Wait::Time);
        let approval_wanted = match &wait {
            Some(Wait::Approval(name)) => Some(name.clone()),
            _ => None,
        };
        let steps = run.plan.steps.into_iter().map(|step| StepStatus {
            green_percentage: step.green,
            bake_seconds: step.bake.as_secs(),
            approval: step.gates.approval,
            signal: step.gates.signal,
            webhook: step.gates.webhook.map(|url| url.to_string()),
            after: step.gates.after,
            require: step.require,
            otherwise: step.otherwise,
        });
        Self {
            state: run.state,
            step: run.step + 1,
            steps: steps.collect(),
            entered: run.entered,
            waits_for: wait.map(|wait| wait.to_string()),
            approval_wanted,
            approved: run.approved,
            healthy_seconds: run.healthy_seconds,
            outcomes: run.outcomes,
            held_seconds: run.held_seconds,
            max_hold_seconds: run.plan.max_hold.as_secs(),
            observed_seconds: run.observed_seconds,
            observe_seconds: run.plan.observe.as_secs(),
            measured: MeasuredStatus {
                throughput: run.measured.throughput.value(),
                p95_ratio: run.measured.p95_ratio.value(),
                match_rate: run.measured.match_rate.value(),
            },
            started: run.started,
            changed: run.changed,
        }
    }
}
