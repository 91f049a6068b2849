//! Bounds on a share from counts, valid for every sample size: for `bad` of `n` events of true share `p`,
//! P(bad/n ≥ q) ≤ exp(−n·KL(q‖p)) wherever q ≥ p (Chernoff 1952; Hoeffding 1963, theorem 1).

/// −ln of the chance that a share which is exactly as high as allowed is taken for higher, in one look: 3.2e-5, that
/// of four standard deviations.
pub(super) const CERTAIN_NATS: f64 = 10.36;

/// −ln of the chance that blue's p95 lies above its upper bound: 1e-3.
pub(super) const TAIL_NATS: f64 = 6.908;

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

    /// The fewest bad events of `n` that are taken for a share above `allowed`.
    fn threshold(n: u64, allowed: f64) -> u64 {
        let (mut not_yet, mut found) = (0, n + 1);
        while found - not_yet > 1 {
            let middle = not_yet + (found - not_yet) / 2;
            if at_least(middle, n, CERTAIN_NATS) > allowed { found = middle } else { not_yet = middle }
        }
        found
    }

    /// The figures in docs/admin-api.md. They leave out that a breach must also hold without any one of its seconds,
    /// which only makes false alarms rarer.
    #[test]
    fn the_false_alarm_rate_is_as_documented() {
        let ln_factorial = ln_factorials(5_000);
        let worst = |truth: f64| {
            (20..=5_000)
                .map(|n| (tail(&ln_factorial, n, truth, threshold(n, 0.05)), n))
                .fold((0.0, 0), |worst, one| if one.0 > worst.0 { one } else { worst })
        };
        for (truth, documented) in [(0.05, 5.0e-6), (0.03, 1.0e-7), (0.01, 2.0e-11)] {
            let (rate, n) = worst(truth);
            println!("limit 5 %, true rate {truth}: at most {rate:.2e} a look, at {n} outcomes");
            assert!(rate <= documented, "{truth}: {rate:e} at {n}");
        }
    }

    /// Green just as slow as the ratio allows: the share of green above an upper bound of blue's p95 is that of a
    /// beta-binomial, whatever the distribution of latencies is.
    #[test]
    fn a_green_exactly_at_the_ratio_is_as_rarely_tripped_as_documented() {
        let ln_factorial = ln_factorials(20_000);
        let ln_choose =
            |n: u64, k: u64| ln_factorial[n as usize] - ln_factorial[k as usize] - ln_factorial[(n - k) as usize];
        let mut worst = 0.0_f64;
        for blue in [135, 150, 200, 300, 500, 1_000, 2_000, 5_000] {
            let rank = upper_rank(blue, 0.05, TAIL_NATS).unwrap();
            for green in [20, 30, 50, 100, 300, 1_000, 5_000] {
                let k = threshold(green, 0.05);
                // Of all orders of both samples: those with exactly `above` of green over blue's sample of that rank.
                let above = |above: u64| {
                    (ln_choose(green - above + rank - 1, rank - 1) + ln_choose(above + blue - rank, above)
                        - ln_choose(blue + green, green))
                    .exp()
                };
                let rate: f64 = (k..=green).map(above).sum();
                worst = worst.max(rate);
            }
        }
        println!("green's p95 exactly at the limit: at most {worst:.2e} a look");
        assert!(worst <= 1.4e-4, "{worst:e}");
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
        assert_eq!(smallest_sample(0.05, TAIL_NATS), 135);
        assert_eq!(upper_rank(134, 0.05, TAIL_NATS), None);
        assert_eq!(upper_rank(135, 0.05, TAIL_NATS), Some(135));
        assert!(upper_rank(1_000, 0.05, TAIL_NATS).is_some_and(|rank| (965..=980).contains(&rank)));
    }
}
