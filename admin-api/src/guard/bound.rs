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
