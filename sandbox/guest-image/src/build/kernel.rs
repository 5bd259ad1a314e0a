//! A kernel that a VMM can enter at its PVH entry.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use memchr::memmem;

use super::decompress::{Packing, unpack};
use super::elf::{Elf, ElfError, cut_zeros};

/// The most bytes that a kernel may have.
const MAX: u64 = 512 << 20;

/// Where a bzImage keeps its fields (Documentation/arch/x86/boot.rst of Linux).
mod field {
    pub(super) const SETUP_SECTORS: usize = 0x1f1;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const PAYLOAD_OFFSET: usize = 0x248;
    pub(super) const PAYLOAD_LENGTH: usize = 0x24c;
}

/// The first boot protocol that says where the payload is.
const PAYLOAD_SINCE: u16 = 0x0208;

/// Why a kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be read.
    #[error("cannot read the kernel {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is neither kind of file.
    #[error("the kernel is neither an ELF file nor a bzImage of x86 (boot protocol 2.08 or later)")]
    NotKernel,
    /// It ends before its payload does.
    #[error("the bzImage is cut short: its payload ends at byte {end}, the file at {size}")]
    Short {
        /// The payload's end.
        end: u64,
        /// The file's size.
        size: usize,
    },
    /// Its payload cannot be unpacked.
    #[error("the bzImage's payload (packed with {packing}) cannot be unpacked")]
    Payload {
        /// What it is packed with.
        packing: String,
        /// Why not.
        source: io::Error,
    },
    /// Its payload is packed in a way that is not known here.
    #[error(
        "the bzImage's payload starts with {start:02x?}, which is none of gzip, xz, zstd, lz4 and \
         ELF; unpack it with the kernel's scripts/extract-vmlinux and give the result as --kernel"
    )]
    Packing {
        /// How it starts.
        start: Vec<u8>,
    },
    /// Its payload has another size than it says.
    #[error(
        "the bzImage's payload unpacks to {found} bytes, not {expected} as its last 4 bytes say"
    )]
    Size {
        /// What came out.
        found: u64,
        /// What should have, modulo 2^32.
        expected: u32,
    },
    /// It is for another machine.
    #[error("the kernel cannot run on x86-64")]
    Elf(#[from] ElfError),
    /// A VMM cannot enter it.
    #[error(
        "the kernel has no PVH entry (the ELF note XEN_ELFNOTE_PHYS32_ENTRY); take one that is \
         built with CONFIG_PVH=y, such as Debian's linux-image-cloud-amd64"
    )]
    NoPvh,
    /// Its release cannot be found.
    #[error("the kernel does not say its release (\"Linux version ...\")")]
    NoRelease,
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, KernelError> {
    fs::read(path).map_err(|source| KernelError::Read { path: path.to_owned(), source })
}

/// The ELF file that `kernel` is or, as a bzImage, holds; checked to have a PVH entry. The zeros at
/// the ends of its segments, a fifth of Debian's kernel, are cut: every boot would copy them.
pub(super) fn vmlinux(kernel: Vec<u8>) -> Result<Vec<u8>, KernelError> {
    let mut vmlinux = if kernel.starts_with(b"\x7fELF") { kernel } else { payload(&kernel)? };
    if !Elf::parse(&vmlinux)?.has_pvh_entry()? {
        return Err(KernelError::NoPvh);
    }
    cut_zeros(&mut vmlinux)?;
    Ok(vmlinux)
}

/// The release, from the text that /proc/version shows.
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
    unpack_payload(payload.ok_or(KernelError::Short { end, size: image.len() })?)
}

fn unpack_payload(payload: &[u8]) -> Result<Vec<u8>, KernelError> {
    let packing = Packing::of(payload);
    let failed = |source| KernelError::Payload { packing: packing.to_string(), source };
    match packing {
        Packing::None if payload.starts_with(b"\x7fELF") => Ok(payload.to_vec()),
        Packing::None => {
            Err(KernelError::Packing { start: payload.iter().take(6).copied().collect() })
        }
        // Gzip's own last 4 bytes are the size; the kernel's build adds none.
        Packing::Gzip => unpack(payload, MAX).map_err(failed),
        Packing::Xz | Packing::Zstd | Packing::Lz4 => {
            let (packed, size) = payload.split_at(payload.len().saturating_sub(4));
            let expected = u32_at(size, 0).unwrap_or_default();
            let vmlinux = unpack(packed, MAX).map_err(failed)?;
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
    fn zeros_at_a_segments_end_are_not_loaded() {
        let mut data = vec![1; 5000];
        data.resize(20_000, 0);
        let whole = elf(&[Segment::Note(&fixtures::pvh_note()), Segment::Load(&data)]);
        let cut = vmlinux(whole.clone()).unwrap();
        let size = 64 + 56 + 32..64 + 56 + 40;
        assert_eq!(cut[size.clone()], 8192_u64.to_le_bytes(), "up to a page's end");
        assert_eq!(cut[size.end..size.end + 8], 20_000_u64.to_le_bytes(), "in memory");
        let mut back = cut;
        back[size.clone()].copy_from_slice(&whole[size]);
        assert!(back == whole, "something else was changed");
        let short = whole[..whole.len() - 1].to_vec();
        assert!(matches!(vmlinux(short), Err(KernelError::Elf(ElfError::Short))));
    }

    #[test]
    fn the_payload_comes_out_of_every_packing() {
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
    fn bad_kernels_are_told_apart() {
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
                "the bzImage is cut short: its payload ends at byte {}, the file at {size}",
                size + 1
            )
        );
        assert!(text(bzimage(b"BZh91A")).contains("starts with [42, 5a, 68, 39, 31, 41]"));
        assert_eq!(
            text(bzimage(&sized(zstd(&plain), plain.len() + 1))),
            format!(
                "the bzImage's payload unpacks to {} bytes, not {} as its last 4 bytes say",
                plain.len(),
                plain.len() + 1
            )
        );
        let mut damaged = sized(xz(&plain), plain.len());
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0xff;
        assert_eq!(
            text(bzimage(&damaged)),
            "the bzImage's payload (packed with xz) cannot be unpacked"
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
