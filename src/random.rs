//! Random numbers that are good enough to spread load and back-off; not for secrets.

use std::hash::{BuildHasher, RandomState};

/// A random number. Each `RandomState` of the standard library has other keys, seeded by the system.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}
