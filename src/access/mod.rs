//! Access control that several daemons use: credentials, lists of topics, and rates.
//!
//! Invariant: no secret of `credentials_file`, and no `Authorization` header of a client, is kept in plain text,
//! logged, or part of an answer. TLS client certificates do not identify a client here; they could become a kind of
//! credential.

mod authorization;
mod credentials;
mod in_force;
pub(crate) mod rate;
mod secret;
mod topics;

pub(crate) use credentials::{Credential, CredentialsFile};
pub(crate) use in_force::{CredentialsInForce, RefusalReason};
pub(crate) use topics::TopicGlobs;

/// A section with this text, and the problems of loading it.
#[cfg(test)]
pub(crate) fn section(text: &str) -> (crate::config::Section, crate::config::Problems) {
    use std::io::Write;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let mut problems = crate::config::Problems::default();
    let section = crate::config::Section::load(file.path(), &mut problems);
    (section, problems)
}
