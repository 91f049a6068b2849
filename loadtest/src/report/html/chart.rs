//! Charts as SVG. Pure geometry: values go in, elements come out.

use std::fmt::Write;

use serde::Serialize;

/// A chart's size, in the units of its drawing.
pub(super) const WIDTH: f64 = 960.0;

/// The part of a drawing that values are drawn in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

impl Area {
    /// All the width that labels leave.
    pub(super) fn between(top: f64, bottom: f64) -> Self {
        Self { left: 66.0, right: WIDTH - 14.0, top, bottom }
    }

    pub(super) fn x(&self, share: f64) -> f64 {
        self.left + (self.right - self.left) * share
    }

    pub(super) fn y(&self, share: f64) -> f64 {
        self.bottom - (self.bottom - self.top) * share
    }
}

/// Where values are along an axis.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scale {
    /// From 0, with a tick every `step`.
    Linear { to: f64, step: f64 },
    /// Both ends are 1, 2 or 5 times a power of ten.
    Log { from: f64, to: f64 },
}

impl Scale {
    /// From 0 to `most` or a little more.
    pub(super) fn linear(most: f64) -> Self {
        let most = if most > 0.0 { most } else { 1.0 };
        let step = at_least(most / 5.0);
        Self::Linear { to: (most / step).ceil() * step, step }
    }

    /// From `least` or a little less to `most` or a little more, both above 0.
    pub(super) fn log(least: f64, most: f64) -> Self {
        let from = at_most(least.max(1.0));
        let to = at_least(most.max(1.0));
        Self::Log { from, to: if to > from { to } else { from * 10.0 } }
    }

    /// 0 at the beginning of the axis, 1 at its end.
    pub(super) fn at(&self, value: f64) -> f64 {
        match *self {
            Self::Linear { to, .. } => value / to,
            Self::Log { from, to } => (value.max(from) / from).ln() / (to / from).ln(),
        }
    }

    /// Values to be named.
    pub(super) fn ticks(&self) -> Vec<f64> {
        match *self {
            Self::Linear { to, step } => (0..=(to / step).round() as u32).map(|nth| f64::from(nth) * step).collect(),
            Self::Log { from, to } => {
                let factors: &[f64] = if to / from > 2e4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let decades = from.log10().floor() as i32..=to.log10().ceil() as i32;
                let ticks = decades.flat_map(|decade| factors.iter().map(move |factor| factor * 10_f64.powi(decade)));
                ticks.filter(|tick| *tick >= from * 0.999 && *tick <= to * 1.001).collect()
            }
        }
    }
}

/// The least of 1, 2 and 5 times a power of ten that is not below `value`.
fn at_least(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    // A little less, so that 0.1 + 0.2 is 0.3.
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|nice| value <= nice * 1.000_001)
        .unwrap_or(power * 10.0)
}

/// The greatest of 1, 2 and 5 times a power of ten that is not above `value`.
fn at_most(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [5.0, 2.0].into_iter().map(|factor| factor * power).find(|nice| *nice <= value * 1.000_001).unwrap_or(power)
}

/// Seconds between the ticks of a run so long.
pub(super) fn seconds_step(seconds: f64) -> f64 {
    const STEPS: [f64; 14] =
        [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21_600.0];
    STEPS.into_iter().find(|step| seconds / step <= 12.0).unwrap_or(86_400.0)
}

/// A time of a run: `45 s`, `3:20`, `1:02:00`.
pub(super) fn clock(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=3599 => format!("{}:{:02}", seconds / 60, seconds % 60),
        _ => format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
    }
}

/// The `d` of a line through points, interrupted where one is missing.
pub(super) fn line(points: impl IntoIterator<Item = Option<(f64, f64)>>) -> String {
    let mut d = String::new();
    let mut lonely = false;
    let mut begun = false;
    for point in points {
        match point {
            // With round ends a line of no length is a dot.
            None if lonely => d.push_str("h0"),
            None => {}
            Some((x, y)) => {
                let _ = write!(d, "{}{x:.1} {y:.1}", if begun { "L" } else { "M" });
            }
        }
        lonely = point.is_some() && !begun;
        begun = point.is_some();
    }
    if lonely {
        d.push_str("h0");
    }
    d
}

/// The `d` of the surface between two lines over the same places.
pub(super) fn surface(places: &[f64], upper: &[f64], lower: &[f64]) -> String {
    let there = places.iter().zip(upper);
    let back = places.iter().zip(lower).rev();
    line(there.chain(back).map(|(x, y)| Some((*x, *y)))) + "Z"
}

/// Lines across, and the names of their values at the left.
pub(super) fn across(area: Area, scale: Scale, name: impl Fn(f64) -> String) -> String {
    let mut out = String::new();
    for tick in scale.ticks() {
        let y = area.y(scale.at(tick));
        let Area { left, right, .. } = area;
        let _ = write!(
            out,
            r#"<path class="grid" d="M{left:.1} {y:.1}H{right:.1}"/><text class="end" x="{:.1}" y="{:.1}">{}</text>"#,
            left - 8.0,
            y + 4.0,
            name(tick)
        );
    }
    out
}

/// Names below, with lines up to the top: places and what to write there.
pub(super) fn below(area: Area, ticks: impl IntoIterator<Item = (f64, String)>) -> String {
    let mut out = String::new();
    for (x, name) in ticks {
        let Area { top, bottom, .. } = area;
        let _ = write!(
            out,
            r#"<path class="grid" d="M{x:.1} {top:.1}V{bottom:.1}"/><text class="mid" x="{x:.1}" y="{:.1}">{name}</text>"#,
            bottom + 18.0
        );
    }
    out
}

/// What is shown beside the pointer: for places along the x axis, names of the place and values.
#[derive(Debug, Serialize)]
pub(super) struct Hover {
    /// How far from the pointer a value may be to be shown.
    pub(super) reach: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
    pub(super) heads: Vec<(f64, String)>,
    pub(super) columns: Vec<Column>,
}

/// One line's values.
#[derive(Debug, Serialize)]
pub(super) struct Column {
    pub(super) name: String,
    /// Classes of the line, for its colour and whether it is hidden.
    pub(super) class: String,
    pub(super) points: Vec<(f64, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_hold_their_values_and_name_round_ones() {
        for (most, ticks) in [
            (0.0, &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0][..]),
            (1.0, &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (480.0, &[0.0, 100.0, 200.0, 300.0, 400.0, 500.0]),
            (1001.0, &[0.0, 500.0, 1000.0, 1500.0]),
        ] {
            let scale = Scale::linear(most);
            let found = scale.ticks();
            assert!(
                found.iter().zip(ticks).all(|(a, b)| (a - b).abs() < 1e-9) && found.len() == ticks.len(),
                "{found:?}"
            );
            assert!(scale.at(most) <= 1.0);
        }
        for (least, most, ticks) in [
            (900.0, 73_000.0, &[500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5][..]),
            (3.0, 9e6, &[10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7]),
            (1000.0, 1000.0, &[1e3, 2e3, 5e3, 1e4]),
            (0.0, 0.0, &[1.0, 2.0, 5.0, 10.0]),
        ] {
            let scale = Scale::log(least, most);
            let found = scale.ticks();
            assert!(
                found.iter().zip(ticks).all(|(a, b)| (a / b - 1.0).abs() < 1e-9) && found.len() == ticks.len(),
                "{found:?}"
            );
            assert!(scale.at(least) >= 0.0 && scale.at(most) <= 1.000_001, "{least} {most}");
        }
    }

    #[test]
    fn lines_are_interrupted_where_nothing_was_measured() {
        let point = |x: u8| Some((f64::from(x), 1.0));
        assert_eq!(
            line([point(1), point(2), None, point(3), None, None, point(4)]),
            "M1.0 1.0L2.0 1.0M3.0 1.0h0M4.0 1.0h0"
        );
        assert_eq!(line([]), "");
        assert_eq!(surface(&[1.0, 2.0], &[5.0, 6.0], &[8.0, 9.0]), "M1.0 5.0L2.0 6.0L2.0 9.0L1.0 8.0Z");
    }

    #[test]
    fn times_of_a_run() {
        assert_eq!([0, 119, 200, 3720].map(clock), ["0 s", "119 s", "3:20", "1:02:00"]);
        assert_eq!([5.0, 12.0, 40.0, 600.0, 1e7].map(seconds_step), [1.0, 1.0, 5.0, 60.0, 86_400.0]);
    }
}
