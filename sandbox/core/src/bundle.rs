//! An OCI bundle: its directory and config.json.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use sandbox_host::record::write_atomic;
use sandbox_host::{Classified, Kind};
use serde_json::Value;

/// A bundle with its config.json, both typed and as JSON, which includes fields unknown to this
/// project.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    json: Value,
    /// On the heap: its 3 KB are moved through every step of a creation, whose stack the shim keeps.
    spec: Box<Spec>,
}

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// There is no config.json.
    #[error("bundle {0} has no config.json; the OCI runtime specification requires one")]
    Missing(PathBuf),
    /// A file could not be read.
    #[error("reading {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Not JSON, or a field has the wrong type.
    #[error("{path} is not a valid OCI configuration")]
    Config {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// The edited configuration could not be written.
    #[error("writing {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl Classified for BundleError {
    fn kind(&self) -> Kind {
        match self {
            Self::Missing(_) | Self::Config { .. } => Kind::InvalidArgument,
            Self::Io { .. } | Self::Write { .. } => Kind::Internal,
        }
    }
}

impl Bundle {
    /// Reads `path/config.json`.
    ///
    /// # Errors
    ///
    /// [`BundleError`] names the file and, for bad content, line, column and reason.
    pub fn load(path: impl Into<PathBuf>) -> Result<Self, BundleError> {
        let path = path.into();
        let config = path.join("config.json");
        let bytes = fs::read(&config).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => BundleError::Missing(path.clone()),
            _ => BundleError::Io { path: config.clone(), source },
        })?;
        let bad = |source| BundleError::Config { path: config.clone(), source };
        // An object first: serde would take an array for a struct whose fields are all optional.
        let object: serde_json::Map<String, Value> = serde_json::from_slice(&bytes).map_err(bad)?;
        let json = Value::Object(object);
        let spec: Box<Spec> = serde_json::from_slice(&bytes).map_err(bad)?;
        Ok(Self { path, json, spec })
    }

    /// The bundle's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the root file system is mounted: `rootfs` in the bundle.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// The configuration, typed.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The configuration as JSON.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.spec.annotations().as_ref()?.get(key).map(String::as_str)
    }

    /// Replaces config.json (for backends whose runtime reads the file).
    ///
    /// # Errors
    ///
    /// [`BundleError::Config`] when `json` is not a configuration, [`BundleError::Write`] when the
    /// file cannot be replaced; it is then unchanged.
    pub fn replace(&mut self, json: Value) -> Result<(), BundleError> {
        let path = self.path.join("config.json");
        let bad = |source| BundleError::Config { path: path.clone(), source };
        let spec = serde_json::from_value(json.clone()).map_err(bad)?;
        let bytes = serde_json::to_vec(&json).map_err(bad)?;
        write_atomic(&path, &bytes)
            .map_err(|source| BundleError::Write { path: path.clone(), source })?;
        self.json = json;
        self.spec = spec;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Bundle::load(dir.path()).unwrap_err();
        assert!(matches!(missing, BundleError::Missing(_)));
        let config = dir.path().join("config.json");
        for bad in ["{\"ociVersion\":", "{\"ociVersion\": 7}", "[]"] {
            fs::write(&config, bad).unwrap();
            let error = sandbox_host::Error::from(Bundle::load(dir.path()).unwrap_err());
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains("config.json is not a valid OCI"), "{error}");
        }
    }

    #[test]
    fn replacing_keeps_unknown_fields() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), r#"{"ociVersion":"1.1.0","x":{"y":1}}"#).unwrap();
        let mut bundle = Bundle::load(dir.path()).unwrap();
        let mut json = bundle.json().clone();
        json["hostname"] = "h".into();
        bundle.replace(json).unwrap();
        let again = Bundle::load(dir.path()).unwrap();
        assert_eq!(again.json()["x"]["y"], 1);
        assert_eq!(again.spec().hostname().as_deref(), Some("h"));
    }
}
