//! The node layout in ZooKeeper: paths and data of brokers, and of consumer groups as in Kafka's old high-level
//! consumer.
//!
//! Paths are relative to the chroot. All functions are pure except [`create_with_parents`].

use super::api::{Keeper, KeeperError, Lifetime};
use crate::broker::{Offset, PartitionId};

/// Parent node of all consumer groups.
pub(crate) const CONSUMERS: &str = "/consumers";

/// Parent node of the live brokers.
pub(crate) const BROKER_IDS: &str = "/brokers/ids";

/// Returns the parent node of the live members of a group.
pub(crate) fn group_ids(group: &str) -> String {
    format!("{CONSUMERS}/{group}/ids")
}

/// Returns the node of a live group member: an ephemeral node that the member creates.
pub(crate) fn group_id(group: &str, member: &str) -> String {
    format!("{CONSUMERS}/{group}/ids/{member}")
}

/// Returns the parent node of the topics on whose partitions a group has claims.
pub(crate) fn owner_topics(group: &str) -> String {
    format!("{CONSUMERS}/{group}/owners")
}

/// Returns the parent node of the claims on the partitions of a topic.
pub(crate) fn owners(group: &str, topic: &str) -> String {
    format!("{CONSUMERS}/{group}/owners/{topic}")
}

/// Returns the owner node of a partition: an ephemeral node that contains the id of the member with the claim.
pub(crate) fn owner(group: &str, topic: &str, partition: PartitionId) -> String {
    format!("{CONSUMERS}/{group}/owners/{topic}/{partition}")
}

/// Returns the parent node of the topics for which a group has stored offsets.
pub(crate) fn offset_topics(group: &str) -> String {
    format!("{CONSUMERS}/{group}/offsets")
}

/// Returns the parent node of a group's stored offsets of a topic.
pub(crate) fn offsets(group: &str, topic: &str) -> String {
    format!("{CONSUMERS}/{group}/offsets/{topic}")
}

/// Returns the offset node of a partition. It contains the offset of the next message to read, see [`offset_text`].
pub(crate) fn offset(group: &str, topic: &str, partition: PartitionId) -> String {
    format!("{CONSUMERS}/{group}/offsets/{topic}/{partition}")
}

/// Returns the node with the messages done ahead of the stored offset of a partition. The original ignores it.
pub(crate) fn ahead(group: &str, topic: &str, partition: PartitionId) -> String {
    format!("{CONSUMERS}/{group}/ahead/{topic}/{partition}")
}

/// Returns the node of the fencing token of the latest claim on a partition. The original ignores it.
pub(crate) fn token(group: &str, topic: &str, partition: PartitionId) -> String {
    format!("{CONSUMERS}/{group}/tokens/{topic}/{partition}")
}

/// Returns the node of the partitions of a topic that operators have paused. The original ignores it.
pub(crate) fn paused(group: &str, topic: &str) -> String {
    format!("{CONSUMERS}/{group}/paused/{topic}")
}

/// Returns the node with the position up to which the dead letters of a module are replayed. The original ignores it.
pub(crate) fn replayed(group: &str, topic: &str, partition: PartitionId) -> String {
    format!("{CONSUMERS}/{group}/replayed/{topic}/{partition}")
}

/// Returns the node of a live broker: an ephemeral node that contains its endpoints.
pub(crate) fn broker(id: &str) -> String {
    format!("{BROKER_IDS}/{id}")
}

/// Returns the node of a topic, which contains its partitions and their replicas.
pub(crate) fn topic(topic: &str) -> String {
    format!("/brokers/topics/{topic}")
}

/// Returns the state node of a partition, which contains its leader and in-sync replicas.
pub(crate) fn partition_state(topic: &str, partition: PartitionId) -> String {
    format!("/brokers/topics/{topic}/partitions/{partition}/state")
}

/// Parses the name of a node as a partition number; returns `None` for other names.
pub(crate) fn parse_partition(name: &str) -> Option<PartitionId> {
    let digits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| name.parse().ok()).flatten()
}

/// Returns an offset as the data of an offset node: decimal text.
pub(crate) fn offset_text(offset: Offset) -> Vec<u8> {
    offset.to_string().into_bytes()
}

/// Data of an offset node before the first store. The original reads every negative number as "no offset stored".
pub(crate) const NOTHING_STORED: &[u8] = b"-1";

/// An error: the data of an offset node is not an offset. Contains the beginning of the data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid stored offset {0:?}: it must be a decimal number of at most 63 bits, negative for none")]
pub struct BadOffset(pub String);

/// Parses the data of an offset node; returns `None` for [`NOTHING_STORED`] and every other negative number. White
/// space around the number is ignored, since an offset may be written by hand.
pub(crate) fn parse_offset(data: &[u8]) -> Result<Option<Offset>, BadOffset> {
    let is_number = |text: &&str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let number = str::from_utf8(data.trim_ascii()).ok().filter(is_number).and_then(|text| text.parse::<Offset>().ok());
    // Only the first 40 bytes are quoted, because the data of the node may be long.
    let bad = || BadOffset(String::from_utf8_lossy(&data[..data.len().min(40)]).into_owned());
    number.map(|offset| (offset >= 0).then_some(offset)).ok_or_else(bad)
}

/// Returns the chroot as the prefix of a path: empty, or `/a/b` without a slash at the end. The error names the
/// mistake.
pub(crate) fn normalise_chroot(chroot: &str) -> Result<String, String> {
    let trimmed = chroot.strip_suffix('/').unwrap_or(chroot);
    if trimmed.is_empty() {
        return Ok(String::new());
    }
    let Some(inner) = trimmed.strip_prefix('/') else {
        return Err(format!("{chroot:?} must begin with a slash"));
    };
    inner.split('/').try_for_each(|name| check_name(name).map_err(|wrong| format!("{chroot:?} {wrong}")))?;
    Ok(trimmed.to_owned())
}

/// Checks that ZooKeeper accepts `name` as the name of a node. The error is a clause whose subject is the path, such as
/// "contains an empty node name".
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    // The characters that ZooKeeper's data model excludes from paths.
    let is_control = |letter| matches!(letter, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}');
    let is_private_or_special = |letter| matches!(letter, '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..='\u{ffff}');
    let invalid = |letter: char| is_control(letter) || is_private_or_special(letter);
    match name {
        "" => Err("contains an empty node name".into()),
        "." | ".." => Err(format!("contains the node name {name:?}, which ZooKeeper does not allow")),
        name if name.contains('/') => Err("contains a slash in a node name".into()),
        name if name.contains(invalid) => Err("contains a character that ZooKeeper does not allow".into()),
        _ => Ok(()),
    }
}

/// Returns the path of the parent node; `None` for `/`.
pub(crate) fn parent_of(path: &str) -> Option<&str> {
    match path.rfind('/') {
        _ if path == "/" => None,
        Some(0) | None => Some("/"),
        Some(slash) => Some(&path[..slash]),
    }
}

/// Creates a node and its missing ancestors. The ancestors are persistent and empty.
pub fn create_with_parents(
    keeper: &dyn Keeper,
    path: &str,
    data: &[u8],
    lifetime: Lifetime,
) -> Result<(), KeeperError> {
    match keeper.create(path, data, lifetime) {
        Err(KeeperError::NoNode(_)) => {}
        result => return result,
    }
    if let Some(parent) = parent_of(path) {
        match create_with_parents(keeper, parent, b"", Lifetime::Persistent) {
            // `NodeExists` means that another client created the parent at the same moment.
            Ok(()) | Err(KeeperError::NodeExists(_)) => {}
            Err(error) => return Err(error),
        }
    }
    keeper.create(path, data, lifetime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::in_memory::InMemoryEnsemble;
    use std::time::Duration;

    #[test]
    fn paths_are_those_of_kafkas_old_high_level_consumer() {
        assert_eq!(group_id("g", "h:1"), "/consumers/g/ids/h:1");
        assert_eq!(owner("g", "t", 3), "/consumers/g/owners/t/3");
        assert_eq!(offset("g", "t", 3), "/consumers/g/offsets/t/3");
        assert_eq!(ahead("g", "t", 3), "/consumers/g/ahead/t/3");
        assert_eq!(replayed("g", "t", 3), "/consumers/g/replayed/t/3");
        assert_eq!(partition_state("t", 0), "/brokers/topics/t/partitions/0/state");
        assert_eq!(broker("7"), "/brokers/ids/7");
    }

    #[test]
    fn chroots_are_normalised_or_rejected() {
        for (given, normal) in
            [("", ""), ("/", ""), ("/a", "/a"), ("/a/", "/a"), ("/mq/test_cluster", "/mq/test_cluster")]
        {
            assert_eq!(normalise_chroot(given), Ok(normal.into()), "{given:?}");
        }
        for wrong in ["a", "a/b", "//", "/a//b", "/a//", "/./a", "/a/..", "/a\u{1}", "/a\u{7f}"] {
            assert!(normalise_chroot(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn offsets_are_decimal_text() {
        for (text, offset) in [("0", 0), ("42", 42), (" 7\n", 7), ("9223372036854775807", i64::MAX)] {
            assert_eq!(parse_offset(text.as_bytes()), Ok(Some(offset)), "{text:?}");
        }
        for none in ["-1", "-2", " -1 ", "-9223372036854775808"] {
            assert_eq!(parse_offset(none.as_bytes()), Ok(None), "{none:?}");
        }
        let too_small = "-9223372036854775809";
        for wrong in ["", " ", "-", "--1", "+1", "1.0", "0x1", "9223372036854775808", too_small, "12a", "{}"] {
            assert!(parse_offset(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        assert!(parse_offset(&[0xff, 0xfe]).is_err());
        assert_eq!(parse_offset(&offset_text(12)), Ok(Some(12)));
        assert_eq!(parse_offset(NOTHING_STORED), Ok(None));
        for (name, partition) in [("0", Some(0)), ("17", Some(17)), ("", None), ("-1", None), ("+1", None), ("x", None)]
        {
            assert_eq!(parse_partition(name), partition, "{name:?}");
        }
        assert_eq!(parse_partition("2147483648"), None);
    }

    #[test]
    fn missing_ancestors_are_created_as_persistent_nodes() {
        let keeper = InMemoryEnsemble::new().connect(Duration::from_secs(6));
        let create = |path: &str| create_with_parents(&*keeper, path, b"x", Lifetime::Ephemeral);
        assert_eq!(create("/a/b/c/d"), Ok(()));
        assert_eq!(create("/a/b/c/d"), Err(KeeperError::NodeExists("/a/b/c/d".into())));
        assert_eq!(create("/a/b/e"), Ok(()));
        assert_eq!(keeper.read("/a/b").unwrap().unwrap().ephemeral_owner, 0);
        assert_ne!(keeper.read("/a/b/e").unwrap().unwrap().ephemeral_owner, 0);
    }
}
