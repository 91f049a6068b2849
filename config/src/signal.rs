//! What a proxy cannot see: a number from outside that says whether green is well.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{
    Url,
    fault::Flaw,
    reader::{Grain, LONGEST, parse_duration},
};

/// A consumer's lag, a process's memory, its restarts, a figure of the business: pushed, or scraped.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// As of a route; unique in its route.
    pub name: String,
    pub limit: SignalLimit,
    /// What it means when nothing has been heard for `expect_every`. Default `hold`.
    pub silent: Silent,
    /// Default 2 min, or three times the interval of scraping, if that is longer.
    pub expect_every: Duration,
    /// `None`: it is pushed.
    pub scrape: Option<Scrape>,
}

/// Which values are bad, and how long one has to be bad to be a breach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignalLimit {
    pub bad: Beyond,
    /// Finite.
    pub value: f64,
    /// Zero: a single bad value is enough.
    pub lasting: Duration,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Beyond {
    Above,
    Below,
}

/// What silence means.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Silent {
    /// Unknown: no plan goes on, nothing trips.
    #[default]
    Hold,
    /// Nothing.
    Ignore,
    Breach,
}

impl Silent {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Ignore => "ignore",
            Self::Breach => "breach",
        }
    }
}

/// Where a signal's values are read, as Prometheus text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Scrape {
    pub url: Url,
    /// The name of the sample.
    pub metric: String,
    /// Labels that a sample must have; it may have more.
    pub labels: BTreeMap<String, String>,
    pub combine: Combine,
    /// Default 15 s.
    pub every: Duration,
}

/// What counts where several samples match.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Combine {
    /// The one closest to a breach, or farthest in it.
    #[default]
    Worst,
    Sum,
}

impl SignalLimit {
    /// `> 1000 for 5m`, `< 0.5`.
    pub(crate) fn parse(text: &str) -> Result<Self, Flaw> {
        let flaw = |problem: &str| Flaw::new(problem, "write a limit such as \"> 1000 for 5m\" or \"< 0.5\"");
        let mut chars = text.trim().chars();
        let bad = match chars.next() {
            Some('>') => Beyond::Above,
            Some('<') => Beyond::Below,
            _ => return Err(flaw("does not begin with '>' or '<', the side that is bad")),
        };
        let rest = chars.as_str().trim_start();
        if rest.starts_with('=') {
            return Err(flaw("has a '=', which makes no difference here"));
        }
        let mut words = rest.split_whitespace();
        let value = words.next().ok_or_else(|| flaw("has no number"))?;
        let value: f64 = value.parse().map_err(|_| flaw("has no number after its sign"))?;
        if !value.is_finite() {
            return Err(flaw("has no finite number"));
        }
        let lasting = match (words.next(), words.next(), words.next()) {
            (None, ..) => Duration::ZERO,
            (Some("for"), Some(duration), None) => parse_duration(duration, Grain::Milliseconds, LONGEST)?,
            _ => return Err(flaw("does not go on with \"for\" and a duration")),
        };
        Ok(Self { bad, value, lasting })
    }

    pub fn is_bad(&self, value: f64) -> bool {
        match self.bad {
            Beyond::Above => value > self.value,
            Beyond::Below => value < self.value,
        }
    }

    /// The one of two values that is closer to a breach.
    pub fn worse(&self, a: f64, b: f64) -> f64 {
        match self.bad {
            Beyond::Above => a.max(b),
            Beyond::Below => a.min(b),
        }
    }
}

impl fmt::Display for SignalLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.bad {
            Beyond::Above => '>',
            Beyond::Below => '<',
        };
        write!(f, "{sign} {}", self.value)?;
        if self.lasting > Duration::ZERO {
            write!(f, " for {:?}", self.lasting)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_a_side_a_number_and_perhaps_a_duration() {
        for (text, bad, value, seconds) in [
            ("> 1000 for 5m", Beyond::Above, 1000.0, 300),
            (">1000", Beyond::Above, 1000.0, 0),
            (" <  -0.5   for  10s ", Beyond::Below, -0.5, 10),
            ("> 1.5e8", Beyond::Above, 1.5e8, 0),
        ] {
            let lasting = Duration::from_secs(seconds);
            assert_eq!(SignalLimit::parse(text).unwrap(), SignalLimit { bad, value, lasting }, "{text}");
        }
        for text in [
            "",
            "1000",
            ">",
            "> x",
            ">= 5",
            "> NaN",
            "> inf",
            "> 1e999",
            "> 5 for",
            "> 5 over 5m",
            "> 5 for 5",
            "> 5 for 5m or so",
            "> 5 for 0s",
            "> 5 for 25h",
            "≥ 5",
        ] {
            assert!(SignalLimit::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn exactly_the_limit_is_not_beyond_it() {
        let limit = |text| SignalLimit::parse(text).unwrap();
        for (text, value, bad) in [("> 5", 5.0, false), ("> 5", 5.1, true), ("< 5", 5.0, false), ("< 5", 4.9, true)] {
            assert_eq!(limit(text).is_bad(value), bad, "{value} {text}");
        }
        assert_eq!(limit("> 5").worse(1.0, 9.0), 9.0);
        assert_eq!(limit("< 5").worse(1.0, 9.0), 1.0);
        assert_eq!(limit("> 1000 for 5m").to_string(), "> 1000 for 300s");
    }
}
