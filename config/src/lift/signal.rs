//! `[[route.signal]]`.

use std::{collections::BTreeMap, time::Duration};

use super::route::word;
use crate::{
    Combine, Scrape, Signal, SignalLimit, Silent, Url,
    fault::quoted,
    reader::{Table, Value},
};

/// A silence of some missed pushes.
const EXPECT_EVERY: Duration = Duration::from_secs(120);

/// `taken`: the names of the route's signals above this one.
pub(super) fn lift(table: &mut Table<'_>, taken: &mut Vec<String>) -> Option<Signal> {
    let name = table.required("name", "write name = \"lag\"").and_then(|value| {
        let name = word(&value)?;
        if taken.contains(&name) {
            value.fault(format!("{} is also the name of another signal here", quoted(&name)), "write another name");
            return None;
        }
        taken.push(name.clone());
        Some(name)
    });
    let limit = table
        .required("limit", "write limit = \"> 1000 for 5m\"")
        .and_then(|value| value.accept(SignalLimit::parse(value.string()?)));
    let silences = [("hold", Silent::Hold), ("ignore", Silent::Ignore), ("breach", Silent::Breach)];
    let silent = table.choice("silent", &silences, Silent::Hold);
    let scraped = table.has("scrape");
    let example = "scrape = { url = \"http://127.0.0.1:9100/metrics\", metric = \"consumer_lag\" }";
    let scrape = table.table("scrape", example, scrape).flatten();
    let every = scrape.as_ref().map_or(Duration::ZERO, |scrape| scrape.every);
    let expect_every = table.duration("expect_every", EXPECT_EVERY.max(3 * every));
    if expect_every <= every {
        table.fault(
            "expect_every",
            format!("is not longer than scrape.every, {every:?}, so that every wait would be silence"),
            "write a longer one, or leave it out",
        );
    }
    if scraped && scrape.is_none() {
        return None;
    }
    Some(Signal { name: name?, limit: limit?, silent, expect_every, scrape })
}

fn scrape(table: &mut Table<'_>) -> Option<Scrape> {
    let url = table
        .required("url", "write url = \"http://127.0.0.1:9100/metrics\"")
        .and_then(|value| value.accept(Url::parse(value.string()?)));
    let metric = table
        .required("metric", "write metric = \"consumer_lag\", the name of a sample there")
        .and_then(|value| metric(&value));
    let labels = match table.take("labels") {
        Some(value) => labels(&value),
        None => Some(BTreeMap::new()),
    };
    let combine = table.choice("combine", &[("worst", Combine::Worst), ("sum", Combine::Sum)], Combine::Worst);
    let every = table.duration("every", Duration::from_secs(15));
    if !(SHORTEST..=LONGEST).contains(&every) {
        table.fault("every", format!("{every:?} is out of range"), "write a duration from \"1s\" to \"1h\"");
    }
    Some(Scrape { url: url?, metric: metric?, labels: labels?, combine, every })
}

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);

fn metric(value: &Value<'_>) -> Option<String> {
    let text = value.string()?;
    if !is_name(text, b"_:") {
        value.fault(
            format!("{} is not the name of a metric", quoted(text)),
            "write letters, digits, '_' and ':', and no digit first; labels have a table of their own",
        );
        return None;
    }
    Some(text.to_owned())
}

fn labels(value: &Value<'_>) -> Option<BTreeMap<String, String>> {
    let labels = value.entries("labels = { group = \"go\" }")?.into_iter().map(|(name, value)| {
        if !is_name(name, b"_") {
            value.fault("is not the name of a label", "write letters, digits and '_', and no digit first");
            return None;
        }
        Some((name.to_owned(), value.string()?.to_owned()))
    });
    // Every one is looked at before the first faulty one makes the table useless.
    let labels: Vec<_> = labels.collect();
    labels.into_iter().collect()
}

fn is_name(text: &str, besides: &[u8]) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || besides.contains(&first))
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || besides.contains(&byte))
}
