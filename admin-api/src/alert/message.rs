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
                let text = format!("{} Incident {}.", incident.summary, incident.id);
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
            // Trips may be among them.
            Happened::Missed { missed } => {
                let text = format!("{missed} events went by too fast to tell of them; look at /incidents and /audit");
                (Severity::Critical, None, text)
            }
        };
        let text = match route {
            // It names the route itself.
            Some(_) if matches!(what, Happened::Trip { .. }) => text,
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{PlanNews, plan::State};

    fn config() -> Config {
        let text = "[[route]]\nname = \"shop\"\nprotocol = \"http\"\nlisten = \"127.0.0.1:80\"\n\
                    [route.blue]\nendpoints = [\"a:1\"]\n[route.green]\nlabel = \"go\"\nendpoints = [\"b:1\"]";
        Config::parse(text, Path::new("")).unwrap()
    }

    #[track_caller]
    fn check(what: Happened, expected: Option<(Severity, &str)>) {
        let message = Message::of(&what, &config());
        assert_eq!(message.as_ref().map(|message| (message.severity, message.text.as_str())), expected);
    }

    #[test]
    fn a_message_needs_nothing_else_to_be_understood() {
        let share = |percent| Split::from_percent(percent).unwrap();
        let plan = |change, reason: &str| Happened::Plan {
            route: "shop".to_owned(),
            change,
            state: State::Running,
            step: 2,
            steps: 5,
            green_percentage: share(10.0),
            actor: "ann".to_owned(),
            reason: reason.to_owned(),
        };
        let shop = || "shop".to_owned();
        check(
            plan(PlanNews::Paused, "too little traffic"),
            Some((Severity::Warning, "shop: the plan paused at step 2 of 5: too little traffic")),
        );
        check(
            plan(PlanNews::ApprovalWanted, "step 3 of 5 waits for the approval \"go-live\""),
            Some((
                Severity::Warning,
                "shop: the plan wants to be approved: step 3 of 5 waits for the approval \"go-live\"",
            )),
        );
        check(plan(PlanNews::Done, ""), Some((Severity::Info, "shop: the plan is done, and green (go) serves 10 %")));
        check(plan(PlanNews::Entered, ""), None);
        check(plan(PlanNews::RolledBack, ""), None);
        let caution = |cause: &str| Happened::Caution {
            route: shop(),
            cause: cause.to_owned(),
            reason: "green failed 9 of 10".to_owned(),
        };
        check(
            caution("shared_cause"),
            Some((
                Severity::Warning,
                "shop: green (go) is beyond a limit, and so is blue, so nothing was done: green failed 9 of 10",
            )),
        );
        check(
            caution("pause"),
            Some((Severity::Warning, "shop: green (go) is beyond a limit, and no plan goes on: green failed 9 of 10")),
        );
        let refused = |reason: &str| Happened::Reload {
            outcome: "refused".to_owned(),
            routes: Vec::new(),
            reason: reason.to_owned(),
        };
        check(
            refused("route[0].name: is missing\nroute[1].name: is missing"),
            Some((
                Severity::Warning,
                "crossfade: a changed configuration was refused: route[0].name: is missing; route[1].name: is missing",
            )),
        );
        let long = Message::of(&refused(&"é".repeat(5_000)), &config()).unwrap();
        assert_eq!(long.text.chars().count(), LONGEST);
        let recording = |works| Happened::Recording { works, reason: "no space left on device".to_owned() };
        check(recording(true), Some((Severity::Info, "crossfade: the state file can be written again")));
        check(
            recording(false),
            Some((
                Severity::Critical,
                "crossfade: the state file cannot be written, so a restart would forget what is live: no space left on \
                 device",
            )),
        );
    }
}
