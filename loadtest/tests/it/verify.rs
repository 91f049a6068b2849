use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use loadtest::ledger::{
    Id, Ledger, Owner,
    verify::{ArmOf, Decided, Inputs, Kind, LIMIT, Verdict, verify},
};
use tempfile::TempDir;

const RUN: u32 = 0x1a2b_3c4d;
/// When the made-up runs begin, in Unix microseconds.
const START: u64 = 1_763_723_531_000_000;

/// Files of one test.
struct Files {
    folder: TempDir,
    ledgers: Vec<PathBuf>,
    changes: Option<PathBuf>,
    arms: Vec<ArmOf>,
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), ledgers: Vec::new(), changes: None, arms: Vec::new() }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn ledger(mut self, name: &str, text: impl AsRef<[u8]>) -> Self {
        self.ledgers.push(self.write(name, text));
        self
    }

    fn load(self, entries: &str) -> Self {
        let owner = Owner::Load { run: RUN };
        self.ledger("load", format!("{owner}\n{entries}"))
    }

    fn origin(self, label: &str, entries: &str) -> Self {
        let owner = Owner::Origin { label: label.to_owned() };
        self.ledger(label, format!("{owner}\n{entries}"))
    }

    fn changes(mut self, text: &str) -> Self {
        self.changes = Some(self.write("changes", text));
        self
    }

    fn arms(mut self, arms: &[&str]) -> Self {
        self.arms = arms.iter().map(|arm| arm.parse().unwrap()).collect();
        self
    }

    fn inputs(&self) -> Inputs {
        Inputs {
            ledgers: self.ledgers.clone(),
            changes: self.changes.clone(),
            arms: self.arms.clone(),
            decided: Decided::Request,
            limit: LIMIT,
        }
    }

    fn verify(&self) -> Verdict {
        verify(&self.inputs()).unwrap()
    }

    fn faults(&self) -> String {
        verify(&self.inputs()).unwrap_err().to_string()
    }

    fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.arg("verify").args(args).args(&self.ledgers).stdin(Stdio::null());
        if let Some(changes) = &self.changes {
            command.arg("--changes").arg(changes);
        }
        command.output().unwrap()
    }
}

fn load_entry(number: u32, key: &str, outcome: &str, arm: &str, sent: u64, done: u64) -> String {
    format!("{}\t{key}\t{outcome}\t{arm}\t{sent}\t{done}\n", Id::new(RUN, number))
}

fn origin_entry(id: Id, what: &str, at: u64) -> String {
    format!("{id}\tkey\t{what}\t{at}\n")
}

fn found(verdict: &Verdict) -> BTreeMap<Kind, u64> {
    let findings = verdict.findings.iter().map(|(kind, finding)| (*kind, finding.count));
    findings.filter(|(_, count)| *count > 0).collect()
}

#[test]
fn every_fault_that_was_made_is_found_and_nothing_else() {
    for seed in 0..300 {
        let made = Made::new(seed);
        let verdict = made.verify();
        let found: BTreeMap<_, _> = verdict
            .findings
            .iter()
            .map(|(kind, finding)| (*kind, finding.examples.iter().map(|example| example.id.clone()).collect()))
            .collect();
        assert_eq!(found, made.expected(), "seed {seed}");
        for (kind, finding) in &verdict.findings {
            assert_eq!(finding.count, finding.examples.len() as u64, "{kind:?}, seed {seed}");
            assert_eq!(finding.count, finding.parts.values().sum::<u64>(), "{kind:?}, seed {seed}");
        }
        let reached: u64 = verdict.findings[&Kind::Lost]
            .parts
            .iter()
            .filter_map(|(part, count)| part.starts_with("reached").then_some(*count))
            .sum();
        assert_eq!(reached, made.lost_behind, "seed {seed}");
        assert_eq!(verdict.clean, made.expected.values().all(BTreeSet::is_empty), "seed {seed}");
        assert_eq!(verdict.requests, u64::from(made.numbers), "seed {seed}");
    }
}

/// Accounts of a made-up run that are true but for the faults put in.
struct Made {
    rng: fastrand::Rng,
    decided: Decided,
    load: Vec<String>,
    origins: BTreeMap<&'static str, Vec<String>>,
    changes: String,
    /// The names of the arms' origins.
    labels: [&'static str; 2],
    /// Ids by what is wrong with them.
    expected: BTreeMap<Kind, BTreeSet<String>>,
    /// Of the lost, those that an origin saw.
    lost_behind: u64,
    /// Numbers used.
    numbers: u32,
}

const ARMS: [&str; 2] = ["blue", "green"];

impl Made {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let decided = if rng.bool() { Decided::Request } else { Decided::Connection };
        let labels = if rng.bool() { ARMS } else { ["python", "go"] };
        let mut made = Self {
            rng,
            decided,
            load: Vec::new(),
            origins: labels.map(|label| (label, Vec::new())).into(),
            changes: String::new(),
            labels,
            expected: BTreeMap::new(),
            lost_behind: 0,
            numbers: 0,
        };
        made.true_requests();
        if !seed.is_multiple_of(10) {
            made.faults();
        }
        made
    }

    /// Keys that move only when splits change.
    fn true_requests(&mut self) {
        // A change takes effect at some time from its start to its end.
        let mut effects = Vec::new();
        for _ in 0..self.rng.u32(0..15) {
            let start = START + self.rng.u64(0..400_000);
            let end = start + self.rng.u64(0..2_000);
            effects.push(self.rng.u64(start..=end));
            let _ = writeln!(self.changes, "{start} {end}");
        }
        let salt = self.rng.u64(..);
        let arm_at = |key: u64, at: u64| {
            let epoch = effects.iter().filter(|effect| **effect <= at).count() as u64;
            fastrand::Rng::with_seed(salt ^ key << 32 ^ epoch).bool() as usize
        };
        let mut connections: BTreeMap<u64, (usize, u64)> = BTreeMap::new();
        for nth in 0..400 {
            let key = self.rng.u64(0..12);
            let mut sent = START + nth * 1000 + self.rng.u64(0..3000);
            let longest = if self.rng.u8(..) < 10 { 80_000 } else { 3_000 };
            let took = self.rng.u64(100..longest);
            let arm = match self.decided {
                Decided::Request => arm_at(key, sent + self.rng.u64(0..=took)),
                Decided::Connection => {
                    let (arm, free) = connections.get(&key).copied().unwrap_or((2, 0));
                    sent = sent.max(free);
                    let new = arm == 2 || self.rng.u8(..) < 20;
                    let arm = if new { arm_at(key, sent + self.rng.u64(0..=took)) } else { arm };
                    connections.insert(key, (arm, sent + took));
                    arm
                }
            };
            let outcome = if self.rng.u8(..) < 10 { "error" } else { "ok" };
            let id = self.request(&format!("user-{key}"), outcome, ARMS[arm], sent, sent + took);
            // A proxy answers with an error by itself, too.
            if outcome == "ok" || self.rng.bool() {
                self.seen(id, arm, sent + took / 2);
            }
            if self.rng.u8(..) < 50 {
                self.origin(1 - arm, origin_entry(id, "shadow", sent + took / 2));
            }
            if self.rng.u8(..) < 10 {
                let other = Id::new(RUN + 1, nth as u32);
                self.origin(arm, origin_entry(other, "seen", sent));
            }
        }
    }

    fn faults(&mut self) {
        // Before any change.
        let mut sent = START - 900_000;
        for _ in 0..self.rng.u32(0..=3) {
            for kind in [
                "reset",
                "timeout",
                "seen twice",
                "again",
                "both",
                "both and twice",
                "wrong arm",
                "unseen",
                "stray",
                "moved",
            ] {
                if self.rng.bool() {
                    sent += 10_000;
                    self.fault(kind, sent, sent + 700);
                }
            }
        }
    }

    fn fault(&mut self, kind: &str, sent: u64, done: u64) {
        let arm = usize::from(self.rng.bool());
        let key = format!("{kind} {sent}");
        let outcome = if matches!(kind, "reset" | "timeout") { kind } else { "ok" };
        let answered = if outcome == "ok" { ARMS[arm] } else { "-" };
        if kind == "stray" {
            let id = Id::new(RUN, 1_000_000 + self.rng.u32(..1_000_000));
            self.seen(id, arm, sent);
            self.expect(Kind::Stray, id);
            return;
        }
        let id = self.request(&key, outcome, answered, sent, done);
        if !matches!(kind, "reset" | "unseen" | "wrong arm") {
            self.seen(id, arm, sent + 100);
        }
        match kind {
            "reset" => self.expect(Kind::Lost, id),
            "timeout" => {
                self.lost_behind += 1;
                self.expect(Kind::Lost, id);
            }
            "seen twice" => {
                self.seen(id, arm, sent + 300);
                self.expect(Kind::Duplicated, id);
            }
            "again" => {
                self.load.push(load_entry(id.number(), &key, "again", answered, sent, done + 5));
                self.expect(Kind::Duplicated, id);
            }
            "both" => {
                self.seen(id, 1 - arm, sent + 300);
                self.expect(Kind::BothSides, id);
            }
            "both and twice" => {
                self.seen(id, 1 - arm, sent + 300);
                self.seen(id, 1 - arm, sent + 400);
                self.expect(Kind::BothSides, id);
                self.expect(Kind::Duplicated, id);
            }
            "wrong arm" => {
                self.seen(id, 1 - arm, sent + 300);
                self.expect(Kind::WrongArm, id);
            }
            "unseen" => self.expect(Kind::Unseen, id),
            _ => {
                let (sent, done) = (sent + 2_000, done + 2_000);
                let id = self.request(&key, "ok", ARMS[1 - arm], sent, done);
                self.seen(id, 1 - arm, sent + 100);
                self.expect(Kind::Moved, id);
            }
        }
    }

    fn request(&mut self, key: &str, outcome: &str, arm: &str, sent: u64, done: u64) -> Id {
        self.load.push(load_entry(self.numbers, key, outcome, arm, sent, done));
        self.numbers += 1;
        Id::new(RUN, self.numbers - 1)
    }

    fn seen(&mut self, id: Id, arm: usize, at: u64) {
        self.origin(arm, origin_entry(id, "seen", at));
    }

    fn origin(&mut self, arm: usize, entry: String) {
        self.origins.get_mut(self.labels[arm]).unwrap().push(entry);
    }

    fn expect(&mut self, kind: Kind, id: Id) {
        self.expected.entry(kind).or_default().insert(id.to_string());
    }

    fn expected(&self) -> BTreeMap<Kind, BTreeSet<String>> {
        use Kind::*;
        let all = [Lost, Duplicated, BothSides, WrongArm, Unseen, Stray, Moved];
        all.into_iter().map(|kind| (kind, self.expected.get(&kind).cloned().unwrap_or_default())).collect()
    }

    /// In any order, of lines and of files.
    fn verify(&self) -> Verdict {
        let mut rng = self.rng.clone();
        let shuffled = |lines: &[String], rng: &mut fastrand::Rng| {
            let mut lines = lines.to_vec();
            rng.shuffle(&mut lines);
            lines.concat()
        };
        let mut files = Files::new().load(&shuffled(&self.load, &mut rng)).changes(&self.changes);
        for (label, lines) in &self.origins {
            files = files.origin(label, &shuffled(lines, &mut rng));
        }
        if self.labels != ARMS {
            files = files.arms(&["blue=python", "green=go"]);
        }
        rng.shuffle(&mut files.ledgers);
        verify(&Inputs { decided: self.decided, ..files.inputs() }).unwrap()
    }
}

/// Two requests of one key that overlap, with a change at `at`.
fn overlapping(at: u64) -> Files {
    // The slow one was decided late, the quick one early.
    let slow = load_entry(1, "user-1", "ok", "green", START, START + 100);
    let quick = load_entry(2, "user-1", "ok", "blue", START + 10, START + 20);
    Files::new().load(&(slow + &quick)).changes(&format!("{}\n", START + at))
}

#[test]
fn a_key_may_move_while_a_split_changes_and_not_otherwise() {
    for (at, clean) in [(60, true), (0, true), (100, true), (101, false)] {
        let verdict = overlapping(at).verify();
        assert_eq!((verdict.clean, verdict.moved_with_a_change), (clean, clean.into()), "{at}");
    }

    let entries = load_entry(1, "user-1", "ok", "blue", START, START + 100)
        + &load_entry(2, "user-1", "ok", "blue", START + 5_000, START + 5_100)
        + &load_entry(3, "user-1", "ok", "green", START + 9_000, START + 9_100)
        + &load_entry(4, "user-2", "reset", "-", START + 9_000, START + 9_100);
    let files = Files::new().load(&entries);
    let verdict = files.verify();
    assert_eq!(found(&verdict), [(Kind::Lost, 1), (Kind::Moved, 1)].into());
    assert!(!verdict.findings[&Kind::Moved].fault, "nobody said when splits changed");

    // A connection may have been made before the change and kept its arm since.
    let files = files.changes(&format!("{}\n", START + 2_000));
    assert!(files.verify().findings[&Kind::Moved].fault);
    let by_connection = verify(&Inputs { decided: Decided::Connection, ..files.inputs() }).unwrap();
    assert_eq!((by_connection.moved_with_a_change, found(&by_connection)), (1, [(Kind::Lost, 1)].into()));

    let verdict = files.changes("# none\n").verify();
    assert!(verdict.findings[&Kind::Moved].fault, "a file without changes says that there were none");
}

#[test]
fn arms_are_held_against_origins_only_where_their_names_are_known() {
    let id = Id::new(RUN, 1);
    let load = load_entry(1, "user-1", "ok", "blue", START, START + 100);
    let files = Files::new().load(&load).origin("go", &origin_entry(id, "seen", START));
    let verdict = files.verify();
    assert!(verdict.clean);
    let why = verdict.findings[&Kind::WrongArm].not_checked.clone().unwrap();
    assert_eq!(why, "the load knows blue, the origins are go; say who is who with --arm blue=go and so on");
    assert!(verdict.to_string().ends_with(" unseen, stray, moved (not checked: wrong arm)\n"), "{verdict}");

    let files = files.origin("python", "");
    assert!(files.verify().findings[&Kind::WrongArm].not_checked.is_some());
    let files = files.arms(&["green=go", "blue=python"]);
    assert_eq!(found(&files.verify()), [(Kind::WrongArm, 1)].into());
    let files = files.arms(&["blue=go", "green=python"]);
    assert!(files.verify().clean);

    // Two origins of one arm are one side.
    let files = files.arms(&["blue=go", "blue=python"]).origin("java", "");
    fs::write(&files.ledgers[2], format!("# loadtest-ledger 1 origin python\n{}", origin_entry(id, "seen", START)))
        .unwrap();
    assert_eq!(found(&files.verify()), [(Kind::Duplicated, 1)].into());

    for (arms, problem) in [
        (
            ["blue=go", "blue=goo"],
            "--arm blue=goo: no origin's ledger with that label; give one of these: go, java, python",
        ),
        (["blue=go", "green=go"], "--arm green=go: go is also behind blue; give each label one arm"),
    ] {
        let inputs = Inputs { arms: arms.map(|arm| arm.parse().unwrap()).into(), ..files.inputs() };
        assert_eq!(verify(&inputs).unwrap_err().to_string(), problem);
    }
    for faulty in ["", "blue", "=go", "blue="] {
        assert!(faulty.parse::<ArmOf>().is_err(), "{faulty}");
    }
}

#[test]
fn without_origins_only_what_the_load_knows_is_checked() {
    let entries = load_entry(1, "user-1", "reset", "-", START, START + 100)
        + &load_entry(2, "user-1", "ok", "go", START, START + 100)
        + &load_entry(2, "user-1", "again", "go", START, START + 101)
        + &load_entry(3, "user-1", "ok", "go", START, START + 100)
        + &load_entry(3, "user-1", "ok", "go", START, START + 101)
        + &load_entry(4, "user-1", "again", "go", START, START + 101);
    let verdict = Files::new().load(&entries).verify();
    assert_eq!(found(&verdict), [(Kind::Lost, 1), (Kind::Duplicated, 3)].into());
    assert_eq!(verdict.findings[&Kind::Lost].parts, [("reset".to_owned(), 1)].into());
    let text = verdict.to_string();
    assert!(text.ends_with("\nfaulty: 1 lost, 3 duplicated, among 3 requests\n"), "{text}");
    assert!(text.contains("unseen      -  not checked  no origin's ledger was given\n"), "{text}");
    assert!(
        text.contains(&format!("  {} user-1 ok go sent {START} done +100 µs; again by go +101 µs\n", Id::new(RUN, 2)))
    );
}

#[test]
fn several_loads_are_joined_at_once() {
    let other = Owner::Load { run: 7 };
    let entry = format!("{}\tuser-1\tok\tgo\t{START}\t{START}\n", Id::new(7, 0));
    let seen = origin_entry(Id::new(7, 0), "seen", START) + &origin_entry(Id::new(RUN, 5), "seen", START);
    let files = Files::new()
        .load(&load_entry(5, "user-1", "ok", "go", START, START))
        .origin("go", &seen)
        .ledger("other", format!("{other}\n{entry}"));
    let verdict = files.verify();
    assert!(verdict.clean, "{verdict}");
    assert_eq!((verdict.requests, verdict.loads.len()), (2, 2));

    let problem = files.ledger("third", format!("{other}\n{entry}")).faults();
    assert!(problem.contains("third: the account of run 00000007, as is "), "{problem}");
}

#[test]
fn a_last_line_that_is_cut_off_is_left_out_and_named() {
    let entries = load_entry(1, "user-1", "ok", "go", START, START + 100)
        + load_entry(2, "user-1", "ok", "go", START, START + 100).trim_end();
    let seen = origin_entry(Id::new(RUN, 1), "seen", START) + "1a2b3c4d00";
    let verdict = Files::new().load(&entries).origin("go", &seen).verify();
    assert!(verdict.clean, "{verdict}");
    assert_eq!(verdict.requests, 1);
    assert_eq!(verdict.notes.len(), 2);
    assert!(verdict.notes[0].contains("load:3: the last line is cut off"), "{:?}", verdict.notes);
    assert!(verdict.notes[1].contains("go:3: the last line is cut off"), "{:?}", verdict.notes);
}

#[test]
fn what_is_no_ledger_or_damaged_is_named_with_its_place() {
    let good = load_entry(1, "user-1", "ok", "go", START, START + 100);
    let of_another_run = good.replace("1a2b3c4d", "1a2b3c4e");
    let long = format!("{}\n", "x".repeat(5_000));
    for (damaged, problem) in [
        ("\n", "load:3: not the six fields of a load's entry"),
        (&*good.replace("user-1", "user\t1"), "load:3: not the six fields"),
        (&*good.replace("1a2b", "1a2x"), "load:3: \"1a2x3c4d00000001\" is no id"),
        (&*good.replace(&START.to_string(), "soon"), "load:3: \"soon\" is no time"),
        (&*of_another_run, "load:3: 1a2b3c4e00000001 is not of run 1a2b3c4d"),
        (&*long, "load:3: longer than 4096 bytes"),
    ] {
        let problems = Files::new().load(&(good.clone() + damaged + &good)).faults();
        assert!(problems.contains(problem) && problems.contains("; give the file as loadtest wrote it"), "{problems}");
    }
    let mut bytes = format!("{}\n{good}", Owner::Load { run: RUN }).into_bytes();
    bytes.extend(b"\xff\xfe\n");
    assert!(Files::new().ledger("load", bytes).faults().contains("load:3: is no UTF-8 text"));

    let files = Files::new().load(&good);
    for (entry, problem) in [
        (good.as_str(), "go:2: not the four fields of an origin's entry"),
        (&*origin_entry(Id::new(RUN, 1), "heard", START), "go:2: \"heard\" is neither seen nor shadow"),
    ] {
        let path = files.write("go", format!("# loadtest-ledger 1 origin go\n{entry}"));
        let inputs = Inputs { ledgers: vec![files.ledgers[0].clone(), path], ..files.inputs() };
        let problems = verify(&inputs).unwrap_err().to_string();
        assert!(problems.contains(problem), "{problems}");
    }

    // All of them, up to ten.
    assert_eq!(Files::new().load(&(good.clone() + "a\nb\n")).origin("go", "c\n").faults().lines().count(), 3);
    assert_eq!(Files::new().load(&"x\n".repeat(100)).faults().lines().count(), 10);

    for (files, problem) in [
        (Files::new().origin("go", ""), "no load's account among the files"),
        (Files::new().load(""), "load:2: the end, and not one request so far"),
        (Files::new().ledger("x", ""), "x:1: the first line is not \"# loadtest-ledger 1\""),
        (Files::new().ledger("x", "# loadtest-ledger 1 load 1a2b"), "x:1: the first line is not"),
        (Files::new().ledger("x", [0; 10_000]), "x:1: longer than 4096 bytes"),
    ] {
        assert!(files.faults().contains(problem), "{}", files.faults());
    }

    let mut files = Files::new().load(&good);
    files.ledgers.push(files.ledgers[0].clone());
    files.ledgers.push(files.folder.path().to_owned());
    files.ledgers.push(files.folder.path().join("absent"));
    let problems = files.faults();
    let problems: Vec<_> = problems.lines().collect();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].ends_with("load: is given twice; give each ledger once"), "{problems:?}");
    assert!(problems[2].contains("absent: cannot read it; give a file that exists"), "{problems:?}");

    let files = Files::new().load(&good).changes("1763723531\n");
    assert!(files.faults().contains("changes:1: 1763723531 is too early"), "{}", files.faults());
}

#[test]
fn more_entries_than_the_limit_are_refused() {
    let entries: String = (0..10).map(|nth| load_entry(nth, "user-1", "ok", "go", START, START)).collect();
    let files = Files::new().load(&entries);
    assert!(verify(&Inputs { limit: 10, ..files.inputs() }).is_ok());
    let problem = verify(&Inputs { limit: 9, ..files.inputs() }).unwrap_err().to_string();
    assert!(problem.starts_with("more than 9 entries to hold, 32 bytes each; "), "{problem}");
    // So do sightings beyond the first.
    let seen = origin_entry(Id::new(RUN, 1), "seen", START).repeat(5);
    let files = files.origin("go", &seen);
    assert!(verify(&Inputs { limit: 14, ..files.inputs() }).is_ok());
    assert!(verify(&Inputs { limit: 13, ..files.inputs() }).is_err());
}

#[test]
fn the_command_says_its_verdict_by_its_exit_code_and_in_its_last_line() {
    let clean = Files::new()
        .load(&load_entry(1, "user-1", "ok", "go", START, START + 100))
        .origin("go", &origin_entry(Id::new(RUN, 1), "seen", START))
        .changes("");
    let output = clean.command(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(
        text.lines().last().unwrap(),
        "clean: 1 requests and none of this: lost, duplicated, both sides, wrong arm, unseen, stray, moved"
    );

    let faulty = Files::new().load(&load_entry(1, "user-1", "timeout", "-", START, START + 100)).origin("go", "");
    let output = faulty.command(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().last().unwrap(), "faulty: 1 lost, among 1 requests");
    let output = faulty.command(&["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["schema"], "loadtest-verify/1");
    assert_eq!(json["findings"]["lost"]["parts"]["never reached an origin"], 1);
    assert_eq!(json["findings"]["lost"]["examples"][0]["id"], "1a2b3c4d00000001");
    assert_eq!(json["findings"]["both_sides"]["count"], 0);

    for (args, problem) in [
        (&["--arm", "blue=goo"][..], "loadtest: --arm blue=goo: no origin's ledger with that label"),
        (&["--arm", "blue"][..], "give ARM=LABEL"),
        (&["--limit-entries", "0"][..], "loadtest: more than 0 entries"),
        (
            &["/nowhere"][..],
            "loadtest: /nowhere: cannot read it; give a file that exists and that you may read: No such file",
        ),
    ] {
        let output = faulty.command(args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(problem), "{error}");
    }
    let none = Command::new(env!("CARGO_BIN_EXE_loadtest")).arg("verify").output().unwrap();
    assert_eq!(none.status.code(), Some(2));
}

#[test]
fn what_is_written_can_be_verified() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["load", "go"].map(|name| folder.path().join(name));
    let load = Ledger::create(&paths[0], &Owner::Load { run: RUN }).unwrap();
    let origin = Ledger::create(&paths[1], &Owner::Origin { label: "go".to_owned() }).unwrap();
    let (mut sent, mut seen) = (load.page(), origin.page());
    for number in 0..10_000 {
        let id = Id::new(RUN, number);
        sent.load(id, &format!("user-{}", number % 100), "ok", "go", START, START + 100);
        seen.origin(id, "bell \u{7}", false, START + 50);
        seen.origin(id, "user", true, START + 50);
    }
    drop((sent, seen));
    load.close().unwrap();
    origin.close().unwrap();
    let inputs = Inputs { ledgers: paths.into(), ..Files::new().inputs() };
    let verdict = verify(&inputs).unwrap();
    assert!(verdict.clean, "{verdict}");
    assert_eq!((verdict.requests, verdict.keys, verdict.origins["go"].shadow), (10_000, 100, 10_000));
}

/// Writes the accounts of a run with `requests` requests of two arms.
fn write_pair(folder: &Path, requests: u32) -> Vec<PathBuf> {
    let paths = ["load", "blue", "green"].map(|name| folder.join(name));
    let mut files = paths.each_ref().map(|path| BufWriter::new(File::create(path).unwrap()));
    writeln!(files[0], "{}", Owner::Load { run: RUN }).unwrap();
    for (file, label) in files[1..].iter_mut().zip(ARMS) {
        writeln!(file, "{}", Owner::Origin { label: label.to_owned() }).unwrap();
    }
    for number in 0..requests {
        // Answers come a little out of order.
        let number = number ^ 5;
        let (arm, sent) = ((number % 1000 % 2) as usize, START + u64::from(number) * 10);
        let (id, key) = (Id::new(RUN, number), number % 1000);
        files[0]
            .write_all(load_entry(number, &format!("user-{key}"), "ok", ARMS[arm], sent, sent + 700).as_bytes())
            .unwrap();
        writeln!(files[arm + 1], "{id}\tuser-{key}\tseen\t{}", sent + 300).unwrap();
    }
    files.into_iter().for_each(|mut file| file.flush().unwrap());
    paths.into()
}

#[test]
#[ignore = "measures: run it alone, in release, with --nocapture"]
fn a_million_entries_take_seconds_and_the_memory_stated() {
    let folder = tempfile::tempdir().unwrap();
    for requests in [1_000_000, 10_000_000] {
        let ledgers = write_pair(folder.path(), requests);
        let start = tokio::time::Instant::now();
        let verdict = verify(&Inputs { ledgers, ..Files::new().changes("").inputs() }).unwrap();
        let took = start.elapsed();
        assert!(verdict.clean, "{verdict}");
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        println!("{requests} requests: {took:?}, {} bytes held, {peak}", verdict.held_bytes);
    }
}
