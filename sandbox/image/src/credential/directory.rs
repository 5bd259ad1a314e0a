//! A directory of mounted secrets.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::error::CredentialError;
use super::pattern::Wanted;
use super::source::{Candidate, CredentialSource};
use super::{docker, kubernetes};

/// A directory that holds Secrets as Kubernetes mounts them (`NAME/.dockerconfigjson`, or the key
/// by itself), Docker configurations (`*.json`) and Secrets as YAML (`*.yaml`, `*.yml`).
///
/// It is read again for every image, so that changes to a Secret take effect.
#[derive(Clone, Debug)]
pub struct SecretDirectory(PathBuf);

impl SecretDirectory {
    /// The directory at that path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    fn read(&self) -> Result<Vec<Candidate>, CredentialError> {
        let mut found = Vec::new();
        for path in entries(&self.0)? {
            if path.is_dir() {
                for path in entries(&path)? {
                    found.extend(file(&path)?);
                }
            } else {
                found.extend(file(&path)?);
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl CredentialSource for SecretDirectory {
    async fn find(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>, CredentialError> {
        self.read()?.find(wanted).await
    }
}

/// The paths in a directory, sorted. The kubelet's own `..data` is skipped: its files are reached
/// through the symlinks to it.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, CredentialError> {
    let error = |source| CredentialError::Read { path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(error)? {
        let entry = entry.map_err(error)?;
        if !entry.file_name().to_string_lossy().starts_with("..") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// The credentials in a file; none if its name is not one of those above.
fn file(path: &Path) -> Result<Vec<Candidate>, CredentialError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let location = path.display().to_string();
    let is = |ending: &str| name.ends_with(ending);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    if name == ".dockercfg" {
        kubernetes::old_text(&location, &docker::content(path)?)
    } else if name == ".dockerconfigjson" || is(".json") || is(".yaml") || is(".yml") {
        kubernetes::secret_text(&location, &docker::content(path)?)
    } else {
        Ok(Vec::new())
    }
}
