//! Holds the accounts against each other. Pure.

use super::{
    Decided,
    accounts::{Accounts, Entry, Seen},
    changes::Changes,
    sides::Sides,
    verdict::{Before, Example, Findings, Kind, Sighting, Verdict},
};

pub(super) fn judge(mut accounts: Accounts, sides: &Sides, changes: Option<&Changes>, decided: Decided) -> Verdict {
    accounts.further.sort_unstable();
    accounts.again.sort_unstable();
    let mut findings = Findings::new();
    let mut notes = compare_names(&accounts, sides, &mut findings);

    strays(&accounts, &mut findings);
    answers_without_a_request(&accounts, &mut findings);
    let (mut further, mut again) = (accounts.further.as_slice(), accounts.again.as_slice());
    for entry in &accounts.entries {
        let mut seen: Vec<_> = entry.seen().into_iter().chain(of(&mut further, entry).iter().copied()).collect();
        seen.sort_unstable();
        Request { accounts: &accounts, sides, entry, seen, again: of(&mut again, entry) }.judge(&mut findings);
    }

    accounts.entries.sort_unstable_by_key(|entry| (entry.key, entry.sent_us, entry.id));
    let moved_with_a_change = moved(&accounts, sides, changes, decided, &mut findings);
    if changes.is_none() && findings.any(Kind::Moved) {
        findings.skip(Kind::Moved, "say when splits were changed with --changes");
    }

    notes.extend(accounts.cut.iter().map(|place| {
        format!("{place}: the last line is cut off and left out; what its writer had still to write is missing too")
    }));
    Verdict::new(&accounts, findings, moved_with_a_change, notes)
}

/// Those of an entry; what comes before them is left behind. Both the entries and `seen` are in the order of their ids.
fn of<'a>(seen: &mut &'a [Seen], entry: &Entry) -> &'a [Seen] {
    let before = seen.iter().take_while(|seen| seen.id < entry.id).count();
    let count = seen[before..].iter().take_while(|seen| seen.id == entry.id).count();
    let (these, rest) = seen[before..].split_at(count);
    *seen = rest;
    these
}

/// Notes what cannot be checked since files were not given or names do not match.
fn compare_names(accounts: &Accounts, sides: &Sides, findings: &mut Findings) -> Vec<String> {
    let seeing: Vec<_> = accounts.labels.iter().map(|label| sides.of(label)).collect();
    let answering: Vec<_> = accounts.arms.iter().skip(1).map(|arm| sides.of(arm)).collect();
    if seeing.is_empty() {
        for kind in [Kind::BothSides, Kind::WrongArm, Kind::Unseen, Kind::Stray] {
            findings.skip(kind, "no origin's ledger was given");
        }
    } else if answering.is_empty() {
        findings.skip(Kind::WrongArm, "the load was not told who answered");
    } else if !answering.iter().any(|side| seeing.contains(side)) {
        findings.skip(
            Kind::WrongArm,
            format!(
                "the load knows {}, the origins are {}; say who is who with --arm {}={} and so on",
                answering.join(", "),
                seeing.join(", "),
                answering[0],
                seeing[0]
            ),
        );
    } else {
        let absent = answering.iter().filter(|side| !seeing.contains(side));
        return absent.map(|side| format!("{side} answered, but no ledger of {side} was given")).collect();
    }
    Vec::new()
}

fn strays(accounts: &Accounts, findings: &mut Findings) {
    for (label, count) in &accounts.strays {
        findings.count(Kind::Stray, &format!("seen by {}", accounts.labels.of(*label)), *count);
    }
    for stray in &accounts.stray_examples {
        findings.example(Kind::Stray, || Example {
            id: stray.id.to_string(),
            key: stray.key.clone(),
            seen: vec![Sighting { by: accounts.labels.of(stray.label).to_owned(), at_us: stray.at_us }],
            ..Example::default()
        });
    }
}

fn answers_without_a_request(accounts: &Accounts, findings: &mut Findings) {
    for again in accounts.again.chunk_by(|one, next| one.id == next.id).filter(|again| !accounts.has(again[0].id)) {
        findings.one(Kind::Duplicated, "answered again, but not at first", || Example {
            id: again[0].id.to_string(),
            answered_again: again.iter().map(|again| sighting(accounts.arms.of(again.by), again)).collect(),
            ..Example::default()
        });
    }
}

/// A request and all that is known about it.
struct Request<'a> {
    accounts: &'a Accounts,
    sides: &'a Sides,
    entry: &'a Entry,
    /// In order of time.
    seen: Vec<Seen>,
    again: &'a [Seen],
}

impl Request<'_> {
    fn judge(&self, findings: &mut Findings) {
        let Self { accounts, entry, .. } = self;
        let answered = matches!(entry.outcome, Accounts::OK | Accounts::ERROR);
        let seen_by: Vec<_> = self.seen.iter().map(|seen| self.sides.of(accounts.labels.of(seen.by))).collect();
        let mut sides = seen_by.clone();
        sides.sort_unstable();
        sides.dedup();

        if !answered {
            let part = match sides.as_slice() {
                _ if accounts.origins.is_empty() => accounts.outcomes.of(entry.outcome).to_owned(),
                [] => "never reached an origin".to_owned(),
                sides => format!("reached {}, the answer was lost", sides.join(" and ")),
            };
            findings.one(Kind::Lost, &part, || self.example());
        }
        let twice = sides.iter().filter(|side| seen_by.iter().filter(|by| by == side).count() > 1);
        let mut parts: Vec<_> = twice.map(|side| format!("seen more than once by {side}")).collect();
        if !self.again.is_empty() {
            parts.push("answered more than once".to_owned());
        }
        if !parts.is_empty() {
            findings.one(Kind::Duplicated, &parts.join(", "), || self.example());
        }
        if sides.len() > 1 {
            findings.one(Kind::BothSides, &sides.join(" and "), || self.example());
        }
        let arm = self.sides.of(accounts.arms.of(entry.arm));
        if answered && entry.arm != Accounts::UNKNOWN_ARM && !sides.is_empty() && !sides.contains(&arm) {
            let part = format!("answered by {arm}, seen by {}", sides.join(" and "));
            findings.one(Kind::WrongArm, &part, || self.example());
        }
        if entry.outcome == Accounts::OK && sides.is_empty() && !accounts.origins.is_empty() {
            findings.one(Kind::Unseen, &format!("answered by {arm}"), || self.example());
        }
    }

    fn example(&self) -> Example {
        let Self { accounts, entry, .. } = self;
        Example {
            seen: self.seen.iter().map(|seen| sighting(accounts.labels.of(seen.by), seen)).collect(),
            answered_again: self.again.iter().map(|again| sighting(accounts.arms.of(again.by), again)).collect(),
            ..example(accounts, entry)
        }
    }
}

/// Finds keys whose answers changed sides; the entries are in order of their keys and times. Returns how many did so with
/// a change.
fn moved(
    accounts: &Accounts,
    sides: &Sides,
    changes: Option<&Changes>,
    decided: Decided,
    findings: &mut Findings,
) -> u64 {
    let side = |entry: &Entry| sides.of(accounts.arms.of(entry.arm));
    let mut with_a_change = 0;
    for entries in accounts.entries.chunk_by(|one, next| one.key == next.key) {
        let mut known = entries.iter().filter(|entry| {
            matches!(entry.outcome, Accounts::OK | Accounts::ERROR) && entry.arm != Accounts::UNKNOWN_ARM
        });
        let Some(mut last) = known.next() else { continue };
        let mut first_of_side = last;
        for entry in known {
            if entry.arm != last.arm && side(entry) != side(last) {
                let from = match decided {
                    Decided::Request => last.sent_us,
                    Decided::Connection => first_of_side.sent_us,
                };
                let to = last.done_us().max(entry.done_us());
                if changes.is_some_and(|changes| changes.between(from, to)) {
                    with_a_change += 1;
                } else {
                    findings.one(Kind::Moved, &format!("{} to {}", side(last), side(entry)), || Example {
                        before: Some(Before {
                            id: last.id.to_string(),
                            arm: accounts.arms.of(last.arm).to_owned(),
                            sent_us: last.sent_us,
                            done_us: last.done_us(),
                        }),
                        ..example(accounts, entry)
                    });
                }
                first_of_side = entry;
            }
            last = entry;
        }
    }
    with_a_change
}

fn example(accounts: &Accounts, entry: &Entry) -> Example {
    Example {
        id: entry.id.to_string(),
        key: accounts.keys.of(entry.key).to_owned(),
        outcome: Some(accounts.outcomes.of(entry.outcome).to_owned()),
        arm: Some(accounts.arms.of(entry.arm).to_owned()),
        sent_us: Some(entry.sent_us),
        done_us: Some(entry.done_us()),
        ..Example::default()
    }
}

fn sighting(by: &str, seen: &Seen) -> Sighting {
    Sighting { by: by.to_owned(), at_us: seen.at_us }
}
