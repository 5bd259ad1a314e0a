//! Sysctls, written below `/proc/sys`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result, invalid};

/// Writes a sysctl. As for sysctl(8), `.` and `/` both separate.
///
/// # Errors
///
/// `InvalidArgument` for a key that is not below `/proc/sys`; the kernel's refusal.
pub fn write_sysctl(key: &str, value: &str) -> Result<()> {
    let path = path_of(key)?;
    fs::write(&path, value).doing(|| format!("setting sysctl {key} to {value:?}"))
}

fn path_of(key: &str) -> Result<PathBuf> {
    // Where the first separator is a slash, dots belong to names (`net/ipv4/conf/eth0.1/...`).
    let first = key.find(['.', '/']).map(|at| key.as_bytes()[at]);
    let path = if first == Some(b'.') { key.replace('.', "/") } else { key.to_owned() };
    let valid = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if valid {
        Ok(Path::new("/proc/sys").join(path))
    } else {
        Err(invalid(format!("{key:?} is not a sysctl")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_by_dots_or_slashes() {
        let path = |key| path_of(key).map(|path| path.display().to_string()).ok();
        assert_eq!(path("net.core.somaxconn").as_deref(), Some("/proc/sys/net/core/somaxconn"));
        let slashes = "net/ipv4/conf/eth0.1/forwarding";
        assert_eq!(path(slashes), Some(format!("/proc/sys/{slashes}")));
        for bad in ["", "/etc/passwd", "a..b", "net/../../x", "../x"] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }
}
