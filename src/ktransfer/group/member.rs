//! Who a member is: its id and its registration, as the Go group library writes them, so that both kinds share a group.

use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

/// Makes the ids of one member: another one for each session, so that a node with an id in it is known to be of that
/// session. They share their beginning, so that the member keeps its place in the division.
pub(super) struct Names {
    hostname: String,
    first_half: u64,
}

impl Names {
    pub(super) fn new() -> Names {
        let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let hostname = match hostname.trim() {
            "" => "localhost".to_owned(),
            // A slash would be another node.
            name => name.replace('/', "-"),
        };
        Names { hostname, first_half: random() }
    }

    /// `HOSTNAME:UUID`, the UUID of version 4.
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

/// What a member writes into its node under `ids`.
pub(super) fn registration(topic: &str, now: SystemTime) -> Vec<u8> {
    let timestamp = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let subscription = json!({ topic: 1 });
    json!({ "pattern": "static", "subscription": subscription, "timestamp": timestamp, "version": 1 })
        .to_string()
        .into_bytes()
}

/// Each `RandomState` has other keys, seeded by the system.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_id_is_host_and_uuid_and_keeps_its_beginning() {
        let names = Names::new();
        let (one, other) = (names.next(), names.next());
        assert_ne!(one, other);
        let (host, uuid) = one.split_once(':').unwrap();
        assert!(!host.is_empty());
        assert_eq!(uuid.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(uuid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uuid.as_bytes()[19]));
        assert_eq!(one[..host.len() + 19], other[..host.len() + 19]);
        assert_ne!(Names::new().next()[..host.len() + 9], one[..host.len() + 9], "another member has another place");
        assert!(crate::keeper::paths::check_name(&one).is_ok());
    }

    #[test]
    fn a_registration_reads_as_that_of_the_go_library() {
        let text = String::from_utf8(registration("t", UNIX_EPOCH + Duration::from_secs(1_400_000_000))).unwrap();
        assert_eq!(text, r#"{"pattern":"static","subscription":{"t":1},"timestamp":1400000000,"version":1}"#);
    }
}
