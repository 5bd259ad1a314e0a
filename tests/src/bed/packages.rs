//! The packages of a bed, their suites, and where they are unpacked.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::apt::PrivateApt;
use super::process::in_path;
use super::version::Version;

/// The Debian release that the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Release {
    /// Reads `/etc/os-release`.
    pub(crate) fn of_this_machine() -> Result<Self> {
        let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
        Self::parse(&text)
    }

    /// The release that the text of `os-release` names.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let field = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        match field("VERSION_CODENAME").as_str() {
            "bookworm" => Ok(Self::Bookworm),
            "trixie" => Ok(Self::Trixie),
            name => bail!(
                "/etc/os-release: ID={:?} VERSION_CODENAME={name:?}: the test bed runs on \
                 Debian 12 (bookworm) and 13 (trixie)",
                field("ID")
            ),
        }
    }

    /// The release's code name, as suites are called.
    pub(crate) fn codename(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// skopeo first, then the libraries that it needs and few machines have.
    fn skopeo(self) -> &'static [&'static str] {
        match self {
            Self::Bookworm => &["skopeo", "libgpgme11", "libassuan0", "libdevmapper1.02.1"],
            Self::Trixie => &["skopeo", "libgpgme11t64", "libassuan9", "libsqlite3-0"],
        }
    }

    /// Where this release's `runsc` is.
    fn runsc_suite(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm-backports",
            Self::Trixie => "trixie",
        }
    }
}

/// The unpacked packages of a bed.
#[derive(Debug, Clone)]
pub(crate) struct Packages {
    dir: PathBuf,
}

const QEMU: &str = "qemu-system-x86_64";

/// The suites that the private apt reads.
pub(super) const SUITES: [&str; 4] = ["bookworm", "bookworm-backports", "trixie", "sid"];

impl Packages {
    /// Makes sure that every package is unpacked under `cache`, downloading what is not.
    pub(crate) fn fetch(cache: &Path) -> Result<Self> {
        let release = Release::of_this_machine()?;
        let dir = cache.join("pkg");
        let home = release.codename();
        let wanted: [(_, &[&str], _); 9] = [
            ("containerd-1.6", &["containerd"], "bookworm"),
            ("containerd-1.7", &["containerd"], "trixie"),
            ("containerd-2.1", &["containerd"], "sid"),
            ("runc", &["runc"], home),
            ("runsc", &["runsc"], release.runsc_suite()),
            ("cni", &["containernetworking-plugins"], home),
            ("busybox", &["busybox-static"], home),
            ("registry", &["docker-registry"], home),
            ("skopeo", release.skopeo(), home),
        ];
        let packages = Self { dir };
        packages.unpack(cache, &wanted)?;
        packages.write_skopeo()?;
        Ok(packages)
    }

    /// The busybox whose shell looks its commands up in the file system, as the static one's does
    /// not; linked with the C library of the machine. Downloaded when it is not there.
    pub(crate) fn shell(&self, cache: &Path) -> Result<PathBuf> {
        let home = Release::of_this_machine()?.codename();
        self.unpack(cache, &[("busybox-shell", &["busybox"], home)])?;
        let found = ["usr/bin/busybox", "bin/busybox"]
            .map(|path| self.dir.join("busybox-shell").join(path))
            .into_iter()
            .find(|path| path.exists());
        found.context("Debian's package busybox has no busybox")
    }

    /// The QEMU that emulates a processor with virtualisation, and the folders of its firmware. On
    /// Debian 12 it is downloaded from the backports: under the older one a nested VM crashes often.
    pub(crate) fn emulator(&self, cache: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
        if Release::of_this_machine()? != Release::Bookworm {
            let program = in_path(QEMU);
            let program = program.context("qemu-system-x86_64 is not installed: run hack/setup")?;
            return Ok((program, Vec::new()));
        }
        let packages = ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];
        self.unpack(cache, &[("qemu", &packages, "bookworm-backports")])?;
        let usr = self.dir.join("qemu/usr");
        let firmware = ["share/qemu", "share/seabios"].map(|dir| usr.join(dir));
        Ok((usr.join("bin").join(QEMU), firmware.into()))
    }

    /// Unpacks those of `wanted` (key, package and suite) that are not there.
    fn unpack(&self, cache: &Path, wanted: &[(&str, &[&str], &str)]) -> Result<()> {
        let missing: Vec<_> =
            wanted.iter().filter(|(key, ..)| !self.dir.join(key).join(DONE).exists()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let home = Release::of_this_machine()?.codename();
        let apt = PrivateApt::open(&cache.join("apt"), home, &SUITES)?;
        for (key, packages, suite) in missing {
            fetch(&apt, packages, suite, &self.dir.join(key))?;
        }
        Ok(())
    }

    /// The Debian version of the package unpacked as `key`.
    pub(crate) fn version(&self, key: &str) -> String {
        fs::read_to_string(self.dir.join(key).join(DONE)).unwrap_or_default()
    }

    /// The folder with `containerd`, `ctr` and runc's shim of this version.
    pub(crate) fn containerd(&self, version: Version) -> PathBuf {
        self.dir.join(format!("containerd-{}", version.label())).join("usr/bin")
    }

    /// runc, of the machine's own release.
    pub(crate) fn runc(&self) -> PathBuf {
        let sbin = self.dir.join("runc/usr/sbin/runc");
        if sbin.exists() { sbin } else { self.dir.join("runc/usr/bin/runc") }
    }

    /// Debian's runsc.
    pub(crate) fn runsc(&self) -> PathBuf {
        self.dir.join("runsc/usr/bin/runsc")
    }

    /// The CNI plugins' folder.
    pub(crate) fn cni(&self) -> PathBuf {
        self.dir.join("cni/usr/lib/cni")
    }

    /// The static busybox.
    pub(crate) fn busybox(&self) -> PathBuf {
        let usr = self.dir.join("busybox/usr/bin/busybox");
        if usr.exists() { usr } else { self.dir.join("busybox/bin/busybox") }
    }

    /// The registry.
    pub(crate) fn registry(&self) -> PathBuf {
        self.dir.join("registry/usr/bin/docker-registry")
    }

    /// skopeo, with the libraries beside it.
    pub(crate) fn skopeo(&self) -> PathBuf {
        self.dir.join("skopeo/skopeo")
    }

    /// The script looks for the libraries beside it, so that the cache may be moved.
    fn write_skopeo(&self) -> Result<()> {
        let path = self.skopeo();
        let libraries = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
        let text = format!(
            "#!/bin/sh\nhere=${{0%/*}}\n\
             export LD_LIBRARY_PATH=\"$here/usr/{libraries}:$here/{libraries}\"\n\
             exec \"$here/usr/bin/skopeo\" \"$@\"\n"
        );
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }
}

/// Unpacks `packages` of `suite` into one folder; the first one's version is the folder's.
fn fetch(apt: &PrivateApt, packages: &[&str], suite: &str, into: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(into);
    let mut versions = Vec::new();
    for package in packages {
        let version = apt.unpack(package, suite, into)?;
        eprintln!("fetched {package} {version} ({suite})");
        versions.push(version);
    }
    fs::write(into.join(DONE), versions.first().map_or("", String::as_str))?;
    Ok(())
}

/// Marks a package as wholly unpacked; holds its version.
const DONE: &str = ".unpacked";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_release() {
        assert_eq!(Release::parse("VERSION_CODENAME=trixie\n").unwrap(), Release::Trixie);
        assert_eq!(Release::parse("VERSION_CODENAME=\"bookworm\"\n").unwrap(), Release::Bookworm);
        let other = Release::parse("ID=fedora\nVERSION_CODENAME=\"\"\n").unwrap_err();
        assert!(other.to_string().contains("fedora"));
    }
}
