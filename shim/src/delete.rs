//! `delete`: cleans up after a container whose shim is gone. containerd calls it after crashes and
//! after every ordinary removal alike, so finding nothing to do is fine.

use std::io::{self, Write};
use std::sync::Arc;

use sandbox_core::{Error, Exit, Kind, Result};
use sandbox_host::{Host, RealHost};

use crate::args::Args;
use crate::state;
use crate::wire::delete_response;

/// Purges the container and reports it as killed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (id, namespace) = (args.id()?, args.namespace()?);
    let bundle = match &args.bundle {
        Some(bundle) => bundle.clone(),
        None => state::working_directory()?,
    };
    let exit = Exit::now(Exit::KILLED);
    crate::runtime::new()?.block_on(async {
        let handler = state::load_handler(&bundle)?;
        let host: Arc<dyn Host> = Arc::new(RealHost::new()?);
        let backend = bulkhead_runtimeclass::backend(&handler, &namespace, host);
        let purged = backend.purge(&id, &bundle).await;
        let vacated = match state::load_cgroup(&bundle)? {
            // The shim that made it may still be on its way out; it is waited for.
            Some(cgroup) => cgroup.remove().await.map_err(Error::from),
            None => Ok(()),
        };
        purged.and(vacated)
    })?;
    state::remove_dead_socket(&bundle)?;
    let response = delete_response(exit)?;
    let failed = |e| Error::new(Kind::Internal, format!("answering containerd: {e}"));
    io::stdout().write_all(&response).map_err(failed)
}
