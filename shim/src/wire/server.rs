//! The ttrpc server.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use containerd_shim_protos::ttrpc::asynchronous::{Server, Service as Methods};

use crate::wire::service::Service;

/// The generated service's name, and the same messages under the name that containerd before 2.0
/// uses.
const TASK_V3: &str = "containerd.task.v3.Task";
const TASK_V2: &str = "containerd.task.v2.Task";

/// A server of `service` on `listener`; [`Server::start`] has it accept.
///
/// # Errors
///
/// When the listener cannot be registered with the runtime.
pub(crate) fn server(service: &Arc<Service>, listener: UnixListener) -> io::Result<Server> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let mut v2 = methods(service);
    if let Some(methods) = v2.remove(TASK_V3) {
        v2.insert(TASK_V2.to_owned(), methods);
    }
    Ok(Server::new()
        .add_listener(Listener::from(listener))
        .register_service(methods(service))
        .register_service(v2))
}

fn methods(service: &Arc<Service>) -> HashMap<String, Methods> {
    create_task(Arc::clone(service) as _)
}
