//! Decompression of layers. Detected by magic number, since media types are not reliable.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::error::UnpackError;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Bytes 1 to 3 of the magic numbers of skippable frames; byte 0 is 0x50 to 0x5f.
const SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// The plain tar of a layer.
pub(super) fn decoded<'a>(mut layer: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>, UnpackError> {
    let start = layer.fill_buf().map_err(UnpackError::Corrupt)?;
    let skippable =
        start.first().is_some_and(|b| b & 0xf0 == 0x50) && start[1..].starts_with(SKIPPABLE);
    Ok(if start.starts_with(GZIP) {
        Box::new(MultiGzDecoder::new(layer))
    } else if start.starts_with(ZSTD) || skippable {
        Box::new(Zstd { frame: None, source: layer })
    } else {
        Box::new(layer)
    })
}

/// A decoder for the concatenated frames of a zstd stream.
struct Zstd<R> {
    frame: Option<FrameDecoder>,
    source: R,
}

impl<R: BufRead> Zstd<R> {
    /// Starts the next frame; `false` at the end of the source.
    fn next(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            let mut decoder = self.frame.take().unwrap_or_default();
            match decoder.reset(&mut self.source) {
                Ok(()) => {
                    self.frame = Some(decoder);
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut skipped = (&mut self.source).take(length.into());
                    if io::copy(&mut skipped, &mut io::sink())? != u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(frame) = &mut self.frame {
                if frame.can_collect() == 0 && !frame.is_finished() {
                    let strategy = BlockDecodingStrategy::UptoBytes(buffer.len());
                    frame
                        .decode_blocks(&mut self.source, strategy)
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    continue;
                }
                let read = frame.read(buffer)?;
                if read > 0 {
                    return Ok(read);
                }
                verify_checksum(frame)?;
            }
            if !self.next()? {
                return Ok(0);
            }
        }
    }
}

/// Verifies the checksum of a frame that has one.
fn verify_checksum(frame: &FrameDecoder) -> io::Result<()> {
    match (frame.get_checksum_from_data(), frame.get_calculated_checksum()) {
        (Some(expected), Some(actual)) if expected != actual => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum of a zstd frame is wrong"))
        }
        _ => Ok(()),
    }
}
