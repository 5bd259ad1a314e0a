//! What is read from ELF files.

use object::Endianness;
use object::elf::{EM_X86_64, FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _};

/// `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's `elfnote.h`: where a PVH boot enters the kernel.
const PHYS32_ENTRY: u32 = 18;

/// Why a file is not the ELF file it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// It is something else.
    #[error("it is no ELF file")]
    NotElf,
    /// It is for 32 bits, or damaged.
    #[error("it is no 64-bit ELF file, or damaged ({0})")]
    Damaged(object::Error),
    /// It is for another processor.
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

    /// The dynamic linker that the program asks for.
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

    /// Whether a PVH boot knows where to enter.
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
