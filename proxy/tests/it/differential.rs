//! The path's HTTP/1.1 against another parser, hyper's: the same bytes to both, whole and split, and every difference
//! explained by a rule that names its section of an RFC.
//!
//! A rule changes hyper's verdict into what its section asks of an intermediary. What is equal then is explained; what
//! is not is a bug of the path, or a rule that is missing. A rule that changes nothing for any stream of the table is one
//! too many.

mod answer_rules;
mod answer_streams;
mod answers;
mod request_rules;
mod request_streams;
mod requests;
mod script;
mod sent;

use std::{
    fmt::Debug,
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, Ordering},
};

use fastrand::Rng;
use futures::{StreamExt, stream};
use http::HeaderMap;

use crate::{
    harness::{Crossfade, seeded},
    routes::Route,
};
use request_streams::{Stream, streams};
use sent::Sent;

/// Connections at once: enough for the pauses between parts to cost nothing.
const AT_ONCE: usize = 400;
/// Streams up to this length are split everywhere, longer ones at places drawn by lot.
const SPLIT_EVERYWHERE: usize = 200;

/// Streams that are made by changing a good one.
const CHANGED: usize = 1_000;

/// What one side made of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict<T> {
    /// What was understood, whole messages only.
    messages: Vec<T>,
    /// The status codes that were answered.
    answers: Vec<u16>,
    /// Whether the connection could be used for another request.
    stays: bool,
    /// Whether the connection ended in order.
    whole: bool,
    /// The last answer's text: says why something was refused. No part of a comparison with another parser.
    text: String,
}

/// Why two verdicts differ.
struct Rule<T> {
    /// The section, and what it has the path do.
    why: &'static str,
    /// What was sent, the path's verdict, and the other one, to be changed.
    apply: fn(Sent<'_>, &Verdict<T>, &mut Verdict<T>),
}

/// Applies all rules to `theirs`, and notes in `used` which had something to say. Errors: what is left unexplained.
fn explain<T: Clone + Debug + PartialEq>(
    rules: &[Rule<T>],
    used: &mut [bool],
    bytes: &[u8],
    ours: &Verdict<T>,
    theirs: &Verdict<T>,
) -> Result<(), String> {
    let comparable = |verdict: &Verdict<T>| Verdict { text: String::new(), ..verdict.clone() };
    let mut explained = theirs.clone();
    for (rule, used) in rules.iter().zip(used) {
        let before = comparable(&explained);
        (rule.apply)(Sent { bytes }, ours, &mut explained);
        *used |= comparable(&explained) != before;
    }
    if comparable(&explained) == comparable(ours) {
        return Ok(());
    }
    let bytes = bytes[..bytes.len().min(600)].escape_ascii();
    Err(format!("  sent  {bytes}\n  path  {ours:.900?}\n  hyper {theirs:.900?}\n  ruled {explained:.900?}"))
}

fn idle<T>(rules: &[Rule<T>], used: &[bool]) -> Vec<String> {
    rules.iter().zip(used).filter(|(_, used)| !**used).map(|(rule, _)| rule.why.to_owned()).collect()
}

fn pairs(fields: &HeaderMap, apart: &[&str]) -> Vec<(String, String)> {
    let mut pairs: Vec<_> = fields
        .iter()
        .filter(|(name, _)| !apart.contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), value.as_bytes().iter().copied().map(char::from).collect()))
        .collect();
    // Stable: the order within a name is the sender's.
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    pairs
}

/// Places to split a stream at.
fn splits(length: usize, random: &mut Rng) -> Vec<usize> {
    if length <= SPLIT_EVERYWHERE {
        return (1..length).collect();
    }
    (0..20).map(|_| random.usize(1..length)).collect()
}

/// Fails with all of `faults`, or the first ones.
fn none_of(what: &str, faults: &[String]) {
    let shown = faults.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(faults.is_empty(), "{} {what}:\n{shown}", faults.len());
}

/// The path between clients and an origin that keeps a book.
struct Requests {
    origin: requests::Origin,
    route: Route,
    _crossfade: Crossfade,
    clients: AtomicU32,
}

impl Requests {
    async fn start() -> Self {
        let origin = requests::Origin::start().await;
        let route = Route::http(origin.address(), origin.address()).unchecked().unguarded();
        let crossfade = Crossfade::start(&route.to_string()).await;
        Self { origin, route, _crossfade: crossfade, clients: AtomicU32::new(0x7f01_0000) }
    }

    async fn verdict(&self, parts: &[&[u8]]) -> Verdict<requests::Understood> {
        let client = Ipv4Addr::from(self.clients.fetch_add(1, Ordering::Relaxed));
        self.origin.behind(self.route.listen, client, parts).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_difference_in_reading_a_request_is_explained() {
    let path = Requests::start().await;
    let streams = streams();
    assert!(streams.len() > 300);
    let verdicts = stream::iter(&streams).map(async |Stream { name, bytes }| {
        let bytes = [&bytes[..], requests::LAST].concat();
        let (ours, theirs) = (path.verdict(&[&bytes]).await, requests::alone(&[&bytes]).await);
        (name, bytes, ours, theirs)
    });
    let verdicts: Vec<_> = verdicts.buffered(AT_ONCE).collect().await;
    let mut used = vec![false; request_rules::RULES.len()];
    let mut faults = Vec::new();
    for (name, bytes, ours, theirs) in &verdicts {
        if let Err(fault) = explain(request_rules::RULES, &mut used, bytes, ours, theirs) {
            faults.push(format!("{name}:\n{fault}"));
        }
    }
    none_of("differences that no rule explains", &faults);
    none_of("rules that explain nothing", &idle(request_rules::RULES, &used));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_read_alike_wherever_they_are_split() {
    let path = Requests::start().await;
    let mut random = seeded();
    let mut cases = Vec::new();
    let streams = streams();
    for Stream { name, bytes } in &streams {
        let length = bytes.len();
        let bytes = [&bytes[..], requests::LAST].concat();
        let (ours, theirs) = (path.verdict(&[&bytes]).await, requests::alone(&[&bytes]).await);
        cases.extend(
            splits(length, &mut random).into_iter().map(|at| (name, bytes.clone(), at, ours.clone(), theirs.clone())),
        );
    }
    assert!(cases.len() > 15_000, "only {} splits", cases.len());
    let faults = stream::iter(cases).map(async |(name, bytes, at, ours, theirs)| {
        let parts = [&bytes[..at], &bytes[at..]];
        let (ours_split, theirs_split) = (path.verdict(&parts).await, requests::alone(&parts).await);
        let fault = |who, split: Verdict<_>, whole| {
            (split != whole).then(|| format!("{who}, {name} split at {at}:\n  {split:.900?}\n  {whole:.900?}"))
        };
        [fault("the path", ours_split, ours), fault("hyper", theirs_split, theirs)]
    });
    let faults: Vec<_> = faults.buffer_unordered(AT_ONCE).collect().await;
    none_of("splits make a difference", &faults.into_iter().flatten().flatten().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_changed_by_lot_are_read_alike_or_the_difference_is_explained() {
    let path = Requests::start().await;
    let mut random = seeded();
    let seeds = request_streams::well_formed();
    let streams: Vec<_> = (0..CHANGED)
        .map(|_| {
            let (name, bytes) = &seeds[random.usize(..seeds.len())];
            let bytes = mutated(bytes, &mut random);
            let at = random.usize(..=bytes.len());
            (name, [&bytes[..], requests::LAST].concat(), at)
        })
        .collect();
    let verdicts = stream::iter(streams).map(async |(name, bytes, at)| {
        let (ours, theirs) = (path.verdict(&[&bytes]).await, requests::alone(&[&bytes]).await);
        let split = path.verdict(&[&bytes[..at], &bytes[at..]]).await;
        let explained =
            explain(request_rules::RULES, &mut vec![false; request_rules::RULES.len()], &bytes, &ours, &theirs);
        let fault = explained.err().map(|fault| format!("from {name}:\n{fault}"));
        fault.or_else(|| {
            (split != ours).then(|| format!("split at {at}: {}\n  {ours:?}\n  {split:?}", bytes.escape_ascii()))
        })
    });
    let faults: Vec<_> = verdicts.buffer_unordered(AT_ONCE).collect().await;
    none_of("streams are read in two ways", &faults.into_iter().flatten().collect::<Vec<_>>());
}

/// The path between clients and an endpoint that says what it is told to say.
struct Answers {
    endpoint: answers::Endpoint,
    route: Route,
    _crossfade: Crossfade,
}

impl Answers {
    async fn start() -> Self {
        let endpoint = answers::Endpoint::start().await;
        let route = Route::http(endpoint.address(), endpoint.address()).unchecked().unguarded();
        let crossfade = Crossfade::start(&route.to_string()).await;
        Self { endpoint, route, _crossfade: crossfade }
    }

    async fn verdict(&self, method: &str, parts: &[&[u8]]) -> Verdict<answers::Understood> {
        self.endpoint.behind(self.route.listen, method, parts).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_difference_in_reading_an_answer_is_explained() {
    let path = Answers::start().await;
    let table = answer_streams::answers();
    assert!(table.len() > 150);
    let verdicts = stream::iter(&table).map(async |answer| {
        let parts = [&answer.bytes[..]];
        let (ours, theirs) = (path.verdict(answer.method, &parts).await, answers::alone(answer.method, &parts).await);
        (answer, ours, theirs)
    });
    let verdicts: Vec<_> = verdicts.buffered(AT_ONCE).collect().await;
    let mut used = vec![false; answer_rules::RULES.len()];
    let mut faults = Vec::new();
    for (answer, ours, theirs) in &verdicts {
        if let Err(fault) = explain(answer_rules::RULES, &mut used, &answer.bytes, ours, theirs) {
            faults.push(format!("{}:\n{fault}", answer.name));
        }
    }
    none_of("differences that no rule explains", &faults);
    none_of("rules that explain nothing", &idle(answer_rules::RULES, &used));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_read_alike_wherever_they_are_split() {
    let path = Answers::start().await;
    let mut random = seeded();
    let mut cases = Vec::new();
    let table = answer_streams::answers();
    for answer in &table {
        let parts = [&answer.bytes[..]];
        let (ours, theirs) = (path.verdict(answer.method, &parts).await, answers::alone(answer.method, &parts).await);
        let places = splits(answer.divisible(), &mut random);
        cases.extend(places.into_iter().map(|at| (answer, at, ours.clone(), theirs.clone())));
    }
    assert!(cases.len() > 6_000, "only {} splits", cases.len());
    let faults = stream::iter(cases).map(async |(answer, at, ours, theirs)| {
        let parts = [&answer.bytes[..at], &answer.bytes[at..]];
        let split = [path.verdict(answer.method, &parts).await, answers::alone(answer.method, &parts).await];
        let fault = |(who, split, whole): (&str, &Verdict<_>, &Verdict<_>)| {
            (split != whole).then(|| format!("{who}, {} split at {at}:\n  {split:.900?}\n  {whole:.900?}", answer.name))
        };
        [("the path", &split[0], &ours), ("hyper", &split[1], &theirs)].map(fault)
    });
    let faults: Vec<_> = faults.buffer_unordered(AT_ONCE).collect().await;
    none_of("splits make a difference", &faults.into_iter().flatten().flatten().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_changed_by_lot_are_read_alike_or_the_difference_is_explained() {
    let path = Answers::start().await;
    let mut random = seeded();
    let table = answer_streams::answers();
    let seeds = &table[..answer_streams::well_formed().len()];
    let changed = |_| {
        let seed = &seeds[random.usize(..seeds.len())];
        (&seed.name, mutated(&seed.bytes, &mut random))
    };
    let streams: Vec<_> = (0..CHANGED).map(changed).collect();
    let faults = stream::iter(streams).map(async |(name, bytes)| {
        let (ours, theirs) = (path.verdict("GET", &[&bytes]).await, answers::alone("GET", &[&bytes]).await);
        let explained =
            explain(answer_rules::RULES, &mut vec![false; answer_rules::RULES.len()], &bytes, &ours, &theirs);
        explained.err().map(|fault| format!("from {name}:\n{fault}"))
    });
    let faults: Vec<_> = faults.buffer_unordered(AT_ONCE).collect().await;
    none_of("answers are read in two ways", &faults.into_iter().flatten().collect::<Vec<_>>());
}

/// A stream with one to three changes of the kind that parsers disagree about.
fn mutated(bytes: &[u8], random: &mut Rng) -> Vec<u8> {
    const PIECES: [&[u8]; 32] = [
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"\0",
        b"\x7f",
        b"\xff",
        b":",
        b",",
        b";",
        b"\"",
        b"#",
        b"?",
        b"/",
        b"*",
        b"@",
        b"0",
        b"5",
        b"f",
        b"-",
        b"+",
        b"_",
        b"\r\n ",
        b"\r\n\r\n",
        b"content-length: 3\r\n",
        b"transfer-encoding: chunked\r\n",
        b"host: b\r\n",
        b"connection: close\r\n",
        b"connection: x-a\r\n",
        b"0\r\n\r\n",
        b"HTTP/1.0",
    ];
    let mut bytes = bytes.to_vec();
    for _ in 0..random.usize(1..=3) {
        let at = random.usize(..bytes.len());
        let piece = PIECES[random.usize(..PIECES.len())];
        // Whole lines go where lines begin, mostly: elsewhere they are noise.
        let at = match bytes[at..].iter().position(|byte| *byte == b'\n') {
            Some(end) if piece.len() > 4 && random.u8(..) > 30 => at + end + 1,
            _ => at,
        };
        match random.u8(..10) {
            0..=5 => drop(bytes.splice(at..at, piece.iter().copied())),
            6 if at < bytes.len() => bytes[at] = random.u8(..),
            7 if at < bytes.len() => bytes[at] = piece[0],
            8 if bytes.len() > 1 => {
                let end = (at + random.usize(1..4)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let end = (at + random.usize(1..30)).min(bytes.len());
                let again = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, again));
            }
        }
        if bytes.is_empty() {
            bytes.push(b'\r');
        }
    }
    bytes
}
