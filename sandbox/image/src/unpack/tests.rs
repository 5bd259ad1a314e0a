use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;
use crate::digest::sha256;

/// Builds layers, including malicious ones.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// Adds an entry without validating its name and target.
    fn raw(mut self, kind: EntryType, path: &str, target: &str, data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_size(data.len() as u64);
        header.set_mtime(1_000_000_000);
        header.set_uid(nix::unistd::getuid().as_raw().into());
        header.set_gid(nix::unistd::getgid().as_raw().into());
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.raw(EntryType::Regular, path, "", data.as_bytes())
    }

    fn dir(self, path: &str) -> Self {
        self.raw(EntryType::Directory, path, "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, path, target, b"")
    }

    fn link(self, path: &str, target: &str) -> Self {
        self.raw(EntryType::Link, path, target, b"")
    }

    fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A root in a folder in which nothing else may be created.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn unpack(&self, layers: &[Vec<u8>]) -> Result<Unpacked, UnpackError> {
        let limits = Limits { entries: 1000, bytes: 1 << 20 };
        let mut unpacker = Unpacker::open(&self.root(), limits, false)?;
        for layer in layers {
            unpacker.layer(layer.as_slice(), Some(&sha256(layer)))?;
        }
        Ok(unpacker.total())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap()
    }

    fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.root().join(path)).is_ok()
    }

    /// Asserts that nothing outside the root was created or changed.
    fn assert_intact(&self) {
        let mut names: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["outside", "root"]);
        let outside = self.dir.path().join("outside");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
        assert_eq!(fs::metadata(&outside).unwrap().nlink(), 1);
    }
}

fn refused(layers: &[Vec<u8>]) -> String {
    let place = Place::new();
    let error = place.unpack(layers).unwrap_err();
    place.assert_intact();
    error.to_string()
}

#[test]
fn files_links_and_modes() {
    let place = Place::new();
    let layer = Layer::new()
        .dir("./")
        .dir("a/")
        .file("./a/f", "hello")
        .link("a/hard", "a/f")
        .symlink("a/soft", "f")
        .symlink("lib", "usr/lib")
        .dir("usr/lib")
        .file("lib/x", "through a link")
        .file("/abs", "absolute")
        .file("deep/er/est", "parents are made")
        .raw(EntryType::Fifo, "pipe", "", b"")
        .raw(EntryType::Char, "dev/null", "", b"");
    let total = place.unpack(&[layer.tar()]).unwrap();
    assert_eq!(total.entries, 12);
    assert_eq!(total.devices, 1);
    assert_eq!(total.bytes, 43);
    assert_eq!(place.read("a/soft"), "hello");
    assert_eq!(place.read("usr/lib/x"), "through a link");
    assert_eq!(place.read("abs"), "absolute");
    assert_eq!(place.read("deep/er/est"), "parents are made");
    assert!(!place.has("dev/null"));
    let meta = |path: &str| fs::symlink_metadata(place.root().join(path)).unwrap();
    assert_eq!(meta("a/f").ino(), meta("a/hard").ino());
    assert_eq!(meta("a/f").permissions().mode() & 0o7777, 0o644);
    for path in ["a", "a/f", "a/soft", "usr/lib", ""] {
        assert_eq!(meta(path).mtime(), 1_000_000_000, "{path}");
    }
    place.assert_intact();
}

#[test]
fn long_names_and_attributes() {
    let place = Place::new();
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    let target = "t".repeat(150);
    let mut builder = Builder::new(Vec::new());
    let header = |kind, size| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o600);
        header.set_size(size);
        header
    };
    builder.append_data(&mut header(EntryType::Regular, 2), &long, &b"hi"[..]).unwrap();
    builder.append_link(&mut header(EntryType::Symlink, 0), "s", &target).unwrap();
    let pax = [
        ("path", b"p\xc3\xa4x".as_slice()),
        ("mtime", b"7.5"),
        ("SCHILY.xattr.user.k", b"v"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
    ];
    builder.append_pax_extensions(pax).unwrap();
    builder.append_data(&mut header(EntryType::Regular, 1), "short", &b"x"[..]).unwrap();
    place.unpack(&[builder.into_inner().unwrap()]).unwrap();
    assert_eq!(place.read(&long), "hi");
    assert_eq!(fs::read_link(place.root().join("s")).unwrap().to_str().unwrap(), target);
    let path = place.root().join("p\u{e4}x");
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 7);
    let mut value = [0; 8];
    let kept = rustix::fs::getxattr(&path, "user.k", &mut value);
    assert!(matches!(kept, Ok(1) | Err(rustix::io::Errno::OPNOTSUPP)), "{kept:?}");
    assert!(rustix::fs::getxattr(&path, "trusted.overlay.opaque", &mut value).is_err());
}

#[test]
fn whiteouts_remove_from_lower_layers_only() {
    let place = Place::new();
    let lower = Layer::new()
        .file("a/one", "1")
        .file("a/two", "2")
        .file("a/sub/x", "x")
        .file("b/old", "o")
        .file("b/sub/old", "o")
        .file("c", "c")
        .file("keep", "k");
    let upper = Layer::new()
        .file("a/.wh.one", "")
        .file("a/.wh.sub", "")
        .file("a/.wh.never", "")
        .file("nowhere/.wh.x", "")
        .file("b/new", "n")
        .file("b/sub/new", "n")
        .file("b/.wh..wh..opq", "")
        .file(".wh..wh.plnk", "")
        .file(".wh.c", "")
        .file("c/now-a-directory", "d");
    let total = place.unpack(&[lower.tar(), upper.tar()]).unwrap();
    assert!(!place.has("a/one") && !place.has("a/sub") && place.has("a/two"));
    assert!(!place.has("b/old") && !place.has("b/sub/old"));
    assert_eq!(place.read("b/new"), "n");
    assert_eq!(place.read("b/sub/new"), "n");
    assert_eq!(place.read("c/now-a-directory"), "d");
    assert!(place.has("keep") && !place.has("nowhere") && !place.has(".wh..wh.plnk"));
    assert_eq!(total.removed, 6);
}

#[test]
fn entries_replace_each_other() {
    let place = Place::new();
    let lower = Layer::new()
        .file("f", "file")
        .dir("d")
        .file("d/x", "x")
        .symlink("s", "d")
        .dir("e")
        .file("e/kept", "k");
    let upper = Layer::new()
        .dir("f")
        .file("f/in", "i")
        .file("d", "no directory")
        .file("s", "no link")
        .dir("e");
    place.unpack(&[lower.tar(), upper.tar()]).unwrap();
    assert_eq!(place.read("f/in"), "i");
    assert_eq!(place.read("d"), "no directory");
    assert_eq!(place.read("s"), "no link");
    assert_eq!(place.read("e/kept"), "k");
    // A hard link to itself, which some builders write.
    let again = Layer::new().link("d", "d");
    place.unpack(&[again.tar()]).unwrap();
    assert_eq!(place.read("d"), "no directory");
}

#[test]
fn refused_entries() {
    for (layer, part) in [
        (Layer::new().file("../outside", "x"), "contains .."),
        (Layer::new().file("a/../../outside", "x"), "contains .."),
        (Layer::new().link("x", "../outside"), "contains .."),
        (Layer::new().link("x", ""), "no link target"),
        (Layer::new().file(".wh...", ""), "whiteout without a valid name"),
        (Layer::new().file(".wh..", ""), "whiteout without a valid name"),
        (Layer::new().file("a/.wh.", ""), "whiteout without a valid name"),
        (Layer::new().dir("d").link("x", "d"), "links to a directory"),
        (Layer::new().link("x", "/"), "links to a directory"),
        (Layer::new().file(".", "x"), "root must be a directory"),
        (Layer::new().raw(EntryType::GNUSparse, "x", "", b""), "sparse"),
        (Layer::new().raw(EntryType::new(b'Z'), "x", "", b""), "type is unknown"),
        (Layer::new().symlink("x", ""), "target is empty"),
        (Layer::new().link("x", "outside"), "cannot link to"),
    ] {
        let error = refused(&[layer.tar()]);
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn symlinks_are_resolved_within_the_root() {
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    let outside = outside.to_str().unwrap();
    let up = "../../../../../../../../../..";
    let layer = Layer::new()
        .symlink("up", up)
        .symlink("abs", "/")
        .symlink("there", place.dir.path().to_str().unwrap())
        .symlink("victim", outside)
        .symlink("loop", "loop")
        .file("up/a", "1")
        .file("abs/b", "2")
        .file("victim", "replaced, not followed")
        .link("hard", "up/a")
        .file("up/up/up/c", "3");
    place.unpack(&[layer.tar()]).unwrap();
    place.assert_intact();
    assert_eq!(place.read("a"), "1");
    assert_eq!(place.read("b"), "2");
    assert_eq!(place.read("c"), "3");
    assert_eq!(place.read("victim"), "replaced, not followed");
    let error = place.unpack(&[Layer::new().file("loop/x", "").tar()]).unwrap_err();
    assert!(error.to_string().starts_with("cannot open"), "{error}");
    // The target does not exist within the root.
    let gone = place.unpack(&[Layer::new().link("x", "there/outside").tar()]).unwrap_err();
    assert!(matches!(gone, UnpackError::Io { .. }), "{gone}");
    // A whiteout through a symlink removes nothing outside.
    place
        .unpack(&[Layer::new().file("up/.wh.outside", "").file("there/.wh.outside", "").tar()])
        .unwrap();
    place.unpack(&[Layer::new().file("up/.wh..wh..opq", "").tar()]).unwrap();
    place.assert_intact();
    assert!(!place.has("a"));
}

#[test]
fn a_directory_replaced_by_a_symlink_is_not_cached() {
    let place = Place::new();
    let layer = Layer::new()
        .dir("d")
        .file("d/one", "1")
        .dir("e")
        .file("d/two", "2")
        .file(".wh.d", "")
        .symlink("d", "e")
        .file("d/three", "3");
    place.unpack(&[layer.tar()]).unwrap();
    assert_eq!(place.read("e/three"), "3");
    place.assert_intact();
}

#[test]
fn limits() {
    let mut many = Layer::new();
    for at in 0..1001 {
        many = many.dir(&format!("d{at}"));
    }
    assert_eq!(refused(&[many.tar()]), "the layers have more than 1000 entries");
    let half = "x".repeat(600 << 10);
    let two = [Layer::new().file("a", &half).tar(), Layer::new().file("b", &half).tar()];
    assert_eq!(refused(&two), format!("the layers have more than {} bytes", 1 << 20));
    let deep = "d/".repeat(48);
    assert!(Place::new().unpack(&[Layer::new().dir(&deep).tar()]).is_ok());
    // A false size is refused before any content is read.
    let mut header = Header::new_gnu();
    header.set_path("huge").unwrap();
    header.set_size(1 << 40);
    header.set_mode(0o600);
    header.set_cksum();
    assert!(refused(&[header.as_bytes().to_vec()]).contains("more than"));
    let mut extended = Header::new_gnu();
    extended.set_entry_type(EntryType::GNULongName);
    extended.set_size(1 << 40);
    extended.set_mode(0o600);
    extended.set_cksum();
    assert!(refused(&[extended.as_bytes().to_vec()]).contains("larger than 1 MiB"));
}

/// Data that ends up in no file is bounded too, because it compresses well.
#[test]
fn limits_of_data_that_is_not_unpacked() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(600 << 10);
    header.set_cksum();
    let extended = [header.as_bytes().as_slice(), &vec![b'a'; 600 << 10]].concat();
    assert!(refused(&[extended.repeat(2)]).contains("larger than 1 MiB"));
    let place = Place::new();
    let device = Layer::new().raw(EntryType::Char, "device", "", &vec![0; 4 << 20]).tar();
    let UnpackError::Corrupt(error) = place.unpack(&[device]).unwrap_err() else {
        panic!("another error")
    };
    assert_eq!(error.to_string(), "the decompressed layer is larger than allowed");
    place.assert_intact();
}

#[test]
fn compressions() {
    let tar = Layer::new().file("f", &"text ".repeat(5000)).tar();
    let diff_id = sha256(&tar);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    let frame = |part: &[u8]| {
        ruzstd::encoding::compress_to_vec(part, ruzstd::encoding::CompressionLevel::Fastest)
    };
    let frames =
        [frame(&tar[..700]), vec![0x53, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9], frame(&tar[700..])]
            .concat();
    let skip_first = [vec![0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0], frame(&tar)].concat();
    for (name, layer) in [
        ("plain", &tar),
        ("gzip", &gzip),
        ("zstd", &frame(&tar)),
        ("frames", &frames),
        ("skip", &skip_first),
    ] {
        let place = Place::new();
        let mut unpacker = Unpacker::open(&place.root(), Limits::default(), false).unwrap();
        unpacker.layer(layer.as_slice(), Some(&diff_id)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(place.read("f").len(), 25_000, "{name}");
        let mut cut = layer.clone();
        cut.truncate(cut.len() / 2);
        let mut unpacker = Unpacker::open(&place.root(), Limits::default(), false).unwrap();
        assert!(unpacker.layer(cut.as_slice(), Some(&diff_id)).is_err(), "{name} cut");
        let mut other = layer.clone();
        // Of the last frame: what a skippable frame holds may change.
        let near_end = other.len() - 20;
        other[near_end] ^= 1;
        let mut unpacker = Unpacker::open(&place.root(), Limits::default(), false).unwrap();
        assert!(unpacker.layer(other.as_slice(), Some(&diff_id)).is_err(), "{name} changed");
    }
}

#[test]
fn content_with_another_diff_id() {
    let place = Place::new();
    let tar = Layer::new().file("f", "x").tar();
    let other = sha256(b"other");
    let mut unpacker = Unpacker::open(&place.root(), Limits::default(), false).unwrap();
    let error = unpacker.layer(tar.as_slice(), Some(&other)).unwrap_err().to_string();
    assert!(error.starts_with("the layer has the diff ID sha256:"), "{error}");
    // The digest includes what follows the end of the archive.
    let mut longer = tar.clone();
    longer.extend([0; 4096]);
    let mut unpacker = Unpacker::open(&place.root(), Limits::default(), false).unwrap();
    unpacker.layer(longer.as_slice(), Some(&sha256(&longer))).unwrap();
    longer.extend(vec![0; 2 << 20]);
    let mut unpacker = Unpacker::open(&place.root(), Limits::default(), false).unwrap();
    let error = unpacker.layer(longer.as_slice(), Some(&sha256(&longer))).unwrap_err().to_string();
    assert!(error.contains("follows the end"), "{error}");
}
