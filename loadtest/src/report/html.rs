//! A report as one page: pictures first, tables beneath. It needs nothing else, asks nobody for anything, and works
//! without scripts but for what is shown beside the pointer.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use time::OffsetDateTime;

use self::chart::{Area, Column, Hover, Scale, WIDTH};
use super::{
    Latencies, Report, Series,
    condensed::{self, Stretch},
    table::grouped,
    terminal,
};
use crate::units;

mod chart;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// How far a value may be from the pointer's place, along the x axis: at the same second, or about there on a curve.
const SAME: f64 = 0.2;
const NEAR: f64 = 20.0;
/// Points along the time axis.
const POINTS: usize = 480;
/// Rows of the table of seconds.
const ROWS: usize = 1000;

/// The page. What came from outside (labels, targets, reasons) is shown as text, whatever is in it; should that fail, a
/// policy with a number that nobody could know before keeps it from running.
pub fn page(report: &Report) -> String {
    let nonce = format!("{:032x}", fastrand::u128(..));
    let colours = Colours::new(report);
    let mut hovers = Vec::new();
    let mut figures = String::new();
    if !condensed::arms(&report.seconds).is_empty() {
        figures += &latency_over_time(report, &colours, &mut hovers);
    }
    if !report.seconds.is_empty() {
        figures += &rate_over_time(report, &colours, &mut hovers);
    }
    for (name, series) in report.series.iter().filter(|(_, series)| series.all.count > 0) {
        figures += &percentiles(name, series, &colours, &mut hovers);
    }
    // Within a script, `<` could end it.
    let hovers = serde_json::to_string(&hovers).expect("lists of text and numbers").replace('<', "\\u003c");

    let title = format!("{} to {}", report.run.protocol, report.run.target);
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style nonce="{nonce}">
{STYLE}{toggles}</style>
</head>
<body>
<main>
{headline}{objectives}{figures}{tables}</main>
<script type="application/json" id="hovers">{hovers}</script>
<script nonce="{nonce}">
{SCRIPT}</script>
</body>
</html>
"#,
        title = Text(&title),
        toggles = colours.toggles(),
        headline = headline(report),
        objectives = objectives(report),
        tables = tables(report, &colours),
    )
}

/// Text from anywhere, as text of a page or an attribute.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|char| match char {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            char => f.write_char(char),
        })
    }
}

/// Each arm's number and colour: blue and green are what they say they are.
struct Colours<'a> {
    arms: BTreeMap<&'a str, usize>,
}

/// Of the palette in the style: Okabe and Ito's, which people who see colours differently can tell apart.
const PALETTE: usize = 8;
const BLUE: usize = 0;
const GREEN: usize = 3;

impl<'a> Colours<'a> {
    fn new(report: &'a Report) -> Self {
        let mut labels = condensed::arms(&report.seconds);
        labels.extend(report.arms.keys().map(String::as_str));
        labels.extend(report.series.values().flat_map(|series| series.arms.keys().map(String::as_str)));
        labels.sort_unstable();
        labels.dedup();
        let named = |label: &str| match label {
            "blue" => Some(BLUE),
            "green" => Some(GREEN),
            _ => None,
        };
        let taken: Vec<_> = labels.iter().filter_map(|label| named(label)).collect();
        let mut free = (0..PALETTE).filter(|colour| !taken.contains(colour)).collect::<Vec<_>>().into_iter().cycle();
        let arms = labels.iter().map(|label| {
            let colour = named(label).or_else(|| free.next()).expect("eight colours, of which two can be taken");
            (*label, colour)
        });
        Self { arms: arms.collect() }
    }

    /// The classes of an arm's lines.
    fn class(&self, arm: &str) -> String {
        let nth = self.arms.keys().position(|label| *label == arm).unwrap_or_default();
        format!("c{} arm{nth}", self.arms.get(arm).copied().unwrap_or_default())
    }

    /// An arm is hidden where its box is not ticked.
    fn toggles(&self) -> String {
        (0..self.arms.len()).fold(String::new(), |mut style, nth| {
            let _ = writeln!(style, "figure:has(.show-arm{nth}:not(:checked)) .arm{nth} {{ display: none }}");
            style
        })
    }

    /// A box to tick for each of these arms.
    fn boxes<'b>(&self, arms: impl IntoIterator<Item = &'b str>) -> String {
        arms.into_iter().fold(String::new(), |mut boxes, arm| {
            let class = self.class(arm);
            let nth = class.rsplit_once("arm").map_or("", |(_, nth)| nth);
            let _ = write!(
                boxes,
                r#"<label><input type="checkbox" class="show-arm{nth}" checked><i class="{}"></i>{}</label>"#,
                class.split(' ').next().unwrap_or_default(),
                Text(named(arm))
            );
            boxes
        })
    }
}

/// How an arm is called.
fn named(arm: &str) -> &str {
    if arm == "-" { "unknown arm" } else { arm }
}

/// What ran, whether it was good enough, and the figures to remember.
fn headline(report: &Report) -> String {
    let (run, end, account) = (&report.run, &report.end, &report.account);
    let missed = report.slos.iter().filter(|slo| !slo.met).count();
    let (class, verdict) = match (report.slos.len(), missed) {
        (0, _) => ("none", "no objectives were given".to_owned()),
        (1, 0) => ("good", "the objective was met".to_owned()),
        (all, 0) => ("good", format!("all {all} objectives were met")),
        (1, _) => ("bad", "the objective was missed".to_owned()),
        (all, missed) => ("bad", format!("{missed} of {all} objectives missed")),
    };
    let started = i64::try_from(run.started_ms / 1000).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    let started = started.map_or_else(String::new, |at| {
        let (hour, minute, second) = at.to_hms();
        format!("{} {hour:02}:{minute:02}:{second:02} UTC, ", at.date())
    });
    let mut out = format!(
        "<header>\n<p class=\"kind\">loadtest · {} · run {}</p>\n<h1>{}</h1>\n<p class=\"verdict {class}\">{verdict}</p>\n\
         <p>{started}{}; {}</p>\n</header>\n",
        Text(&run.protocol),
        Text(&run.id),
        Text(&run.target),
        units_of_time(end.seconds),
        Text(&terminal::asked(run)),
    );
    if !end.complete {
        let reason = end.reason.as_deref().unwrap_or("no reason is known");
        let _ = writeln!(out, "<p class=\"warning\">The run ended early: {}</p>", Text(reason));
    }
    for warning in &report.generator.warnings {
        let _ = writeln!(out, "<p class=\"warning\">{}</p>", Text(warning));
    }

    out += "<section class=\"tiles\">\n";
    let mut tile = |name: &str, value: &str, note: &str, bad: bool| {
        let class = if bad { " class=\"bad\"" } else { "" };
        let _ = writeln!(
            out,
            "<div{class}><span>{}</span><strong>{}</strong><span>{}</span></div>",
            Text(name),
            Text(value),
            Text(note)
        );
    };
    let asked = end.rate_asked.filter(|asked| *asked > 0.0);
    let note = asked.map_or_else(String::new, |asked| {
        format!("{:.1} % of {asked:.0}/s asked for", end.rate_achieved / asked * 100.0)
    });
    tile("answers a second", &format!("{:.0}", end.rate_achieved), &note, false);
    for (name, series) in report.series.iter().filter(|(_, series)| series.all.count > 0) {
        let of = |name: &str| if report.series.len() > 1 { format!("{name}, ") } else { String::new() };
        let latencies = &series.all;
        let note = format!("p50 {}, max {}", time(latencies.p50), time(latencies.max));
        tile(&format!("{}p99", of(name)), &time(latencies.p99), &note, false);
    }
    let faults = account.failures() + account.error_status + account.lost;
    let share = format!("{:.3} %", account.error_share() * 100.0);
    let note = format!("{} of {} sent", grouped(faults), grouped(account.sent));
    tile("failed or answered with an error", &share, &note, faults > 0);
    let worse =
        [("answered twice", account.answered_twice), ("lost", account.lost), ("out of order", account.out_of_order)];
    for (name, count) in worse.into_iter().filter(|(_, count)| *count > 0) {
        tile(name, &grouped(count), "", true);
    }
    if report.arms.keys().any(|arm| arm != "-") {
        tile("moved to another arm", &grouped(account.moved), "answers, against the key's last", false);
    }
    out + "</section>\n"
}

fn time(micros: u64) -> String {
    units::micros(micros as f64)
}

fn units_of_time(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.1} s") } else { chart::clock(seconds as u64) }
}

/// The values that are drawn over time: class, name, value, shown at first.
type Line = (&'static str, fn(&Latencies) -> u64);
const LINES: [Line; 3] = [("p50", |l| l.p50), ("p99", |l| l.p99), ("max", |l| l.max)];

fn latency_over_time(report: &Report, colours: &Colours<'_>, hovers: &mut Vec<Hover>) -> String {
    let stretches = condensed::stretches(&report.seconds, POINTS);
    let arms = condensed::arms(&report.seconds);
    let area = Area::between(16.0, 300.0);
    let places = places(&stretches, area);
    let worst = |arm, of| stretches.iter().filter_map(move |stretch: &Stretch<'_>| stretch.worst(Some(arm), of));
    let values = || arms.iter().flat_map(|arm| LINES.iter().flat_map(|(_, of)| worst(arm, *of)));
    let (least, most) = (values().min().unwrap_or(1) as f64, values().max().unwrap_or(1) as f64);

    let draw = |scale: Scale| {
        let mut out = chart::across(area, scale, latency_tick);
        for arm in &arms {
            for (name, of) in &LINES {
                let points = stretches
                    .iter()
                    .zip(&places)
                    .map(|(stretch, x)| stretch.worst(Some(arm), of).map(|value| (*x, area.y(scale.at(value as f64)))));
                let _ =
                    write!(out, r#"<path class="line {name} {}" d="{}"/>"#, colours.class(arm), chart::line(points));
            }
        }
        out
    };
    let columns = arms.iter().flat_map(|arm| {
        LINES.iter().map(|(name, of)| Column {
            name: format!("{} {name}", named(arm)),
            class: format!("{} {name}", colours.class(arm)),
            points: stretches
                .iter()
                .zip(&places)
                .filter_map(|(stretch, x)| Some((round(*x), time(stretch.worst(Some(arm), of)?))))
                .collect(),
        })
    });
    let columns = columns.collect();
    hovers.push(Hover { reach: SAME, top: area.top, bottom: area.bottom, heads: heads(&stretches, &places), columns });

    let what = if report.run.protocol.starts_with("mqtt") { "Acknowledgement latency" } else { "Latency" };
    let boxes = LINES.iter().fold(String::new(), |mut boxes, (name, _)| {
        let _ = write!(
            boxes,
            r#"<label><input type="checkbox" class="show-{name}" checked><svg class="sample" viewBox="0 0 24 8" aria-hidden="true"><path class="line {name}" d="M1 4H23"/></svg>{name}</label>"#
        );
        boxes
    });
    let note = match stretches.first().map_or(1, |stretch| stretch.seconds) {
        1 => "By the second of the answer, from the intended time of sending.".to_owned(),
        seconds => format!("Each point is the worst of {seconds} seconds, from the intended time of sending."),
    };
    Figure {
        title: &format!("{what} over time"),
        note: &note,
        boxes: &(colours.boxes(arms.iter().copied()) + &boxes),
        height: 328.0,
        common: &chart::below(area, time_ticks(&stretches, area)),
        scaled: Some([draw(Scale::log(least, most)), draw(Scale::linear(most))]),
        hover: hovers.len() - 1,
    }
    .html()
}

fn rate_over_time(report: &Report, colours: &Colours<'_>, hovers: &mut Vec<Hover>) -> String {
    let stretches = condensed::stretches(&report.seconds, POINTS);
    let arms = condensed::arms(&report.seconds);
    let (area, errors_area) = (Area::between(16.0, 220.0), Area::between(262.0, 322.0));
    let places = places(&stretches, area);
    // A count is that of a whole stretch, so it is drawn from the beginning of it to its end.
    let (from, span) = span(&stretches);
    let edges = stretches.iter().flat_map(|stretch| [stretch.at, stretch.at + stretch.seconds]);
    let edges: Vec<_> = edges.map(|at| area.x((at - from) as f64 / span)).collect();

    let sent: Vec<_> = stretches.iter().map(|stretch| stretch.a_second(stretch.sent)).collect();
    let answers = |arm| stretches.iter().map(move |stretch: &Stretch<'_>| stretch.a_second(stretch.answers(arm)));
    let errors: Vec<_> = stretches.iter().map(|stretch| stretch.a_second(stretch.errors)).collect();
    let most = answers(None).chain(sent.iter().copied()).fold(0.0, f64::max);
    let scale = Scale::linear(most);
    let heights = |values: &[f64]| -> Vec<_> {
        values.iter().map(|value| area.y(scale.at(*value))).flat_map(|y| [y, y]).collect()
    };

    let mut drawn = chart::across(area, scale, short);
    let mut below = vec![0.0; stretches.len()];
    for arm in &arms {
        let above: Vec<_> = below.iter().zip(answers(Some(arm))).map(|(below, answers)| below + answers).collect();
        let [upper, lower] = [&above, &below].map(|values| heights(values));
        let d = chart::surface(&edges, &upper, &lower);
        let _ = write!(drawn, r#"<path class="surface {}" d="{d}"/>"#, colours.class(arm));
        below = above;
    }
    let points = edges.iter().copied().zip(heights(&sent)).map(Some);
    let _ = write!(drawn, r#"<path class="line sent" d="{}"/>"#, chart::line(points));

    let most_errors = errors.iter().copied().fold(0.0, f64::max);
    let none = if most_errors > 0.0 { "" } else { ": none" };
    let _ =
        write!(drawn, r#"<text x="{:.1}" y="{:.1}">errors a second{none}</text>"#, area.left, errors_area.top - 8.0);
    // Only the ends are named, since there is little room.
    let most_errors = if most_errors > 0.0 { most_errors } else { 1.0 };
    let scale = Scale::Linear { to: most_errors, step: most_errors };
    drawn += &chart::across(errors_area, scale, short);
    let wide = ((area.right - area.left) / stretches.len() as f64 * 0.8).clamp(1.0, 12.0);
    for (x, errors) in places.iter().zip(&errors).filter(|(_, errors)| **errors > 0.0) {
        let high = (errors_area.bottom - errors_area.y(scale.at(*errors))).max(1.5);
        let (left, top) = (x - wide / 2.0, errors_area.bottom - high);
        let _ =
            write!(drawn, r#"<rect class="errors" x="{left:.1}" y="{top:.1}" width="{wide:.1}" height="{high:.1}"/>"#);
    }

    let mut columns: Vec<_> = arms
        .iter()
        .map(|arm| Column {
            name: format!("{} answers/s", named(arm)),
            class: colours.class(arm),
            points: places.iter().map(|x| round(*x)).zip(answers(Some(arm)).map(short)).collect(),
        })
        .collect();
    for (name, class, values) in [("sent/s", "sent", &sent), ("errors/s", "errors", &errors)] {
        let points = places.iter().map(|x| round(*x)).zip(values.iter().map(|value| short(*value))).collect();
        columns.push(Column { name: name.to_owned(), class: class.to_owned(), points });
    }
    hovers.push(Hover {
        reach: SAME,
        top: area.top,
        bottom: errors_area.bottom,
        heads: heads(&stretches, &places),
        columns,
    });

    let sample = r#"<span><svg class="sample" viewBox="0 0 24 8" aria-hidden="true"><path class="line sent" d="M1 4H23"/></svg>sent</span>"#;
    Figure {
        title: "Rate over time",
        note: "Answers a second by arm, one above the other; the line is what was sent.",
        boxes: &(colours.boxes(arms.iter().copied()) + sample),
        height: 350.0,
        common: &(chart::below(Area { bottom: errors_area.bottom, ..area }, time_ticks(&stretches, area)) + &drawn),
        scaled: None,
        hover: hovers.len() - 1,
    }
    .html()
}

/// The distribution of a series: the better the further right it stays low.
fn percentiles(name: &str, series: &Series, colours: &Colours<'_>, hovers: &mut Vec<Hover>) -> String {
    let area = Area::between(16.0, 300.0);
    let curves = series.arms.iter().filter(|(_, latencies)| latencies.count > 0);
    let mut curves: Vec<_> = curves
        .map(|(arm, latencies)| (named(arm).to_owned(), colours.class(arm), latencies, curve(latencies)))
        .collect();
    if curves.len() != 1 {
        curves.push(("all".to_owned(), "all".to_owned(), &series.all, curve(&series.all)));
    }
    // As many nines as the curve has: of a thousand values the last is at 99.9 %.
    let nines = |latencies: &Latencies| (latencies.count.max(10) as f64).log10();
    let most_nines = nines(&series.all);
    let x = |quantile: f64, latencies: &Latencies| {
        let at = if quantile < 1.0 { -(1.0 - quantile).log10() } else { f64::INFINITY };
        area.x(at.min(nines(latencies)) / most_nines)
    };
    let values = || curves.iter().flat_map(|(.., curve)| curve.iter().map(|(_, value)| *value));
    let (least, most) = (values().min().unwrap_or(1) as f64, values().max().unwrap_or(1) as f64);

    let draw = |scale: Scale| {
        let mut out = chart::across(area, scale, latency_tick);
        for (_, class, latencies, curve) in &curves {
            let points = curve.iter().map(|(at, value)| Some((x(*at, latencies), area.y(scale.at(*value as f64)))));
            let _ = write!(out, r#"<path class="line p99 {class}" d="{}"/>"#, chart::line(points));
        }
        out
    };
    let ticks = [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999, 99.9999, 99.99999];
    let at = |percent: f64| if percent > 0.0 { -(1.0 - percent / 100.0).log10() } else { 0.0 };
    let ticks = ticks.into_iter().filter(|percent| at(*percent) <= most_nines);
    let ticks = ticks.map(|percent| (area.x(at(percent) / most_nines), format!("{percent} %")));

    let head = |quantile: f64| if quantile < 1.0 { format!("p{}", significant(quantile)) } else { "max".to_owned() };
    let all = curves.last().map_or(&[][..], |(.., curve)| curve);
    hovers.push(Hover {
        reach: NEAR,
        top: area.top,
        bottom: area.bottom,
        heads: all.iter().map(|(quantile, _)| (round(x(*quantile, &series.all)), head(*quantile))).collect(),
        columns: curves
            .iter()
            .map(|(name, class, latencies, curve)| Column {
                name: name.clone(),
                class: class.clone(),
                points: curve.iter().map(|(at, value)| (round(x(*at, latencies)), time(*value))).collect(),
            })
            .collect(),
    });
    let boxes = colours.boxes(series.arms.iter().filter(|(_, of)| of.count > 0).map(|(arm, _)| arm.as_str()));
    let all = r#"<span><svg class="sample" viewBox="0 0 24 8" aria-hidden="true"><path class="line all" d="M1 4H23"/></svg>all</span>"#;
    Figure {
        title: &format!("Percentiles: {name}"),
        note: "Each tick to the right is one nine more. A curve ends where a single request is all that is left.",
        boxes: &(boxes + if curves.len() == 1 { "" } else { all }),
        height: 328.0,
        common: &chart::below(area, ticks),
        scaled: Some([draw(Scale::log(least, most)), draw(Scale::linear(most))]),
        hover: hovers.len() - 1,
    }
    .html()
}

/// Points of a curve; those that every summary has, if there are no others.
fn curve(latencies: &Latencies) -> Vec<(f64, u64)> {
    if !latencies.curve.is_empty() {
        return latencies.curve.clone();
    }
    let Latencies { min, p50, p90, p95, p99, p999, max, .. } = *latencies;
    vec![(0.0, min), (0.5, p50), (0.9, p90), (0.95, p95), (0.99, p99), (0.999, p999), (1.0, max)]
}

/// A percentile with as many digits as tell it from 100.
fn significant(quantile: f64) -> String {
    let digits = (-(1.0 - quantile).log10()).ceil().max(0.0) as usize;
    let text = format!("{:.digits$}", quantile * 100.0);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A latency for an axis: `500 µs`, `20 ms`.
fn latency_tick(micros: f64) -> String {
    let (number, unit) = match micros {
        m if m < 1e3 => (m, "µs"),
        m if m < 1e6 => (m / 1e3, "ms"),
        m => (m / 1e6, "s"),
    };
    format!("{} {unit}", (number * 1e3).round() / 1e3)
}

/// A number for an axis: `850`, `12k`, `0.5`.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", (v / 1e4).round() / 100.0),
        v if v >= 1e4 => format!("{}k", (v / 100.0).round() / 10.0),
        v if v >= 100.0 => format!("{v:.0}"),
        v => format!("{}", (v * 100.0).round() / 100.0),
    }
}

/// Tenths are as fine as lines are drawn.
fn round(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

/// Where each stretch is: in its middle.
fn places(stretches: &[Stretch<'_>], area: Area) -> Vec<f64> {
    let (from, span) = span(stretches);
    let middle = |stretch: &Stretch<'_>| (stretch.at - from) as f64 + stretch.seconds as f64 / 2.0;
    stretches.iter().map(|stretch| area.x(middle(stretch) / span)).collect()
}

fn time_ticks(stretches: &[Stretch<'_>], area: Area) -> Vec<(f64, String)> {
    let (from, span) = span(stretches);
    let step = chart::seconds_step(span);
    let ticks = (0..=(span / step) as u32).map(|nth| f64::from(nth) * step);
    ticks.map(|at| (area.x(at / span), chart::clock(from + at as u64))).collect()
}

/// The first second and how many there are.
fn span(stretches: &[Stretch<'_>]) -> (u64, f64) {
    match (stretches.first(), stretches.last()) {
        (Some(first), Some(last)) => (first.at, (last.at - first.at + last.seconds) as f64),
        _ => (0, 1.0),
    }
}

fn heads(stretches: &[Stretch<'_>], places: &[f64]) -> Vec<(f64, String)> {
    let head = |stretch: &Stretch<'_>| match stretch.seconds {
        1 => chart::clock(stretch.at),
        seconds => format!("{} to {}", chart::clock(stretch.at), chart::clock(stretch.at + seconds)),
    };
    stretches.iter().zip(places).map(|(stretch, x)| (round(*x), head(stretch))).collect()
}

/// A chart with its title and its boxes to tick. The title, the note, and what is drawn are ready for the page.
struct Figure<'a> {
    title: &'a str,
    note: &'a str,
    boxes: &'a str,
    height: f64,
    common: &'a str,
    /// What there is in two forms: with a logarithmic and with a linear scale.
    scaled: Option<[String; 2]>,
    hover: usize,
}

impl Figure<'_> {
    fn html(&self) -> String {
        let Self { title, note, boxes, height, common, scaled, hover } = self;
        let title = Text(title);
        let mut out =
            format!("<figure>\n<figcaption><h2>{title}</h2><p>{note}</p></figcaption>\n<div class=\"boxes\">{boxes}");
        if scaled.is_some() {
            let _ = write!(
                out,
                r#"<span class="scale"><label><input type="radio" name="scale{hover}" checked>log</label><label><input type="radio" name="scale{hover}" class="show-linear">linear</label></span>"#
            );
        }
        let _ = write!(
            out,
            "</div>\n<div class=\"wide\"><svg class=\"chart\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\" data-hover=\"{hover}\">{common}"
        );
        for (class, drawn) in ["log", "linear"].into_iter().zip(scaled.iter().flatten()) {
            let _ = write!(out, "\n<g class=\"{class}\">{drawn}</g>");
        }
        out + "<path class=\"pointer\"/></svg></div>\n</figure>\n"
    }
}

fn objectives(report: &Report) -> String {
    let rows = report.slos.iter().map(|slo| {
        let (class, judged) = if slo.met { ("good", "✓ met") } else { ("bad", "✗ missed") };
        (class, vec![slo.slo.clone(), slo.measured.clone(), judged.to_owned()])
    });
    table("Objectives", &["objective", "measured", ""], rows)
}

fn tables(report: &Report, colours: &Colours<'_>) -> String {
    let mut out = String::new();
    let account = &report.account;
    let mut rows = vec![
        ("sent".to_owned(), account.sent, false),
        ("answered".to_owned(), account.answered, false),
        ("answered with an error".to_owned(), account.error_status, true),
    ];
    rows.extend(account.failed.iter().map(|(kind, count)| (format!("failed: {kind}"), *count, true)));
    rows.extend([
        ("answered twice".to_owned(), account.answered_twice, true),
        ("lost".to_owned(), account.lost, true),
        ("out of order".to_owned(), account.out_of_order, true),
        ("moved to another arm".to_owned(), account.moved, false),
        ("not sent any more".to_owned(), account.unsent, false),
    ]);
    let rows = rows
        .into_iter()
        .map(|(name, count, bad)| (if bad && count > 0 { "bad" } else { "" }, vec![name, grouped(count)]));
    out += &table("Account", &["", "requests"], rows);

    let rows = report.series.iter().flat_map(|(name, series)| {
        let arms = series.arms.iter().map(move |(arm, latencies)| (format!("{name}, {}", named(arm)), latencies));
        std::iter::once((format!("{name}, all"), &series.all)).chain(arms)
    });
    let rows = rows.map(|(name, of)| {
        let times = [of.min, of.mean.round() as u64, of.p50, of.p90, of.p95, of.p99, of.p999, of.max];
        ("", [name, grouped(of.count)].into_iter().chain(times.map(time)).collect())
    });
    out += &table("Latencies", &["", "count", "min", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"], rows);

    let rows = report.arms.iter().map(|(label, arm)| {
        let share = format!("{:.2} %", arm.share * 100.0);
        let statuses = arm.statuses.iter().map(|(status, count)| format!("{status}: {}", grouped(*count)));
        let statuses = statuses.collect::<Vec<_>>().join(", ");
        let cells = [
            named(label).to_owned(),
            grouped(arm.answered),
            share,
            grouped(arm.keys),
            statuses,
            grouped(arm.error_status),
        ];
        (if arm.error_status > 0 { "bad" } else { "" }, cells.into())
    });
    out += &table("Arms", &["", "answered", "share", "keys", "statuses", "errors"], rows);

    let _ = writeln!(out, "<section><h2>Load generator</h2><p>{}</p></section>", Text(&terminal::lateness(report)));
    out + &seconds(report, colours)
}

fn seconds(report: &Report, colours: &Colours<'_>) -> String {
    let stretches = condensed::stretches(&report.seconds, ROWS);
    let Some(first) = stretches.first() else { return String::new() };
    let arms: Vec<_> =
        colours.arms.keys().copied().filter(|arm| condensed::arms(&report.seconds).contains(arm)).collect();
    let names = arms.iter().map(|arm| named(arm));
    let mut heading = vec!["second".to_owned(), "sent/s".to_owned()];
    heading.extend(names.flat_map(|arm| ["/s", " p50", " p99", " max"].map(|what| format!("{arm}{what}"))));
    heading.push("errors".to_owned());
    let heading: Vec<_> = heading.iter().map(String::as_str).collect();
    let rows = stretches.iter().map(|stretch| {
        let mut cells = vec![stretch.at.to_string(), short(stretch.a_second(stretch.sent))];
        for arm in &arms {
            let worst = |of: fn(&Latencies) -> u64| stretch.worst(Some(arm), of).map_or_else(|| "-".to_owned(), time);
            cells.push(short(stretch.a_second(stretch.answers(Some(arm)))));
            cells.extend(LINES.map(|(_, of)| worst(of)));
        }
        cells.push(grouped(stretch.errors));
        (if stretch.errors > 0 { "bad" } else { "" }, cells)
    });
    let title = match first.seconds {
        1 => "By the second".to_owned(),
        seconds => format!("By {seconds} seconds, each with its worst"),
    };
    let table = table("", &heading, rows);
    format!("<details><summary>{title}</summary>\n{table}</details>\n")
}

/// A table of text: a class and the cells of each row.
fn table(title: &str, heading: &[&str], rows: impl Iterator<Item = (&'static str, Vec<String>)>) -> String {
    let mut body = String::new();
    for (class, cells) in rows {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        let cells: String = cells.iter().map(|cell| format!("<td>{}</td>", Text(cell))).collect();
        let _ = writeln!(body, "<tr{class}>{cells}</tr>");
    }
    if body.is_empty() {
        return String::new();
    }
    let title = if title.is_empty() { String::new() } else { format!("<h2>{}</h2>", Text(title)) };
    let heading: String = heading.iter().map(|cell| format!("<th>{}</th>", Text(cell))).collect();
    format!(
        "<section>{title}<div class=\"wide\"><table>\n<thead><tr>{heading}</tr></thead>\n<tbody>\n{body}</tbody>\n\
         </table></div></section>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    /// What a page holds between these.
    fn between<'a>(page: &'a str, before: &str, after: &str) -> &'a str {
        page.split_once(before).unwrap().1.split_once(after).unwrap().0
    }

    #[test]
    fn everything_has_its_picture_and_its_table() {
        let page = page(&sample::report());
        for text in [
            "<title>http/1.1 to http://127.0.0.1:8080/</title>",
            "<p class=\"verdict bad\">1 of 2 objectives missed</p>",
            "2025-11-21 11:12:11 UTC, 40.0 s; 64 connections",
            "<h2>Latency over time</h2>",
            "<h2>Rate over time</h2>",
            "<h2>Percentiles: latency</h2>",
            "<h2>Objectives</h2>",
            "<tr class=\"good\"><td>p99&lt;100ms</td><td>93.2 ms</td><td>✓ met</td></tr>",
            "<td>latency, green</td><td>2 750</td>",
            "<summary>By the second</summary>",
        ] {
            assert!(page.contains(text), "{text}");
        }
        // Blue is blue and green is green.
        assert!(page.contains("class=\"line p99 c0 arm0\"") && page.contains("class=\"line p99 c3 arm1\""));
        let mqtt = super::page(&sample::mqtt());
        let series = ["ack", "connect", "delivery"];
        assert!(series.iter().all(|name| mqtt.contains(&format!("<h2>Percentiles: {name}</h2>"))));
    }

    #[test]
    fn nothing_from_outside_is_more_than_text() {
        const EVIL: &str = "</script><script>alert('1')</script>\"&amp;";
        let mut report = sample::report();
        report.run.target = EVIL.to_owned();
        report.run.protocol = EVIL.to_owned();
        report.run.id = EVIL.to_owned();
        report.end.complete = false;
        report.end.reason = Some(EVIL.to_owned());
        report.generator.warnings.push(EVIL.to_owned());
        report.slos[0].slo = EVIL.to_owned();
        report.slos[0].measured = EVIL.to_owned();
        report.account.failed.insert(EVIL.to_owned(), 1);
        let green = report.arms.remove("green").unwrap();
        report.arms.insert(EVIL.to_owned(), green);
        let mut series = report.series.remove("latency").unwrap();
        let green = series.arms.remove("green").unwrap();
        series.arms.insert(EVIL.to_owned(), green);
        report.series.insert(EVIL.to_owned(), series);
        for second in &mut report.seconds {
            if let Some(green) = second.arms.remove("green") {
                second.arms.insert(EVIL.to_owned(), green);
            }
        }

        let page = page(&report);
        assert!(!page.contains("<script>"));
        assert_eq!(page.matches("</script>").count(), 2, "the page has two scripts of its own");
        // The quotes are escaped in what is shown; in what is data nothing but the end of the script matters.
        assert!(!page.split_once("id=\"hovers\"").unwrap().0.contains("alert('1')"));
        let hovers: serde_json::Value = serde_json::from_str(between(&page, "id=\"hovers\">", "</script>")).unwrap();
        assert!(hovers[0]["columns"][0]["name"].as_str().unwrap().starts_with(EVIL));
    }

    #[test]
    fn a_page_asks_nobody_for_anything_and_runs_only_its_own_script() {
        let pages = [page(&sample::report()), page(&sample::report())];
        let nonces = pages.each_ref().map(|page| between(page, "script-src 'nonce-", "'"));
        assert_ne!(nonces[0], nonces[1]);
        for (page, nonce) in pages.iter().zip(nonces) {
            assert!(page.contains("content=\"default-src 'none';"));
            assert_eq!(page.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
            for external in [" src=", "href", "url(", "@import", " style=", " onclick", "fetch("] {
                assert!(!page.contains(external), "{external}");
            }
        }
    }

    #[test]
    fn elements_are_closed_in_their_order_and_numbers_are_finite() {
        let mut reports = vec![sample::report(), sample::mqtt()];
        let mut empty = sample::report();
        (empty.series, empty.arms, empty.seconds) = Default::default();
        empty.slos.clear();
        empty.account = Default::default();
        reports.push(empty);
        let mut single = sample::report();
        single.seconds.truncate(1);
        single.series.get_mut("latency").unwrap().arms.values_mut().for_each(|arm| arm.curve.clear());
        reports.push(single);
        let mut long = sample::report();
        long.seconds = (0..100_000).map(|at| super::super::Second { at, ..long.seconds[25].clone() }).collect();
        reports.push(long);

        for report in &reports {
            let page = page(report);
            assert!(page.len() < 1 << 20, "{} bytes", page.len());
            assert!(!page.contains("NaN") && !page.contains(">inf"), "{}", report.run.protocol);
            let body = between(&page, "<body>", "<script");
            let mut open = Vec::new();
            for tag in body.split('<').skip(1) {
                let (tag, _) = tag.split_once('>').unwrap();
                let name = tag.split([' ', '\n']).next().unwrap();
                match name.strip_prefix('/') {
                    Some(name) => assert_eq!(open.pop(), Some(name)),
                    None if tag.ends_with('/') || name == "input" => {}
                    None => open.push(name),
                }
            }
            assert!(open.is_empty(), "{open:?}");
        }
    }

    #[test]
    fn arms_keep_apart_as_long_as_there_are_colours() {
        let mut report = sample::report();
        let arm = report.arms["blue"].clone();
        report.arms = ["blue", "python", "go", "-"].map(|label| (label.to_owned(), arm.clone())).into();
        let colours = Colours::new(&report);
        let mut used: Vec<_> = colours.arms.values().collect();
        used.sort_unstable();
        used.dedup();
        assert_eq!((used.len(), colours.arms["blue"], colours.arms["green"]), (5, BLUE, GREEN));
        report.arms = (0..20).map(|nth| (nth.to_string(), arm.clone())).collect();
        assert_eq!(Colours::new(&report).arms.len(), 22);
    }

    #[test]
    fn numbers_for_axes_and_percentiles_are_short() {
        assert_eq!([0.5, 850.0, 12_300.0, 2_500_000.0].map(short), ["0.5", "850", "12.3k", "2.5M"]);
        assert_eq!([500.0, 2e4, 1.5e6].map(latency_tick), ["500 µs", "20 ms", "1.5 s"]);
        assert_eq!([0.0, 0.5, 0.95, 0.999, 0.99995].map(significant), ["0", "50", "95", "99.9", "99.995"]);
    }
}
