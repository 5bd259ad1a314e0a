//! A layer's bytes, out of their compression. The magic number decides: media types lie.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::UnpackError;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// The first of the sixteen numbers of skippable frames; the others differ in the low half byte.
const SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// The tar in a layer.
pub(super) fn decoded<'a>(mut layer: impl BufRead + 'a) -> Result<Box<dyn Read + 'a>, UnpackError> {
    let start = layer.fill_buf().map_err(UnpackError::Broken)?;
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

/// The frames of a zstd stream, one after the other.
struct Zstd<R> {
    frame: Option<FrameDecoder>,
    source: R,
}

impl<R: BufRead> Zstd<R> {
    /// Begins the next frame; there is none at the end of the source.
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
                    let some = BlockDecodingStrategy::UptoBytes(buffer.len());
                    frame
                        .decode_blocks(&mut self.source, some)
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    continue;
                }
                let read = frame.read(buffer)?;
                if read > 0 {
                    return Ok(read);
                }
                check_sum(frame)?;
            }
            if !self.next()? {
                return Ok(0);
            }
        }
    }
}

/// A frame that carries a checksum must have it.
fn check_sum(frame: &FrameDecoder) -> io::Result<()> {
    match (frame.get_checksum_from_data(), frame.get_calculated_checksum()) {
        (Some(said), Some(is)) if said != is => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum of a zstd frame is wrong"))
        }
        _ => Ok(()),
    }
}
