//! A share as JSON says it: `10`, `12.5`; whole numbers without a fraction.

use config::Split;
use serde::{Serialize, Serializer};

/// Green's share, or what is left for blue, in per cent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Percent(pub(crate) Split);

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(&self.0, serializer)
    }
}

pub(crate) fn serialize<S: Serializer>(split: &Split, serializer: S) -> Result<S::Ok, S::Error> {
    if split.buckets().is_multiple_of(100) {
        serializer.serialize_u16(split.buckets() / 100)
    } else {
        serializer.serialize_f64(split.percent())
    }
}

pub(crate) fn serialize_option<S: Serializer>(split: &Option<Split>, serializer: S) -> Result<S::Ok, S::Error> {
    split.map(Percent).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_shares_have_no_fraction() {
        for (buckets, expected) in
            [(0, "0"), (1, "0.01"), (1000, "10"), (1250, "12.5"), (9999, "99.99"), (10_000, "100")]
        {
            let split = Split::from_buckets(buckets).unwrap();
            assert_eq!(serde_json::to_string(&Percent(split)).unwrap(), expected);
        }
    }
}
