//! The metadata of each committed offset in Kafka: the log that the offset belongs to, the fencing token, and which
//! messages above the offset are done.
//!
//! `kt1;o=OFFSET;t=TOKEN;m=PAUSE;r=NUMBER;p=PAUSE;n=COUNT;i=ID;e=EPOCH;d=RANGES`, in this order, each but the first two
//! optional. A reader skips fields that it does not know, and text that begins otherwise is that of another program.
//! `o` repeats the offset: if another tool sets the offset, `i`, `e` and `d` are void, and the messages are pushed
//! again. `m`, `r` and `p` are the pauses of operators (`pause_fields`). `e` is the highest leader epoch that had been
//! read when `d` was taken; an earlier version does not know it. The epoch of the message before the offset needs no
//! field, it is part of the commit itself.
//!
//! `d` is what the node `ahead` has in ZooKeeper, in fewer bytes: for each range the number of messages between the end
//! of the range before (for the first range: the offset) and the range, and the number of messages in the range, both
//! as base64 VLQ: digits of five bits, the least significant first, the sixth bit set in all but the last. Ranges that
//! do not fit are left out from the end: their messages are pushed again, never skipped.
//!
//! If the brokers accept only short metadata, the ranges are left out first, then the operator of a pause, then the
//! fields from `n` on. A pause itself is never left out: without room for it nothing is committed.
//!
//! A further state that must survive a hand-over becomes a field before `d`, for which [`RESERVED_BYTES`] are kept
//! free: add it to [`CommitMetadata`], so that a claim reads it and each store writes it again.

use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

use super::pause_fields::PauseFields;
use crate::broker::{Offset, PartitionId, TopicId};
use crate::ktransfer::group::ahead::{decode_id, id_text};

/// Default of `offset.metadata.max.bytes` of the brokers.
pub(in crate::ktransfer::group) const MAX_BYTES: usize = 4096;
/// Bytes that are left free for later fields.
const RESERVED_BYTES: usize = 16;
const PREFIX: &str = "kt1";
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Bits of a number in a digit, and the bit that says that another digit follows.
const DIGIT_BITS: u32 = 5;
const CONTINUES: u64 = 1 << DIGIT_BITS;

/// What is committed beside an offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::ktransfer::group) struct CommitMetadata {
    /// The fencing token of the claim that committed.
    pub(in crate::ktransfer::group) token: u64,
    /// The pauses of operators.
    pub(in crate::ktransfer::group) pauses: PauseFields,
    /// Number of partitions that the topic had when the group committed its first offset; `None` if it is unknown.
    pub(in crate::ktransfer::group) first_partitions: Option<PartitionId>,
    /// Id of the topic; `None` if it is unknown.
    pub(in crate::ktransfer::group) topic_id: Option<TopicId>,
    /// Ascending ranges of offsets, all above the committed one.
    pub(in crate::ktransfer::group) ranges: Arc<[Range<Offset>]>,
    /// The highest leader epoch that had been read when the ranges were taken; `None` if it is unknown.
    pub(in crate::ktransfer::group) read_epoch: Option<i32>,
}

/// Returns the text beside `offset`, of at most `max_bytes`: empty if there is no room for anything, `None` if a pause
/// has no room.
pub(in crate::ktransfer::group) fn encode(
    offset: Offset,
    metadata: &CommitMetadata,
    max_bytes: usize,
) -> Option<String> {
    let log = log_fields(metadata);
    let head = |has_marks| format!("{PREFIX};o={offset};t={}{}", metadata.token, metadata.pauses.text(has_marks));
    let heads = [head(true) + &log, head(false) + &log];
    let Some(mut text) = heads.into_iter().find(|text| text.len() <= max_bytes) else {
        // Ranges mean nothing without the topic.
        let least = Some(head(false)).filter(|text| text.len() <= max_bytes);
        return least.or_else(|| (!metadata.pauses.is_paused()).then(String::new));
    };
    let room = max_bytes.saturating_sub(RESERVED_BYTES);
    let epoch = metadata.read_epoch.map(|epoch| format!(";e={epoch}")).unwrap_or_default();
    let before_ranges = format!("{epoch};d=");
    let ranges = encode_ranges(offset, &metadata.ranges, room.saturating_sub(text.len() + before_ranges.len()));
    if !ranges.is_empty() {
        text.push_str(&before_ranges);
        text.push_str(&ranges);
    }
    Some(text)
}

fn log_fields(metadata: &CommitMetadata) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    if let Some(count) = metadata.first_partitions {
        let _ = write!(text, ";n={count}");
    }
    if let Some(id) = metadata.topic_id {
        let _ = write!(text, ";i={}", id_text(&id));
    }
    text
}

fn encode_ranges(offset: Offset, ranges: &[Range<Offset>], max_bytes: usize) -> String {
    let (mut text, mut end) = (String::new(), offset);
    for range in ranges {
        // A commit after the snapshot may have moved the offset into a range or past it.
        let start = range.start.max(end);
        if range.end <= start {
            continue;
        }
        let before = text.len();
        put_number(&mut text, start.abs_diff(end));
        put_number(&mut text, range.end.abs_diff(start));
        if text.len() > max_bytes {
            text.truncate(before);
            break;
        }
        end = range.end;
    }
    text
}

fn put_number(text: &mut String, mut number: u64) {
    loop {
        let low = number % CONTINUES;
        number >>= DIGIT_BITS;
        let digit = if number == 0 { low } else { low | CONTINUES };
        text.push(char::from(DIGITS[usize::try_from(digit).unwrap_or_default()]));
        if number == 0 {
            return;
        }
    }
}

/// Returns what the text beside `offset` says; `None` if it is empty, damaged or that of another program. If the offset
/// was set by another tool, the topic and the ranges do not count.
pub(in crate::ktransfer::group) fn decode(offset: Offset, text: &str) -> Option<CommitMetadata> {
    let mut fields = text.split(';');
    if fields.next() != Some(PREFIX) {
        return None;
    }
    let (mut metadata, mut of) = (CommitMetadata::default(), None);
    for field in fields {
        match field.split_once('=')? {
            ("o", value) => of = Some(value.parse::<Offset>().ok()?),
            ("t", value) => metadata.token = value.parse().ok()?,
            ("m", value) => metadata.pauses.read_module(value)?,
            ("r", value) => metadata.pauses.read_resumed(value)?,
            ("p", value) => metadata.pauses.read_partition(value)?,
            ("n", value) => metadata.first_partitions = Some(value.parse().ok().filter(|count| *count >= 0)?),
            ("i", value) => metadata.topic_id = Some(decode_id(value)?),
            ("e", value) => metadata.read_epoch = Some(value.parse().ok().filter(|epoch| *epoch >= 0)?),
            ("d", value) => metadata.ranges = decode_ranges(of?, value)?.into(),
            _ => {}
        }
    }
    if of? != offset {
        (metadata.topic_id, metadata.read_epoch, metadata.ranges) = (None, None, Arc::default());
    }
    Some(metadata)
}

fn decode_ranges(offset: Offset, text: &str) -> Option<Vec<Range<Offset>>> {
    let (mut bytes, mut end, mut ranges) = (text.bytes(), offset, Vec::new());
    while let Some(first) = bytes.next() {
        let gap = take_number(first, &mut bytes)?;
        let length = take_number(bytes.next()?, &mut bytes).filter(|length| *length > 0)?;
        let start = end.checked_add_unsigned(gap)?;
        end = start.checked_add_unsigned(length)?;
        ranges.push(start..end);
    }
    Some(ranges)
}

fn take_number(first: u8, rest: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let (mut digit, mut number) = (first, 0_u64);
    for shift in (0..u64::BITS).step_by(DIGIT_BITS as usize) {
        let value = DIGITS.iter().position(|known| *known == digit)? as u64;
        let bits = value % CONTINUES;
        number |= bits.checked_mul(1_u64.checked_shl(shift)?)?;
        if value < CONTINUES {
            return Some(number);
        }
        digit = rest.next()?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn metadata(ranges: &[Range<Offset>]) -> CommitMetadata {
        CommitMetadata {
            token: 7,
            first_partitions: Some(8),
            topic_id: Some([0xab; 16]),
            ranges: ranges.into(),
            ..CommitMetadata::default()
        }
    }

    fn encode(offset: Offset, metadata: &CommitMetadata, max_bytes: usize) -> String {
        super::encode(offset, metadata, max_bytes).expect("room")
    }

    #[test]
    fn the_text_has_the_gaps_and_lengths_of_the_ranges() {
        let with_ranges = metadata(&[102..103, 110..130, 1000..1000 + 40]);
        let text = encode(100, &with_ranges, MAX_BYTES);
        assert_eq!(text, format!("kt1;o=100;t=7;n=8;i={};d=CBHUmboB", "ab".repeat(16)));
        assert_eq!(decode(100, &text), Some(with_ranges.clone()));
        let with_epoch = CommitMetadata { read_epoch: Some(6), ..with_ranges };
        let text = encode(100, &with_epoch, MAX_BYTES);
        assert_eq!(text, format!("kt1;o=100;t=7;n=8;i={};e=6;d=CBHUmboB", "ab".repeat(16)));
        assert_eq!(decode(100, &text), Some(with_epoch.clone()));
        assert_eq!(decode(90, &text).expect("readable").read_epoch, None, "another tool set the offset");
        let without_ranges = CommitMetadata { ranges: Arc::default(), ..with_epoch };
        assert!(!encode(100, &without_ranges, MAX_BYTES).contains(";e="));
        let least = CommitMetadata { token: 1, ..CommitMetadata::default() };
        assert_eq!(encode(0, &least, MAX_BYTES), "kt1;o=0;t=1");
        assert_eq!(decode(0, "kt1;o=0;t=1"), Some(least));
    }

    #[test]
    fn an_offset_that_another_tool_set_voids_the_ranges_and_the_topic_but_not_the_token() {
        let text = encode(100, &metadata(&[102..103, 110..112]), MAX_BYTES);
        let voided = CommitMetadata { token: 7, first_partitions: Some(8), ..CommitMetadata::default() };
        assert_eq!(decode(90, &text), Some(voided));
    }

    #[test]
    fn foreign_and_damaged_text_says_nothing_and_unknown_fields_are_skipped() {
        for text in
            ["", "kt1", "kt1;", "kt2;o=1;t=1", "NO_METADATA", "{\"a\":1}", "kt1;o=x;t=1", "kt1;t=1", "kt1;o=1;t=-1"]
        {
            assert_eq!(decode(1, text), None, "{text}");
        }
        for ranges in ["B", "BA", "BB!", "B=", "é", "gggggggggggggg", "BggggggggggggggggB", "BBg"] {
            assert_eq!(decode(1, &format!("kt1;o=1;t=1;d={ranges}")), None, "{ranges}");
        }
        for id in ["", "+f", &"g".repeat(32), &"é".repeat(16)] {
            assert_eq!(decode(1, &format!("kt1;o=1;t=1;i={id}")), None, "{id}");
        }
        for bad in ["n=-1", "e=-1", "e=x", "e="] {
            assert_eq!(decode(1, &format!("kt1;o=1;t=1;{bad}")), None, "{bad}");
        }
        let later = decode(1, "kt1;o=1;t=3;q=1;x=;d=BB").unwrap();
        assert_eq!((later.token, later.ranges.len(), later.ranges[0].clone()), (3, 1, 2..3));
        assert!(decode(1, "kt1;o=1;t=3;p=1").unwrap().pauses.is_paused());
    }

    #[test]
    fn ranges_below_the_offset_and_beyond_the_limit_are_left_out() {
        let late = encode(105, &metadata(&[102..103, 104..107, 110..111]), MAX_BYTES);
        assert_eq!(decode(105, &late).unwrap().ranges[..], [105..107, 110..111]);
        let many: Vec<Range<Offset>> = (0..100_000).map(|number| 2 * number + 1..2 * number + 2).collect();
        for max_bytes in [MAX_BYTES, 512, 128, 80] {
            let text = encode(0, &metadata(&many), max_bytes);
            assert!(text.len() <= max_bytes, "{} bytes", text.len());
            let kept = decode(0, &text).unwrap().ranges;
            assert!(many.starts_with(&kept), "{} ranges", kept.len());
            assert!(kept.len() * 2 + 100 >= max_bytes.saturating_sub(RESERVED_BYTES), "{} ranges", kept.len());
        }
        assert_eq!(encode(0, &metadata(&many), 40), "kt1;o=0;t=7", "no room for the id of the topic");
        assert_eq!(encode(0, &metadata(&[]), 10), "");
    }

    #[test]
    fn a_pause_outlives_everything_else_where_there_is_little_room() {
        let mut paused = metadata(&[102..103, 110..111]);
        paused.pauses.read_module("5,1700000000000,ann").unwrap();
        paused.pauses.read_partition("4,1700000000000,bob").unwrap();
        let log = format!(";n=8;i={}", "ab".repeat(16));
        for (max_bytes, expected) in [
            (MAX_BYTES, Some(format!("kt1;o=100;t=7;m=5,1700000000000,ann;p=4,1700000000000,bob{log};d=CBHB"))),
            (110, Some(format!("kt1;o=100;t=7;m=5,1700000000000,ann;p=4,1700000000000,bob{log}"))),
            (90, Some(format!("kt1;o=100;t=7;m=5;p=4{log};d=CBHB"))),
            (64, Some(format!("kt1;o=100;t=7;m=5;p=4{log}"))),
            (32, Some("kt1;o=100;t=7;m=5;p=4".to_owned())),
            (20, None),
        ] {
            let text = super::encode(100, &paused, max_bytes);
            assert_eq!(text, expected, "{max_bytes}");
            let Some(text) = text else { continue };
            assert!(decode(100, &text).unwrap().pauses.is_paused() && text.len() <= max_bytes, "{text}");
        }
        // Also where another tool set the offset.
        let text = encode(100, &paused, MAX_BYTES);
        assert_eq!(decode(90, &text).unwrap().pauses, paused.pauses);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            offset in 0i64..1 << 40,
            steps in prop::collection::vec((0u64..1 << 40, 1u64..1 << 40), 0..50),
        ) {
            let mut end = offset;
            let ranges: Vec<Range<Offset>> = steps.iter().map(|(gap, length)| {
                let start = end + *gap as i64;
                end = start + *length as i64;
                start..end
            }).collect();
            let metadata = metadata(&ranges);
            prop_assert_eq!(decode(offset, &encode(offset, &metadata, MAX_BYTES)), Some(metadata));
        }

        #[test]
        fn arbitrary_text_never_panics(offset: i64, text in "(kt1;o=-?[0-9]{0,20};)?.{0,60}", digits in "[A-Za-z0-9_-]{0,40}") {
            decode(offset, &text);
            decode(offset, &format!("kt1;o={offset};t=1;d={digits}"));
        }
    }
}
