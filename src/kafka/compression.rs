//! The compression codecs of record data: gzip, snappy, lz4 and zstd, all in Rust.
//!
//! Decompression takes a limit: a batch that would grow beyond it is refused, whatever its headers announce.

use std::io::{self, Read, Write};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

/// The codec of a batch, by the number in its attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// 0
    #[default]
    None,
    /// 1
    Gzip,
    /// 2; written and read with the framing of snappy-java, read also as one raw block.
    Snappy,
    /// 3; the LZ4 frame format.
    Lz4,
    /// 4; brokers from 2.1 on.
    Zstd,
}

/// Why data could not be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// The decompressed data is larger than the limit, bytes.
    #[error("decompressed data is larger than {0} bytes")]
    TooLarge(usize),
    /// The data is not of this codec, or damaged.
    #[error("damaged {codec:?} data: {reason}")]
    Damaged {
        /// The codec.
        codec: Codec,
        /// The codec's own words.
        reason: String,
    },
}

/// Magic and versions of snappy-java's stream (org.xerial.snappy.SnappyCodec).
const XERIAL_HEADER: [u8; 16] = *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
/// Uncompressed bytes of one block of such a stream, as snappy-java has it.
const XERIAL_BLOCK: usize = 32 * 1024;

impl Codec {
    /// The codec with this number; `None` for numbers Kafka does not know.
    pub fn from_number(number: i16) -> Option<Codec> {
        [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd].get(usize::try_from(number).ok()?).copied()
    }

    /// Its number in the attributes of a batch.
    pub fn number(self) -> i16 {
        self as i16
    }

    /// Appends `data`, compressed, to `buffer`.
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

    /// `data`, decompressed; refused beyond `max_bytes`.
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

fn decompress_snappy(data: &[u8], max_bytes: usize) -> Result<Vec<u8>, CompressionError> {
    let damaged = |reason: &str| CompressionError::Damaged { codec: Codec::Snappy, reason: reason.to_owned() };
    let mut plain = Vec::new();
    let mut block = |block: &[u8]| {
        let length = snap::raw::decompress_len(block).map_err(|cause| damaged(&cause.to_string()))?;
        if plain.len() + length > max_bytes {
            return Err(CompressionError::TooLarge(max_bytes));
        }
        // The announced length is within the limit, but the block must also be able to hold it: a copy of two bytes gives
        // at most 64.
        if length / 32 > block.len() {
            return Err(damaged("a block announces more than it can hold"));
        }
        let decompressed =
            snap::raw::Decoder::new().decompress_vec(block).map_err(|cause| damaged(&cause.to_string()))?;
        plain.extend_from_slice(&decompressed);
        Ok(())
    };
    // Writers may name other versions; the first eight bytes are the magic.
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
    fn numbers_are_those_of_the_attributes() {
        for (number, codec) in ALL.into_iter().enumerate() {
            assert_eq!(Codec::from_number(number as i16), Some(codec));
            assert_eq!(codec.number(), number as i16);
        }
        assert_eq!((Codec::from_number(5), Codec::from_number(-1)), (None, None));
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let zeros = vec![0; 10 << 20];
        for codec in ALL {
            let small = compressed(codec, &zeros);
            assert!(matches!(codec.decompress(&small, 1 << 20), Err(CompressionError::TooLarge(_))), "{codec:?}");
            assert_eq!(codec.decompress(&small, 10 << 20).unwrap().len(), 10 << 20, "{codec:?}");
        }
        // One raw block of snappy that announces 1 GiB and has five bytes.
        let announced = [0x80, 0x80, 0x80, 0x80, 4, 0];
        assert!(matches!(Codec::Snappy.decompress(&announced, 2 << 30), Err(CompressionError::Damaged { .. })));
    }

    #[test]
    fn a_raw_block_of_snappy_is_read() {
        let raw = snap::raw::Encoder::new().compress_vec(b"hello hello hello").unwrap();
        assert_eq!(Codec::Snappy.decompress(&raw, 100).unwrap(), b"hello hello hello");
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(data in prop::collection::vec(0_u8..4, 0..100_000)) {
            for codec in ALL {
                let small = compressed(codec, &data);
                prop_assert_eq!(&codec.decompress(&small, data.len()).unwrap(), &data, "{:?}", codec);
            }
        }

        #[test]
        fn no_bytes_make_it_panic_or_grow(bytes: Vec<u8>, start in 0..5_usize) {
            let framed = [&compressed(ALL[start], b"abc")[..], &bytes].concat();
            for codec in ALL {
                for data in [&bytes, &framed] {
                    if let Ok(plain) = codec.decompress(data, 1000) {
                        prop_assert!(plain.len() <= 1000);
                    }
                }
            }
        }
    }
}
