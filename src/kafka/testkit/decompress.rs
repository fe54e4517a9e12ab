//! Decompression of record data, for validation and for the tests that look into a log.

use std::io::Read;

use bytes::Bytes;

/// The largest decompressed batch, so that a broken length cannot take all memory.
const MAX_BYTES: u64 = 256 << 20;
/// Start of snappy data as the Java library writes it: magic, version and lowest compatible version, 16 bytes.
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";

/// Decompresses the records of a batch; `codec` is the number in the attributes.
pub(super) fn decompress(codec: i16, data: &[u8]) -> Result<Bytes, String> {
    match codec {
        0 => Ok(Bytes::copy_from_slice(data)),
        1 => read_all(flate2::read::MultiGzDecoder::new(data)),
        2 => snappy(data),
        3 => read_all(lz4_flex::frame::FrameDecoder::new(data)),
        4 => read_all(ruzstd::decoding::StreamingDecoder::new(data).map_err(|cause| cause.to_string())?),
        _ => Err(format!("unknown compression {codec}")),
    }
}

fn read_all(stream: impl Read) -> Result<Bytes, String> {
    let mut data = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut data).map_err(|cause| cause.to_string())?;
    Ok(data.into())
}

/// Decompresses one snappy block, or the blocks with their lengths that the Java library writes.
fn snappy(data: &[u8]) -> Result<Bytes, String> {
    let block = |data: &[u8]| snap::raw::Decoder::new().decompress_vec(data).map_err(|cause| cause.to_string());
    if !data.starts_with(XERIAL_MAGIC) {
        return block(data).map(Bytes::from);
    }
    let mut rest = data.get(16..).ok_or("a snappy header that is cut off")?;
    let mut decompressed = Vec::new();
    while let Some((length, blocks)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        decompressed.extend(block(blocks.get(..length).ok_or("a snappy block that is cut off")?)?);
        rest = &blocks[length..];
    }
    Ok(decompressed.into())
}
