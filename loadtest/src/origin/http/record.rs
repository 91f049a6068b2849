//! `/record/N` and `/noisy`: JSON whose meaning depends on N alone, and whose bytes differ from answer to answer, so that
//! whatever compares answers can be tested.
//!
//! | field | noise | means something |
//! |---|---|---|
//! | `served_at` | the time, in whole seconds or 3, 6 or 9 decimals, in UTC as `Z` or `+00:00` | no |
//! | `request_id` | random | no |
//! | `state` | spelled as [`Spelling`] says, the same for all answers of an origin | yes |
//! | `weight_kg` | off by a rounding error in its last place, or not | yes |
//! | `tags` | in any order | yes, as a set |
//! | every object | its keys in any order | |
//! | `id`, `customer`, `items`, `currency`, `total_cents` | none | yes |
//!
//! A record that [mismatches](super::super::Behaviour::mismatch_share) differs in one of these ways, always the same for
//! the same N: a `quantity` is one more, `currency` is missing, `total_cents` is text, or the last of `items` is missing.

use std::time::{SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::super::Spelling;

const STATES: [[&str; 2]; 4] = [["on", "hold"], ["in", "transit"], ["at", "customs"], ["handed", "over"]];
const TAGS: [&str; 5] = ["fragile", "gift", "express", "insured", "bulky"];

/// Record `n` as JSON. `mismatch`: one field that means something is not as it should be.
pub(super) fn json(n: u64, mismatch: bool, spelling: Spelling) -> String {
    let mut record = meaning(n, spelling);
    if mismatch {
        alter(&mut record, n);
    }
    add_noise(&mut record);
    serde_json::to_string(&Shuffled(&record)).expect("a value with text keys is JSON")
}

/// What all answers for `n` have in common, but for the spelling.
fn meaning(n: u64, spelling: Spelling) -> Value {
    let mut rng = Rng::with_seed(n);
    let items: Vec<_> = (0..rng.u32(1..=4))
        .map(|_| (rng.u32(1000..10_000), rng.u64(1..=9), rng.u64(99..10_000)))
        .map(|(sku, quantity, cents)| json!({"sku": format!("A-{sku}"), "quantity": quantity, "price_cents": cents}))
        .collect();
    let total: u64 =
        items.iter().filter_map(|item| Some(item["quantity"].as_u64()? * item["price_cents"].as_u64()?)).sum();
    let tags = rng.choose_multiple(TAGS, 3);
    json!({
        "id": n,
        "state": spell(STATES[rng.usize(..STATES.len())], spelling),
        "customer": {"name": format!("user-{}", rng.u32(..1000)), "since": rng.u32(1990..2025), "vip": rng.bool()},
        "items": items,
        "currency": if rng.bool() { "EUR" } else { "SEK" },
        "total_cents": total,
        "weight_kg": f64::from(rng.u32(1..5000)) / 100.0,
        "tags": tags,
    })
}

fn alter(record: &mut Value, n: u64) {
    let items = record["items"].as_array_mut().expect("a record has items");
    match n % 4 {
        0 => items[0]["quantity"] = json!(items[0]["quantity"].as_u64().map(|quantity| quantity + 1)),
        1 => drop(items.pop()),
        2 => record["total_cents"] = json!(record["total_cents"].to_string()),
        _ => drop(record.as_object_mut().expect("a record is an object").remove("currency")),
    }
}

fn add_noise(record: &mut Value) {
    let weight = record["weight_kg"].as_f64().expect("a record has a weight");
    record["weight_kg"] = json!(if fastrand::bool() { weight } else { weight.next_up() });
    fastrand::shuffle(record["tags"].as_array_mut().expect("a record has tags"));
    record["request_id"] = json!(format!("{:032x}", fastrand::u128(..)));

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unit = [1, 1_000, 1_000_000, 1_000_000_000][fastrand::usize(..4)];
    let nanos = now.as_nanos() / unit * unit;
    let now = OffsetDateTime::from_unix_timestamp_nanos(nanos as i128).ok().and_then(|now| now.format(&Rfc3339).ok());
    let now = now.expect("this century can be written");
    record["served_at"] = json!(if fastrand::bool() { now } else { now.replace('Z', "+00:00") });
}

fn spell(words: [&str; 2], spelling: Spelling) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    match spelling {
        Spelling::Snake => words.join("_"),
        Spelling::Upper => words.join("_").to_uppercase(),
        Spelling::Pascal => words.map(capital).concat(),
    }
}

/// Written with the keys of every object in any order.
struct Shuffled<'a>(&'a Value);

impl Serialize for Shuffled<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().map(|(name, value)| (name, Shuffled(value))).collect();
                fastrand::shuffle(&mut fields);
                serializer.collect_map(fields)
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(Shuffled)),
            plain => plain.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The record without its noise.
    fn read(n: u64, mismatch: bool, spelling: Spelling) -> Value {
        let mut record: Value = serde_json::from_str(&json(n, mismatch, spelling)).unwrap();
        let fields = record.as_object_mut().unwrap();
        assert!(fields.remove("served_at").is_some() && fields.remove("request_id").is_some());
        fields["tags"].as_array_mut().unwrap().sort_by_key(ToString::to_string);
        fields["state"] = json!(fields["state"].as_str().unwrap().replace('_', "").to_lowercase());
        fields["weight_kg"] = json!(format!("{:.6}", fields["weight_kg"].as_f64().unwrap()));
        record
    }

    #[test]
    fn answers_differ_in_their_noise_alone() {
        let texts: BTreeSet<_> = (0..100).map(|_| json(7, false, Spelling::Snake)).collect();
        assert_eq!(texts.len(), 100);
        for n in (0..100).chain([u64::MAX]) {
            let expected = read(n, false, Spelling::Snake);
            for spelling in [Spelling::Snake, Spelling::Upper, Spelling::Pascal] {
                assert_eq!(read(n, false, spelling), expected);
            }
        }
        let records: BTreeSet<_> = (0..100).map(|n| read(n, false, Spelling::Snake).to_string()).collect();
        assert_eq!(records.len(), 100, "each number has its own");
    }

    #[test]
    fn every_kind_of_noise_is_made() {
        let texts: Vec<_> = (0..200).map(|_| json(7, false, Spelling::Snake)).collect();
        let all = |what: fn(&Value) -> String| -> BTreeSet<String> {
            texts.iter().map(|text| what(&serde_json::from_str(text).unwrap())).collect()
        };
        assert_eq!(all(|record| record["weight_kg"].to_string()).len(), 2);
        assert_eq!(all(|record| record["tags"].to_string()).len(), 6, "all orders of three");
        let lengths = all(|record| record["served_at"].as_str().unwrap().len().to_string());
        assert!(lengths.len() >= 8, "precisions and zones: {lengths:?}");
        let first: BTreeSet<_> = texts.iter().map(|text| text.split('"').nth(1).unwrap()).collect();
        assert_eq!(first.len(), 10, "any key comes first: {first:?}");
    }

    #[test]
    fn a_mismatch_is_one_field_that_means_something_and_always_the_same() {
        let changed: BTreeSet<_> = (0..40)
            .map(|n| {
                let (right, wrong) = (read(n, false, Spelling::Snake), read(n, true, Spelling::Upper));
                assert_eq!(wrong, read(n, true, Spelling::Snake));
                let changed: Vec<_> =
                    right.as_object().unwrap().iter().filter(|(name, value)| wrong.get(name) != Some(value)).collect();
                assert_eq!(changed.len(), 1, "{n}: {changed:?}");
                (changed[0].0.clone(), n % 4)
            })
            .collect();
        let expected = [("currency", 3), ("items", 0), ("items", 1), ("total_cents", 2)];
        assert_eq!(changed, expected.map(|(field, kind)| (field.to_owned(), kind)).into());
    }

    #[test]
    fn states_are_spelled_as_asked() {
        for (spelling, expected) in
            [(Spelling::Snake, "in_transit"), (Spelling::Upper, "IN_TRANSIT"), (Spelling::Pascal, "InTransit")]
        {
            assert_eq!(spell(["in", "transit"], spelling), expected);
        }
    }
}
