//! Bounds on a share from counts, valid for every sample size: for `bad` of `n` events of true share `p`,
//! P(bad/n ≥ q) ≤ exp(−n·KL(q‖p)) wherever q ≥ p (Chernoff 1952; Hoeffding 1963, theorem 1).

/// −ln of the chance that a share which is exactly as high as allowed is taken for higher, in one look: 3.2e-5, that
/// of four standard deviations.
pub(super) const CERTAIN_NATS: f64 = 10.36;

/// −ln of the chance that blue's p95, or its share of bad events, lies above its upper bound, in one look: 1e-3.
pub(super) const TAIL_NATS: f64 = 6.908;

/// How many windows one look judges. They share the chances above evenly, so that those hold for the look as a whole,
/// however much the windows have in common.
pub(super) const WINDOWS: usize = 3;

/// ln of [`WINDOWS`].
const LN_WINDOWS: f64 = 1.0987;

/// [`CERTAIN_NATS`] of one window: what green's bounds are made with.
pub(super) const GREEN_NATS: f64 = CERTAIN_NATS + LN_WINDOWS;

/// [`TAIL_NATS`] of one window: what blue's bounds are made with.
pub(super) const BLUE_NATS: f64 = TAIL_NATS + LN_WINDOWS;

/// The smallest true share that makes `bad` of `n` no more surprising than `nats`; 0 without events.
pub(super) fn at_least(bad: u64, n: u64, nats: f64) -> f64 {
    if bad == 0 || n == 0 {
        return 0.0;
    }
    let seen = (bad as f64 / n as f64).min(1.0);
    let (mut low, mut high) = (0.0, seen);
    // Halving 60 times leaves less than the precision of a float between the two.
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if n as f64 * divergence(seen, middle) >= nats { low = middle } else { high = middle }
    }
    low
}

/// Is [`at_least`] at or above `bound`? Without searching for it.
pub(super) fn is_above(bad: u64, n: u64, nats: f64, bound: f64) -> bool {
    if bad == 0 || n == 0 {
        return bound <= 0.0;
    }
    let seen = (bad as f64 / n as f64).min(1.0);
    bound <= seen && n as f64 * divergence(seen, bound) >= nats
}

/// The largest true share that makes a share of `seen` among `n` no more surprising than `nats`; 1 without events.
pub(super) fn at_most(seen: f64, n: f64, nats: f64) -> f64 {
    let (mut low, mut high) = (seen, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if n * divergence(seen, middle) >= nats { high = middle } else { low = middle }
    }
    high
}

/// The rank, counted from 1, of the sample that lies above the true (1 − `tail`) quantile, but for a chance of
/// exp(−`nats`). `None`: not even the largest of `n` samples does.
pub(super) fn upper_rank(n: u64, tail: f64, nats: f64) -> Option<u64> {
    let beyond = |rank: u64| {
        let share = rank as f64 / n as f64;
        share > 1.0 - tail && n as f64 * divergence(share, 1.0 - tail) >= nats
    };
    if n == 0 || !beyond(n) {
        return None;
    }
    let (mut not_yet, mut found) = (0, n);
    while found - not_yet > 1 {
        let middle = not_yet + (found - not_yet) / 2;
        if beyond(middle) { found = middle } else { not_yet = middle }
    }
    Some(found)
}

/// From how many samples on [`upper_rank`] has an answer.
pub(super) fn smallest_sample(tail: f64, nats: f64) -> u64 {
    (nats / -(1.0 - tail).ln()).ceil() as u64
}

/// Relative entropy of two coins in nats.
fn divergence(seen: f64, supposed: f64) -> f64 {
    let part = |seen: f64, supposed: f64| if seen == 0.0 { 0.0 } else { seen * (seen / supposed).ln() };
    part(seen, supposed) + part(1.0 - seen, 1.0 - supposed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ln n! for every n up to a bound.
    fn ln_factorials(most: u64) -> Vec<f64> {
        let mut sums = vec![0.0];
        for n in 1..=most {
            sums.push(sums[n as usize - 1] + (n as f64).ln());
        }
        sums
    }

    /// P(Bin(n, p) ≥ k), summed term by term.
    fn tail(ln_factorial: &[f64], n: u64, p: f64, k: u64) -> f64 {
        let term = |i: u64| {
            let ways = ln_factorial[n as usize] - ln_factorial[i as usize] - ln_factorial[(n - i) as usize];
            (ways + i as f64 * p.ln() + (n - i) as f64 * (-p).ln_1p()).exp()
        };
        (k..=n).rev().map(term).sum()
    }

    /// The fewest bad events of `n` that one window takes for a share above `allowed`.
    fn threshold(n: u64, allowed: f64) -> u64 {
        let (mut not_yet, mut found) = (0, n + 1);
        while found - not_yet > 1 {
            let middle = not_yet + (found - not_yet) / 2;
            if at_least(middle, n, GREEN_NATS) > allowed { found = middle } else { not_yet = middle }
        }
        found
    }

    /// The figures in docs/admin-api.md: of a look, so of any of its windows. They leave out that a breach must also
    /// hold without any one of its seconds, and that blue has a say, which only makes false alarms rarer.
    #[test]
    fn the_false_alarm_rate_is_as_documented() {
        let ln_factorial = ln_factorials(15_000);
        let sizes = || (20..=2_000).chain((2_003..=15_000).step_by(97));
        for (truth, documented) in [(0.05, 5.1e-6), (0.03, 5.2e-8), (0.01, 3.5e-12)] {
            let (rate, n) = sizes()
                .map(|n| (WINDOWS as f64 * tail(&ln_factorial, n, truth, threshold(n, 0.05)), n))
                .fold((0.0, 0), |worst, one| if one.0 > worst.0 { one } else { worst });
            println!("limit 5 %, true rate {truth}: at most {rate:.2e} a look, at {n} outcomes");
            assert!(rate <= documented, "{truth}: {rate:e} at {n}");
        }
    }

    /// An outage of both: the chance that green is above the limit and above what blue's share may be, although both
    /// fail with the same chance.
    #[test]
    fn an_outage_of_both_is_as_rarely_taken_for_greens_as_documented() {
        let ln_factorial = ln_factorials(5_000);
        let sizes = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500];
        let mut worst = (0.0, 0.0, 0, 0);
        for blue in sizes {
            let bars: Vec<f64> =
                (0..=blue).map(|bad| at_most(bad as f64 / blue as f64, blue as f64, BLUE_NATS)).collect();
            for green in [20, 50, 100, 200, 500, 2_000, 5_000] {
                let thresholds: Vec<u64> = bars.iter().map(|bar| threshold(green, bar.max(0.05))).collect();
                for truth in [0.06, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999] {
                    let mut rate = 0.0;
                    let mut not_more = 0.0;
                    for bad in 0..=blue {
                        let more = if bad < blue { tail(&ln_factorial, blue, truth, bad + 1) } else { 0.0 };
                        let exactly = 1.0 - not_more - more;
                        not_more += exactly;
                        // Beyond this nothing adds to a sum of interest.
                        if exactly > 1e-12 {
                            rate += exactly * tail(&ln_factorial, green, truth, thresholds[bad as usize]);
                        }
                    }
                    let rate = WINDOWS as f64 * rate;
                    worst = if rate > worst.0 { (rate, truth, blue, green) } else { worst };
                }
            }
        }
        let (rate, truth, blue, green) = worst;
        println!("both fail at {truth}: at most {rate:.2e} a look, blue {blue}, green {green} outcomes");
        assert!(rate <= 1.5e-4, "{worst:?}");
    }

    /// Green just as slow as the ratio allows: the share of green above an upper bound of blue's p95 is that of a
    /// beta-binomial, whatever the distribution of latencies is.
    #[test]
    fn a_green_exactly_at_the_ratio_is_as_rarely_tripped_as_documented() {
        let ln_factorial = ln_factorials(220_000);
        let ln_choose =
            |n: u64, k: u64| ln_factorial[n as usize] - ln_factorial[k as usize] - ln_factorial[(n - k) as usize];
        for (most, documented) in [(1_000, 5.5e-6), (5_000, 8.5e-5), (20_000, 2.9e-4), (200_000, 6.5e-4)] {
            let mut worst = (0.0, 0, 0);
            for blue in [157, 200, 300, 500, 1_000, 2_000, 5_000, 20_000] {
                let rank = upper_rank(blue, 0.05, BLUE_NATS).unwrap();
                for green in [20, 50, 100, 300, 1_000, 5_000, 20_000, 200_000].into_iter().filter(|n| *n <= most) {
                    let k = threshold(green, 0.05);
                    // Of all orders of both samples: those with exactly `above` of green over blue's sample of that rank.
                    let above = |above: u64| {
                        (ln_choose(green - above + rank - 1, rank - 1) + ln_choose(above + blue - rank, above)
                            - ln_choose(blue + green, green))
                        .exp()
                    };
                    let rate = WINDOWS as f64 * (k..=green).map(above).sum::<f64>();
                    worst = if rate > worst.0 { (rate, blue, green) } else { worst };
                }
            }
            let (rate, blue, green) = worst;
            println!("p95 at the limit, green to {most}: at most {rate:.2e} a look, blue {blue}, green {green}");
            assert!(rate <= documented, "{rate:e}");
        }
    }

    #[test]
    fn bounds_agree_with_exact_sums() {
        let ln_factorial = ln_factorials(500);
        for n in [20, 50, 135, 500] {
            for bad in 1..=n {
                let bound = at_least(bad, n, CERTAIN_NATS);
                assert!(bound < bad as f64 / n as f64);
                if bound > 0.0 {
                    assert!(tail(&ln_factorial, n, bound, bad) <= 3.2e-5, "{bad} of {n}");
                }
            }
        }
        for n in [1, 5, 20, 135, 500] {
            for bad in 0..n {
                let bound = at_most(bad as f64 / n as f64, n as f64, TAIL_NATS);
                assert!(bound > bad as f64 / n as f64);
                assert!(1.0 - tail(&ln_factorial, n, bound, bad + 1) <= 1.001e-3, "{bad} of {n}");
            }
            for bad in 0..=n {
                let bound = at_least(bad, n, CERTAIN_NATS);
                assert!(is_above(bad, n, CERTAIN_NATS, bound * 0.999));
                assert!(!is_above(bad, n, CERTAIN_NATS, bound + 0.001));
            }
        }
        assert_eq!(smallest_sample(0.05, BLUE_NATS), 157);
        assert_eq!(smallest_sample(0.05, TAIL_NATS), 135);
        assert_eq!(upper_rank(134, 0.05, TAIL_NATS), None);
        assert_eq!(upper_rank(135, 0.05, TAIL_NATS), Some(135));
        assert!(upper_rank(1_000, 0.05, TAIL_NATS).is_some_and(|rank| (965..=980).contains(&rank)));
    }
}
