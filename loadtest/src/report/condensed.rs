//! The seconds of a long run, several taken together.

use super::{Latencies, Second};

/// Some seconds in a row.
#[derive(Debug)]
pub(crate) struct Stretch<'a> {
    /// The first of them, since the start.
    pub(crate) at: u64,
    /// How many there are in a stretch; the last of a run may have fewer.
    pub(crate) seconds: u64,
    pub(crate) sent: u64,
    pub(crate) errors: u64,
    rows: &'a [Second],
}

impl Stretch<'_> {
    /// A count as a rate.
    pub(crate) fn a_second(&self, count: u64) -> f64 {
        let seconds = self.rows.last().map_or(1, |last| last.at - self.at + 1);
        count as f64 / seconds as f64
    }

    /// Answers of an arm, or of all.
    pub(crate) fn answers(&self, arm: Option<&str>) -> u64 {
        self.latencies(arm).map(|latencies| latencies.count).sum()
    }

    /// The greatest value of an arm, or of all, in any second: percentiles of different seconds do not add up to one of
    /// all, so the worst stands for them. `None` when nobody answered.
    pub(crate) fn worst(&self, arm: Option<&str>, of: impl Fn(&Latencies) -> u64) -> Option<u64> {
        self.latencies(arm).filter(|latencies| latencies.count > 0).map(of).max()
    }

    fn latencies(&self, arm: Option<&str>) -> impl Iterator<Item = &Latencies> {
        let all = self.rows.iter().flat_map(|second| &second.arms);
        all.filter(move |(label, _)| arm.is_none_or(|arm| arm == *label)).map(|(_, latencies)| latencies)
    }
}

/// At most `most` stretches, all of the same length but the last.
pub(crate) fn stretches<'a>(seconds: &'a [Second], most: usize) -> Vec<Stretch<'a>> {
    let (Some(first), Some(last)) = (seconds.first(), seconds.last()) else { return Vec::new() };
    let length = (last.at - first.at + 1).div_ceil(most as u64);
    let together = |one: &Second, next: &Second| (one.at - first.at) / length == (next.at - first.at) / length;
    let stretch = |rows: &'a [Second]| Stretch {
        at: first.at + (rows[0].at - first.at) / length * length,
        seconds: length,
        sent: rows.iter().map(|second| second.sent).sum(),
        errors: rows.iter().map(|second| second.errors).sum(),
        rows,
    };
    seconds.chunk_by(together).map(stretch).collect()
}

/// The labels of all arms that answered in some second, in order.
pub(crate) fn arms(seconds: &[Second]) -> Vec<&str> {
    let mut arms: Vec<_> = seconds.iter().flat_map(|second| second.arms.keys().map(String::as_str)).collect();
    arms.sort_unstable();
    arms.dedup();
    arms
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn nothing_is_lost_by_taking_seconds_together() {
        let seconds = sample::report().seconds;
        for most in [1, 7, 20, 1000] {
            let stretches = stretches(&seconds, most);
            assert!(stretches.len() <= most);
            let answers = |arm| stretches.iter().map(|stretch| stretch.answers(arm)).sum::<u64>();
            assert_eq!(answers(None), answers(Some("blue")) + answers(Some("green")));
            assert_eq!(
                stretches
                    .iter()
                    .map(|stretch| (stretch.sent, stretch.errors))
                    .fold((0, 0), |(a, b), (c, d)| (a + c, b + d)),
                seconds.iter().map(|second| (second.sent, second.errors)).fold((0, 0), |(a, b), (c, d)| (a + c, b + d)),
            );
            let worst = |arm: Option<&str>| stretches.iter().filter_map(|stretch| stretch.worst(arm, |l| l.max)).max();
            assert_eq!(worst(None), seconds.iter().flat_map(|second| second.arms.values()).map(|l| l.max).max());
            assert!(worst(Some("blue")) < worst(Some("green")));
        }
        assert!(stretches(&[], 20).is_empty());
    }

    #[test]
    fn rates_are_those_of_the_time_a_stretch_covers() {
        // Nothing happened in the seconds between.
        let second = |at| Second { at, sent: 30, ..Second::default() };
        let seconds = [second(3), second(5), second(12)];
        let rates: Vec<_> =
            stretches(&seconds, 4).iter().map(|stretch| (stretch.at, stretch.a_second(stretch.sent))).collect();
        assert_eq!(rates, [(3, 20.0), (12, 30.0)]);
    }
}
