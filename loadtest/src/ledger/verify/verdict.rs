//! What joining ledgers came to.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use serde::Serialize;

use super::accounts::Accounts;
use crate::{
    report::table::{Colour, Table, grouped},
    units,
};

/// The version of the JSON form, in its field `schema`. Fields are added under the same version, and change their
/// meaning or go only with the next.
pub const SCHEMA: &str = "loadtest-verify/1";

/// Examples kept of each finding.
pub(super) const EXAMPLES: usize = 10;

/// What joining ledgers came to. Times are Unix time in microseconds.
#[derive(Debug, Serialize)]
pub struct Verdict {
    pub schema: &'static str,
    /// Nothing was found that is a fault.
    pub clean: bool,
    /// Requests in the loads' accounts.
    pub requests: u64,
    /// The loads by their runs.
    pub loads: BTreeMap<String, LoadAccount>,
    /// The origins by their labels.
    pub origins: BTreeMap<String, OriginAccount>,
    pub findings: BTreeMap<Kind, Finding>,
    /// Answers of keys that changed sides while a split was changed.
    pub moved_with_a_change: u64,
    /// Different keys.
    pub keys: u64,
    /// What was held in memory.
    pub held_bytes: u64,
    /// What to know about the findings.
    pub notes: Vec<String>,
}

/// What a load's ledger says.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoadAccount {
    /// Requests.
    pub entries: u64,
    /// Requests by outcome: `ok`, `error`, kinds of failure.
    pub outcomes: BTreeMap<String, u64>,
    /// Second and further answers.
    pub again: u64,
}

/// What the ledgers of one label's origins say.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OriginAccount {
    /// Requests of the loads' runs.
    pub seen: u64,
    /// Mirrored copies of them.
    pub shadow: u64,
    /// Requests and copies of other runs: none of these loads'.
    pub other_runs: u64,
}

/// What can be found, as [`verify`](super::super::verify) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Lost,
    Duplicated,
    BothSides,
    WrongArm,
    Unseen,
    Stray,
    Moved,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Lost, Self::Duplicated, Self::BothSides, Self::WrongArm, Self::Unseen, Self::Stray, Self::Moved];

    fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::BothSides => "both sides",
            Self::WrongArm => "wrong arm",
            Self::Unseen => "unseen",
            Self::Stray => "stray",
            Self::Moved => "moved",
        }
    }
}

/// How often something was found.
#[derive(Debug, Default, Serialize)]
pub struct Finding {
    /// Requests (stray: sightings; moved: answers).
    pub count: u64,
    /// It makes the verdict a bad one.
    pub fault: bool,
    /// Why it was not looked for, or is not held against anybody.
    pub not_checked: Option<String>,
    /// The count by how it came about, in words.
    pub parts: BTreeMap<String, u64>,
    /// The first ten.
    pub examples: Vec<Example>,
}

/// A request that something was found about. What only the load knows is missing where it does not have it.
#[derive(Debug, Default, Serialize)]
pub struct Example {
    pub id: String,
    pub key: String,
    pub outcome: Option<String>,
    pub arm: Option<String>,
    pub sent_us: Option<u64>,
    pub done_us: Option<u64>,
    /// The origins that saw it, in order of time.
    pub seen: Vec<Sighting>,
    /// Answers after the first.
    pub answered_again: Vec<Sighting>,
    /// Moved: the key's answer before.
    pub before: Option<Before>,
}

/// Who saw or answered something, and when.
#[derive(Debug, Serialize)]
pub struct Sighting {
    /// An origin's label, or an arm.
    pub by: String,
    pub at_us: u64,
}

/// The answer of a key before it changed sides.
#[derive(Debug, Serialize)]
pub struct Before {
    pub id: String,
    pub arm: String,
    pub sent_us: u64,
    pub done_us: u64,
}

/// All findings, while they are made.
pub(super) struct Findings(BTreeMap<Kind, Finding>);

impl Findings {
    pub(super) fn new() -> Self {
        Self(Kind::ALL.map(|kind| (kind, Finding::default())).into())
    }

    pub(super) fn one(&mut self, kind: Kind, part: &str, example: impl FnOnce() -> Example) {
        self.count(kind, part, 1);
        self.example(kind, example);
    }

    pub(super) fn count(&mut self, kind: Kind, part: &str, count: u64) {
        let finding = self.of(kind);
        finding.count += count;
        match finding.parts.get_mut(part) {
            Some(sum) => *sum += count,
            None => _ = finding.parts.insert(part.to_owned(), count),
        }
    }

    pub(super) fn example(&mut self, kind: Kind, example: impl FnOnce() -> Example) {
        let finding = self.of(kind);
        if finding.examples.len() < EXAMPLES {
            finding.examples.push(example());
        }
    }

    pub(super) fn skip(&mut self, kind: Kind, why: impl Into<String>) {
        self.of(kind).not_checked = Some(why.into());
    }

    pub(super) fn any(&self, kind: Kind) -> bool {
        self.0.get(&kind).is_some_and(|finding| finding.count > 0)
    }

    fn of(&mut self, kind: Kind) -> &mut Finding {
        self.0.entry(kind).or_default()
    }
}

impl Verdict {
    pub(super) fn new(accounts: &Accounts, findings: Findings, moved_with_a_change: u64, notes: Vec<String>) -> Self {
        let mut findings = findings.0;
        findings.values_mut().for_each(|finding| finding.fault = finding.count > 0 && finding.not_checked.is_none());
        Self {
            schema: SCHEMA,
            clean: !findings.values().any(|finding| finding.fault),
            requests: accounts.entries.len() as u64,
            loads: accounts.loads.clone(),
            origins: accounts.origins.clone(),
            findings,
            moved_with_a_change,
            keys: accounts.keys.len() as u64,
            held_bytes: accounts.bytes(),
            notes,
        }
    }

    /// As JSON that ends with a newline.
    pub fn json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("maps have text as keys");
        json.push('\n');
        json
    }

    fn accounts(&self) -> String {
        let mut table = Table::new("<<><");
        for (run, load) in &self.loads {
            let mut outcomes: Vec<_> =
                load.outcomes.iter().map(|(outcome, count)| format!("{} {outcome}", grouped(*count))).collect();
            if load.again > 0 {
                outcomes.push(format!("{} answered again", grouped(load.again)));
            }
            table.row(["load", run, &grouped(load.entries), &format!("sent: {}", outcomes.join(", "))]);
        }
        for (label, origin) in &self.origins {
            let mut seen = "seen".to_owned();
            for (count, what) in [(origin.shadow, "mirrored copies"), (origin.other_runs, "of other runs")] {
                if count > 0 {
                    let _ = write!(seen, ", {} {what}", grouped(count));
                }
            }
            table.row(["origin", label, &grouped(origin.seen), &seen]);
        }
        table.text(Colour::Off)
    }

    fn counts(&self) -> String {
        let mut table = Table::new("<><<");
        for (kind, finding) in &self.findings {
            let parts: Vec<_> =
                finding.parts.iter().map(|(part, count)| format!("{} {part}", grouped(*count))).collect();
            let mut parts = parts.join("; ");
            if *kind == Kind::Moved && self.moved_with_a_change > 0 {
                let gap = if parts.is_empty() { "" } else { "; another " };
                let _ = write!(parts, "{gap}{} with a change", grouped(self.moved_with_a_change));
            }
            let (count, judged) = match &finding.not_checked {
                Some(_) if finding.count > 0 => (grouped(finding.count), "not judged"),
                Some(_) => ("-".to_owned(), "not checked"),
                None => (grouped(finding.count), if finding.fault { "FAULT" } else { "ok" }),
            };
            let why = finding.not_checked.iter().cloned().chain((!parts.is_empty()).then_some(parts));
            table.row([kind.name(), &count, judged, &why.collect::<Vec<_>>().join("; ")]);
        }
        table.text(Colour::Off)
    }

    /// The verdict in one sentence.
    fn sentence(&self) -> String {
        let found = |fault: bool| self.findings.iter().filter(move |(_, finding)| finding.fault == fault);
        let requests = grouped(self.requests);
        if !self.clean {
            let faults: Vec<_> =
                found(true).map(|(kind, finding)| format!("{} {}", grouped(finding.count), kind.name())).collect();
            return format!("faulty: {}, among {requests} requests", faults.join(", "));
        }
        let names = |checked: bool| {
            let these = found(false).filter(|(_, finding)| finding.not_checked.is_none() == checked);
            these.map(|(kind, _)| kind.name()).collect::<Vec<_>>().join(", ")
        };
        let (checked, unchecked) = (names(true), names(false));
        let unchecked = if unchecked.is_empty() { String::new() } else { format!(" (not checked: {unchecked})") };
        format!("clean: {requests} requests and none of this: {checked}{unchecked}")
    }
}

/// Tables, examples, notes, and the verdict in the last line.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}", self.accounts(), self.counts())?;
        for (kind, finding) in self.findings.iter().filter(|(_, finding)| !finding.examples.is_empty()) {
            writeln!(f, "{}, {} of {}:", kind.name(), finding.examples.len(), grouped(finding.count))?;
            finding.examples.iter().try_for_each(|example| writeln!(f, "  {example}"))?;
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))?;
        let megabytes = self.held_bytes as f64 / 1e6;
        let (requests, keys) = (grouped(self.requests), grouped(self.keys));
        writeln!(f, "held in memory: {megabytes:.1} MB for {requests} requests of {keys} keys")?;
        writeln!(f, "{}", self.sentence())
    }
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, key, outcome, arm, sent_us, done_us, seen, answered_again, before } = self;
        write!(f, "{id} {key}")?;
        if let Some(Before { id, arm, sent_us, done_us }) = before {
            write!(f, ": {arm} sent {sent_us} done {} ({id}), then", after(*done_us, Some(*sent_us)))?;
        }
        if let (Some(outcome), Some(arm), Some(sent_us), Some(done_us)) = (outcome, arm, sent_us, done_us) {
            write!(f, " {outcome} {arm} sent {sent_us} done {}", after(*done_us, Some(*sent_us)))?;
        }
        for (what, sightings) in [("seen by", seen), ("again by", answered_again)] {
            for (nth, Sighting { by, at_us }) in sightings.iter().enumerate() {
                let what = if nth == 0 { format!("; {what}") } else { ",".to_owned() };
                write!(f, "{what} {by} {}", after(*at_us, *sent_us))?;
            }
        }
        Ok(())
    }
}

/// A time after another, or by itself.
fn after(at_us: u64, since_us: Option<u64>) -> String {
    match since_us {
        None => format!("at {at_us}"),
        Some(since) if at_us < since => format!("-{}", units::micros((since - at_us) as f64)),
        Some(since) => format!("+{}", units::micros((at_us - since) as f64)),
    }
}
