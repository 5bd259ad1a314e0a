//! The command line of `credential-provider`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::pull::args::SourceArgs;

/// `bulkhead credential-provider`.
#[derive(Args, Debug)]
pub(crate) struct ProviderArgs {
    #[command(flatten)]
    pub(crate) sources: ProviderSources,
    /// For which images the kubelet keeps an answer
    #[arg(long, value_enum, default_value_t = CacheKey::Image)]
    pub(crate) cache_key: CacheKey,
    /// For how many seconds the kubelet keeps an answer; 0 is not at all
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub(crate) cache_duration: u32,
    /// Print the kubelet's CredentialProviderConfig and flags for these arguments, and end
    #[arg(long, requires = "match_image")]
    pub(crate) print_config: bool,
    /// An image pattern for which the kubelet asks, for --print-config (may be repeated)
    #[arg(long, value_name = "PATTERN", requires = "print_config")]
    pub(crate) match_image: Vec<String>,
}

/// Where credentials are; without any: docker's and podman's own files.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ProviderSources {
    /// A Kubernetes Secret (dockerconfigjson or dockercfg) as YAML or JSON (may be repeated)
    #[arg(long, value_name = "FILE")]
    pub(crate) secret: Vec<PathBuf>,
    /// A directory of mounted Secrets (may be repeated)
    #[arg(long, value_name = "DIR")]
    pub(crate) secret_dir: Vec<PathBuf>,
    /// A config.json of docker or an auth.json of podman; its credential helpers are asked (may be repeated)
    #[arg(long, value_name = "FILE")]
    pub(crate) authfile: Vec<PathBuf>,
}

/// For what an answer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheKey {
    /// For the image alone
    Image,
    /// For all images of the registry
    Registry,
}

impl ProviderSources {
    /// The same for what reads sources.
    pub(crate) fn source_args(&self) -> SourceArgs {
        SourceArgs {
            secret: self.secret.clone(),
            secret_dir: self.secret_dir.clone(),
            authfile: self.authfile.clone(),
            ..SourceArgs::default()
        }
    }
}
