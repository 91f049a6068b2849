//! `crossfade plan`: how far plans are, and steering them.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::{
    Admin,
    client::{Client, plan_line},
};

#[derive(Debug, Subcommand)]
pub(super) enum Plan {
    /// Show how far plans are, and what they wait for
    Status {
        /// Only this route
        route: Option<String>,
        #[command(flatten)]
        admin: Admin,
    },
    /// Start a route's plan, with the first step that is not below green's share
    Start {
        /// Its name, as `crossfade status` lists it
        route: String,
        /// A plan as JSON, in place of the configured one: {"step":[{"green":1,"bake":"10m"}]}
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        admin: Admin,
    },
    /// Pause a route's plan; green keeps its share
    Pause {
        /// Its name, as `crossfade status` lists it
        route: String,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        admin: Admin,
    },
    /// Resume a route's plan, with what it had collected
    Resume {
        /// Its name, as `crossfade status` lists it
        route: String,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        admin: Admin,
    },
    /// Approve of the step that a route's plan is to begin
    Approve {
        /// Its name, as `crossfade status` lists it
        route: String,
        /// The name that the step asks for: see `crossfade plan status`
        approval: String,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        admin: Admin,
    },
    /// Say that what a route's plan waits for now does not matter; the guard goes on guarding
    Skip {
        /// Its name, as `crossfade status` lists it
        route: String,
        /// Why, for the record
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// End a route's plan; green keeps its share
    Abort {
        /// Its name, as `crossfade status` lists it
        route: String,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        admin: Admin,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Why {
    /// Why, for the record
    #[arg(long)]
    reason: Option<String>,
}

impl Plan {
    pub(super) fn run(self) -> Result<()> {
        match self {
            Self::Status { route, admin } => status(&Client::new(&admin)?, route.as_deref()),
            Self::Start { route, file, why, admin } => {
                let mut body = why.body(&route);
                if let Some(path) = file {
                    let text = std::fs::read_to_string(&path);
                    let text = text.with_context(|| format!("cannot read the plan {}", path.display()))?;
                    let plan: Value =
                        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
                    body["plan"] = plan;
                }
                steer(&admin, "start", body)
            }
            Self::Pause { route, why, admin } => steer(&admin, "pause", why.body(&route)),
            Self::Resume { route, why, admin } => steer(&admin, "resume", why.body(&route)),
            Self::Approve { route, approval, why, admin } => {
                let mut body = why.body(&route);
                body["approval"] = approval.into();
                steer(&admin, "approve", body)
            }
            Self::Skip { route, reason, admin } => skip(&admin, &route, &reason),
            Self::Abort { route, why, admin } => steer(&admin, "abort", why.body(&route)),
        }
    }
}

impl Why {
    fn body(self, route: &str) -> Value {
        match self.reason {
            Some(reason) => json!({ "route": route, "reason": reason }),
            None => json!({ "route": route }),
        }
    }
}

fn status(client: &Client, route: Option<&str>) -> Result<()> {
    let mut plans = client.call(Method::GET, "/plan", None)?;
    if let (Some(route), Some(all)) = (route, plans["plans"].as_array_mut()) {
        all.retain(|plan| plan["route"] == route);
        if all.is_empty() {
            anyhow::bail!("no route {route}; `crossfade status` lists them");
        }
    }
    let lines: Vec<String> = plans["plans"].as_array().into_iter().flatten().map(plan_line).collect();
    client.print(&plans, &lines.join("\n"))
}

fn steer(admin: &Admin, call: &str, body: Value) -> Result<()> {
    let client = Client::new(admin)?;
    let answer = client.call(Method::POST, &format!("/plan/{call}"), Some(body))?;
    client.print(&answer, &plan_line(&answer))
}

/// Says what was skipped, and skips nothing else: somebody may be faster, or another step begin.
fn skip(admin: &Admin, route: &str, reason: &str) -> Result<()> {
    let client = Client::new(admin)?;
    let plans = client.call(Method::GET, "/plan", None)?;
    let plan = plans["plans"].as_array().into_iter().flatten().find(|plan| plan["route"] == route);
    let body = json!({ "route": route, "reason": reason });
    let revision = plan.and_then(|plan| plan["revision"].as_u64());
    let answer = client.call_matching(Method::POST, "/plan/skip", Some(body), revision)?;
    let skipped = plan.map(|plan| format!("\nskipped: {}", plan_line(plan))).unwrap_or_default();
    client.print(&answer, &format!("{}{skipped}", plan_line(&answer)))
}
