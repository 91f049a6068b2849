//! Stage 3: picks an arm for a key. No sockets, no clock, no randomness.

use config::BUCKETS;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Makes the same key fall into unrelated buckets on different routes and for different purposes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Salt(u64);

impl Salt {
    /// The salt that decides a route's arms. It follows from the name alone, so every instance and every restart
    /// decides alike.
    pub fn split(route: &str) -> Self {
        Self(xxh3_64(route.as_bytes()))
    }

    /// The salt that decides which keys a route mirrors. With the split's own, the mirrored keys would be the very
    /// ones that are green first.
    pub fn mirror(route: &str) -> Self {
        Self(xxh3_64_with_seed(route.as_bytes(), u64::from_be_bytes(*b"mirrored")))
    }
}

/// The bucket of a key, below [`BUCKETS`]. 64 bits over 10 000 buckets leave a bias below 1e-15.
pub fn bucket(salt: Salt, key: &[u8]) -> u16 {
    (xxh3_64_with_seed(key, salt.0) % u64::from(BUCKETS)) as u16
}

#[cfg(test)]
mod tests {
    use config::{Arm, Split};

    use super::*;

    fn green(salt: Salt, split: Split) -> Vec<u32> {
        (0..10_000).filter(|n| split.arm(bucket(salt, format!("user-{n}").as_bytes())) == Arm::Green).collect()
    }

    #[test]
    fn raising_the_split_only_adds_keys_and_lowering_it_only_removes_some() {
        let salt = Salt::split("shop");
        let ten = green(salt, Split::from_percent(10.0).unwrap());
        let quarter = green(salt, Split::from_percent(25.0).unwrap());
        assert!((900..=1100).contains(&ten.len()), "{} of 10000 keys at 10 %", ten.len());
        assert!((2350..=2650).contains(&quarter.len()), "{} of 10000 keys at 25 %", quarter.len());
        assert!(ten.iter().all(|key| quarter.contains(key)));
        assert_eq!(ten, green(salt, Split::from_percent(10.0).unwrap()));
        assert!(green(salt, Split::NONE).is_empty());
        assert_eq!(green(salt, Split::ALL).len(), 10_000);
    }

    #[test]
    fn a_bucket_never_changes_between_releases() {
        // Stickiness across upgrades hangs on these: never adjust them to a new hash.
        assert_eq!(bucket(Salt::split("shop"), b"user-1"), 7380);
        assert_eq!(bucket(Salt::split("broker"), b"device-1"), 9016);
        assert_eq!(bucket(Salt::mirror("shop"), b"user-1"), 2109);
    }

    #[test]
    fn routes_and_the_mirror_are_salted_apart() {
        let share = |salt: Salt| {
            let half = Split::from_percent(50.0).unwrap();
            let (a, b) = (green(Salt::split("shop"), half), green(salt, half));
            a.iter().filter(|key| b.contains(key)).count()
        };
        for other in [Salt::split("shop2"), Salt::mirror("shop")] {
            assert!((2300..=2700).contains(&share(other)), "independent halves share a quarter, not {}", share(other));
        }
    }
}
