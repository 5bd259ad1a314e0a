//! Debian's kernel for VMs, as a package file: downloaded once, then kept, so that a run does not
//! depend on the archive's current contents.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::PrivateApt;
use super::packages::{Release, SUITES};

/// The metapackage that depends on the newest kernel.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// The file of the kernel's package, of the machine's own release.
pub(crate) fn deb(cache: &Path) -> Result<PathBuf> {
    let dir = cache.join("kernel").join(META_PACKAGE);
    if let Some(kept) = only_file(&dir) {
        return Ok(kept);
    }
    let home = Release::of_this_machine()?.codename();
    let apt = PrivateApt::open(&cache.join("apt"), home, &SUITES)?;
    let package = apt.first_dependency(META_PACKAGE, home)?;
    let part = dir.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    apt.download(&package, home, &part)?;
    let _ = fs::remove_dir_all(&dir);
    fs::rename(&part, &dir)?;
    only_file(&dir).with_context(|| format!("{} is empty", dir.display()))
}

fn only_file(dir: &Path) -> Option<PathBuf> {
    fs::read_dir(dir).ok()?.find_map(|entry| Some(entry.ok()?.path()))
}
