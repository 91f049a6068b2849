//! Seeded random numbers of the distributions that traffic is made of: how many of a second come, how many of those fail,
//! how long each of them takes.

use fastrand::Rng;

pub(super) struct Draw(Rng);

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }

    /// One whose numbers have nothing to do with those that this one goes on with.
    pub(super) fn fork(&mut self) -> Self {
        Self(self.0.fork())
    }

    /// 0 to 1, without 1.
    pub(super) fn uniform(&mut self) -> f64 {
        self.0.f64()
    }

    /// 0 to `most`, without `most`; 0 for 0.
    pub(super) fn below(&mut self, most: u64) -> u64 {
        if most == 0 { 0 } else { self.0.u64(..most) }
    }

    /// How many come when `mean` are expected and each of them by itself. `mean`: 0 to 1e9.
    pub(super) fn poisson(&mut self, mean: f64) -> u64 {
        if mean < 10.0 { self.poisson_one_by_one(mean) } else { self.poisson_by_rejection(mean) }
    }

    fn poisson_one_by_one(&mut self, mean: f64) -> u64 {
        let end = (-mean).exp();
        let (mut product, mut count) = (self.uniform(), 0);
        while product > end {
            product *= self.uniform();
            count += 1;
        }
        count
    }

    /// Hörmann, The transformed rejection method for generating Poisson random variables (1993), PTRS.
    fn poisson_by_rejection(&mut self, mean: f64) -> u64 {
        let b = 0.931 + 2.53 * mean.sqrt();
        let a = -0.059 + 0.024_83 * b;
        let inverse_alpha = 1.1239 + 1.1328 / (b - 3.4);
        let squeeze = 0.9277 - 3.6224 / (b - 2.0);
        loop {
            let u = self.uniform() - 0.5;
            let v = self.uniform();
            let from_edge = 0.5 - u.abs();
            let k = ((2.0 * a / from_edge + b) * u + mean + 0.43).floor();
            if from_edge >= 0.07 && v <= squeeze {
                return k as u64;
            }
            if k < 0.0 || (from_edge < 0.013 && v > from_edge) {
                continue;
            }
            let density = k * mean.ln() - mean - ln_factorial(k);
            if (v * inverse_alpha / (a / (from_edge * from_edge) + b)).ln() <= density {
                return k as u64;
            }
        }
    }

    /// How many of `n` there are when each is one by a chance of `p`.
    pub(super) fn binomial(&mut self, n: u64, p: f64) -> u64 {
        if n == 0 || p <= 0.0 {
            0
        } else if p >= 1.0 {
            n
        } else if p > 0.5 {
            n - self.binomial(n, 1.0 - p)
        } else if n as f64 * p < 10.0 {
            self.binomial_by_gaps(n, p)
        } else {
            self.binomial_by_rejection(n as f64, p)
        }
    }

    /// From one to the next: what lies between is geometric.
    fn binomial_by_gaps(&mut self, n: u64, p: f64) -> u64 {
        let miss = (-p).ln_1p();
        let (mut at, mut count) = (0.0, 0);
        loop {
            // 1 − uniform is never 0, whose logarithm there is none of.
            at += ((1.0 - self.uniform()).ln() / miss).floor() + 1.0;
            if at > n as f64 {
                return count;
            }
            count += 1;
        }
    }

    /// Hörmann, The generation of binomial random variates (1993), BTRS. `p` up to 0.5, `n` × `p` from 10.
    fn binomial_by_rejection(&mut self, n: f64, p: f64) -> u64 {
        let deviation = (n * p * (1.0 - p)).sqrt();
        let b = 1.15 + 2.53 * deviation;
        let a = -0.0873 + 0.0248 * b + 0.01 * p;
        let alpha = (2.83 + 5.1 / b) * deviation;
        let squeeze = 0.92 - 4.2 / b;
        let mode = ((n + 1.0) * p).floor();
        let ln_odds = (p / (1.0 - p)).ln();
        let at_mode = ln_factorial(mode) + ln_factorial(n - mode);
        loop {
            let u = self.uniform() - 0.5;
            let v = self.uniform();
            let from_edge = 0.5 - u.abs();
            let k = ((2.0 * a / from_edge + b) * u + n * p + 0.5).floor();
            if k < 0.0 || k > n {
                continue;
            }
            if from_edge >= 0.07 && v <= squeeze {
                return k as u64;
            }
            let density = at_mode - ln_factorial(k) - ln_factorial(n - k) + (k - mode) * ln_odds;
            if (v * alpha / (a / (from_edge * from_edge) + b)).ln() <= density {
                return k as u64;
            }
        }
    }
}

/// ln k! for a whole `k`: exact where it is small, Stirling's series to 1e-10 from there.
fn ln_factorial(k: f64) -> f64 {
    const EXACT: [f64; 10] = [
        0.0,
        0.0,
        std::f64::consts::LN_2,
        1.791_759_469_228_055,
        3.178_053_830_347_945_8,
        4.787_491_742_782_046,
        6.579_251_212_010_101,
        8.525_161_361_065_415,
        10.604_602_902_745_25,
        12.801_827_480_081_469,
    ];
    const HALF_LN_TAU: f64 = 0.918_938_533_204_672_7;
    if let Some(exact) = EXACT.get(k as usize) {
        return *exact;
    }
    let square = k * k;
    (k + 0.5) * k.ln() - k + HALF_LN_TAU + (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / (1260.0 * square)) / square) / k
}

/// Latencies that are lognormal, as those of most services are: in cells of equal width on a logarithmic scale, each of which
/// has as many of the slots as its share of the draws is.
pub(super) struct Latencies {
    /// Of each cell, microseconds.
    us: Vec<f64>,
    slots: Vec<u8>,
}

/// A cell is then less than 2 % wide for a sigma of 0.5: about what the histograms tell apart.
const CELLS: usize = 256;
/// What lies further out is one in 150 000 draws.
const DEVIATIONS: f64 = 4.5;
/// Four draws take one random number.
const SLOTS: usize = 1 << 16;

impl Latencies {
    /// `sigma`: standard deviation of the logarithm.
    pub(super) fn lognormal(median_us: f64, sigma: f64) -> Self {
        let width = 2.0 * DEVIATIONS / CELLS as f64;
        let middles: Vec<f64> = (0..CELLS).map(|cell| (cell as f64 + 0.5) * width - DEVIATIONS).collect();
        let densities: Vec<f64> = middles.iter().map(|middle| (-0.5 * middle * middle).exp()).collect();
        let whole: f64 = densities.iter().sum();
        let (mut cell, mut so_far) = (0, densities[0]);
        let slots = (0..SLOTS).map(|slot| {
            while so_far < (slot as f64 + 0.5) / SLOTS as f64 * whole && cell < CELLS - 1 {
                cell += 1;
                so_far += densities[cell];
            }
            cell as u8
        });
        Self { slots: slots.collect(), us: middles.iter().map(|middle| median_us * (sigma * middle).exp()).collect() }
    }

    /// Microseconds.
    pub(super) fn draw(&self, draw: &mut Draw) -> f64 {
        self.us[self.cells(draw)[0]]
    }

    /// Hands `n` draws to `each` in few calls: microseconds, and how many took so long.
    pub(super) fn draw_many(&self, draw: &mut Draw, n: u64, mut each: impl FnMut(&mut Draw, f64, u64)) {
        if n < CELLS as u64 / 4 {
            for _ in 0..n {
                let us = self.draw(draw);
                each(draw, us, 1);
            }
            return;
        }
        let mut counts = [0; CELLS];
        for _ in 0..n / 4 {
            self.cells(draw).into_iter().for_each(|cell| counts[cell] += 1);
        }
        self.cells(draw).into_iter().take((n % 4) as usize).for_each(|cell| counts[cell] += 1);
        for (us, count) in self.us.iter().zip(counts).filter(|(_, count)| *count > 0) {
            each(draw, *us, count);
        }
    }

    fn cells(&self, draw: &mut Draw) -> [usize; 4] {
        let bits = draw.0.u64(..);
        [bits, bits >> 16, bits >> 32, bits >> 48].map(|bits| usize::from(self.slots[bits as usize % SLOTS]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: u64 = 200_000;

    /// Holds counts of draws against the chances that they had: the sum of squares of what is off must be one that chance
    /// exceeds once in a million tables. Values that are expected less than ten times are taken together.
    fn check(what: &str, chances: &[f64], mut one: impl FnMut() -> usize) {
        let mut seen = vec![0u64; chances.len() + 1];
        for _ in 0..DRAWS {
            seen[one().min(chances.len())] += 1;
        }
        let beyond = 1.0 - chances.iter().sum::<f64>();
        let (mut squares, mut freedom, mut rare) = (0.0, 0.0, (0.0, 0.0));
        let all = chances.iter().copied().chain([beyond]).zip(&seen);
        for (expected, seen) in all.map(|(chance, seen)| (chance * DRAWS as f64, *seen as f64)) {
            if expected < 10.0 {
                rare = (rare.0 + expected, rare.1 + seen);
            } else {
                squares += (seen - expected).powi(2) / expected;
                freedom += 1.0;
            }
        }
        squares += (rare.1 - rare.0).powi(2) / rare.0.max(1.0);
        // Wilson and Hilferty's cube root is close enough to normal; 4.75 deviations are one in a million.
        let freedom: f64 = freedom;
        let deviations = ((squares / freedom).cbrt() - (1.0 - 2.0 / (9.0 * freedom))) / (2.0 / (9.0 * freedom)).sqrt();
        assert!(deviations < 4.75, "{what}: {deviations} deviations off, {seen:?}");
    }

    #[test]
    fn arrivals_are_poisson() {
        for (seed, mean) in [0.02, 0.5, 5.0, 9.9, 10.0, 50.0, 250.0].into_iter().enumerate() {
            let mut draw = Draw::new(seed as u64);
            let most = (mean + 10.0 * f64::sqrt(mean) + 10.0) as usize;
            let chances: Vec<f64> =
                (0..most).map(|k| (k as f64 * f64::ln(mean) - mean - ln_factorial(k as f64)).exp()).collect();
            check(&format!("mean {mean}, seed {seed}"), &chances, || draw.poisson(mean) as usize);
        }
        assert_eq!(Draw::new(1).poisson(0.0), 0);
    }

    #[test]
    fn failures_are_binomial() {
        let cases = [(1, 0.3), (20, 0.05), (50, 0.001), (50, 0.5), (50, 0.93), (500, 0.01), (500, 0.2), (2_000, 0.6)];
        for (seed, (n, p)) in cases.into_iter().enumerate() {
            let mut draw = Draw::new(seed as u64);
            let ways = |k: u64| ln_factorial(n as f64) - ln_factorial(k as f64) - ln_factorial((n - k) as f64);
            let chance = |k| (ways(k) + k as f64 * f64::ln(p) + (n - k) as f64 * f64::ln_1p(-p)).exp();
            let chances: Vec<f64> = (0..=n).map(chance).collect();
            check(&format!("{n} × {p}, seed {seed}"), &chances, || draw.binomial(n, p) as usize);
        }
        let mut draw = Draw::new(1);
        assert_eq!((draw.binomial(9, 0.0), draw.binomial(9, 1.0), draw.binomial(0, 0.5)), (0, 9, 0));
    }

    #[test]
    fn latencies_are_lognormal() {
        let quantiles = [(0.05, -1.644_85), (0.5, 0.0), (0.95, 1.644_85), (0.99, 2.326_35), (0.999, 3.090_23)];
        for (seed, sigma) in [0.2, 0.5, 1.0].into_iter().enumerate() {
            let latencies = Latencies::lognormal(20_000.0, sigma);
            let mut draw = Draw::new(seed as u64);
            let mut sorted: Vec<f64> = (0..DRAWS).map(|_| latencies.draw(&mut draw)).collect();
            sorted.sort_by(f64::total_cmp);
            for (quantile, deviations) in quantiles {
                let seen = sorted[(quantile * DRAWS as f64) as usize];
                let expected = 20_000.0 * f64::exp(sigma * deviations);
                // Half a cell, and five deviations of the rank.
                let (share, rank) = (f64::exp(-0.5 * deviations * deviations) / 2.507, quantile * (1.0 - quantile));
                let room = sigma * (DEVIATIONS / CELLS as f64 + 5.0 * (rank / DRAWS as f64).sqrt() / share);
                assert!((seen / expected).ln().abs() <= room, "{quantile} of sigma {sigma}, seed {seed}: {seen}");
            }
            let (mut calls, mut total) = (0, 0);
            latencies.draw_many(&mut draw, 10_000, |_, _, times| (calls, total) = (calls + 1, total + times));
            assert_eq!(total, 10_000);
            assert!(calls <= CELLS);
        }
    }

    #[test]
    fn a_seed_says_all() {
        let series = |seed| {
            let mut draw = Draw::new(seed);
            (0..50).map(|_| (draw.poisson(40.0), draw.binomial(90, 0.3), draw.below(7))).collect::<Vec<_>>()
        };
        assert_eq!(series(5), series(5));
        assert_ne!(series(5), series(6));
    }
}
