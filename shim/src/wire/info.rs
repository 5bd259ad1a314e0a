//! `-info`: what this runtime can do, for containerd 2.0 and later
//! (`api/types/introspection.proto`).

use std::io::{self, Read, Write};
use std::path::Path;

use bulkhead_runtimeclass::Handler;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use sandbox_core::{Error, Kind, Result};

use crate::wire::bootstrap::INPUT_MAX;
use crate::wire::options::config_source;

/// The type containerd gives the features document, which is JSON inside.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints the `RuntimeInfo` of the handler whose options stand on standard input, or which the name
/// of `program` chooses.
pub(crate) fn run(program: &Path) -> Result<()> {
    let failed = |e: String| Error::new(Kind::Internal, format!("describing the runtime: {e}"));
    let mut bytes = Vec::new();
    let limit = u64::try_from(INPUT_MAX).unwrap_or(u64::MAX);
    io::stdin().take(limit).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
    let options = Any::parse_from_bytes(&bytes).map_err(|e| {
        Error::new(Kind::InvalidArgument, format!("standard input is no runtime options: {e}"))
    })?;
    let info = describe(options, program)?;
    let bytes = info.write_to_bytes().map_err(|e| failed(e.to_string()))?;
    io::stdout().write_all(&bytes).map_err(|e| failed(e.to_string()))
}

fn describe(options: Any, program: &Path) -> Result<RuntimeInfo> {
    let handler = Handler::load(&config_source(&options)?.or_named(program))?;
    let features = Any {
        type_url: FEATURES.to_owned(),
        value: bulkhead_runtimeclass::features(&handler).to_string().into_bytes(),
        ..Any::default()
    };
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
    Ok(RuntimeInfo {
        name: format!("io.containerd.bulkhead.v2/{}", handler.backend_name()),
        version: Some(version).into(),
        // containerd fails on options without a type.
        options: Some(options).filter(|options| !options.type_url.is_empty()).into(),
        features: Some(features).into(),
        ..RuntimeInfo::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_promise_only_what_is_done() {
        let info = describe(Any::default(), Path::new("shim")).unwrap();
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        let listed = |list: &serde_json::Value, name: &str| {
            list.as_array().unwrap().iter().any(|entry| entry == name)
        };
        assert!(listed(&features["mountOptions"], "rro"));
        assert_eq!(features["linux"]["seccomp"]["enabled"], true);
        assert!(!listed(&features["linux"]["namespaces"], "user"));
        assert_eq!(info.name, "io.containerd.bulkhead.v2/gvisor");
        assert!(info.options.is_none(), "containerd cannot read options without a type");
    }
}
