//! Creates the id and the registration of a group member, in the format of the original's Go group library, and reads
//! the registrations of other members.
//!
//! The format matters while the original is being replaced: then its processes and ktransfers are in the same group.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::random::random;
use serde_json::{Value, json};

/// Member of the registration's JSON by which a ktransfer with the sticky assignor differs from the original, whose
/// decoder ignores it.
const ASSIGNOR: &str = "assignor";
/// Value of [`ASSIGNOR`].
const STICKY: &str = "sticky";

/// Generates the ids of one member. Each session has another id, so that an id in a node identifies its session. All
/// ids of a member begin with the same half, so the member keeps its position among the sorted members, and with it
/// most of its partitions.
pub(super) struct MemberIds {
    hostname: String,
    first_half: u64,
}

/// How a member takes part in the assignment of a topic, by its registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemberKind {
    /// A ktransfer that uses the sticky assignor if all members of the topic do.
    Sticky,
    /// A member that uses the range assignor: the original, an earlier ktransfer, or one whose registration is not
    /// readable.
    Range,
    /// A member that reads other topics only.
    OtherTopic,
}

impl MemberIds {
    pub(super) fn new() -> MemberIds {
        let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let hostname = match hostname.trim() {
            "" => "localhost".to_owned(),
            // A slash would separate two nodes of the path.
            name => name.replace('/', "-"),
        };
        MemberIds { hostname, first_half: random() }
    }

    /// Returns the next id, `HOSTNAME:UUID` with a version 4 UUID.
    pub(super) fn next(&self) -> String {
        let first = self.first_half & !0xf000 | 0x4000;
        let second = random() & !(0b11 << 62) | (0b10 << 62);
        format!(
            "{}:{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            self.hostname,
            first >> 32,
            first >> 16 & 0xffff,
            first & 0xffff,
            second >> 48,
            second & 0xffff_ffff_ffff
        )
    }
}

/// Returns the data of a member's node under `ids`.
pub(super) fn registration(topic: &str, now: SystemTime) -> Vec<u8> {
    let timestamp = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let subscription = json!({ topic: 1 });
    json!({
        ASSIGNOR: STICKY, "pattern": "static", "subscription": subscription, "timestamp": timestamp, "version": 1
    })
    .to_string()
    .into_bytes()
}

/// Returns how the member with this registration takes part in the assignment of `topic`.
pub(super) fn kind_of(registration: &[u8], topic: &str) -> MemberKind {
    let Ok(Value::Object(members)) = serde_json::from_slice(registration) else { return MemberKind::Range };
    match members.get("subscription") {
        Some(Value::Object(topics)) if !topics.contains_key(topic) => MemberKind::OtherTopic,
        Some(Value::Object(_)) if members.get(ASSIGNOR).is_some_and(|assignor| assignor == STICKY) => {
            MemberKind::Sticky
        }
        _ => MemberKind::Range,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ids_are_host_and_uuid_with_the_same_first_half() {
        let ids = MemberIds::new();
        let (one, other) = (ids.next(), ids.next());
        assert_ne!(one, other);
        let (host, uuid) = one.split_once(':').unwrap();
        assert!(!host.is_empty());
        assert_eq!(uuid.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(uuid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uuid.as_bytes()[19]));
        assert_eq!(one[..host.len() + 19], other[..host.len() + 19]);
        assert_ne!(
            MemberIds::new().next()[..host.len() + 9],
            one[..host.len() + 9],
            "another member has another first half"
        );
        assert!(crate::keeper::paths::check_name(&one).is_ok());
    }

    #[test]
    fn a_registration_has_the_format_of_the_go_library_and_one_more_member() {
        let text = String::from_utf8(registration("t", UNIX_EPOCH + Duration::from_secs(1_400_000_000))).unwrap();
        let expected =
            r#"{"assignor":"sticky","pattern":"static","subscription":{"t":1},"timestamp":1400000000,"version":1}"#;
        assert_eq!(text, expected);
        assert_eq!(kind_of(text.as_bytes(), "t"), MemberKind::Sticky);
        assert_eq!(kind_of(text.as_bytes(), "u"), MemberKind::OtherTopic);
    }

    #[test]
    fn a_member_without_the_sticky_assignor_counts_as_the_original() {
        let original = r#"{"pattern":"static","subscription":{"t":1},"timestamp":"0","version":1}"#;
        for (registration, kind) in [
            (original, MemberKind::Range),
            (r#"{"subscription":{"t":1},"assignor":"other"}"#, MemberKind::Range),
            (r#"{"subscription":{"u":1},"version":1}"#, MemberKind::OtherTopic),
            (r#"{"subscription":{},"assignor":"sticky"}"#, MemberKind::OtherTopic),
            (r#"{"assignor":"sticky"}"#, MemberKind::Range),
            (r#"{"subscription":["t"],"assignor":"sticky"}"#, MemberKind::Range),
            ("[]", MemberKind::Range),
            ("", MemberKind::Range),
            ("host", MemberKind::Range),
        ] {
            assert_eq!(kind_of(registration.as_bytes(), "t"), kind, "{registration}");
        }
    }
}
