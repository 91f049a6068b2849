//! Durations, sizes and shares as people write and read them.

use std::time::Duration;

/// `800us`, `20ms`, `1.5s`, `2m`, `1h`. Errors: the problem and the cure.
pub fn duration(text: &str) -> Result<Duration, String> {
    const CURE: &str = "give 20ms, 1.5s, 2m or 1h";
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let (number, unit) = units
        .into_iter()
        .find_map(|(unit, seconds)| text.strip_suffix(unit).map(|number| (number, seconds)))
        .ok_or_else(|| format!("{text:?} has no unit; {CURE}"))?;
    let number = number.parse::<f64>().map_err(|_| format!("{text:?} is not a duration; {CURE}"))?;
    Duration::try_from_secs_f64(number * unit).map_err(|error| format!("{text:?}: {error}; {CURE}"))
}

/// `0.1%` or `0.001`, as 0 to 1. Errors: the problem and the cure.
pub fn share(text: &str) -> Result<f64, String> {
    let (number, whole) = match text.strip_suffix('%') {
        Some(number) => (number.trim(), 100.0),
        None => (text, 1.0),
    };
    let share = number.parse::<f64>().map_err(|_| format!("{text:?} is no share; give 0.1% or 0.001"))? / whole;
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err(format!("{text:?} is out of range; give a share from 0 to 1, or from 0% to 100%"))
    }
}

/// `512`, `16k`, `1M`: bytes, in steps of 1024. Errors: the problem and the cure.
pub fn bytes(text: &str) -> Result<usize, String> {
    let (number, unit) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    let bytes = number.parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
    bytes.ok_or_else(|| format!("{text:?} is no size; give 512, 16k or 1M"))
}

/// A latency for people: `93.2 ms`.
pub fn micros(micros: f64) -> String {
    match micros {
        m if m < 1e3 => format!("{m:.0} µs"),
        m if m < 1e4 => format!("{:.2} ms", m / 1e3),
        m if m < 1e6 => format!("{:.1} ms", m / 1e3),
        m => format!("{:.2} s", m / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_number_and_a_unit() {
        assert_eq!(duration("800us"), Ok(Duration::from_micros(800)));
        assert_eq!(duration("20ms"), Ok(Duration::from_millis(20)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for faulty in ["", "20", "ms", "-1s", "NaNs", "infs", "1e300s", "1d"] {
            assert!(duration(faulty).is_err(), "{faulty}");
        }
    }

    #[test]
    fn shares_and_sizes() {
        assert_eq!(share("0.1%"), Ok(0.001));
        assert_eq!(share("0.5"), Ok(0.5));
        assert_eq!(bytes("16k"), Ok(16 * 1024));
        assert_eq!(bytes("1M"), Ok(1024 * 1024));
        for faulty in ["", "%", "2", "-1%", "NaN"] {
            assert!(share(faulty).is_err(), "{faulty}");
        }
        for faulty in ["", "k", "-1", "1.5", "99999999999999999999M", "ü"] {
            assert!(bytes(faulty).is_err(), "{faulty}");
        }
    }

    #[test]
    fn latencies_for_people() {
        assert_eq!(
            [0.0, 950.0, 2810.0, 93_240.0, 1.5e6].map(micros),
            ["0 µs", "950 µs", "2.81 ms", "93.2 ms", "1.50 s"]
        );
    }
}
