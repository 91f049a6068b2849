//! What is kept of the ledgers, packed.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, RandomState},
    ops::Range,
};

use hashbrown::HashTable;

use super::{
    Fault, Faults,
    lines::{Line, Lines},
    verdict::{EXAMPLES, LoadAccount, OriginAccount},
};
use crate::ledger::Id;

/// The names that a byte can tell apart.
const NAMES: usize = 255;

/// A load's entry, and the first sighting of its id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) id: Id,
    pub(super) sent_us: u64,
    /// From its sending until its fate was known. 71 minutes stand for all that is longer.
    took_us: u32,
    /// From its sending until the origin saw it; 35 minutes either way stand for all that is longer.
    seen_after_us: i32,
    pub(super) key: u32,
    pub(super) outcome: u8,
    pub(super) arm: u8,
    /// [`Names::NONE`] when no origin saw it.
    seen_by: u8,
}

const _: () = assert!(size_of::<Entry>() == 32, "the documentation says so");

impl Entry {
    pub(super) fn done_us(&self) -> u64 {
        self.sent_us.saturating_add(u64::from(self.took_us))
    }

    pub(super) fn seen(&self) -> Option<Seen> {
        let at_us = self.sent_us.saturating_add_signed(i64::from(self.seen_after_us));
        (self.seen_by != Names::NONE).then_some(Seen { id: self.id, at_us, by: self.seen_by })
    }
}

/// An origin saw an id, or an arm answered it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seen {
    pub(super) id: Id,
    pub(super) at_us: u64,
    /// The origin's label, or the arm.
    pub(super) by: u8,
}

/// An origin saw an id that its load does not have.
#[derive(Clone, Debug)]
pub(super) struct Stray {
    pub(super) id: Id,
    pub(super) key: String,
    pub(super) label: u8,
    pub(super) at_us: u64,
}

/// All ledgers of a join. Filled by the loads, then sorted, then held against the origins.
pub(super) struct Accounts {
    limit: usize,
    pub(super) entries: Vec<Entry>,
    /// Where each run's entries are, once sorted.
    runs: Vec<(u32, Range<usize>)>,
    /// Second and further sightings.
    pub(super) further: Vec<Seen>,
    /// Second and further answers.
    pub(super) again: Vec<Seen>,
    /// How many each label saw, and the first few.
    pub(super) strays: BTreeMap<u8, u64>,
    pub(super) stray_examples: Vec<Stray>,
    pub(super) keys: Keys,
    pub(super) outcomes: Names,
    pub(super) arms: Names,
    pub(super) labels: Names,
    pub(super) loads: BTreeMap<String, LoadAccount>,
    pub(super) origins: BTreeMap<String, OriginAccount>,
    /// Where lines are cut off.
    pub(super) cut: Vec<String>,
}

impl Accounts {
    pub(super) const OK: u8 = 0;
    pub(super) const ERROR: u8 = 1;
    pub(super) const UNKNOWN_ARM: u8 = 0;

    /// `limit`: entries held at most.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            entries: Vec::new(),
            runs: Vec::new(),
            further: Vec::new(),
            again: Vec::new(),
            strays: BTreeMap::new(),
            stray_examples: Vec::new(),
            keys: Keys::default(),
            outcomes: Names(vec!["ok".into(), "error".into()]),
            arms: Names(vec!["-".into()]),
            labels: Names(Vec::new()),
            loads: BTreeMap::new(),
            origins: BTreeMap::new(),
            cut: Vec::new(),
        }
    }

    /// Errors: more entries than the limit, or the last of too many faults.
    pub(super) fn read_load(&mut self, run: u32, mut lines: Lines, faults: &mut Faults) -> Result<(), Faults> {
        let mut account = LoadAccount::default();
        self.read(&mut lines, faults, |accounts, line| accounts.load_entry(run, line, &mut account))?;
        if account.entries == 0 {
            // Calling that clean would be a mistake.
            faults.add(lines.fault("the end, and not one request so far; nothing was sent, or the load was killed"))?;
        }
        self.loads.insert(format!("{run:08x}"), account);
        Ok(())
    }

    /// Reads the entries of an origin; the loads' must have been read and sorted. Errors: as of
    /// [`read_load`](Self::read_load).
    pub(super) fn read_origin(&mut self, label: &str, mut lines: Lines, faults: &mut Faults) -> Result<(), Faults> {
        let by = self.labels.intern(label).map_err(|problem| lines.fault(problem))?;
        // Origins of one label have one account.
        let mut account = self.origins.remove(label).unwrap_or_default();
        self.read(&mut lines, faults, |accounts, line| accounts.origin_entry(by, line, &mut account))?;
        self.origins.insert(label.to_owned(), account);
        Ok(())
    }

    fn read(
        &mut self,
        lines: &mut Lines,
        faults: &mut Faults,
        mut entry: impl FnMut(&mut Self, &str) -> Result<(), String>,
    ) -> Result<(), Faults> {
        loop {
            let read = match lines.next() {
                Ok(None) => return Ok(()),
                Ok(Some(Line::Whole(line))) => entry(self, line).map_err(|problem| lines.fault(problem)),
                Ok(Some(Line::Cut)) => {
                    self.cut.push(lines.place());
                    return Ok(());
                }
                Err(fault @ Fault::Read { .. }) => return Err(fault.into()),
                Err(fault) => Err(fault),
            };
            if let Err(fault) = read {
                faults.add(fault)?;
            }
            if self.entries.len() + self.further.len() + self.again.len() > self.limit {
                return Err(Fault::TooMany(self.limit).into());
            }
        }
    }

    fn load_entry(&mut self, run: u32, line: &str, account: &mut LoadAccount) -> Result<(), String> {
        const CURE: &str = "give the file as loadtest wrote it";
        let mut fields = line.split('\t');
        let mut field = || fields.next();
        let (Some(id), Some(key), Some(outcome), Some(arm), Some(sent), Some(done), None) =
            (field(), field(), field(), field(), field(), field(), field())
        else {
            return Err(format!("not the six fields of a load's entry; {CURE}"));
        };
        let id = Id::parse(id.as_bytes()).ok_or_else(|| format!("{id:?} is no id; {CURE}"))?;
        if id.run() != run {
            return Err(format!("{id} is not of run {run:08x}; {CURE}"));
        }
        let (sent_us, done_us) = (micros(sent)?, micros(done)?);
        let arm = self.arms.intern(arm)?;
        if outcome == "again" {
            account.again += 1;
            self.again.push(Seen { id, at_us: done_us, by: arm });
            return Ok(());
        }
        account.entries += 1;
        match account.outcomes.get_mut(outcome) {
            Some(count) => *count += 1,
            None => _ = account.outcomes.insert(outcome.to_owned(), 1),
        }
        self.entries.push(Entry {
            id,
            sent_us,
            took_us: u32::try_from(done_us.saturating_sub(sent_us)).unwrap_or(u32::MAX),
            seen_after_us: 0,
            key: self.keys.intern(key)?,
            outcome: self.outcomes.intern(outcome)?,
            arm,
            seen_by: Names::NONE,
        });
        Ok(())
    }

    /// Orders the loads' entries by id. A second entry of an id becomes a second answer.
    pub(super) fn sort(&mut self) {
        self.entries.sort_unstable_by_key(|entry| (entry.id, entry.done_us()));
        let again = &mut self.again;
        self.entries.dedup_by(|entry, first| {
            let same = entry.id == first.id;
            if same {
                again.push(Seen { id: entry.id, at_us: entry.done_us(), by: entry.arm });
            }
            same
        });
        let mut from = 0;
        for run in self.entries.chunk_by(|one, next| one.id.run() == next.id.run()) {
            self.runs.push((run[0].id.run(), from..from + run.len()));
            from += run.len();
        }
    }

    fn origin_entry(&mut self, by: u8, line: &str, account: &mut OriginAccount) -> Result<(), String> {
        const CURE: &str = "give the file as loadtest wrote it";
        let mut fields = line.split('\t');
        let mut field = || fields.next();
        let (Some(id), Some(key), Some(what), Some(at), None) = (field(), field(), field(), field(), field()) else {
            return Err(format!("not the four fields of an origin's entry; {CURE}"));
        };
        let id = Id::parse(id.as_bytes()).ok_or_else(|| format!("{id:?} is no id; {CURE}"))?;
        let at_us = micros(at)?;
        let shadow = match what {
            "seen" => false,
            "shadow" => true,
            _ => return Err(format!("{what:?} is neither seen nor shadow; {CURE}")),
        };
        let Some((_, range)) = self.runs.iter().find(|(run, _)| *run == id.run()) else {
            account.other_runs += 1;
            return Ok(());
        };
        if shadow {
            account.shadow += 1
        } else {
            account.seen += 1
        };
        let entries = &mut self.entries[range.clone()];
        match position(entries, id).map(|at| &mut entries[at]) {
            None => {
                *self.strays.entry(by).or_default() += 1;
                if self.stray_examples.len() < EXAMPLES {
                    self.stray_examples.push(Stray { id, key: key.to_owned(), label: by, at_us });
                }
            }
            Some(_) if shadow => {}
            Some(entry) if entry.seen_by == Names::NONE => {
                let after = i128::from(at_us) - i128::from(entry.sent_us);
                entry.seen_after_us = after.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
                entry.seen_by = by;
            }
            Some(_) => self.further.push(Seen { id, at_us, by }),
        }
        Ok(())
    }

    /// Whether a load has the id.
    pub(super) fn has(&self, id: Id) -> bool {
        position(&self.entries, id).is_some()
    }

    /// Bytes that all this takes.
    pub(super) fn bytes(&self) -> u64 {
        let entries = self.entries.len() * size_of::<Entry>();
        let seen = (self.further.len() + self.again.len()) * size_of::<Seen>();
        (entries + seen + self.keys.bytes()) as u64
    }
}

/// Where an id is among entries ordered by it. A run's numbers have hardly any gaps, so most often it is as far from the
/// first entry as its number says.
fn position(entries: &[Entry], id: Id) -> Option<usize> {
    let likely = usize::try_from(id.0.checked_sub(entries.first()?.id.0)?).ok()?;
    match entries.get(likely) {
        Some(entry) if entry.id == id => Some(likely),
        _ => entries.binary_search_by_key(&id, |entry| entry.id).ok(),
    }
}

fn micros(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no time; give the file as loadtest wrote it"))
}

/// A few names, each told by a byte.
#[derive(Debug)]
pub(super) struct Names(Vec<Box<str>>);

impl Names {
    /// Stands for no name.
    pub(super) const NONE: u8 = u8::MAX;

    /// Errors: there are too many.
    fn intern(&mut self, name: &str) -> Result<u8, String> {
        if let Some(known) = self.0.iter().position(|known| **known == *name) {
            return Ok(known as u8);
        }
        if self.0.len() == NAMES {
            return Err(format!(
                "{name:?} is one name more than the {NAMES} that can be told apart; join fewer ledgers"
            ));
        }
        self.0.push(name.into());
        Ok((self.0.len() - 1) as u8)
    }

    pub(super) fn of(&self, name: u8) -> &str {
        &self.0[usize::from(name)]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|name| &**name)
    }
}

/// Many names, kept in one text.
#[derive(Default)]
pub(super) struct Keys {
    text: String,
    /// Where each name ends.
    ends: Vec<usize>,
    known: HashTable<u32>,
    hasher: RandomState,
}

impl Keys {
    /// Errors: there are too many.
    fn intern(&mut self, key: &str) -> Result<u32, String> {
        let Self { text, ends, known, hasher } = self;
        let name = |nth: u32| name(text, ends, nth);
        let hash = hasher.hash_one(key);
        if let Some(nth) = known.find(hash, |nth| name(*nth) == key) {
            return Ok(*nth);
        }
        let nth = u32::try_from(ends.len()).map_err(|_| "more than 4294967296 keys; join fewer ledgers".to_owned())?;
        known.insert_unique(hash, nth, |nth| hasher.hash_one(name(*nth)));
        text.push_str(key);
        ends.push(text.len());
        Ok(nth)
    }

    pub(super) fn of(&self, key: u32) -> &str {
        name(&self.text, &self.ends, key)
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.ends.len() * size_of::<usize>() + self.known.allocation_size()
    }
}

fn name<'a>(text: &'a str, ends: &[usize], nth: u32) -> &'a str {
    let nth = nth as usize;
    let from = if nth == 0 { 0 } else { ends[nth - 1] };
    &text[from..ends[nth]]
}
