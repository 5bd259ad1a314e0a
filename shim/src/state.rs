//! What the short calls of this binary leave for each other on disk.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bulkhead_runtimeclass::Handler;
use sandbox_core::{Error, Kind, Result};
use sandbox_host::cgroup::Cgroup;
use sandbox_host::record;

/// The handler's decision, in each container's bundle: `delete` gets no options.
const HANDLER: &str = "handler.json";

/// The Pod's cgroup, in the bundle of the container whose shim made it.
const CGROUP: &str = "cgroup.json";

/// The shim's address, where containerd 1.6 and 1.7 look for it after a restart.
const ADDRESS: &str = "address";

/// Keeps what `start` decided.
pub(crate) fn store_handler(bundle: &Path, handler: &Handler) -> Result<()> {
    Ok(record::store(&bundle.join(HANDLER), handler)?)
}

/// What `start` decided; the default if the bundle holds no decision.
pub(crate) fn load_handler(bundle: &Path) -> Result<Handler> {
    Ok(record::load(&bundle.join(HANDLER))?.unwrap_or_default())
}

/// Keeps the group that this shim is about to make.
pub(crate) fn store_cgroup(bundle: &Path, cgroup: &Cgroup) -> Result<()> {
    Ok(record::store(&bundle.join(CGROUP), cgroup)?)
}

/// The group that the bundle's shim made, if it made one.
pub(crate) fn load_cgroup(bundle: &Path) -> Result<Option<Cgroup>> {
    Ok(record::load(&bundle.join(CGROUP))?)
}

/// Keeps the address.
pub(crate) fn store_address(bundle: &Path, address: &str) -> Result<()> {
    let path = bundle.join(ADDRESS);
    record::write_atomic(&path, address.as_bytes()).map_err(|e| internal("writing", &path, &e))
}

/// Removes the socket of the bundle's shim if no shim serves on it any more.
pub(crate) fn remove_dead_socket(bundle: &Path) -> Result<()> {
    let Ok(address) = fs::read_to_string(bundle.join(ADDRESS)) else { return Ok(()) };
    let Some(socket) = address.trim().strip_prefix("unix://").map(Path::new) else { return Ok(()) };
    match UnixStream::connect(socket) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => remove(socket),
        // Served, or gone.
        _ => Ok(()),
    }
}

/// The directory this process was started in: for `start` and the shim it is the bundle.
pub(crate) fn working_directory() -> Result<PathBuf> {
    std::env::current_dir()
        .map_err(|e| Error::new(Kind::Internal, format!("finding the working directory: {e}")))
}

/// Removes a file; fine when it is gone.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(internal("removing", path, &e)),
        _ => Ok(()),
    }
}

/// An error about a file.
pub(crate) fn internal(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::new(Kind::Internal, format!("{verb} {}: {error}", path.display()))
}
