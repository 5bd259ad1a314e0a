//! Paths inside a volume.

/// Why a path would lead out of its volume, if it would.
pub(super) fn escapes(path: &str) -> Option<String> {
    let outside = path.starts_with('/') || path.split('/').any(|part| part == "..");
    outside.then(|| format!("{path:?} must be relative and without \"..\""))
}
