//! From a request to the fields of a JSON object, every fault of it at once.

use std::{fmt, time::Duration};

use axum::{
    body::Body,
    extract::{Query, Request},
};
use config::Split;
use http::{HeaderMap, StatusCode, Uri, header};
use http_body_util::BodyExt;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Fault, Problem};

/// The fields of an object, or the parameters of a query, and what is wrong with them so far.
#[derive(Debug, Default)]
pub(super) struct Fields {
    fields: Vec<(String, Value)>,
    faults: Vec<Fault>,
}

const LONGEST: usize = 64 * 1024;
const DEADLINE: Duration = Duration::from_secs(10);
/// What is read of a body that is too long, so that a client that sends first and reads then gets its answer.
const LONGEST_DRAINED: usize = 4 * 1024 * 1024;
const LONGEST_TEXT: usize = 500;
/// Members of an object. Every one that is not known is reported, and an answer should not dwarf its question.
const MOST: usize = 64;

impl Fields {
    /// Reads the body of a request.
    pub(super) async fn read(request: Request) -> Result<Self, Box<Problem>> {
        let (head, body) = request.into_parts();
        check_content_type(&head.headers)?;
        let announced = head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let waits = head.headers.contains_key(header::EXPECT);
        if waits && announced.is_some_and(|length: u64| length > LONGEST as u64) {
            return Err(too_long());
        }
        match tokio::time::timeout(DEADLINE, collect(body)).await {
            Ok(bytes) => Self::parse(&bytes?),
            Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body took longer than 10 s")
                .cure("send it at once")
                .header(header::CONNECTION, "close")),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, Box<Problem>> {
        let malformed =
            |detail: String| Problem::new(StatusCode::BAD_REQUEST, "malformed", detail).cure("send one JSON object");
        if bytes.is_empty() {
            return Err(malformed("the body is empty".to_owned()));
        }
        // First any JSON, then an object: "not JSON" and "not an object" are different faults.
        if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
            return Err(malformed(format!("the body is not JSON: {error}")));
        }
        let Pairs(fields) = match serde_json::from_slice(bytes) {
            Ok(pairs) => pairs,
            Err(error) if error.is_data() => {
                let fault = Fault {
                    field: "body".to_owned(),
                    problem: "is not an object".to_owned(),
                    cure: "send one JSON object".to_owned(),
                };
                return Err(Problem::unprocessable(vec![fault]));
            }
            Err(error) => return Err(malformed(format!("the body is not JSON: {error}"))),
        };
        Ok(Self::of(fields))
    }

    /// Reads a query string.
    pub(super) fn query(uri: &Uri) -> Result<Self, Box<Problem>> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| {
            Problem::new(StatusCode::BAD_REQUEST, "malformed", error.body_text()).cure("send name=value pairs")
        })?;
        Ok(Self::of(pairs.into_iter().map(|(name, value)| (name, Value::String(value))).collect()))
    }

    fn of(fields: Vec<(String, Value)>) -> Self {
        let mut this = Self::default();
        if fields.len() > MOST {
            this.fault("body", format!("has {} members", fields.len()), "send only the fields that are needed");
            return this;
        }
        for (name, value) in fields {
            if this.fields.iter().any(|(before, _)| *before == name) {
                this.fault(&name, "is there twice", "give it once");
            } else {
                this.fields.push((name, value));
            }
        }
        this
    }

    pub(super) fn fault(&mut self, field: &str, problem: impl Into<String>, cure: impl Into<String>) {
        let problem = problem.into();
        self.faults.push(Fault { field: field.to_owned(), problem, cure: cure.into() });
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(field, _)| field == name)
    }

    /// As it was sent.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.fields.iter().position(|(field, _)| field == name)?;
        Some(self.fields.swap_remove(at).1)
    }

    /// A text of one line that is not empty.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let cure = "give it a text of one line, at most 500 characters";
        match self.take(name)? {
            Value::String(text) if text.trim().is_empty() => self.fault(name, "is empty", cure),
            Value::String(text) if text.chars().count() > LONGEST_TEXT => self.fault(name, "is too long", cure),
            Value::String(text) if text.chars().any(char::is_control) => {
                self.fault(name, "has control characters", cure);
            }
            Value::String(text) => return Some(text),
            other => self.fault(name, format!("is {}, not a text", kind(&other)), cure),
        }
        None
    }

    /// What one line has room for of a text, for whoever is in a hurry. `None`: nothing.
    pub(super) fn line(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => {
                let text = text.replace(char::is_control, " ");
                let line: String = text.trim().chars().take(LONGEST_TEXT).collect();
                (!line.is_empty()).then_some(line)
            }
            Value::Null => None,
            other => {
                self.fault(name, format!("is {}, not a text", kind(&other)), "give it a text, or leave it out");
                None
            }
        }
    }

    pub(super) fn percentage(&mut self, name: &str) -> Option<Split> {
        let cure = "give it a number from 0 to 100 in steps of 0.01";
        let value = self.take(name)?;
        let Some(percent) = value.as_f64() else {
            self.fault(name, format!("is {}, not a number", kind(&value)), cure);
            return None;
        };
        Split::from_percent(percent).map_err(|problem| self.fault(name, problem.to_string(), cure)).ok()
    }

    pub(super) fn number(&mut self, name: &str) -> Option<f64> {
        let value = self.take(name)?;
        let number = value.as_f64().filter(|number| number.is_finite());
        if number.is_none() {
            self.fault(name, format!("is {}, not a finite number", kind(&value)), "give it a number, without quotes");
        }
        number
    }

    /// A time as RFC 3339 has it.
    pub(super) fn time(&mut self, name: &str) -> Option<OffsetDateTime> {
        let cure = "give it a time such as \"2026-01-31T10:15:02Z\"";
        match self.take(name)? {
            Value::String(text) => {
                let time = OffsetDateTime::parse(&text, &Rfc3339);
                time.map_err(|_| self.fault(name, "is not a time of RFC 3339", cure)).ok()
            }
            other => {
                self.fault(name, format!("is {}, not a time of RFC 3339", kind(&other)), cure);
                None
            }
        }
    }

    /// A whole number from 1 to `most`, of a query.
    pub(super) fn count(&mut self, name: &str, most: usize) -> Option<usize> {
        let value = self.take(name)?;
        let count = value.as_str().and_then(|text| text.parse().ok()).filter(|count| (1..=most).contains(count));
        if count.is_none() {
            self.fault(name, "is not a count", format!("give it a whole number from 1 to {most}"));
        }
        count
    }

    /// Every field that nobody has taken is a fault. Errors: all faults, if there are any.
    pub(super) fn finish(mut self, allowed: &[&str]) -> Result<(), Box<Problem>> {
        for (name, _) in std::mem::take(&mut self.fields) {
            let cure = if allowed.is_empty() {
                "leave it out".to_owned()
            } else {
                format!("leave it out, or use one of {}", allowed.join(", "))
            };
            self.fault(&name, "is not known", cure);
        }
        if self.faults.is_empty() { Ok(()) } else { Err(self.fail()) }
    }

    /// The faults found so far. At least one.
    pub(super) fn fail(self) -> Box<Problem> {
        Problem::unprocessable(self.faults)
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A browser sends other types across sites without asking first.
fn check_content_type(headers: &HeaderMap) -> Result<(), Box<Problem>> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let is_json = |value: &header::HeaderValue| {
        let essence = value.to_str().ok().and_then(|value| value.split(';').next());
        essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
    };
    if values.next().is_some_and(is_json) && values.next().is_none() {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content-type", "the body is not declared as JSON")
        .field("content-type")
        .cure("send Content-Type: application/json"))
}

async fn collect(mut body: Body) -> Result<Vec<u8>, Box<Problem>> {
    let mut bytes = Vec::new();
    let mut length = 0_usize;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "malformed", "the body broke off").cure("send all of it"));
        };
        let Some(data) = frame.data_ref() else { continue };
        length += data.len();
        if length <= LONGEST {
            bytes.extend_from_slice(data);
        } else if length > LONGEST_DRAINED {
            break;
        }
    }
    if length > LONGEST { Err(too_long()) } else { Ok(bytes) }
}

fn too_long() -> Box<Problem> {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", "the body is longer than 64 KiB")
        .cure("send only the fields that are needed")
        .header(header::CONNECTION, "close")
}

/// The members of an object in their order, repeated ones too, which a map would swallow.
struct Pairs(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(body: &str) -> u16 {
        Fields::parse(body.as_bytes()).and_then(|fields| fields.finish(&["route"])).map_or_else(|p| p.status, |()| 200)
    }

    #[test]
    fn json_that_is_no_object_is_unprocessable_and_what_is_no_json_is_bad() {
        for (body, expected) in [
            ("{}", 200),
            ("", 400),
            ("{", 400),
            ("{}x", 400),
            ("{\"a\":NaN}", 400),
            ("{\"a\":1e999}", 400),
            ("[]", 422),
            ("7", 422),
            ("null", 422),
            ("{\"a\":1}", 422),
            ("{\"a\":{\"b\":1},\"a\":2}", 422),
        ] {
            assert_eq!(status(body), expected, "{body}");
        }
        assert_eq!(status(&"[".repeat(60_000)), 400);
        assert_eq!(status(&format!("{{\"a\":{}", "[".repeat(60_000))), 400);
    }

    #[test]
    fn every_fault_is_reported() {
        let mut fields =
            Fields::parse(br#"{"x":1,"route":7,"green_percentage":"10","x":2,"y":null,"reason":"a\nb"}"#).unwrap();
        assert_eq!(fields.text("route"), None);
        assert_eq!(fields.text("reason"), None);
        assert_eq!(fields.percentage("green_percentage"), None);
        let problem = fields.finish(&["route"]).unwrap_err();
        let mut at: Vec<&str> = problem.faults.iter().map(|fault| fault.field.as_str()).collect();
        at.sort_unstable();
        assert_eq!(at, ["green_percentage", "reason", "route", "x", "x", "y"]);
        assert_eq!(problem.status, 422);
    }

    #[test]
    fn a_time_is_a_text_of_rfc_3339() {
        for (json, problem) in [
            ("\"2026-01-31T10:15:02Z\"", None),
            ("\"yesterday\"", Some("is not a time of RFC 3339")),
            ("1767225600", Some("is a number, not a time of RFC 3339")),
        ] {
            let mut fields = Fields::parse(format!("{{\"at\":{json}}}").as_bytes()).unwrap();
            fields.time("at");
            let problems: Vec<&str> = fields.faults.iter().map(|fault| fault.problem.as_str()).collect();
            assert_eq!(problems, problem.as_slice(), "{json}");
        }
    }

    #[test]
    fn percentages_are_numbers_in_hundredths() {
        for (json, expected) in [
            ("10", Some(1000)),
            ("0", Some(0)),
            ("-0", Some(0)),
            ("100.0", Some(10_000)),
            ("0.01", Some(1)),
            ("1e1", Some(1000)),
            ("0.001", None),
            ("-1", None),
            ("100.01", None),
            ("1e300", None),
            ("\"10\"", None),
            ("null", None),
            ("true", None),
        ] {
            let mut fields = Fields::parse(format!("{{\"p\":{json}}}").as_bytes()).unwrap();
            assert_eq!(fields.percentage("p").map(Split::buckets), expected, "{json}");
            assert_eq!(fields.finish(&[]).is_ok(), expected.is_some(), "{json}");
        }
    }
}
