//! The goals: what Crossfade is to cost, and whether it does.

use serde::Serialize;

use super::{
    peer::Peer,
    result::{CaseResult, Figures, PeerResult, Ratio, Summary, figure},
};

/// A promise about a figure of a peer in a case.
#[derive(Debug)]
struct Goal {
    case: &'static str,
    peer: Peer,
    /// A name of [`Figures::of`].
    figure: &'static str,
    bound: Bound,
}

/// How far a figure may go.
#[derive(Clone, Copy, Debug)]
enum Bound {
    /// So many times that of a peer in the same round, by the median.
    AtMost {
        times: f64,
        of: Peer,
    },
    AtLeast {
        times: f64,
        of: Peer,
    },
    /// A number of its own unit, by the median.
    Within(f64),
    /// The median of a peer.
    NoMoreThan(Peer),
    /// Within noise of that of a peer: its range begins below where the other's ends.
    NoiseOf(Peer),
}

const GOALS: &[Goal] = &[
    cpu("http", Peer::Crossfade, 0.85, Peer::Nginx),
    cpu("http", Peer::Crossfade, 0.80, Peer::Haproxy),
    cpu("http", Peer::Crossfade, 0.35, Peer::Envoy),
    cpu("http", Peer::Crossfade, 1.30, Peer::NginxStream),
    ahead("http", figure::RATE, Bound::AtLeast { times: 1.0, of: Peer::Nginx }),
    ahead("http", figure::RATE, Bound::AtLeast { times: 1.0, of: Peer::Haproxy }),
    ahead("http", figure::P99, Bound::AtMost { times: 1.0, of: Peer::Nginx }),
    ahead("http", figure::P99, Bound::AtMost { times: 1.0, of: Peer::Haproxy }),
    cpu("close", Peer::Crossfade, 0.95, Peer::Nginx),
    cpu("large", Peer::Crossfade, 0.70, Peer::Nginx),
    cpu("tls", Peer::Crossfade, 0.95, Peer::Nginx),
    cpu("workers", Peer::CrossfadeTwo, 1.10, Peer::Crossfade),
    cpu("many", Peer::CrossfadeMany, 1.15, Peer::Crossfade),
    ahead("latency", figure::ADDED, Bound::NoMoreThan(Peer::Nginx)),
    cpu("tcp-small", Peer::Crossfade, 1.05, Peer::Nginx),
    cpu("tcp-large", Peer::Crossfade, 0.65, Peer::Nginx),
    cpu("mqtt", Peer::CrossfadeMqtt, 1.10, Peer::Nginx),
    memory("idle-http", Peer::Crossfade, 3072.0),
    memory("idle-mqtt", Peer::CrossfadeMqtt, 4096.0),
    mirror(Peer::CrossfadeMirror),
    mirror(Peer::CrossfadeMirrorHole),
];

const fn cpu(case: &'static str, peer: Peer, times: f64, of: Peer) -> Goal {
    Goal { case, peer, figure: figure::CPU, bound: Bound::AtMost { times, of } }
}

const fn ahead(case: &'static str, figure: &'static str, bound: Bound) -> Goal {
    Goal { case, peer: Peer::Crossfade, figure, bound }
}

const fn memory(case: &'static str, peer: Peer, bytes: f64) -> Goal {
    Goal { case, peer, figure: figure::MEMORY, bound: Bound::Within(bytes) }
}

const fn mirror(peer: Peer) -> Goal {
    Goal { case: "mirror", peer, figure: figure::P99, bound: Bound::NoiseOf(Peer::Crossfade) }
}

/// A goal beside what was measured.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct GoalResult {
    pub(crate) case: &'static str,
    pub(crate) peer: &'static str,
    /// A name of the figures of a round.
    pub(crate) figure: &'static str,
    /// The peer that it is compared with.
    pub(crate) to: Option<&'static str>,
    /// Where `rule` is about ratios, the ratio to `to`, round by round; else the figure.
    pub(crate) measured: Summary,
    pub(crate) rule: Rule,
    pub(crate) limit: f64,
    pub(crate) met: bool,
}

/// What is held against the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Rule {
    /// The median ratio is at most the limit.
    RatioAtMost,
    /// The median ratio is at least the limit.
    RatioAtLeast,
    /// The median is at most the limit.
    AtMost,
    /// The lowest is at most the limit, which is the highest of the other.
    Overlaps,
}

/// The goals that these results can tell about.
pub(super) fn judge(cases: &[CaseResult]) -> Vec<GoalResult> {
    GOALS.iter().filter_map(|goal| goal.judge(cases)).collect()
}

impl Goal {
    /// `None` when the case, one of the peers or the figure is missing.
    fn judge(&self, cases: &[CaseResult]) -> Option<GoalResult> {
        let case = cases.iter().find(|case| case.name == self.case)?;
        let find = |peer: Peer| case.peers.iter().find(|result| result.peer == peer.name());
        let own = find(self.peer)?;
        let figure = |peer: &PeerResult| peer.summary.get(self.figure).copied();
        let ratio = |to: Peer| {
            let base: &[Figures] = &find(to)?.rounds;
            Ratio::of(&own.rounds, base, self.figure, to.name()).map(|ratio| ratio.summary)
        };
        let (to, measured, rule, limit) = match self.bound {
            Bound::AtMost { times, of } => (Some(of), ratio(of)?, Rule::RatioAtMost, times),
            Bound::AtLeast { times, of } => (Some(of), ratio(of)?, Rule::RatioAtLeast, times),
            Bound::Within(most) => (None, figure(own)?, Rule::AtMost, most),
            Bound::NoMoreThan(other) => (Some(other), figure(own)?, Rule::AtMost, figure(find(other)?)?.median),
            Bound::NoiseOf(other) => (Some(other), figure(own)?, Rule::Overlaps, figure(find(other)?)?.max),
        };
        let met = match rule {
            Rule::RatioAtMost | Rule::AtMost => measured.median <= limit,
            Rule::RatioAtLeast => measured.median >= limit,
            Rule::Overlaps => measured.min <= limit,
        };
        Some(GoalResult {
            case: self.case,
            peer: self.peer.name(),
            figure: self.figure,
            to: to.map(Peer::name),
            measured,
            rule,
            limit,
            met,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{
        super::{
            case::{By, CASES},
            result::{Measured, summarise},
        },
        *,
    };

    fn case(name: &'static str, peers: &[(Peer, &'static str, &[f64])]) -> CaseResult {
        let mut measured: Vec<Measured> = Vec::new();
        for (peer, figure, values) in peers {
            let at = measured.iter().position(|one| one.peer == peer.name()).unwrap_or_else(|| {
                let rounds = vec![Figures { answered: None, failed: None, of: BTreeMap::new() }; values.len()];
                measured.push(Measured { peer: peer.name(), to: "nginx", rounds });
                measured.len() - 1
            });
            for (round, value) in measured[at].rounds.iter_mut().zip(*values) {
                round.of.insert(figure, *value);
            }
        }
        CaseResult {
            name,
            about: "",
            ratio_by: By::Cpu,
            peers: summarise(measured, By::Cpu, None),
            left_out: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// What was judged of one peer: the figure, to whom, the median and whether it will do.
    fn verdicts(results: &[CaseResult]) -> Vec<(&'static str, Option<&'static str>, f64, bool)> {
        judge(results).into_iter().map(|goal| (goal.figure, goal.to, goal.measured.median, goal.met)).collect()
    }

    #[test]
    fn goals_are_of_cases_in_which_all_take_part() {
        for goal in GOALS {
            let case = CASES.iter().find(|case| case.name == goal.case).expect(goal.case);
            let other = match goal.bound {
                Bound::AtMost { of, .. } | Bound::AtLeast { of, .. } => of,
                Bound::NoMoreThan(other) | Bound::NoiseOf(other) => other,
                Bound::Within(_) => goal.peer,
            };
            assert!([goal.peer, other].iter().all(|peer| case.peers.contains(peer)), "{goal:?}");
        }
    }

    #[test]
    fn ratios_are_judged_by_the_median_of_the_rounds() {
        let http = |own: &[f64]| {
            case("http", &[(Peer::Nginx, figure::CPU, &[10.0, 20.0, 10.0]), (Peer::Crossfade, figure::CPU, own)])
        };
        // HAProxy, Envoy and TCP mode did not take part, and there are no rates.
        let nginx = |median, met| vec![(figure::CPU, Some("nginx"), median, met)];
        assert_eq!(verdicts(&[http(&[8.5, 17.0, 30.0])]), nginx(0.85, true));
        assert_eq!(verdicts(&[http(&[8.6, 17.2, 1.0])]), nginx(0.86, false));
        assert_eq!(verdicts(&[]), []);
    }

    #[test]
    fn being_ahead_is_more_requests_and_less_latency() {
        let http = |rate, p99| {
            let peers: [(Peer, &'static str, &[f64]); 4] = [
                (Peer::Nginx, figure::RATE, &[100.0]),
                (Peer::Nginx, figure::P99, &[10.0]),
                (Peer::Crossfade, figure::RATE, rate),
                (Peer::Crossfade, figure::P99, p99),
            ];
            verdicts(&[case("http", &peers)]).into_iter().map(|(figure, .., met)| (figure, met)).collect::<Vec<_>>()
        };
        assert_eq!(http(&[110.0], &[12.0]), [(figure::RATE, true), (figure::P99, false)]);
        assert_eq!(http(&[90.0], &[9.0]), [(figure::RATE, false), (figure::P99, true)]);
    }

    #[test]
    fn memory_and_added_latency_have_limits_of_their_own_unit() {
        let idle = |bytes: f64| verdicts(&[case("idle-mqtt", &[(Peer::CrossfadeMqtt, figure::MEMORY, &[bytes])])]);
        assert_eq!(idle(4096.0), [(figure::MEMORY, None, 4096.0, true)]);
        assert_eq!(idle(4097.0), [(figure::MEMORY, None, 4097.0, false)]);
        let latency = |own: &[f64]| {
            let peers = [(Peer::Nginx, figure::ADDED, &[50.0, 90.0, 70.0][..]), (Peer::Crossfade, figure::ADDED, own)];
            verdicts(&[case("latency", &peers)])[0].3
        };
        assert_eq!([latency(&[70.0, 1.0, 99.0]), latency(&[71.0, 71.0, 71.0])], [true, false]);
    }

    #[test]
    fn a_mirror_is_within_noise_when_the_ranges_meet() {
        let mirror = |own: &[f64]| {
            let off = (Peer::Crossfade, figure::P99, &[700.0, 900.0][..]);
            verdicts(&[case("mirror", &[off, (Peer::CrossfadeMirrorHole, figure::P99, own)])])[0].3
        };
        let within = [&[800.0, 5000.0], &[900.0, 950.0], &[100.0, 200.0]].map(|own| mirror(own));
        assert_eq!((within, mirror(&[901.0, 950.0])), ([true; 3], false));
    }
}
