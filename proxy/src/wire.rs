//! Pure parsers of what a peer sends first: no I/O, no clock. Each is called again with all bytes so far whenever more
//! have arrived, and gives the same answer however the bytes were cut.

pub mod chunked;
pub mod client_hello;
pub mod http1;
pub mod mqtt;

/// Inputs for the property tests: reproducible from a printed seed.
#[cfg(test)]
mod seeded {
    use std::hash::{BuildHasher, Hasher, RandomState};

    /// Marsaglia's xorshift64: enough to reach odd inputs, and the same on every machine.
    pub(super) struct Xorshift(u64);

    impl Xorshift {
        /// Takes the seed from `WIRE_SEED`, else a fresh one, and prints it: the test runner shows it on failure.
        pub(super) fn from_env() -> Self {
            let seed = std::env::var("WIRE_SEED")
                .ok()
                .and_then(|seed| seed.parse().ok())
                .unwrap_or_else(|| RandomState::new().build_hasher().finish());
            eprintln!("WIRE_SEED={seed}");
            Self(seed | 1)
        }

        pub(super) fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        /// From 0 to `bound` - 1; 0 when `bound` is 0.
        pub(super) fn below(&mut self, bound: usize) -> usize {
            (self.next() % bound.max(1) as u64) as usize
        }

        pub(super) fn pick<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
            choices[self.below(choices.len())]
        }

        pub(super) fn bytes(&mut self, most: usize) -> Vec<u8> {
            (0..self.below(most + 1)).map(|_| self.next() as u8).collect()
        }

        /// Damages a valid input in one to four places: a byte changed, taken out or put in, a stretch repeated or cut
        /// off, or one of `fragments` put in.
        pub(super) fn mutate(&mut self, bytes: &mut Vec<u8>, fragments: &[&[u8]]) {
            for _ in 0..=self.below(4) {
                let at = self.below(bytes.len());
                match self.below(7) {
                    0 if !bytes.is_empty() => bytes[at] = self.next() as u8,
                    1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                    2 if !bytes.is_empty() => drop(bytes.remove(at)),
                    3 => bytes.insert(at, self.next() as u8),
                    4 => {
                        let stretch = bytes[at..(at + self.below(16)).min(bytes.len())].to_vec();
                        bytes.splice(at..at, stretch);
                    }
                    5 if self.below(4) == 0 => bytes.truncate(at),
                    _ if !fragments.is_empty() => drop(bytes.splice(at..at, self.pick(fragments).iter().copied())),
                    _ => {}
                }
            }
        }
    }
}
