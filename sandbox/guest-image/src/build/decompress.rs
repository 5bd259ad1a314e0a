//! Decompression of the formats that Debian and the kernel use.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

/// A compression format, detected by its magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Xz,
    Zstd,
    /// The frame format or the kernel's legacy one.
    Lz4,
    /// Uncompressed, or in an unknown format.
    None,
}

impl Compression {
    pub(super) fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0x04, 0x22, 0x4d, 0x18, ..] | [0x02, 0x21, 0x4c, 0x18, ..] => Self::Lz4,
            _ => Self::None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::None => "an unknown format",
        })
    }
}

/// Decompresses `source`, whatever its format.
pub(super) fn decoder<'a>(source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut source = BufReader::with_capacity(64 * 1024, source);
    Ok(match Compression::of(source.fill_buf()?) {
        Compression::Gzip => Box::new(flate2::bufread::GzDecoder::new(source)),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new(source, true)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(source)?),
        Compression::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(source)),
        Compression::None => Box::new(source),
    })
}

/// Decompresses `bytes` to at most `limit` bytes.
pub(super) fn unpack(bytes: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    decoder(bytes)?.take(limit + 1).read_to_end(&mut unpacked)?;
    if unpacked.len() as u64 > limit {
        let text = format!("it unpacks to more than {} MiB", limit >> 20);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::fixtures::{gzip, lz4_legacy, xz, zstd};

    #[test]
    fn every_format_is_decompressed() {
        let text: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let formats = [
            (Compression::Gzip, gzip(&text)),
            (Compression::Xz, xz(&text)),
            (Compression::Zstd, zstd(&text)),
            (Compression::Lz4, lz4_legacy(&text)),
            (Compression::None, text.clone()),
        ];
        for (format, packed) in formats {
            assert_eq!(Compression::of(&packed), format);
            assert!(unpack(&packed, 10 << 20).unwrap() == text, "{format}");
            let error = unpack(&packed, 1 << 20).unwrap_err();
            assert_eq!(error.to_string(), "it unpacks to more than 1 MiB", "{format}");
            let cut = unpack(&packed[..packed.len() / 2], 10 << 20);
            assert!(format == Compression::None || cut.is_err(), "{format} truncated");
        }
    }
}
