//! The fencing token of a claim in ZooKeeper: it grows with every claim of a partition, also if nodes are deleted.
//!
//! It is the version of the offset node after the write of the claim, as in earlier versions of this program, which may
//! be in the same group. The version begins again when the node is deleted and created again, so the token is kept in a
//! node of its own, which nothing but a claim and a move of offsets writes, and which other programs ignore. Without
//! that node, a claim of an offset node that was never written takes the time in milliseconds, as in Kafka: the group
//! is new, or all of it was deleted, and the time is more than the versions of all nodes before.

use crate::clock::unix_ms;
use crate::keeper::Node;

/// Returns the token of the next claim. `known` is the node of the latest token; `offset_version` is the version of the
/// offset node after the write of the claim.
pub(super) fn next(known: Option<&Node>, offset_version: i32) -> u64 {
    let version = u64::try_from(offset_version).unwrap_or(0);
    match known.map(|node| decode(&node.data)) {
        Some(Some(latest)) => version.max(latest.saturating_add(1)),
        None if version != 1 => version,
        // Nothing is known of claims before, or the node is not readable.
        _ => version.max(now()),
    }
}

/// Returns a token that a claim after a move of the offsets exceeds, whatever the tokens before the move were.
pub(super) fn after_move(known: Option<&Node>) -> u64 {
    now().max(known.and_then(|node| decode(&node.data)).unwrap_or(0))
}

/// Returns the data of the node of a token.
pub(super) fn encode(token: u64) -> Vec<u8> {
    token.to_string().into_bytes()
}

fn decode(data: &[u8]) -> Option<u64> {
    str::from_utf8(data).ok()?.trim().parse().ok()
}

fn now() -> u64 {
    u64::try_from(unix_ms()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_version_unless_that_fell() {
        let node = |data: &[u8]| Node { data: data.to_vec(), ..Node::default() };
        for (known, version, expected) in [
            (None, 5_000, 5_000),
            (Some(node(b"5000")), 6_000, 6_000),
            (Some(node(b"5000")), 1, 5_001),
            // A version wraps around.
            (Some(node(b"2147483647")), i32::MIN, 2_147_483_648),
            (Some(node(b"18446744073709551615")), 1, u64::MAX),
        ] {
            assert_eq!(next(known.as_ref(), version), expected, "{known:?}, {version}");
        }
        for known in [None, Some(node(b"")), Some(node(b"x"))] {
            let before = now();
            assert!((before..=now()).contains(&next(known.as_ref(), 1)), "{known:?}");
        }
        assert!(after_move(Some(&node(b"7"))) >= now() - 60_000);
        assert_eq!(after_move(Some(&node(b"18446744073709551615"))), u64::MAX);
    }
}
