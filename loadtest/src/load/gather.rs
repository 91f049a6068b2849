//! Adds the workers' counts up: to what the progress shows second by second, and to the report.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

use super::{
    Load,
    record::{Answers, Arm, Labels, Placements, Shard, histogram},
};
use crate::report::{self, Account, End, Generator, Latencies, Report, Run, Second, Series};

/// The generator is too late for its figures to be believed when one request in a hundred leaves so much after it was due
/// although a connection was free.
const LATE: Duration = Duration::from_millis(5);
/// Share of its cores that a generator can use before it is short of them.
const BUSY: f64 = 0.95;

/// How a run goes, at the end of a second of it.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Seconds of the run that are over.
    pub seconds: u64,
    /// Answers in the last of them.
    pub answered: u64,
    /// Requests in it that failed or were answered with a failure.
    pub errors: u64,
    /// The 99th percentile of its latencies, in microseconds.
    pub p99: u64,
    /// Answers so far.
    pub total: u64,
    /// Errors so far.
    pub total_errors: u64,
    /// Answers so far, by arm.
    pub arms: BTreeMap<String, u64>,
}

/// Collects [`Shard`]s.
pub(super) struct Gatherer {
    run: Run,
    workers: usize,
    /// The series that seconds show.
    main: &'static str,
    /// How long requests are sent.
    sending: Duration,
    last_answer: Duration,
    labels: Arc<Labels>,
    /// Seconds that some worker may still add to.
    open: BTreeMap<u64, Open>,
    /// The second each worker is in.
    reached: Vec<u64>,
    seconds: Vec<Second>,
    account: Account,
    series: BTreeMap<(&'static str, Arm), Histogram<u64>>,
    arms: BTreeMap<Arm, Answers>,
    lateness: Histogram<u64>,
}

#[derive(Default)]
struct Open {
    sent: u64,
    answered: u64,
    errors: u64,
    arms: BTreeMap<Arm, Histogram<u64>>,
}

impl Gatherer {
    pub(super) fn new(run: Run, load: &Load, labels: Arc<Labels>) -> Self {
        let workers = load.workers;
        Self {
            run,
            workers,
            main: load.protocol.main_series(),
            sending: load.pace.duration(),
            last_answer: Duration::ZERO,
            labels,
            open: BTreeMap::new(),
            reached: vec![0; workers],
            seconds: Vec::new(),
            account: Account::default(),
            series: BTreeMap::new(),
            arms: BTreeMap::new(),
            lateness: histogram(),
        }
    }

    /// Adds what a worker saw. Says how the run goes when that ends a second for all of them.
    pub(super) fn add(&mut self, shard: Shard) -> Option<Progress> {
        let main = self.main;
        let open = self.open.entry(shard.at).or_default();
        open.sent += shard.account.sent;
        open.answered += shard.account.answered;
        open.errors += shard.account.failures() + shard.account.error_status + shard.account.lost;
        for ((series, arm), histogram) in &shard.series {
            if *series == main {
                add(open.arms.entry(*arm).or_insert_with(self::histogram), histogram);
            }
        }

        self.account.add(&shard.account);
        self.last_answer = self.last_answer.max(shard.last_answer);
        for (series, histogram) in shard.series {
            add(self.series.entry(series).or_insert_with(self::histogram), &histogram);
        }
        for (arm, answers) in shard.arms {
            let sum = self.arms.entry(arm).or_default();
            sum.answered += answers.answered;
            sum.error_status += answers.error_status;
            answers.statuses.into_iter().for_each(|(status, count)| sum.add(status, count));
        }
        add(&mut self.lateness, &shard.lateness);

        // A worker hands a second over when it is past it.
        self.reached[shard.worker] = shard.at + 1;
        let over = self.reached.iter().min().copied().unwrap_or_default();
        let mut progress = None;
        while let Some(first) = self.open.keys().next().copied().filter(|first| *first < over) {
            progress = Some(self.close(first));
        }
        progress
    }

    /// A second is over: histograms become figures.
    fn close(&mut self, at: u64) -> Progress {
        let open = self.open.remove(&at).unwrap_or_default();
        let mut all = histogram();
        open.arms.values().for_each(|histogram| add(&mut all, histogram));
        let arms = open
            .arms
            .iter()
            .map(|(arm, histogram)| (self.labels.name(*arm).to_string(), Latencies::summary(histogram)));
        self.seconds.push(Second { at, sent: open.sent, errors: open.errors, arms: arms.collect() });
        Progress {
            seconds: at + 1,
            answered: open.answered,
            errors: open.errors,
            p99: all.value_at_quantile(0.99),
            total: self.account.answered,
            arms: self.arms.iter().map(|(arm, sum)| (self.labels.name(*arm).to_string(), sum.answered)).collect(),
            total_errors: self.account.failures() + self.account.error_status + self.account.lost,
        }
    }

    /// The report of a run that took `elapsed`, with `left` requests never sent.
    pub(super) fn report(mut self, elapsed: Duration, complete: bool, left: u64, placements: &Placements) -> Report {
        while let Some(first) = self.open.keys().next().copied() {
            self.close(first);
        }
        self.account.unsent = left;
        // What is waited for in vain comes after the last answer, and is no part of the time that answers took.
        let seconds = elapsed.min(self.sending.max(self.last_answer)).as_secs_f64();
        let scheduled: f64 = self.run.stages.iter().map(|stage| stage.seconds).sum();
        let asked =
            self.run.stages.iter().map(|stage| stage.seconds * f64::midpoint(stage.from, stage.to)).sum::<f64>();
        // Answers to the last requests come after the schedule's end, and are no sign of slowness; a run that was ended
        // early is measured by the time it had.
        let measured =
            if complete && scheduled > 0.0 && left == 0 && seconds < scheduled + 1.0 { scheduled } else { seconds };
        let end = End {
            complete,
            reason: (!complete).then(|| "it was interrupted".to_owned()),
            seconds,
            rate_asked: (scheduled > 0.0).then(|| asked / scheduled),
            rate_achieved: if measured > 0.0 { self.account.answered as f64 / measured } else { 0.0 },
        };

        let mut series: BTreeMap<String, (Histogram<u64>, BTreeMap<String, Latencies>)> = BTreeMap::new();
        for ((name, arm), histogram) in &self.series {
            let (all, arms) = series.entry((*name).to_owned()).or_insert_with(|| (self::histogram(), BTreeMap::new()));
            add(all, histogram);
            arms.insert(self.labels.name(*arm).to_string(), Latencies::of(histogram));
        }
        let series = series.into_iter().map(|(name, (all, arms))| (name, Series { all: Latencies::of(&all), arms }));

        let keys = placements.counts();
        let answered = self.account.answered.max(1) as f64;
        let arms = self.arms.iter().map(|(arm, answers)| {
            let figures = report::Arm {
                answered: answers.answered,
                error_status: answers.error_status,
                share: answers.answered as f64 / answered,
                keys: keys.get(arm).copied().unwrap_or_default(),
                statuses: answers.statuses.iter().copied().collect(),
            };
            (self.labels.name(*arm).to_string(), figures)
        });

        let generator = generator(&self.lateness, elapsed.as_secs_f64(), self.workers, left, complete);
        Report {
            schema: report::SCHEMA.to_owned(),
            end,
            series: series.collect(),
            arms: arms.collect(),
            seconds: self.seconds,
            generator,
            slos: Vec::new(),
            account: self.account,
            run: self.run,
        }
    }
}

fn add(sum: &mut Histogram<u64>, histogram: &Histogram<u64>) {
    sum.add(histogram).expect("all histograms have the same bounds");
}

fn generator(lateness: &Histogram<u64>, seconds: f64, workers: usize, left: u64, complete: bool) -> Generator {
    let cpu = cpu_seconds() / seconds.max(0.001);
    let lateness = Latencies::of(lateness);
    let mut warnings = Vec::new();
    if u128::from(lateness.p99) > LATE.as_micros() {
        warnings.push(format!(
            "the load generator fell behind its own schedule: one request in a hundred left {} late or more although a \
             connection was free; latencies hold that; lower the rate, add --threads, or give it a processor of its own",
            crate::units::micros(lateness.p99 as f64)
        ));
    }
    if cpu > BUSY * workers as f64 {
        warnings.push(format!(
            "the load generator used {cpu:.2} of its {workers} threads' processors: it may be what limited the rate; add \
             --threads"
        ));
    }
    if complete && left > 0 {
        warnings.push(format!(
            "{left} requests were due and never sent, since no connection was free for them in time: the target did not \
             keep up; add --connections if it should have"
        ));
    }
    Generator { cpu, lateness, warnings }
}

/// Processor time this process has used, user and system.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
