//! Resolves `linux.cgroupsPath` to a path below the hierarchies.

use std::path::{Component, PathBuf};

use super::error::CgroupError;

/// The path below each hierarchy's root that `cgroups_path` names: itself, or for the systemd form
/// `slice:prefix:name` that of the scope (`a-b.slice:p:n` is `a.slice/a-b.slice/p-n.scope`,
/// systemd.slice(5)).
///
/// # Errors
///
/// [`CgroupError::Path`] when it is empty or would be outside the hierarchy.
pub fn relative(cgroups_path: &str) -> Result<PathBuf, CgroupError> {
    let refused = |reason| CgroupError::Path { path: cgroups_path.to_owned(), reason };
    let path = match cgroups_path.split(':').collect::<Vec<_>>()[..] {
        [plain] => PathBuf::from(plain),
        [slice, prefix, name] => scope(slice, prefix, name).map_err(refused)?,
        _ => return Err(refused("the systemd form is slice:prefix:name")),
    };
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(refused("it may not hold '..'"));
            }
        }
    }
    if clean.as_os_str().is_empty() || cgroups_path.contains('\0') {
        return Err(refused("it names no group"));
    }
    Ok(clean)
}

fn scope(slice: &str, prefix: &str, name: &str) -> Result<PathBuf, &'static str> {
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let stem = slice.strip_suffix(".slice").ok_or("the slice does not end in .slice")?;
    if prefix.contains('/') || name.contains('/') || slice.contains('/') || name.is_empty() {
        return Err("slice, prefix and name may not hold '/', and the name may not be empty");
    }
    let mut path = PathBuf::new();
    if stem != "-" {
        let parts: Vec<&str> = stem.split('-').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err("the slice's name has an empty part");
        }
        for depth in 1..=parts.len() {
            path.push(format!("{}.slice", parts[..depth].join("-")));
        }
    }
    if name.ends_with(".slice") {
        return Ok(path.join(name));
    }
    let unit = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}-{name}") };
    Ok(path.join(format!("{unit}.scope")))
}
