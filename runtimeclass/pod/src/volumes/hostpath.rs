//! `hostPath` and its types.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use kube_manifest::HostPathType;

/// Checks that a path matches its type, creating it if the type asks for that.
pub(super) fn check(path: &Path, kind: HostPathType) -> Result<(), String> {
    if !path.exists() {
        create(path, kind).map_err(|error| format!("cannot create {path:?}: {error}"))?;
    }
    let found = fs::metadata(path)
        .map_err(|error| {
            format!("path {path:?}: {error}; create it, or set type: DirectoryOrCreate")
        })?
        .file_type();
    let (matches, wanted) = match kind {
        HostPathType::Unchecked => (true, ""),
        HostPathType::DirectoryOrCreate | HostPathType::Directory => {
            (found.is_dir(), "a directory")
        }
        HostPathType::FileOrCreate | HostPathType::File => (found.is_file(), "a file"),
        HostPathType::Socket => (found.is_socket(), "a socket"),
        HostPathType::CharDevice => (found.is_char_device(), "a character device"),
        HostPathType::BlockDevice => (found.is_block_device(), "a block device"),
    };
    if matches {
        Ok(())
    } else {
        Err(format!("path {path:?} is not {wanted}, as its type requires"))
    }
}

fn create(path: &Path, kind: HostPathType) -> io::Result<()> {
    if kind == HostPathType::DirectoryOrCreate {
        return fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    }
    if kind == HostPathType::FileOrCreate {
        return fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)
            .map(drop);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_enforced() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("d/e");
        let file = root.path().join("f");
        assert_eq!(check(&dir, HostPathType::DirectoryOrCreate), Ok(()));
        assert_eq!(check(&file, HostPathType::FileOrCreate), Ok(()));
        assert_eq!(check(&dir, HostPathType::Directory), Ok(()));
        assert_eq!(check(&file, HostPathType::File), Ok(()));
        assert_eq!(check(Path::new("/dev/null"), HostPathType::CharDevice), Ok(()));
        for (path, kind, wanted) in [
            (&file, HostPathType::Directory, "a directory"),
            (&file, HostPathType::DirectoryOrCreate, "a directory"),
            (&dir, HostPathType::FileOrCreate, "a file"),
            (&file, HostPathType::Socket, "a socket"),
            (&dir, HostPathType::BlockDevice, "a block device"),
        ] {
            let fault = format!("path {path:?} is not {wanted}, as its type requires");
            assert_eq!(check(path, kind), Err(fault));
        }
        let fault = check(&root.path().join("none"), HostPathType::Unchecked).unwrap_err();
        assert!(fault.contains("No such file or directory"), "{fault}");
    }
}
