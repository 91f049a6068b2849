//! What a bench came to: the figures of each round, their medians, and the ratios round by round.
//!
//! The JSON is a contract, [`SCHEMA`]: fields are added under the same version, and change their meaning or go only with
//! the next.

use std::{collections::BTreeMap, fs, thread};

use serde::Serialize;

use super::{case::By, process::Cores};

/// The version of the schema, in the field `schema` of every result.
pub(crate) const SCHEMA: &str = "loadtest-bench/1";

/// One run of the bench.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// [`SCHEMA`].
    pub(crate) schema: &'static str,
    /// Unix time of the start, in milliseconds.
    pub(crate) started_ms: u64,
    /// All cases that were asked for ran to their end.
    pub(crate) complete: bool,
    /// Rounds asked for.
    pub(crate) rounds: usize,
    /// Seconds of load in each round.
    pub(crate) seconds: u64,
    /// Where it ran.
    pub(crate) machine: Machine,
    /// The version of each program that took part.
    pub(crate) versions: BTreeMap<&'static str, String>,
    /// In the order they ran.
    pub(crate) cases: Vec<CaseResult>,
}

/// Where a bench ran.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// As the processor calls itself.
    pub(crate) processor: String,
    /// Cores that we may use.
    pub(crate) cores: usize,
    /// `Linux 6.18.1 x86_64`.
    pub(crate) system: String,
    /// The core of the proxy, and the one of the load and the origins. None: nothing was pinned.
    pub(crate) pinned: Option<Cores>,
}

impl Machine {
    /// This one.
    pub(super) fn here(pinned: Option<Cores>) -> Self {
        let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|info| {
            let line = info.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            processor: processor.unwrap_or_else(|| "unknown processor".to_owned()),
            cores: thread::available_parallelism().map_or(1, usize::from),
            system: format!("Linux {} {}", release.trim(), std::env::consts::ARCH),
            pinned,
        }
    }
}

/// What one case came to.
#[derive(Debug, Serialize)]
pub(crate) struct CaseResult {
    pub(crate) name: &'static str,
    /// What it measures.
    pub(crate) about: &'static str,
    /// What [`Ratio::rounds`] divides.
    pub(crate) ratio_by: By,
    /// In the order of the case's peers.
    pub(crate) peers: Vec<PeerResult>,
    /// Who is not in it, and why.
    pub(crate) left_out: Vec<LeftOut>,
    /// What to know before believing the figures; empty is good.
    pub(crate) notes: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct LeftOut {
    pub(crate) peer: String,
    pub(crate) reason: String,
}

/// What one peer came to in a case.
#[derive(Debug, Serialize)]
pub(crate) struct PeerResult {
    pub(crate) peer: &'static str,
    /// One a round.
    pub(crate) rounds: Vec<Figures>,
    /// Medians and ranges of the figures in `rounds`.
    pub(crate) summary: BTreeMap<&'static str, Summary>,
    /// None for what has no such figure, and where the peer to compare with did not take part.
    pub(crate) ratio: Option<Ratio>,
}

/// The ratio to another peer.
#[derive(Debug, Serialize)]
pub(crate) struct Ratio {
    /// That peer.
    pub(crate) to: &'static str,
    /// One a round, both figures from the same round.
    pub(crate) rounds: Vec<f64>,
    pub(crate) summary: Summary,
}

/// What was measured in one round. What a case does not measure is left out.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    /// Requests or messages answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) answered: Option<u64>,
    /// Those not answered, or answered with a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<u64>,
    #[serde(flatten)]
    pub(crate) of: BTreeMap<&'static str, f64>,
}

/// The names of [`Figures::of`].
pub(crate) mod figure {
    /// Answers a second.
    pub(crate) const RATE: &str = "requests_per_second";
    /// Latencies, in microseconds.
    pub(crate) const P50: &str = "p50_us";
    pub(crate) const P99: &str = "p99_us";
    /// Processor time for one answer, in microseconds.
    pub(crate) const USER: &str = "user_us";
    pub(crate) const SYSTEM: &str = "system_us";
    pub(crate) const CPU: &str = "cpu_us";
    /// Memory for one idle connection, in bytes.
    pub(crate) const MEMORY: &str = "bytes_per_connection";
}

/// The middle of some values, and their range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// `None` of nothing. The median of an even number of values is the mean of the two in the middle.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 };
        Some(Self { median, min, max })
    }
}

/// Medians and ratios of what was measured, in the order given: the figures of each peer, round by round. The ratios are
/// of the figure `by`, to the peer `to`.
pub(super) fn summarise(measured: Vec<(&'static str, Vec<Figures>)>, by: By, to: &'static str) -> Vec<PeerResult> {
    let of = |rounds: &[Figures], name| -> Vec<Option<f64>> {
        rounds.iter().map(|figures| figures.of.get(name).copied()).collect()
    };
    let base = measured.iter().find(|(peer, _)| *peer == to).map(|(_, rounds)| of(rounds, by.figure()));
    let with_ratio = |(peer, rounds): (&'static str, Vec<Figures>)| {
        let own = of(&rounds, by.figure());
        let pairs = base.iter().flatten().zip(own);
        let ratios: Vec<f64> =
            pairs.filter_map(|(base, own)| Some(own? / (*base)?)).filter(|ratio| ratio.is_finite()).collect();
        let names: Vec<&'static str> =
            rounds.first().map(|figures| figures.of.keys().copied().collect()).unwrap_or_default();
        let summary = names.into_iter().filter_map(|name| {
            let values: Vec<f64> = of(&rounds, name).into_iter().flatten().collect();
            Some((name, Summary::of(&values)?))
        });
        PeerResult {
            peer,
            summary: summary.collect(),
            ratio: Summary::of(&ratios).map(|summary| Ratio { to, rounds: ratios, summary }),
            rounds,
        }
    };
    measured.into_iter().map(with_ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_the_range_is_whole() {
        let check = |values: &[f64], median, min, max| {
            assert_eq!(Summary::of(values), Some(Summary { median, min, max }), "{values:?}");
        };
        check(&[3.0], 3.0, 3.0, 3.0);
        check(&[5.0, 1.0, 3.0], 3.0, 1.0, 5.0);
        check(&[4.0, 1.0, 3.0, 2.0], 2.5, 1.0, 4.0);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let rounds = |values: &[f64]| -> Vec<Figures> {
            values
                .iter()
                .map(|cpu| Figures { of: BTreeMap::from([(figure::CPU, *cpu)]), ..Figures::default() })
                .collect()
        };
        // The machine was slow in the third round: the medians of the times would say 20 / 10.
        let measured = vec![
            ("fast", rounds(&[20.0, 5.0, 45.0])),
            ("nginx", rounds(&[10.0, 10.0, 30.0])),
            ("direct", vec![Figures::default(); 3]),
        ];
        let peers = summarise(measured, By::Cpu, "nginx");
        let fast = peers[0].ratio.as_ref().unwrap();
        assert_eq!((fast.to, fast.rounds.clone()), ("nginx", vec![2.0, 0.5, 1.5]));
        assert_eq!(fast.summary, Summary { median: 1.5, min: 0.5, max: 2.0 });
        assert_eq!(peers[0].summary[figure::CPU].median, 20.0);
        assert_eq!(peers[1].ratio.as_ref().unwrap().summary.median, 1.0);
        assert!(peers[2].ratio.is_none() && peers[2].summary.is_empty());
    }

    #[test]
    fn without_the_peer_to_compare_with_there_is_no_ratio() {
        let one = Figures { of: BTreeMap::from([(figure::CPU, 10.0)]), ..Figures::default() };
        assert!(summarise(vec![("haproxy", vec![one])], By::Cpu, "nginx")[0].ratio.is_none());
        let zero = Figures { of: BTreeMap::from([(figure::CPU, 0.0)]), ..Figures::default() };
        assert!(summarise(vec![("nginx", vec![zero])], By::Cpu, "nginx")[0].ratio.is_none());
    }
}
