//! Bounds on a share from counts, valid for every sample size: for `bad` of `n` events of true share `p`,
//! P(bad/n ≥ q) ≤ exp(−n·KL(q‖p)) wherever q ≥ p (Chernoff 1952; Hoeffding 1963, theorem 1).

use hdrhistogram::Histogram;

/// −ln of the chance that blue's quantile, or its share of bad events, lies above its upper bound, in one look: 1e-3.
pub(crate) const TAIL_NATS: f64 = 6.908;

/// −ln of the chance that a share which is above the limit is taken for one within it, in one look: 5 %.
pub(super) const PASS_NATS: f64 = 2.996;

/// The largest true share that makes a share of `seen` among `n` no more surprising than `nats`; 1 without events.
pub(super) fn at_most(seen: f64, n: f64, nats: f64) -> f64 {
    if seen == 0.0 {
        return -(-nats / n).exp_m1();
    }
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

/// Where the true quantile (0 to 1) lies, between two samples: at least, and at most, each but for a chance of
/// exp(−`nats`). A side is `None` where there are too few samples to say.
pub(crate) fn around(latency_us: &Histogram<u64>, quantile: f64, nats: f64) -> (Option<u64>, Option<u64>) {
    let n = latency_us.len();
    let at_most = upper_rank(n, 1.0 - quantile, nats).map(|rank| value_at_rank(latency_us, rank));
    // The same samples, counted from the other end.
    let at_least = upper_rank(n, quantile, nats).map(|rank| value_at_rank(latency_us, n + 1 - rank));
    (at_least.map(|value| latency_us.lowest_equivalent(value)), at_most)
}

/// The value, at most, of the sample with this rank, counted from 1.
pub(super) fn value_at_rank(latency_us: &Histogram<u64>, rank: u64) -> u64 {
    let mut below = 0_u64;
    for step in latency_us.iter_recorded() {
        below += step.count_at_value();
        if below >= rank {
            return latency_us.highest_equivalent(step.value_iterated_to());
        }
    }
    latency_us.max()
}

/// How many samples are above a time, not counting those that only may be.
pub(super) fn count_above(latency_us: &Histogram<u64>, threshold_us: u64) -> u64 {
    let first_above = latency_us.highest_equivalent(threshold_us).saturating_add(1);
    // `count_between` must not be asked beyond the highest bucket in use: it would answer with the count of that one.
    if latency_us.is_empty() || first_above > latency_us.max() {
        return 0;
    }
    latency_us.count_between(first_above, latency_us.max())
}

/// Relative entropy of two coins in nats.
pub(super) fn divergence(seen: f64, supposed: f64) -> f64 {
    let part = |seen: f64, supposed: f64| if seen <= 0.0 { 0.0 } else { seen * (seen / supposed).ln() };
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

    #[test]
    fn bounds_hold_as_often_as_stated_by_exact_sums() {
        let ln_factorial = ln_factorials(2_000);
        for n in [1, 5, 20, 135, 500, 2_000] {
            for bad in 0..n {
                for (nats, chance) in [(TAIL_NATS, 1.001e-3), (PASS_NATS, 5.01e-2)] {
                    let bound = at_most(bad as f64 / n as f64, n as f64, nats);
                    assert!(bound > bad as f64 / n as f64);
                    assert!(1.0 - tail(&ln_factorial, n, bound, bad + 1) <= chance, "{bad} of {n}");
                }
            }
        }
        // That so many samples have so few above the true quantile.
        for n in [135, 200, 1_000, 2_000] {
            for share in [0.5, 0.05] {
                let rank = upper_rank(n, share, TAIL_NATS).unwrap();
                let above = tail(&ln_factorial, n, 1.0 - share, rank);
                assert!(above <= 1e-3, "{rank} of {n} at {share}: {above}");
            }
        }
        assert_eq!(upper_rank(134, 0.05, TAIL_NATS), None);
        assert_eq!(upper_rank(135, 0.05, TAIL_NATS), Some(135));
        assert!(upper_rank(1_000, 0.05, TAIL_NATS).is_some_and(|rank| (965..=980).contains(&rank)));
        assert!(at_most(0.0, 58.0, PASS_NATS) > 0.05 && at_most(0.0, 59.0, PASS_NATS) <= 0.05);
    }

    #[test]
    fn the_order_statistic_covers_the_true_quantile_as_often_as_stated() {
        let seed = 4;
        let mut random = fastrand::Rng::with_seed(seed);
        let mut missed = 0;
        for _ in 0..5_000 {
            let mut latency_us = Histogram::new(2).unwrap();
            // Exponential: its p95 is ln 20 of its mean.
            (0..400).for_each(|_| latency_us.record((-random.f64().max(1e-12).ln() * 10_000.0) as u64).unwrap());
            let rank = upper_rank(400, 0.05, TAIL_NATS).unwrap();
            missed += u32::from((value_at_rank(&latency_us, rank) as f64) < 20_f64.ln() * 10_000.0);
        }
        assert!(missed <= 12, "{missed} of 5000 are more than one in a thousand, seed {seed}");
    }
}
