//! The compression codecs of record data: gzip, snappy, lz4 and zstd, implemented in Rust without C libraries.
//!
//! Decompression has a size limit: it fails when the decompressed data exceeds the limit, whatever size its header
//! states.

use std::io::{self, Read, Write};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

/// A compression codec; the number is its value in the attributes of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// 0
    #[default]
    None,
    /// 1
    Gzip,
    /// 2; written with the framing of snappy-java, read with this framing or as one raw block.
    Snappy,
    /// 3; the LZ4 frame format.
    Lz4,
    /// 4; brokers support it since Kafka 2.1.
    Zstd,
}

/// Why data could not be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// The decompressed data is larger than this limit in bytes.
    #[error("decompressed data is larger than {0} bytes")]
    TooLarge(usize),
    /// The data is damaged or was compressed with another codec; or the compression failed.
    #[error("damaged {codec:?} data: {reason}")]
    Damaged {
        /// The codec.
        codec: Codec,
        /// Error message of the codec library.
        reason: String,
    },
}

/// Header of a snappy-java stream: magic, version 1, compatible version 1 (org.xerial.snappy.SnappyCodec).
const XERIAL_HEADER: [u8; 16] = *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
/// Uncompressed bytes of one block of a snappy-java stream: the default of snappy-java.
const XERIAL_BLOCK: usize = 32 * 1024;

/// Magic number of an LZ4 frame.
const LZ4_MAGIC: [u8; 4] = 0x184d_2204_u32.to_le_bytes();

impl Codec {
    /// Returns the codec with this number; `None` if Kafka defines no codec with this number.
    pub fn from_number(number: i16) -> Option<Codec> {
        [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd].get(usize::try_from(number).ok()?).copied()
    }

    /// Returns the number of the codec in the attributes of a batch.
    pub fn number(self) -> i16 {
        self as i16
    }

    /// Compresses `data` and appends the result to `buffer`.
    pub fn compress(self, data: &[u8], buffer: &mut Vec<u8>) -> Result<(), CompressionError> {
        let damaged =
            |cause: &dyn std::fmt::Display| CompressionError::Damaged { codec: self, reason: cause.to_string() };
        match self {
            Codec::None => buffer.extend_from_slice(data),
            Codec::Gzip => {
                let mut encoder = GzEncoder::new(buffer, flate2::Compression::default());
                encoder.write_all(data).and_then(|()| encoder.finish().map(drop)).map_err(|cause| damaged(&cause))?;
            }
            Codec::Snappy => {
                buffer.extend_from_slice(&XERIAL_HEADER);
                let mut encoder = snap::raw::Encoder::new();
                for block in data.chunks(XERIAL_BLOCK) {
                    let block = encoder.compress_vec(block).map_err(|cause| damaged(&cause))?;
                    buffer.extend_from_slice(&(block.len() as u32).to_be_bytes());
                    buffer.extend_from_slice(&block);
                }
            }
            Codec::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(buffer);
                encoder.write_all(data).map_err(|cause| damaged(&cause))?;
                encoder.finish().map_err(|cause| damaged(&cause))?;
            }
            Codec::Zstd => {
                ruzstd::encoding::compress(data, buffer, ruzstd::encoding::CompressionLevel::Fastest);
            }
        }
        Ok(())
    }

    /// Returns `data` decompressed; fails if the result is larger than `max_bytes`.
    pub fn decompress(self, data: &[u8], max_bytes: usize) -> Result<Vec<u8>, CompressionError> {
        let damaged = |reason: String| CompressionError::Damaged { codec: self, reason };
        match self {
            Codec::None if data.len() > max_bytes => Err(CompressionError::TooLarge(max_bytes)),
            Codec::None => Ok(data.to_vec()),
            Codec::Gzip => self.read_all(MultiGzDecoder::new(data), max_bytes),
            Codec::Snappy => decompress_snappy(data, max_bytes),
            Codec::Lz4 => self.read_all(lz4_flex::frame::FrameDecoder::new(data), max_bytes),
            Codec::Zstd => {
                let decoder =
                    ruzstd::decoding::StreamingDecoder::new(data).map_err(|cause| damaged(cause.to_string()))?;
                self.read_all(decoder, max_bytes)
            }
        }
    }

    /// Like [`decompress`](Self::decompress), for a message of format 0: there the checksum of the LZ4 frame header may
    /// be wrong, because Java clients before 0.10 computed it over the magic number, too (KAFKA-3160).
    pub fn decompress_format_0(self, data: &[u8], max_bytes: usize) -> Result<Vec<u8>, CompressionError> {
        match lz4_checksum(data).filter(|_| self == Codec::Lz4) {
            Some((at, checksum)) if data[at] != checksum => {
                let mut mended = data.to_vec();
                mended[at] = checksum;
                self.decompress(&mended, max_bytes)
            }
            _ => self.decompress(data, max_bytes),
        }
    }

    fn read_all(self, stream: impl Read, max_bytes: usize) -> Result<Vec<u8>, CompressionError> {
        let mut plain = Vec::new();
        let limit = max_bytes as u64 + 1;
        let outcome: io::Result<usize> = stream.take(limit).read_to_end(&mut plain);
        outcome.map_err(|cause| CompressionError::Damaged { codec: self, reason: cause.to_string() })?;
        if plain.len() > max_bytes {
            return Err(CompressionError::TooLarge(max_bytes));
        }
        Ok(plain)
    }
}

/// Returns where an LZ4 frame has the checksum of its header, and what it should be; `None` if the data is no frame.
fn lz4_checksum(data: &[u8]) -> Option<(usize, u8)> {
    let descriptor = data.strip_prefix(&LZ4_MAGIC)?;
    let flags = descriptor.first()?;
    let content_size = if flags & 0x08 != 0 { 8 } else { 0 };
    let dictionary_id = if flags & 0x01 != 0 { 4 } else { 0 };
    let size = 2 + content_size + dictionary_id;
    let hash = short_xxh32(descriptor.get(..size)?);
    let at = LZ4_MAGIC.len() + size;
    (at < data.len()).then_some((at, (hash >> 8) as u8))
}

/// Returns the xxHash32 with seed 0 of less than 16 bytes; longer data has another algorithm.
pub(super) fn short_xxh32(data: &[u8]) -> u32 {
    const PRIMES: [u32; 5] = [0x9e37_79b1, 0x85eb_ca77, 0xc2b2_ae3d, 0x27d4_eb2f, 0x1656_67b1];
    let mut hash = PRIMES[4].wrapping_add(data.len() as u32);
    let (words, bytes) = data.as_chunks::<4>();
    for word in words {
        hash = hash.wrapping_add(u32::from_le_bytes(*word).wrapping_mul(PRIMES[2]));
        hash = hash.rotate_left(17).wrapping_mul(PRIMES[3]);
    }
    for byte in bytes {
        hash = hash.wrapping_add(u32::from(*byte).wrapping_mul(PRIMES[4]));
        hash = hash.rotate_left(11).wrapping_mul(PRIMES[0]);
    }
    hash = (hash ^ (hash >> 15)).wrapping_mul(PRIMES[1]);
    hash = (hash ^ (hash >> 13)).wrapping_mul(PRIMES[2]);
    hash ^ (hash >> 16)
}

fn decompress_snappy(data: &[u8], max_bytes: usize) -> Result<Vec<u8>, CompressionError> {
    let damaged = |reason: &str| CompressionError::Damaged { codec: Codec::Snappy, reason: reason.to_owned() };
    let mut plain = Vec::new();
    let mut block = |block: &[u8]| {
        let length = snap::raw::decompress_len(block).map_err(|cause| damaged(&cause.to_string()))?;
        if plain.len() + length > max_bytes {
            return Err(CompressionError::TooLarge(max_bytes));
        }
        // The stated length is allocated, so it must be possible for a block of this size: a copy element of two bytes
        // expands to at most 64 bytes.
        if length / 32 > block.len() {
            return Err(damaged("a block states a larger size than it can expand to"));
        }
        let decompressed =
            snap::raw::Decoder::new().decompress_vec(block).map_err(|cause| damaged(&cause.to_string()))?;
        plain.extend_from_slice(&decompressed);
        Ok(())
    };
    // Only the magic in the first eight bytes is compared: the versions may differ.
    if data.get(..8) != Some(&XERIAL_HEADER[..8]) {
        block(data)?;
        return Ok(plain);
    }
    let mut rest = data.get(XERIAL_HEADER.len()..).ok_or_else(|| damaged("the stream ends in its header"))?;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("the stream ends in a length"))?;
        let length = u32::from_be_bytes(*length) as usize;
        let (bytes, after) = after.split_at_checked(length).ok_or_else(|| damaged("the stream ends in a block"))?;
        block(bytes)?;
        rest = after;
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

    fn compressed(codec: Codec, data: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        codec.compress(data, &mut buffer).unwrap();
        buffer
    }

    #[test]
    fn codecs_have_the_numbers_of_the_batch_attributes() {
        for (number, codec) in ALL.into_iter().enumerate() {
            assert_eq!(Codec::from_number(number as i16), Some(codec));
            assert_eq!(codec.number(), number as i16);
        }
        assert_eq!((Codec::from_number(5), Codec::from_number(-1)), (None, None));
    }

    #[test]
    fn decompression_fails_above_the_limit() {
        let zeros = vec![0; 10 << 20];
        for codec in ALL {
            let small = compressed(codec, &zeros);
            assert!(matches!(codec.decompress(&small, 1 << 20), Err(CompressionError::TooLarge(_))), "{codec:?}");
            assert_eq!(codec.decompress(&small, 10 << 20).unwrap().len(), 10 << 20, "{codec:?}");
        }
        // A raw snappy block of six bytes whose header states 1 GiB.
        let announced = [0x80, 0x80, 0x80, 0x80, 4, 0];
        assert!(matches!(Codec::Snappy.decompress(&announced, 2 << 30), Err(CompressionError::Damaged { .. })));
    }

    #[test]
    fn a_raw_snappy_block_is_decompressed() {
        let raw = snap::raw::Encoder::new().compress_vec(b"hello hello hello").unwrap();
        assert_eq!(Codec::Snappy.decompress(&raw, 100).unwrap(), b"hello hello hello");
    }

    #[test]
    fn lz4_frames_of_old_writers_are_read_in_format_0_alone() {
        let data = b"hello hello hello hello hello";
        let good = compressed(Codec::Lz4, data);
        let (at, checksum) = lz4_checksum(&good).unwrap();
        assert_eq!(good[at], checksum, "as the codec library computes it");
        // Over the magic number, too (KAFKA-3160).
        let mut old = good.clone();
        old[at] = (short_xxh32(&good[..at]) >> 8) as u8;
        assert_ne!(old[at], checksum);
        assert!(Codec::Lz4.decompress(&old, 100).is_err());
        for frame in [&old, &good] {
            assert_eq!(Codec::Lz4.decompress_format_0(frame, 100).unwrap(), data);
        }
        assert_eq!(short_xxh32(b""), 0x02cc_5d05, "the value in the specification of xxHash");
    }

    proptest! {
        #[test]
        fn compressed_data_is_decompressed_to_the_same_bytes(data in prop::collection::vec(0_u8..4, 0..100_000)) {
            for codec in ALL {
                let small = compressed(codec, &data);
                prop_assert_eq!(&codec.decompress(&small, data.len()).unwrap(), &data, "{:?}", codec);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic_or_exceed_the_limit(bytes: Vec<u8>, start in 0..5_usize) {
            let framed = [&compressed(ALL[start], b"abc")[..], &bytes].concat();
            for codec in ALL {
                for data in [&bytes, &framed] {
                    for plain in [codec.decompress(data, 1000), codec.decompress_format_0(data, 1000)].into_iter().flatten() {
                        prop_assert!(plain.len() <= 1000);
                    }
                }
            }
        }
    }
}
