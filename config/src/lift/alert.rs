//! `[[alert]]`.

use std::path::Path;

use super::{path, route::word};
use crate::{Alert, AlertFormat, Severity, Url, fault::quoted, reader::Table};

/// `taken`: the names of those above this one, one each.
pub(super) fn lift(table: &mut Table<'_>, taken: &mut Vec<String>, base: &Path) -> Option<Alert> {
    let unnamed = format!("alert-{}", taken.len() + 1);
    let name = table.take("name").map_or(Some(unnamed), |value| word(&value));
    if let Some(name) = name.as_ref().filter(|name| taken.contains(name)) {
        table.fault("name", format!("{} is also the name of another alert", quoted(name)), "write another name");
    }
    taken.push(name.clone().unwrap_or_default());
    let url = table
        .required("url", "write url = \"https://hooks.example/…\"")
        .and_then(|value| value.accept(Url::parse(value.string()?)));
    let format = table.choice("format", &[("json", AlertFormat::Json), ("text", AlertFormat::Text)], AlertFormat::Json);
    let severities = [("info", Severity::Info), ("warning", Severity::Warning), ("critical", Severity::Critical)];
    let severity = table.choice("severity", &severities, Severity::Warning);
    let secret_file = table.take("secret_file").and_then(|value| path(&value, base));
    Some(Alert { name: name?, url: url?, format, severity, secret_file })
}
