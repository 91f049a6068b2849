//! Joins what loads sent and got with what origins saw, and says what became of each request.
//!
//! An origin's entries are matched to the loads' by id. What is found:
//!
//! | finding | meaning |
//! |---|---|
//! | lost | sent and not answered; apart what never reached an origin and what did, its answer lost on the way back |
//! | duplicated | one side saw an id more than once, or the load got a second answer; mirrored copies do not count |
//! | both sides | origins of two sides saw it |
//! | wrong arm | the load was answered by one side, and only another saw the request |
//! | unseen | answered `ok`, but no origin saw it |
//! | stray | an origin saw an id of a load's run that the load does not have |
//! | moved | a key's answers changed sides, and no change of a split explains it |
//!
//! A side is an arm: an origin's label, or the name that the load knows it by ([`ArmOf`]).
//!
//! **Moved.** The answers of a key are taken in the order their requests were sent. Each arm was decided at an unknown
//! moment between a request's sending and its answer, and a change takes effect at an unknown moment between its start
//! and its acknowledgement. So two neighbouring answers E and L may come from different sides when some change overlaps
//! the time from E's sending to the later of both answers, and only then. Where a connection keeps the arm it got
//! ([`Decided::Connection`]), a key may move long after the change, when it connects again: there the time begins with
//! the first of the answers in a row that came from E's side. That takes a key to have one connection at a time.
//!
//! **Memory.** A load's entry takes 32 bytes; each different key takes its length and 13 to 20 bytes more. An origin's
//! entry takes none, but for the second and further sightings of an id and second answers, 24 bytes each. Nothing is read
//! twice, so pipes will do.

use std::{
    collections::HashMap,
    error::Error,
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use self::{accounts::Accounts, changes::Changes, lines::Lines, sides::Sides};
use super::Owner;

mod accounts;
mod changes;
mod judge;
mod lines;
mod sides;
mod verdict;

pub use self::verdict::{Before, Example, Finding, Kind, LoadAccount, OriginAccount, SCHEMA, Sighting, Verdict};

/// Entries held at most, unless said otherwise: 1.6 GB.
pub const LIMIT: usize = 50_000_000;

/// Faults told before giving up.
const FAULTS: usize = 10;

/// What to join, and how.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Ledgers of one load at least and of any number of origins, in any order.
    pub ledgers: Vec<PathBuf>,
    /// When splits were changed: a line for each, its start and, optionally, its end in Unix microseconds. Without it
    /// moves are counted, but are no fault; an empty file says that there was no change.
    pub changes: Option<PathBuf>,
    /// How the load's names for arms and the origins' labels go together, where they differ.
    pub arms: Vec<ArmOf>,
    /// When an arm is decided.
    pub decided: Decided,
    /// Entries held at most.
    pub limit: usize,
}

/// The arm that an origin is behind: `blue=python`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArmOf {
    /// As the load saw it.
    pub arm: String,
    /// The origin's label.
    pub label: String,
}

impl FromStr for ArmOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').filter(|(arm, label)| !arm.is_empty() && !label.is_empty());
        let (arm, label) = parts.ok_or("give ARM=LABEL, like blue=python")?;
        Ok(Self { arm: arm.to_owned(), label: label.to_owned() })
    }
}

/// What a proxy decides an arm for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Decided {
    /// For each request (HTTP, gRPC).
    Request,
    /// For each connection, which keeps it (MQTT, TCP, WebSocket).
    Connection,
}

/// Why ledgers cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{}: cannot read it; give a file that exists and that you may read", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file that as a whole is not what it should be.
    #[error("{}: {problem}", .path.display())]
    File { path: PathBuf, problem: String },
    /// A line that is not what it should be.
    #[error("{}:{line}: {problem}", .path.display())]
    Line { path: PathBuf, line: u64, problem: String },
    #[error("{0}")]
    Inputs(String),
    #[error(
        "more than {0} entries to hold, 32 bytes each; join fewer runs at once, or raise --limit-entries if there is \
         memory for them"
    )]
    TooMany(usize),
}

/// All faults found, up to ten.
#[derive(Debug)]
pub struct Faults(pub Vec<Fault>);

impl Error for Faults {}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Self(vec![fault])
    }
}

impl Faults {
    fn or<T>(self, done: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(done) } else { Err(self) }
    }

    /// Adds a fault. Errors: those are enough.
    fn add(&mut self, fault: Fault) -> Result<(), Self> {
        self.0.push(fault);
        if self.0.len() < FAULTS { Ok(()) } else { Err(Self(std::mem::take(&mut self.0))) }
    }
}

/// A line for each.
impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, fault) in self.0.iter().enumerate() {
            write!(f, "{}{fault}", if nth == 0 { "" } else { "\n" })?;
            if let Some(source) = fault.source() {
                write!(f, ": {source}")?;
            }
        }
        Ok(())
    }
}

/// Joins ledgers. Errors: a file cannot be read, is no ledger or is damaged (a last line that is cut off is not: its
/// writer was killed); there is no load's account among them; the same is given twice; an [`ArmOf`] that cannot be; more
/// entries than the limit.
pub fn verify(inputs: &Inputs) -> Result<Verdict, Faults> {
    let changes = inputs.changes.as_deref().map(Changes::read).transpose()?;
    let opened = open(&inputs.ledgers)?;
    let sides = Sides::new(&inputs.arms, &opened.origins)?;

    let mut accounts = Accounts::new(inputs.limit);
    let mut faults = Faults(Vec::new());
    for (run, lines) in opened.loads {
        accounts.read_load(run, lines, &mut faults)?;
    }
    accounts.sort();
    for (label, lines) in opened.origins {
        accounts.read_origin(&label, lines, &mut faults)?;
    }
    faults.or(())?;
    Ok(judge::judge(accounts, &sides, changes.as_ref(), inputs.decided))
}

#[derive(Default)]
struct Opened {
    loads: Vec<(u32, Lines)>,
    origins: Vec<(String, Lines)>,
}

/// Opens the files and reads the first line of each.
fn open(paths: &[PathBuf]) -> Result<Opened, Faults> {
    let mut faults = Faults(Vec::new());
    let mut opened = Opened::default();
    let mut known = HashMap::new();
    let mut given: HashMap<u32, &Path> = HashMap::new();
    for path in paths {
        let problem = |problem: String| Fault::File { path: path.clone(), problem };
        // A pipe has no other name.
        let canonical = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        if known.insert(canonical, ()).is_some() {
            faults.add(problem("is given twice; give each ledger once".to_owned()))?;
            continue;
        }
        match Lines::open(path).and_then(|mut lines| Ok((lines.owner()?, lines))) {
            Ok((Owner::Load { run }, lines)) => match given.insert(run, path) {
                Some(other) => faults.add(problem(format!(
                    "the account of run {run:08x}, as is {}; give each load's account once",
                    other.display()
                )))?,
                None => opened.loads.push((run, lines)),
            },
            Ok((Owner::Origin { label }, lines)) => opened.origins.push((label, lines)),
            Err(fault) => faults.add(fault)?,
        }
    }
    if opened.loads.is_empty() && faults.0.is_empty() {
        let problem = "no load's account among the files; give the one that loadtest http, tcp or mqtt --ledger wrote";
        faults.add(Fault::Inputs(problem.to_owned()))?;
    }
    faults.or(opened)
}
