//! When splits were changed.

use std::path::Path;

use super::{
    Fault,
    lines::{Line, Lines},
};

/// The first moment that can be meant, in Unix microseconds: what is less is seconds or milliseconds.
const EARLIEST: u64 = 100_000_000_000_000;

/// Stretches of time over which a change took effect, in order and apart from each other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changes(Vec<(u64, u64)>);

impl Changes {
    /// Reads `START [END]` lines, in Unix microseconds; `#` begins a comment. Errors: as said.
    pub(super) fn read(path: &Path) -> Result<Self, Fault> {
        let mut lines = Lines::open(path)?;
        let mut changes = Vec::new();
        loop {
            let change = match lines.next()? {
                None => break,
                Some(Line::Whole(line)) => change(line),
                Some(Line::Cut) => Err("its end is missing; end the line, so that it is known to be whole".to_owned()),
            };
            changes.extend(change.map_err(|problem| lines.fault(problem))?);
        }
        Ok(Self::new(changes))
    }

    fn new(mut changes: Vec<(u64, u64)>) -> Self {
        changes.sort_unstable();
        let mut apart: Vec<(u64, u64)> = Vec::with_capacity(changes.len());
        for (start, end) in changes {
            match apart.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => apart.push((start, end)),
            }
        }
        Self(apart)
    }

    /// Whether some change was taking effect at some time from `from` to `to`.
    pub(super) fn between(&self, from: u64, to: u64) -> bool {
        let begun = self.0.partition_point(|(start, _)| *start <= to);
        begun > 0 && self.0[begun - 1].1 >= from
    }
}

fn change(line: &str) -> Result<Option<(u64, u64)>, String> {
    const CURE: &str = "give START or START END in Unix microseconds";
    let line = line.split('#').next().unwrap_or_default();
    let mut times = line.split_ascii_whitespace().map(|time| match time.parse::<u64>() {
        Ok(time) if time >= EARLIEST => Ok(time),
        Ok(_) => Err(format!("{time} is too early, maybe in seconds or milliseconds; {CURE}")),
        Err(_) => Err(format!("{time:?} is no time; {CURE}")),
    });
    let (start, end, more) = (times.next().transpose()?, times.next().transpose()?, times.next());
    match (start, end.or(start), more) {
        (None, ..) => Ok(None),
        (Some(start), Some(end), None) if start <= end => Ok(Some((start, end))),
        (.., None) => Err(format!("ends before it starts; {CURE}")),
        _ => Err(format!("more than two columns; {CURE}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_lasts_from_its_start_to_its_end() {
        let changes = Changes::new(vec![(500, 510), (100, 120), (110, 150), (115, 130)]);
        assert_eq!(changes, Changes(vec![(100, 150), (500, 510)]));
        for (from, to, expected) in [
            (0, 99, false),
            (0, 100, true),
            (120, 121, true),
            (150, 160, true),
            (151, 499, false),
            (151, 500, true),
            (90, 900, true),
            (511, 900, false),
        ] {
            assert_eq!(changes.between(from, to), expected, "{from} to {to}");
        }
        assert!(!Changes::new(Vec::new()).between(0, u64::MAX));
    }

    #[test]
    fn lines_are_read_or_refused() {
        let at = 1_763_723_531_000_000;
        assert_eq!(change(""), Ok(None));
        assert_eq!(change("# 10 % green"), Ok(None));
        assert_eq!(change("1763723531000000"), Ok(Some((at, at))));
        assert_eq!(change("1763723531000000\t1763723531000900 # 10 %"), Ok(Some((at, at + 900))));
        for (faulty, problem) in [
            ("1763723531", "in seconds"),
            ("1763723531000", "milliseconds"),
            ("now", "no time"),
            ("1763723531000900 1763723531000000", "before it starts"),
            ("1763723531000000 1763723531000000 1763723531000000", "two columns"),
        ] {
            let fault = change(faulty).expect_err(faulty);
            assert!(fault.contains(problem) && fault.contains("; give START"), "{fault}");
        }
    }
}
