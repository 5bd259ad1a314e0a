//! Finds the hosts of a registry in containerd's `certs.d/HOST/hosts.toml`, by containerd's rules,
//! so that one configuration serves both.

mod file;

use std::path::{Path, PathBuf};

use super::error::RegistryError;
use super::host::{RegistryHost, TlsFiles};
use crate::reference::Place;

/// Directories with a folder for each registry.
#[derive(Clone, Debug, Default)]
pub struct HostsDirectories(Vec<PathBuf>);

impl HostsDirectories {
    /// Searches `directories` in order; the first with a configuration for a registry is used.
    /// containerd's is `/etc/containerd/certs.d`.
    pub fn new(directories: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(directories.into_iter().collect())
    }

    /// The hosts for a place, in the order in which they are tried.
    ///
    /// # Errors
    ///
    /// When a file is invalid or cannot be read.
    pub fn hosts(&self, place: &Place) -> Result<Vec<RegistryHost>, RegistryError> {
        for directory in self.folders(place.host()) {
            let path = directory.join("hosts.toml");
            match std::fs::read_to_string(&path) {
                Ok(text) => return file::parse(&path, &text, place),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    if let Some(tls) = certificates(&directory)? {
                        let host = RegistryHost { tls, ..RegistryHost::of(place)? };
                        return Ok(vec![host]);
                    }
                }
                Err(source) => return Err(RegistryError::ReadHosts { path, source }),
            }
        }
        Ok(vec![RegistryHost::of(place)?])
    }

    fn folders(&self, host: &str) -> Vec<PathBuf> {
        let mut names = vec![host.to_owned(), "_default".to_owned()];
        if let Some((name, port)) = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
            names.insert(0, format!("{name}_{port}_"));
        }
        let folders = self.0.iter().flat_map(|root| names.iter().map(|name| root.join(name)));
        folders.filter(|folder| folder.is_dir()).collect()
    }
}

/// Docker's layout, which containerd uses if there is no `hosts.toml`: `*.crt`, and `*.cert` with
/// `*.key`.
fn certificates(directory: &Path) -> Result<Option<TlsFiles>, RegistryError> {
    let error = |source| RegistryError::ReadHosts { path: directory.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(error)? {
        paths.push(entry.map_err(error)?.path());
    }
    paths.sort();
    let is = |path: &Path, ending: &str| path.extension().is_some_and(|it| it == ending);
    let mut tls = TlsFiles::default();
    for path in paths {
        if is(&path, "crt") {
            tls.ca.push(path);
        } else if is(&path, "cert") && tls.client.is_none() {
            tls.client = Some((path.clone(), Some(path.with_extension("key"))));
        }
    }
    Ok((tls != TlsFiles::default()).then_some(tls))
}

#[cfg(test)]
mod tests;
