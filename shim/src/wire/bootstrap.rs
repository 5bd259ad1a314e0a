//! The two ends of `start`: what containerd writes to standard input, and the answer it reads.
//!
//! | containerd | writes | reads |
//! | --- | --- | --- |
//! | 1.6 | runtime options (`Any`) or nothing | an address |
//! | 1.7 to 2.2 | the same | an address, or JSON |
//! | 2.3 and later | `BootstrapParams` | `BootstrapResult`, JSON or an address |

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use sandbox_core::{Error, Id, Kind, Result};

use bulkhead_runtimeclass::ConfigSource;

use crate::wire::options::{self, config_source};

/// The task service's version that answers name. Version 2 is what every containerd speaks, and
/// the one with which it cleans up after each container of a Pod.
const TASK_VERSION: i32 = 2;

/// More than this is no runtime options.
pub(crate) const INPUT_MAX: usize = 1 << 20;

/// What containerd writes to the standard input of `start`.
#[derive(Debug, PartialEq)]
pub(crate) struct Input {
    /// Where the handler's configuration is.
    pub(crate) source: ConfigSource,
    /// The protocol of containerd 2.3 and later.
    pub(crate) bootstrap: bool,
    /// Where the socket should be, if containerd says so.
    pub(crate) socket_dir: Option<String>,
    /// Debug output is asked for.
    pub(crate) debug: bool,
    /// containerd's ttrpc address, if it says so.
    pub(crate) ttrpc_address: Option<String>,
}

impl Input {
    /// Reads standard input's bytes. `BootstrapParams` and `Any` look alike on the wire (two
    /// strings first), so the ids that the command line repeats decide which it is.
    pub(crate) fn read(bytes: &[u8], id: &Id, namespace: &Id) -> Result<Self> {
        if let Ok(params) = BootstrapParams::parse_from_bytes(bytes) {
            if params.instance_id == id.as_str() && params.namespace == namespace.as_str() {
                return Self::from_params(&params);
            }
        }
        let any = Any::parse_from_bytes(bytes).map_err(|e| {
            invalid(format!("standard input is neither runtime options nor BootstrapParams: {e}"))
        })?;
        Ok(Self {
            source: config_source(&any)?,
            bootstrap: false,
            socket_dir: None,
            debug: false,
            ttrpc_address: None,
        })
    }

    fn from_params(params: &BootstrapParams) -> Result<Self> {
        let options = params
            .extensions
            .iter()
            .filter_map(|extension| extension.value.as_ref())
            .find(|any| options::are_known(&any.type_url));
        let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Self {
            source: options.map_or(Ok(ConfigSource::Default), config_source)?,
            bootstrap: true,
            socket_dir: filled(params.socket_dir()),
            // slog's levels: -4 is debug, -8 is trace.
            debug: params.log_level.value() <= -4,
            ttrpc_address: filled(&params.containerd_ttrpc_address),
        })
    }

    /// The bytes to print for a shim that serves at `address`.
    pub(crate) fn answer(&self, address: &str) -> Result<Vec<u8>> {
        if !self.bootstrap {
            return Ok(address.as_bytes().to_vec());
        }
        let result = BootstrapResult {
            version: TASK_VERSION,
            address: address.to_owned(),
            protocol: "ttrpc".to_owned(),
            ..BootstrapResult::default()
        };
        result
            .write_to_bytes()
            .map_err(|e| Error::new(Kind::Internal, format!("encoding the answer: {e}")))
    }
}

fn invalid(message: String) -> Error {
    Error::new(Kind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;

    fn ids() -> (Id, Id) {
        (Id::new("abc").unwrap(), Id::new("k8s.io").unwrap())
    }

    fn options(path: &str, body: &str) -> Any {
        let mut value = Vec::new();
        for (field, text) in [(1u8, "some.type"), (2, path), (3, body)] {
            value.extend([field << 3 | 2, u8::try_from(text.len()).unwrap()]);
            value.extend(text.as_bytes());
        }
        Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() }
    }

    fn read(bytes: &[u8]) -> Result<Input> {
        let (id, namespace) = ids();
        Input::read(bytes, &id, &namespace)
    }

    #[test]
    fn old_containerd_sends_options_or_nothing() {
        let none = read(b"").unwrap();
        assert_eq!((none.source.clone(), none.bootstrap), (ConfigSource::Default, false));
        assert_eq!(none.answer("unix:///x").unwrap(), b"unix:///x");
        let path = read(&options("/etc/x.toml", "").write_to_bytes().unwrap()).unwrap();
        assert_eq!(path.source, ConfigSource::Path("/etc/x.toml".into()));
        let body = read(&options("", "a = 1").write_to_bytes().unwrap()).unwrap();
        assert_eq!(body.source, ConfigSource::Inline("a = 1".into()));
    }

    #[test]
    fn new_containerd_sends_bootstrap_params() {
        let extension = Extension { value: Some(options("/c", "")).into(), ..Extension::default() };
        let params = BootstrapParams {
            instance_id: "abc".into(),
            namespace: "k8s.io".into(),
            extensions: vec![extension],
            socket_dir: Some("/run/s".into()),
            ..BootstrapParams::default()
        };
        let input = read(&params.write_to_bytes().unwrap()).unwrap();
        assert_eq!(input.source, ConfigSource::Path("/c".into()));
        assert_eq!((input.bootstrap, input.socket_dir.as_deref()), (true, Some("/run/s")));
        let answer =
            BootstrapResult::parse_from_bytes(&input.answer("unix:///x").unwrap()).unwrap();
        assert_eq!((answer.version, answer.address.as_str()), (2, "unix:///x"));
        assert_eq!(answer.protocol, "ttrpc");
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in [&b"\xff\xff\xff"[..], b"\x0a\xff", b"hello"] {
            assert_eq!(read(bytes).unwrap_err().kind(), Kind::InvalidArgument, "{bytes:?}");
        }
    }
}
