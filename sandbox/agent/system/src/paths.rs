//! Paths in the guest, and checks of the paths that the host names.

use std::fs;
use std::path::{Component, Path, PathBuf};

use agent_api::GUEST_ROOT;

use crate::error::{Doing, Result, invalid};

/// Creates a directory and its parents; existing ones are kept.
///
/// # Errors
///
/// The path and the kernel's error.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).doing(|| format!("creating the directory {}", path.display()))
}

/// Checks a path from the host: absolute, below [`GUEST_ROOT`] and without `..`.
pub(crate) fn below_guest_root(what: &str, path: &str) -> Result<PathBuf> {
    let checked = Path::new(path);
    let below = checked.strip_prefix(GUEST_ROOT).is_ok_and(|rest| {
        rest.components().next().is_some()
            && rest.components().all(|part| matches!(part, Component::Normal(_)))
    });
    match below {
        true => Ok(checked.to_owned()),
        false => Err(invalid(format!("{what} {path:?} is not below {GUEST_ROOT}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_the_guests_root() {
        assert!(below_guest_root("it", "/run/bulkhead/volumes/a").is_ok());
        for path in ["/run/bulkhead", "/run/bulkhead/../x", "run/bulkhead/a", "/etc", ""] {
            let error = below_guest_root("it", path).unwrap_err().to_string();
            assert_eq!(error, format!("it {path:?} is not below /run/bulkhead"));
        }
    }
}
