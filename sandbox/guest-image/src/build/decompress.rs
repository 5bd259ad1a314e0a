//! Reading what is compressed in one of the ways that Debian and the kernel use.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

/// How bytes are packed, told by how they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Xz,
    Zstd,
    /// The frame format or the kernel's legacy one.
    Lz4,
    /// Not at all, or in a way that is not known here.
    None,
}

impl Packing {
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

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::None => "nothing known",
        })
    }
}

/// Unpacks `source`, whatever it is packed with.
pub(super) fn decoder<'a>(source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut source = BufReader::with_capacity(64 * 1024, source);
    let packing = Packing::of(source.fill_buf()?);
    Ok(match packing {
        Packing::Gzip => Box::new(flate2::bufread::GzDecoder::new(source)),
        Packing::Xz => Box::new(lzma_rust2::XzReader::new(source, true)),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(source)?),
        Packing::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(source)),
        Packing::None => Box::new(source),
    })
}

/// Unpacks `bytes` to at most `limit` bytes.
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
    fn every_packing_gives_the_bytes_back() {
        let text: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let packings = [
            (Packing::Gzip, gzip(&text)),
            (Packing::Xz, xz(&text)),
            (Packing::Zstd, zstd(&text)),
            (Packing::Lz4, lz4_legacy(&text)),
            (Packing::None, text.clone()),
        ];
        for (packing, packed) in packings {
            assert_eq!(Packing::of(&packed), packing);
            assert!(unpack(&packed, 10 << 20).unwrap() == text, "{packing}");
            let error = unpack(&packed, 1 << 20).unwrap_err();
            assert_eq!(error.to_string(), "it unpacks to more than 1 MiB", "{packing}");
            let cut = unpack(&packed[..packed.len() / 2], 10 << 20);
            assert!(packing == Packing::None || cut.is_err(), "{packing} cut short");
        }
    }
}
