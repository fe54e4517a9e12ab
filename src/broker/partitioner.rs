//! The partitioners: pure functions from a key to a partition.
//!
//! Two partitioners for messages with a key: `fnv1a` of the original (32-bit FNV-1a read as a signed number, remainder,
//! then absolute value) and `murmur2` of the Java client. The tables in the tests come from the Go standard library and
//! the Java client; an end-to-end test compares `murmur2` with the real Java client.
//!
//! [`Spread`] distributes messages without a key evenly.

use std::num::NonZeroI32;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{PartitionId, PartitionerKind};
use crate::random::random;

/// Returns the partition of `key` among `partition_count`, which must be positive.
pub fn partition_of(kind: PartitionerKind, key: &[u8], partition_count: NonZeroI32) -> PartitionId {
    match kind {
        PartitionerKind::Fnv1a => (fnv1a(key).cast_signed() % partition_count.get()).abs(),
        PartitionerKind::Murmur2 => (murmur2(key).cast_signed() & i32::MAX) % partition_count.get(),
    }
}

/// 32-bit FNV-1a.
pub fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// 32-bit MurmurHash2 with the seed of the Java client.
pub fn murmur2(bytes: &[u8]) -> u32 {
    const MULTIPLIER: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;

    // The length modulo 2^32, like Java's `int`.
    let mut hash = SEED ^ (bytes.len() as u32);
    let (words, tail) = bytes.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        mixed ^= mixed >> 24;
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed.wrapping_mul(MULTIPLIER);
    }
    if !tail.is_empty() {
        let rest = tail.iter().rev().fold(0, |rest, &byte| (rest << 8) | u32::from(byte));
        hash = (hash ^ rest).wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

/// A uniform random partitioner for messages without a key; shared by threads. Not a source of secret random numbers.
#[derive(Debug)]
pub struct Spread {
    state: AtomicU64,
}

impl Default for Spread {
    fn default() -> Self {
        Self::seeded(random())
    }
}

impl Spread {
    /// Makes a partitioner whose sequence depends on the seed only.
    pub fn seeded(seed: u64) -> Self {
        Spread { state: AtomicU64::new(seed) }
    }

    /// Returns a random partition, below `partition_count`.
    pub fn next(&self, partition_count: NonZeroI32) -> PartitionId {
        // SplitMix64: the only shared step is one atomic add.
        let mut mixed = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let thirty_one_bits = ((mixed ^ (mixed >> 31)) >> 33) as i32;
        thirty_one_bits % partition_count.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(partitions: i32) -> NonZeroI32 {
        NonZeroI32::new(partitions).expect("the tables have partitions")
    }

    /// Key, its hash by New32a of Go's `hash/fnv`, its hash by `org.apache.kafka.common.utils.Utils.murmur2` of the
    /// Java client 3.9.
    const VECTORS: [(&str, u32, i32); 17] = [
        ("", 2_166_136_261, 275_646_681),
        ("a", 3_826_002_220, -1_563_381_124),
        ("b", 3_876_335_077, -1_853_091_852),
        ("ab", 1_294_271_946, 316_155_434),
        ("abc", 440_920_331, 479_470_107),
        ("abcd", 3_459_545_533, -1_323_649_548),
        ("abcde", 1_956_368_136, 461_995_741),
        ("21", 2_364_708_844, -973_932_308),
        ("foobar", 3_214_735_720, -790_332_482),
        ("a-little-bit-long-string", 3_718_449_192, -985_981_536),
        ("a-little-bit-longer-string", 780_662_313, -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", 389_149_966, -58_897_971),
        ("user-1", 4_115_888_500, 1_404_122_828),
        ("user-42", 39_875_499, 1_459_644_460),
        ("0123456789", 4_185_952_242, -631_703_640),
        ("中文键", 1_808_689_402, -1_179_355_498),
        ("hello world", 3_582_672_807, 1_221_641_059),
    ];

    #[test]
    fn hashes_are_those_of_go_and_java() {
        for (key, fnv, murmur) in VECTORS {
            assert_eq!(fnv1a(key.as_bytes()), fnv, "{key}");
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), murmur, "{key}");
        }
    }

    #[test]
    fn a_negative_hash_is_handled_as_in_go_and_in_java() {
        // "abc" hashes to 0x1a47e90b (positive), "a" to 0xe40c292c (negative) under FNV-1a; "21" to -973932308 under
        // murmur2.
        for (key, partitions, expected) in
            [("abc", 7, 0x1a47_e90b % 7), ("a", 7, (0xe40c_292c_u32.cast_signed() % 7).abs())]
        {
            assert_eq!(partition_of(PartitionerKind::Fnv1a, key.as_bytes(), count(partitions)), expected);
        }
        assert_eq!(partition_of(PartitionerKind::Murmur2, b"21", count(8)), (-973_932_308 & i32::MAX) % 8);
    }

    proptest! {
        #[test]
        fn every_key_goes_to_an_existing_partition(key: Vec<u8>, partitions in 1..=i32::MAX) {
            for kind in [PartitionerKind::Fnv1a, PartitionerKind::Murmur2] {
                let chosen = partition_of(kind, &key, count(partitions));
                prop_assert!((0..partitions).contains(&chosen));
            }
        }
    }

    #[test]
    fn messages_without_a_key_are_spread_evenly() {
        let spread = Spread::seeded(7);
        let mut found = [0_u32; 8];
        for _ in 0..80_000 {
            found[spread.next(count(8)) as usize] += 1;
        }
        assert!(found.iter().all(|&found| (9_500..10_500).contains(&found)), "{found:?}");
    }
}
