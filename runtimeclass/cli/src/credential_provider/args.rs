//! The command line of `credential-provider`.

use clap::{Args, ValueEnum};

use crate::pull::args::FileArgs;

/// `bulkhead credential-provider`.
#[derive(Args, Debug)]
pub(crate) struct ProviderArgs {
    #[command(flatten)]
    pub(crate) files: FileArgs,
    /// The images that the kubelet caches an answer for
    #[arg(long, value_enum, default_value_t = CacheKey::Image)]
    pub(crate) cache_key: CacheKey,
    /// How long the kubelet caches an answer; 0 for not at all
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub(crate) cache_duration: u32,
    /// Print the kubelet's CredentialProviderConfig and flags for these arguments, and exit
    #[arg(long, requires = "match_image")]
    pub(crate) print_config: bool,
    /// An image pattern for which the kubelet calls the provider, for --print-config (may be repeated)
    #[arg(long, value_name = "PATTERN", requires = "print_config")]
    pub(crate) match_image: Vec<String>,
}

/// What an answer is cached for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheKey {
    /// For the image alone
    Image,
    /// For all images of the registry
    Registry,
}
