//! The random part of the pauses between attempts.

use crate::random::random;

/// Generates random numbers for the jitter of the back-off: xorshift64*, seeded by the standard library's random state.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Self {
        Random(random() | 1)
    }

    /// Returns a number that is uniformly distributed in 0..1.
    pub(super) fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high_bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        high_bits as f64 / 4_294_967_296.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_are_spread_over_the_whole_range() {
        let mut random = Random::new();
        let mut tenths = [0; 10];
        for _ in 0..10_000 {
            let number = random.next();
            assert!((0.0..1.0).contains(&number), "{number}");
            tenths[(number * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (700..1300).contains(count)), "{tenths:?}");
    }
}
