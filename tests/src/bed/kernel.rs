//! Debian's kernels, as package files: downloaded once, then kept, so that a run does not depend
//! on what the archive holds that day.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::PrivateApt;
use super::packages::{Release, SUITES};

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines: what Pods boot.
    Cloud,
    /// For machines that run virtual machines: it has KVM.
    Full,
}

impl Flavour {
    /// The package that depends on the newest kernel of this flavour.
    fn meta_package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Full => "linux-image-amd64",
        }
    }
}

/// The file of the kernel package, of the machine's own release.
pub fn deb(cache: &Path, flavour: Flavour) -> Result<PathBuf> {
    let dir = cache.join("kernel").join(flavour.meta_package());
    if let Some(kept) = only_file(&dir) {
        return Ok(kept);
    }
    let home = Release::of_this_machine()?.codename();
    let apt = PrivateApt::open(&cache.join("apt"), home, &SUITES)?;
    let package = apt.first_dependency(flavour.meta_package(), home)?;
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
