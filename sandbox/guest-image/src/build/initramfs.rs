//! The initramfs: a cpio archive in the kernel's format (newc).
//!
//! It is not compressed: decompression takes the guest longer than reading the saved bytes.

use std::io::{self, Write as _};

use cpio::NewcBuilder;

use super::modules::Module;

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const FILE: u32 = 0o100_000;

/// Mount points and the agent's directories, none of which the kernel creates itself.
const DIRECTORIES: [(&str, u32); 6] = [
    ("dev", 0o755),
    ("modules", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// Packs the agent as `/init`, `modules`, and their list. All times are 0 and all owners root, so
/// that the bytes depend on nothing else.
pub(super) fn pack(agent: &[u8], modules: &[Module]) -> io::Result<Vec<u8>> {
    let mut archive = Archive { bytes: Vec::new(), inode: 0 };
    for (name, mode) in DIRECTORIES {
        archive.add(name, DIRECTORY | mode, None, &[])?;
    }
    // The kernel opens it for init before anything is mounted.
    archive.add("dev/console", CHARACTER_DEVICE | 0o600, Some((5, 1)), &[])?;
    archive.add("init", FILE | 0o755, None, agent)?;
    let mut list = String::new();
    for module in modules {
        let path = format!("modules/{}.ko", module.name);
        archive.add(&path, FILE | 0o644, None, &module.bytes)?;
        list.push_str(&format!("/{path}\n"));
    }
    archive.add("modules.list", FILE | 0o644, None, list.as_bytes())?;
    cpio::newc::trailer(archive.bytes)
}

struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn add(
        &mut self,
        name: &str,
        mode: u32,
        device: Option<(u32, u32)>,
        content: &[u8],
    ) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other(format!("{name} is larger than 4 GiB")))?;
        self.inode += 1;
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        let (major, minor) = device.unwrap_or_default();
        let entry = NewcBuilder::new(name).ino(self.inode).mode(mode).nlink(links);
        let entry = entry.rdev_major(major).rdev_minor(minor);
        let mut writer = entry.write(std::mem::take(&mut self.bytes), size);
        writer.write_all(content)?;
        self.bytes = writer.finish()?;
        Ok(())
    }
}
