//! Tests of the codings of a body, by tables and properties.

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use proptest::prelude::*;

use super::*;
use crate::http::ByteBudget;

const LIMIT: DecodedLimit = DecodedLimit { max_bytes: 100_000, setting: "max_batch_bytes" };

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zlib(plain: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn raw_deflate(plain: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    ruzstd::encoding::compress(plain, &mut out, ruzstd::encoding::CompressionLevel::Fastest);
    out
}

type Encode = fn(&[u8]) -> Vec<u8>;
const ENCODERS: [(Coding, Encode); 4] =
    [(Coding::Gzip, gzip), (Coding::Deflate, zlib), (Coding::Deflate, raw_deflate), (Coding::Zstd, zstd)];

fn decode(coding: Coding, body: &[u8]) -> Result<Vec<u8>, Failure> {
    coding.decode(body, LIMIT, &mut ByteLease::default())
}

fn fields(values: &[&str]) -> Headers {
    let mut fields = Headers::default();
    fields.push("Content-Type", b"text/plain");
    values.iter().for_each(|value| fields.push("Content-Encoding", value.as_bytes()));
    fields
}

#[test]
fn the_coding_of_a_body_is_found_or_refused() {
    // The values of the fields; the coding or `Err`; the value of the record header.
    for (values, coding, kept) in [
        (&[][..], Ok(None), None),
        (&[""], Ok(None), None),
        (&["identity"], Ok(None), None),
        (&["Identity , ,identity"], Ok(None), None),
        (&["gzip"], Ok(Some(Coding::Gzip)), Some("gzip")),
        (&[" GZip "], Ok(Some(Coding::Gzip)), Some("GZip")),
        (&["x-gzip"], Ok(Some(Coding::Gzip)), Some("x-gzip")),
        (&["deflate"], Ok(Some(Coding::Deflate)), Some("deflate")),
        (&["zstd"], Ok(Some(Coding::Zstd)), Some("zstd")),
        (&["identity, gzip,"], Ok(Some(Coding::Gzip)), Some("gzip")),
        (&["", "gzip", "identity"], Ok(Some(Coding::Gzip)), Some("gzip")),
        (&["gzip, gzip"], Err(()), Some("gzip, gzip")),
        (&["deflate", "gzip"], Err(()), Some("deflate, gzip")),
        (&["br"], Err(()), Some("br")),
        (&["compress"], Err(()), Some("compress")),
        (&["gzip;q=1"], Err(()), Some("gzip;q=1")),
        (&["gzip gzip"], Err(()), Some("gzip gzip")),
        (&["\u{1f600}"], Err(()), Some("\u{1f600}")),
    ] {
        let fields = fields(values);
        let found = Coding::of(&fields);
        assert_eq!(record_header_value(&fields).as_deref(), kept.map(str::as_bytes), "{values:?}");
        assert_eq!(refuse_any(&fields).is_err(), kept.is_some(), "{values:?}");
        match (found, coding) {
            (Ok(found), Ok(coding)) => assert_eq!(found, coding, "{values:?}"),
            (Err(failure), Err(())) => {
                assert_eq!((failure.status, failure.code), (415, "unsupported_coding"), "{values:?}");
                let header = Some(("Accept-Encoding", "gzip, deflate, zstd".to_owned()));
                assert_eq!(failure.header, header, "{values:?}");
            }
            (found, _) => panic!("{values:?}: {found:?}"),
        }
    }
    let refused = refuse_any(&fields(&["gzip"])).unwrap_err();
    assert_eq!(refused.header, Some(("Accept-Encoding", "identity".to_owned())));
}

#[test]
fn a_damaged_body_is_refused_with_its_coding_and_place() {
    let plain = b"hello hello hello";
    let with = |mut body: Vec<u8>, from_end: usize| {
        let at = body.len() - 1 - from_end;
        body[at] ^= 0x55;
        body
    };
    let cut = |body: Vec<u8>, bytes: usize| body[..body.len() - bytes].to_vec();
    let more = |body: Vec<u8>| [&body[..], b"more"].concat();
    // With a checksum: descriptor 0x24 (single segment, checksum), size 1, a last raw block of one byte.
    let checked = b"\x28\xb5\x2f\xfd\x24\x01\x09\x00\x00a\0\0\0\0";
    let large_window = b"\x28\xb5\x2f\xfd\x00\x88\x01\x00\x00";
    for (coding, body, start) in [
        (Coding::Gzip, b"plain".to_vec(), "the gzip body is corrupt (invalid gzip header), at byte "),
        (Coding::Gzip, b"\x1f".to_vec(), "the gzip body is truncated, at byte 1 of 1"),
        (Coding::Gzip, cut(gzip(plain), 1), "the gzip body is truncated, at byte "),
        (Coding::Gzip, cut(gzip(plain), 9), "the gzip body is truncated, at byte "),
        (Coding::Gzip, with(gzip(plain), 5), "the gzip body is corrupt ("),
        (Coding::Gzip, more(gzip(plain)), "the gzip body is corrupt (invalid gzip header), at byte 27 of 31"),
        (Coding::Gzip, zlib(plain), "the gzip body is corrupt ("),
        (Coding::Deflate, cut(zlib(plain), 1), "the deflate body is truncated, at byte "),
        (Coding::Deflate, cut(zlib(plain), 5), "the deflate body is truncated, at byte "),
        (Coding::Deflate, with(zlib(plain), 0), "the deflate body is corrupt ("),
        (Coding::Deflate, more(zlib(plain)), "the deflate body is followed by 4 bytes, at byte "),
        (Coding::Deflate, cut(raw_deflate(plain), 1), "the deflate body is truncated, at byte "),
        (Coding::Deflate, more(raw_deflate(plain)), "the deflate body is followed by 4 bytes, at byte "),
        (Coding::Deflate, b"\xff\xff\xff".to_vec(), "the deflate body is corrupt ("),
        (Coding::Deflate, gzip(plain), "the deflate body is corrupt ("),
        (Coding::Zstd, b"plain".to_vec(), "the zstd body is corrupt ("),
        (Coding::Zstd, b"\x28\xb5".to_vec(), "the zstd body is truncated, at byte 2 of 2"),
        (Coding::Zstd, cut(zstd(plain), 1), "the zstd body is truncated or corrupt, at byte "),
        (Coding::Zstd, more(zstd(plain)), "the zstd body is "),
        (Coding::Zstd, checked.to_vec(), "the zstd body is corrupt (wrong checksum), at byte 14 of 14"),
        (Coding::Zstd, large_window.to_vec(), "the zstd body is corrupt (Specified window_size is too big"),
        (Coding::Zstd, b"\x50\x2a\x4d\x18\x05\0\0\0abcd".to_vec(), "the zstd body is truncated, at byte "),
    ] {
        let failure = decode(coding, &body).expect_err(start);
        assert_eq!((failure.status, failure.code), (400, "bad_coding"), "{start}: {}", failure.message);
        assert!(failure.message.starts_with(start), "expected {start:?}, got {:?}", failure.message);
        assert!(failure.message.len() < 200, "{}", failure.message);
    }
}

#[test]
fn parts_follow_one_another_and_skippable_frames_are_skipped() {
    let parts = |encode: Encode| [encode(b"one"), encode(b""), encode(b"two")].concat();
    assert_eq!(decode(Coding::Gzip, &parts(gzip)).unwrap(), b"onetwo");
    assert_eq!(decode(Coding::Zstd, &parts(zstd)).unwrap(), b"onetwo");
    let skippable = [b"\x50\x2a\x4d\x18\x04\0\0\0abcd", &zstd(b"one")[..]].concat();
    assert_eq!(decode(Coding::Zstd, &skippable).unwrap(), b"one");
    assert_eq!(ENCODERS.map(|(coding, _)| decode(coding, b"").unwrap().len()), [0; 4]);

    for (coding, encode) in [(Coding::Gzip, gzip as Encode), (Coding::Zstd, zstd)] {
        assert_eq!(decode(coding, &encode(b"").repeat(MAX_PARTS)).unwrap(), b"");
        let failure = decode(coding, &encode(b"").repeat(MAX_PARTS + 1)).unwrap_err();
        assert!(failure.message.contains("in more than 10000 parts"), "{}", failure.message);
    }
}

#[test]
fn a_bomb_ends_at_the_limit_and_takes_no_more_memory() {
    let zeros = vec![0; 50 << 20];
    for (coding, encode) in ENCODERS {
        let body = encode(&zeros);
        let budget = ByteBudget::new(1 << 20);
        let mut lease = budget.lease();
        let failure = coding.decode(&body, LIMIT, &mut lease).unwrap_err();
        assert_eq!((failure.status, failure.code), (413, "too_large"), "{coding:?}");
        assert!(failure.message.contains("100000 bytes (max_batch_bytes)"), "{}", failure.message);
        assert!(budget.take_peak() <= 100_001, "{coding:?}: {}", budget.used());
        // The budget is exhausted before the limit is reached: because of other requests, or of this one alone.
        let budget = ByteBudget::new(150_000);
        let (mut lease, mut others) = (budget.lease(), budget.lease());
        assert!(lease.grow_to(10_000) && others.grow_to(70_000));
        let failure = coding.decode(&body, LIMIT, &mut lease).unwrap_err();
        assert_eq!((failure.status, failure.code, failure.retriable), (503, "overloaded", true), "{coding:?}");
        let mut lease = ByteBudget::new(80_000).lease();
        assert!(lease.grow_to(10_000));
        let failure = coding.decode(&body, LIMIT, &mut lease).unwrap_err();
        assert_eq!((failure.status, failure.code, failure.retriable), (413, "too_large", false), "{coding:?}");
        assert!(failure.message.ends_with("bytes of memory, max_in_flight_bytes is 80000"), "{}", failure.message);
    }
    let exactly = vec![7; LIMIT.max_bytes];
    for (coding, encode) in ENCODERS {
        let budget = ByteBudget::new(1 << 20);
        let mut lease = budget.lease();
        assert!(coding.decode(&encode(&exactly), LIMIT, &mut lease).unwrap() == exactly, "{coding:?}");
        assert!(budget.used() >= LIMIT.max_bytes, "the decoded body is leased: {}", budget.used());
    }
}

proptest! {
    #[test]
    fn encoded_bytes_are_decoded_to_the_same_bytes(plain in prop::collection::vec(0_u8..4, 0..90_000)) {
        for (coding, encode) in ENCODERS {
            prop_assert_eq!(&decode(coding, &encode(&plain)).unwrap(), &plain, "{:?}", coding);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic_or_exceed_the_limit(bytes: Vec<u8>, at in any::<prop::sample::Index>()) {
        for (coding, encode) in ENCODERS {
            let mut damaged = encode(b"hello hello hello hello");
            let at = at.index(damaged.len());
            damaged.splice(at..at, bytes.iter().copied());
            for body in [&bytes, &damaged] {
                if let Ok(plain) = decode(coding, body) {
                    prop_assert!(plain.len() <= LIMIT.max_bytes);
                }
            }
        }
    }

    #[test]
    fn a_truncated_body_is_never_decoded(plain in prop::collection::vec(0_u8..4, 1..300), at in any::<prop::sample::Index>()) {
        for (coding, encode) in ENCODERS {
            let body = encode(&plain);
            let cut = 1 + at.index(body.len() - 1);
            prop_assert_eq!(decode(coding, &body[..cut]).unwrap_err().code, "bad_coding", "{:?} {}", coding, cut);
        }
    }
}
