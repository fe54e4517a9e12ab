//! The reasons why a partition does not advance: an operator, or the message that holds its commit point (head of
//! line).

use std::time::{Duration, Instant};

use crate::broker::Offset;
use crate::ktransfer::job::WindowId;

/// How long a seek or a resume waits for the pushes on the wire before it cuts them.
pub(super) const DRAIN: Duration = Duration::from_secs(3);

/// Why a partition is not pushed although its claim is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Interruption {
    /// The offset at which to continue; `None` for the commit point.
    pub(super) seek: Option<Seek>,
    /// When the pushes on the wire are cut; `None` lets them end.
    pub(super) cut_at: Option<Instant>,
}

/// A seek whose offset is not stored yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seek {
    /// The offset at which to continue.
    pub(super) to: Offset,
    /// Whether the offset was sent to the group.
    pub(super) is_sent: bool,
}

/// The message that holds a commit point: since when, to within a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) window: WindowId,
    pub(super) offset: Offset,
    pub(super) since: Instant,
}
