//! The `ahead` node of a partition: which messages above the stored offset are done, and the log that the offsets
//! belong to.
//!
//! The original ignores the node. Its data is JSON, and belongs to one version of the offset node. ktransfer writes
//! both nodes together, so an offset that another client wrote (by hand, or the original) makes the node void: the
//! messages are pushed again.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::mailbox::DoneAhead;
use crate::broker::{Offset, TopicId};

/// Limit on the text of the ranges. Ranges beyond it are left out, from the end: their messages are pushed again.
const MAX_RANGES_BYTES: usize = 16 << 10;

/// Data of the node if no messages are done ahead. Any other data that cannot be decoded means the same.
pub(super) const VOID: &[u8] = b"{}";

#[derive(Deserialize, Serialize)]
struct AheadNode {
    version: u32,
    /// The version of the offset node that this node belongs to.
    offset_version: i32,
    /// The stored offset, at which the ranges begin to count.
    offset: Offset,
    /// Hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    topic_id: Option<String>,
    /// That of the message before `offset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    leader_epoch: Option<i32>,
    /// The highest leader epoch that had been read when `done` was written. An earlier version does not know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_epoch: Option<i32>,
    /// `GAP+LENGTH` for each range, separated by spaces: the messages between the end of the range before (for the
    /// first range: `offset`) and the range, and the messages of the range.
    done: String,
}

/// Returns the data of the node beside an offset node that contains `offset` and has `offset_version`.
pub(super) fn encode(offset: Offset, offset_version: i32, ahead: &DoneAhead) -> Vec<u8> {
    let topic_id = ahead.topic_id.map(|id| id_text(&id));
    let DoneAhead { leader_epoch, read_epoch, .. } = *ahead;
    let done = encode_ranges(offset, &ahead.ranges);
    let node = AheadNode { version: 1, offset_version, offset, topic_id, leader_epoch, read_epoch, done };
    serde_json::to_vec(&node).unwrap_or_else(|_| VOID.to_vec())
}

fn encode_ranges(offset: Offset, ranges: &[Range<Offset>]) -> String {
    let (mut text, mut end) = (String::new(), offset);
    for range in ranges {
        // A commit after the snapshot may have moved the offset into a range or past it.
        let start = range.start.max(end);
        if range.end <= start {
            continue;
        }
        let item = format!("{}{}+{}", if text.is_empty() { "" } else { " " }, start - end, range.end - start);
        if text.len() + item.len() > MAX_RANGES_BYTES {
            break;
        }
        text.push_str(&item);
        end = range.end;
    }
    text
}

/// Returns what the node says beside an offset node that contains `offset` and has `offset_version`; `None` if the node
/// belongs to another version or is not readable.
pub(super) fn decode(data: &[u8], offset: Offset, offset_version: i32) -> Option<DoneAhead> {
    let node: AheadNode = serde_json::from_slice(data).ok()?;
    if (node.version, node.offset_version, node.offset) != (1, offset_version, offset) {
        return None;
    }
    let topic_id = match node.topic_id {
        Some(text) => Some(decode_id(&text)?),
        None => None,
    };
    let AheadNode { leader_epoch, read_epoch, .. } = node;
    Some(DoneAhead { topic_id, leader_epoch, ranges: decode_ranges(offset, &node.done)?.into(), read_epoch })
}

/// Returns the hexadecimal text of a topic's id.
pub(super) fn id_text(id: &TopicId) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the id of a topic from its hexadecimal text.
pub(super) fn decode_id(text: &str) -> Option<TopicId> {
    // Checked first: a sign before a digit would be parsed as well.
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut id = TopicId::default();
    for (index, byte) in id.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(id)
}

fn decode_ranges(offset: Offset, text: &str) -> Option<Vec<Range<Offset>>> {
    let mut end = offset;
    let range = |item: &str| {
        let (gap, length) = item.split_once('+')?;
        let (gap, length) = (gap.parse::<u64>().ok()?, length.parse::<u64>().ok().filter(|length| *length > 0)?);
        let start = end.checked_add_unsigned(gap)?;
        end = start.checked_add_unsigned(length)?;
        Some(start..end)
    };
    text.split_ascii_whitespace().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ahead(topic_id: Option<TopicId>, ranges: &[Range<Offset>]) -> DoneAhead {
        DoneAhead { topic_id, leader_epoch: None, ranges: ranges.into(), read_epoch: None }
    }

    #[test]
    fn the_node_is_json_with_the_gaps_and_lengths_of_the_ranges() {
        let data = encode(100, 7, &ahead(Some([0xab; 16]), &[102..103, 110..130]));
        let text = String::from_utf8(data.clone()).unwrap();
        let id = "ab".repeat(16);
        assert_eq!(
            text,
            format!(r#"{{"version":1,"offset_version":7,"offset":100,"topic_id":"{id}","done":"2+1 7+20"}}"#)
        );
        assert_eq!(decode(&data, 100, 7), Some(ahead(Some([0xab; 16]), &[102..103, 110..130])));
    }

    #[test]
    fn the_leader_epochs_are_kept_and_a_node_of_an_earlier_version_has_one_of_them() {
        let log = DoneAhead { leader_epoch: Some(4), read_epoch: Some(7), ..ahead(None, &[102..103; 1]) };
        let data = encode(100, 7, &log);
        assert_eq!(decode(&data, 100, 7), Some(log.clone()));
        let earlier = br#"{"version":1,"offset_version":7,"offset":100,"leader_epoch":4,"done":"2+1"}"#;
        assert_eq!(decode(earlier, 100, 7), Some(DoneAhead { read_epoch: None, ..log }));
        // An earlier version skips members that it does not know.
        let later = br#"{"version":1,"offset_version":7,"offset":100,"next":{},"done":"2+1"}"#;
        assert!(decode(later, 100, 7).is_some());
    }

    #[test]
    fn a_node_of_another_offset_or_version_and_unreadable_data_say_nothing() {
        let data = encode(100, 7, &ahead(None, &[102..103, 104..105]));
        assert_eq!(decode(&data, 100, 8), None, "another client wrote the offset");
        assert_eq!(decode(&data, 101, 7), None);
        let with = |done: &str, id: &str| {
            format!(r#"{{"version":1,"offset_version":7,"offset":100,"topic_id":"{id}","done":"{done}"}}"#).into_bytes()
        };
        let id = "0".repeat(32);
        assert!(decode(&with("1+1", &id), 100, 7).is_some());
        for (done, id) in [("1", &*id), ("1+0", &id), ("-1+5", &id), ("x+y", &id), ("9223372036854775807+1", &id)] {
            assert_eq!(decode(&with(done, id), 100, 7), None, "{done}");
        }
        for id in ["", "+f", &"g".repeat(32), &"é".repeat(16)] {
            assert_eq!(decode(&with("1+1", id), 100, 7), None, "{id}");
        }
        for data in [&b""[..], VOID, b"{", b"null", br#"{"version":2,"offset_version":7,"offset":100,"done":""}"#] {
            assert_eq!(decode(data, 100, 7), None, "{}", String::from_utf8_lossy(data));
        }
    }

    #[test]
    fn ranges_below_the_offset_and_beyond_the_limit_are_left_out() {
        let late = encode(105, 7, &ahead(None, &[102..103, 104..107, 110..111]));
        assert_eq!(decode(&late, 105, 7), Some(ahead(None, &[105..107, 110..111])));
        let many: Vec<Range<Offset>> = (0..100_000).map(|number| 2 * number + 1..2 * number + 2).collect();
        let data = encode(0, 7, &ahead(None, &many));
        assert!(data.len() < MAX_RANGES_BYTES + 200, "{} bytes", data.len());
        let kept = decode(&data, 0, 7).unwrap().ranges;
        assert!(kept.len() > 4_000 && many.starts_with(&kept), "{} ranges", kept.len());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            offset in 0i64..1 << 40,
            steps in prop::collection::vec((1i64..1 << 20, 1i64..1 << 20), 0..50),
        ) {
            let mut end = offset;
            let ranges: Vec<Range<Offset>> = steps.iter().map(|(gap, length)| {
                let start = end + gap;
                end = start + length;
                start..end
            }).collect();
            let ahead = ahead(None, &ranges);
            prop_assert_eq!(decode(&encode(offset, 3, &ahead), offset, 3), Some(ahead));
        }
    }
}
