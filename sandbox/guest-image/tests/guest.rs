//! Images on disk, as the shim opens them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_image::{
    Agent, Checked, Digest, FORMAT, GuestImage, ImageFile, Kernel, MANIFEST, Manifest,
};
use sandbox_host::{Classified as _, Kind};
use tempfile::TempDir;

const VMLINUX: &[u8] = b"kernel";
const INITRAMFS: &[u8] = b"initramfs";

fn manifest() -> Manifest {
    let file = |name: &str, bytes: &[u8]| ImageFile {
        file: name.to_owned(),
        size: bytes.len() as u64,
        sha256: Digest::of(bytes),
    };
    Manifest {
        format: FORMAT,
        protocol: 3,
        kernel: Kernel { package: None, version: None, release: "6.1.0".to_owned() },
        agent: Agent { version: "1".to_owned(), sha256: Digest::of(b""), size: 1 },
        vmlinux: file("vmlinux", VMLINUX),
        initramfs: file("initramfs.cpio", INITRAMFS),
        modules: vec!["virtio_pci".to_owned()],
    }
}

fn write(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
}

fn image() -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("guest");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    write(&dir, "vmlinux", VMLINUX);
    write(&dir, "initramfs.cpio", INITRAMFS);
    write(&dir, MANIFEST, serde_json::to_vec(&manifest()).unwrap());
    (place, dir)
}

/// The text and kind of the error of an image that `spoil` has changed.
fn refusal(spoil: impl FnOnce(&Path)) -> (String, Kind) {
    let (_place, dir) = image();
    spoil(&dir);
    let error = GuestImage::open(&dir).and_then(|guest| guest.verify()).unwrap_err();
    (error.to_string().replace(&dir.display().to_string(), "DIR"), error.kind())
}

#[test]
fn an_image_opens_and_verifies() {
    let (_place, dir) = image();
    let guest = GuestImage::open(&dir).unwrap();
    guest.verify().unwrap();
    assert_eq!(guest.manifest(), &manifest());
    assert_eq!(guest.kernel(), dir.join("vmlinux"));
    assert_eq!(guest.initramfs(), dir.join("initramfs.cpio"));
    guest.expect_protocol(3).unwrap();
    let error = guest.expect_protocol(4).unwrap_err();
    let text = error.to_string().replace(&dir.display().to_string(), "DIR");
    assert_eq!(
        text,
        "the agent in DIR speaks protocol 3, this program 4; build the image with the agent of this version: \
         `bulkhead guest build --output DIR`"
    );
}

#[test]
fn a_missing_or_changed_file_is_named() {
    let rebuild = "rebuild the image: `bulkhead guest build --output DIR`";
    let build = "build the image: `bulkhead guest build --output DIR`";
    let remove = |name: &'static str| refusal(move |dir| fs::remove_file(dir.join(name)).unwrap());
    let (text, kind) = refusal(|dir| fs::remove_dir_all(dir).unwrap());
    assert_eq!((text, kind), (format!("DIR does not exist; {build}"), Kind::Unavailable));
    for name in [MANIFEST, "vmlinux", "initramfs.cpio"] {
        let wanted = format!("DIR/{name} does not exist; {build}");
        assert_eq!(remove(name), (wanted, Kind::Unavailable));
    }
    let bad = |text: String| (text, Kind::FailedPrecondition);
    assert_eq!(
        refusal(|dir| write(dir, "vmlinux", "kernel!")),
        bad(format!("DIR/vmlinux has 7 bytes, not 6 as in its manifest; {rebuild}"))
    );
    let found = Digest::of(b"Initramfs");
    let expected = Digest::of(INITRAMFS);
    assert_eq!(
        refusal(|dir| write(dir, "initramfs.cpio", "Initramfs")),
        bad(format!(
            "DIR/initramfs.cpio has SHA-256 {found}, not {expected} as in its manifest; {rebuild}"
        ))
    );
    let link = |dir: &Path| {
        fs::rename(dir.join("vmlinux"), dir.join("other")).unwrap();
        symlink(dir.join("other"), dir.join("vmlinux")).unwrap();
    };
    assert_eq!(
        refusal(link),
        bad(format!("DIR/vmlinux is a symbolic link, not a regular file; {rebuild}"))
    );
    let file = |dir: &Path| {
        fs::remove_dir_all(dir).unwrap();
        fs::write(dir, "").unwrap();
    };
    assert_eq!(refusal(file), bad(format!("DIR is a file, not a directory; {rebuild}")));
}

#[test]
fn files_that_others_can_change_are_refused() {
    for name in ["", MANIFEST, "vmlinux"] {
        let open = |dir: &Path| {
            fs::set_permissions(dir.join(name), Permissions::from_mode(0o666 | 0o111)).unwrap();
        };
        let (text, kind) = refusal(open);
        assert!(text.contains("mode 777, so others could change what Pods boot"), "{text}");
        assert_eq!(kind, Kind::FailedPrecondition);
    }
}

#[test]
fn an_invalid_manifest_is_refused() {
    let change = |key: &[&str], value: serde_json::Value| {
        refusal(|dir| {
            let mut json = serde_json::to_value(manifest()).unwrap();
            let place = key.iter().fold(&mut json, |json, key| &mut json[*key]);
            *place = value;
            write(dir, MANIFEST, json.to_string());
        })
        .0
    };
    for name in ["../vmlinux", "/etc/passwd", "..", ""] {
        let text = change(&["vmlinux", "file"], name.into());
        let wanted = format!(
            "DIR/guest.json: vmlinux.file is {name:?}, but must be the name of a file in the same directory; rebuild"
        );
        assert!(text.starts_with(&wanted), "{text}");
    }
    assert!(change(&["initramfs", "size"], 0.into()).contains("initramfs.size is \"0\", but must"));
    assert!(
        change(&["modules"], ["a b"].into_iter().collect()).contains("modules is \"a b\", but")
    );
    assert!(
        change(&["format"], 2.into()).starts_with("DIR/guest.json has format 2, not 1; rebuild")
    );
    for (key, value) in [(["vmlinux", "sha256"], "abc"), (["vmlinux", "mode"], "x")] {
        let text = change(&key, value.into());
        assert!(
            text.starts_with("DIR/guest.json is not a guest image's manifest; rebuild"),
            "{text}"
        );
    }
    let (text, _) = refusal(|dir| write(dir, MANIFEST, vec![b' '; 300_000]));
    assert!(text.starts_with("DIR/guest.json is not a guest image's manifest"), "{text}");
}

#[test]
fn an_unchanged_file_is_read_once_and_a_changed_one_again() {
    let (place, dir) = image();
    let state = place.path().join("state");
    let guest = GuestImage::open(&dir).unwrap();
    let check = || guest.verify_cached(&state).unwrap();
    let all = Checked { hashed: 2, unchanged: 0 };
    let none = Checked { hashed: 0, unchanged: 2 };
    assert_eq!(check(), all);
    assert_eq!(check(), all, "a file that was just written is not cached");
    settle(|| check() == all);
    assert_eq!(check(), none);
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);

    // The same size and modification time, as a careless copy would have them.
    let path = dir.join("vmlinux");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, b"Kernel").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    assert_eq!(guest.verify_cached(&state).unwrap_err().kind(), Kind::FailedPrecondition);
    fs::write(&path, VMLINUX).unwrap();
    assert_eq!(check(), Checked { hashed: 1, unchanged: 1 });

    // Another digest is expected of the same file.
    let mut other = manifest();
    other.initramfs.sha256 = Digest::of(b"other");
    write(&dir, MANIFEST, serde_json::to_vec(&other).unwrap());
    let other = GuestImage::open(&dir).unwrap();
    assert_eq!(other.verify_cached(&state).unwrap_err().kind(), Kind::FailedPrecondition);
}

/// Waits until the files are old enough to be cached.
fn settle(again: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while again() {
        assert!(Instant::now() < end, "never cached");
        std::thread::sleep(Duration::from_millis(100));
    }
}
