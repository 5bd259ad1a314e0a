//! Reads ELF files.

use object::Endianness;
use object::elf::{EM_X86_64, FileHeader64, PT_INTERP, PT_LOAD};
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _};

/// `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's `elfnote.h`: the PVH entry point.
const PHYS32_ENTRY: u32 = 18;

/// Page size in bytes, to which segments are cut.
const PAGE: u64 = 4096;

/// Offset of `p_filesz` in a 64-bit program header.
const P_FILESZ: u64 = 32;

/// An error of parsing an ELF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// It is not an ELF file.
    #[error("it is not an ELF file")]
    NotElf,
    /// It is for 32 bits, or damaged.
    #[error("it is not a 64-bit ELF file, or damaged ({0})")]
    Damaged(object::Error),
    /// It is truncated.
    #[error("it is truncated: its segments extend past its end")]
    Short,
    /// It is for another architecture.
    #[error("it is for machine type {0}, not 62 (x86-64)")]
    Machine(u16),
}

/// An ELF file for x86-64.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elf<'a> {
    header: &'a FileHeader64<Endianness>,
    bytes: &'a [u8],
}

impl<'a> Elf<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        if !bytes.starts_with(b"\x7fELF") {
            return Err(ElfError::NotElf);
        }
        let header = FileHeader64::<Endianness>::parse(bytes).map_err(ElfError::Damaged)?;
        let endian = header.endian().map_err(ElfError::Damaged)?;
        match header.e_machine(endian) {
            EM_X86_64 => Ok(Self { header, bytes }),
            other => Err(ElfError::Machine(other)),
        }
    }

    /// The dynamic linker that the program needs.
    pub(super) fn interpreter(&self) -> Result<Option<String>, ElfError> {
        let endian = self.header.endian().map_err(ElfError::Damaged)?;
        let segments = self.header.program_headers(endian, self.bytes);
        for segment in segments.map_err(ElfError::Damaged)? {
            if segment.p_type(endian) == PT_INTERP {
                let path = segment.interpreter(endian, self.bytes).map_err(ElfError::Damaged)?;
                let path = path.unwrap_or_default();
                return Ok(Some(String::from_utf8_lossy(path).into_owned()));
            }
        }
        Ok(None)
    }

    /// Whether it has a PVH entry point.
    pub(super) fn has_pvh_entry(&self) -> Result<bool, ElfError> {
        let endian = self.header.endian().map_err(ElfError::Damaged)?;
        let segments = self.header.program_headers(endian, self.bytes);
        for segment in segments.map_err(ElfError::Damaged)? {
            let Some(mut notes) = segment.notes(endian, self.bytes).map_err(ElfError::Damaged)?
            else {
                continue;
            };
            while let Some(note) = notes.next().map_err(ElfError::Damaged)? {
                if note.name() == b"Xen" && note.n_type(endian) == PHYS32_ENTRY {
                    return Ok(note.desc().iter().any(|byte| *byte != 0));
                }
            }
        }
        Ok(false)
    }

    /// The file sizes of the segments that end with pages of zeros, without these pages: offsets of
    /// the `p_filesz` fields and their new values.
    fn cuts(&self) -> Result<Vec<(u64, u64)>, ElfError> {
        let endian = self.header.endian().map_err(ElfError::Damaged)?;
        let segments = self.header.program_headers(endian, self.bytes);
        let segments = segments.map_err(ElfError::Damaged)?;
        let size = u64::from(self.header.e_phentsize(endian));
        let offsets = (0..).map(|number| self.header.e_phoff(endian) + number * size + P_FILESZ);
        let mut cuts = Vec::new();
        for (segment, offset) in segments.iter().zip(offsets) {
            if segment.p_type(endian) != PT_LOAD {
                continue;
            }
            let content = segment.data(endian, self.bytes);
            let content = content.map_err(|()| ElfError::Short)?;
            let used = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let used = (used as u64).next_multiple_of(PAGE);
            if used < content.len() as u64 {
                cuts.push((offset, used));
            }
        }
        Ok(cuts)
    }

    /// The content of the section `name`.
    pub(super) fn section(&self, name: &str) -> Result<Option<&'a [u8]>, ElfError> {
        let endian = self.header.endian().map_err(ElfError::Damaged)?;
        let sections = self.header.sections(endian, self.bytes).map_err(ElfError::Damaged)?;
        match sections.section_by_name(endian, name.as_bytes()) {
            Some((_, section)) => {
                section.data(endian, self.bytes).map(Some).map_err(ElfError::Damaged)
            }
            None => Ok(None),
        }
    }
}

/// Cuts pages of zeros at the ends of segments, whose sizes in memory do not change: the rest of a
/// segment is zeroed when it is loaded.
pub(super) fn cut_zeros(file: &mut [u8]) -> Result<(), ElfError> {
    for (offset, size) in Elf::parse(file)?.cuts()? {
        let field = usize::try_from(offset).ok().and_then(|at| file.get_mut(at..at + 8));
        if let Some(field) = field {
            field.copy_from_slice(&size.to_le_bytes());
        }
    }
    Ok(())
}
