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

/// Services that containerd may look for in a shim and that this one does not have. A shim without
/// one answers UNIMPLEMENTED, as containerd's own do; the library says so of a method that a service
/// lacks, and INVALID_ARGUMENT of a service that it does not know.
const ABSENT: [&str; 3] = [
    "containerd.runtime.sandbox.v1.Sandbox",
    "containerd.services.streaming.v1.Streaming",
    "containerd.services.transfer.v1.Transfer",
];

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
        .register_service(v2)
        .register_service(absent()))
}

fn absent() -> HashMap<String, Methods> {
    let nothing = || Methods { methods: HashMap::new(), streams: HashMap::new() };
    ABSENT.map(|name| (name.to_owned(), nothing())).into()
}

fn methods(service: &Arc<Service>) -> HashMap<String, Methods> {
    create_task(Arc::clone(service) as _)
}
