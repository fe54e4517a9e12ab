//! Random numbers that are good enough to spread load and back-off; not for secrets.

use std::hash::{BuildHasher, RandomState};

/// Returns a random number: the hash of a constant under the keys of a new `RandomState`. The standard library gets the
/// first keys of each thread from the system, and changes them for each further `RandomState`.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}
