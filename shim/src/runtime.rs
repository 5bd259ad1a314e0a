//! The asynchronous runtime.

/// The runtime every action uses: one thread, since the shim waits far more than it computes and
/// its memory is paid once per Pod.
///
/// # Errors
///
/// [`sandbox_core::Kind::Internal`] when the kernel has no room for it.
pub(crate) fn new() -> sandbox_core::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| {
        sandbox_core::Error::new(sandbox_core::Kind::Internal, format!("starting the runtime: {e}"))
    })
}
