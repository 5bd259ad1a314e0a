//! `start`: one shim per Pod. The first container's call starts it, the others find it.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use bulkhead_runtimeclass::Handler;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sandbox_core::annotation::{GROUP, SANDBOX_ID};
use sandbox_core::{Bundle, Error, Id, Kind, Result};
use sandbox_host::Command;
use sha2::{Digest, Sha256};

use crate::args::Args;
use crate::state;
use crate::wire::{INPUT_MAX, Input};

/// Where shims' sockets are by convention.
const SOCKETS: &str = "/run/containerd/s";

/// No more bytes than these are read ahead at once, whatever is asked for (Linux's default).
const READ_AHEAD: i64 = 128 << 10;

/// Answers containerd with the address of the Pod's shim, started now if there is none.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (id, namespace) = (args.id()?, args.namespace()?);
    let input = Input::read(&read_stdin()?, &id, &namespace)?;
    // Before anything is made: a wrong configuration leaves nothing behind.
    let handler = Handler::load(&input.source.clone().or_named(&args.program))?;
    let bundle = state::working_directory()?;
    let group = group(&Bundle::load(&bundle)?, id.clone())?;
    state::store_handler(&bundle, &handler)?;
    let socket = socket_path(&input, args, &namespace, &group)?;
    let address = format!("unix://{}", socket.display());
    if let Some(listener) = listen(&socket)? {
        read_ahead(&handler);
        if let Err(error) = spawn(args, &input, listener, &id, &namespace) {
            // No shim listens on it: the next call must not find it.
            state::remove(&socket)?;
            return Err(error);
        }
    }
    state::store_address(&bundle, &address)?;
    let answer = input.answer(&address)?;
    io::stdout()
        .write_all(&answer)
        .map_err(|e| Error::new(Kind::Internal, format!("answering containerd: {e}")))
}

/// Has the Pod's program in the page cache before the Pod runs it. The kernel charges a page to the
/// group of the process that reads it first. If that were the Pod's, a Pod at its memory limit would
/// drop and read its own program's pages over and over, where it should be killed.
fn read_ahead(handler: &Handler) {
    // A program that cannot be read is reported when it is run.
    let Some(path) = bulkhead_runtimeclass::program(handler) else { return };
    let read = || -> io::Result<()> {
        let program = fs::File::open(&path)?;
        let size = i64::try_from(program.metadata()?.len()).map_err(io::Error::other)?;
        let mut at = 0;
        while at < size {
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            posix_fadvise(&program, at, READ_AHEAD, advice)?;
            at += READ_AHEAD;
        }
        Ok(())
    };
    if let Err(error) = read() {
        tracing::debug!("{} is not read ahead: {error}", path.display());
    }
}

fn read_stdin() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(INPUT_MAX).unwrap_or(u64::MAX) + 1;
    io::stdin()
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::new(Kind::Internal, format!("reading standard input: {e}")))?;
    if bytes.len() > INPUT_MAX {
        let message = format!("standard input has more than {INPUT_MAX} bytes: no runtime options");
        return Err(Error::new(Kind::InvalidArgument, message));
    }
    Ok(bytes)
}

/// The Pod that a container belongs to, for choosing its shim.
fn group(bundle: &Bundle, id: Id) -> Result<Id> {
    match bundle.annotation(GROUP).or_else(|| bundle.annotation(SANDBOX_ID)) {
        Some(group) => Ok(Id::new(group)?),
        None => Ok(id),
    }
}

/// The socket's path: the same for every container of a group.
fn socket_path(input: &Input, args: &Args, namespace: &Id, group: &Id) -> Result<PathBuf> {
    let directory = PathBuf::from(input.socket_dir.as_deref().unwrap_or(SOCKETS));
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.map_err(|e| state::internal("creating", &directory, &e))?;
    let name = Sha256::digest(format!("{}/{namespace}/{group}", args.address));
    Ok(directory.join(format!("{name:x}")))
}

/// Binds the socket; `None` when a shim already serves there.
fn listen(path: &Path) -> Result<Option<UnixListener>> {
    let failed = |e: &io::Error| state::internal("listening on", path, e);
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            state::remove(path)?;
            UnixListener::bind(path).map_err(|e| failed(&e))?
        }
        result => result.map_err(|e| failed(&e))?,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|e| failed(&e))?;
    Ok(Some(listener))
}

/// Starts the shim, which outlives this process and shares none of its streams: containerd reads
/// them to their end.
fn spawn(
    args: &Args,
    input: &Input,
    listener: UnixListener,
    id: &Id,
    namespace: &Id,
) -> Result<()> {
    let program = env::current_exe()
        .map_err(|e| Error::new(Kind::Internal, format!("finding this program: {e}")))?;
    let mut command = Command::new(program)
        .args(["-namespace", namespace.as_str(), "-id", id.as_str(), "-address", &args.address])
        // The new shim finds its listening socket as its standard input.
        .stdin(OwnedFd::from(listener))
        .new_session()
        .outlives_parent();
    if args.debug || input.debug {
        command = command.arg("-debug");
    }
    let ttrpc = input.ttrpc_address.clone().or_else(|| env::var("TTRPC_ADDRESS").ok());
    if let Some(ttrpc) = ttrpc {
        command = command.env("TTRPC_ADDRESS", ttrpc);
    }
    // The backends look for their programs on containerd's own search path.
    if let Some(path) = env::var_os("PATH") {
        command = command.env("PATH", path);
    }
    sandbox_host::spawn_detached(command.arg("serve"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_served_one_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = listen(&path).unwrap().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listen(&path).unwrap().is_none());
        drop(first);
        assert!(listen(&path).unwrap().is_some());
    }

    #[test]
    fn containers_of_a_pod_share_a_group() {
        let dir = tempfile::tempdir().unwrap();
        let group_of = |annotations: &str| {
            let config = format!("{{\"ociVersion\":\"1.1.0\",\"annotations\":{annotations}}}");
            fs::write(dir.path().join("config.json"), config).unwrap();
            group(&Bundle::load(dir.path()).unwrap(), Id::new("own").unwrap())
                .map(|group| group.to_string())
        };
        assert_eq!(group_of("{}").unwrap(), "own");
        assert_eq!(group_of("{\"io.kubernetes.cri.sandbox-id\":\"pod1\"}").unwrap(), "pod1");
        assert_eq!(group_of("{\"io.containerd.runc.v2.group\":\"g\"}").unwrap(), "g");
        assert!(group_of("{\"io.containerd.runc.v2.group\":\"../g\"}").is_err());
    }
}
