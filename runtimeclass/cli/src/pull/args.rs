//! The command line of `pull`, and the credential files of every command that uses them.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

/// `bulkhead pull`.
#[derive(Args, Debug)]
pub(crate) struct PullArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// The runtime handler whose snapshotter unpacks the image; by default the runtime's default one
    #[arg(long, value_name = "HANDLER", conflicts_with_all = ["output", "check", "dry_run"])]
    pub(crate) handler: Option<String>,
    #[command(flatten)]
    pub(crate) sources: SourceArgs,
    /// Show which credential of which file would go to which host, and do nothing else
    #[arg(long, conflicts_with_all = ["check", "output"])]
    pub(crate) dry_run: bool,
    /// Try each step of a pull and show which one fails, and why; nothing is kept
    #[arg(long, conflicts_with = "output")]
    pub(crate) check: bool,
    /// Pull without the runtime: oci:DIR is an OCI image layout, rootfs:DIR an empty directory for the files
    #[arg(long, value_name = "oci:DIR|rootfs:DIR")]
    pub(crate) output: Option<Output>,
    /// The platform for --output and --check, such as linux/arm64; by default this node's
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<String>,
    /// Directories with a hosts.toml for each registry, for --output, --check and --dry-run; the runtime has its own
    #[arg(long, value_name = "DIR", default_value = "/etc/containerd/certs.d")]
    pub(crate) certs_dir: Vec<PathBuf>,
    /// Give up after so many seconds (exit code 124)
    #[arg(long, value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: u32,
    /// Log every step to the standard error, never a credential
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

/// Where credentials come from: files, or the standard input.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SourceArgs {
    #[command(flatten)]
    pub(crate) files: FileArgs,
    /// The user; the password is read from the standard input
    #[arg(short, long, value_name = "NAME", requires = "password_stdin")]
    pub(crate) username: Option<String>,
    /// Read the password from the standard input
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
    /// Use no credential at all
    #[arg(long, conflicts_with_all = ["secret", "secret_dir", "authfile", "username"])]
    pub(crate) anonymous: bool,
}

/// Files with credentials. Without any: docker's and podman's own, as far as they exist.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FileArgs {
    /// A Kubernetes Secret (dockerconfigjson or dockercfg) as YAML or JSON, also among other documents (may be repeated)
    #[arg(long, value_name = "FILE")]
    pub(crate) secret: Vec<PathBuf>,
    /// A directory of mounted Secrets (may be repeated)
    #[arg(long, value_name = "DIR")]
    pub(crate) secret_dir: Vec<PathBuf>,
    /// A config.json of docker or an auth.json of podman; its credential helpers are run (may be repeated)
    #[arg(long, value_name = "FILE")]
    pub(crate) authfile: Vec<PathBuf>,
}

impl FileArgs {
    /// Whether no file is named.
    pub(crate) fn is_empty(&self) -> bool {
        self.secret.is_empty() && self.secret_dir.is_empty() && self.authfile.is_empty()
    }
}

/// Where an image is pulled without the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// An OCI image layout.
    Oci(PathBuf),
    /// Its files.
    Rootfs(PathBuf),
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("oci", path)) if !path.is_empty() => Ok(Self::Oci(path.into())),
            Some(("rootfs", path)) if !path.is_empty() => Ok(Self::Rootfs(path.into())),
            _ => Err("must be oci:DIR or rootfs:DIR".to_owned()),
        }
    }
}
