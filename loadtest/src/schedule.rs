//! When each request is due. Pure: the n-th request's time follows from the schedule alone, whatever the answers do, so
//! several threads agree on it without talking.

use std::{str::FromStr, time::Duration};

use crate::units;

/// The most requests a schedule may hold: their numbers are half of a ledger's id.
const MAX_REQUESTS: f64 = u32::MAX as f64;

/// Arrival rates over time: stages one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    stages: Vec<Stage>,
}

/// A stretch of time over which the rate goes from one value to another in a straight line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// How long it lasts.
    pub duration: Duration,
    /// The rate at its start.
    pub rate: Rate,
}

/// Requests a second, at the start and at the end of a stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub from: f64,
    pub to: f64,
}

impl Rate {
    fn mean(self) -> f64 {
        f64::midpoint(self.from, self.to)
    }
}

impl FromStr for Rate {
    type Err = String;

    /// `500` or `500..5000`. Errors: the problem and the cure.
    fn from_str(text: &str) -> Result<Self, String> {
        const CURE: &str = "give requests a second above 0, like 500, or a ramp, like 500..5000";
        let (from, to) = text.split_once("..").unwrap_or((text, text));
        let rate = |text: &str| text.trim().parse::<f64>().ok().filter(|rate| rate.is_finite() && *rate >= 0.0);
        match (rate(from), rate(to)) {
            (Some(from), Some(to)) if from + to > 0.0 => Ok(Self { from, to }),
            _ => Err(format!("{text:?} is no rate; {CURE}")),
        }
    }
}

impl FromStr for Schedule {
    type Err = String;

    /// `10s:500,30s:500..5000,1m:5000`. Errors: the problem and the cure.
    fn from_str(text: &str) -> Result<Self, String> {
        let stages = text.split(',').map(|stage| {
            let (duration, rate) = stage
                .trim()
                .split_once(':')
                .ok_or_else(|| format!("{stage:?} is no stage; give DURATION:RATE, like 10s:500 or 30s:500..5000"))?;
            Ok::<_, String>(Stage { duration: units::duration(duration)?, rate: rate.parse()? })
        });
        Self::new(stages.collect::<Result<_, _>>()?)
    }
}

impl Schedule {
    /// Stages in their order. Errors, with their cure: no time, no request, or more requests than ids (2^32).
    pub fn new(stages: Vec<Stage>) -> Result<Self, String> {
        if stages.iter().any(|stage| stage.duration.is_zero()) {
            return Err("a stage lasts no time; give it a duration above 0".to_owned());
        }
        let schedule = Self { stages };
        let requests = schedule.stages.iter().map(Stage::requests).sum::<f64>();
        match requests {
            r if r > MAX_REQUESTS => {
                Err(format!("{r:.0} requests are more than 4294967295; shorten it or lower the rate"))
            }
            r if r.ceil() < 1.0 => Err("not one request fits in; lengthen it or raise the rate".to_owned()),
            _ => Ok(schedule),
        }
    }

    /// One stage.
    pub fn steady(duration: Duration, rate: Rate) -> Result<Self, String> {
        Self::new(vec![Stage { duration, rate }])
    }

    /// Its stages.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// How long it lasts.
    pub fn duration(&self) -> Duration {
        self.stages.iter().map(|stage| stage.duration).sum()
    }

    /// How many requests it holds.
    pub fn requests(&self) -> u32 {
        self.stages.iter().map(Stage::requests).sum::<f64>().ceil() as u32
    }

    /// When request `number` is due, since the start; `None` past the last one.
    pub fn due(&self, number: u32) -> Option<Duration> {
        let (mut start, mut before) = (Duration::ZERO, 0.0);
        for stage in &self.stages {
            let here = f64::from(number) - before;
            let requests = stage.requests();
            if here < requests {
                return Some(start + stage.due(here));
            }
            start += stage.duration;
            before += requests;
        }
        None
    }
}

impl Stage {
    fn requests(&self) -> f64 {
        self.rate.mean() * self.duration.as_secs_f64()
    }

    /// When so many requests of the stage (fewer than all) have arrived: `from·t + (to − from)·t²/2d = requests`, solved
    /// in the form that also holds for a level stage.
    fn due(&self, requests: f64) -> Duration {
        let Rate { from, to } = self.rate;
        let slope = (to - from) / self.duration.as_secs_f64();
        let root = (from * from + 2.0 * slope * requests).max(0.0).sqrt();
        let seconds = if requests > 0.0 { 2.0 * requests / (from + root) } else { 0.0 };
        Duration::try_from_secs_f64(seconds).map_or(self.duration, |due| due.min(self.duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_rate_is_even() {
        let schedule: Schedule = "2s:10".parse().unwrap();
        assert_eq!(schedule.requests(), 20);
        for number in 0..20 {
            let due = schedule.due(number).unwrap().as_secs_f64();
            assert!((due - f64::from(number) * 0.1).abs() < 1e-9, "{number}: {due}");
        }
        assert_eq!(schedule.due(20), None);
    }

    #[test]
    fn every_schedule_keeps_its_order_its_count_and_its_rate() {
        for text in ["1s:100..1000", "1s:1000..100", "1s:0..100", "1s:100..0", "300ms:50,2s:50..500,1s:7", "10s:0.5"] {
            let schedule: Schedule = text.parse().unwrap();
            let due: Vec<_> = (0..schedule.requests()).map(|number| schedule.due(number).unwrap()).collect();
            assert!(due.is_sorted(), "{text}");
            assert!(due.last().unwrap() <= &schedule.duration(), "{text}");
            assert_eq!(schedule.due(schedule.requests() + 1), None, "{text}");
        }
        // A quarter of a rising ramp's requests come in its first half.
        let ramp: Schedule = "10s:0..100".parse().unwrap();
        let half = (0..500).filter(|number| ramp.due(*number).unwrap() < Duration::from_secs(5)).count();
        assert_eq!((ramp.requests(), half), (500, 125));
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_its_cure() {
        for text in [
            "", "10s", "10:5", "10s:x", "10s:0", "10s:-5", "10s:NaN", "10s:inf", "0s:5", "10s:5,", "10s:5..", "1h:9e9",
            "1s:..5",
        ] {
            let fault = text.parse::<Schedule>().expect_err(text);
            assert!(fault.contains("; ") && !fault.contains('\n'), "{text}: {fault}");
        }
    }
}
