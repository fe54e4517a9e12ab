use super::*;
use crate::kafka::compression::short_xxh32;
use crate::kafka::record_batch::{BatchBuilder, ProducerState, RecordView};
use proptest::prelude::*;

/// Offset, timestamp, key, value, headers.
type Fields = (i64, Option<i64>, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

const MAX_BYTES: usize = 1 << 20;

fn owned(record: ReadRecord) -> Fields {
    let bytes = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    let headers: Vec<_> = record.headers.iter().map(|(name, value)| (name.to_vec(), bytes(value))).collect();
    assert_eq!((headers.len(), headers.is_empty()), (record.headers.len(), record.headers.is_empty()));
    (record.offset, record.timestamp_ms, bytes(record.key), bytes(record.value), headers)
}

fn read_within(data: &[u8], max_bytes: usize) -> Result<(Vec<Fields>, Vec<BatchInfo>), RecordError> {
    let (mut records, mut infos) = (Vec::new(), Vec::new());
    for entry in Entries::of(data) {
        infos.push(entry?.read(max_bytes, |record| records.push(owned(record)))?);
    }
    Ok((records, infos))
}

fn read(data: &[u8]) -> Result<(Vec<Fields>, Vec<BatchInfo>), RecordError> {
    read_within(data, MAX_BYTES)
}

fn batch(codec: Codec, values: &[&str]) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    for value in values {
        let headers = [("h", Some(&b"v"[..])), ("n", None)];
        builder.push(&RecordView {
            key: Some(b"k"),
            value: Some(value.as_bytes()),
            headers: &headers,
            timestamp_ms: 1000,
        });
    }
    let mut buffer = Vec::new();
    builder.finish(codec, ProducerState::NONE, &mut buffer).unwrap();
    buffer
}

/// Applies `change` to an encoded batch and updates its CRC.
fn changed(mut batch: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut batch);
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

fn message(magic: i8, attributes: u8, offset: i64, timestamp: i64, value: Option<&[u8]>) -> Vec<u8> {
    let mut body = vec![magic.cast_unsigned(), attributes];
    if magic == 1 {
        body.extend(timestamp.to_be_bytes());
    }
    body.extend((-1_i32).to_be_bytes());
    body.extend(value.map_or(-1, |value| value.len() as i32).to_be_bytes());
    body.extend(value.unwrap_or_default());
    let mut bytes = offset.to_be_bytes().to_vec();
    bytes.extend((body.len() as i32 + 4).to_be_bytes());
    bytes.extend(crc32fast::hash(&body).to_be_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn batches_of_every_codec_are_decoded_and_a_truncated_one_is_skipped() {
    for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let first = batch(codec, &["a", "b"]);
        let second = changed(batch(codec, &["c"]), |bytes| bytes[7] = 10);
        let data = [&first[..], &second, &first[..first.len() - 1]].concat();
        let (records, infos) = read(&data).unwrap();
        let headers = vec![(b"h".to_vec(), Some(b"v".to_vec())), (b"n".to_vec(), None)];
        let expected: Vec<Fields> = [(0, "a"), (1, "b"), (10, "c")]
            .into_iter()
            .map(|(offset, value)| (offset, Some(1000), Some(b"k".to_vec()), Some(value.into()), headers.clone()))
            .collect();
        assert_eq!(records, expected, "{codec:?}");
        assert_eq!(infos.iter().map(|info| info.next_offset).collect::<Vec<_>>(), [2, 11], "{codec:?}");
    }
}

#[test]
fn attributes_and_compacted_batches_are_decoded() {
    let control = changed(batch(Codec::None, &["marker"]), |bytes| bytes[22] = 0x30);
    let (records, infos) = read(&control).unwrap();
    assert_eq!(records, []);
    assert!(infos[0].is_control && infos[0].is_transactional && infos[0].next_offset == 1);

    // LogAppendTime, and a batch of five offsets with a single record: compaction removed the other records.
    let compacted = changed(batch(Codec::None, &["x"]), |bytes| {
        bytes[22] = 8;
        bytes[26] = 4;
        bytes[35..43].copy_from_slice(&7777_i64.to_be_bytes());
    });
    let (records, infos) = read(&compacted).unwrap();
    assert_eq!((records[0].1, infos[0].next_offset), (Some(7777), 5));
}

#[test]
fn plain_and_compressed_messages_of_formats_0_and_1_are_decoded() {
    for (magic, inner_offsets, timestamp) in [(0, [40, 41], None), (1, [0, 1], Some(5))] {
        let plain = message(magic, 0, 39, 5, Some(b"x"));
        let set: Vec<u8> = inner_offsets.iter().flat_map(|offset| message(magic, 0, *offset, 5, Some(b"y"))).collect();
        for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4] {
            let mut value = Vec::new();
            codec.compress(&set, &mut value).unwrap();
            let wrapper = message(magic, codec.number() as u8, 41, 9, Some(&value));
            let tombstone = message(magic, 0, 42, -1, None);
            let (records, infos) = read(&[&plain[..], &wrapper, &tombstone].concat()).unwrap();
            let seen: Vec<_> = records.iter().map(|record| (record.0, record.1, record.3.as_deref())).collect();
            let expected = [
                (39, timestamp, Some(&b"x"[..])),
                (40, timestamp, Some(b"y")),
                (41, timestamp, Some(b"y")),
                (42, None, None),
            ];
            assert_eq!(seen, expected, "{magic} {codec:?}");
            assert_eq!(infos.last().unwrap().next_offset, 43);
        }
    }
    let mut value = Vec::new();
    Codec::Gzip.compress(&message(1, 0, 0, 5, Some(b"y")), &mut value).unwrap();
    let (records, _) = read(&message(1, 1 | 8, 41, 9, Some(&value))).unwrap();
    assert_eq!((records[0].0, records[0].1), (41, Some(9)), "the append time is the timestamp of the outer message");
}

#[test]
fn errors_of_damaged_data_name_the_damage() {
    let good = batch(Codec::None, &["a", "b"]);
    let wrong_crc = [&good[..good.len() - 1], b"\xff"].concat();
    let unknown_codec = changed(good.clone(), |bytes| bytes[22] = 7);
    let too_many = changed(good.clone(), |bytes| bytes[60] = 3);
    let too_few = changed(good.clone(), |bytes| bytes[60] = 1);
    let negative = changed(good.clone(), |bytes| bytes[57] = 0xff);
    let unknown_format = changed(good.clone(), |bytes| bytes[16] = 3);
    let small = [&[0; 11][..], &[1, 0]].concat();
    let negative_length = [&[0; 8][..], &[0xff; 12]].concat();
    let not_zipped = changed(good.clone(), |bytes| bytes[22] = 1);
    let mut nested = Vec::new();
    let mut value = Vec::new();
    Codec::Gzip.compress(&message(1, 0, 0, 5, Some(b"y")), &mut value).unwrap();
    Codec::Gzip.compress(&message(1, 1, 0, 5, Some(&value)), &mut nested).unwrap();
    for (data, words) in [
        (wrong_crc, "CRC"),
        (unknown_codec, "compression codec 7"),
        (too_many, "the data ends"),
        (too_few, "bytes after the last record"),
        (negative, "negative number of records"),
        (unknown_format, "message format 3"),
        (small, "length that is too small"),
        (negative_length, "negative length"),
        (not_zipped, "damaged Gzip"),
        (message(1, 1, 0, 5, Some(&nested)), "within a compressed message"),
        (message(1, 1, 0, 5, None), "without a value"),
    ] {
        let error = read(&data).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} should contain {words:?}");
    }
    let zeros = "0".repeat(100_000);
    let bomb = batch(Codec::Gzip, &[&zeros]);
    assert!(read_within(&bomb, 10_000).unwrap_err().to_string().contains("larger than 10000 bytes"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        byte: u8,
        codec in 0..5_i16,
    ) {
        let _ = read(&noise);
        let mut good = batch(Codec::from_number(codec).unwrap(), &["some", "values", "more of them"]);
        let at = at.index(good.len());
        good[at] = byte;
        let _ = read(&good);
        // With a correct CRC, so that the code after the CRC check runs.
        if good.len() > 61 && at >= 21 {
            let _ = read(&changed(good, |_| ()));
        }
    }
}

#[test]
fn lz4_messages_of_java_clients_before_0_10_are_decoded() {
    let set = [message(0, 0, 7, 0, Some(b"a")), message(0, 0, 8, 0, Some(b"b"))].concat();
    let mut frame = Vec::new();
    Codec::Lz4.compress(&set, &mut frame).unwrap();
    // Magic number, flags and block size, then the checksum: those clients computed it over all six bytes (KAFKA-3160).
    assert_eq!(frame[4] & 0x09, 0, "no content size, no dictionary");
    frame[6] = (short_xxh32(&frame[..6]) >> 8) as u8;
    let values = |magic| {
        let read = read(&message(magic, 3, 8, 0, Some(&frame)));
        read.map(|(records, _)| records.into_iter().map(|record| record.3.unwrap()).collect::<Vec<_>>())
    };
    assert_eq!(values(0).unwrap(), [b"a", b"b"]);
    let refused = values(1).unwrap_err().to_string();
    assert!(refused.contains("Lz4"), "{refused}");
}
