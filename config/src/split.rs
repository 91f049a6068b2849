//! Shares and arms: the two words everything else is about.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Keys fall into this many buckets; a split is counted in them.
pub const BUCKETS: u16 = 10_000;

/// Blue is the system that runs today, green its rewrite.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    Blue,
    Green,
}

impl Arm {
    pub const BOTH: [Self; 2] = [Self::Blue, Self::Green];

    /// `blue` or `green`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Green => "green",
        }
    }

    pub fn other(self) -> Self {
        match self {
            Self::Blue => Self::Green,
            Self::Green => Self::Blue,
        }
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Green's share in buckets of [`BUCKETS`], that is in hundredths of a percent. A key is green when its bucket is
/// below the split, so raising it only adds keys to green and lowering it only removes some.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Split(u16);

/// Says what is wrong with a number that was meant to be a share.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum NotAPercentage {
    #[error("{0} is not between 0 and 100")]
    OutOfRange(f64),
    #[error("{0} is finer than a hundredth of a percent")]
    TooFine(f64),
}

impl Split {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(BUCKETS);

    /// A share from per cent, in steps of 0.01. Errors: not finite, negative, above 100, or finer than a step.
    pub fn from_percent(percent: f64) -> Result<Self, NotAPercentage> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(NotAPercentage::OutOfRange(percent));
        }
        let exact = percent * 100.0;
        let buckets = exact.round();
        // 0.1 + 0.2 must pass, and 1e-9 must not: the tolerance is some hundred times what rounding costs here.
        if (buckets - exact).abs() > 1e-10 {
            return Err(NotAPercentage::TooFine(percent));
        }
        Ok(Self(buckets as u16))
    }

    /// A share from buckets; above [`BUCKETS`] there is none.
    pub fn from_buckets(buckets: u16) -> Option<Self> {
        (buckets <= BUCKETS).then_some(Self(buckets))
    }

    pub fn buckets(self) -> u16 {
        self.0
    }

    /// Green's share in per cent.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// What is left for blue.
    pub fn complement(self) -> Self {
        Self(BUCKETS - self.0)
    }

    /// Which arm a bucket below [`BUCKETS`] belongs to.
    pub fn arm(self, bucket: u16) -> Arm {
        if bucket < self.0 { Arm::Green } else { Arm::Blue }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent())
    }
}
