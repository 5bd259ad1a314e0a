//! The runtime options of a handler in containerd's configuration, of two types:
//!
//! | `runtime_type` | message | the handler's file |
//! | --- | --- | --- |
//! | any, `io.containerd.bulkhead.v2` above all | `runtimeoptions.v1.Options` | `ConfigPath`, or the table itself |
//! | `io.containerd.runc.v2` with a `runtime_path` | `containerd.runc.v1.Options` | `BinaryName` |
//!
//! The second is for Pods with recursive read-only mounts: containerd 2 asks what it calls runc,
//! and no other type, whether it knows them (`introspectRuntimeFeatures` in
//! `internal/cri/server/service.go`), and kubelet refuses such a Pod on a runtime without an answer.

use bulkhead_runtimeclass::{ConfigError, ConfigSource};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, CodedInputStream};
use sandbox_core::{Error, Kind, Result};

/// The wire type of strings and bytes.
const LENGTH_DELIMITED: u32 = 2;

/// runc's options that concern runc or its shim alone, by field number: a handler may keep them, as
/// none of them asks for something that a container here goes without. The options that are not
/// listed change nothing either (`SystemdCgroup`: the Pod's cgroup path has that form already), or
/// are containerd's own.
const RUNCS_OWN: [(u32, &str); 6] = [
    (1, "NoPivotRoot"),
    (2, "NoNewKeyring"),
    (3, "ShimCgroup"),
    (7, "Root"),
    (10, "CriuImagePath"),
    (11, "CriuWorkPath"),
];

/// The two types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Generic,
    Runc,
}

impl Type {
    fn of(type_url: &str) -> Option<Self> {
        match type_url.rsplit('/').next()? {
            "runtimeoptions.v1.Options" => Some(Self::Generic),
            "containerd.runc.v1.Options" => Some(Self::Runc),
            _ => None,
        }
    }
}

/// Whether options of this type are read here.
pub(crate) fn are_known(type_url: &str) -> bool {
    Type::of(type_url).is_some()
}

/// The configuration that runtime options point to.
pub(crate) fn config_source(any: &Any) -> Result<ConfigSource> {
    if any.type_url.is_empty() && any.value.is_empty() {
        return Ok(ConfigSource::Default);
    }
    let undecodable = |e| invalid(format!("the runtime options cannot be decoded: {e}"));
    match Type::of(&any.type_url) {
        Some(Type::Generic) => generic(fields(&any.value).map_err(undecodable)?),
        Some(Type::Runc) => runc(fields(&any.value).map_err(undecodable)?),
        None => Err(ConfigError::OptionsType(any.type_url.clone()).into()),
    }
}

/// `config_path` (2) and `config_body` (3) of `runtimeoptions.v1.Options`
/// (containerd's `api/types/runtimeoptions/v1/api.proto`).
fn generic(fields: Vec<(u32, Vec<u8>)>) -> Result<ConfigSource> {
    let mut source = ConfigSource::Default;
    for (number, value) in fields {
        match (number, value.is_empty()) {
            (2, false) => return Ok(ConfigSource::Path(text("ConfigPath", value)?.into())),
            (3, false) => source = ConfigSource::Inline(text("the inline table", value)?),
            _ => {}
        }
    }
    Ok(source)
}

/// `binary_name` (6) of `containerd.runc.v1.Options` (`api/types/runc/options/oci.proto`).
fn runc(fields: Vec<(u32, Vec<u8>)>) -> Result<ConfigSource> {
    let mut source = ConfigSource::Default;
    for (number, value) in fields {
        if number == 6 && !value.is_empty() {
            source = ConfigSource::Path(text("BinaryName", value)?.into());
        }
    }
    Ok(source)
}

/// The options among these that have no effect here. Options that cannot be decoded are refused
/// where they are followed.
pub(crate) fn without_effect(any: &Any) -> Vec<&'static str> {
    if Type::of(&any.type_url) != Some(Type::Runc) {
        return Vec::new();
    }
    let given = fields(&any.value).unwrap_or_default();
    let is_given = |own: u32| given.iter().any(|(number, _)| *number == own);
    RUNCS_OWN.iter().filter(|(own, _)| is_given(*own)).map(|(_, name)| *name).collect()
}

/// The fields of a message in their order, those that are no strings or bytes with nothing in them.
fn fields(bytes: &[u8]) -> protobuf::Result<Vec<(u32, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        let mut value = Vec::new();
        match tag & 7 {
            LENGTH_DELIMITED => value = input.read_bytes()?,
            0 => drop(input.read_raw_varint64()?),
            1 => drop(input.read_fixed64()?),
            5 => drop(input.read_fixed32()?),
            _ => return Err(std::io::Error::other("it has a field of no known form").into()),
        }
        found.push((tag >> 3, value));
    }
    Ok(found)
}

fn text(name: &str, value: Vec<u8>) -> Result<String> {
    String::from_utf8(value)
        .map_err(|_| invalid(format!("{name} in the runtime options is no UTF-8")))
}

fn invalid(message: String) -> Error {
    Error::new(Kind::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, fields: &[(u8, &str)]) -> Any {
        let mut value = Vec::new();
        for (field, text) in fields {
            value.extend([field << 3 | 2, u8::try_from(text.len()).unwrap()]);
            value.extend(text.as_bytes());
        }
        Any { type_url: type_url.into(), value, ..Any::default() }
    }

    const GENERIC: &str = "runtimeoptions.v1.Options";
    const RUNC: &str = "containerd.runc.v1.Options";

    #[test]
    fn each_type_tells_the_file_in_its_way() {
        let path = ConfigSource::Path("/c.toml".into());
        let source = |type_url, fields: &[_]| config_source(&any(type_url, fields)).unwrap();
        assert_eq!(source(GENERIC, &[(1, "some.type"), (2, "/c.toml"), (3, "a = 1")]), path);
        assert_eq!(source(GENERIC, &[(2, ""), (3, "a = 1")]), ConfigSource::Inline("a = 1".into()));
        assert_eq!(source(GENERIC, &[]), ConfigSource::Default);
        assert_eq!(
            source("types.containerd.io/containerd.runc.v1.Options", &[(6, "/c.toml")]),
            path
        );
        assert_eq!(source(RUNC, &[]), ConfigSource::Default);
        // SystemdCgroup = true, as many configurations have it.
        let mut systemd = any(RUNC, &[(6, "/c.toml")]);
        systemd.value.extend([9 << 3, 1]);
        assert_eq!(config_source(&systemd).unwrap(), path);
        assert!(without_effect(&systemd).is_empty());
    }

    #[test]
    fn options_of_runc_alone_are_named() {
        let mut own = any(RUNC, &[(7, "/run/runc"), (6, "/c.toml"), (3, "/shims")]);
        // NoPivotRoot = true.
        own.value.extend([1 << 3, 1]);
        assert_eq!(config_source(&own).unwrap(), ConfigSource::Path("/c.toml".into()));
        assert_eq!(without_effect(&own), ["NoPivotRoot", "ShimCgroup", "Root"]);
        assert!(without_effect(&any(GENERIC, &[(2, "/c.toml"), (3, "a = 1")])).is_empty());
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let refused = |any: &Any| {
            let error = config_source(any).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            error.to_string()
        };
        let error = refused(&any("io.containerd.runsc.v1.options", &[]));
        assert!(error.contains("\"io.containerd.runsc.v1.options\" are not supported"), "{error}");
        let short =
            Any { type_url: GENERIC.into(), value: b"\x12\x7fshort".to_vec(), ..Any::default() };
        assert!(refused(&short).contains("cannot be decoded"));
        let mut bytes = any(RUNC, &[(6, "x")]);
        bytes.value[2] = 0xff;
        assert!(refused(&bytes).contains("BinaryName in the runtime options is no UTF-8"));
    }
}
