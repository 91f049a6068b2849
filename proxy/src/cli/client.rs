//! The commands that talk to a running crossfade's admin API.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::{runtime, time};

use super::{Admin, print};
use crate::upstream::read_certificates;

const PATIENCE: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 16 * 1024 * 1024;

pub(super) struct Client {
    base: String,
    token: Option<String>,
    json: bool,
    http: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: runtime::Runtime,
}

impl Client {
    pub(super) fn new(admin: &Admin) -> Result<Self> {
        let token = match &admin.token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the token file {}", path.display()))?;
                let mut words =
                    text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_whitespace);
                let token = words.next().map(str::to_owned);
                Some(token.with_context(|| format!("{} holds no token; its first word is used", path.display()))?)
            }
            None => None,
        };
        let mut roots = rustls::RootCertStore::empty();
        if let Some(path) = &admin.ca {
            for root in read_certificates("--ca", path).map_err(|fault| anyhow!("{fault}"))? {
                roots.add(root).with_context(|| format!("{} is not a CA certificate", path.display()))?;
            }
        } else if admin.url.starts_with("https:") {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let http = HyperClient::builder(TokioExecutor::new()).build(connector);
        let base = admin.url.trim_end_matches('/').to_owned();
        Ok(Self { base, token, json: admin.json, http, runtime })
    }

    pub(super) fn status(&self, route: Option<&str>) -> Result<()> {
        let mut status = self.call(Method::GET, "/status", None)?;
        if let (Some(route), Some(routes)) = (route, status["routes"].as_array_mut()) {
            routes.retain(|status| status["route"] == route);
            if routes.is_empty() {
                bail!("no route {route}; `crossfade status` lists them");
            }
        }
        let mut text = table(&status);
        if !self.json {
            let plans = self.call(Method::GET, "/plan", None)?;
            let lines: Vec<String> = under_way(&plans, &status).map(plan_line).collect();
            if !lines.is_empty() {
                text += &format!("\n\nPLANS\n{}", lines.join("\n"));
            }
        }
        self.print(&status, &text)
    }

    pub(super) fn split(&self, route: &str, percent: f64) -> Result<()> {
        let answer =
            self.call(Method::POST, "/traffic-split", Some(json!({ "route": route, "green_percentage": percent })))?;
        self.print(&answer, &split_line(&answer))
    }

    pub(super) fn rollback(&self, route: &str, reason: Option<&str>) -> Result<()> {
        let mut body = json!({ "route": route });
        if let Some(reason) = reason {
            body["reason"] = reason.into();
        }
        let answer = self.call(Method::POST, "/rollback", Some(body))?;
        self.print(&answer, &format!("{}, latched until `crossfade reset {route} --reason '…'`", split_line(&answer)))
    }

    pub(super) fn reset(&self, route: &str, reason: &str) -> Result<()> {
        let answer = self.call(Method::POST, "/reset", Some(json!({ "route": route, "reason": reason })))?;
        self.print(&answer, &format!("{}, free to be raised", split_line(&answer)))
    }

    pub(super) fn print(&self, answer: &Value, text: &str) -> Result<()> {
        if self.json { print(answer) } else { print(&text) }
    }

    pub(super) fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        self.call_matching(method, path, body, None)
    }

    /// `revision`: that of the state it is for.
    pub(super) fn call_matching(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        revision: Option<u64>,
    ) -> Result<Value> {
        let (status, answer) = self.exchange(method, path, "application/json", body, revision)?;
        let answer: Value = serde_json::from_slice(&answer)
            .with_context(|| format!("{}{path} answered {status}, not in JSON", self.base))?;
        if status.is_success() { Ok(answer) } else { Err(refusal(status, &answer)) }
    }

    /// What there is to read at a path, as Markdown.
    pub(super) fn page(&self, path: &str) -> Result<String> {
        let (status, answer) = self.exchange(Method::GET, path, "text/markdown", None, None)?;
        if !status.is_success() {
            return Err(refusal(status, &serde_json::from_slice(&answer).unwrap_or_default()));
        }
        String::from_utf8(answer.into()).with_context(|| format!("{}{path} answered no text", self.base))
    }

    fn exchange(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<Value>,
        revision: Option<u64>,
    ) -> Result<(StatusCode, Bytes)> {
        let url = format!("{}{path}", self.base);
        let mut request = Request::builder().method(method).uri(&url).header(header::ACCEPT, accept);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(revision) = revision {
            request = request.header(header::IF_MATCH, format!("\"{revision}\""));
        }
        let request = match body {
            Some(body) => {
                request.header(header::CONTENT_TYPE, "application/json").body(Full::new(body.to_string().into()))
            }
            None => request.body(Full::default()),
        };
        let request = request.with_context(|| format!("{url} is no URL; write http://HOST:PORT"))?;
        self.runtime
            .block_on(async {
                let exchange = async {
                    let response = self.http.request(request).await?;
                    let status = response.status();
                    let body = Limited::new(response.into_body(), MAX_ANSWER)
                        .collect()
                        .await
                        .map_err(|error| anyhow!(error))?;
                    anyhow::Ok((status, body.to_bytes()))
                };
                time::timeout(PATIENCE, exchange).await.map_err(|_| anyhow!("no answer within {PATIENCE:?}"))?
            })
            .with_context(|| format!("cannot ask {url}; is crossfade running, and its admin API there? (--admin URL)"))
    }
}

/// The words of a problem document (RFC 9457).
fn refusal(status: StatusCode, problem: &Value) -> anyhow::Error {
    let detail = problem["detail"].as_str().or_else(|| problem["title"].as_str()).unwrap_or("no reason given");
    match problem["cure"].as_str() {
        Some(cure) => anyhow!("refused ({}): {detail}; {cure}", status.as_u16()),
        None => anyhow!("refused ({}): {detail}", status.as_u16()),
    }
}

fn split_line(state: &Value) -> String {
    let side = |side: &str| {
        let side = &state[side];
        format!("{} {} %", side["label"].as_str().unwrap_or_default(), side["percentage"])
    };
    format!(
        "{}: {}, {} (revision {})",
        state["route"].as_str().unwrap_or_default(),
        side("blue"),
        side("green"),
        state["revision"]
    )
}

/// `/status` as a table, a line an arm.
fn table(status: &Value) -> String {
    let mut lines = vec![format!(
        "{:<16} {:<6} {:<12} {:>7} {:>9} {:>7} {:>9} {:>9} {:>7}  {}",
        "ROUTE", "ARM", "LABEL", "SHARE", "REQ/60S", "ERRORS", "P50 MS", "P95 MS", "OPEN", "GUARD"
    )];
    for route in status["routes"].as_array().into_iter().flatten() {
        for arm in ["blue", "green"] {
            let (name, seen) = (route["route"].as_str().unwrap_or_default(), &route[arm]);
            let recent = &seen["last_minute"];
            let number = |value: &Value, digits: usize| match value.as_f64() {
                Some(value) => format!("{value:.digits$}"),
                None => "-".to_owned(),
            };
            let errors =
                recent["error_rate"].as_f64().map_or_else(|| "-".to_owned(), |rate| format!("{:.1} %", rate * 100.0));
            let verdict = if arm == "blue" { String::new() } else { verdict(route) };
            let line = format!(
                "{:<16} {arm:<6} {:<12} {:>7} {:>9} {errors:>7} {:>9} {:>9} {:>7}  {verdict}",
                if arm == "blue" { name } else { "" },
                seen["label"].as_str().unwrap_or_default(),
                format!("{} %", seen["percentage"]),
                number(&recent["dispatched"], 0),
                number(&recent["p50_ms"], 1),
                number(&recent["p95_ms"], 1),
                number(&seen["open"], 0),
            );
            lines.push(line.trim_end().to_owned());
        }
    }
    lines.join("\n")
}

/// The plans of the routes in `/status` that are not over.
fn under_way<'a>(plans: &'a Value, status: &Value) -> impl Iterator<Item = &'a Value> {
    let routes: Vec<&Value> = status["routes"].as_array().into_iter().flatten().map(|route| &route["route"]).collect();
    let plans = plans["plans"].as_array().into_iter().flatten();
    plans.filter(move |plan| {
        let goes_on = ["running", "paused"].iter().any(|state| plan["run"]["state"] == **state);
        goes_on && routes.contains(&&plan["route"])
    })
}

/// What the guard thinks, or why it has nothing to think about.
fn verdict(route: &Value) -> String {
    let judgement = &route["guard"]["judgement"];
    let reason = judgement["reason"].as_str().unwrap_or_default();
    let disk = if route["persisted"] == false { " (not on disk yet)" } else { "" };
    let word = if route["latched"] == true {
        format!("latched: {}", route["latch"]["reason"].as_str().unwrap_or(reason))
    } else if route["guard"]["armed"] == false {
        "off".to_owned()
    } else {
        match judgement["verdict"].as_str() {
            Some("pass") => "pass".to_owned(),
            Some(verdict) => format!("{verdict}: {reason}"),
            None => "nothing to judge".to_owned(),
        }
    };
    word + disk
}

/// `shop: running, step 2 of 5, green 10 % of 25 %, 42 of 600 s healthy; waits for …`.
pub(super) fn plan_line(plan: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (route, run) = (text(&plan["route"]), &plan["run"]);
    if run.is_null() {
        let what = if plan["configured"] == true { "not started" } else { "no plan" };
        return format!("{route}: {what}, green {} %", plan["green_percentage"]);
    }
    let steps = run["steps"].as_array().map_or(0, Vec::len);
    let state = text(&run["state"]).replace('_', " ");
    let current = run["step"].as_u64().and_then(|step| run["steps"].get(usize::try_from(step).ok()?.checked_sub(1)?));
    let mut line = match current {
        Some(step) if run["entered"] == true => format!(
            "{route}: {state}, step {} of {steps}, green {} %, {} of {} s healthy",
            run["step"], plan["green_percentage"], run["healthy_seconds"], step["bake_seconds"]
        ),
        Some(step) => format!(
            "{route}: {state}, step {} of {steps} ({} %) {}, green {} %",
            run["step"],
            step["green_percentage"],
            if ["running", "paused"].contains(&state.as_str()) { "is to begin" } else { "has not begun" },
            plan["green_percentage"]
        ),
        None => format!(
            "{route}: {state}, all {steps} steps are done, green {} %, blue stood by for {} of {} s",
            plan["green_percentage"], run["observed_seconds"], run["observe_seconds"]
        ),
    };
    if let Some(wait) = run["waits_for"].as_str() {
        line += &format!("; waits for {wait}");
    }
    if !["running", "done"].contains(&text(&run["state"]).as_str()) {
        line += &format!("; by {}: {}", text(&run["changed"]["by"]), text(&run["changed"]["reason"]));
    }
    line
}
