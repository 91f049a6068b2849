//! Ticks the plans of routes that run one, with what the guard has said and what their gates say.

use std::sync::Arc;

use config::{Step, Url, Webhook};

use super::{
    Gates, Inputs, Origin, Run,
    webhook::{Question, Webhooks},
};
use crate::{Control, Judgement, Second, SignalReading, Verdict, Watched};

/// See the module.
pub struct Planner {
    control: Arc<Control>,
    webhooks: Webhooks,
}

/// What is known of the gates of a step.
#[derive(Default)]
struct Known {
    after: Option<String>,
    signal: Option<String>,
    webhook: Option<String>,
}

impl Planner {
    pub fn new(control: Arc<Control>) -> Self {
        Self { control, webhooks: Webhooks::default() }
    }

    /// One second of a route that was judged. `second`: what was judged; with green at 0 that is the copies. `signals`:
    /// all of the route's.
    pub fn tick(&self, watched: &Watched, second: &Second, judgement: &Arc<Judgement>, signals: &[SignalReading]) {
        let route = &watched.route;
        let Some(run) = self.control.plan(route).filter(|run| run.is_running()) else {
            return self.webhooks.forget(route);
        };
        let known = match run.gates() {
            Some(wanted) => self.ask(watched, &run, wanted, signals),
            None => Known::default(),
        };
        let measured = |name: &str| {
            let rule = judgement.rules.iter().find(|rule| rule.rule == name);
            rule.and_then(|rule| rule.observed_since_raise)
        };
        let inputs = Inputs {
            verdict: judgement.verdict,
            reason: &judgement.reason,
            shared_cause: judgement.shared_cause,
            pause: judgement.pause.as_deref(),
            outcomes: second.green.judged(),
            minimum: watched.policy.min_requests,
            throughput: measured("throughput"),
            p95_ratio: measured("p95_ratio"),
            match_rate: measured("match_rate"),
            gates: Gates {
                after: known.after.as_deref(),
                signal: known.signal.as_deref(),
                webhook: known.webhook.as_deref(),
            },
        };
        self.control.tick_plan(watched, second.at, &inputs, judgement);
    }

    fn ask(&self, watched: &Watched, run: &Run, wanted: &config::Gates, signals: &[SignalReading]) -> Known {
        let after = wanted.after.iter().find(|route| !self.control.is_plan_done(route)).cloned();
        let signal = wanted.signal.as_ref().and_then(|name| match signals.iter().find(|signal| signal.name == *name) {
            Some(signal) if signal.verdict == Verdict::Pass => None,
            Some(signal) => Some(format!("{name}: {}", signal.reason)),
            None => Some(format!("{name}: there is no such signal any more")),
        });
        let approved = wanted.approval.is_none() || run.approved.is_some();
        let webhook = run.current().zip(wanted.webhook.as_ref()).and_then(|(step, webhook)| {
            // The last one to be asked, so that what it said is not long ago.
            if after.is_some() || signal.is_some() || !approved {
                return Some("is not asked yet".to_owned());
            }
            let Some(url) = self.address(&watched.route, run.origin, step, webhook) else {
                return Some(unknown(run.origin, webhook));
            };
            let question = Question {
                route: watched.route.clone(),
                step: run.step + 1,
                steps: run.plan.steps.len(),
                green_percentage: step.green,
                started_at: run.started.at.clone(),
            };
            self.webhooks.ask(&url, question)
        });
        Known { after, signal, webhook }
    }

    /// As it is configured now, so that a secret can be changed; or else as it was when the plan was started. `None`:
    /// that was before a restart.
    fn address(&self, route: &str, origin: Origin, step: &Step, webhook: &Webhook) -> Option<Url> {
        let config = self.control.config();
        let configured = || {
            let plan = config.routes.iter().find(|other| other.name == route)?.plan.as_ref()?;
            // No two steps have the same share.
            plan.steps.iter().find(|other| other.green == step.green)?.gates.webhook.as_ref()?.url()
        };
        let now = if origin == Origin::Configured { configured() } else { None };
        now.or_else(|| webhook.url()).cloned()
    }
}

/// Why nobody knows a webhook's address any more, and what to do about it.
fn unknown(origin: Origin, webhook: &Webhook) -> String {
    let (why, cure) = match origin {
        Origin::Configured => {
            ("is in the configuration no more", "configure it for the step with this share, or skip the gate")
        }
        Origin::Sent => (
            "was sent with the plan and is not recorded, and the process was restarted since",
            "skip the gate, or abort the plan and send it again",
        ),
    };
    format!("{webhook} is not asked, because the rest of its address {why}; {cure}")
}
