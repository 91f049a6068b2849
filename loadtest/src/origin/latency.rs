//! How long an origin takes: distributions of latency, and stalls. Pure: which quantile is due is an argument.
//!
//! | written | means |
//! |---|---|
//! | `20ms` | always that |
//! | `lognormal:20ms,p99=200ms` | log-normal with this median and 99th percentile |
//! | `lognormal:20ms,sigma=0.8` | the same by the standard deviation of the logarithm |
//! | `quantiles:0.5=12ms,0.99=80ms` | straight lines between these quantiles; flat before the first and behind the last |
//! | `file:quantiles.txt` | the same from a file, on the command line only: a line each, `0.5 12ms`; `#` begins a comment |

use std::{fmt, fs, path::Path, str::FromStr, sync::Arc, time::Duration};

use crate::units;

/// Longer latencies are this one: the far end of a wide log-normal is no time at all.
const MOST: Duration = Duration::from_secs(3600);

/// How far the logarithm may be spread: at 4 the 99th percentile is 11 000 times the median.
const MOST_SIGMA: f64 = 4.0;

const CURE: &str = "give 20ms, lognormal:20ms,p99=200ms, lognormal:20ms,sigma=0.8 or quantiles:0.5=12ms,0.99=80ms";

/// A distribution of latencies. The default is none at all. Timers count whole milliseconds, so what is waited is up to
/// one more.
#[derive(Clone, Debug, PartialEq)]
pub struct Latency(Shape);

#[derive(Clone, Debug, PartialEq)]
enum Shape {
    Constant(Duration),
    /// The logarithm is normal: its median is that of `median`, its standard deviation `sigma`.
    Lognormal {
        median: Duration,
        sigma: f64,
    },
    /// Pairs of quantile and latency, both rising; never empty.
    Quantiles(Arc<[(f64, Duration)]>),
}

impl Latency {
    /// As written on a command line: [`FromStr`], or `file:PATH`. Errors: the problem and the cure; of a file every
    /// faulty line.
    pub fn from_argument(text: &str) -> Result<Self, String> {
        match text.strip_prefix("file:") {
            Some(path) => Self::from_file(Path::new(path)),
            None => text.parse(),
        }
    }

    /// Log-normal. `median`: above 0. `p99`: not below it. Errors: the problem and the cure.
    pub fn lognormal(median: Duration, p99: Duration) -> Result<Self, String> {
        if median.is_zero() || p99 < median {
            return Err(format!(
                "a p99 of {p99:?} for a median of {median:?}; give a p99 that is not below the median, and a median above 0"
            ));
        }
        Self::spread(median, (p99.as_secs_f64() / median.as_secs_f64()).ln() / normal(0.99))
    }

    fn spread(median: Duration, sigma: f64) -> Result<Self, String> {
        let fits = (0.0..=MOST_SIGMA).contains(&sigma);
        fits.then_some(Self(Shape::Lognormal { median, sigma }))
            .ok_or_else(|| format!("a sigma of {sigma}; give 0 to {MOST_SIGMA} (a p99 at most 11000 times the median)"))
    }

    /// The latency that the share `quantile` of answers, 0 to 1, does not exceed.
    pub fn at(&self, quantile: f64) -> Duration {
        match &self.0 {
            Shape::Constant(latency) => *latency,
            Shape::Lognormal { median, sigma } => {
                let seconds = median.as_secs_f64() * (sigma * normal(quantile)).exp();
                Duration::from_secs_f64(seconds.clamp(0.0, MOST.as_secs_f64()))
            }
            Shape::Quantiles(points) => {
                let above = points.partition_point(|(at, _)| *at < quantile);
                let Some((to, high)) = points.get(above) else { return points[points.len() - 1].1 };
                let Some((from, low)) = above.checked_sub(1).map(|below| points[below]) else { return *high };
                low + (*high - low).mul_f64((quantile - from) / (to - from))
            }
        }
    }

    fn from_file(path: &Path) -> Result<Self, String> {
        let place = path.display();
        let text = fs::read_to_string(path)
            .map_err(|error| format!("{place}: {error}; give a readable file with lines such as 0.5 12ms"))?;
        let lines = text.lines().enumerate().map(|(nth, line)| (nth + 1, line.split('#').next().unwrap_or_default()));
        let points = lines.filter(|(_, line)| !line.trim().is_empty());
        let points = points.map(|(nth, line)| (format!("{place}:{nth}"), line.trim().split_once(char::is_whitespace)));
        Self::quantiles(points).map_err(|faults| match faults.is_empty() {
            true => format!("{place}: no quantile in it; give lines such as 0.5 12ms"),
            false => faults.join("\n"),
        })
    }

    /// Errors: every faulty point, behind its place; none when there is no point at all.
    fn quantiles<'a>(points: impl Iterator<Item = (String, Option<(&'a str, &'a str)>)>) -> Result<Self, Vec<String>> {
        let (mut known, mut faults) = (Vec::<(f64, Duration)>::new(), Vec::new());
        for (place, point) in points {
            let point = point.ok_or_else(|| "not a quantile and a latency; give 0.5 and 12ms".to_owned());
            let point = point.and_then(|(at, latency)| Ok((units::share(at)?, units::duration(latency.trim())?)));
            let rising = point.and_then(|(at, latency)| match known.last() {
                Some((before, _)) if at <= *before => {
                    Err(format!("{at} comes after {before}; give quantiles in rising order"))
                }
                Some((_, before)) if latency < *before => {
                    Err(format!("{latency:?} comes after {before:?}; give latencies that do not fall"))
                }
                _ => Ok((at, latency)),
            });
            match rising {
                Ok(point) => known.push(point),
                Err(fault) => faults.push(format!("{place}: {fault}")),
            }
        }
        if known.is_empty() || !faults.is_empty() { Err(faults) } else { Ok(Self(Shape::Quantiles(known.into()))) }
    }
}

impl Default for Latency {
    fn default() -> Self {
        Duration::ZERO.into()
    }
}

impl From<Duration> for Latency {
    fn from(constant: Duration) -> Self {
        Self(Shape::Constant(constant))
    }
}

impl FromStr for Latency {
    type Err = String;

    /// As [`Display`](fmt::Display) writes it, or with `p99` in place of `sigma`. Errors: the problem and the cure.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None => units::duration(text).map(Self::from).map_err(|_| format!("{text:?} is no latency; {CURE}")),
            Some(("lognormal", parameters)) => {
                let (median, spread) = parameters.split_once(',').ok_or_else(|| format!("no spread; {CURE}"))?;
                let median = units::duration(median)?;
                match spread.split_once('=') {
                    Some(("p99", p99)) => Self::lognormal(median, units::duration(p99)?),
                    Some(("sigma", sigma)) => Self::spread(median, sigma.parse().unwrap_or(f64::NAN)),
                    _ => Err(format!("{spread:?} is no spread; {CURE}")),
                }
            }
            Some(("quantiles", points)) => {
                let points = points.split(',').map(|point| (format!("{point:?}"), point.split_once('=')));
                Self::quantiles(points).map_err(|faults| faults.join("\n"))
            }
            Some(("file", _)) => Err(format!("files are read on the command line only; {CURE}")),
            Some(_) => Err(format!("{text:?} is no latency; {CURE}")),
        }
    }
}

/// As [`FromStr`] reads it.
impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Shape::Constant(latency) => write!(f, "{}", Exact(*latency)),
            Shape::Lognormal { median, sigma } => write!(f, "lognormal:{},sigma={sigma}", Exact(*median)),
            Shape::Quantiles(points) => {
                f.write_str("quantiles:")?;
                for (nth, (at, latency)) in points.iter().enumerate() {
                    write!(f, "{}{at}={}", if nth > 0 { "," } else { "" }, Exact(*latency))?;
                }
                Ok(())
            }
        }
    }
}

/// Every so often the whole origin stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    lasts: Duration,
    every: Duration,
}

impl Stall {
    /// `lasts`: how long nothing is answered, from the start of each period. `every`: the period. Errors, with the cure:
    /// `lasts` is 0 or not shorter than `every`.
    pub fn new(lasts: Duration, every: Duration) -> Result<Self, String> {
        let fits = !lasts.is_zero() && lasts < every;
        fits.then_some(Self { lasts, every }).ok_or_else(|| {
            format!("{lasts:?} in every {every:?}; give a stall above 0 that is shorter than its period")
        })
    }

    /// How much longer the origin stands still. `since`: time since the first period began.
    pub fn left(&self, since: Duration) -> Duration {
        let into = since.as_nanos() % self.every.as_nanos();
        self.lasts.saturating_sub(Duration::from_nanos(u64::try_from(into).unwrap_or(u64::MAX)))
    }
}

impl FromStr for Stall {
    type Err = String;

    /// `500ms/10s`: for 500 ms in every 10 s. Errors: the problem and the cure.
    fn from_str(text: &str) -> Result<Self, String> {
        let (lasts, every) = text.split_once('/').ok_or_else(|| format!("{text:?} has no period; give 500ms/10s"))?;
        Self::new(units::duration(lasts)?, units::duration(every)?)
    }
}

/// As [`FromStr`] reads it.
impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Exact(self.lasts), Exact(self.every))
    }
}

/// A duration as [`units::duration`] reads it, nothing lost.
struct Exact(Duration);

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_nanos() {
            nanos if nanos % 1_000_000_000 == 0 => write!(f, "{}s", nanos / 1_000_000_000),
            nanos if nanos % 1_000_000 == 0 => write!(f, "{}ms", nanos / 1_000_000),
            nanos => write!(f, "{}us", nanos as f64 / 1e3),
        }
    }
}

/// The quantile of the standard normal distribution: P. J. Acklam's rational approximation (2003), off by no more than
/// 1.2e-9 of its value. `quantile`: 0 to 1, whose ends are infinite.
fn normal(quantile: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.38357751867269e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 6] = [
        -5.447609879822406e1,
        1.615858368580409e2,
        -1.556989798598866e2,
        6.680131188771972e1,
        -1.328068155288572e1,
        1.0,
    ];
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 5] = [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0];
    const TAIL: f64 = 0.02425;

    let polynomial =
        |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, coefficient| sum * x + coefficient);
    let tail = |share: f64| {
        let q = (-2.0 * share.ln()).sqrt();
        polynomial(&C, q) / polynomial(&D, q)
    };
    match quantile {
        q if q <= 0.0 => f64::NEG_INFINITY,
        q if q < TAIL => tail(q),
        q if q <= 1.0 - TAIL => {
            let (from_middle, square) = (q - 0.5, (q - 0.5) * (q - 0.5));
            from_middle * polynomial(&A, square) / polynomial(&B, square)
        }
        q if q < 1.0 => -tail(1.0 - q),
        _ => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn quantiles_of_the_normal_distribution() {
        // From the tables of the standard normal distribution.
        for (quantile, expected) in [
            (0.5, 0.0),
            (0.9, 1.2815516),
            (0.975, 1.9599640),
            (0.99, 2.3263479),
            (0.999, 3.0902323),
            (1e-6, -4.7534243),
        ] {
            assert!((normal(quantile) - expected).abs() < 1e-6, "{quantile}: {}", normal(quantile));
        }
        assert_eq!((normal(0.0), normal(1.0)), (f64::NEG_INFINITY, f64::INFINITY));
    }

    #[test]
    fn each_shape_has_the_quantiles_it_was_asked_for() {
        for (text, expected) in [
            ("20ms", [(0.0, 20_000), (0.5, 20_000), (1.0, 20_000)]),
            ("lognormal:20ms,p99=200ms", [(0.5, 20_000), (0.99, 200_000), (1.0, 3_600_000_000)]),
            ("lognormal:20ms,sigma=0", [(0.01, 20_000), (0.5, 20_000), (0.99, 20_000)]),
            ("lognormal:20ms,sigma=1", [(0.0, 0), (0.5, 20_000), (0.8413447, 54_366)]),
            ("quantiles:0.5=12ms,0.9=20ms,1=100ms", [(0.2, 12_000), (0.7, 16_000), (0.95, 60_000)]),
            ("quantiles:50%=12ms", [(0.0, 12_000), (0.5, 12_000), (1.0, 12_000)]),
        ] {
            let latency: Latency = text.parse().unwrap();
            for (quantile, micros) in expected {
                let at = latency.at(quantile).as_micros();
                assert!(at.abs_diff(micros) <= 1, "{text} at {quantile}: {at}");
            }
        }
    }

    #[test]
    fn latencies_rise_with_their_quantile() {
        let seed = fastrand::u64(..);
        fastrand::seed(seed);
        for _ in 0..200 {
            let latency = match fastrand::bool() {
                true => Latency::spread(ms(fastrand::u64(1..1000)), fastrand::f64() * MOST_SIGMA).unwrap(),
                false => {
                    let mut points: Vec<_> = (0..10).map(|_| (fastrand::f64(), ms(fastrand::u64(0..1000)))).collect();
                    points.sort_by(|a, b| a.0.total_cmp(&b.0));
                    let mut sorted: Vec<_> = points.iter().map(|(_, latency)| *latency).collect();
                    sorted.sort();
                    Latency(Shape::Quantiles(points.into_iter().zip(sorted).map(|((at, _), l)| (at, l)).collect()))
                }
            };
            let drawn: Vec<_> = (0..=1000).map(|nth| latency.at(f64::from(nth) / 1000.0)).collect();
            assert!(drawn.is_sorted(), "seed {seed}: {latency}");
            assert!(drawn.iter().all(|latency| *latency <= MOST), "seed {seed}: {latency}");
            assert_eq!(latency.to_string().parse(), Ok(latency), "seed {seed}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["0s", "20ms", "1500ms", "800us", "0.5us", "lognormal:20ms,sigma=0.5", "quantiles:0.5=12ms,1=2s"] {
            assert_eq!(text.parse::<Latency>().unwrap().to_string(), text);
        }
        assert_eq!("500ms/10s".parse::<Stall>().unwrap().to_string(), "500ms/10s");
    }

    #[test]
    fn faults_come_with_their_cure() {
        for (faulty, problem) in [
            ("", "no latency"),
            ("20", "no latency"),
            ("-1ms", "no latency"),
            ("normal:20ms", "no latency"),
            ("lognormal:20ms", "no spread"),
            ("lognormal:20ms,p98=1s", "no spread"),
            ("lognormal:20,p99=1s", "no unit"),
            ("lognormal:20ms,p99=10ms", "below the median"),
            ("lognormal:0ms,p99=10ms", "above 0"),
            ("lognormal:1us,p99=1h", "a sigma of"),
            ("lognormal:20ms,sigma=-1", "a sigma of -1"),
            ("lognormal:20ms,sigma=x", "a sigma of NaN"),
            ("quantiles:", "not a quantile"),
            ("quantiles:0.5=12ms,0.5=13ms", "0.5 comes after 0.5"),
            ("quantiles:0.5=12ms,0.9=11ms", "11ms comes after 12ms"),
            ("quantiles:1.5=12ms", "\"1.5\" is out of range"),
            ("file:quantiles.txt", "command line only"),
        ] {
            let fault = faulty.parse::<Latency>().unwrap_err();
            assert!(fault.contains(problem) && fault.contains("; give "), "{faulty}: {fault}");
        }
        for faulty in ["", "500ms", "500ms/", "0s/1s", "1s/1s", "2s/1s", "1/10"] {
            assert!(faulty.parse::<Stall>().unwrap_err().contains("; give "), "{faulty}");
        }
    }

    #[test]
    fn a_file_is_read_and_every_fault_of_it_named() {
        let path = std::env::temp_dir().join(format!("loadtest-quantiles-{}.txt", std::process::id()));
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            Latency::from_argument(&format!("file:{}", path.display()))
        };
        let good = read("# measured on Monday\n0.5 12ms\n\n99%\t 80ms # the worst\n1 1s\n");
        assert_eq!(good, "quantiles:0.5=12ms,0.99=80ms,1=1s".parse());

        let faults = read("0.5 12ms\n0.4 13ms\n0.9\n0.95 20\n0.99 1ms\n").unwrap_err();
        let place = path.display();
        let expected = [
            format!("{place}:2: 0.4 comes after 0.5; give"),
            format!("{place}:3: not a quantile and a latency; give"),
            format!("{place}:4: \"20\" has no unit; give"),
            format!("{place}:5: 1ms comes after 12ms; give"),
        ];
        assert_eq!(faults.lines().count(), expected.len(), "{faults}");
        for (fault, expected) in faults.lines().zip(expected) {
            assert!(fault.starts_with(&expected), "{fault}");
        }
        assert!(read("# nothing\n").unwrap_err().contains("no quantile in it"));
        fs::remove_file(&path).unwrap();
        assert!(Latency::from_argument(&format!("file:{place}")).unwrap_err().contains("give a readable file"));
    }

    #[test]
    fn a_stall_is_over_at_its_end_and_comes_again() {
        let stall: Stall = "500ms/10s".parse().unwrap();
        for (since, left) in [(0, 500), (499, 1), (500, 0), (9_999, 0), (10_000, 500), (20_100, 400)] {
            assert_eq!(stall.left(ms(since)), ms(left), "{since}");
        }
    }
}
