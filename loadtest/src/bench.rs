//! The bench: proxies side by side, on one machine, under the same load.
//!
//! Every peer does the same job with one worker: a sticky split, half and half, between the same two origins. It is
//! pinned to one core, load and origins to another. Rounds are interleaved, each peer once in each, so that what the
//! machine does besides falls on all of them, and ratios are taken round by round. What counts most is the processor
//! time that one answer costs, from the kernel's own account of the peer's processes.
//!
//! - [`case`]: what is driven, through whom, and why others are left out;
//! - [`peer`], [`origin`], [`template`]: who is started, and how it is configured (`loadtest/bench`);
//! - [`process`]: what a started program uses;
//! - [`load`], [`idle`]: what is done to it;
//! - [`profile`]: where the time of one of them goes;
//! - [`result`], [`table`], [`goal`]: what came of it, and whether it is what it should be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;

use self::{
    case::{By, CASES, Case, Drive, IDLE, Kind, MANY, MANY_IDLE, Through},
    idle::Held,
    load::Load,
    origin::{BlackHole, CA, Origins},
    peer::{Peer, Ports, Program, Started, Tools},
    process::{Cores, Cpu},
    profile::Perf,
    result::{CaseResult, Figures, LeftOut, Machine, Measured, add_latency_added, figure, summarise},
    table::{counted, pinning},
};
use crate::{
    ledger::unix_micros,
    report::{Latencies, Report},
};

mod case;
mod goal;
mod idle;
mod load;
mod origin;
mod peer;
mod process;
mod profile;
mod result;
mod table;
mod template;

pub(crate) use self::{
    result::{Outcome, SCHEMA},
    table::{markdown, render_case, render_goals},
};

/// Load before the measured one: in the first round, when everything is new, and in the others.
const WARM_UP: [Duration; 2] = [Duration::from_millis(1000), Duration::from_millis(300)];
/// Files that a proxy has open besides its connections, and to spare.
const RESERVE: usize = 1000;
/// What a run costs besides its load, and an idle peer in all, in seconds: to say how long it will take.
const OVERHEAD: f64 = 0.15;
const IDLE_SECONDS: f64 = 3.5;
/// What opening and closing the idle connections of a load takes, in seconds.
const MANY_SECONDS: f64 = 3.0;
/// Memory hardly varies between rounds.
const IDLE_ROUNDS: usize = 2;
/// Green's share of the answers when 1000 keys are split half and half.
const GREEN_SHARE: std::ops::RangeInclusive<f64> = 0.4..=0.6;

/// What to run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Names of cases; all when empty.
    pub(crate) cases: Vec<String>,
    /// Names of peers; all when empty.
    pub(crate) peers: Vec<String>,
    /// The program `crossfade`; looked for when none.
    pub(crate) crossfade: Option<PathBuf>,
    pub(crate) rounds: usize,
    /// Of load, for each peer in each round.
    pub(crate) seconds: u64,
}

/// A bench about to run, and what it has come to so far.
#[derive(Debug)]
pub(crate) struct Bench {
    cases: Vec<&'static Case>,
    peers: Vec<String>,
    tools: Tools,
    cores: Option<Cores>,
    progress: ProgressBar,
    outcome: Outcome,
}

impl Bench {
    /// Looks at what there is. Errors: names of no case or no peer; a given `crossfade` that cannot be run; no origin to
    /// put behind the peers.
    pub(crate) fn new(plan: Plan) -> anyhow::Result<Self> {
        let cases = Case::named(&plan.cases).map_err(anyhow::Error::msg)?;
        let known: BTreeSet<&str> = CASES.iter().flat_map(|case| case.peers).map(|peer| peer.name()).collect();
        if let Some(unknown) = plan.peers.iter().find(|name| !known.contains(name.as_str())) {
            bail!("no peer {unknown:?}; there are {}", known.into_iter().collect::<Vec<_>>().join(", "));
        }
        let tools = Tools::look(plan.crossfade.as_deref())?;
        if tools.path(Program::Nginx).is_none() {
            bail!("nginx: not installed, and it is the origin behind every HTTP peer; `make bench-tools` installs it");
        }
        let cores = Cores::pick();
        let outcome = Outcome {
            schema: SCHEMA,
            started_ms: unix_micros() / 1000,
            complete: false,
            rounds: plan.rounds,
            seconds: plan.seconds,
            machine: Machine::here(cores),
            versions: tools.versions(),
            cases: Vec::new(),
            goals: Vec::new(),
        };
        Ok(Self { cases, peers: plan.peers, tools, cores, progress: ProgressBar::hidden(), outcome })
    }

    /// What can be run here, for people.
    pub(crate) fn list(&self) -> String {
        table::list(&self.cases, |case| self.take_part(case))
    }

    /// What will be done, for people.
    pub(crate) fn announcement(&self) -> String {
        let all = self.cases.iter().map(|case| self.seconds_of(case)).sum::<f64>();
        let time = if all < 90.0 { format!("{all:.0} s") } else { format!("{:.0} min", all / 60.0) };
        let (cases, rounds) = (counted(self.cases.len(), "case"), counted(self.outcome.rounds, "round"));
        format!("bench: {cases}, {rounds} of {} s, about {time}; {}", self.outcome.seconds, pinning(self.cores))
    }

    /// Runs the cases one after the other, and hands each result to `done`. Errors: a peer or the load fails; what was
    /// measured until then is in [`outcome`](Self::outcome).
    pub(crate) async fn run(&mut self, mut done: impl FnMut(&CaseResult)) -> anyhow::Result<()> {
        let all = self.cases.iter().map(|case| self.seconds_of(case)).sum::<f64>();
        self.progress = ProgressBar::new((all * 1000.0) as u64);
        let style = ProgressStyle::with_template("{bar:30} {eta:>4} left  {msg}").expect("the template is one");
        self.progress.set_style(style);
        let mut before = 0.0;
        for case in self.cases.clone() {
            self.progress.set_position((before * 1000.0) as u64);
            let result = self.case(case).await.with_context(|| format!("case {}", case.name))?;
            self.progress.suspend(|| done(&result));
            self.outcome.cases.push(result);
            self.outcome.goals = goal::judge(&self.outcome.cases);
            before += self.seconds_of(case);
        }
        self.outcome.complete = true;
        Ok(())
    }

    /// What was measured; whole when [`run`](Self::run) has come to its end.
    pub(crate) fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Takes the progress line off the terminal.
    pub(crate) fn clear(&self) {
        self.progress.finish_and_clear();
    }

    fn went_by(&self, time: Duration) {
        self.progress.inc(time.as_millis() as u64);
    }

    /// Runs the load of each case through one peer, the last Crossfade there is unless others are left out, while a
    /// profiler looks on; hands each file written, and its text, to `done`. Errors: no profiler, a case that is not about
    /// load, a program that fails.
    pub(crate) async fn profile(
        &self,
        into: &Path,
        mut done: impl FnMut(&Path, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let perf = Perf::look()?;
        fs::create_dir_all(into).with_context(|| format!("{}: cannot be made", into.display()))?;
        for case in &self.cases {
            let (mut peers, left_out) = self.take_part(case);
            if self.peers.is_empty() {
                peers.retain(|peer| peer.program() == Some(Program::Crossfade));
            }
            let Some(peer) = peers.pop().filter(|peer| peer.program().is_some()) else {
                let why: Vec<_> = left_out.iter().map(|one| format!("{}: {}", one.peer, one.reason)).collect();
                bail!("case {}: nobody to look at; {}", case.name, why.join("; "));
            };
            let mut run = self.case_run(case, vec![peer])?;
            let text = run.profile(peer, &perf, into).await.with_context(|| format!("case {}", case.name))?;
            let file = into.join(format!("{}.txt", case.name));
            fs::write(&file, &text).with_context(|| format!("{}: cannot be written", file.display()))?;
            done(&file, &text)?;
        }
        Ok(())
    }

    fn case_run(&self, case: &'static Case, peers: Vec<Peer>) -> anyhow::Result<CaseRun<'_>> {
        Ok(CaseRun {
            case,
            peers,
            bench: self,
            ports: Ports::default(),
            // Configurations, logs, what origins serve: for this case only.
            dir: tempfile::Builder::new()
                .prefix("loadtest-bench-")
                .tempdir()
                .context("no folder for temporary files")?,
            black_hole: None,
            missing: 0,
            notes: BTreeSet::new(),
        })
    }

    async fn case(&self, case: &'static Case) -> anyhow::Result<CaseResult> {
        let (peers, left_out) = self.take_part(case);
        let mut run = self.case_run(case, peers)?;
        let rounds = match &case.kind {
            _ if run.peers.is_empty() => Vec::new(),
            Kind::Load { .. } | Kind::Workers { .. } | Kind::Many { .. } => run.load().await?,
            Kind::Idle { through } => run.idle(*through).await?,
            Kind::Generator => run.generators().await?,
        };
        let of = |(peer, rounds): (&Peer, _)| Measured {
            peer: peer.name(),
            to: peer.plain().unwrap_or(case.to).name(),
            rounds,
        };
        let mut measured: Vec<Measured> = run.peers.iter().zip(rounds).map(of).collect();
        add_latency_added(&mut measured, Peer::Direct.name());
        let floor = case.peers.contains(&Peer::NginxStream).then_some(Peer::NginxStream.name());
        Ok(CaseResult {
            name: case.name,
            about: case.about,
            ratio_by: case.by,
            peers: summarise(measured, case.by, floor),
            left_out,
            notes: run.notes.into_iter().collect(),
        })
    }

    /// Who takes part in a case, and who does not and why.
    fn take_part(&self, case: &Case) -> (Vec<Peer>, Vec<LeftOut>) {
        let mut left_out: Vec<LeftOut> = case
            .others
            .iter()
            .map(|(peer, reason)| LeftOut { peer: (*peer).to_owned(), reason: (*reason).to_owned() })
            .collect();
        let through = case.kind.through();
        let origin = Origins::program(through);
        let here = |peer: &Peer| {
            let reason = if self.tools.path(origin).is_none() {
                Some(format!(
                    "{} is to stand behind it and is not installed; `make bench-tools` installs it",
                    origin.name()
                ))
            } else if !self.peers.is_empty() && !self.peers.iter().any(|name| name == peer.name()) {
                Some("not asked for".to_owned())
            } else {
                self.tools.missing(*peer, peer.through(through))
            };
            let Some(reason) = reason else { return true };
            left_out.push(LeftOut { peer: peer.name().to_owned(), reason });
            false
        };
        (case.peers.iter().copied().filter(here).collect(), left_out)
    }

    /// About how long a case takes.
    fn seconds_of(&self, case: &Case) -> f64 {
        let (peers, _) = self.take_part(case);
        let rounds = self.outcome.rounds as f64;
        let measured = self.outcome.seconds as f64 + OVERHEAD;
        let [first, later] = WARM_UP.map(|warm_up| warm_up.as_secs_f64() + OVERHEAD + measured);
        let of = |peer: &Peer| match (&case.kind, peer) {
            (Kind::Load { .. }, Peer::Direct) if case.by != By::Added => first,
            (Kind::Load { .. } | Kind::Workers { .. }, _) => first + (rounds - 1.0) * later,
            (Kind::Many { .. }, peer) => {
                let opening = if peer.has_many() { MANY_SECONDS } else { 0.0 };
                first + (rounds - 1.0) * later + rounds * opening
            }
            (Kind::Idle { .. }, _) => rounds.min(IDLE_ROUNDS as f64) * IDLE_SECONDS,
            (Kind::Generator, _) => rounds * measured,
        };
        peers.iter().map(of).sum()
    }
}

/// The figures of each peer, in their order, round by round.
type Rounds = Vec<Vec<Figures>>;

/// A case while it runs.
struct CaseRun<'a> {
    case: &'static Case,
    peers: Vec<Peer>,
    bench: &'a Bench,
    ports: Ports,
    dir: TempDir,
    /// Where copies go that are not to be answered.
    black_hole: Option<BlackHole>,
    /// Idle connections that there are no descriptors for.
    missing: usize,
    notes: BTreeSet<String>,
}

impl CaseRun<'_> {
    async fn load(&mut self) -> anyhow::Result<Rounds> {
        let case = self.case;
        let (mut origins, load, mut started) = self.set_up().await?;
        let seconds = Duration::from_secs(self.bench.outcome.seconds);
        let mut measured = self.nothing_yet();
        for (round, nth) in self.turns(self.bench.outcome.rounds) {
            let peer = self.peers[nth];
            self.show(round, peer);
            let started = started.get_mut(&peer).expect("every peer was started");
            let drive = case.kind.drive(peer).expect("the case is about load");
            let arguments = self.arguments(drive, started);
            let held = self.hold(drive, started).await.with_context(|| peer.name())?;
            let warm_up = WARM_UP[usize::from(round > 0)];
            load.run(&arguments, warm_up).await.with_context(|| format!("{}, warming up", peer.name()))?;

            let before = started.cpu()?;
            let report = load.run(&arguments, seconds).await.with_context(|| peer.name())?;
            let spent = started.cpu()?.zip(before).map(|(after, before)| after - before);
            if let Some(process) = &mut started.process {
                process.runs()?;
            }
            origins.run()?;
            held.all_open().with_context(|| peer.name())?;
            let doubts = doubts(peer, drive.through, &report);
            self.notes.extend(doubts.into_iter().map(|doubt| format!("{}: {doubt}", peer.name())));
            measured[nth].push(figures(&report, spent));
            self.bench.went_by(warm_up + seconds);
        }
        Ok(measured)
    }

    /// The load of the case through `peer` while `perf` looks on: where the time goes.
    async fn profile(&mut self, peer: Peer, perf: &Perf, into: &Path) -> anyhow::Result<String> {
        let case = self.case;
        let Some(drive) = case.kind.drive(peer) else {
            bail!("it is not about load through a proxy; choose another");
        };
        let (mut origins, load, mut started) = self.set_up().await?;
        let started = started.get_mut(&peer).expect("every peer was started");
        let arguments = self.arguments(drive, started);
        let held = self.hold(drive, started).await.with_context(|| peer.name())?;
        load.run(&arguments, WARM_UP[0]).await.with_context(|| format!("{}, warming up", peer.name()))?;

        let pids = started.process.as_ref().expect("a program was started").pids().context("its processes")?;
        let data = into.join(format!("{}.perf.data", case.name));
        let recording = perf.record(&pids, self.core(Cores::load), &data)?;
        let before = started.cpu()?;
        let report = load.run(&arguments, Duration::from_secs(self.bench.outcome.seconds)).await;
        let report = report.with_context(|| peer.name())?;
        let spent = started.cpu()?.zip(before).map(|(after, before)| after - before);
        recording.stop().await?;
        if let Some(process) = &mut started.process {
            process.runs()?;
        }
        origins.run()?;
        held.all_open().with_context(|| peer.name())?;

        let figures = figures(&report, spent);
        let of = |name| figures.of.get(name).copied().unwrap_or_default();
        let head = format!(
            "{}: {}\n{}, {:.0} requests/s, {:.2} µs of processor time per request while looked at; \
             by the kernel's account user {:.2} µs, kernel {:.2} µs\nmore: perf report -i {}",
            case.name,
            case.about,
            peer.name(),
            of(figure::RATE),
            of(figure::CPU),
            of(figure::USER),
            of(figure::SYSTEM),
            data.display(),
        );
        Ok(profile::text(&head, &perf.symbols(&data).await?, of(figure::CPU)))
    }

    /// Opens the connections that stay idle beside the load.
    async fn hold(&self, drive: Drive, started: &Started) -> anyhow::Result<Held> {
        Held::open(started.address, drive.through, drive.idle.saturating_sub(self.missing)).await
    }

    /// Starts the origins and every peer of a case that is about load.
    async fn set_up(&mut self) -> anyhow::Result<(Origins, Load, BTreeMap<Peer, Started>)> {
        if let Kind::Many { .. } = self.case.kind {
            let limit = descriptors(2 * MANY + RESERVE)?;
            let connections = connections_within(limit);
            if connections < 2 * (MANY - MANY_IDLE) {
                bail!("{}", too_few_descriptors(MANY, 2 * MANY + RESERVE, limit));
            }
            if connections < MANY {
                self.notes.insert(format!(
                    "{connections} open connections instead of {MANY}, since the limit of open files is {limit}"
                ));
            }
            self.missing = MANY - connections;
        }
        let through = self.case.kind.through();
        let origins = self.origins(through, Cores::load).await?;
        let load = Load::new(self.core(Cores::load), self.dir.path())?;
        let mut started = BTreeMap::new();
        for peer in self.peers.clone() {
            started.insert(peer, self.start(peer, through, &origins).await?);
        }
        Ok((origins, load, started))
    }

    async fn idle(&mut self, through: Through) -> anyhow::Result<Rounds> {
        let (needed, limit) = (2 * IDLE + RESERVE, descriptors(2 * IDLE + RESERVE)?);
        if limit < needed {
            bail!("{}", too_few_descriptors(IDLE, needed, limit));
        }
        let origins = self.origins(through, Cores::load).await?;
        let mut measured = self.nothing_yet();
        for (round, nth) in self.turns(self.bench.outcome.rounds.min(IDLE_ROUNDS)) {
            let peer = self.peers[nth];
            self.show(round, peer);
            let started = self.start(peer, through, &origins).await?;
            let process = started.process.as_ref().expect("an idle case has only proxies");
            let memory = idle::memory_per_connection(process, started.address, through, IDLE);
            let memory = memory.await.with_context(|| peer.name())?;
            measured[nth].push(Figures { of: BTreeMap::from([(figure::MEMORY, memory)]), ..Figures::default() });
            self.bench.went_by(Duration::from_secs_f64(IDLE_SECONDS));
        }
        Ok(measured)
    }

    /// Nobody is in between: the origin has the core of the proxies.
    async fn generators(&mut self) -> anyhow::Result<Rounds> {
        let mut origins = self.origins(Through::Http, Cores::proxy).await?;
        let load = Load::new(self.core(Cores::load), self.dir.path())?;
        let url = format!("http://{}/", origins.arms.blue);
        let seconds = Duration::from_secs(self.bench.outcome.seconds);
        let mut measured = self.nothing_yet();
        for (round, nth) in self.turns(self.bench.outcome.rounds) {
            let peer = self.peers[nth];
            self.show(round, peer);
            let before = Cpu::of_ended_children()?;
            let mut figures = if peer == Peer::Wrk {
                let wrk = self.bench.tools.path(Program::Wrk).expect("peers that are not installed are left out");
                let said = load.wrk(wrk, &url, seconds).await?;
                let of = BTreeMap::from([(figure::RATE, said.rate), (figure::P50, said.p50), (figure::P99, said.p99)]);
                Figures { answered: Some(said.answered), failed: Some(said.failed), of }
            } else {
                let arguments = ["http", "--max", "--connections", "64", "--target", &url].map(str::to_owned);
                figures(&load.run(&arguments, seconds).await?, None)
            };
            add_cpu(&mut figures, Cpu::of_ended_children()? - before);
            origins.run()?;
            measured[nth].push(figures);
            self.bench.went_by(seconds);
        }
        Ok(measured)
    }

    async fn origins(&mut self, through: Through, core: fn(Cores) -> usize) -> anyhow::Result<Origins> {
        origin::write_files(self.dir.path())?;
        let core = self.core(core);
        Origins::start(through, &self.bench.tools, core, &mut self.ports, self.dir.path()).await
    }

    async fn start(&mut self, peer: Peer, through: Through, origins: &Origins) -> anyhow::Result<Started> {
        let core = self.core(Cores::proxy);
        let (through, mut arms) = (peer.through(through), origins.arms);
        if peer == Peer::CrossfadeMirrorHole {
            arms.green = self.black_hole.insert(BlackHole::open().await?).address;
        }
        Started::start(peer, through, arms, &self.bench.tools, core, &mut self.ports, self.dir.path()).await
    }

    /// The core for a program, if it is pinned to one.
    fn core(&self, core: fn(Cores) -> usize) -> Option<usize> {
        // Two workers need two cores. Either would have one to itself with one worker, and share one with the load with two,
        // if the load had a core of its own, so nobody has.
        let shared = matches!(self.case.kind, Kind::Workers { .. });
        self.bench.cores.filter(|_| !shared).map(core)
    }

    fn nothing_yet(&self) -> Rounds {
        vec![Vec::new(); self.peers.len()]
    }

    /// Each peer once in each round, in an order that rotates: the round, and which peer. The floor is compared with
    /// nobody, so the first round is enough for it, unless the case is about what is added to it.
    fn turns(&self, rounds: usize) -> Vec<(usize, usize)> {
        let count = self.peers.len();
        let all = (0..rounds).flat_map(|round| (0..count).map(move |turn| (round, (turn + round) % count)));
        let again = |nth: usize| self.peers[nth] != Peer::Direct || self.case.by == By::Added;
        all.filter(|(round, nth)| *round == 0 || again(*nth)).collect()
    }

    /// Shows on the progress line whose turn it is.
    fn show(&self, round: usize, peer: Peer) {
        self.bench.progress.set_message(format!("{}, round {}: {}", self.case.name, round + 1, peer.name()));
    }

    fn arguments(&self, drive: Drive, started: &Started) -> Vec<String> {
        let Drive { through, path, .. } = drive;
        let address = started.address;
        let target = match through {
            Through::Http | Through::Tcp => format!("http://{address}{path}"),
            Through::Https => format!("https://{address}{path}"),
            Through::Mqtt => address.to_string(),
        };
        let mut arguments: Vec<String> = drive.arguments.split(' ').map(str::to_owned).collect();
        arguments.extend(["--target".to_owned(), target]);
        if through == Through::Https {
            arguments.extend(["--ca".to_owned(), self.dir.path().join(CA).display().to_string()]);
        }
        arguments
    }
}

/// What makes the figures of a round worth less: failures, and a peer that does another job than the others.
fn doubts(peer: Peer, through: Through, report: &Report) -> Vec<String> {
    let account = &report.account;
    let mut doubts = Vec::new();
    if failed(report) > 0 {
        let kinds = account.failed.keys().map(String::as_str);
        let kinds = kinds.chain((account.error_status > 0).then_some("error status"));
        let kinds = kinds.chain((account.lost > 0).then_some("lost")).collect::<Vec<_>>().join(", ");
        doubts.push(format!("{} of {} requests failed in a round: {kinds}", failed(report), account.sent));
    }
    // TCP mode knows a caller by its address alone, and all come from the same.
    // Behind a mirror into a black hole, green is the hole.
    let splits = !matches!(peer, Peer::Direct | Peer::CrossfadeMirrorHole);
    if matches!(through, Through::Http | Through::Https) && splits {
        let green = report.arms.get("green").map_or(0.0, |arm| arm.share);
        if !GREEN_SHARE.contains(&green) {
            doubts.push(format!("green answered {:.1} % instead of half", green * 100.0));
        }
        if account.moved > 0 {
            doubts.push(format!("{} answers came from another arm than their key had before", account.moved));
        }
    }
    doubts.extend(report.generator.warnings.iter().map(|warning| format!("the load says: {warning}")));
    doubts
}

fn failed(report: &Report) -> u64 {
    report.account.failures() + report.account.error_status + report.account.lost
}

fn figures(report: &Report, spent: Option<Cpu>) -> Figures {
    let latency = report.series.get("latency").or_else(|| report.series.get("ack"));
    let mut of = BTreeMap::from([(figure::RATE, report.end.rate_achieved)]);
    if let Some(latency) = latency {
        let Latencies { p50, p99, p999, .. } = latency.all;
        of.extend([(figure::P50, p50 as f64), (figure::P99, p99 as f64), (figure::P999, p999 as f64)]);
    }
    let mut figures = Figures { answered: Some(report.account.answered), failed: Some(failed(report)), of };
    if let Some(spent) = spent {
        add_cpu(&mut figures, spent);
    }
    figures
}

fn add_cpu(figures: &mut Figures, spent: Cpu) {
    let (user, system) = spent.per(figures.answered.unwrap_or_default());
    figures.of.extend([(figure::USER, user), (figure::SYSTEM, system), (figure::CPU, user + system)]);
}

/// Raises the limit of open files, for us and for what we start, to `needed` or as far as it goes: what it is then.
fn descriptors(needed: usize) -> anyhow::Result<usize> {
    let limit = rlimit::increase_nofile_limit(needed as u64).context("the limit of open files: not readable")?;
    Ok(usize::try_from(limit).unwrap_or(usize::MAX))
}

/// How many connections a proxy takes with so many descriptors, of those that it is to take: one may be due to an origin
/// for each, and who cannot open as many takes fewer.
fn connections_within(limit: usize) -> usize {
    (limit.saturating_sub(RESERVE) / 2).min(MANY)
}

fn too_few_descriptors(connections: usize, needed: usize, limit: usize) -> String {
    format!(
        "{connections} connections through a proxy need {needed} open files, the limit is {limit}; raise it with ulimit -Hn {needed}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Arm, sample};

    #[test]
    fn a_peer_that_does_another_job_is_doubted() {
        let mut report = sample::report();
        report.account = crate::report::Account { sent: 1000, answered: 1000, ..Default::default() };
        report.arms = ["blue", "green"].map(|arm| (arm.to_owned(), Arm { share: 0.5, ..Arm::default() })).into();
        report.generator.warnings = Vec::new();
        let doubted = |report: &Report, peer, through| doubts(peer, through, report).join("; ");
        assert_eq!(doubted(&report, Peer::Nginx, Through::Http), "");

        report.account.failed = [("reset".to_owned(), 3)].into();
        assert_eq!(doubted(&report, Peer::Direct, Through::Mqtt), "3 of 1000 requests failed in a round: reset");
        report.account.error_status = 1;
        let both = "4 of 1000 requests failed in a round: reset, error status";
        assert_eq!(doubted(&report, Peer::Direct, Through::Mqtt), both);
        report.account = crate::report::Account { sent: 1000, answered: 1000, ..Default::default() };

        report.account.moved = 7;
        report.arms.remove("green");
        let both = "green answered 0.0 % instead of half; 7 answers came from another arm than their key had before";
        assert_eq!(doubted(&report, Peer::Envoy, Through::Https), both);
        assert_eq!(doubted(&report, Peer::Envoy, Through::Tcp), "");
        assert_eq!(doubted(&report, Peer::Direct, Through::Http), "");

        report.generator.warnings = vec!["it fell behind".to_owned()];
        assert_eq!(doubted(&report, Peer::Nginx, Through::Tcp), "the load says: it fell behind");
    }

    #[test]
    fn as_many_connections_as_there_are_descriptors_for() {
        let check = |limit, expected| assert_eq!(connections_within(limit), expected, "{limit}");
        check(1 << 20, MANY);
        check(2 * MANY + RESERVE, MANY);
        check(20_000, 9500);
        check(100, 0);
    }
}
