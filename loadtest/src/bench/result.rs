//! What a bench came to: the figures of each round, their medians, and the ratios round by round.
//!
//! The JSON is a contract, [`SCHEMA`]: fields are added under the same version, and change their meaning or go only with
//! the next.

use std::{collections::BTreeMap, fs, thread};

use serde::Serialize;

use super::{case::By, goal::GoalResult, process::Cores};

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
    /// Those of the goals that these cases and peers can tell about.
    pub(crate) goals: Vec<GoalResult>,
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
    /// In the same figure, to what moving the same bytes in TCP mode costs; where that is measured in the same rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) floor: Option<Ratio>,
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
    pub(crate) const P999: &str = "p999_us";
    /// [`P99`] less that of the same load without a proxy in the same round.
    pub(crate) const ADDED: &str = "added_p99_us";
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

impl Ratio {
    /// The figure `name` of each of `rounds` to that of the same round of `base`, which is of the peer `to`. `None` when no
    /// round has both.
    pub(super) fn of(rounds: &[Figures], base: &[Figures], name: &str, to: &'static str) -> Option<Self> {
        let ratios: Vec<f64> = rounds
            .iter()
            .zip(base)
            .filter_map(|(own, base)| Some((*own.of.get(name)?, *base.of.get(name)?)))
            .filter(|(_, base)| *base > 0.0)
            .map(|(own, base)| own / base)
            .collect();
        Summary::of(&ratios).map(|summary| Self { to, rounds: ratios, summary })
    }
}

/// One peer of a case: its figures, round by round, and whom they are compared with.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) peer: &'static str,
    pub(super) to: &'static str,
    pub(super) rounds: Vec<Figures>,
}

/// Adds to each round what the peer adds to the latency of `direct` in that round.
pub(super) fn add_latency_added(measured: &mut [Measured], direct: &str) {
    let p99 = |figures: &Figures| figures.of.get(figure::P99).copied();
    let Some(floor) = measured.iter().find(|one| one.peer == direct) else { return };
    let floor: Vec<Option<f64>> = floor.rounds.iter().map(p99).collect();
    for one in measured.iter_mut().filter(|one| one.peer != direct) {
        for (figures, floor) in one.rounds.iter_mut().zip(&floor) {
            let added = p99(figures).zip(*floor).map(|(p99, floor)| p99 - floor);
            figures.of.extend(added.map(|added| (figure::ADDED, added)));
        }
    }
}

/// Medians and ratios of what was measured, in the order given. The ratios are of the figure `by`; `floor` is the peer that
/// moves bytes in TCP mode, if one does.
pub(super) fn summarise(measured: Vec<Measured>, by: By, floor: Option<&'static str>) -> Vec<PeerResult> {
    let ratio = |rounds: &[Figures], to: &'static str| {
        let base = measured.iter().find(|one| one.peer == to)?;
        Ratio::of(rounds, &base.rounds, by.figure(), to)
    };
    let ratios: Vec<_> =
        measured.iter().map(|one| (ratio(&one.rounds, one.to), floor.and_then(|to| ratio(&one.rounds, to)))).collect();
    let with_summary = |(Measured { peer, rounds, .. }, (ratio, floor)): (Measured, _)| {
        let names = rounds.first().map(|figures| figures.of.keys().copied().collect::<Vec<_>>()).unwrap_or_default();
        let summary = names.into_iter().filter_map(|name| {
            let values: Vec<f64> = rounds.iter().filter_map(|figures| figures.of.get(name).copied()).collect();
            Some((name, Summary::of(&values)?))
        });
        PeerResult { peer, summary: summary.collect(), ratio, floor, rounds }
    };
    measured.into_iter().zip(ratios).map(with_summary).collect()
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

    fn rounds(name: &'static str, values: &[f64]) -> Vec<Figures> {
        values.iter().map(|value| Figures { of: BTreeMap::from([(name, *value)]), ..Figures::default() }).collect()
    }

    fn measured(peer: &'static str, to: &'static str, rounds: Vec<Figures>) -> Measured {
        Measured { peer, to, rounds }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine was slow in the third round: the medians of the times would say 20 / 10.
        let all = vec![
            measured("fast", "nginx", rounds(figure::CPU, &[20.0, 5.0, 45.0])),
            measured("nginx", "nginx", rounds(figure::CPU, &[10.0, 10.0, 30.0])),
            measured("direct", "nginx", vec![Figures::default(); 3]),
            measured("fast-2", "fast", rounds(figure::CPU, &[40.0, 15.0, 45.0])),
        ];
        let peers = summarise(all, By::Cpu, Some("fast"));
        let fast = peers[0].ratio.as_ref().unwrap();
        assert_eq!((fast.to, fast.rounds.clone()), ("nginx", vec![2.0, 0.5, 1.5]));
        assert_eq!(fast.summary, Summary { median: 1.5, min: 0.5, max: 2.0 });
        assert_eq!(peers[0].summary[figure::CPU].median, 20.0);
        assert_eq!(peers[1].ratio.as_ref().unwrap().summary.median, 1.0);
        assert_eq!(peers[1].floor.as_ref().unwrap().rounds, [0.5, 2.0, 30.0 / 45.0]);
        assert!(peers[2].ratio.is_none() && peers[2].summary.is_empty());
        let own = peers[3].ratio.as_ref().unwrap();
        assert_eq!((own.to, own.rounds.clone()), ("fast", vec![2.0, 3.0, 1.0]), "each has its own to compare with");
    }

    #[test]
    fn without_the_peer_to_compare_with_there_is_no_ratio() {
        let ratio = |peer, value| {
            let peers = summarise(vec![measured(peer, "nginx", rounds(figure::CPU, &[value]))], By::Cpu, None);
            peers[0].ratio.as_ref().map(|ratio| ratio.summary.median)
        };
        assert_eq!([ratio("haproxy", 10.0), ratio("nginx", 0.0), ratio("nginx", 10.0)], [None, None, Some(1.0)]);
    }

    #[test]
    fn what_a_proxy_adds_is_less_the_latency_of_the_same_round() {
        let mut all = vec![
            measured("direct", "nginx", rounds(figure::P99, &[100.0, 300.0])),
            measured("nginx", "nginx", rounds(figure::P99, &[150.0, 310.0])),
        ];
        add_latency_added(&mut all, "direct");
        let peers = summarise(all, By::Added, None);
        assert!(!peers[0].summary.contains_key(figure::ADDED));
        assert_eq!(peers[1].summary[figure::ADDED], Summary { median: 30.0, min: 10.0, max: 50.0 });

        let mut alone = vec![measured("nginx", "nginx", rounds(figure::P99, &[150.0]))];
        add_latency_added(&mut alone, "direct");
        assert!(!alone[0].rounds[0].of.contains_key(figure::ADDED), "less than nothing known");
    }
}
