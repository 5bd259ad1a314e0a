//! Tar entries as they are, their headers put together and bounded.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType, Header, PaxExtensions};

use super::UnpackError;

/// The longest path, as the kernel has it.
const PATH_LIMIT: usize = 4096;
/// The deepest path.
const DEPTH_LIMIT: usize = 256;
/// The largest extended headers of one entry, all together.
const EXTENSION_LIMIT: u64 = 1 << 20;
const XATTR: &str = "SCHILY.xattr.";

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File {
        size: u64,
    },
    Directory,
    /// To whatever it says; it is only ever followed with the root as its top.
    Symlink(OsString),
    /// To a path below the root.
    HardLink(PathBuf),
    Fifo,
    Device,
}

/// One entry, its path below the root.
pub(super) struct Entry<'a> {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) modified: i64,
    pub(super) attributes: Vec<(String, Vec<u8>)>,
    pub(super) content: &'a mut dyn Read,
}

/// Reads an archive entry by entry.
pub(super) struct Reader<R: Read>(Archive<R>);

/// What the headers before an entry say of it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    owner: (Option<u32>, Option<u32>),
    modified: Option<i64>,
    attributes: Vec<(String, Vec<u8>)>,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(source: R) -> Self {
        Self(Archive::new(source))
    }

    /// Hands over each entry.
    pub(super) fn each(
        &mut self,
        mut take: impl FnMut(Entry<'_>) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        let mut extensions = Extensions::default();
        let mut room = EXTENSION_LIMIT;
        // Raw: the crate would read extended headers of any size into memory.
        for entry in self.0.entries().map_err(UnpackError::Broken)?.raw(true) {
            let mut entry = entry.map_err(UnpackError::Broken)?;
            let kind = entry.header().entry_type();
            match kind {
                EntryType::XHeader => extensions.pax(&extension(&mut entry, &mut room)?)?,
                EntryType::GNULongName => {
                    extensions.path = Some(text(extension(&mut entry, &mut room)?))
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(text(extension(&mut entry, &mut room)?))
                }
                EntryType::XGlobalHeader => drop(extension(&mut entry, &mut room)?),
                _ => {
                    room = EXTENSION_LIMIT;
                    let header = entry.header().clone();
                    let size = entry.size();
                    take(whole(&header, size, std::mem::take(&mut extensions), &mut entry)?)?;
                }
            }
        }
        Ok(())
    }
}

/// The bytes of an extended header, of which an entry has only so many.
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
    entry.read_to_end(&mut bytes).map_err(UnpackError::Broken)?;
    Ok(bytes)
}

/// GNU's long names end with a NUL.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

impl Extensions {
    fn pax(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        for record in PaxExtensions::new(bytes) {
            let record = record.map_err(UnpackError::Broken)?;
            // A key that is no text is none that is known.
            let Ok(key) = record.key() else { continue };
            let value = record.value_bytes();
            let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            match key {
                "path" => self.path = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "size" => self.size = number(),
                "uid" => self.owner.0 = number().and_then(|it| it.try_into().ok()),
                "gid" => self.owner.1 = number().and_then(|it| it.try_into().ok()),
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

fn whole<'a>(
    header: &Header,
    size: u64,
    extensions: Extensions,
    content: &'a mut dyn Read,
) -> Result<Entry<'a>, UnpackError> {
    let raw = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let path = below_root(&raw)?;
    let link = extensions.link.or_else(|| header.link_name_bytes().map(|it| it.into_owned()));
    let refuse = |why| Err(UnpackError::refuse(&path, why));
    if extensions.size.is_some_and(|told| told != size) {
        return refuse(
            "its size is told twice and differently; files of 8 GiB and more must be in base 256",
        );
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
            None => return refuse("it links to nothing"),
        },
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char | EntryType::Block => Kind::Device,
        EntryType::GNUSparse => return refuse("sparse files are not supported"),
        _ => return refuse("it is of no known type"),
    };
    let fields = header.as_old();
    let owner = (
        extensions.owner.0.or_else(|| number(&fields.uid, header.uid())),
        extensions.owner.1.or_else(|| number(&fields.gid, header.gid())),
    );
    // 2^32 - 1 would mean "leave it".
    let (Some(uid), Some(gid)) =
        (owner.0.filter(|it| *it != u32::MAX), owner.1.filter(|it| *it != u32::MAX))
    else {
        return refuse("its owner is no number that a file can have");
    };
    let mode = header.mode().map_err(UnpackError::Broken)? & 0o7777;
    let modified = header.mtime().ok().and_then(|it| i64::try_from(it).ok()).unwrap_or_default();
    Ok(Entry {
        path,
        kind,
        mode,
        owner: (uid, gid),
        modified: extensions.modified.unwrap_or(modified),
        attributes: extensions.attributes,
        content,
    })
}

/// A user's or group's number; a field that was left blank is 0, as tar(1) takes it.
fn number(field: &[u8], value: std::io::Result<u64>) -> Option<u32> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Some(0);
    }
    value.ok().and_then(|value| u32::try_from(value).ok())
}

/// A path without its leading `/` and `./`; empty for the root itself.
fn below_root(raw: &[u8]) -> Result<PathBuf, UnpackError> {
    let given = Path::new(std::ffi::OsStr::from_bytes(raw));
    let shown = || {
        Path::new(&given.as_os_str().as_bytes()[..raw.len().min(200)].to_owned().into_os())
            .to_owned()
    };
    if raw.len() >= PATH_LIMIT || raw.contains(&0) {
        return Err(UnpackError::refuse(&shown(), "its path is too long, or holds a NUL"));
    }
    let mut path = PathBuf::new();
    for part in given.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(UnpackError::refuse(&shown(), "its path goes up (..)"));
            }
        }
    }
    if path.components().count() > DEPTH_LIMIT {
        return Err(UnpackError::refuse(&shown(), "its path is too deep"));
    }
    Ok(path)
}

trait IntoOs {
    fn into_os(self) -> OsString;
}

impl IntoOs for Vec<u8> {
    fn into_os(self) -> OsString {
        OsString::from_vec(self)
    }
}
