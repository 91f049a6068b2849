//! One signal, value by value: is it beyond its limit, for how long, or silent? No I/O, no clock.

use std::time::Duration;

use config::{Beyond, Signal, SignalLimit, Silent};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{Moment, span};
use crate::{SignalReading, Verdict};

/// What has been heard of a signal.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    limit: SignalLimit,
    silent: Silent,
    expect_every: Duration,
    /// What was measured before is no evidence.
    began: Instant,
    /// Silence is counted from here, or from the last value.
    silent_since: Instant,
    last: Option<Heard>,
    /// Since when every value was bad, with no silence between them.
    bad_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) value: f64,
    /// When it was measured.
    pub(super) at: Instant,
    /// The same, for people.
    pub(super) utc: OffsetDateTime,
}

impl Watch {
    pub(super) fn new(signal: &Signal, now: Instant) -> Self {
        Self {
            limit: signal.limit,
            silent: signal.silent,
            expect_every: signal.expect_every,
            began: now,
            silent_since: now,
            last: None,
            bad_since: None,
        }
    }

    /// Other settings. A new limit begins anew with the last value.
    pub(super) fn follow(&mut self, signal: &Signal) {
        if self.limit != signal.limit {
            self.bad_since = self.last.filter(|last| signal.limit.is_bad(last.value)).map(|last| last.at);
        }
        (self.limit, self.silent, self.expect_every) = (signal.limit, signal.silent, signal.expect_every);
    }

    /// The last value that was heard earlier. It counts as the last one, but how long it was bad is not known.
    pub(super) fn restore(&mut self, value: f64, utc: OffsetDateTime, now: Moment) {
        // Without an instant it is older than this machine, and silent for all that we know.
        let Some(at) = now.instant_of(utc) else { return };
        self.began = at;
        // Nobody listened meanwhile.
        self.silent_since = now.instant;
        self.last = Some(Heard { value, at, utc: utc.min(now.utc) });
        self.bad_since = self.limit.is_bad(value).then_some(now.instant);
    }

    /// A value, finite, and when it was measured. Errors: the last one was measured later than this, then.
    pub(super) fn take(&mut self, value: f64, at: Instant, utc: OffsetDateTime) -> Result<(), OffsetDateTime> {
        let before = self.last;
        if let Some(last) = before.filter(|last| at < last.at) {
            return Err(last.utc);
        }
        let unbroken = before.is_some_and(|last| at.duration_since(last.at) <= self.expect_every);
        self.bad_since = match self.bad_since.filter(|_| unbroken) {
            _ if !self.limit.is_bad(value) => None,
            Some(since) => Some(since),
            None => Some(at.max(self.began)),
        };
        self.last = Some(Heard { value, at, utc });
        Ok(())
    }

    /// What was measured up to now is no evidence any more.
    pub(super) fn forget(&mut self, now: Instant) {
        (self.began, self.silent_since) = (now, now);
        self.bad_since = None;
    }

    /// Silence is counted from now on.
    pub(super) fn listen(&mut self, now: Instant) {
        self.silent_since = now;
    }

    pub(super) fn last(&self) -> Option<&Heard> {
        self.last.as_ref()
    }

    /// The last value, unless it was forgotten.
    pub(super) fn evidence(&self) -> Option<&Heard> {
        self.last().filter(|last| last.at >= self.began)
    }

    /// What it says now. `name`: of the signal.
    pub(super) fn reading(&self, name: &str, now: Instant) -> SignalReading {
        let heard = self.evidence();
        let since = heard.map_or(self.silent_since, |heard| heard.at.max(self.silent_since));
        let quiet = now.saturating_duration_since(since);
        let is_fresh = |heard: &Heard| now.saturating_duration_since(heard.at) <= self.expect_every;
        let (verdict, evidence, reason) = match heard {
            Some(heard) if is_fresh(heard) => self.judge(name, heard),
            _ if quiet > self.expect_every => self.silence(name, quiet),
            _ => self.missing(name, heard),
        };
        let value = heard.map(|heard| heard.value);
        SignalReading { name: name.to_owned(), verdict, reason, evidence, value, limit: self.limit.value }
    }

    /// Not for so long that it is silence.
    fn missing(&self, name: &str, heard: Option<&Heard>) -> (Verdict, f64, String) {
        let (what, cure) = match (heard, self.last) {
            // It is shown all the same, so that something has to be said about it.
            (None, Some(_)) => ("has no value since green began anew", "; it takes a new one"),
            _ => ("has no value yet", ""),
        };
        match self.silent {
            Silent::Ignore => (Verdict::Pass, 0.0, format!("{name} {what}, which is ignored")),
            _ => (Verdict::Unknown, 0.0, format!("{name} {what}{cure}")),
        }
    }

    fn silence(&self, name: &str, quiet: Duration) -> (Verdict, f64, String) {
        let (verdict, evidence, consequence) = match self.silent {
            Silent::Hold => (Verdict::Unknown, 0.0, "so nobody knows"),
            Silent::Ignore => (Verdict::Pass, 0.0, "which is ignored"),
            Silent::Breach => (Verdict::Breach, 1.0, "which counts as a breach"),
        };
        let (quiet, expected) = (span(quiet), span(self.expect_every));
        (verdict, evidence, format!("{name} has been silent for {quiet}, longer than {expected}, {consequence}"))
    }

    fn judge(&self, name: &str, heard: &Heard) -> (Verdict, f64, String) {
        let value = figure(heard.value);
        let side = match self.limit.bad {
            Beyond::Above => "above",
            Beyond::Below => "below",
        };
        let limit = format!("{side} {}", figure(self.limit.value));
        let lasting = self.limit.lasting;
        let Some(since) = self.bad_since.filter(|_| self.limit.is_bad(heard.value)) else {
            return (Verdict::Pass, 0.0, format!("{name} is {value}, not {limit}"));
        };
        if lasting.is_zero() {
            return (Verdict::Breach, 1.0, format!("{name} is {value}, {limit}"));
        }
        // Only as long as values show: it may have been well again since the last one.
        let shown = heard.at.saturating_duration_since(since);
        let evidence = shown.div_duration_f64(lasting);
        if shown >= lasting {
            (Verdict::Breach, evidence, format!("{name} is {value}, {limit} for {}", span(shown)))
        } else {
            let (shown, lasting) = (span(shown), span(lasting));
            let reason = format!("{name} is {value}, {limit} for {shown} so far; a breach after {lasting}");
            (Verdict::Unknown, evidence, reason)
        }
    }
}

/// A number for people: no more than six decimals, no hundred digits.
fn figure(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e15).contains(&size) {
        return format!("{value:e}");
    }
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(limit: SignalLimit, silent: Silent, now: Instant) -> Watch {
        let expect_every = Duration::from_secs(120);
        Watch::new(&Signal { name: "lag".to_owned(), limit, silent, expect_every, scrape: None }, now)
    }

    fn above(value: f64, seconds: u64) -> SignalLimit {
        SignalLimit { bad: Beyond::Above, value, lasting: Duration::from_secs(seconds) }
    }

    const EPOCH: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    /// Plays values at seconds, and compares verdicts at seconds.
    #[track_caller]
    fn check(limit: SignalLimit, silent: Silent, values: &[(u64, f64)], expected: &[(u64, Verdict)]) {
        let start = Instant::now();
        let mut watch = watch(limit, silent, start);
        let mut values = values.iter().peekable();
        for (second, verdict) in expected {
            while let Some((at_second, value)) = values.next_if(|(at_second, _)| at_second <= second) {
                watch.take(*value, start + at(*at_second), EPOCH).unwrap();
            }
            let reading = watch.reading("lag", start + at(*second));
            assert_eq!(reading.verdict, *verdict, "at {second} s: {}", reading.reason);
            assert_eq!(reading.evidence >= 1.0, *verdict == Verdict::Breach, "at {second} s: {}", reading.evidence);
        }
    }

    #[test]
    fn a_single_bad_value_is_enough_without_a_duration() {
        use Verdict::{Breach, Pass, Unknown};
        check(
            above(10.0, 0),
            Silent::Hold,
            &[(5, 10.0), (9, 11.0), (12, 3.0)],
            &[(1, Unknown), (5, Pass), (8, Pass), (9, Breach), (11, Breach), (12, Pass)],
        );
    }

    #[test]
    fn bad_values_must_last_without_a_break() {
        use Verdict::{Breach, Pass, Unknown};
        let values: Vec<(u64, f64)> = (0..=60).map(|n| (n * 10, if n == 20 { 9.0 } else { 11.0 })).collect();
        // The one good value at 200 s begins everything anew.
        check(
            above(10.0, 300),
            Silent::Hold,
            &values,
            &[(0, Unknown), (199, Unknown), (200, Pass), (210, Unknown), (509, Unknown), (510, Breach), (600, Breach)],
        );
        // Two values with silence between them show nothing of the time between.
        check(
            above(10.0, 60),
            Silent::Hold,
            &[(0, 11.0), (121, 11.0), (181, 11.0)],
            &[(120, Unknown), (121, Unknown), (180, Unknown), (181, Breach)],
        );
        // And time alone shows nothing either: only values do.
        check(above(10.0, 60), Silent::Hold, &[(0, 11.0), (59, 11.0)], &[(119, Unknown)]);
    }

    #[test]
    fn silence_means_what_the_signal_says() {
        use Verdict::{Breach, Pass, Unknown};
        for (silent, without, with) in [
            (Silent::Hold, [Unknown, Unknown], Unknown),
            (Silent::Ignore, [Pass, Pass], Pass),
            (Silent::Breach, [Unknown, Breach], Breach),
        ] {
            check(above(10.0, 0), silent, &[], &[(0, without[0]), (120, without[0]), (121, without[1])]);
            check(above(10.0, 0), silent, &[(60, 1.0)], &[(60, Pass), (180, Pass), (181, with)]);
            // A bad value that is too old to count does not trip by itself.
            check(above(10.0, 0), silent, &[(60, 11.0)], &[(180, Breach), (181, with)]);
        }
    }

    #[test]
    fn what_was_forgotten_does_not_count() {
        let start = Instant::now();
        let mut watch = watch(above(10.0, 0), Silent::Breach, start);
        watch.take(11.0, start, EPOCH).unwrap();
        watch.forget(start + at(5));
        let forgotten = watch.reading("lag", start + at(6));
        assert_eq!(forgotten.verdict, Verdict::Unknown);
        assert_eq!(forgotten.reason, "lag has no value since green began anew; it takes a new one");
        // Measured before, heard after.
        watch.take(11.0, start + at(4), EPOCH).unwrap();
        assert_eq!(watch.reading("lag", start + at(7)).verdict, Verdict::Unknown);
        assert_eq!(watch.reading("lag", start + at(126)).verdict, Verdict::Breach);
        watch.take(11.0, start + at(127), EPOCH).unwrap();
        assert_eq!(watch.reading("lag", start + at(127)).verdict, Verdict::Breach);
    }

    #[test]
    fn a_reload_keeps_the_evidence_unless_the_limit_changes() {
        let start = Instant::now();
        let limit = above(10.0, 60);
        let mut watch = watch(limit, Silent::Hold, start);
        for second in [0, 30, 60] {
            watch.take(11.0, start + at(second), EPOCH).unwrap();
        }
        let expect_every = at(90);
        let mut signal = Signal { name: "lag".to_owned(), limit, silent: Silent::Ignore, expect_every, scrape: None };
        watch.follow(&signal);
        assert_eq!(watch.reading("lag", start + at(61)).verdict, Verdict::Breach);
        signal.limit = above(10.5, 60);
        watch.follow(&signal);
        assert_eq!(watch.reading("lag", start + at(61)).verdict, Verdict::Unknown);
        signal.limit = above(11.5, 60);
        watch.follow(&signal);
        assert_eq!(watch.reading("lag", start + at(61)).verdict, Verdict::Pass);
    }

    #[test]
    fn the_last_value_survives_but_not_how_long_it_was_bad() {
        let now = Moment { instant: Instant::now() + at(1000), utc: EPOCH + at(1000) };
        let restored = |limit, age: u64| {
            let mut watch = watch(limit, Silent::Hold, now.instant);
            watch.restore(11.0, now.utc - at(age), now);
            watch.reading("lag", now.instant)
        };
        assert_eq!(restored(above(20.0, 0), 60).verdict, Verdict::Pass);
        assert_eq!(restored(above(10.0, 0), 60).verdict, Verdict::Breach);
        assert_eq!(restored(above(10.0, 30), 60).verdict, Verdict::Unknown);
        assert_eq!(restored(above(20.0, 0), 121).verdict, Verdict::Unknown);
        assert_eq!(restored(above(20.0, 0), 121).reason, "lag has no value yet");
        // The clock was set back meanwhile: it is as old as can be told.
        let mut watch = watch(above(20.0, 0), Silent::Hold, now.instant);
        watch.restore(11.0, now.utc + at(3600), now);
        assert_eq!(watch.reading("lag", now.instant + at(120)).verdict, Verdict::Pass);
        assert_eq!(watch.reading("lag", now.instant + at(121)).verdict, Verdict::Unknown);
        watch.take(12.0, now.instant + at(122), now.utc).unwrap();
        assert_eq!(watch.reading("lag", now.instant + at(122)).value, Some(12.0));
    }

    #[test]
    fn silence_while_nobody_listened_is_no_breach() {
        use Verdict::{Breach, Pass, Unknown};
        let now = Moment { instant: Instant::now() + at(1000), utc: EPOCH + at(1000) };
        // How old the value was, and what is said how long after.
        for (age, expected) in [
            (121, [(0, Unknown), (1, Unknown), (120, Unknown), (121, Breach)]),
            (60, [(0, Pass), (60, Pass), (61, Unknown), (121, Breach)]),
        ] {
            let mut watch = watch(above(20.0, 0), Silent::Breach, now.instant);
            watch.restore(11.0, now.utc - at(age), now);
            for (second, verdict) in expected {
                let reading = watch.reading("lag", now.instant + at(second));
                assert_eq!(reading.verdict, verdict, "{age} s old, after {second} s: {}", reading.reason);
            }
            // And it is silence again from the next value on.
            watch.take(11.0, now.instant + at(200), now.utc + at(200)).unwrap();
            assert_eq!(watch.reading("lag", now.instant + at(320)).verdict, Pass);
            assert_eq!(watch.reading("lag", now.instant + at(321)).verdict, Breach);
        }
    }

    #[test]
    fn values_come_in_order() {
        let start = Instant::now();
        let mut watch = watch(above(10.0, 0), Silent::Hold, start);
        watch.take(11.0, start + at(5), EPOCH + at(5)).unwrap();
        assert_eq!(watch.take(1.0, start + at(4), EPOCH + at(4)), Err(EPOCH + at(5)));
        watch.take(2.0, start + at(5), EPOCH + at(5)).unwrap();
        assert_eq!(watch.reading("lag", start + at(5)).value, Some(2.0));
    }

    #[test]
    fn reasons_are_sentences() {
        let start = Instant::now();
        let mut lag = watch(above(1000.0, 300), Silent::Hold, start);
        let mut say = |second: u64, value: f64| {
            lag.take(value, start + at(second), EPOCH).unwrap();
            lag.reading("lag", start + at(second)).reason
        };
        assert_eq!(say(0, 17.25), "lag is 17.25, not above 1000");
        assert_eq!(say(60, 1532.0), "lag is 1532, above 1000 for 0 s so far; a breach after 5 min");
        assert_eq!(say(150, 1532.0), "lag is 1532, above 1000 for 1 min 30 s so far; a breach after 5 min");
        assert_eq!(say(240, 1e21), "lag is 1e21, above 1000 for 3 min so far; a breach after 5 min");
        assert_eq!(say(360, 0.1 + 1000.2), "lag is 1000.3, above 1000 for 5 min");
        let silent = lag.reading("lag", start + at(7560)).reason;
        assert_eq!(silent, "lag has been silent for 2 h, longer than 2 min, so nobody knows");
    }
}
