//! From the command line to sources of credentials.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sandbox_core::Secret;
use sandbox_host::RealHost;
use sandbox_image::{
    Candidate, Credential, DockerConfig, Helpers, Pattern, Reference, SecretDirectory, Sources,
    secret_file,
};

use super::args::{FileArgs, SourceArgs};
use super::error::PullError;

/// A longer password is a file that was passed by mistake.
const PASSWORD_LIMIT: u64 = 64 * 1024;

/// Reads the sources that the command line names; a typed password is for the image's host alone.
pub(crate) fn read(args: &SourceArgs, reference: &Reference) -> Result<Sources, PullError> {
    if args.anonymous {
        return Ok(Sources::none());
    }
    let Some(username) = &args.username else { return stored(&args.files) };
    // With a typed password, only files that are named are read too.
    let mut sources = named(&args.files)?;
    let credential = Credential::Basic { username: username.clone(), password: password()? };
    let pattern = Pattern::of_host(reference.place());
    let origin = "the standard input".to_owned();
    sources.push(vec![Candidate { credential, pattern, origin }]);
    Ok(sources)
}

/// Reads the named files; without any, docker's and podman's own.
pub(crate) fn stored(args: &FileArgs) -> Result<Sources, PullError> {
    if !args.is_empty() {
        return named(args);
    }
    let authfile = default_files().into_iter().filter(|path| path.exists()).collect();
    named(&FileArgs { authfile, ..FileArgs::default() })
}

fn named(args: &FileArgs) -> Result<Sources, PullError> {
    let mut sources = Sources::none();
    for path in &args.secret {
        sources.push(secret_file(path)?);
    }
    for path in &args.secret_dir {
        sources.push(SecretDirectory::new(path));
    }
    if !args.authfile.is_empty() {
        let helpers = Helpers::new(Arc::new(RealHost::new()?), std::env::vars_os().collect());
        for path in &args.authfile {
            sources.push(DockerConfig::read(path, Some(helpers.clone()))?);
        }
    }
    Ok(sources)
}

/// Where docker's and podman's `login` keep credentials.
fn default_files() -> Vec<PathBuf> {
    let variable =
        |name: &str| std::env::var_os(name).filter(|it| !it.is_empty()).map(PathBuf::from);
    let home = variable("HOME");
    let below =
        |directory: Option<PathBuf>, path: &str| directory.map(|it| it.join(Path::new(path)));
    let docker = variable("DOCKER_CONFIG").or_else(|| below(home.clone(), ".docker"));
    let podman = variable("REGISTRY_AUTH_FILE")
        .or_else(|| below(variable("XDG_RUNTIME_DIR"), "containers/auth.json"));
    let files = [below(docker, "config.json"), podman, below(home, ".config/containers/auth.json")];
    files.into_iter().flatten().collect()
}

/// The standard input without the trailing newline.
fn password() -> Result<Secret, PullError> {
    let mut bytes = Vec::with_capacity(4096);
    let read = std::io::stdin().take(PASSWORD_LIMIT + 1).read_to_end(&mut bytes);
    read.map_err(|error| PullError::Password(error.to_string()))?;
    let whole = Secret::new(bytes);
    if whole.expose().len() as u64 > PASSWORD_LIMIT {
        return Err(PullError::Password("it is longer than 64 KiB".to_owned()));
    }
    let text =
        whole.expose_text().ok_or_else(|| PullError::Password("it is not UTF-8".to_owned()))?;
    let password = text.strip_suffix('\n').unwrap_or(text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(PullError::Password("it is empty".to_owned()));
    }
    Ok(Secret::new(password))
}
