//! Reads the entries of a tar archive, with extended headers applied and bounded.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType, Header, PaxExtensions};

use super::error::UnpackError;

/// The longest path; `PATH_MAX` of Linux.
const PATH_LIMIT: usize = 4096;
/// The maximum number of components in a path.
const DEPTH_LIMIT: usize = 256;
/// The maximum total size of the extended headers of one entry, in bytes.
const EXTENSION_LIMIT: u64 = 1 << 20;
const XATTR: &str = "SCHILY.xattr.";

/// The type of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File {
        size: u64,
    },
    Directory,
    /// The target is unchecked: it is only followed within the root.
    Symlink(OsString),
    /// The target relative to the root.
    HardLink(PathBuf),
    Fifo,
    Device,
}

/// One entry; its path is relative to the root.
pub(super) struct Entry<'a> {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: i64,
    pub(super) attributes: Vec<(String, Vec<u8>)>,
    pub(super) content: &'a mut dyn Read,
}

/// Reads an archive entry by entry.
pub(super) struct Reader<R: Read>(Archive<R>);

/// The extended headers of an entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<i64>,
    attributes: Vec<(String, Vec<u8>)>,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(source: R) -> Self {
        Self(Archive::new(source))
    }

    /// Calls `take` with each entry.
    pub(super) fn for_each(
        &mut self,
        mut take: impl FnMut(Entry<'_>) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        let mut extensions = Extensions::default();
        let mut room = EXTENSION_LIMIT;
        // Raw, because the crate reads extended headers into memory without a limit.
        for entry in self.0.entries().map_err(UnpackError::Corrupt)?.raw(true) {
            let mut entry = entry.map_err(UnpackError::Corrupt)?;
            let kind = entry.header().entry_type();
            match kind {
                EntryType::XHeader => extensions.pax(&extension(&mut entry, &mut room)?)?,
                EntryType::GNULongName => {
                    extensions.path = Some(without_nul(extension(&mut entry, &mut room)?))
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(without_nul(extension(&mut entry, &mut room)?))
                }
                EntryType::XGlobalHeader => drop(extension(&mut entry, &mut room)?),
                _ => {
                    room = EXTENSION_LIMIT;
                    let header = entry.header().clone();
                    let size = entry.size();
                    take(parse(&header, size, std::mem::take(&mut extensions), &mut entry)?)?;
                }
            }
        }
        Ok(())
    }
}

/// Reads an extended header; `room` is what is left of [`EXTENSION_LIMIT`].
fn extension<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    room: &mut u64,
) -> Result<Vec<u8>, UnpackError> {
    let Some(rest) = room.checked_sub(entry.size()) else {
        let why = "its extended headers are larger than 1 MiB";
        return Err(UnpackError::refuse(Path::new(""), why));
    };
    *room = rest;
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(UnpackError::Corrupt)?;
    Ok(bytes)
}

/// Removes the NUL at the end of a GNU long name.
fn without_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

impl Extensions {
    fn pax(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        for record in PaxExtensions::new(bytes) {
            let record = record.map_err(UnpackError::Corrupt)?;
            // All known keys are UTF-8.
            let Ok(key) = record.key() else { continue };
            let value = record.value_bytes();
            let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            match key {
                "path" => self.path = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "size" => self.size = number(),
                "uid" => self.uid = number().and_then(|it| it.try_into().ok()),
                "gid" => self.gid = number().and_then(|it| it.try_into().ok()),
                "mtime" => {
                    let text = std::str::from_utf8(value).unwrap_or_default();
                    self.modified = text.split('.').next().and_then(|whole| whole.parse().ok());
                }
                key => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        self.attributes.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn parse<'a>(
    header: &Header,
    size: u64,
    extensions: Extensions,
    content: &'a mut dyn Read,
) -> Result<Entry<'a>, UnpackError> {
    let raw = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let path = below_root(&raw)?;
    let link = extensions.link.or_else(|| header.link_name_bytes().map(|it| it.into_owned()));
    let refuse = |why| Err(UnpackError::refuse(&path, why));
    if extensions.size.is_some_and(|extended| extended != size) {
        return refuse("its size differs in its pax header; 8 GiB and more must be in base 256");
    }
    let target = || link.clone().filter(|it| !it.is_empty());
    let kind = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous if raw.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File { size },
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => match target() {
            Some(target) if target.len() < PATH_LIMIT => Kind::Symlink(OsString::from_vec(target)),
            _ => return refuse("its target is empty or too long"),
        },
        EntryType::Link => match target() {
            Some(target) => Kind::HardLink(below_root(&target)?),
            None => return refuse("it has no link target"),
        },
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char | EntryType::Block => Kind::Device,
        EntryType::GNUSparse => return refuse("sparse files are not supported"),
        _ => return refuse("its type is unknown"),
    };
    let fields = header.as_old();
    let uid = extensions.uid.or_else(|| id(&fields.uid, header.uid()));
    let gid = extensions.gid.or_else(|| id(&fields.gid, header.gid()));
    // chown(2) leaves the owner unchanged for 2^32 - 1.
    let valid = |id: &u32| *id != u32::MAX;
    let (Some(uid), Some(gid)) = (uid.filter(valid), gid.filter(valid)) else {
        return refuse("its owner is out of range");
    };
    let mode = header.mode().map_err(UnpackError::Corrupt)? & 0o7777;
    let modified = header.mtime().ok().and_then(|it| i64::try_from(it).ok()).unwrap_or_default();
    Ok(Entry {
        path,
        kind,
        mode,
        uid,
        gid,
        modified: extensions.modified.unwrap_or(modified),
        attributes: extensions.attributes,
        content,
    })
}

/// A user or group ID; a blank field is 0, as in tar(1).
fn id(field: &[u8], value: std::io::Result<u64>) -> Option<u32> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Some(0);
    }
    value.ok().and_then(|value| u32::try_from(value).ok())
}

/// A path without leading `/` and `./`; empty for the root itself.
fn below_root(raw: &[u8]) -> Result<PathBuf, UnpackError> {
    let refuse = |why| {
        let shown = Path::new(OsStr::from_bytes(&raw[..raw.len().min(200)]));
        Err(UnpackError::refuse(shown, why))
    };
    if raw.len() >= PATH_LIMIT || raw.contains(&0) {
        return refuse("its path is too long or contains a NUL");
    }
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(raw)).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return refuse("its path contains ..");
            }
        }
    }
    if path.components().count() > DEPTH_LIMIT {
        return refuse("its path is too deep");
    }
    Ok(path)
}
