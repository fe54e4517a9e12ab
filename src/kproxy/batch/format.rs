//! The formats of a batch's body.

use super::limits::BatchLimits;
use super::message::ParsedMessage;
use super::{binary, ndjson};
use crate::http::Head;
use crate::kproxy::answer::Failure;

/// The format of a batch's body, chosen by its `Content-Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchFormat {
    /// `application/x-ndjson`: one JSON object per line.
    Ndjson,
    /// `application/octet-stream`: length-prefixed fields.
    Binary,
}

impl BatchFormat {
    /// Every format, for `Content-Type` and for the fuzz target.
    pub(crate) const ALL: [BatchFormat; 2] = [BatchFormat::Ndjson, BatchFormat::Binary];

    fn media_type(self) -> &'static str {
        match self {
            BatchFormat::Ndjson => "application/x-ndjson",
            BatchFormat::Binary => "application/octet-stream",
        }
    }

    /// Returns the format of a request's body, or 415. Parameters of the `Content-Type` such as `charset` are ignored.
    pub(crate) fn of(head: &Head) -> Result<BatchFormat, Failure> {
        let content_type = head.header("content-type").unwrap_or_default();
        let essence = content_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        let found = Self::ALL.into_iter().find(|format| essence.eq_ignore_ascii_case(format.media_type().as_bytes()));
        found.ok_or_else(Failure::unsupported_media_type)
    }

    /// Returns how problem texts name the message with this index: as a line or a record, from 1.
    pub(crate) fn place(self, index: usize) -> String {
        let unit = match self {
            BatchFormat::Ndjson => "line",
            BatchFormat::Binary => "record",
        };
        format!("{unit} {}", index + 1)
    }

    /// Parses a whole body into its messages, at least one.
    pub(crate) fn parse(self, body: &[u8], limits: &BatchLimits) -> Result<Vec<ParsedMessage>, Failure> {
        match self {
            _ if body.is_empty() => Err(Failure::empty_body("empty body: a batch needs at least one message")),
            BatchFormat::Ndjson => ndjson::parse(body, limits),
            BatchFormat::Binary => binary::parse(body, limits),
        }
    }
}
