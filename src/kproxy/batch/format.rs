//! The two formats of a batch's body.

use super::limits::BatchLimits;
use super::message::ParsedMessage;
use super::{binary, ndjson};
use crate::http::Head;
use crate::kproxy::answer::Failure;

/// The format of a body, by its `Content-Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchFormat {
    /// `application/x-ndjson`: one JSON object per line.
    Ndjson,
    /// `application/octet-stream`: length-prefixed fields.
    Binary,
}

impl BatchFormat {
    /// The format of a request's body; parameters such as `charset` are ignored.
    pub(crate) fn of(head: &Head) -> Result<BatchFormat, Failure> {
        let content_type = head.header("content-type").unwrap_or_default();
        let essence = content_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        let formats =
            [("application/x-ndjson", BatchFormat::Ndjson), ("application/octet-stream", BatchFormat::Binary)];
        let found = formats.iter().find(|(name, _)| essence.eq_ignore_ascii_case(name.as_bytes()));
        found.map(|(_, format)| *format).ok_or_else(Failure::unsupported_media_type)
    }

    /// The messages of a whole body, at least one.
    pub(crate) fn parse(self, body: &[u8], limits: &BatchLimits) -> Result<Vec<ParsedMessage>, Failure> {
        match self {
            _ if body.is_empty() => Err(Failure::empty_body("empty body: a batch needs at least one message")),
            BatchFormat::Ndjson => ndjson::parse(body, limits),
            BatchFormat::Binary => binary::parse(body, limits),
        }
    }
}
