//! Debian's kernel packages, read without installing them.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::decompress::decoder;
use super::modules::ModuleTree;

/// Upper bound in bytes on a file in a package.
const FILE_MAX: u64 = 256 << 20;

/// An error of reading a package.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// It cannot be opened.
    #[error("cannot open the package {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is not a package, or damaged.
    #[error(
        "{path} is not a Debian package, or damaged or truncated (in {part}); download it again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The member that cannot be read.
        part: String,
        /// The cause.
        source: io::Error,
    },
    /// It lacks a member that every package has.
    #[error("{path} is not a Debian package: it has no {part}")]
    NoPart {
        /// The file.
        path: PathBuf,
        /// The member.
        part: &'static str,
    },
    /// It is for another architecture.
    #[error("{path} is the package {package} for {found}, not for amd64; use the one for amd64")]
    Architecture {
        /// The file.
        path: PathBuf,
        /// The package.
        package: String,
        /// Its architecture.
        found: String,
    },
    /// It contains no kernel.
    #[error(
        "{path} is the package {package}, which contains no kernel (boot/vmlinuz-*); use one such as \
         linux-image-6.1.0-44-cloud-amd64, on which linux-image-cloud-amd64 depends"
    )]
    NoKernel {
        /// The file.
        path: PathBuf,
        /// The package.
        package: String,
    },
}

/// The contents of a kernel's package.
#[derive(Debug)]
pub(super) struct Deb {
    pub(super) package: String,
    pub(super) version: String,
    pub(super) vmlinuz: Vec<u8>,
    pub(super) modules: ModuleTree,
}

/// The fields of the control file.
#[derive(Debug, Default)]
struct Control {
    package: String,
    version: String,
    architecture: String,
}

impl Deb {
    pub(super) fn read(path: &Path) -> Result<Self, DebError> {
        let damaged = |part: &str| {
            let path = path.to_owned();
            let part = part.to_owned();
            move |source| DebError::Damaged { path, part, source }
        };
        let file =
            File::open(path).map_err(|source| DebError::Open { path: path.to_owned(), source })?;
        let mut archive = ar::Archive::new(BufReader::new(file));
        let mut control = None;
        let mut kernel = None;
        let mut modules = ModuleTree::new(path.display().to_string());
        while let Some(entry) = archive.next_entry() {
            let entry = entry.map_err(damaged("its list of parts"))?;
            let part = String::from_utf8_lossy(entry.header().identifier()).into_owned();
            if part.starts_with("control.tar") {
                control = read_control(entry).map_err(damaged(&part))?;
            } else if part.starts_with("data.tar") {
                kernel = Some(read_data(entry, &mut modules).map_err(damaged(&part))?);
            }
        }
        let no_part = |part| DebError::NoPart { path: path.to_owned(), part };
        let Control { package, version, architecture } =
            control.ok_or_else(|| no_part("control.tar with a control file"))?;
        let path = path.to_owned();
        if architecture != "amd64" {
            return Err(DebError::Architecture { path, package, found: architecture });
        }
        match kernel.ok_or_else(|| no_part("data.tar"))? {
            Some(vmlinuz) => Ok(Self { package, version, vmlinuz, modules }),
            None => Err(DebError::NoKernel { path, package }),
        }
    }
}

fn read_control(part: impl Read) -> io::Result<Option<Control>> {
    let mut control = None;
    each_file(part, |path, file| {
        if path == ["control"] {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            control = Some(parse_control(&text));
        }
        Ok(())
    })?;
    Ok(control)
}

fn parse_control(text: &str) -> Control {
    let mut control = Control::default();
    for line in text.lines() {
        let field = match line.split_once(':') {
            Some(("Package", value)) => Some((&mut control.package, value)),
            Some(("Version", value)) => Some((&mut control.version, value)),
            Some(("Architecture", value)) => Some((&mut control.architecture, value)),
            _ => None,
        };
        if let Some((field, value)) = field {
            value.trim().clone_into(field);
        }
    }
    control
}

/// Adds the modules to `modules` and returns the kernel.
fn read_data(part: impl Read, modules: &mut ModuleTree) -> io::Result<Option<Vec<u8>>> {
    let mut kernel = None;
    each_file(part, |path, file| {
        let Some((name, dirs)) = path.split_last() else { return Ok(()) };
        let in_modules = dirs.windows(2).any(|pair| pair == ["lib", "modules"]);
        if dirs == ["boot"] && name.starts_with("vmlinuz-") {
            kernel = Some(read_whole(file)?);
        } else if in_modules && ModuleTree::accepts(name) {
            modules.add((*name).to_owned(), read_whole(file)?);
        }
        Ok(())
    })?;
    Ok(kernel)
}

fn read_whole(file: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Calls `visit` with the path components and content of each regular file in a compressed tar.
/// Reads to the end, so that a checksum error is reported.
fn each_file(
    part: impl Read,
    mut visit: impl FnMut(&[&str], &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    let mut archive = tar::Archive::new(decoder(part)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        if entry.size() > FILE_MAX {
            let text = format!("a file in it has {} bytes, more than {FILE_MAX}", entry.size());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let path = entry.path()?.to_string_lossy().into_owned();
        let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        visit(&parts, &mut entry)?;
    }
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}
