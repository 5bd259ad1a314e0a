//! The kubelet's configuration for this plugin.

use serde::Serialize;

use super::args::{CacheKey, ProviderArgs};
use super::error::ProviderError;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config<'a> {
    api_version: &'static str,
    kind: &'static str,
    providers: [Provider<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Provider<'a> {
    name: &'static str,
    api_version: &'static str,
    match_images: &'a [String],
    default_cache_duration: String,
    args: Vec<String>,
}

const HEAD: &str = "\
# Put the program `bulkhead` into a directory and this text into a file, and start the kubelet with
#   --image-credential-provider-bin-dir=DIRECTORY
#   --image-credential-provider-config=FILE
# The files that the arguments name are read anew for each request that the kubelet has no answer for.
";

/// The kubelet's `CredentialProviderConfig`, its flags in a comment.
pub(crate) fn text(args: &ProviderArgs) -> Result<String, ProviderError> {
    let config = Config {
        api_version: "kubelet.config.k8s.io/v1",
        kind: "CredentialProviderConfig",
        providers: [Provider {
            name: "bulkhead",
            api_version: "credentialprovider.kubelet.k8s.io/v1",
            match_images: &args.match_image,
            default_cache_duration: format!("{}s", args.cache_duration),
            args: arguments(args),
        }],
    };
    let yaml = serde_norway::to_string(&config).map_err(ProviderError::Yaml)?;
    Ok(format!("{HEAD}{yaml}"))
}

/// The arguments of this call, without those that print.
fn arguments(args: &ProviderArgs) -> Vec<String> {
    let mut line = vec!["credential-provider".to_owned()];
    let files = &args.files;
    for (flag, paths) in [
        ("secret", &files.secret),
        ("secret-dir", &files.secret_dir),
        ("authfile", &files.authfile),
    ] {
        line.extend(paths.iter().map(|path| format!("--{flag}={}", path.display())));
    }
    if args.cache_key == CacheKey::Registry {
        line.push("--cache-key=registry".to_owned());
    }
    line.push(format!("--cache-duration={}", args.cache_duration));
    line
}
