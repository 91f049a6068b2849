//! Finds samples in Prometheus text (exposition format 0.0.4) as it comes in. As strict as Prometheus is: what is wrong
//! anywhere is no page of metrics, or only a part of one. No I/O.

use std::{borrow::Cow, collections::BTreeMap};

use config::{Combine, SignalLimit};
use time::OffsetDateTime;

use super::Scraped;

/// What to look for, and what to make of several.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) metric: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) combine: Combine,
    pub(super) limit: SignalLimit,
}

/// Reads a page in pieces of any size.
#[derive(Debug)]
pub(super) struct Page {
    wanted: Vec<(Wanted, Found)>,
    /// The beginning of a line whose end has not come yet.
    begun: Vec<u8>,
    lines: usize,
    bytes: usize,
}

const LONGEST_LINE: usize = 64 * 1024;
const LONGEST_PAGE: usize = 32 * 1024 * 1024;
/// Of one sample. Each is compared with all before it.
const MOST_LABELS: usize = 128;

#[derive(Debug, Default)]
struct Found {
    /// Samples of this name, whatever their labels.
    named: usize,
    value: Option<f64>,
    /// The oldest of those that samples bear, in milliseconds.
    timestamp: Option<i64>,
}

impl Page {
    pub(super) fn new(wanted: Vec<Wanted>) -> Self {
        let wanted = wanted.into_iter().map(|wanted| (wanted, Found::default())).collect();
        Self { wanted, begun: Vec::new(), lines: 0, bytes: 0 }
    }

    /// Errors: this is no page of metrics, or one that is too long.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        self.bytes += bytes.len();
        if self.bytes > LONGEST_PAGE {
            return Err(format!("is longer than {} MiB", LONGEST_PAGE >> 20));
        }
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            if self.begun.is_empty() {
                self.line(line)?;
            } else {
                let mut whole = std::mem::take(&mut self.begun);
                whole.extend_from_slice(line);
                self.line(&whole)?;
            }
            bytes = rest;
        }
        self.begun.extend_from_slice(bytes);
        self.check_length(self.begun.len())
    }

    /// What was found of each, in the order they were asked for. Errors: the page has no end.
    pub(super) fn finish(self) -> Result<Vec<Scraped>, String> {
        // Of a number that is cut off, what is left is a number.
        if !self.begun.is_empty() {
            return Err(format!("line {}: is cut off", self.lines + 1));
        }
        Ok(self.wanted.into_iter().map(|(wanted, found)| found.outcome(&wanted)).collect())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        self.check_length(line.len())?;
        self.lines += 1;
        let sample = match std::str::from_utf8(line) {
            Ok(line) => Sample::parse(line),
            Err(_) => Err("is not utf-8"),
        };
        let Some(sample) = sample.map_err(|problem| format!("line {}: {problem}", self.lines))? else { return Ok(()) };
        for (wanted, found) in self.wanted.iter_mut().filter(|(wanted, _)| wanted.metric == sample.name) {
            found.named += 1;
            let has = |(name, value): (&String, &String)| {
                sample.labels.iter().any(|(label, has)| label == name && has == value)
            };
            if wanted.labels.iter().all(has) {
                found.add(wanted, &sample);
            }
        }
        Ok(())
    }

    fn check_length(&self, line: usize) -> Result<(), String> {
        if line > LONGEST_LINE {
            return Err(format!("line {}: is longer than {} KiB", self.lines + 1, LONGEST_LINE >> 10));
        }
        Ok(())
    }
}

impl Found {
    fn add(&mut self, wanted: &Wanted, sample: &Sample<'_>) {
        self.value = Some(match self.value {
            None => sample.value,
            // Neither the larger nor the smaller of the two: it must not get lost.
            Some(before) if before.is_nan() || sample.value.is_nan() => f64::NAN,
            Some(before) if wanted.combine == Combine::Sum => before + sample.value,
            Some(before) => wanted.limit.worse(before, sample.value),
        });
        self.timestamp = match (self.timestamp, sample.timestamp) {
            (Some(before), Some(other)) => Some(before.min(other)),
            (before, other) => before.or(other),
        };
    }

    fn outcome(&self, wanted: &Wanted) -> Scraped {
        let Some(value) = self.value else {
            return Err(match self.named {
                0 => format!("has no {}", wanted.metric),
                named => format!("has {named} of {}, but none with these labels", wanted.metric),
            });
        };
        if !value.is_finite() {
            return Err(format!("{} is {value}, which is not a finite number", wanted.metric));
        }
        let at = self.timestamp.map(|millis| OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000));
        let at = at.transpose().map_err(|_| format!("{} has a time that does not exist", wanted.metric))?;
        Ok((value, at))
    }
}

/// One sample of a page.
#[derive(Debug, PartialEq)]
struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, Cow<'a, str>)>,
    value: f64,
    /// Milliseconds since 1970.
    timestamp: Option<i64>,
}

impl<'a> Sample<'a> {
    /// `None`: a comment, or nothing at all.
    fn parse(line: &'a str) -> Result<Option<Self>, &'static str> {
        let line = line.trim_matches(BLANK);
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        let (name, rest) = split_name(line, |byte| byte == b'_' || byte == b':').ok_or("does not begin with a name")?;
        let rest = rest.trim_start_matches(BLANK);
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => parse_labels(rest)?,
            None => (Vec::new(), rest),
        };
        let mut words = rest.split(BLANK).filter(|word| !word.is_empty());
        let value = words.next().ok_or("has no value")?.parse().map_err(|_| "has a value that is no number")?;
        let timestamp = words.next().map(str::parse).transpose().map_err(|_| "has a time that is no number")?;
        if words.next().is_some() {
            return Err("goes on behind its end");
        }
        Ok(Some(Self { name, labels, value, timestamp }))
    }
}

/// A carriage return is forgiven at the end of a line, as it is nowhere else.
const BLANK: [char; 3] = [' ', '\t', '\r'];

type Labels<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// Behind the opening brace: the labels, and what follows the closing one.
fn parse_labels(mut rest: &str) -> Result<(Labels<'_>, &str), &'static str> {
    let mut labels: Labels<'_> = Vec::new();
    loop {
        rest = rest.trim_start_matches(BLANK);
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, after) = split_name(rest, |byte| byte == b'_').ok_or("has a label without a name")?;
        if labels.len() >= MOST_LABELS {
            return Err("has more than 128 labels");
        }
        if labels.iter().any(|(label, _)| *label == name) {
            return Err("has a label twice");
        }
        let after = after.trim_start_matches(BLANK).strip_prefix('=').ok_or("has a label without a value")?;
        let after = after.trim_start_matches(BLANK).strip_prefix('"').ok_or("has a label whose value has no quotes")?;
        let (value, after) = parse_quoted(after)?;
        labels.push((name, value));
        let after = after.trim_start_matches(BLANK);
        rest = match after.strip_prefix(',') {
            Some(rest) => rest,
            None if after.starts_with('}') => after,
            None => return Err("has no comma between two labels"),
        };
    }
}

/// Behind the opening quote: the value, and what follows the closing one.
fn parse_quoted(text: &str) -> Result<(Cow<'_, str>, &str), &'static str> {
    let end = text.find(['"', '\\']).ok_or("has a quote without an end")?;
    if text.as_bytes()[end] == b'"' {
        return Ok((Cow::Borrowed(&text[..end]), &text[end + 1..]));
    }
    let mut value = text[..end].to_owned();
    let mut chars = text[end..].chars();
    while let Some(character) = chars.next() {
        match character {
            '"' => return Ok((Cow::Owned(value), chars.as_str())),
            '\\' => value.push(match chars.next() {
                Some('n') => '\n',
                Some(character @ ('\\' | '"')) => character,
                _ => return Err("has an escape that does not exist"),
            }),
            other => value.push(other),
        }
    }
    Err("has a quote without an end")
}

/// Letters, digits and what `besides` allows, no digit first.
fn split_name(text: &str, besides: impl Fn(u8) -> bool) -> Option<(&str, &str)> {
    let end = text.bytes().position(|byte| !byte.is_ascii_alphanumeric() && !besides(byte)).unwrap_or(text.len());
    let name = &text[..end];
    let valid = name.bytes().next().is_some_and(|first| !first.is_ascii_digit());
    valid.then_some((name, &text[end..]))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use config::Beyond;

    use super::*;

    fn wanted(metric: &str, labels: &[(&str, &str)], combine: Combine) -> Wanted {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let limit = SignalLimit { bad: Beyond::Above, value: 10.0, lasting: Duration::ZERO };
        Wanted { metric: metric.to_owned(), labels, combine, limit }
    }

    /// One sample of a page, read in pieces of this size.
    fn scan(page: &[u8], wanted: Vec<Wanted>, piece: usize) -> Result<Vec<Scraped>, String> {
        let mut scan = Page::new(wanted);
        page.chunks(piece).try_for_each(|piece| scan.read(piece))?;
        scan.finish()
    }

    const PAGE: &str = "# HELP consumer_lag How far behind\n\
        # TYPE consumer_lag gauge\n\
        consumer_lag{group=\"python\",partition=\"0\"} 5\n\
        consumer_lag{group=\"go\",partition=\"0\"} 7\n\
        consumer_lag { group = \"go\" , partition = \"1\", } 40 1769854502123\n\
        \n\
        process_resident_memory_bytes 1.5e+08\r\n\
        odd:name{path=\"C:\\\\x \\\"y\\\"\\n{\",b=\"é\"}\t-Inf\n\
        gone NaN\n";

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_769_854_502_123_000_000).unwrap();
        for (metric, labels, combine, expected) in [
            ("process_resident_memory_bytes", &[][..], Combine::Worst, Ok((1.5e8, None))),
            ("consumer_lag", &[("group", "python")], Combine::Worst, Ok((5.0, None))),
            ("consumer_lag", &[("group", "go")], Combine::Worst, Ok((40.0, Some(at)))),
            ("consumer_lag", &[("group", "go")], Combine::Sum, Ok((47.0, Some(at)))),
            ("consumer_lag", &[("partition", "1"), ("group", "go")], Combine::Sum, Ok((40.0, Some(at)))),
            ("consumer_lag", &[], Combine::Sum, Ok((52.0, Some(at)))),
            ("consumer_lag", &[("group", "g")], Combine::Sum, Err("has 3 of consumer_lag, but none with these labels")),
            ("consumer", &[], Combine::Sum, Err("has no consumer")),
            (
                "odd:name",
                &[("path", "C:\\x \"y\"\n{"), ("b", "é")],
                Combine::Sum,
                Err("odd:name is -inf, which is not a finite number"),
            ),
            ("gone", &[], Combine::Worst, Err("gone is NaN, which is not a finite number")),
        ] {
            let wanted = || vec![wanted(metric, labels, combine)];
            for piece in [1, 7, 10_000] {
                let found = scan(PAGE.as_bytes(), wanted(), piece).unwrap().remove(0);
                assert_eq!(found, expected.map_err(str::to_owned), "{metric} {labels:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_sample_that_is_no_number_is_never_lost_among_others() {
        let page = b"a{x=\"1\"} 1\na{x=\"2\"} NaN\na{x=\"3\"} 2\n";
        for combine in [Combine::Worst, Combine::Sum] {
            assert!(scan(page, vec![wanted("a", &[], combine)], 99).unwrap()[0].is_err());
        }
    }

    #[test]
    fn what_is_no_page_of_metrics_is_refused() {
        for (page, expected) in [
            ("<html>", "line 1: is cut off"),
            ("<html>\n", "line 1: does not begin with a name"),
            ("a 1\nb 2", "line 2: is cut off"),
            ("a\n", "line 1: has no value"),
            ("a 1 2 3\n", "line 1: goes on behind its end"),
            ("a one\n", "line 1: has a value that is no number"),
            ("a 1 1.5\n", "line 1: has a time that is no number"),
            ("1a 1\n", "line 1: does not begin with a name"),
            ("a{b} 1\n", "line 1: has a label without a value"),
            ("a{b=c} 1\n", "line 1: has a label whose value has no quotes"),
            ("a{b=\"c} 1\n", "line 1: has a quote without an end"),
            ("a{b=\"\\\" 1\n", "line 1: has a quote without an end"),
            ("a{b=\"\\c\"} 1\n", "line 1: has an escape that does not exist"),
            ("a{b=\"c\"d=\"e\"} 1\n", "line 1: has no comma between two labels"),
            ("a{b=\"c\",b=\"c\"} 1\n", "line 1: has a label twice"),
            ("a{,} 1\n", "line 1: has a label without a name"),
            ("a{b=\"c\" 1\n", "line 1: has no comma between two labels"),
            ("# fine\na 1\n\u{e9} 1\n", "line 3: does not begin with a name"),
        ] {
            assert_eq!(
                scan(page.as_bytes(), vec![wanted("a", &[], Combine::Sum)], 3),
                Err(expected.to_owned()),
                "{page}"
            );
        }
        assert_eq!(scan(b"a \xff\n", Vec::new(), 9), Err("line 1: is not utf-8".to_owned()));
        let line = vec![b'a'; LONGEST_LINE + 1];
        assert_eq!(scan(&line, Vec::new(), 1000), Err("line 1: is longer than 64 KiB".to_owned()));
        let labels = |count: usize| (0..count).map(|n| format!("l{n}=\"\",")).collect::<String>();
        let page = format!("a{{{}}} 1\na{{{}}} 1\n", labels(MOST_LABELS), labels(MOST_LABELS + 1));
        assert_eq!(scan(page.as_bytes(), Vec::new(), 99), Err("line 2: has more than 128 labels".to_owned()));
        let page = "# x\n".repeat(LONGEST_PAGE / 4 + 1);
        assert_eq!(scan(page.as_bytes(), Vec::new(), 65_536), Err("is longer than 32 MiB".to_owned()));
    }

    /// Marsaglia's xorshift64.
    struct Xorshift(u64);

    impl Xorshift {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % bound as u64) as usize
        }
    }

    #[test]
    fn no_page_makes_it_panic_and_pieces_make_no_difference() {
        let (mut good, mut bad) = (0, 0);
        for seed in 1..=5_000_u64 {
            let mut random = Xorshift(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut page = PAGE.as_bytes().to_vec();
            for _ in 0..random.below(4) {
                let at = random.below(page.len().max(1));
                match random.below(4) {
                    _ if page.is_empty() => break,
                    0 => page[at] = random.below(256) as u8,
                    1 => page.insert(at, b"\"\\{},=\n# 1aN"[random.below(12)]),
                    2 => drop(page.remove(at)),
                    _ => page.truncate(at + 1),
                }
            }
            let wanted =
                || vec![wanted("consumer_lag", &[("group", "go")], Combine::Sum), wanted("gone", &[], Combine::Sum)];
            let whole = scan(&page, wanted(), page.len().max(1));
            let piece = 1 + random.below(40);
            assert_eq!(scan(&page, wanted(), piece), whole, "seed {seed}, pieces of {piece}");
            if whole.is_ok() { good += 1 } else { bad += 1 }
        }
        assert!(good > 500 && bad > 500, "{good} read, {bad} refused: the mutations test one side only");
    }

    #[test]
    fn whatever_a_label_holds_is_read_back() {
        for seed in 1..=2_000_u64 {
            let mut random = Xorshift(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let value: String = (0..random.below(12))
                .map(|_| ['"', '\\', '\n', '{', '}', ',', '=', ' ', 'é', 'n', '#'][random.below(11)])
                .collect();
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let number = random.below(1_000_000) as f64 / 64.0;
            let page = format!("a{{b=\"{escaped}\"}} {number}\na{{b=\"other{escaped}\"}} 1e9\n");
            let found = scan(page.as_bytes(), vec![wanted("a", &[("b", &value)], Combine::Sum)], 5);
            assert_eq!(found, Ok(vec![Ok((number, None))]), "seed {seed}: {page}");
        }
    }
}
