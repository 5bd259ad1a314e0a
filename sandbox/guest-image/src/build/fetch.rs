//! Downloads Debian's kernel with the node's apt: its release, mirrors and keys.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox_host::{Command, Host, HostError};

/// How long apt may take to look a package up.
const SHOW_TIMEOUT: Duration = Duration::from_secs(60);

/// How long apt may take to download a package of about 30 MB.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(900);

/// Upper bound on meta packages that are followed to the kernel.
const DEPTH_MAX: usize = 4;

/// An error of downloading a package.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// apt could not be run.
    #[error(
        "apt is needed to download Debian's kernel; on another distribution use --kernel-deb or --kernel"
    )]
    Host(#[from] HostError),
    /// The name is not a valid package name.
    #[error("{0:?} is not the name of a Debian package")]
    Name(String),
    /// apt has no such package.
    #[error(
        "apt has no package {package} for amd64; run `apt-get update`, or use another --kernel-package ({message})"
    )]
    Unknown {
        /// The package.
        package: String,
        /// apt's message.
        message: String,
    },
    /// The download failed.
    #[error("`apt-get download {package}` failed: {message}")]
    Download {
        /// The package.
        package: String,
        /// apt's message.
        message: String,
    },
    /// apt downloaded not exactly one package.
    #[error("`apt-get download {package}` downloaded {count} packages instead of one")]
    Count {
        /// The package.
        package: String,
        /// The number of packages.
        count: usize,
    },
    /// The directory could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Downloads the kernel that `package` is or depends on into the empty directory `dir`. apt checks
/// the archive's signatures. `env` has variables for apt: a proxy, `APT_CONFIG`.
///
/// # Errors
///
/// [`FetchError`] includes apt's message.
pub async fn fetch(
    host: &dyn Host,
    package: &str,
    dir: &Path,
    env: &[(OsString, OsString)],
) -> Result<PathBuf, FetchError> {
    let package = resolve(host, package, env).await?;
    let download = apt("apt-get", env).args(["-q", "download"]).arg(format!("{package}:amd64"));
    let output = host.run(download.cwd(dir), DOWNLOAD_TIMEOUT).await?;
    if !output.success() {
        let message = last_lines(&output.stderr);
        return Err(FetchError::Download { package, message });
    }
    let failed = |source| FetchError::Read { path: dir.to_owned(), source };
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let files = entries.map_err(failed)?.into_iter().map(|entry| entry.path());
    let mut debs: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|it| it == "deb")).collect();
    match (debs.pop(), debs.len()) {
        (Some(deb), 0) => Ok(deb),
        (last, rest) => {
            let count = rest + usize::from(last.is_some());
            Err(FetchError::Count { package, count })
        }
    }
}

/// Follows meta packages to the package with the kernel.
async fn resolve(
    host: &dyn Host,
    package: &str,
    env: &[(OsString, OsString)],
) -> Result<String, FetchError> {
    let mut package = package.to_owned();
    for _ in 0..DEPTH_MAX {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !package.bytes().all(allowed) || !package.starts_with(|c: char| c.is_alphanumeric()) {
            return Err(FetchError::Name(package));
        }
        let show = ["show", "--no-all-versions"];
        let show = apt("apt-cache", env).args(show).arg(format!("{package}:amd64"));
        let output = host.run(show, SHOW_TIMEOUT).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.success() || text.trim().is_empty() {
            let message = last_lines(&output.stderr);
            return Err(FetchError::Unknown { package, message });
        }
        match kernel_dependency(&text) {
            Some(dependency) => package = dependency,
            None => break,
        }
    }
    Ok(package)
}

/// The kernel's image that a package depends on.
fn kernel_dependency(show: &str) -> Option<String> {
    let depends = show.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let names = depends.split([',', '|']).filter_map(|it| it.split_whitespace().next());
    let names = names.map(|name| name.split(':').next().unwrap_or(name));
    names.filter(|name| name.starts_with("linux-image-")).map(str::to_owned).next()
}

fn apt(program: &str, env: &[(OsString, OsString)]) -> Command {
    // The output is parsed, so its language must not be the user's.
    let command = Command::new(program).env("LC_ALL", "C.UTF-8");
    env.iter().fold(command, |command, (key, value)| command.env(key, value))
}

/// The last lines of a program's output, joined.
fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join("; ")
}

#[cfg(test)]
mod tests {
    use sandbox_host::{FakeHost, Scripted};

    use super::*;

    const META: &str = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\n\
        Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nDescription: meta\n";
    const IMAGE: &str = "Package: linux-image-6.1.0-56-cloud-amd64\nPre-Depends: linux-image-x\n\
        Depends: kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120) | linux-initramfs-tool\n";

    fn ends(text: &str) -> Scripted {
        Scripted::Ends(0, text.into())
    }

    #[tokio::test]
    async fn a_meta_package_is_followed_to_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let host = FakeHost::new([ends(META), ends(IMAGE), ends("")]);
        let nothing = fetch(&host, "linux-image-cloud-amd64", dir.path(), &[]).await.unwrap_err();
        assert_eq!(
            nothing.to_string(),
            "`apt-get download linux-image-6.1.0-56-cloud-amd64` downloaded 0 packages instead of one"
        );
        assert_eq!(
            host.commands(),
            [
                vec!["apt-cache", "show", "--no-all-versions", "linux-image-cloud-amd64:amd64"],
                vec![
                    "apt-cache",
                    "show",
                    "--no-all-versions",
                    "linux-image-6.1.0-56-cloud-amd64:amd64"
                ],
                vec!["apt-get", "-q", "download", "linux-image-6.1.0-56-cloud-amd64:amd64"],
            ]
        );
        fs::write(dir.path().join("a.deb"), "").unwrap();
        let host = FakeHost::new([ends(IMAGE), ends("")]);
        let deb = fetch(&host, "linux-image-6.1.0-56-cloud-amd64", dir.path(), &[]).await.unwrap();
        assert_eq!(deb, dir.path().join("a.deb"));
    }

    #[tokio::test]
    async fn failures_include_apts_message() {
        let dir = tempfile::tempdir().unwrap();
        let run = async |script: Vec<Scripted>, package: &str| {
            let error = fetch(&FakeHost::new(script), package, dir.path(), &[]).await.unwrap_err();
            error.to_string()
        };
        assert_eq!(run(vec![], "-o=x").await, "\"-o=x\" is not the name of a Debian package");
        let unknown = run(vec![Scripted::Ends(100, vec![])], "linux-image-x").await;
        assert!(
            unknown.starts_with("apt has no package linux-image-x for amd64; run"),
            "{unknown}"
        );
        let failed = run(vec![ends(IMAGE), Scripted::Ends(100, vec![])], "a").await;
        assert!(failed.starts_with("`apt-get download a` failed"), "{failed}");
        let missing = run(vec![Scripted::Missing], "a").await;
        assert!(missing.starts_with("apt is needed to download"), "{missing}");
        assert_eq!(last_lines(b"a\n\n b\nc\nd\n"), "b; c; d");
    }
}
