//! Digests of secrets: of the credentials that a client presents, and of those in `credentials_file`.
//!
//! A token, or a user with a password, becomes one [`SecretDigest`] with a random key, which is new at each load of the
//! file. So a look-up in a hash table leaks nothing: a client cannot compute which entries it touches, or how long it
//! takes.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use super::authorization::{PresentedCredentials, is_token};
use crate::config::{Problems, Section};

/// Problem text for a credential that does not have exactly one secret.
const ONE_SECRET: &str = "must have exactly one of token, token_sha256, or user with password or password_sha256";

/// A SHA-256 digest. It is compared in constant time, and `Debug` hides it.
#[derive(Clone, Copy, Eq)]
pub(crate) struct SecretDigest([u8; 32]);

impl PartialEq for SecretDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Hash for SecretDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for SecretDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(hidden)")
    }
}

impl SecretDigest {
    fn of(bytes: &[u8]) -> Self {
        SecretDigest(Sha256::digest(bytes).into())
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
        Some(SecretDigest(bytes))
    }

    /// Returns a random key, made with SHA-256 from the 128 random bits of the standard library's [`RandomState`].
    pub(crate) fn random() -> Self {
        // Four hashes of 64 bits spread the random bits over the whole key.
        let random = RandomState::new();
        let mut hash = Sha256::new();
        (0..4_u8).for_each(|number| hash.update(random.hash_one(number).to_ne_bytes()));
        SecretDigest(hash.finalize().into())
    }
}

/// The secrets of one client, as digests.
#[derive(Clone, Copy)]
pub(crate) enum HashedSecret {
    Bearer(SecretDigest),
    Basic(SecretDigest, SecretDigest),
}

impl HashedSecret {
    /// Takes `token`, `token_sha256`, `user`, `password` and `password_sha256`. Returns `None` and adds a problem
    /// unless they are exactly one valid secret.
    pub(crate) fn from_section(entry: &mut Section, problems: &mut Problems) -> Option<Self> {
        let n_given = |keys: [&str; 2]| keys.iter().filter(|key| entry.has(key)).count();
        let (n_tokens, n_passwords) = (n_given(["token", "token_sha256"]), n_given(["password", "password_sha256"]));
        if n_tokens + n_passwords != 1 || entry.has("user") != (n_passwords == 1) {
            // The keys are taken, so that none of them is also reported as unknown.
            for key in ["token", "token_sha256", "user", "password", "password_sha256"] {
                entry.take(key);
            }
            entry.note("", ONE_SECRET, problems);
            return None;
        }
        if n_tokens == 1 {
            let rule = (is_token as fn(&[u8]) -> bool, "of a-z A-Z 0-9 - . _ ~ + /, with = only at the end");
            return digest("token", "token_sha256", rule, entry, problems).map(HashedSecret::Bearer);
        }
        let before = problems.0.len();
        let user = entry.string("user", None, problems);
        let is_user = !user.is_empty() && is_text(user.as_bytes()) && !user.contains(':');
        if !is_user && problems.0.len() == before {
            entry.note("user", "must be a non-empty string without colons and control characters", problems);
        }
        let rule = (is_password as fn(&[u8]) -> bool, "non-empty and without control characters");
        let password = digest("password", "password_sha256", rule, entry, problems)?;
        is_user.then(|| HashedSecret::Basic(SecretDigest::of(user.as_bytes()), password))
    }

    /// Hashes the credentials that a client presents.
    pub(crate) fn of(presented: &PresentedCredentials<'_>) -> Self {
        match presented {
            PresentedCredentials::Bearer(token) => HashedSecret::Bearer(SecretDigest::of(token)),
            PresentedCredentials::Basic(user, password) => {
                HashedSecret::Basic(SecretDigest::of(user), SecretDigest::of(password))
            }
        }
    }

    /// Returns the digest by which a credential is looked up. The hash includes the scheme, so that a token never
    /// equals a user with a password.
    pub(crate) fn id(&self, key: &SecretDigest) -> SecretDigest {
        let mut hash = Sha256::new_with_prefix(key.0);
        match self {
            HashedSecret::Bearer(token) => {
                hash.update(b"bearer");
                hash.update(token.0);
            }
            HashedSecret::Basic(user, password) => {
                hash.update(b"basic");
                hash.update(user.0);
                hash.update(password.0);
            }
        }
        SecretDigest(hash.finalize().into())
    }
}

fn is_text(bytes: &[u8]) -> bool {
    !bytes.iter().any(u8::is_ascii_control)
}

fn is_password(bytes: &[u8]) -> bool {
    !bytes.is_empty() && is_text(bytes)
}

/// Takes the plain or the hashed secret, whichever of the two keys is given, and returns its digest. `rule` is a check
/// of the plain secret and the description of the rule in a problem.
fn digest(
    plain: &str,
    hashed: &str,
    rule: (fn(&[u8]) -> bool, &str),
    entry: &mut Section,
    problems: &mut Problems,
) -> Option<SecretDigest> {
    if entry.has(plain) {
        let before = problems.0.len();
        let secret = entry.string(plain, None, problems);
        if rule.0(secret.as_bytes()) {
            return Some(SecretDigest::of(secret.as_bytes()));
        }
        if problems.0.len() == before {
            entry.note(plain, format!("must be {}", rule.1), problems);
        }
        return None;
    }
    let before = problems.0.len();
    let digest = SecretDigest::parse(&entry.string(hashed, None, problems));
    if digest == Some(SecretDigest::of(b"")) {
        entry.note(hashed, "is the SHA-256 of the empty string", problems);
        return None;
    }
    if digest.is_none() && problems.0.len() == before {
        entry.note(hashed, "must be a SHA-256: 64 hexadecimal digits", problems);
    }
    digest
}
