//! Stage 3: picks an arm for a key. No sockets, no clock, no randomness.

use config::{Arm, BUCKETS, Split};
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

    /// The salt that decides which of blue's keys are a route's placebo. With the split's own, they would be the very
    /// ones that are green next.
    pub fn placebo(route: &str) -> Self {
        Self(xxh3_64_with_seed(route.as_bytes(), u64::from_be_bytes(*b"placebo.")))
    }
}

/// A key, hashed once: its bucket follows from it, and callers are told apart by it. Nothing leads back to the key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hashed(pub u64);

impl Hashed {
    pub fn of(salt: Salt, key: &[u8]) -> Self {
        Self(xxh3_64_with_seed(key, salt.0))
    }

    /// Below [`BUCKETS`]. 64 bits over 10 000 buckets leave a bias below 1e-15.
    pub fn bucket(self) -> u16 {
        (self.0 % u64::from(BUCKETS)) as u16
    }
}

/// The bucket of a key, below [`BUCKETS`].
pub fn bucket(salt: Salt, key: &[u8]) -> u16 {
    Hashed::of(salt, key).bucket()
}

/// A caller whose arm is decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decided {
    pub arm: Arm,
    /// Whether the split has sent it there.
    pub by_split: bool,
    /// Of blue: in the slice that the guard watches as if it were green, to see how often it would be wrong.
    pub placebo: bool,
    pub key: Hashed,
}

impl Decided {
    /// A caller that the split sends to an arm. `salt`: [`Salt::placebo`]. The placebo takes as large a share of all keys as
    /// green has, but of blue's no more than half: there must be a blue to compare it with.
    pub fn new(salt: Salt, split: Split, arm: Arm, key: Hashed) -> Self {
        let (green, blue) = (u32::from(split.buckets()), u32::from(split.complement().buckets()));
        let placebo = arm == Arm::Blue && green > 0 && {
            let bucket = u32::from(bucket(salt, &key.0.to_le_bytes()));
            bucket < u32::from(BUCKETS / 2) && bucket * blue < green * u32::from(BUCKETS)
        };
        Self { arm, by_split: true, placebo, key }
    }

    /// A caller that is sent to an arm whatever the split.
    pub fn sent_to(arm: Arm, key: Hashed) -> Self {
        Self { arm, by_split: false, placebo: false, key }
    }
}

#[cfg(test)]
mod tests {
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

    /// Which of 10 000 keys are blue's, and which of those the placebo's.
    fn blue_and_placebo(percent: f64) -> (Vec<u32>, Vec<u32>) {
        let split = Split::from_percent(percent).unwrap();
        let decided = |n: &u32| {
            let key = Hashed::of(Salt::split("shop"), format!("user-{n}").as_bytes());
            Decided::new(Salt::placebo("shop"), split, split.arm(key.bucket()), key)
        };
        let blue: Vec<_> = (0..10_000).filter(|n| decided(n).arm == Arm::Blue).collect();
        let placebo = (0..10_000).filter(|n| decided(n).placebo).collect();
        (blue, placebo)
    }

    #[test]
    fn the_placebo_is_of_blue_and_as_large_as_green_as_far_as_blue_reaches() {
        for (percent, expected) in
            [(0.0, 0), (0.01, 1), (1.0, 100), (10.0, 1000), (33.33, 3333), (50.0, 2500), (90.0, 500), (100.0, 0)]
        {
            let (blue, placebo) = blue_and_placebo(percent);
            assert!(placebo.iter().all(|key| blue.contains(key)), "not of blue at {percent} %");
            let off = placebo.len().abs_diff(expected) as f64;
            // Four standard deviations.
            assert!(off <= 4.0 * (expected as f64).sqrt(), "{} of 10000 keys at {percent} %", placebo.len());
        }
    }

    #[test]
    fn the_placebo_is_not_what_turns_green_next() {
        let (blue, placebo) = blue_and_placebo(10.0);
        let (still_blue, _) = blue_and_placebo(55.0);
        let left = |keys: &[u32]| keys.iter().filter(|key| still_blue.contains(key)).count() as f64 / keys.len() as f64;
        let (all, slice) = (left(&blue), left(&placebo));
        assert!((all - slice).abs() < 0.07, "{slice} of the placebo stays blue, and {all} of blue");
    }

    #[test]
    fn routes_and_the_mirror_are_salted_apart() {
        let share = |salt: Salt| {
            let half = Split::from_percent(50.0).unwrap();
            let (a, b) = (green(Salt::split("shop"), half), green(salt, half));
            a.iter().filter(|key| b.contains(key)).count()
        };
        for other in [Salt::split("shop2"), Salt::mirror("shop"), Salt::placebo("shop")] {
            assert!((2300..=2700).contains(&share(other)), "independent halves share a quarter, not {}", share(other));
        }
    }
}
