//! An incident as a page of Markdown, from its JSON: also from what an older crossfade has recorded, which says less.

use std::fmt::Write;

use serde_json::Value;

/// Seconds at the end that the page shows; all of them are in the JSON.
const SECONDS: usize = 60;

pub(crate) fn page(incident: &Value) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut page, incident);
    page
}

fn write(out: &mut String, incident: &Value) -> std::fmt::Result {
    let text = |name: &str| cell(&incident[name]);
    writeln!(out, "# Incident {}\n", text("id"))?;
    let summary = if incident["summary"].is_null() { "reason" } else { "summary" };
    writeln!(out, "{}\n", text(summary))?;

    writeln!(out, "| | |\n|---|---|")?;
    writeln!(out, "| Route | {} |", text("route"))?;
    writeln!(out, "| Time | {} |", text("at"))?;
    writeln!(out, "| Rule | {} |", text("rule"))?;
    writeln!(out, "| Green's share before | {} % |", text("split_before"))?;
    if let (Some(step), Some(of)) = (incident["plan_step"]["step"].as_u64(), incident["plan_step"]["of"].as_u64()) {
        writeln!(out, "| Plan | step {step} of {of} |")?;
    }
    writeln!(out, "| Taken off by | {} |", text("actor"))?;
    writeln!(out, "| Revision | {} |", text("revision"))?;
    writeln!(out, "| Blue as bad | {} |", if incident["shared_cause"] == true { "yes" } else { "no" })?;
    writeln!(out, "\nThe guard: {}\n", text("reason"))?;

    write_arms(out, incident)?;
    write_rules(out, &incident["rules"])?;
    write_errors(out, incident)?;
    write_seconds(out, &incident["seconds"])?;

    let route = text("route");
    writeln!(out, "## What next\n")?;
    writeln!(out, "Green stays at 0 until somebody lets it be raised again: `crossfade reset {route} --reason …`.")
}

fn write_arms(out: &mut String, incident: &Value) -> std::fmt::Result {
    let (blue, green) = (&incident["counts"]["blue"], &incident["counts"]["green"]);
    let label = |arm: &str| match &incident["labels"][arm] {
        Value::Null => arm.to_owned(),
        label => format!("{arm} ({})", cell(label)),
    };
    writeln!(out, "## Both arms over {} s\n", cell(&incident["window_seconds"]))?;
    writeln!(out, "| | {} | {} |\n|---|---:|---:|", label("blue"), label("green"))?;
    for (name, words) in [
        ("dispatched", "Dispatched"),
        ("ok", "Answered well"),
        ("declined", "Declined (the client's fault)"),
        ("unreachable", "Unreachable"),
        ("refused", "Server errors"),
        ("broken", "Broken off"),
        ("timeout", "Timed out"),
        ("client_gone", "Client left"),
    ] {
        writeln!(out, "| {words} | {} | {} |", cell(&blue[name]), cell(&green[name]))?;
    }
    writeln!(out, "| Failed share | {} | {} |", share(&blue["error_rate"]), share(&green["error_rate"]))?;

    let quantiles = &incident["quantiles"];
    if quantiles.is_null() {
        writeln!(out, "| p95 | {} | {} |", ms(&incident["blue_p95_ms"]), ms(&incident["green_p95_ms"]))?;
        return writeln!(out);
    }
    writeln!(out, "\n## Latencies over {} s\n", cell(&quantiles["window_seconds"]))?;
    writeln!(out, "| | {} | {} |\n|---|---:|---:|", label("blue"), label("green"))?;
    writeln!(
        out,
        "| Good answers | {} | {} |",
        cell(&quantiles["blue"]["answers"]),
        cell(&quantiles["green"]["answers"])
    )?;
    for name in ["p50", "p95", "p99"] {
        writeln!(out, "| {name} | {} | {} |", bounded(&quantiles["blue"][name]), bounded(&quantiles["green"][name]))?;
    }
    writeln!(
        out,
        "\nIn brackets: where the true one lies, but for two cases in a thousand; `?` where the answers are too few to say.\n"
    )
}

fn write_rules(out: &mut String, rules: &Value) -> std::fmt::Result {
    writeln!(out, "## Rules\n")?;
    writeln!(out, "| rule | verdict | evidence | limit | last minute | bad | of | what it says |")?;
    writeln!(out, "|---|---|---:|---:|---:|---:|---:|---|")?;
    for rule in rules.as_array().into_iter().flatten() {
        let [name, verdict, bad, of, reason] = ["rule", "verdict", "bad", "of", "reason"].map(|name| cell(&rule[name]));
        let [evidence, limit, observed] = ["evidence", "limit", "observed"].map(|name| number(&rule[name]));
        writeln!(out, "| {name} | {verdict} | {evidence} | {limit} | {observed} | {bad} | {of} | {reason} |")?;
    }
    writeln!(out, "\nAn evidence of 1 is a breach. Bad events are of the seconds that the sentence names.\n")
}

fn write_errors(out: &mut String, incident: &Value) -> std::fmt::Result {
    if incident["first_error"].is_null() {
        return Ok(());
    }
    writeln!(out, "## Green's failures\n")?;
    writeln!(out, "| | time | outcome | status | endpoint | what happened |\n|---|---|---|---|---|---|")?;
    for (words, name) in [("first", "first_error"), ("last", "last_error")] {
        let error = &incident[name];
        let [at, outcome, status, endpoint, message] =
            ["at", "outcome", "status", "endpoint", "message"].map(|name| cell(&error[name]));
        writeln!(out, "| {words} | {at} | {outcome} | {status} | {endpoint} | {message} |")?;
    }
    writeln!(out)
}

fn write_seconds(out: &mut String, seconds: &Value) -> std::fmt::Result {
    let length = seconds["green"]["dispatched"].as_array().map_or(0, Vec::len);
    if length == 0 {
        return Ok(());
    }
    let first = length.saturating_sub(SECONDS);
    writeln!(out, "## The last {} s\n", length - first)?;
    writeln!(out, "Second 0 ended at {}.\n", cell(&seconds["until"]))?;
    writeln!(out, "| second | blue sent | failed | overdue | p95 ms | green sent | failed | overdue | p95 ms |")?;
    writeln!(out, "|---:|---:|---:|---:|---:|---:|---:|---:|---:|")?;
    for index in first..length {
        write!(out, "| {} |", index as i64 + 1 - length as i64)?;
        for arm in ["blue", "green"] {
            for column in ["dispatched", "failed", "overdue", "p95_ms"] {
                write!(out, " {} |", number(&seconds[arm][column][index]))?;
            }
        }
        writeln!(out)?;
    }
    writeln!(out)
}

/// A value inside a table or a line.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => escaped(text),
        other => escaped(&other.to_string()),
    }
}

/// Without what would end a cell, or begin a tag, a link or a style.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '|' | '<' | '[' | '*' | '`' | '\\' => escaped.extend(['\\', character]),
            character if character.is_control() => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}

fn number(value: &Value) -> String {
    match value.as_f64() {
        Some(number) if number.fract() == 0.0 => format!("{number:.0}"),
        Some(number) => format!("{number:.2}"),
        None => cell(value),
    }
}

fn share(value: &Value) -> String {
    value.as_f64().map_or_else(|| cell(value), super::sentence::percent)
}

fn ms(value: &Value) -> String {
    value.as_f64().map_or_else(|| cell(value), super::sentence::milliseconds)
}

/// `1.2 ms (0.9 ms to 1.6 ms)`; an open side is `?`.
fn bounded(quantile: &Value) -> String {
    if quantile.is_null() {
        return cell(quantile);
    }
    let side = |name: &str| if quantile[name].is_null() { "?".to_owned() } else { ms(&quantile[name]) };
    format!("{} ({} to {})", ms(&quantile["ms"]), side("at_least_ms"), side("at_most_ms"))
}
