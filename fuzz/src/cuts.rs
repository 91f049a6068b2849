//! Where an input is cut, and what is made up around it: drawn from the input itself, so that a finding is one file.

/// A source of numbers, the same for the same input.
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn from(bytes: &[u8]) -> Self {
        // FNV-1a, then Marsaglia's xorshift64, whose state must not be 0.
        let hash = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Self(hash | 1)
    }

    /// From 0 to `bound` - 1; 0 when `bound` is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

/// The input in pieces of 1 to 64 bytes.
pub(crate) fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut draw = Draw::from(bytes);
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let longest = if draw.below(2) == 0 { 4 } else { 64 };
        let (piece, after) = rest.split_at((1 + draw.below(longest)).min(rest.len()));
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Lengths of prefixes of the input, in ascending order, with 0 and all of it: every one when they are few, else those
/// around `near` and some more.
pub(crate) fn prefixes(bytes: &[u8], near: usize) -> Vec<usize> {
    const FEW: usize = 64;
    if bytes.len() <= FEW {
        return (0..=bytes.len()).collect();
    }
    let mut draw = Draw::from(bytes);
    let mut ends: Vec<usize> = (0..24).map(|_| draw.below(bytes.len())).collect();
    ends.extend([0, bytes.len()]);
    ends.extend((near.saturating_sub(4)..=near + 4).filter(|end| *end <= bytes.len()));
    ends.sort_unstable();
    ends.dedup();
    ends
}
