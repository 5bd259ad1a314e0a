//! Paths that a container may not see or not write, and read-only volumes: runsc ignores the lists
//! of the one kind and makes the other read-only all the way down. Both become mounts, which it
//! keeps.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstat};
use sandbox_host::mounts::MountTable;
use serde_json::{Value, json};

use crate::error::GvisorError;

/// The file mounted over a masked file: empty, with no permissions.
const BLANK: &str = "blank";

/// Below these are file systems of the sandbox's own kernel. What the lists name there, it does
/// not have.
const OWN: [&str; 2] = ["/proc", "/sys"];

/// What stands behind a path of a container.
struct Found {
    /// On the host.
    source: PathBuf,
    is_dir: bool,
}

/// Turns the paths that `spec` masks or makes read-only into mounts. `rootfs` is the mounted root
/// file system; what has to stand somewhere stands in `bundle`.
pub(crate) fn protect(spec: &mut Value, rootfs: &Path, bundle: &Path) -> Result<(), GvisorError> {
    let mut more = Vec::new();
    for path in listed(spec, "maskedPaths") {
        match find(spec, rootfs, &path) {
            Some(Found { is_dir: true, .. }) => more.push(json!({
                "destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["ro"],
            })),
            Some(Found { is_dir: false, .. }) => more.push(bind(&path, &blank(bundle)?, "ro")),
            None => {}
        }
    }
    for path in listed(spec, "readonlyPaths") {
        if let Some(found) = find(spec, rootfs, &path) {
            more.push(bind(&path, &found.source, "ro"));
        }
    }
    add(spec, more);
    Ok(())
}

/// Makes read-only what `spec` wants read-only, and no more: what is mounted below a volume on the
/// host, by `table`, becomes a volume of its own, unless it is to be read-only as well.
pub(crate) fn spare_nested(spec: &mut Value, table: &MountTable) {
    let mut more = Vec::new();
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        let all_the_way = replace_option(mount, "rro", "ro");
        if all_the_way || !has_option(mount, "ro") || !has_option(mount, "rbind") {
            continue;
        }
        let source = Path::new(text(mount, "source"));
        if !source.is_absolute() {
            continue;
        }
        let destination = Path::new(text(mount, "destination"));
        for nested in table.below(source) {
            let Ok(below) = nested.point.strip_prefix(source) else { continue };
            if !below.as_os_str().is_empty() {
                let path = destination.join(below);
                more.push(bind(&path.to_string_lossy(), &nested.point, "rw"));
            }
        }
    }
    add(spec, more);
}

fn listed(spec: &Value, key: &str) -> Vec<String> {
    let list = spec["linux"][key].as_array().into_iter().flatten();
    let paths = list.filter_map(Value::as_str).filter(|path| {
        !OWN.iter().any(|own| Path::new(path).starts_with(own)) && path.starts_with('/')
    });
    paths.map(str::to_owned).collect()
}

fn text<'a>(mount: &'a Value, key: &str) -> &'a str {
    mount[key].as_str().unwrap_or_default()
}

fn has_option(mount: &Value, name: &str) -> bool {
    mount["options"].as_array().is_some_and(|all| all.iter().any(|o| o == name))
}

/// Whether there was the option that `new` takes the place of.
fn replace_option(mount: &mut Value, old: &str, new: &str) -> bool {
    let options = mount["options"].as_array_mut();
    let Some(option) = options.and_then(|all| all.iter_mut().find(|o| *o == old)) else {
        return false;
    };
    *option = new.into();
    true
}

fn bind(destination: &str, source: &Path, access: &str) -> Value {
    json!({
        "destination": destination, "type": "bind", "source": source.to_string_lossy(),
        "options": ["rbind", access],
    })
}

fn add(spec: &mut Value, more: Vec<Value>) {
    if more.is_empty() {
        return;
    }
    match spec["mounts"].as_array_mut() {
        Some(mounts) => mounts.extend(more),
        None => spec["mounts"] = more.into(),
    }
}

/// Looks `path` up as the container would: in the volume it is in, else in the root file system,
/// whose symbolic links never lead out of it. What only the sandbox's kernel holds is not found.
fn find(spec: &Value, rootfs: &Path, path: &str) -> Option<Found> {
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    let over = mounts.filter(|m| Path::new(path).starts_with(text(m, "destination")));
    let (base, rest) = match over.max_by_key(|m| text(m, "destination").len()) {
        Some(mount) if has_option(mount, "rbind") || has_option(mount, "bind") => {
            let rest = Path::new(path).strip_prefix(text(mount, "destination")).ok()?;
            (Path::new(text(mount, "source")), rest)
        }
        Some(_) => return None,
        None => (rootfs, Path::new(path)),
    };
    let parts = rest.components().filter(|part| matches!(part, Component::Normal(_)));
    let rest = parts.collect::<PathBuf>();
    let at: OwnedFd = match rest.as_os_str().is_empty() {
        true => OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(base).ok()?.into(),
        false => {
            let base = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(base).ok()?;
            let how = OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
                .mode(Mode::empty())
                .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
            openat2(base.as_fd(), &rest, how).ok()?
        }
    };
    let kind = SFlag::from_bits_truncate(fstat(&at).ok()?.st_mode) & SFlag::S_IFMT;
    let source = fs::read_link(format!("/proc/self/fd/{}", at.as_raw_fd())).ok()?;
    Some(Found { source, is_dir: kind == SFlag::S_IFDIR })
}

fn blank(bundle: &Path) -> Result<PathBuf, GvisorError> {
    let path = bundle.join(BLANK);
    if !path.exists() {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o000).open(&path);
        made.map_err(|source| GvisorError::File { step: "making", path: path.clone(), source })?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mounts(spec: &Value) -> Vec<(&str, &str, &str)> {
        let all = spec["mounts"].as_array().into_iter().flatten();
        all.map(|m| (text(m, "destination"), text(m, "type"), text(m, "source"))).collect()
    }

    #[test]
    fn masked_paths_are_covered_by_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        let bundle = dir.path().join("bundle");
        fs::create_dir_all(rootfs.join("usr/bin")).unwrap();
        fs::create_dir_all(&bundle).unwrap();
        fs::write(rootfs.join("usr/bin/ls"), "").unwrap();
        symlink("usr/bin", rootfs.join("bin")).unwrap();
        let mut spec = json!({"linux": {"maskedPaths": [
            "/bin/ls", "/usr", "/not/there", "/proc/kcore", "/sys/firmware",
        ]}});
        protect(&mut spec, &rootfs, &bundle).unwrap();
        let blank = bundle.join(BLANK);
        let blank_text = blank.display().to_string();
        assert_eq!(
            mounts(&spec),
            [("/bin/ls", "bind", blank_text.as_str()), ("/usr", "tmpfs", "tmpfs")]
        );
        assert_eq!(fs::metadata(&blank).unwrap().permissions().mode() & 0o777, 0);
    }

    #[test]
    fn a_link_of_the_image_does_not_lead_to_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        fs::create_dir_all(rootfs.join("etc")).unwrap();
        symlink("/../../../../etc", rootfs.join("link")).unwrap();
        let mut spec = json!({"linux": {"readonlyPaths": ["/link"]}});
        protect(&mut spec, &rootfs, dir.path()).unwrap();
        let inside = rootfs.canonicalize().unwrap().join("etc").display().to_string();
        assert_eq!(mounts(&spec), [("/link", "bind", inside.as_str())]);
        assert_eq!(spec["mounts"][0]["options"], json!(["rbind", "ro"]));
    }

    #[test]
    fn a_path_in_a_volume_is_looked_up_there() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().canonicalize().unwrap().join("volume");
        fs::create_dir_all(volume.join("sub")).unwrap();
        let mut spec = json!({
            "mounts": [
                {"destination": "/data", "type": "bind", "source": volume, "options": ["rbind"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"readonlyPaths": ["/data/sub", "/data", "/tmp/x"]},
        });
        protect(&mut spec, &dir.path().join("rootfs"), dir.path()).unwrap();
        let sub = volume.join("sub").display().to_string();
        let whole = volume.display().to_string();
        let added = mounts(&spec).split_off(2);
        assert_eq!(added, [("/data/sub", "bind", sub.as_str()), ("/data", "bind", whole.as_str())]);
    }

    fn table() -> MountTable {
        let table = "36 1 0:1 / / rw - overlay o rw\n\
        37 36 0:2 / /vol rw - ext4 d rw\n\
        38 37 0:3 / /vol/a\\040b rw - tmpfs t rw\n\
        39 36 0:4 / /volume rw - tmpfs t rw\n";
        MountTable::parse(table).unwrap()
    }

    fn volume(options: &[&str]) -> Value {
        json!({"mounts": [
            {"destination": "/data", "type": "bind", "source": "/vol", "options": options},
        ]})
    }

    #[test]
    fn what_is_mounted_below_a_read_only_volume_stays_writable() {
        let mut spec = volume(&["rbind", "ro"]);
        spare_nested(&mut spec, &table());
        assert_eq!(mounts(&spec)[1..], [("/data/a b", "bind", "/vol/a b")]);
        assert_eq!(spec["mounts"][1]["options"], json!(["rbind", "rw"]));
    }

    #[test]
    fn read_only_all_the_way_is_what_runsc_does() {
        let mut spec = volume(&["rbind", "rro"]);
        spare_nested(&mut spec, &table());
        assert_eq!(spec, volume(&["rbind", "ro"]));
        let mut writable = volume(&["rbind", "rw"]);
        spare_nested(&mut writable, &table());
        assert_eq!(writable, volume(&["rbind", "rw"]));
    }
}
