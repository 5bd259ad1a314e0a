//! The command line of `credential-provider`.

use clap::{Args, ValueEnum};

use crate::pull::args::FileArgs;

/// `bulkhead credential-provider`.
#[derive(Args, Debug)]
pub(crate) struct ProviderArgs {
    #[command(flatten)]
    pub(crate) files: FileArgs,
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

/// For what an answer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheKey {
    /// For the image alone
    Image,
    /// For all images of the registry
    Registry,
}
