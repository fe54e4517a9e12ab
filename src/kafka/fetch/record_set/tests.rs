use super::*;
use crate::kafka::compression::Codec;
use crate::kafka::record_batch::{BatchBuilder, ProducerState, RecordView};
use proptest::prelude::*;

const LIMITS: UnpackLimits = UnpackLimits { stop_bytes: 1 << 20, max_batch_bytes: 1 << 20 };

/// A batch whose first offset is `base`, with one header for each record.
fn batch(base: i64, codec: Codec, values: &[&str]) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    for value in values {
        let headers = [("name", Some(&b"header"[..]))];
        let value = Some(value.as_bytes()).filter(|value| !value.is_empty());
        builder.push(&RecordView { key: Some(b"k"), value, headers: &headers, timestamp_ms: 1000 });
    }
    let mut bytes = Vec::new();
    builder.finish(codec, ProducerState::NONE, &mut bytes).unwrap();
    bytes[..8].copy_from_slice(&base.to_be_bytes());
    // Leader epoch; neither field is part of what the CRC covers.
    bytes[12..16].copy_from_slice(&(base as i32 / 10).to_be_bytes());
    bytes
}

fn offsets(unpacked: &Unpacked) -> Vec<i64> {
    (0..unpacked.set.len()).map(|index| unpacked.set.message(index).offset).collect()
}

#[test]
fn the_value_of_an_only_message_is_taken_and_its_other_parts_stay() {
    for values in [&["a", "b"][..], &[""]] {
        let mut set = unpack(&batch(0, Codec::None, values), 0, &[], LIMITS).set;
        assert_eq!(set.take_only_value(), None, "{values:?}");
        assert_eq!(set.message(0).value, Some(&b"a"[..]).filter(|_| values.len() > 1));
    }
    for codec in [Codec::None, Codec::Lz4] {
        // The first message is left out.
        let mut set = unpack(&batch(0, codec, &["left out", "value"]), 1, &[], LIMITS).set;
        let headers = [(&b"name"[..], Some(&b"header"[..]))];
        assert_eq!(set.take_only_value(), Some(b"value".to_vec()));
        let message = set.message(0);
        assert_eq!((message.offset, message.key, message.value), (1, Some(&b"k"[..]), None));
        assert_eq!(message.headers.iter().collect::<Vec<_>>(), headers);
        assert_eq!(set.take_only_value(), None);
    }
}

#[test]
fn messages_keep_all_their_parts_and_those_below_the_offset_are_left_out() {
    let data = [batch(0, Codec::None, &["a", "b"]), batch(10, Codec::Lz4, &["", "d"])].concat();
    let unpacked = unpack(&data, 1, &[], LIMITS);
    assert_eq!((offsets(&unpacked), unpacked.next_offset), (vec![1, 10, 11], 12));
    assert_eq!((unpacked.epochs, unpacked.consumed_bytes), (vec![(0, 1), (1, 10)], data.len()));
    let values: Vec<_> = (0..3).map(|index| unpacked.set.message(index).value).collect();
    assert_eq!(values, [Some(&b"b"[..]), None, Some(b"d")]);
    let first = unpacked.set.message(0);
    assert_eq!((first.key, first.timestamp_ms), (Some(&b"k"[..]), Some(1000)));
    assert_eq!(first.headers.iter().collect::<Vec<_>>(), [(&b"name"[..], Some(&b"header"[..]))]);
    let costs: usize = (0..3).map(|index| unpacked.set.cost(index)).sum();
    assert_eq!(costs, unpacked.set.total_cost());
}

#[test]
fn messages_before_a_damaged_batch_are_returned_and_the_damage_is_named() {
    let mut data = [batch(0, Codec::None, &["a"]), batch(1, Codec::None, &["b", "c"])].concat();
    *data.last_mut().unwrap() ^= 1;
    let unpacked = unpack(&data, 0, &[], LIMITS);
    assert_eq!((offsets(&unpacked), unpacked.next_offset), (vec![0], 1));
    assert!(unpacked.error.unwrap().to_string().contains("batch at offset 1 is damaged"));
}

#[test]
fn the_memory_of_a_batch_and_of_a_response_has_a_limit() {
    let text = "x".repeat(100_000);
    let large = batch(0, Codec::Gzip, &[&text]);
    let limits = UnpackLimits { max_batch_bytes: 50_000, ..LIMITS };
    let error = unpack(&large, 0, &[], limits).error.unwrap().to_string();
    assert!(error.contains("larger than 50000 bytes"), "{error}");
    // The records of this batch need more memory than its bytes.
    let small: Vec<&str> = vec!["y"; 2_000];
    let unpacked = unpack(&batch(0, Codec::None, &small), 0, &[], limits);
    assert_eq!((unpacked.set.len(), unpacked.set.total_cost(), unpacked.next_offset), (0, 0, 0));
    assert!(unpacked.error.unwrap().to_string().contains("larger than 50000 bytes"));
    // The second batch is fetched again; the first one always counts.
    let data = [batch(0, Codec::None, &["a", "b"]), batch(2, Codec::None, &["c"])].concat();
    let unpacked = unpack(&data, 0, &[], UnpackLimits { stop_bytes: 1, ..LIMITS });
    assert_eq!((offsets(&unpacked), unpacked.next_offset), (vec![0, 1], 2));
}

proptest! {
    #[test]
    fn damaged_data_never_panics(at: prop::sample::Index, byte: u8, offset in -5..30_i64) {
        let mut data = [batch(0, Codec::None, &["a", "b"]), batch(10, Codec::Snappy, &["c"])].concat();
        let at = at.index(data.len());
        data[at] = byte;
        let unpacked = unpack(&data, offset, &[(1, 0)], LIMITS);
        for index in 0..unpacked.set.len() {
            prop_assert!(unpacked.set.message(index).offset >= offset);
        }
    }
}
