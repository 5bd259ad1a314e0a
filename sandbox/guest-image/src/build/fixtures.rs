//! Small fake programs, kernels, modules and packages.

use std::io::Write as _;

/// The release of the fake kernel.
pub(crate) const RELEASE: &str = "6.1.0-9-cloud-amd64";

/// A segment of a fake program.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Segment<'a> {
    Load(&'a [u8]),
    Interpreter(&'a [u8]),
    Note(&'a [u8]),
}

/// An ELF file for x86-64 with these segments and no sections.
pub(crate) fn elf(segments: &[Segment<'_>]) -> Vec<u8> {
    let mut bytes = header(2, 64, u16::try_from(segments.len()).unwrap(), 0, 0);
    let mut offset = 64 + 56 * segments.len() as u64;
    let mut contents = Vec::new();
    for segment in segments {
        let (kind, content) = match *segment {
            Segment::Load(content) => (1u32, content),
            Segment::Interpreter(content) => (3, content),
            Segment::Note(content) => (4, content),
        };
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&4u32.to_le_bytes());
        let size = content.len() as u64;
        for field in [offset, 0, 0, size, size, 4] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        offset += size;
        contents.extend_from_slice(content);
    }
    bytes.extend_from_slice(&contents);
    bytes
}

fn header(kind: u16, phoff: u64, phnum: u16, shoff: u64, shnum: u16) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&62u16.to_le_bytes());
    bytes.extend_from_slice(&1u32.to_le_bytes());
    for field in [0, phoff, shoff] {
        bytes.extend_from_slice(&u64::to_le_bytes(field));
    }
    bytes.extend_from_slice(&[0; 4]);
    for field in [64, 56, phnum, 64, shnum, shnum.saturating_sub(1)] {
        bytes.extend_from_slice(&u16::to_le_bytes(field));
    }
    bytes
}

/// The note with the PVH entry point.
pub(crate) fn pvh_note() -> Vec<u8> {
    let mut note = Vec::new();
    for field in [4u32, 8, 18] {
        note.extend_from_slice(&field.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&0x100_0000u64.to_le_bytes());
    note
}

/// A kernel with a PVH entry point.
pub(crate) fn vmlinux_6_1() -> Vec<u8> {
    let note = pvh_note();
    let banner = format!("%s version %s\0Linux version %s (\0Linux version {RELEASE} (a@b) #1\0");
    let code: Vec<u8> = (0..50_000u32).flat_map(|n| n.to_le_bytes()).collect();
    elf(&[Segment::Note(&note), Segment::Load(banner.as_bytes()), Segment::Load(&code)])
}

/// A bzImage around `payload`.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 5 * 512 + 16];
    image[0x1f1] = 4;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.extend_from_slice(payload);
    image
}

/// A module of [`RELEASE`] that depends on others.
pub(crate) fn module(depends: &str) -> Vec<u8> {
    module_for(RELEASE, depends)
}

/// A module of some release.
pub(crate) fn module_for(release: &str, fields: &str) -> Vec<u8> {
    let (depends, more) = fields.split_once(';').unwrap_or((fields, ""));
    let info =
        format!("license=GPL\0{more}\0depends={depends}\0vermagic={release} SMP mod_unload \0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let info_at = 64u64;
    let names_at = info_at + info.len() as u64;
    let mut bytes = header(1, 0, 0, names_at + names.len() as u64, 3);
    bytes.extend_from_slice(info.as_bytes());
    bytes.extend_from_slice(names);
    let sections =
        [(0u32, 0u32, 0, 0), (1, 1, info_at, info.len()), (10, 3, names_at, names.len())];
    for (name, kind, offset, size) in sections {
        bytes.extend_from_slice(&name.to_le_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        for field in [0, 0, offset, size as u64] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&[0; 24]);
    }
    bytes
}

/// A package with the members `control.tar` and `data.tar`, both compressed by `pack`.
pub(crate) fn deb(control: &str, files: &[(&str, Vec<u8>)], pack: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut archive = ar::Builder::new(Vec::new());
    let control = tar(&[("./control", control.as_bytes().to_vec())]);
    let parts = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.x", pack(&control)),
        ("data.tar.x", pack(&tar(files))),
    ];
    for (name, content) in parts {
        let header = ar::Header::new(name.as_bytes().to_vec(), content.len() as u64);
        archive.append(&header, &content[..]).unwrap();
    }
    archive.into_inner().unwrap()
}

fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, &content[..]).unwrap();
    }
    archive.into_inner().unwrap()
}

pub(crate) fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn xz(bytes: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::XzOptions::with_preset(1);
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// The kernel's format, the same as that of `lz4 -l`.
pub(crate) fn lz4_legacy(bytes: &[u8]) -> Vec<u8> {
    let mut packed = 0x184c_2102u32.to_le_bytes().to_vec();
    for block in bytes.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
        packed.extend_from_slice(&block);
    }
    packed
}

/// A module with a signature as the kernel's build appends it.
pub(crate) fn signed(module: &[u8], signature: &[u8]) -> Vec<u8> {
    let length = u32::try_from(signature.len()).unwrap().to_be_bytes();
    let magic = b"~Module signature appended~\n";
    [module, signature, &[0, 0, 2, 0, 0, 0, 0, 0], &length, magic].concat()
}
