//! The shim itself: serves the task service until the Pod is gone.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{env, io};

use bulkhead_runtimeclass::Handler;
use sandbox_core::{Bundle, Error, Kind, Result};
use sandbox_host::cgroup::{self, Cgroup};
use sandbox_host::{Host, RealHost};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::args::Args;
use crate::pod::Pod;
use crate::tasks::Tasks;
use crate::wire::{Publisher, Service, server};
use crate::{logging, state};

/// How long the last events may take when the shim ends.
const LAST_EVENTS: Duration = Duration::from_secs(3);

/// How long answers that are under way may take when the shim ends.
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// Serves on the socket that stands as standard input.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (id, namespace) = (args.id()?, args.namespace()?);
    let bundle = state::working_directory()?;
    let handler = state::load_handler(&bundle);
    let backend = handler.as_ref().ok().map(Handler::backend);
    logging::init(&bundle, &id, backend, args.debug);
    let result = crate::runtime::new()?.block_on(async {
        let handler = handler?;
        let host: Arc<dyn Host> = Arc::new(RealHost::new()?);
        let backend = bulkhead_runtimeclass::backend(&handler, &namespace, host);
        let ttrpc = env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty());
        let (events, publisher) = Publisher::start(ttrpc, &namespace);
        let done = Arc::new(Notify::new());
        let service = Arc::new(Service {
            pod: Arc::new(Pod::new(backend, pod_cgroup(&bundle)?)),
            tasks: Arc::new(Tasks::default()),
            events,
            version: cgroup::host_version(),
            done: Arc::clone(&done),
        });
        serve(&service, &done).await?;
        // The queue ends with its last sender.
        drop(service);
        publisher.finish(LAST_EVENTS).await;
        Ok(())
    });
    if let Err(error) = &result {
        tracing::error!("the shim ends: {error}");
    }
    result
}

/// The Pod's cgroup, from its first container's configuration. Its record comes before it: the
/// shim ends inside the group, so `delete` is what removes it.
fn pod_cgroup(bundle: &Path) -> Result<Option<Cgroup>> {
    let config = Bundle::load(bundle)?;
    let path = config.spec().linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    match path.and_then(|path| path.to_str()).filter(|path| !path.is_empty()) {
        Some(path) => {
            let cgroup = Cgroup::new(path)?;
            state::store_cgroup(bundle, &cgroup)?;
            Ok(Some(cgroup))
        }
        None => Ok(None),
    }
}

async fn serve(service: &Arc<Service>, done: &Notify) -> Result<()> {
    let failed =
        |what: &'static str| move |e: String| Error::new(Kind::Internal, format!("{what}: {e}"));
    let listener = listener().map_err(|e| failed("taking over the socket")(e.to_string()))?;
    let path = listener.local_addr().ok().and_then(|at| at.as_pathname().map(Path::to_owned));
    let mut server =
        server(service, listener).map_err(|e| failed("taking over the socket")(e.to_string()))?;
    server.start().await.map_err(|e| failed("serving")(e.to_string()))?;
    let terminate = |kind| signal(kind).map_err(|e| failed("catching signals")(e.to_string()));
    let mut term = terminate(SignalKind::terminate())?;
    let mut interrupt = terminate(SignalKind::interrupt())?;
    tokio::select! {
        () = done.notified() => {}
        _ = term.recv() => tracing::warn!("SIGTERM: ending the Pod"),
        _ = interrupt.recv() => tracing::warn!("SIGINT: ending the Pod"),
    }
    // The socket must not lead to a shim that is about to exit.
    let removed = path.map_or(Ok(()), |path| state::remove(&path));
    let stopped = service.stop().await;
    // Connections that containerd holds open end with the process.
    let _ = tokio::time::timeout(LAST_ANSWERS, server.shutdown()).await;
    removed.and(stopped)
}

fn listener() -> io::Result<UnixListener> {
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    Ok(listener)
}
