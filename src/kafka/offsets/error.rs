//! Why the request for a partition or a group failed.

use std::sync::Arc;

use crate::kafka::connection::{ConnectionError, ConnectionErrorKind};
use crate::kafka::error_code;
use crate::kafka::metadata_client::{ClientError, MAX_TOPIC_NAME_BYTES};

/// Why the request for one partition or one group failed. Clones share the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct OffsetError {
    /// The kind of failure.
    pub kind: OffsetErrorKind,
    /// What happened, as an error text.
    pub reason: Arc<str>,
}

/// The kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetErrorKind {
    /// The topic does not exist.
    UnknownTopic,
    /// The topic does not have the partition.
    UnknownPartition,
    /// The partition had no leader until the deadline.
    NoLeader,
    /// The partition has no message at or after the requested time.
    NoMessage,
    /// No broker that could answer was reached, or answered, before the deadline.
    Unreachable,
    /// A broker refused the credentials, or does not support the request: a retry needs another configuration.
    Unusable,
    /// A broker answered with this error code; if the code is retriable, until the deadline.
    Refused(i16),
}

impl OffsetError {
    pub(super) fn new(kind: OffsetErrorKind, reason: impl Into<Arc<str>>) -> Self {
        OffsetError { kind, reason: reason.into() }
    }

    /// An error code of a broker; `what` names the partition or the group.
    pub(super) fn refused(what: &str, code: i16) -> Self {
        OffsetError::new(OffsetErrorKind::Refused(code), format!("{what}: {}", error_code::name(code)))
    }

    /// Whether another attempt may succeed without another configuration.
    pub(super) fn is_transient(&self) -> bool {
        match self.kind {
            OffsetErrorKind::NoLeader | OffsetErrorKind::Unreachable => true,
            OffsetErrorKind::Refused(code) => error_code::is_retriable(code),
            _ => false,
        }
    }
}

impl From<ConnectionError> for OffsetError {
    fn from(failure: ConnectionError) -> Self {
        let kind = match failure.kind {
            ConnectionErrorKind::Denied | ConnectionErrorKind::Unsupported => OffsetErrorKind::Unusable,
            _ => OffsetErrorKind::Unreachable,
        };
        OffsetError::new(kind, failure.to_string())
    }
}

impl From<ClientError> for OffsetError {
    fn from(failure: ClientError) -> Self {
        let kind = match failure.error_code {
            Some(code) => OffsetErrorKind::Refused(code),
            None if failure.is_permanent => OffsetErrorKind::Unusable,
            None => OffsetErrorKind::Unreachable,
        };
        OffsetError::new(kind, failure.reason)
    }
}

/// The error of a topic whose metadata has this error code.
pub(super) fn topic_error(topic: &str, code: i16) -> OffsetError {
    let topic = shown(topic);
    match code {
        error_code::UNKNOWN_TOPIC_OR_PARTITION => {
            OffsetError::new(OffsetErrorKind::UnknownTopic, format!("topic \"{topic}\" does not exist"))
        }
        code => OffsetError::refused(&format!("topic \"{topic}\""), code),
    }
}

/// The error of a topic that is not in the metadata response.
pub(super) fn missing_topic(topic: &str) -> OffsetError {
    let reason = format!("the metadata response lacks topic \"{}\"", shown(topic));
    OffsetError::new(OffsetErrorKind::Unreachable, reason)
}

/// The error of a group that a coordinator refused with this error code.
pub(super) fn group_error(name: &str, code: i16) -> OffsetError {
    OffsetError::refused(&format!("group \"{}\"", shown(name)), code)
}

/// Returns a name for an error text, which must not grow with a name that is too long.
pub(super) fn shown(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_TOPIC_NAME_BYTES)]
}
