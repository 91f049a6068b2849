//! Who sends each request: a population of callers, and how often each of them calls. Pure.

/// The most keys: with Zipf's law each takes 8 bytes of a table.
pub const MAX_KEYS: u64 = 10_000_000;

/// Callers `user-0`, `user-1` and so on.
#[derive(Clone, Debug)]
pub struct Keys {
    count: u64,
    /// Zipf: the share of requests of the first n + 1 keys, for each n.
    cumulative: Option<Vec<f64>>,
}

impl Keys {
    /// `count` keys that call equally often. Errors, with the cure: none, or too many.
    pub fn uniform(count: u64) -> Result<Self, String> {
        match count {
            1..=MAX_KEYS => Ok(Self { count, cumulative: None }),
            _ => Err(format!("{count} keys; give 1 to {MAX_KEYS}")),
        }
    }

    /// `count` keys of which the n-th calls in proportion to `1 / n^exponent`. Errors, with the cure: as for
    /// [`uniform`](Self::uniform), or an exponent that is not above 0.
    pub fn zipf(count: u64, exponent: f64) -> Result<Self, String> {
        if !(exponent > 0.0 && exponent <= 10.0) {
            return Err(format!("a Zipf exponent of {exponent}; give one above 0, 10 at most; 1 is the classic"));
        }
        let keys = Self::uniform(count)?;
        let mut sum = 0.0;
        let weights = (1..=count).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        let mut cumulative: Vec<f64> = weights.collect();
        cumulative.iter_mut().for_each(|share| *share /= sum);
        Ok(Self { cumulative: Some(cumulative), ..keys })
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The key of request `number`: always the same one, and without any pattern that a schedule could fall in step with.
    pub fn of(&self, number: u32) -> u64 {
        let mixed = mix(u64::from(number));
        match &self.cumulative {
            // The top 64 bits of the product: `mixed` scaled to 0..count.
            None => ((u128::from(mixed) * u128::from(self.count)) >> 64) as u64,
            Some(cumulative) => {
                let share = (mixed >> 11) as f64 / (1_u64 << 53) as f64;
                (cumulative.partition_point(|upto| *upto <= share) as u64).min(self.count - 1)
            }
        }
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(keys: &Keys, requests: u32) -> Vec<u32> {
        let mut counts = vec![0; keys.count() as usize];
        (0..requests).for_each(|number| counts[keys.of(number) as usize] += 1);
        counts
    }

    #[test]
    fn uniform_keys_call_equally_often() {
        let counts = counts(&Keys::uniform(100).unwrap(), 100_000);
        // Five standard deviations of a binomial with p = 1 %.
        assert!(counts.iter().all(|count| (840..=1160).contains(count)), "{counts:?}");
    }

    #[test]
    fn zipf_keys_call_by_rank() {
        let counts = counts(&Keys::zipf(1000, 1.0).unwrap(), 200_000);
        let first = f64::from(counts[0]);
        for rank in [2, 4, 8, 16] {
            let ratio = first / f64::from(counts[rank - 1]);
            assert!((ratio / rank as f64 - 1.0).abs() < 0.1, "rank {rank}: {ratio}");
        }
        assert_eq!(Keys::zipf(1, 1.0).unwrap().of(7), 0);
    }

    #[test]
    fn impossible_populations_are_refused() {
        for keys in [Keys::uniform(0), Keys::uniform(MAX_KEYS + 1), Keys::zipf(10, 0.0), Keys::zipf(10, f64::NAN)] {
            assert!(keys.unwrap_err().contains("; give"));
        }
    }
}
