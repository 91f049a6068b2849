//! What the guard can see in so much traffic, said in advance. Pure.
//!
//! Evidence grows with each request by what the test behind the rules expects of it, and strays as any sum does
//! (Siegmund, Sequential Analysis, 1985, chapter 3). `make simulate` shows how close that comes.

use std::{fmt, time::Duration};

use config::{Guard, Split};

use crate::guard::{FEWEST_SECONDS, TRIP, alternatives};

/// The test of whether the share of bad events is above a limit, asked beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Forecast {
    /// 0 to 1.
    limit: f64,
}

/// Standard deviations that nine of ten stay below.
const NINE_OF_TEN: f64 = 1.2816;

impl Forecast {
    /// `limit`: the share that is not too much yet, above 0 and below 1.
    pub fn new(limit: f64) -> Self {
        Self { limit: limit.clamp(1e-9, 1.0 - 1e-9) }
    }

    /// How long it takes to trip for a true share of bad events, in half of all cases, at so many requests of green per
    /// second. `None`: never, since it is within the limit.
    pub fn time_to_trip(&self, share: f64, green_rps: f64) -> Option<Duration> {
        let seconds = self.requests_to_trip(share, 0.0)? / green_rps;
        Duration::try_from_secs_f64(seconds.max(FEWEST_SECONDS as f64)).ok()
    }

    /// The least true share of bad events that nine of ten trips would come for within so many requests. `None`: not
    /// even if all of them are bad.
    pub fn shows_within(&self, requests: f64) -> Option<f64> {
        let shows = |share| self.requests_to_trip(share, NINE_OF_TEN).is_some_and(|needed| needed <= requests);
        if !shows(1.0) {
            return None;
        }
        let (mut too_little, mut enough) = (self.limit, 1.0);
        // Far below what anybody reads of it.
        for _ in 0..40 {
            let middle = 0.5 * (too_little + enough);
            if shows(middle) { enough = middle } else { too_little = middle }
        }
        Some(enough)
    }

    /// How many requests it takes to say that a green is within the limit: it is so in nineteen of twenty cases that it
    /// is said, and is said in nine of ten of a green at a fifth of the limit. 153 for 5 %.
    pub fn requests_to_pass(&self) -> u64 {
        // The fewest for which so many bad ones still say so.
        let fewest = |bad| {
            let (mut too_few, mut enough) = (bad, bad + 1);
            while at_most(bad, enough, self.limit) > 0.05 {
                (too_few, enough) = (enough, enough.saturating_mul(2));
            }
            while enough - too_few > 1 {
                let middle = too_few + (enough - too_few) / 2;
                if at_most(bad, middle, self.limit) > 0.05 { too_few = middle } else { enough = middle }
            }
            enough
        };
        let most = 30;
        let bad = (0..most).find(|bad| at_most(*bad, fewest(*bad), self.limit / 5.0) >= 0.9).unwrap_or(most);
        fewest(bad)
    }

    /// Requests until the evidence is there, and `deviations` of chance beyond. `None`: it never is.
    fn requests_to_trip(&self, share: f64, deviations: f64) -> Option<f64> {
        alternatives(self.limit)
            .into_iter()
            .filter_map(|(bad, good)| {
                let mean = share * bad + (1.0 - share) * good;
                let strays = deviations * (share * (1.0 - share)).sqrt() * (bad - good);
                // n·mean − strays·√n = TRIP.
                let root = (strays + (strays * strays + 4.0 * mean * TRIP).sqrt()) / (2.0 * mean);
                (share > self.limit && mean > 0.0).then_some(root * root)
            })
            .min_by(f64::total_cmp)
    }
}

/// P(Bin(`n`, `p`) ≤ `bad`), summed term by term; `bad` is small and below `n`.
fn at_most(bad: u64, n: u64, p: f64) -> f64 {
    let mut term = (n as f64 * (-p).ln_1p()).exp();
    let mut sum = term;
    for k in 0..bad {
        term *= (n - k) as f64 / (k + 1) as f64 * p / (1.0 - p);
        sum += term;
    }
    sum
}

/// What a step of a plan can tell, for `crossfade check`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepForecast {
    split: Split,
    bake: Duration,
    rps: f64,
    /// Of green, in the time of the bake.
    pub requests: f64,
    /// [`Forecast::shows_within`] of the rule for errors.
    pub shows: Option<f64>,
    /// How long it should take to say honestly that green is within its limits.
    pub honest_bake: Duration,
}

impl StepForecast {
    /// `rps`: requests per second of both arms, above 0. `None`: such a step sends nothing to green.
    pub fn new(guard: &Guard, rps: f64, split: Split, bake: Duration) -> Option<Self> {
        let green_rps = rps * split.percent() / 100.0;
        if green_rps <= 0.0 {
            return None;
        }
        let forecast = Forecast::new(guard.max_error_rate);
        let requests = green_rps * bake.as_secs_f64();
        let seconds = forecast.requests_to_pass().max(guard.min_requests) as f64 / green_rps;
        let honest_bake = Duration::try_from_secs_f64(seconds.ceil()).unwrap_or(Duration::MAX);
        Some(Self {
            split,
            bake,
            rps,
            requests,
            shows: forecast.shows_within(requests).filter(|_| bake.as_secs() >= FEWEST_SECONDS),
            honest_bake: honest_bake.max(Duration::from_secs(FEWEST_SECONDS)),
        })
    }

    pub fn is_honest(&self) -> bool {
        self.bake >= self.honest_bake
    }
}

/// A sentence without a full stop.
impl fmt::Display for StepForecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { split, bake, rps, requests, .. } = self;
        write!(f, "{split} for {} s at {rps} requests/s is {requests:.0} requests: ", bake.as_secs_f64())?;
        let only = if self.is_honest() { "" } else { "only " };
        match self.shows.map(|share| share * 100.0) {
            None => f.write_str("not even a failure of all of them shows")?,
            Some(percent) if percent >= 99.5 => write!(f, "{only}a failure of all of them shows")?,
            Some(percent) if (45.0..55.0).contains(&percent) => write!(f, "{only}a failure of half of them shows")?,
            Some(percent) if percent < 10.0 => write!(f, "{only}a failure of {percent:.1} % of them shows")?,
            Some(percent) => write!(f, "{only}a failure of {percent:.0} % of them shows")?,
        }
        if !self.is_honest() {
            write!(f, "; bake at least {} s", self.honest_bake.as_secs())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(rps: f64, percent: f64, bake: u64) -> String {
        let split = Split::from_percent(percent).unwrap();
        StepForecast::new(&Guard::default(), rps, split, Duration::from_secs(bake)).unwrap().to_string()
    }

    #[test]
    fn a_step_says_what_it_can_tell() {
        for (rps, percent, bake, said) in [
            (50.0, 1.0, 60, "only a failure of half of them shows; bake at least 306 s"),
            (0.5, 1.0, 60, "not even a failure of all of them shows; bake at least 30600 s"),
        ] {
            let sentence = step(rps, percent, bake);
            assert!(sentence.ends_with(said), "{sentence}");
        }
        assert_eq!(
            step(50.0, 1.0, 60),
            "1 % for 60 s at 50 requests/s is 30 requests: only a failure of half of them shows; bake at least 306 s"
        );
        println!("{}", step(500.0, 50.0, 3_600));
        assert!(step(50.0, 10.0, 30).ends_with("; bake at least 31 s"));
        assert!(!step(50.0, 10.0, 31).contains("only"));
        let nothing = StepForecast::new(&Guard::default(), 50.0, Split::NONE, Duration::from_secs(60));
        assert_eq!(nothing, None);
    }

    #[test]
    fn the_honest_sample_is_that_of_the_exact_binomial() {
        for (limit, requests) in [(0.01, 773), (0.02, 386), (0.05, 153), (0.1, 76), (0.3, 24)] {
            assert_eq!(Forecast::new(limit).requests_to_pass(), requests, "{limit}");
        }
        for limit in [1e-9, 1e-4, 0.5, 0.9, 0.999] {
            assert!(Forecast::new(limit).requests_to_pass() > 0, "{limit}");
        }
    }

    #[test]
    fn more_traffic_shows_less_and_worse_is_seen_sooner() {
        for limit in [0.001, 0.01, 0.05, 0.3, 0.9] {
            let forecast = Forecast::new(limit);
            let shows: Vec<f64> = (0..40).map(|n| forecast.shows_within(1.5f64.powi(n)).unwrap_or(1.1)).collect();
            assert!(shows.windows(2).all(|pair| pair[1] <= pair[0]), "{limit}: {shows:?}");
            assert!(shows.iter().all(|share| *share > limit), "{limit}: {shows:?}");
            let times: Vec<Duration> =
                (1..=100).filter_map(|percent| forecast.time_to_trip(f64::from(percent) / 100.0, 3.0)).collect();
            assert!(!times.is_empty() && times.windows(2).all(|pair| pair[1] <= pair[0]), "{limit}: {times:?}");
            assert_eq!(forecast.time_to_trip(limit, 3.0), None);
        }
    }
}
