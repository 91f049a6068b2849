//! What is said of an event, and how much it matters.

use config::{Arm, Config, Severity, Split};

use crate::{Happened, PlanNews, control::SHARED_CAUSE};

/// An event in a sentence that needs nothing else to be understood.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Message {
    pub(super) severity: Severity,
    pub(super) route: Option<String>,
    pub(super) text: String,
}

/// Of a text, in characters: chat tools cut at some thousands.
const LONGEST: usize = 2_000;

impl Message {
    /// `None`: nothing that anybody has to be told.
    pub(super) fn of(what: &Happened, config: &Config) -> Option<Self> {
        let (severity, route, text) = match what {
            Happened::Trip { incident } => {
                let before = percent(incident.split_before);
                let (green, blue) = (arm(config, &incident.route, Arm::Green), arm(config, &incident.route, Arm::Blue));
                let text = format!(
                    "{green} was taken off at {before}: {}; everybody is served by {blue}, and {green} stays off until \
                     somebody resets it. Incident {}",
                    incident.reason, incident.id
                );
                (Severity::Critical, Some(&incident.route), text)
            }
            Happened::Split { route, action, before, actor, reason, .. } if action == "rollback" => {
                let (green, before) = (arm(config, route, Arm::Green), percent(*before));
                (Severity::Warning, Some(route), format!("{actor} took {green} off at {before}: {reason}"))
            }
            Happened::Split { route, before, green_percentage, actor, .. } => {
                let (green, before, after) =
                    (arm(config, route, Arm::Green), percent(*before), percent(*green_percentage));
                (Severity::Info, Some(route), format!("{actor} took {green} from {before} to {after}"))
            }
            Happened::Reset { route, actor, reason, .. } => {
                (Severity::Info, Some(route), format!("{actor} reset the route: {reason}"))
            }
            Happened::Verdict { .. } => return None,
            Happened::Caution { route, cause, reason } => {
                let green = arm(config, route, Arm::Green);
                let what =
                    if cause == SHARED_CAUSE { "and so is blue, so nothing was done" } else { "and no plan goes on" };
                (Severity::Warning, Some(route), format!("{green} is beyond a limit, {what}: {reason}"))
            }
            Happened::Plan { route, change, step, steps, green_percentage, actor, reason, .. } => {
                let (green, share) = (arm(config, route, Arm::Green), percent(*green_percentage));
                let (severity, what) = match change {
                    // The split's own event says it.
                    PlanNews::Entered => return None,
                    PlanNews::ApprovalWanted => (Severity::Warning, "the plan wants to be approved".to_owned()),
                    PlanNews::Paused => (Severity::Warning, format!("the plan paused at step {step} of {steps}")),
                    PlanNews::Done => (Severity::Info, format!("the plan is done, and {green} serves {share}")),
                    PlanNews::Started => (Severity::Info, format!("{actor} started the plan")),
                    PlanNews::StepDone => (Severity::Info, format!("{green} has done its step at {share}")),
                    PlanNews::Approved => (Severity::Info, format!("{actor} approved of step {step} of {steps}")),
                    PlanNews::Resumed => (Severity::Info, format!("{actor} resumed the plan")),
                    PlanNews::Skipped => {
                        (Severity::Info, format!("{actor} skipped what step {step} of {steps} waits for"))
                    }
                    PlanNews::Aborted => {
                        (Severity::Info, format!("{actor} aborted the plan, and green stays at {share}"))
                    }
                    // The trip or the rollback has said it.
                    PlanNews::RolledBack => return None,
                };
                (severity, Some(route), with_reason(&what, reason))
            }
            Happened::Reload { outcome, reason, .. } if outcome == "refused" => {
                (Severity::Warning, None, format!("a changed configuration was refused: {reason}"))
            }
            Happened::Reload { .. } => (Severity::Info, None, "a changed configuration is live".to_owned()),
            Happened::Recording { works: false, reason } => {
                let text =
                    format!("the state file cannot be written, so a restart would forget what is live: {reason}");
                (Severity::Critical, None, text)
            }
            Happened::Recording { works: true, .. } => {
                (Severity::Info, None, "the state file can be written again".to_owned())
            }
        };
        let text = match route {
            Some(route) => format!("{route}: {text}"),
            None => format!("crossfade: {text}"),
        };
        let text = text.lines().collect::<Vec<_>>().join("; ").chars().take(LONGEST).collect();
        Some(Self { severity, route: route.cloned(), text })
    }
}

/// Angle brackets are commands to some chat tools: a reason that somebody gave could call everybody on a channel.
pub(super) fn for_chat(severity: Severity, text: &str) -> String {
    format!("[{}] {}", severity.as_str(), text.replace('<', "‹").replace('>', "›"))
}

/// `green (go)`; `green`, where it has no other name.
fn arm(config: &Config, route: &str, arm: Arm) -> String {
    let route = config.routes.iter().find(|known| known.name == route);
    match route.map(|route| route.arm(arm).label.as_str()).filter(|label| *label != arm.as_str()) {
        Some(label) => format!("{arm} ({label})"),
        None => arm.to_string(),
    }
}

fn with_reason(what: &str, reason: &str) -> String {
    if reason.is_empty() { what.to_owned() } else { format!("{what}: {reason}") }
}

fn percent(split: Split) -> String {
    format!("{} %", split.percent())
}
