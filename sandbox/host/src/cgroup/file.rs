//! A group's control files.

use std::fs;
use std::path::Path;

use super::error::CgroupError;

pub(super) fn text(file: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(file).map_err(CgroupError::io("reading", file))
}

pub(super) fn write(file: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(file, value).map_err(CgroupError::io(format!("writing {value} to"), file))
}
