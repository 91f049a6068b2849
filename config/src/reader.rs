//! Walks a TOML document and collects what is wrong with it instead of stopping.
//!
//! A value that cannot be read is reported and then reads as absent. That is safe because a document with a single
//! fault is never handed out.

use std::{cell::RefCell, net::SocketAddr, ops::RangeInclusive, time::Duration};

use toml::{
    Spanned,
    de::{DeArray, DeInteger, DeTable, DeValue},
};

use crate::{
    Split, address,
    fault::{Fault, Flaw, quoted},
};

/// The most entries of a list, routes among them.
const MOST_ENTRIES: usize = 1_000;

/// The text under a walk, and the faults found so far.
pub(crate) struct Document {
    /// Offset of the first byte of each line.
    lines: Vec<usize>,
    faults: RefCell<Vec<Fault>>,
}

impl Document {
    pub(crate) fn new(text: &str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { lines, faults: RefCell::default() }
    }

    /// Line and column of a byte, both counted from 1; the column counts bytes.
    pub(crate) fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|&start| start <= offset);
        (line, offset + 1 - self.lines[line - 1])
    }

    /// The top of the document, which every other table is below.
    pub(crate) fn read<'a, T>(&'a self, root: &'a DeTable<'a>, lift: impl FnOnce(&mut Table<'a>) -> T) -> T {
        Table {
            document: self,
            spot: Spot::default(),
            entries: root,
            known: Vec::new(),
            outer: Vec::new(),
            inner: Vec::new(),
        }
        .read(lift)
    }

    pub(crate) fn fault(&self, spot: &Spot, flaw: Flaw) {
        let Flaw { problem, cure } = flaw;
        self.faults.borrow_mut().push(Fault { place: spot.place.clone(), line: spot.line, problem, cure });
    }

    /// In the order of the lines; what has no line comes first.
    pub(crate) fn into_faults(self) -> Vec<Fault> {
        let mut faults = self.faults.into_inner();
        faults.sort_by_key(|fault| fault.line);
        faults
    }
}

/// Where a fault is shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spot {
    place: String,
    line: Option<usize>,
}

impl Spot {
    /// The table that the setting is in: `route[0]` for `route[0].listen`.
    pub(crate) fn owner(&self) -> &str {
        self.place.rsplit_once('.').map_or("the file", |(owner, _)| owner)
    }
}

/// A table under reading. It remembers which keys were asked for, so that the rest can be called unknown.
pub(crate) struct Table<'a> {
    document: &'a Document,
    spot: Spot,
    entries: &'a DeTable<'a>,
    known: Vec<&'static str>,
    /// Keys of the table around this one: one of them here was most likely written below the wrong header.
    outer: Vec<&'static str>,
    /// Keys of tables below this one that are written here by mistake, each with its cure.
    inner: Vec<(&'static str, &'static str)>,
}

impl<'a> Table<'a> {
    /// Runs `lift`, then reports every key it did not ask for.
    fn read<T>(mut self, lift: impl FnOnce(&mut Self) -> T) -> T {
        let lifted = lift(&mut self);
        for (key, _) in self.entries {
            let name = key.get_ref().as_ref();
            if !self.known.contains(&name) {
                let spot = self.spot_at(name, key);
                self.document.fault(&spot, Flaw::new("unknown key", self.hint(name)));
            }
        }
        lifted
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Where `key` is, or would be.
    pub(crate) fn spot(&self, key: &str) -> Spot {
        match self.entries.get_key_value(key) {
            Some((name, _)) => self.spot_at(key, name),
            None => Spot { place: self.place(key), line: self.spot.line },
        }
    }

    pub(crate) fn fault(&self, key: &str, problem: impl Into<String>, cure: impl Into<String>) {
        self.document.fault(&self.spot(key), Flaw::new(problem, cure));
    }

    pub(crate) fn take(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.known.push(key);
        let value = self.entries.get(key)?;
        Some(Value { document: self.document, spot: self.spot(key), node: value.get_ref() })
    }

    /// Like [`take`](Self::take), and a fault if it is not there.
    pub(crate) fn required(&mut self, key: &'static str, cure: &str) -> Option<Value<'a>> {
        let value = self.take(key);
        if value.is_none() {
            self.fault(key, "is missing", cure);
        }
        value
    }

    /// Reads the table `key`; `None` when it is absent or no table. `example` shows how to write one.
    pub(crate) fn table<T>(
        &mut self,
        key: &'static str,
        example: &str,
        lift: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let value = self.take(key)?;
        let DeValue::Table(entries) = value.node else {
            return value.mismatch("a table", &format!("write {example}"));
        };
        // At the top of a file a key stands before the first header, which is not where anybody would look for it.
        let outer = if self.spot.place.is_empty() { Vec::new() } else { self.known.clone() };
        let table =
            Table { document: self.document, spot: value.spot, entries, known: Vec::new(), outer, inner: Vec::new() };
        Some(table.read(lift))
    }

    pub(crate) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        self.take(key).and_then(|value| value.boolean()).unwrap_or(default)
    }

    pub(crate) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)], default: T) -> T {
        self.take(key).and_then(|value| value.choice(choices)).unwrap_or(default)
    }

    pub(crate) fn duration(&mut self, key: &'static str, default: Duration) -> Duration {
        self.take(key).and_then(|value| value.duration()).unwrap_or(default)
    }

    pub(crate) fn integer<T: TryFrom<u64>>(&mut self, key: &'static str, range: RangeInclusive<u64>, default: T) -> T {
        self.take(key).and_then(|value| value.integer(range)).unwrap_or(default)
    }

    fn spot_at<K>(&self, key: &str, span: &Spanned<K>) -> Spot {
        Spot { place: self.place(key), line: Some(self.document.position(span.span().start).0) }
    }

    fn place(&self, key: &str) -> String {
        let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        let key = if bare && key.len() <= 64 { key.to_owned() } else { quoted(key) };
        if self.spot.place.is_empty() { key } else { format!("{}.{key}", self.spot.place) }
    }

    /// `key` is known further down, and not here.
    pub(crate) fn belongs_below(&mut self, key: &'static str, cure: &'static str) {
        self.inner.push((key, cure));
    }

    fn hint(&self, key: &str) -> String {
        if let Some((_, cure)) = self.inner.iter().find(|(inner, _)| *inner == key) {
            return (*cure).to_owned();
        }
        if self.outer.contains(&key) {
            return format!("it belongs to {}: write it above {}", self.spot.owner(), self.spot.place);
        }
        if let Some(known) = closest(key, &self.known) {
            return format!("did you mean {known:?}");
        }
        format!("remove it; known here are {}", self.known.join(", "))
    }
}

/// One value under reading.
pub(crate) struct Value<'a> {
    document: &'a Document,
    spot: Spot,
    node: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    pub(crate) fn spot(&self) -> &Spot {
        &self.spot
    }

    pub(crate) fn fault(&self, problem: impl Into<String>, cure: impl Into<String>) {
        self.document.fault(&self.spot, Flaw::new(problem, cure));
    }

    /// Reports what a parser found wrong with this value.
    pub(crate) fn accept<T>(&self, parsed: Result<T, Flaw>) -> Option<T> {
        parsed.map_err(|flaw| self.document.fault(&self.spot, flaw)).ok()
    }

    pub(crate) fn string(&self) -> Option<&'a str> {
        match self.node {
            DeValue::String(text) => Some(text.as_ref()),
            _ => self.mismatch("a string", "write it in quotes"),
        }
    }

    pub(crate) fn boolean(&self) -> Option<bool> {
        match self.node {
            DeValue::Boolean(value) => Some(*value),
            _ => self.mismatch("a boolean", "write true or false, without quotes"),
        }
    }

    pub(crate) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        let found = choices.iter().find(|(name, _)| *name == text);
        if found.is_none() {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
            self.fault(format!("unknown value {}", quoted(text)), format!("write {}", either(&names)));
        }
        found.map(|(_, choice)| *choice)
    }

    pub(crate) fn integer<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Option<T> {
        match self.node {
            DeValue::Integer(number) => self.within(number, range, "a whole number"),
            _ => self.mismatch("an integer", "write a whole number, without quotes"),
        }
    }

    /// An integer or a float, and finite.
    pub(crate) fn number(&self) -> Option<f64> {
        let number = match self.node {
            DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n as f64),
            DeValue::Float(number) => number.as_str().parse().ok(),
            _ => return self.mismatch("a number", "write a number, without quotes"),
        };
        let finite = number.filter(|number| number.is_finite());
        if finite.is_none() {
            self.fault(format!("{} is not a finite number", self.found()), "write a number such as 10.5");
        }
        finite
    }

    pub(crate) fn percent(&self) -> Option<Split> {
        let percent = Split::from_percent(self.number()?);
        self.accept(percent.map_err(|error| {
            Flaw::new(error.to_string(), "write per cent from 0 to 100, in steps of 0.01, such as 12.5")
        }))
    }

    pub(crate) fn duration(&self) -> Option<Duration> {
        self.duration_in(Grain::Milliseconds, LONGEST)
    }

    /// For what people do, not for what a proxy waits for. `longest`: whole hours.
    pub(crate) fn seconds_up_to(&self, longest: Duration) -> Option<Duration> {
        self.duration_in(Grain::Seconds, longest)
    }

    fn duration_in(&self, grain: Grain, longest: Duration) -> Option<Duration> {
        match self.node {
            DeValue::String(text) => self.accept(parse_duration(text, grain, longest)),
            DeValue::Integer(number) => self.accept(Err(grain.no_unit(number.as_str(), number.as_str()))),
            _ => self.mismatch("a duration", grain.cure()),
        }
    }

    /// How long something is kept, at least an hour.
    pub(crate) fn age(&self) -> Option<Duration> {
        match self.node {
            DeValue::String(text) => self.accept(parse_age(text)),
            _ => self.mismatch("an age", AGE_CURE),
        }
    }

    /// Bytes.
    pub(crate) fn size<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Option<T> {
        match self.node {
            DeValue::Integer(number) => self.within(number, range, "a number of bytes"),
            DeValue::String(text) => {
                let bytes = self.accept(parse_size(text))?;
                self.narrow(bytes, &quoted(text), range, "a number of bytes")
            }
            _ => self.mismatch("a size", SIZE_CURE),
        }
    }

    /// An address to listen on.
    pub(crate) fn socket(&self) -> Option<SocketAddr> {
        let text = self.string()?;
        self.accept(address::socket(text))
    }

    pub(crate) fn list(&self) -> Option<Vec<Self>> {
        match self.node {
            DeValue::Array(items) => self.not_too_long(items).map(|()| self.items(items)),
            DeValue::String(text) => self.mismatch("a list", &format!("write [{}]", quoted(text))),
            _ => self.mismatch("a list", "write it in square brackets"),
        }
    }

    /// The tables below headers in double brackets; one that is no table is reported and left out.
    pub(crate) fn tables<T>(&self, header: &str, mut lift: impl FnMut(&mut Table<'a>) -> T) -> Option<Vec<T>> {
        let DeValue::Array(items) = self.node else {
            return self.mismatch("a list of tables", &format!("write the header in double brackets: [[{header}]]"));
        };
        if items.is_empty() {
            self.fault("is empty", format!("add a [[{header}]] table"));
        }
        self.not_too_long(items)?;
        let mut lifted = Vec::new();
        for item in self.items(items) {
            let DeValue::Table(entries) = item.node else {
                item.mismatch::<()>("a table", &format!("write it below a header [[{header}]]"));
                continue;
            };
            let table = Table {
                document: self.document,
                spot: item.spot,
                entries,
                known: Vec::new(),
                outer: Vec::new(),
                inner: Vec::new(),
            };
            lifted.push(table.read(&mut lift));
        }
        Some(lifted)
    }

    /// The entries of a table whose keys are not ours. `example` shows how to write one.
    pub(crate) fn entries(&self, example: &str) -> Option<Vec<(&'a str, Self)>> {
        let DeValue::Table(entries) = self.node else {
            return self.mismatch("a table", &format!("write {example}"));
        };
        let table = Table {
            document: self.document,
            spot: self.spot.clone(),
            entries,
            known: Vec::new(),
            outer: Vec::new(),
            inner: Vec::new(),
        };
        let entry = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let name: &'a str = AsRef::<str>::as_ref(key.get_ref());
            (name, Value { document: self.document, spot: table.spot_at(name, key), node: value.get_ref() })
        };
        Some(entries.iter().map(entry).collect())
    }

    /// Entries of a list are compared with each other, so a list has an end.
    fn not_too_long(&self, items: &DeArray<'_>) -> Option<()> {
        if items.len() > MOST_ENTRIES {
            self.fault(format!("has {} entries", items.len()), format!("write at most {MOST_ENTRIES}"));
            return None;
        }
        Some(())
    }

    fn items(&self, items: &'a DeArray<'a>) -> Vec<Self> {
        let place = &self.spot.place;
        let item = |(index, item): (usize, &'a Spanned<DeValue<'a>>)| {
            let line = Some(self.document.position(item.span().start).0);
            Value {
                document: self.document,
                spot: Spot { place: format!("{place}[{index}]"), line },
                node: item.get_ref(),
            }
        };
        items.iter().enumerate().map(item).collect()
    }

    fn within<T: TryFrom<u64>>(&self, number: &DeInteger<'_>, range: RangeInclusive<u64>, what: &str) -> Option<T> {
        let written = shortened(&number.to_string());
        // What is below 0 is below every range, what exceeds u64 above.
        let value = match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(value) => value,
            Err(_) if number.as_str().starts_with('-') => return self.outside(&written, range, what),
            Err(_) => u64::MAX,
        };
        self.narrow(value, &written, range, what)
    }

    fn narrow<T: TryFrom<u64>>(&self, value: u64, written: &str, range: RangeInclusive<u64>, what: &str) -> Option<T> {
        match T::try_from(value) {
            Ok(narrowed) if range.contains(&value) => Some(narrowed),
            _ => self.outside(written, range, what),
        }
    }

    fn outside<T>(&self, written: &str, range: RangeInclusive<u64>, what: &str) -> Option<T> {
        let (least, most) = range.into_inner();
        self.fault(format!("{written} is out of range"), format!("write {what} from {least} to {most}"));
        None
    }

    fn mismatch<T>(&self, expected: &str, cure: &str) -> Option<T> {
        self.fault(format!("expected {expected}, found {}", self.found()), cure);
        None
    }

    fn found(&self) -> String {
        match self.node {
            DeValue::String(text) => format!("the string {}", quoted(text)),
            DeValue::Integer(number) => format!("the integer {}", shortened(&number.to_string())),
            DeValue::Float(number) => format!("the float {}", shortened(number.as_str())),
            DeValue::Boolean(value) => format!("the boolean {value}"),
            DeValue::Datetime(_) => "a date".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        }
    }
}

/// How finely a duration may be written.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Grain {
    Milliseconds,
    /// Of what is collected second by second.
    Seconds,
}

impl Grain {
    fn cure(self) -> &'static str {
        match self {
            Self::Milliseconds => "write a whole number and a unit: \"250ms\", \"10s\", \"5m\" or \"1h\"",
            Self::Seconds => "write a whole number and a unit: \"10s\", \"5m\" or \"1h\"",
        }
    }

    fn least(self) -> &'static str {
        match self {
            Self::Milliseconds => "1ms",
            Self::Seconds => "1s",
        }
    }

    /// `written`: as somebody wrote it, `digits` among it.
    fn no_unit(self, written: &str, digits: &str) -> Flaw {
        let (written, digits) = (shortened(written), shortened(digits));
        let other = match self {
            Self::Milliseconds => "ms",
            Self::Seconds => "m",
        };
        Flaw::new(format!("{written} has no unit"), format!("write \"{digits}s\" or \"{digits}{other}\""))
    }
}

/// Longer waits are mistakes: a proxy that holds something for more than a day has forgotten it.
pub(crate) const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// `longest`: whole hours.
pub(crate) fn parse_duration(text: &str, grain: Grain, longest: Duration) -> Result<Duration, Flaw> {
    let no_duration = || Flaw::new(format!("{} is not a duration", quoted(text)), grain.cure());
    let (digits, unit) = number_and_unit(text);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 3600 * 1000,
        "" if !digits.is_empty() => return Err(grain.no_unit(&quoted(text), digits)),
        _ => return Err(no_duration()),
    };
    if digits.is_empty() {
        return Err(no_duration());
    }
    // All digits, so that the only way to fail is to be too large.
    let millis = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(millis));
    match millis.map(Duration::from_millis) {
        Some(Duration::ZERO) => {
            let cure = format!("write at least {:?}", grain.least());
            Err(Flaw::new(format!("{} is no time at all", quoted(text)), cure))
        }
        Some(duration) if grain == Grain::Seconds && duration.subsec_nanos() > 0 => Err(Flaw::new(
            format!("{duration:?} is not a whole number of seconds"),
            "write whole seconds, such as \"90s\"",
        )),
        Some(duration) if duration <= longest => Ok(duration),
        _ => {
            let hours = longest.as_secs() / 3600;
            let longest = if hours > 24 { format!("{} days", hours / 24) } else { "a day".to_owned() };
            Err(Flaw::new(format!("{} is longer than {longest}", quoted(text)), format!("write at most \"{hours}h\"")))
        }
    }
}

const AGE_CURE: &str = "write a whole number of hours or days, at least an hour: \"12h\" or \"30d\"";

/// Ten years: more digits are a mistake.
const OLDEST: u64 = 3650 * 24;

fn parse_age(text: &str) -> Result<Duration, Flaw> {
    let (digits, unit) = number_and_unit(text);
    let hours = match unit {
        "h" => 1,
        "d" => 24,
        _ => return Err(Flaw::new(format!("{} is not an age", quoted(text)), AGE_CURE)),
    };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(hours)) {
        Some(0) => Err(Flaw::new(format!("{} is no time at all", quoted(text)), AGE_CURE)),
        Some(hours) if hours <= OLDEST => Ok(Duration::from_secs(hours * 3600)),
        _ if digits.is_empty() => Err(Flaw::new(format!("{} is not an age", quoted(text)), AGE_CURE)),
        _ => Err(Flaw::new(format!("{} is longer than ten years", quoted(text)), "write at most \"3650d\"")),
    }
}

const SIZE_CURE: &str = "write bytes, such as 65536, or a whole number and a unit: \"64KiB\" or \"1MiB\"";

fn parse_size(text: &str) -> Result<u64, Flaw> {
    let (digits, unit) = number_and_unit(text);
    let unit = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(Flaw::new(format!("{} is not a size", quoted(text)), SIZE_CURE)),
    };
    if digits.is_empty() {
        return Err(Flaw::new(format!("{} is not a size", quoted(text)), SIZE_CURE));
    }
    // Too many digits saturate, so that the range of the setting refuses them.
    Ok(digits.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(unit))
}

fn number_and_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Nobody needs the hundredth digit of a number to find it.
fn shortened(number: &str) -> String {
    if number.chars().nth(24).is_none() {
        return number.to_owned();
    }
    number.chars().take(24).chain(['…']).collect()
}

/// `a`, `a or b`, `a, b or c`.
fn either(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [only] => only.clone(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
    }
}

/// The known key that a typing mistake or two away from `key`.
fn closest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    // Two edits turn any short word into any other.
    let most = if key.len() <= 4 { 1 } else { 2 };
    let near = known.iter().map(|name| (distance(key, name), *name)).filter(|(distance, _)| *distance <= most);
    near.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// Letters inserted, left out, changed, or swapped with their neighbour. Words of very different lengths are far apart
/// without counting.
fn distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let (a, b) = (a.as_bytes(), b.as_bytes());
    // What it takes to get from the first `i` letters of one to the first `j` of the other.
    let mut rows: Vec<Vec<usize>> = (0..=a.len()).map(|i| (i..=i + b.len()).collect()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j - 1] + changed).min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}
