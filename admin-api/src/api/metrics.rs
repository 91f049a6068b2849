//! Everything that is counted, as Prometheus text (exposition format 0.0.4).

use std::{collections::BTreeMap, fmt::Write};

use axum::response::{IntoResponse, Response};
use config::Arm;
use hdrhistogram::Histogram;
use http::{Uri, header};
use tokio::time::Instant;

use super::{Problem, Shared, State, body::Fields, status::VERSION};
use crate::{
    Alerts, Control, MetricKind, MirrorObservation, Observation, Outcome, RouteView, SignalView, Verdict, plan,
};

/// Prometheus text
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "Exposition format 0.0.4", body = String, content_type = "text/plain")))]
pub(super) async fn metrics(state: State, uri: Uri) -> Result<Response, Box<Problem>> {
    Fields::query(&uri)?.finish(&[])?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], write(&state)).into_response())
}

fn write(state: &Shared) -> String {
    let Shared { control, alerts, history, .. } = state;
    let refused = state.refused.lock().clone();
    let tokens_refused = state.access.tokens_problem().is_some();
    let uptime_seconds = state.started.elapsed().as_secs_f64();
    let routes: Vec<(RouteView, Observation)> = control
        .states()
        .into_iter()
        .map(|view| {
            let seen = control.plane().observe(&view.route).unwrap_or_default();
            (view, seen)
        })
        .collect();
    let mut out = Exposition::default();
    write_process(&mut out, control, &refused, uptime_seconds);
    write_states(&mut out, control, &routes);
    write_arms(&mut out, &routes);
    write_routes(&mut out, &routes);
    write_mirrors(&mut out, &routes);
    write_signals(&mut out, control);
    write_alerts(&mut out, alerts);
    out.family("crossfade_admin_tokens_refused", GAUGE, "1: the tokens file as it is now was not taken over");
    out.sample("crossfade_admin_tokens_refused", &[], u8::from(tokens_refused));
    out.family("crossfade_history_failing", GAUGE, "1: the last minute of the history could not be written");
    out.sample("crossfade_history_failing", &[], u8::from(history.problem().is_some()));
    out.family("crossfade_history_rows_lost_total", COUNTER, "Rows of the history the disk did not take in time");
    out.sample("crossfade_history_rows_lost_total", &[], history.rows_lost());
    out.text()
}

fn write_process(out: &mut Exposition, control: &Control, refused: &BTreeMap<&'static str, u64>, uptime_seconds: f64) {
    out.family("crossfade_build_info", GAUGE, "The version that runs; always 1");
    out.sample("crossfade_build_info", &[("version", VERSION)], 1);
    out.family("crossfade_uptime_seconds", GAUGE, "Since the admin API started");
    out.sample("crossfade_uptime_seconds", &[], uptime_seconds);
    out.family("crossfade_ready", GAUGE, "1: all listeners serve, and are not draining");
    out.sample("crossfade_ready", &[], u8::from(control.plane().ready()));
    out.family("crossfade_frozen", GAUGE, "1: nothing can be changed, because another instance takes over");
    out.sample("crossfade_frozen", &[], u8::from(control.is_frozen()));
    out.family("crossfade_audit_rows_lost_total", COUNTER, "Audit rows and incidents the disk did not take in time");
    out.sample("crossfade_audit_rows_lost_total", &[], control.rows_dropped());
    out.family("crossfade_audit_refusals_skipped_total", COUNTER, "Refused attempts without a row in the audit trail");
    out.sample("crossfade_audit_refusals_skipped_total", &[], control.refusals_skipped());

    out.family("crossfade_admin_refused_total", COUNTER, "Requests to the admin API that were answered with a problem");
    for (reason, count) in refused {
        out.sample("crossfade_admin_refused_total", &[("reason", reason)], count);
    }

    for metric in &control.plane().process_metrics() {
        let kind = match metric.kind {
            MetricKind::Counter => COUNTER,
            MetricKind::Gauge => GAUGE,
        };
        out.family(metric.name, kind, metric.help);
        let labels: Vec<(&str, &str)> = metric.label.iter().map(|(name, value)| (*name, value.as_str())).collect();
        out.sample(metric.name, &labels, metric.value);
    }
}

fn write_states(out: &mut Exposition, control: &Control, routes: &[(RouteView, Observation)]) {
    out.family("crossfade_route_info", GAUGE, "What an arm is called; always 1");
    for route in &control.config().routes {
        for arm in Arm::BOTH {
            let labels = [
                ("route", route.name.as_str()),
                ("arm", arm.as_str()),
                ("label", &route.arm(arm).label),
                ("protocol", &route.protocol.to_string()),
            ];
            out.sample("crossfade_route_info", &labels, 1);
        }
    }
    out.family("crossfade_split_ratio", GAUGE, "The share of keys an arm is meant to get, 0 to 1");
    for (view, _) in routes {
        let split = view.recorded.split;
        for (arm, share) in [(Arm::Blue, split.complement()), (Arm::Green, split)] {
            out.sample("crossfade_split_ratio", &labels(view, arm), share.percent() / 100.0);
        }
    }
    out.family("crossfade_split_revision", GAUGE, "Grows with every change of split, latch or plan");
    for (view, _) in routes {
        out.sample("crossfade_split_revision", &[("route", &view.route)], view.recorded.revision);
    }
    out.family("crossfade_latched", GAUGE, "1: green may not rise until a reset");
    for (view, _) in routes {
        out.sample("crossfade_latched", &[("route", &view.route)], u8::from(view.recorded.latch.is_some()));
    }
    out.family("crossfade_plan_state", GAUGE, "1 for the state of the plan that was started last, 0 for the others");
    for (view, _) in routes {
        let Some(run) = &view.recorded.plan else { continue };
        for state in plan::State::ALL {
            let labels = [("route", view.route.as_str()), ("state", state.as_str())];
            out.sample("crossfade_plan_state", &labels, u8::from(run.state == state));
        }
    }
    out.family("crossfade_plan_step", GAUGE, "The step that bakes or is to begin, from 1; one more when all are done");
    for (view, _) in routes {
        let Some(run) = &view.recorded.plan else { continue };
        out.sample("crossfade_plan_step", &[("route", &view.route)], run.step + 1);
    }
    out.family("crossfade_persisted", GAUGE, "0: what is live could not be recorded yet");
    for (view, _) in routes {
        out.sample("crossfade_persisted", &[("route", &view.route)], u8::from(view.persisted));
    }
    out.family("crossfade_guard_verdict", GAUGE, "1 for the guard's verdict, 0 for the others; absent when not judged");
    for (view, _) in routes {
        let Some(judgement) = &view.judgement else { continue };
        for verdict in [Verdict::Pass, Verdict::Unknown, Verdict::Breach] {
            let labels = [("route", view.route.as_str()), ("verdict", verdict.as_str())];
            out.sample("crossfade_guard_verdict", &labels, u8::from(verdict == judgement.verdict));
        }
    }
}

fn write_arms(out: &mut Exposition, routes: &[(RouteView, Observation)]) {
    let each = || routes.iter().flat_map(|(view, seen)| Arm::BOTH.map(|arm| (view, arm, seen.arm(arm))));

    out.family("crossfade_dispatched_total", COUNTER, "Requests or connections whose arm was decided");
    for (view, arm, seen) in each() {
        out.sample("crossfade_dispatched_total", &labels(view, arm), seen.total.dispatched);
    }
    out.family("crossfade_outcomes_total", COUNTER, "How they ended, seen from the arm");
    for (view, arm, seen) in each() {
        for outcome in Outcome::ALL {
            let [route, arm] = labels(view, arm);
            let labels = [route, arm, ("outcome", outcome.as_str())];
            out.sample("crossfade_outcomes_total", &labels, seen.total.count(outcome));
        }
    }
    out.family("crossfade_cut_off_total", COUNTER, "Connections and sessions that were taken and dropped at once");
    for (view, arm, seen) in each() {
        out.sample("crossfade_cut_off_total", &labels(view, arm), seen.total.cut_off);
    }
    out.family("crossfade_fallbacks_total", COUNTER, "Failures of this arm that the other one then served");
    for (view, arm, seen) in each() {
        out.sample("crossfade_fallbacks_total", &labels(view, arm), seen.total.fallbacks);
    }
    out.family("crossfade_due_total", COUNTER, "Whose answer was due by the guard's answer_within");
    for (view, arm, seen) in each() {
        out.sample("crossfade_due_total", &labels(view, arm), seen.total.due);
    }
    out.family("crossfade_overdue_total", COUNTER, "Of those: without an answer then");
    for (view, arm, seen) in each() {
        out.sample("crossfade_overdue_total", &labels(view, arm), seen.total.overdue);
    }
    out.family("crossfade_received_bytes_total", COUNTER, "From clients, for this arm");
    for (view, arm, seen) in each() {
        out.sample("crossfade_received_bytes_total", &labels(view, arm), seen.total.bytes_in);
    }
    out.family("crossfade_sent_bytes_total", COUNTER, "To clients, from this arm");
    for (view, arm, seen) in each() {
        out.sample("crossfade_sent_bytes_total", &labels(view, arm), seen.total.bytes_out);
    }
    out.family("crossfade_open", GAUGE, "Connections (TCP, MQTT) or requests (HTTP) under way");
    for (view, arm, seen) in each() {
        out.sample("crossfade_open", &labels(view, arm), seen.open);
    }
    out.family("crossfade_endpoint_healthy", GAUGE, "1: an endpoint may be chosen");
    for (view, arm, seen) in each() {
        for endpoint in &seen.endpoints {
            let [route, arm] = labels(view, arm);
            let labels = [route, arm, ("endpoint", endpoint.address.as_str())];
            out.sample("crossfade_endpoint_healthy", &labels, u8::from(endpoint.healthy));
        }
    }
    out.family("crossfade_endpoint_in_flight", GAUGE, "What an endpoint is busy with");
    for (view, arm, seen) in each() {
        for endpoint in &seen.endpoints {
            let [route, arm] = labels(view, arm);
            let labels = [route, arm, ("endpoint", endpoint.address.as_str())];
            out.sample("crossfade_endpoint_in_flight", &labels, endpoint.in_flight);
        }
    }
    out.family(
        "crossfade_latency_seconds",
        HISTOGRAM,
        "To a good answer's head (HTTP), CONNACK (MQTT), connection (TCP)",
    );
    for (view, arm, seen) in each() {
        out.histogram("crossfade_latency_seconds", &labels(view, arm), &seen.total.latency_us);
    }
}

fn write_routes(out: &mut Exposition, routes: &[(RouteView, Observation)]) {
    out.family("crossfade_keyless_total", COUNTER, "Requests or connections without a key");
    for (view, seen) in routes {
        out.sample("crossfade_keyless_total", &[("route", &view.route)], seen.keyless);
    }
    out.family("crossfade_rejected_total", COUNTER, "Refused before an arm was chosen");
    by_reason(out, "crossfade_rejected_total", routes.iter().map(|(view, seen)| (view, &seen.rejected)));
}

fn write_mirrors(out: &mut Exposition, routes: &[(RouteView, Observation)]) {
    let mirrors: Vec<(&RouteView, &MirrorObservation)> =
        routes.iter().filter_map(|(view, seen)| Some((view, seen.mirror.as_ref()?))).collect();
    if mirrors.is_empty() {
        return;
    }
    let mut count = |name: &str, help: &str, value: fn(&MirrorObservation) -> u64| {
        out.family(name, COUNTER, help);
        for (view, seen) in &mirrors {
            out.sample(name, &[("route", &view.route)], value(seen));
        }
    };
    count("crossfade_mirror_offered_total", "Requests whose method may be copied", |seen| seen.offered);
    count("crossfade_mirror_unsampled_total", "Of those: outside the sample", |seen| seen.unsampled);
    count("crossfade_mirror_paired_total", "Copies that were answered, as their originals were", |seen| seen.paired);
    out.family("crossfade_mirror_dropped_total", COUNTER, "Copies that were not sent");
    by_reason(out, "crossfade_mirror_dropped_total", mirrors.iter().map(|(view, seen)| (*view, &seen.dropped)));
    out.family("crossfade_mirror_failed_total", COUNTER, "Copies that are no pair");
    by_reason(out, "crossfade_mirror_failed_total", mirrors.iter().map(|(view, seen)| (*view, &seen.failed)));

    out.family("crossfade_mirror_compared_total", COUNTER, "Pairs by what was compared and how it came out");
    for (view, seen) in &mirrors {
        for (what, result, count) in [
            ("status_class", "equal", seen.status_class_equal),
            ("status_class", "differs", seen.status_class_differs),
            ("body", "equal", seen.body_equal),
            ("body", "differs", seen.body_differs),
            ("body", "not_compared", seen.body_not_compared),
        ] {
            let labels = [("route", view.route.as_str()), ("what", what), ("result", result)];
            out.sample("crossfade_mirror_compared_total", &labels, count);
        }
    }
    out.family("crossfade_mirror_latency_seconds", HISTOGRAM, "To a good answer's head, of pairs");
    for (view, seen) in &mirrors {
        for (arm, tally) in [(Arm::Blue, &seen.blue), (Arm::Green, &seen.green)] {
            out.histogram("crossfade_mirror_latency_seconds", &labels(view, arm), &tally.latency_us);
        }
    }
}

fn write_signals(out: &mut Exposition, control: &Control) {
    let signals = control.signals().views(None, Instant::now());
    let mut each = |name: &str, kind: &str, help: &str, value: fn(&SignalView) -> Option<f64>| {
        out.family(name, kind, help);
        for signal in &signals {
            if let Some(value) = value(signal) {
                out.sample(name, &[("route", &signal.route), ("signal", &signal.name)], value);
            }
        }
    };
    each("crossfade_signal_value", GAUGE, "The last value; absent before the first", |signal| signal.value);
    each("crossfade_signal_age_seconds", GAUGE, "Since that was measured", |signal| signal.age_seconds);
    each("crossfade_signal_failed_scrapes_total", COUNTER, "Scrapes that had no value", |signal| {
        signal.scraped.then_some(signal.failed_scrapes as f64)
    });
}

fn write_alerts(out: &mut Exposition, alerts: &Alerts) {
    let webhooks = alerts.webhooks();
    out.family("crossfade_alerts_total", COUNTER, "Messages to webhooks by what became of them");
    for webhook in &webhooks {
        let outcomes = [("delivered", webhook.delivered), ("failed", webhook.failed), ("dropped", webhook.dropped)];
        for (outcome, count) in outcomes {
            out.sample("crossfade_alerts_total", &[("alert", &webhook.alert), ("outcome", outcome)], count);
        }
    }
    out.family("crossfade_alerts_waiting", GAUGE, "Messages that a webhook has not taken yet");
    for webhook in &webhooks {
        out.sample("crossfade_alerts_waiting", &[("alert", &webhook.alert)], webhook.waiting);
    }
    out.family("crossfade_alerts_missed_total", COUNTER, "Events that went by too fast to tell of them");
    out.sample("crossfade_alerts_missed_total", &[], alerts.missed());
}

fn by_reason<'a>(
    out: &mut Exposition,
    name: &str,
    routes: impl Iterator<Item = (&'a RouteView, &'a BTreeMap<&'static str, u64>)>,
) {
    for (view, reasons) in routes {
        for (reason, count) in reasons {
            out.sample(name, &[("route", &view.route), ("reason", reason)], *count);
        }
    }
}

fn labels(view: &RouteView, arm: Arm) -> [(&'static str, &str); 2] {
    [("route", &view.route), ("arm", arm.as_str())]
}

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";
const HISTOGRAM: &str = "histogram";

/// Upper bounds in microseconds.
const BOUNDS_US: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];

/// Collects samples by their families. The format wants each family once, with all its samples, however they come.
#[derive(Default)]
struct Exposition {
    /// In the order they were first named.
    families: Vec<Family>,
    /// Where samples go.
    current: usize,
}

struct Family {
    name: String,
    text: String,
}

impl Exposition {
    /// Samples go to this family from now on. What it was first called counts.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let known = self.families.iter().position(|family| family.name == name);
        self.current = known.unwrap_or_else(|| {
            let help = help.replace('\\', "\\\\").replace('\n', "\\n");
            let text = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
            self.families.push(Family { name: name.to_owned(), text });
            self.families.len() - 1
        });
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let Some(Family { text, .. }) = self.families.get_mut(self.current) else { return };
        text.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(text, "{}{label}=\"{value}\"", if index == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }

    fn text(&self) -> String {
        self.families.iter().map(|family| family.text.as_str()).collect()
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], latency_us: &Histogram<u64>) {
        let (mut counts, mut sum_us) = ([0_u64; BOUNDS_US.len()], 0.0);
        for step in latency_us.iter_recorded() {
            // What only may be below a bound is not counted there.
            let highest = latency_us.highest_equivalent(step.value_iterated_to());
            if let Some(bucket) = BOUNDS_US.iter().position(|bound| highest <= *bound) {
                counts[bucket] += step.count_at_value();
            }
            sum_us += latency_us.median_equivalent(step.value_iterated_to()) as f64 * step.count_at_value() as f64;
        }
        let mut below = 0;
        for (bound, count) in BOUNDS_US.iter().zip(counts) {
            below += count;
            let bound = (*bound as f64 / 1e6).to_string();
            self.sample(&format!("{name}_bucket"), &[labels, &[("le", &bound)]].concat(), below);
        }
        self.sample(&format!("{name}_bucket"), &[labels, &[("le", "+Inf")]].concat(), latency_us.len());
        self.sample(&format!("{name}_sum"), labels, sum_us / 1e6);
        self.sample(&format!("{name}_count"), labels, latency_us.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative_and_labels_escaped() {
        let mut latency = Histogram::new(2).unwrap();
        for us in [500, 1_500, 40_000, 90_000_000] {
            latency.record(us).unwrap();
        }
        let mut out = Exposition::default();
        out.family("x_seconds", HISTOGRAM, "a test");
        out.histogram("x_seconds", &[("route", "a\"b\\c\n")], &latency);
        let text = out.text();
        let bucket = |le: &str| format!("x_seconds_bucket{{route=\"a\\\"b\\\\c\\n\",le=\"{le}\"}}");
        for (le, expected) in [("0.001", 1), ("0.0025", 2), ("0.025", 2), ("0.05", 3), ("60", 3), ("+Inf", 4)] {
            assert!(text.contains(&format!("{} {expected}\n", bucket(le))), "{le}: {text}");
        }
        assert!(text.contains("x_seconds_count{route=\"a\\\"b\\\\c\\n\"} 4\n"));
    }

    #[test]
    fn a_family_that_is_named_again_is_written_once() {
        let mut out = Exposition::default();
        for (family, label) in [("x_total", "a"), ("y_total", "b"), ("x_total", "c")] {
            out.family(family, COUNTER, "of two\nlines");
            out.sample(family, &[("label", label)], 1);
        }
        let expected = "# HELP x_total of two\\nlines\n# TYPE x_total counter\n\
                        x_total{label=\"a\"} 1\nx_total{label=\"c\"} 1\n\
                        # HELP y_total of two\\nlines\n# TYPE y_total counter\ny_total{label=\"b\"} 1\n";
        assert_eq!(out.text(), expected);
    }
}
