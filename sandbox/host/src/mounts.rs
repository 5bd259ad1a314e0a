//! The kernel's mount tables: `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
//!
//! Paths are bytes here, as they are in the kernel: one mount point that is not UTF-8 must not make
//! the whole table unreadable.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The calling thread's table. A thread may be in another mount namespace than its process.
pub const CURRENT: &str = "/proc/thread-self/mountinfo";

/// A mount table, in mount order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountTable(Vec<u8>);

/// One line of a mount table. Paths are unescaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Mount ID; unique in the table.
    pub id: u64,
    /// ID of the mount that this one is mounted on.
    pub parent: u64,
    /// `st_dev` of its files, as `MAJOR:MINOR`.
    pub device: &'a str,
    /// The directory or file of the file system that is visible at `point`.
    pub root: Cow<'a, Path>,
    /// The mount point.
    pub point: Cow<'a, Path>,
    /// Optional fields, such as `shared:1 master:2`. Empty for a private mount.
    pub propagation: &'a OsStr,
    /// File system type, with a FUSE file system's subtype.
    pub kind: &'a OsStr,
    /// Options of the superblock, separated by commas, still escaped.
    pub options: &'a OsStr,
}

impl MountTable {
    /// Reads the calling thread's table.
    ///
    /// # Errors
    ///
    /// When [`CURRENT`] cannot be read, or a line has another format.
    pub fn current() -> io::Result<Self> {
        Self::read(Path::new(CURRENT))
    }

    /// Reads a process's table.
    ///
    /// # Errors
    ///
    /// As [`MountTable::current`]; also when the process has exited.
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::read(&PathBuf::from(format!("/proc/{pid}/mountinfo")))
    }

    fn read(path: &Path) -> io::Result<Self> {
        Self::parse(fs::read(path)?)
    }

    /// Takes the contents of a `mountinfo` file.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] with the first line that has another format.
    pub fn parse(contents: impl Into<Vec<u8>>) -> io::Result<Self> {
        let contents = contents.into();
        if let Some(bad) = lines(&contents).find(|line| Mount::parse(line).is_none()) {
            let message = format!("not a line of mountinfo: {:?}", String::from_utf8_lossy(bad));
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Self(contents))
    }

    /// All mounts, in mount order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Mount<'_>> {
        // `parse` has accepted every line.
        lines(&self.0).filter_map(Mount::parse)
    }

    /// The mount that is visible at the mount point `path`: the last one, which hides the others.
    pub fn at(&self, path: &Path) -> Option<Mount<'_>> {
        self.iter().rfind(|mount| mount.point == path)
    }

    /// The mounts at or below `path`, in mount order.
    pub fn below(&self, path: &Path) -> impl DoubleEndedIterator<Item = Mount<'_>> {
        self.iter().filter(move |mount| mount.point.starts_with(path))
    }
}

impl<'a> Mount<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(7, |byte| *byte == b' ');
        let id = ascii(fields.next()?)?.parse().ok()?;
        let parent = ascii(fields.next()?)?.parse().ok()?;
        let device = ascii(fields.next()?)?;
        let root = unescape(fields.next()?);
        let point = unescape(fields.next()?);
        let _mount_options = fields.next()?;
        let rest = fields.next()?;
        // Zero or more optional fields, then a hyphen.
        let (propagation, rest) = match rest.strip_prefix(b"- ") {
            Some(rest) => (&rest[..0], rest),
            None => {
                let hyphen = rest.windows(3).position(|part| part == b" - ")?;
                (&rest[..hyphen], &rest[hyphen + 3..])
            }
        };
        let mut fields = rest.splitn(3, |byte| *byte == b' ');
        let kind = OsStr::from_bytes(fields.next()?);
        let _source = fields.next()?;
        let options = OsStr::from_bytes(fields.next()?);
        let propagation = OsStr::from_bytes(propagation);
        Some(Self { id, parent, device, root, point, propagation, kind, options })
    }
}

fn lines(contents: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    contents.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

fn ascii(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok()
}

/// Undoes the kernel's escapes: a backslash and three octal digits stand for one byte.
fn unescape(field: &[u8]) -> Cow<'_, Path> {
    if !field.contains(&b'\\') {
        return Cow::Borrowed(Path::new(OsStr::from_bytes(field)));
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match octal(rest) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    Cow::Owned(PathBuf::from(OsString::from_vec(bytes)))
}

/// The byte that `field` starts with in its escaped form.
fn octal(field: &[u8]) -> Option<u8> {
    let [b'\\', high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', ..] = field else {
        return None;
    };
    Some((high - b'0') * 64 + (middle - b'0') * 8 + (low - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
        1 0 8:1 / / rw shared:1 - ext4 /dev/root rw\n\
        2 1 0:2 / /x rw,nosuid - tmpfs tmpfs rw,size=4k\n\
        3 1 0:3 /sub /x\\040y/z rw shared:7 master:2 - fuse.a - rw\n\
        4 2 0:4 / /x rw - overlay overlay rw,lowerdir=/a:/b\n\
        5 4 0:5 / /x/a\\134040 rw - tmpfs none rw\n";

    #[test]
    fn reads_every_field() {
        let table = MountTable::parse(TABLE).unwrap();
        assert_eq!(table.iter().count(), 5);
        let expected = Mount {
            id: 3,
            parent: 1,
            device: "0:3",
            root: Path::new("/sub").into(),
            point: Path::new("/x y/z").into(),
            propagation: OsStr::new("shared:7 master:2"),
            kind: OsStr::new("fuse.a"),
            options: OsStr::new("rw"),
        };
        assert_eq!(table.at(Path::new("/x y/z")), Some(expected));
    }

    #[test]
    fn finds_the_visible_mount_and_those_below_a_path() {
        let table = MountTable::parse(TABLE).unwrap();
        let visible = table.at(Path::new("/x")).unwrap();
        assert_eq!((visible.id, visible.propagation), (4, OsStr::new("")));
        assert_eq!(table.at(Path::new("/x/b")), None);
        let below: Vec<_> = table.below(Path::new("/x")).map(|mount| mount.id).collect();
        assert_eq!(below, [2, 4, 5], "/x y is beside /x");
    }

    #[test]
    fn undoes_octal_escapes_once() {
        for (escaped, plain) in [
            (r"/a\040b\011c\012d", "/a b\tc\nd"),
            (r"/a\134040", r"/a\040"),
            (r"/a\043b\", "/a#b\\"),
            (r"/a\9", r"/a\9"),
        ] {
            assert_eq!(unescape(escaped.as_bytes()), Path::new(plain), "{escaped}");
        }
    }

    #[test]
    fn a_mount_point_need_not_be_utf8_but_a_line_must_be_whole() {
        let mut contents = TABLE.as_bytes().to_vec();
        contents.extend(b"6 1 0:6 / /x/\xff rw - tmpfs t rw\n");
        let table = MountTable::parse(contents).unwrap();
        assert!(table.at(Path::new(OsStr::from_bytes(b"/x/\xff"))).is_some());
        let error = MountTable::parse("1 0 8:1 / / rw - ext4\n").unwrap_err();
        assert_eq!(error.to_string(), r#"not a line of mountinfo: "1 0 8:1 / / rw - ext4""#);
    }

    #[test]
    fn reads_the_tables_of_this_process() {
        let current = MountTable::current().unwrap();
        assert!(current.at(Path::new("/")).is_some());
        let own = MountTable::of(std::process::id()).unwrap();
        assert!(own.at(Path::new("/")).is_some());
        assert_eq!(MountTable::of(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
