//! Which side a name stands for, be it a load's name of an arm or an origin's label.

use std::collections::BTreeMap;

use super::{ArmOf, Fault, lines::Lines};

/// The names that stand for another one.
#[derive(Debug)]
pub(super) struct Sides {
    arms: BTreeMap<String, String>,
}

impl Sides {
    /// Errors: a label that no origin has, or that is said to be behind two arms.
    pub(super) fn new(arms: &[ArmOf], origins: &[(String, Lines)]) -> Result<Self, Fault> {
        let mut known = BTreeMap::new();
        for ArmOf { arm, label } in arms {
            let given = || format!("--arm {arm}={label}");
            if !origins.iter().any(|(origin, _)| origin == label) {
                let mut labels: Vec<_> = origins.iter().map(|(label, _)| label.as_str()).collect();
                labels.sort_unstable();
                labels.dedup();
                let labels = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
                let problem = format!("{}: no origin's ledger with that label; give one of these: {labels}", given());
                return Err(Fault::Inputs(problem));
            }
            if let Some(other) = known.insert(label.clone(), arm.clone()).filter(|other| other != arm) {
                let problem = format!("{}: {label} is also behind {other}; give each label one arm", given());
                return Err(Fault::Inputs(problem));
            }
        }
        Ok(Self { arms: known })
    }

    /// The side that a name stands for.
    pub(super) fn of<'a>(&'a self, name: &'a str) -> &'a str {
        self.arms.get(name).map_or(name, String::as_str)
    }
}
