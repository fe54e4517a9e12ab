//! What a client shows, and what the file says it should, as digests that can be looked up and tell nothing.
//!
//! A token, or a user with a password, becomes one [`Digest`] under a key that only this process knows. So a table of
//! them can be searched: which of its places a look-up touches, and how long that takes, has nothing to do
//! with anything a client could compute.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use super::authorization::{Shown, is_token};
use crate::config::{Problems, Section};

/// What is wrong where there is not exactly one secret.
const ONE_SECRET: &str = "must have exactly one of token, token_sha256, or user with password or password_sha256";

/// SHA-256 of something. Compared in constant time; `Debug` hides it.
#[derive(Clone, Copy, Eq)]
pub(super) struct Digest([u8; 32]);

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(hidden)")
    }
}

impl Digest {
    fn of(bytes: &[u8]) -> Self {
        Digest(Sha256::digest(bytes).into())
    }

    /// Parses 64 hexadecimal digits.
    fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
        }
        Some(Digest(bytes))
    }

    /// Nobody can compute with it who does not have it: 256 bits out of the 128 random ones of the standard library.
    pub(super) fn random() -> Self {
        let random = RandomState::new();
        let mut hash = Sha256::new();
        (0..4_u8).for_each(|number| hash.update(random.hash_one(number).to_ne_bytes()));
        Digest(hash.finalize().into())
    }
}

/// What identifies a client, as digests.
#[derive(Clone, Copy)]
pub(super) enum Secret {
    Bearer(Digest),
    Basic(Digest, Digest),
}

impl Secret {
    /// Takes the keys of a secret; `None` only together with a problem.
    pub(super) fn from_section(entry: &mut Section, problems: &mut Problems) -> Option<Self> {
        let n_given = |keys: [&str; 2]| keys.iter().filter(|key| entry.has(key)).count();
        let (n_tokens, n_passwords) = (n_given(["token", "token_sha256"]), n_given(["password", "password_sha256"]));
        if n_tokens + n_passwords != 1 || entry.has("user") != (n_passwords == 1) {
            for key in ["token", "token_sha256", "user", "password", "password_sha256"] {
                entry.take(key);
            }
            entry.note("", ONE_SECRET, problems);
            return None;
        }
        if n_tokens == 1 {
            let good = (is_token as fn(&[u8]) -> bool, "made of a-z A-Z 0-9 - . _ ~ + /, and = at its end");
            return digest("token", "token_sha256", good, entry, problems).map(Secret::Bearer);
        }
        let before = problems.0.len();
        let user = entry.string("user", None, problems);
        let is_user = !user.is_empty() && is_text(user.as_bytes()) && !user.contains(':');
        if !is_user && problems.0.len() == before {
            entry.note("user", "must be a string that is not empty, without a colon and control characters", problems);
        }
        let good = (is_password as fn(&[u8]) -> bool, "not empty, and without control characters");
        let password = digest("password", "password_sha256", good, entry, problems)?;
        is_user.then(|| Secret::Basic(Digest::of(user.as_bytes()), password))
    }

    pub(super) fn of(shown: &Shown<'_>) -> Self {
        match shown {
            Shown::Bearer(token) => Secret::Bearer(Digest::of(token)),
            Shown::Basic(user, password) => Secret::Basic(Digest::of(user), Digest::of(password)),
        }
    }

    /// The digest it is looked up by.
    pub(super) fn id(&self, key: &Digest) -> Digest {
        let mut hash = Sha256::new_with_prefix(key.0);
        match self {
            Secret::Bearer(token) => {
                hash.update(b"bearer");
                hash.update(token.0);
            }
            Secret::Basic(user, password) => {
                hash.update(b"basic");
                hash.update(user.0);
                hash.update(password.0);
            }
        }
        Digest(hash.finalize().into())
    }
}

fn is_text(bytes: &[u8]) -> bool {
    !bytes.iter().any(u8::is_ascii_control)
}

fn is_password(bytes: &[u8]) -> bool {
    !bytes.is_empty() && is_text(bytes)
}

/// The secret under whichever key it is; `good` says what it must be where it is given as it is.
fn digest(
    plain: &str,
    hashed: &str,
    good: (fn(&[u8]) -> bool, &str),
    entry: &mut Section,
    problems: &mut Problems,
) -> Option<Digest> {
    if entry.has(plain) {
        let before = problems.0.len();
        let secret = entry.string(plain, None, problems);
        if good.0(secret.as_bytes()) {
            return Some(Digest::of(secret.as_bytes()));
        }
        if problems.0.len() == before {
            entry.note(plain, format!("must be {}", good.1), problems);
        }
        return None;
    }
    let before = problems.0.len();
    let digest = Digest::parse(&entry.string(hashed, None, problems));
    if digest == Some(Digest::of(b"")) {
        entry.note(hashed, "is the SHA-256 of nothing", problems);
        return None;
    }
    if digest.is_none() && problems.0.len() == before {
        entry.note(hashed, "must be 64 hexadecimal digits, a SHA-256", problems);
    }
    digest
}
