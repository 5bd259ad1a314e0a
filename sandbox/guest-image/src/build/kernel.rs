//! Extracts a kernel with a PVH entry point.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use memchr::memmem;

use super::decompress::{Compression, unpack};
use super::elf::{Elf, ElfError, cut_zeros};

/// Upper bound in bytes on a kernel.
const SIZE_MAX: u64 = 512 << 20;

/// Offsets of fields in a bzImage (Linux's Documentation/arch/x86/boot.rst).
mod field {
    pub(super) const SETUP_SECTORS: usize = 0x1f1;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const PAYLOAD_OFFSET: usize = 0x248;
    pub(super) const PAYLOAD_LENGTH: usize = 0x24c;
}

/// The first boot protocol with the payload's offset.
const PAYLOAD_SINCE: u16 = 0x0208;

/// An error of extracting a kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be read.
    #[error("cannot read the kernel {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is neither an ELF file nor a bzImage.
    #[error("the kernel is neither an ELF file nor a bzImage of x86 (boot protocol 2.08 or later)")]
    NotKernel,
    /// It is truncated.
    #[error("the bzImage is truncated: its payload ends at byte {end}, the file at {size}")]
    Short {
        /// The payload's end.
        end: u64,
        /// The file's size.
        size: usize,
    },
    /// Its payload cannot be decompressed.
    #[error("the bzImage's payload (compressed with {compression}) cannot be unpacked")]
    Payload {
        /// The compression format.
        compression: String,
        /// The cause.
        source: io::Error,
    },
    /// Its payload has an unknown compression format.
    #[error(
        "the bzImage's payload starts with {start:02x?}, which is not one of gzip, xz, zstd, lz4 and \
         ELF; unpack it with the kernel's scripts/extract-vmlinux and use the result as --kernel"
    )]
    Compression {
        /// Its first bytes.
        start: Vec<u8>,
    },
    /// Its payload has another size than stated at its end.
    #[error(
        "the bzImage's payload unpacks to {found} bytes, not {expected} as in its last 4 bytes"
    )]
    Size {
        /// The decompressed size.
        found: u64,
        /// The expected size, modulo 2^32.
        expected: u32,
    },
    /// It is for another architecture, or damaged.
    #[error("the kernel cannot run on x86-64")]
    Elf(#[from] ElfError),
    /// It has no PVH entry point, which VMMs need.
    #[error(
        "the kernel has no PVH entry (the ELF note XEN_ELFNOTE_PHYS32_ENTRY); use one that is \
         built with CONFIG_PVH=y, such as Debian's linux-image-cloud-amd64"
    )]
    NoPvh,
    /// Its release cannot be found.
    #[error("the kernel does not contain its release (\"Linux version ...\")")]
    NoRelease,
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, KernelError> {
    fs::read(path).map_err(|source| KernelError::Read { path: path.to_owned(), source })
}

/// Extracts the ELF file from a bzImage, if `kernel` is one, and checks that it has a PVH entry
/// point. Zeros at the ends of its segments, a fifth of Debian's kernel, are cut: every boot would
/// copy them.
pub(super) fn vmlinux(kernel: Vec<u8>) -> Result<Vec<u8>, KernelError> {
    let mut vmlinux = if kernel.starts_with(b"\x7fELF") { kernel } else { payload(&kernel)? };
    if !Elf::parse(&vmlinux)?.has_pvh_entry()? {
        return Err(KernelError::NoPvh);
    }
    cut_zeros(&mut vmlinux)?;
    Ok(vmlinux)
}

/// The release, from the text of /proc/version.
pub(super) fn release(vmlinux: &[u8]) -> Result<String, KernelError> {
    let start = b"Linux version ";
    let mut found = memmem::find_iter(vmlinux, start).filter_map(|at| {
        let rest = &vmlinux[at + start.len()..];
        let end = rest.iter().take(65).position(|byte| *byte == b' ')?;
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"._+~-".contains(byte);
        let release = &rest[..end];
        let whole = release.first().is_some_and(u8::is_ascii_digit) && release.iter().all(allowed);
        whole.then(|| String::from_utf8_lossy(release).into_owned())
    });
    found.next().ok_or(KernelError::NoRelease)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|it| it.try_into().ok()).map(u32::from_le_bytes)
}

fn payload(image: &[u8]) -> Result<Vec<u8>, KernelError> {
    let header = || {
        let magic = image.get(field::MAGIC..field::MAGIC + 4)?;
        let version = image.get(field::VERSION..field::VERSION + 2)?;
        let version = u16::from_le_bytes(version.try_into().ok()?);
        if magic != b"HdrS" || version < PAYLOAD_SINCE {
            return None;
        }
        let sectors = match image[field::SETUP_SECTORS] {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let offset = u32_at(image, field::PAYLOAD_OFFSET)?;
        let length = u32_at(image, field::PAYLOAD_LENGTH)?;
        Some(((sectors + 1) * 512 + u64::from(offset), u64::from(length)))
    };
    let (start, length) = header().ok_or(KernelError::NotKernel)?;
    let end = start + length;
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    let payload = range.and_then(|(start, end)| image.get(start..end));
    decompress(payload.ok_or(KernelError::Short { end, size: image.len() })?)
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, KernelError> {
    let compression = Compression::of(payload);
    let failed = |source| KernelError::Payload { compression: compression.to_string(), source };
    match compression {
        Compression::None if payload.starts_with(b"\x7fELF") => Ok(payload.to_vec()),
        Compression::None => {
            Err(KernelError::Compression { start: payload.iter().take(6).copied().collect() })
        }
        // The last 4 bytes, the size, are a part of the gzip format.
        Compression::Gzip => unpack(payload, SIZE_MAX).map_err(failed),
        Compression::Xz | Compression::Zstd | Compression::Lz4 => {
            let (packed, size) = payload.split_at(payload.len().saturating_sub(4));
            let expected = u32_at(size, 0).unwrap_or_default();
            let vmlinux = unpack(packed, SIZE_MAX).map_err(failed)?;
            let found = vmlinux.len() as u64;
            if found == u64::from(expected) {
                Ok(vmlinux)
            } else {
                Err(KernelError::Size { found, expected })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::fixtures::{
        self, Segment, bzimage, elf, gzip, lz4_legacy, vmlinux_6_1, xz, zstd,
    };

    fn sized(mut packed: Vec<u8>, size: usize) -> Vec<u8> {
        packed.extend_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
        packed
    }

    #[test]
    fn zeros_at_a_segments_end_are_cut() {
        let mut data = vec![1; 5000];
        data.resize(20_000, 0);
        let whole = elf(&[Segment::Note(&fixtures::pvh_note()), Segment::Load(&data)]);
        let cut = vmlinux(whole.clone()).unwrap();
        let size = 64 + 56 + 32..64 + 56 + 40;
        assert_eq!(cut[size.clone()], 8192_u64.to_le_bytes(), "up to a page's end");
        assert_eq!(cut[size.end..size.end + 8], 20_000_u64.to_le_bytes(), "in memory");
        let mut back = cut;
        back[size.clone()].copy_from_slice(&whole[size]);
        assert!(back == whole, "other bytes were changed");
        let short = whole[..whole.len() - 1].to_vec();
        assert!(matches!(vmlinux(short), Err(KernelError::Elf(ElfError::Short))));
    }

    #[test]
    fn the_payload_is_decompressed_from_every_format() {
        let plain = vmlinux_6_1();
        let size = plain.len();
        assert_eq!(vmlinux(plain.clone()).unwrap(), plain);
        let payloads = [
            plain.clone(),
            gzip(&plain),
            sized(xz(&plain), size),
            sized(zstd(&plain), size),
            sized(lz4_legacy(&plain), size),
        ];
        for payload in payloads {
            assert!(vmlinux(bzimage(&payload)).unwrap() == plain);
        }
        assert_eq!(release(&plain).unwrap(), fixtures::RELEASE);
    }

    #[test]
    fn each_fault_of_a_kernel_has_its_error() {
        let plain = vmlinux_6_1();
        let text = |bytes: Vec<u8>| vmlinux(bytes).unwrap_err().to_string();
        assert!(text(b"MZ".to_vec()).starts_with("the kernel is neither an ELF file nor"));
        let mut old = bzimage(&plain);
        old[field::VERSION] = 7;
        assert!(text(old).starts_with("the kernel is neither an ELF file nor"));
        let mut cut = bzimage(&gzip(&plain));
        let size = cut.len() - 1;
        cut.truncate(size);
        assert_eq!(
            text(cut),
            format!(
                "the bzImage is truncated: its payload ends at byte {}, the file at {size}",
                size + 1
            )
        );
        assert!(text(bzimage(b"BZh91A")).contains("starts with [42, 5a, 68, 39, 31, 41]"));
        assert_eq!(
            text(bzimage(&sized(zstd(&plain), plain.len() + 1))),
            format!(
                "the bzImage's payload unpacks to {} bytes, not {} as in its last 4 bytes",
                plain.len(),
                plain.len() + 1
            )
        );
        let mut damaged = sized(xz(&plain), plain.len());
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0xff;
        assert_eq!(
            text(bzimage(&damaged)),
            "the bzImage's payload (compressed with xz) cannot be unpacked"
        );
        assert!(text(elf(&[Segment::Load(b"x")])).starts_with("the kernel has no PVH entry"));
        let mut arm = plain.clone();
        arm[18] = 183;
        assert!(matches!(vmlinux(arm), Err(KernelError::Elf(ElfError::Machine(183)))));
        let mut cut = plain.clone();
        cut.truncate(100);
        assert!(matches!(vmlinux(cut), Err(KernelError::Elf(ElfError::Damaged(_)))));
        assert!(matches!(release(b"Linux version %s (%s)"), Err(KernelError::NoRelease)));
    }
}
