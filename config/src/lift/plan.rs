//! `[route.plan]`, and whether the plans of several routes can ever be done.

use std::{collections::HashMap, time::Duration};

use serde::Serialize;
use toml::de::DeTable;

use super::{route::word, syntax_faults};
use crate::{
    Fault, Faults, Gates, Guard, Otherwise, Plan, Require, Route, Split, Step, Url, Webhook,
    fault::{Flaw, quoted},
    reader::{Document, Spot, Table, Value},
};

/// Each step is recorded with its route.
const MOST_STEPS: usize = 100;

/// A migration takes weeks, a step of it not more than one month. Time is collected second by second.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a plan needs of its route.
pub(super) struct Around<'a> {
    pub(super) guard: Option<&'a Guard>,
    pub(super) mirrored: bool,
    /// Their names.
    pub(super) signals: &'a [String],
}

/// What could be read of a plan.
pub(super) struct Draft {
    /// `None`: a fault has been reported.
    pub(super) plan: Option<Plan>,
    /// Every route that some step waits for.
    pub(super) after: Vec<(Spot, String)>,
}

impl Plan {
    /// Lifts a plan that somebody sends, in the form of the file. `routes`: all there are, `route` among them.
    ///
    /// Errors: every fault of it at once. Their places are paths in the plan, and their lines say nothing.
    pub fn lift<T: Serialize>(written: &T, route: &Route, routes: &[Route]) -> Result<Self, Faults> {
        let text = toml::to_string(written).map_err(|_| {
            // All that JSON has and TOML has not.
            let problem = "has a null, or a whole number beyond 64 bits".to_owned();
            let cure = "leave it out, or write a smaller one".to_owned();
            Faults(vec![Fault { place: "plan".to_owned(), line: None, problem, cure }])
        })?;
        let document = Document::new(&text);
        let (root, errors) = DeTable::parse_recoverable(&text);
        if !errors.is_empty() {
            return Err(syntax_faults(&document, &text, &errors));
        }
        let signals: Vec<_> = route.signals.iter().map(|signal| signal.name.clone()).collect();
        let around = Around { guard: route.guard.as_ref(), mirrored: route.mirror.is_some(), signals: &signals };
        let draft = document.read(root.get_ref(), |table| lift(table, &around));
        // What others wait for is as the file says.
        let others = routes.iter().filter(|other| other.name != route.name);
        let others = others.map(|other| {
            let steps = other.plan.iter().flat_map(|plan| &plan.steps);
            let after = steps.flat_map(|step| &step.gates.after).map(|name| (Spot::default(), name.clone())).collect();
            Waits { route: other.name.clone(), after: other.plan.is_some().then_some(after) }
        });
        let this = Waits { route: route.name.clone(), after: Some(draft.after) };
        check_order(&document, &[this].into_iter().chain(others).collect::<Vec<_>>());
        let faults = document.into_faults();
        match draft.plan {
            Some(plan) if faults.is_empty() => Ok(plan),
            _ => Err(Faults(faults)),
        }
    }
}

pub(super) fn lift(table: &mut Table<'_>, around: &Around<'_>) -> Draft {
    let max_hold =
        table.take("max_hold").and_then(|value| value.seconds_up_to(LONGEST)).unwrap_or(Duration::from_secs(3600));
    let observe = table.take("observe").and_then(|value| value.seconds_up_to(LONGEST)).unwrap_or(Duration::ZERO);
    let expected_rps = table.take("expected_rps").and_then(|value| {
        let rps = value.number()?;
        if !(rps > 0.0 && rps <= 1e9) {
            value.fault(format!("{rps} is out of range"), "write requests a second, above 0 and at most 1000000000");
        }
        Some(rps)
    });
    let (mut after, mut before) = (Vec::new(), None);
    let steps = table.required("step", "add a [[route.plan.step]] table with green = 1 and bake = \"10m\"");
    if around.guard.is_none() && steps.is_some() {
        table.fault(
            "step",
            "nobody watches green, because the guard of this route is off",
            "remove mode = \"off\" from it",
        );
    }
    let steps = steps.and_then(|value| {
        let steps = value.tables("route.plan.step", |table| step(table, around, &mut before, &mut after))?;
        if steps.len() > MOST_STEPS {
            value.fault(format!("has {} steps", steps.len()), format!("write at most {MOST_STEPS}"));
        }
        steps.into_iter().collect()
    });
    Draft { plan: steps.map(|steps| Plan { steps, max_hold, observe, expected_rps }), after }
}

fn signal(value: &Value<'_>, around: &Around<'_>) -> Option<String> {
    let name = word(value)?;
    if !around.signals.contains(&name) {
        let cure = match around.signals {
            [] => "add a [[route.signal]] of this name".to_owned(),
            known => format!("write one of {}", known.join(", ")),
        };
        value.fault(format!("this route has no signal {}", quoted(&name)), cure);
    }
    Some(name)
}

/// `before`: the share of the step before this one.
fn step(
    table: &mut Table<'_>,
    around: &Around<'_>,
    before: &mut Option<Split>,
    after: &mut Vec<(Spot, String)>,
) -> Option<Step> {
    let green = table.required("green", "write green = 10 for 10 per cent").and_then(|value| value.percent());
    if let Some(green) = green {
        match *before {
            Some(before) if green < before => table.fault(
                "green",
                format!("goes down, from {before} to {green}"),
                "write the steps in rising order; to go back is what the guard and a rollback are for",
            ),
            Some(before) if green == before => table.fault(
                "green",
                format!("repeats the {before} of the step before"),
                "write one of the two, with the bake of both",
            ),
            None if green == Split::NONE && !around.mirrored => table.fault(
                "green",
                "is 0, so that only copies reach green, and this route has no mirror",
                "add [route.mirror] with sample = 10.0, or begin above 0",
            ),
            _ => {}
        }
        *before = Some(green);
    }
    let bake = table.required("bake", "write bake = \"10m\"").and_then(|value| value.seconds_up_to(LONGEST));
    let gates = Gates {
        approval: table.take("approval").and_then(|value| word(&value)),
        signal: table.take("signal").and_then(|value| signal(&value, around)),
        webhook: table.take("webhook").and_then(|value| value.accept(Url::parse(value.string()?))).map(Webhook::Known),
        after: table.take("after").and_then(|value| routes(&value, after)).unwrap_or_default(),
    };
    let has_requirements = table.has("require");
    let example = "require = { throughput = 0.95 }";
    let require = table.table("require", example, |table| (!table.is_empty()).then(|| require(table, around)));
    if require == Some(None) {
        table.fault("require", "is empty", format!("write {example}, or remove it"));
    }
    let choices = [("pause", Otherwise::Pause), ("rollback", Otherwise::Rollback)];
    let otherwise = table.choice("otherwise", &choices, Otherwise::default());
    if table.has("otherwise") && !has_requirements {
        table.fault(
            "otherwise",
            "says what happens when a requirement is not met, and there is none",
            format!("write {example}, or remove it"),
        );
    }
    Some(Step { green: green?, bake: bake?, gates, require: require.flatten().unwrap_or_default(), otherwise })
}

fn routes(value: &Value<'_>, after: &mut Vec<(Spot, String)>) -> Option<Vec<String>> {
    let items = value.list()?;
    if items.is_empty() {
        value.fault("is empty", "name the routes that come first, or remove it");
    }
    let mut names: Vec<String> = Vec::new();
    for item in items {
        let Some(name) = word(&item) else { continue };
        if names.contains(&name) {
            item.fault("is in the list twice", "remove one of the two");
            continue;
        }
        after.push((item.spot().clone(), name.clone()));
        names.push(name);
    }
    Some(names)
}

fn require(table: &mut Table<'_>, around: &Around<'_>) -> Require {
    let share = "write a share above 0 and at most 1, such as 0.95";
    let is_share = |share: f64| share > 0.0 && share <= 1.0;
    let ratio = "write a ratio above 0 and at most 100, such as 1.1 for a tenth more than blue's";
    let require = Require {
        throughput: number(table.take("throughput"), is_share, share),
        p95_ratio: number(table.take("p95_ratio"), |ratio| ratio > 0.0 && ratio <= 100.0, ratio),
        match_rate: number(table.take("match_rate"), is_share, share),
    };
    if table.has("match_rate") && !around.mirrored {
        let cure = "add [route.mirror] with sample = 10.0, or remove it";
        table.fault("match_rate", "is measured by the mirror, and this route has none", cure);
    } else if table.has("match_rate") && around.guard.is_some_and(|guard| guard.min_match_rate.is_none()) {
        let cure = "write min_match_rate = 0.7 in [route.guard], or remove it";
        table.fault("match_rate", "is not measured, because the guard does not ask for it", cure);
    }
    require
}

fn number(value: Option<Value<'_>>, range: impl Fn(f64) -> bool, cure: &str) -> Option<f64> {
    let value = value?;
    let number = value.number()?;
    if !range(number) {
        value.fault(format!("{number} is out of range"), cure);
    }
    Some(number)
}

/// What the plan of a route waits for.
pub(super) struct Waits {
    pub(super) route: String,
    /// Other routes, and where it says so. `None`: it has no plan.
    pub(super) after: Option<Vec<(Spot, String)>>,
}

/// Reports what can never be done: plans that wait for a route that there is not, for one without a plan, or for each
/// other. `plans`: of every route.
pub(super) fn check_order(document: &Document, plans: &[Waits]) {
    let index: HashMap<&str, usize> = plans.iter().enumerate().map(|(at, plan)| (plan.route.as_str(), at)).collect();
    for (spot, name) in plans.iter().filter_map(|plan| plan.after.as_ref()).flatten() {
        let flaw = match index.get(name.as_str()).map(|at| &plans[*at].after) {
            Some(Some(_)) => continue,
            Some(None) => Flaw::new(
                format!("route {name} has no plan, so that it is never done"),
                format!("give {name} a [route.plan], or remove it here"),
            ),
            None => {
                let known: Vec<&str> = plans.iter().map(|plan| plan.route.as_str()).take(20).collect();
                Flaw::new(format!("there is no route {}", quoted(name)), format!("write one of {}", known.join(", ")))
            }
        };
        document.fault(spot, flaw);
    }
    let mut walk = Walk { document, plans, index: &index, done: vec![false; plans.len()], way: Vec::new() };
    (0..plans.len()).for_each(|route| walk.visit(route));
}

/// From route to route along what each one waits for.
struct Walk<'a> {
    document: &'a Document,
    plans: &'a [Waits],
    index: &'a HashMap<&'a str, usize>,
    done: Vec<bool>,
    /// The routes on the way here, each with the place where it says that it waits for the next one.
    way: Vec<(usize, &'a Spot)>,
}

impl Walk<'_> {
    fn visit(&mut self, route: usize) {
        if std::mem::replace(&mut self.done[route], true) {
            return;
        }
        for (spot, name) in self.plans[route].after.iter().flatten() {
            let Some(next) = self.index.get(name.as_str()) else { continue };
            self.way.push((route, spot));
            match self.way.iter().position(|(before, _)| before == next) {
                Some(start) => self.report(&self.way[start..]),
                None => self.visit(*next),
            }
            self.way.pop();
        }
    }

    fn report(&self, circle: &[(usize, &Spot)]) {
        let names: Vec<&str> =
            circle.iter().chain(&circle[..1]).map(|(at, _)| self.plans[*at].route.as_str()).collect();
        let shown =
            if names.len() > 10 { format!("{} → …", names[..10].join(" → ")) } else { names.join(" → ") };
        let problem = format!("waits for itself: {shown}");
        self.document.fault(circle[0].1, Flaw::new(problem, "remove one of these, so that some route is the first"));
    }
}
